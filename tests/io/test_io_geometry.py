"""Affines: whatever is done to an array, each voxel keeps its place in the patient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from volrec.errors import DataError
from volrec.io import Volume
from volrec.io.geometry import (
    CANONICAL,
    canonical_axes,
    canonical_shape,
    canonicalise,
    cropped,
    flip_lps_ras,
    largest_spacing_plane,
    patient_axes,
    rescaled,
    resheared,
    shear_stack,
    spacing_of,
    stacking_plane,
)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    sizes = draw(st.tuples(*[st.floats(0.2, 6)] * 3))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.multiply(sizes, signs)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


def places(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@settings(deadline=None)
@given(affine=affines(), plane=st.sampled_from(list(CANONICAL)))
def test_canonical_order_moves_no_voxel(affine: np.ndarray, plane: str) -> None:
    shape = (3, 4, 5)
    world = places(affine, shape)
    moved, result = canonicalise(np.moveaxis(world, -1, 0), affine, plane)
    np.testing.assert_allclose(np.moveaxis(moved, 0, -1), places(result, moved.shape[1:]), atol=1e-9)
    for axis, (patient_axis, direction) in enumerate(CANONICAL[plane]):
        assert result[patient_axis, axis] * direction >= 0
        assert patient_axes(result)[axis] == patient_axis
    again, same = canonicalise(moved, result, plane)
    np.testing.assert_array_equal(again, moved)
    np.testing.assert_array_equal(same, result)


@settings(deadline=None)
@given(affine=affines())
def test_patient_axes_are_a_permutation_that_agrees_with_clear_directions(affine: np.ndarray) -> None:
    axes = patient_axes(affine)
    assert sorted(axes) == [0, 1, 2]
    cosines = np.abs(affine[:3, :3] / spacing_of(affine))
    for axis in range(3):
        if cosines[:, axis].max() > 0.9:
            assert axes[axis] == int(np.argmax(cosines[:, axis]))
    assert canonical_axes(affine, stacking_plane(affine))[0][0] == 0


@given(affine=affines(), start=st.tuples(*[st.integers(-3, 3)] * 3))
def test_cropping_moves_the_origin(affine: np.ndarray, start: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(
        places(cropped(affine, start), (2, 2, 2))[0, 0, 0], affine[:3, :3] @ start + affine[:3, 3]
    )


@given(affine=affines(), new=st.tuples(*[st.integers(1, 9)] * 3))
def test_rescaling_keeps_the_outer_edges(affine: np.ndarray, new: tuple[int, int, int]) -> None:
    old = (4, 5, 6)
    result = rescaled(affine, old, new)
    for corner in (0.0, 1.0):
        before = affine @ np.array([*(corner * np.array(old) - 0.5), 1])
        after = result @ np.array([*(corner * np.array(new) - 0.5), 1])
        np.testing.assert_allclose(before, after, atol=1e-9)


def test_ras_and_lps() -> None:
    affine = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(flip_lps_ras(flip_lps_ras(affine)), affine)
    np.testing.assert_array_equal(flip_lps_ras(affine)[:2], -affine[:2])


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1, 1, 1), "axial"), ((1, 1, 3), "axial"), ((1, 3, 1), "coronal"), ((3, 1, 1), "sagittal")]
    + [((3, 3, 1), "coronal"), ((3, 1, 3), "axial"), ((1, 1.005, 1), "axial"), ((1, 1.02, 1), "coronal")],
)
def test_plane_of_the_largest_spacing(spacing: tuple[float, float, float], plane: str) -> None:
    """Spacing along left-right, front-back, foot-head; axial goes first among equals."""
    assert largest_spacing_plane(np.diag([*spacing, 1.0])) == plane


def test_shape_is_known_without_reading() -> None:
    class Placed:
        shape = (4, 5, 6)
        affine = ((0.0, 0.0, 0.7, 0.0), (0.0, 0.5, 0.0, 0.0), (3.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        orientation = "axial"

    assert canonical_shape(Placed()) == ((4, 5, 6), (3.0, 0.5, 0.7))
    assert canonical_shape(Placed(), "sagittal") == ((6, 4, 5), (0.7, 3.0, 0.5))


# -- shear -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(slopes=st.tuples(st.floats(-2, 2), st.floats(-2, 2)), start=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_shear_of_a_linear_field_is_exact(slopes: tuple[float, float], start: tuple[float, float]) -> None:
    offsets = np.arange(6)[:, None] * slopes
    h, w = np.meshgrid(np.arange(9.0), np.arange(11.0), indexing="ij")
    stack = np.stack([(h + down) * 2 + (w + right) * 3 + start[0] for down, right in offsets]).astype(np.float32)
    affine, shape, shifts = resheared(np.eye(4), stack.shape, offsets)
    result = shear_stack(stack, shape, shifts, fill=-999)
    assert (shifts >= 0).all()
    for t in range(6):
        rows, columns = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
        truth = (rows + affine[1, 3]) * 2 + (columns + affine[2, 3]) * 3 + start[0]
        inside = (rows >= shifts[t, 0] - 1e-6) & (rows <= shifts[t, 0] + 8 + 1e-6)
        inside &= (columns >= shifts[t, 1] - 1e-6) & (columns <= shifts[t, 1] + 10 + 1e-6)
        assert inside.sum() >= 8 * 10
        np.testing.assert_allclose(result[t][inside], truth[inside], atol=1e-3)
        far = (rows < shifts[t, 0] - 1) | (rows > shifts[t, 0] + 9) | (columns < shifts[t, 1] - 1)
        assert (result[t][far] == -999).all()


def test_shear_by_whole_voxels_loses_nothing() -> None:
    stack = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    _, shape, shifts = resheared(np.eye(4), stack.shape, np.arange(4)[:, None] * [-2.0, 1.0])
    result = shear_stack(stack, shape, shifts, fill=-1024)
    assert result.shape == (4, 11, 9)
    for t in range(4):
        np.testing.assert_array_equal(result[t, 6 - 2 * t : 11 - 2 * t, t : t + 6], stack[t])


# -- Volume ----------------------------------------------------------------------------------------------------------


def test_volume_speaks_of_its_geometry() -> None:
    affine = np.array([[0, 0, 0.7, 1], [0, 0.5, 0, 2], [3.0, 0, 0, 3], [0, 0, 0, 1]])
    volume = Volume(np.zeros((1, 4, 5, 6), np.int16), affine, {"slice_axis": "axial"})
    assert volume.spacing == (3.0, 0.5, 0.7)
    assert volume.shape == (1, 4, 5, 6)
    assert volume.slice_axis == "axial"
    np.testing.assert_array_equal(volume.affine_ras[:3, 3], [-1, -2, 3])
    image = volume.to_sitk()
    assert image.GetSize() == (6, 5, 4)
    assert image.TransformIndexToPhysicalPoint((1, 2, 3)) == pytest.approx((1.7, 3.0, 12.0))


def test_sheared_volume_is_no_sitk_image() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    with pytest.raises(DataError, match="right angles"):
        Volume(np.zeros((1, 2, 2, 2), np.int16), affine, {}).to_sitk()
