"""Random transforms of a batch that draw in one method and apply in another, so that what was done can be replayed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms.transform import Randomizable, Transform

from volrec.errors import ConfigError

__all__ = ["DrawnTransform", "check_strength", "spawn", "uniform", "warn_noop"]


class DrawnTransform(Randomizable, Transform):
    """A random change of a batch ``(B, C, T, H, W)``: `draw` says what will be done, `apply` does it.

    `draw` uses the given generator alone, always on the processor, so the same state gives the same draw whatever the
    device of the images. Called as a MONAI transform, it draws from its own state (`set_random_state`) and keeps what
    it drew in `params`.
    """

    params: Any = None

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> Any:
        """Draw what to do to `batch_size` sequences of `shape` ``(T, H, W)``."""
        raise NotImplementedError

    def apply(self, images: torch.Tensor, params: Any) -> torch.Tensor:
        """Do it to ``(B, C, T, H, W)`` float images; the input is not changed."""
        raise NotImplementedError

    def randomize(self, data: torch.Tensor) -> None:
        """Draw from this transform's own random state (MONAI convention)."""
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        self.params = self.draw(len(data), data.shape[-3:], generator)

    def __call__(self, data: torch.Tensor, *, randomize: bool = True) -> torch.Tensor:
        """Draw (or, with ``randomize=False``, take the last draw again) and apply."""
        if randomize or self.params is None:
            self.randomize(data)
        return self.apply(data, self.params)


def uniform(size: Sequence[int], low: float, high: float, generator: torch.Generator | None) -> torch.Tensor:
    """Draw float32 values in [low, high] on the processor."""
    return torch.rand(tuple(size), generator=generator).mul_(high - low).add_(low)


def spawn(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    """Make `count` independent generators of one: what one part draws never moves what another part draws."""
    seeds = torch.randint(2**62, (count,), generator=generator, dtype=torch.int64)
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def check_strength(**values: float) -> None:
    """Raise `ConfigError` for a strength below zero or not finite."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(
                f"{name} must be a finite number of at least 0, got {value}.",
                remedy="0 turns it off.",
                where=f"augment.{name}",
                code="augment",
            )


def warn_noop(transform: object, *names: str) -> None:
    """Warn that a transform was made with values that change nothing."""
    arguments = " or ".join(names)
    warnings.warn(
        f"{type(transform).__name__} changes nothing as it stands: set {arguments} above 0, or leave it out.",
        UserWarning,
        stacklevel=3,
    )
