"""ONNX Runtime gives the numbers of torch, for every network of the registry."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from torch import nn

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig
from volrec.errors import ConfigError
from volrec.inference import Predictor
from volrec.inference import onnx_runtime as module
from volrec.networks import create, list_networks

pytest.importorskip("onnxruntime")


def predictor(network: nn.Module, *, backend: str = "onnxruntime", length: int = 6, **options: object) -> Predictor:
    given = {"sampling": SamplingConfig(clip_length=length), "protocol": ProtocolConfig(stage="logits")} | options
    return Predictor(network, intensity=IntensityConfig(kind="zscore"), task="multiclass", backend=backend, **given)


def volume(slices: int, size: int) -> np.ndarray:
    return np.random.default_rng(slices).normal(size=(slices, size, size + 8)).astype(np.float32)


def lively(name: str, width: float = 1 / 16, **options: object) -> nn.Module:
    """A network whose scores are some tenths and more."""
    torch.manual_seed(1)
    network = create(name, num_classes=3, width=width, **options)
    nn.init.normal_(network.get_classifier().weight, std=0.1)
    return network


TRIED = [pytest.param(name, marks=pytest.mark.slow) if name.endswith("-169") else name for name in list_networks()]


@pytest.mark.parametrize("name", TRIED)
def test_every_network_scores_as_in_torch(name: str, capfd, recwarn) -> None:
    network = lively(name)
    voxels = volume(13, max(32, network.smallest[1]))
    expected = predictor(network, backend="torch").score(voxels, per_slice=True)
    capfd.readouterr()
    recwarn.clear()
    scorer = predictor(network)
    assert scorer.network is network
    found = scorer.score(voxels, per_slice=True)
    assert np.ptp(expected.logits) > 1e-3
    scale = max(1.0, float(np.abs(expected.logits).max()))
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5 * scale)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.per_slice, expected.per_slice, atol=1e-5)
    assert capfd.readouterr() == ("", "")
    assert not [str(each.message) for each in recwarn]


@pytest.mark.parametrize("name", ["slice-mean", "c3d"])
def test_features_mirrors_and_other_sizes_are_those_of_torch(name: str) -> None:
    network = lively(name)
    protocol = {"protocol": ProtocolConfig(flips=["W", "T"], overlap=0.75)}
    scorer, plain = predictor(network, **protocol), predictor(network, backend="torch", **protocol)
    for voxels in (volume(13, 32), volume(9, 40)):
        np.testing.assert_allclose(scorer.score(voxels).scores, plain.score(voxels).scores, atol=1e-5)
        np.testing.assert_allclose(scorer.features(voxels), plain.features(voxels), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="from T x H x W"):
        scorer.score(volume(9, 4)[:, :, :4])


def test_a_slicewise_network_encodes_each_slice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = predictor(lively("slice-mean"), protocol=ProtocolConfig(overlap=5 / 6))
    seen: list[int] = []
    encode = scorer.backend.encode
    monkeypatch.setattr(scorer.backend, "encode", lambda x: (seen.append(len(x)), encode(x))[1])
    assert scorer.score(volume(13, 32)).clips == 8
    assert seen == [13]


def test_a_network_is_made_ready_once_for_each_size_and_its_weights(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[bool] = []
    export = module._export
    monkeypatch.setattr(module, "_export", lambda *given: (made.append(True), export(*given))[1])
    network = lively("slice-mean")
    first = predictor(network)
    with caplog.at_level(logging.INFO, logger="volrec"):
        for slices in (13, 9, 40):
            first.score(volume(slices, 32))
    assert len(made) == 2  # slices, and clips of them
    assert len([line for line in caplog.messages if "ready for ONNX Runtime" in line]) == 2
    again = predictor(network)
    again.score(volume(13, 32))
    assert len(made) == 2
    first.score(volume(13, 40))
    assert len(made) == 3  # what clips are is the same
    with torch.no_grad():
        network.get_classifier().bias += 1
    changed = predictor(network)
    expected = predictor(network, backend="torch").score(volume(13, 32)).logits
    np.testing.assert_allclose(changed.score(volume(13, 32)).logits, expected, atol=1e-5)


def test_a_graph_that_gives_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = module._session

    class Off:
        def __init__(self, content: bytes) -> None:
            self.inner = session(content)

        def run(self, names: object, given: dict) -> list[np.ndarray]:
            return [self.inner.run(names, given)[0] * 1.001]

    monkeypatch.setattr(module, "_session", Off)
    with pytest.raises(ConfigError, match=r"slice-mean cannot be made ready .*differ by.*--backend torch"):
        predictor(lively("slice-mean")).score(volume(9, 32))


def test_what_cannot_be_exported_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j1(x.mean((1, 2, 3, 4)))[:, None] * self.weight

    with pytest.raises(ConfigError, match=r"Odd cannot be made ready for ONNX Runtime .*--backend torch"):
        predictor(Odd()).score(volume(9, 32))
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ConfigError, match=r"package onnxruntime\..*pip install 'volrec\[onnx\]'"):
        predictor(lively("slice-mean"))


def test_it_is_for_float32_on_the_processor_and_for_clips() -> None:
    with pytest.raises(ConfigError, match="precision bf16"):
        predictor(lively("slice-mean"), precision="bf16")
    with pytest.raises(ConfigError, match="no backend 'onnx'"):
        predictor(lively("slice-mean"), backend="onnx")
    with pytest.raises(ConfigError, match=r"chunks of many lengths.*--method clips, or --backend torch"):
        predictor(lively("c3d"), protocol=ProtocolConfig(method="dense"))


@pytest.mark.parametrize("sizes", [((3, 5, 7), (2, 3, 4)), ((4, 4, 4), (None, 5, 6)), ((2, 9, 9), (2, 1, 9))])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pools_to_so_many_positions_are_torchs(sizes: tuple, kind: str) -> None:
    x = torch.randn(2, 3, *sizes[0])
    pool = getattr(nn.functional, f"adaptive_{kind}_pool3d")
    found = module._adaptive_pool(x, sizes[1], re.match(r"adaptive_(avg|max)_pool(\d)d", f"adaptive_{kind}_pool3d"))
    torch.testing.assert_close(found, pool(x, sizes[1]))
