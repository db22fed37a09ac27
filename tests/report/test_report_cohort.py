"""What the report says of the studies: geometry, labels, parts, leaks; and the model card."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from volrec.config import parse_config
from volrec.report import cohort
from volrec.report.cohort import shared_patients
from volrec.report.findings import Findings
from volrec.report.model_card import card_markdown, card_section
from volrec.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "run", parse_config({"network": {"name": "c3d", "width": 0.5}}))
    studies = [f"s{number}" for number in range(6)]
    index = pd.DataFrame(
        {
            "study": [*studies, "s0", "unused"],
            "patient": [*studies, "s0", "unused"],
            "modality": "CT",
            "orientation": "axial",
            "slices": [10, 20, 30, 40, 50, 60, 999, 999],
            "spacing_t": [1.0, 1.0, 2.0, 2.0, 5.0, 5.0, 9.0, 9.0],
            "spacing_h": 0.7,
            "chosen": [True] * 6 + [False, True],
        }
    )
    run.write_table("index", index)
    parts = ["train", "train", "train", "validation", "test", "test"]
    run.write_table("splits", pd.DataFrame({"split": "split", "part": parts, "study": studies, "patient": studies}))
    run.write_table("labels", pd.DataFrame({"study": studies, "patient": studies, "finding": [0, 1, 1, 0, 0, 1]}))
    return run


def card(run: RunFolder, **facts: object) -> None:
    found = {"task": "binary", "targets": ["finding"], "classes": ["0", "1"], "modality": "CT", **facts}
    member = run.member("split").make()
    member.card_path.write_text(json.dumps(found))
    member.weights.write_bytes(b"")
    (member.path / "finished").write_text("")


def findings(run: RunFolder) -> Findings:
    return Findings(run, task="binary", targets=["finding"], classes=["0", "1"], part="test")


def test_the_geometry_is_that_of_the_series_that_were_used(run: RunFolder) -> None:
    html = cohort.data(findings(run))
    assert "6 studies of 6 patients: 6 CT (axial)." in html
    row = html[html.index("<td>slices") :].split("</tr>")[0]
    assert [value in row for value in ("35", "10", "60", "999")] == [True, True, True, False]
    assert "1 mm" in html
    assert "9 mm" not in html


def test_labels_are_counted_in_each_part(run: RunFolder) -> None:
    html = cohort.data(findings(run))
    positive = html[html.index("finding = 1") :].split("</tr>")[0]
    assert [part.split("<")[0] for part in positive.split('number">')[1:]] == ["2", "0", "1"]


def test_a_quantity_is_shown_by_its_range(run: RunFolder) -> None:
    table = run.read_table("labels").assign(finding=[1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    run.write_table("labels", table)
    found = findings(run)
    found.task = "regression"
    assert "2.5 (1.5 to 3.5)" in cohort.data(found)


def test_an_older_run_without_labels_has_the_rest(run: RunFolder) -> None:
    (run.path / "labels.csv").unlink()
    assert "6 studies" in cohort.data(findings(run))


def test_no_leak_is_said_and_a_leak_is_shouted(run: RunFolder) -> None:
    assert "no patient is on two sides" in cohort.people(findings(run))
    splits = run.read_table("splits")
    splits.loc[splits["study"] == "s5", "patient"] = "s0"
    run.write_table("splits", splits)
    assert shared_patients(splits) == {"split": ["s0"]}
    html = cohort.people(findings(run))
    assert "<b>Leak:</b>" in html
    assert "no patient is on two sides" not in html


def test_a_patient_in_two_folds_is_no_leak() -> None:
    rows = [("fold-0", "train", "a", "p"), ("fold-1", "test", "a", "p")]
    assert shared_patients(pd.DataFrame(rows, columns=["split", "part", "study", "patient"])) == {}


def test_the_model_card_says_what_it_is_and_what_it_is_not_for(run: RunFolder) -> None:
    decision = {"thresholds": {"1": 0.42}, "rule": "youden", "calibration": {"method": "temperature"}}
    card(run, decision=decision, tensors={"parameters": 12345}, versions={"volrec": "0.1.0"}, data_signature="ab" * 20)
    found = findings(run)
    found.metrics = {"studies": 2, "patients": 2, "metrics": {"auc": {"value": 0.75, "low": 0.5, "high": 1.0}}}
    html, text = card_section(found), card_markdown(found, "trial")
    for part in ("12,345", "1 from 0.420", "Calibration: temperature", "no medical device", "0.750"):
        assert part in html, part
        assert part in text, part
    assert "Distance of slices: 1 to 2 mm." in text  # of the training studies alone
    assert "3 studies of 3 patients." in text
    assert text.startswith("# Model card: trial")


def test_there_is_no_card_before_a_network_is_trained(run: RunFolder) -> None:
    assert card_section(findings(run)) == ""
