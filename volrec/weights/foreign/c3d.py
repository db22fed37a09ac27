"""C3D (Tran et al., ICCV 2015): the original of Caffe, its conversion to PyTorch, and the port of MMAction2.

=============  ==========================  ===========================================
format         key                         last pool
=============  ==========================  ===========================================
``caffe``      ``conv1a/0``, ``fc6-1/1``   rounds up
``davidea``    ``conv1.weight``, ``fc6.…``  rounds up: the weights are Caffe's
``mmaction2``  ``conv1a.conv.weight``      pads both sides, as it was trained
=============  ==========================  ===========================================

The values of a fully connected layer lie in the order C, T, H, W in all of them, as here.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from volrec.weights.foreign.formats import Format, Inputs, Stem, Tensors, holds

__all__ = ["FORMATS"]

_STEM = Stem("conv1a.weight", 64)
_CLIP = (16, 112, 112)
_LEAVES = {"0": "weight", "1": "bias"}


def _sports1m(channels: int) -> Inputs:
    # Channel means of the mean volume of Sports-1M; the original subtracts the volume itself.
    return Inputs("BGR", (0.0, 255.0), (90.25, 97.66, 101.41), (1.0,), _CLIP)


def _caffe(key: str) -> str | None:
    found = re.fullmatch(r"(conv\d[ab]|fc[678])(?:-\d+)?/([01])", key)
    return f"{found[1]}.{_LEAVES[found[2]]}" if found else None


def _davidea(key: str) -> str:
    return re.sub(r"^conv([12])\.", r"conv\1a.", key)


def _mmaction2(key: str) -> str | None:
    if key.startswith("cls_head.fc_cls."):
        return f"fc8.{key.rpartition('.')[2]}"
    found = re.fullmatch(r"(?:(conv\d[ab])\.conv|(fc[67]))\.(weight|bias)", key)
    return f"{found[1] or found[2]}.{found[3]}" if found else None


def _fewer_axes(key: str, tensor: Tensor) -> tuple[Tensor, str]:
    """Take away the axes of 1 that Caffe puts before vectors and matrices."""
    axes = 1 if key.endswith("/1") else 5 if key.startswith("conv") else 2
    shape = list(tensor.shape)
    while len(shape) > axes and shape[0] == 1:
        shape.pop(0)
    return (tensor, "") if len(shape) == tensor.ndim else (tensor.reshape(shape), "axes of 1 taken away")


def _pool(form: str) -> Any:
    def options(tensors: Tensors) -> dict[str, Any]:
        return {"pool5": form}

    return options


FORMATS = (
    Format(
        name="caffe",
        title="C3D, the original caffemodel",
        networks=("c3d",),
        container=("caffe",),
        detect=lambda tensors: "conv1a/0" in tensors and "conv3b/0" in tensors,
        rename=_caffe,
        stem=_STEM,
        head=("fc8-1/0", "fc8/0"),
        inputs=_sports1m,
        adapt=_fewer_axes,
        options=_pool("ceil"),
        mean_volume=True,
    ),
    Format(
        name="davidea",
        title="C3D, the caffemodel as DavideA converted it (c3d.pickle)",
        networks=("c3d",),
        detect=holds("conv1.weight", "conv3a.weight", "fc8.weight"),
        rename=_davidea,
        stem=_STEM,
        head=("fc8.weight",),
        inputs=_sports1m,
        options=_pool("ceil"),
        mean_volume=True,
        notes=(
            "The last pool rounds up as in Caffe, where these weights were trained; the model file they came with "
            "pads both sides.",
        ),
    ),
    Format(
        name="mmaction2",
        title="C3D, MMAction2",
        networks=("c3d",),
        detect=holds("conv1a.conv.weight", "cls_head.fc_cls.weight"),
        rename=_mmaction2,
        stem=_STEM,
        head=("cls_head.fc_cls.weight",),
        inputs=lambda channels: Inputs("RGB", (0.0, 255.0), (104.0, 117.0, 128.0), (1.0,), _CLIP),
        options=_pool("symmetric"),
    ),
)
