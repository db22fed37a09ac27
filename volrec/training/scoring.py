"""Whole studies scored by the predictor that users get: validation after each epoch, and the test at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from volrec.data.datasets import StudyDataset
from volrec.errors import ConfigError, Problem, VolrecError
from volrec.training.distributed import any_rank, gather, rank, world_size
from volrec.training.interrupts import StopTraining

if TYPE_CHECKING:
    from volrec.data.labels import Case
    from volrec.inference.predictor import Predictor, StudyScore

__all__ = ["Scored", "score_studies"]


@dataclass(frozen=True)
class Scored:
    """Scores of studies, in the order of the data set; those that could not be read are left out.

    Attributes
    ----------
    cases : tuple of Case
        The studies.
    results : tuple of StudyScore
        One a study.
    problems : tuple of Problem
        One a study that was left out.
    """

    cases: tuple[Case, ...]
    results: tuple[StudyScore, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def targets(self) -> np.ndarray:
        """``(N, K)`` true values."""
        return _rows([case.target for case in self.cases])

    @property
    def scores(self) -> np.ndarray:
        """``(N, K')`` probabilities, or values in the targets' own units."""
        return _rows([result.scores for result in self.results])


def score_studies(
    predictor: Predictor,
    studies: StudyDataset,
    *,
    stop: Callable[[], bool] = lambda: False,
    after: Callable[[], None] = lambda: None,
) -> Scored:
    """Score every study of a data set, shared among the ranks; every rank gets all scores.

    Parameters
    ----------
    predictor : Predictor
        The network with its protocol.
    studies : StudyDataset
        Whole studies of the store.
    stop : callable
        Asked before each study; when true in any rank, the scoring is given up.
    after : callable
        Called after each study of this rank (progress).

    Raises
    ------
    StopTraining
        When `stop` said so.
    """
    found: list[tuple[int, StudyScore | Problem]] = []
    for index in range(rank(), len(studies), world_size()):
        if stop():
            break
        try:
            found.append((index, predictor.score(studies.volume(index))))
        except (ConfigError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # no study's fault, and the next one would meet it too
        except Exception as error:  # noqa: BLE001 - one bad study never stops a training
            found.append((index, _problem(studies, index, error)))
        after()
    if any_rank(stop()):
        raise StopTraining
    rows = sorted(gather(found), key=lambda row: row[0])
    good = [(studies.cases[index], result) for index, result in rows if not isinstance(result, Problem)]
    return Scored(
        cases=tuple(case for case, _ in good),
        results=tuple(result for _, result in good),
        problems=tuple(result for _, result in rows if isinstance(result, Problem)),
    )


def _problem(studies: StudyDataset, index: int, error: Exception) -> Problem:
    study = studies.cases[index].study
    if isinstance(error, VolrecError):
        return Problem.of(error, where=error.where or studies.entries[index].path, study=study)
    return Problem(
        studies.entries[index].path,
        "unscorable",
        f"it could not be scored ({type(error).__name__}: {error}).",
        "Run the command again: damaged copies are decoded anew; if it stays, take the study out.",
        study,
    )


def _rows(values: list[Any]) -> np.ndarray:
    rows = [np.asarray(value, dtype=np.float64).reshape(-1) for value in values]
    return np.stack(rows) if rows else np.empty((0, 1))
