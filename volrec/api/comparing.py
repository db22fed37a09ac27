"""Which of several runs is better, on the studies that both have scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.api.evaluating import naming_of, thresholds_of
from volrec.api.studies import Run, load
from volrec.errors import ConfigError, Problem, RunError

if TYPE_CHECKING:
    import pandas as pd

    from volrec.api.fusion import FusedRun
    from volrec.inference.joining import RunTable

__all__ = ["compare", "compare_runs"]


@dataclass(frozen=True, eq=False)
class _Contender:
    """A run that is compared.

    Attributes
    ----------
    named : RunTable
        Its scores with its names.
    run : Run or FusedRun
        The run.
    part : str
        ``"test"``, ``"validation"``, or ``"folder"`` for other studies: what the scores are of.
    thresholds : mapping, optional
        As for `volrec.evaluation.evaluate_scores`.
    decided : str
        Where the thresholds come from, in words.
    learned : DataFrame
        Rows of the splits that it learned or chose its weights from.
    """

    named: RunTable
    run: Run | FusedRun
    part: str
    thresholds: Any
    decided: str
    learned: pd.DataFrame


def compare(
    first: Path | str | Run | FusedRun,
    *others: Path | str | Run | FusedRun,
    folder: Path | str | None = None,
    labels: Path | str | None = None,
    include_training: bool = False,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Compare runs with the first on the same studies; see `compare_runs` for what is returned.

    Examples
    --------
    >>> found = volrec.compare("runs/c3d", "runs/lrcn")  # doctest: +SKIP
    >>> found["comparisons"][0]["verdict"]["sentence"]  # doctest: +SKIP
    "lrcn's AUC is higher by 0.040 [-0.010, 0.090] on 80 studies of 78 patients (p = 0.12): no difference is shown, …"
    """
    options: dict[str, Any] = {"labels": labels, "include_training": include_training, "resamples": resamples}
    return compare_runs([first, *others], folder, **options)[0]


def compare_runs(
    runs: Sequence[Path | str | Run | FusedRun],
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    include_training: bool = False,
    resamples: int = 1000,
) -> tuple[dict[str, Any], list[Problem]]:
    """Compare runs with the first of them, study by study.

    Parameters
    ----------
    runs : sequence of path, Run or FusedRun
        Two or more, trained on the same labels; their splits may differ, as long as they tested studies in common.
    folder, labels : path, optional
        Other studies and their table, scored by every run. Without them the runs' own test studies.
    include_training : bool
        Of other studies also those that a run was trained on.
    resamples : int
        Draws of patients behind the intervals.

    Returns
    -------
    comparison : dict
        JSON types only: ``runs`` (names), ``part``, ``decided`` (run to where its thresholds come from),
        ``comparisons`` (one a run after the first, as of `volrec.evaluation.compare_tables`), ``warnings`` (sentences
        on studies that a run learned from, on scores of validation studies, on the number of comparisons).
    problems : list of Problem
        Quarantined studies of the folder.

    Raises
    ------
    ConfigError
        Fewer than two runs, or labels without a folder.
    RunError
        A run twice or unfinished, runs that answer other questions or have no study in common.
    """
    from volrec.evaluation import compare_tables

    if len(runs) < 2:
        raise ConfigError(
            f"there is nothing to compare: {len(runs)} run given.",
            remedy="Name two or more runs.",
            where="compare",
            code="compare",
        )
    if labels is not None and folder is None:
        raise ConfigError(
            "labels without a folder are not read.",
            remedy="Name the folder of the studies with --folder.",
            where=labels,
            code="labels-unused",
        )
    opened = [load(run) if isinstance(run, (str, Path)) else run for run in runs]
    names = _names(opened)
    problems: list[Problem] = []
    contenders = []
    for run, name in zip(opened, names, strict=True):
        contender, found = _contender(run, name, folder, labels, include_training=include_training)
        contenders.append(contender)
        problems += [problem for problem in found if problem not in problems]
    first = contenders[0]
    comparisons = [
        compare_tables(first.named, other.named, thresholds=(first.thresholds, other.thresholds), resamples=resamples)
        for other in contenders[1:]
    ]
    return {
        "runs": list(names),
        "part": first.part,
        "decided": {one.named.name: one.decided for one in contenders},
        "comparisons": comparisons,
        "warnings": _warnings(contenders, include_training=include_training),
    }, problems


def _names(runs: Sequence[Run | FusedRun]) -> list[str]:
    """Return what runs are called: the names of their folders, or their paths where two have the same."""
    places = [run.path.resolve() for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise RunError(
                "this run is named twice.", remedy="Name another one.", where=runs[number].path, code="twice"
            )
    plain = [place.name for place in places]
    return [name if plain.count(name) == 1 else str(run.path) for name, run in zip(plain, runs, strict=True)]


def _contender(
    run: Run | FusedRun,
    name: str,
    folder: Path | str | None,
    labels: Path | str | None,
    *,
    include_training: bool,
) -> tuple[_Contender, list[Problem]]:
    from volrec.inference.joining import RunTable

    naming, problems, part = naming_of(run), list[Problem](), "folder"
    if folder is None:
        if isinstance(run, Run) and not run.folder.finished:
            raise RunError(
                "this run has not finished.",
                remedy=f"Go on with `{run.folder.resume_command}`.",
                where=run.path,
                code="unfinished",
            )
        table, part = run.scores, str(run.metrics.get("part") or "test")
    else:
        table, naming, problems = run._score_labelled(folder, labels, include_training=include_training)
    decided = thresholds_of(run, own=folder is None)
    named = RunTable(name, table, str(naming["task"]), tuple(naming["targets"]), tuple(naming["classes"]))
    return _Contender(named, run, part, decided.thresholds or None, decided.sentence, _learned(run, part)), problems


def _learned(run: Run | FusedRun, part: str) -> pd.DataFrame:
    """Return the rows of the splits that a run learned from; validation studies chose its weights."""
    splits = run.folder.read_table("splits") if isinstance(run, Run) else run.folder.table("splits")
    if isinstance(run, Run):
        splits = splits[splits["split"].isin([member.name for member in run.folder.finished_members()])]
    return splits[splits["part"].isin(["train"] if part == "validation" else ["train", "validation"])]


def _warnings(contenders: Sequence[_Contender], *, include_training: bool) -> list[str]:
    """Say what makes a comparison less fair than it looks."""
    found = []
    first = contenders[0]
    for one in contenders:
        if one.part == "validation":
            found.append(
                f"The scores of {one.named.name} are of validation studies, which chose its weights: they are too "
                "favourable."
            )
    for other in contenders[1:]:
        for tested, learner in ((first, other), (other, first)):
            found += _leak(tested, learner)
        if include_training and first.part == "folder":
            for one in (first, other) if other is contenders[1] else (other,):
                found += _trained_on(one)
    if len(contenders) > 2:
        count = len(contenders) - 1
        found.append(
            f"{count} runs are compared with {first.named.name}: of so many comparisons {0.05 * count:.2g} would be "
            "expected to differ by chance alone."
        )
    return found


def _leak(tested: _Contender, learner: _Contender) -> list[str]:
    """Say how many studies one run is tested on that the other learned from, and has no own test score of.

    Fused runs are refused for these (`volrec.inference.fused.check_leak`). Here they are in no comparison, as only
    studies that both have tested are; but the runs were divided differently, and that has to be known.
    """
    if tested.part == "folder":
        return []
    table = tested.named.table
    lacking = table[~table["study"].astype(str).isin(learner.named.table["study"].astype(str))]
    seen = _seen(lacking, learner)
    if not seen:
        return []
    return [
        f"{learner.named.name} learned from {seen} of the {len(table)} studies that {tested.named.name} is tested on, "
        "or from their patients: these are left out of the comparison. The runs were not divided alike."
    ]


def _trained_on(one: _Contender) -> list[str]:
    seen = _seen(one.named.table, one)
    if not seen:
        return []
    return [
        f"{one.named.name} learned from {seen} of the {len(one.named.table)} studies, or from their patients: its "
        "metrics are too favourable."
    ]


def _seen(table: pd.DataFrame, learner: _Contender) -> int:
    known = table["study"].astype(str).isin(learner.learned["study"].astype(str))
    if "patient" in table:
        known |= table["patient"].astype(str).isin(learner.learned["patient"].dropna().astype(str))
    return int(known.sum())
