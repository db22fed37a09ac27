"""Flow that others have estimated and stored as 8-bit pictures: ``flow_x_00001.jpg``, ``flow_y_00001.jpg`` ..

TSN, mmaction2 and the tools around them leave a folder a video; a value of 128 is no displacement
(`volrec.transforms.from_pictures` gives pixels, if one knows the bound that was used, mostly 20). Names of any count of
digits are read, from 1 (dense_flow) or from 0 (denseflow); ``x_00001.jpg``, ``y_00001.jpg`` too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from volrec.errors import DataError
from volrec.io.frame_folders import load_picture, number_pictures

__all__ = ["flow_files", "read_flow_folder"]

_NAMES = {"flow": r"(?:flow_)?{}_", "warped": r"warp_{}_"}
_NUMBER = r"(\d+)\.(?:jpg|jpeg|png)"
_ANY = re.compile(r"[a-z_-]*" + _NUMBER, re.IGNORECASE)


def read_flow_folder(folder: Path | str) -> np.ndarray:
    """Read the flow pictures of one video.

    Parameters
    ----------
    folder : path or str
        With ``flow_x_NUMBER`` and ``flow_y_NUMBER``, jpg or png, numbered from 1 (or from 0) without a gap. Other files
        are not looked at. A picture in colour is read as grey.

    Returns
    -------
    numpy.ndarray
        uint8 ``(T - 1, 2, H, W)``, x first, in the order of the numbers.

    Raises
    ------
    DataError
        Where there are no pictures, a number is missing or there twice, x and y do not go together, a size differs
        or a file cannot be read; it names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            "there is no such folder of flow pictures.", remedy="Check the path.", where=folder, code="flow-pictures"
        )
    pairs = flow_files(folder)
    if not pairs:
        raise DataError(
            "the folder holds no flow pictures.",
            remedy="They are named flow_x_00001.jpg and flow_y_00001.jpg (or png).",
            where=folder,
            code="flow-pictures",
        )
    fields = np.empty((0, 2, 0, 0), dtype=np.uint8)
    for place, pair in enumerate(pairs):
        for component, path in enumerate(pair):
            values = load_picture(path, mode="L")
            if not len(fields):
                fields = np.empty((len(pairs), 2, *values.shape), dtype=np.uint8)
            if values.shape != fields.shape[2:]:
                raise DataError(
                    f"the picture is {_size(values.shape)}, the first one of the folder {_size(fields.shape[2:])}.",
                    remedy="Extract the flow of this video again, all at one size.",
                    where=path,
                    code="flow-pictures",
                )
            fields[place, component] = values
    return fields


def flow_files(
    folder: Path, other: Path | None = None, *, stream: Literal["flow", "warped"] = "flow"
) -> list[tuple[Path, Path]]:
    """Return the pictures of flow of a video, x and y of each field, in the order of their numbers.

    Parameters
    ----------
    folder : Path
        With pictures of x and y; with `other` those of x alone, whatever they are called.
    other : Path, optional
        Folder of the pictures of y.
    stream : {"flow", "warped"}
        ``flow_x_NUMBER`` and ``flow_y_NUMBER``, or ``warp_x_NUMBER`` and ``warp_y_NUMBER``.

    Returns
    -------
    list of (Path, Path)
        None where there is no such picture.

    Raises
    ------
    DataError
        Where a number is missing or there twice, or x and y do not go together.
    """
    places = {"x": folder, "y": other or folder}
    patterns = {name: _ANY if other else _pattern(stream, name) for name in places}
    found = {
        name: number_pictures(place, patterns[name], what=f"number {{}} of component {name}", code="flow-pictures")
        for name, place in places.items()
    }
    _check_numbers(places, found)
    return [(found["x"][number], found["y"][number]) for number in sorted(found["x"])]


def _pattern(stream: str, component: str) -> re.Pattern[str]:
    return re.compile(_NAMES[stream].format(component) + _NUMBER, re.IGNORECASE)


def _check_numbers(places: dict[str, Path], found: dict[str, dict[int, Path]]) -> None:
    numbers = sorted(set(found["x"]) | set(found["y"]))
    for number in range(min(1, numbers[0]), numbers[-1] + 1) if numbers else ():
        for component in "xy":
            if number not in found[component]:
                like = next(iter(found["x"].values()), None) or next(iter(found["y"].values()))
                raise DataError(
                    f"number {number} of component {component} is missing, of {len(found['x'])} pictures of x and "
                    f"{len(found['y'])} of y.",
                    remedy="Extract the flow of this video again.",
                    where=places[component] / f"flow_{component}_{number:05d}{like.suffix}",
                    code="flow-pictures",
                )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
