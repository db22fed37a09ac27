"""One video open for reading: files and extracted folders give the same, at the frame rate that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_videos import video_file, write_extracted

from volrec.benchmarks.extracted import ExtractedVideo
from volrec.benchmarks.extraction import extract
from volrec.benchmarks.footage import Footage
from volrec.benchmarks.sets import Video
from volrec.errors import DataError
from volrec.io.video import read_video


def test_a_file_and_its_extracted_pictures_show_the_same(tmp_path: Path) -> None:
    video = video_file(tmp_path, frames=9)
    assert extract([video], tmp_path / "out", estimator="farneback", quality=100, jobs=1) == []
    places = [8, 0, 3, 3]
    with Footage(video) as plain, Footage(video, extracted=tmp_path / "out", fields="flow") as pictures:
        assert plain.count == pictures.count == 9
        assert plain.rate == pictures.rate == 25
        assert np.array_equal(plain.frames(places), read_video(video.path)[places])
        off = np.abs(plain.frames(places).astype(float) - pictures.frames(places))
        assert off.mean() < 3  # JPEG with subsampled colours, on bars one pixel sharp
        assert pictures.field_size == (48, 64) and pictures.fields(0, 8).shape == (8, 2, 48, 64)


def test_frames_come_in_the_order_asked_for_and_each_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = video_file(tmp_path, frames=12)
    whole = read_video(video.path)
    with Footage(video) as footage:
        asked: list[list[int]] = []
        read = footage._reader.read  # type: ignore[union-attr]
        monkeypatch.setattr(footage._reader, "read", lambda places: asked.append(list(places)) or read(places))
        places = np.array([7, 2, 7, 11, 0, 2])
        assert np.array_equal(footage.frames(places), whole[places])
    assert asked == [[0, 2, 7, 11]]


@pytest.mark.parametrize(("wanted", "places"), [(10, [0, 2, 5, 7, 10]), (25, range(12)), (50, np.arange(24) // 2)])
def test_frames_at_another_rate_are_those_on_the_screen(tmp_path: Path, wanted: float, places: list[int]) -> None:
    video = video_file(tmp_path, frames=12)  # 25 a second: .48 seconds
    with Footage(video, frame_rate=wanted) as footage:
        assert footage.count == len(places)
        assert np.array_equal(footage.frames(np.arange(footage.count)), read_video(video.path)[list(places)])


def test_fields_at_another_rate_are_those_of_the_frames_that_are_looked_at(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "v", frames=12)
    fields = ExtractedVideo(folder).flow(range(11))
    video = Video("v", tmp_path / "nowhere.mp4", (0,))
    with Footage(video, extracted=tmp_path, fields="flow", frame_rate=10) as slow:
        assert np.array_equal(slow.fields(1, 4), fields[[2, 5, 7]])
    with Footage(video, extracted=tmp_path, fields="flow", frame_rate=60) as fast:
        # 29 places; the last ones show the last frame, which no field begins at.
        assert np.array_equal(fast.fields(0, fast.count - 1)[-3:], fields[[10, 10, 10]])


def test_fields_alone_need_no_video(tmp_path: Path) -> None:
    write_extracted(tmp_path / "v", frames=5, kinds=("flow",))
    with Footage(Video("v", tmp_path / "gone.mp4", ()), extracted=tmp_path, fields="flow", frames=False) as footage:
        assert footage.count == 5 and footage.fields(1, 4).shape == (3, 2, 24, 32)


def test_a_video_of_one_frame_has_fields_of_zeros(tmp_path: Path) -> None:
    write_extracted(tmp_path / "v", frames=1, frame_rate=5)
    video = Video("v", tmp_path / "gone.mp4", ())
    with Footage(video, extracted=tmp_path, fields="flow", frame_rate=25) as footage:
        assert footage.count == 5
        found = footage.fields(0, 4)
        assert found.shape == (4, 2, 24, 32) and not found.any()


@pytest.mark.parametrize("there", ["nothing", "frames"])
def test_fields_that_are_not_there_are_said(tmp_path: Path, there: str) -> None:
    if there == "frames":
        write_extracted(tmp_path / "out" / "clip", frames=5, kinds=("rgb",))
    with pytest.raises(DataError, match="no extracted flow") as caught:
        Footage(video_file(tmp_path, frames=5), extracted=tmp_path / "out", fields="flow")
    assert caught.value.code == "no-flow" and "extract" in caught.value.remedy


def test_frames_without_fields_are_not_looked_at(tmp_path: Path) -> None:
    """Decoders may count differently: only what both have is read."""
    video = video_file(tmp_path, frames=12)
    write_extracted(tmp_path / "out" / "clip", frames=10, kinds=("flow",), size=(48, 64))
    with Footage(video, extracted=tmp_path / "out", fields="flow") as footage:
        assert footage.count == 10
        assert np.array_equal(footage.frames([9]), read_video(video.path)[[9]])
    with Footage(video, extracted=tmp_path / "out") as footage:
        assert footage.count == 12


def test_fields_that_were_not_opened_are_an_error(tmp_path: Path) -> None:
    with Footage(video_file(tmp_path, frames=4)) as footage:
        with pytest.raises(DataError, match="no fields were opened"):
            footage.fields(0, 2)
        with pytest.raises(DataError, match="no fields were opened"):
            _ = footage.field_size
