"""From frames and fields to network input: each step against a plain formula in float64 or a second library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_videos import a_stream, video_file, write_extracted

from volrec.benchmarks.extracted import ExtractedVideo
from volrec.benchmarks.footage import Footage
from volrec.benchmarks.protocol import stream_channels
from volrec.benchmarks.reading import CHUNK, StreamReader
from volrec.benchmarks.sets import Video
from volrec.config import StreamProtocol
from volrec.errors import ConfigError
from volrec.io.video import read_video
from volrec.transforms.flow_fields import STACK_ORDERS, stack_fields


def flow_stream(frames: dict[str, Any] | None = None, **motion: Any) -> StreamProtocol:
    return a_stream(name="flow", reads=["flow"], frames=frames or {}, motion=motion)


def finished(stream: StreamProtocol, motion: np.ndarray) -> np.ndarray:
    """Return what the network reads of (T, C, H, W), without the axis of the batch."""
    tensor = torch.from_numpy(np.asarray(motion, dtype=np.float32))[None]
    return StreamReader(stream).finish({"motion": tensor})[0].numpy()


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, C) in float64: centres of pixels on centres of pixels, the border repeated."""
    rows = np.clip((np.arange(height) + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    down, along = (rows - top)[:, None, None], (columns - left)[None, :, None]
    image = image.astype(np.float64)
    upper = image[top][:, left] * (1 - along) + image[top][:, right] * along
    lower = image[below][:, left] * (1 - along) + image[below][:, right] * along
    return upper * (1 - down) + lower * down


# Frames


@pytest.mark.parametrize(
    ("resize", "size"), [(None, (48, 64)), (24, (24, 32)), (30, (30, 40)), ((20, 50), (20, 50)), (96, (96, 128))]
)
def test_frames_are_resized(tmp_path: Path, resize: Any, size: tuple[int, int]) -> None:
    video = video_file(tmp_path, frames=6)
    stream = a_stream(frames={"resize": resize})
    with Footage(video) as footage:
        shown = StreamReader(stream).read(footage, np.array([4, 1, 4]))["rgb"]
    whole = read_video(video.path)[[4, 1, 4]]
    assert shown.shape == (3, *size, 3) and shown.dtype == np.uint8
    expected = np.stack([bilinear(frame, *size) for frame in whole])
    assert np.abs(shown - expected).max() <= 1  # OpenCV computes 8-bit pictures in fixed point


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "area"])
def test_the_interpolation_is_that_of_the_protocol(tmp_path: Path, name: str) -> None:
    video = video_file(tmp_path, frames=2)
    with Footage(video) as footage:
        shown = StreamReader(a_stream(frames={"resize": [20, 26], "interpolation": name})).read(footage, np.array([1]))
    method = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}[name]
    assert np.array_equal(shown["rgb"][0], cv2.resize(read_video(video.path)[1], (26, 20), interpolation=method))


def test_a_portrait_keeps_its_shape_at_a_shorter_side() -> None:
    reader = StreamReader(a_stream(frames={"resize": 256}))
    assert reader._target((320, 240)) == (341, 256)
    assert reader._target((240, 320)) == (256, 341)


def test_a_long_clip_is_read_a_few_frames_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = video_file(tmp_path, frames=2 * CHUNK + 6)
    most: list[int] = []
    read = Footage.frames
    monkeypatch.setattr(Footage, "frames", lambda self, places: most.append(len(places)) or read(self, places))
    with Footage(video) as footage:
        shown = StreamReader(a_stream()).read(footage, np.arange(2 * CHUNK + 6))["rgb"]
    assert most == [CHUNK, CHUNK, 6] and np.array_equal(shown, read_video(video.path))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(("mean", "scale"), [([10.0, 20.0, 30.0], [2.0, 0.5, 0.25]), ([127.5], [1 / 127.5])])
def test_order_of_channels_mean_and_scale(order: str, mean: list[float], scale: list[float]) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    reader = StreamReader(a_stream(frames={"order": order, "mean": mean, "scale": scale}))
    found = reader.finish({"rgb": torch.from_numpy(shown)}).numpy()
    means, scales = (values * (3 // len(values)) for values in (mean, scale))
    expected = np.empty((2, 3, 3, 4, 5))
    for channel, source in enumerate((2, 1, 0) if order == "bgr" else (0, 1, 2)):
        expected[:, channel] = (shown[..., source].astype(np.float64) - means[channel]) * scales[channel]
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-4)


def test_two_means_are_refused() -> None:
    reader = StreamReader(a_stream(frames={"mean": [1.0, 2.0]}))
    with pytest.raises(ConfigError, match="one a channel"):
        reader.finish({"rgb": torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8)})


# Crops and mirrors


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_is_cut_and_mirrored_and_displacements_along_x_change_sign(mirrored: bool) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (2, 8, 10, 3), dtype=np.uint8)
    motion = rng.normal(size=(2, 6, 8, 10)).astype(np.float32)
    before = motion.copy()
    stream = a_stream(reads=["rgb", "flow"], frames={"crop": [4, 5]}, motion={"stack": 3})
    cut = StreamReader(stream).cut({"rgb": rgb, "motion": motion}, (1, 3, 4, 5), mirrored=mirrored)
    shown, fields = rgb[:, 1:5, 3:8], motion[:, :, 1:5, 3:8]
    if mirrored:
        signs = np.array([-1, 1, -1, 1, -1, 1])[:, None, None]
        shown, fields = shown[:, :, ::-1], fields[..., ::-1] * signs
    assert np.array_equal(cut["rgb"], shown) and np.array_equal(cut["motion"], fields)
    assert cut["rgb"].flags.c_contiguous and np.array_equal(motion, before)


def test_differences_are_mirrored_without_a_change_of_sign() -> None:
    motion = np.random.default_rng(0).normal(size=(1, 6, 4, 4)).astype(np.float32)
    stream = a_stream(reads=["difference"], motion={"stack": 2})
    cut = StreamReader(stream).cut({"motion": motion}, (0, 0, 4, 4), mirrored=True)
    assert np.array_equal(cut["motion"], motion[..., ::-1])


def test_a_crop_of_another_size_is_resized_and_displacements_keep_their_values() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    motion = rng.normal(size=(2, 20, 20, 24)).astype(np.float32)
    stream = a_stream(reads=["rgb", "flow"], frames={"crop": 8}, motion={"stack": 10})
    cut = StreamReader(stream).cut({"rgb": rgb, "motion": motion}, (2, 4, 14, 12), mirrored=False)
    assert cut["rgb"].shape == (2, 8, 8, 3) and cut["motion"].shape == (2, 20, 8, 8)
    for frame in range(2):
        expected = bilinear(rgb[frame, 2:16, 4:16], 8, 8)
        assert np.abs(cut["rgb"][frame] - expected).max() <= 1
        fields = bilinear(motion[frame, :, 2:16, 4:16].transpose(1, 2, 0), 8, 8).transpose(2, 0, 1)
        assert np.allclose(cut["motion"][frame], fields, atol=1e-5)


def test_a_protocol_without_a_crop_shows_the_whole_frame() -> None:
    assert StreamReader(a_stream()).crop_size((30, 41)) == (30, 41)
    assert StreamReader(a_stream(frames={"crop": 16})).crop_size((30, 41)) == (16, 16)
    assert StreamReader(a_stream(frames={"crop": [16, 20]})).crop_size((30, 41)) == (16, 20)


# Fields


@settings(max_examples=60, deadline=None)
@given(
    value=st.floats(-50, 50, width=32),
    bound=st.sampled_from([8.0, 20.0, 40.0]),
    gain=st.sampled_from([1.0, 0.05, 6.375]),
)
def test_a_displacement_is_one_of_256_levels(value: float, bound: float, gain: float) -> None:
    clipped = min(max(value, -bound), bound)
    level = min(max(round(clipped * 127.5 / bound + 128), 0), 255)
    found = finished(flow_stream(stack=1, bound=bound, gain=gain), np.full((1, 2, 1, 1), value))
    step = bound / 127.5
    # A value in the very middle between two levels may fall to either side in float32.
    near = abs(clipped / step + 128 - np.floor(clipped / step + 128) - 0.5) < 1e-4
    assert np.abs(found - (level - 128) * step * gain).max() <= (step * gain * 1.001 if near else 1e-4 * bound * gain)


def test_the_levels_are_those_of_flow_pictures() -> None:
    """128 is no displacement, and reading a picture and finishing it changes nothing but the gain."""
    bound = 20.0
    pictures = np.arange(256)
    displacements = (pictures - 128) * (bound / 127.5)
    found = finished(flow_stream(stack=1, bound=bound), np.tile(displacements, (1, 2, 1, 1)))
    assert np.allclose(found[0, 0, 0], np.clip(displacements, -bound, bound), atol=1.01 * bound / 127.5)
    assert np.allclose(found[0, 0, 0, 1:255], displacements[1:255], atol=1e-5)
    assert found[0, 0, 0, 128] == 0
    fine = np.linspace(-30, 30, 5001)
    assert len(np.unique(finished(flow_stream(stack=1), np.tile(fine, (1, 2, 1, 1))))) == 256


def test_fields_of_any_value_are_clipped_and_multiplied() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 2, 5)) * 15
    found = finished(flow_stream(stack=2, bound=9.0, eight_bit=False, gain=0.5), values)
    assert np.allclose(found, (np.clip(values, -9, 9) * 0.5).swapaxes(0, 1), atol=1e-5)


def test_the_motion_of_the_camera_is_subtracted_from_each_component_of_each_field() -> None:
    constant = np.tile(np.array([3.0, -2.0, 7.0, 0.5])[None, :, None, None], (2, 1, 4, 4))
    stream = flow_stream(stack=2, subtract_mean=True)
    assert np.abs(finished(stream, constant)).max() < 1e-6
    values = np.random.default_rng(0).normal(size=(2, 4, 4, 4))
    plain = flow_stream(stack=2, eight_bit=False, subtract_mean=True)
    expected = (values - values.mean((2, 3), keepdims=True)).swapaxes(0, 1)
    assert np.allclose(finished(plain, values), expected, atol=1e-5)


@pytest.mark.parametrize("third", ["magnitude", "zero"])
def test_a_third_channel_stands_behind_x_and_y_of_each_field(third: str) -> None:
    values = np.random.default_rng(0).normal(size=(2, 6, 3, 4))
    stream = flow_stream(stack=3, eight_bit=False, third=third, gain=16)
    found = finished(stream, values)
    assert found.shape == (stream_channels(stream), 2, 3, 4) == (9, 2, 3, 4)
    for k in range(3):
        x, y = values[:, 2 * k], values[:, 2 * k + 1]
        assert np.allclose(found[3 * k], 16 * x, atol=1e-4) and np.allclose(found[3 * k + 1], 16 * y, atol=1e-4)
        assert np.allclose(found[3 * k + 2], 16 * np.hypot(x, y) if third == "magnitude" else 0, atol=1e-4)


def open_fields(folder: Path, *, frames: int, **more: Any) -> tuple[Video, np.ndarray]:
    written = write_extracted(folder / "v", frames=frames, **more)
    fields = ExtractedVideo(written).flow(range(frames - 1)) if frames > 1 else np.zeros((0, 2, 24, 32), np.float32)
    return Video("v", folder / "gone.mp4", (0,)), fields


@pytest.mark.parametrize("order", STACK_ORDERS)
@pytest.mark.parametrize(("frames", "stack"), [(14, 4), (14, 2), (3, 6), (1, 2), (2, 2)])
def test_stacks_are_those_of_the_whole_array_of_fields(tmp_path: Path, order: str, frames: int, stack: int) -> None:
    """At every place of a video, also one shorter than a stack, and in any order of the places."""
    video, fields = open_fields(tmp_path, frames=frames)
    reader = StreamReader(flow_stream(stack=stack, order=order))
    wanted = [np.arange(frames), np.array([frames - 1, 0, frames // 2, 0]), np.array([frames - 1])]
    with reader.open(video, decoder="pyav", extracted=str(tmp_path)) as footage:
        for places in wanted:
            found = reader.read(footage, places)["motion"]
            if frames == 1:
                expected = np.zeros((len(places), 2 * stack, 24, 32))
            else:
                expected = stack_fields(fields, places, length=stack, order=order).swapaxes(0, 1)
            assert found.shape == (len(places), 2 * stack, 24, 32)
            # Paths are followed in a part of the array: their sums may round otherwise.
            assert np.allclose(found, expected, atol=1e-4 if order == "trajectory" else 0)


def test_only_the_fields_of_a_stack_are_read_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, _ = open_fields(tmp_path, frames=30)
    read: list[int] = []
    fields = Footage.fields

    def noted(self: Footage, low: int, high: int) -> np.ndarray:
        read.extend(range(low, high))
        return fields(self, low, high)

    monkeypatch.setattr(Footage, "fields", noted)
    reader = StreamReader(flow_stream(stack=4))
    with reader.open(video, decoder="pyav", extracted=str(tmp_path)) as footage:
        reader.read(footage, np.array([2, 3, 5, 20]))
    assert read == [*range(2, 9), *range(20, 24)]


def test_displacements_of_resized_fields_are_in_pixels_of_the_new_size(tmp_path: Path) -> None:
    video, fields = open_fields(tmp_path, frames=6)
    reader = StreamReader(flow_stream({"resize": [12, 48]}, stack=2))
    with reader.open(video, decoder="pyav", extracted=str(tmp_path)) as footage:
        found = reader.read(footage, np.array([1, 3]))["motion"]
    for row, place in enumerate((1, 3)):
        for k in range(2):
            resized = bilinear(fields[place + k].transpose(1, 2, 0), 12, 48)
            expected = resized * [48 / 32, 12 / 24]
            assert np.allclose(found[row, 2 * k : 2 * k + 2], expected.transpose(2, 0, 1), atol=1e-3)


def test_fields_take_the_size_of_the_frames_beside_them(tmp_path: Path) -> None:
    video = video_file(tmp_path, frames=6)  # 48 x 64
    write_extracted(tmp_path / "out" / "clip", frames=6, kinds=("flow",))  # 24 x 32
    fields = ExtractedVideo(tmp_path / "out" / "clip").flow(range(5))
    reader = StreamReader(a_stream(reads=["rgb", "flow"], motion={"stack": 1}))
    with reader.open(video, decoder="pyav", extracted=str(tmp_path / "out")) as footage:
        raw = reader.read(footage, np.array([2]))
    assert raw["rgb"].shape == (1, 48, 64, 3) and raw["motion"].shape == (1, 2, 48, 64)
    expected = 2 * bilinear(fields[2].transpose(1, 2, 0), 48, 64).transpose(2, 0, 1)
    assert np.allclose(raw["motion"][0], expected, atol=1e-3)


# Differences


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(("frames", "places"), [(9, [0, 3, 2]), (4, [0, 2, 3]), (1, [0])])
def test_differences_are_those_of_one_frame_more(tmp_path: Path, order: str, frames: int, places: list[int]) -> None:
    video = video_file(tmp_path, frames=frames)
    whole = read_video(video.path).astype(np.float64)
    stream = a_stream(reads=["difference"], frames={"order": order}, motion={"stack": 3, "eight_bit": False, "gain": 2})
    reader = StreamReader(stream)
    with reader.open(video, decoder="pyav", extracted=None) as footage:
        raw = reader.read(footage, np.array(places))
    found = reader.finish({"motion": torch.from_numpy(raw["motion"])[None]})[0].numpy()
    assert found.shape == (stream_channels(stream), len(places), 48, 64)
    for row, place in enumerate(places):
        for k in range(3):
            one, next_one = whole[min(place + k, frames - 1)], whole[min(place + k + 1, frames - 1)]
            expected = 2 * (next_one - one)[..., :: -1 if order == "bgr" else 1].transpose(2, 0, 1)
            assert np.array_equal(found[3 * k : 3 * k + 3, row], expected)


# Everything together


@pytest.mark.parametrize(
    ("reads", "motion"),
    [
        (["rgb"], None),
        (["flow"], {"stack": 3}),
        (["warped"], {"stack": 3, "third": "zero"}),
        (["rgb", "flow"], {"stack": 2, "third": "magnitude", "order": "bidirectional"}),
        (["rgb", "difference"], {"stack": 2, "eight_bit": False}),
    ],
)
def test_the_input_has_the_channels_that_the_network_is_built_for(
    tmp_path: Path, reads: list[str], motion: Any
) -> None:
    write_extracted(tmp_path / "v", frames=8, kinds=("rgb", "flow", "warped"))
    stream = a_stream(reads=reads, motion=motion, frames={"crop": 16})
    reader = StreamReader(stream)
    with reader.open(Video("v", tmp_path / "gone.mp4", ()), decoder="pyav", extracted=str(tmp_path)) as footage:
        raw = reader.read(footage, np.array([0, 3, 6]))
    cut = reader.cut(raw, (2, 4, 16, 16), mirrored=True)
    images = reader.finish({name: torch.from_numpy(values)[None] for name, values in cut.items()})
    assert images.shape == (1, reader.channels, 3, 16, 16) == (1, stream_channels(stream), 3, 16, 16)
    assert images.dtype == torch.float32
    assert reader.appearance == (3 if "rgb" in reads else 0)


def test_one_stream_reads_one_kind_of_motion() -> None:
    with pytest.raises(ConfigError, match="one kind of motion"):
        StreamReader(a_stream(reads=["flow", "warped"], motion={}))
