"""Optimiser and schedule: what decays, and how the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["lr_factor", "make_optimizer", "parameter_groups"]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: kernels with weight decay, biases and normalisation without.

    Vectors and scalars are what must not shrink: biases, and the scales of normalisation layers.
    """
    kernels = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(network: nn.Module, optim: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build AdamW, or SGD with Nesterov momentum 0.9.

    Parameters
    ----------
    network : Module
        Whose parameters are trained.
    optim : mapping
        The fields of `volrec.config.OptimConfig`.
    """
    groups = parameter_groups(network, optim["weight_decay"])
    if optim["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=optim["lr"], momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=optim["lr"])


def lr_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """Return the share of the peak learning rate at a step.

    Parameters
    ----------
    step : int
        Updates done so far.
    steps : int
        Updates of the whole training.
    warmup : int
        Updates of linear warm-up; the first one is taken at ``1 / (warmup + 1)``, not at 0.
    schedule : {"cosine", "constant"}
        What follows the warm-up; cosine ends near 0.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * done))
