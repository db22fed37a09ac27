"""Phantoms: what they promise about the two classes, and that the files are DICOM as others read it."""

from __future__ import annotations

import csv
import errno
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from volrec.config import DataConfig
from volrec.data.index import index
from volrec.data.labels import join
from volrec.data.phantom_geometry import Anatomy, draw_anatomy
from volrec.data.phantoms import Phantom, draw_phantoms, make_phantoms
from volrec.errors import ConfigError, DataError
from volrec.io import read_series

SHAPE, SPACING = (24, 48, 48), (5.0, 6.5, 6.5)


class Coin(np.random.Generator):
    """A generator whose coin lies as it is told; everything else follows the seed."""

    def __init__(self, seed: int, side: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.side = side

    def random(self, *args, **kwargs):
        super().random(*args, **kwargs)
        return 0.75 - 0.5 * self.side  # the only draw of its kind: under one half is heads


def nodule(seed: int, positive: bool, side: int, *, slices: int = 24, tilt: float = 0.0) -> Anatomy:
    return draw_anatomy(Coin(seed, side), positive, task="nodule", shape=(slices, 48, 48), spacing=SPACING, tilt=tilt)


def rows(discs: np.ndarray) -> Counter[tuple[float, ...]]:
    return Counter(map(tuple, discs.round(9).tolist()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), slices=st.integers(12, 60), tilt=st.floats(-25, 25))
def test_every_slice_shows_the_same_discs_in_both_classes(seed, slices, tilt):
    """Exactly: over the two sides of the coin, slice by slice, with place, radius and contrast."""
    sphere, vessel = (
        np.concatenate([nodule(seed, positive, side, slices=slices, tilt=tilt).discs() for side in (0, 1)])
        for positive in (True, False)
    )
    assert rows(sphere) == rows(vessel)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), slices=st.integers(12, 60), side=st.integers(0, 1))
def test_shuffled_slices_are_the_same_in_both_classes(seed, slices, side):
    """Exactly: the same lesion discs at one place, and the same slices without any."""
    sphere, vessel = (nodule(seed, positive, side, slices=slices) for positive in (True, False))
    assert rows(sphere.discs("sphere")[:, 1:]) == rows(vessel.discs("taper")[:, 1:])
    assert rows(sphere.discs("tube")) == rows(vessel.discs("tube"))
    assert set(sphere.discs("sphere")[:, 0]) == set(vessel.discs("taper")[:, 0])
    assert (sphere.semi_axes, sphere.spacing) == (vessel.semi_axes, vessel.spacing)
    np.testing.assert_array_equal(sphere.organs, vessel.organs)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), side=st.integers(0, 1))
def test_a_sphere_is_round_and_a_vessel_tapers_twice(seed, side):
    sphere, vessel = (nodule(seed, positive, side) for positive in (True, False))
    (round_one,) = [stack for stack in sphere.stacks if stack.kind == "sphere"]
    steps = np.diff(round_one.radius) > 1e-9
    middle = len(round_one.radius) // 2
    assert steps[: middle - 1].all()
    assert not steps[middle - 1 :].any()
    # Radius and distance from the centre give one radius: Pythagoras.
    along = (round_one.slices - round_one.slices.mean()) * SPACING[0]
    np.testing.assert_allclose(np.hypot(round_one.radius, along), np.hypot(round_one.radius, along)[0], rtol=1e-9)
    (tapering,) = [stack for stack in vessel.stacks if stack.kind == "taper"]
    grows = np.diff(tapering.radius) > 0
    assert len(set(np.delete(grows, middle - 1).tolist())) == 1
    assert grows[middle - 1] != grows[0]
    assert round_one.slices.tolist() == list(range(round_one.slices[0], round_one.slices[0] + 2 * middle))


@pytest.fixture(scope="module")
def many() -> list[Phantom]:
    return list(draw_phantoms(task="nodule", studies=800, seed=11, size=48, slices=24))


@pytest.fixture(scope="module")
def pictures() -> tuple[list[Anatomy], list[np.ndarray]]:
    phantoms = list(draw_phantoms(task="nodule", studies=120, seed=5, size=48, slices=24))
    return [phantom.anatomy for phantom in phantoms], [phantom.image() for phantom in phantoms]


def per_slice(anatomy: Anatomy) -> np.ndarray:
    """(T, 4) of the truth: number of discs, largest radius, its contrast, its height in the image."""
    table = np.zeros((anatomy.shape[0], 4))
    for index_, h, _, radius, contrast in anatomy.discs():
        row = table[int(index_)]
        row[0] += 1
        if radius > row[1]:
            row[1:] = radius, contrast, h
    return table


def measured(image: np.ndarray) -> np.ndarray:
    """(T, 4) of the pixels: number of bright discs, largest area, brightness of it, sum of all areas."""
    table = np.zeros((len(image), 4))
    for number, picture in enumerate(image):
        labels, count = ndimage.label(picture > 160)
        areas = np.bincount(labels.ravel())[1:]
        areas = areas[areas > 1]
        if count and len(areas):
            largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
            table[number] = len(areas), areas.max(), np.median(picture[labels == largest]), areas.sum()
    return table


def smallest_p(tables: np.ndarray, positive: np.ndarray) -> float:
    """The smallest p of all slices and columns, corrected for their number."""
    _, slices, columns = tables.shape
    p = [
        stats.ks_2samp(tables[positive, t, c], tables[~positive, t, c], method="asymp").pvalue
        for t in range(slices)
        for c in range(columns)
    ]
    return min(p) * len(p)


def test_single_slices_tell_nothing_over_many_studies(many):
    tables = np.stack([per_slice(phantom.anatomy) for phantom in many])
    positive = np.array([phantom.anatomy.positive for phantom in many])
    assert positive.sum() == 400
    assert smallest_p(tables, positive) > 0.01
    # The test can see a difference: a vessel that starts half a sphere higher is found out.
    shifted = tables.copy()
    shifted[positive] = np.roll(shifted[positive], 3, axis=1)
    assert smallest_p(shifted, positive) < 1e-4


def test_single_slices_tell_nothing_in_the_pixels(pictures):
    anatomies, images = pictures
    tables = np.stack([measured(image) for image in images])
    positive = np.array([anatomy.positive for anatomy in anatomies])
    assert smallest_p(tables, positive) > 0.01


def test_pixels_show_the_true_discs(pictures):
    agree = []
    for anatomy, image in zip(*pictures, strict=True):
        found = measured(image)
        lesion = anatomy.discs("sphere", "taper")
        for number, h, w, radius, contrast in lesion[lesion[:, 3] > 2.5]:
            slot, row, column = int(number), round(h), round(w)
            patch = image[slot, row - 1 : row + 2, column - 1 : column + 2]
            assert abs(patch.mean() - (40 + contrast)) < 70  # organs behind it add up to 60 HU, noise 20 / 3
            agree.append(abs(found[slot, 1] - np.pi * radius**2) < 4 + 0.15 * np.pi * radius**2)
    assert np.mean(agree) > 0.97  # the blur joins a few with a vessel beside them


def test_noise_is_as_asked_for():
    (phantom, _) = draw_phantoms(task="nodule", studies=2, seed=1, size=64, slices=12)
    difference = phantom.image(noise=35.0) - phantom.image(noise=0.0)
    assert difference.std() == pytest.approx(35, rel=0.02)
    assert abs(difference.mean()) < 0.5


def auc(features: np.ndarray, positive: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    scores = cross_val_predict(model, features, positive, cv=5, method="predict_proba")[:, 1]
    return float(roc_auc_score(positive, scores))


def test_order_tells_the_classes_and_slices_without_order_do_not(pictures):
    anatomies, images = pictures
    positive = np.array([anatomy.positive for anatomy in anatomies])
    tables = np.stack([measured(image) for image in images])
    pooled = np.concatenate([tables.mean(axis=1), tables.std(axis=1), np.sort(tables[..., 1], axis=1)], axis=1)
    assert 0.35 < auc(pooled, positive) < 0.65  # standard error .053
    change = np.sort(np.abs(np.diff(tables[..., 1], axis=1)), axis=1)[:, -4:]
    assert auc(change, positive) > 0.95


def test_bleed_is_seen_in_a_single_slice_and_only_in_positives():
    phantoms = list(draw_phantoms(task="bleed", studies=40, seed=2, size=48, slices=24))
    positive = np.array([phantom.anatomy.positive for phantom in phantoms])
    best = []
    for phantom in phantoms:
        marked = phantom.anatomy.slice_labels()
        assert bool(marked.any()) == phantom.anatomy.positive
        assert marked.sum() <= 10
        bright = measured(phantom.image())[:, 1]
        best.append(bright.max())
        if marked.any():
            assert marked[bright.argmax()] == 1
            assert np.diff(np.flatnonzero(marked)).max() == 1
    assert roc_auc_score(positive, best) == 1.0


def test_half_of_the_studies_are_positive_and_the_order_says_nothing():
    labels = [phantom.anatomy.positive for phantom in draw_phantoms(studies=41, seed=3, slices=12, size=16)]
    assert sum(labels) == 20
    assert labels not in (sorted(labels), sorted(labels, reverse=True))
    assert labels != [phantom.anatomy.positive for phantom in draw_phantoms(studies=41, seed=4, slices=12, size=16)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_patients(tmp_path):
    options = {"studies": 2, "size": 16, "slices": 12, "tilt": 10, "vary_spacing": True}
    one, same, other = (
        contents(make_phantoms(tmp_path / name, seed=seed, **options)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same
    uids = [
        {pydicom.dcmread(tmp_path / name / file).SOPInstanceUID for file in content if file.endswith(".dcm")}
        for name, content in (("a", one), ("c", other))
    ]
    assert len(uids[0]) == len(uids[1]) == 24
    assert not uids[0] & uids[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_phantoms(
        tmp_path_factory.mktemp("phantoms") / "new" / "straight", studies=4, seed=7, size=32, slices=14
    )


def files_of(folder: Path, study: str) -> list[pydicom.Dataset]:
    found = [pydicom.dcmread(path) for path in sorted((folder / study).iterdir())]
    return sorted(found, key=lambda data: float(data.ImagePositionPatient[2]))


def test_files_are_valid_dicom_and_shuffled(folder):
    for study in ("nodule-00000", "nodule-00003"):
        files = files_of(folder, study)
        assert len(files) == 14
        for data in files:
            assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
            for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
                assert data[name].value.is_valid
            assert data.SOPClassUID.name == "CT Image Storage"
            assert (data.RescaleIntercept, data.RescaleSlope, data.Modality) == (-1024, 1, "CT")
            assert data.pixel_array.max() <= 4095
            # Byte for byte what pydicom would write.
            buffer = pydicom.filebase.DicomBytesIO()
            pydicom.dcmwrite(buffer, data, enforce_file_format=True)
            assert buffer.getvalue() == Path(data.filename).read_bytes()
        numbers = [int(data.InstanceNumber) for data in files]
        names = [Path(data.filename).name for data in files]
        assert sorted(numbers) == list(range(1, 15)) != numbers
        assert sorted(names) != names
        assert len({data.SeriesInstanceUID for data in files}) == 1


def test_files_hold_the_image_that_was_drawn(folder):
    phantoms = {p.study: p for p in draw_phantoms(task="nodule", studies=4, seed=7, size=32, slices=14)}
    for study in ("nodule-00001", "nodule-00002"):
        stored = np.stack([data.pixel_array.astype(int) - 1024 for data in files_of(folder, study)])
        # Half a unit is lost to rounding, and air that noise makes thinner than nothing is cut off.
        np.testing.assert_allclose(stored, np.clip(phantoms[study].image(), -1024, 3071), atol=0.501, rtol=0)


def test_simpleitk_reads_the_same_volume(folder):
    """The oracle of clean series: order, spacing, direction and voxels."""
    data = files_of(folder, "nodule-00001")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "nodule-00001")))
    image = reader.Execute()
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(image), np.stack([one.pixel_array.astype(int) - 1024 for one in data])
    )
    assert image.GetSpacing() == pytest.approx((10.0, 10.0, 5.0))
    assert image.GetDirection() == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert image.GetOrigin() == pytest.approx(tuple(data[0].ImagePositionPatient))


def test_tables_name_every_study_and_slice(folder):
    with (folder / "labels.csv").open() as file:
        labels = list(csv.DictReader(file))
    assert [row["study"] for row in labels] == sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert len({row["patient"] for row in labels}) == 4
    with (folder / "slice_labels.csv").open() as file:
        marks = list(csv.DictReader(file))
    assert len(marks) == 4 * 14
    for row in labels:
        mine = [mark for mark in marks if mark["study"] == row["study"]]
        assert any(mark["label"] == "1" for mark in mine) == (row["label"] == "1")
        places = [float(data.ImagePositionPatient[2]) for data in files_of(folder, row["study"])]
        assert [float(mark["z"]) for mark in mine] == places
        assert [int(mark["slice"]) for mark in mine] == list(range(14))


def test_index_labels_and_volume_agree_with_what_was_drawn(folder):
    found = index(folder)
    cohort = join(found, folder / "labels.csv", DataConfig(slice_labels=str(folder / "slice_labels.csv")))
    assert (cohort.task, cohort.classes, cohort.problems) == ("binary", ("0", "1"), ())
    truth = {p.study: p for p in draw_phantoms(task="nodule", studies=4, seed=7, size=32, slices=14)}
    for case in cohort.cases:
        phantom = truth[case.study]
        assert case.target.tolist() == [float(phantom.anatomy.positive)]
        np.testing.assert_array_equal(case.slice_targets, phantom.anatomy.slice_labels())
        volume = read_series(case.series)
        np.testing.assert_allclose(volume.array[0], np.maximum(phantom.image(), -1024), atol=0.501, rtol=0)


def test_a_tilted_sphere_is_round_again_once_the_tilt_is_corrected(tmp_path):
    out = make_phantoms(tmp_path / "tilted", studies=6, seed=4, size=64, slices=24, tilt=25, noise=5)
    truth = {p.study: p.anatomy for p in draw_phantoms(studies=6, seed=4, size=64, slices=24, tilt=25)}
    leaning = [study for study, anatomy in truth.items() if anatomy.positive and abs(anatomy.tilt) > 4]
    assert leaning
    for record in index(out).studies:
        if record.study not in leaning:
            continue
        anatomy = truth[record.study]
        (sphere,) = [stack for stack in anatomy.stacks if stack.kind == "sphere"]
        volume = read_series(record.series)
        assert volume.spacing == pytest.approx(anatomy.spacing, rel=1e-4)
        centres = []
        for slot in sphere.slices:
            labels, _ = ndimage.label(volume.array[0, slot] > 160)
            largest = np.bincount(labels.ravel())[1:].argmax() + 1
            centres.append(ndimage.center_of_mass(labels == largest))
        wander = np.ptp(sphere.h) / anatomy.spacing[1]
        assert wander > 1  # as acquired, its discs drift through the image
        assert np.ptp(np.array(centres)[:, 0]) < 0.75
        steps = [data.ImagePositionPatient for data in files_of(out, record.study)[:2]]
        assert steps[1][2] - steps[0][2] == pytest.approx(5 / np.cos(np.radians(anatomy.tilt)), abs=1e-5)
        assert float(files_of(out, record.study)[0].GantryDetectorTilt) == anatomy.tilt


def test_spacing_varies_on_request_only(tmp_path):
    same, varied = (
        {phantom.anatomy.spacing for phantom in draw_phantoms(studies=8, vary_spacing=vary)} for vary in (False, True)
    )
    assert same == {(5.0, 5.0, 5.0)}
    assert len(varied) == 8
    assert all(3.5 <= t <= 6 and 4.5 <= h <= 5.5 and h == w for t, h, w in varied)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "stroke"),
        ("studies", 1),
        ("studies", 2.5),
        ("seed", -1),
        ("size", 8),
        ("slices", 11),
        ("tilt", 40.0),
        ("tilt", float("nan")),
        ("noise", -1.0),
    ],
)
def test_a_value_out_of_range_is_named_and_nothing_is_written(tmp_path, name, value):
    with pytest.raises(ConfigError, match=f"'{name}' must be .*{value!r}") as caught:
        make_phantoms(tmp_path / "out", **{name: value})
    assert caught.value.code == "range"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match="something there") as caught:
        make_phantoms(tmp_path, studies=2, slices=12, size=16)
    assert caught.value.code == "not-empty"
    with pytest.raises(ConfigError, match="something there"):
        make_phantoms(tmp_path / "thesis.txt", studies=2, slices=12, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EACCES, "unwritable")])
def test_a_folder_that_cannot_be_written_is_an_error_without_labels(tmp_path, monkeypatch, number, code):
    write = Path.write_bytes
    count = iter(range(1000))

    def fail(self: Path, content: bytes) -> int:
        if next(count) > 15:
            raise OSError(number, "cannot")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DataError) as caught:
        make_phantoms(tmp_path / "out", studies=2, slices=12, size=16)
    assert caught.value.code == code
    assert not (tmp_path / "out" / "labels.csv").exists()
