"""Decoders of videos: the same frames whichever decodes and in whatever order, and every fault told."""

from __future__ import annotations

import importlib
import importlib.util
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from videos import CLIPS, ask_for_rotation, drop_frames, encode, moving, pack_b_frames, real_clip

from volrec.errors import ConfigError, DataError
from volrec.io.video import open_video, read_video

# What is decoded by sequence alone, by PyAV itself: the oracle of every read in another order.
KINDS = {
    "b-frames.mp4": {"options": {"bf": "3", "x264-params": "scenecut=0"}},
    "open-group.mkv": {"options": {"bf": "3", "x264-params": "open-gop=1"}},
    "xvid.avi": {"codec": "mpeg4"},
    "xvid-b-frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264-b-frames.avi": {"options": {"bf": "3"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "stream.ts": {"options": {"bf": "3"}},
    "packed.avi": {"codec": "mpeg4", "options": {"bf": "1"}},
    "dropped.avi": {"codec": "mpeg4"},
}


def sequential(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    folder = tmp_path_factory.mktemp("videos")
    found = {}
    for name, how in KINDS.items():
        path = encode(folder / name, moving(50), **how)  # type: ignore[arg-type]
        rewrite = {"packed.avi": pack_b_frames, "dropped.avi": drop_frames}.get(name)
        if rewrite is not None:
            path = rewrite(path.rename(folder / f"before-{name}"), path)
        found[name] = (path, sequential(path))
    return found


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_of_a_real_clip_is_the_one_of_opencv(name: str) -> None:
    # Two builds of FFmpeg and two conversions to RGB: where one of them changes its chroma filter, a few levels differ;
    # a frame too many or too few differs by 20 levels and more on average at a cut, and by 1 where little moves.
    path = real_clip(name)
    with open_video(path) as ours, open_video(path, decoder="opencv") as theirs:
        assert (
            ours.info.frames
            == theirs.info.frames
            == {"bikes": 250, "bigbuckbunny": 132, "carphone_pristine": 120}[name]
        )
        assert (ours.info.height, ours.info.width) == (theirs.info.height, theirs.info.width)
        assert ours.info.frame_rate == pytest.approx(theirs.info.frame_rate, rel=1e-6)
        for one, other in zip(ours.chunks(16), theirs.chunks(16), strict=True):
            difference = np.abs(one.astype(np.int16) - other)
            assert difference.mean() < 0.5 and difference.max() <= 16


@pytest.mark.parametrize("name", CLIPS)
def test_random_places_of_a_real_clip_hold_what_decoding_through_holds(name: str) -> None:
    path = real_clip(name)
    rng = random.Random(name)
    whole = {}
    with open_video(path) as through:
        wanted = sorted(rng.sample(range(through.info.frames), 12))
        for start, chunk in zip(range(0, through.info.frames, 16), through.chunks(16), strict=True):
            whole.update({index: chunk[index - start] for index in wanted if start <= index < start + len(chunk)})
    rng.shuffle(wanted)
    with open_video(path) as reader:
        for first in range(0, 12, 3):
            asked = wanted[first : first + 3]
            np.testing.assert_array_equal(reader.read(asked), np.stack([whole[index] for index in asked]))


@pytest.mark.parametrize("name", KINDS)
def test_the_frame_count_and_order_are_those_of_decoding_through(name: str, made: Any) -> None:
    path, expected = made[name]
    assert len(expected) == 50 or name == "dropped.avi"  # Of its 55 packets not every one is shown.
    with open_video(path) as reader:
        assert reader.info.frames == len(expected)
        assert (reader.info.height, reader.info.width) == (48, 64)
        np.testing.assert_array_equal(reader.read(range(len(expected))), expected)
    np.testing.assert_array_equal(read_video(path), expected)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reads_in_any_order_equal_decoding_through(name: str, made: Any, data: st.DataObject) -> None:
    path, expected = made[name]
    reads = data.draw(st.lists(st.lists(st.integers(0, 49), max_size=6), min_size=1, max_size=5))
    with open_video(path) as reader:
        for indices in reads:
            np.testing.assert_array_equal(reader.read(indices), expected[indices])


def test_a_seek_decodes_from_the_keyframe_before_and_no_more(made: Any) -> None:
    path, _ = made["b-frames.mp4"]  # Keyframes at 0, 12, 24, 36, 48.
    with open_video(path) as reader:
        decoded: list[int] = []
        through = reader._from_keyframe  # type: ignore[attr-defined]

        def watched(index: int) -> Any:
            for number, frame in through(index):
                decoded.append(number)
                yield number, frame

        reader._from_keyframe = watched  # type: ignore[attr-defined]
        reader.read([40, 41])
        assert decoded == [36, 37, 38, 39, 40, 41]
        reader.read([42])
        assert decoded[6:] == [42]  # The decoder goes on from where it stands.
        reader.read([13])
        assert decoded[7:] == [12, 13]


def test_files_whose_times_do_not_tell_frames_apart_are_never_sought(made: Any) -> None:
    for name in KINDS:
        with open_video(made[name][0]) as reader:
            unclear = name in {"xvid-b-frames.avi", "h264-b-frames.avi", "vp8.webm", "packed.avi", "dropped.avi"}
            assert reader._seeks is not unclear, name  # type: ignore[attr-defined]


def test_packets_before_a_keyframe_are_not_decoded(made: Any) -> None:
    with open_video(made["b-frames.mp4"][0]) as reader:
        times = ((3, False), (None, True), (9, True), (8, False))
        packets = [SimpleNamespace(is_keyframe=key, pts=pts) for pts, key in times]
        reader._container = SimpleNamespace(  # type: ignore[attr-defined]
            seek=lambda *_, **__: None, demux=lambda _: iter(packets), close=lambda: None
        )
        assert [packet.pts for packet in reader._land(9, 10)] == [9, 8]  # type: ignore[attr-defined]
        assert reader._land(9, 8) is None  # type: ignore[attr-defined]


def test_a_time_out_of_turn_ends_seeking_and_the_count_from_the_start_holds(made: Any) -> None:
    path, expected = made["b-frames.mp4"]
    with open_video(path) as reader:
        times = list(reader._times)  # type: ignore[attr-defined]
        times[39] += 1
        reader._times = tuple(times)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(reader.read([44, 30]), expected[[44, 30]])
        assert not reader._seeks  # type: ignore[attr-defined]


def test_more_frames_than_packets_is_told(made: Any) -> None:
    with open_video(made["xvid.avi"][0]) as reader:
        reader.info = SimpleNamespace(**{**reader.info.__dict__, "frames": 49})  # type: ignore[assignment]
        with pytest.raises(DataError, match="more frames are decoded than the 49"):
            reader.read(range(49))


def test_the_decoders_agree_on_what_was_made_here(made: Any) -> None:
    for name, (path, expected) in made.items():
        theirs = read_video(path, decoder="opencv")
        assert theirs.shape == expected.shape, name
        assert np.abs(theirs.astype(np.int16) - expected).max() <= 4, name
        with open_video(path, decoder="opencv") as reader:
            np.testing.assert_array_equal(reader.read([30, 3, 30]), theirs[[30, 3, 30]])


def test_torchcodec_gives_the_same_frames(made: Any) -> None:
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        pytest.skip("torchcodec is not installed, or has no FFmpeg")
    for name in ("b-frames.mp4", "xvid.avi"):
        path, expected = made[name]
        with open_video(path, decoder="torchcodec") as reader:
            assert reader.info.frames == 50
            assert np.abs(reader.read([44, 3, 3]).astype(np.int16) - expected[[44, 3, 3]]).max() <= 4


def test_threads_change_nothing(made: Any) -> None:
    path, expected = made["b-frames.mp4"]
    np.testing.assert_array_equal(read_video(path, threads=3), expected)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_rotation_that_the_file_asks_for_is_carried_out(quarter_turns: int, tmp_path: Path) -> None:
    path = encode(tmp_path / "upright.mp4", moving(6))
    upright = read_video(path)
    ask_for_rotation(path, quarter_turns)
    turned = read_video(path)
    np.testing.assert_array_equal(turned, np.rot90(upright, -quarter_turns, axes=(1, 2)))
    np.testing.assert_array_equal(turned, read_video(path, decoder="opencv"))


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "height", "width"),
    [
        ("odd.mp4", "libx264", "yuv444p", 47, 63),
        ("grey.avi", "ffv1", "gray", 48, 64),
        ("grey.mp4", "libx264", "gray", 33, 51),
    ],
)
def test_grey_and_odd_sizes(name: str, codec: str, pixels: str, height: int, width: int, tmp_path: Path) -> None:
    path = encode(tmp_path / name, moving(10, height=height, width=width), codec=codec, pixels=pixels)
    ours = read_video(path)
    assert ours.shape == (10, height, width, 3)
    assert np.abs(ours.astype(np.int16) - read_video(path, decoder="opencv")).max() <= 2
    if pixels == "gray":
        assert (ours == ours[..., :1]).all()


def test_a_varying_frame_rate_is_told_as_the_average_and_every_frame_is_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = [0, *np.cumsum(rng.integers(10, 90, size=39)).tolist()]
    path = encode(tmp_path / "varying.mp4", moving(40), times=times, options={"bf": "2"})
    expected = sequential(path)
    with open_video(path) as reader:
        assert reader.info.frames == len(expected) == 40
        assert reader.info.frame_rate == pytest.approx(39 / (times[-1] / 1000), rel=0.05)
        np.testing.assert_array_equal(reader.read([39, 0, 25]), expected[[39, 0, 25]])


def test_a_file_name_with_a_colon_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "plain.avi", moving(3), codec="mpeg4").rename(tmp_path / "http:a b%05d.avi")
    monkeypatch.chdir(tmp_path)
    assert read_video("http:a b%05d.avi").shape == (3, 48, 64, 3)


# --- folders of frames ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "suffix"), [(1, "png"), (0, "jpg")])
def test_a_folder_of_frames_is_a_video(first: int, suffix: str, tmp_path: Path) -> None:
    video = moving(5)
    for number, picture in enumerate(video, start=first):
        Image.fromarray(picture).save(tmp_path / f"img_{number:05d}.{suffix}", quality=95)
    (tmp_path / "flow_x_00001.jpg").write_bytes(b"not looked at")
    with open_video(tmp_path) as reader:
        assert (reader.info.frames, reader.info.height, reader.info.width) == (5, 48, 64)
        assert np.isnan(reader.info.frame_rate) and reader.info.decoder == "frames" and reader.info.codec == suffix
        read = reader.read([4, 0, 4])
    expected = video[[4, 0, 4]]
    if suffix == "jpg":
        expected = np.stack([np.asarray(Image.open(tmp_path / f"img_{n:05d}.jpg")) for n in (4, 0, 4)])
    np.testing.assert_array_equal(read, expected)


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no frames"):
        open_video(tmp_path)
    for number in (1, 2, 4):
        Image.fromarray(moving(1)[0]).save(tmp_path / f"img_{number:05d}.png")
    with pytest.raises(DataError, match=r"img_00003\.png: frame 3 is missing, of those up to 4"):
        open_video(tmp_path)
    Image.fromarray(moving(1, height=40)[0]).save(tmp_path / "img_00003.png")
    with pytest.raises(DataError, match="frame 2 is 64 x 40 pixels, the first one 64 x 48"):
        read_video(tmp_path)
    (tmp_path / "img_00003.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match=r"img_00003\.png: the frame cannot be read"):
        read_video(tmp_path)
    (tmp_path / "img_00003.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="frame 3 is there twice"):
        open_video(tmp_path)


# --- faults --------------------------------------------------------------------------------------------------------


def cut(path: Path, *, by: int) -> Path:
    path.write_bytes(path.read_bytes()[:-by])
    return path


def test_a_file_that_ends_early_says_how_many_frames_were_there(tmp_path: Path) -> None:
    path = cut(encode(tmp_path / "cut.avi", moving(50), codec="mjpeg", pixels="yuvj420p"), by=8000)
    with pytest.raises(DataError, match=r"decoding breaks off: \d\d of 50 frames could be decoded") as told:
        open_video(path)
    assert told.value.where == str(path) and told.value.code == "video-truncated" and told.value.remedy


def test_an_mp4_whose_table_lists_more_than_is_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    encode(path, moving(50), options={"bf": "2"})
    import av

    fast = tmp_path / "fast.mp4"  # The table in front, as videos from the web have it.
    with av.open(str(path)) as given, av.open(str(fast), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    assert len(read_video(fast)) == 50
    with pytest.raises(DataError, match=r"breaks off: \d\d of 50 frames"):
        open_video(cut(fast, by=400))


def test_damage_that_the_decoder_refuses_is_told_where_it_is_met(tmp_path: Path) -> None:
    path = encode(tmp_path / "damaged.mp4", moving(50), options={"bf": "2"})
    data = bytearray(path.read_bytes())
    place = data.index(b"mdat") + 4 + 900
    data[place : place + 700] = bytes(range(7)) * 100
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"decoding breaks off: \d+ of 50 frames could be decoded \(.*[Ii]nvalid"):
        read_video(path)


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    import av

    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 100)
    nothing = tmp_path / "nothing.avi"
    with av.open(str(nothing), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    (tmp_path / "empty.mp4").touch()

    cases = {
        text: "cannot be opened as a video",
        tmp_path / "empty.mp4": "cannot be opened as a video",
        nothing: "holds no frame",
        sound: "no video in the file, only sound or data",
        tmp_path / "absent.mp4": "there is no such video",
    }
    for path, words in cases.items():
        with pytest.raises(DataError, match=words) as told:
            open_video(path)
        assert told.value.where == str(path) and told.value.remedy and told.value.code.startswith("video-")
    for path in (text, nothing, tmp_path / "empty.mp4", sound, tmp_path / "absent.mp4"):
        with pytest.raises(DataError):
            open_video(path, decoder="opencv")


def test_frames_that_are_not_there_and_decoders_that_are_not_there(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made["xvid.avi"][0]
    with open_video(path) as reader:
        assert reader.read([]).shape == (0, 48, 64, 3)
        for indices, words in (([50], "frame 50 is asked for, of 50"), ([-1], "frame -1"), ([0.5], "whole numbers")):
            with pytest.raises(DataError, match=words):
                reader.read(indices)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"shape \(1, 1\)"):
            reader.read(np.array([[1]]))
    with pytest.raises(ConfigError, match="decoder must be one of pyav, opencv, torchcodec, frames; got 'decord'"):
        open_video(path, decoder="decord")
    with pytest.raises(DataError, match="reads folders of pictures"):
        open_video(path, decoder="frames")

    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    for decoder, words in (
        ("pyav", r"pip install 'volrec\[video\]'"),
        ("opencv", "pip install"),
        ("torchcodec", "pip"),
    ):
        with pytest.raises(DataError, match=words) as told:
            open_video(path, decoder=decoder)
        assert told.value.code == "video-package"
