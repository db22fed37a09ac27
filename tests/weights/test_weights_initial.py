"""First weights: where a source lies, what of it fits, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from volrec.errors import RunError
from volrec.networks import create
from volrec.networks.backbones import create_backbone
from volrec.weights import find_weights, init_network, load_backbone, load_network, read_source_card, save_weights
from volrec.weights.fitting import canonical_name

WIDTH = 1 / 16
CARD = {"classes": ["no", "yes"], "targets": ["bleed"], "data_signature": "abc"}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(name: str = "densenet3d-121", **arguments: Any) -> Any:
    return create(name, **{"num_classes": 1, "width": WIDTH, **arguments})


def flat(name: str = "densenet-121", **arguments: Any) -> Any:
    values = {"in_channels": 1, "faithful": False, "width": WIDTH, "norm": "batch", "tail": "pool", "dropout": 0.0}
    values |= {"stem_stride": None, **arguments}
    network = create_backbone(name, **values)
    network.architecture = {"backbone": name, **values}
    return network


def save(path: Path, network: nn.Module, **card: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, network, {**CARD, **card})
    return path


def member(run: Path, name: str, network: nn.Module, *, finished: bool = True) -> Path:
    path = save(run / name / "weights.safetensors", network)
    if finished:
        (run / name / "finished").touch()
    return path


def unchanged(network: nn.Module, before: dict[str, torch.Tensor], names: list[str]) -> bool:
    state = network.state_dict()
    return all(torch.equal(state[name], before[name]) for name in names)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("backbone.trunk.conv1.weight", "conv1.weight"),
        ("trunk.block1.layer2.norm1.bias", "denseblock1.denselayer2.norm1.bias"),
        ("features.denseblock1.denselayer2.norm1.bias", "denseblock1.denselayer2.norm1.bias"),
        ("trunk.transition1.conv.weight", "transition1.conv.weight"),
        ("trunk.Conv2d_1a_7x7.conv.weight", "Conv3d_1a_7x7.conv.weight"),
        ("trunk.layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("classifier.trunk.weight", "classifier.trunk.weight"),
    ],
)
def test_names_without_containers(name: str, short: str) -> None:
    assert canonical_name(name) == short


class TestWhereTheyLie:
    def test_first_finished_member_in_the_order_of_numbers(self, tmp_path: Path) -> None:
        network = small("slice-mean")
        member(tmp_path, "fold-1", network, finished=False)
        member(tmp_path, "fold-10", network)
        second = member(tmp_path, "fold-2", network)
        assert find_weights(tmp_path) == second
        assert find_weights(str(tmp_path / "fold-10")) == tmp_path / "fold-10" / "weights.safetensors"
        assert find_weights(second) == second

    def test_student_of_a_transfer_teacher_of_a_pretraining(self, tmp_path: Path) -> None:
        student = save(tmp_path / "student" / "weights.safetensors", small("slice-mean"))
        teacher = save(tmp_path / "teacher" / "weights.safetensors", flat())
        assert find_weights(tmp_path) == student
        assert find_weights(f"inflate:{tmp_path}") == teacher
        assert read_source_card(f"inflate:{tmp_path}")["architecture"]["backbone"] == "densenet-121"

    def test_a_home_folder_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        path = save(tmp_path / "x.safetensors", small("slice-mean"))
        assert find_weights("~/x.safetensors") == path

    def test_what_was_looked_for_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="no such file or folder"):
            find_weights(tmp_path / "gone")
        member(tmp_path, "split", small("slice-mean"), finished=False)
        with pytest.raises(RunError, match="nor student or teacher with one, nor a finished member") as caught:
            find_weights(tmp_path)
        assert "--resume" not in caught.value.remedy
        (tmp_path / "split" / "last.ckpt").touch()
        with pytest.raises(RunError, match=f"volrec train --resume {tmp_path}"):
            find_weights(tmp_path)

    @pytest.mark.parametrize(("name", "kind"), [("student", "transfer"), ("teacher", "pretrain")])
    def test_an_interrupted_run_has_none_until_it_is_finished(self, tmp_path: Path, name: str, kind: str) -> None:
        weights = member(tmp_path, name, small("slice-mean"), finished=False)
        (weights.parent / "last.ckpt").touch()
        source = f"inflate:{tmp_path}" if name == "teacher" else str(tmp_path)
        with pytest.raises(RunError, match=f"volrec {kind} --resume {tmp_path}"):
            find_weights(source)
        assert find_weights(weights.parent) == weights  # asked for by name
        (weights.parent / "finished").touch()
        assert find_weights(source) == weights


class TestWhatFits:
    def test_everything_but_the_classifier_of_another_question(self, tmp_path: Path) -> None:
        source = small(in_channels=2)
        path = save(tmp_path / "x.safetensors", source)
        network = small(in_channels=2, num_classes=3)
        last = network.classifier.weight.clone()
        table = init_network(network, path, classes=("a", "b", "c"), targets=("bleed",))
        assert table.counts == {"loaded": len(source.state_dict()) - 2, "adapted": 0, "dropped": 2, "missing": 2}
        assert all("another question (no, yes)" in row.reason for row in table.of_action("dropped"))
        assert torch.equal(network.classifier.weight, last)
        theirs, mine = source.state_dict(), network.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine if not name.startswith("classifier"))

    def test_the_classifier_of_the_same_question_is_taken(self, tmp_path: Path) -> None:
        source = small("slice-mean")
        path = save(tmp_path / "x.safetensors", source)
        network = small("slice-mean")
        table = init_network(network, path, classes=("no", "yes"), targets=("bleed",))
        assert table.counts["loaded"] == len(source.state_dict()) == len(table.rows)
        assert torch.equal(network.classifier.weight, source.classifier.weight)

    @pytest.mark.parametrize("asked", [{"classes": ("no", "yes"), "targets": ("fracture",)}, {}])
    def test_equal_class_names_of_another_target_are_another_question(
        self, tmp_path: Path, asked: dict[str, Any]
    ) -> None:
        path = save(tmp_path / "x.safetensors", small("slice-mean"))
        table = init_network(small("slice-mean"), path, **asked)
        assert {row.source for row in table.of_action("dropped")} == {"classifier.weight", "classifier.bias"}

    def test_only_the_first_layer_is_adapted(self, tmp_path: Path) -> None:
        source = small("c3d", in_channels=3)
        path = save(tmp_path / "x.safetensors", source)
        network = small("c3d", in_channels=1)
        table = init_network(network, path)
        assert [row.target for row in table.of_action("adapted")] == ["conv1a.weight"]
        kernel = source.conv1a.weight
        torch.testing.assert_close(network.conv1a.weight, kernel.sum(1, keepdim=True))
        init_network(network, path, first_layer="mean")
        torch.testing.assert_close(network.conv1a.weight, kernel.mean(1, keepdim=True))

    def test_streams_side_by_side_are_all_adapted(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.safetensors", small("multires", in_channels=3))
        table = init_network(small("multires", in_channels=1), path)
        assert [row.target for row in table.of_action("adapted")] == ["context.conv1.weight", "fovea.conv1.weight"]

    def test_other_shapes_are_left_out_with_both(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.safetensors", small("i3d", in_channels=1, temporal_strides=(1, 1, 1, 2, 2)))
        network = create("i3d", num_classes=1, width=WIDTH)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with torch.no_grad():  # a layer of another size in the network
            network.Mixed_5c.b0.conv = nn.Conv3d(52, 7, 1, bias=False)
        drawn = network.Mixed_5c.b0.conv.weight.clone()
        table = init_network(network, path)
        row = next(row for row in table.rows if row.target == "Mixed_5c.b0.conv.weight")
        assert row.action == "dropped"
        assert row.reason == "shape (24, 52, 1, 1, 1) in the source, (7, 52, 1, 1, 1) in the network"
        assert torch.equal(network.Mixed_5c.b0.conv.weight, drawn)
        assert not unchanged(network, before, ["Conv3d_1a_7x7.conv.weight"])

    @pytest.mark.parametrize("prefix", ["", "inflate:"])
    def test_slicewise_networks_take_2d_weights_either_way(self, tmp_path: Path, prefix: str) -> None:
        path = save(tmp_path / "teacher" / "weights.safetensors", flat(in_channels=3))
        network = small("lrcn", in_channels=1, backbone="densenet-121")
        table = init_network(network, f"{prefix}{tmp_path}")
        assert [row.reason for row in table.of_action("adapted")] == ["3 to 1 input channel(s) by sum"]
        assert table.counts["loaded"] == len(load_backbone(path)[0].state_dict()) - 1

    def test_t3d_begins_with_a_2d_densenet(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.safetensors", flat())
        network = small("t3d-121")
        init_network(network, f"inflate:{path}", inflate="center")
        kernel = network.features.denseblock1.denselayer1.conv2.weight
        assert kernel[:, :, 0].abs().sum() == 0 and kernel[:, :, 1].abs().sum() > 0

    @pytest.mark.parametrize("width", [0.125, 1.0])
    def test_a_full_t3d_is_half_filled_by_what_2d_can_give(self, tmp_path: Path, width: float) -> None:
        from volrec.weights.fitting import fit_state

        with torch.device("meta"):
            source, network = flat(width=width), small("t3d-121", width=width)
        with torch.device("meta"):
            found, table = fit_state(
                source.state_dict(), network, inflate=lambda w, t: w.new_empty((*w.shape[:2], t, *w.shape[2:]))
            )
        counted = [
            row for row in table.rows if row.target in dict(network.named_parameters()) and row.action != "missing"
        ]
        filled = sum(found[row.target].numel() for row in counted if row.target in found)
        assert filled > 0.5 * sum(network.get_parameter(row.target).numel() for row in counted)


class TestWhatDoesNot:
    def test_another_network_is_named_with_the_remedy(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.safetensors", small("t3d-121"))
        network = small("c3d")
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(
            RunError, match=r"the source is t3d-121 at width 0\.0625, yours is c3d at width 0\.0625"
        ) as caught:
            init_network(network, path)
        assert "--network t3d-121 --set network.width=0.0625" in caught.value.remedy
        assert unchanged(network, before, list(before))

    def test_another_width_and_other_options_are_named(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.safetensors", small("c3d"))
        with pytest.raises(RunError, match=r"c3d at width 0\.0625, yours is c3d at width 0\.125"):
            init_network(small("c3d", width=0.125), path)
        path = save(tmp_path / "y.safetensors", small("lrcn", backbone="googlenet"))
        with pytest.raises(RunError, match="options differ: backbone is googlenet there, alexnet here"):
            init_network(small("lrcn", backbone="alexnet"), path)

    def test_2d_and_3d_are_told_apart(self, tmp_path: Path) -> None:
        two, three = save(tmp_path / "2.safetensors", flat()), save(tmp_path / "3.safetensors", small())
        with pytest.raises(RunError, match=f"Say inflate:{two} to inflate it"):
            init_network(small(), two)
        with pytest.raises(RunError, match=f"has its time axis already.*Say {three} without 'inflate:'"):
            init_network(small(), f"inflate:{three}")
        with pytest.raises(RunError, match=f"2D network densenet-121.*--init inflate:{two}"):
            load_network(two)
        with pytest.raises(RunError, match="densenet3d-121, a network of sequences, not a 2D network"):
            load_backbone(three)

    def test_2d_weights_for_a_network_of_other_layers(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.safetensors", flat())
        with pytest.raises(RunError, match=r"densenet-121 at width 0\.0625, yours is c3d") as caught:
            init_network(small("c3d"), f"inflate:{path}")
        assert "network.options.backbone=densenet-121" in caught.value.remedy


@pytest.mark.parametrize("name", ["densenet-121", "googlenet", "alexnet"])
def test_a_2d_network_comes_back_with_the_same_numbers(tmp_path: Path, name: str) -> None:
    network = flat(name, in_channels=2, tail="last")
    path = save(tmp_path / "weights.safetensors", network)
    again, card = load_backbone(path)
    x = torch.randn(1, 2, 64, 64)
    assert not again.training
    assert card["architecture"] == network.architecture
    with torch.no_grad():
        assert torch.equal(again(x), network.eval()(x))


@pytest.mark.parametrize("name", ["two-stream", "two-stream-fusion", "hidden-two-stream"])
def test_one_2d_network_fills_both_towers_each_for_its_own_channels(tmp_path: Path, name: str) -> None:
    source = save(tmp_path / "w.safetensors", flat("resnet-18", in_channels=3))
    rgb = load_backbone(source)[0].state_dict()
    options: dict[str, Any] = {"backbone": "resnet-18"}
    if name == "two-stream-fusion":
        options = {"spatial_backbone": "resnet-18", "temporal_backbone": "resnet-18"}
    if name == "hidden-two-stream":
        options = {"fields": 5}
    in_channels = 3 if name == "hidden-two-stream" else 3 + 10
    if "two-stream" in name and name != "hidden-two-stream":
        options["appearance_channels"] = 3
    network = small(name, in_channels=in_channels, **options)
    table = init_network(network, source, first_layer="mean")
    for row in table.rows:
        if row.target.startswith(("spatial.", "temporal.")):
            assert row.action in ("loaded", "adapted"), row
    assert torch.equal(network.spatial.trunk.conv1.weight, rgb["trunk.conv1.weight"])
    # TSN's way from RGB to flow: the mean over the three colours, for every channel.
    mean = rgb["trunk.conv1.weight"].mean(1, keepdim=True).expand(-1, 10, -1, -1)
    torch.testing.assert_close(network.temporal.trunk.conv1.weight, mean)
    for tower in (network.spatial, network.temporal):
        assert torch.equal(tower.trunk.layer4[1].conv2.weight, rgb["trunk.layer4.1.conv2.weight"])
