"""Soft attention: a state chooses among a set of features, and the choice can be looked at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError

__all__ = ["SoftAttention", "check_mask", "coverage_penalty"]


class SoftAttention(nn.Module):
    """Weights over a set of features that a state asks for, and the weighted sum (Bahdanau et al., ICLR 2015).

    Energies are ``e_i = w^T tanh(W state + U feature_i + b)``, the weights their softmax over i, the context
    ``sum_i weight_i feature_i``. The features are a set: their order changes nothing.

    Parameters
    ----------
    features, state, hidden : int
        Lengths of a feature, of the state, and of the space where they meet.
    gate : bool
        Multiply the context by a scalar, the sigmoid of an affine function of the state: a step may look away. The
        weights are not touched.

    Notes
    -----
    There is no bias before the softmax: the softmax cancels it. A decoder of many steps projects the features once::

        projected = attention.project(features)
        context, weights = attention(features, state, mask=mask, projected=projected)
    """

    def __init__(self, features: int, state: int, hidden: int, *, gate: bool = False) -> None:
        super().__init__()
        self.key = nn.Linear(features, hidden)
        self.query = nn.Linear(state, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.gate = nn.Linear(state, 1) if gate else None

    def project(self, features: Tensor) -> Tensor:
        """Return ``U feature + b`` (B, T, hidden) of features (B, T, F): the part that no state changes."""
        return self.key(features)

    def forward(
        self, features: Tensor, state: Tensor, *, mask: Tensor | None = None, projected: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the context (B, F) and the weights (B, T), which sum to one.

        Parameters
        ----------
        features : Tensor
            (B, T, F), finite where masked too.
        state : Tensor
            (B, S).
        mask : Tensor, optional
            (B, T) bool, False for padding: such positions get weight 0. Where nothing is left, weights and context
            are 0.
        projected : Tensor, optional
            (B, T, hidden), what `project` gave for these features.
        """
        if projected is None:
            projected = self.project(features)
        energies = self.score(torch.tanh(projected + self.query(state)[:, None])).squeeze(2)
        if mask is None:
            weights = energies.softmax(1)
        else:
            check_mask(mask, features)
            # The lowest finite energy and not minus infinity: a row without any position would become NaN.
            lowest = torch.finfo(energies.dtype).min
            weights = energies.masked_fill(~mask, lowest).softmax(1).masked_fill(~mask, 0.0)
        context = (weights[:, None].to(features.dtype) @ features).squeeze(1)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(state)) * context
        return context, weights


def coverage_penalty(
    weights: Tensor, *, mask: Tensor | None = None, scale: float = 0.70602, target: float = 1.0
) -> Tensor:
    """Return a penalty that asks the steps of a decoder to look at every position (Xu et al., ICML 2015).

    It is ``scale * sum_i (target - sum_t weight_ti)^2``, the mean over the batch: attention becomes nearly doubly
    stochastic, positions summing to one in every step and steps summing to one in every position.

    Parameters
    ----------
    weights : Tensor
        (B, steps, T), each step summing to one.
    mask : Tensor, optional
        (B, T) bool, False for padding, which is not asked for.
    scale : float
        Lambda; the default is that of the code released with Yao et al. (ICCV 2015).
    target : float
        Attention that each position should gather over the steps. The paper's 1 can be met by as many steps as
        positions only; ``steps / T`` can be met always.

    Returns
    -------
    Tensor
        Scalar, 0 where every position gathers the target.
    """
    missing = (target - weights.sum(1)).square()
    if mask is not None:
        check_mask(mask, missing)
        missing = missing.masked_fill(~mask, 0.0)
    return scale * missing.sum(1).mean()


def check_mask(mask: Tensor, features: Tensor) -> None:
    """Raise `ConfigError` unless `mask` is a bool tensor (B, T) for features (B, T, ...)."""
    if mask.dtype != torch.bool or mask.shape != features.shape[:2]:
        raise ConfigError(
            f"a mask of slices must be bool and (B, T) = {tuple(features.shape[:2])}, got {mask.dtype} "
            f"{tuple(mask.shape)}.",
            remedy="Give one entry a slice: True where it is real, False where it is padding.",
            code="input-mask",
        )
