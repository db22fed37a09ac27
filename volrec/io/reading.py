"""A path to a volume: a folder that holds one series, or one file."""

from __future__ import annotations

import os
from pathlib import Path

from volrec.errors import DataError
from volrec.io.assembly import assemble
from volrec.io.headers import FileScan
from volrec.io.scan import scan_file
from volrec.io.series import SET_ASIDE, Series, read_series
from volrec.io.volume import Volume

__all__ = ["read_volume"]


def read_volume(
    path: Path | str, *, slice_axis: str = "acquired", missing_slices: str = "quarantine", jobs: int = 1
) -> Volume:
    """Read a folder that holds one series, or one file.

    Parameters
    ----------
    path : path or str
        Folder of DICOM files of one series, or a file (NIfTI, multi-frame DICOM).
    slice_axis, missing_slices, jobs
        As in `read_series`.

    Returns
    -------
    Volume
        ``(1, T, H, W)`` in canonical orientation.

    Raises
    ------
    DataError
        No usable series, or several: they are named.
    """
    if not os.path.exists(path):
        raise DataError("there is no such file or folder.", remedy="Check the path.", where=path, code="not-found")
    scans = [scan_file(name) for name in _files_below(path)]
    series, _ = assemble(
        [header for scan in scans for header in scan.headers], root=path if os.path.isdir(path) else None
    )
    usable = [item for item in series if item.usable]
    # One image file that cannot be read may be a slice of the series: it is never skipped silently.
    faults = [scan.problem for scan in scans if scan.problem is not None and scan.problem.code not in SET_ASIDE]
    if len(usable) == 1 and not faults:
        volume = read_series(usable[0], slice_axis=slice_axis, missing_slices=missing_slices, jobs=jobs)
        for other in series:
            if not other.usable:
                fatal = next(problem for problem in other.problems if problem.fatal)
                volume.meta["assumptions"].append(
                    {"code": "other-series", "text": f"{_describe(other)} was left out: {fatal.reason}"}
                )
        return volume
    if faults:
        fault = faults[0]
        raise DataError(fault.reason, remedy=fault.remedy, where=fault.where, code=fault.code)
    if usable:
        names = "; ".join(_describe(item) for item in usable[:6])
        raise DataError(
            f"it holds {len(usable)} series ({names}).",
            remedy="Give the folder or file of one, or use volrec.index to choose.",
            where=path,
            code="several-series",
        )
    raise _nothing_usable(path, scans, series)


def _nothing_usable(path: Path | str, scans: list[FileScan], series: list[Series]) -> DataError:
    problems = [problem for item in series for problem in item.problems if problem.fatal]
    problems += [scan.problem for scan in scans if scan.problem is not None]
    if problems:
        first = next((problem for problem in problems if problem.code not in SET_ASIDE), problems[0])
        return DataError(first.reason, remedy=first.remedy, where=path, code=first.code)
    what = "the folder is empty" if not scans else f"none of {len(scans)} files is DICOM or NIfTI"
    return DataError(
        f"{what}.", remedy="Give a folder or file with a CT or MR volume.", where=path, code="nothing-found"
    )


def _files_below(path: Path | str) -> list[str]:
    if os.path.isfile(path):
        return [os.fspath(path)]
    found = []
    for folder, folders, files in os.walk(path):
        folders.sort()
        found += [os.path.join(folder, name) for name in sorted(files) if not name.startswith(".")]
    return found


def _describe(series: Series) -> str:
    sizes = "x".join(str(size) for size in series.shape)
    return f"{series.path}: {series.modality or series.kind} {series.orientation} {sizes}"
