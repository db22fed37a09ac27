"""Many frames in a file: functional groups, nuclear medicine, mosaics."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK as sitk
from io_writer import AXIAL, noise, positions_of, save, slice_dataset
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from volrec.errors import DataError
from volrec.io import Series, assemble, read_series, read_volume, scan_file

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def group(**items: Any) -> Dataset:
    """Functional groups: each keyword is a sequence of one item that holds the given elements."""
    ds = Dataset()
    for name, elements in items.items():
        item = Dataset()
        for element, value in elements.items():
            setattr(item, element, value)
        setattr(ds, name, Sequence([item]))
    return ds


def enhanced(
    stored: np.ndarray,
    positions: np.ndarray,
    *,
    frame_items: Any = lambda index: {},
    compress: bool = False,
    **tags: Any,
) -> Dataset:
    ds = slice_dataset(
        stored[0], position=None, orientation=None, spacing=None, slope=None, SOPClassUID=ENHANCED_CT, **tags
    )
    ds.NumberOfFrames = len(stored)
    ds.PixelData = stored.tobytes()
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
        PixelMeasuresSequence={"PixelSpacing": [0.6, 0.7], "SliceThickness": 99, "SpacingBetweenSlices": 99},
    )
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(
        [
            group(
                PlanePositionSequence={"ImagePositionPatient": [float(value) for value in place]},
                PixelValueTransformationSequence={
                    "RescaleSlope": "1",
                    "RescaleIntercept": str(-1024 + index % 2),
                    "RescaleType": "HU",
                },
                **frame_items(index),
            )
            for index, place in enumerate(positions)
        ]
    )
    if compress:
        ds.compress(RLELossless, generate_instance_uid=False)
    return ds


def series_of(path: Path) -> list[Series]:
    return assemble(scan_file(path).headers)[0]


@pytest.mark.parametrize("compress", [False, True])
def test_frames_are_ordered_by_position_and_rescaled_each(tmp_path: Path, compress: bool) -> None:
    stored = noise((7, 5, 6))
    order = np.random.default_rng(0).permutation(7)
    save(enhanced(stored[order], positions_of(7)[order], compress=compress), tmp_path / "e")
    volume = read_volume(tmp_path / "e")
    truth = np.empty((7, 5, 6), int)
    truth[order] = stored[order].astype(int) - 1024 + (np.arange(7) % 2)[:, None, None]
    np.testing.assert_array_equal(volume.array[0], truth)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.6, 0.7), atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], (-20, -30, 100), atol=1e-6)
    assert volume.meta["units"] == "HU"
    assert volume.array.dtype == np.int16


def test_in_order_it_equals_sitk(tmp_path: Path) -> None:
    stored = noise((7, 5, 6))
    ds = enhanced(stored, positions_of(7))
    for item in ds.PerFrameFunctionalGroupsSequence:
        item.PixelValueTransformationSequence[0].RescaleIntercept = "-1024"
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = "2.5"
    save(ds, tmp_path / "e")
    volume = read_volume(tmp_path / "e")
    image = sitk.ReadImage(str(tmp_path / "e"))
    assert image.GetSize() == (6, 5, 7)
    np.testing.assert_allclose(volume.to_sitk().GetSpacing(), image.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(volume.to_sitk().GetOrigin(), image.GetOrigin(), atol=1e-4)


def test_phases_echoes_and_b_values_of_frames_are_volumes(tmp_path: Path) -> None:
    stored = noise((12, 5, 6))
    places = np.concatenate([positions_of(4)] * 3)
    cases: dict[str, Any] = {
        "temporal_position": lambda index: {"FrameContentSequence": {"TemporalPositionIndex": index // 4 + 1}},
        "echo_time": lambda index: {"MREchoSequence": {"EffectiveEchoTime": 4.5 * (index // 4 + 1)}},
        "b_value": lambda index: {"MRDiffusionSequence": {"DiffusionBValue": 500.0 * (index // 4)}},
        "cardiac_phase": lambda index: {
            "CardiacSynchronizationSequence": {"NominalPercentageOfCardiacPhase": 30.0 * (index // 4)}
        },
        "stack": lambda index: {"FrameContentSequence": {"StackID": str(index // 4)}},
    }
    for name, items in cases.items():
        save(enhanced(stored, places, frame_items=items), tmp_path / name)
        found = series_of(tmp_path / name)
        assert [list(series.split_by) for series in found] == [[name]] * 3, name
        values = [read_series(series).array[0].astype(int) for series in found]
        truth = (stored.astype(int) - 1024 + (np.arange(12) % 2)[:, None, None]).reshape(3, 4, 5, 6)
        assert sorted(value.sum() for value in values) == sorted(part.sum() for part in truth)


def test_two_files_at_the_same_positions_are_two_volumes(tmp_path: Path) -> None:
    for number in (1, 2):
        save(enhanced(noise((4, 5, 6), seed=number), positions_of(4), number=number), tmp_path / str(number))
    found, _ = assemble([header for number in "12" for header in scan_file(tmp_path / number).headers])
    assert [{Path(path).name for path in series.files} for series in found] == [{"1"}, {"2"}]


def test_a_missing_frame_is_noticed(tmp_path: Path) -> None:
    save(enhanced(noise((6, 5, 6)), positions_of(7)[[0, 1, 2, 4, 5, 6]]), tmp_path / "e")
    with pytest.raises(DataError) as caught:
        read_volume(tmp_path / "e")
    assert caught.value.code == "missing-slice"


def test_truncated_and_inconsistent_files_are_refused(tmp_path: Path) -> None:
    ds = enhanced(noise((6, 5, 6)), positions_of(6))
    path = Path(save(ds, tmp_path / "e"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError) as caught:
        read_volume(path)
    assert caught.value.code == "truncated"
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:4]
    assert scan_file(save(ds, tmp_path / "f")).problem.code == "frame-groups"


def test_frames_without_positions_are_refused(tmp_path: Path) -> None:
    ds = slice_dataset(noise((5, 6)), position=(0, 0, 0), modality="MR")
    ds.NumberOfFrames = 3
    ds.PixelData = noise((3, 5, 6)).tobytes()
    with pytest.raises(DataError) as caught:
        read_volume(save(ds, tmp_path / "m"))
    assert caught.value.code == "missing-geometry"
    assert "3 frames" in caught.value.problem


@pytest.mark.parametrize("spacing", [3.5, -3.5])
def test_reconstructed_nuclear_medicine(tmp_path: Path, spacing: float) -> None:
    stored = noise((5, 6, 7))
    ds = slice_dataset(
        stored[0], position=None, orientation=None, spacing=(4.0, 4.0), modality="NM", slope=0.5, intercept=0
    )
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    ds.NumberOfFrames = 5
    ds.PixelData = stored.tobytes()
    ds.SpacingBetweenSlices = str(spacing)
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [1, 2, 3], list(AXIAL)
    ds.DetectorInformationSequence = Sequence([detector])
    ds.SliceVector = [1, 2, 3, 4, 5]
    volume = read_volume(save(ds, tmp_path / "nm"))
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.spacing, (3.5, 4, 4))
    np.testing.assert_allclose(volume.array[0], stored[:: int(np.sign(spacing))] * 0.5)
    assert volume.affine[2, 3] == pytest.approx(3 + min(0, 4 * spacing))
    assert [item["code"] for item in volume.meta["assumptions"]] == ["spacing-by-tag"]


def csa_header(normal: tuple[float, ...], tiles: int) -> bytes:
    """A Siemens CSA2 header with two elements (layout as nibabel documents it)."""

    def tag(name: str, vr: str, values: list[str]) -> bytes:
        head = name.encode().ljust(64, b"\0") + struct.pack("<i", len(values)) + vr.encode().ljust(4, b"\0")
        head += struct.pack("<iii", 0, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            head += struct.pack("<4i", 0, len(text), 77, 0) + text.ljust((len(text) + 3) // 4 * 4, b"\0")
        return head

    tags = [
        tag("SliceNormalVector", "FD", [f"{value:.8f}" for value in normal]),
        tag("NumberOfImagesInMosaic", "US", [str(tiles)]),
    ]
    return b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77) + b"".join(tags)


@pytest.mark.parametrize("known", [True, False])
def test_siemens_mosaic_is_divided_or_named(tmp_path: Path, known: bool) -> None:
    tiles = noise((7, 4, 5))
    mosaic = np.zeros((12, 15), np.uint16)
    for index in range(7):
        row, column = divmod(index, 3)
        mosaic[4 * row : 4 * row + 4, 5 * column : 5 * column + 5] = tiles[index]
    first = np.array([10.0, 20.0, 30.0])
    # The position in the file is that of an image of the mosaic's size around the same centre.
    stated = first - np.array([1, 0, 0]) * 2.0 * (15 - 5) / 2 - np.array([0, 1, 0]) * 3.0 * (12 - 4) / 2
    ds = slice_dataset(
        mosaic,
        position=stated,
        spacing=(3.0, 2.0),
        modality="MR",
        slope=None,
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        SpacingBetweenSlices="4.5",
    )
    if known:
        ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa_header((0, 0, 1), 7))
        ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 7)
    path = Path(save(ds, tmp_path / "mosaic"))
    if not known:
        problem = scan_file(path).problem
        assert problem.code == "mosaic"
        assert "dcm2niix" in problem.remedy
        return
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], tiles)
    np.testing.assert_allclose(volume.spacing, (4.5, 3, 2))
    np.testing.assert_allclose(volume.affine[:3, 3], first)
    assert [item["code"] for item in volume.meta["assumptions"]] == ["mosaic"]


def test_pydicoms_own_multiframe_files_have_a_reason() -> None:
    corpus = Path(pydicom.data.__file__).parent / "test_files"
    for path in [*corpus.glob("*1frame*"), *corpus.glob("*2frame*"), *corpus.glob("rtdose*")]:
        scan = scan_file(path)
        if scan.headers:
            (series,), _ = assemble(scan.headers)
            assert not series.usable
        else:
            assert scan.problem is not None
