"""Features of a layer, a vector a video, and the linear machine on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_videos import a_set, a_stream, coloured

from volrec.benchmarks.deep_features import FeatureTaker, score_features, take_features
from volrec.benchmarks.encoding.features import FeatureMachine
from volrec.benchmarks.sets import Video
from volrec.benchmarks.training import create_network
from volrec.benchmarks.views import clip_indices, crop_boxes
from volrec.config import FeatureClassifier
from volrec.errors import ConfigError, RunError

STREAM = a_stream(
    network={"name": "c3d", "width": 1 / 32, "options": {"head": "fc", "hidden": 24}},
    frames={"crop": 32, "mean": [127.5], "scale": [0.02]},
    test={"clips": "windows", "length": 16, "step": 8, "crops": "mirror"},
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    return coloured(tmp_path_factory.mktemp("videos"), 6, frames=28, size=40)


def taker(normalize: str = "l2", layer: str = "fc6") -> FeatureTaker:
    torch.manual_seed(0)
    return FeatureTaker(create_network(STREAM, num_classes=2), STREAM, layer=layer, normalize=normalize)


def take(made: FeatureTaker, videos: list[Video], folder: Path, **keys: Any) -> Any:
    given = {"source": "w", "decoder": "pyav", "extracted": None, "jobs": 1, "description": ""}
    return take_features(made, videos, folder, **{**given, **keys})


@pytest.mark.parametrize("normalize", ["l2", "none"])
def test_a_feature_is_the_mean_of_the_layer_over_clips_and_crops(videos: list[Video], normalize: str) -> None:
    made = taker(normalize)
    network, seen = made.network, []
    with made.reader.open(videos[0], decoder="pyav", extracted=None) as footage:
        found = made.feature(footage)
        # fc7 reads what comes out of the ReLU behind fc6, dropout being off.
        handle = network.fc7.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        clips = clip_indices(footage.count, STREAM.test, name="")
        assert len(clips) == 2
        for clip in clips:
            raw = made.reader.read(footage, clip)
            for top, left, mirrored in crop_boxes("mirror", (40, 40), 32):
                cut = made.reader.cut(raw, (top, left, 32, 32), mirrored=mirrored)
                images = made.reader.finish({"rgb": torch.from_numpy(cut["rgb"])[None]})
                with torch.no_grad():
                    network(images)
        handle.remove()
    mean = torch.cat(seen).double().numpy().mean(axis=0)
    assert len(seen) == 4 and found.shape == (24,) and found.any()
    expected = mean / np.linalg.norm(mean) if normalize == "l2" else mean
    assert np.allclose(found, expected, atol=1e-5)


def test_features_are_kept_and_an_interrupted_set_goes_on(
    videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, problems = take(taker(), videos, tmp_path / "whole")
    assert problems == [] and whole.shape == (6, 24) and whole.dtype == np.float32
    made, seen = taker(), []
    original = made.feature

    def stopped(footage: Any) -> np.ndarray:
        seen.append(footage.video.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(footage)

    monkeypatch.setattr(made, "feature", stopped)
    with pytest.raises(KeyboardInterrupt):
        take(made, videos, tmp_path / "cut")
    found, _ = take(made, videos, tmp_path / "cut")
    assert seen == ["c0", "c1", "c2", "c2", "c3", "c4", "c5"] and np.array_equal(found, whole)
    again, _ = take(made, videos, tmp_path / "cut")
    assert len(seen) == 7 and np.array_equal(again, whole)


def test_videos_side_by_side_have_their_own_features(videos: list[Video], tmp_path: Path) -> None:
    one, _ = take(taker(), videos, tmp_path / "one")
    several, problems = take(taker(), videos * 1, tmp_path / "several", jobs=4)
    assert problems == [] and np.allclose(one, several, atol=1e-6)


def test_a_bad_video_has_zeros_and_is_counted(videos: list[Video], tmp_path: Path) -> None:
    gone = Video("gone", tmp_path / "gone.mp4", (0,))
    found, problems = take(taker(), [gone, *videos[:2]], tmp_path / "t")
    assert [problem.study for problem in problems] == ["gone"]
    assert not found[0].any() and found[1].any() and found[2].any()
    with pytest.raises(RunError, match="none of 1 videos could be read"):
        take(taker(), [gone], tmp_path / "none")


def test_features_of_other_weights_are_refused(videos: list[Video], tmp_path: Path) -> None:
    take(taker(), videos[:2], tmp_path / "t")
    with pytest.raises(ConfigError, match="source"):
        take(taker(), videos[:2], tmp_path / "t", source="others")


def test_a_layer_that_there_is_not_is_an_error_of_the_settings(videos: list[Video], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no layer 'fc9'"):
        take(taker(layer="fc9"), videos[:2], tmp_path / "t")


def test_the_machine_tells_videos_apart_and_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = [Video(f"a{place}", tmp_path, (2 * (place % 2),), f"g{place // 4}") for place in range(24)]
    test = [Video(f"b{place}", tmp_path, (2 * (place % 2),)) for place in range(10)]
    sides = [
        np.stack([rng.normal(size=5) + 4 * np.eye(5)[video.labels[0]] for video in side]).astype(np.float32)
        for side in (train, test)
    ]
    whole = a_set(train, test, classes=("x", "never", "y"))
    scores = score_features(
        FeatureClassifier(c=[0.1, 1.0]),
        whole,
        train,
        test,
        features=[(sides[0], sides[1])],
        trajectories=None,
        keep=tmp_path / "svm.safetensors",
        facts={"stream": "features"},
    )
    assert scores.videos == tuple(video.name for video in test) and scores.classes == ("x", "never", "y")
    assert (scores.logits.argmax(axis=1) == [video.labels[0] for video in test]).all()
    # A class without a training video is last for every video.
    assert (scores.logits.argmin(axis=1) == 1).all()
    kept = FeatureMachine.load(tmp_path / "svm.safetensors")
    assert kept.classes == ("x", "y")
    assert np.allclose(kept.scores([sides[1]]), scores.logits[:, [0, 2]], atol=1e-6)
    assert scores.facts["c"] == [kept.choices[0].c]
