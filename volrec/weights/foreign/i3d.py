"""I3D (Carreira and Zisserman, CVPR 2017): the original in TensorFlow, and its two ports to PyTorch.

=============  =================================  ====================================
format         key                                remarks
=============  =================================  ====================================
``piergiaj``   ``Mixed_3b.b1a.conv3d.weight``     ``.bn.*``; ``logits.conv3d.*``
``hassony2``   ``mixed_3b.branch_1.0.conv3d.…``   ``.batch3d.*``; ``conv3d_0c_1x1.conv3d.*``
``deepmind``   ``Mixed_3b/Branch_1/Conv3d_0a_…``  kernels (T, H, W, in, out), no scale, "Conv3d_0a" twice in Mixed_5b
=============  =================================  ====================================
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from volrec.weights.foreign.formats import Drop, Format, Inputs, Stem, Tensors, holds

__all__ = ["FORMATS"]

_STEM = Stem("Conv3d_1a_7x7.conv.weight", 64)
_PARTS = {"conv3d": "conv", "bn": "norm", "batch3d": "norm"}
_BRANCHES = {"0": "b0", "1.0": "b1a", "1.1": "b1b", "2.0": "b2a", "2.1": "b2b", "3.1": "b3b"}
# Branch 2 of Mixed_5b calls its second convolution 0a as well, so that the kernel has to tell them apart.
_TF_BRANCHES = {
    "0/Conv3d_0a_1x1": "b0",
    "1/Conv3d_0a_1x1": "b1a",
    "1/Conv3d_0b_3x3": "b1b",
    "2/Conv3d_0a_1x1": "b2a",
    "2/Conv3d_0b_3x3": "b2b",
    "2/Conv3d_0a_3x3": "b2b",
    "3/Conv3d_0b_1x1": "b3b",
}
_TF_PARTS = {
    "conv_3d/w": "conv.weight",
    "batch_norm/beta": "norm.bias",
    "batch_norm/moving_mean": "norm.running_mean",
    "batch_norm/moving_variance": "norm.running_var",
}
_NO_SCALE = "the original learns no scale: it stays 1"
_TRAINING = r"global_step|.*/(?:Momentum|RMSProp|Adam|Adagrad)(?:_\d)?|beta\d_power"


def _inputs(channels: int) -> Inputs:
    return Inputs("flow" if channels == 2 else "RGB", (-1.0, 1.0), (0.0,), (1.0,), (64, 224, 224), 25.0)


def _piergiaj(key: str) -> str | None:
    layer, _, leaf = key.rpartition(".")
    layer, _, part = layer.rpartition(".")
    if layer == "logits":
        return f"classifier.{leaf}"
    return f"{layer}.{_PARTS[part]}.{leaf}" if part in {"conv3d", "bn"} else None


def _hassony2(key: str) -> str | None:
    if key.startswith("conv3d_0c_1x1.conv3d."):
        return f"classifier.{key.rpartition('.')[2]}"
    found = re.fullmatch(r"(conv3d|mixed)_(\w+?)(?:\.branch_([\d.]+))?\.(conv3d|batch3d)\.(\w+)", key)
    if found is None or (found[3] and found[3] not in _BRANCHES):
        return None
    branch = f".{_BRANCHES[found[3]]}" if found[3] else ""
    return f"{found[1].capitalize()}_{found[2]}{branch}.{_PARTS[found[4]]}.{found[5]}"


def _deepmind(key: str) -> str | Drop | None:
    if re.fullmatch(_TRAINING, key):
        return Drop("what the optimiser kept, which serves the training only")
    if key.startswith("Logits/Conv3d_0c_1x1/conv_3d/"):
        return {"w": "classifier.weight", "b": "classifier.bias"}.get(key[-1])
    found = re.fullmatch(r"(\w+?)(?:/Branch_(\d/\w+))?/((?:conv_3d|batch_norm)/\w+)", key)
    if found is None or found[3] not in _TF_PARTS or (found[2] and found[2] not in _TF_BRANCHES):
        return None
    branch = f".{_TF_BRANCHES[found[2]]}" if found[2] else ""
    return f"{found[1]}{branch}.{_TF_PARTS[found[3]]}"


def _flat_logits(key: str, tensor: Tensor) -> tuple[Tensor, str]:
    if key in {"logits.conv3d.weight", "conv3d_0c_1x1.conv3d.weight"} and tensor.shape[2:].numel() == 1:
        return tensor.flatten(1), "1x1x1 kernels as a matrix"
    return tensor, ""


def _from_tensorflow(key: str, tensor: Tensor) -> tuple[Tensor, str]:
    if key.endswith("/w") and tensor.ndim == 5:
        turned = tensor.permute(4, 3, 0, 1, 2)
        if key.startswith("Logits/") and turned.shape[2:].numel() == 1:
            return turned.flatten(1), "(T, H, W, in, out) turned, 1x1x1 kernels as a matrix"
        return turned, "(T, H, W, in, out) turned to (out, in, T, H, W)"
    if "/batch_norm/" in key and tensor.shape[:-1].numel() == 1:
        return tensor.reshape(-1), "axes of 1 taken away"
    return tensor, ""


def _without_scale(tensors: Tensors) -> dict[str, Any]:
    return {"bn_scale": False}


FORMATS = (
    Format(
        name="piergiaj",
        title="I3D, port of piergiaj",
        networks=("i3d",),
        detect=holds("Conv3d_1a_7x7.conv3d.weight"),
        rename=_piergiaj,
        stem=_STEM,
        head=("logits.conv3d.weight",),
        inputs=_inputs,
        adapt=_flat_logits,
    ),
    Format(
        name="hassony2",
        title="I3D, port of hassony2",
        networks=("i3d",),
        detect=holds("conv3d_1a_7x7.conv3d.weight"),
        rename=_hassony2,
        stem=_STEM,
        head=("conv3d_0c_1x1.conv3d.weight",),
        inputs=_inputs,
        adapt=_flat_logits,
    ),
    Format(
        name="deepmind",
        title="I3D, the original checkpoint of TensorFlow",
        networks=("i3d",),
        container=("tensorflow",),
        detect=holds("Conv3d_1a_7x7/conv_3d/w"),
        rename=_deepmind,
        stem=_STEM,
        head=("Logits/Conv3d_0c_1x1/conv_3d/w",),
        inputs=_inputs,
        adapt=_from_tensorflow,
        options=_without_scale,
        absent=lambda target: _NO_SCALE if target.endswith(".norm.weight") else "",
    ),
)
