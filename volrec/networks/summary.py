"""What ``volrec models`` prints: parameters, multiply-adds and layers, counted without allocating a weight."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from volrec.networks.registry import create, spec

__all__ = ["describe", "training_bytes"]


def describe(
    name: str,
    *,
    faithful: bool = True,
    num_classes: int | None = None,
    in_channels: int | None = None,
    clip: tuple[int, int, int] | None = None,
    width: float = 1.0,
    **options: Any,
) -> dict[str, Any]:
    """Count a network of the registry.

    Parameters
    ----------
    name : str
        Registry name.
    faithful, num_classes, in_channels, width, **options
        As for `create`; by default the paper's network with the paper's classes and channels.
    clip : tuple of int, optional
        Size (T, H, W) at which multiply-adds and layers are counted; the paper's by default.

    Returns
    -------
    dict
        ``name, paper, title, year, summary, parameters, gmacs`` (multiply-adds in 10^9, one clip, convolutions and
        linear layers), ``clip`` (C, T, H, W), ``smallest`` (T, H, W), ``slicewise, streams`` (what its channels are),
        ``segments`` (parts of a study that its clips are drawn from, 0: contiguous), ``training, refining`` (trainings
        that are done in turn, and where first weights exist: the fields of `TrainingStage`), ``options`` (name to
        default, paper, allowed, meaning), ``ambiguities, layers`` (name, kind, output without batch, parameters),
        ``blocks`` (the same of modules that hold layers).

    Raises
    ------
    ConfigError
        As `create`, and for a clip that the network cannot read.
    """
    facts = spec(name)
    channels = facts.default_clip[0] if in_channels is None else in_channels
    size = facts.default_clip[1:] if clip is None else tuple(clip)
    # On the meta device nothing is computed or stored: 80 million parameters cost milliseconds.
    with torch.device("meta"):
        network = create(
            name,
            num_classes=facts.num_classes if num_classes is None else num_classes,
            in_channels=channels,
            faithful=faithful,
            width=width,
            **options,
        ).eval()
        layers: list[dict[str, Any]] = []
        blocks: list[dict[str, Any]] = []
        hooks = [
            module.register_forward_hook(_recorder(blocks if any(module.children()) else layers, label))
            for label, module in network.named_modules()
            if label
        ]
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, channels, *size))
    for hook in hooks:
        hook.remove()
    return {
        "name": name,
        "paper": facts.paper,
        "title": facts.title,
        "year": facts.year,
        "summary": facts.summary,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gmacs": counter.get_total_flops() / 2e9,
        "clip": [channels, *size],
        "smallest": list(network.smallest),
        "slicewise": facts.slicewise,
        "streams": list(facts.streams),
        "segments": facts.segments,
        "training": [asdict(stage) for stage in facts.training],
        "refining": [asdict(stage) for stage in facts.refining],
        "options": {
            key: {
                "default": option.default,
                "paper": option.default_for(faithful=True),
                "allowed": option.allowed,
                "meaning": option.meaning,
            }
            for key, option in facts.options.items()
        },
        "ambiguities": list(facts.ambiguities),
        "layers": layers,
        "blocks": blocks,
    }


def training_bytes(
    name: str, *, clip: tuple[int, int, int], in_channels: int = 1, width: float = 1.0, **options: Any
) -> tuple[int, int]:
    """Count the memory of a training step in float32, without allocating any of it.

    Parameters
    ----------
    name, in_channels, width, **options
        As for `create`.
    clip : tuple of int
        Size (T, H, W).

    Returns
    -------
    fixed, per_clip : int
        Bytes whatever the batch (weights, gradients and the two moments of AdamW), and bytes that the forward pass
        keeps of each clip for the backward pass. Workspaces of convolutions come on top.

    Raises
    ------
    ConfigError
        As `create`, and for a clip that the network cannot read.
    """
    with torch.device("meta"):
        network = create(name, num_classes=1, in_channels=in_channels, width=width, **options).train()
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        # Two clips: batch statistics of a single one may not exist.
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.empty(2, in_channels, *clip))
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    fixed = 4 * sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return fixed, sum(size for key, size in storages.items() if key not in weights) // 2


def _recorder(layers: list[dict[str, Any]], label: str) -> Any:
    seen = False

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal seen
        if isinstance(output, tuple) and output:  # recurrent layers give their state as well
            output = output[0]
        if isinstance(output, Tensor) and not seen:  # a layer that two paths share is listed once
            seen = True
            layers.append(
                {
                    "name": label,
                    "kind": type(module).__name__,
                    "output": list(output.shape[1:]),
                    "parameters": sum(parameter.numel() for parameter in module.parameters()),
                }
            )

    return record
