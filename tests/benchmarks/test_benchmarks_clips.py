"""Training clips: what is drawn depends on seed, epoch and video alone; bad videos are counted and hurt nobody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_videos import a_stream, video_file, write_extracted

from volrec.benchmarks.clips import VideoClipData, VideoClips
from volrec.benchmarks.sets import Video
from volrec.benchmarks.views import train_indices
from volrec.config import BenchmarkConfig, StreamProtocol, VideoProtocol
from volrec.data.datasets import Draw
from volrec.errors import ConfigError, DataError
from volrec.io.video import read_video
from volrec.transforms.crops import corner_crops

FRAMES = {"resize": [24, 32], "crop": 16}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    folder = tmp_path_factory.mktemp("videos")
    return [video_file(folder, f"v{place}", frames=20 + place, labels=(place % 2,)) for place in range(4)]


def clips_of(videos: list[Video], stream: StreamProtocol | None = None, *, seed: int = 0) -> VideoClips:
    stream = stream or a_stream(frames=FRAMES, train={"length": 3, "crop": "random"})
    return VideoClips(videos, stream, decoder="pyav", extracted=None, num_classes=2, seed=seed)


def config_for(stream: StreamProtocol, *, batch: int = 2, workers: int = 0) -> BenchmarkConfig:
    protocol = VideoProtocol(name="p", system="s", paper="p", summary="s", datasets=["ucf101"], streams=[stream])
    config = BenchmarkConfig(protocol=protocol, batch=batch)
    trainer = config.trainer.model_copy(update={"workers": workers})
    return config.model_copy(update={"trainer": trainer}).for_stream(stream, epochs=1)


def test_a_clip_is_a_function_of_seed_epoch_and_video(videos: list[Video]) -> None:
    one, other = clips_of(videos), clips_of(videos[::-1])
    draws = [Draw(epoch, place, repeat) for epoch in range(2) for place in range(4) for repeat in range(2)]
    first = {draw: one[draw]["rgb"] for draw in draws}
    for draw in reversed(draws):  # another order, and another place in the list
        again = other[Draw(draw.epoch, 3 - draw.study, draw.repeat)]["rgb"]
        assert np.array_equal(first[draw], again) and np.array_equal(first[draw], one[draw]["rgb"])
    assert len({clip.tobytes() for clip in first.values()}) == len(draws)
    assert not np.array_equal(clips_of(videos, seed=1)[draws[0]]["rgb"], first[draws[0]])


def test_a_clip_is_cut_from_its_frames_and_every_second_one_is_mirrored(videos: list[Video]) -> None:
    stream = a_stream(frames={"crop": 40}, train={"length": 3, "stride": 2, "crop": "random"})
    clips, whole = clips_of(videos, stream), read_video(videos[0].path)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (40, 40), axis=(1, 2))
    mirrored, places = [], set()
    for epoch in range(24):
        shown = clips[Draw(epoch, 0, 0)]["rgb"]
        assert shown.shape == (3, 40, 40, 3)
        found = []
        for flip in (False, True):
            wanted = (shown[:, :, ::-1] if flip else shown).transpose(0, 3, 1, 2)
            for start, top, left in np.argwhere((windows == wanted[0]).all((3, 4, 5))):
                if np.array_equal(windows[start : start + 5 : 2, top, left], wanted):
                    found.append((flip, int(start), int(top), int(left)))
        assert len(found) == 1
        mirrored.append(found[0][0])
        places.add(found[0][1:])
    assert 4 <= sum(mirrored) <= 20 and len(places) > 20
    plain = clips_of(videos, a_stream(frames={"crop": 48}, train={"length": 1, "crop": "center", "mirror": False}))
    frame = plain[Draw(0, 0, 0)]["rgb"][0]
    assert any(np.array_equal(frame, own[:, 8:56]) for own in whole)


def test_segments_give_a_snippet_of_each_part(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = a_stream(frames=FRAMES, train={"segments": 3, "length": 2})
    clips = clips_of(videos, stream)
    seen: list[np.ndarray] = []
    read = clips.reader.read
    monkeypatch.setattr(clips.reader, "read", lambda footage, places: seen.append(places) or read(footage, places))
    for epoch in range(20):
        assert clips[Draw(epoch, 0, 0)]["rgb"].shape == (6, 16, 16, 3)
    starts = np.array([places.reshape(3, 2)[:, 0] for places in seen])  # 19 places: parts of 6
    assert (starts // 6 == [0, 1, 2]).all() and len(np.unique(starts[:, 0])) > 3
    assert all((np.diff(places.reshape(3, 2)) == 1).all() for places in seen)


def test_the_frames_of_a_clip_leave_room_for_its_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_extracted(tmp_path / "v", frames=10)
    stream = a_stream(name="flow", reads=["flow"], motion={"stack": 4}, train={"length": 2}, frames={"crop": 16})
    video = Video("v", tmp_path / "gone.mp4", (0,))
    clips = VideoClips([video], stream, decoder="pyav", extracted=str(tmp_path), num_classes=2, seed=0)
    seen: set[int] = set()
    read = clips.reader.read
    monkeypatch.setattr(
        clips.reader, "read", lambda footage, places: seen.update(places.tolist()) or read(footage, places)
    )
    for epoch in range(40):
        sample = clips[Draw(epoch, 0, 0)]
        assert sample["valid"] and sample["motion"].shape == (2, 8, 16, 16) and "rgb" not in sample
    expected = {
        int(p) for k in range(99) for p in train_indices(10, stream.train, np.random.default_rng(k), extra=4)[0]
    }
    assert seen == expected == set(range(6))  # fields 5, 6, 7, 8 are the last stack


def test_corner_crops_lie_in_the_frame_and_all_come_up(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    scales = [1.0, 0.75]
    clips = clips_of(videos, a_stream(frames=FRAMES, train={"length": 1, "crop": "corners", "scales": scales}))
    boxes: list[tuple[int, ...]] = []
    cut = clips.reader.cut

    def noted(raw: Any, box: Any, *, mirrored: bool) -> Any:
        boxes.append(tuple(box))
        return cut(raw, box, mirrored=mirrored)

    monkeypatch.setattr(clips.reader, "cut", noted)
    for epoch in range(250):
        assert clips[Draw(epoch, 0, 0)]["rgb"].shape == (1, 16, 16, 3)
    assert all(top >= 0 and left >= 0 and top + h <= 24 and left + w <= 32 for top, left, h, w in boxes)
    assert set(boxes) == set(corner_crops((24, 32), scales=scales))
    assert {(h, w) for *_, h, w in boxes} == {(24, 24), (24, 18), (18, 24), (18, 18)}


def test_labels_share_their_weight(videos: list[Video]) -> None:
    both = replace(videos[1], labels=(0, 1))
    unlabelled = replace(videos[2], labels=())
    clips = clips_of([videos[0], unlabelled, both])
    assert [video.name for video in clips.videos] == ["v0", "v1"]
    assert clips[0]["target"].tolist() == [1, 0] and clips[1]["target"].tolist() == [0.5, 0.5]
    with pytest.raises(DataError, match="no labelled training video"):
        clips_of([unlabelled])


def test_a_crop_that_does_not_fit_is_an_error_of_the_settings(videos: list[Video]) -> None:
    with pytest.raises(ConfigError, match="does not fit into frames of 48 x 64"):
        _ = clips_of(videos, a_stream(frames={"crop": 50}))[0]


@pytest.mark.parametrize("first", [True, False])
def test_a_broken_video_becomes_an_invalid_sample_of_the_right_size(
    videos: list[Video], tmp_path: Path, first: bool
) -> None:
    broken = Video("broken", tmp_path / "broken.mp4", (1,))
    broken.path.write_bytes(videos[0].path.read_bytes()[:500])
    clips = clips_of([broken, *videos] if first else [*videos, broken])
    place = 0 if first else 4
    if not first:
        _ = clips[0]
    sample = clips[place]
    assert sample["valid"] is False and sample["study"] == place and sample["target"].tolist() == [0, 1]
    assert sample["rgb"].shape == (3, 16, 16, 3) and not sample["rgb"].any()
    assert sample["problem"]["study"] == "broken" and sample["problem"]["where"] == str(broken.path)
    sound = clips[1 if first else 0]
    assert sound["valid"] is True and "problem" not in sound and sound["rgb"].any()


def test_nothing_but_broken_videos_is_an_error(tmp_path: Path) -> None:
    gone = [Video(name, tmp_path / f"{name}.mp4", (0,)) for name in "ab"]
    with pytest.raises(DataError, match="none of the training videos can be read"):
        _ = clips_of(gone)[0]


def test_batches_hold_the_clips_of_the_sampler_and_what_could_not_be_read(videos: list[Video], tmp_path: Path) -> None:
    broken = Video("broken", tmp_path / "gone.mp4", (1,))
    stream = a_stream(frames=FRAMES, train={"length": 3})
    clips = clips_of([*videos, broken], stream)
    data = VideoClipData(config_for(stream), clips, accelerator="cpu")
    assert data.steps_per_epoch == 3
    data.sampler.set_epoch(4)
    batches = list(data._loader(data.sampler, workers=0))
    assert [len(batch["study"]) for batch in batches] == [2, 2, 1]
    order = [draw.study for draw in data.sampler.order(4)]
    assert [study for batch in batches for study in batch["study"].tolist()] == order
    assert [ok for batch in batches for ok in batch["valid"].tolist()] == [study != 4 for study in order]
    assert [problem["study"] for batch in batches for problem in batch["problems"]] == ["broken"]
    for batch in batches:
        for row, study in enumerate(batch["study"].tolist()):
            assert np.array_equal(batch["rgb"][row].numpy(), clips[Draw(4, study, 0)]["rgb"])


def test_loading_processes_change_nothing(videos: list[Video]) -> None:
    stream = a_stream(frames=FRAMES, train={"length": 3})
    here = VideoClipData(config_for(stream), clips_of(videos, stream), accelerator="cpu")
    there = VideoClipData(config_for(stream, workers=2), clips_of(videos, stream), accelerator="cpu")
    assert there.workers == 2
    for one, other in zip(here._loader(here.sampler, workers=0), there._loader(there.sampler, workers=2), strict=True):
        assert np.array_equal(one["rgb"], other["rgb"]) and one["study"].tolist() == other["study"].tolist()
    assert there.studies_in_hand() == []


def test_clips_of_several_sizes_cannot_share_a_batch(videos: list[Video], tmp_path: Path) -> None:
    large = video_file(tmp_path, "large", frames=10, height=64, width=80)
    stream = a_stream(train={"length": 2, "crop": "center"})
    data = VideoClipData(config_for(stream, batch=5), clips_of([*videos, large], stream), accelerator="cpu")
    with pytest.raises(ConfigError, match="48x64, 64x80"):
        list(data.one_pass())
