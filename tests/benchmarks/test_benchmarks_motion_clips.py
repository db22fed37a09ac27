"""Rendered clips: single frames tell looks and no motion, flow tells motion and no look, groups share their scene."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from volrec.benchmarks.motion_clips import MOTION_CLASSES, MotionClip, ceiling, draw_clip, render_clip
from volrec.errors import ConfigError

SIZE = (48, 64)
PLAIN = [name for name, kind in MOTION_CLASSES.items() if kind.look == "plain"]
PAIRS = [
    ("DriftLeft", "DriftRight"),
    ("DriftDown", "DriftUp"),
    ("SwingFast", "SwingSlow"),
    ("TurnClockwise", "TurnCounterclockwise"),
]
LOOKS = [("AmberDriftUp", "DriftUp"), ("CheckedSwingSlow", "SwingSlow")]


def bare(clip: MotionClip, **changes: object) -> MotionClip:
    """The clip without noise and without a shaking camera."""
    return replace(clip, scene=replace(clip.scene, noise=0.0, shaken=False), shake=0 * clip.shake, **changes)


def gray(pictures: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures])


def farneback(pictures: np.ndarray) -> np.ndarray:
    """(N-1, H, W, 2), components (x, y)."""
    luma = gray(pictures)
    return np.stack(
        [cv2.calcOpticalFlowFarneback(one, two, None, 0.5, 3, 9, 2, 5, 1.1, 0) for one, two in pairwise(luma)]
    )


def frame_features(picture: np.ndarray) -> np.ndarray:
    """What a still shows: the small picture, its histograms, and how much of each scale luma and colours hold."""
    ycc = cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb).astype(float)
    small = cv2.resize(picture, (8, 6), interpolation=cv2.INTER_AREA).ravel()
    hue = np.histogram2d(ycc[..., 1].ravel(), ycc[..., 2].ravel(), bins=6, range=[(88, 168)] * 2)[0].ravel()
    scale = np.hypot(np.fft.fftfreq(SIZE[0])[:, None], np.fft.fftfreq(SIZE[1])[None, :])
    rings = np.digitize(scale, np.linspace(0.02, 0.3, 12)).ravel()
    power = [np.log(np.bincount(rings, np.abs(np.fft.fft2(ycc[..., i])).ravel() ** 2) + 1) for i in range(3)]
    return np.concatenate([small, hue, *power])


def flow_features(fields: np.ndarray) -> np.ndarray:
    """Mean flow, mean curl where something moves, and whether the mean flow of four frames later is the opposite."""
    mean = fields.mean(axis=(1, 2))
    moving = np.hypot(fields[..., 0], fields[..., 1]) > 0.3
    curl = np.gradient(fields[..., 1], axis=2) - np.gradient(fields[..., 0], axis=1)
    later = (mean[:-4] * mean[4:]).sum() / (mean[:-4] ** 2).sum()
    return np.array([*mean.mean(axis=0), (curl * moving).sum() / max(1, moving.sum()), np.clip(later, -2, 2)])


@pytest.fixture(scope="module")
def stills() -> dict[str, np.ndarray]:
    """(120, features) a class: the first frame of one clip each of 80 groups, and a late one of 40 others."""
    found = {}
    for name in MOTION_CLASSES:
        clips = [(draw_clip(name, group, size=SIZE, seed=3), [0 if group <= 80 else 15]) for group in range(1, 100)]
        clips += [(draw_clip(name, group, size=SIZE, seed=4), [15]) for group in range(1, 22)]
        found[name] = np.stack([frame_features(clip.render(times)[0]) for clip, times in clips])
    return found


@pytest.fixture(scope="module")
def flows() -> dict[str, np.ndarray]:
    """(24, 4) a class: nine fields of one clip of each group."""
    found = {}
    for name in MOTION_CLASSES:
        clips = (draw_clip(name, group, size=SIZE, shaken=0, seed=5) for group in range(1, 25))
        found[name] = np.stack([flow_features(farneback(clip.render(range(10)))) for clip in clips])
    return found


def accuracy(found: dict[str, np.ndarray], names: tuple[str, ...] | list[str], model: object = None) -> float:
    """Cross-validated; every group has one clip, so that folds share no scene."""
    features = np.concatenate([found[name] for name in names])
    labels = np.repeat(np.arange(len(names)), [len(found[name]) for name in names])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500) if model is None else model)
    return float(cross_val_score(model, features, labels, cv=4).mean())


# What single frames tell


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_still_is_at_chance_between_the_two_of_a_motion_pair(pair, stills):
    for model in (None, KNeighborsClassifier(5)):
        # 240 stills: three standard deviations of chance are 0.097.
        assert abs(accuracy(stills, pair, model) - 0.5) < 0.1


def test_a_still_is_at_chance_among_all_motions(stills):
    assert accuracy(stills, PLAIN) < 1 / 8 + 3 * np.sqrt(1 / 8 * 7 / 8 / (8 * 120))


@pytest.mark.parametrize("pair", [*LOOKS, ("AmberDriftUp", "CheckedSwingSlow")], ids="-".join)
def test_a_still_tells_looks(pair, stills):
    assert accuracy(stills, pair) > 0.97


def test_a_still_tells_each_look_from_all_other_classes(stills):
    for name in ("AmberDriftUp", "CheckedSwingSlow"):
        others = np.concatenate([found for other, found in stills.items() if other != name])
        assert accuracy({name: stills[name], "others": others}, (name, "others")) > 0.98


@pytest.mark.parametrize("name", MOTION_CLASSES)
def test_places_and_angles_are_uniform_in_the_first_and_in_the_last_frame(name):
    first, last = [], []
    for seed, group in product(range(4), range(1, 51)):
        centres, angles = draw_clip(name, group, seed=seed, size=SIZE).paths()
        turns = np.mod(angles / (2 * np.pi), 1)
        for found, when in ((first, 0), (last, -1)):
            found.append(np.column_stack([np.mod(centres[when] / SIZE, 1), turns[when]]))
    for found in (first, last):
        for values in np.concatenate(found).T:
            assert stats.kstest(values, "uniform").pvalue > 1e-3


@given(st.integers(0, 10**6), st.sampled_from([("left", "right"), ("up", "down"), ("clockwise", "counterclockwise")]))
@settings(max_examples=15, deadline=None)
def test_a_clip_read_backwards_is_the_clip_of_the_opposite_class(seed, pair):
    clip = bare(draw_clip("DriftLeft", 1, size=SIZE, frames=(16, 20), seed=seed))
    one, other = (replace(clip, motion=motion).render() for motion in pair)
    difference = np.abs(one[::-1].astype(int) - other)
    assert difference.max() <= 1  # rounding, at a few pixels
    assert (difference > 0).mean() < 1e-3
    assert np.abs(one.astype(int) - other).max() > 20


def test_plain_shapes_are_green_or_violet_as_the_fields_of_checked_ones_are():
    for look in ("plain", "checked"):
        found = []
        for group in range(1, 51):
            clip = bare(draw_clip("DriftUp", group, size=SIZE), look=look)
            ycc = cv2.cvtColor(clip.render([0])[0], cv2.COLOR_RGB2YCrCb).astype(float) - 128
            red, blue = ycc[..., 1], ycc[..., 2]
            found.append([((red > 12) & (blue > 12)).mean(), ((red < -12) & (blue < -12)).mean()])
            assert ((red > 12) & (blue < -12)).mean() < 0.02  # amber
        violet, green = np.mean(found, axis=0)
        assert 0.5 < violet / green < 2  # of 150 shapes: four standard deviations of chance


# What flow tells


def test_flow_goes_where_the_name_of_the_class_says(flows):
    x, y, curl, later = (
        dict(zip(flows, values, strict=True)) for values in np.stack([*flows.values()]).transpose(2, 0, 1)
    )
    assert (x["DriftRight"] > 0.02).all() and (x["DriftLeft"] < -0.02).all()
    assert (y["DriftDown"] > 0.02).all() and (y["DriftUp"] < -0.02).all()  # y points down
    assert np.median(curl["TurnClockwise"]) > 0.02 and np.median(curl["TurnCounterclockwise"]) < -0.02
    assert np.median(later["SwingFast"]) < -0.4 and np.median(later["SwingSlow"]) > -0.2


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_flow_tells_the_two_of_a_motion_pair(pair, flows):
    assert accuracy(flows, pair, LogisticRegression()) > 0.9


@pytest.mark.parametrize("pair", LOOKS, ids="-".join)
def test_flow_is_at_chance_between_looks_that_move_alike(pair, flows):
    # 48 clips: three standard deviations of chance are 0.22.
    assert abs(accuracy(flows, pair, LogisticRegression()) - 0.5) < 0.22


@given(st.integers(0, 10**6), st.sampled_from(sorted(MOTION_CLASSES)))
@settings(max_examples=8, deadline=None)
def test_clips_that_differ_in_their_look_have_the_same_luma_and_the_same_flow(seed, name):
    clip = draw_clip(name, 1, size=SIZE, seed=seed)
    clips = [replace(clip, look=look).render([0, 1, 2]) for look in ("plain", "amber", "checked")]
    for other in clips[1:]:
        assert np.abs(gray(clips[0]).astype(int) - gray(other)).max() <= 1  # rounding
        assert np.abs(farneback(clips[0]) - farneback(other)).mean() < 0.01
        assert np.abs(clips[0].astype(int) - other).mean() > 2


@pytest.mark.parametrize(("motion", "shortest", "longest"), [("slow", 16, 24), ("fast", 6, 9)])
def test_swings_have_the_period_of_their_class_and_all_the_same_top_speed(motion, shortest, longest):
    clip = bare(draw_clip("SwingSlow", 1, frames=(40, 40)), motion=motion)
    for pace, period in ((0.0, shortest), (1.0, longest)):
        centres, _ = replace(clip, pace=pace).paths()
        assert np.allclose(centres[period:], centres[:-period])
        assert not np.allclose(centres[period // 2 :], centres[: -(period // 2)], atol=0.5)
        fastest = np.hypot(*np.diff(centres[:, 0], axis=0).T).max()
        assert 0.85 * clip.speed < fastest <= clip.speed


# Scenes


def test_clips_of_a_group_share_their_scene_and_groups_do_not():
    still = [bare(draw_clip("TurnClockwise", group, clip=clip)) for group, clip in ((1, 1), (1, 2), (2, 1))]
    grounds = [np.median(clip.render([0])[0].astype(float) - clip.brightness, axis=(0, 1)) for clip in still]
    first, second, other = still
    assert np.abs(grounds[0] - grounds[1]).max() < 2 < np.abs(grounds[0] - grounds[2]).max()
    for one, two, three in zip(first.scene.things, second.scene.things, other.scene.things, strict=True):
        assert (one.radius, one.level, one.hue) == (two.radius, two.level, two.hue)
        assert one.radius != three.radius
    assert not np.allclose(first.places, second.places)
    assert first.scene.level != draw_clip("TurnCounterclockwise", 1).scene.level


def test_a_random_split_leaks_and_a_split_of_groups_does_not():
    names, groups = ("DriftLeft", "DriftRight", "TurnClockwise"), range(1, 13)
    keys = [(label, group, clip) for label in range(3) for group in groups for clip in (1, 2)]
    features = []
    for label, group, clip in keys:
        picture = draw_clip(names[label], group, clip=clip, size=SIZE).render([0])[0].astype(float)
        spectrum = np.log(np.abs(np.fft.fft2(gray(picture[None].astype(np.uint8))[0].astype(float)))[:10, :10] + 1)
        colour = picture - picture.mean(axis=-1, keepdims=True)
        features.append([*np.median(colour, axis=(0, 1)) * 3, *spectrum.ravel()[1:]])
    features, labels = np.array(features), np.array([key[0] for key in keys])
    clip, group = np.array([key[2] for key in keys]), np.array([key[1] for key in keys])

    def nearest(train: np.ndarray) -> float:
        return KNeighborsClassifier(1).fit(features[train], labels[train]).score(features[~train], labels[~train])

    assert nearest(clip == 1) > 0.85  # the other clip of the same group is nearest
    assert nearest(group <= 8) < 1 / 3 + 0.25


def test_pictures_are_the_same_whatever_else_is_drawn_and_other_seeds_give_others():
    one = render_clip("SwingFast", 7, clip=2, seed=11)
    render_clip("SwingSlow", 3)
    clip = draw_clip("SwingFast", 7, clip=2, seed=11)
    assert np.array_equal(one, clip.render())
    assert np.array_equal(one[[20, 3, 3]], clip.render([20, 3, 3]))
    assert not np.array_equal(one[0], render_clip("SwingFast", 7, clip=2, seed=12)[0])


def test_frames_of_every_length_and_size_asked_for_occur():
    clips = [draw_clip("DriftUp", group, frames=(16, 18), size=(40, 66)) for group in range(1, 40)]
    assert {clip.shape for clip in clips} == {(count, 40, 66) for count in (16, 17, 18)}
    assert clips[0].render().shape == (*clips[0].shape, 3) and clips[0].render().dtype == np.uint8


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_the_camera_shakes_in_the_part_of_the_groups_asked_for(part):
    shaken = [draw_clip("DriftUp", group, shaken=part).scene.shaken for group in range(1, 100)]
    assert abs(np.mean(shaken) - part) < 0.15 * (0 < part < 1) + 1e-9


def test_a_shaking_camera_moves_ground_and_shapes_together():
    clip = bare(draw_clip("TurnClockwise", 1, size=SIZE, shaken=1))
    whole = np.zeros_like(clip.shake)
    whole[1] = 3, -2
    moved = replace(clip, scene=replace(clip.scene, shaken=True), shake=whole, motion="slow", speed=0.0).render([0, 1])
    assert np.abs(np.roll(moved[0], (3, -2), axis=(0, 1)).astype(int) - moved[1]).max() <= 1


# What can be reached


@pytest.mark.parametrize(
    ("reads", "best", "mirrored"),
    [((False, False), 0.1, 0.1), ((True, False), 0.3, 0.3), ((False, True), 0.8, 0.6), ((True, True), 1.0, 0.8)],
)
def test_the_best_accuracies_of_all_classes(reads, best, mirrored):
    frame, flow = reads
    assert ceiling(frame=frame, flow=flow) == pytest.approx(best)
    assert ceiling(frame=frame, flow=flow, mirrored=True) == pytest.approx(mirrored)


def test_the_best_accuracies_of_a_pair_alone():
    assert ceiling(("DriftLeft", "DriftRight"), frame=True, flow=False) == 0.5
    assert ceiling(("DriftLeft", "DriftRight"), frame=False, flow=True, mirrored=True) == 0.5
    assert ceiling(("DriftUp", "AmberDriftUp"), frame=False, flow=True) == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "DriftAway"}, "DriftAway"),
        ({"group": 0}, "group"),
        ({"clip": 100}, "clip"),
        ({"size": (38, 60)}, "38"),
        ({"size": (60, 81)}, "even"),
        ({"size": (60,)}, "height and width"),
        ({"frames": (15, 20)}, "15"),
        ({"frames": (20, 16)}, "fewest"),
        ({"shaken": 1.5}, "1.5"),
        ({"seed": -1}, "-1"),
    ],
)
def test_values_out_of_range_are_refused(options, said):
    asked = {"name": "DriftUp", "group": 1} | options
    with pytest.raises(ConfigError, match=said) as raised:
        draw_clip(asked.pop("name"), asked.pop("group"), **asked)
    assert raised.value.remedy
