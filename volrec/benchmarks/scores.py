"""The scores of one network on the videos of a split: what is kept, and metrics and fusion are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["ScoreSet"]


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """Scores of N videos for K classes; they travel with names, never with places alone.

    Attributes
    ----------
    videos : tuple of str
        Names, N.
    classes : tuple of str
        Names, K.
    labels : tuple of tuple of int
        True classes of each video, places in `classes`.
    logits, probabilities : ndarray
        (N, K) float32: what the network gave, joined over the views of each video at either stage. Of an SVM: its
        margins and NaN.
    stage : {"logits", "softmax"}
        Which of the two the protocol takes.
    clips : ndarray
        (N,) int64: clips of each video (their crops joined).
    clip_hits : ndarray
        (N,) int64: clips whose best class is a true one.
    facts : mapping
        Plain JSON: split id and digest, stream, protocol, weights, decoder …
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    logits: np.ndarray
    probabilities: np.ndarray
    stage: str
    clips: np.ndarray
    clip_hits: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> np.ndarray:
        """(N, K) at the stage of the protocol."""
        return self.logits if self.stage == "logits" else self.probabilities
