"""The C of a machine by cross-validation; a group (videos of one scene, studies of one patient) stays whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volrec.errors import ConfigError
from volrec.progress import track

__all__ = ["Choice", "choose_c", "group_folds"]

FOLDS = 5


@dataclass(frozen=True)
class Choice:
    """Which C was taken, and why.

    Attributes
    ----------
    c : float
        The one of least loss; of equals the smallest.
    loss : str
        What was compared: ``"error"`` (videos whose best class is not theirs) or ``"log loss"``.
    table : tuple of (float, float)
        C and its mean loss over the videos left out, in the order of C; empty where there was no choice.
    folds : int
        Of the cross-validation; 0 where there was no choice.
    """

    c: float
    loss: str = ""
    table: tuple[tuple[float, float], ...] = ()
    folds: int = 0

    def facts(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"c": self.c, "loss": self.loss, "table": [list(row) for row in self.table], "folds": self.folds}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Choice:
        """Return what `facts` was made of."""
        table = tuple((float(c), float(loss)) for c, loss in facts["table"])
        return cls(float(facts["c"]), str(facts["loss"]), table, int(facts["folds"]))


def group_folds(groups: Sequence[str], *, folds: int = FOLDS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places (training part, part left out); every video is left out once, and no group is on both sides.

    Raises
    ------
    ConfigError
        Fewer than two groups.
    """
    from sklearn.model_selection import GroupKFold

    there = len(set(groups))
    if there < 2:
        raise ConfigError(
            f"C is chosen by leaving groups of videos out, and there is {there} group.",
            remedy="Give one C, or videos of several groups.",
            where="c",
            code="groups",
        )
    yield from GroupKFold(min(folds, there)).split(np.zeros(len(groups)), groups=np.asarray(groups))


def choose_c(
    values: Sequence[float],
    losses: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    *,
    groups: Sequence[str],
    loss: str = "error",
    folds: int = FOLDS,
) -> Choice:
    """Choose a C.

    Parameters
    ----------
    values : sequence of float
        One is taken as it is.
    losses : callable
        ``(training part, part left out, C) -> (n,)``: the loss of each video left out.
    groups : sequence of str
        (N,) of the training videos.
    loss : str
        Its name.
    folds : int
        At most (as many as there are groups).

    Raises
    ------
    ConfigError
        No C, one that is not above zero, or one group alone.
    """
    values = sorted(set(values))
    if not values or values[0] <= 0:
        raise ConfigError(
            f"C must be above 0, got {values or 'none'}.", remedy="Give one or several.", where="c", code="c"
        )
    if len(values) == 1:
        return Choice(values[0])
    parts = list(group_folds(groups, folds=folds))
    sums = dict.fromkeys(values, 0.0)
    for train, left, c in track([(*part, c) for part in parts for c in values], "choosing C"):
        sums[c] += float(np.sum(losses(train, left, c)))
    table = tuple((c, total / len(groups)) for c, total in sums.items())
    return Choice(min(table, key=lambda row: row[1])[0], loss, table, len(parts))
