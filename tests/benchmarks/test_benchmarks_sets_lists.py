"""Lists of paths and labels, and what is found on disk for any data set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_sets import touch, write_lines

from volrec.benchmarks.sets import open_set
from volrec.benchmarks.sets.disk import Catalogue, class_key, split_suffix
from volrec.benchmarks.sets.lists import read_list
from volrec.errors import DataError, LabelsError

NAMES = ["a/one.avi", "a/two.mp4", "b/one.avi", "b/two.avi"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path / "videos", NAMES)
    return tmp_path / "videos"


def lists(root: Path, train: list[str], test: list[str]) -> tuple[Path, Path]:
    return write_lines(root.parent / "t.txt", train), write_lines(root.parent / "e.txt", test)


def codes(video_set) -> list[str]:
    return [problem.code for problem in video_set.problems]


def test_paths_are_relative_to_the_root(root: Path) -> None:
    given_lists = lists(root, ["a/one.avi 0", "b/one.avi 1"], ["./a/two.mp4 0", "b\\two.avi 1"])
    opened = open_set("list", root, lists=given_lists)
    assert opened.split.id == "list/own-1" and not opened.split.official and opened.problems == ()
    assert [(video.name, video.labels, video.path) for video in opened.split.train] == [
        ("a/one", (0,), root / "a" / "one.avi"),
        ("b/one", (1,), root / "b" / "one.avi"),
    ]
    assert [video.name for video in opened.split.test] == ["a/two", "b/two"]
    assert opened.classes == ("0", "1")


def test_paths_may_lie_elsewhere_and_names_stay_below_a_folder(root: Path, tmp_path: Path) -> None:
    touch(tmp_path / "more", ["x.avi", "y.avi"])
    opened = open_set("list", root, lists=lists(root, [f"{tmp_path}/more/x.avi 0"], ["../more/y.avi 1"]))
    names = [opened.split.train[0].name, opened.split.test[0].name]
    assert all(name.endswith(f"more/{stem}") for name, stem in zip(names, "xy", strict=True))
    assert not any(name.startswith("/") or ".." in Path(name).parts for name in names)


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        (["a/x.avi 3", "b/y.avi  12"], [("a/x.avi", "3"), ("b/y.avi", "12")]),
        (["a/x.avi,3", "b c/y.avi, 12"], [("a/x.avi", "3"), ("b c/y.avi", "12")]),
        (["a/x.avi\t3", "b c,/y.avi\t12"], [("a/x.avi", "3"), ("b c,/y.avi", "12")]),
        (["a/x 120 3", "b/y 75 12"], [("a/x", "3"), ("b/y", "12")]),
        (["a/x.avi,120,3", "b/y.avi, 75, 12"], [("a/x.avi", "3"), ("b/y.avi", "12")]),
        (["clip 1 3", "clip two 12"], [("clip 1", "3"), ("clip two", "12")]),
        (["a,b/x.avi 3", "c,d/y.avi 4"], [("a,b/x.avi", "3"), ("c,d/y.avi", "4")]),
        (["one, two.avi 3"], [("one, two.avi", "3")]),
        (["a/x\x85\u2028y.avi 3"], [("a/x\x85\u2028y.avi", "3")]),
        (['"a b/x.avi","air drumming"'], [("a b/x.avi", "air drumming")]),
    ],
)
def test_separators_and_numbers_of_frames(tmp_path: Path, lines: list[str], rows: list[tuple[str, str]]) -> None:
    assert read_list(write_lines(tmp_path / "l.txt", lines, "\r\n")) == rows


@given(
    st.lists(
        st.tuples(
            st.lists(st.text("abc_-.1", min_size=1, max_size=5), min_size=2, max_size=3).map("/".join),
            st.integers(1, 999),
            st.integers(0, 99),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([" ", ",", "\t", ", "]),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_every_row_comes_back(tmp_path_factory: pytest.TempPathFactory, rows, between: str, frames: bool, end) -> None:
    path = tmp_path_factory.mktemp("list") / "l.txt"
    parts = [[f"{name}.avi", *([str(count)] if frames else []), str(label)] for name, count, label in rows]
    write_lines(path, map(between.join, parts), end)
    assert read_list(path) == [(f"{name}.avi", str(label)) for name, _, label in rows]


@pytest.mark.parametrize(
    ("train", "test", "classes", "places"),
    [
        (["0", "2"], ["2", "0"], ("0", "1", "2"), [0, 2]),
        (["1", "2"], ["3", "1"], ("1", "2", "3"), [0, 1]),
        (["2", "4"], ["2", "4"], ("0", "1", "2", "3", "4"), [2, 4]),
        (["01", "2"], ["1", "02"], ("1", "2"), [0, 1]),
        (["walk", "run"], ["run", "walk"], ("run", "walk"), [1, 0]),
        (["3", "walk"], ["3", "walk"], ("3", "walk"), [0, 1]),
        (["20240101", "20240102"], ["20240101", "20240102"], ("20240101", "20240102"), [0, 1]),
    ],
)
def test_labels_are_numbers_or_names(root: Path, train, test, classes, places) -> None:
    sides = [[f"{name} {label}" for name, label in zip(*pair, strict=True)]
             for pair in ((NAMES[::2], train), (NAMES[1::2], test))]  # fmt: skip
    opened = open_set("list", root, lists=lists(root, *sides))
    assert opened.classes == classes and [video.labels[0] for video in opened.split.train] == places


def test_another_suffix_or_a_folder_of_frames_stands_for_the_listed_file(root: Path) -> None:
    touch(root, ["a/three/img_00001.jpg", "b/one.mkv"])
    opened = open_set("list", root, lists=lists(root, ["a/two.avi 0", "a/three 0"], ["b/one.mkv 1", "b/one.avi 1"][:1]))
    assert [video.path for video in opened.split.train] == [root / "a" / "two.mp4", root / "a" / "three"]
    assert opened.split.test[0].path == root / "b" / "one.mkv" and opened.problems == ()
    either = open_set("list", root, lists=lists(root, ["a/two 0"], ["b/one 1"]))
    assert codes(either) == ["found-twice"] and either.split.test[0].path == root / "b" / "one.avi"


def test_a_folder_of_lists_is_read_where_it_is_clear(root: Path, tmp_path: Path) -> None:
    write_lines(root / "train.txt", ["a/one.avi 0"])
    write_lines(root / "val.txt", ["b/one.avi 1"])
    assert open_set("list", root).split.listed == (1, 1)
    write_lines(root / "test.txt", ["b/two.avi 1"])
    assert [video.name for video in open_set("list", root, lists=root).split.test] == ["b/two"]
    write_lines(root / "train2.txt", ["a/one.avi 0"])
    with pytest.raises(LabelsError, match=r"which list is which: test\.txt, train\.txt, train2\.txt, val\.txt"):
        open_set("list", root)
    with pytest.raises(LabelsError, match="3 lists were given"):
        open_set("list", root, lists=[root / "train.txt"] * 3)


def test_one_list_is_tested_or_drawn_from(root: Path) -> None:
    path = write_lines(root.parent / "all.txt", [f"{name} {name[0]}" for name in NAMES])
    opened = open_set("list", root, lists=path)
    assert opened.split.listed == (0, 4) and codes(opened) == ["no-training-list"]
    drawn = open_set("list", root, split="random-0", lists=path)
    assert drawn.split.listed == (2, 2) and codes(drawn) == ["random-split"]
    assert {video.labels for video in drawn.split.test} == {(0,), (1,)}
    assert "what they were cut from is unknown" in drawn.problems[0].reason


def test_a_video_on_both_sides_or_with_two_labels_is_refused(root: Path) -> None:
    with pytest.raises(LabelsError, match=r"1 videos are on both sides of list/own-1 \(a/one\)"):
        open_set("list", root, lists=lists(root, ["a/one.avi 0", "b/one.avi 1"], ["b/../a/one.avi 0"]))
    with pytest.raises(LabelsError, match="a/one is listed twice, with different labels"):
        open_set("list", root, lists=lists(root, ["a/one.avi 0", "a/one.avi 1"], ["b/one.avi 1"]))
    twice = open_set("list", root, lists=lists(root, ["a/one.avi 0", "a/one.avi 0"], ["b/one.avi 1"]))
    assert codes(twice) == ["listed-twice"] and twice.split.listed == (1, 1)


def test_missing_videos_and_folders_are_counted(root: Path) -> None:
    opened = open_set("list", root, lists=lists(root, ["a/one.avi 0", "c/one.avi 0"], ["b/none.avi 1", "b/one.avi 1"]))
    assert codes(opened) == ["missing-videos"] and "1 of 2 training and 1 of 2 test" in opened.problems[0].reason
    with pytest.raises(DataError, match="none of the 2 listed videos"):
        open_set("list", root, lists=lists(root, ["c/one.avi 0"], ["c/two.avi 0"]))


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([], "the list is empty"),
        (["a/one.avi 0", "b/one.avi"], "line 2 is no path and label: 'b/one.avi'"),
        (["a/one.avi 0", "b/one.avi,1"], "line 1 is no path and label"),
        (["3 a/one.avi"], "line 1 is no path and label"),
    ],
)
def test_a_malformed_list_is_refused(root: Path, lines: list[str], match: str) -> None:
    with pytest.raises(LabelsError, match=match) as refused:
        open_set("list", root, lists=write_lines(root.parent / "l.txt", lines))
    assert refused.value.code == "bad-list"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v_Run_g01_c01.avi", ("v_Run_g01_c01", ".avi")),
        ("a.b.MP4", ("a.b", ".mp4")),
        ("no_suffix", ("no_suffix", "")),
        ("v1.5", ("v1.5", "")),
        (".avi", (".avi", "")),
    ],
)
def test_only_suffixes_of_videos_are_taken_off(name: str, parts: tuple[str, str]) -> None:
    assert split_suffix(name) == parts


def test_names_of_classes_are_compared_by_letters_and_digits() -> None:
    assert class_key("shooting goal (soccer)") == class_key("Shooting_goal_soccer") == "shootinggoalsoccer"
    assert class_key("!?") == "!?"


def test_a_folder_of_frames_is_not_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(
        tmp_path,
        [f"Run/{clip}/{kind}_{frame:05d}.jpg" for clip in "ab" for kind in ("img", "flow_x") for frame in range(9)],
    )
    touch(tmp_path, [".hidden/Run/c.avi", "image_1.png"])
    listed: list[str] = []
    plain = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(os.fspath(folder)) or plain(folder))
    known = Catalogue(tmp_path, wanted={"a"})
    assert sorted(listed) == [str(tmp_path), str(tmp_path / "Run"), str(tmp_path / "Run" / "b")]
    assert known.by_folder() == [("Run", "a"), ("Run", "b")] and len(known) == 2
    assert all(place.frames for stem in "ab" for place in known.find([stem], "Run", set()))


def test_a_folder_that_cannot_be_listed_stops_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    plain = os.scandir

    def refuse(folder: str):
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return plain(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"shut: the folder cannot be listed \(Permission denied\)"):
        Catalogue(tmp_path)


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Run").mkdir()
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path / "Run") + b"/v_\xff.avi"))).touch()
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    touch(tmp_path, ["Run/b.avi"])
    with pytest.raises(DataError, match="not UTF-8"):
        open_set("motion", tmp_path, split="random-0")
