"""The parts of dense trajectories: points, flow, tracks, rejections, the camera, histograms, settings."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from trajectory_clips import (
    PLAIN,
    STANDARD,
    cv2,
    panning,
    slow_frame,
    slow_patch,
    slow_points,
    texture,
)

from volrec.benchmarks.opencv import one_thread
from volrec.benchmarks.trajectories import TrajectorySettings, extract_trajectories
from volrec.benchmarks.trajectories.camera import FeatureFinder, bring_back, find_camera_motion, mask_of_boxes
from volrec.benchmarks.trajectories.descriptors import describe_points, orientation_histogram
from volrec.benchmarks.trajectories.sampling import build_pyramid, pyramid_scales, sample_points, smooth_pyramid
from volrec.benchmarks.trajectories.tracking import REJECTIONS, Tracks, flow_pyramid, judge_tracks
from volrec.errors import ConfigError


@pytest.mark.parametrize("name", ["hog", "hof", "mbhx", "mbhy"])
def test_a_patch_has_the_histograms_of_the_slow_implementation(name):
    rng = np.random.default_rng(3)
    grey = texture(45, 61, smooth=1)
    flow = ndimage.gaussian_filter(rng.standard_normal((45, 61, 2)) * 4, (2, 2, 0)).astype(np.float32)
    points = np.array([[0.3, 0.2], [60.9, 44.9], [30.5, 22.5], [31.5, 20], [17, 25]], np.float32)
    start, width = {"hog": (0, 32), "hof": (32, 36), "mbhx": (68, 32), "mbhy": (100, 32)}[name]
    found = describe_points(points, grey, flow, STANDARD)[:, start : start + width]
    histogram = slow_frame(grey, flow)[("hog", "hof", "mbhx", "mbhy").index(name)]
    np.testing.assert_allclose(found, [slow_patch(histogram, point) for point in points], atol=1e-3)


def test_what_hardly_moves_counts_one_in_the_last_bin_of_hof():
    at_most = np.float32(0.4)
    x = np.array([[0, 0.39, at_most, np.nextafter(at_most, np.float32(1)), 0]], np.float32)
    y = np.array([[0, 0, 0, 0, 3]], np.float32)
    histogram = orientation_histogram(x, y, 9, least=0.4)[0]
    np.testing.assert_array_equal(histogram[:3, :8], 0)
    np.testing.assert_array_equal(histogram[:3, 8], 1)
    assert histogram[3, 0] == pytest.approx(0.4) and histogram[3, 8] == 0
    assert histogram[4, 2] == pytest.approx(3) and histogram[4].sum() == pytest.approx(3)


def test_a_still_patch_of_hof_is_the_zero_bin_and_epsilon():
    zero = np.zeros((40, 40, 2), np.float32)
    hof = describe_points(np.array([[20, 20]], np.float32), texture(40, 40), zero, STANDARD)[0, 32:68].reshape(4, 9)
    total = 4 * 256 + 36 * 0.05
    np.testing.assert_allclose(hof[:, 8], np.sqrt(256.05 / total), rtol=1e-6)
    np.testing.assert_allclose(hof[:, :8], np.sqrt(0.05 / total), rtol=1e-5)


@given(angle=st.floats(0, 359.9), length=st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_the_length_of_a_vector_is_shared_by_the_two_nearest_bins(angle, length):
    x, y = (np.full((1, 1), length * f(math.radians(angle)), np.float32) for f in (math.cos, math.sin))
    histogram = orientation_histogram(x, y, 8)[0, 0]
    assert histogram.sum() == pytest.approx(length, rel=1e-5)
    turned = np.exp(2j * np.pi * np.arange(8) / 8)
    between = angle / 45 - math.floor(angle / 45)
    wanted = (1 - between) * turned[int(angle // 45)] + between * turned[int(angle // 45 + 1) % 8]
    assert (histogram * turned).sum() == pytest.approx(length * wanted, rel=2e-3)


def test_scales_stop_before_the_shorter_side_is_below_the_tube():
    assert [size for _, size in pyramid_scales(240, 320, STANDARD)] == [
        (240, 320), (170, 226), (120, 160), (85, 113), (60, 80), (42, 57),
    ]  # fmt: skip
    assert len(pyramid_scales(64, 64, STANDARD)) == 3
    assert len(pyramid_scales(32, 500, STANDARD)) == 1
    assert len(pyramid_scales(1080, 1920, STANDARD)) == 8
    assert len(pyramid_scales(1080, 1920, replace(STANDARD, scales=3))) == 3


@given(seed=st.integers(0, 2**31), count=st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_points_are_in_the_middle_of_empty_cells_with_structure(seed, count):
    rng = np.random.default_rng(seed)
    grey = texture(33, 44, seed, smooth=1)
    grey[:, :20] = 90
    occupied = (rng.random((count, 2)) * (44, 33)).astype(np.float32)
    found = sample_points(grey, occupied, STANDARD)
    assert [tuple(point) for point in found.tolist()] == slow_points(grey, occupied)


def test_a_small_structure_beside_a_strong_one_is_no_point():
    grey = np.full((40, 40), 100, np.uint8)
    grey[7:12, 7:12] = 255
    grey[27:32, 27:32] = 102
    none = np.empty((0, 2), np.float32)
    assert sample_points(grey, none, STANDARD).tolist() == [[7, 7], [12, 7], [7, 12], [12, 12]]
    assert [27, 27] in sample_points(grey, none, replace(STANDARD, quality=1e-6)).tolist()


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_tracks_are_kept_as_a_list_of_them_would_be(data):
    small = TrajectorySettings(length=4, time_cells=2, cells=1, hog_bins=2, hof_bins=3, mbh_bins=2)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    tracks, model = Tracks(small), []
    for _ in range(12):
        new = rng.random((data.draw(st.integers(0, 5)), 2)).astype(np.float32)
        tracks.begin(new)
        model += [{"points": [point], "moves": [], "sums": []} for point in new]
        np.testing.assert_array_equal(
            tracks.positions, np.array([track["points"][-1] for track in model]).reshape(-1, 2)
        )
        count = len(model)
        points, moves = rng.random((2, count, 2)).astype(np.float32)
        histograms = rng.random((count, 9)).astype(np.float32)
        inside = rng.random(count) < 0.8
        found = tracks.advance(points, moves, histograms, inside)
        for track, *values in zip(model, points, moves, histograms, strict=True):
            for name, value in zip(("points", "moves", "sums"), values, strict=True):
                track[name].append(value)
        model = [track for track, stays in zip(model, inside, strict=True) if stays]
        done = [track for track in model if len(track["points"]) == 5]
        model = [track for track in model if len(track["points"]) < 5]
        assert len(tracks) == len(model)
        assert [len(part) for part in found] == [len(done)] * 3
        for track, *parts in zip(done, *found, strict=True):
            np.testing.assert_array_equal(parts[0], track["points"])
            np.testing.assert_array_equal(parts[1], track["moves"])
            np.testing.assert_allclose(parts[2], np.array(track["sums"]).reshape(2, 2, 9).mean(axis=1), rtol=1e-6)


def path_of(steps):
    """Make a track of 15 steps (x, y)."""
    return np.concatenate([[[0, 0]], np.cumsum(steps, axis=0)]).astype(np.float32)[None]


def verdict(steps, moves=None, chosen=STANDARD):
    steps = np.array(steps, float)
    moves = steps if moves is None else np.array(moves, float)
    number = judge_tracks(path_of(steps), moves[None].astype(np.float32), chosen)[0]
    return "kept" if number < 0 else REJECTIONS[number]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([(0.3, 0.3)] * 15, "static"),  # Spread .3 x 4.61 = 1.38 along both axes.
        ([(0.4, 0)] * 15, "camera"),  # 1.84 along one is enough not to be static, yet no step is above 1.
        ([(1.1, 0)] * 15, "kept"),
        ([(10, 0)] * 15, "kept"),  # 46.1
        ([(11, 0)] * 15, "random"),  # 50.7
        ([(0, 11)] * 15, "random"),
        ([(21, 0)] + [(0.5, 0)] * 14, "jump"),  # 21 of 28
        ([(21, 0)] + [(0.7, 0)] * 14, "kept"),  # 21 of 30.8: 68 %
        ([(19, 0)] + [(0.5, 0)] * 14, "kept"),  # 19 of 26: 73 %, but no more than 20
    ],
)
def test_each_rule_of_rejection(steps, wanted):
    assert verdict(steps) == wanted


def test_a_track_that_moves_with_the_camera_is_rejected_only_after_compensation():
    still = [(1.0, 0.0)] * 15
    assert verdict([(3, 0)] * 15, still) == "camera"
    assert verdict([(3, 0)] * 15, still, PLAIN) == "kept"
    assert verdict([(3, 0)] * 15, [*still[1:], (1.01, 0)]) == "kept"
    assert judge_tracks(np.empty((0, 16, 2)), np.empty((0, 15, 2)), STANDARD).shape == (0,)


def homography_pair(seed=5):
    scene = texture(200, 260, seed, smooth=1.5)
    turn = math.radians(1.5)
    matrix = np.array([
        [1.01 * math.cos(turn), -math.sin(turn), 3.0], [math.sin(turn), 1.01 * math.cos(turn), -2.0], [2e-5, -1e-5, 1],
    ])  # fmt: skip
    return scene, cv2.warpPerspective(scene, matrix, (260, 200), flags=cv2.INTER_CUBIC), matrix


@pytest.mark.parametrize("matcher", ["akaze", "sift"])
def test_the_homography_of_a_warped_image_is_found(matcher):
    if matcher == "akaze" and not any(hasattr(m, "AKAZE_create") for m in (cv2, getattr(cv2, "xfeatures2d", None))):
        pytest.skip("this build of OpenCV has no AKAZE")
    first, second, matrix = homography_pair()
    scales = pyramid_scales(*first.shape, STANDARD)
    flow = flow_pyramid(smooth_pyramid(first, scales), smooth_pyramid(second, scales), STANDARD)[0]
    finder = FeatureFinder(matcher)
    assert finder.name == matcher
    matches = finder.match(finder.find(first, None), finder.find(second, None), 25)
    assert len(matches[0]) > 50
    by_both = find_camera_motion(first, flow, matches, STANDARD)
    # Neither alone may be wrong: an empty flow field leaves the features.
    by_features = find_camera_motion(first, flow, matches, replace(STANDARD, corners=1))
    corners = np.array([[[0, 0], [259, 0], [0, 199], [259, 199]]], np.float64)
    for motion in (by_both, by_features):
        assert motion.accepted and motion.inliers > 25
        error = cv2.perspectiveTransform(corners, motion.matrix) - cv2.perspectiveTransform(corners, matrix)
        assert np.abs(error).max() < 0.5
    back = bring_back(first, second, by_both.matrix, margin=5)
    assert np.abs(back.astype(int) - first)[10:-10, 10:-10].mean() < 2


def test_few_matches_are_no_camera():
    first, _, _ = homography_pair()
    flow = np.ones((*first.shape, 2), np.float32)
    none = (np.empty((0, 2), np.float32),) * 2
    for corners, accepted in ((50, False), (51, True)):
        motion = find_camera_motion(first, flow, none, replace(STANDARD, corners=corners))
        assert (motion.matches, motion.accepted) == (corners, accepted)
        assert np.array_equal(motion.matrix, np.eye(3)) != accepted
    # 60 matches that agree with nothing: too few inliers.
    astray = (np.random.default_rng(0).standard_normal(flow.shape) * 20).astype(np.float32)
    motion = find_camera_motion(first, astray, none, replace(STANDARD, corners=60))
    assert motion.matches == 60 and motion.inliers <= 25 and not motion.accepted


def test_features_are_matched_only_nearby():
    scene = texture(140, 300, smooth=1.5)
    finder = FeatureFinder("auto")
    first, second = scene[:, 40:240], scene[:, :200]  # 40 pixels apart
    features = finder.find(np.ascontiguousarray(first), None), finder.find(np.ascontiguousarray(second), None)
    near, far = (finder.match(*features, window) for window in (25, 60))
    moved = [np.median(b[:, 0] - a[:, 0]) for a, b in (near, far)]
    assert np.abs(near[1] - near[0]).max() < 25
    assert moved[1] == pytest.approx(40, abs=0.5) and abs(moved[0]) < 25


def test_surf_is_used_where_this_build_has_it_and_named_where_it_has_not():
    try:
        cv2.xfeatures2d.SURF_create(200)
    except (AttributeError, cv2.error):
        with pytest.raises(ConfigError, match="surf"):
            FeatureFinder("surf")
        assert FeatureFinder("auto").name in ("akaze", "sift")
    else:
        assert FeatureFinder("auto").name == "surf"


def test_what_comes_from_outside_is_taken_from_the_first_frame():
    first, second = texture(60, 80, 1), texture(60, 80, 2)
    back = bring_back(first, second, np.array([[1, 0, 10.0], [0, 1, 0], [0, 0, 1]]), margin=5)
    # Column x comes from x + 10: known up to 73.
    np.testing.assert_array_equal(back[6:-6, 6:64], second[6:-6, 16:74])
    np.testing.assert_array_equal(back[:, 64:], first[:, 64:])
    np.testing.assert_array_equal(back[:6], first[:6])


def test_boxes_mask_their_whole_pixels():
    mask = mask_of_boxes([[2.2, 3, 5.9, 4], [-5, -5, 0, 0]], 8, 10)
    wanted = np.full((8, 10), 255)
    wanted[3:5, 3:6] = 0
    wanted[0, 0] = 0
    np.testing.assert_array_equal(mask, wanted)
    assert (mask_of_boxes(np.empty((0, 5)), 8, 10) == 255).all()


def test_each_scale_comes_from_the_scale_before():
    grey = texture(100, 120)
    pyramid = build_pyramid(grey, [(100, 120), (71, 85), (50, 60)])
    np.testing.assert_array_equal(pyramid[0], grey)
    once = cv2.resize(grey, (85, 71), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(pyramid[2], cv2.resize(once, (60, 50), interpolation=cv2.INTER_LINEAR))


def test_the_flow_of_every_scale_is_in_pixels_of_the_scale():
    first, second = panning(2, 120, 160, step=(3, 2))
    scales = pyramid_scales(120, 160, STANDARD)
    for chosen in (STANDARD, replace(STANDARD, flow_median=0)):
        flows = flow_pyramid(smooth_pyramid(first, scales), smooth_pyramid(second, scales), chosen)
        for (factor, size), flow in list(zip(scales, flows, strict=True))[:3]:
            assert flow.shape == (*size, 2)
            np.testing.assert_allclose(np.median(flow, axis=(0, 1)), np.array([-3, -2]) / factor, atol=0.1)


def test_a_long_motion_is_found_from_coarse_to_fine_as_by_opencvs_own_pyramid():
    scene = texture(240, 280, smooth=4)
    first, second = (np.ascontiguousarray(image) for image in (scene[:160, :200], scene[8:168, 12:212]))
    scales = pyramid_scales(160, 200, STANDARD)
    pyramids = smooth_pyramid(first, scales), smooth_pyramid(second, scales)
    flow = flow_pyramid(*pyramids, STANDARD)[0][40:-40, 40:-40]
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), (-12, -8), atol=0.1)
    whole = cv2.calcOpticalFlowFarneback(
        first, second, None, pyr_scale=1 / STANDARD.scale_factor, levels=len(scales) - 1, winsize=10, iterations=2,
        poly_n=7, poly_sigma=1.5, flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN,
    )  # fmt: skip
    unfiltered = flow_pyramid(*pyramids, replace(STANDARD, flow_median=0))[0]
    assert np.median(np.hypot(*np.moveaxis(unfiltered - whole, 2, 0))) < 0.05


def test_a_motion_beyond_the_finest_scale_needs_the_coarser_ones_in_its_own_pixels():
    scene = texture(280, 320, smooth=5)
    first, second = scene[:240, :280], scene[14:254, 20:300]
    scales = pyramid_scales(240, 280, STANDARD)
    flow = flow_pyramid(smooth_pyramid(first, scales), smooth_pyramid(second, scales), STANDARD)[0]
    np.testing.assert_allclose(np.median(flow[50:-50, 50:-50], axis=(0, 1)), (-20, -14), atol=3)


def test_no_feature_is_found_where_the_mask_is_zero():
    grey = texture(120, 160, smooth=1.5)
    mask = mask_of_boxes([[0, 0, 79, 119]], 120, 160)
    points = FeatureFinder().find(grey, mask).points
    assert len(points) > 10 and (points[:, 0] > 78).all()


def test_people_are_masked_in_features_as_they_are_in_corners(monkeypatch):
    masks = []
    find = FeatureFinder.find
    monkeypatch.setattr(FeatureFinder, "find", lambda self, grey, mask: masks.append(mask) or find(self, grey, mask))
    boxes = [[[4, 5, 20, 30 + t]] for t in range(3)]
    extract_trajectories(panning(3, 64, 80), boxes=boxes)
    for mask, box in zip(masks, boxes, strict=True):
        np.testing.assert_array_equal(mask, mask_of_boxes(box, 64, 80))


def test_opencvs_number_of_threads_is_put_back():
    before = cv2.getNumThreads()
    with one_thread():
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 0}, {"step": 2.5}, {"length": 16}, {"patch": 33}, {"scale_factor": 1.0}, {"flow_median": 4},
        {"compensation": "affine"}, {"matcher": "orb"}, {"epsilon": -1}, {"quality": float("nan")}, {"hof_bins": 2},
        {"scales": True},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))) as caught:
        TrajectorySettings(**wrong)
    assert caught.value.remedy
