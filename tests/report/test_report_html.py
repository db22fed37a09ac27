"""The report of a run: whole, self-contained, right in what it says, and there for half a run too."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from volrec.config import parse_config
from volrec.data.splits import PARTS
from volrec.errors import Problem
from volrec.evaluation import evaluate_scores
from volrec.evaluation.decisions import best_threshold
from volrec.report import write_report
from volrec.report.findings import gather
from volrec.report.html import headline, time_share
from volrec.runs import RunFolder

CLASSES = {
    "binary": ["benign", "<b>bad</b>"],
    "multiclass": ["a", "b", "c"],
    "multilabel": ["x", "y"],
    "regression": [],
}


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects text and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "br", "path", "use", "link", "img"}:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"path", "use"}:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def make_run(
    folder: Path, *, task: str = "binary", folds: int = 2, finished: bool = True, validation: bool = True
) -> RunFolder:
    config = parse_config(
        {"name": "lesion & co", "network": {"name": "c3d", "width": 0.125}, "split": {"folds": folds}}
    )
    run = RunFolder.create(
        folder, config, reasons={"network.width": "small data", "data.series.min_slices": "few slices"}
    )
    rng = np.random.default_rng(3)
    targets = ["x", "y"] if task == "multilabel" else ["finding"]
    classes = CLASSES[task]
    names = [f"fold-{number}" for number in range(folds)] if folds else ["split"]
    for name in names:
        member = run.member(name).make()
        columns = {"epoch": [0, 1, 2], "step": [2, 4, 6], "lr": [1e-3] * 3, "train_loss": [0.7, 0.5, 0.4]}
        if validation:
            metric = "val_r2" if task == "regression" else "val_auc"
            columns |= {"val_loss": [0.8, 0.6, 0.7], metric: [0.5, 0.8, 0.7]}
        member.write_history(pd.DataFrame(columns | {"kept": [1, 1, 0]}).to_dict("records"))
        card = {"task": task, "targets": targets, "classes": classes, "epoch": 1, "data_signature": "ab" * 32}
        card["validation"] = {"metric": "auc", "value": 0.8} if validation else {}
        member.card_path.write_text(json.dumps(card))
    rows = [
        (name, part, f"study-{n}", f"secret-{n // 6}-{n % 3}")
        for name in names
        for n in range(30)
        for part in PARTS[n % 3 :][:1]
    ]
    run.write_table("splits", pd.DataFrame(rows, columns=["split", "part", "study", "patient"]))
    run.write_quarantine(
        [
            Problem("bad/one.dcm", "truncated", "The file ends after 12 bytes.", "Copy it again.", "study-99"),
            Problem("tilted", "tilt", "Tilted by 12 degrees.", "", "study-3", fatal=False),
        ]
    )
    if not finished:
        return run
    tables = {part: _table(task, names, classes, targets, rng) for part in ("scores", "validation_scores")}
    run.write_table("scores", tables["scores"])
    if validation:
        run.write_table("validation_scores", tables["validation_scores"])
    found = evaluate_scores(tables["scores"], task=task, classes=classes, targets=targets, resamples=50)
    times = {f"{part}_seconds": 1.0 for part in ("data_wait", "transfer", "compute", "validation")}
    times |= {f"{part}_share": 0.25 for part in ("data_wait", "transfer", "compute")}
    members = {name: {"epochs": 3, "epoch": 1, "validation": {}} for name in names}
    run.write_metrics({**found, "part": "test", "test": found["metrics"], "members": members, "time": times})
    run.finish()
    return run


def _table(
    task: str, names: list[str], classes: list[str], targets: list[str], rng: np.random.Generator
) -> pd.DataFrame:
    count = 30
    labels = rng.integers(0, max(2, len(classes)), count)
    table = pd.DataFrame(
        {"study": [f"study-{n}" for n in range(count)], "patient": [f"secret-{n}" for n in range(count)]}
    )
    if len(names) > 1:
        table["fold"] = [names[n % len(names)] for n in range(count)]
    if task == "regression":
        table["finding"] = 1000 + 100 * rng.normal(size=count)
        table["score_finding"] = table["finding"] + 50 * rng.normal(size=count)
    elif task == "multilabel":
        for target in targets:
            table[target] = rng.integers(0, 2, count)
            table[f"score_{target}"] = rng.random(count)
    else:
        table["finding"] = [classes[label] for label in labels]
        raw = rng.random((count, len(classes))) + 0.8 * np.eye(len(classes))[labels]
        raw /= raw.sum(1, keepdims=True)
        for index, name in enumerate(classes):
            if task == "multiclass" or index == 1:
                table[f"score_{name}"] = raw[:, index]
    table["clips"] = 2
    return table


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    return text, page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished binary run of two folds with its report."""
    made = make_run(tmp_path_factory.mktemp("binary") / "run")
    write_report(made)
    return made


@pytest.fixture(scope="module")
def text(run: RunFolder) -> str:
    return read(run.report_path)[0]


@pytest.mark.parametrize(("task", "figures"), [("binary", 4), ("multiclass", 10), ("multilabel", 7), ("regression", 3)])
def test_the_report_is_one_file_with_every_figure_of_the_task(
    task: str, figures: int, tmp_path: Path, run: RunFolder
) -> None:
    path = run.report_path if task == "binary" else write_report(make_run(tmp_path / task, task=task))
    text, page = read(path)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|http-equiv", text)
    assert text.count("<svg") == figures
    assert len(text) < 1_500_000


def test_names_from_labels_are_text_not_markup(run: RunFolder) -> None:
    text, page = read(run.report_path)
    assert "<b>bad</b>" not in text
    assert any("<b>bad</b>" in part for part in page.text)
    assert "lesion &amp; co" in text


def test_patients_are_not_named(text: str) -> None:
    assert "secret-" not in text


def test_headline_metric_and_its_meaning(run: RunFolder, text: str) -> None:
    metric = run.metrics["metrics"]["auc"]
    assert f"<b>{metric['value']:.3f}</b>" in text
    assert f"{metric['low']:.3f} to {metric['high']:.3f}" in text
    assert f"{100 * metric['value']:.0f} of 100 cases" in text
    assert headline(run) == (
        f"AUC {metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}] on 30 test studies of 30 patients."
    )


def test_time_is_told_in_one_line(run: RunFolder) -> None:
    assert time_share(run) == "Time in training steps: data wait 25.0 %, transfer 25.0 %, compute 25.0 %."


def test_plan_shows_every_setting_once_with_its_reason(text: str) -> None:
    assert text.count("<code>network.width</code>") == 1
    assert text.count("<code>optim.lr</code>") == 1
    assert re.search(r"<code>network.width</code></td><td[^>]*><code>0.125</code></td><td[^>]*>small data</td>", text)
    assert re.search(
        r"<code>data.series.min_slices</code></td><td[^>]*><code>3</code></td><td[^>]*>few slices</td>", text
    )


def test_parts_are_counted_in_studies_and_patients(text: str) -> None:
    assert re.search("<tr><td>fold-0</td>" + 3 * r"<td[^>]*>10 \(5\)</td>" + "</tr>", text)


def test_quarantine_names_study_reason_and_remedy(text: str) -> None:
    row = r"<td>study-99</td><td>bad/one.dcm</td><td>The file ends after 12 bytes.</td><td>Copy it again.</td>"
    assert row in text
    assert "1 corrections and assumptions" in text


def test_confusion_uses_the_threshold_of_each_fold(run: RunFolder, text: str) -> None:
    found = gather(run)
    assert set(found.thresholds) == {"fold-0", "fold-1"}
    cut = np.array([found.thresholds[fold] for fold in found.folds])
    expected = confusion_matrix(found.truth[:, 0], found.predicted[:, 0] >= cut)
    shown = [int(n) for n in re.findall(r"rgba\(var\(--(?:good|bad)\)[^>]*>(\d+)<br>", text)]
    assert shown == expected.flatten().tolist()
    assert "on the validation studies" in text


def test_a_single_split_without_validation(tmp_path: Path) -> None:
    text, _ = read(write_report(make_run(tmp_path / "run", folds=0, validation=False)))
    assert "there were no validation studies to choose a threshold" in text
    assert "mean of folds" not in text
    assert "None of these patients was seen in training" in text


def test_half_a_run_has_a_report_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False)
    text, _ = read(write_report(run))
    assert "has not finished" in text
    assert text.count("<svg") == 1  # the learning curves
    assert "not finished" in headline(run)


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", parse_config({}))
    text, _ = read(write_report(run))
    assert "has not finished" in text


def test_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.integers(0, 2, 25)
        scores = np.round(rng.random(25) + 0.4 * truth, 1)
        if len(set(truth)) < 2:
            continue
        found = best_threshold(truth, scores)

        def quality(cut: float, truth: np.ndarray = truth, scores: np.ndarray = scores) -> float:
            return float((scores >= cut)[truth == 1].mean() + (scores < cut)[truth == 0].mean())

        assert found is not None
        assert quality(found) == pytest.approx(max(quality(cut) for cut in np.linspace(-0.05, 1.55, 17)))
    assert best_threshold(np.ones(4), rng.random(4)) is None
