"""How good a run is, on its own test studies or on others with labels; overall, and in groups of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.errors import ConfigError, LabelsError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from volrec.api.fusion import FusedRun
    from volrec.api.studies import Run
    from volrec.data.index import StudyIndex
    from volrec.data.labels import Cohort
    from volrec.runs import RunFolder

__all__ = [
    "Decided",
    "Evaluation",
    "evaluate",
    "evaluate_run",
    "naming_of",
    "own_labels",
    "score_labelled",
    "thresholds_of",
]


@dataclass(frozen=True)
class Decided:
    """From which score on a run calls something, and where that was chosen.

    Attributes
    ----------
    thresholds : mapping
        Fold (empty text for all studies) to output to threshold; empty where there is none, and 0.5 counts.
    sentence : str
        The same in words; empty for tasks without thresholds.
    """

    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sentence: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes
    ----------
    metrics : dict
        As of `volrec.evaluation.evaluate_scores`; under ``subgroups`` a table a column (`subgroup_table`).
    scores : DataFrame
        A row a study: what the metrics are of.
    decided : Decided
        Thresholds that sensitivity, specificity, accuracy and F1 rest on.
    problems : list of Problem
        Quarantined studies, and those left out because training saw them.
    """

    metrics: dict[str, Any]
    scores: pd.DataFrame
    decided: Decided
    problems: list[Problem]


def evaluate_run(
    run: Run | FusedRun,
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    include_training: bool = False,
    by: Sequence[str] = (),
    resamples: int | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """Evaluate a run on its own test studies, or on another folder with labels.

    Parameters
    ----------
    run, folder, labels, include_training, by, resamples
        As for `evaluate`.

    Returns
    -------
    metrics : dict
        As `volrec.evaluation.evaluate_scores` gives them, and ``subgroups``.
    problems : list of Problem
        Quarantined studies, and those left out because training saw them.

    Raises
    ------
    LabelsError
        When training saw every study, or for a column that makes no groups.
    """
    found = evaluate(run, folder, labels=labels, include_training=include_training, by=by, resamples=resamples)
    return found.metrics, found.problems


def evaluate(
    run: Run | FusedRun,
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    include_training: bool = False,
    by: Sequence[str] = (),
    resamples: int | None = None,
) -> Evaluation:
    """Evaluate a run, overall and in groups of studies, and keep what it rests on.

    Parameters
    ----------
    run : Run or FusedRun
        A finished run.
    folder : path, optional
        Other studies; without it the run's own test studies.
    labels : path, optional
        Table of labels of the folder. Without a folder: where the columns `by` are read from, if the run's own table
        is not where it was, or does not have them.
    include_training : bool
        Score studies of patients that the run was trained on, too. By default they are left out, which is said: a
        test on what training saw proves nothing.
    by : sequence of str
        Columns of the table of labels that make groups (sex, site, scanner, age).
    resamples : int, optional
        Draws of patients behind the intervals; default 1000. Of the run's own studies the metrics are taken as they
        stand in its folder, unless a number is given, or they rest on other thresholds than the run carries.

    Raises
    ------
    LabelsError
        When training saw every study, or for a column that makes no groups.
    ConfigError
        Labels without a folder or columns.
    """
    from volrec.evaluation import evaluate_scores, subgroup_table

    draws = 1000 if resamples is None else resamples
    naming: dict[str, Any]
    problems: list[Problem] = []
    if folder is None:
        _check_labels_used(labels, by)
        scores, naming = run.scores, naming_of(run)
        decided = thresholds_of(run, own=True)
        thresholds = decided.thresholds or None
        metrics = dict(run.metrics)
        if resamples is not None or _other_thresholds(metrics, decided):
            part = metrics.get("part", "test")
            found = evaluate_scores(scores, **naming, thresholds=thresholds, resamples=draws)
            metrics |= found | {part: found["metrics"]}
    else:
        scores, naming, problems = run._score_labelled(folder, labels, include_training=include_training)
        decided = thresholds_of(run, own=False)
        thresholds = decided.thresholds or None
        metrics = evaluate_scores(scores, **naming, thresholds=thresholds, resamples=draws)
    if by:
        cells = _columns(run, scores, by, folder=folder, labels=labels)
        metrics["subgroups"] = {
            name: subgroup_table(scores, name, values=values, **naming, thresholds=thresholds, resamples=draws)
            for name, values in cells.items()
        }
    return Evaluation(metrics, scores, decided, problems)


def naming_of(run: Run | FusedRun) -> dict[str, Any]:
    """Return ``task, classes, targets`` of a run."""
    from volrec.inference.fused import FusedFolder

    if isinstance(run.folder, FusedFolder):
        rule = run.folder.rule
        return {"task": rule.task, "classes": list(rule.classes), "targets": list(rule.targets)}
    card = run.folder.finished_members()[0].card()
    return {"task": str(card["task"]), **{key: list(map(str, card[key])) for key in ("classes", "targets")}}


def thresholds_of(run: Run | FusedRun, *, own: bool) -> Decided:
    """Return the thresholds that a run carries: chosen on validation studies, written in the cards of its members.

    Parameters
    ----------
    run : Run or FusedRun
        A fused run carries none.
    own : bool
        For its own studies, each scored by one member: that member's. Else for all members together: their mean.
    """
    from volrec.inference.fused import FusedFolder

    task = naming_of(run)["task"]
    if task not in ("binary", "multilabel"):
        return Decided(sentence="" if task == "regression" else "The class with the highest score is called.")
    if isinstance(run.folder, FusedFolder):
        return Decided(sentence="Called from 0.5 on: a fused run carries no thresholds.")
    members = run.folder.finished_members()
    decisions = {member.name: member.card().get("decision") for member in members}
    carried = {name: one for name, one in decisions.items() if one}
    if len(carried) < len(decisions):
        return Decided(sentence="Called from 0.5 on: this run carries no thresholds of its own.")
    by_fold = {name: {str(key): float(cut) for key, cut in one["thresholds"].items()} for name, one in carried.items()}
    outputs = list(dict.fromkeys(key for cuts in by_fold.values() for key in cuts))
    mean = {key: sum(cuts.get(key, 0.5) for cuts in by_fold.values()) / len(by_fold) for key in outputs}
    rules = {str(one.get("rule")) for one in carried.values()}
    how = _rule(next(iter(carried.values()))) if len(rules) == 1 else "as each member's card says"
    if own and len(by_fold) > 1:
        shown = ", ".join(
            f"{key} from {_span([cuts.get(key, 0.5) for cuts in by_fold.values()])} on" for key in outputs
        )
        return Decided(by_fold, f"Called: {shown} (each fold has its own; {how}).{_caution(run)}")
    shown = ", ".join(f"{key} from {cut:.3g} on" for key, cut in mean.items())
    of = f", the mean of {len(by_fold)} members" if len(by_fold) > 1 else ""
    return Decided({"": mean}, f"Called: {shown}{of} ({how}).{_caution(run) if own else ''}")


def _caution(run: Run | FusedRun) -> str:
    """Say that a run without test studies is measured on those that chose its thresholds; empty where it has some."""
    if run.metrics.get("part") != "validation":
        return ""
    return " These very studies chose them: expect less on others."


def own_labels(run: Run | FusedRun) -> tuple[Path | None, StudyIndex | None]:
    """Return the table of labels that a run was trained with and its folder of studies, None for what is gone.

    The headers are read again, most of them from the cache; no volume is.
    """
    from volrec.data.index import index as scan

    data = _first_folder(run).config.data
    table = None if data.labels is None else Path(data.labels)
    there = data.folder is not None and Path(data.folder).is_dir()
    found = scan(data.folder, series=data.series, missing_slices=data.missing_slices) if there else None
    return (table if table is not None and table.is_file() else None), found


def _first_folder(run: Run | FusedRun) -> RunFolder:
    """Return the run itself, or the first that is fused: its settings choose series and read labels."""
    from volrec.inference.fused import FusedFolder

    return run.folder.sources()[0].run if isinstance(run.folder, FusedFolder) else run.folder


def _columns(
    run: Run | FusedRun,
    scores: pd.DataFrame,
    by: Sequence[str],
    *,
    folder: Path | str | None,
    labels: Path | str | None,
) -> dict[str, dict[str, str]]:
    """Return the cells of the columns, by study."""
    from volrec.data.index import index as scan
    from volrec.data.label_columns import columns_of

    if folder is None:
        known, found = own_labels(run)
        table = known if labels is None else Path(labels)
        if table is None:
            raise LabelsError(
                "the table of labels that this run was trained with is not where it was.",
                remedy="Name it with --labels.",
                where=run.path,
                code="labels-gone",
            )
    else:
        table = Path(labels) if labels is not None else _labels_beside(folder)
        data = _first_folder(run).config.data
        found = scan(folder, series=data.series, missing_slices=data.missing_slices)
    patients = scores["patient" if "patient" in scores else "study"].astype(str)
    studies = dict(zip(scores["study"].astype(str), patients, strict=True))
    return columns_of(table, list(by), studies=studies, index=found)


def _check_labels_used(labels: Path | str | None, by: Sequence[str]) -> None:
    if labels is not None and not by:
        raise ConfigError(
            "labels without a folder are read for the columns of --by only.",
            remedy="Name the folder of the studies that they belong to, or columns.",
            where=labels,
            code="labels-unused",
        )


def _other_thresholds(metrics: Mapping[str, Any], decided: Decided) -> bool:
    """Whether metrics as they stand in a run rest on other thresholds than its cards carry."""
    if not decided.thresholds:
        return False
    used = metrics.get("thresholds") or {"": {}}
    carried = {fold: decided.thresholds.get(fold, decided.thresholds.get("", {})) for fold in used}
    return {fold: dict(cuts) for fold, cuts in used.items()} != {fold: dict(cuts) for fold, cuts in carried.items()}


def _rule(decision: Mapping[str, Any]) -> str:
    at = decision.get("at")
    return {
        "youden": "the best mean of sensitivity and specificity on validation studies",
        "sensitivity": f"the highest that reaches sensitivity {at} on validation studies",
        "specificity": f"the lowest that reaches specificity {at} on validation studies",
    }.get(str(decision.get("rule")), "fixed")


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


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
        problems.append(seen_in_training(folder, len(seen), len(cohort.cases)))
    naming = {"task": cohort.task, "classes": cohort.classes, "targets": cohort.targets}
    return scores, naming, [*found.problems, *cohort.problems, *problems]


def seen_in_training(folder: Path | str, seen: int, studies: int) -> Problem:
    """Return the line on studies that were left out because training saw their patients."""
    return Problem(
        str(folder),
        "seen-in-training",
        f"{seen} of {studies} studies are of patients that this run was trained or validated on: left out.",
        "--include-training scores them all the same.",
        fatal=False,
    )


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
