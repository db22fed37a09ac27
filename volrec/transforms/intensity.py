"""From stored voxel values to network input, on the batch: CT windows, or MR percentiles and z-scores of the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms.transform import Transform

from volrec.errors import ConfigError
from volrec.transforms.windows import resolve_windows, window_channels

__all__ = ["KINDS", "BatchIntensity", "clipped_moments", "quantile_at"]

KINDS = ("window", "percentile", "zscore", "none")


class BatchIntensity(Transform):
    """Normalise a batch of stored volumes.

    The statistics of a study come from its quantile table, made once from the voxels that are its own, so that a clip
    is normalised as its whole study is and padding counts nowhere.

    Parameters
    ----------
    kind : {"window", "percentile", "zscore", "none"}
        ``window``: HU through `windows`, one channel each, to [0, 1]. ``percentile``: clipped to `percentiles` of the
        study, to [0, 1]. ``zscore``: clipped to them, then zero mean and unit variance over the study's voxels.
        ``none``: float32 as stored.
    windows : sequence
        Preset names or levels and widths (`volrec.transforms.windows.resolve_windows`).
    percentiles : (float, float)
        Lower and upper percentile, in percent.

    Attributes
    ----------
    channels : int
        Channels of the result.

    Raises
    ------
    ConfigError
        For an unknown kind or preset, windows missing where they are needed, or percentiles out of order.
    """

    def __init__(
        self,
        kind: str = "percentile",
        *,
        windows: Sequence[Any] = (),
        percentiles: tuple[float, float] = (0.5, 99.5),
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(
                f"intensity kind must be one of {', '.join(KINDS)}; got {kind!r}.",
                remedy="Choose one of these.",
                where="intensity.kind",
                code="intensity",
            )
        low, high = percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError(
                f"percentiles must rise within [0, 100], got {low} and {high}.",
                remedy="Give for example [0.5, 99.5].",
                where="intensity.percentiles",
                code="intensity",
            )
        self.kind = kind
        self.windows = resolve_windows(windows) if kind == "window" else ()
        self.percentiles = (float(low), float(high))
        if kind == "window" and not self.windows:
            raise ConfigError(
                "intensity kind 'window' got no windows.",
                remedy="Name at least one preset, for example brain.",
                where="intensity.windows",
                code="window",
            )

    @property
    def channels(self) -> int:
        """Channels of the result: one a window, else one."""
        return len(self.windows) or 1

    def __call__(self, data: torch.Tensor, quantiles: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise.

        Parameters
        ----------
        data : torch.Tensor
            ``(B, 1, T, H, W)``, int16 or float; not changed.
        quantiles : torch.Tensor, optional
            ``(B, Q)``: quantiles of each study at Q even steps from 0 to 100 %; ``percentile`` and ``zscore`` need it.

        Returns
        -------
        torch.Tensor
            float32 ``(B, C, T, H, W)``. A study of one value becomes 0 everywhere.
        """
        if self.kind == "window":
            return window_channels(data, windows=self.windows)
        if self.kind == "none":
            return data.to(torch.float32)
        if quantiles is None:
            raise ConfigError(
                f"intensity kind {self.kind!r} needs the quantiles of each study.",
                remedy="Give the table that the store keeps beside the volume.",
                where="quantiles",
                code="quantiles",
            )
        # Apple's devices have no float64.
        table = quantiles.to(device=data.device, dtype=torch.float32 if data.device.type == "mps" else torch.float64)
        low = quantile_at(table, self.percentiles[0])
        high = quantile_at(table, self.percentiles[1])
        if self.kind == "percentile":
            centre, width = low, high - low
        else:
            centre, width = clipped_moments(table, low, high)
        scale = torch.where(width > _smallest(table), 1 / width, torch.zeros_like(width))

        def per_study(values: torch.Tensor) -> torch.Tensor:
            return values.to(torch.float32).view(-1, 1, 1, 1, 1)

        # Clipping first keeps float32 exact enough: the range is the study's own, whatever the scanner's units.
        out = data.to(torch.float32, copy=True).clamp_(per_study(low), per_study(high))
        return out.sub_(per_study(centre)).mul_(per_study(scale))


def quantile_at(table: torch.Tensor, percent: float) -> torch.Tensor:
    """Read the quantile at `percent` off tables ``(B, Q)``, linear between their steps; gives ``(B,)``."""
    place = percent / 100 * (table.shape[1] - 1)
    below = min(int(place), table.shape[1] - 2)
    return torch.lerp(table[:, below], table[:, below + 1], place - below)


def clipped_moments(table: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation ``(B,)`` of the values behind quantile tables, clipped to [low, high].

    The quantile function is integrated as the line between its steps that the table draws.
    """
    clipped = torch.minimum(torch.maximum(table, low[:, None]), high[:, None])
    mean = ((clipped[:, 1:] + clipped[:, :-1]) / 2).mean(dim=1)
    start, stop = clipped[:, :-1] - mean[:, None], clipped[:, 1:] - mean[:, None]
    variance = ((start**2 + start * stop + stop**2) / 3).mean(dim=1)
    return mean, variance.sqrt()


def _smallest(table: torch.Tensor) -> torch.Tensor:
    """Width below which a study counts as constant: the rounding of its own magnitude in float32."""
    return table.abs().amax(dim=1) * 1e-6
