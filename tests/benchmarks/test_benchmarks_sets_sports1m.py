"""Sports-1M: several labels a video, names of labels, splits that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_sets import touch, write_lines

from volrec.benchmarks.sets import open_set, sports1m
from volrec.errors import LabelsError

WATCH = "https://www.youtube.com/watch?v="
TRAIN = {"UDqivjS-lpI": "168,169", "-bcdefghijk": "0", "Abcdefghijk": "486"}
TEST = {"abcdefghijk": "5", "_bcdefghijk": "5,486,7"}


@pytest.fixture
def sports(tmp_path: Path) -> Path:
    for part, videos in (("train", TRAIN), ("test", TEST)):
        lines = [f"{WATCH}{name} {labels}" for name, labels in videos.items()]
        write_lines(tmp_path / "original" / f"{part}_partition.txt", lines)
    write_lines(tmp_path / "labels.txt", [f"sport {number}" for number in range(487)])
    touch(tmp_path / "videos", [f"{name}.mp4" for name in [*TRAIN, *TEST]])
    return tmp_path


@pytest.fixture
def five(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of 1,133,158 lines would be 50 MB: the official number is that of these."""
    assert sports1m.URLS == 1133158
    monkeypatch.setattr(sports1m, "URLS", 5)


@pytest.mark.usefixtures("five")
def test_the_official_partitions_are_read(sports: Path) -> None:
    opened = open_set("sports1m", sports)
    assert opened.multilabel and opened.split.id == "sports1m/test" and opened.split.official
    assert opened.split.listed == (3, 2) and opened.problems == () and len(opened.classes) == 487
    assert opened.classes[168] == "sport 168"
    labels = {video.name: video.labels for video in [*opened.split.train, *opened.split.test]}
    assert labels == {
        "UDqivjS-lpI": (168, 169),
        "-bcdefghijk": (0,),
        "Abcdefghijk": (486,),
        "abcdefghijk": (5,),
        "_bcdefghijk": (5, 7, 486),
    }
    assert all(video.path.stem == video.name == video.group for video in opened.split.test)


def test_lists_of_another_size_are_refused_and_allowed_by_name(sports: Path) -> None:
    with pytest.raises(LabelsError, match=r"5 lines, not 1,133,158.*own-test") as refused:
        open_set("sports1m", sports)
    assert refused.value.code == "not-official"
    own = open_set("sports1m", sports, split="own-test")
    assert own.split.id == "sports1m/own-test" and not own.split.official and own.problems == ()


@pytest.mark.usefixtures("five")
def test_other_classes_are_refused(sports: Path) -> None:
    write_lines(sports / "labels.txt", [f"sport {number}" for number in range(490)])
    with pytest.raises(LabelsError, match="490 classes"):
        open_set("sports1m", sports)
    write_lines(sports / "original" / "labels.txt", ["one", "two"])
    with pytest.raises(LabelsError, match="too few for the label 486"):
        open_set("sports1m", sports)


@pytest.mark.usefixtures("five")
def test_without_names_classes_are_numbers(sports: Path) -> None:
    (sports / "labels.txt").unlink()
    opened = open_set("sports1m", sports)
    assert opened.classes == tuple(map(str, range(487)))
    assert [problem.code for problem in opened.problems] == ["no-names"]


@pytest.mark.parametrize(
    "address",
    [
        "https://www.youtube.com/watch?v=UDqivjS-lpI",
        "http://youtube.com/watch?feature=x&v=UDqivjS-lpI&t=3",
        "https://youtu.be/UDqivjS-lpI",
        "https://www.youtube.com/embed/UDqivjS-lpI",
        "UDqivjS-lpI",
    ],
)
def test_the_id_is_found_in_every_form_of_address(sports: Path, address: str) -> None:
    write_lines(sports / "original" / "train_partition.txt", [f"{address}\t168,169"], "\r\n")
    opened = open_set("sports1m", sports, split="own-test")
    assert [(video.name, video.labels) for video in opened.split.train] == [("UDqivjS-lpI", (168, 169))]


def test_labels_of_a_video_that_comes_again_are_joined(sports: Path) -> None:
    write_lines(sports / "original" / "test_partition.txt", [f"{WATCH}abcdefghijk {label}" for label in (9, 5, 9)])
    opened = open_set("sports1m", sports, split="own-test")
    assert [video.labels for video in opened.split.test] == [(5, 9)] and opened.split.listed == (3, 1)


def test_a_video_on_both_sides_is_refused_by_every_name(sports: Path) -> None:
    write_lines(sports / "original" / "test_partition.txt", [f"{WATCH}UDqivjS-lpI 3"])
    for split in ("test", "own-test"):
        with pytest.raises(LabelsError, match="1 videos are on both sides"):
            open_set("sports1m", sports, split=split)


def test_missing_videos_and_lists_are_said(sports: Path) -> None:
    (sports / "videos" / "_bcdefghijk.mp4").unlink()
    opened = open_set("sports1m", sports, split="own-test")
    assert [problem.code for problem in opened.problems] == ["missing-videos"]
    assert "0 of 3 training and 1 of 2 test" in opened.problems[0].reason
    test = sports / "original" / "test_partition.txt"
    alone = open_set("sports1m", sports, split="own-test", lists=test)
    assert "no-training-list" in [problem.code for problem in alone.problems]
    with pytest.raises(LabelsError, match="no list has test videos"):
        open_set("sports1m", sports, split="own-test", lists=sports / "original" / "train_partition.txt")


def test_two_lists_are_taken_in_their_order(sports: Path) -> None:
    first = write_lines(sports / "a.txt", [f"{WATCH}UDqivjS-lpI 1"])
    second = write_lines(sports / "b.txt", [f"{WATCH}abcdefghijk 1"])
    split = open_set("sports1m", sports, split="own-test", lists=(first, second)).split
    assert [video.name for video in split.train] == ["UDqivjS-lpI"]
    assert [video.name for video in split.test] == ["abcdefghijk"]


def test_a_split_can_be_drawn(sports: Path) -> None:
    opened = open_set("sports1m", sports, split="random-1")
    assert sum(opened.split.listed) == 5 and [problem.code for problem in opened.problems] == ["random-split"]


@pytest.mark.parametrize(
    "line", ["nothing", f"{WATCH}abcdefghijk", "https://example.org/x 3", f"{WATCH}a 3,", "a b 1 x"]
)
def test_a_malformed_line_is_named(sports: Path, line: str) -> None:
    write_lines(sports / "original" / "test_partition.txt", [f"{WATCH}abcdefghijk 1", line])
    with pytest.raises(LabelsError, match="line 2 is no address and numbers of labels"):
        open_set("sports1m", sports)


@given(
    st.dictionaries(
        st.text("abAB01-_", min_size=11, max_size=11),
        st.sets(st.integers(0, 486), min_size=1, max_size=5),
        min_size=1,
        max_size=8,
    )
)
def test_every_set_of_labels_comes_back(tmp_path_factory: pytest.TempPathFactory, videos) -> None:
    folder = tmp_path_factory.mktemp("sports")
    lines = [f"{WATCH}{name} {','.join(map(str, labels))}" for name, labels in videos.items()]
    path = write_lines(folder / "test_partition.txt", lines)
    touch(folder, [f"{name}.webm" for name in videos])
    split = open_set("sports1m", folder, split="own-test", lists=path).split
    assert {video.name: set(video.labels) for video in split.test} == videos
