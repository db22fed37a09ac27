"""Metrics of video benchmarks against scikit-learn and brute force."""

from __future__ import annotations

import warnings
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from volrec.benchmarks import ScoreSet
from volrec.benchmarks.metrics import (
    METRICS,
    Measure,
    bootstrap_interval,
    class_table,
    confused_pairs,
    mean_over_splits,
    metric_of,
    predictions,
)
from volrec.config import benchmark
from volrec.errors import ConfigError, RunError


def drawn(count: int, classes: int, seed: int = 0, *, unbalanced: bool = True) -> tuple[ScoreSet, np.ndarray]:
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(classes, 0.5)) if unbalanced else np.full(classes, 1 / classes)
    truth = rng.choice(classes, size=count, p=share)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[truth]
    clips = rng.integers(1, 9, size=count)
    names = [f"class-{place:02d}" for place in rng.permutation(classes)]
    scores = ScoreSet.from_arrays(
        [f"v{place}" for place in range(count)],
        names,
        labels=truth.tolist(),
        logits=logits,
        clips=clips,
        clip_hits=rng.binomial(clips, 0.4),
        facts={"split_id": "ucf101/1"},
    )
    return scores, truth


def test_every_word_of_a_protocol_is_a_metric() -> None:
    assert set(METRICS) == set(get_args(benchmark.Metric))


@given(seed=st.integers(0, 10_000), classes=st.integers(6, 12), count=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_metrics_equal_those_of_scikit_learn(seed: int, classes: int, count: int) -> None:
    scores, truth = drawn(count, classes, seed)
    values, every = scores.logits, np.arange(classes)
    for name, k in (("video-top1", 1), ("video-top5", 5), ("video-hit1", 1), ("video-hit5", 5)):
        found = metric_of(scores, name)
        assert found.value == pytest.approx(top_k_accuracy_score(truth, values, k=k, labels=every), abs=1e-12)
        assert (found.count, found.unit, found.ties) == (count, "videos", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that are said and never true
        expected = balanced_accuracy_score(truth, values.argmax(1))
    found = metric_of(scores, "mean-class-accuracy")
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert set(found.absent) == {scores.classes[place] for place in range(classes) if place not in truth}


@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 5]))
@settings(max_examples=40, deadline=None)
def test_hits_of_several_labels_with_ties_equal_a_slow_count(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    classes = [f"class-{place}" for place in rng.permutation(7)]
    logits = rng.integers(0, 4, size=(20, 7)).astype(float)  # full of ties
    labels = [tuple(rng.choice(7, size=rng.integers(0, 4), replace=False).tolist()) for _ in range(20)]
    labels[0] = (3,)
    scores = ScoreSet.from_arrays([f"v{place}" for place in range(20)], classes, labels=labels, logits=logits)
    hits, ties = [], []
    for row, own in zip(logits, labels, strict=True):
        if not own:
            continue
        order = sorted(range(7), key=lambda place: (-row[place], classes[place]))
        hits.append(bool(set(order[:k]) & set(own)))
        # With true classes put before, and behind, all others of the same score.
        best, worst = (sorted(range(7), key=lambda place: (-row[place], (place in own) * sign)) for sign in (-1, 1))
        ties.append(bool(set(best[:k]) & set(own)) != bool(set(worst[:k]) & set(own)))
    found = metric_of(scores, f"video-hit{k}")
    assert found.value == pytest.approx(np.mean(hits)) and found.ties == sum(ties)
    assert found.count == len(hits) and found.unlabelled == 20 - len(hits)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_no_metric_hangs_on_the_order_of_classes_or_videos(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, videos = [f"class-{place}" for place in range(8)], [f"v{place}" for place in range(15)]
    logits, labels = rng.integers(0, 3, size=(15, 8)).astype(float), rng.integers(0, 8, size=15)
    columns, rows = rng.permutation(8), rng.permutation(15)
    one = ScoreSet.from_arrays(videos, classes, labels=labels.tolist(), logits=logits)
    other = ScoreSet.from_arrays(
        [videos[row] for row in rows],
        [classes[column] for column in columns],
        labels=[classes[labels[row]] for row in rows],
        logits=logits[np.ix_(rows, columns)],
    )
    for name in ("video-top1", "video-top5", "mean-class-accuracy", "video-hit1", "video-hit5"):
        assert metric_of(one, name).value == pytest.approx(metric_of(other, name).value, abs=1e-12)
        assert metric_of(one, name).ties == metric_of(other, name).ties
    assert confused_pairs(one, most=99) == confused_pairs(other, most=99)
    said = {name: other.classes[place] for name, place in zip(other.videos, predictions(other), strict=True)}
    assert said == {name: one.classes[place] for name, place in zip(one.videos, predictions(one), strict=True)}


def test_clip_metrics_take_each_clip_as_a_sample() -> None:
    scores = ScoreSet.from_arrays(
        ["long", "short", "unknown"],
        ["a", "b"],
        labels=[0, 1, ()],
        logits=[[1, 0], [1, 0], [1, 0]],
        clips=[30, 2, 50],
        clip_hits=[15, 0, 0],
    )
    found = metric_of(scores, "clip-top1")
    assert (found.value, found.count, found.unit, found.unlabelled) == (15 / 32, 32, "clips", 1)
    assert metric_of(scores, "clip-hit1").value == 15 / 32
    assert metric_of(scores, "video-top1").value == 0.5


def test_the_stage_decides_which_scores_are_measured() -> None:
    arrays = {"logits": [[2.0, 1.0]], "probabilities": [[0.4, 0.6]]}
    values = [
        metric_of(ScoreSet.from_arrays(["v"], ["a", "b"], labels=[0], stage=stage, **arrays), "video-top1").value
        for stage in ("logits", "softmax")
    ]
    assert values == [1.0, 0.0]


def test_mean_class_accuracy_is_top1_on_a_balanced_set_only() -> None:
    def both(labels: list[int], said: list[int]) -> tuple[float, float]:
        scores = ScoreSet.from_arrays(
            [f"v{place}" for place in range(len(labels))], ["a", "b", "c"], labels=labels, logits=np.eye(3)[said]
        )
        return metric_of(scores, "video-top1").value, metric_of(scores, "mean-class-accuracy").value

    assert both([0, 0, 1, 1], [0, 0, 1, 2]) == (0.75, 0.75)
    assert both([0, 0, 0, 1], [0, 0, 0, 2]) == (0.75, 0.5)


def test_a_metric_that_means_one_class_refuses_several() -> None:
    scores = ScoreSet.from_arrays(["v"], ["a", "b"], labels=[(0, 1)], logits=[[1, 0]])
    for name in ("video-top1", "video-top5", "clip-top1", "mean-class-accuracy"):
        with pytest.raises(RunError, match="1 of 1 videos have several classes"):
            metric_of(scores, name)
    assert metric_of(scores, "video-hit1").value == 1


def test_what_cannot_be_measured_is_said() -> None:
    scores = ScoreSet.from_arrays(["v"], ["a", "b"], labels=[0], logits=[[1, 0]])
    with pytest.raises(ConfigError, match="video-top1"):
        metric_of(scores, "accuracy")
    with pytest.raises(RunError, match="single clips"):
        metric_of(scores, "clip-top1")
    with pytest.raises(RunError, match="label"):
        metric_of(ScoreSet.from_arrays(["v"], ["a", "b"], labels=[()], logits=[[1, 0]]), "video-top1")


def test_splits_have_equal_weight_whatever_their_size() -> None:
    sizes, values = (3783, 3734, 3696), (0.9, 0.5, 0.4)
    measures = [
        Measure("video-top1", "video top-1", value, size, "videos", split_id=f"ucf101/{number}")
        for number, (size, value) in enumerate(zip(sizes, values, strict=True), start=1)
    ]
    wanted = ("ucf101/1", "ucf101/2", "ucf101/3")
    mean = mean_over_splits(measures, wanted=wanted)
    assert mean.value == pytest.approx(0.6, abs=1e-12) and not mean.missing
    assert [split.value for split in mean.splits] == list(values)
    assert mean_over_splits(measures[:2], wanted=wanted).missing == ("ucf101/3",)
    for wrong, says in (
        ([], "none"),
        ([measures[0]] * 2, "twice"),
        ([measures[0], Measure("video-top5", "", 0.1, 1, "videos", split_id="ucf101/2")], "one metric"),
        ([Measure("video-top1", "", 0.1, 1, "videos", split_id="hmdb51/1")], "hmdb51/1"),
    ):
        with pytest.raises(RunError, match=says):
            mean_over_splits(wrong, wanted=wanted)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_tables_of_classes_and_confusions_equal_scikit_learn(seed: int) -> None:
    scores, truth = drawn(40, 6, seed)
    said = scores.logits.argmax(1)
    counts = confusion_matrix(truth, said, labels=np.arange(6))
    rows = class_table(scores)
    assert [row.videos for row in rows] == counts.sum(1).tolist()
    recalls = recall_score(truth, said, labels=np.arange(6), average=None, zero_division=np.nan)
    np.testing.assert_allclose([row.recall for row in rows], recalls)
    found = {(pair.truth, pair.said): pair.count for pair in confused_pairs(scores, most=99)}
    places = {name: place for place, name in enumerate(scores.classes)}
    assert sum(found.values()) == (truth != said).sum()
    assert all(counts[places[true], places[other]] == count for (true, other), count in found.items())
    ordered = [pair.count for pair in confused_pairs(scores)]
    assert ordered == sorted(ordered, reverse=True) and len(ordered) <= 10
    for row in rows:
        others = {other: count for (true, other), count in found.items() if true == row.name}
        assert row.mistaken == max(others.values(), default=0)
        assert not row.mistaken_for or others[row.mistaken_for] == row.mistaken


@pytest.mark.parametrize("name", ["video-top1", "video-top5", "mean-class-accuracy", "clip-top1"])
def test_the_interval_equals_groups_drawn_one_by_one(name: str) -> None:
    scores, truth = drawn(30, 6, 4)
    owners = {video: f"g{place % 7}" for place, video in enumerate(scores.videos)}
    found = bootstrap_interval(scores, name, groups=owners, resamples=200, seed=5)
    names = sorted(set(owners.values()))
    rng = np.random.default_rng(5)
    values = []
    for counts in rng.multinomial(7, np.full(7, 1 / 7), size=200):
        rows = [
            place
            for group, times in zip(names, counts, strict=True)
            for place in [row for row, video in enumerate(scores.videos) if owners[video] == group] * times
        ]
        said = scores.logits[rows]
        if name == "mean-class-accuracy":
            values.append(recall_score(truth[rows], said.argmax(1), labels=np.unique(truth[rows]), average="macro"))
        elif name == "clip-top1":
            values.append(scores.clip_hits[rows].sum() / scores.clips[rows].sum())
        elif name == "video-top1":
            values.append(accuracy_score(truth[rows], said.argmax(1)))
        else:
            values.append(top_k_accuracy_score(truth[rows], said, k=5, labels=np.arange(6)))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12)
    assert found.units == 7 and found.low <= metric_of(scores, name).value <= found.high


def test_videos_of_one_film_widen_the_interval() -> None:
    labels = [0] * 40
    said = np.repeat([0, 1, 0, 0, 1, 0, 1, 0], 5)  # the five clips of a film fail together
    videos = [f"v{place}" for place in range(40)]
    scores = ScoreSet.from_arrays(videos, ["a", "b"], labels=labels, logits=np.eye(2)[said])
    groups = {video: f"film-{place // 5}" for place, video in enumerate(videos)}
    alone, together = bootstrap_interval(scores, "video-top1"), bootstrap_interval(scores, "video-top1", groups=groups)
    assert (alone.units, together.units) == (40, 8)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    single = bootstrap_interval(scores, "video-top1", groups=dict.fromkeys(videos, "film"))
    assert single.low is None and "single group" in single.reason
