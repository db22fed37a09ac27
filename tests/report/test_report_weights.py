"""The report of a pretraining or a transfer: right in what it says, and there for runs that show little."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_report_html import read

from volrec.config import PretrainConfig, TransferConfig, parse_config
from volrec.errors import Problem
from volrec.report import write_weights_report
from volrec.report.weights import KINDS, matching_rows, weights_headline
from volrec.runs import RunFolder
from volrec.transfer import PretrainRun, TransferRun


def line(auc: float, *, taught: bool = True, interval: bool = True) -> dict[str, Any]:
    ends = (-0.05, 0.05) if interval else (math.nan, math.nan)
    facts: dict[str, Any] = {"taught": taught, "pairs": 128, "auc_of_statistics": 0.512}
    for name, value in (("accuracy", auc - 0.1), ("auc", auc)):
        facts |= {name: value, f"{name}_low": value + ends[0], f"{name}_high": value + ends[1]}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in facts.items()}


MATCHING = {
    "metric": "matching",
    "value": 0.85,
    "matching": {"patient": line(0.9), "place": line(0.8), "order": line(0.55, taught=False)},
    "patients": 2,
    "matches": 16,
}
RETRIEVAL = {"metric": "retrieval", "value": 0.625, "first": 0.1, "places": 32, "chance": 1 / 32, "method": "vicreg"}


def make_run(folder: Path, kind: type[RunFolder], metric: str, facts: dict[str, Any], *, held: int = 2) -> RunFolder:
    sections: dict[str, Any] = {"name": "ours & <b>theirs</b>"}
    if kind is TransferRun:
        sections |= {"teacher": {"source": "/home/someone/runs/teacher-x"}, "network": {"name": "c3d", "width": 0.25}}
    config = parse_config(sections, schema=kind.schema)
    run = kind.create(folder, config)
    member = run.member("student" if kind is TransferRun else "teacher").make()
    columns: dict[str, Any] = {"epoch": [0, 1], "step": [2, 4], "lr": [1e-3] * 2, "train_loss": [0.7, 0.5]}
    if held:
        columns |= {"val_loss": [0.7, 0.6], f"val_{metric}": [0.5, 0.85]}
    member.write_history(pd.DataFrame(columns | {"kept": [1, 1]}).to_dict("records"))
    member.weights.write_bytes(b"")
    member.card_path.write_text("{}")
    member.finish()
    run.write_quarantine([Problem("bad/x.dcm", "truncated", "The file ends.", "Copy it again.", "study-9")])
    run.write_metrics({"epochs": 2, "epoch": 1, "train_loss": 0.5, "studies": 8, "held_out": held, **facts})
    run.finish()
    return run


def test_a_transfer_is_told_kind_by_kind(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TransferRun, "matching", MATCHING)
    headings, rows = matching_rows(run)
    assert len(headings) == 6 and [row[0] for row in rows] == [KINDS[kind] for kind in ("patient", "place", "order")]
    assert rows[0] == [KINDS["patient"], "yes", "128", "0.800 [0.750, 0.850]", "0.900 [0.850, 0.950]", "0.512"]
    assert rows[2][1] == "no"
    assert weights_headline(run).startswith("AUC 0.850") and "2 held-out studies" in weights_headline(run)
    text, page = read(write_weights_report(run))
    told = " ".join(" ".join(page.text).split())
    assert "ours & <b>theirs</b>" in told and "<b>theirs" not in text
    assert all(cell in told for row in rows for cell in row)
    assert "16 matching pairs of 2 patients" in told
    assert "The file ends." in told and "Copy it again." in told
    assert f"--init {run.path}" in told and "taught by teacher-x" in told
    assert "<svg" in text
    assert not [link for link in page.links if link.startswith(("http", "//", "/"))]


def test_a_pretraining_tells_how_often_places_are_found_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", PretrainRun, "retrieval", RETRIEVAL)
    headline = weights_headline(run)
    assert "Of 32 slices of 2 held-out studies, 62 % are found again" in headline
    assert "guessing: 3.1 %" in headline and "after the first epoch 10 %" in headline
    _, page = read(write_weights_report(run))
    told = " ".join(" ".join(page.text).split())
    assert headline in told and "places found again" in told
    assert f"volrec transfer FOLDER --teacher {run.path}" in told
    assert matching_rows(run)[1] == [] and "What the student learned" not in told


def test_labels_are_told_by_their_metric(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", PretrainRun, "auc", {"metric": "auc", "value": 0.75, "first": 0.5})
    assert weights_headline(run) == "auc 0.750 on 2 held-out studies."
    assert "auc" in " ".join(read(write_weights_report(run))[1].text)


@pytest.mark.parametrize(
    ("held", "facts", "expected"),
    [
        (0, {}, "held out: none, so nothing was measured"),
        (
            1,
            {"metric": "matching", "value": None, "matching": {}, "patients": 1, "matches": 4},
            "held out: 1, they are",
        ),
        (1, {}, "held out: 1, they are too few"),
    ],
)
def test_a_run_that_shows_nothing_says_so(tmp_path: Path, held: int, facts: dict[str, Any], expected: str) -> None:
    run = make_run(tmp_path / "run", TransferRun, "matching", facts, held=held)
    assert expected in weights_headline(run)
    _, page = read(write_weights_report(run))
    assert expected in " ".join(" ".join(page.text).split())


def test_one_patient_has_values_without_intervals(tmp_path: Path) -> None:
    facts = {**MATCHING, "matching": {"place": line(0.8, interval=False)}, "patients": 1}
    run = make_run(tmp_path / "run", TransferRun, "matching", facts)
    (row,) = matching_rows(run)[1]
    assert row[3:5] == ["0.700", "0.800"]
    write_weights_report(run)


def test_schemas_are_those_of_the_commands() -> None:
    assert (PretrainRun.schema, TransferRun.schema) == (PretrainConfig, TransferConfig)
