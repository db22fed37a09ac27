"""What one study got, and several networks as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from volrec.data.entries import StoredVolume
from volrec.errors import ConfigError
from volrec.inference.consensus import inverse_link

if TYPE_CHECKING:
    from volrec.inference.predictor import Predictor

__all__ = ["Ensemble", "StudyScore"]


@dataclass(frozen=True, eq=False)
class StudyScore:
    """What one study got.

    Attributes
    ----------
    scores : ndarray
        (K',) float64: probability of the positive class (binary, one value), of each class (multiclass; multihead: of
        each class of each head), of each label (multilabel), or values in the targets' own units (regression).
    logits : ndarray
        (K',) float64: the same before sigmoid or softmax; standardised values (regression).
    clips : int
        Clips that were pooled; after ``protocol.method: dense`` the places where a clip fits.
    per_slice : ndarray, optional
        (T, K') float64, when asked for. Of a slicewise network the scores of every slice alone; of one that reads
        clips the mean of the scores of the clips that hold the slice: how much speaks for it around there. NaN for
        slices in no clip.
    members : tuple of StudyScore
        What each member of an `Ensemble` said, in their order; empty where there was one predictor.
    """

    scores: np.ndarray
    logits: np.ndarray
    clips: int
    per_slice: np.ndarray | None = None
    members: tuple[StudyScore, ...] = ()


class Ensemble:
    """Several predictors as one: the mean of their scores.

    Parameters
    ----------
    members : sequence of Predictor
        Of the same task and outputs.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        if not members:
            raise ConfigError("an ensemble needs at least one member, got none.", code="ensemble")
        self.members = tuple(members)
        self.task = members[0].task

    def score(
        self,
        volume: StoredVolume | np.ndarray | Tensor,
        quantiles: np.ndarray | Tensor | None = None,
        *,
        per_slice: bool = False,
    ) -> StudyScore:
        """Score one study with each member; see `Predictor.score`."""
        first = self.members[0]
        if first.streams.field is not None:  # computed once for all members
            volume, quantiles = first.complete(volume, quantiles), None
        found = [member.score(volume, quantiles, per_slice=per_slice) for member in self.members]
        if len(found) == 1:
            return found[0]
        scores = np.mean([one.scores for one in found], axis=0)
        regression = self.task == "regression"
        logits = np.mean([one.logits for one in found], axis=0) if regression else inverse_link(scores, self.task)
        slices = [one.per_slice for one in found if one.per_slice is not None]
        per_slice_mean = np.mean(slices, axis=0) if slices else None
        return StudyScore(scores, logits, found[0].clips, per_slice_mean, tuple(found))
