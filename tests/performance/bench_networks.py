"""Cost of the networks over that of their bare convolutions: ``python tests/performance/bench_networks.py``.

Each network is run forward, and forward and backward, beside a list of plain convolutions of the same shapes, and
beside itself with kernels in torch's ordinary layout. Processor seconds of this process, the best of some rounds that
take turns: they say the same on a busy machine. An epoch is that of 96 volumes of 32x64x64, in processor seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional

from volrec import networks

CASES: tuple[tuple[str, str, dict[str, Any], tuple[int, int, int, int, int]], ...] = (
    ("c3d, width 1/8", "c3d", {"width": 0.125}, (8, 1, 32, 64, 64)),
    ("c3d, width 1/4", "c3d", {"width": 0.25}, (4, 1, 32, 64, 64)),
    ("c3d, the paper's", "c3d", {"faithful": True, "num_classes": 101}, (1, 3, 16, 112, 112)),
    ("slice-mean, width 1/4", "slice-mean", {"width": 0.25}, (8, 1, 32, 64, 64)),
)


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of one call, both user and system."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def convolutions(network: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Return every convolution and linear layer with an input of its own, in the layout it has in the network."""
    found: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((module, inputs[0].detach().clone().requires_grad_(len(found) > 0)))

    hooks = [
        module.register_forward_hook(keep)
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear))
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def plain_layout(network: nn.Module) -> nn.Module:
    """Put all kernels into torch's ordinary layout."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return network


def bare(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return functional.linear(x, module.weight)
    function = functional.conv3d if isinstance(module, nn.Conv3d) else functional.conv2d
    return function(x, module.weight, padding=module.padding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(
        f"{'network':24}{'input':20}{'bare s':>9}{'net/bare':>10}{'plain layout/net':>18}{'train: bare s':>15}", end=""
    )
    print(f"{'net/bare':>10}{'plain layout/net':>18}{'epoch s':>9}")
    for label, name, options, shape in CASES:
        x = torch.randn(shape)
        network = networks.create(name, **{"num_classes": 2, "in_channels": shape[1], **options})
        ordinary = networks.create(name, **{"num_classes": 2, "in_channels": shape[1], **options})
        plain_layout(ordinary)
        layers = convolutions(network, x)

        def forward(work: Callable[[], object]) -> Callable[[], object]:
            def run() -> object:
                with torch.no_grad():
                    return work()

            return run

        def bare_train(layers: list[tuple[nn.Module, Tensor]] = layers) -> None:
            for module, inputs in layers:
                bare(module, inputs).sum().backward()

        def bare_forward(layers: list[tuple[nn.Module, Tensor]] = layers) -> None:
            for module, inputs in layers:
                bare(module, inputs)

        works: list[Callable[[], object]] = [
            forward(bare_forward),
            forward(lambda network=network, x=x: network(x)),
            forward(lambda network=ordinary, x=x: network(x)),
            bare_train,
            lambda network=network, x=x: network(x).sum().backward(),
            lambda network=ordinary, x=x: network(x).sum().backward(),
        ]
        for work in works:
            work()
        times = [
            min(column) for column in zip(*([seconds(work) for work in works] for _ in range(rounds)), strict=True)
        ]
        shown = "x".join(map(str, shape))
        epoch = f"{times[4] * 96 / shape[0]:9.1f}" if shape[2:] == (32, 64, 64) else f"{'-':>9}"
        print(f"{label:24}{shown:20}{times[0]:9.3f}{times[1] / times[0]:10.2f}{times[2] / times[1]:18.2f}", end="")
        print(f"{times[3]:15.3f}{times[4] / times[3]:10.2f}{times[5] / times[4]:18.2f}{epoch}")


if __name__ == "__main__":
    main()
