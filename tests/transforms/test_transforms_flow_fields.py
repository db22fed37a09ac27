"""Stacks of flow, their storage, mirrors, linear maps and warping, against loops over pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volrec.errors import ConfigError, DataError
from volrec.transforms.flow_fields import (
    STACK_ORDERS,
    dequantise,
    flip_flow,
    from_pictures,
    quantise,
    stack_fields,
    subtract_mean_motion,
    transform_vectors,
    warp,
)

COUNT, HEIGHT, WIDTH = 6, 7, 9


def some_fields(seed=0, size=2.0):
    return np.random.default_rng(seed).normal(0, size, (COUNT, 2, HEIGHT, WIDTH)).astype(np.float32)


def bilinear(plane, x, y):
    return ndimage.map_coordinates(plane.astype(float), [[y], [x]], order=1, mode="nearest")[0]


def slow_stack(fields, t, length, order):
    """Stack one slice, pixel by pixel, in float64."""

    def field(i):
        return fields[min(max(i, 0), len(fields) - 1)].astype(float)

    out = np.zeros((2 * length, *fields.shape[2:]))
    for k in range(length):
        if order == "forward":
            out[2 * k : 2 * k + 2] = field(t + k)
        elif order == "centred":
            out[2 * k : 2 * k + 2] = field(t - length // 2 + k)
        elif order == "bidirectional":
            half = length // 2
            out[2 * k : 2 * k + 2] = field(t + k) if k < half else -field(t - 1 - (k - half))
    if order == "trajectory":
        for h in range(fields.shape[2]):
            for w in range(fields.shape[3]):
                x, y = float(w), float(h)
                for k in range(length):
                    dx, dy = (bilinear(component, x, y) for component in field(t + k))
                    out[2 * k : 2 * k + 2, h, w] = dx, dy
                    x = min(max(x + dx, 0), fields.shape[3] - 1)
                    y = min(max(y + dy, 0), fields.shape[2] - 1)
    return out


class TestStackFields:
    @pytest.mark.parametrize("order", STACK_ORDERS)
    @pytest.mark.parametrize("length", [2, 4])
    def test_equals_a_loop_over_slices_and_pixels_to_the_ends_of_the_stack(self, order, length):
        fields = some_fields()
        indices = [0, 5, 2, 6, 2]  # 6 is the last slice, which no field starts from
        found = stack_fields(fields, indices, length=length, order=order)
        assert found.shape == (2 * length, 5, HEIGHT, WIDTH)
        assert found.dtype == np.float32
        for n, t in enumerate(indices):
            np.testing.assert_allclose(found[:, n], slow_stack(fields, t, length, order), atol=2e-4)
            np.testing.assert_array_equal(stack_fields(fields, t, length=length, order=order), found[:, n])

    def test_an_odd_centred_stack_starts_half_a_length_before(self):
        fields = some_fields()
        np.testing.assert_array_equal(
            stack_fields(fields, 3, length=3, order="centred"), fields[2:5].reshape(6, HEIGHT, WIDTH)
        )

    @pytest.mark.parametrize("order", STACK_ORDERS)
    def test_reads_integers_of_a_memory_map_and_gives_them_back(self, tmp_path, order):
        fields = some_fields(size=1.5)
        np.save(tmp_path / "flow.npy", quantise(fields, bound=4.0))
        stored = np.load(tmp_path / "flow.npy", mmap_mode="r")
        found = stack_fields(stored, [0, 4, 6], length=4, order=order, bound=4.0)
        assert found.dtype == np.int16
        assert not isinstance(found, np.memmap)
        exact = stack_fields(dequantise(stored, bound=4.0), [0, 4, 6], length=4, order=order)
        np.testing.assert_allclose(dequantise(found, bound=4.0), exact, atol=2e-3)
        if order != "trajectory":
            np.testing.assert_array_equal(dequantise(found, bound=4.0), exact)

    def test_a_trajectory_follows_something_that_moves(self):
        # One pixel carries a mark through the stack; its path is sampled along itself.
        fields = np.zeros((4, 2, 12, 12), dtype=np.float32)
        path = [(2, 3), (4, 4), (7, 6), (8, 9)]  # (x, y)
        for t, ((x, y), (next_x, next_y)) in enumerate(itertools.pairwise(path)):
            fields[t, :, y, x] = next_x - x, next_y - y
        found = stack_fields(fields, 0, length=3, order="trajectory")[:, 3, 2]
        assert found.tolist() == [2, 1, 3, 2, 1, 3]
        assert stack_fields(fields, 0, length=3)[:, 3, 2].tolist() == [2, 1, 0, 0, 0, 0]

    def test_one_slice_has_zeros(self):
        for dtype in (np.float32, np.int16):
            found = stack_fields(np.zeros((0, 2, 4, 5), dtype), [0, 0], length=3)
            assert found.shape == (6, 2, 4, 5)
            assert found.dtype == dtype
            assert not found.any()

    def test_no_slices_have_no_stacks(self):
        assert stack_fields(some_fields(), np.zeros(0, int), length=2).shape == (4, 0, HEIGHT, WIDTH)

    @pytest.mark.parametrize(
        ("fields", "index", "options", "error", "message"),
        [
            (some_fields(), 7, {"length": 2}, DataError, r"from 0 to 6, got \[7\]"),
            (some_fields(), [0, -1], {"length": 2}, DataError, r"\[0, -1\]"),
            (some_fields(), 1.5, {"length": 2}, DataError, r"\[1.5\]"),
            (some_fields(), 0, {"length": 0}, ConfigError, "0 fields"),
            (some_fields(), 0, {"length": 5, "order": "bidirectional"}, ConfigError, "an even number"),
            (some_fields(), 0, {"length": 2, "order": "backward"}, ConfigError, "'backward'"),
            (some_fields()[:, :1], 0, {"length": 2}, DataError, "shape"),
            (some_fields().astype(np.uint8), 0, {"length": 2}, DataError, "from_pictures"),
        ],
    )
    def test_says_what_was_seen(self, fields, index, options, error, message):
        with pytest.raises(error, match=message):
            stack_fields(fields, index, **options)


class TestStorage:
    @given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=30), st.sampled_from([1.0, 20.0, 50.0]))
    @settings(max_examples=60, deadline=None)
    def test_integers_lose_half_a_step_and_clip_at_the_bound(self, values, bound):
        stored = quantise(np.array(values), bound=bound)
        assert stored.dtype == np.int16
        back = dequantise(stored, bound=bound)
        assert back.dtype == np.float32
        assert np.abs(back - np.clip(values, -bound, bound)).max() <= bound / 65534 + bound * 1e-6
        assert (quantise(-np.array(values), bound=bound) == -stored).all()
        assert stored.min() >= -32767

    @given(st.floats(-20, 20), st.sampled_from([15.0, 20.0]))
    @settings(max_examples=60, deadline=None)
    def test_pictures_lose_at_most_one_step(self, displacement, bound):
        kept = np.clip(displacement, -bound, bound)
        picture = np.array([np.rint((kept + bound) * 255 / (2 * bound))], dtype=np.uint8)
        assert abs(from_pictures(picture, bound=bound)[0] - kept) <= bound / 127.5 + 1e-5

    def test_a_picture_of_128_is_still(self):
        found = from_pictures(np.array([0, 128, 255], np.uint8), bound=20)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [-128 * 20 / 127.5, 0, 127 * 20 / 127.5])

    def test_refuses_what_is_no_displacement(self):
        with pytest.raises(DataError, match="not finite"):
            quantise(np.array([0.0, np.nan]))
        with pytest.raises(ConfigError, match="got 0"):
            quantise(np.zeros(2), bound=0)
        with pytest.raises(ConfigError, match="got -1"):
            dequantise(np.zeros(2, np.int16), bound=-1)
        with pytest.raises(DataError, match="int16"):
            from_pictures(np.zeros(2, np.int16))


def scene(seed=0):
    return np.random.default_rng(seed).random((HEIGHT, WIDTH)).astype(np.float32)


class TestMirror:
    @pytest.mark.parametrize("axes", [["W"], ["H"], ["H", "W"], []])
    @pytest.mark.parametrize("kind", ["numpy", "torch", "int16"])
    def test_warping_the_mirrored_slice_gives_the_mirrored_warp(self, axes, kind):
        fields, image = np.rint(some_fields(size=2)), scene()
        dims = [{"H": -2, "W": -1}[name] for name in axes]
        given_fields = {"numpy": fields, "torch": torch.from_numpy(fields), "int16": fields.astype(np.int16)}[kind]
        before = np.asarray(given_fields).copy()
        mirrored = flip_flow(given_fields, axes)
        assert type(mirrored) is type(given_fields)
        assert mirrored.dtype == given_fields.dtype
        np.testing.assert_array_equal(np.asarray(given_fields), before)
        for field, turned in zip(fields, np.asarray(mirrored), strict=True):
            np.testing.assert_array_equal(warp(np.flip(image, dims).copy(), turned), np.flip(warp(image, field), dims))

    def test_the_channels_may_lie_elsewhere(self):
        fields = some_fields()
        expected = flip_flow(fields, ["H", "W"])
        channel_first = flip_flow(fields.swapaxes(0, 1), ["H", "W"], axis=-4)
        np.testing.assert_array_equal(channel_first.swapaxes(0, 1), expected)
        stack = flip_flow(fields.reshape(2 * COUNT, HEIGHT, WIDTH), ["H", "W"])
        np.testing.assert_array_equal(stack.reshape(expected.shape), expected)

    def test_time_and_single_channels_are_refused(self):
        with pytest.raises(ConfigError, match=r"'T'.*reversed volume"):
            flip_flow(some_fields(), ["T"])
        with pytest.raises(DataError, match="pairs"):
            flip_flow(np.zeros((3, 4, 5)), ["W"])


class TestLinearMaps:
    @pytest.mark.parametrize("kind", ["numpy", "torch"])
    def test_vectors_go_where_the_content_goes(self, kind):
        matrix = np.array([[0.8, -0.7], [0.5, 1.1]])
        fields = some_fields()
        found = transform_vectors(torch.from_numpy(fields) if kind == "torch" else fields, matrix)
        expected = np.einsum("ij,tjhw->tihw", matrix, fields)
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)
        stack = transform_vectors(fields.reshape(2 * COUNT, HEIGHT, WIDTH), matrix)
        np.testing.assert_allclose(stack.reshape(expected.shape), expected, atol=1e-5)

    def test_a_motion_seen_through_a_turned_camera_is_the_turned_motion(self):
        # Content at p moves by d; after the map A it is at A p and moves by A (p + d) - A p.
        angle = np.deg2rad(30)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        p, d = np.array([3.0, -1.0]), np.array([0.5, 2.0])
        field = d.reshape(2, 1, 1).astype(np.float32)
        np.testing.assert_allclose(transform_vectors(field, turn)[:, 0, 0], turn @ (p + d) - turn @ p, atol=1e-6)

    def test_a_quarter_turn_of_whole_fields_warps_as_the_turned_image(self):
        size = 8
        rng = np.random.default_rng(0)
        image, field = rng.random((size, size)).astype(np.float32), np.rint(rng.normal(0, 2, (2, size, size)))
        # numpy.rot90 once: content at (h, w) goes to (size - 1 - w, h), so x' = y and y' = -x.
        turned = transform_vectors(np.rot90(field, axes=(1, 2)).copy(), [[0, 1], [-1, 0]])
        np.testing.assert_allclose(warp(np.rot90(image).copy(), turned), np.rot90(warp(image, field)), atol=1e-6)

    def test_a_matrix_of_another_shape_is_refused(self):
        with pytest.raises(ConfigError, match=r"\(2, 2\)"):
            transform_vectors(some_fields(), np.eye(3))

    def test_the_mean_motion_is_taken_from_each_field(self):
        fields = some_fields() + 3
        expected = fields - np.array([[c.mean() for c in field] for field in fields])[..., None, None]
        np.testing.assert_allclose(subtract_mean_motion(fields), expected, atol=1e-5)
        np.testing.assert_allclose(subtract_mean_motion(torch.from_numpy(fields)).numpy(), expected, atol=1e-5)


class TestWarp:
    def test_equals_scipy(self):
        images, flow = np.stack([scene(0), scene(1)]), some_fields(size=3)[:2]
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        expected = [
            ndimage.map_coordinates(image, [rows + y, columns + x], order=1, mode="nearest")
            for image, (x, y) in zip(images, flow.astype(float), strict=True)
        ]
        np.testing.assert_allclose(warp(images, flow), expected, atol=1e-5)

    def test_is_exact_for_whole_shifts(self):
        this = scene()
        following = np.roll(this, (1, 2), axis=(0, 1))  # content moves by x = 2, y = 1
        flow = np.broadcast_to(np.float32([2, 1]).reshape(2, 1, 1), (2, HEIGHT, WIDTH))
        np.testing.assert_array_equal(warp(following, flow)[:-1, :-2], this[:-1, :-2])
