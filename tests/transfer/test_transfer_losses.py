"""Losses of the slice pretraining against loops in float64 that follow the papers' formulae."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from volrec.transfer.losses import nt_xent, vicreg


def drawn(count: int, length: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, length, generator=generator, dtype=torch.float64)
    return first, first + 0.5 * second


def loop_of_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float, alike: np.ndarray) -> float:
    """Chen et al. 2020, equation 1, one view after another."""
    views, count = [*first, *second], len(first)

    def similarity(i: int, k: int) -> float:
        return float(views[i] @ views[k] / np.linalg.norm(views[i]) / np.linalg.norm(views[k]) / temperature)

    total = 0.0
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        others = [k for k in range(2 * count) if k != i and (k == partner or not alike[i % count, k % count])]
        total -= similarity(i, partner) - math.log(sum(math.exp(similarity(i, k)) for k in others))
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("near", [[], [(0, 1), (2, 4)]], ids=["no neighbours", "neighbours"])
def test_nt_xent_equals_the_formula(temperature: float, near: list[tuple[int, int]]) -> None:
    first, second = drawn(5, 7)
    alike = torch.eye(5, dtype=torch.bool)
    for one, other in near:
        alike[one, other] = alike[other, one] = True
    expected = loop_of_nt_xent(first.numpy(), second.numpy(), temperature, alike.numpy())
    found = nt_xent(first, second, temperature=temperature, alike=alike)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    if not near:
        assert float(nt_xent(first, second, temperature=temperature)) == float(found)


def test_a_place_is_never_told_from_one_that_lies_beside_it() -> None:
    first, second = drawn(4, 6)
    alike = torch.zeros(4, 4, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = True
    (moved,) = torch.autograd.grad(
        nt_xent(first.requires_grad_(), second, temperature=0.2, alike=alike), first, retain_graph=False
    )
    assert moved.isfinite().all() and moved.abs().sum() > 0
    everyone = torch.ones(4, 4, dtype=torch.bool)
    assert nt_xent(first, second, temperature=0.2, alike=everyone).item() == 0.0  # nothing is left to tell apart


def loop_of_vicreg(first: np.ndarray, second: np.ndarray, weights: tuple[float, float, float]) -> float:
    """Bardes et al. 2022, with the means over features that their code takes."""
    count, length = first.shape
    invariance = sum((first[n, d] - second[n, d]) ** 2 for n in range(count) for d in range(length)) / count / length
    variance = covariance = 0.0
    for views in (first, second):
        mean = [sum(views[:, d]) / count for d in range(length)]
        table = [
            [sum((views[n, a] - mean[a]) * (views[n, b] - mean[b]) for n in range(count)) / (count - 1)
             for b in range(length)]
            for a in range(length)
        ]  # fmt: skip
        variance += sum(max(0.0, 1 - math.sqrt(table[d][d] + 1e-4)) for d in range(length)) / length / 2
        covariance += sum(table[a][b] ** 2 for a in range(length) for b in range(length) if a != b) / length
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_vicreg_equals_the_formula(weights: tuple[float, float, float], spread: float) -> None:
    first, second = (spread * views for views in drawn(6, 4, seed=1))
    expected = loop_of_vicreg(first.numpy(), second.numpy(), weights)
    assert float(vicreg(first, second, weights=weights)) == pytest.approx(expected, rel=1e-12)


def test_vicreg_is_differentiable_even_where_all_features_have_collapsed() -> None:
    first, second = (views.requires_grad_() for views in drawn(5, 3, seed=2))
    assert gradcheck(lambda a, b: vicreg(a, b, weights=(25.0, 25.0, 1.0)), (first, second))
    flat = torch.zeros(5, 3, requires_grad=True)
    vicreg(flat, flat * 1.0, weights=(25.0, 25.0, 1.0)).backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_half_precision_gives_finite_losses() -> None:
    first, second = (views.half() for views in drawn(4, 8))
    assert nt_xent(first, second, temperature=0.05).isfinite()
    assert nt_xent(first, second, temperature=0.05).dtype == torch.float32


def test_mixed_precision_of_the_network_does_not_round_the_losses() -> None:
    first, second = (views.float() for views in drawn(16, 32))
    losses = [lambda: nt_xent(first, second, temperature=0.05), lambda: vicreg(first, second, weights=(25, 25, 1))]
    for loss in losses:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = loss()
        assert torch.equal(mixed, loss())
