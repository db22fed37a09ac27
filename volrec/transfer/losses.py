"""What makes features of slices useful without labels: SimCLR's and VICReg's losses on two views.

Both compare rows with a product of matrices, which automatic mixed precision would round to eight bits: they are
computed in float32 whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["nt_xent", "vicreg"]

_MARGIN = 1e-4


def nt_xent(first: Tensor, second: Tensor, *, temperature: float, alike: Tensor | None = None) -> Tensor:
    """Return SimCLR's loss: each view has to find its other view among all views of the batch.

    T. Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1.

    Parameters
    ----------
    first, second : Tensor
        ``(N, D)`` projections of the two views of N places, N at least 2.
    temperature : float
        Of the softmax over cosine similarities.
    alike : Tensor, optional
        Bool ``(N, N)``: places so near each other that their views are no negatives.
    """
    count = len(first)
    views = functional.normalize(torch.cat([first, second]).float(), dim=1)
    with torch.autocast(views.device.type, enabled=False):
        similarity = views @ views.T / temperature
    partner = torch.arange(2 * count, device=views.device).roll(count)
    same = torch.eye(count, dtype=torch.bool, device=views.device)
    ignored = (same if alike is None else same | alike).repeat(2, 2)
    ignored[torch.arange(2 * count, device=views.device), partner] = False
    return functional.cross_entropy(similarity.masked_fill(ignored, float("-inf")), partner)


def vicreg(first: Tensor, second: Tensor, *, weights: Sequence[float]) -> Tensor:
    """Return VICReg's loss: views agree, every feature varies, and no two features say the same.

    A. Bardes, J. Ponce, Y. LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
    ICLR 2022, eq. 1 to 6. As in the released code the invariance is the mean over features, not their sum, and the
    variance of the two views is averaged.

    Parameters
    ----------
    first, second : Tensor
        ``(N, D)`` projections of the two views of N places, N at least 2.
    weights : sequence of float
        Of invariance, variance and covariance.
    """
    invariance = functional.mse_loss(first, second)
    variance = covariance = first.new_zeros(())
    for views in (first, second):
        centred = views - views.mean(dim=0)
        deviation = (centred.var(dim=0) + _MARGIN).sqrt()
        variance = variance + functional.relu(1 - deviation).mean() / 2
        with torch.autocast(views.device.type, enabled=False):
            products = centred.T @ centred / (len(views) - 1)
        off_diagonal = products.square().sum() - products.diagonal().square().sum()
        covariance = covariance + off_diagonal / views.shape[1]
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance
