"""Dense trajectories of whole clips: loops over pixels, planted motion, and what no trajectory may be left of."""

from __future__ import annotations

import math
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
from trajectory_clips import (
    PLAIN,
    STANDARD,
    moving_square,
    panning,
    real_clip,
    slow_trajectories,
    texture,
)

from volrec.benchmarks.trajectories import HEADER, TrajectorySettings, TrajectoryStream, extract_trajectories
from volrec.errors import ConfigError, DataError


def test_a_small_clip_gives_the_rows_of_the_slow_implementation():
    frames = moving_square(frames=17, size=(48, 56), side=26, start=(4, 4), step=(1, 1))
    found = extract_trajectories(frames, settings=replace(PLAIN, scales=1))
    wanted = slow_trajectories(frames)
    assert len(wanted) > 20
    assert found.rows.shape == wanted.shape
    columns = found.columns
    np.testing.assert_allclose(found.rows[:, : columns["hog"].start], wanted[:, : columns["hog"].start], atol=2e-4)
    for name in ("hog", "hof", "mbhx", "mbhy"):
        # OpenCV's angles are true to 0.01 degrees: a share of 2e-4 may be in the bin beside.
        np.testing.assert_allclose(found.part(name), wanted[:, columns[name]], atol=1e-3, err_msg=name)


def test_a_row_has_436_columns_in_the_published_order():
    columns = STANDARD.columns
    assert STANDARD.width == 436
    assert HEADER == ("frame", "mean_x", "mean_y", "var_x", "var_y", "length", "scale", "x", "y", "t")
    assert [columns[name].start for name in HEADER] == list(range(10))
    assert [(name, part.start, part.stop) for name, part in columns.items()][10:] == [
        ("trajectory", 10, 40),
        ("hog", 40, 136),
        ("hof", 136, 244),
        ("mbhx", 244, 340),
        ("mbhy", 340, 436),
    ]


def test_other_lengths_and_cells_change_the_columns():
    other = TrajectorySettings(length=6, time_cells=2, cells=1, hog_bins=4)
    assert other.width == 10 + 12 + 2 * (4 + 9 + 8 + 8)
    found = extract_trajectories(panning(9), settings=replace(other, compensation="none"))
    assert len(found) and found.rows.shape[1] == other.width


@pytest.mark.parametrize("chosen", [STANDARD, PLAIN], ids=["compensated", "plain"])
def test_a_still_clip_gives_no_trajectory(chosen):
    found = extract_trajectories(np.repeat(texture(96, 128)[None], 18, axis=0), settings=chosen)
    assert found.rows.shape == (0, 436)
    assert found.facts["rejected"]["static"] > 100


def test_a_flat_clip_gives_no_trajectory_and_no_homography():
    found = extract_trajectories(np.full((18, 64, 64), 100, np.uint8))
    assert len(found) == 0
    assert found.facts["homographies"] == []


def test_a_camera_that_pans_leaves_no_trajectory_after_compensation():
    frames = panning()
    found = extract_trajectories(frames)
    assert found.facts["homographies"] == list(range(1, 18))
    assert found.facts["rejected"]["camera"] > 100
    assert len(found) == 0
    plain = extract_trajectories(frames, settings=PLAIN)
    assert len(plain) > 100
    scales = np.unique(plain.part("scale"))
    np.testing.assert_allclose(scales, 2 ** (np.arange(len(scales)) / 2), rtol=1e-6)
    assert len(scales) >= 3
    for scale in scales[:3]:  # In pixels of the full frame at every scale.
        lengths = plain.part("length")[plain.part("scale") == scale]
        np.testing.assert_allclose(np.median(lengths), 15 * math.hypot(3, 2), rtol=0.02)


def test_a_square_on_a_still_background_is_tracked_by_the_planted_motion():
    found = extract_trajectories(moving_square(step=(2, 1)))
    assert len(found) > 50
    # The middle of the path is where the square was then.
    then = found.part("frame") - 7.5
    place = np.concatenate([found.part("mean_x"), found.part("mean_y")], axis=1) - (30 + np.array([2, 1]) * then)
    near = ((place > -20) & (place < 68)).all(axis=1)
    assert near.mean() > 0.95
    within = ((place > 8) & (place < 40)).all(axis=1) & (found.part("scale")[:, 0] == 1)
    assert within.sum() > 20
    np.testing.assert_allclose(np.median(found.part("length")[within]), 15 * math.hypot(2, 1), rtol=0.02)
    steps = found.part("trajectory")[within].reshape(-1, 15, 2).sum(axis=1)
    np.testing.assert_allclose(np.median(steps, axis=0), np.array([2, 1]) / math.hypot(2, 1), atol=0.03)
    # var_x holds a standard deviation: that of 16 places two pixels apart.
    np.testing.assert_allclose(np.median(found.part("var_x")[within]), np.std(np.arange(16) * 2), rtol=0.02)


def test_under_a_panning_camera_the_path_is_the_seen_one_and_the_trajectory_the_objects_own():
    frames = moving_square(frames=18, size=(160, 200), side=50, start=(20, 20), step=(2, 3), pan=(2, 0))
    found = extract_trajectories(frames)
    assert len(found.facts["homographies"]) == 17
    then = found.part("frame") - 7.5
    place = np.concatenate([found.part("mean_x"), found.part("mean_y")], axis=1) - (20 + np.array([2, 3]) * then)
    within = ((place > 8) & (place < 42)).all(axis=1) & (found.part("scale")[:, 0] == 1)
    assert within.sum() > 20
    np.testing.assert_allclose(np.median(found.part("length")[within]), 15 * math.hypot(2, 3), rtol=0.02)
    steps = np.median(found.part("trajectory")[within].reshape(-1, 15, 2).sum(axis=1), axis=0)
    np.testing.assert_allclose(steps, (0, 1), atol=0.05)  # Without the camera's two pixels along x.
    # HOF too: down (90 degrees, bin 2), not down to the right (56 degrees, bins 1 and 2).
    hof = (found.part("hof")[within].reshape(-1, 12, 9) ** 2).mean(axis=(0, 1))
    assert hof[2] > 5 * hof[1]


def test_people_in_boxes_do_not_pass_for_the_camera():
    frames = moving_square(frames=18, size=(120, 160), side=104, start=(3, 3), step=(3, 0))
    boxes = [[[3 + 3 * t, 3, 3 + 3 * t + 104, 107, 0.9]] for t in range(18)]
    without, within = extract_trajectories(frames), extract_trajectories(frames, boxes=boxes)
    # Steps to the right, as the square's; where it passes for the camera, the background seems to move to the left.
    right = [t.part("trajectory").reshape(-1, 15, 2).sum(axis=1)[:, 0] > 0.9 for t in (without, within)]
    assert right[0].mean() < 0.1
    assert right[1].mean() > 0.8 and right[1].sum() > 200


@pytest.mark.parametrize(
    ("name", "size", "least", "most"),
    [
        # With OpenCV 5.0: 122, 105 and 512.
        ("carphone_pristine", None, 60, 250),
        ("bikes", (320, 136), 50, 220),
        ("bigbuckbunny", (320, 180), 250, 1000),
    ],
)
def test_real_clips_give_a_plausible_number_of_trajectories(name, size, least, most):
    found = extract_trajectories(real_clip(name, 20, size))
    assert least < len(found) < most
    assert np.isfinite(found.rows).all()
    for part in ("hog", "hof", "mbhx", "mbhy"):
        cells = (found.part(part).reshape(len(found), 3, -1) ** 2).sum(axis=2)
        # The mean of five unit vectors is no longer than one.
        assert (cells < 1 + 1e-5).all() and (cells > 0.2).all()
    assert len(found.facts["homographies"]) > 17
    assert (found.part("frame") >= 15).all() and (found.part("frame") <= 19).all()


def test_a_stream_gives_what_the_whole_clip_gives():
    frames = moving_square(frames=18, size=(64, 80), side=30, start=(5, 5), step=(1, 1))
    whole = extract_trajectories(frames)
    assert len(whole) > 10
    one_by_one = extract_trajectories(frame.copy() for frame in frames)
    colour = extract_trajectories(np.repeat(frames[..., None], 3, axis=3))
    stream = TrajectoryStream()
    pushed = stream.finish([stream.push(frame) for frame in frames])
    for other in (one_by_one, colour, pushed):
        np.testing.assert_array_equal(other.rows, whole.rows)
    assert pushed.facts == whole.facts


def test_frames_are_let_go_as_the_video_goes_on():
    seen = []

    def frames():
        for image in panning(20, 48, 64):
            image = image.copy()
            seen.append(weakref.ref(image))
            assert sum(reference() is not None for reference in seen) <= 4
            yield image

    extract_trajectories(frames())
    assert len(seen) == 20


def test_new_points_every_few_frames_give_fewer_trajectories():
    frames = panning(24, 64, 80)
    every, fewer = (extract_trajectories(frames, settings=replace(PLAIN, refresh=n)) for n in (1, 4))
    assert 0 < len(fewer) < len(every)
    # The first points come with frame 0, the next ones 4 frames on: tracks end 15 frames later.
    assert set(fewer.part("frame")[:, 0].astype(int)) == {15, 19, 23}


def test_a_clip_no_longer_than_a_track_gives_none():
    assert len(extract_trajectories(panning(15), settings=PLAIN)) == 0
    assert len(extract_trajectories(panning(16), settings=PLAIN)) > 0
    assert len(extract_trajectories(np.empty((0, 64, 64), np.uint8))) == 0


@pytest.mark.parametrize(
    ("frames", "seen"),
    [
        (np.zeros((3, 64, 64), np.float32), "float32"),
        (np.zeros((3, 64, 64, 4), np.uint8), "4"),
        (np.zeros((3, 20, 64), np.uint8), "20 x 64"),
        ([np.zeros((64, 64), np.uint8), np.zeros((64, 66), np.uint8)], "66"),
    ],
)
def test_frames_that_do_not_fit_are_refused(frames, seen):
    with pytest.raises(DataError, match=seen):
        extract_trajectories(frames)


@pytest.mark.parametrize("boxes", [[[]] * 2, [[]] * 4, [[[1, 2, 3]]] * 3, [[[0, 0, np.nan, 2]]] * 3])
def test_boxes_that_do_not_fit_are_refused(boxes):
    with pytest.raises(DataError, match=r"[Bb]oxes"):
        extract_trajectories(np.zeros((3, 64, 64), np.uint8), boxes=boxes)


def test_without_opencv_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"volrec\[video\]"):
        extract_trajectories(np.zeros((3, 64, 64), np.uint8))
