"""ONNX Runtime gives the numbers of torch, for every network of the registry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig
from volrec.inference import Predictor
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


@pytest.mark.parametrize("name", list_networks())
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
