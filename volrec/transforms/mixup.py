"""Mixup: each sequence of a batch is blended with another, and so are their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from volrec.transforms.drawn import DrawnTransform, check_strength, warn_noop

__all__ = ["MixupParams", "RandomMixup"]


@dataclass(frozen=True)
class MixupParams:
    """Index of the other sequence ``(B,)`` int64, and the share of the own one ``(B,)`` in [0.5, 1]."""

    partner: torch.Tensor
    share: torch.Tensor


class RandomMixup(DrawnTransform):
    """Blend each sequence with another of the batch.

    Parameters
    ----------
    alpha : float
        Of the Beta(alpha, alpha) that the share is drawn from; the larger part counts as the sequence's own.

    References
    ----------
    H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """

    def __init__(self, *, alpha: float) -> None:
        check_strength(mixup=alpha)
        self.alpha = alpha
        if alpha == 0:
            warn_noop(self, "alpha")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> MixupParams:
        """Draw partners and shares."""
        partner = torch.randperm(batch_size, generator=generator)
        seed = int(torch.randint(2**62, (1,), generator=generator, dtype=torch.int64))
        if self.alpha == 0:
            return MixupParams(partner, torch.ones(batch_size))
        share = np.random.default_rng(seed).beta(self.alpha, self.alpha, batch_size)  # torch's Beta takes no generator
        return MixupParams(partner, torch.from_numpy(np.maximum(share, 1 - share)).float())

    def apply(self, images: torch.Tensor, params: MixupParams) -> torch.Tensor:
        """Blend ``(B, ...)`` floats: images, or targets that may be averaged."""
        share = params.share.to(images).view(-1, *[1] * (images.ndim - 1))
        return torch.lerp(images[params.partner.to(images.device)], images, share)
