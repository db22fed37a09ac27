from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from volrec.networks.layers import SameConv3d, SameMaxPool3d, same_padding

SIZES, KERNELS, STRIDES = range(1, 9), range(1, 6), range(1, 4)
AXIS = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
AXES = st.tuples(AXIS, AXIS, AXIS)


def windows(size: int, kernel: int, stride: int) -> list[tuple[slice, slice]]:
    """Slices (of the input, of the kernel) that meet for every output, by TensorFlow's definition of SAME.

    ceil(size / stride) outputs; the padding that the last window needs in all, half of it (rounded down) in front.
    """
    out = -(-size // stride)
    front = max((out - 1) * stride + kernel - size, 0) // 2
    met = []
    for start in range(-front, -front + out * stride, stride):
        first, last = max(start, 0), min(start + kernel, size)
        met.append((slice(first, last), slice(first - start, last - start)))
    return met


def meetings(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]):
    """Index of every output position with the voxels and the taps of the kernel that meet there; size of the output."""
    axes = [windows(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    size = tuple(len(axis) for axis in axes)
    found = []
    for index in itertools.product(*map(range, size)):
        pairs = [axis[i] for axis, i in zip(axes, index, strict=True)]
        found.append((index, [voxels for voxels, _ in pairs], [taps for _, taps in pairs]))
    return found, size


def loop_conv(x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    found, size = meetings(x, weight.shape[2:], stride)
    out = torch.empty(x.shape[0], weight.shape[0], *size, dtype=torch.float64)
    for index, voxels, taps in found:
        product = x.double()[(..., *voxels)].unsqueeze(1) * weight.double()[(..., *taps)]
        out[(..., *index)] = product.flatten(2).sum(2)
    return out


def loop_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    found, size = meetings(x, kernel, stride)
    out = torch.empty(*x.shape[:2], *size, dtype=torch.float64)
    for index, voxels, _ in found:
        out[(..., *index)] = x.double()[(..., *voxels)].flatten(2).amax(2)
    return out


def along(axis: int, value: int) -> tuple[int, ...]:
    """`value` on one axis, 1 on the others."""
    return tuple(value if d == axis else 1 for d in range(3))


def split(axes) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    sizes, kernel, stride = zip(*axes, strict=True)
    return sizes, kernel, stride


class TestPadding:
    @pytest.mark.parametrize(
        ("size", "kernel", "stride", "expected"),
        [
            (64, 7, 2, (2, 3)),  # the first layer of I3D: the odd voxel lies at the end
            (65, 7, 2, (3, 3)),
            (112, 3, 2, (0, 1)),
            (113, 3, 2, (1, 1)),
            (7, 2, 2, (0, 1)),
            (8, 2, 2, (0, 0)),
            (5, 4, 1, (1, 2)),
            (9, 1, 3, (0, 0)),  # the stride passes over the last voxels: nothing to pad
            (1, 3, 1, (1, 1)),
        ],
    )
    def test_known_cases(self, size, kernel, stride, expected):
        assert same_padding(size, kernel, stride) == expected

    @given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 4))
    def test_gives_just_enough_for_the_last_window(self, size, kernel, stride):
        before, after = same_padding(size, kernel, stride)
        assert 0 <= after - before <= 1
        last = (-(-size // stride) - 1) * stride - before
        # The last window starts inside and ends with the padding, or inside where there is none.
        assert last < size
        assert last + kernel == size + after or (before, after) == (0, 0)


class TestConvolution:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_equals_a_loop_in_float64_at_every_size_kernel_and_stride(self, axis):
        torch.manual_seed(0)
        for size, kernel, stride in itertools.product(SIZES, KERNELS, STRIDES):
            conv = SameConv3d(1, 1, along(axis, kernel), along(axis, stride), bias=False)
            x = torch.randn(1, 1, *along(axis, size))
            expected = loop_conv(x, conv.weight.detach(), along(axis, stride))
            torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)

    @settings(max_examples=15, deadline=None)
    @given(AXES)
    def test_equals_a_loop_in_float64_on_all_axes_together(self, axes):
        sizes, kernel, stride = split(axes)
        torch.manual_seed(0)
        conv = SameConv3d(2, 3, kernel, stride, bias=False)
        x = torch.randn(2, 2, *sizes)
        expected = loop_conv(x, conv.weight.detach(), stride)
        torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)

    def test_keeps_bias_and_groups(self):
        torch.manual_seed(0)
        conv = SameConv3d(4, 6, (2, 3, 4), (1, 2, 3), groups=2)
        x = torch.randn(1, 4, 5, 6, 7)
        halves = [
            loop_conv(x[:, 2 * g : 2 * g + 2], conv.weight.detach()[3 * g : 3 * g + 3], (1, 2, 3)) for g in (0, 1)
        ]
        expected = torch.cat(halves, 1) + conv.bias.detach().double()[:, None, None, None]
        torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)

    def test_one_number_means_all_axes_and_gradients_flow(self):
        conv = SameConv3d(1, 1, 3, 2)
        x = torch.randn(1, 1, 4, 5, 6, requires_grad=True)
        out = conv(x)
        assert out.shape == (1, 1, 2, 3, 3)
        out.sum().backward()
        assert (x.grad != 0).all()


class TestMaxPool:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_equals_a_loop_in_float64_at_every_size_kernel_and_stride(self, axis):
        torch.manual_seed(0)
        for size, kernel, stride in itertools.product(SIZES, KERNELS, STRIDES):
            x = torch.randn(1, 1, *along(axis, size)) - 10
            pool = SameMaxPool3d(along(axis, kernel), along(axis, stride))
            expected = loop_pool(x, along(axis, kernel), along(axis, stride))
            assert torch.equal(pool(x).double(), expected), (size, kernel, stride)

    @settings(max_examples=15, deadline=None)
    @given(AXES)
    def test_equals_a_loop_in_float64_on_all_axes_together(self, axes):
        sizes, kernel, stride = split(axes)
        torch.manual_seed(0)
        # All below zero: padding with zeros would win at the edges.
        x = torch.randn(2, 3, *sizes) - 10
        assert torch.equal(SameMaxPool3d(kernel, stride)(x).double(), loop_pool(x, kernel, stride))

    @pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (7, 8, 9)])
    def test_reads_every_voxel(self, size):
        pool = SameMaxPool3d((2, 3, 3), 2)
        for index in range(size[0] * size[1] * size[2]):
            x = torch.zeros(1, 1, *size)
            x.view(-1)[index] = 1
            assert pool(x).max() == 1, index

    def test_shows_its_sizes(self):
        assert str(SameMaxPool3d(3, [1, 2, 2])) == "SameMaxPool3d(kernel_size=(3, 3, 3), stride=(1, 2, 2))"
