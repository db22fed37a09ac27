"""The whole report of a run: what is asked of its networks once more (context, where they looked), then the page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.errors import VolrecError
from volrec.report.findings import gather
from volrec.report.gallery import make_gallery
from volrec.report.html import write_report

if TYPE_CHECKING:
    from volrec.inference.studies import Studies
    from volrec.runs import RunFolder

__all__ = ["Made", "complete_report"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """A report that was written.

    Attributes
    ----------
    path : Path
        ``report.html``.
    audit : dict, optional
        What the context audit found.
    notes : tuple of str
        What could not be shown, and why.
    """

    path: Path
    audit: dict[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())


def complete_report(
    run: RunFolder,
    *,
    audit: bool | None = None,
    gallery: int | None = None,
    method: str | None = None,
    device: str | None = None,
    refresh: bool = False,
    notes: Sequence[str] = (),
) -> Made:
    """Audit a finished run, draw where it looked, and write its report with figures and model card.

    What was done before with the same weights and settings is taken over, so an interrupted report goes on. A part that
    cannot be made (the studies are gone, the network has no such map) is left out, and the report says why: a training
    that succeeded is not lost over its report.

    Parameters
    ----------
    run : RunFolder
        A finished run.
    audit : bool, optional
        Whether to audit the use of context; None: as the run's configuration says.
    gallery : int, optional
        Studies shown of each kind; None: as the configuration says.
    method : str, optional
        Map of the gallery; None: as the configuration says.
    device : str, optional
        Where to compute; None takes the best there is.
    refresh : bool
        Do everything again.
    notes : sequence of str
        What could not be shown so far: stands with the others.

    Returns
    -------
    Made
        Paths and notes.
    """
    wanted = run.config.report
    each = wanted.gallery if gallery is None else gallery
    write_report(run)  # whatever comes, there is a report from here on
    try:
        found, missing = _evidence(
            run,
            audit=wanted.audit if audit is None else audit,
            each=each,
            method=method or wanted.method,
            device=device,
            refresh=refresh,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Interrupted. The training is complete and {run.report_path} shows it; `volrec report {run.path}` goes on "
            "with what the report lacks."
        ) from None
    told = (*notes, *missing)
    return Made(write_report(run, notes=told, files=True), found, told)


def _evidence(
    run: RunFolder, *, audit: bool, each: int, method: str, device: str | None, refresh: bool
) -> tuple[dict[str, Any] | None, list[str]]:
    """Audit and explain; return what the audit found, and what could not be done."""
    studies = _Opened(run)
    notes: list[str] = []
    found: dict[str, Any] | None = None
    if audit:
        found = _attempt(
            "The context audit", notes, lambda: _audit(run, studies.open(), device=device, refresh=refresh)
        )
    if each and gather(run).scores is not None:
        _attempt(
            "The gallery",
            notes,
            lambda: make_gallery(run, studies.open(), each=each, method=method, device=device, refresh=refresh),
        )
    return found, notes


class _Opened:
    """The studies of a run, read once and only where a part needs them."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.studies: Studies | None = None

    def open(self) -> Studies:
        """Return them."""
        from volrec.inference.studies import open_run

        if self.studies is None:
            self.studies = open_run(self.run)
        return self.studies


def _audit(run: RunFolder, studies: Studies, *, device: str | None, refresh: bool) -> dict[str, Any]:
    from volrec.evaluation.audit import audit_run

    return audit_run(run, studies, most=run.config.report.audit_studies, device=device, refresh=refresh)


def _attempt(what: str, notes: list[str], work: Any) -> Any:
    """Do a part of the report; what it fails for becomes a note."""
    try:
        return work()
    except (VolrecError, OSError) as error:
        reason = f"{error.problem} {error.remedy}" if isinstance(error, VolrecError) else str(error)
        note = f"{what} could not be made: {reason}".strip()
        log.warning("%s", note)
        notes.append(note)
        return None
