"""SCI fusion against loops written from its definition; mean and max are tested with the predictor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig
from volrec.errors import ConfigError
from volrec.inference import Predictor
from volrec.inference.consensus import CONSENSUSES, check_consensus, link, pool, sparsity
from volrec.networks import create


def fuse_by_hand(outputs: np.ndarray, task: str) -> np.ndarray:
    """Return the distribution that FSTCN's rule gives, one number at a time."""
    clips = []
    for views in outputs:
        weighted, total = 0.0, 0.0
        for logits in views:
            p = link(logits, task)
            p = [p[0], 1 - p[0]] if task == "binary" else list(p)
            weight = (len(p) * max(p) / sum(p) - 1) / (len(p) - 1)
            weighted = weighted + weight * np.array(p)
            total += weight
        clips.append(weighted / total)
    best = np.array([max(clip[j] for clip in clips) for j in range(len(clips[0]))])
    return best / best.sum()


@pytest.mark.parametrize("classes", [2, 3, 101])
def test_sparsity_is_one_for_one_hot_and_zero_for_uniform_scores(classes: int) -> None:
    assert sparsity(np.eye(classes)).tolist() == [1.0] * classes
    assert sparsity(np.full(classes, 1 / classes)) == pytest.approx(0, abs=1e-12)
    mixed = np.random.default_rng(0).dirichlet(np.ones(classes), 50)
    np.testing.assert_allclose(sparsity(mixed * 7), sparsity(mixed), rtol=1e-12)
    assert ((sparsity(mixed) > 0) & (sparsity(mixed) < 1)).all()


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 4)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1), (3, 2)])
def test_sci_weighs_views_and_takes_the_strongest_clip(task: str, outputs: int, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(1).normal(size=(*shape, outputs)) * 2
    scores, logits = pool(values, task=task, consensus="sci", stage="probabilities")
    assert scores.shape == (outputs,)
    np.testing.assert_allclose(scores, fuse_by_hand(values, task)[:outputs], rtol=1e-12)
    np.testing.assert_allclose(link(logits, task), scores, rtol=1e-9)
    if shape == (1, 1):
        np.testing.assert_allclose(scores, link(values[0, 0], task), rtol=1e-12)


def test_an_undecided_view_changes_nothing_and_a_decided_one_does() -> None:
    sure, unsure = logit(0.95), 0.0
    alone, _ = pool(np.array([[[sure]]]), task="binary", consensus="sci", stage="probabilities")
    joined, _ = pool(np.array([[[sure], [unsure]]]), task="binary", consensus="sci", stage="probabilities")
    mean, _ = pool(np.array([[[sure], [unsure]]]), task="binary", consensus="mean", stage="probabilities")
    np.testing.assert_allclose(joined, alone, rtol=1e-12)
    assert mean[0] == pytest.approx((0.95 + expit(unsure)) / 2)


def test_a_binary_score_counts_as_two_classes() -> None:
    values = np.random.default_rng(2).normal(size=(4, 3, 1))
    one, _ = pool(values, task="binary", consensus="sci", stage="probabilities")
    two, _ = pool(np.concatenate([values, 0 * values], -1), task="multiclass", consensus="sci", stage="probabilities")
    np.testing.assert_allclose(two, [one[0], 1 - one[0]], rtol=1e-9)


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 3)])
def test_views_that_say_nothing_give_uniform_scores(task: str, outputs: int) -> None:
    scores, _ = pool(np.zeros((2, 2, outputs)), task=task, consensus="sci", stage="probabilities")
    np.testing.assert_allclose(scores, 0.5 if task == "binary" else 1 / 3, rtol=1e-12)


@pytest.mark.parametrize(
    ("task", "stage", "match"),
    [
        ("multilabel", "probabilities", "labels do not exclude each other.* Set protocol.consensus to mean or max"),
        ("regression", "probabilities", "values are no probabilities.* Set protocol.consensus to mean or max"),
        ("multiclass", "logits", "stage is 'logits'.* Set protocol.stage to probabilities"),
    ],
)
def test_sci_is_refused_where_it_has_no_meaning(task: str, stage: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        pool(np.zeros((1, 1, 3)), task=task, consensus="sci", stage=stage)
    with pytest.raises(ConfigError, match=match):
        check_consensus("sci", task=task, stage=stage)


def test_a_predictor_refuses_before_the_first_study_and_fuses_otherwise() -> None:
    def predictor(task: str, consensus: str) -> Predictor:
        return Predictor(
            create("slice-mean", num_classes=3, width=0.05),
            intensity=IntensityConfig(kind="none"),
            sampling=SamplingConfig(clip_length=4),
            protocol=ProtocolConfig(consensus=consensus, flips=["W"]),
            task=task,
        )

    with pytest.raises(ConfigError, match="the task is multilabel"):
        predictor("multilabel", "sci")
    study = np.random.default_rng(3).normal(size=(9, 12, 12)).astype(np.float32)
    found = predictor("multiclass", "sci").score(study)
    assert found.clips > 1
    assert found.scores.sum() == pytest.approx(1)


def test_the_schema_and_the_rule_know_the_same_words() -> None:
    allowed = ProtocolConfig.model_json_schema()["properties"]["consensus"]["enum"]
    assert tuple(allowed) == CONSENSUSES
