"""Randomness as a pure function of where the training is, so that a resumed one goes on exactly where it stopped."""

from __future__ import annotations

import numpy as np

__all__ = ["step_seed"]


def step_seed(seed: int, *where: int) -> int:
    """Return a 64-bit seed for one use of randomness.

    Parameters
    ----------
    seed : int
        Seed of the training.
    *where : int
        What sets this use apart: epoch, step, rank, stream …
    """
    return int(np.random.SeedSequence([seed, *where]).generate_state(1, np.uint64)[0])
