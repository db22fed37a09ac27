"""Slice axis, resampling, canvas: voxels keep their values and their place in millimetres."""

from __future__ import annotations

import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as functional
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

from volrec.errors import ConfigError, DataError
from volrec.transforms.canvas import crop_or_pad
from volrec.transforms.preprocess import own_region, preprocess_array, preprocessed_shape
from volrec.transforms.resample import resample
from volrec.transforms.slice_axis import CANONICAL, slice_axis_to_time, spacing_of

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affines(spacings: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    """Any stored order, any flips, any obliqueness, any place."""

    def build(angles, order, signs, spacing, origin):
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:, order] * signs * spacing
        matrix[:3, 3] = origin
        return matrix

    triple = lambda values: st.tuples(values, values, values)  # noqa: E731
    return st.builds(
        build,
        triple(st.floats(-25, 25)),
        st.permutations(range(3)),
        triple(st.sampled_from([-1.0, 1.0])),
        triple(spacings),
        triple(st.floats(-200, 200)),
    )


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Millimetres of every voxel, ``(T, H, W, 3)``."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def smooth(shape: tuple[int, ...], sigma: float, seed: int = 0) -> np.ndarray:
    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (volume / volume.std() * 300).astype(np.float32)


def as_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    spacing = spacing_of(affine)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetDirection((affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def simpleitk_resample(array, affine, moved, shape, interpolator=sitk.sitkLinear, outside=0.0):
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(as_image(np.zeros(shape, np.float32), moved))
    resampler.SetInterpolator(interpolator)
    resampler.SetDefaultPixelValue(outside)
    return sitk.GetArrayFromImage(resampler.Execute(as_image(array, affine)))


class TestSliceAxis:
    @given(affines(st.floats(0.3, 6)), st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from(sorted(CANONICAL)))
    @settings(max_examples=80, deadline=None)
    def test_every_voxel_keeps_its_place_and_axes_point_the_canonical_way(self, affine, shape, plane):
        ids = np.arange(np.prod(shape)).reshape(shape)
        array, moved = slice_axis_to_time(ids, affine, slice_axis=plane)
        np.testing.assert_allclose(world(moved, array.shape), world(affine, shape).reshape(-1, 3)[array], atol=1e-9)
        for axis, (anatomical, sign) in enumerate(CANONICAL[plane]):
            direction = moved[:3, axis] / np.linalg.norm(moved[:3, axis])
            # An assignment of three axes leaves each within the cube's diagonal of its own.
            assert direction[anatomical] * sign > 0.3

    def test_equals_nibabel_closest_canonical_orientation(self):
        rng = np.random.default_rng(0)
        affine = np.array([[0, 0.1, -3, 5], [0.9, 0, 0, 2], [0, -1.1, 0.2, 7], [0, 0, 0, 1.0]])
        image = nibabel.Nifti1Image(rng.normal(size=(4, 5, 6)).astype(np.float32), affine)
        array, moved = slice_axis_to_time(np.asarray(image.dataobj), TO_LPS @ image.affine, slice_axis="axial")
        # nibabel: right, anterior, superior; ours: superior, posterior, left.
        canonical = nibabel.as_closest_canonical(image).get_fdata()[::-1, ::-1].transpose(2, 1, 0)
        np.testing.assert_array_equal(array, canonical)
        assert (np.diag(moved[[2, 1, 0], :3]) > 0).all()

    @pytest.mark.parametrize(
        ("spacing", "first"),
        [((1, 1, 5), 2), ((1, 5, 1), 1), ((5, 1, 1), 0), ((1, 1, 1), 2), ((5, 5.02, 1), 1), ((5, 1, 4.99), 2)],
    )
    def test_acquired_takes_the_largest_spacing_and_axial_among_equals(self, spacing, first):
        _, moved = slice_axis_to_time(np.zeros((3, 3, 3)), np.diag([*spacing, 1.0]), slice_axis="acquired")
        assert np.argmax(np.abs(moved[:3, 0])) == first

    def test_leading_axes_stay(self):
        array, _ = slice_axis_to_time(np.zeros((2, 3, 4, 5)), np.diag([1, 1, 4, 1.0]))
        assert array.shape == (2, 5, 4, 3)

    def test_bad_input_names_the_value(self):
        with pytest.raises(ConfigError, match="'diagonal'"):
            slice_axis_to_time(np.zeros((2, 2, 2)), np.eye(4), slice_axis="diagonal")
        with pytest.raises(DataError, match=r"0\.0"):
            slice_axis_to_time(np.zeros((2, 2, 2)), np.diag([1, 0, 1, 1.0]))
        with pytest.raises(DataError, match="nan"):
            spacing_of(np.diag([1, np.nan, 1, 1.0]))
        with pytest.raises(DataError, match=r"\(3, 4\)"):
            spacing_of(np.eye(4)[:3])
        with pytest.raises(DataError, match=r"\(2, 2\)"):
            slice_axis_to_time(np.zeros((2, 2)), np.eye(4))


class TestResample:
    @given(affines(st.floats(1.0, 3.0)), st.tuples(*[st.floats(0.4, 1.0)] * 3))
    @settings(max_examples=25, deadline=None)
    def test_equals_simpleitk_where_nothing_shrinks(self, affine, spacing):
        array = smooth((6, 9, 11), 1.0)
        out, moved = resample(array, affine, spacing=spacing)
        expected = simpleitk_resample(array, affine, moved, out.shape, outside=np.nan)
        inside = np.isfinite(expected)  # ITK gives the outside value beyond the outermost voxel borders.
        assert inside.mean() > 0.5
        np.testing.assert_allclose(out[inside], expected[inside], atol=0.05)

    def test_int16_is_rounded_and_equals_simpleitk_within_rounding(self):
        array = smooth((6, 9, 11), 1.0).astype(np.int16)
        affine = np.diag([3, 1, 1, 1.0])
        out, moved = resample(array, affine, spacing=(2.0, 0.7, 0.8))
        expected = simpleitk_resample(array.astype(np.float64), affine, moved, out.shape, outside=np.nan)
        inside = np.isfinite(expected)
        assert out.dtype == np.int16
        assert np.abs(out[inside] - expected[inside]).max() <= 0.51

    @pytest.mark.parametrize("size", [(20, 20, 13), (20, 11, 40), (6, 20, 40), (7, 9, 12), (33, 9, 12)])
    def test_equals_torch_antialiased_where_it_shrinks(self, size):
        array = np.random.default_rng(0).normal(size=(20, 20, 40)).astype(np.float32)
        out, _ = resample(array, np.eye(4), spacing=[n / m for n, m in zip(array.shape, size, strict=True)])
        expected = torch.from_numpy(array)
        for axis, length in enumerate(size):  # torch antialiases two axes at a time; one of them stays
            moved = expected.movedim(axis, -1)
            wanted = (moved.shape[-2], length)
            moved = functional.interpolate(moved[None], size=wanted, mode="bilinear", antialias=True)[0]
            expected = moved.movedim(-1, axis)
        assert out.shape == size
        np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)

    def test_is_close_to_gaussian_smoothing_where_it_shrinks(self):
        array = smooth((40, 60, 60), 2.5)
        out, moved = resample(array, np.eye(4), spacing=(2.0, 3.0, 3.0))
        # A triangle of half width r has the variance r²/6 of a Gaussian, less what linear interpolation adds.
        blurred = gaussian_filter(array.astype(np.float64), [np.sqrt(r**2 / 6) for r in (2, 3, 3)], mode="nearest")
        expected = simpleitk_resample(blurred, np.eye(4), moved, out.shape, sitk.sitkBSpline)
        inner = (slice(2, -2),) * 3
        assert np.sqrt(np.mean((out - expected)[inner] ** 2)) < 0.02 * array.std()

    def test_what_the_new_grid_cannot_hold_is_averaged_away(self):
        stripes = np.tile((np.arange(120) % 4 < 2) * 1000.0, (4, 4, 1)).astype(np.float32)
        out, moved = resample(stripes, np.eye(4), spacing=(1, 1, 4.4))
        folded = simpleitk_resample(stripes, np.eye(4), moved, out.shape)
        assert folded[..., 2:-2].std() > 300
        assert out[..., 2:-2].std() < 60

    @given(affines(st.floats(0.5, 3.0)), st.tuples(*[st.floats(0.4, 6.0)] * 3), st.tuples(*[st.integers(8, 24)] * 3))
    @settings(max_examples=60, deadline=None)
    def test_a_place_in_millimetres_stays_where_it_is(self, affine, spacing, shape):
        gradient = np.array([0.7, -1.3, 0.4])
        ramp = (world(affine, shape) @ gradient).astype(np.float32)
        out, moved = resample(ramp, affine, spacing=spacing)
        np.testing.assert_allclose(spacing_of(moved), spacing, rtol=1e-3)
        middle, old_middle = ((np.array(s) - 1) / 2 for s in (out.shape, shape))
        np.testing.assert_allclose(
            moved[:3, :3] @ middle + moved[:3, 3], affine[:3, :3] @ old_middle + affine[:3, 3], atol=1e-6
        )
        expected = world(moved, out.shape) @ gradient
        ratio = np.array(spacing) / spacing_of(affine)
        reach = np.ceil(1 + 1 / ratio).astype(int)  # outputs whose filter meets the border
        inner = tuple(slice(r, n - r) for r, n in zip(reach, out.shape, strict=True))
        # A sampled triangle of fractional width is not quite symmetric: up to a tenth of an input voxel an axis.
        steps = np.abs(gradient @ affine[:3, :3])
        slack = 1e-3 + (steps * np.where(ratio > 1, 0.1, 0)).sum() + 1e-6 * np.abs(ramp).max()
        assert (np.abs(out - expected)[inner] <= slack).all()

    @given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.floats(0.2, 9.0)] * 3))
    @settings(max_examples=60, deadline=None)
    def test_never_leaves_the_range_of_the_input(self, shape, spacing):
        array = np.random.default_rng(1).choice(np.array([-32768, 32767], np.int16), size=shape)
        out, _ = resample(array, np.eye(4), spacing=spacing)
        assert out.dtype == np.int16
        assert out.min() >= array.min()
        assert out.max() <= array.max()
        flat, _ = resample(np.full(shape, -1000, np.int16), np.eye(4), spacing=spacing)
        assert (flat == -1000).all()

    def test_nearest_equals_simpleitk_on_a_mask(self):
        mask = np.random.default_rng(2).integers(0, 4, (7, 9, 11)).astype(np.uint8)
        affine = np.diag([3, 1, 1, 1.0])
        out, moved = resample(mask, affine, spacing=(1.31, 1.71, 0.63), interpolation="nearest")
        expected = simpleitk_resample(mask, affine, moved, out.shape, sitk.sitkNearestNeighbor, 255)
        assert (expected != 255).mean() > 0.9
        np.testing.assert_array_equal(out[expected != 255], expected[expected != 255])

    def test_own_spacing_returns_the_very_voxels(self):
        array = np.random.default_rng(3).integers(-5, 5, (3, 4, 5)).astype(np.int16)
        affine = np.diag([3, 0.7, 0.7, 1.0])
        for spacing in (None, (None, None, None), (3.0000001, None, 0.7)):
            out, moved = resample(array, affine, spacing=spacing)
            np.testing.assert_array_equal(out, array)
            np.testing.assert_array_equal(moved, affine)

    def test_one_axis_alone_equals_numpy_interp(self):
        array = np.random.default_rng(4).normal(size=(5, 3, 2)).astype(np.float32)
        out, moved = resample(array, np.diag([4, 1, 1, 1.0]), spacing=(1.5, None, None))
        at = moved[0, 3] / 4 + np.arange(out.shape[0]) * 1.5 / 4
        expected = np.stack([np.interp(at, np.arange(5), line) for line in array.reshape(5, -1).T], axis=1)
        np.testing.assert_allclose(out, expected.reshape(-1, 3, 2), atol=1e-5)

    def test_other_types_become_float32_and_small_integers_stay(self):
        kinds = {np.float64: np.float32, np.int32: np.float32, np.uint8: np.uint8, np.uint16: np.uint16}
        for given_type, kept in kinds.items():
            out, _ = resample(np.ones((3, 4, 5), given_type), np.eye(4), spacing=(1, 2, 2))
            assert out.dtype == kept

    @pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -2, 1), (1, np.nan, 1)])
    def test_impossible_spacing_is_named(self, spacing):
        with pytest.raises(ConfigError, match="spacing must be three"):
            resample(np.zeros((2, 2, 2)), np.eye(4), spacing=spacing)

    def test_unknown_interpolation_lists_the_choice(self):
        with pytest.raises(ConfigError, match="linear or nearest, got 'cubic'"):
            resample(np.zeros((2, 2, 2)), np.eye(4), spacing=(2, 2, 2), interpolation="cubic")


class TestCanvas:
    @given(affines(st.floats(0.5, 4)), *[st.tuples(*[st.integers(1, 7)] * 3)] * 2)
    @settings(max_examples=80, deadline=None)
    def test_every_kept_voxel_keeps_its_place_and_the_rest_is_padding(self, affine, shape, canvas):
        ids = np.arange(1, np.prod(shape) + 1).reshape(shape)
        out, moved = crop_or_pad(ids, affine, canvas=canvas, padding="zero")
        assert out.shape == canvas
        own = out > 0
        assert own.sum() == np.prod(np.minimum(shape, canvas))
        np.testing.assert_allclose(
            world(moved, canvas)[own], world(affine, shape).reshape(-1, 3)[out[own] - 1], atol=1e-9
        )

    @given(*[st.tuples(*[st.integers(1, 9)] * 3)] * 2)
    @settings(max_examples=60, deadline=None)
    def test_cropping_what_was_padded_gives_it_back(self, shape, more):
        array = np.random.default_rng(0).normal(size=shape)
        padded, moved = crop_or_pad(array, np.eye(4), canvas=np.add(shape, more).tolist())
        back, again = crop_or_pad(padded, moved, canvas=shape)
        np.testing.assert_array_equal(back, array)
        np.testing.assert_allclose(again, np.eye(4))

    def test_padding_is_what_it_says(self):
        array = np.array([[[7, -3, 5]]], np.int16)
        row = lambda padding, canvas=(1, 1, 7): crop_or_pad(array, np.eye(4), canvas=canvas, padding=padding)[0].ravel()  # noqa: E731
        assert row("minimum").tolist() == [-3, -3, 7, -3, 5, -3, -3]
        assert row("edge").tolist() == [7, 7, 7, -3, 5, 5, 5]
        assert row("zero").tolist() == [0, 0, 7, -3, 5, 0, 0]

    def test_minimum_is_the_whole_volumes_even_where_it_is_cropped_away(self):
        array = np.zeros((1, 2, 5), np.int16)
        array[0, 0, 0] = -1000
        out, _ = crop_or_pad(array, np.eye(4), canvas=(1, 4, 3), padding="minimum")
        assert out[0, :, 1].tolist() == [-1000, 0, 0, -1000]

    def test_none_keeps_an_axis_and_nothing_to_do_copies_nothing(self):
        array = np.zeros((2, 3, 4, 5), np.int16)
        out, moved = crop_or_pad(array, np.eye(4), canvas=(None, 2, None))
        assert out.shape == (2, 3, 2, 5)
        assert np.shares_memory(out, array)
        assert moved[:3, 3].tolist() == [0, 1, 0]

    @pytest.mark.parametrize("canvas", [(1, 2), (0, 4, 4), (1.5, 4, 4)])
    def test_impossible_canvas_is_named(self, canvas):
        with pytest.raises(ConfigError, match="canvas must be three sizes"):
            crop_or_pad(np.zeros((2, 2, 2)), np.eye(4), canvas=canvas)

    def test_unknown_padding_lists_the_choice(self):
        with pytest.raises(ConfigError, match="minimum, edge, zero; got 'mirror'"):
            crop_or_pad(np.zeros((2, 2, 2)), np.eye(4), canvas=(1, 1, 1), padding="mirror")


class TestPreprocess:
    sizes = st.one_of(st.none(), st.integers(1, 20))
    spacings = st.one_of(st.none(), st.floats(0.4, 5))

    @given(
        st.tuples(*[st.integers(1, 12)] * 3),
        st.tuples(spacings, spacings, spacings),
        st.tuples(sizes, sizes, sizes),
        st.sampled_from(["linear", "nearest"]),
        st.sampled_from(["minimum", "edge", "zero"]),
    )
    @example((6, 1, 1), (0.875, None, None), (2, None, None), "nearest", "minimum")
    @settings(max_examples=120, deadline=None)
    def test_equals_resampling_then_cropping_or_padding(self, shape, spacing, canvas, interpolation, padding):
        array = np.random.default_rng(5).integers(-1000, 1000, shape).astype(np.int16)
        array.ravel()[0] = -1001
        affine = np.diag([3, 0.8, 0.8, 1.0])
        affine[:3, 3] = (10, -20, 5)
        out, moved = preprocess_array(
            array, affine, spacing=spacing, canvas=canvas, interpolation=interpolation, padding=padding
        )
        between, between_affine = resample(array, affine, spacing=spacing, interpolation=interpolation)
        expected, expected_affine = crop_or_pad(between, between_affine, canvas=canvas, padding=padding)
        region = own_region(shape, affine, spacing=spacing, canvas=canvas)
        assert out.dtype == np.int16
        assert out.flags.c_contiguous
        assert out.shape == expected.shape == preprocessed_shape(shape, affine, spacing=spacing, canvas=canvas)
        np.testing.assert_allclose(moved, expected_affine, atol=1e-9)
        clear = np.ones(out.shape, dtype=bool)
        if interpolation == "nearest":  # half way between two voxels either may be taken
            places = np.linalg.inv(affine) @ moved
            for axis, count in enumerate(out.shape):
                along = places[axis, axis] * np.arange(count) + places[axis, 3]
                tie = np.abs(along - np.floor(along) - 0.5) < 1e-6
                clear &= ~tie.reshape([-1 if other == axis else 1 for other in range(3)])
        found, wanted = (np.where(clear, one, 0)[region] for one in (out, expected))
        np.testing.assert_allclose(found, wanted, atol=1)  # a value at .5 may round either way
        if padding != "minimum":  # its minimum is the input's, which resampling may lift
            np.testing.assert_allclose(out, expected, atol=1)
        else:
            outside = np.ones(out.shape, bool)
            outside[region] = False
            assert (out[outside] == -1001).all()

    def test_floats_become_float32(self):
        for kind in (np.float32, np.float64):
            out, _ = preprocess_array(np.zeros((2, 3, 4), kind), np.eye(4), canvas=(4, 4, 4))
            assert out.dtype == np.float32

    def test_a_channel_axis_is_refused(self):
        with pytest.raises(DataError, match=r"\(1, 2, 2, 2\)"):
            preprocess_array(np.zeros((1, 2, 2, 2)), np.eye(4))

    def test_loads_neither_torch_nor_monai(self):
        code = (
            "import sys, volrec.transforms.preprocess, volrec.transforms.clips, volrec.transforms.windows;"
            "sys.exit(bool({'torch', 'monai', 'scipy'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scipy_zoom_agrees_on_the_grid_convention():
    """Centre-aligned grids are scipy's ``grid_mode``: an independent word on where voxels lie."""
    array = smooth((5, 6, 7), 1.0)
    out, _ = resample(array, np.eye(4), spacing=(0.5, 0.5, 0.5))
    expected = zoom(array.astype(np.float64), 2, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(out, expected, atol=0.05)
