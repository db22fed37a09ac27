"""Several target columns with classes of their own: one network, a head each, from a table with holes to scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHAPE, make_tiny, tiny_config
from scipy.special import log_softmax
from studies import write_study

import volrec
from volrec import networks
from volrec.cli import main
from volrec.data.datasets import balance_groups
from volrec.errors import ConfigError
from volrec.evaluation import evaluate_scores
from volrec.planning.facts import _smallest_share
from volrec.report.findings import gather
from volrec.runs import RunFolder
from volrec.training.data import ClipData
from volrec.training.losses import StudyLoss, class_weights, soft_targets
from volrec.training.member import Subject, make_module
from volrec.training.module import StudyModule

HEADS = (3, 2)
GAPS = np.array([[0, np.nan], [2, 1], [np.nan, 0], [1, np.nan], [np.nan, 1], [2, 0]])
SUBJECT = Subject(
    "multihead", ("part", "side"), ("part=disc", "part=ring", "part=rod", "side=left", "side=right"), sum(HEADS)
)
SETTINGS = (
    "data.task=multihead", "network.name=two-stream", "network.width=0.0625", "network.options.stage=softmax",
    "streams.inputs=[intensity]", "preprocess.canvas=[6,16,16]", "sampling.clip_length=6", "optim.batch_size=4",
    "optim.lr=0.01", "trainer.epochs=3", "trainer.accelerator=cpu", "split.test=0.25", "split.validation=0.3",
    "data.balance=loss", "stages=[]",
)  # fmt: skip


def separate(logits: np.ndarray, *, weights: np.ndarray | None = None, smoothing: float = 0.0) -> float:
    """The sum over heads of the cross entropy of the studies that have a class of it."""
    total, first = 0.0, 0
    for column, size in zip(GAPS.T, HEADS, strict=True):
        known = np.isfinite(column)
        log_p = log_softmax(logits[known, first : first + size], axis=1)
        hot = np.eye(size)[column[known].astype(int)] * (1 - smoothing) + smoothing / size
        own = np.ones(size) if weights is None else weights[first : first + size]
        total -= (own * hot * log_p).sum() / known.sum()
        first += size
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_sum_of_separate_cross_entropies(smoothing: float, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(size=(6, 5)), rng.uniform(0.5, 2, 5)
    loss = StudyLoss(
        "multihead", label_smoothing=smoothing, weights=torch.tensor(weights).float() if weighted else None, heads=HEADS
    )
    soft = soft_targets(torch.tensor(GAPS), "multihead", 5, heads=HEADS)
    expected = separate(logits, weights=weights if weighted else None, smoothing=smoothing)
    assert loss(torch.tensor(logits), soft).item() == pytest.approx(expected, rel=1e-5)


def test_an_empty_cell_gives_its_head_no_gradient() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    soft = soft_targets(torch.tensor(GAPS), "multihead", 5, heads=HEADS)
    StudyLoss("multihead", label_smoothing=0.1, heads=HEADS)(logits, soft).backward()
    assert logits.grad is not None
    fed = np.repeat(np.isfinite(GAPS), HEADS, axis=1)
    assert np.array_equal(logits.grad.numpy() != 0, fed)


def test_a_study_blended_with_one_without_a_class_counts_by_its_share() -> None:
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    one, none = (soft_targets(torch.tensor([[cell, np.nan]]), "multihead", 5, heads=HEADS) for cell in (1.0, np.nan))
    loss = StudyLoss("multihead", heads=HEADS)
    assert loss(logits, 0.7 * one + 0.3 * none).item() == pytest.approx(0.7 * loss(logits, one).item())


def test_class_weights_are_those_of_each_head() -> None:
    weights = class_weights(torch.tensor(GAPS), "multihead", 5, heads=HEADS)
    assert weights is not None
    assert weights.tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 6, 1.0, 1.0])


def test_the_rarest_class_is_looked_for_within_each_head() -> None:
    cohort = SimpleNamespace(task="multihead", classes=SUBJECT.classes, targets=SUBJECT.targets)
    cohort.cases = studies_of([[0, np.nan]] * 4 + [[1, 0]] * 5 + [[2, 1]] * 1)
    assert _smallest_share(cohort) == pytest.approx(0.1)  # part=rod; side=right has 1 of 6


def test_studies_are_balanced_by_their_combination_of_classes() -> None:
    cases = studies_of([[0, np.nan], [0, 1], [np.nan, 1], [0, np.nan], [0, 1]])
    groups = balance_groups(cases, "multihead")
    assert groups[0] == groups[3]
    assert groups[1] == groups[4]
    assert len(set(groups)) == 3


def studies_of(targets: list[list[float]]) -> list[SimpleNamespace]:
    return [SimpleNamespace(target=np.float32(target)) for target in targets]


def module_of(tmp_path: Path, name: str, **options: object) -> StudyModule:
    tiny = make_tiny(tmp_path / "store")
    config = tiny_config(network={"name": name, "width": 0.0625, "options": options})
    data = ClipData(config, tiny.cases, tiny.entries, store=tiny.store, task="multihead", accelerator="cpu")
    return make_module(config, SUBJECT, data)


@pytest.mark.parametrize("name", ["two-stream", "two-stream-fusion"])
def test_networks_that_average_probabilities_do_so_within_each_head(tmp_path: Path, name: str) -> None:
    network = module_of(tmp_path, name, stage="softmax").network.eval()
    assert network.architecture["options"]["heads"] == list(HEADS)
    chances = network(torch.randn(2, 1, 6, *SHAPE[1:])).exp()
    torch.testing.assert_close(chances[:, :3].sum(1), torch.ones(2))
    torch.testing.assert_close(chances[:, 3:].sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hidden-two-stream", {"stage": "softmax"}, "over all outputs at once"),
        ("two-stream", {"heads": [2, 3]}, r"have 3 \+ 2 classes, got heads=\[2, 3\]"),
        ("two-stream", {"fusion": "svm"}, "the task has 2 heads"),
    ],
)
def test_options_that_mix_heads_are_refused(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        module_of(tmp_path, name, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies with a bright block (side: where it lies; part: how many slices it has); half lack one of the two."""
    root = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    lines = ["study,side,part"]
    for number in range(24):
        side, part = number % 2, number // 2 % 3
        array = rng.normal(0, 20, (6, 16, 16)).astype(np.int16)
        array[: 2 + 2 * part, 5:11, 2 + 8 * side : 6 + 8 * side] += 300
        write_study(root / f"case{number:02d}", array=array)
        cells = [("left", "right")[side], ("disc", "ring", "rod")[part]]
        if number % 4 > 1:
            cells[number // 4 % 2] = ""
        lines.append(f"case{number:02d},{','.join(cells)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "both"
    command = ["train", str(folder), "--labels", str(folder / "labels.csv"), "--target", "part", "--target", "side"]
    command += ["--out", str(out), *(word for setting in SETTINGS for word in ("--set", setting))]
    assert main(command) == 0
    return out


COLUMNS = ["score_part=disc", "score_part=ring", "score_part=rod", "score_side=left", "score_side=right"]


def test_two_columns_of_which_half_is_empty_train_one_network(folder: Path, trained: Path) -> None:
    run = RunFolder.open(trained)
    assert run.config.data.classes == list(SUBJECT.classes)
    scores = run.scores()
    assert [name for name in scores if name.startswith("score_")] == COLUMNS
    np.testing.assert_allclose(scores[COLUMNS[:3]].sum(axis=1), 1)
    np.testing.assert_allclose(scores[COLUMNS[3:]].sum(axis=1), 1)
    written = pd.read_csv(folder / "labels.csv", index_col="study").loc[scores["study"]]
    for name in ("part", "side"):
        assert scores[name].fillna("").tolist() == written[name].fillna("").tolist()
        assert scores[name].isna().any()
    found = evaluate_scores(scores, task="multihead", classes=SUBJECT.classes, targets=SUBJECT.targets)
    assert run.metrics["metrics"] == found["metrics"]
    assert set(run.metrics["labels"]) == {"part", "side"}
    card = run.members[0].card()
    assert card["architecture"]["options"]["heads"] == list(HEADS)
    assert card["validation"]["metric"] == "auc"
    network = volrec.load(trained).network
    assert networks.spec(network.registry_name).name == "two-stream"


def test_the_report_has_a_confusion_matrix_for_each_head(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert "How well: part" in text
    assert "How well: side" in text
    assert text.count("Confusion matrix") == 2
    assert "part: one of disc, ring, rod; side: one of left, right" in text
    scores = RunFolder.open(trained).scores()
    part, side = gather(RunFolder.open(trained)).by_head
    np.testing.assert_array_equal(part.predicted, scores[COLUMNS[:3]])
    np.testing.assert_array_equal(side.predicted, scores[COLUMNS[3:]])
    assert np.array_equal(side.truth[:, 0] == 1, scores["side"] == "right")


def test_the_run_scores_and_evaluates_other_studies(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(trained), str(folder), "--out", str(tmp_path / "scores.csv")]) == 0
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == 24
    np.testing.assert_allclose(table[COLUMNS[:3]].sum(axis=1), 1)
    # A table in which nobody has a part.
    lines = [f"case{number:02d},{('left', 'right')[number % 2]}," for number in range(24)]
    (tmp_path / "labels.csv").write_text("\n".join(["study,side,part", *lines]) + "\n")
    command = ["evaluate", str(trained), str(folder), "--labels", str(tmp_path / "labels.csv"), "--include-training"]
    assert main([*command, "--out", str(tmp_path / "metrics.json")]) == 0
    assert "side" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["labels"]["side"]["studies"] == 24
    assert metrics["labels"]["part"]["studies"] == 0
    assert metrics["labels"]["part"]["metrics"]["auc"]["reason"] == "no study has both target and score"
    assert metrics["metrics"]["auc"]["value"] == metrics["labels"]["side"]["metrics"]["auc"]["value"]
    assert main(["evaluate", str(trained)]) == 0


def test_runs_of_several_heads_are_not_fused(trained: Path, tmp_path: Path) -> None:
    other = shutil.copytree(trained, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"several heads \(part, side\) cannot be fused"):
        volrec.fuse([trained, other], tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
