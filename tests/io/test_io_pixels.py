"""Stored pixels to values, with SimpleITK and pydicom as oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from io_writer import noise, positions_of, save, slice_dataset, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from volrec.errors import DataError
from volrec.io import Volume, assemble, pixels, read_series, read_volume, scan_file
from volrec.io.geometry import CANONICAL


def corrections(volume: Volume) -> dict[str, str]:
    return {item["code"]: item["text"] for item in volume.meta["corrections"]}


def sitk_of(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_same_as_sitk(volume: Volume, image: sitk.Image, *, exact: bool = True) -> None:
    expected = sitk.GetArrayFromImage(image)
    if exact:
        np.testing.assert_array_equal(volume.array[0], expected)
    else:
        np.testing.assert_allclose(volume.array[0], expected, rtol=1e-6)
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    corner = np.array([*np.array(volume.shape[1:]) - 1, 1.0])
    np.testing.assert_allclose(volume.affine @ corner, affine @ corner, atol=1e-4)
    np.testing.assert_allclose(volume.affine[:3, 3], affine[:3, 3], atol=1e-4)


# -- the same as SimpleITK -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32])
@pytest.mark.parametrize("rescale", [(1, 0), (1, -1024), (2, -7), (0.25, 3.5)])
def test_types_and_rescale_equal_sitk(tmp_path: Path, dtype: Any, rescale: tuple[float, float]) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(5)
    stored = rng.integers(max(info.min, -3000), min(info.max, 3000), (4, 6, 7)).astype(dtype)
    write_series(tmp_path, stored, slope=rescale[0], intercept=rescale[1])
    volume = read_volume(tmp_path)
    assert volume.array.dtype == (np.int16 if rescale[0] != 0.25 else np.float32)
    assert_same_as_sitk(volume, sitk_of(tmp_path), exact=rescale[0] != 0.25)


@settings(deadline=None, max_examples=15)
@given(
    cosines=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    seed=st.integers(0, 99),
)
def test_oblique_geometry_equals_sitk(
    tmp_path_factory: Any, cosines: Any, spacing: Any, origin: Any, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("oblique")
    a, b, c = np.radians(cosines)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = turn @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn = turn @ np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    orientation = (*turn[:, 0], *turn[:, 1])
    places = positions_of(5, spacing=spacing[0], orientation=orientation, origin=origin)
    order = np.random.default_rng(seed).permutation(5)
    stored = noise((5, 6, 7), seed=seed)
    write_series(folder, stored[order], positions=places[order], orientation=orientation, spacing=spacing[1:])
    volume = read_volume(folder)
    image = sitk_of(folder)
    values = sitk.GetArrayFromImage(image)
    # Each voxel, found by its place in the patient, has the value that SimpleITK gives there.
    for index in ((0, 0, 0), (1, 2, 3), tuple(size - 1 for size in volume.shape[1:]), (volume.shape[1] - 1, 0, 2)):
        place = volume.affine @ (*index, 1.0)
        there = np.array(image.TransformPhysicalPointToContinuousIndex([float(value) for value in place[:3]]))
        assert np.abs(there - np.rint(there)).max() < 1e-4
        w, h, t = np.rint(there).astype(int)
        assert volume.array[(0, *index)] == values[t, h, w]
    # The slices stay slices, and each axis runs the canonical way along its own patient axis.
    assert volume.shape[1] == 5
    for axis, (patient_axis, direction) in enumerate(CANONICAL[volume.slice_axis]):
        assert volume.affine[patient_axis, axis] * direction > 0


def test_real_series_equal_sitk(data_dir: Path) -> None:
    for name in ("ct_liver_dicom/CRLM-CT-1004", "mr_pelvis_dicom/t2", "mr_pelvis_dicom/adc"):
        volume = read_volume(data_dir / name)
        image = sitk_of(data_dir / name)
        assert volume.array.dtype == np.int16
        # The CT has padding (-3024 HU in SimpleITK), which is air here; every other voxel is the same to the bit.
        values = sitk.GetArrayFromImage(image)
        if volume.meta["modality"] == "CT":
            padding = values == -3024
            assert padding.mean() > 0.2
            assert (volume.array[0][padding] == -1024).all()
            assert "padding" in corrections(volume)
            values = np.where(padding, -1024, values)
        restored = sitk.GetImageFromArray(values)
        restored.CopyInformation(image)
        assert_same_as_sitk(volume, restored)
        back = volume.to_sitk()
        np.testing.assert_allclose(back.GetSpacing(), image.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)


# -- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    stored = noise((4, 6, 7))
    for index, place in enumerate(positions_of(4)):
        plane = stored[index].astype(">u2") if syntax == ExplicitVRBigEndian else stored[index]
        ds = slice_dataset(plane, position=place, syntax=syntax)
        ds["PixelData"].VR = "OW"
        save(ds, tmp_path / f"{index}")
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], stored.astype(int) - 1024)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("signed", [True, False])
def test_compressed_transfer_syntaxes(tmp_path: Path, syntax: str, signed: bool) -> None:
    dtype = np.int16 if signed else np.uint16
    smooth = np.arange(4 * 32 * 32).reshape(4, 32, 32) % 2000
    stored = (smooth - 900 * signed).astype(dtype)
    for index, place in enumerate(positions_of(4)):
        ds = slice_dataset(stored[index], position=place, intercept=0)
        if syntax == RLELossless:
            ds.compress(syntax, generate_instance_uid=False)
        else:
            compress_with_gdcm(ds, syntax)
        save(ds, tmp_path / f"{index}")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], stored)
    assert volume.array.dtype == np.int16


def compress_with_gdcm(ds: pydicom.Dataset, syntax: str) -> None:
    import tempfile

    import gdcm

    with tempfile.TemporaryDirectory() as name:
        save(ds, f"{name}/raw")
        reader = gdcm.ImageReader()
        reader.SetFileName(f"{name}/raw")
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        kind = {
            JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
            JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
        }
        change.SetTransferSyntax(gdcm.TransferSyntax(kind[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(f"{name}/packed")
        assert writer.Write()
        packed = pydicom.dcmread(f"{name}/packed")
    ds.PixelData = packed.PixelData
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax


def test_parallel_decoding_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = noise((6, 16, 16), high=100)
    for index, place in enumerate(positions_of(6)):
        ds = slice_dataset(stored[index], position=place)
        ds.compress(RLELossless, generate_instance_uid=False)
        save(ds, tmp_path / f"{index}")
    monkeypatch.setattr(pixels, "_PARALLEL_PIXELS", 0)
    np.testing.assert_array_equal(read_volume(tmp_path, jobs=2).array[0], stored.astype(int) - 1024)


def test_a_missing_codec_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import Decoder

    for index, place in enumerate(positions_of(3)):
        ds = slice_dataset(noise((16, 16)), position=place)
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
        save(ds, tmp_path / f"{index}")
    monkeypatch.setattr(Decoder, "is_available", False)
    with pytest.raises(DataError) as caught:
        read_volume(tmp_path)
    assert caught.value.code == "no-codec"
    assert "JPEG 2000" in caught.value.problem
    assert caught.value.remedy == "pip install python-gdcm"


def test_a_damaged_stream_is_described(tmp_path: Path) -> None:
    for index, place in enumerate(positions_of(3)):
        ds = slice_dataset(noise((16, 16)), position=place)
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = JPEGLSLossless  # it is not
        save(ds, tmp_path / f"{index}")
    with pytest.raises(DataError) as caught:
        read_volume(tmp_path)
    assert caught.value.code == "decode"
    assert caught.value.where.startswith(str(tmp_path))


# -- meaning of values -----------------------------------------------------------------------------------------------


def test_rescale_differs_from_slice_to_slice(tmp_path: Path) -> None:
    stored = noise((4, 5, 5))
    slopes = [0.5, 0.25, 2.0, 1.125]
    write_series(
        tmp_path, stored, modality="PT", Units="BQML", each=lambda index: {"slope": slopes[index], "intercept": index}
    )
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    assert volume.meta["units"] == "BQML"
    for index in range(4):
        np.testing.assert_allclose(volume.array[0, index], stored[index] * slopes[index] + index, rtol=1e-6)


def test_whole_slopes_that_differ_stay_int16(tmp_path: Path) -> None:
    stored = noise((3, 5, 5))
    write_series(tmp_path, stored, each=lambda index: {"slope": index + 1, "intercept": -100 * index})
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    expected = stored.astype(int) * np.arange(1, 4)[:, None, None] - 100 * np.arange(3)[:, None, None]
    np.testing.assert_array_equal(volume.array[0], expected)


def test_values_beyond_int16_become_float32(tmp_path: Path) -> None:
    stored = noise((3, 5, 5), high=60_000)
    stored[1, 2, 3] = 65_535
    write_series(tmp_path, stored, modality="MR", slope=None)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], stored)
    write_series(tmp_path / "fits", stored, intercept=-32_768, SeriesInstanceUID="1.2.3")
    volume = read_volume(tmp_path / "fits")
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[0], stored.astype(int) - 32_768)


def test_float_pixels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 5)).astype(np.float32)
    values[1, 0, 0] = np.nan
    for index, place in enumerate(positions_of(3)):
        ds = slice_dataset(noise((5, 5)), position=place, modality="MR", slope=None, BitsAllocated=32)
        del ds.PixelData
        ds.FloatPixelData = values[index].tobytes()
        save(ds, tmp_path / f"{index}")
    volume = read_volume(tmp_path)
    expected = np.where(np.isfinite(values), values, np.nanmin(values))
    np.testing.assert_array_equal(volume.array[0], expected)
    assert corrections(volume)["non-finite"].startswith("1 voxels")


@pytest.mark.parametrize("signed", [True, False])
def test_padding_of_ct_becomes_air(tmp_path: Path, signed: bool) -> None:
    stored = noise((4, 9, 9)).astype(np.int16 if signed else np.uint16)
    value = -2000 if signed else 63_536
    stored[:, :2] = np.array(value).astype(stored.dtype)
    # Writers state it as US whatever the pixels are.
    write_series(tmp_path, stored, each=lambda index: {"PixelPaddingValue": value & 0xFFFF if not signed else value})
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    assert (volume.array[0, :, :2] == -1024).all()
    np.testing.assert_array_equal(volume.array[0, :, 2:], stored[:, 2:].astype(int) - 1024)
    assert corrections(volume) == {"padding": "72 padding voxels became -1024"}


def test_padding_stated_as_unsigned_in_signed_pixels(tmp_path: Path) -> None:
    stored = noise((4, 9, 9)).astype(np.int16)
    stored[:, 0] = -2000
    for index, place in enumerate(positions_of(4)):
        ds = slice_dataset(stored[index], position=place)
        ds.add_new(0x00280120, "US", 65_536 - 2000)
        save(ds, tmp_path / f"{index}")
    assert (read_volume(tmp_path).array[0, :, 0] == -1024).all()


def test_padding_beyond_the_bits_stored_stays_padding(tmp_path: Path) -> None:
    stored = noise((4, 9, 9))
    stored[:, 0] = 63_536
    write_series(tmp_path, stored, BitsStored=12, HighBit=11, PixelPaddingValue=63_536)
    volume = read_volume(tmp_path)
    assert (volume.array[0, :, 0] == -1024).all()
    np.testing.assert_array_equal(volume.array[0, :, 1:], stored[:, 1:].astype(int) - 1024)


def test_padding_range_and_padding_of_mr(tmp_path: Path) -> None:
    stored = noise((3, 9, 9)).astype(np.int16) + 100
    stored[:, 0], stored[:, 1] = -32_768, -32_760
    write_series(tmp_path, stored, modality="MR", slope=None, PixelPaddingValue=-32_768, PixelPaddingRangeLimit=-32_760)
    volume = read_volume(tmp_path)
    assert (volume.array[0, :, :2] == stored[:, 2:].min()).all()
    np.testing.assert_array_equal(volume.array[0, :, 2:], stored[:, 2:])


def test_padding_that_is_an_image_value_makes_no_holes(tmp_path: Path) -> None:
    stored = noise((3, 9, 9)).astype(np.int16) - 1000
    stored[1, 1, 1] = 0
    write_series(tmp_path, stored, slope=1, intercept=0, PixelPaddingValue=0)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], stored)
    assert "padding-ignored" in corrections(volume)


def test_padding_that_is_air_already_changes_nothing(tmp_path: Path) -> None:
    stored = noise((3, 9, 9))
    stored[:, 0] = 0
    write_series(tmp_path, stored, PixelPaddingValue=0)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], stored.astype(int) - 1024)
    assert not volume.meta["corrections"]


def test_monochrome1_is_inverted_where_values_are_no_measurement(tmp_path: Path) -> None:
    stored = noise((3, 5, 5), high=4096)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    write_series(tmp_path / "mr", stored, modality="MR", slope=None, **tags)
    volume = read_volume(tmp_path / "mr")
    np.testing.assert_array_equal(volume.array[0], 4095 - stored.astype(int))
    assert "monochrome1" in corrections(volume)
    write_series(tmp_path / "ct", stored, **tags)
    volume = read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array[0], stored.astype(int) - 1024)


@pytest.mark.parametrize("signed", [True, False])
def test_bits_beyond_those_stored_are_cleared(tmp_path: Path, signed: bool) -> None:
    truth = noise((3, 5, 5), high=4096).astype(np.int16) - (2048 if signed else 0)
    dirty = (truth.astype(np.uint16) & 0x0FFF) | np.uint16(0xA000)  # an old overlay in the upper bits
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    write_series(tmp_path, dirty, intercept=0, **tags)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], truth)
    assert "unused-bits" in corrections(volume)


def test_high_bit_shifts(tmp_path: Path) -> None:
    truth = noise((3, 5, 5), high=4096)
    write_series(tmp_path, truth << 4, intercept=0, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], truth)


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.ModalityLUTType = "US"
    table.add_new("LUTData", "US", [3 * value + 1 for value in range(256)])
    stored = noise((3, 5, 5), high=256)
    write_series(tmp_path, stored, modality="MR", slope=None, ModalityLUTSequence=Sequence([table]))
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], 3 * stored.astype(int) + 1)


def test_zero_slope_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, noise((3, 5, 5)), slope=0)
    with pytest.raises(DataError, match="RescaleSlope"):
        read_volume(tmp_path)


def test_ct_without_rescale_is_used_and_noted(tmp_path: Path) -> None:
    write_series(tmp_path, noise((3, 5, 5)), slope=None)
    volume = read_volume(tmp_path)
    assert [item["code"] for item in volume.meta["assumptions"]] == ["no-rescale"]


def test_reading_twice_gives_new_arrays(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise((3, 5, 5)))
    (series,), _ = assemble([header for path in paths for header in scan_file(path).headers])
    first, second = read_series(series), read_series(series)
    first.array[:] = 0
    assert second.array.any()
