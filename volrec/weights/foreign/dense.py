"""Densely connected networks: DenseNet3D and T3D of their authors, the 3D DenseNet of Hara et al., and DenseNet-121.

=============  ===================  ===========================================================
format         networks             remarks
=============  ===================  ===========================================================
``authors``    densenet3d-*, t3d-*  ``denselayer1.norm.1.weight``; stem 3x7x7, released strides
``hara``       densenet3d-*         the same keys, or ``norm1``; stem 7x7x7
``torchvision``  densenet-121       ``features.denseblock1.denselayer1.norm1.weight`` or ``norm.1``
``radimagenet``  densenet-121       ``0.denseblock1.…``: numbered children, no classifier
=============  ===================  ===========================================================

The published T3D file never ran (three syntax errors, and branches of unequal size), so that no weights were made with
it; its names (``ttl1.b2.norm``, or ``ttl1.b2.0`` where a branch is a plain sequence) are taken for the branches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from volrec.weights.foreign.formats import CLASSIFIER, Drop, Format, Inputs, Stem, Tensors
from volrec.weights.foreign.inputs import IMAGENET, RADIMAGENET

__all__ = ["FORMATS"]

_DENSE3D = ("densenet3d-121", "densenet3d-169")
_T3D = ("t3d-121", "t3d-169")
_STEM = Stem("features.conv0.weight", 64)
_LAYERS = {"norm": "norm", "0": "norm", "conv": "conv", "2": "conv"}


def _without_dots(key: str) -> str:
    """Return ``norm1`` for ``norm.1``: torch once allowed dots in the names of modules."""
    return re.sub(r"(\.denselayer\d+\.)(norm|conv)[._]([12])\.", r"\1\2\3.", key)


def _sequence(key: str) -> str | None:
    if not key.startswith(("features.", "classifier.")):
        return None
    key = _without_dots(key)
    found = re.fullmatch(r"features\.ttl(\d)\.b(\d)\.(norm|0|conv|2)\.(\w+)", key)
    return f"features.temporal{found[1]}.branch{found[2]}.{_LAYERS[found[3]]}.{found[4]}" if found else key


def _frames(key: str) -> str | Drop | None:
    if key.startswith("classifier."):
        return CLASSIFIER
    key = _without_dots(key)
    if not key.startswith("features."):
        return None
    return key.replace("features.", "trunk.", 1).replace(".denseblock", ".block").replace(".denselayer", ".layer")


def _numbered(key: str) -> str | Drop | None:
    return _frames(key.replace("0.", "features.", 1)) if key.startswith("0.") else None


def _stem_of(depth: int) -> Callable[[Tensors], bool]:
    """Return a `Format.detect` for 3D networks whose first kernel sees so many slices."""

    def detect(tensors: Tensors) -> bool:
        stem = tensors.get("features.conv0.weight")
        return stem is not None and stem.ndim == 5 and stem.shape[2] == depth

    return detect


def _temporal(tensors: Tensors) -> dict[str, Any]:
    """Read off what the options of T3D are in these weights."""
    options: dict[str, Any] = {"stem": "released"}
    conv = tensors.get("features.transition1.conv.weight")
    options["transition"] = "pool" if conv is None else "full" if conv.shape[0] == conv.shape[1] else "half"
    deep = tensors.get("features.temporal1.branch3.conv.weight")
    if deep is not None and deep.ndim == 5:
        options["temporal_depths"] = "default" if deep.shape[2] == 6 else "author"
    return options


FORMATS = (
    Format(
        name="authors",
        title="DenseNet3D, names of its authors",
        networks=_DENSE3D,
        detect=_stem_of(3),
        rename=_sequence,
        stem=_STEM,
        head=("classifier.weight",),
        inputs=lambda channels: Inputs("RGB", (0.0, 1.0), *IMAGENET, (32, 224, 224)),
        options=lambda tensors: {"stem": "released"},
        notes=("How its authors normalised the input is not published; that of ImageNet is noted.",),
    ),
    Format(
        name="authors",
        title="T3D, names of its authors",
        networks=_T3D,
        detect=_stem_of(3),
        rename=_sequence,
        stem=_STEM,
        head=("classifier.weight",),
        inputs=lambda channels: Inputs("RGB", (0.0, 1.0), *IMAGENET, (32, 224, 224)),
        options=_temporal,
        notes=("How its authors normalised the input is not published; that of ImageNet is noted.",),
    ),
    Format(
        name="hara",
        title="3D DenseNet of Hara, Kataoka and Satoh (kenshohara)",
        networks=_DENSE3D,
        detect=_stem_of(7),
        rename=_sequence,
        stem=_STEM,
        head=("classifier.weight",),
        # The mean of ActivityNet, as that code subtracts it; no division.
        inputs=lambda channels: Inputs(
            "RGB", (0.0, 255.0), (114.7748, 107.7354, 99.4750), (1.0,), (16, 112, 112), None
        ),
        options=lambda tensors: {"stem": "hara"},
    ),
    Format(
        name="torchvision",
        title="DenseNet-121, torchvision",
        networks=("densenet-121",),
        detect=lambda tensors: "features.conv0.weight" in tensors and tensors["features.conv0.weight"].ndim == 4,
        rename=_frames,
        stem=Stem("trunk.conv0.weight", 64),
        head=("classifier.weight",),
        inputs=lambda channels: Inputs("RGB", (0.0, 1.0), *IMAGENET, (224, 224)),
    ),
    Format(
        name="radimagenet",
        title="DenseNet-121, RadImageNet",
        networks=("densenet-121",),
        detect=lambda tensors: "0.conv0.weight" in tensors,
        rename=_numbered,
        stem=Stem("trunk.conv0.weight", 64),
        head=(),
        inputs=lambda channels: RADIMAGENET,
        notes=(
            "Its authors' example for PyTorch scales to [-1, 1]; the weights come from Keras, where the images were "
            "scaled to [0, 1].",
        ),
    ),
)
