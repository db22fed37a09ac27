"""Kinetics: variants of its CSV files and of the names of clips, missing clips, splits that are refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_sets import touch, write_lines

from volrec.benchmarks.sets import open_set
from volrec.errors import ConfigError, LabelsError

HEADER = ["label", "youtube_id", "time_start", "time_end", "split"]
LABELS = ["air drumming", "massaging person's head", "shooting goal (soccer)", "yoga"]


def identity(number: int) -> str:
    """Eleven characters, the first of every tenth a dash, with capitals that matter."""
    return f"{'-' if number % 10 == 0 else 'a'}_Bc{number:07d}"


def rows_of(part: str, first: int, each: int, labels: list[str]) -> list[list[str]]:
    return [
        [label, identity(first + place * each + clip), str(clip), str(clip + 10), part]
        for place, label in enumerate(labels)
        for clip in range(each)
    ]


def write_csv(path: Path, rows: list[list[str]], header: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([HEADER if header is None else header, *rows])
    return path


def clip_name(row: list[str]) -> str:
    return f"{row[1]}_{int(row[2]):06d}_{int(row[3]):06d}"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Four classes, three training and two validation clips each, in class folders."""
    train, val = rows_of("train", 0, 3, LABELS), rows_of("val", 100, 2, LABELS)
    write_csv(tmp_path / "annotations" / "train.csv", train)
    write_csv(tmp_path / "annotations" / "val.csv", val)
    touch(tmp_path, [f"{row[4]}/{row[0]}/{clip_name(row)}.mp4" for row in [*train, *val]])
    return tmp_path


def codes(video_set) -> list[str]:
    return [problem.code for problem in video_set.problems]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 classes and as many validation clips as Kinetics lists; every 100th is lost."""
    root = tmp_path_factory.mktemp("kinetics")
    labels = [f"doing {place:03d}" for place in range(400)]
    train, val = rows_of("train", 0, 2, labels), rows_of("val", 10_000, 5, labels)
    write_csv(root / "kinetics_train.csv", train)
    write_csv(root / "kinetics_val.csv", val)
    touch(root / "clips", [f"{clip_name(row)}.mp4" for place, row in enumerate([*train, *val]) if place % 100])
    return root


def test_the_official_split_says_how_many_clips_it_evaluates(whole: Path) -> None:
    opened = open_set("kinetics", whole)
    assert opened.split.id == "kinetics/val" and opened.split.official and len(opened.classes) == 400
    assert opened.split.listed == (800, 2000)
    assert (len(opened.split.train), len(opened.split.test)) == (792, 1980)
    assert codes(opened) == ["missing-videos", "evaluated-count"]
    missing, evaluated = opened.problems
    assert missing.fatal and "8 of 800 training and 20 of 2,000 test videos" in missing.reason
    assert not evaluated.fatal and "1,980 of 2,000" in evaluated.reason
    assert "19,761, 19,768, 19,796, 19,818" in evaluated.reason


def test_another_number_of_classes_is_refused_and_allowed_by_name(small: Path) -> None:
    with pytest.raises(LabelsError, match=r"4 classes, not 400.*own-val") as refused:
        open_set("kinetics", small, split="val")
    assert refused.value.code == "not-official"
    own = open_set("kinetics", small, split="own-val")
    assert own.split.id == "kinetics/own-val" and not own.split.official and own.split.listed == (12, 8)
    assert codes(own) == ["evaluated-count"]
    assert own.classes == tuple(LABELS)


def test_facts_of_a_clip(small: Path) -> None:
    first = open_set("kinetics", small, split="own-val").split.train[0]
    assert first.name == f"air drumming/{identity(0)}_000000_000010" and first.group == identity(0)
    assert first.path == small / "train" / "air drumming" / f"{identity(0)}_000000_000010.mp4"
    assert first.labels == (0,)


@pytest.mark.parametrize(
    "header",
    [
        ["label", "youtube_id", "time_start", "time_end", "split"],
        ["label-name", "video-id", "start-time", "end-time", "split"],
        ["Label", " YouTube_ID ", "Time Start", "Time End", "Subset"],
    ],
)
def test_names_of_columns_vary(small: Path, header: list[str]) -> None:
    digest = open_set("kinetics", small, split="own-val").split.digest
    for part, first, each in (("train", 0, 3), ("val", 100, 2)):
        write_csv(small / "annotations" / f"{part}.csv", rows_of(part, first, each, LABELS), header)
    assert open_set("kinetics", small, split="own-val").split.digest == digest


def test_further_columns_and_another_order_do_not_matter(small: Path) -> None:
    digest = open_set("kinetics", small, split="own-val").split.digest
    rows = [[part, "0", end, label, start, name] for label, name, start, end, part in rows_of("val", 100, 2, LABELS)]
    write_csv(
        small / "annotations" / "val.csv", rows, ["split", "is_cc", "time_end", "label", "time_start", "youtube_id"]
    )
    assert open_set("kinetics", small, split="own-val").split.digest == digest


def test_the_column_split_goes_before_the_name_of_the_file_and_without_it_the_name_counts(small: Path) -> None:
    digest = open_set("kinetics", small, split="own-val").split.digest
    train, val = rows_of("train", 0, 3, LABELS), rows_of("validate", 100, 2, LABELS)
    one = write_csv(small / "all_train.csv", [*val, *train])
    assert open_set("kinetics", small, split="own-val", lists=one).split.digest == digest
    parts = [
        write_csv(small / f"k_{part}.csv", [row[:4] for row in rows], HEADER[:4])
        for part, rows in (("train", train), ("val", val))
    ]
    assert open_set("kinetics", small, split="own-val", lists=parts).split.digest == digest


@pytest.mark.parametrize(
    ("folder", "stem"),
    [
        (lambda label: label, lambda row: clip_name(row)),
        (lambda label: label.replace(" ", "_"), lambda row: clip_name(row)),
        (lambda label: label.replace(" ", "_").replace("(", "").replace(")", ""), lambda row: row[1]),
        (lambda label: "", lambda row: row[1]),
        (lambda label: "some/where", lambda row: f"{row[1]}_{row[2]}_{row[3]}"),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".MOV", "/img_00001.jpg"])
def test_clips_are_found_in_every_layout(small: Path, tmp_path: Path, folder, stem, suffix: str) -> None:
    rows = [*rows_of("train", 0, 3, LABELS), *rows_of("val", 100, 2, LABELS)]
    touch(tmp_path / "other", [f"{folder(row[0])}/{stem(row)}{suffix}".lstrip("/") for row in rows])
    opened = open_set("kinetics", tmp_path / "other", split="own-val", lists=small / "annotations")
    assert (len(opened.split.train), len(opened.split.test)) == (12, 8) and codes(opened) == ["evaluated-count"]


def test_an_id_of_several_clips_does_not_stand_for_one(small: Path, tmp_path: Path) -> None:
    train = rows_of("train", 0, 3, LABELS)
    train.append([LABELS[0], train[0][1], "30", "40", "train"])
    write_csv(small / "annotations" / "train.csv", train)
    touch(tmp_path / "ids", [f"{row[1]}.mp4" for row in train])
    opened = open_set("kinetics", tmp_path / "ids", split="own-val", lists=small / "annotations")
    assert opened.split.listed[0] == 13 and len(opened.split.train) == 11


def test_ids_that_differ_in_capitals_are_different_videos(tmp_path: Path) -> None:
    write_csv(tmp_path / "val.csv", [["a", "abcDEF", "0", "10", "val"], ["b", "abcdef", "0", "10", "val"]])
    touch(tmp_path, ["abcDEF.mp4"])
    opened = open_set("kinetics", tmp_path, split="own-val")
    assert [video.name for video in opened.split.test] == ["a/abcDEF_000000_000010"]


def test_a_test_list_may_have_no_labels_and_the_training_list_be_missing(small: Path) -> None:
    rows = [row[1:] for row in rows_of("test", 200, 2, LABELS)]
    path = write_csv(small / "hidden" / "test.csv", rows, HEADER[1:])
    touch(small, [f"test/{row[0]}.mp4" for row in rows])
    opened = open_set("kinetics", small, split="own-test", lists=[path, small / "annotations" / "train.csv"])
    assert codes(opened) == ["no-labels"] and {video.labels for video in opened.split.test} == {()}
    alone = open_set("kinetics", small, split="own-val", lists=small / "annotations" / "val.csv")
    assert codes(alone) == ["no-training-list", "evaluated-count"] and alone.split.train == ()
    with pytest.raises(LabelsError, match="no list names a clip of the part 'test'") as raised:
        open_set("kinetics", small, split="own-test")
    assert "or ask for the split own-val" in str(raised.value.remedy)


def test_what_is_on_both_sides_is_refused_or_said(small: Path) -> None:
    val = rows_of("val", 100, 2, LABELS)
    first = rows_of("train", 0, 3, LABELS)[0]
    write_csv(small / "annotations" / "val.csv", [*val, [*first[:2], "50", "60", "val"]])
    opened = open_set("kinetics", small, split="own-val")
    assert codes(opened) == ["group-leak", "missing-videos", "evaluated-count"]
    assert "1 of 20 videos have clips on both sides" in opened.problems[0].reason
    write_csv(small / "annotations" / "val.csv", [*val, [*first[:4], "val"]])
    for split in ("val", "own-val"):
        with pytest.raises(LabelsError, match="1 videos are on both sides"):
            open_set("kinetics", small, split=split)


def test_a_drawn_split_takes_the_clips_of_all_lists(small: Path) -> None:
    opened = open_set("kinetics", small, split="random-7")
    assert sum(opened.split.listed) == 20 and opened.split.id == "kinetics/random-7"
    assert codes(opened) == ["random-split"]
    with pytest.raises(ConfigError, match="Splits are val, test, own-val"):
        open_set("kinetics", small, split="1")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([",".join(HEADER), "yoga,,1,2,val"], "line 2 has no video"),
        ([",".join(HEADER), "yoga"], "line 2 has no video"),
        ([",".join(HEADER), "yoga,abc,1,2,third"], "line 2 has the part 'third'"),
        ([",".join(HEADER), "yoga,abc,one,2,val"], "line 2 has times 'one', '2'"),
        ([",".join(HEADER), "yoga,abc,1,,val"], "line 2 has times '1', ''"),
        (["yoga,abc,1,2,val"], "no columns youtube_id"),
        (["label,youtube_id,time_start"], "no columns youtube_id, time_start and time_end"),
        ([], "no columns youtube_id.*but nothing"),
    ],
)
def test_a_malformed_csv_file_is_named(tmp_path: Path, lines: list[str], match: str) -> None:
    path = write_lines(tmp_path / "val.csv", lines)
    with pytest.raises(LabelsError, match=match) as refused:
        open_set("kinetics", tmp_path)
    assert refused.value.code == "bad-list" and refused.value.where == str(path)


def test_lists_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for lists in (None, tmp_path, tmp_path / "val.csv", [tmp_path / "train.csv", tmp_path / "val.csv"]):
        with pytest.raises(LabelsError) as refused:
            open_set("kinetics", tmp_path, lists=lists)
        assert refused.value.code == "no-lists"
    (tmp_path / "val.csv").write_bytes(b"label,youtube_id\n\xff,a\n")
    with pytest.raises(LabelsError, match="cannot be read"):
        open_set("kinetics", tmp_path)


@given(
    st.dictionaries(
        st.text("abAB01-_", min_size=11, max_size=11),
        st.tuples(st.text("ab ,\"'()é", min_size=1).map(str.strip).filter(bool), st.integers(0, 9999)),
        min_size=1,
        max_size=8,
    )
)
def test_every_label_comes_back_however_it_is_quoted(tmp_path_factory: pytest.TempPathFactory, clips) -> None:
    folder = tmp_path_factory.mktemp("csv")
    rows = [[label, name, str(start), str(start + 10), "val"] for name, (label, start) in clips.items()]
    write_csv(folder / "val.csv", rows)
    touch(folder, [f"{name}.mp4" for name in clips])
    opened = open_set("kinetics", folder, split="own-val")
    assert {video.group: opened.classes[video.labels[0]] for video in opened.split.test} == {
        name: label for name, (label, _) in clips.items()
    }
    assert list(opened.classes) == sorted({label for label, _ in clips.values()})
