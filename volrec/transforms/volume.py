"""The array functions as MONAI transforms, for a `monai.transforms.Compose` of one's own.

Each takes and gives a `monai.data.MetaTensor` ``(C, ...)``, whose affine it keeps true in the space (RAS or LPS) that
the image came in. The class that ends in ``d`` does the same to entries of a dictionary.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms.transform import MapTransform, Randomizable, Transform
from monai.utils.enums import SpaceKeys

from volrec.errors import DataError
from volrec.transforms.canvas import check_canvas, crop_or_pad
from volrec.transforms.clips import clip_affine, clip_indices
from volrec.transforms.resample import axis_grids, resample_to_grids
from volrec.transforms.slice_axis import slice_axis_to_time
from volrec.transforms.windows import resolve_windows, window_channels

__all__ = [
    "CropOrPad",
    "CropOrPadd",
    "Resample",
    "Resampled",
    "SampleClip",
    "SampleClipd",
    "SliceAxisToTime",
    "SliceAxisToTimed",
    "WindowChannels",
    "WindowChannelsd",
]

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class SliceAxisToTime(Transform):
    """Permute and flip ``(C, I, J, K)`` into the canonical ``(C, T, H, W)`` (`slice_axis_to_time`).

    Parameters
    ----------
    slice_axis : {"acquired", "axial", "coronal", "sagittal"}
        The axis that becomes T.
    """

    def __init__(self, *, slice_axis: str = "acquired") -> None:
        self.slice_axis = slice_axis

    def __call__(self, data: MetaTensor) -> MetaTensor:
        """Reorder one image."""
        array, affine = _open(data)
        return _close(*slice_axis_to_time(array, affine, slice_axis=self.slice_axis), data)


class Resample(Transform):
    """Resample ``(C, T, H, W)`` to a spacing, anti-aliased where it shrinks (`resample`).

    Parameters
    ----------
    spacing : sequence of float or None
        mm along T, H, W; None keeps an axis.
    interpolation : {"linear", "nearest"}
        ``"nearest"`` for masks.
    """

    def __init__(self, *, spacing: Sequence[float | None], interpolation: str = "linear") -> None:
        self.spacing = tuple(spacing)
        self.interpolation = interpolation

    def __call__(self, data: MetaTensor) -> MetaTensor:
        """Resample one image, channel by channel."""
        array, affine = _open(data)
        grids = axis_grids(array.shape[1:], affine, spacing=self.spacing)
        done = [resample_to_grids(channel, affine, grids=grids, interpolation=self.interpolation) for channel in array]
        return _close(np.stack([channel for channel, _ in done]), done[0][1], data)


class CropOrPad(Transform):
    """Crop or pad ``(C, T, H, W)`` around the centre (`crop_or_pad`).

    Parameters
    ----------
    canvas : sequence of int or None
        Voxels along T, H, W; None keeps an axis.
    padding : {"minimum", "edge", "zero"}
        What fills the canvas around a smaller image.
    """

    def __init__(self, *, canvas: Sequence[int | None], padding: str = "minimum") -> None:
        self.canvas = check_canvas(canvas, padding)
        self.padding = padding

    def __call__(self, data: MetaTensor) -> MetaTensor:
        """Crop or pad one image."""
        array, affine = _open(data)
        return _close(*crop_or_pad(array, affine, canvas=self.canvas, padding=self.padding), data)


class WindowChannels(Transform):
    """Show a CT ``(1, T, H, W)`` in HU through several windows, ``(C, T, H, W)`` in [0, 1] (`window_channels`).

    Parameters
    ----------
    windows : sequence
        Preset names, or levels and widths in HU.
    """

    def __init__(self, *, windows: Sequence[Any]) -> None:
        self.windows = resolve_windows(windows)

    def __call__(self, data: torch.Tensor) -> torch.Tensor:
        """Window one image; an affine is kept."""
        shown = window_channels(torch.as_tensor(data)[None], windows=self.windows)[0]
        return _wrap(shown, data.affine, data) if isinstance(data, MetaTensor) else shown


class SampleClip(Randomizable, Transform):
    """Cut a clip ``(C, T', H, W)`` out of ``(C, T, H, W)`` (`clip_indices`).

    Parameters
    ----------
    clip_length, stride : int
        Slices of the clip, and the step between them.
    mode : {"random", "center", "uniform", "segments"}
        Where the slices come from.

    Attributes
    ----------
    indices : numpy.ndarray or None
        The slices of the last draw.
    """

    def __init__(self, *, clip_length: int, stride: int = 1, mode: str = "random") -> None:
        self.clip_length, self.stride, self.mode = clip_length, stride, mode
        self.indices: np.ndarray | None = None

    def randomize(self, data: int) -> None:
        """Draw the slices for a sequence of `data` slices."""
        rng = np.random.default_rng(self.R.randint(2**31))
        self.indices = clip_indices(data, clip_length=self.clip_length, stride=self.stride, mode=self.mode, rng=rng)

    def __call__(self, data: torch.Tensor, *, randomize: bool = True) -> torch.Tensor:
        """Draw (or, with ``randomize=False``, take the last draw again) and cut."""
        if randomize or self.indices is None:
            self.randomize(data.shape[1])
        indices = np.asarray(self.indices)
        clip = torch.as_tensor(data)[:, torch.from_numpy(indices)]
        if not isinstance(data, MetaTensor):
            return clip
        affine = clip_affine(data.affine.numpy(), indices)
        return _wrap(clip, torch.from_numpy(affine), data)


class _Mapped(MapTransform):
    """Apply one array transform to the entries of a dictionary."""

    def __init__(self, keys: Hashable | Sequence[Hashable], transform: Any, allow_missing_keys: bool) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the entries transformed."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key])
        return out


class SliceAxisToTimed(_Mapped):
    """`SliceAxisToTime` of the entries `keys`."""

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        *,
        slice_axis: str = "acquired",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, SliceAxisToTime(slice_axis=slice_axis), allow_missing_keys)


class Resampled(_Mapped):
    """`Resample` of the entries `keys`."""

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        *,
        spacing: Sequence[float | None],
        interpolation: str = "linear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, Resample(spacing=spacing, interpolation=interpolation), allow_missing_keys)


class CropOrPadd(_Mapped):
    """`CropOrPad` of the entries `keys`."""

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        *,
        canvas: Sequence[int | None],
        padding: str = "minimum",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, CropOrPad(canvas=canvas, padding=padding), allow_missing_keys)


class WindowChannelsd(_Mapped):
    """`WindowChannels` of the entries `keys`."""

    def __init__(
        self, keys: Hashable | Sequence[Hashable], *, windows: Sequence[Any], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, WindowChannels(windows=windows), allow_missing_keys)


class SampleClipd(Randomizable, MapTransform):
    """`SampleClip` of the entries `keys`: the same slices of each."""

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        *,
        clip_length: int,
        stride: int = 1,
        mode: str = "random",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.transform = SampleClip(clip_length=clip_length, stride=stride, mode=mode)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SampleClipd:
        """Seed this transform alone (MONAI convention)."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with a clip in place of each entry."""
        out = dict(data)
        randomize = True
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key], randomize=randomize)
            randomize = False
        return out


def _open(data: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
    """Give array and LPS affine of an image."""
    if not isinstance(data, MetaTensor):
        raise DataError(
            f"an image needs its affine, got a {type(data).__name__} without one.",
            remedy="Load it with monai.transforms.LoadImage, or wrap it: MetaTensor(array, affine=affine).",
            code="affine",
        )
    affine = data.affine.numpy().astype(np.float64)
    return data.numpy(), affine if _is_lps(data) else _RAS_TO_LPS @ affine


def _close(array: np.ndarray, affine: np.ndarray, source: MetaTensor) -> MetaTensor:
    """Wrap an array with its LPS affine as the image it was made of."""
    kept = affine if _is_lps(source) else _RAS_TO_LPS @ affine
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return _wrap(tensor, torch.from_numpy(kept), source)


def _wrap(tensor: torch.Tensor, affine: torch.Tensor, source: MetaTensor) -> MetaTensor:
    meta = {key: value for key, value in source.meta.items() if key != "affine"}
    return MetaTensor(tensor, affine=affine, meta=meta)


def _is_lps(data: MetaTensor) -> bool:
    return data.meta.get("space") == SpaceKeys.LPS
