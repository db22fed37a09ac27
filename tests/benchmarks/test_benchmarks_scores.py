"""Score files: what comes back, what is refused, and what a kill leaves of a test that was under way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.benchmarks import ScoreSet
from volrec.benchmarks.partial import PartialScores
from volrec.benchmarks.score_tables import read_table
from volrec.benchmarks.scores import FACTS, class_order
from volrec.errors import RunError

CLASSES = ("kick", "kick_ball", "sword")
FACTS_OF = {
    "set": "hmdb51",
    "split_id": "hmdb51/1",
    "split_digest": "0123456789abcdef",
    "protocol": "tsn",
    "stream": "rgb",
    "weights": "ab" * 32,
    "decoder": "pyav 18.0.0",
    "listed": 7,
}


def made(count: int = 5, **changes: Any) -> ScoreSet:
    rng = np.random.default_rng(3)
    given: dict[str, Any] = {
        "labels": [place % 3 for place in range(count)],
        "logits": rng.normal(size=(count, 3)),
        "probabilities": rng.dirichlet(np.ones(3), size=count),
        "stage": "softmax",
        "clips": np.full(count, 25),
        "clip_hits": np.arange(count),
        "facts": FACTS_OF,
    }
    return ScoreSet.from_arrays([f"Å/v_{place}" for place in range(count)], CLASSES, **{**given, **changes})


def same(one: ScoreSet, other: ScoreSet) -> bool:
    arrays = ("logits", "probabilities", "clips", "clip_hits")
    plain = ("videos", "classes", "labels", "stage", "facts")
    return all(getattr(one, name) == getattr(other, name) for name in plain) and all(
        getattr(one, name).dtype == getattr(other, name).dtype
        and np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in arrays
    )


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    scores = made(labels=[(0,), (1, 2), (), (2,), (0,)])
    scores.write(tmp_path / "rgb.safetensors")
    back = ScoreSet.read(tmp_path / "rgb.safetensors")
    assert same(scores, back)
    assert [path.name for path in tmp_path.iterdir()] == ["rgb.safetensors"]
    assert back.facts["class_order"] == class_order(CLASSES) and back.facts["evaluated"] == 5


def test_margins_of_an_svm_come_back_without_probabilities(tmp_path: Path) -> None:
    scores = made(probabilities=None, stage="logits")
    scores.write(tmp_path / "idt.safetensors")
    back = ScoreSet.read(tmp_path / "idt.safetensors")
    assert same(scores, back) and np.isnan(back.probabilities).all()


def test_nobody_in_a_split_is_a_file_too(tmp_path: Path) -> None:
    made(0).write(tmp_path / "none.safetensors")
    assert ScoreSet.read(tmp_path / "none.safetensors").logits.shape == (0, 3)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rgb.safetensors"
    made(2).write(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            back = ScoreSet.read(path)
        except RunError:
            continue
        # Spaces that pad the header of the format are the only bytes that mean nothing.
        assert same(back, made(2)) and whole[place : place + 1] == b" ", place


@pytest.mark.parametrize("content", [b"", b"\x80\x02K\x01.", b"PK\x03\x04zip", b"{}", b"video,kick\n", b"\0" * 64])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError, match="foreign"):
        ScoreSet.read(path)


def test_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"fc.weight": np.zeros((2, 2), np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(RunError, match="without scores"):
        ScoreSet.read(tmp_path / "weights.safetensors")
    with pytest.raises(RunError, match="no such file"):
        ScoreSet.read(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_is_asked_for(tmp_path: Path, name: str) -> None:
    scores = made()
    facts = {key: value for key, value in scores.facts.items() if key != name}
    with pytest.raises(RunError, match=name):
        dataclasses.replace(scores, facts=facts).write(tmp_path / "rgb.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("evaluated", 4), ("class_order", "0" * 16), ("stage", "logits")])
def test_facts_of_other_scores_are_refused(tmp_path: Path, name: str, value: object) -> None:
    scores = made()
    with pytest.raises(RunError, match=name):
        dataclasses.replace(scores, facts={**scores.facts, name: value}).write(tmp_path / "rgb.safetensors")


def test_what_is_not_known_of_others_scores_may_be_null(tmp_path: Path) -> None:
    blank = dict.fromkeys(("weights", "decoder", "listed", "split_digest"))
    made(facts={**FACTS_OF, **blank}).write(tmp_path / "theirs.safetensors")
    with pytest.raises(RunError, match="split_id"):
        made(facts={**FACTS_OF, "split_id": None}).write(tmp_path / "theirs.safetensors")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logits": np.zeros((5, 2))}, "shape"),
        ({"probabilities": np.full((5, 3), np.nan)}, "no numbers"),
        ({"logits": np.where(np.eye(5, 3) > 0, np.inf, 0)}, "Å/v_0"),
        ({"labels": [0, 1, 2, 3, 0]}, "label 3"),
        ({"labels": [0, 1, 2, -1, 0]}, "label -1"),
        ({"labels": [0, "Kick", 0, 0, 0]}, "'Kick'"),
        ({"labels": [0]}, "labels of 1"),
        ({"clip_hits": np.full(5, 26)}, "26 clips"),
        ({"clips": np.full(4, 25)}, "clips"),
        ({"stage": "relu-l1"}, "relu-l1"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says):
        made(**changes)


def test_names_stand_once() -> None:
    array = np.zeros((2, 2))
    with pytest.raises(RunError, match="video a stands"):
        ScoreSet.from_arrays(["a", "a"], ["x", "y"], labels=[0, 0], logits=array)
    with pytest.raises(RunError, match="class x stands"):
        ScoreSet.from_arrays(["a", "b"], ["x", "x"], labels=[0, 0], logits=array)


def test_labels_are_places_or_names() -> None:
    found = made(labels=["sword", 1, ["kick", 2], [], np.int64(2)])
    assert found.labels == ((2,), (1,), (0, 2), (), (2,))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_others(tmp_path: Path, separator: str) -> None:
    lines = ["video,kick,label,sword", "a,0.25,sword,0.75", "b,1,kick|sword,0", "c,0.5,,0.5"]
    path = tmp_path / "theirs.csv"
    path.write_text("\ufeff" + "\r\n".join(lines).replace(",", separator) + "\r\n")
    read = read_table(path)
    assert read.classes == ("kick", "sword") and read.videos == ("a", "b", "c")
    assert read.labels == ((1,), (0, 1), ())
    np.testing.assert_array_equal(read.probabilities, np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], np.float32))
    assert np.isnan(read.logits).all() and read.stage == "softmax"
    assert read_table(path, labels={"a": 0, "b": "sword", "c": 1}, kind="logits").labels == ((0,), (1,), (1,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("name,label,kick\na,kick,1", "video"),
        ("video,label\na,kick", "class"),
        ("video,label,kick,kick\na,kick,1,2", "twice"),
        ("video,label,kick\na,kick,one", "line 2"),
        ("video,label,kick\na,kick,1\nb,kick", "line 3"),
        ("video,label,kick\na,kick,1\na,kick,1", "a stands"),
        ("video,label,kick\na,ball,1", "ball"),
        ("video,label,kick\na,kick,nan", "no numbers"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=says) as caught:
        read_table(path)
    assert caught.value.where == str(path)


# ---- a test that is under way


def begin(path: Path, **changes: Any) -> PartialScores:
    return PartialScores(path, **{"classes": CLASSES, "stage": "softmax", "facts": FACTS_OF, **changes})


def add(partial: PartialScores, scores: ScoreSet, place: int) -> None:
    partial.add(
        scores.videos[place],
        labels=scores.labels[place],
        logits=scores.logits[place],
        probabilities=scores.probabilities[place],
        clips=int(scores.clips[place]),
        clip_hits=int(scores.clip_hits[place]),
    )


@given(order=st.permutations(range(5)), stop=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_test_in_two_goes_is_one_test(tmp_path_factory: pytest.TempPathFactory, order: list[int], stop: int) -> None:
    path, scores = tmp_path_factory.mktemp("partial") / "rgb.partial", made()
    with begin(path) as partial:
        for place in order[:stop]:
            add(partial, scores, place)
    with begin(path) as partial:
        assert partial.done == {scores.videos[place] for place in order[:stop]}
        for place in order[stop:]:
            add(partial, scores, place)
        assert same(partial.finish(scores.videos), scores)


def test_a_kill_at_any_byte_costs_the_last_video_at_most(tmp_path: Path) -> None:
    path, scores = tmp_path / "rgb.partial", made(3)
    ends = []
    with begin(path) as partial:
        ends.append(path.stat().st_size)
        for place in range(3):
            add(partial, scores, place)
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends[1:])
        with begin(path) as partial:
            assert partial.done == set(scores.videos[:kept]), cut
            for place in range(kept, 3):
                add(partial, scores, place)
            assert same(partial.finish(scores.videos), scores)
        assert path.read_bytes() == whole


def test_videos_are_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    path, scores = tmp_path / "rgb.partial", made()
    partial = begin(path)
    add(partial, scores, 0)
    assert begin(tmp_path / "rgb.partial").done == {scores.videos[0]}
    partial.close()


def test_zeros_that_a_power_cut_leaves_are_dropped(tmp_path: Path) -> None:
    path, scores = tmp_path / "rgb.partial", made()
    with begin(path) as partial:
        add(partial, scores, 0)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    with begin(path) as partial:
        assert partial.done == {scores.videos[0]}
    assert path.read_bytes() == whole


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    path, scores = tmp_path / "rgb.partial", made()
    with begin(path) as partial:
        for place in range(3):
            add(partial, scores, place)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:-20] + b"x" + lines[1][-19:] + b"".join(lines[2:]))
    with pytest.raises(RunError, match="line 2"):
        begin(path)
    path.write_bytes(b"".join(lines) + lines[1])
    with pytest.raises(RunError, match="second one of video"):
        begin(path)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "rgb.partial"
    begin(path).close()
    whole = path.read_bytes()
    for changes, says in (
        ({"facts": {**FACTS_OF, "decoder": "opencv 5"}}, 'decoder "pyav 18.0.0" then, "opencv 5" now'),
        ({"facts": {**FACTS_OF, "seed": 1}}, "seed null then, 1 now"),
        ({"stage": "logits"}, "stage softmax then, logits now"),
        ({"classes": ("kick_ball", "kick", "sword")}, "class order"),
    ):
        with pytest.raises(RunError, match=says):
            begin(path, **changes)
    assert path.read_bytes() == whole


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"my notes", b"my notes\n", b"[]\n", json.dumps({"what": "else"}).encode() + b"\n"):
        path.write_bytes(content)
        with pytest.raises(RunError, match="no file of partial scores"):
            begin(path)
        assert path.read_bytes() == content


def test_each_video_is_kept_once_and_whole(tmp_path: Path) -> None:
    scores = made()
    with begin(tmp_path / "rgb.partial") as partial:
        add(partial, scores, 0)
        with pytest.raises(RunError, match="already"):
            add(partial, scores, 0)
        bad = dataclasses.replace(scores, probabilities=scores.probabilities * np.nan)
        with pytest.raises(RunError, match="no numbers"):
            add(partial, bad, 1)
        with pytest.raises(RunError, match="shape"):
            add(partial, dataclasses.replace(scores, logits=scores.logits[:, :2]), 1)
        with pytest.raises(RunError, match=r"no scores of video Å/v_1"):
            partial.finish(scores.videos)
        with pytest.raises(RunError, match=r"has scores of video Å/v_0"):
            partial.finish([])
        assert partial.finish(scores.videos[:1]).videos == scores.videos[:1]
    with pytest.raises(RunError, match="closed"):
        add(partial, scores, 1)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, scores = tmp_path / "rgb.partial", made()

    class Full:
        """A file on a disk with room for ten bytes more."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 10

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: Any) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            written, self.room = self.file.write(content[: self.room]), 0
            return int(written)

    with begin(path) as partial:
        add(partial, scores, 0)
        whole = path.read_bytes()
        own, partial._file = partial._file, Full(partial._file)  # type: ignore[assignment]
        with pytest.raises(RunError, match="disk is full"):
            add(partial, scores, 1)
        assert path.read_bytes() == whole
        partial._file = own
        add(partial, scores, 1)
    assert begin(path).done == set(scores.videos[:2])
