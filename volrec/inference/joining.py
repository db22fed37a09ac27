"""Score tables of several runs brought together: by study, fold and *class name*, never by index.

Class lists of one data set circulate in several orders (HMDB51: ``kick`` before or after ``kick_ball``); adding columns
by their place raises no error and costs points. Nothing here knows a column's place, only its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Joined", "RunTable", "check_alike", "check_folds", "join_tables", "some_names"]

MOST_NAMED = 5
SAME_SPLITS = "Fuse runs with the same splits (the same labels, folds and split.seed)."
Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class RunTable:
    """The score table of one run, with the names of its outputs.

    Attributes
    ----------
    name : str
        What messages call the run.
    table : DataFrame
        As `volrec.inference.score_table` writes it.
    task, targets, classes
        Of the run, in its own order.
    """

    name: str
    table: pd.DataFrame
    task: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Joined:
    """The same studies as R runs score them.

    Attributes
    ----------
    keys : DataFrame
        ``study, patient``, ``fold`` where there are folds, and target columns; N rows, sorted by fold and study.
    runs : tuple of str
        Names of the runs.
    names : tuple of str
        Names of the K outputs, sorted: class names (multiclass), the positive class (binary), else targets.
    scores : ndarray
        (R, N, K) probabilities, or values in the targets' own units.
    logits : ndarray, optional
        (R, N, K); None where they were not asked for.
    """

    keys: pd.DataFrame
    runs: tuple[str, ...]
    names: tuple[str, ...]
    scores: np.ndarray
    logits: np.ndarray | None

    @property
    def folds(self) -> np.ndarray:
        """(N,) names of the folds, empty text where there are none."""
        if "fold" in self.keys:
            return self.keys["fold"].astype(str).to_numpy()
        return np.full(len(self.keys), "", dtype=object)

    def rows(self, chosen: np.ndarray) -> Joined:
        """Return some of the studies; `chosen` is boolean (N,)."""
        return replace(
            self,
            keys=self.keys[chosen].reset_index(drop=True),
            scores=self.scores[:, chosen],
            logits=None if self.logits is None else self.logits[:, chosen],
        )


def check_alike(runs: Sequence[RunTable]) -> None:
    """Make sure that all runs answer the same question, whatever the order of their targets and classes.

    Raises
    ------
    RunError
        Another task, or a target or class that one of them lacks, by name.
    """
    first = runs[0]
    for other in runs[1:]:
        if other.task != first.task:
            raise RunError(
                f"the task of {other.name} is {other.task}, that of {first.name} is {first.task}.",
                remedy="Fuse runs that were trained on the same labels.",
                code="other-task",
            )
        for what, key in (("target", "targets"), ("class", "classes")):
            ours, theirs = set(getattr(first, key)), set(getattr(other, key))
            for lacking, having, names in ((other, first, ours - theirs), (first, other, theirs - ours)):
                if names:
                    raise RunError(
                        f"{lacking.name} has no {what} {some_names(names)}, which {having.name} has.",
                        remedy="Fuse runs with the same targets and classes; their order does not matter.",
                        code=f"missing-{what}",
                    )


def check_folds(runs: Sequence[RunTable]) -> None:
    """Make sure that all runs have the same folds, or none.

    Raises
    ------
    RunError
        With the folds of two that differ.
    """
    found = [set(run.table["fold"].astype(str)) if "fold" in run.table else set() for run in runs]
    for run, folds in zip(runs[1:], found[1:], strict=True):
        if folds != found[0]:
            seen = [", ".join(sorted(each, key=_natural)) or "none" for each in (found[0], folds)]
            raise RunError(
                f"{runs[0].name} and {run.name} were divided differently: their folds are {seen[0]} and {seen[1]}.",
                remedy=SAME_SPLITS,
                code="other-splits",
            )


def join_tables(runs: Sequence[RunTable], *, logits: bool) -> Joined:
    """Bring the scores of the same studies together, by study, fold and name of the class.

    Parameters
    ----------
    runs : sequence of RunTable
        At least one. The first decides which class of a binary task is the positive one.
    logits : bool
        Whether logits are wanted, too.

    Raises
    ------
    RunError
        Other tasks, targets, classes or folds; a study that one run lacks, scores twice or labels otherwise; a table
        without logits.
    """
    import pandas as pd

    check_alike(runs)
    check_folds(runs)
    first = runs[0]
    logits = logits and first.task != "regression"
    places = [_places(run) for run in runs]
    _check_studies(runs, places)
    # Sorted by name, so that neither the order of studies nor of classes in a table changes a bit of a sum.
    order = sorted(places[0], key=lambda key: (_natural(key[0]), key[1]))
    tables = [
        run.table.iloc[[own[key] for key in order]].reset_index(drop=True)
        for run, own in zip(runs, places, strict=True)
    ]
    keys = pd.DataFrame({"study": [study for _, study in order]}, dtype=str)
    keys["patient"] = tables[0]["patient" if "patient" in tables[0] else "study"].astype(str)
    if "fold" in tables[0]:
        keys["fold"] = [fold for fold, _ in order]
    for target in first.targets:
        if any(target in table for table in tables):
            keys[target] = _agreed(target, runs, tables)
    names = _output_names(first)
    found: dict[str, np.ndarray] = {}
    for kind in ("score", "logit") if logits else ("score",):
        columns = [_columns(kind, run, table, names, first) for run, table in zip(runs, tables, strict=True)]
        found[kind] = np.stack(columns)
        bad = np.argwhere(~np.isfinite(found[kind]).all(-1))
        if len(bad):
            raise RunError(
                f"{runs[bad[0][0]].name} has a {kind} of study {keys['study'].iloc[bad[0][1]]} that is no number.",
                remedy="Score that study again, or leave it out of all runs.",
                code="not-finite",
            )
    return Joined(
        keys,
        tuple(run.name for run in runs),
        names,
        found["score"],
        found.get("logit"),
    )


def _places(run: RunTable) -> dict[Key, int]:
    """Return in which row of its table a run has a study, by fold (empty where there are none) and study."""
    studies = run.table["study"].astype(str)
    folds = run.table["fold"].astype(str) if "fold" in run.table else [""] * len(studies)
    found: dict[Key, int] = {}
    for row, key in enumerate(zip(folds, studies, strict=True)):
        if key in found:
            raise RunError(
                f"{run.name} scores study {key[1]} twice" + (f" in {key[0]}." if key[0] else "."),
                remedy="Names of studies must be unique in a run.",
                code="study-twice",
            )
        found[key] = row
    return found


def _check_studies(runs: Sequence[RunTable], places: Sequence[Mapping[Key, int]]) -> None:
    """Make sure that all runs score the same studies in the same folds."""
    for run, own in zip(runs[1:], places[1:], strict=True):
        for lacking, theirs, having, ours in ((run, own, runs[0], places[0]), (runs[0], places[0], run, own)):
            gone = [key for key in ours if key not in theirs]
            if not gone:
                continue
            elsewhere = {study: fold for fold, study in theirs}
            moved = next((key for key in gone if key[1] in elsewhere), None)
            if moved is not None:
                raise RunError(
                    f"study {moved[1]} stands in {moved[0]} of {having.name} and in {elsewhere[moved[1]]} of "
                    f"{lacking.name}.",
                    remedy=SAME_SPLITS,
                    code="other-splits",
                )
            raise RunError(
                f"{lacking.name} has no score of study {some_names(key[1] for key in gone)}, which {having.name} has.",
                remedy="Its quarantine may say why; all runs must score the same studies.",
                code="missing-study",
            )


def _agreed(target: str, runs: Sequence[RunTable], tables: Sequence[pd.DataFrame]) -> list[Any]:
    """Return the label of each study, which all runs that know one must agree on."""
    import pandas as pd

    found: list[Any] = [None] * len(tables[0])
    owner: list[str] = [""] * len(found)
    for run, table in zip(runs, tables, strict=True):
        if target not in table:
            continue
        for place, value in enumerate(table[target].tolist()):
            if pd.isna(value):
                continue
            if not owner[place]:
                found[place], owner[place] = value, run.name
            elif _text(value) != _text(found[place]):
                raise RunError(
                    f"study {table['study'].iloc[place]}: {target} is {_text(found[place])} in {owner[place]} and "
                    f"{_text(value)} in {run.name}.",
                    remedy="Fuse runs that were trained on the same labels.",
                    code="other-labels",
                )
    return found


def _output_names(run: RunTable) -> tuple[str, ...]:
    if run.task == "binary":
        return (run.classes[-1],)
    return tuple(sorted(run.classes if run.task == "multiclass" else run.targets))


def _columns(kind: str, run: RunTable, table: pd.DataFrame, names: tuple[str, ...], first: RunTable) -> np.ndarray:
    """Return the scores or logits (N, K) of one run under the names of the first."""
    own = (run.classes[-1],) if run.task == "binary" else names
    columns = [f"{kind}_{name}" for name in own]
    lacking = [column for column in columns if column not in table]
    if lacking and kind == "logit":
        raise RunError(
            f"the scores of {run.name} have no logits ({some_names(lacking)}): an older volrec wrote them.",
            remedy="Fuse at stage softmax, or train that run again.",
            code="no-logits",
        )
    if lacking:
        raise RunError(
            f"the scores of {run.name} lack {some_names(lacking)}.",
            remedy="Restore its scores.csv, or train that run again.",
            code="missing-class",
        )
    values = table[columns].to_numpy(dtype=np.float64)
    if run.task == "binary" and own != names:  # its positive class is the other's negative
        return -values if kind == "logit" else 1 - values
    return values


def _text(value: Any) -> str:
    """Return a label as text: a column of 0 and 1 with gaps is read as 0.0 and 1.0."""
    return str(int(value)) if isinstance(value, (float, bool)) and float(value).is_integer() else str(value)


def some_names(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    found = sorted(names)
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def _natural(fold: str) -> tuple[str, int]:
    """Sort fold-2 before fold-10."""
    head = fold.rstrip("0123456789")
    return head, int(fold[len(head) :] or -1)
