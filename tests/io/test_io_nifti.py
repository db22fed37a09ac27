"""NIfTI, with nibabel as the oracle."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from volrec.errors import DataError
from volrec.io import Volume, assemble, read_volume, scan_file

AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0.9, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_volume(path)
    assert caught.value.remedy
    return caught.value


def codes(path: Path) -> list[str]:
    (series,), _ = assemble(scan_file(path).headers)
    return [problem.code for problem in series.problems]


def assert_places_equal(volume: Volume, image: Any) -> None:
    """Each voxel has the value that nibabel has at the same place."""
    data = np.asarray(image.dataobj)
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[1:]), indexing="ij"), axis=-1)
    world = index @ volume.affine_ras[:3, :3].T + volume.affine_ras[:3, 3]
    inverse = np.linalg.inv(image.affine)
    there = world @ inverse[:3, :3].T + inverse[:3, 3]
    assert np.abs(there - np.rint(there)).max() < 2e-3  # float32 quaternions near half a turn
    i, j, k = np.moveaxis(np.rint(there).astype(int), -1, 0)
    np.testing.assert_allclose(volume.array[0], data[i, j, k], rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    angles=st.one_of(st.tuples(*[st.sampled_from([0, 90, 180, 270])] * 3), st.tuples(*[st.floats(-180, 180)] * 3)),
    sizes=st.tuples(*[st.floats(0.3, 5)] * 3),
    mirrored=st.booleans(),
    form=st.sampled_from(["sform", "qform", "both"]),
    dtype=st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8", ">i2"]),
    version=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_any_orientation_type_and_version_equals_nibabel(
    tmp_path_factory: Any, angles: Any, sizes: Any, mirrored: bool, form: str, dtype: str, version: Any, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("nifti") / f"x{suffix}"
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * sizes
    if mirrored:
        affine[:3, 0] *= -1
    affine[:3, 3] = (10, -20, 30)
    data = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(dtype)
    header = version.header_class(endianness=">" if dtype[0] == ">" else "<")
    image = version(data, None, header)
    image.set_sform(affine, 1 if form != "qform" else 0)
    image.set_qform(affine, 1 if form != "sform" else 0)
    nib.save(image, path)
    volume = read_volume(path)
    assert volume.array.dtype == np.int16
    assert_places_equal(volume, nib.load(path))
    np.testing.assert_allclose(sorted(volume.spacing), sorted(sizes), rtol=1e-5)
    assert volume.spacing[0] >= 0.99 * max(sizes)


def test_real_crops_equal_nibabel(data_dir: Path) -> None:
    for path in sorted((data_dir / "hippocampus" / "images").glob("*.nii.gz"))[::40]:
        volume = read_volume(path)
        image = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(volume.array[0], np.asarray(image.dataobj).T[:, ::-1, ::-1])
        assert volume.slice_axis == "axial"
        assert_places_equal(volume, nib.load(path))


@pytest.mark.parametrize(
    ("slope", "inter", "whole"), [(2, -1000, True), (0.5, 0, False), (np.nan, 0, True), (0, 5, True)]
)
def test_scale_of_the_header(tmp_path: Path, slope: float, inter: float, whole: bool) -> None:
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "x.nii")
    raw = bytearray((tmp_path / "x.nii").read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    (tmp_path / "x.nii").write_bytes(raw)
    volume = read_volume(tmp_path / "x.nii")
    assert volume.array.dtype == (np.int16 if whole else np.float32)
    assert_places_equal(volume, nib.load(tmp_path / "x.nii"))


def test_sform_goes_first_and_a_disagreement_is_said(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    other = AFFINE.copy()
    other[0, 3] += 7
    image.set_sform(AFFINE, 2)
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert "sform-qform" in codes(tmp_path / "x.nii")
    assert any("7.0 mm" in item["text"] for item in volume.meta["assumptions"])
    assert_places_equal(volume, nib.load(tmp_path / "x.nii"))
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "y.nii")
    assert codes(tmp_path / "y.nii") == []


def test_without_orientation_it_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_sform(AFFINE, 0)
    image.set_qform(AFFINE, 0)
    nib.save(image, tmp_path / "x.nii")
    assert refused(tmp_path / "x.nii").code == "no-orientation"


def test_broken_sform_falls_back_to_the_qform_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_qform(AFFINE, 1)
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[254:256], raw[280:328] = b"\1\0", bytes(48)  # a code that promises, rows that are all zero
    path.write_bytes(raw)
    assert "sform-invalid" in codes(path)
    np.testing.assert_allclose(read_volume(path).spacing, (3, 0.9, 0.8), rtol=1e-6)
    raw[252:254] = b"\0\0"
    path.write_bytes(raw)
    assert refused(path).code == "orientation"


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_zero_or_nan_spacing_is_refused(tmp_path: Path, value: float) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), AFFINE), tmp_path / "x.nii")
    raw = bytearray((tmp_path / "x.nii").read_bytes())
    raw[84:88] = np.array(value, "<f4").tobytes()
    (tmp_path / "x.nii").write_bytes(raw)
    assert refused(tmp_path / "x.nii").code == "spacing"


def test_four_dimensions(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), AFFINE), tmp_path / "x.nii")
    error = refused(tmp_path / "x.nii")
    assert error.code == "4d"
    assert "2 volumes" in error.problem
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 1), np.int16), AFFINE), tmp_path / "y.nii")
    assert read_volume(tmp_path / "y.nii").shape == (1, 6, 5, 4)
    nib.save(nib.Nifti1Image(np.zeros((4, 5), np.int16), AFFINE), tmp_path / "z.nii")
    assert refused(tmp_path / "z.nii").code == "single-slice"


def test_non_finite_voxels_become_the_minimum_and_are_counted(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    data[0, 0, 0], data[1, 1, 1], data[2, 2, 2] = np.nan, np.inf, -np.inf
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "x.nii.gz")
    volume = read_volume(tmp_path / "x.nii.gz")
    assert np.isfinite(volume.array).all()
    assert volume.array.min() == data[np.isfinite(data)].min()
    assert volume.meta["corrections"][0]["text"].startswith("3 voxels")
    nib.save(nib.Nifti1Image(np.full_like(data, np.nan), AFFINE), tmp_path / "y.nii")
    assert refused(tmp_path / "y.nii").code == "non-finite"


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_voxels_that_are_no_numbers_are_named(tmp_path: Path, dtype: Any) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), dtype), AFFINE), tmp_path / "x.nii")
    assert refused(tmp_path / "x.nii").code in ("voxel-type", "colour")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    data = np.random.default_rng(0).integers(0, 1000, (16, 16, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    content = path.read_bytes()
    for length in (10, 300, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert refused(path).code in ("truncated", "nifti-header"), length
        assert scan_file(path).problem is not None, length  # known before anything is decoded


def test_gzip_of_several_members_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 1000, (16, 16, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "x.nii")
    content = (tmp_path / "x.nii").read_bytes()
    parts = [gzip.compress(content[start : start + 1000]) for start in range(0, len(content), 1000)]
    (tmp_path / "y.nii.gz").write_bytes(b"".join([*parts, gzip.compress(b"")]))
    np.testing.assert_array_equal(read_volume(tmp_path / "y.nii.gz").array, read_volume(tmp_path / "x.nii").array)
    (tmp_path / "y.nii.gz").write_bytes(b"".join(parts[:-2]))
    assert refused(tmp_path / "y.nii.gz").code == "truncated"


def test_damaged_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 1000, (16, 16, 16)).astype(np.int16), AFFINE), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert refused(path).code == "truncated"


def test_units_are_converted_and_said(tmp_path: Path) -> None:
    for unit, factor in (("meter", 1000), ("micron", 0.001), ("mm", 1)):
        image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), AFFINE)
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / f"{unit}.nii")
        volume = read_volume(tmp_path / f"{unit}.nii")
        np.testing.assert_allclose(volume.spacing, np.array([3, 0.9, 0.8]) * factor, rtol=1e-6)
        assert (unit == "mm") == (not volume.meta["assumptions"])


def test_pairs_of_header_and_image(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
    nib.save(nib.Nifti1Pair(data, AFFINE), tmp_path / "x.img")
    volume = read_volume(tmp_path)  # the .img is part of the .hdr, not a file of its own
    assert_places_equal(volume, nib.load(tmp_path / "x.img"))
    before = assemble(scan_file(tmp_path / "x.hdr").headers)[0][0].signature
    os.utime(tmp_path / "x.img", ns=(1, 1))
    os.utime(tmp_path / "x.hdr", ns=(0, 0))
    assert assemble(scan_file(tmp_path / "x.hdr").headers)[0][0].signature != before
    (tmp_path / "x.img").write_bytes((tmp_path / "x.img").read_bytes()[:-4])
    assert refused(tmp_path / "x.hdr").code == "truncated"
    (tmp_path / "x.img").unlink()
    assert refused(tmp_path / "x.hdr").code == "no-image-file"
    nib.save(nib.AnalyzeImage(data, AFFINE), tmp_path / "old.img")
    assert refused(tmp_path / "old.hdr").code == "no-orientation"


def test_whole_numbers_far_below_zero_are_taken_for_ct_and_that_is_said(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(-1024, 1000, (4, 5, 6)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert (volume.meta["modality"], volume.meta["units"], volume.array.dtype) == ("CT", "HU", np.int16)
    assert "modality" in [item["code"] for item in volume.meta["assumptions"]]
    nib.save(nib.Nifti1Image(data + 1024, AFFINE), tmp_path / "y.nii")
    assert read_volume(tmp_path / "y.nii").meta["modality"] is None
