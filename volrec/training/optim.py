"""Optimiser and schedule: what decays, what learns how fast, and how the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from volrec.networks import network_stages

__all__ = ["lr_factor", "make_optimizer", "parameter_groups"]


def parameter_groups(
    network: nn.Module, weight_decay: float, *, lr: float = 1.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the parameters that are trained: kernels with weight decay, biases and normalisation without.

    Vectors and scalars are what must not shrink: biases, and the scales of normalisation layers.

    Parameters
    ----------
    network : Module
        A `SequenceNetwork` where `layer_decay` is below 1.
    weight_decay : float
        Of the kernels.
    lr : float
        Peak learning rate of the last stage.
    layer_decay : float
        Stage i of n (`volrec.networks.network_stages`) learns at ``lr * layer_decay ** (n - 1 - i)``; 1 makes two
        groups of the whole network, without a rate of their own.
    """
    if layer_decay == 1.0:
        return _by_kind(list(network.parameters()), weight_decay)
    parameters = dict(network.named_parameters())
    stages = network_stages(network)  # type: ignore[arg-type]
    return [
        {**group, "lr": lr * layer_decay ** (len(stages) - 1 - number)}
        for number, names in enumerate(stages)
        for group in _by_kind([parameters[name] for name in names], weight_decay)
    ]


def _by_kind(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    kernels = [p for p in parameters if p.requires_grad and p.ndim > 1]
    vectors = [p for p in parameters if p.requires_grad and p.ndim <= 1]
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
    lr, decay = optim["lr"], optim["layer_decay"]
    groups = parameter_groups(network, optim["weight_decay"], lr=lr, layer_decay=decay)
    if optim["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr)


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
