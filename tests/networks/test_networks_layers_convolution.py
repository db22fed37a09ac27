"""A single clip takes oneDNN's convolution where no gradient is needed, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from volrec.networks import create
from volrec.networks.layers import Conv3d, SameConv3d


@pytest.fixture
def taken(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN was asked for directly."""
    seen: list[tuple[int, ...]] = []
    original = torch.mkldnn_convolution

    def counted(x, *rest):
        seen.append(tuple(x.shape))
        return original(x, *rest)

    monkeypatch.setattr(torch, "mkldnn_convolution", counted)
    return seen


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(3, 9)] * 3),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 2)] * 3),
    padding=st.tuples(*[st.integers(0, 1)] * 3),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_gives_the_numbers_of_a_float64_convolution(size, kernel, stride, padding, groups, bias):
    conv = Conv3d(4, 6, kernel, stride, padding, groups=groups, bias=bias)
    x = torch.randn(1, 4, *size)
    weight, offset = conv.weight.double(), None if conv.bias is None else conv.bias.double()
    expected = F.conv3d(x.double(), weight, offset, stride, padding, 1, groups)
    with torch.inference_mode():
        torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_asks_for_it_only_for_one_clip_without_gradients_in_single_precision(taken):
    conv = Conv3d(2, 3, 3, padding=1)
    clip = torch.randn(1, 2, 4, 5, 6)
    conv(clip)
    with torch.no_grad():
        conv(clip.expand(2, -1, -1, -1, -1))
        with torch.autocast("cpu", torch.bfloat16):
            conv(clip)
        Conv3d(2, 3, 3).double()(clip.double())
        assert not taken
        conv(clip)
        SameConv3d(2, 3, 3, stride=2)(clip)
    assert taken == [(1, 2, 4, 5, 6), (1, 2, 5, 7, 7)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("c3d", {}),
        ("i3d", {}),
        ("i3d", {"temporal_padding": "replicate"}),
        ("t3d-121", {}),
        ("ltc", {}),
        ("slow-fusion", {}),
    ],
)
def test_networks_score_single_clips_with_it(name, options, taken):
    torch.manual_seed(0)
    network = create(name, num_classes=2, width=1 / 16, **options).eval()
    x = torch.randn(1, 1, 6, 40, 40)
    expected = network(x)
    assert not taken
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    convolutions = sum(isinstance(module, Conv3d) for module in network.modules())
    assert len(taken) == convolutions


def test_a_traced_network_holds_the_ordinary_convolution():
    conv = Conv3d(1, 2, 3, padding=1).eval()
    with torch.no_grad():
        traced = torch.jit.trace(conv, torch.randn(1, 1, 4, 5, 6))
    assert "mkldnn" not in str(traced.inlined_graph)
    x = torch.randn(3, 1, 4, 5, 6)
    torch.testing.assert_close(traced(x), conv(x))


def test_takes_a_clip_without_a_batch_axis(taken):
    conv = Conv3d(1, 2, 3)
    clip = torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(conv(clip), conv(clip[None])[0], rtol=1e-4, atol=1e-5)
    assert taken == [(1, 1, 4, 5, 6)]
