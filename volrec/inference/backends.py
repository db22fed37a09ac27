"""What computes a network: torch, or ONNX Runtime; the predictor asks one of them and knows no difference."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError

__all__ = ["BACKENDS", "BackendName", "TorchBackend", "make_backend"]

BackendName = Literal["torch", "onnxruntime"]
BACKENDS = ("torch", "onnxruntime")


class TorchBackend:
    """The network as it is.

    Parameters
    ----------
    network : nn.Module
        (B, C, T', H, W) to logits (B, K); what is asked of it beside that is what its class can do
        (`volrec.networks.SequenceNetwork`, `SlicewiseNetwork`).
    """

    def __init__(self, network: nn.Module) -> None:
        # Any: a plain module has `forward` alone, and is asked for nothing else.
        self.network: Any = network

    def forward(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of clips (B, C, T', H, W), or with `pre_logits` what enters the last layer."""
        if not pre_logits:
            return self.network(x)
        self.network.check_input(x)
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)

    def encode(self, x: Tensor) -> Tensor:
        """Return features (N, ...) of slices (N, C, H, W)."""
        return self.network.encode_slices(x)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of slice features (B, T', ...), or with `pre_logits` what enters the last layer."""
        return self.network.aggregate(features, pre_logits=pre_logits)

    def slice_logits(self, features: Tensor) -> Tensor:
        """Return logits (B, T', K) of every slice alone, for features (B, T', ...)."""
        return self.network.slice_logits(features)

    def maps(self, x: Tensor) -> Tensor:
        """Return maps (B, F, P, h, w) of sequences (B, C, T, H, W) of any length."""
        return self.network.forward_features(x)

    def head(self, maps: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of maps (B, F, P, h, w), or with `pre_logits` what enters the last layer."""
        return self.network.forward_head(maps, pre_logits=pre_logits)


def make_backend(name: str, network: nn.Module, *, device: torch.device, precision: str) -> TorchBackend:
    """Return what computes a network.

    Parameters
    ----------
    name : {"torch", "onnxruntime"}
        Which.
    network : nn.Module
        On its device.
    device, precision
        Where and in which arithmetic is scored; ONNX Runtime is here for float32 on the processor.

    Raises
    ------
    ConfigError
        For an unknown name, a device or precision that it is not for, or a missing package (extra ``onnx``).
    """
    if name not in BACKENDS:
        raise ConfigError(
            f"there is no backend {name!r}.",
            remedy=f"Choose one of {', '.join(BACKENDS)}.",
            where="backend",
            code="backend",
        )
    if name == "torch":
        return TorchBackend(network)
    if device.type != "cpu" or precision not in ("32", "auto"):
        raise ConfigError(
            f"the backend onnxruntime computes in float32 on the processor, got device {device.type} and precision "
            f"{precision}.",
            remedy="Choose device cpu and precision 32, or --backend torch.",
            where="backend",
            code="backend",
        )
    from volrec.inference.onnx_runtime import OnnxBackend

    return OnnxBackend(network)
