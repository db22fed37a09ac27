"""One network on whole videos against a plain loop over clips and crops, and the joining of views against its rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from small_videos import a_stream, video_file, write_extracted

import volrec.benchmarks.testing as testing
from volrec.benchmarks.sets import Video
from volrec.benchmarks.testing import StreamScorer, join_views
from volrec.benchmarks.training import create_network
from volrec.benchmarks.views import clip_indices, crop_boxes, reach
from volrec.config import StreamProtocol, TestViews
from volrec.errors import ConfigError, DataError
from volrec.networks.base import SequenceNetwork, SlicewiseNetwork

FRAMES = {"resize": [40, 48], "crop": 32, "mean": [100.0], "scale": [0.02]}
VIEWS = {"clips": "even", "count": 3, "length": 4}
CLASSES = 5


def built(stream: StreamProtocol, seed: int = 0) -> SequenceNetwork:
    torch.manual_seed(seed)
    network = create_network(stream, num_classes=CLASSES)
    with torch.no_grad():  # scores of fresh networks differ too little to tell anything apart
        torch.nn.init.normal_(network.get_classifier().weight, std=1.0)
    return network


def scored(stream: StreamProtocol, video: Video, network: SequenceNetwork, extracted: Path | None = None) -> np.ndarray:
    scorer = StreamScorer(network, stream)
    with (
        torch.inference_mode(),
        scorer.reader.open(video, decoder="pyav", extracted=str(extracted) if extracted else None) as footage,
    ):
        return scorer.outputs(footage)


@torch.no_grad()
def looped(stream: StreamProtocol, video: Video, network: SequenceNetwork, extracted: Path | None = None) -> np.ndarray:
    """Look at one clip and one crop at a time, with the formulas that are tested elsewhere."""
    network.eval()
    reader = StreamScorer(network, stream).reader
    with reader.open(video, decoder="pyav", extracted=str(extracted) if extracted else None) as footage:
        before, after = reach(stream)
        clips = clip_indices(
            footage.count, stream.test, before=before, extra=after, least=network.smallest[0], name=video.name
        )
        rows = []
        for clip in clips:
            raw = reader.read(footage, clip)
            size = reader.size(raw)
            height, width = reader.crop_size(size)
            row = []
            for top, left, mirrored in crop_boxes(stream.test.crops, size, (height, width)):
                cut = reader.cut(raw, (top, left, height, width), mirrored=mirrored)
                images = reader.finish({name: torch.from_numpy(values)[None] for name, values in cut.items()})
                row.append(network(images)[0].double().numpy())
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    ("network", "views", "frames"),
    [
        ("c3d", {"clips": "windows", "length": 16, "step": 8}, 40),
        ("c3d", {"clips": "random", "count": 3, "length": 16, "crops": "mirror"}, 20),
        ("i3d", {"clips": "whole", "length": 1000, "short": "loop"}, 21),
        ("tsn", {"clips": "even", "count": 5, "length": 1, "crops": "ten"}, 17),
        ("conv-pooling", {"clips": "whole", "length": 120, "short": "none", "crops": "three"}, 9),
    ],
)
def test_every_clip_and_crop_is_scored_as_by_itself(
    tmp_path: Path, network: str, views: dict[str, Any], frames: int
) -> None:
    video = video_file(tmp_path, frames=frames)
    stream = a_stream(network={"name": network}, frames=FRAMES, test=views)
    net = built(stream).train()
    found = scored(stream, video, net)
    assert not net.training
    expected = looped(stream, video, net)
    assert found.shape == expected.shape and found.dtype == np.float64
    assert np.ptp(expected) > 1e-2  # or else there is nothing to see
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def test_fields_are_scored_as_by_themselves(tmp_path: Path) -> None:
    write_extracted(tmp_path / "v", frames=16, size=(48, 64))
    video = Video("v", tmp_path / "gone.mp4", (0,))
    stream = a_stream(
        name="flow",
        reads=["flow"],
        motion={"stack": 5, "gain": 0.05},
        frames={"resize": [40, 48], "crop": 32},
        test={"clips": "even", "count": 5, "length": 1, "crops": "ten", "short": "first"},
    )
    network = built(stream)
    expected = looped(stream, video, network, tmp_path)
    assert np.abs(scored(stream, video, network, tmp_path) - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("network", ["tsn", "lrcn"])
@pytest.mark.parametrize("crops", ["center", "ten"])
def test_frames_that_clips_share_are_encoded_once_and_nothing_changes(
    tmp_path: Path, network: str, crops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = video_file(tmp_path, frames=24)
    views = {"clips": "windows", "length": 8, "step": 4, "last": True, "crops": crops}
    stream = a_stream(network={"name": network}, frames=FRAMES, test=views)
    net = built(stream)
    assert isinstance(net, SlicewiseNetwork)
    encoded: list[int] = []
    original = net.encode_slices
    monkeypatch.setattr(net, "encode_slices", lambda x: encoded.append(len(x)) or original(x))
    shared = scored(stream, video, net)
    assert sum(encoded) == 24 * (1 if crops == "center" else 10) and min(encoded) > 1
    monkeypatch.setattr(StreamScorer, "encodes_frames", False)
    encoded.clear()
    direct = scored(stream, video, net)
    assert not encoded and shared.shape == direct.shape
    assert np.abs(shared - direct).max() < 1e-5 * max(1, np.abs(direct).max())


@pytest.mark.parametrize("network", ["tsn", "c3d"])
def test_how_much_is_held_at_a_time_changes_nothing(
    tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = video_file(tmp_path, frames=45)
    views = {"clips": "windows", "length": 16, "step": 6, "last": True, "crops": "mirror"}
    stream = a_stream(network={"name": network}, frames=FRAMES, test=views)
    net = built(stream)
    plain = scored(stream, video, net)
    for budget, frames in ((1, 96), (1 << 30, 8), (3 * 16 * 32 * 32 * 3, 20)):
        monkeypatch.setattr(testing, "BUDGET", budget)
        monkeypatch.setattr(testing, "FRAMES", frames)
        other = scored(stream, video, net)
        assert np.abs(other - plain).max() < 1e-5 * max(1, np.abs(plain).max())


def test_long_clips_that_overlap_read_each_frame_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = video_file(tmp_path, frames=60)
    stream = a_stream(
        network={"name": "c3d"}, frames=FRAMES, test={"clips": "windows", "length": 24, "step": 4, "crops": "center"}
    )
    monkeypatch.setattr(testing, "FRAMES", 16)
    net = built(stream)
    asked: list[int] = []
    most: list[int] = []
    scorer = StreamScorer(net, stream)
    read = scorer.reader.read
    monkeypatch.setattr(scorer.reader, "read", lambda footage, places: asked.extend(places) or read(footage, places))
    take = testing._Window.take
    monkeypatch.setattr(testing._Window, "take", lambda self, places: most.append(len(places)) or take(self, places))
    with torch.inference_mode(), scorer.reader.open(video, decoder="pyav", extracted=None) as footage:
        found = scorer.outputs(footage)
    assert asked == list(range(60)) and max(most) <= 36
    assert np.allclose(found, looped(stream, video, net), atol=1e-5)


def test_snippets_side_by_side_are_one_input(tmp_path: Path) -> None:
    video = video_file(tmp_path, frames=18)
    views = {"clips": "even", "count": 5, "length": 1, "joint": True, "crops": "five", "stage": "logits"}
    stream = a_stream(network={"name": "actionvlad", "options": {"words": 4}}, frames=FRAMES, test=views)
    network = built(stream)
    found = scored(stream, video, network)
    assert found.shape == (1, 5, CLASSES)
    expected = looped(stream, video, network)
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def test_drawn_clips_of_a_video_do_not_depend_on_others(tmp_path: Path) -> None:
    one, other = video_file(tmp_path, "a", frames=40), video_file(tmp_path, "b", frames=40)
    views = {"clips": "random", "count": 4, "length": 16}
    stream = a_stream(network={"name": "c3d"}, frames=FRAMES, test=views)
    scorer = StreamScorer(built(stream), stream, seed=3)

    def places(video: Video, scorer: StreamScorer = scorer) -> list[list[int]]:
        with scorer.reader.open(video, decoder="pyav", extracted=None) as footage:
            return scorer.indices(footage).tolist()

    first = places(one)
    assert places(other) != first and places(one) == first
    assert places(one, StreamScorer(scorer.network, stream, seed=4)) != first


def test_the_score_of_a_video_joins_its_views(tmp_path: Path) -> None:
    video = video_file(tmp_path, frames=20)
    stream = a_stream(frames=FRAMES, test={**VIEWS, "crops": "mirror", "stage": "logits"})
    scorer = StreamScorer(built(stream), stream)
    with scorer.reader.open(video, decoder="pyav", extracted=None) as footage:
        found = scorer.score(footage)
        with torch.inference_mode():
            outputs = scorer.outputs(footage)
    assert np.allclose(found.logits, outputs.mean(axis=(0, 1)))
    assert np.allclose(found.clips, outputs.mean(axis=1))


def test_values_that_are_no_numbers_are_an_error_of_the_video(tmp_path: Path) -> None:
    video = video_file(tmp_path, frames=8)
    stream = a_stream(frames=FRAMES, test=VIEWS)
    network = built(stream)
    with torch.no_grad():
        network.get_classifier().bias.fill_(float("nan"))
    scorer = StreamScorer(network, stream)
    with scorer.reader.open(video, decoder="pyav", extracted=None) as footage, pytest.raises(DataError) as caught:
        scorer.score(footage)
    assert caught.value.code == "not-finite" and str(caught.value.where) == str(video.path)


@pytest.mark.parametrize("step", [2, 8])
def test_frames_that_the_network_cannot_read_are_said_whatever_the_path(tmp_path: Path, step: int) -> None:
    video = video_file(tmp_path, frames=24)
    views = {"clips": "windows", "length": 8, "step": step}
    stream = a_stream(network={"name": "tsn"}, frames={"crop": 8}, test=views)
    with pytest.raises(ConfigError, match="reads clips from"):
        scored(stream, video, built(stream))


# Joining


def plain_join(outputs: np.ndarray, stage: str, crops: str, clips: str) -> np.ndarray:
    rows = []
    for clip in outputs:
        total, weight = np.zeros(outputs.shape[-1]), 0.0
        for view in clip:
            p = np.exp(view) / np.exp(view).sum()
            w = 1.0 if crops == "mean" else (len(p) * p.max() - 1) / (len(p) - 1)
            total += w * (p if stage == "softmax" else view)
            weight += w
        rows.append(total / weight)
    if clips == "mean":
        return sum(rows) / len(rows)
    return np.array([max(row[k] for row in rows) for k in range(outputs.shape[-1])])


@pytest.mark.parametrize("crops", ["mean", "sci"])
@pytest.mark.parametrize("clips", ["mean", "max"])
@pytest.mark.parametrize("stage", ["logits", "softmax"])
def test_views_are_joined_by_their_rule(crops: str, clips: str, stage: str) -> None:
    outputs = np.random.default_rng(0).normal(size=(4, 6, 5)) * 3
    views = TestViews(clips="even", count=4, stage=stage, crop_consensus=crops, clip_consensus=clips)
    found = join_views(outputs, views)
    assert np.allclose(found.logits, plain_join(outputs, "logits", crops, clips))
    assert np.allclose(found.probabilities, plain_join(outputs, "softmax", crops, clips))
    each = [plain_join(outputs[[clip]], stage, crops, "mean") for clip in range(4)]
    assert np.allclose(found.clips, each)


def test_fstcn_weighs_crops_by_their_sparsity_and_takes_the_maximum_over_clips() -> None:
    """Worked by hand: a sure crop decides, a uniform one has no say; of two clips the surer wins each class."""
    sure, unsure = np.array([0.8, 0.1, 0.1]), np.full(3, 1 / 3)
    second = np.array([0.2, 0.6, 0.2])
    outputs = np.log(np.array([[sure, unsure], [second, second]]))
    views = TestViews(clips="windows", crop_consensus="sci", clip_consensus="max")
    found = join_views(outputs, views)
    assert np.allclose(found.clips, [sure, second])
    assert np.allclose(found.probabilities, [0.8, 0.6, 0.2])


def test_crops_that_all_say_nothing_are_averaged() -> None:
    views = TestViews(clips="windows", crop_consensus="sci", clip_consensus="max")
    found = join_views(np.zeros((2, 3, 4)), views)
    assert np.allclose(found.probabilities, 0.25) and np.isfinite(found.logits).all()


def test_the_mean_over_views_is_the_mean_over_all_of_them() -> None:
    outputs = np.random.default_rng(1).normal(size=(25, 10, 7))
    found = join_views(outputs, TestViews(clips="even", count=25))
    assert np.allclose(found.probabilities, softmax(outputs, axis=-1).reshape(250, 7).mean(axis=0))
