"""Maps lie where the study is: against SimpleITK and nibabel, and by markers put at a place in the patient."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from volrec.config import PreprocessConfig
from volrec.data.store import preprocess_volume
from volrec.errors import DataError
from volrec.explain import EvidenceMap, Grid, to_study_geometry
from volrec.explain.geometry import file_affine, in_file_order, slice_positions, slices_in_study
from volrec.io import assemble, read_series, scan_file
from volrec.io.nifti_writer import forms_of, write_nifti
from volrec.io.volume import Volume


def evidence(array: np.ndarray, affine: np.ndarray) -> EvidenceMap:
    return EvidenceMap(array.astype(np.float32), affine, array.max(axis=(1, 2)), "gradcam", "yes", False)


def random_affine(rng: np.random.Generator, *, shear: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=rng).as_matrix() @ np.diag(rng.uniform(0.5, 4, 3))
    affine[:3, 0] += shear * affine[:3, 1]
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def series_of(path: Path):
    found, _ = assemble(list(scan_file(str(path)).headers), root=None)
    return found[0]


@given(seed=st.integers(0, 10**6), shear=st.sampled_from([0.0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_a_marker_comes_back_where_it_is_in_the_patient(seed: int, shear: float) -> None:
    """Study and stored grid are cut, resampled and padded as preprocessing does it; any affine, sheared ones too."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(8, 16, 3))
    volume = Volume(np.zeros((1, *shape), np.float32), random_affine(rng, shear=shear), {"slice_axis": "axial"})
    preprocess = PreprocessConfig(
        spacing=tuple(float(size * rng.uniform(0.6, 1.4)) for size in volume.spacing),
        canvas=tuple(int(size) for size in rng.integers(10, 20, 3)),
    )
    stored = preprocess_volume(volume, preprocess)
    to_index = np.linalg.inv(volume.affine) @ stored.affine
    inside = []
    for _ in range(200):
        place = rng.integers(1, np.array(stored.shape) - 1)
        index = (to_index @ [*place, 1])[:3]
        if (index > 1).all() and (index < np.array(shape) - 2).all():
            inside.append((place, index))
    if not inside:
        return
    place, index = inside[0]
    marked = np.zeros(stored.shape, np.float32)
    # A marker two voxels wide, so that a coarser grid meets it wherever its voxels lie.
    marked[tuple(slice(at - 1, at + 2) for at in place)] = 0.5
    marked[tuple(place)] = 1
    found = to_study_geometry(evidence(marked, stored.affine), volume)
    assert found.shape == shape
    weights = found / found.sum()
    centre = [float((weights * axis).sum()) for axis in np.indices(shape)]
    world, back = (stored.affine @ [*place, 1])[:3], (volume.affine @ [*centre, 1])[:3]
    offset = np.abs(np.linalg.inv(volume.affine)[:3, :3] @ (back - world))
    assert offset.max() < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_it_is_simpleitks_resampling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stored = Volume(rng.random((1, 7, 9, 8)).astype(np.float32), random_affine(rng), {})
    affine = stored.affine.copy()
    directions = affine[:3, :3] / stored.spacing
    lean = Rotation.from_euler("xyz", [4, -3, 8], degrees=True).as_matrix()
    affine[:3, :3] = directions @ lean * stored.spacing * np.array([0.9, 1.1, 0.7])
    affine[:3, 3] += rng.uniform(-1, 1, 3)
    study = Volume(np.zeros((1, 9, 10, 11), np.float32), affine, {})
    found = to_study_geometry(evidence(stored.array[0], stored.affine), study)
    expected = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(stored.to_sitk(), study.to_sitk(), SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    )
    # Values are rounded differently at the very rim, where ITK decides inside or outside.
    same = np.isclose(found, expected, atol=1e-4)
    assert same.mean() > 0.995
    assert 0.2 < (found > 0).mean() < 0.95, "some of it lies within, some without"


def test_linear_values_come_back_exactly_and_what_the_canvas_cut_off_is_0() -> None:
    affine = np.array([[0.0, 0, 0.8, -30], [0, 0.8, 0, -40], [3.0, 0, 0, 5], [0, 0, 0, 1]])
    volume = Volume(np.zeros((1, 10, 20, 20), np.float32), affine, {"slice_axis": "axial"})
    stored = preprocess_volume(volume, PreprocessConfig(spacing=(2.0, 1.0, 1.0), canvas=(None, 8, 24)))
    t, h, w = np.indices(stored.shape, dtype=np.float64)
    mm = stored.affine @ np.stack([t, h, w, np.ones_like(t)]).reshape(4, -1)
    ramp = (mm[0] + 2 * mm[1] + 3 * mm[2] + 500).reshape(stored.shape)
    found = to_study_geometry(evidence(ramp, stored.affine), volume)
    t, h, w = np.indices(found.shape, dtype=np.float64)
    points = affine @ np.stack([t, h, w, np.ones_like(t)]).reshape(4, -1)
    expected = (points[0] + 2 * points[1] + 3 * points[2] + 500).reshape(found.shape)
    index = np.linalg.inv(stored.affine) @ points
    rows = index[1].reshape(found.shape)
    within = (rows > 0) & (rows < 7)
    depth = index[0].reshape(found.shape)
    middle = (depth > 0) & (depth < stored.shape[0] - 1)
    np.testing.assert_allclose(found[within & middle], expected[within & middle], rtol=1e-5)
    assert (found[(rows < -0.51) | (rows > 7.51)] == 0).all()
    assert (found[within] > 0).all(), "the outermost voxels reach half a voxel beyond their centres"


@pytest.mark.parametrize("code", ["RAS", "LPI", "PSR", "ASL", "ILP"])
@pytest.mark.parametrize("kind", ["sform", "qform", "both", "sheared"])
def test_a_map_lies_on_the_nifti_file_voxel_by_voxel(tmp_path: Path, code: str, kind: str) -> None:
    rng = np.random.default_rng(len(code + kind))
    data = rng.integers(0, 400, (6, 9, 12)).astype(np.int16)
    ornt = nibabel.orientations.axcodes2ornt(code)
    start = np.diag([0.9, 1.1, 3.0, 1.0])
    start[:3, :3] = Rotation.from_euler("xyz", [3, 5, -7], degrees=True).as_matrix() @ start[:3, :3]
    if kind == "sheared":
        start[:3, 2] += 0.3 * start[:3, 1]
    start[:3, 3] = 10, -20, 30
    image = nibabel.Nifti1Image(data, start).as_reoriented(ornt)
    if kind in ("qform", "both"):
        image.set_qform(image.affine, code=1)
    if kind == "qform":
        image.set_sform(None, code=0)
    if kind == "both":
        image.set_sform(image.affine, code=2)
    image.header["descrip"] = b"Jane Doe"
    path = tmp_path / "study.nii.gz"
    nibabel.save(image, path)
    original = nibabel.load(path)
    series = series_of(path)
    for plane in ("acquired", "axial", "coronal", "sagittal"):
        volume = read_series(series, slice_axis=plane)
        # What is brought back is the image itself: it must be the file's, voxel by voxel.
        back = to_study_geometry(evidence(volume.array[0], volume.affine), volume)
        turned = in_file_order(back, series, volume.slice_axis)
        affine = file_affine(series, Grid.of(volume))
        write_nifti(tmp_path / "map.nii.gz", turned, affine, forms=forms_of(series))
        found = nibabel.load(tmp_path / "map.nii.gz")
        np.testing.assert_array_equal(found.get_fdata(), original.get_fdata())
        np.testing.assert_array_equal(found.affine, original.affine)
        for form in ("get_sform", "get_qform"):
            (own, code_of), (theirs, their_code) = (getattr(one, form)(coded=True) for one in (found, original))
            assert code_of == their_code
            if code_of:
                np.testing.assert_allclose(own, theirs, atol=1e-5)
        np.testing.assert_allclose(found.header.get_zooms(), original.header.get_zooms(), rtol=1e-5)
        np.testing.assert_allclose(affine, original.affine, atol=1e-4)
        assert b"Doe" not in found.header.binaryblock


def test_a_file_in_metres_is_overlaid_in_metres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(210, dtype=np.int16).reshape(5, 6, 7), np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "study.nii")
    series = series_of(tmp_path / "study.nii")
    volume = read_series(series)
    turned = in_file_order(volume.array[0], series, volume.slice_axis)
    write_nifti(tmp_path / "map.nii", turned, file_affine(series, Grid.of(volume)), forms=forms_of(series))
    found, original = nibabel.load(tmp_path / "map.nii"), nibabel.load(tmp_path / "study.nii")
    np.testing.assert_array_equal(found.affine, original.affine)
    assert found.header.get_xyzt_units() == original.header.get_xyzt_units()
    np.testing.assert_array_equal(found.get_fdata(), original.get_fdata())


@pytest.mark.parametrize("shear", [0.0, 0.25])
def test_without_a_file_to_lie_on_the_affine_itself_is_written(tmp_path: Path, shear: float) -> None:
    rng = np.random.default_rng(3)
    affine = random_affine(rng, shear=shear)
    array = rng.random((4, 5, 6)).astype(np.float32)
    write_nifti(tmp_path / "map.nii.gz", array, affine)
    found = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(found.get_fdata(dtype=np.float32), array)
    assert found.header.get_xyzt_units()[0] == "mm"
    assert found.get_qform(coded=True)[1] == (0 if shear else 1)
    first = (tmp_path / "map.nii.gz").read_bytes()
    write_nifti(tmp_path / "map.nii.gz", array, affine)
    assert (tmp_path / "map.nii.gz").read_bytes() == first


def test_values_of_slices_move_to_the_slices_of_the_study() -> None:
    affine = np.diag([5.0, 1, 1, 1])[[2, 1, 0, 3]]  # axial: t along z
    grid = Grid((4, 10, 10), affine)
    stored = affine.copy()
    stored[:3, 0] *= 0.5  # twice as many slices
    stored[2, 3] -= 1.25
    values = np.array([0.0, 1, 2, 3, 4, 5, np.nan, np.nan], dtype=np.float32)
    found = slices_in_study(values, stored, grid)
    np.testing.assert_allclose(found, [0.5, 2.5, 4.5, np.nan], atol=1e-6)
    np.testing.assert_allclose(slice_positions(grid), [0, 5, 10, 15])
    assert np.isnan(slices_in_study(np.full(8, np.nan), stored, grid)).all()
    outside = Grid((4, 10, 10), affine + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 100], [0, 0, 0, 0]]))
    assert np.isnan(slices_in_study(values, stored, outside)).all()


def test_an_affine_that_is_none_is_said() -> None:
    broken = evidence(np.zeros((2, 2, 2)), np.zeros((4, 4)))
    with pytest.raises(DataError, match="does not say where"):
        to_study_geometry(broken, Grid((2, 2, 2), np.eye(4)))
