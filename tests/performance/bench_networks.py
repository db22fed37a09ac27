"""Cost of the networks: ``python tests/performance/bench_networks.py [--threads 2] [--rounds 4] [--only NAME]``.

First table: each network beside a list of its bare convolutions and linear layers (same shapes, same kernels), forward
and forward with backward, and beside itself with kernels in torch's ordinary layout (``plain/net``: above 1, channels
last is faster). Then: DenseNet3D-121 beside MONAI's DenseNet121 at the same input and strides; what checkpointing of
the dense blocks costs and spares; what folding batch normalisation would spare (too little to be worth a second form
of every network: it is not done); what asking oneDNN directly spares where one clip is scored.

Elapsed seconds, float32, the best of some rounds that take turns, so that a busy moment hits all alike: read the
ratios. Memory is the peak of a process of its own that does one step forward and backward, less what it held before.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from volrec import networks
from volrec.networks.layers import ConvUnit, convolution, same

Case = tuple[str, str, dict[str, Any], tuple[int, ...]]
PAPER = {"faithful": True, "num_classes": 101}
CASES: tuple[Case, ...] = (
    ("c3d, width 1/8", "c3d", {"width": 0.125}, (8, 1, 32, 64, 64)),
    ("c3d, the paper's", "c3d", PAPER, (1, 3, 16, 112, 112)),
    ("slice-mean, width 1/4", "slice-mean", {"width": 0.25}, (8, 1, 32, 64, 64)),
    ("i3d, width 1/4", "i3d", {"width": 0.25}, (4, 1, 32, 64, 64)),
    ("i3d", "i3d", {}, (1, 3, 16, 112, 112)),
    ("i3d, the paper's", "i3d", PAPER, (1, 3, 16, 224, 224)),
    ("densenet3d-121", "densenet3d-121", {"stem": "released"}, (1, 1, 32, 112, 112)),
    ("t3d-121, width 1/4", "t3d-121", {"width": 0.25}, (4, 1, 32, 64, 64)),
    ("t3d-121", "t3d-121", {}, (1, 3, 16, 112, 112)),
)
DENSE = ((1, 1, 32, 64, 64), (1, 1, 32, 112, 112), (4, 1, 32, 64, 64))


def build(name: str, shape: Sequence[int], options: dict[str, Any]) -> nn.Module:
    """Return a network of the zoo, or ``monai`` for MONAI's DenseNet121, for clips of this shape."""
    torch.manual_seed(0)
    if name == "monai":
        from monai.networks.nets import DenseNet121

        return DenseNet121(spatial_dims=3, in_channels=shape[1], out_channels=2)
    return networks.create(name, **{"num_classes": 2, "in_channels": shape[1], **options})


def convolutions(network: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Return every convolution and linear layer with an input of its own, in the layout it has in the network."""
    found: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((module, inputs[0].detach().clone().requires_grad_(len(found) > 0)))

    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def bare(module: nn.Module, x: Tensor) -> Tensor:
    """Run the convolution alone; SAME padding counts as a plain one."""
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight)
    padding = module.padding
    if type(module).__name__ == "SameConv3d":
        padding = tuple((kernel - 1) // 2 for kernel in module.kernel_size)
    if isinstance(module, nn.Conv3d):
        return convolution.convolve3d(module, x, padding)
    return F.conv2d(x, module.weight, stride=module.stride, padding=padding, groups=module.groups)


def plain_layout(network: nn.Module) -> nn.Module:
    """Put all kernels into torch's ordinary layout."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return network


def forward(work: Callable[[], object]) -> Callable[[], object]:
    """Return the same work without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return work()

    return run


def training(network: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return one step forward and backward."""

    def run() -> None:
        network.zero_grad(set_to_none=True)
        network(x).square().sum().backward()

    return run


def scoring(network: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return one pass as `volrec predict` does it."""

    def run() -> Tensor:
        network.eval()
        scores = network(x)
        network.train()
        return scores

    return forward(run)


def best(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the best time of each work; the works take turns."""
    for work in works:
        work()
    columns = []
    for _ in range(rounds):
        row = []
        for work in works:
            began = time.perf_counter()
            work()
            row.append(time.perf_counter() - began)
        columns.append(row)
    return [min(column) for column in zip(*columns, strict=True)]


def _peak(name: str, shape: tuple[int, ...], options: dict[str, Any], threads: int, pipe: Any) -> None:
    torch.set_num_threads(threads)
    network, x = build(name, shape, options), torch.randn(shape)
    Path("/proc/self/clear_refs").write_text("5")  # a fresh process starts from its parent's peak
    before = _high_water()
    training(network, x)()
    pipe.send((_high_water() - before) / 1024)


def _high_water() -> int:
    """Return the largest resident memory so far, kiB (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def peak(name: str, shape: tuple[int, ...], options: dict[str, Any], threads: int) -> float:
    """Return the MiB that a step forward and backward adds to a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_peak, args=(name, shape, options, threads, there))
    child.start()
    there.close()
    try:
        return float(here.recv())
    finally:
        child.join()


def against_convolutions(cases: Sequence[Case], rounds: int, threads: int) -> None:
    """Print each network over its bare convolutions."""
    print(f"{'network':24}{'input':17}{'bare s':>8}{'net/bare':>9}{'plain/net':>10}", end="")
    print(f"{'train: bare s':>15}{'net/bare':>9}{'plain/net':>10}{'peak MiB':>10}")
    for label, name, options, shape in cases:
        x = torch.randn(shape)
        network = build(name, shape, options)
        ordinary = plain_layout(build(name, shape, options))
        layers = convolutions(network, x)

        def bare_training(layers: list[tuple[nn.Module, Tensor]] = layers) -> None:
            for module, inputs in layers:
                module.weight.grad = inputs.grad = None
                bare(module, inputs).sum().backward()

        def bare_forward(layers: list[tuple[nn.Module, Tensor]] = layers) -> None:
            for module, inputs in layers:
                bare(module, inputs)

        works = [forward(bare_forward), scoring(network, x), scoring(ordinary, x)]
        works += [bare_training, training(network, x), training(ordinary, x)]
        times = best(works, rounds)
        memory = peak(name, shape, options, threads)
        shown = "x".join(map(str, shape))
        print(f"{label:24}{shown:17}{times[0]:8.3f}{times[1] / times[0]:9.2f}{times[2] / times[1]:10.2f}", end="")
        print(f"{times[3]:15.3f}{times[4] / times[3]:9.2f}{times[5] / times[4]:10.2f}{memory:10.0f}", flush=True)


def against_monai(rounds: int, threads: int) -> None:
    """Print DenseNet3D-121 over MONAI's DenseNet121."""
    options = {"stem": "released"}
    print(f"\n{'densenet3d-121 / MONAI':24}{'input':17}{'forward':>9}{'MONAI s':>9}{'train':>9}{'MONAI s':>9}", end="")
    print(f"{'peak MiB':>10}{'MONAI MiB':>11}")
    for shape in DENSE:
        x = torch.randn(shape)
        ours, theirs = build("densenet3d-121", shape, options), build("monai", shape, {})
        times = best([scoring(ours, x), scoring(theirs, x), training(ours, x), training(theirs, x)], rounds)
        memory = [peak(name, shape, chosen, threads) for name, chosen in (("densenet3d-121", options), ("monai", {}))]
        print(f"{'':24}{'x'.join(map(str, shape)):17}{times[0] / times[1]:9.2f}{times[1]:9.3f}", end="")
        print(f"{times[2] / times[3]:9.2f}{times[3]:9.3f}{memory[0]:10.0f}{memory[1]:11.0f}", flush=True)


def checkpointed(rounds: int, threads: int) -> None:
    """Print what checkpointing of the dense blocks costs and spares."""
    print(f"\n{'checkpoint / plain':24}{'input':17}{'train':>9}{'peak MiB':>10}{'plain MiB':>11}")
    for name in ("densenet3d-121", "t3d-121"):
        shape = (2, 1, 32, 64, 64)
        x = torch.randn(shape)
        works = [training(build(name, shape, {"checkpoint": chosen}), x) for chosen in (True, False)]
        times = best(works, rounds)
        memory = [peak(name, shape, {"checkpoint": chosen}, threads) for chosen in (True, False)]
        print(f"{name:24}{'x'.join(map(str, shape)):17}{times[0] / times[1]:9.2f}{memory[0]:10.0f}{memory[1]:11.0f}")


def folded(rounds: int) -> None:
    """Print what folding batch normalisation into the convolutions before it spares in scoring."""
    print(f"\n{'folded / plain':24}{'input':17}{'forward':>9}")
    for name, options, shape in (
        ("i3d", {}, (1, 3, 16, 112, 112)),
        ("i3d", {"width": 0.25}, (4, 1, 32, 64, 64)),
        ("ltc", {"width": 0.25}, (4, 1, 32, 64, 64)),
    ):
        x = torch.randn(shape)
        plain = build(name, shape, options).eval()
        short = copy.deepcopy(plain)
        for unit in short.modules():
            if isinstance(unit, ConvUnit):
                unit.conv, unit.norm = fuse_conv_bn_eval(unit.conv, unit.norm), nn.Identity()
        times = best([forward(lambda network=network, x=x: network(x)) for network in (short, plain)], rounds)
        print(f"{name:24}{'x'.join(map(str, shape)):17}{times[0] / times[1]:9.2f}")


def single_clips(rounds: int) -> None:
    """Print what asking oneDNN directly spares where one clip is scored."""
    print(f"\n{'one clip: ours / torch':24}{'input':17}{'forward':>9}")
    ours = convolution.convolve3d

    def plainly(layer: nn.Conv3d, x: Tensor, padding: tuple[int, ...]) -> Tensor:
        return F.conv3d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)

    def by(way: Callable[..., Tensor], network: nn.Module, x: Tensor) -> Callable[[], object]:
        def run() -> object:
            convolution.convolve3d = same.convolve3d = way
            return network(x)

        return forward(run)

    for name, options, shape in (
        ("c3d", {"width": 0.125}, (1, 1, 24, 48, 48)),
        ("c3d", {}, (1, 3, 16, 112, 112)),
        ("i3d", {}, (1, 3, 16, 112, 112)),
        ("ltc", {"width": 0.25}, (1, 1, 32, 64, 64)),
    ):
        x = torch.randn(shape)
        network = build(name, shape, options).eval()
        times = best([by(ours, network, x), by(plainly, network, x)], rounds)
        print(f"{name:24}{'x'.join(map(str, shape)):17}{times[0] / times[1]:9.2f}")
    convolution.convolve3d = same.convolve3d = ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose label holds this text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    against_convolutions([c for c in CASES if arguments.only in c[0]], arguments.rounds, arguments.threads)
    if not arguments.only:
        against_monai(arguments.rounds, arguments.threads)
        checkpointed(arguments.rounds, arguments.threads)
        folded(arguments.rounds)
        single_clips(arguments.rounds)


if __name__ == "__main__":
    main()
