"""The dense protocol against whole sequences, against clips, and against itself in other chunks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig
from volrec.errors import ConfigError
from volrec.inference import Predictor, dense
from volrec.inference import predictor as module
from volrec.networks import SlicewiseNetwork, create, list_networks, spec

REFUSED = {"early-fusion": "do not grow", "hidden-two-stream": "no axis of slices"}
"""Networks that read clips and are not local along slices, with what is said of them."""
DENSE = [name for name in list_networks() if not spec(name).slicewise and name not in REFUSED]
# t3d-121 is to densenet3d-121 what t3d-169 is to densenet3d-169: the slow ones of a kind run by name.
SLOW = {"densenet3d-169", "t3d-169", "t3d-121"}
TRIED = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in DENSE]
DEEP = {"densenet3d-121", "densenet3d-169", "t3d-121", "t3d-169", "i3d"}
"""Whose reach is that of whole studies: tried on lengths of their own."""


def lively(name: str, width: float = 1 / 16, **options: object) -> nn.Module:
    torch.manual_seed(2)
    network = create(name, num_classes=2, width=width, **options)
    nn.init.normal_(network.get_classifier().weight, std=0.3)
    return network.eval()


def volume(slices: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(slices).normal(size=(slices, size, size)).astype(np.float32)


def predictor(network: nn.Module, length: int, **options: object) -> Predictor:
    sampling = options.pop("sampling", {})
    protocol = ProtocolConfig(**{"method": "dense", "stage": "logits"} | options)
    return Predictor(
        network,
        intensity=IntensityConfig(kind="none"),
        sampling=SamplingConfig(clip_length=length, **sampling),
        protocol=protocol,
        task="multiclass",
    )


def head_of_every_window(network, x: torch.Tensor, length: int) -> torch.Tensor:
    """Return the logits (windows, K) by the definition: maps of the whole, the head on each run of positions."""
    with torch.no_grad():
        positions = network.forward_features(x[:, :, :length]).shape[2]
        maps = network.forward_features(x)
        runs = range(maps.shape[2] - positions + 1)
        return torch.cat([network.forward_head(maps[:, :, p : p + positions]) for p in runs])


def reader(x: torch.Tensor, read: list[int]):
    """Return what reads a part of the slices, and notes how many."""

    def part(start: int, stop: int) -> torch.Tensor:
        read.append(stop - start)
        return x[:, :, start:stop]

    return part


@pytest.mark.parametrize("name", [name for name in list_networks() if name not in DENSE])
def test_networks_that_are_not_convolutional_along_slices_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not: .*{REFUSED.get(name, 'encodes every slice once')}") as told:
        predictor(lively(name), 8)
    assert "--method clips" in str(told.value)


@pytest.mark.parametrize("name", TRIED)
def test_dense_is_the_head_on_every_run_of_positions_of_the_whole_study(name: str) -> None:
    network = lively(name)
    voxels = volume(45)
    x = torch.from_numpy(voxels)[None, None]
    expected = head_of_every_window(network, x, 16)
    found = predictor(network, 16).score(voxels)
    assert found.clips == len(expected) > 1
    np.testing.assert_allclose(found.logits, expected.double().mean(0), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        whole = network(x)[0]
    one = predictor(network, 45).score(voxels)
    assert one.clips == 1
    np.testing.assert_allclose(one.logits, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRIED)
def test_chunks_change_no_number(name: str) -> None:
    network = lively(name, width=1 / 32).double()
    along = dense.along_slices(network)
    behind, before = along.reach(along.stride)
    for rest in (0, 1, along.stride - 1) if name not in DEEP else (along.stride // 2 + 1,):
        slices = (behind + before + 6) * along.stride + rest
        edge = network.smallest[1]
        x = torch.randn(1, 1, slices, edge, edge, dtype=torch.float64)
        with torch.no_grad():
            whole = network.forward_features(x)
            total = along.positions(slices)
            assert whole.shape[2] == total
            for core in (1, 4, total - 1, total) if name not in DEEP else (total - 2, total // 2):
                read: list[int] = []
                chunks = list(dense.dense_maps(network.forward_features, reader(x, read), along, slices, core=core))
                assert [part.shape[2] for part in chunks[:-1]] == [core] * (len(chunks) - 1)
                parted = torch.cat(chunks, dim=2)
                np.testing.assert_allclose(parted, whole, rtol=1e-12, atol=1e-12 * float(whole.abs().max()))
                # A chunk reads no more than it has to.
                assert max(read) <= (core + behind + before + 1) * along.stride + rest


@pytest.mark.parametrize("options", [{"temporal_strides": [1, 3, 2, 1, 1]}, {"norm": "none"}, {"shrink": 3}])
def test_any_stride_is_found(options: dict) -> None:
    network = lively("c3d", width=1 / 32, **options)
    along = dense.along_slices(network)
    assert along.stride == {"temporal_strides": 6, "norm": 16, "shrink": 48}[next(iter(options))]
    x = torch.randn(1, 1, (sum(along.reach(2)) + 4) * along.stride + 2, 48, 48)
    with torch.no_grad():
        chunks = dense.dense_maps(network.forward_features, reader(x, []), along, x.shape[2], core=1)
        torch.testing.assert_close(torch.cat(list(chunks), dim=2), network.forward_features(x))


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_normalisation_over_the_clip_is_refused(norm: str) -> None:
    with pytest.raises(ConfigError, match=r"Norm.* reads the whole clip"):
        predictor(lively("c3d", norm=norm), 8)


def test_a_network_that_knows_the_place_of_a_slice_is_refused() -> None:
    class Placed(type(lively("inflated"))):  # type: ignore[misc]
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            place = torch.linspace(0, 1, x.shape[2], device=x.device, dtype=x.dtype)
            return super().forward_features(x * place[:, None, None])

    network = lively("inflated")
    network.__class__ = Placed
    del network.architecture
    with pytest.raises(ConfigError, match="depends on its place"):
        predictor(network, 8)


def test_without_padding_along_slices_dense_is_clips_at_every_place() -> None:
    network = lively("cnn3d-ji", width=1.0, faithful=True)
    voxels = np.random.default_rng(0).normal(size=(19, 60, 40)).astype(np.float32)
    found = predictor(network, 7).score(voxels, per_slice=True)
    clips = predictor(network, 7, method="clips", overlap=0.99).score(voxels, per_slice=True)
    assert found.clips == clips.clips == 13
    np.testing.assert_allclose(found.logits, clips.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.per_slice, clips.per_slice, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slices", [1, 5, 15, 16])
def test_a_study_no_longer_than_a_clip_is_one_clip(slices: int) -> None:
    network = lively("c3d")
    voxels = volume(slices)
    found = predictor(network, 16).score(voxels)
    clips = predictor(network, 16, method="clips").score(voxels)
    assert found.clips == clips.clips == 1
    np.testing.assert_allclose(found.logits, clips.logits, rtol=1e-6)


@pytest.mark.parametrize("flips", [["T"], ["W"], ["T", "H"]])
@pytest.mark.parametrize("slices", [45, 48])
def test_mirrored_views_are_mirrored_studies(flips: list[str], slices: int) -> None:
    network = lively("ltc")
    voxels = volume(slices)
    found = predictor(network, 16, flips=flips).score(voxels).logits
    axes = {"T": 2, "H": 3, "W": 4}
    views = [torch.from_numpy(voxels)[None, None]]
    for axis in flips:
        views += [view.flip(axes[axis]) for view in views]
    each = [head_of_every_window(network, view, 16).double().mean(0).numpy() for view in views]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert np.abs(each[0] - found).max() > 1e-3


def test_views_are_averaged_at_the_same_place_of_the_study() -> None:
    network = lively("ltc")
    voxels = volume(96)
    found = predictor(network, 16, flips=["T"], consensus="max").score(voxels).logits
    x = torch.from_numpy(voxels)[None, None]
    there, back = head_of_every_window(network, x, 16), head_of_every_window(network, x.flip(2), 16)
    expected = ((there + back.flip(0)) / 2).double().amax(0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_stride_reads_interleaved_sequences() -> None:
    network = lively("c3d")
    voxels = volume(51)
    found = predictor(network, 16, sampling={"stride": 2}).score(voxels, per_slice=True)
    parts = [head_of_every_window(network, torch.from_numpy(voxels[p::2])[None, None], 16) for p in (0, 1)]
    np.testing.assert_allclose(found.logits, torch.cat(parts).double().mean(0), rtol=1e-5, atol=1e-6)
    assert np.isfinite(found.per_slice).all()


def test_little_memory_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively("c3d")
    voxels = volume(200)
    options = {"flips": ["T"], "consensus": "max"}
    whole = predictor(network, 16, **options)
    expected, features = whole.score(voxels, per_slice=True), whole.features(voxels)
    shown: list[int] = []
    forward = network.forward_features
    monkeypatch.setattr(network, "forward_features", lambda x: shown.append(x.shape[2]) or forward(x))
    monkeypatch.setattr(module, "BUDGET", 32 * 32)
    found = predictor(network, 16, **options).score(voxels, per_slice=True)
    assert max(shown) < 100
    for one, other in ((found.logits, expected.logits), (found.per_slice, expected.per_slice)):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(whole.features(voxels), features, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        maps = forward(torch.from_numpy(voxels)[None, None])
        backwards = forward(torch.from_numpy(voxels[::-1].copy())[None, None])
        runs = [network.forward_head(m[:, :, p : p + 1], pre_logits=True) for m in (maps, backwards) for p in range(13)]
    np.testing.assert_allclose(features, torch.cat(runs).double().mean(0), rtol=1e-5, atol=1e-6)


def test_finding_out_leaves_random_numbers_and_the_network_alone() -> None:
    dense._KNOWN.clear()
    network = lively("ltc").train()
    kept = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    predictor(network, 16)
    assert torch.equal(torch.rand(3), expected)
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[name])


@pytest.mark.parametrize("mode", ["uniform", "segments"])
def test_spread_clips_have_no_place_in_the_study(mode: str) -> None:
    with pytest.raises(ConfigError, match=rf"spread over it \({mode}\).*--method clips"):
        predictor(lively("c3d"), 8, sampling={"train": mode})


def test_every_slicewise_network_says_so() -> None:
    assert all(spec(name).slicewise == isinstance(lively(name), SlicewiseNetwork) for name in list_networks())
