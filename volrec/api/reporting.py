"""The report of a run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from volrec.errors import RunError

if TYPE_CHECKING:
    from volrec.report.making import Made

__all__ = ["make_report"]


def make_report(
    path: Path | str,
    *,
    audit: bool | None = None,
    gallery: int | None = None,
    method: str | None = None,
    device: str = "auto",
    refresh: bool = False,
) -> Made:
    """Write the report of a finished run again, with what it lacks.

    Parameters
    ----------
    path : path
        Run folder of `volrec train`.
    audit : bool, optional
        Whether to audit the use of context; None: as the run was configured.
    gallery : int, optional
        Studies of each kind (worst, most uncertain, best) with a map of where the network looked; None: as configured.
    method : str, optional
        The map; None: as configured.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    refresh : bool
        Audit and explain again what was done with the same weights.

    Returns
    -------
    Made
        ``path`` of the page, ``audit``, and ``notes`` on what could not be shown.

    Raises
    ------
    RunError
        No run, or one that has not finished.
    """
    from volrec.report.making import complete_report
    from volrec.runs import RunFolder

    run = RunFolder.open(path)
    if not run.finished:
        raise RunError(
            "this run has not finished.", remedy=f"Go on with `{run.resume_command}`.", where=path, code="unfinished"
        )
    return complete_report(
        run, audit=audit, gallery=gallery, method=method, device=None if device == "auto" else device, refresh=refresh
    )
