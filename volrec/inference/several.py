"""One table of what one run, or several, say of the same studies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.errors import Problem, RunError
from volrec.inference.consensus import inverse_link
from volrec.inference.decision import Decision, combine
from volrec.inference.joining import RunTable, check_alike, some_names
from volrec.inference.predictor import StudyScore
from volrec.inference.tables import prediction_table, score_columns, score_table
from volrec.inference.uncertainty import uncertainty

if TYPE_CHECKING:
    import pandas as pd

    from volrec.inference.journal import StudyRow
    from volrec.inference.prediction import Scored, ScoredRun

__all__ = ["common_studies", "ensemble_table", "member_table", "merged_problems", "merged_warnings", "slice_rows"]

BY_MEMBER = ("study", "patient", "fold")


def ensemble_table(scored: Scored) -> tuple[pd.DataFrame, list[Problem]]:
    """Return a row a study: the mean of the runs, each run (the mean of its members) with one vote.

    Outputs are joined by name: the order of classes and targets in a run does not matter, and a binary run whose
    positive class is the other's negative counts for that.

    Returns
    -------
    DataFrame
        See `volrec.inference.tables.prediction_table`; in the order of the folder.
    list of Problem
        Those of the runs, and one a study that some run left without a score.

    Raises
    ------
    RunError
        The runs answer different questions.
    """
    runs, first = scored.runs, scored.runs[0]
    check_together(runs)
    common, problems = common_studies(
        {run.name: run.studies for run in runs}, {run.name: run.problems for run in runs}, code="not-scored"
    )
    decision = _decision(runs)
    found = []
    for study in (study for study in first.studies if study in common):
        rows = [scored.row(number, study) for number in range(len(runs))]
        found.append(_joined(rows, runs, decision))
    return prediction_table(found, **first.naming), problems


def check_together(runs: Sequence[ScoredRun]) -> None:
    """Make sure that runs can be averaged.

    Raises
    ------
    RunError
        Another task, or a target or class that one of them lacks, by name.
    """
    import pandas as pd

    try:
        check_alike([RunTable(run.name, pd.DataFrame(), **run.naming) for run in runs])
    except RunError as error:
        raise RunError(
            error.problem,
            remedy="Runs that score together need the same targets and classes; their order does not matter.",
            code=error.code,
        ) from None


def member_table(scored: Scored, number: int) -> pd.DataFrame:
    """Return what the members of one run say: a row a study and member, whose name is in a column ``fold``."""
    run = scored.runs[number]
    found: list[tuple[dict[str, Any], StudyScore]] = []
    for study in run.studies:
        row = scored.row(number, study)
        facts = {"study": row.study, "patient": row.patient, "slices": row.slices, "warning": row.warning}
        for name, scores, logits in zip(run.members, row.members, row.member_logits, strict=True):
            found.append(({**facts, "fold": name}, StudyScore(scores, logits, row.clips)))
    table = score_table(found, **run.naming, leading=BY_MEMBER)
    return table if found else table.assign(slices=[], warning=[])


def slice_rows(scored: Scored, studies: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield a row a slice that a network scored: ``study, slice, position_mm, score_…``, and ``run`` of several."""
    runs, first = scored.runs, scored.runs[0]
    columns = score_columns(**first.naming)
    for study in studies:
        for number, run in enumerate(runs):
            row = scored.row(number, study)
            if not len(row.slice_scores):
                continue
            owner = {} if len(runs) == 1 else {"run": run.name}
            for place, mm, scores in zip(
                row.numbers, row.positions, aligned(row.slice_scores, run, first), strict=True
            ):
                values = dict(zip(columns, map(float, scores), strict=True))
                # A micrometre: positions are sums of rounded header values.
                yield {**owner, "study": study, "slice": int(place), "position_mm": round(float(mm), 3), **values}


def aligned(values: np.ndarray, run: ScoredRun, first: ScoredRun) -> np.ndarray:
    """Return scores (..., K) of a run in the order of the first one's outputs."""
    own, wanted = score_columns(**run.naming), score_columns(**first.naming)
    if own == wanted:
        return values
    if first.contract.task == "binary":  # its positive class is the other's negative
        return 1 - values
    return values[..., [own.index(name) for name in wanted]]


def common_studies(
    scored: Mapping[str, Iterable[str]], problems: Mapping[str, list[Problem]], *, code: str
) -> tuple[set[str], list[Problem]]:
    """Return the studies that every run has scored, and the problems of all with one a study that some run lacks.

    Parameters
    ----------
    scored, problems : mapping
        By the name of a run.
    code : str
        Of the problems that are added.
    """
    studies = {name: set(found) for name, found in scored.items()}
    common = set.intersection(*studies.values())
    found = merged_problems(problems)
    known = {problem.study for problem in found if problem.fatal}
    for study in sorted(set.union(*studies.values()) - common - known):
        lacking = [name for name, own in studies.items() if study not in own]
        found.append(
            Problem(
                study,
                code,
                f"it got no score from {some_names(lacking)}.",
                "Every run must be able to score it: look at its series.",
                study,
            )
        )
    return common, found


def merged_problems(problems: Mapping[str, list[Problem]]) -> list[Problem]:
    """Return each problem once, with the runs that met it where not all did."""
    owners: dict[Problem, list[str]] = {}
    for name, found in problems.items():
        for problem in dict.fromkeys(found):
            owners.setdefault(problem, []).append(name)
    return [
        problem if len(names) == len(problems) else replace(problem, reason=f"{', '.join(names)}: {problem.reason}")
        for problem, names in owners.items()
    ]


def merged_warnings(warnings: Mapping[str, str]) -> str:
    """Return the warnings on one study, with the runs that give them where not all do."""
    owners: dict[str, list[str]] = {}
    for name, text in warnings.items():
        for part in filter(None, text.split("; ")):
            owners.setdefault(part, []).append(name)
    return "; ".join(
        part if len(names) == len(warnings) else f"{', '.join(names)}: {part}" for part, names in owners.items()
    )


def _decision(runs: Sequence[ScoredRun]) -> Decision | None:
    """Return the decision of all members together; None where one has none, or where outputs stand in another order."""
    if any(run.naming != runs[0].naming for run in runs):
        return None
    return combine([decision for run in runs for decision in run.decisions])


def _decided(
    decision: Decision | None, rows: Sequence[StudyRow], scores: np.ndarray, logits: np.ndarray
) -> dict[str, Any]:
    """Return the cells that the decision gives: what is called, and calibrated probabilities."""
    if decision is None:
        return {}
    pairs = [pair for row in rows for pair in zip(row.members, row.member_logits, strict=True)]
    members = [(own[None], raw[None]) for own, raw in pairs] if decision.members else None
    return {name: own[0] for name, own in decision.columns(scores[None], logits[None], members=members).items()}


def _joined(rows: Sequence[StudyRow], runs: Sequence[ScoredRun], decision: Decision | None) -> dict[str, Any]:
    """Return the cells of one study."""
    first, row = runs[0], rows[0]
    task = first.contract.task
    scores, logits = row.scores, row.logits
    if len(rows) > 1:
        scores = np.mean([aligned(one.scores, run, first) for one, run in zip(rows, runs, strict=True)], axis=0)
        logits = inverse_link(scores, task)
    members = np.concatenate([aligned(one.members, run, first) for one, run in zip(rows, runs, strict=True)])
    votes = np.concatenate([np.full(len(one.members), 1 / len(rows) / len(one.members)) for one in rows])
    names = [column.removeprefix("score_") for column in score_columns(**first.naming)]
    found = uncertainty(members, task=task, names=names, votes=votes, scores=scores, heads=first.heads)
    return {
        "study": row.study,
        "patient": row.patient,
        "scores": scores,
        "logits": logits,
        **_decided(decision, rows, scores, logits),
        **found,
        "members": len(members),
        "clips": sum(one.clips for one in rows),
        "slices": row.slices,
        "warning": merged_warnings({run.name: one.warning for run, one in zip(runs, rows, strict=True)}),
    }
