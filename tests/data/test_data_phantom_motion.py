"""Motion phantoms: no slice tells the class, the planted motion is the true one, and goes where the axes say."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from volrec.cli import main
from volrec.config import DataConfig
from volrec.data.index import index
from volrec.data.labels import join
from volrec.data.phantom_motion import DIRECTIONS, Scene, draw_scene, render_scene
from volrec.data.phantoms import Phantom, draw_phantoms, make_phantoms
from volrec.errors import ConfigError
from volrec.io import read_series

SHAPE, SPACING = (16, 48, 48), (5.0, 6.5, 6.5)
LPS = {"left": (1, 0), "right": (-1, 0), "front": (0, -1), "back": (0, 1)}  # x to the left, y to the back


def scene(seed: int, direction: str = "left", **options: float) -> Scene:
    return draw_scene(np.random.default_rng(seed), direction, shape=SHAPE, spacing=SPACING, **options)


def clean(one: Scene) -> np.ndarray:
    return render_scene(one, np.random.default_rng(0), noise=0)


def displacement(before: np.ndarray, after: np.ndarray, *, most: int) -> np.ndarray:
    """Shift (x, y) from `before` to `after` by phase correlation, to a fraction of a pixel; none beyond `most`."""
    one, two = (np.fft.fft2(picture - picture.mean()) for picture in (before, after))
    cross = two * one.conj()
    smooth = np.multiply.outer(*(np.exp(-((np.fft.fftfreq(count) / 0.12) ** 2)) for count in before.shape))
    peak = np.fft.ifft2(cross / (np.abs(cross) + 1e-9 * np.abs(cross).max()) * smooth).real
    lags = np.arange(-most, most + 1)
    near = peak[np.ix_(lags, lags)]
    row, column = np.unravel_index(near[1:-1, 1:-1].argmax(), (2 * most - 1, 2 * most - 1))
    around = near[row : row + 3, column : column + 3]
    parts = []
    for line in (around[1], around[:, 1]):  # the vertex of a parabola through three values
        parts.append((line[0] - line[2]) / (2 * (line[0] - 2 * line[1] + line[2])))
    return np.array([lags[column + 1] + parts[0], lags[row + 1] + parts[1]])


def reading(image: np.ndarray) -> str:
    """The direction by brute force: what is not always there, correlated with the next slice, shift by shift."""
    moving = image - np.median(image, axis=0)
    score = {}
    for name, (x, y) in DIRECTIONS.items():
        shifted = [np.roll(moving[:-1], (y * step, x * step), (1, 2)) for step in (1, 2)]
        score[name] = sum(float((part * moving[1:]).mean()) for part in shifted)
    return max(score, key=score.__getitem__)


# What a slice tells


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), ways=st.sampled_from([("left", "right"), ("front", "back")]))
def test_a_study_read_backwards_is_one_of_the_opposite_class(seed, ways):
    """Exactly: so no set of slices without their order tells left from right."""
    one, other = (scene(seed, way) for way in ways)
    assert replace(one, direction=ways[1], waves=()) == replace(other, waves=())
    np.testing.assert_array_equal(one.waves, other.waves)
    for mover in one.movers:
        period = 48 + 2 * mover.reach
        apart = (one.path(mover) - other.path(mover)[::-1]) / period
        np.testing.assert_allclose(apart, np.rint(apart), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), way=st.sampled_from(list(DIRECTIONS)), drift=st.sampled_from([0.0, 3.0]))
def test_shapes_come_back_only_when_they_have_left(seed, way, drift):
    one = scene(seed, way, drift=drift)
    for mover in one.movers:
        path = one.path(mover)
        jumps = np.flatnonzero(np.abs(np.diff(path, axis=0)).max(1) > 8)
        for jump in jumps:
            for place in path[jump : jump + 2]:
                away = np.abs(place) - mover.reach - 23.5
                assert away.max() > -8.0  # it had to go at most one step
        steady = np.delete(np.diff(path, axis=0), jumps, axis=0)
        np.testing.assert_allclose(steady, np.broadcast_to(one.step(mover)[::-1], steady.shape), atol=1e-9)


def smallest_p(tables: np.ndarray, classes: np.ndarray) -> float:
    """The smallest p of all slices, columns and classes against the rest, corrected for their number."""
    p = [
        stats.ks_2samp(tables[classes == way, t, c], tables[classes != way, t, c], method="asymp").pvalue
        for way in np.unique(classes)
        for t in range(tables.shape[1])
        for c in range(tables.shape[2])
    ]
    return min(p) * len(p)


def test_places_in_single_slices_are_the_same_in_all_classes_over_many_studies():
    phantoms = list(draw_phantoms(task="motion", studies=1200, seed=12, size=48, slices=12))
    classes = np.array([phantom.label for phantom in phantoms])

    def per_slice(one: Scene, places: np.ndarray) -> np.ndarray:
        """(T, 3): place of the first shape, and how many are to be seen."""
        seen = (np.abs(places) < 24).all(-1).sum(0)
        return np.column_stack((places[0], seen))

    scenes = [phantom.anatomy for phantom in phantoms]
    paths = [np.stack([one.path(mover) for mover in one.movers]) for one in scenes]
    tables = np.stack([per_slice(one, path) for one, path in zip(scenes, paths, strict=True)])
    assert smallest_p(tables, classes) > 0.01
    # The test can see a difference: shapes that do not come back are missed at the side they came from.
    lost = []
    for one, path in zip(scenes, paths, strict=True):
        steps = np.array([one.step(mover)[::-1] for mover in one.movers])
        lost.append(per_slice(one, path[:, :1] + steps[:, None] * np.arange(12)[:, None]))
    assert smallest_p(np.stack(lost), classes) < 1e-4


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    phantoms = list(draw_phantoms(task="motion", studies=400, seed=5, size=24, slices=12))
    return np.array([phantom.label for phantom in phantoms]), np.stack([phantom.image() for phantom in phantoms])


def accuracy(features: np.ndarray, classes: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    return float(cross_val_score(model, features, classes, cv=4).mean())


@pytest.mark.parametrize("slot", [0, 6, 11])
def test_pixels_of_single_slices_tell_nothing(pictures, slot):
    classes, images = pictures
    assert 0.25 - 0.07 < accuracy(images[:, slot].reshape(400, -1), classes) < 0.25 + 0.07  # standard error .022


def test_the_order_of_the_slices_tells(pictures):
    classes, images = pictures
    told = np.array([reading(image) for image in images])
    assert np.mean(told == classes) > 0.9
    backwards = np.array([reading(image[::-1]) for image in images])
    opposite = {"left": "right", "right": "left", "front": "back", "back": "front"}
    assert np.mean(backwards == [opposite[way] for way in classes]) > 0.9


# The planted motion


@pytest.mark.parametrize("way", DIRECTIONS)
def test_phase_correlation_finds_the_planted_displacement(way):
    checked = Counter()
    for seed in range(12):
        whole = scene(seed, way, drift=1.0)
        for mover in whole.movers:
            one = replace(whole, movers=(mover,), waves=whole.waves[:0])
            path = one.path(mover)
            inside = np.flatnonzero((np.abs(path) < 23 - mover.reach).all(1))
            inside = inside[: 1 + int(np.argmax(np.diff(inside, append=99) > 1))] if len(inside) else inside
            if len(inside) < 3:
                continue
            first, last = inside[0], inside[:8][-1]
            image = clean(one)
            found = displacement(image[first], image[last], most=22) / (last - first)
            np.testing.assert_allclose(found, one.step(mover), atol=0.25 / (last - first) + 0.02)
            x, y = np.subtract(one.step(mover), one.drift)
            assert 0.5 <= x * DIRECTIONS[way][0] + y * DIRECTIONS[way][1] <= 2.0
            assert (x if DIRECTIONS[way][0] == 0 else y) == pytest.approx(0)
            checked[mover.kind] += 1
    assert min(checked.values()) >= 3
    assert set(checked) == {"disc", "square", "blob"}


@pytest.mark.parametrize("drift", [0.0, 1.5])
def test_warping_by_the_planted_flow_restores_the_slice(drift):
    """Backwards, as `warp` does: slice t at (h, w) is slice t + 1 at (h + y, w + x), but where shapes hide others."""
    one = scene(3, "front", drift=drift)
    image, flow = clean(one), one.flow()
    assert flow.shape == (15, 2, 48, 48)
    assert flow.dtype == np.float32
    h, w = np.meshgrid(np.arange(48), np.arange(48), indexing="ij")
    for t in range(15):
        places = np.stack((h + flow[t, 1], w + flow[t, 0]))
        inside = ((places > 2) & (places < 45)).all(0)
        restored = ndimage.map_coordinates(image[t + 1].astype(np.float64), places, order=3)
        error, before = (np.abs(picture - image[t])[inside] for picture in (restored, image[t + 1]))
        assert np.median(error) < 0.5
        # Outlines stay, and what appears from behind a shape.
        assert np.mean(error > 20) < 0.8 * np.mean(before > 20) < 0.2


def test_drift_moves_background_and_shapes_alike():
    still, moved = (scene(8, "left", drift=drift) for drift in (0.0, 2.0))
    assert still.drift == (0, 0)
    x, y = moved.drift
    assert 0 < max(abs(x), abs(y)) <= 2
    for mover in moved.movers:
        assert moved.step(mover) == pytest.approx((mover.speed + x, y))
    # An exact oracle: the same background looked up elsewhere, here by whole pixels after enough slices.
    whole = replace(moved, movers=(), drift=(1.0, -2.0))
    image = clean(whole)
    np.testing.assert_allclose(image[5:, 4:-8, 8:-4], np.stack([p[6:-6, 7:-5] for p in image[4:-1]]), atol=1e-3)


def test_drift_says_nothing_about_the_class():
    phantoms = list(draw_phantoms(task="motion", studies=800, seed=2, size=16, slices=12, drift=2.0))
    drifts = np.array([phantom.anatomy.drift for phantom in phantoms])[:, None]
    assert np.abs(drifts).max() == pytest.approx(2, abs=0.02)
    assert smallest_p(drifts, np.array([phantom.label for phantom in phantoms])) > 0.01


# Studies and files


def test_classes_are_balanced_and_the_order_says_nothing():
    for directions, names in ((4, set(DIRECTIONS)), (2, {"left", "right"})):
        labels = [p.label for p in draw_phantoms(task="motion", studies=42, seed=3, size=16, directions=directions)]
        counts = Counter(labels)
        assert set(counts) == names
        assert max(counts.values()) - min(counts.values()) <= 1
        assert labels[: len(names) * 3] != labels[:1] * 3 * len(names)
        assert any(labels[number] != labels[number % directions] for number in range(42))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    options = {"task": "motion", "studies": 4, "size": 16, "slices": 12, "tilt": 10, "vary_spacing": True, "drift": 1.0}
    one, same, other = (
        contents(make_phantoms(tmp_path / name, seed=seed, **options)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same
    assert one != other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "motion"
    arguments = ["--task", "motion", "--studies", "12", "--size", "48", "--slices", "16", "--seed", "4", "--tilt", "20"]
    assert main(["phantom", str(out), *arguments]) == 0
    return out


@pytest.fixture(scope="module")
def drawn() -> dict[str, Phantom]:
    return {p.study: p for p in draw_phantoms(task="motion", studies=12, seed=4, size=48, slices=16, tilt=20)}


def test_the_table_names_directions_and_no_slice_has_a_label(folder, drawn):
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["study", "patient", "direction"]] * 12
    assert {row["study"]: row["direction"] for row in rows} == {name: one.label for name, one in drawn.items()}
    assert not (folder / "slice_labels.csv").exists()
    cohort = join(index(folder), folder / "labels.csv", DataConfig())
    assert (cohort.task, cohort.classes, cohort.problems) == ("multiclass", ("back", "front", "left", "right"), ())


def test_shapes_move_where_the_patients_axes_say_also_after_a_tilt(folder, drawn):
    """Along rows and columns as volrec lays them, and by the geometry of the file in mm."""
    right = 0
    for record in index(folder).studies:
        one = drawn[record.study]
        volume = read_series(record.series)
        right += reading(volume.array[0, :, 8:40, 8:40].astype(np.float32)) == one.label  # without the padding
        x, y = DIRECTIONS[one.label]
        moved = volume.affine[:3, :3] @ (0, y, x)  # a step of a shape, without that to the next slice
        assert moved[:2] @ LPS[one.label] > 0.9 * volume.spacing[1]  # cos 20 degrees: the planes stay tilted
    assert right >= 11


def test_a_tilt_is_undone_by_reading(folder, drawn):
    """The background stands still once the tilt is corrected, as the flow says; as acquired it wanders."""
    (record,) = [
        one for one in index(folder).studies if one.study == max(drawn, key=lambda n: abs(drawn[n].anatomy.tilt))
    ]
    truth = drawn[record.study].anatomy
    assert abs(truth.tilt) > 10
    lean = np.diff(truth.shear())[0]
    assert abs(lean) > 0.2
    upright = replace(truth, tilt=0.0)
    read = read_series(record.series).array[0].astype(np.float32)
    slope = {}
    for name, picture in (("upright", clean(upright)), ("leaning", clean(truth))):
        shifts = [displacement(read[t, 8:40, 8:40], picture[t, 8:40, 8:40], most=6)[1] for t in range(16)]
        slope[name] = np.polyfit(np.arange(16), shifts, 1)[0]
    assert abs(slope["upright"]) < 0.1
    assert slope["leaning"] == pytest.approx(lean, abs=0.1)


def test_simpleitk_reads_what_was_drawn(tmp_path):
    out = make_phantoms(tmp_path / "two", task="motion", studies=2, directions=2, size=24, slices=12, seed=6)
    for one in draw_phantoms(task="motion", studies=2, directions=2, size=24, slices=12, seed=6):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(out / one.study)))
        image = reader.Execute()
        assert image.GetDirection() == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
        np.testing.assert_allclose(sitk.GetArrayFromImage(image), one.image(), atol=0.501, rtol=0)
    cohort = join(index(out), out / "labels.csv", DataConfig())
    assert (cohort.task, cohort.classes) == ("binary", ("left", "right"))


def test_noise_is_as_asked_for():
    (one, *_) = draw_phantoms(task="motion", studies=4, seed=1, size=64, slices=12)
    difference = one.image(noise=35.0) - one.image(noise=0.0)
    assert difference.std() == pytest.approx(35, rel=0.02)


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ("motion", "directions", 3),
        ("motion", "directions", True),
        ("motion", "directions", 4.0),
        ("motion", "studies", 3),
        ("motion", "drift", -1.0),
        ("motion", "drift", 5.0),
        ("motion", "drift", float("nan")),
        ("nodule", "drift", 1.0),
        ("bleed", "directions", 2),
    ],
)
def test_a_value_out_of_range_is_named_and_nothing_is_written(tmp_path, task, name, value):
    with pytest.raises(ConfigError, match=f"'{name}' must be .*{value!r}") as caught:
        make_phantoms(tmp_path / "out", task=task, **{name: value})
    assert caught.value.code == "range"
    assert not (tmp_path / "out").exists()
