"""Improved dense trajectories of a set: computed once, taken from others, encoded, and scored for every class."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from small_videos import a_set
from trajectory_clips import moving_square
from videos import encode

import volrec.benchmarks.handcrafted as handcrafted
from volrec.benchmarks.handcrafted import compute_trajectories, margins_of, score_trajectories, trajectory_vectors
from volrec.benchmarks.sets import Video
from volrec.benchmarks.trajectories.extract import Trajectories, extract_trajectories
from volrec.benchmarks.trajectories.files import read_trajectories, write_trajectories, write_trajectory_text
from volrec.benchmarks.trajectories.settings import TrajectorySettings
from volrec.config import TrajectoryClassifier
from volrec.errors import DataError, RunError
from volrec.io.video import read_video

SETTINGS = TrajectoryClassifier(encoding="bow", words=4, samples=400, c=10)


def some(label: int, seed: int, count: int = 40) -> Trajectories:
    """Return trajectories whose descriptors lie near one of two places."""
    settings = TrajectorySettings()
    width = settings.columns["mbhy"].stop
    rng = np.random.default_rng(seed)
    rows = np.abs(rng.normal(size=(count, width))).astype(np.float32) * 0.1
    rows[:, 10:] += np.where(np.arange(width - 10) % 2 == label, 1.0, 0.0).astype(np.float32)
    facts = {"settings": {}, "seed": seed}
    return Trajectories(rows, settings.columns, facts)


def made_set(folder: Path, count: int = 8) -> tuple[list[Video], list[Video]]:
    """Write trajectories of as many training as test videos of two classes."""
    sides = []
    for side in "ab":
        videos = [Video(f"x/{side}{place}", folder / "gone.mp4", (place % 2,)) for place in range(count)]
        for place, video in enumerate(videos):
            path = folder / f"{video.name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_trajectories(path, some(place % 2, seed=100 * (side == "b") + place))
        sides.append(videos)
    return sides[0], sides[1]


def test_trajectories_are_those_of_the_videos_frames_and_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handcrafted, "CHUNK", 7)
    shown = np.repeat(np.asarray(moving_square(frames=18), np.uint8)[..., None], 3, axis=-1)
    video = Video("class/v", encode(tmp_path / "v.mp4", shown), (0,))
    gone = Video("class/gone", tmp_path / "gone.mp4", (0,))
    problems = compute_trajectories([gone, video], tmp_path / "out")
    assert [(problem.study, problem.where) for problem in problems] == [("class/gone", str(gone.path))]
    found = read_trajectories(tmp_path / "out" / "class" / "v.safetensors")
    expected = extract_trajectories(list(read_video(video.path)))
    assert len(expected) > 0 and np.array_equal(found.rows, expected.rows)
    monkeypatch.setattr(handcrafted, "extract_trajectories", lambda frames: pytest.fail("computed twice"))
    assert compute_trajectories([video], tmp_path / "out") == []


@pytest.mark.parametrize("ending", [".txt", ".features.gz", ".gz"])
def test_files_of_others_are_taken_as_they_are(tmp_path: Path, ending: str) -> None:
    train, test = made_set(tmp_path / "own", count=4)
    for video in (*train, *test):
        kept = read_trajectories(tmp_path / "own" / f"{video.name}.safetensors")
        plain = tmp_path / "plain.txt"
        write_trajectory_text(plain, kept)
        path = tmp_path / "others" / f"{video.name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(plain.read_bytes()) if ending.endswith("gz") else plain.read_bytes())
    # There is no video to compute them from.
    assert compute_trajectories([*train, *test], tmp_path / "others") == []
    ways = [
        trajectory_vectors(SETTINGS, train, test, folder=tmp_path / name, work=tmp_path / f"{name}-work", seed=0)
        for name in ("own", "others")
    ]
    assert np.allclose(ways[0].train, ways[1].train, atol=1e-4) and np.allclose(ways[0].test, ways[1].test, atol=1e-4)


def test_vectors_tell_the_classes_apart_and_are_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = made_set(tmp_path / "t")
    keys = {"folder": tmp_path / "t", "work": tmp_path / "work", "seed": 0}
    vectors = trajectory_vectors(SETTINGS, train, test, **keys)
    assert vectors.train.shape == vectors.test.shape == (8, 5 * 4) and vectors.empty == ()
    assert vectors.names == {"train": [video.name for video in train], "test": [video.name for video in test]}
    scores = score_trajectories(SETTINGS, a_set(train, test), vectors, train, test, facts={"stream": "trajectories"})
    assert (scores.logits.argmax(axis=1) == [video.labels[0] for video in test]).all()
    monkeypatch.setattr(handcrafted, "read_trajectories", lambda path: pytest.fail("read twice"))
    again = trajectory_vectors(SETTINGS, train, test, **keys)
    assert np.array_equal(again.train, vectors.train) and np.array_equal(again.test, vectors.test)


def test_the_vocabulary_is_learned_on_training_videos_alone(tmp_path: Path) -> None:
    train, test = made_set(tmp_path / "t")
    one = trajectory_vectors(SETTINGS, train, test, folder=tmp_path / "t", work=tmp_path / "one", seed=0)
    other = trajectory_vectors(SETTINGS, train, test[:2], folder=tmp_path / "t", work=tmp_path / "other", seed=0)
    assert one.encoder.digest == other.encoder.digest and np.array_equal(one.test[:2], other.test)


def test_a_vocabulary_of_another_encoding_is_refused_and_another_machine_is_not(tmp_path: Path) -> None:
    train, test = made_set(tmp_path / "t")
    keys = {"folder": tmp_path / "t", "work": tmp_path / "work", "seed": 0}
    trajectory_vectors(SETTINGS, train, test, **keys)
    with pytest.raises(RunError, match="learned with words 4, and 5 is asked for"):
        trajectory_vectors(SETTINGS.model_copy(update={"words": 5}), train, test, **keys)
    trajectory_vectors(SETTINGS.model_copy(update={"c": 1.0, "kernel": "chi2"}), train, test, **keys)


def test_a_video_without_a_trajectory_is_named(tmp_path: Path) -> None:
    train, test = made_set(tmp_path / "t")
    write_trajectories(tmp_path / "t" / f"{test[3].name}.safetensors", some(0, seed=0, count=0))
    vectors = trajectory_vectors(SETTINGS, train, test, folder=tmp_path / "t", work=tmp_path / "work", seed=0)
    assert vectors.empty == (test[3].name,) and not vectors.test[3].any()


def test_a_class_without_a_training_video_is_the_least_likely(tmp_path: Path) -> None:
    test = [Video(name, tmp_path, (label,)) for name, label in (("a", 0), ("b", 3), ("c", 1))]
    whole = a_set([], test, classes=("w", "x", "y", "z"))
    margins = np.array([[1.0, -2.0], [0.5, -1.0], [-3.0, 0.0]])
    scores = margins_of(margins, test, whole, ["z", "x"], facts={})
    assert np.array_equal(scores.logits[:, [3, 1]], margins) and (scores.logits[:, [0, 2]] == -4).all()
    assert scores.labels == ((0,), (3,), (1,)) and scores.stage == "logits" and np.isnan(scores.probabilities).all()
    with pytest.raises(DataError, match="no test video"):
        margins_of(np.zeros((0, 2)), [], whole, ["z", "x"], facts={})


def test_a_damaged_file_of_others_costs_that_video_alone(tmp_path: Path) -> None:
    videos = [Video(f"A/v_{number}", tmp_path / "none.avi", (0,)) for number in range(2)]
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "v_0.txt").write_text("1\t2\t3\n")
    (tmp_path / "A" / "v_1.txt").write_text("")
    problems = compute_trajectories(videos, tmp_path)
    assert [problem.study for problem in problems] == ["A/v_0"]
    assert "436" in problems[0].reason + problems[0].remedy
    assert (tmp_path / "A" / "v_1.safetensors").is_file()


def test_a_video_that_is_read_at_last_is_learned_from(tmp_path: Path) -> None:
    train, test = made_set(tmp_path / "t")
    keys = {"folder": tmp_path / "t", "work": tmp_path / "work", "seed": 0}
    before = trajectory_vectors(SETTINGS, train[:-1], test[:-1], **keys)
    after = trajectory_vectors(SETTINGS, train, test, **keys)
    anew = trajectory_vectors(SETTINGS, train, test, folder=tmp_path / "t", work=tmp_path / "other", seed=0)
    assert len(before.train) == len(after.train) - 1 and len(before.test) == len(after.test) - 1
    assert after.encoder.digest == anew.encoder.digest != before.encoder.digest
    assert np.array_equal(after.train, anew.train) and np.array_equal(after.test, anew.test)
