"""Arrays in, arrays out: slice axis to time, resampling, windows, clips, flow, and augmentation on the device.

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
    "FLOW_METHODS": "flow",
    "RandomBlur": "blur",
    "RandomCornerCrop": "crops",
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
    "SliceDifference": "streams",
    "SliceFlow": "streams",
    "SliceFlowd": "streams",
    "StreamInput": "stream_input",
    "WINDOWS": "windows",
    "WarpedSliceFlow": "streams",
    "WindowChannels": "volume",
    "WindowChannelsd": "volume",
    "center_crop": "crops",
    "clip_affine": "clips",
    "clip_indices": "clips",
    "corner_crops": "crops",
    "crop_or_pad": "canvas",
    "dequantise": "flow_fields",
    "estimate_flow": "flow",
    "evenly_spaced": "clips",
    "fit_drift": "drift",
    "five_crop": "crops",
    "flip_axes": "flips",
    "flip_flow": "flow_fields",
    "flow_backend": "flow",
    "flow_settings": "flow",
    "from_pictures": "flow_fields",
    "mirror_width": "crops",
    "own_region": "preprocess",
    "preprocess_array": "preprocess",
    "preprocessed_shape": "preprocess",
    "protocol_clips": "clips",
    "quantise": "flow_fields",
    "resample": "resample",
    "resolve_windows": "windows",
    "slice_axis_to_time": "slice_axis",
    "slice_difference": "flow",
    "slice_flow": "flow",
    "stack_fields": "flow_fields",
    "subtract_mean_motion": "flow_fields",
    "ten_crop": "crops",
    "transform_vectors": "flow_fields",
    "warp": "flow_fields",
    "warped_flow": "drift",
    "warped_slice_flow": "drift",
    "window_channels": "windows",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
