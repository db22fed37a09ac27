"""Randomness as a pure function of where the training is, so that a resumed one goes on exactly where it stopped."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["seed_dropout", "step_seed"]


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


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generator that dropout on `device` draws from.

    ``torch.manual_seed`` seeds every kind of device there might be and notes a stack trace for each: too slow for
    every step, and where CUDA is never used the notes pile up.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
