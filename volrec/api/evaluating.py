"""How good a run is, on its own test studies or on others with labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.errors import ConfigError, LabelsError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from volrec.api.fusion import FusedRun
    from volrec.api.studies import Run
    from volrec.data.labels import Cohort

__all__ = ["evaluate_run", "score_labelled"]


def evaluate_run(
    run: Run | FusedRun,
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    include_training: bool = False,
) -> tuple[dict[str, Any], list[Problem]]:
    """Evaluate a run on its own test studies, or on another folder with labels.

    Parameters
    ----------
    run : Run or FusedRun
        A finished run.
    folder, labels : path, optional
        Other studies and their table.
    include_training : bool
        Score studies of patients that the run was trained on, too. By default they are left out, which is said: a
        test on what training saw proves nothing.

    Returns
    -------
    metrics : dict
        As `volrec.evaluation.evaluate_scores` gives them.
    problems : list of Problem
        Quarantined studies, and those left out because training saw them.

    Raises
    ------
    LabelsError
        When training saw every study.
    """
    from volrec.evaluation import evaluate_scores

    if folder is None:
        return run.metrics, []
    scores, naming, problems = run._score_labelled(folder, labels, include_training=include_training)
    return evaluate_scores(scores, **naming), problems


def score_labelled(
    run: Run,
    folder: Path | str,
    labels: Path | str | None,
    *,
    splits: pd.DataFrame | None,
    by_member: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any], list[Problem]]:
    """Score the studies of a folder that have a label.

    Parameters
    ----------
    run : Run
        A run; its settings choose series and read labels.
    folder, labels : path
        Studies; their table, or None for ``labels.csv`` in the folder.
    splits : DataFrame, optional
        Studies and patients that these splits trained or validated on are left out, which is said.
    by_member : bool
        As for `volrec.inference.score_cohort`.

    Returns
    -------
    table : DataFrame
        As of `volrec.inference.score_cohort`.
    naming : dict
        ``task, classes, targets``.
    problems : list of Problem
        Quarantined studies, and a line on those left out.

    Raises
    ------
    LabelsError
        When training saw every study.
    """
    from volrec.data.index import index as scan
    from volrec.data.labels import join
    from volrec.inference import score_cohort

    config = run.config
    table = labels if labels is not None else _labels_beside(folder)
    data = config.data.model_copy(update={"folder": str(folder), "labels": str(table)})
    found = scan(folder, series=config.data.series, missing_slices=config.data.missing_slices)
    cohort = join(found, table, data)
    seen = set() if splits is None else _seen_in_training(splits, cohort)
    left = tuple(case for case in cohort.cases if case.study not in seen)
    if not left:
        raise LabelsError(
            f"all {len(seen)} studies are of patients that this run was trained or validated on.",
            remedy="`volrec evaluate RUN` shows its own test studies; give other studies, or --include-training.",
            where=folder,
            code="leak",
        )
    scores, problems = score_cohort(run.folder, replace(cohort, cases=left), by_member=by_member)
    if seen:
        problems.append(
            Problem(
                str(folder),
                "seen-in-training",
                f"{len(seen)} of {len(cohort.cases)} studies are of patients that this run was trained or validated "
                "on: left out.",
                "--include-training scores them all the same.",
                fatal=False,
            )
        )
    naming = {"task": cohort.task, "classes": cohort.classes, "targets": cohort.targets}
    return scores, naming, [*found.problems, *cohort.problems, *problems]


def _seen_in_training(splits: pd.DataFrame, cohort: Cohort) -> set[str]:
    """Return the studies that any member of the run learned or chose its weights from, by study and patient."""
    used = splits[splits["part"] != "test"]
    studies, patients = set(used["study"]), set(used["patient"])
    return {case.study for case in cohort.cases if case.study in studies or case.patient in patients}


def _labels_beside(folder: Path | str) -> Path:
    beside = Path(folder) / "labels.csv"
    if beside.is_file():
        return beside
    raise ConfigError("no table of labels is named.", remedy="Give one with --labels labels.csv.", where=folder)
