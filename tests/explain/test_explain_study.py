"""Maps of whole studies: the clips of the protocol put together, several members, several windows, motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from volrec.config import (
    FlowConfig,
    IntensityConfig,
    PreprocessConfig,
    ProtocolConfig,
    SamplingConfig,
    SeriesConfig,
    StreamsConfig,
)
from volrec.data.entries import StoredVolume, study_quantiles
from volrec.errors import ConfigError, DataError
from volrec.explain import METHODS, explain_study
from volrec.explain.study import empty_values
from volrec.inference import LoadedMember, Predictor
from volrec.inference.members import Contract
from volrec.networks import create
from volrec.transforms.clips import protocol_clips

WINDOWED = IntensityConfig(kind="window", windows=["brain", "bone"])
PLAIN = IntensityConfig(kind="none")


class Linear(nn.Module):
    """Weighs voxels by their place in the plane and their channel; every slice alike: what it sees can be computed."""

    def __init__(self, channels: int = 1, outputs: int = 2, size: tuple[int, int] = (6, 7)) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(outputs, channels, *size))
        self.num_classes = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bcthw,kchw->bk", x, self.weight)


def study(slices: int = 11, size: tuple[int, int] = (6, 7), seed: int = 0) -> StoredVolume:
    array = np.random.default_rng(seed).integers(-100, 200, (slices, *size)).astype(np.int16)
    return StoredVolume(array, np.diag([3.0, 1, 1, 1])[[2, 1, 0, 3]], study_quantiles(array))


def member(network: nn.Module, *, task: str = "multiclass", name: str = "fold-0", **options) -> LoadedMember:
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b"), "multilabel": ("a", "b"), "regression": ()}[task]
    targets = ("a", "b") if task == "multilabel" else ("size",)
    given = {"intensity": PLAIN, "sampling": SamplingConfig(clip_length=4), "protocol": ProtocolConfig()} | options
    contract = Contract(
        task=task,
        targets=targets,
        classes=classes,
        modality="CT",
        series=SeriesConfig(),
        preprocess=PreprocessConfig(),
        missing_slices="quarantine",
        intensity=given["intensity"],
        streams=given.get("streams") or StreamsConfig(),
    )
    return LoadedMember(name, Predictor(network, task=task, **given), {}, contract)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("slices", [3, 4, 11])
def test_where_clips_overlap_a_slice_has_the_mean_of_what_they_say(overlap: float, slices: int) -> None:
    """The network is linear: whichever clip a slice stands in, and however often, it says the same of it."""
    network, volume = Linear(), study(slices)
    found = explain_study(
        member(network, protocol=ProtocolConfig(overlap=overlap)), volume, method="integrated-gradients", output="b"
    )
    shown = volume.read().astype(np.float32) - float(volume.quantiles[0])
    expected = shown * network.weight[1, 0].detach().numpy()
    np.testing.assert_allclose(found.array, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.per_slice, expected.sum((1, 2)), rtol=1e-4, atol=1e-2)
    assert found.clips == len(protocol_clips(slices, clip_length=4, overlap=overlap))
    assert (found.output, found.method, found.signed) == ("b", "integrated-gradients", True)
    assert found.completeness is not None
    assert found.completeness["relative_gap"] < 1e-4
    np.testing.assert_array_equal(found.affine, volume.affine)


def test_slices_in_no_clip_have_no_evidence() -> None:
    protocol = ProtocolConfig(clips=1)
    found = explain_study(member(Linear(), protocol=protocol), study(12), method="integrated-gradients", output=0)
    (clip,) = protocol_clips(12, clip_length=4, clips=1)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(found.per_slice)), clip)
    others = np.setdiff1d(np.arange(12), clip)
    assert (found.array[others] == 0).all()
    assert (found.array[clip] != 0).any()


def test_members_are_averaged_and_named() -> None:
    first, second = (member(Linear(), name=f"fold-{n}") for n in range(2))
    with torch.no_grad():
        second.network.weight.mul_(3)
    each = [explain_study(one, study(), method="integrated-gradients", output="a").array for one in (first, second)]
    found = explain_study([first, second], study(), method="integrated-gradients", output="a")
    np.testing.assert_allclose(found.array, (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(each[1], 3 * each[0], rtol=1e-4, atol=1e-3)
    assert found.members == ("fold-0", "fold-1")


def test_windows_are_summed() -> None:
    network, volume = Linear(channels=2), study()
    found = explain_study(member(network, intensity=WINDOWED), volume, method="integrated-gradients", output="a")
    voxels = torch.from_numpy(volume.read())[None, None]
    x = Predictor(network, intensity=WINDOWED, sampling=SamplingConfig(), protocol=ProtocolConfig(), task="multiclass")
    images, nothing = (x.input.intensity(part) for part in (voxels, voxels.amin().reshape(1, 1, 1, 1, 1)))
    expected = ((images - nothing) * network.weight[0][None, :, None]).sum(1)[0].detach().numpy()
    np.testing.assert_allclose(found.array, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "expected"), [("minimum", [0.0, 0.0]), ("edge", [0.0, 0.0]), ("zero", [0.0, 0.2777778])]
)
def test_an_empty_canvas_is_what_padding_shows(padding: str, expected: list[float]) -> None:
    one = member(Linear(channels=2), intensity=WINDOWED)
    volume = study()
    dark = StoredVolume(volume.array - 600, volume.affine, volume.quantiles - 600)
    np.testing.assert_allclose(empty_values(one.predictor, dark, padding=padding).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.only])
def test_a_bright_slab_that_decides_is_found(method: str) -> None:
    """A bright cube of the study makes the class; its place is known in the patient."""

    class Cube(nn.Module):
        cam_layer = "maps"
        num_classes = 1

        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Sequential(nn.AvgPool3d((1, 4, 4), (1, 2, 2)), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.maps(x) ** 2).amax((2, 3, 4))

    array = np.random.default_rng(0).integers(0, 10, (14, 16, 20)).astype(np.int16)
    array[6:8, 4:8, 12:16] += 300
    affine = np.array([[0.0, 0, 0.7, -50], [0, 0.7, 0, -60], [2.5, 0, 0, 100], [0, 0, 0, 1]])
    volume = StoredVolume(array, affine, study_quantiles(array))
    one = member(Cube(), task="binary", intensity=IntensityConfig(kind="percentile", percentiles=(0, 100)))
    known = METHODS[method].options
    options = {name: value for name, value in {"block": [1, 4, 4], "samples": 4, "steps": 8}.items() if name in known}
    if method == "occlusion":
        options["slab"] = 3  # one bright slice alone is enough for this network
    found = explain_study(one, volume, method=method, options=options)
    assert found.output == "yes"
    t, h, w = np.unravel_index(found.array.argmax(), found.array.shape)
    place = (found.affine @ [t, h, w, 1])[:3]
    low, high = (affine @ [6, 4, 12, 1])[:3], (affine @ [7, 7, 15, 1])[:3]
    assert low[2] - 0.1 <= place[2] <= high[2] + 0.1
    if method != "occlusion":
        assert (place >= low - 0.71).all()
        assert (place <= high + 0.71).all()
    assert np.nanargmax(found.per_slice) in (6, 7)


class TestWhichOutput:
    @pytest.mark.parametrize(
        ("task", "output", "expected"),
        [
            ("binary", None, "yes"),
            ("binary", "no", "no"),
            ("binary", 1, "yes"),
            ("multiclass", "a", "a"),
            ("multiclass", "1", "b"),
            ("multilabel", "b", "b"),
            ("regression", None, "size"),
        ],
    )
    def test_it_is_named(self, task: str, output: str | int | None, expected: str) -> None:
        network = Linear(outputs=1 if task in ("binary", "regression") else 2)
        found = explain_study(member(network, task=task), study(), method="integrated-gradients", output=output)
        assert found.output == expected

    def test_the_called_class_is_the_default_of_several(self) -> None:
        network = Linear()
        found = explain_study(member(network), study(), method="integrated-gradients")
        assert found.output == max(found.scores, key=found.scores.__getitem__)
        with torch.no_grad():
            network.weight.mul_(-1)
        other = explain_study(member(network), study(), method="integrated-gradients")
        assert other.output != found.output

    def test_the_negative_class_is_the_opposite_of_the_positive(self) -> None:
        one = member(Linear(outputs=1), task="binary")
        yes, no = (explain_study(one, study(), method="integrated-gradients", output=name) for name in ("yes", "no"))
        np.testing.assert_allclose(yes.array, -no.array, rtol=1e-5)

    @pytest.mark.parametrize("output", ["c", "2", 5, "-1"])
    def test_one_that_is_not_there_is_said(self, output: str | int) -> None:
        with pytest.raises(ConfigError, match="one of a, b"):
            explain_study(member(Linear()), study(), method="integrated-gradients", output=output)


def test_networks_that_read_motion_are_explained_by_all_their_channels() -> None:
    streams = StreamsConfig(inputs=["intensity", "flow"], flow=FlowConfig(method="demons", stack=1))
    torch.manual_seed(0)
    network = create("two-stream", num_classes=1, in_channels=3, width=1 / 16)
    one = member(network, task="binary", streams=streams, intensity=IntensityConfig())
    volume = study(6, size=tuple(network.smallest[1:]))
    assert torch.equal(empty_values(one.predictor, volume), torch.zeros(3)), "nothing moves in an empty canvas"
    for method in ("gradcam", "occlusion", "integrated-gradients"):
        found = explain_study(one, volume, method=method)
        assert found.array.shape == volume.shape
        assert np.isfinite(found.array).all()


def test_what_is_done_is_told_and_never_goes_back() -> None:
    for method in ("gradcam", "occlusion", "integrated-gradients"):
        network = create("slice-mean", num_classes=2, width=1 / 16)
        seen: list[float] = []
        volume = study(11, size=tuple(network.smallest[1:]))
        members = [member(network), member(network, name="fold-1")]
        explain_study(members, volume, method=method, tick=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == 1.0
        assert 0 < seen[0] <= 0.5


def test_a_map_that_is_no_number_is_an_error() -> None:
    class Broken(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return logits * (logits - logits.detach()).abs().sqrt() + logits  # its gradient is no number

    with pytest.raises(DataError, match="no numbers"):
        explain_study(member(Broken()), study(), method="integrated-gradients", output="a")
