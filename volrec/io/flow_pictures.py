"""Flow that others have estimated and stored as 8-bit pictures: ``flow_x_00001.jpg``, ``flow_y_00001.jpg`` ..

TSN, mmaction2 and the tools around them leave a folder a video; a value of 128 is no displacement
(`volrec.transforms.from_pictures` gives pixels, if one knows the bound that was used, mostly 20).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from volrec.errors import DataError

__all__ = ["read_flow_folder"]

_NAME = re.compile(r"flow_([xy])_(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)


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
    from PIL import Image

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            "there is no such folder of flow pictures.", remedy="Check the path.", where=folder, code="flow-pictures"
        )
    found: dict[str, dict[int, Path]] = {"x": {}, "y": {}}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        component, number = match[1].lower(), int(match[2])
        if number in found[component]:
            raise DataError(
                f"number {number} of component {component} is there twice, as {found[component][number].name} too.",
                remedy="Remove one of the two.",
                where=path,
                code="flow-pictures",
            )
        found[component][number] = path
    _check_numbers(folder, found)

    pairs = [(found["x"][number], found["y"][number]) for number in sorted(found["x"])]
    fields = np.empty((0, 2, 0, 0), dtype=np.uint8)
    for place, pair in enumerate(pairs):
        for component, path in enumerate(pair):
            try:
                with Image.open(path) as picture:
                    values = np.asarray(picture.convert("L"))
            except (OSError, SyntaxError, ValueError) as error:  # Pillow has a SyntaxError for broken PNG files.
                raise DataError(
                    f"the picture cannot be read ({error}).",
                    remedy="Extract the flow of this video again.",
                    where=path,
                    code="flow-pictures",
                ) from error
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


def _check_numbers(folder: Path, found: dict[str, dict[int, Path]]) -> None:
    numbers = sorted(set(found["x"]) | set(found["y"]))
    if not numbers:
        raise DataError(
            "the folder holds no flow pictures.",
            remedy="They are named flow_x_00001.jpg and flow_y_00001.jpg (or png).",
            where=folder,
            code="flow-pictures",
        )
    for number in range(min(1, numbers[0]), numbers[-1] + 1):
        for component in "xy":
            if number not in found[component]:
                like = next(iter(found["x"].values()), None) or next(iter(found["y"].values()))
                raise DataError(
                    f"number {number} of component {component} is missing, of {len(found['x'])} pictures of x and "
                    f"{len(found['y'])} of y.",
                    remedy="Extract the flow of this video again.",
                    where=folder / f"flow_{component}_{number:05d}{like.suffix}",
                    code="flow-pictures",
                )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
