"""UCF101 and sets in its layout: the published counts, the traps of its names, splits that are refused."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_sets import touch, ucf_classes, ucf_group, ucf_names, write_lines, write_ucf_lists

from volrec.benchmarks.sets import SETS, open_set, split_digest
from volrec.benchmarks.sets.disk import split_suffix
from volrec.errors import ConfigError, DataError, LabelsError

COUNTS = {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)}


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with UCF-101 (13,320 empty files in class folders) and ucfTrainTestlist."""
    root = tmp_path_factory.mktemp("ucf")
    touch(root / "UCF-101", ucf_names())
    write_ucf_lists(root / "ucfTrainTestlist")
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three classes in the same layout, one clip a group: 75 videos."""
    classes = ["HandstandPushups", "Run", "Walk"]
    names = ucf_names(classes, (21, 21, 21, 12))
    touch(tmp_path / "videos", names)
    write_ucf_lists(tmp_path / "ucfTrainTestlist", names, classes)
    return tmp_path


def codes(video_set) -> list[str]:
    return [problem.code for problem in video_set.problems]


@pytest.mark.parametrize("split", ["1", "2", "3"])
def test_the_official_splits_have_the_published_counts(ucf: Path, split: str) -> None:
    opened = open_set("ucf101", ucf, split=split)
    names = ucf_names()
    assert (len(opened.split.train), len(opened.split.test)) == opened.split.listed == COUNTS[split]
    assert opened.split.id == f"ucf101/{split}" and opened.split.official and opened.problems == ()
    assert opened.classes == tuple(ucf_classes())
    tested = {split_suffix(name)[0] for name in names if (ucf_group(name) - 1) // 7 + 1 == int(split)}
    assert {video.name for video in opened.split.test} == tested
    everything = [*opened.split.train, *opened.split.test]
    assert all(opened.classes[video.labels[0]] == video.path.parent.name for video in everything)
    assert all(video.path.name.startswith(video.name.split("/")[1]) for video in everything)
    learned = {split_suffix(name)[0] for name in names} - tested
    assert opened.split.digest == split_digest(learned, tested)


def test_a_group_is_class_and_number_and_lies_on_one_side(ucf: Path) -> None:
    split = open_set("ucf101", ucf).split
    groups = [{video.group for video in side} for side in (split.train, split.test)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 101 * 25
    assert "HandstandPushups/g01" in groups[1] and "HandstandPushups/g08" in groups[0]


def test_lists_beside_the_videos_and_given_lists_are_found(ucf: Path, tmp_path: Path) -> None:
    digest = open_set("ucf101", ucf).split.digest
    assert open_set("ucf101", ucf / "UCF-101").split.digest == digest
    assert open_set("ucf101", ucf / "UCF-101", lists=ucf).split.digest == digest
    assert open_set("ucf101", ucf / "UCF-101", lists=[ucf]).split.digest == digest
    assert open_set("ucf101", ucf / "UCF-101", lists=[]).split.digest == digest
    assert (
        open_set("ucf101", ucf / "UCF-101", lists=str(ucf / "ucfTrainTestlist" / "classInd.txt")).split.digest == digest
    )
    with pytest.raises(LabelsError, match="not found") as refused:
        open_set("ucf101", ucf / "UCF-101", lists=tmp_path)
    assert refused.value.code == "no-lists"
    with pytest.raises(LabelsError, match="2 lists were given"):
        open_set("ucf101", ucf, lists=[ucf, ucf])


def test_no_file_is_asked_for_by_itself(ucf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    plain = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **kwargs: asked.append(path) or plain(path, *args, **kwargs))
    began = time.process_time()
    assert len(open_set("ucf101", ucf).split.train) == 9537
    assert len(asked) < 50
    assert time.process_time() - began < 5  # far above what it takes: catches what grows with the square


@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n", "\r"])
def test_ends_of_lines_do_not_matter(small: Path, end: str) -> None:
    digest = open_set("motion", small).split.digest
    for path in (small / "ucfTrainTestlist").iterdir():
        write_lines(path, path.read_text().split("\n")[:-1], end)
    opened = open_set("motion", small)
    assert opened.split.digest == digest and opened.split.listed == (54, 21)


@pytest.mark.parametrize("spelling", ["Handstand", "HandStand", "handstand"])
def test_handstand_is_found_however_it_is_spelt(small: Path, spelling: str) -> None:
    (small / "videos" / "HandstandPushups").rename(small / "videos" / "moving")
    folder = small / "videos" / f"{spelling}Pushups"
    (small / "videos" / "moving").rename(folder)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("HandStand", spelling)))
    opened = open_set("motion", small)
    assert opened.split.listed == (len(opened.split.train), len(opened.split.test)) == (54, 21)
    hand = [video for video in opened.split.test if video.name.startswith("HandstandPushups/v_HandStandPushups_")]
    assert len(hand) == 7 and {opened.classes[video.labels[0]] for video in hand} == {"HandstandPushups"}


def test_the_list_may_spell_the_directory_as_the_file(small: Path) -> None:
    for path in (small / "ucfTrainTestlist").glob("*list0*.txt"):
        path.write_text(path.read_text().replace("HandstandPushups/", "HandStandPushups/"))
    opened = open_set("motion", small)
    assert len(opened.split.train) == 54
    assert {video.group for video in opened.split.test if video.labels == (0,)} == {
        f"HandstandPushups/g{number:02d}" for number in range(1, 8)
    }


def test_all_videos_may_lie_in_one_folder_or_be_folders_of_frames(small: Path, tmp_path: Path) -> None:
    flat, frames = tmp_path / "flat", tmp_path / "frames"
    for name in ucf_names(["HandstandPushups", "Run", "Walk"], (21, 21, 21, 12)):
        touch(flat, [Path(name).with_suffix(".mp4").name])
        touch(frames, [f"{split_suffix(name)[0]}/img_00001.jpg"])
    for root in (flat, frames):
        opened = open_set("motion", root, lists=small / "ucfTrainTestlist")
        assert (len(opened.split.train), len(opened.split.test)) == (54, 21) and opened.problems == ()
        assert all(video.path.exists() for video in opened.split.train)
    assert all(video.path.is_dir() for video in open_set("motion", frames).split.train)


def test_a_video_in_the_folder_of_another_class_is_another_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "lists" / "classInd.txt", ["1 Run", "2 Walk"])
    write_lines(tmp_path / "lists" / "trainlist01.txt", ["Run/001.avi 1", "Walk/001.avi 2"])
    write_lines(tmp_path / "lists" / "testlist01.txt", ["Run/002.avi", "Walk/002.avi"])
    touch(tmp_path / "v", ["Run/001.avi", "Walk/001.avi", "Walk/002.avi"])
    opened = open_set("motion", tmp_path, split="own-1")
    assert [video.path.parent.name for video in opened.split.train] == ["Run", "Walk"]
    assert [video.name for video in opened.split.test] == ["Walk/002"]


def test_missing_videos_are_one_line_and_the_count_on_disk_is_compared(ucf: Path, tmp_path: Path) -> None:
    names = ucf_names()
    touch(tmp_path, [name for name in names if not name.startswith("HandstandPushups/") and "_g01_c01" not in name])
    opened = open_set("ucf101", tmp_path, lists=ucf)
    lost = [name for name in names if name.startswith("HandstandPushups/") or "_g01_c01" in name]
    tested = sum(ucf_group(name) <= 7 for name in lost)
    assert opened.split.listed == COUNTS["1"] and len(opened.split.test) == 3783 - tested
    assert codes(opened) == ["published-count", "missing-videos"]
    count, missing = opened.problems
    assert f"{13320 - len(lost):,} videos are here" in count.reason and not count.fatal
    assert f"{len(lost) - tested} of 9,537 training and {tested} of 3,783 test" in missing.reason and missing.fatal


def test_a_folder_without_the_videos_is_refused(ucf: Path, tmp_path: Path) -> None:
    touch(tmp_path, ["some/holiday.avi"])
    with pytest.raises(DataError, match="none of the 13,320 listed videos") as refused:
        open_set("ucf101", tmp_path, lists=ucf)
    assert refused.value.code == "no-videos"
    with pytest.raises(DataError, match="no such folder"):
        open_set("ucf101", tmp_path / "absent")


def test_a_video_that_lies_there_twice_is_said_and_the_file_is_taken(small: Path) -> None:
    touch(small, ["more/Run/v_Run_g01_c01/img_00001.jpg", "videos/Run/v_Run_g02_c01.mp4"])
    opened = open_set("motion", small)
    paths = {video.name: video.path for video in opened.split.test}
    assert paths["Run/v_Run_g01_c01"].suffix == ".avi" and paths["Run/v_Run_g02_c01"].suffix == ".avi"
    assert codes(opened) == ["found-twice"] and "2 videos are here more than once" in opened.problems[0].reason


def rewrite(folder: Path, train: list[str], test: list[str], split: int = 1) -> Path:
    """Write other lists, with labels."""
    numbers = {name: place + 1 for place, name in enumerate(ucf_classes())}
    for side, names in (("train", train), ("test", test)):
        write_lines(folder / f"{side}list{split:02d}.txt", (f"{name} {numbers[name.split('/')[0]]}" for name in names))
    write_lines(folder / "classInd.txt", (f"{number} {name}" for name, number in numbers.items()))
    return folder


def test_a_random_split_of_the_right_size_is_refused_and_allowed_by_name(ucf: Path, tmp_path: Path) -> None:
    names = ucf_names()
    random.Random(0).shuffle(names)
    lists = rewrite(tmp_path, names[:9537], names[9537:])
    with pytest.raises(LabelsError, match=r"groups have videos on both sides.*own-1") as refused:
        open_set("ucf101", ucf, lists=lists)
    assert refused.value.code == "group-leak"
    own = open_set("ucf101", ucf, split="own-1", lists=lists)
    assert own.split.id == "ucf101/own-1" and not own.split.official and codes(own) == ["group-leak"]
    assert not own.problems[0].fatal


def test_lists_of_another_size_are_refused(ucf: Path, tmp_path: Path) -> None:
    names = ucf_names()
    train = [name for name in names if ucf_group(name) > 7]
    test = [name for name in names if ucf_group(name) <= 7]
    with pytest.raises(LabelsError, match=r"9,537 training and 1,794 test videos, not .* 3,783.*own-1") as refused:
        open_set("ucf101", ucf, lists=rewrite(tmp_path, train, test[:1794]))
    assert refused.value.code == "not-official"
    assert open_set("ucf101", ucf, split="own-1", lists=tmp_path).split.listed == (9537, 1794)


def test_lists_of_another_split_are_refused(ucf: Path, tmp_path: Path) -> None:
    names = ucf_names()
    # Groups 8-14 with as many videos as split 1 tests: the counts fit, the numbers of the groups do not.
    swapped = [name.replace("_g", "_g!") for name in names]
    other = [
        name.replace(f"_g!{ucf_group(plain):02d}", f"_g{(ucf_group(plain) + 6) % 14 + 1:02d}")
        if ucf_group(plain) <= 14
        else plain
        for name, plain in zip(swapped, names, strict=True)
    ]
    train = [name for name, plain in zip(other, names, strict=True) if ucf_group(plain) > 7]
    test = [name for name, plain in zip(other, names, strict=True) if ucf_group(plain) <= 7]
    assert Counter(ucf_group(name) for name in test).keys() == set(range(8, 15))
    with pytest.raises(LabelsError, match="the test groups are g01 to g07"):
        open_set("ucf101", ucf, lists=rewrite(tmp_path, train, test))


def test_another_number_of_classes_is_refused(ucf: Path, tmp_path: Path) -> None:
    classes = ["A", "B"]
    write_ucf_lists(tmp_path, ucf_names(classes, (14, 14, 14, 8)), classes)
    with pytest.raises(LabelsError, match=r"classInd\.txt has 2 classes, not 101"):
        open_set("ucf101", ucf, lists=tmp_path)


def test_a_video_on_both_sides_is_refused_by_every_name(small: Path) -> None:
    path = small / "ucfTrainTestlist" / "trainlist01.txt"
    write_lines(path, [*path.read_text().split("\n")[:-1], "HandStandPushups/v_handstandPushups_g01_c01.avi 1"])
    for split in ("1", "own-1"):
        with pytest.raises(LabelsError, match=r"1 videos are on both sides.*never used") as refused:
            open_set("motion", small, split=split)
        assert refused.value.code == "overlap"


def test_our_own_set_is_asked_for_groups_only(small: Path) -> None:
    opened = open_set("motion", small, split="2")
    assert opened.split.id == "motion/2" and not opened.split.official and opened.problems == ()
    test, train = (small / "ucfTrainTestlist" / f"{side}list01.txt" for side in ("test", "train"))
    write_lines(train, [*train.read_text().split("\n")[:-1], "Run/v_Run_g01_c09.avi 2"])
    assert len(test.read_text().split()) == 21
    with pytest.raises(LabelsError, match=r"1 of 75 groups have videos on both sides.*from what wrote"):
        open_set("motion", small)


def test_labels_that_contradict_the_folder_are_said(small: Path) -> None:
    path = small / "ucfTrainTestlist" / "trainlist01.txt"
    lines = [line.rsplit(" ", 1) for line in path.read_text().split("\n") if line]
    write_lines(path, (f"{name} {int(label) - 1}" for name, label in lines))  # counted from 0
    opened = open_set("motion", small)
    assert codes(opened) == ["labels-differ"] and "54 of 54 labels" in opened.problems[0].reason
    assert {video.labels for video in opened.split.train if video.name.startswith("Walk/")} == {(2,)}


def test_a_line_that_comes_again_counts_once(small: Path) -> None:
    path = small / "ucfTrainTestlist" / "testlist01.txt"
    write_lines(path, path.read_text().split("\n")[:-1] * 2)
    opened = open_set("motion", small)
    assert opened.split.listed == (54, 21) and codes(opened) == ["listed-twice"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("v_Run_g01_c01.avi 2", "line 2 has no class, video and label"),
        ("Run/ 2", "line 2 has no class, video and label"),
        ("Run/v_Run_g01_c01.avi two", "line 2 has no class, video and label"),
        ("Fly/v_Fly_g01_c01.avi 2", "folder 'Fly', which is no class"),
    ],
)
def test_a_malformed_line_is_named(small: Path, line: str, match: str) -> None:
    write_lines(small / "ucfTrainTestlist" / "testlist01.txt", ["Run/v_Run_g01_c01.avi", line])
    with pytest.raises(LabelsError, match=match) as refused:
        open_set("motion", small)
    assert refused.value.code == "bad-list" and refused.value.where.endswith("testlist01.txt")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["1 Run", "Walk"], "line 2 is no number and name"),
        (["1 Run", "1 Walk"], "line 2 is no number and name"),
        (["1 Run", "3 Walk"], "not numbered from 1 on"),
        (["1 Run", "2 run"], "two have one name"),
    ],
)
def test_a_malformed_list_of_classes_is_refused(small: Path, lines: list[str], match: str) -> None:
    write_lines(small / "ucfTrainTestlist" / "classInd.txt", lines)
    with pytest.raises(LabelsError, match=match):
        open_set("motion", small)


def test_lists_that_are_empty_missing_or_no_text_are_refused(small: Path) -> None:
    path = small / "ucfTrainTestlist" / "testlist01.txt"
    path.write_bytes(b"\r\n\r\n")
    with pytest.raises(LabelsError, match="the list is empty"):
        open_set("motion", small)
    path.write_bytes(b"Run/v_\xff.avi")
    with pytest.raises(LabelsError, match="not UTF-8"):
        open_set("motion", small)
    path.unlink()
    with pytest.raises(LabelsError, match="cannot be read") as refused:
        open_set("motion", small)
    assert refused.value.code == "no-lists"


def test_a_split_drawn_here_says_what_it_is_worth(ucf: Path) -> None:
    first, again, other = (open_set("ucf101", ucf, split=f"random-{seed}") for seed in (3, 3, 4))
    assert first.split.id == "ucf101/random-3" and not first.split.official and first.split == again.split
    assert first.split.digest != other.split.digest
    assert codes(first) == ["random-split"] and not first.problems[0].fatal
    groups = [{video.group for video in side} for side in (first.split.train, first.split.test)]
    assert f"{len(groups[0] & groups[1]):,} of 2,525 groups are on both sides" in first.problems[0].reason
    assert not {video.name for video in first.split.train} & {video.name for video in first.split.test}
    whole = Counter(video.labels for video in [*first.split.train, *first.split.test])
    tested = Counter(video.labels for video in first.split.test)
    assert sum(whole.values()) == 13320
    assert all(tested[label] == round(0.3 * count) for label, count in whole.items())


def test_a_split_can_be_drawn_without_lists_from_class_folders(ucf: Path, small: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "UCF"
    touch(alone, ucf_names(["HandstandPushups", "Run", "Walk"], (21, 21, 21, 12)))
    bare = open_set("motion", alone, split="random-0")
    assert bare.classes == ("HandstandPushups", "Run", "Walk")
    assert bare.split == open_set("motion", alone, split="random-0", lists=small).split
    with pytest.raises(LabelsError, match="lists in the layout of UCF101 were not found"):
        open_set("motion", alone, split="1")
    touch(tmp_path / "flat" / "a", ["x.avi", "y.avi"])
    with pytest.raises(LabelsError, match="neither lists nor videos in class folders"):
        open_set("motion", tmp_path / "flat" / "a", split="random-0")


@pytest.mark.parametrize("split", ["4", "random", "random-x", "own", "own-", "train", "", "1,2,3", "random--1"])
def test_an_unknown_split_is_refused_with_those_there_are(small: Path, split: str) -> None:
    with pytest.raises(ConfigError, match=r"is no split of motion\. Splits are 1, 2, 3, own-1"):
        open_set("motion", small, split=split)


def test_an_unknown_set_is_refused_with_those_there_are(small: Path) -> None:
    with pytest.raises(ConfigError, match=f"'ucf' is no data set. Data sets are {', '.join(SETS)}"):
        open_set("ucf", small)


@given(
    st.lists(
        st.tuples(st.sampled_from(["Run", "Walk"]), st.integers(1, 25), st.integers(1, 99)), min_size=1, unique=True
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_every_line_of_a_list_comes_back(tmp_path_factory: pytest.TempPathFactory, rows, end: str) -> None:
    folder = tmp_path_factory.mktemp("rows")
    names = [f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi" for name, group, clip in rows]
    write_lines(folder / "lists" / "classInd.txt", ["1 Walk", "2 Run"], end)
    write_lines(folder / "lists" / "testlist01.txt", names, end)
    write_lines(folder / "lists" / "trainlist01.txt", ["Run/v_Run_g77_c01.avi 2"], end)
    touch(folder, names)
    opened = open_set("motion", folder, split="own-1")
    assert [(video.name, video.labels, video.group) for video in opened.split.test] == [
        (split_suffix(listed)[0], (("Walk", "Run").index(name),), f"{name}/g{group:02d}")
        for listed, (name, group, _) in zip(names, rows, strict=True)
    ]
