"""Arrays in, arrays out: slice axis to time, resampling, windows, clips, and augmentation batched on the device.

Functions of numpy arrays stand apart from the MONAI classes, so that a decoding process loads neither torch nor MONAI.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "AugmentParams": "batch",
    "BatchAugment": "batch",
    "BatchIntensity": "intensity",
    "BatchTransform": "batch",
    "CropOrPad": "volume",
    "CropOrPadd": "volume",
    "DrawnTransform": "drawn",
    "RandomBlur": "blur",
    "RandomFlip": "flips",
    "RandomMixup": "mixup",
    "RandomNoise": "noise",
    "RandomSliceDropout": "dropout",
    "RandomSpatial": "spatial",
    "RandomTone": "tone",
    "Resample": "volume",
    "Resampled": "volume",
    "SampleClip": "volume",
    "SampleClipd": "volume",
    "SliceAxisToTime": "volume",
    "SliceAxisToTimed": "volume",
    "WINDOWS": "windows",
    "WindowChannels": "volume",
    "WindowChannelsd": "volume",
    "clip_affine": "clips",
    "clip_indices": "clips",
    "crop_or_pad": "canvas",
    "evenly_spaced": "clips",
    "flip_axes": "flips",
    "own_region": "preprocess",
    "preprocess_array": "preprocess",
    "preprocessed_shape": "preprocess",
    "protocol_clips": "clips",
    "resample": "resample",
    "resolve_windows": "windows",
    "slice_axis_to_time": "slice_axis",
    "window_channels": "windows",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
