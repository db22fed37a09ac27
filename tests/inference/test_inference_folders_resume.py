"""An interrupted prediction goes on where it was and gives the same bytes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from studies import write_study
from untrained import make_run, write_folder

from volrec.errors import ConfigError, RunError
from volrec.inference import Ensemble, predict_folder
from volrec.inference.journal import Journal, StudyRow
from volrec.inference.protocols import ProtocolChanges
from volrec.runs import RunFolder

STUDIES = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two members, another run, and studies of which the second cannot be read."""
    root = tmp_path_factory.mktemp("resume")
    make_run(root / "run", members=2)
    make_run(root / "other", seed=1)
    write_folder(root / "in", studies=STUDIES)
    damaged = write_study(root / "in" / "p1")[2]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    return root


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def predict(place: Path, out: Path, **options: Any) -> Any:
    return predict_folder(RunFolder.open(place / "run"), place / "in", out=out / "scores.csv", device="cpu", **options)


def stopping(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException | None = None) -> list[str]:
    """Let Ctrl-C come when so many studies have been scored; return what is scored from now on."""
    score = Ensemble.score
    seen: list[str] = []

    def scored(self: Ensemble, volume: Any, *rest: Any, **options: Any) -> Any:
        if len(seen) == calls:
            raise error or KeyboardInterrupt
        seen.append(volume.meta["source"])
        return score(self, volume, *rest, **options)

    monkeypatch.setattr(Ensemble, "score", scored)
    return seen


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    predict(place, out, also=[place / "other"])
    found = outputs(out)
    assert list(found) == ["scores-quarantine.csv", "scores-slices.csv", "scores.csv", "scores.json"]
    return found


@pytest.mark.parametrize("calls", range(2 * (STUDIES - 1)))
def test_an_interruption_at_any_study_of_any_run_changes_no_byte(
    calls: int, place: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, calls)
        with pytest.raises(KeyboardInterrupt, match=f"{calls} score|before the first study") as caught:
            predict(place, tmp_path, also=[place / "other"])
        assert "same command" in str(caught.value) or not calls
        assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == (["unfinished"] if calls else [])
    with monkeypatch.context() as patch:
        again = stopping(patch, -1)
        predict(place, tmp_path, also=[place / "other"])
        assert len(again) == 2 * (STUDIES - 1) - calls, "what was scored is not scored again"
    assert outputs(tmp_path) == whole


def test_a_line_that_was_cut_off_is_scored_again(
    place: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            predict(place, tmp_path, also=[place / "other"])
    (journal,) = tmp_path.iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    # The last line as a power cut may leave it, one before it overwritten with zeros.
    journal.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", lines[3], lines[4][:-30]]))
    with monkeypatch.context() as patch:
        again = stopping(patch, -1)
        predict(place, tmp_path, also=[place / "other"])
        assert len(again) == 4
    assert outputs(tmp_path) == whole


def test_a_study_that_has_changed_is_scored_again_and_one_that_is_mended_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run")
    folder = write_folder(tmp_path / "in")
    sound = sorted((folder / "p1").iterdir())[0]
    content = sound.read_bytes()
    sound.write_bytes(content[:-40])
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        stopping(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            predict(tmp_path, tmp_path / "out")
    write_study(folder / "p0", array=np.random.default_rng(9).normal(0, 100, (6, 16, 16)).astype(np.int16))
    sound.write_bytes(content)
    table, problems = predict(tmp_path, tmp_path / "out")
    assert table["study"].tolist() == ["p0", "p1", "p2"]
    assert not [problem for problem in problems if problem.fatal]
    fresh, _ = predict_folder(RunFolder.open(tmp_path / "run"), folder, device="cpu")
    assert table.equals(fresh)


def test_a_prediction_with_other_settings_starts_anew_says_so_and_leaves_the_first_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            predict(place, tmp_path)
    (journal,) = tmp_path.iterdir()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        again = stopping(patch, -1)
        predict(place, tmp_path, changes=ProtocolChanges(overlap=0.75))
        assert len(again) == STUDIES - 1
    assert f"{journal} is of an unfinished prediction with other settings (protocol_changes)" in caplog.text
    assert journal.is_file()
    with monkeypatch.context() as patch:
        again = stopping(patch, -1)
        predict(place, tmp_path)
        assert len(again) == STUDIES - 1 - 2
    assert not journal.exists()


def test_weights_that_were_trained_again_do_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "run")
    write_folder(tmp_path / "in", studies=2)
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        stopping(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            predict(tmp_path, tmp_path / "out")
    before = (tmp_path / "run" / "fold-0" / "weights.safetensors").read_bytes()
    make_run(tmp_path / "new", seed=3)
    for name in ("weights.safetensors", "card.json"):
        (tmp_path / "run" / "fold-0" / name).write_bytes((tmp_path / "new" / "fold-0" / name).read_bytes())
    assert (tmp_path / "run" / "fold-0" / "weights.safetensors").read_bytes() != before
    with monkeypatch.context() as patch:
        again = stopping(patch, -1)
        predict(tmp_path, tmp_path / "out")
        assert len(again) == 2
    assert "(runs, training)" in caplog.text


def test_a_fault_of_the_disk_keeps_what_was_scored(
    place: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import volrec.inference.outputs as written

    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(written, "write_atomically", full)
        with pytest.raises(RunError, match="the disk is full") as caught:
            predict(place, tmp_path, also=[place / "other"])
        assert "same command" in caught.value.remedy
    with monkeypatch.context() as patch:
        again = stopping(patch, -1)
        predict(place, tmp_path, also=[place / "other"])
        assert not again
    assert outputs(tmp_path) == whole


def test_files_that_are_no_predictions_are_not_overwritten(place: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"scores\.json would be overwritten"):
        predict(place, tmp_path)
    run = RunFolder.open(place / "run")
    run.write_table("scores", predict_folder(run, place / "in", device="cpu")[0])
    with pytest.raises(ConfigError, match=r"scores\.csv would be overwritten"):
        predict(place, run.path)
    with pytest.raises(ConfigError, match=r"not as \.xlsx"):
        predict_folder(run, place / "in", out=tmp_path / "scores.xlsx")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    (run.path / "scores.csv").unlink()


def row(number: int, values: list[float]) -> StudyRow:
    array = np.array([values])
    return StudyRow(
        study=f"s{number}",
        patient="p",
        source=str(number),
        scores=array[0],
        logits=-array[0],
        members=array,
        member_logits=-array,
        clips=1,
        slices=2,
        warning="",
        numbers=np.array([0, 1]),
        positions=np.array([0.1, 0.7]),
        slice_scores=np.stack([array[0], array[0]]),
    )


Numbers = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(rows=st.lists(Numbers, min_size=1, max_size=6), cut=st.integers(0, 10_000), more=Numbers)
def test_a_journal_cut_anywhere_gives_back_whole_rows_bit_for_bit_and_takes_more(
    rows: list[list[float]], cut: int, more: list[float], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "scores.csv", {"a": 1})
    for number, values in enumerate(rows):
        journal.add(0, row(number, values))
    journal.close()
    content = journal.path.read_bytes()
    ends = np.cumsum([len(line) for line in content.splitlines(keepends=True)])
    cut %= len(content) + 1
    journal.path.write_bytes(content[:cut])
    again = Journal(tmp_path / "scores.csv", {"a": 1})
    left = max(0, int((ends <= cut).sum()) - 1)
    assert [again.has(0, f"s{n}", str(n)) for n in range(len(rows))] == [n < left for n in range(len(rows))]
    again.add(1, row(99, more))
    again.close()
    last = Journal(tmp_path / "scores.csv", {"a": 1})
    for number, values in [*enumerate(rows[:left]), (99, more)]:
        found = last.get(number == 99, f"s{number}", str(number))
        assert found.scores.tobytes() == np.array(values).tobytes()
        assert found.slice_scores.tobytes() == np.array([values, values]).tobytes()
    last.remove()
    assert not list(tmp_path.iterdir())


def test_a_journal_says_its_settings_and_an_empty_one_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "scores.csv", {"backend": "torch"})
    assert json.loads(journal.path.read_text())["settings"] == {"backend": "torch"}
    journal.close()
    assert not list(tmp_path.iterdir())
