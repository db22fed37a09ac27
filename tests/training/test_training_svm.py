"""The SVM on the scores of streams: fitted after the training, refused before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, make_tiny, tiny_config
from sklearn.svm import LinearSVC
from test_training_fit import train

from volrec.data.datasets import StudyDataset
from volrec.errors import ConfigError
from volrec.inference.members import load_member
from volrec.runs import Member
from volrec.training import fit
from volrec.training.svm import _scores


def config(**sections: Any) -> Any:
    network = {"name": "two-stream", "width": 0.0625, "options": {"fusion": "svm", "stem_stride": 1}}
    return tiny_config(network=network, trainer={"epochs": 1}, optim={"ema_decay": 0.5}, **sections)


@pytest.mark.parametrize(("validation", "part"), [(6, "validation"), (4, "train")])
def test_the_svm_is_scikit_learns_on_the_clips_of_the_part_that_it_names(
    validation: int, part: str, tiny: Tiny, tmp_path: Path
) -> None:
    chosen = config(sampling={"clip_length": 4})
    train(tiny, tmp_path / "m", chosen, validation=validation)
    member = load_member(Member(tmp_path / "m"), device=torch.device("cpu"))
    assert Member(tmp_path / "m").card()["svm"] == part
    cut = len(tiny.cases) - validation
    cases = tiny.cases[cut:] if part == "validation" else tiny.cases[:cut]
    network: Any = member.predictor.network
    scores, labels = _scores(network, StudyDataset(cases, tiny.entries, store=tiny.store), chosen)
    assert len(scores) == 3 * len(cases)  # clips of four of eight slices, half of them shared
    theirs = LinearSVC(C=1.0, class_weight="balanced", random_state=0, max_iter=20_000).fit(scores, labels)
    np.testing.assert_allclose(network.svm.weight.numpy(), theirs.coef_, rtol=1e-4, atol=1e-6)
    # What a study is given are the decisions, through the pooling of the protocol.
    result = member.predictor.score(tiny.store.open(tiny.entries[cases[0].series.uid]))
    assert result.clips == 3
    decisions = theirs.decision_function(scores[:3])
    np.testing.assert_allclose(result.scores[0], (1 / (1 + np.exp(-decisions))).mean(), rtol=1e-4)


def test_a_class_without_studies_is_told_before_the_first_step(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_loop(*_: Any, **__: Any) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(fit, "run_loop", run_loop)
    one = replace(tiny, cases=[case for case in tiny.cases if case.target[0] == 0])
    with pytest.raises(ConfigError, match="the train part has 1 of 2"):
        train(one, tmp_path / "one", config(), validation=2)
    four = replace(tiny, subject=replace(tiny.subject, task="multiclass", classes=("a", "b", "c"), num_outputs=3))
    with pytest.raises(ConfigError, match="has 2 of 3"):
        train(four, tmp_path / "three", config())


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_task_without_classes_that_exclude_each_other_is_refused(task: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the task is {task}"):
        train(make_tiny(tmp_path / "store", task=task), tmp_path / "m", config())


def test_an_svm_fitted_again_is_the_same(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny, tmp_path / "m", config())
    card = Member(tmp_path / "m").card()
    before = Member(tmp_path / "m").weights.read_bytes()
    train(tiny, tmp_path / "m", config(), resume=True)  # stopped after the SVM, before the run was marked
    assert Member(tmp_path / "m").weights.read_bytes() == before
    assert Member(tmp_path / "m").card() == card


def test_without_a_test_part_the_validation_studies_are_left_to_the_metrics(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny, tmp_path / "m", config(split={"test": 0.0}), validation=6)
    assert Member(tmp_path / "m").card()["svm"] == "train"
