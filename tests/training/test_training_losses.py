"""Losses against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from volrec.training.losses import StudyLoss, class_weights, slice_loss, soft_slice_targets, soft_targets

RNG = np.random.default_rng(0)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    p = expit(logits)
    return -(targets * np.log(p) + (1 - targets) * np.log1p(-p))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_loss_smooths_labels_and_weights_classes(smoothing: float) -> None:
    logits, targets = RNG.normal(size=(9, 1)), RNG.integers(0, 2, (9, 1)).astype(float)
    weights = np.array([[0.5], [3.0]])
    expected = np.mean(
        np.where(targets == 1, 3.0, 0.5) * cross_entropy(logits, targets * (1 - smoothing) + smoothing / 2)
    )
    loss = StudyLoss("binary", label_smoothing=smoothing, weights=torch.tensor(weights))
    assert loss(torch.tensor(logits), torch.tensor(targets)).item() == pytest.approx(expected, rel=1e-5)


def test_multiclass_loss_with_weights_and_mixed_targets() -> None:
    logits = RNG.normal(size=(7, 3))
    hot = soft_targets(torch.tensor(RNG.integers(0, 3, (7, 1))), "multiclass", 3).double()
    mixed = 0.7 * hot + 0.3 * hot[torch.arange(6, -1, -1)]
    weights = np.array([1.0, 2.0, 0.5])
    expected = -np.mean((weights * mixed.numpy() * log_softmax(logits, axis=1)).sum(1))
    loss = StudyLoss("multiclass", weights=torch.tensor(weights, dtype=torch.float32))
    assert loss(torch.tensor(logits), mixed.float()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_missing_targets_do_not_count(task: str) -> None:
    logits, targets = RNG.normal(size=(6, 2)), RNG.integers(0, 2, (6, 2)).astype(float)
    gaps = targets.copy()
    gaps[0, 0] = gaps[3, 1] = np.nan
    known = np.isfinite(gaps)
    each = cross_entropy(logits, targets) if task == "multilabel" else (logits - targets) ** 2
    x = torch.tensor(logits, requires_grad=True)
    value = StudyLoss(task)(x, torch.tensor(gaps))  # type: ignore[arg-type]
    assert value.item() == pytest.approx(each[known].mean(), rel=1e-5)
    value.backward()
    assert x.grad is not None
    assert np.array_equal(x.grad.numpy() != 0, known)


def test_class_weights_give_every_class_the_same_total() -> None:
    targets = torch.tensor([[0.0]] * 9 + [[1.0]] * 3)
    weights = class_weights(targets, "binary", 1)
    assert weights is not None
    assert (9 * weights[0, 0]).item() == pytest.approx((3 * weights[1, 0]).item())
    assert (9 * weights[0, 0] + 3 * weights[1, 0]).item() / 12 == pytest.approx(1.0)
    several = class_weights(torch.tensor([[0], [0], [0], [2]]), "multiclass", 3)
    assert several is not None
    assert several.tolist() == pytest.approx([4 / 6, 0.0, 2.0])
    assert class_weights(targets, "regression", 1) is None


def test_slices_without_a_label_do_not_count() -> None:
    logits = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[np.nan, 1, 0, np.nan, np.nan], [np.nan] * 5])
    loss = slice_loss(logits, soft_slice_targets(labels, "binary", 1), "binary")
    expected = cross_entropy(logits[0, 1:3, 0].double().numpy(), np.array([1.0, 0.0])).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    nobody = slice_loss(logits, soft_slice_targets(torch.full((2, 5), np.nan), "binary", 1), "binary")
    assert nobody.item() == 0.0


def test_slice_classes_become_one_hot() -> None:
    labels = torch.tensor([[0.0, 2.0, np.nan]])
    soft = soft_slice_targets(labels, "multiclass", 3)
    assert soft[0, :2].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert torch.isnan(soft[0, 2]).all()
    logits = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1))
    expected = -log_softmax(logits[0].double().numpy(), axis=1)[[0, 1], [0, 2]].mean()
    assert slice_loss(logits, soft, "multiclass").item() == pytest.approx(expected, rel=1e-5)
