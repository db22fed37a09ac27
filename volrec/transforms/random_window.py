"""Random intensity windows: the same slice as another reader would set it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from volrec.errors import ConfigError
from volrec.transforms.drawn import spawn, uniform
from volrec.transforms.intensity import BatchIntensity, clipped_moments, quantile_at

__all__ = ["RandomWindow", "WindowParams"]


@dataclass(frozen=True)
class WindowParams:
    """Shift (in widths) and factor of the width of the window of each sequence, ``(B,)`` each."""

    level: torch.Tensor
    width: torch.Tensor


class RandomWindow(BatchIntensity):
    """`BatchIntensity` whose window is moved and stretched at random before values are clipped to it.

    What lay outside the window comes in and what lay inside is clipped, which a change of contrast after the clipping
    cannot show. All windows of a sequence move alike.

    Parameters
    ----------
    kind, windows, percentiles
        As for `BatchIntensity`; ``none`` has no window and stays as it is.
    level : float
        Largest shift, in widths of the window, below 1.
    width : float
        Largest relative change of the width, below 1: the factor lies between 1 / (1 + width) and 1 + width.

    Raises
    ------
    ConfigError
        For a strength outside [0, 1), and as `BatchIntensity`.
    """

    def __init__(
        self,
        kind: str = "percentile",
        *,
        windows: Sequence[object] = (),
        percentiles: tuple[float, float] = (0.5, 99.5),
        level: float = 0.1,
        width: float = 0.25,
    ) -> None:
        super().__init__(kind, windows=windows, percentiles=percentiles)
        for name, value in (("window_level", level), ("window_width", width)):
            if not 0 <= value < 1:
                raise ConfigError(
                    f"{name} must be in [0, 1), got {value}.", remedy="0 turns it off.", where=name, code="augment"
                )
        self.level, self.width = float(level), float(width)

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> WindowParams:
        """Draw the window of each of `batch_size` sequences, on the processor."""
        for_level, for_width = spawn(generator, 2)
        size = (batch_size,)
        exponent = uniform(size, -1.0, 1.0, for_width)
        return WindowParams(uniform(size, -self.level, self.level, for_level), (1 + self.width) ** exponent)

    def apply(self, data: torch.Tensor, params: WindowParams, quantiles: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise ``(B, 1, T, H, W)`` through the windows that `draw` chose.

        Returns
        -------
        torch.Tensor
            float32 ``(B, C, T, H, W)``; with windows of no change what `BatchIntensity` gives.
        """
        if self.kind == "none":
            return self(data, quantiles)
        shift = params.level.to(data.device)[:, None].float()
        factor = params.width.to(data.device)[:, None].float()
        low, width, centre, scale = (part.float() for part in self._window(data, quantiles))
        middle = low + width / 2
        moved_low = middle + shift * width - width * factor / 2
        if self.kind == "zscore":
            moved_centre, moved_scale = centre + shift * width, scale / factor
        else:
            moved_centre, moved_scale = moved_low, scale / factor

        def per_channel(values: torch.Tensor) -> torch.Tensor:
            return values[..., None, None, None]

        images = data.to(torch.float32)
        images = torch.minimum(torch.maximum(images, per_channel(moved_low)), per_channel(moved_low + width * factor))
        return (images - per_channel(moved_centre)) * per_channel(moved_scale)

    def _window(self, data: torch.Tensor, quantiles: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return lower end, width, and what is taken off and multiplied afterwards, ``(B, C)`` or ``(1, C)`` each."""
        if self.kind == "window":
            table = torch.tensor(self.windows, dtype=torch.float64, device=data.device)
            low, width = table[None, :, 0] - table[None, :, 1] / 2, table[None, :, 1]
            return low, width, low, 1 / width
        if quantiles is None:
            raise ConfigError(
                f"intensity kind {self.kind!r} needs the quantiles of each study.",
                remedy="Give the table that the store keeps beside the volume.",
                where="quantiles",
                code="quantiles",
            )
        rows = quantiles.to(device=data.device, dtype=torch.float32 if data.device.type == "mps" else torch.float64)
        low, high = (quantile_at(rows, percent) for percent in self.percentiles)
        centre, spread = (low, high - low) if self.kind == "percentile" else clipped_moments(rows, low, high)
        constant = spread <= rows.abs().amax(dim=1) * 1e-6
        scale = torch.where(constant, torch.zeros_like(spread), 1 / spread)
        return low[:, None], (high - low)[:, None], centre[:, None], scale[:, None]
