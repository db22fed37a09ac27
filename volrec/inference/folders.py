"""A run applied to studies that were never stored: decoded ahead in bounded memory, scored, one row a study."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from volrec.errors import Problem, RunError
from volrec.inference.decoding import Facts, decode_and_score
from volrec.inference.differences import Learned, learned_from
from volrec.inference.members import LoadedMember, load_members
from volrec.inference.prediction import Options, Scored, common_contract, name_runs, predict_runs
from volrec.inference.predictor import StudyScore
from volrec.inference.protocols import ProtocolChanges
from volrec.inference.several import BY_MEMBER, ensemble_table, member_table
from volrec.inference.tables import score_table, target_values
from volrec.runs import RunFolder

if TYPE_CHECKING:
    from volrec.data.labels import Cohort

__all__ = ["predict_folder", "score_cohort", "score_studies"]


def predict_folder(
    run: RunFolder | Path | str,
    folder: Path | str,
    *,
    also: Sequence[RunFolder | Path | str] = (),
    out: Path | str | None = None,
    slices: bool = True,
    changes: ProtocolChanges | None = None,
    backend: Literal["torch", "onnxruntime"] = "torch",
    device: torch.device | str | None = None,
    jobs: int = 0,
    by_member: bool = False,
) -> tuple[pd.DataFrame, list[Problem]]:
    """Score every study of a folder with all finished members of a run, or of several runs.

    Memory does not grow with the number of studies, and with the length of a study by its own voxels alone.

    Parameters
    ----------
    run : RunFolder or path
        Its members' scores are averaged.
    folder : path
        DICOM or NIfTI studies, any layout.
    also : sequence of RunFolder or path
        More runs of the same question: each run has one vote, however many members it has.
    out : path, optional
        ``NAME.csv`` or ``NAME.json``: both are written, with ``NAME-slices.csv`` (where the network scores slices) and
        ``NAME-quarantine.csv`` (where anything was left out or assumed). While it works, what is done is kept in
        ``NAME-unfinished-….jsonl``: after an interruption the same call goes on.
    slices : bool
        Whether scores of slices are written.
    changes : ProtocolChanges, optional
        To the protocol of the run, for this prediction.
    backend : str
        What computes: ``"torch"`` or ``"onnxruntime"``.
    device : torch device or str, optional
        None takes the best there is.
    jobs : int
        Processes for reading headers and compressed pixels; 0 takes the processors at hand.
    by_member : bool
        A row a study and member instead of their average, with the member's name in a column ``fold``; of one run, and
        nothing is written.

    Returns
    -------
    DataFrame
        A row a study, see `volrec.inference.tables.prediction_table`.
    list of Problem
        What was assumed, and the studies that could not be read or scored: they are in no row. They are tried again
        when an interrupted prediction goes on.

    Raises
    ------
    RunError
        No run, or none of its members can be used; runs that answer different questions; a file that cannot be
        written.
    ConfigError
        An option that cannot be, by name.
    KeyboardInterrupt
        With a sentence on how to go on.
    """

    def each(scored: Scored) -> tuple[pd.DataFrame, list[Problem]]:
        return member_table(scored, 0), scored.runs[0].problems

    return predict_runs(
        name_runs([run, *also]),
        folder,
        combine=each if by_member else ensemble_table,
        options=Options(device=device, backend=backend, jobs=jobs, changes=changes or ProtocolChanges(), slices=slices),
        out=None if by_member else out,
    )


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
        A row a study: ``study, patient``, target columns, ``score_…, logit_…, clips, warning``.
    list of Problem
        The studies that could not be read or scored.

    Raises
    ------
    RunError
        The labels are not those that the run was trained on.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    members = load_members(run, device=device)
    contract = common_contract(run, members)
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
    learned = learned_from(run, contract.preprocess)
    with closing(_scored(members, cohort.cases, jobs=jobs, learned=learned)) as stream:
        for case, result, told in stream:
            if isinstance(result, Problem) or told is None:
                problems += [result] if isinstance(result, Problem) else []
                continue
            facts: dict[str, Any] = {"study": case.study, "patient": case.patient, **target_values(case, **naming)}
            facts["warning"] = told.warning
            if by_member:
                each = result.members or (result,)
                rows += [({**facts, "fold": member.name}, one) for member, one in zip(members, each, strict=True)]
            else:
                rows.append((facts, result))
    return score_table(rows, **naming, leading=BY_MEMBER if by_member else BY_MEMBER[:2]), problems


def score_studies(
    members: Sequence[LoadedMember], studies: Sequence[Any], *, jobs: int = 0
) -> Iterator[tuple[Any, StudyScore | Problem]]:
    """Decode and score studies one after another, the next one being decoded meanwhile.

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
    with closing(_scored(members, studies, jobs=jobs)) as stream:
        for study, result, _ in stream:
            yield study, result


def _scored(
    members: Sequence[LoadedMember], studies: Sequence[Any], *, jobs: int, learned: Learned | None = None
) -> Generator[tuple[Any, StudyScore | Problem, Facts | None], None, None]:
    return decode_and_score(
        members, studies, weights=[study.series.shape[0] for study in studies], jobs=jobs, learned=learned
    )


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
