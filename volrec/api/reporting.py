"""The report of a run: made at the end of a training, and made again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.errors import RunError, VolrecError

if TYPE_CHECKING:
    from volrec.report.making import Made
    from volrec.runs import RunFolder

__all__ = ["make_report", "report_run"]

log = logging.getLogger(__name__)


def make_report(
    path: Path | str,
    *,
    by: Sequence[str] | str | None = None,
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
    by : sequence of str, optional
        Columns of the labels file that make groups of studies; None: as configured.
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
    from volrec.runs import RunFolder

    run = RunFolder.open(path)
    if not run.finished:
        raise RunError(
            "this run has not finished.", remedy=f"Go on with `{run.resume_command}`.", where=path, code="unfinished"
        )
    where = None if device == "auto" else device
    return report_run(run, by=by, audit=audit, gallery=gallery, method=method, device=where, refresh=refresh)


def report_run(run: RunFolder, *, by: Sequence[str] | str | None = None, **given: Any) -> Made:
    """Look at groups of studies, where any are asked for, then write the report (see `make_report`)."""
    from volrec.report.making import complete_report

    columns = run.config.report.by if by is None else [by] if isinstance(by, str) else list(by)
    notes = _write_subgroups(run, columns) if columns else []
    return complete_report(run, notes=notes, **given)


def _write_subgroups(run: RunFolder, columns: Sequence[str]) -> list[str]:
    """Write what becomes of the metrics in groups of studies, column by column; return what could not be done."""
    from volrec.api.evaluating import evaluate_run
    from volrec.api.studies import Run

    notes, tables = [], []
    for column in columns:
        try:
            metrics, _ = evaluate_run(Run(run), by=[column])
        except VolrecError as error:
            notes.append(f"Groups by {column} could not be made: {error.problem} {error.remedy}".strip())
            log.warning("%s", notes[-1])
        else:
            tables += metrics["subgroups"].values()
    if tables:  # else what was found before stays: the labels file may have moved
        run.write_facts("subgroups", {"columns": tables})
    return notes
