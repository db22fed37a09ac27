"""HMDB51: 153 files of flags, the order of classes, splits that are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_sets import HMDB_CLASSES, hmdb_names, touch, write_hmdb_lists, write_lines

from volrec.benchmarks.sets import open_set
from volrec.benchmarks.sets.hmdb51 import source_of
from volrec.errors import LabelsError


@pytest.fixture(scope="module")
def hmdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hmdb")
    touch(root / "hmdb51_org", write_hmdb_lists(root / "testTrainMulti_7030_splits"))
    return root


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Lists of their own, to be changed."""
    write_hmdb_lists(tmp_path / "lists")
    return tmp_path / "lists"


@pytest.mark.parametrize("split", ["1", "2", "3"])
def test_the_official_splits_have_the_published_counts(hmdb: Path, split: str) -> None:
    opened = open_set("hmdb51", hmdb, split=split)
    assert len(list((hmdb / "testTrainMulti_7030_splits").iterdir())) == 153
    assert opened.split.listed == (len(opened.split.train), len(opened.split.test)) == (3570, 1530)
    assert opened.split.id == f"hmdb51/{split}" and opened.split.official and opened.problems == ()
    assert set(Counter(video.labels for video in opened.split.train).values()) == {70}
    assert set(Counter(video.labels for video in opened.split.test).values()) == {30}
    # Oracle: the flags read by themselves, whatever is after them.
    flags = {
        f"{path.name.removesuffix(f'_test_split{split}.txt')}/{line.split('.avi')[0]}": line.split()[-1]
        for path in (hmdb / "testTrainMulti_7030_splits").glob(f"*_test_split{split}.txt")
        for line in path.read_text().split("\n")
        if line.strip()
    }
    assert len(flags) == 6766
    assert {video.name for video in opened.split.train} == {name for name, flag in flags.items() if flag == "1"}
    assert {video.name for video in opened.split.test} == {name for name, flag in flags.items() if flag == "2"}


def test_the_three_splits_are_told_apart(hmdb: Path) -> None:
    assert len({open_set("hmdb51", hmdb, split=split).split.digest for split in "123"}) == 3


def test_classes_are_in_the_plain_order_of_their_names(hmdb: Path) -> None:
    classes = open_set("hmdb51", hmdb).classes
    assert classes == tuple(sorted(HMDB_CLASSES)) and len(classes) == 51
    for short, long in (("climb", "climb_stairs"), ("kick", "kick_ball"), ("sword", "sword_exercise")):
        assert classes.index(long) == classes.index(short) + 1
    opened = open_set("hmdb51", hmdb)
    assert all(opened.classes[video.labels[0]] == video.path.parent.name for video in opened.split.test)


@pytest.mark.parametrize(
    ("folder", "stem", "source"),
    [
        ("brush_hair", "April_09_brush_hair_u_nm_np1_ba_goo_0", "April_09"),
        ("brush_hair", "Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_fr_goo_0",
         "Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!"),
        ("brush_hair", "Prelinger_HabitPat1954_brush_hair_h_nm_np1_fr_med_26", "Prelinger_HabitPat1954"),
        ("wave", "my_own_wave_1", "my_own_wave_1"),
    ],
)  # fmt: skip
def test_the_group_is_the_source_in_the_name(folder: str, stem: str, source: str) -> None:
    assert source_of(folder, stem) == source


def test_groups_hold_the_clips_of_one_source(hmdb: Path) -> None:
    train = open_set("hmdb51", hmdb).split.train
    assert set(Counter(video.group for video in train).values()) <= {1, 2, 3}


def test_frames_in_one_folder_are_found(hmdb: Path, tmp_path: Path) -> None:
    touch(tmp_path, [f"{name.removesuffix('.avi')}/img_00001.jpg" for name in hmdb_names("kick", 30)])
    opened = open_set("hmdb51", tmp_path, lists=hmdb)
    assert {video.path.parent for video in opened.split.train} == {tmp_path}
    assert [problem.code for problem in opened.problems] == ["published-count", "missing-videos"]
    assert "30 videos are here" in opened.problems[0].reason


def test_flag_zero_is_in_neither_side_and_drawn_where_the_split_is(hmdb: Path) -> None:
    drawn = open_set("hmdb51", hmdb, split="random-0")
    assert sum(drawn.split.listed) == 6766 and [problem.code for problem in drawn.problems] == ["random-split"]
    alone = open_set("hmdb51", hmdb / "hmdb51_org", split="random-0")
    assert alone.split.digest == drawn.split.digest
    assert sum(open_set("hmdb51", hmdb).split.listed) == 5100


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: lines[1:], r"1 classes do not have 70 training and 30 test videos \(kick 69/30\)"),
        (lambda lines: [line.replace(" 1", " 2") for line in lines], r"kick 0/100"),
        (lambda lines: lines[:-1], "1,665 videos are in neither side, not 1,666"),
    ],
)
def test_other_flags_are_refused_and_allowed_by_name(hmdb: Path, lists: Path, change, match: str) -> None:
    path = lists / "kick_test_split1.txt"
    write_lines(path, change([line.strip() for line in path.read_text().split("\n") if line.strip()]))
    with pytest.raises(LabelsError, match=match) as refused:
        open_set("hmdb51", hmdb, lists=lists)
    assert refused.value.code == "not-official" and "own-1" in refused.value.remedy
    own = open_set("hmdb51", hmdb, split="own-1", lists=lists)
    assert own.split.id == "hmdb51/own-1" and not own.split.official
    assert open_set("hmdb51", hmdb, split="2", lists=lists).split.official


def test_a_class_that_lacks_its_file_is_refused(hmdb: Path, lists: Path) -> None:
    (lists / "kick_test_split2.txt").unlink()
    with pytest.raises(LabelsError, match="50 class files for this split and 51 classes, not 51"):
        open_set("hmdb51", hmdb, split="2", lists=lists)
    assert open_set("hmdb51", hmdb, split="1", lists=lists).split.official


def test_a_video_with_two_flags_is_refused_by_every_name(hmdb: Path, lists: Path) -> None:
    path = lists / "kick_test_split1.txt"
    path.write_text(path.read_text() + f"{hmdb_names('kick', 11)[10]} 2\n")  # the first that learns
    for split in ("1", "own-1"):
        with pytest.raises(LabelsError, match="1 videos are on both sides"):
            open_set("hmdb51", hmdb, split=split, lists=lists)


@pytest.mark.parametrize("line", ["x.avi 3", "x.avi", "1", "x.avi one"])
def test_a_malformed_line_is_named(hmdb: Path, lists: Path, line: str) -> None:
    write_lines(lists / "kick_test_split1.txt", ["a.avi 1", line])
    with pytest.raises(LabelsError, match="line 2 is no file and flag") as refused:
        open_set("hmdb51", hmdb, lists=lists)
    assert refused.value.where.endswith("kick_test_split1.txt")


def test_a_split_without_lists_names_those_there_are(hmdb: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"no lists of split 7\. Splits that are here: 1, 2, 3"):
        open_set("hmdb51", hmdb, split="own-7")
    with pytest.raises(LabelsError, match="were not found"):
        open_set("hmdb51", hmdb / "hmdb51_org", lists=tmp_path)


@given(
    st.dictionaries(
        st.text("ab_!&;()[]-+'é#@", min_size=1, max_size=8).filter(lambda text: text not in ("-", "+")),
        st.sampled_from("012"),
        min_size=2,
        max_size=12,
    ),
    st.sampled_from(["\n", "\r\n", " \n", "\t\r\n"]),
    st.sampled_from([" ", "  ", "\t"]),
)
def test_every_flag_counts_whatever_the_name(
    tmp_path_factory: pytest.TempPathFactory, flags: dict[str, str], end: str, between: str
) -> None:
    folder = tmp_path_factory.mktemp("flags")
    write_lines(folder / "lists" / "run_test_split1.txt", (f"{n}.avi{between}{f}" for n, f in flags.items()), end)
    touch(folder / "run", [f"{name}.avi" for name in flags])
    if not set(flags.values()) & {"1", "2"}:
        return
    split = open_set("hmdb51", folder, split="own-1").split
    assert {video.name for video in split.train} == {f"run/{name}" for name, flag in flags.items() if flag == "1"}
    assert {video.name for video in split.test} == {f"run/{name}" for name, flag in flags.items() if flag == "2"}
