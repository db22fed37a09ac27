"""A run applied to studies that were never stored: decoded ahead in bounded memory, scored, one row a study."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from volrec.data.entries import StoredVolume
from volrec.data.store import HasSeries, preprocess_volume
from volrec.data.streams import add_streams, check_streams
from volrec.errors import DataError, Problem, RunError, VolrecError
from volrec.inference.members import Contract, LoadedMember, load_members
from volrec.inference.predictor import Ensemble, StudyScore
from volrec.inference.tables import score_table, target_values
from volrec.io import Series, read_series
from volrec.parallel import available_cpus
from volrec.progress import progress
from volrec.runs import RunFolder

if TYPE_CHECKING:
    from volrec.data.index import StudyRecord
    from volrec.data.labels import Cohort

__all__ = ["predict_folder", "score_cohort", "score_studies"]

log = logging.getLogger(__name__)

AHEAD = 2
"""Studies decoded while one is scored: what is held in memory does not grow with their number."""


LEADING = ("study", "patient")
BY_MEMBER = (*LEADING, "fold")


@dataclass(frozen=True)
class _Chosen:
    """A study with the series that suits the run."""

    study: str
    patient: str
    series: Series


def predict_folder(
    run: RunFolder | Path | str,
    folder: Path | str,
    *,
    device: torch.device | str | None = None,
    jobs: int = 0,
    by_member: bool = False,
) -> tuple[pd.DataFrame, list[Problem]]:
    """Score every study of a folder with all finished members of a run.

    Parameters
    ----------
    run : RunFolder or path
        Its members' scores are averaged.
    folder : path
        DICOM or NIfTI studies, any layout.
    device : torch device or str, optional
        None takes the best there is.
    jobs : int
        Processes for reading headers and compressed pixels; 0 takes the processors at hand.
    by_member : bool
        A row a study and member instead of their average, with the member's name in a column ``fold``.

    Returns
    -------
    DataFrame
        A row a study: ``study, patient, score_…, logit_…, clips, warning``. The warning says where a study differs from
        those of the training, and is empty otherwise.
    list of Problem
        What was assumed, and the studies that could not be read or scored: they are in no row.

    Raises
    ------
    RunError
        No run, or none of its members can be used.
    """
    from volrec.data.index import index

    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    members = load_members(run, device=device)
    contract = _common(run, members)
    found = index(folder, series=contract.series, missing_slices=contract.missing_slices, jobs=jobs)
    studies = [_suited(record, contract) for record in found.studies]
    problems = list(found.problems)
    rows: list[tuple[dict[str, Any], StudyScore]] = []
    for study, result in score_studies(members, studies, jobs=jobs):
        if isinstance(result, Problem):
            problems.append(result)
            continue
        facts = {"study": study.study, "patient": study.patient, "warning": _warning(study.series, contract)}
        rows += _rows(facts, result, members, by_member=by_member)
    naming: dict[str, Any] = {"task": contract.task, "classes": contract.classes, "targets": contract.targets}
    table = score_table(rows, **naming, leading=BY_MEMBER if by_member else LEADING)
    if "warning" not in table:
        table["warning"] = pd.Series(dtype=str)
    return table, problems


def score_cohort(
    run: RunFolder | Path | str,
    cohort: Cohort,
    *,
    device: torch.device | str | None = None,
    jobs: int = 0,
    by_member: bool = False,
) -> tuple[pd.DataFrame, list[Problem]]:
    """Score labelled studies with all finished members of a run.

    Parameters
    ----------
    run, device, jobs, by_member
        As for `predict_folder`.
    cohort : Cohort
        Studies with labels; task, targets and classes must be the run's.

    Returns
    -------
    DataFrame
        As of `predict_folder`, with the target columns.
    list of Problem
        The studies that could not be read or scored.

    Raises
    ------
    RunError
        The labels are not those that the run was trained on.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    members = load_members(run, device=device)
    contract = _common(run, members)
    for name, ours, theirs in (
        ("task", contract.task, cohort.task),
        ("targets", contract.targets, tuple(cohort.targets)),
        ("classes", contract.classes, tuple(cohort.classes)),
    ):
        if ours != theirs:
            raise RunError(
                f"the run was trained with {name} {_shown(ours)}, the labels have {_shown(theirs)}.",
                remedy="Give labels with the same columns and classes, or use `volrec predict`.",
                where=run.path,
                code="other-labels",
            )
    rows: list[tuple[dict[str, Any], StudyScore]] = []
    problems: list[Problem] = []
    naming: dict[str, Any] = {"task": contract.task, "classes": contract.classes, "targets": contract.targets}
    for case, result in score_studies(members, cohort.cases, jobs=jobs):
        if isinstance(result, Problem):
            problems.append(result)
            continue
        facts: dict[str, Any] = {"study": case.study, "patient": case.patient, **target_values(case, **naming)}
        facts["warning"] = _warning(case.series, contract)
        rows += _rows(facts, result, members, by_member=by_member)
    return score_table(rows, **naming, leading=BY_MEMBER if by_member else LEADING), problems


def score_studies(
    members: Sequence[LoadedMember], studies: Sequence[Any], *, jobs: int = 0
) -> Iterator[tuple[Any, StudyScore | Problem]]:
    """Decode and score studies one after another, the next ones being decoded meanwhile.

    Parameters
    ----------
    members : sequence of LoadedMember
        Averaged; all of one run, so that they read the same volumes.
    studies : sequence of Case or StudyRecord
        Each with ``study`` and ``series``.
    jobs : int
        Processes that decode compressed slices; 0 takes the processors at hand.

    Yields
    ------
    study, StudyScore or Problem
        In the order given; a study that cannot be read or scored gives its problem.

    Raises
    ------
    ConfigError
        What the streams of the run need is not here: a package, or the folder of flow pictures.
    """
    ensemble = Ensemble([member.predictor for member in members])
    contract = members[0].contract
    check_streams(contract.streams, trained_on=str(members[0].card.get("field_source") or ""))
    jobs = jobs if jobs > 0 else available_cpus()
    waiting: deque[tuple[HasSeries, Future[StoredVolume]]] = deque()
    todo = iter(studies)
    with progress("scoring studies", len(studies)) as bar, ThreadPoolExecutor(1) as pool:
        try:
            while True:
                for study in todo:
                    waiting.append((study, pool.submit(_decode, study, contract, jobs)))
                    if len(waiting) > AHEAD:
                        break
                if not waiting:
                    return
                study, volume = waiting.popleft()
                result: StudyScore | Problem
                try:
                    result = ensemble.score(volume.result())
                except Exception as error:  # noqa: BLE001 - one bad study never stops a folder
                    result = _problem(study, error)
                del volume  # the next study is being decoded: this one's voxels are not needed any more
                bar.advance()
                yield study, result
        finally:
            for _, volume in waiting:
                volume.cancel()


def _rows(
    facts: dict[str, Any], result: StudyScore, members: Sequence[LoadedMember], *, by_member: bool
) -> list[tuple[dict[str, Any], StudyScore]]:
    """Return the row of a study, or one for each member."""
    if not by_member:
        return [(facts, result)]
    each = result.members or (result,)
    return [({**facts, "fold": member.name}, one) for member, one in zip(members, each, strict=True)]


def _decode(study: HasSeries, contract: Contract, jobs: int) -> StoredVolume:
    volume = read_series(
        study.series, slice_axis=contract.preprocess.slice_axis, missing_slices=contract.missing_slices, jobs=jobs
    )
    stored = preprocess_volume(volume, contract.preprocess)
    return add_streams(stored, contract.streams, contract.intensity, study=study.study)


def _problem(study: HasSeries, error: Exception) -> Problem:
    if not isinstance(error, VolrecError):
        error = DataError(
            f"it could not be scored ({type(error).__name__}: {error}).",
            remedy="Open it in a viewer to see whether the file is sound; if it is, please report this.",
            code="unexpected",
        )
    log.warning("%s is left out: %s", study.study, error)
    return Problem.of(error, where=error.where or study.series.path, study=study.study)


def _common(run: RunFolder, members: Sequence[LoadedMember]) -> Contract:
    """Return the contract of all members; those of one run share it."""
    contract = members[0].contract
    other = next((member for member in members if member.contract != contract), None)
    if other is not None:
        raise RunError(
            f"its members {members[0].name} and {other.name} were not trained alike.",
            remedy="Keep the members of one training in a run folder.",
            where=run.path,
            code="mixed-members",
        )
    return contract


def _suited(record: StudyRecord, contract: Contract) -> _Chosen:
    """Take the study's chosen series, or one of the modality that the run was trained on, where it has one."""
    series = record.series
    if contract.modality and series.modality != contract.modality:
        fitting = (one for one in record.alternatives if one.modality == contract.modality)
        series = next((one for one in fitting if one.usable and not one.localizer), series)
    return _Chosen(record.study, record.patient, series)


def _warning(series: Series, contract: Contract) -> str:
    if contract.modality and series.modality and series.modality != contract.modality:
        return f"modality {series.modality}; the run was trained on {contract.modality}"
    return ""


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
