"""Schedule, weight decay, average of the weights, and the clock."""

from __future__ import annotations

import time
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from volrec.config import OptimConfig
from volrec.training.clock import StepClock, describe_times
from volrec.training.ema import AveragedNetwork
from volrec.training.optim import lr_factor, make_optimizer, parameter_groups
from volrec.training.seeds import step_seed


def test_biases_and_normalisation_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Linear(2, 1))
    decaying, free = parameter_groups(network, 0.1)
    assert {tuple(p.shape) for p in decaying["params"]} == {(2, 1, 3, 3, 3), (1, 2)}
    assert decaying["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert len(free["params"]) == 4  # two biases, scale and shift


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_every_parameter_is_trained(name: str) -> None:
    network = nn.Linear(3, 1)
    optimizer = make_optimizer(network, OptimConfig(optimizer=name, lr=0.1).model_dump())
    before = [p.clone() for p in network.parameters()]
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [lr_factor(step, steps=50, warmup=10, schedule="cosine") for step in range(51)]
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert rates[0] > 0
    assert max(rates) == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[50] == pytest.approx(0, abs=1e-9)
    assert lr_factor(40, steps=50, warmup=10, schedule="constant") == 1.0


def test_average_follows_floats_and_copies_counters() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = AveragedNetwork(network, 0.9)
    expected = average.network[0].weight.double().numpy().copy()
    for update in range(30):
        with torch.no_grad():
            network[0].weight.add_(1.0)
            network[1].num_batches_tracked.add_(1)
        average.update(network)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * network[0].weight.detach().double().numpy()
    assert np.allclose(average.network[0].weight.numpy(), expected, rtol=1e-5)
    assert average.network[1].num_batches_tracked.item() == 30
    again = AveragedNetwork(network, 0.9)
    again.load_state_dict(average.state_dict())
    assert again.updates == 30
    assert torch.equal(again.network[0].weight, average.network[0].weight)


def test_clock_puts_every_second_somewhere() -> None:
    clock = StepClock()
    clock.start()
    began = time.perf_counter()
    for _ in range(2):
        time.sleep(0.02)
        clock.fetched()
        time.sleep(0.01)
        clock.moved()
        time.sleep(0.03)
        clock.stepped()
    parts = clock.finish()
    total = time.perf_counter() - began
    assert sum(parts.values()) == pytest.approx(total, abs=0.005)
    assert parts["data_wait"] >= 0.04
    assert parts["transfer"] >= 0.02
    assert parts["compute"] >= 0.06


def test_shares_leave_validation_and_the_first_epoch_apart() -> None:
    rows = [
        {"data_wait": 8.0, "transfer": 0.0, "compute": 2.0, "validation": 100.0},
        {"data_wait": 1.0, "transfer": 1.0, "compute": 8.0, "validation": 100.0},
    ]
    facts = describe_times(rows)
    assert facts["data_wait_share"] == 0.45
    assert facts["data_wait_share_later"] == 0.1
    assert facts["validation_seconds"] == 200.0


def test_seeds_are_apart_and_always_the_same() -> None:
    seeds = {step_seed(0, *where) for where in product(range(3), range(5), range(20), range(2))}
    assert len(seeds) == 600
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3) != step_seed(2, 2, 3)
