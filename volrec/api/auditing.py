"""Whether a task, as a run's networks solve it, needs context across slices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volrec.api.evaluating import _labels_beside, _seen_in_training, seen_in_training
from volrec.errors import ConfigError, LabelsError, Problem, RunError

if TYPE_CHECKING:
    from volrec.api.fusion import FusedRun
    from volrec.api.studies import Run
    from volrec.inference.studies import Studies

__all__ = ["audit"]


def audit(
    run: Run | FusedRun | Path | str,
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    out: Path | str | None = None,
    studies: int = 100,
    seed: int = 0,
    shuffles: int = 3,
    outside: Literal["cut", "edge", "blank"] = "cut",
    places: int = 0,
    device: str = "auto",
    jobs: int = 0,
    include_training: bool = False,
    refresh: bool = False,
) -> dict[str, Any]:
    """Ask whether a run's networks use the order and the extent of slices.

    The same studies are scored as they are; with their slices shuffled, reversed, thinned and halved; and cut down to
    growing windows around what is most informative. See `volrec.evaluation.audit` for how windows are chosen, and
    `volrec.evaluation.audit_verdict` for the rules of the verdict.

    Parameters
    ----------
    run : Run, FusedRun or path
        A finished run.
    folder, labels : path, optional
        Other studies and their table (``labels.csv`` in the folder by default); without them the run's own test
        studies, each scored by the member that did not see it.
    out : path, optional
        Where ``audit.json``, ``audit.csv``, ``audit.svg`` and ``audit.png`` go; by default the run folder, for other
        studies ``audit-NAME`` in it.
    studies : int
        Most studies, as many of each class as can be; 0 takes all.
    seed : int
        Of the permutations and the choice of studies.
    shuffles : int
        Permutations a study, whose scores are averaged.
    outside : {"cut", "edge", "blank"}
        What stands in the place of slices outside a window: nothing (a study of the window alone), its outermost
        slices repeated, or an empty slice.
    places : int
        Most windows of one length a study; 0 takes 64 for networks that encode a slice once, 24 for others.
    device : str
        Where to compute.
    jobs : int
        Processes that decode what is not in the store any more.
    include_training : bool
        Of other studies, also score those of patients that the run was trained on.
    refresh : bool
        Score everything again, whatever is there.

    Returns
    -------
    dict
        As in ``audit.json``: ``conditions``, ``context``, ``verdict`` (``code``, ``sentence``) and how they were made.
        Studies that were left out are in ``problems``.

    Raises
    ------
    RunError
        A fused run, or labels other than those of the training.
    ConfigError, LabelsError, DataError
        As `volrec.evaluation.audit.audit_run`.

    Examples
    --------
    >>> found = volrec.audit("runs/c3d-label")  # doctest: +SKIP
    >>> found["verdict"]["sentence"]  # doctest: +SKIP
    'One slice alone gives AUC 0.49 [0.38, 0.61], all slices 1.00 [1.00, 1.00]: the task, as this network solves it, …'
    """
    from volrec.api.fusion import FusedRun
    from volrec.api.studies import load
    from volrec.evaluation.audit import AuditSettings, audit_run
    from volrec.inference.studies import open_run
    from volrec.report.audit_plot import audit_plot

    opened = load(run) if isinstance(run, (str, Path)) else run
    if isinstance(opened, FusedRun):
        raise RunError(
            "it is a fusion of several runs, each of which sees slices in its own way.",
            remedy="Audit the runs that it was made of, one by one.",
            where=opened.path,
            code="fused",
        )
    problems: list[Problem] = []
    settings = AuditSettings(seed=seed, shuffles=shuffles, outside=outside, places=places)
    if folder is None:
        if labels is not None:
            raise ConfigError(
                "labels are given, but no folder of studies.",
                remedy="Give both, or neither for the run's own test studies.",
                where="labels",
                code="parameter",
            )
        found, place = open_run(opened.folder, jobs=jobs), opened.path
    else:
        found, problems = _given(opened, folder, labels, jobs=jobs, include_training=include_training)
        place = opened.path / f"audit-{Path(folder).resolve().name}"
    place = Path(out) if out is not None else place
    result = audit_run(
        opened.folder,
        found,
        most=studies,
        device=None if device == "auto" else device,
        settings=settings,
        out=place,
        refresh=refresh,
    )
    audit_plot(result).save(place)
    return {**result, "problems": [*(problem.as_dict() for problem in problems), *result["problems"]]}


def _given(
    run: Run, folder: Path | str, labels: Path | str | None, *, jobs: int, include_training: bool
) -> tuple[Studies, list[Problem]]:
    """Return labelled studies of another folder, without those that training saw, and what was left out."""
    from volrec.data.index import index as scan
    from volrec.data.labels import join
    from volrec.data.splits import Split
    from volrec.inference.studies import open_studies

    config = run.config
    table = labels if labels is not None else _labels_beside(folder)
    data = config.data.model_copy(update={"folder": str(folder), "labels": str(table)})
    cohort = join(scan(folder, series=data.series, missing_slices=data.missing_slices), table, data)
    card = run.folder.finished_members()[0].card()
    known = (str(card["task"]), tuple(map(str, card["targets"])), tuple(map(str, card["classes"])))
    here = (str(cohort.task), tuple(cohort.targets), tuple(cohort.classes))
    if known != here:
        raise RunError(
            f"the run was trained with {known}, and the labels say {here}.",
            remedy="Give labels with the same columns and classes.",
            where=table,
            code="other-labels",
        )
    seen = set() if include_training else _seen_in_training(run.folder.read_table("splits"), cohort)
    left = tuple(case.study for case in cohort.cases if case.study not in seen)
    if not left:
        raise LabelsError(
            f"all {len(seen)} studies are of patients that this run was trained or validated on.",
            remedy="`volrec audit RUN` takes its own test studies; give other studies, or --include-training.",
            where=folder,
            code="leak",
        )
    found = open_studies(config.model_copy(update={"data": data}), [Split("given", (), (), left)], jobs=jobs)
    problems = list(found.problems)
    if seen:
        problems.append(seen_in_training(folder, len(seen), len(cohort.cases)))
    return found, problems
