"""The motion streams as MONAI transforms: flow, warped flow and difference of a volume ``(C, T, H, W)``.

Each takes an array, a tensor or a `monai.data.MetaTensor` (whose affine gives the spacing, and is kept: field t lies on
the grid of slice t) and gives a tensor. The class that ends in ``d`` does the same to entries of a dictionary; copy an
entry first (`monai.transforms.CopyItemsd`) to keep the intensities beside the flow.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms.transform import Transform

from volrec.errors import ConfigError, DataError
from volrec.transforms.drift import DRIFTS, warped_slice_flow
from volrec.transforms.flow import FLOW_METHODS, slice_difference, slice_flow
from volrec.transforms.slice_axis import spacing_of
from volrec.transforms.volume import _Mapped, _wrap

__all__ = ["SliceDifference", "SliceFlow", "SliceFlowd", "WarpedSliceFlow"]


class SliceFlow(Transform):
    """Estimate the flow from every slice to the next: ``(C, T, H, W)`` to ``(2, T - 1, H, W)`` (`slice_flow`).

    Parameters
    ----------
    method : {"tvl1", "farneback", "dis", "demons"}
        See `volrec.transforms.flow_estimators`.
    channel : int, optional
        The channel that is looked at; None takes the mean of all of them.
    value_range : (float, float), optional
        Values that become 0 and 1, what lies outside is clipped (HU: ``(-160, 240)``). None: they are in [0, 1].
    bound : float, optional
        Give displacement / bound, clipped to [-1, 1], as networks read it; None gives voxels.
    spacing : (float, float, float)
        mm along T, H, W, for an image without an affine.

    Raises
    ------
    ConfigError
        For an unknown method, a range without width, or a bound that is not above 0.
    """

    def __init__(
        self,
        *,
        method: str = "tvl1",
        channel: int | None = None,
        value_range: Sequence[float] | None = None,
        bound: float | None = None,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        _check_choice("method", method, FLOW_METHODS)
        if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
            raise ConfigError(
                f"value_range must be two rising values, got {tuple(value_range)}.",
                remedy="Give the values that become 0 and 1.",
                where="value_range",
                code="flow-range",
            )
        if bound is not None and not 0 < bound < float("inf"):
            raise ConfigError(
                f"bound must be a finite number of voxels above 0, got {bound}.",
                remedy="The usual bound is 20; None gives voxels.",
                where="bound",
                code="flow-bound",
            )
        self.method, self.channel, self.bound = method, channel, bound
        self.value_range = None if value_range is None else tuple(value_range)
        self.spacing = tuple(spacing)

    def __call__(self, data: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Estimate the flow of one image."""
        spacing = spacing_of(data.affine.numpy()).tolist() if isinstance(data, MetaTensor) else self.spacing
        fields = self._estimate(self._volume(data), spacing)
        if self.bound is not None:
            fields = np.clip(fields / np.float32(self.bound), -1, 1)
        return _like(np.ascontiguousarray(fields.swapaxes(0, 1)), data)

    def _estimate(self, volume: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        return slice_flow(volume, method=self.method, spacing=spacing)

    def _volume(self, data: torch.Tensor | np.ndarray) -> np.ndarray:
        array = _open(data)
        if self.channel is not None and not -len(array) <= self.channel < len(array):
            raise DataError(
                f"there is no channel {self.channel} in an image of {len(array)}.",
                remedy="Choose another, or None for the mean of all.",
                code="channel",
            )
        array = array.astype(np.float32) / np.float32(255 if array.dtype == np.uint8 else 1)
        volume = array.mean(axis=0) if self.channel is None else array[self.channel]
        if self.value_range is None:
            return volume
        low, high = self.value_range
        return np.clip((volume - low) / (high - low), 0, 1).astype(np.float32)


class WarpedSliceFlow(SliceFlow):
    """Estimate the flow without the drift of the whole slice (`warped_slice_flow`), ``(2, T - 1, H, W)``.

    Parameters
    ----------
    drift : {"translation", "affine", "homography"}
        Translation or affine for volumes, homography for videos.
    seed : int
        Of the random samples of the fit.
    **options
        As `SliceFlow`.

    Attributes
    ----------
    drifts : numpy.ndarray or None
        ``(T - 1, 3, 3)`` of the last image: pixel ``(x, y, 1)`` of a slice to where the drift takes it in the next.
    """

    def __init__(self, *, drift: str = "translation", seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        _check_choice("drift", drift, DRIFTS)
        self.drift, self.seed = drift, seed
        self.drifts: np.ndarray | None = None

    def _estimate(self, volume: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        fields, self.drifts = warped_slice_flow(
            volume, drift=self.drift, method=self.method, spacing=spacing, seed=self.seed
        )
        return fields


class SliceDifference(Transform):
    """Subtract each slice from the next: ``(C, T, H, W)`` to ``(C, T - 1, H, W)`` float32 (`slice_difference`)."""

    def __call__(self, data: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Subtract the slices of one image."""
        return _like(slice_difference(_open(data)), data)


class SliceFlowd(_Mapped):
    """`SliceFlow` of the entries `keys`."""

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        *,
        method: str = "tvl1",
        channel: int | None = None,
        value_range: Sequence[float] | None = None,
        bound: float | None = None,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        flow = SliceFlow(method=method, channel=channel, value_range=value_range, bound=bound, spacing=spacing)
        super().__init__(keys, flow, allow_missing_keys)


def _open(data: torch.Tensor | np.ndarray) -> np.ndarray:
    array = np.asarray(data.detach().cpu()) if isinstance(data, torch.Tensor) else np.asarray(data)
    if array.ndim != 4 or not array.size:
        raise DataError(
            f"an image has shape (C, T, H, W), got {array.shape}.",
            remedy="Give the channels first (EnsureChannelFirst), with no empty axis.",
            code="shape",
        )
    return array


def _like(array: np.ndarray, source: torch.Tensor | np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return _wrap(tensor, source.affine, source) if isinstance(source, MetaTensor) else tensor


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{name} must be one of {', '.join(choices)}; got {value!r}.",
            remedy="Choose one of these.",
            where=f"flow.{name}",
            code=f"flow-{name}",
        )
