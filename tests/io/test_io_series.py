"""Assembly: what belongs together, in which order, and what is wrong with it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_writer import AXIAL, CORONAL, SAGITTAL, linear, noise, positions_of, save, slice_dataset, write_series

from volrec.errors import ConfigError, DataError
from volrec.io import Series, assemble, read_series, read_volume, scan_file


def scan(folder: Path) -> list[Any]:
    return [header for path in sorted(folder.rglob("*")) if path.is_file() for header in scan_file(path).headers]


def series_of(folder: Path) -> list[Series]:
    return assemble(scan(folder), root=folder)[0]


def codes(series: Series, *, fatal: bool | None = None) -> set[str]:
    return {problem.code for problem in series.problems if fatal is None or problem.fatal == fatal}


def test_order_is_by_position_whatever_names_and_numbers_say(tmp_path: Path) -> None:
    stored = noise((12, 8, 9))
    order = np.random.default_rng(1).permutation(12)
    numbers = [int(number) for number in np.random.default_rng(2).permutation(12)]
    write_series(
        tmp_path, stored[order], positions=positions_of(12)[order], numbers=numbers, names=[f"x{n}" for n in range(12)]
    )
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], stored.astype(int) - 1024)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.7, 0.7), atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], (-20, -30, 100), atol=1e-6)
    assert volume.array.dtype == np.int16
    assert volume.meta["units"] == "HU"


def test_constant_or_absent_instance_numbers_do_not_matter(tmp_path: Path) -> None:
    stored = noise((5, 4, 4))
    for name, number in (("same", 7), ("none", None)):
        write_series(tmp_path / name, stored[::-1], positions=positions_of(5)[::-1], InstanceNumber=number)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array[0], stored.astype(int) - 1024)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL])
@pytest.mark.parametrize("flip", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_every_voxel_keeps_its_place_in_the_patient(
    tmp_path: Path, orientation: tuple[float, ...], flip: tuple[int, int]
) -> None:
    turned = tuple(flip[0] * value for value in orientation[:3]) + tuple(flip[1] * value for value in orientation[3:])
    places = positions_of(6, orientation=turned)
    h, w = np.meshgrid(np.arange(7), np.arange(9), indexing="ij")
    world = (
        places[:, None, None] + h[..., None] * np.array(turned[3:]) * 0.5 + w[..., None] * np.array(turned[:3]) * 0.8
    )
    stored = np.rint(linear(world) + 4000).astype(np.uint16)
    write_series(tmp_path, stored, positions=places, orientation=turned, spacing=(0.5, 0.8), intercept=0)
    volume = read_volume(tmp_path)
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[1:]), indexing="ij"), axis=-1)
    there = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_array_equal(volume.array[0], np.rint(linear(there) + 4000))
    expected = {"axial": [[0, 0, 1], [0, 1, 0], [1, 0, 0]], "coronal": [[0, 1, 0], [0, 0, -1], [1, 0, 0]]}
    expected["sagittal"] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    directions = (volume.affine[:3, :3] / volume.spacing).T
    np.testing.assert_allclose(directions, expected[volume.slice_axis], atol=1e-6)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slice_axis_on_request(tmp_path: Path, plane: str) -> None:
    write_series(tmp_path, noise((5, 6, 7)))
    volume = read_volume(tmp_path, slice_axis=plane)
    assert volume.slice_axis == plane
    assert volume.shape == {"axial": (1, 5, 6, 7), "coronal": (1, 6, 5, 7), "sagittal": (1, 7, 5, 6)}[plane]


def test_unknown_words_are_named(tmp_path: Path) -> None:
    write_series(tmp_path, noise((3, 4, 4)))
    with pytest.raises(ConfigError, match="oblique"):
        read_volume(tmp_path, slice_axis="oblique")
    with pytest.raises(ConfigError, match="guess"):
        read_volume(tmp_path, missing_slices="guess")


def test_thickness_and_spacing_tags_are_not_trusted(tmp_path: Path) -> None:
    write_series(
        tmp_path, noise((5, 4, 4)), SliceThickness="1", SpacingBetweenSlices="7", positions=positions_of(5, spacing=4)
    )
    assert read_volume(tmp_path).spacing[0] == pytest.approx(4)


# -- one UID, several volumes ----------------------------------------------------------------------------------------

PHASES = {
    "TemporalPositionIdentifier": [1, 2, 3],
    "NominalPercentageOfCardiacPhase": [0.0, 35.0, 70.0],
    "EchoTime": ["2.46", "4.92", "7.38"],
    "EchoNumbers": [1, 2, 3],
    "DiffusionBValue": [0.0, 400.0, 800.0],
    "AcquisitionNumber": [4, 5, 6],
    "ConvolutionKernel": ["B30f", "B70f", "H40s"],
    "InversionTime": ["50", "400", "1100"],
    "FlipAngle": ["2", "12", "25"],
    "TriggerTime": ["0", "120.5", "241"],
    "ImageType": [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"], ["ORIGINAL", "PRIMARY", "R"]],
}


@pytest.mark.parametrize("tag", PHASES)
def test_three_phases_at_the_same_positions_are_three_volumes(tmp_path: Path, tag: str) -> None:
    count = 60 if tag == "TemporalPositionIdentifier" else 9
    stored = noise((count, 4, 5), seed=3)
    for phase, value in enumerate(PHASES[tag]):
        # Numbers are shuffled over all phases: they cannot be what tells them apart.
        numbers = [int(number) for number in np.random.default_rng(phase).permutation(3 * count)[:count]]
        names = [f"{number}_{phase}" for number in range(count)]
        write_series(tmp_path, stored + phase, numbers=numbers, names=names, modality="MR", **{tag: value})
    found = series_of(tmp_path)
    assert [series.shape for series in found] == [(count, 4, 5)] * 3
    assert all(series.usable and series.split_by and "split" in codes(series) for series in found)
    assert len({series.uid for series in found}) == 3
    offsets = sorted(int((read_series(series).array[0] - stored.astype(int) + 1024).mean()) for series in found)
    assert offsets == [0, 1, 2]


def test_private_b_values_of_the_vendors_split(tmp_path: Path) -> None:
    vendors = {
        "siemens": (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", lambda b: str(b)),
        "ge": (0x0043, "GEMS_PARM_01", 0x39, "IS", lambda b: [str(1_000_000_000 + b), "8", "0", "0"]),
        "philips": (0x2001, "Philips Imaging DD 001", 0x03, "FL", float),
    }
    for vendor, (group, creator, element, vr, value) in vendors.items():
        for b in (0, 800):
            for index, place in enumerate(positions_of(4)):
                ds = slice_dataset(noise((4, 4)), position=place, number=1, modality="MR")
                ds.private_block(group, creator, create=True).add_new(element, vr, value(b))
                save(ds, tmp_path / vendor / f"{b}_{index}.dcm")
        assert sorted(series.split_by["b_value"] for series in series_of(tmp_path / vendor)) == [0, 800], vendor


def test_trigger_times_that_differ_from_slice_to_slice_are_ranked(tmp_path: Path) -> None:
    stored = noise((5, 4, 4))
    for phase in range(3):
        write_series(
            tmp_path / str(phase),
            stored + phase,
            numbers=list(range(20 - 6 * phase, 25 - 6 * phase)),  # run against the phases
            each=lambda index, phase=phase: {"TriggerTime": f"{40 * phase + 1.7 * index:.1f}"},
        )
    found = series_of(tmp_path)
    assert [series.split_by for series in found] == [{"trigger_time_rank": rank} for rank in (1, 2, 3)]
    for phase, series in enumerate(found):
        np.testing.assert_array_equal(read_series(series).array[0], stored.astype(int) - 1024 + phase)


def test_instance_number_tells_phases_apart_only_as_a_recorded_last_resort(tmp_path: Path) -> None:
    stored = noise((6, 4, 4))
    for phase in range(2):
        write_series(tmp_path / str(phase), stored + phase, numbers=list(range(6 * phase, 6 * phase + 6)))
    found = series_of(tmp_path)
    assert len(found) == 2
    assert all("phases-by-instance-number" in codes(series, fatal=False) for series in found)
    np.testing.assert_array_equal(read_series(found[1]).array[0], stored.astype(int) - 1023)


def test_a_tag_that_jitters_from_slice_to_slice_does_not_cut_a_volume(tmp_path: Path) -> None:
    write_series(
        tmp_path,
        noise((20, 4, 4)),
        modality="MR",
        each=lambda index: {"EchoTime": f"{4.6 + 0.01 * ((index * 7) % 5):.2f}", "AcquisitionNumber": index + 1},
    )
    (series,) = series_of(tmp_path)
    assert series.usable
    assert series.shape[0] == 20


@pytest.mark.parametrize("told", [True, False])
def test_a_tag_that_jitters_does_not_cut_phases_either(tmp_path: Path, told: bool) -> None:
    for phase in range(2):
        jitter = np.random.default_rng(phase).integers(0, 2, 16)
        write_series(
            tmp_path / str(phase),
            noise((16, 4, 4)),
            modality="MR",
            numbers=list(range(16 * phase, 16 * phase + 16)),
            AcquisitionNumber=phase + 1 if told else 1,
            each=lambda index, jitter=jitter: {"EchoTime": f"{4.6 + 0.1 * jitter[index]:.1f}"},
        )
    found = series_of(tmp_path)
    name = "acquisition_number" if told else "instance_number_rank"
    assert [series.split_by for series in found] == [{name: 1}, {name: 2}]
    assert all(series.usable and series.shape[0] == 16 for series in found)


def test_a_slice_missing_in_one_phase_is_that_phase_s_alone(tmp_path: Path) -> None:
    for phase in range(3):
        present = [index for index in range(12) if (phase, index) != (1, 5)]
        write_series(
            tmp_path / str(phase),
            noise((12, 4, 4))[present],
            positions=positions_of(12)[present],
            numbers=[1] * len(present),
            TemporalPositionIdentifier=phase + 1,
        )
    found = {series.split_by["temporal_position"]: series for series in series_of(tmp_path)}
    assert {phase: series.missing for phase, series in found.items()} == {1: (), 2: (5,), 3: ()}
    assert read_series(found[3]).shape == (1, 12, 4, 4)


def test_a_kernel_that_changes_half_way_divides(tmp_path: Path) -> None:
    write_series(tmp_path, noise((12, 4, 4)), each=lambda index: {"ConvolutionKernel": "B30f" if index < 7 else "H40s"})
    assert sorted(series.shape[0] for series in series_of(tmp_path)) == [5, 7]


def test_directions_of_diffusion_are_volumes(tmp_path: Path) -> None:
    directions = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    for number, direction in enumerate(directions):
        write_series(
            tmp_path / str(number),
            noise((4, 4, 4)),
            modality="MR",
            numbers=[1] * 4,
            DiffusionBValue=1000.0 if number else 0.0,
            DiffusionGradientOrientation=list(direction),
        )
    assert [series.shape[0] for series in series_of(tmp_path)] == [4] * 4


def test_mixed_sizes_and_orientations_are_divided_with_a_reason(tmp_path: Path) -> None:
    write_series(tmp_path / "a", noise((6, 8, 8)))
    write_series(tmp_path / "b", noise((5, 4, 4)))
    write_series(tmp_path / "c", noise((7, 8, 8)), orientation=CORONAL)
    found = series_of(tmp_path)
    assert sorted((series.shape, series.orientation) for series in found) == [
        ((5, 4, 4), "axial"),
        ((6, 8, 8), "axial"),
        ((7, 8, 8), "coronal"),
    ]
    assert all("mixed-sizes" in codes(series, fatal=False) for series in found)


# -- scouts ----------------------------------------------------------------------------------------------------------


def test_scouts_are_set_aside(tmp_path: Path) -> None:
    write_series(tmp_path / "tagged", noise((9, 8, 8)))
    scout = slice_dataset(
        noise((8, 8)), position=(0, 0, 0), orientation=CORONAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    save(scout, tmp_path / "tagged" / "scout.dcm")
    write_series(tmp_path / "untagged", noise((9, 8, 8)), SeriesInstanceUID="1.2.3.4")
    save(
        slice_dataset(noise((8, 8)), position=(0, 0, 0), orientation=SAGITTAL, SeriesInstanceUID="1.2.3.4"),
        tmp_path / "untagged" / "scout.dcm",
    )
    for name in ("tagged", "untagged"):
        by_kind = {series.localizer: series for series in series_of(tmp_path / name)}
        assert by_kind[False].usable
        assert by_kind[False].shape == (9, 8, 8)
        assert codes(by_kind[True], fatal=True) == {"localizer"}
        assert read_volume(tmp_path / name).shape == (1, 9, 8, 8)


def test_three_planes_in_one_series_are_a_scout(tmp_path: Path) -> None:
    for number, orientation in enumerate((AXIAL, CORONAL, SAGITTAL)):
        write_series(tmp_path / str(number), noise((5, 8, 8)), orientation=orientation, modality="MR")
    assert all(series.localizer for series in series_of(tmp_path))


# -- what is wrong ---------------------------------------------------------------------------------------------------


def refused(folder: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_volume(folder, **options)
    assert caught.value.problem
    assert caught.value.remedy
    return caught.value


def test_a_single_missing_slice_is_refused_or_interpolated(tmp_path: Path) -> None:
    stored = noise((9, 5, 5))
    present = [0, 1, 2, 3, 5, 6, 7, 8]
    write_series(tmp_path, stored[present], positions=positions_of(9)[present])
    (series,) = series_of(tmp_path)
    assert series.missing == (4,)
    assert series.shape == (9, 5, 5)
    error = refused(tmp_path)
    assert error.code == "missing-slice"
    assert "slice 4 of 9" in error.problem
    volume = read_volume(tmp_path, missing_slices="interpolate")
    assert volume.shape == (1, 9, 5, 5)
    np.testing.assert_allclose(volume.spacing[0], 2.5)
    np.testing.assert_array_equal(volume.array[0][present], stored[present].astype(int) - 1024)
    mean = (stored[3].astype(float) + stored[5]) / 2 - 1024
    assert np.abs(volume.array[0][4] - mean).max() <= 0.5
    assert volume.meta["corrections"][0]["slices"] == [4]


def test_wide_or_several_gaps_are_refused_even_with_interpolation(tmp_path: Path) -> None:
    for name, present in {"wide": [0, 1, 2, 5, 6, 7, 8, 9], "two": [0, 1, 3, 4, 5, 7, 8, 9]}.items():
        write_series(tmp_path / name, noise((8, 4, 4)), positions=positions_of(10)[present])
        assert refused(tmp_path / name, missing_slices="interpolate").code == "missing-slices"


def test_non_uniform_spacing_is_refused(tmp_path: Path) -> None:
    places = positions_of(9)
    places[5:] += np.array([0, 0, 0.9])
    write_series(tmp_path / "step", noise((9, 4, 4)), positions=places)
    z = np.concatenate([np.arange(10) * 2.5, 22.5 + np.arange(1, 11) * 5.0])
    write_series(tmp_path / "head", noise((20, 4, 4)), positions=np.stack([0 * z, 0 * z, z], axis=1))
    for name in ("step", "head"):
        assert refused(tmp_path / name, missing_slices="interpolate").code == "non-uniform-spacing"


@pytest.mark.parametrize("spacing", [0.625, 1.25, 3.27])
def test_positions_rounded_to_a_tenth_are_even_and_the_jitter_is_recorded(tmp_path: Path, spacing: float) -> None:
    write_series(tmp_path, noise((30, 4, 4)), positions=np.round(positions_of(30, spacing=spacing), 1))
    (series,) = series_of(tmp_path)
    assert codes(series) == {"spacing-jitter"}
    assert read_volume(tmp_path).spacing[0] == pytest.approx(spacing, abs=0.005)


def test_identical_copies_are_dropped_and_noted(tmp_path: Path) -> None:
    stored = noise((6, 4, 4))
    paths = write_series(tmp_path, stored)
    (tmp_path / "again").mkdir()
    shutil.copy(paths[2], tmp_path / "again" / "copy of 2.dcm")
    series, problems = assemble(scan(tmp_path), root=tmp_path)
    assert [problem.code for problem in problems] == ["copy"]
    assert series[0].usable
    np.testing.assert_array_equal(read_series(series[0]).array[0], stored.astype(int) - 1024)


def test_other_content_under_one_uid_is_a_conflict(tmp_path: Path) -> None:
    write_series(tmp_path, noise((6, 4, 4)), each=lambda index: {"SOPInstanceUID": f"1.2.3.{index}"})
    extra = slice_dataset(noise((4, 4), seed=9), position=positions_of(6)[2], number=3, SOPInstanceUID="1.2.3.2")
    save(extra, tmp_path / "other.dcm")
    assert refused(tmp_path).code == "conflicting-copies"


def test_two_images_at_one_position_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, noise((6, 4, 4)))
    save(slice_dataset(noise((4, 4), seed=5), position=positions_of(6)[2], number=77), tmp_path / "x.dcm")
    error = refused(tmp_path)
    assert error.code == "duplicate-positions"
    assert "1 of 7" in error.problem


def test_two_patients_under_one_series_uid_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, noise((6, 4, 4)), each=lambda index: {"PatientID": "P1" if index < 3 else "P2"})
    error = refused(tmp_path)
    assert error.code == "two-patients"
    assert "P1, P2" in error.problem


def test_two_series_in_a_folder_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "a", noise((4, 4, 4)))
    write_series(tmp_path / "b", noise((4, 4, 4)), SeriesInstanceUID="1.2.3")
    error = refused(tmp_path)
    assert error.code == "several-series"
    assert "a: CT axial 4x4x4" in error.problem
    assert "b: CT" in error.problem


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry_names_the_tag(tmp_path: Path, tag: str) -> None:
    write_series(tmp_path / "all", noise((4, 4, 4)), **{tag: None})
    write_series(tmp_path / "one", noise((4, 4, 4)), each=lambda index: {tag: None} if index == 3 else {})
    for name in ("all", "one"):
        error = refused(tmp_path / name)
        assert error.code == "missing-geometry"
        assert tag in error.problem


@pytest.mark.parametrize("spacing", [(0.0, 0.7), (0.7, -0.7)])
def test_zero_and_negative_pixel_spacing_are_refused(tmp_path: Path, spacing: tuple[float, float]) -> None:
    write_series(tmp_path, noise((4, 4, 4)), spacing=spacing)
    assert refused(tmp_path).code == "spacing"


def test_nan_in_geometry_is_refused(tmp_path: Path) -> None:
    for path in write_series(tmp_path, noise((4, 4, 4))):
        content = Path(path).read_bytes()
        assert content.count(b"0.7\\0.7 ") == 1
        Path(path).write_bytes(content.replace(b"0.7\\0.7 ", b"nan\\nan "))
    assert refused(tmp_path).code == "missing-geometry"


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path, noise((1, 4, 4)))
    assert refused(tmp_path).code == "single-slice"


def test_truncated_slice_makes_the_series_unusable(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise((5, 16, 16)))
    content = Path(paths[4]).read_bytes()
    Path(paths[4]).write_bytes(content[:-100])
    error = refused(tmp_path)
    assert error.code == "truncated"
    assert "0004.dcm" in error.problem
    Path(paths[4]).write_bytes(content[:500])  # inside the header: the series is not even known
    assert refused(tmp_path).code == "truncated"


def test_colour_and_screen_captures_are_set_aside(tmp_path: Path) -> None:
    colour = noise((3, 4, 4, 3), high=255, dtype=np.uint8)
    write_series(tmp_path / "rgb", colour)
    assert refused(tmp_path / "rgb").code == "colour"
    write_series(tmp_path / "sc", noise((3, 4, 4)), SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert refused(tmp_path / "sc").code == "secondary-capture"


# -- whose fault it is -----------------------------------------------------------------------------------------------


def two_phases(folder: Path, **options: Any) -> list[list[str]]:
    return [
        write_series(
            folder / f"phase{phase}",
            noise((8, 16, 16), seed=phase),
            numbers=list(range(1 + 8 * (phase - 1), 1 + 8 * phase)),
            TemporalPositionIdentifier=phase,
            **options,
        )
        for phase in (1, 2)
    ]


def by_phase(folder: Path) -> dict[int, Series]:
    found = series_of(folder)
    assert len(found) == 2
    return {series.split_by["temporal_position"]: series for series in found}


def cut(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-100])


def without(path: str, *tags: str) -> None:
    data = pydicom.dcmread(path)
    for tag in tags:
        delattr(data, tag)
    data.save_as(path)


def test_a_cut_file_spoils_its_phase_alone(tmp_path: Path) -> None:
    _, second = two_phases(tmp_path)
    cut(second[4])
    found = by_phase(tmp_path)
    assert found[1].usable
    assert codes(found[2], fatal=True) == {"truncated"}
    (problem,) = [problem for problem in found[2].problems if problem.fatal]
    assert (problem.where, "phase2/0004.dcm" in problem.reason) == ("phase2", True)
    assert read_series(found[1]).shape == (1, 8, 16, 16)


@pytest.mark.parametrize("index", [3, 7])
@pytest.mark.parametrize("tag", ["ImagePositionPatient", "PixelSpacing"])
def test_a_slice_without_a_place_spoils_its_phase_alone(tmp_path: Path, index: int, tag: str) -> None:
    _, second = two_phases(tmp_path)
    without(second[index], tag)
    found = by_phase(tmp_path)
    assert found[1].usable
    assert not found[1].problems[0].fatal
    assert "missing-geometry" in codes(found[2], fatal=True)


def test_a_slice_with_invalid_spacing_spoils_its_phase_alone(tmp_path: Path) -> None:
    _, second = two_phases(tmp_path)
    data = pydicom.dcmread(second[7])
    data.PixelSpacing = [0, 0.7]
    data.save_as(second[7])
    found = by_phase(tmp_path)
    assert found[1].usable
    assert codes(found[2], fatal=True) == {"spacing"}


def test_a_phase_without_any_place_leaves_the_other_usable(tmp_path: Path) -> None:
    _, second = two_phases(tmp_path)
    for path in second:
        without(path, "ImagePositionPatient")
    good, bad = series_of(tmp_path)
    assert good.usable
    assert (len(good.files), len(bad.files)) == (8, 8)
    assert codes(bad, fatal=True) == {"missing-geometry"}
    assert good.uid != bad.uid


def test_a_conflict_spoils_its_phase_alone(tmp_path: Path) -> None:
    _, second = two_phases(tmp_path)
    data = pydicom.dcmread(second[4])
    data.PixelData = noise((16, 16), seed=9).tobytes()
    (tmp_path / "more").mkdir()
    data.save_as(tmp_path / "more" / "other.dcm")
    found = by_phase(tmp_path)
    assert found[1].usable
    assert codes(found[2], fatal=True) == {"conflicting-copies"}
    (reason,) = [problem.reason for problem in found[2].problems if problem.fatal]
    assert "more/other.dcm" in reason
    assert [problem.where for problem in assemble(scan(tmp_path), root=tmp_path)[1]] == ["phase2/0004.dcm"]
    assert "phase2/0004.dcm" in reason


def test_one_uid_for_images_of_two_phases_spoils_both(tmp_path: Path) -> None:
    first, second = two_phases(tmp_path)
    data = pydicom.dcmread(second[7])
    data.SOPInstanceUID = pydicom.dcmread(first[7]).SOPInstanceUID
    data.save_as(second[7])
    found = by_phase(tmp_path)
    assert [codes(found[phase], fatal=True) for phase in (1, 2)] == [{"conflicting-copies"}] * 2
    assert [found[phase].shape[0] for phase in (1, 2)] == [8, 8]


def test_a_zero_slope_spoils_its_phase_alone(tmp_path: Path) -> None:
    _, second = two_phases(tmp_path)
    data = pydicom.dcmread(second[2])
    data.RescaleSlope = 0
    data.save_as(second[2])
    found = by_phase(tmp_path)
    assert found[1].usable
    assert codes(found[2], fatal=True) == {"zero-slope"}


@pytest.mark.parametrize("folder", ["a", "z"])  # read before and after the sound file
@pytest.mark.parametrize("harm", ["cut", "no pixels"])
def test_an_incomplete_copy_of_a_sound_slice_is_dropped(tmp_path: Path, folder: str, harm: str) -> None:
    stored = noise((6, 16, 16))
    paths = write_series(tmp_path / "m", stored)
    (tmp_path / folder).mkdir()
    copy = str(tmp_path / folder / "copy.dcm")
    shutil.copy(paths[2], copy)
    if harm == "cut":
        cut(copy)
    else:
        without(copy, "PixelData")
    (series,), problems = assemble(scan(tmp_path), root=tmp_path)
    assert series.usable
    assert [(problem.code, problem.where, problem.fatal) for problem in problems] == [
        ("incomplete-copy", f"{folder}/copy.dcm", False)
    ]
    assert "m/0002.dcm" in problems[0].reason
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], stored.astype(int) - 1024)


def test_an_image_without_a_place_beside_a_complete_stack_is_set_aside(tmp_path: Path) -> None:
    stored = noise((6, 4, 4))
    write_series(tmp_path, stored)
    for name, tags in {
        "number taken": {"number": 1},
        "number far": {"number": 99},
        "scout": {"number": 7, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "other plane": {"number": 7, "orientation": CORONAL},
    }.items():
        path = Path(save(slice_dataset(noise((4, 4), seed=3), position=None, **tags), tmp_path / "image.dcm"))
        (series,) = series_of(tmp_path)
        assert series.usable, name
        assert codes(series) == {"unplaced-image"}, name
        assert series.problems[0].where == "image.dcm"
        np.testing.assert_array_equal(read_volume(tmp_path).array[0], stored.astype(int) - 1024)
        path.unlink()
    save(slice_dataset(noise((9, 9)), position=None), tmp_path / "larger.dcm")
    assert series_of(tmp_path)[0].usable


@pytest.mark.parametrize("lost", [0, 3, 5])
def test_an_image_without_a_place_that_may_be_a_lost_slice_is_fatal(tmp_path: Path, lost: int) -> None:
    paths = write_series(tmp_path, noise((6, 4, 4)))
    without(paths[lost], "ImagePositionPatient")
    (series,) = series_of(tmp_path)
    assert "missing-geometry" in codes(series, fatal=True)
    without(paths[lost], "InstanceNumber")
    assert "missing-geometry" in codes(series_of(tmp_path)[0], fatal=True)


# -- no pixels -------------------------------------------------------------------------------------------------------


def test_a_series_of_headers_alone_says_so_once(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "all", noise((41, 4, 4))):
        without(path, "PixelData")
    (series,), problems = assemble(scan(tmp_path / "all"), root=tmp_path)
    assert not problems
    (fault,) = [problem for problem in series.problems if problem.fatal]
    assert fault.code == "no-pixels"
    assert fault.reason == "41 of 41 files hold no pixel data."
    assert "Copy" not in fault.remedy
    assert refused(tmp_path / "all").code == "no-pixels"
    paths = write_series(tmp_path / "one", noise((6, 4, 4)))
    without(paths[5], "PixelData")
    error = refused(tmp_path / "one")
    assert error.code == "no-pixels"
    assert "1 of 6 files" in error.problem
    assert "0005.dcm" in error.problem


def test_slices_at_one_place_in_two_folders_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "left", noise((6, 4, 4)))
    write_series(tmp_path / "right", noise((2, 4, 4), seed=5), positions=positions_of(6)[2:4])
    (series,) = series_of(tmp_path)
    (reason,) = [problem.reason for problem in series.problems if problem.fatal]
    assert "2 of 8" in reason
    assert "left/0002.dcm and right/0000.dcm" in reason
    assert "left, right" in reason


def test_in_plane_jumps_are_refused(tmp_path: Path) -> None:
    places = positions_of(8)
    places[4:, 0] += 5
    write_series(tmp_path, noise((8, 4, 4)), positions=places)
    assert refused(tmp_path).code == "irregular-positions"


def test_empty_folder_and_nothing_of_use(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").code == "not-found"
    assert refused(tmp_path).code == "nothing-found"
    (tmp_path / "notes.txt").write_text("hello")
    assert "1 files" in refused(tmp_path).problem


# -- tilt ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(
    degrees=st.floats(-25, 25).filter(lambda value: abs(value) > 2),
    across=st.booleans(),
    orientation=st.sampled_from([AXIAL, CORONAL]),
)
def test_tilt_is_undone(
    tmp_path_factory: pytest.TempPathFactory, degrees: float, across: bool, orientation: Any
) -> None:
    folder = tmp_path_factory.mktemp("tilt")
    step = 3.0 * np.tan(np.radians(degrees))
    places = positions_of(8, spacing=3.0, orientation=orientation, drift=(0, step) if across else (step, 0))
    h, w = np.meshgrid(np.arange(20), np.arange(24), indexing="ij")
    world = places[:, None, None] + 0.9 * (
        h[..., None] * np.array(orientation[3:]) + w[..., None] * np.array(orientation[:3])
    )
    stored = np.rint(10 * linear(world)).astype(np.int16)
    write_series(
        folder, stored, positions=places, orientation=orientation, spacing=(0.9, 0.9), intercept=0, modality="MR"
    )
    (series,) = series_of(folder)
    assert series.usable
    assert series.tilt == pytest.approx(abs(degrees), abs=0.01)
    assert "tilt" in codes(series, fatal=False)
    volume = read_series(series)
    assert volume.shape[1:] == series.shape
    assert volume.meta["corrections"][0]["degrees"] == pytest.approx(abs(degrees), abs=0.01)
    directions = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    # Where a slice was acquired, the value is that of the place; elsewhere it is the fill.
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[1:]), indexing="ij"), axis=-1)
    there = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    inside = np.zeros(volume.shape[1:], bool)
    for place in places:
        relative = there - place
        near = np.abs(relative @ np.cross(rows, columns)) < 1e-3
        down, right = relative @ columns / 0.9, relative @ rows / 0.9
        inside |= near & (down >= -1e-3) & (down <= 19.001) & (right >= -1e-3) & (right <= 23.001)
    assert inside.sum() > 0.9 * stored.size
    error = np.abs(volume.array[0] - 10 * linear(there))[inside]
    assert error.max() <= 1.01  # rounding once when stored, once when shifted
    assert (volume.array[0][~inside] == stored.min()).mean() > 0.5


def test_tilt_of_ct_is_padded_with_air(tmp_path: Path) -> None:
    write_series(tmp_path, noise((6, 10, 10)) + 1000, positions=positions_of(6, drift=(1.0, 0)))
    volume = read_volume(tmp_path)
    assert volume.shape[2] > 10
    assert volume.array.min() == -1024
    assert volume.array[0, 0].max() > -1024


def test_a_drift_of_rounding_is_no_tilt(tmp_path: Path) -> None:
    write_series(tmp_path, noise((10, 6, 6)), positions=positions_of(10, drift=(0.0005, 0)))
    (series,) = series_of(tmp_path)
    assert series.tilt == 0
    assert series.shape == (10, 6, 6)


# -- the record ------------------------------------------------------------------------------------------------------


def test_series_survives_json_and_pickle_and_moves(tmp_path: Path) -> None:
    write_series(tmp_path / "a", noise((6, 10, 10)), positions=positions_of(6, drift=(1.0, 0)))
    (series,) = series_of(tmp_path / "a")
    assert Series.from_json(json.loads(json.dumps(series.to_json()))) == series
    assert pickle.loads(pickle.dumps(series)) == series  # noqa: S301 - our own bytes
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy2)
    (moved,) = series_of(tmp_path / "b")
    assert moved.signature == series.signature
    first = Path(series.files[0])
    first.write_bytes(first.read_bytes() + b"\0\0")
    assert series_of(tmp_path / "a")[0].signature != series.signature


def test_order_of_headers_does_not_change_the_result(tmp_path: Path) -> None:
    for phase in range(2):
        write_series(tmp_path / str(phase), noise((5, 4, 4)), EchoTime=str(phase + 1), modality="MR")
    headers = scan(tmp_path)
    first = assemble(headers, root=tmp_path)[0]
    shuffled = [headers[index] for index in np.random.default_rng(0).permutation(len(headers))]
    assert assemble(shuffled, root=tmp_path)[0] == first


def test_a_file_that_changed_after_the_scan_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise((4, 4, 4)))
    (series,) = series_of(tmp_path)
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes() + b"\0\0")
    with pytest.raises(DataError) as caught:
        read_series(series)
    assert caught.value.code == "changed"
    Path(paths[1]).unlink()
    with pytest.raises(DataError) as caught:
        read_series(series)
    assert caught.value.code == "unreadable"
