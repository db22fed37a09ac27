"""Files that hold many frames: functional groups, nuclear medicine, Siemens mosaics; one header a frame.

Sources: DICOM PS3.3 C.7.6.16 (multi-frame functional groups), C.8.4.9 and C.8.4.15 (NM); for mosaics the Siemens CSA
header as documented by NiBabel (https://nipy.org/nibabel/dicom/dicom_mosaic.html).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from volrec.errors import Problem
from volrec.io.elements import Elements, quiet_pydicom
from volrec.io.headers import Header

__all__ = ["enhanced_headers", "mosaic_headers", "plain_headers"]

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_DETECTORS, _SLICE_VECTOR = 0x00540022, 0x00540080
_CSA_IMAGE = 0x00291010

# Functional group, element in its first item, field of Header, how it is read.
_FACTS: tuple[tuple[str, str, str, str], ...] = (
    ("PlanePositionSequence", "ImagePositionPatient", "position", "3"),
    ("PlaneOrientationSequence", "ImageOrientationPatient", "orientation", "6"),
    ("PixelMeasuresSequence", "PixelSpacing", "pixel_spacing", "2"),
    ("PixelMeasuresSequence", "SliceThickness", "slice_thickness", "real"),
    ("PixelValueTransformationSequence", "RescaleSlope", "slope", "real"),
    ("PixelValueTransformationSequence", "RescaleIntercept", "intercept", "real"),
    ("PixelValueTransformationSequence", "RescaleType", "rescale_type", "text"),
    ("FrameContentSequence", "StackID", "stack", "text"),
    ("FrameContentSequence", "TemporalPositionIndex", "temporal_position", "whole"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "acquisition_number", "whole"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset", "trigger_time", "real"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", "cardiac_phase", "real"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "trigger_time", "real"),
    ("MREchoSequence", "EffectiveEchoTime", "echo_time", "real"),
    ("MRModifierSequence", "InversionTimes", "inversion_time", "real"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle", "flip_angle", "real"),
    ("MRDiffusionSequence", "DiffusionBValue", "b_value", "real"),
    ("CTImageFrameTypeSequence", "FrameType", "image_type", "texts"),
    ("MRImageFrameTypeSequence", "FrameType", "image_type", "texts"),
    ("PETFrameTypeSequence", "FrameType", "image_type", "texts"),
    ("CTReconstructionSequence", "ConvolutionKernel", "kernel", "text"),
)


@quiet_pydicom()
def enhanced_headers(handle: BinaryIO, header: Header, frames: int) -> tuple[tuple[Header, ...], Problem | None]:
    """Read the functional groups: what a frame says goes before what all frames share.

    Parameters
    ----------
    handle : binary file
        Open for reading.
    header : Header
        What the file says at its top level.
    frames : int
        NumberOfFrames.

    Returns
    -------
    headers : tuple of Header
        One a frame.
    problem : Problem, optional
        When the groups do not fit the frames.
    """
    data = _read(handle, [_SHARED, _PER_FRAME])
    shared_items = data.get(_SHARED)
    frame_items = data.get(_PER_FRAME)
    shared = shared_items.value[0] if shared_items is not None and len(shared_items.value) else None
    groups = list(frame_items.value) if frame_items is not None else []
    if len(groups) != frames and groups:
        return (), Problem(
            header.path,
            "frame-groups",
            f"it has {frames} frames but {len(groups)} items of per-frame functional groups.",
            "Export the series again.",
        )
    common = replace(header, frames=frames, **_group_facts(shared))
    step = _frame_bytes(common)
    # Where two files of one series repeat positions, the number of the file goes before that of the frame.
    first = (header.instance_number or 0) * 1_000_000 + 1
    headers = []
    for index in range(frames):
        own = _group_facts(groups[index]) if groups else {}
        headers.append(
            replace(
                common,
                frame=index,
                instance_number=first + index,
                pixel_offset=common.pixel_offset + index * step if common.pixel_length >= 0 else common.pixel_offset,
                pixel_length=step if common.pixel_length >= 0 else -1,
                **own,
            )
        )
    return tuple(headers), None


@quiet_pydicom()
def plain_headers(
    handle: BinaryIO, header: Header, frames: int, found: Elements
) -> tuple[tuple[Header, ...], Problem | None]:
    """Read frames that have no functional groups: only reconstructed nuclear medicine says where they are."""
    spacing = found.first("spacing_between_slices")
    unplaced = (replace(header, frames=frames, position=None),)
    if header.modality not in ("NM", "PT") or "detectors" not in found.present or not isinstance(spacing, float):
        return unplaced, None
    data = _read(handle, [_DETECTORS, _SLICE_VECTOR])
    items = data.get(_DETECTORS)
    detector = items.value[0] if items is not None and len(items.value) else None
    position = _reals(getattr(detector, "ImagePositionPatient", None), 3)
    orientation = _reals(getattr(detector, "ImageOrientationPatient", None), 6)
    if position is None or orientation is None or not spacing or not math.isfinite(spacing):
        return unplaced, None
    numbers = data.get(_SLICE_VECTOR)
    order = [int(number) for number in numbers.value] if numbers is not None else list(range(1, frames + 1))
    if len(order) != frames:
        return unplaced, None
    normal = np.cross(orientation[:3], orientation[3:])
    note = ("spacing-by-tag", f"frames are placed {spacing:g} mm apart by SpacingBetweenSlices: they have no positions")
    step = _frame_bytes(header)
    headers = []
    for index, number in enumerate(order):
        place = np.asarray(position) + normal * spacing * (number - 1)
        headers.append(
            replace(
                header,
                frame=index,
                frames=frames,
                instance_number=index + 1,
                position=(float(place[0]), float(place[1]), float(place[2])),
                orientation=orientation,
                pixel_offset=header.pixel_offset + index * step if header.pixel_length >= 0 else header.pixel_offset,
                pixel_length=step if header.pixel_length >= 0 else -1,
                notes=(*header.notes, note),
            )
        )
    return tuple(headers), None


@quiet_pydicom()
def mosaic_headers(handle: BinaryIO, header: Header) -> tuple[tuple[Header, ...], Problem | None]:
    """Divide a Siemens mosaic into its slices, where the CSA header says how they lie."""
    from nibabel.nicom import csareader

    data = _read(handle, [_CSA_IMAGE, 0x00180088])
    tiles, normal = header.mosaic, None
    if _CSA_IMAGE in data:
        try:
            csa = csareader.read(bytes(data[_CSA_IMAGE].value))
            tiles = tiles or int(csareader.get_n_mosaic(csa) or 0)
            normal = csareader.get_slice_normal(csa)
        except (csareader.CSAReadError, ValueError, KeyError, IndexError, TypeError, AssertionError):
            normal = None
    spacing = _real(data.get("SpacingBetweenSlices"))
    side = math.isqrt(max(tiles - 1, 0)) + 1
    geometry = (header.position, header.orientation, header.pixel_spacing)
    known = normal is not None and tiles > 1 and all(part is not None for part in geometry)
    if not known or not spacing or header.rows % side or header.columns % side:
        return (), Problem(
            header.path,
            "mosaic",
            "it is a Siemens mosaic (many slices in one image) whose private header does not say how they lie.",
            "Convert the series with dcm2niix, or export it without private tags removed.",
        )
    position, orientation, pixel = (np.asarray(part, dtype=np.float64) for part in geometry)
    rows, columns = header.rows // side, header.columns // side
    # The position given is the one a single image of the mosaic's size would have around the same centre.
    first = position + orientation[:3] * pixel[1] * (header.columns - columns) / 2
    first = first + orientation[3:] * pixel[0] * (header.rows - rows) / 2
    note = (
        "mosaic",
        f"{tiles} slices were cut from a Siemens mosaic and placed {spacing:g} mm apart by its private header",
    )
    headers = []
    for index in range(tiles):
        place = first + np.asarray(normal, dtype=np.float64) * spacing * index
        headers.append(
            replace(
                header,
                frame=index,
                frames=tiles,
                mosaic=tiles,
                rows=rows,
                columns=columns,
                position=(float(place[0]), float(place[1]), float(place[2])),
                notes=(*header.notes, note),
            )
        )
    return tuple(headers), None


def _frame_bytes(header: Header) -> int:
    bits = {"float": 32, "double": 64}.get(header.pixel_kind, header.bits_allocated)
    return header.rows * header.columns * header.samples * bits // 8


def _read(handle: BinaryIO, tags: list[int]) -> Any:
    import pydicom

    handle.seek(0)
    return pydicom.dcmread(handle, stop_before_pixels=True, force=True, specific_tags=tags)


def _group_facts(item: Any) -> dict[str, Any]:
    """Return the fields of Header that one item of functional groups states."""
    facts: dict[str, Any] = {}
    if item is None:
        return facts
    for sequence, element, name, kind in _FACTS:
        group = item.get(sequence)
        if not group:
            continue
        value = _READERS[kind](group[0].get(element))
        if value is not None:
            facts[name] = value
    diffusion = item.get("MRDiffusionSequence")
    if diffusion and (gradient := diffusion[0].get("DiffusionGradientDirectionSequence")):
        direction = _reals(gradient[0].get("DiffusionGradientOrientation"), 3)
        if direction is not None:
            facts["diffusion"] = direction
    return facts


def _real(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "insert") else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _real(value)
    return None if number is None else int(number)


def _reals(value: Any, count: int) -> Any:
    try:
        numbers = tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(number) for number in numbers) else None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return "\\".join(str(part) for part in value) if hasattr(value, "insert") else str(value)


def _texts(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(str(part) for part in value) if hasattr(value, "insert") else (str(value),)


_READERS: dict[str, Callable[[Any], Any]] = {
    "real": _real,
    "whole": _whole,
    "text": _text,
    "texts": _texts,
    "2": lambda value: _reals(value, 2),
    "3": lambda value: _reals(value, 3),
    "6": lambda value: _reals(value, 6),
}
