"""2D networks of frames: torchvision's by their keys, BN-Inception of TSN, RadImageNet, EfficientNet-Lite0.

=================  =========================================  =========================================
format             key                                        network
=================  =========================================  =========================================
``torchvision``    ``layer1.0.conv1.weight``                  resnet-18, resnet-34, resnet-50
``torchvision``    ``features.0.weight``                      vgg-16
``torchvision``    ``inception3a.branch2.1.conv.weight``      inception-v1
``radimagenet``    ``4.0.conv1.weight``                       resnet-50
``tsn-pytorch``    ``inception_3a_double_3x3_1.weight``       bn-inception
``lukemelas``      ``_blocks.0._depthwise_conv.weight``       efficientnet-lite0
=================  =========================================  =========================================

DenseNet-121 is in ``dense.py``. Classifiers are left out: a backbone ends in features.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from volrec.weights.foreign.formats import CLASSIFIER, Drop, Format, Inputs, Stem, holds
from volrec.weights.foreign.inputs import IMAGENET, RADIMAGENET

__all__ = ["FORMATS"]

_SIZE = (224, 224)
_NORM = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"
# Children of torchvision's ResNet by number; 2, 3 and 8 are ReLU and pools.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_VGG = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (f"conv{block}_{index}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for index in range(1, count + 1)),
        strict=True,
    )
)
_VGG_TAIL = {"0": "fc6", "3": "fc7"}
_GOOGLENET = {"conv1": "Conv2d_1a_7x7", "conv2": "Conv2d_2b_1x1", "conv3": "Conv2d_2c_3x3"}
_BRANCHES = {"1": "b0", "2.0": "b1a", "2.1": "b1b", "3.0": "b2a", "3.1": "b2b", "4.1": "b3b"}
_TSN_UNITS = {
    "1x1": 0,
    "3x3_reduce": 1,
    "3x3": 1,
    "double_3x3_reduce": 2,
    "double_3x3_1": 2,
    "double_3x3_2": 2,
    "pool_proj": 3,
}


def _imagenet(channels: int) -> Inputs:
    return Inputs("RGB", (0.0, 1.0), *IMAGENET, _SIZE)


def _resnet(key: str) -> str | Drop | None:
    if re.fullmatch(r"(?:fc|new_fc|cls_head\.fc_cls)\.(?:weight|bias)", key):
        return CLASSIFIER
    return f"trunk.{key}" if key.startswith(("conv1.", "bn1.", "layer")) else None


def _numbered_resnet(key: str) -> str | None:
    child, _, rest = key.partition(".")
    return f"trunk.{_CHILDREN[child]}.{rest}" if child in _CHILDREN else None


def _resnet_of(blocks: tuple[int, int, int, int], *, bottleneck: bool) -> Callable[..., bool]:
    """Return a `Format.detect` that tells the depths apart by their last blocks."""
    last = [f"layer{number}.{count - 1}.conv1.weight" for number, count in enumerate(blocks, 1)]
    beyond = [f"layer{number}.{count}.conv1.weight" for number, count in enumerate(blocks, 1)]

    def detect(tensors: dict[str, Tensor]) -> bool:
        return (
            all(key in tensors for key in last)
            and not any(key in tensors for key in beyond)
            and ("layer1.0.conv3.weight" in tensors) == bottleneck
        )

    return detect


def _vgg(key: str) -> str | Drop | None:
    if re.fullmatch(r"classifier\.6\.(?:weight|bias)", key):
        return CLASSIFIER
    found = re.fullmatch(r"(features|classifier)\.(\d+)\.(weight|bias)", key)
    if found is None:
        return None
    if found[1] == "classifier":
        return f"tail.{_VGG_TAIL[found[2]]}.{found[3]}" if found[2] in _VGG_TAIL else None
    return f"trunk.{_VGG[int(found[2])]}.conv.{found[3]}" if int(found[2]) in _VGG else None


def _googlenet(key: str) -> str | Drop | None:
    if re.fullmatch(r"fc\.(?:weight|bias)", key):
        return CLASSIFIER
    if re.match(r"aux[12]\.", key):
        return Drop("an auxiliary classifier, which serves the training only")
    found = re.fullmatch(rf"(?:(conv[123])|inception(\d[a-e])\.branch([\d.]+))\.(conv|bn)\.({_NORM})", key)
    if found is None or (found[3] and found[3] not in _BRANCHES):
        return None
    place = _GOOGLENET[found[1]] if found[1] else f"Mixed_{_slim(found[2])}.{_BRANCHES[found[3]]}"
    return f"trunk.{place}.{'conv' if found[4] == 'conv' else 'norm'}.{found[5]}"


def _slim(block: str) -> str:
    """Return the name of a block in TensorFlow's library, which counts the pool before it: 3a is 3b there."""
    return f"{block[0]}{chr(ord(block[1]) + 1)}"


def _tsn(key: str) -> str | Drop | None:
    if re.fullmatch(r"(?:new_fc|fc|fc_action|fc-action|last_linear)\.(?:weight|bias)", key):
        return CLASSIFIER
    found = re.fullmatch(rf"(conv[12]_\w+?|inception_(\d[a-e])_(\w+?))(_bn)?\.({_NORM})", key)
    if found is None:
        return None
    place = found[1]
    if found[2]:
        if found[3] not in _TSN_UNITS:
            return None
        # The blocks that halve the maps have no 1x1 branch.
        branch = _TSN_UNITS[found[3]] - (found[2] in {"3c", "4e"})
        place = f"inception_{found[2]}.branches.{branch}.{found[3]}"
    return f"trunk.{place}.{'norm' if found[4] else 'conv'}.{found[5]}"


def _tsn_inputs(channels: int) -> Inputs:
    if channels == 3:
        return Inputs("BGR", (0.0, 255.0), (104.0, 117.0, 128.0), (1.0,), _SIZE)
    if channels % 2 == 0:  # x and y of so many steps
        return Inputs("flow", (0.0, 255.0), (128.0,), (1.0,), _SIZE)
    return Inputs("BGR", (0.0, 255.0), (0.0,), (1.0,), _SIZE)  # differences of frames, whose mean is 0


def _rows_of_one(key: str, tensor: Tensor) -> tuple[Tensor, str]:
    """Flatten normalisation values that are kept as (1, C), as in the file that TSN starts from."""
    if "_bn." in key and tensor.ndim == 2 and len(tensor) == 1:
        return tensor[0], "axes of 1 taken away"
    return tensor, ""


def _lite(key: str) -> str | Drop | None:
    if re.fullmatch(r"_fc\.(?:weight|bias)", key):
        return CLASSIFIER
    if not key.startswith(("_conv_stem.", "_bn0.", "_blocks.", "_conv_head.", "_bn1.")):
        return None
    return "trunk." + re.sub(r"(^|\.)_", r"\1", key)


_RESNETS = {
    "resnet-18": ((2, 2, 2, 2), False),
    "resnet-34": ((3, 4, 6, 3), False),
    "resnet-50": ((3, 4, 6, 3), True),
}

FORMATS = (
    *(
        Format(
            name="torchvision",
            title=f"ResNet-{name.rpartition('-')[2]}, torchvision",
            networks=(name,),
            detect=_resnet_of(blocks, bottleneck=bottleneck),
            rename=_resnet,
            stem=Stem("trunk.conv1.weight", 64),
            head=("fc.weight", "new_fc.weight", "cls_head.fc_cls.weight"),
            inputs=_imagenet,
        )
        for name, (blocks, bottleneck) in _RESNETS.items()
    ),
    Format(
        name="radimagenet",
        title="ResNet-50, RadImageNet",
        networks=("resnet-50",),
        detect=holds("0.weight", "4.0.conv3.weight"),
        rename=_numbered_resnet,
        stem=Stem("trunk.conv1.weight", 64),
        head=(),
        inputs=lambda channels: RADIMAGENET,
        notes=(
            "Its authors' example for PyTorch scales to [-1, 1]; the weights come from Keras, where the images were "
            "scaled to [0, 1].",
        ),
    ),
    Format(
        name="torchvision",
        title="VGG-16, torchvision",
        networks=("vgg-16",),
        detect=lambda tensors: "features.28.weight" in tensors and tensors["features.28.weight"].ndim == 4,
        rename=_vgg,
        stem=Stem("trunk.conv1_1.conv.weight", 64),
        head=("classifier.6.weight",),
        inputs=_imagenet,
    ),
    Format(
        name="torchvision",
        title="GoogLeNet with batch normalisation, torchvision",
        networks=("inception-v1",),
        detect=holds("conv1.conv.weight", "inception3a.branch1.conv.weight"),
        rename=_googlenet,
        stem=Stem("trunk.Conv2d_1a_7x7.conv.weight", 64),
        head=("fc.weight",),
        # torchvision turns the input back to the [-1, 1] of TensorFlow, where these weights were trained.
        inputs=lambda channels: Inputs("RGB", (-1.0, 1.0), (0.0,), (1.0,), _SIZE),
        notes=(
            "torchvision pads its first convolution alike on both sides; here, as in TensorFlow, where these weights "
            "were trained, the odd pixel of padding lies at the end.",
        ),
    ),
    Format(
        name="tsn-pytorch",
        title="BN-Inception of TSN, tsn-pytorch",
        networks=("bn-inception",),
        detect=holds("conv1_7x7_s2.weight", "inception_3a_1x1.weight"),
        rename=_tsn,
        stem=Stem("trunk.conv1_7x7_s2.conv.weight", 64),
        head=("new_fc.weight", "fc.weight", "fc_action.weight", "fc-action.weight", "last_linear.weight"),
        inputs=_tsn_inputs,
        adapt=_rows_of_one,
    ),
    Format(
        name="lukemelas",
        title="EfficientNet-Lite0, names of EfficientNet-PyTorch",
        networks=("efficientnet-lite0",),
        detect=holds("_conv_stem.weight", "_blocks.0._depthwise_conv.weight"),
        rename=_lite,
        stem=Stem("trunk.conv_stem.weight", 32),
        head=("_fc.weight",),
        inputs=lambda channels: Inputs("RGB", (0.0, 255.0), (127.0,), (128.0,), _SIZE),
    ),
)
