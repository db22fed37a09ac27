"""Scores of one side of a split: video by video, several at a time, and never a second time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_videos import a_stream, coloured

from volrec.benchmarks.scores import ScoreSet, class_order
from volrec.benchmarks.sets import Video
from volrec.benchmarks.streams import each_video, score_videos
from volrec.benchmarks.testing import StreamScorer
from volrec.benchmarks.training import create_network
from volrec.config import StreamProtocol
from volrec.errors import ConfigError, DataError, Problem, RunError

CLASSES = ("left", "right", "up")
STREAM = a_stream(
    network={"name": "slice-mean"}, frames={"mean": [127.5], "scale": [0.02]}, test={"clips": "even", "count": 4}
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    return coloured(tmp_path_factory.mktemp("videos"), 5)


def scorer(stream: StreamProtocol = STREAM) -> StreamScorer:
    torch.manual_seed(0)
    network = create_network(stream, num_classes=3)
    torch.nn.init.normal_(network.get_classifier().weight)
    return StreamScorer(network, stream)


def facts(**more: Any) -> dict[str, Any]:
    plain = {"set": "motion", "split_id": "motion/1", "split_digest": "0", "side": "test", "protocol": "p"}
    plain |= {"stream": "rgb", "stage": "softmax", "class_order": class_order(CLASSES), "weights": "w"}
    plain |= {"decoder": "pyav", "listed": 5, "seed": 0, "views": "4 x center", "crops": 1, "resize": "none"}
    return plain | {"flow": None} | more


def score(videos: list[Video], path: Path, made: StreamScorer | None = None, **keys: Any) -> Any:
    given = {"classes": CLASSES, "facts": facts(), "decoder": "pyav", "extracted": None, "jobs": 1, "description": ""}
    return score_videos(made or scorer(), videos, path, **{**given, **keys})


def test_scores_are_those_of_each_video(videos: list[Video], tmp_path: Path) -> None:
    made = scorer()
    found, problems = score(videos, tmp_path / "new" / "scores.safetensors", made)
    assert problems == [] and found.videos == tuple(video.name for video in videos)
    assert found.labels == tuple(video.labels for video in videos) and found.stage == "softmax"
    for row, video in enumerate(videos):
        with made.reader.open(video, decoder="pyav", extracted=None) as footage:
            own = made.score(footage)
        assert np.allclose(found.logits[row], own.logits) and np.allclose(found.probabilities[row], own.probabilities)
        hits = [int(clip.argmax()) == video.labels[0] for clip in own.clips]
        assert (found.clips[row], found.clip_hits[row]) == (len(hits), sum(hits))
    read = ScoreSet.read(tmp_path / "new" / "scores.safetensors")
    assert np.array_equal(read.logits, found.logits) and not list((tmp_path / "new").glob("*.partial"))


@pytest.mark.parametrize("jobs", [2, 5])
def test_several_at_a_time_change_nothing(videos: list[Video], tmp_path: Path, jobs: int) -> None:
    one, _ = score(videos, tmp_path / "one.safetensors")
    several, _ = score(videos, tmp_path / "several.safetensors", jobs=jobs)
    assert one.videos == several.videos and np.array_equal(one.logits, several.logits)


def test_an_interrupted_test_goes_on(videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.safetensors"
    whole, _ = score(videos, tmp_path / "whole.safetensors")
    made, seen = scorer(), []
    original = made.score

    def stopped(footage: Any) -> Any:
        seen.append(footage.video.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(footage)

    monkeypatch.setattr(made, "score", stopped)
    with pytest.raises(KeyboardInterrupt):
        score(videos, path, made)
    assert not path.exists()
    found, _ = score(videos, path, made)
    assert seen == ["c0", "c1", "c2", "c2", "c3", "c4"]
    assert np.array_equal(found.logits, whole.logits) and np.array_equal(found.clip_hits, whole.clip_hits)


def test_scores_that_are_there_are_taken(videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a test in which a video could not be read: that video alone is tried again."""
    path, made, seen = tmp_path / "scores.safetensors", scorer(), []
    original = made.score
    monkeypatch.setattr(made, "score", lambda footage: seen.append(footage.video.name) or original(footage))
    late = Video("late", tmp_path / "late.mp4", (2,))
    listed = [videos[0], late, *videos[1:]]
    first, problems = score(listed, path, made)
    assert [problem.study for problem in problems] == ["late"] and len(first.videos) == 5
    late.path.write_bytes(videos[1].path.read_bytes())
    seen.clear()
    second, problems = score(listed, path, made)
    assert seen == ["late"] and problems == [] and second.videos == tuple(video.name for video in listed)
    assert np.array_equal(second.logits[[0, 2, 3, 4, 5]], first.logits)
    seen.clear()
    third, _ = score(listed, path, made)
    assert seen == [] and np.array_equal(third.logits, second.logits)


@pytest.mark.parametrize("other", ["weights", "classes", "damaged"])
def test_scores_of_something_else_are_replaced(videos: list[Video], tmp_path: Path, other: str) -> None:
    path = tmp_path / "scores.safetensors"
    score(videos, path)
    classes, now = CLASSES, facts(weights="others") if other == "weights" else facts()
    if other == "classes":
        classes = CLASSES[::-1]
        now = facts(class_order=class_order(classes))
    if other == "damaged":
        path.write_bytes(path.read_bytes()[:-4])
    network = scorer()
    with torch.no_grad():
        network.network.get_classifier().bias.add_(torch.tensor([0.0, 5.0, 0.0]))
    found, _ = score(videos, path, network, facts=now, classes=classes)
    assert (found.logits.argmax(axis=1) == 1).all()
    assert np.array_equal(ScoreSet.read(path).logits, found.logits)


def test_half_a_test_of_other_settings_is_not_gone_on_with(videos: list[Video], tmp_path: Path) -> None:
    path, made = tmp_path / "scores.safetensors", scorer()
    with pytest.raises(DataError):
        score([Video("gone", tmp_path / "gone.mp4", (0,))], path, made)
    with pytest.raises(RunError, match="other settings"):
        score(videos, path, made, facts=facts(seed=1))


def test_nothing_but_bad_videos_is_an_error(tmp_path: Path) -> None:
    gone = [Video(name, tmp_path / f"{name}.mp4", (0,)) for name in "ab"]
    with pytest.raises(DataError, match="none of 2 videos could be scored; the first: there is no such video"):
        score(gone, tmp_path / "scores.safetensors")


# Several at a time


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_come_in_the_order_of_the_videos_and_failures_are_problems(tmp_path: Path, jobs: int) -> None:
    videos = [Video(str(place), tmp_path / str(place), ()) for place in range(9)]

    def work(video: Video) -> int:
        place = int(video.name)
        time.sleep(0.002 * (9 - place))
        if place == 2:
            raise DataError("it is bad.", remedy="Mend it.", where="somewhere", code="bad")
        if place == 5:
            raise ValueError("odd")
        return place

    found = list(each_video(work, videos, jobs=jobs, description=""))
    assert [video.name for video, _ in found] == [str(place) for place in range(9)]
    results = [result for _, result in found]
    assert results[2] == Problem("somewhere", "bad", "it is bad.", "Mend it.", "2")
    assert isinstance(results[5], Problem) and "ValueError: odd" in results[5].reason and results[5].study == "5"
    assert [results[place] for place in (0, 1, 3, 4, 6, 7, 8)] == [0, 1, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [(ConfigError, ConfigError), (MemoryError, DataError), (torch.OutOfMemoryError, DataError)],
)
def test_what_would_happen_to_every_video_ends_it(tmp_path: Path, jobs: int, raised: type, seen: type) -> None:
    begun: list[str] = []

    def work(video: Video) -> None:
        begun.append(video.name)
        raise raised("no")

    videos = [Video(str(place), tmp_path, ()) for place in range(40)]
    with pytest.raises(seen):
        list(each_video(work, videos, jobs=jobs, description=""))
    assert len(begun) <= 2 * jobs + 1


def test_no_more_than_asked_for_are_in_hand(tmp_path: Path) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def work(video: Video) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.005)
        with lock:
            now[0] -= 1

    list(each_video(work, [Video(str(place), tmp_path, ()) for place in range(20)], jobs=3, description=""))
    assert most[0] == 3
