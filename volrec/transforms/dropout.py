"""Random loss of slices: a slice is replaced by its neighbour."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from volrec.errors import ConfigError
from volrec.transforms.drawn import DrawnTransform, warn_noop

__all__ = ["RandomSliceDropout"]


class RandomSliceDropout(DrawnTransform):
    """Replace slices by the neighbour before or after them, as if they had been lost.

    Parameters
    ----------
    probability : float
        Probability of each slice, in [0, 1].

    Raises
    ------
    ConfigError
        For a probability outside [0, 1].
    """

    def __init__(self, *, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(
                f"slice_dropout must be a probability in [0, 1], got {probability}.",
                remedy="0 turns it off.",
                where="augment.slice_dropout",
                code="augment",
            )
        self.probability = probability
        if probability == 0:
            warn_noop(self, "probability")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw int64 ``(B, T)``: the slice that stands at each place."""
        depth = shape[0]
        lost = torch.rand((batch_size, depth), generator=generator) < self.probability
        side = torch.randint(2, (batch_size, depth), generator=generator) * 2 - 1
        index = torch.arange(depth)
        neighbour = index + side
        # The first and the last slice have one neighbour only.
        neighbour = torch.where((neighbour < 0) | (neighbour >= depth), index - side, neighbour).clamp(0, depth - 1)
        return torch.where(lost, neighbour, index.expand(batch_size, depth))

    def apply(self, images: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Put the chosen slices in place."""
        sequence, place = torch.nonzero(params != torch.arange(params.shape[1]), as_tuple=True)
        if not len(sequence):
            return images
        source = params[sequence, place]
        out = images.clone()
        sequence, place, source = (index.to(images.device) for index in (sequence, place, source))
        out[sequence, :, place] = images[sequence, :, source]
        return out
