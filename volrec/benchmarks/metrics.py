"""Metrics of a video benchmark by their full names: what papers report under one word differs by ten points.

Clip and video metrics, top-1 and mean class accuracy are kept apart, and no value goes without the number of videos or
clips behind it. Of equal scores the class whose *name* comes first in the alphabet counts as the better one, so that
neither the order of classes nor that of videos changes a figure; how many videos hung on that is said (`Measure.ties`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from volrec.benchmarks.scores import ScoreSet
from volrec.errors import ConfigError, RunError

__all__ = [
    "METRICS",
    "ClassRow",
    "Confusion",
    "Interval",
    "Measure",
    "SplitMean",
    "bootstrap_interval",
    "class_table",
    "confused_pairs",
    "mean_over_splits",
    "metric_of",
    "predictions",
]

Array = NDArray[np.float64]

METRICS = {
    "clip-top1": "clip top-1",
    "video-top1": "video top-1",
    "video-top5": "video top-5",
    "mean-class-accuracy": "mean class accuracy",
    "clip-hit1": "clip hit@1",
    "video-hit1": "video hit@1",
    "video-hit5": "video hit@5",
}
"""What `volrec.config.benchmark.Metric` is called in tables."""
_TOP = {"video-top1": 1, "video-top5": 5, "video-hit1": 1, "video-hit5": 5}
_ROWS = 4096  # videos looked at together: 16 MB of flags for a thousand classes
_CHUNK = 4_000_000  # weights of resamples held at once (32 MB)


@dataclass(frozen=True)
class Measure:
    """One metric of one score set.

    Attributes
    ----------
    name, title : str
        ``"video-top1"``, ``"video top-1"``.
    value : float
        0 to 1.
    count : int
        Videos, or clips, that it is over.
    unit : {"videos", "clips"}
        Which of the two.
    unlabelled : int
        Videos left out for want of a label.
    absent : tuple of str
        Classes without a video (mean class accuracy: left out of the mean).
    ties : int
        Videos whose answer hung on the order of names, since scores were equal.
    split_id : str
        Of the facts; empty where they have none.
    """

    name: str
    title: str
    value: float
    count: int
    unit: str
    unlabelled: int = 0
    absent: tuple[str, ...] = ()
    ties: int = 0
    split_id: str = ""


@dataclass(frozen=True)
class SplitMean:
    """A metric over several splits, each of the same weight.

    Attributes
    ----------
    name, title : str
        As of the measures.
    value : float
        Plain mean of the values of the splits, whatever their sizes.
    splits : tuple of Measure
        One a split.
    missing : tuple of str
        Splits that the paper's mean has and this one lacks.
    """

    name: str
    title: str
    value: float
    splits: tuple[Measure, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A 95 % interval by bootstrap: `units` groups drawn `resamples` times, or why there is none."""

    low: float | None
    high: float | None
    units: int
    resamples: int
    reason: str = ""


@dataclass(frozen=True)
class ClassRow:
    """A class: its videos, how many were told right, and what the others were most often taken for."""

    name: str
    videos: int
    correct: int
    mistaken_for: str = ""
    mistaken: int = 0

    @property
    def recall(self) -> float:
        """Share of its videos told right; NaN without any."""
        return self.correct / self.videos if self.videos else float("nan")


@dataclass(frozen=True)
class Confusion:
    """`count` of the `videos` of class `truth` were taken for `said`."""

    truth: str
    said: str
    count: int
    videos: int


def metric_of(scores: ScoreSet, name: str) -> Measure:
    """Return one metric of scores.

    Parameters
    ----------
    scores : ScoreSet
        At the stage of its protocol.
    name : str
        One of `METRICS`. ``clip-top1`` takes each clip as a sample; ``video-top1`` and ``-top5`` ask for the true class
        among the k best of a video; ``mean-class-accuracy`` is the mean over classes of the share of their videos told
        right (what TSN reports); ``hit`` is for videos with several classes, any of which may be among the k best
        (Karpathy et al. 2014).

    Raises
    ------
    ConfigError
        An unknown metric.
    RunError
        Nothing to compute it from: no labelled video, no counts of clips, or several classes a video where the metric
        means one.
    """
    if name not in METRICS:
        raise ConfigError(
            f"there is no metric {name!r}.",
            remedy=f"Known metrics: {', '.join(METRICS)}.",
            where="metric",
            code="metric",
        )
    several = sum(len(own) > 1 for own in scores.labels)
    if several and "hit" not in name:
        other = name.replace("top", "hit") if "top" in name else "video-hit1"
        raise RunError(
            f"{several} of {len(scores.videos)} videos have several classes, and {METRICS[name]} means one.",
            remedy=f"Ask for {other}.",
            code="metric",
        )
    known = _labelled(scores)
    left_out = len(scores.videos) - len(known)
    blank = Measure(
        name, METRICS[name], np.nan, 0, "videos", left_out, split_id=str(scores.facts.get("split_id") or "")
    )
    if name.startswith("clip-"):
        clips = int(scores.clips[known].sum())
        if not clips:
            raise RunError(
                "these scores know nothing of single clips: they are fused, or others made them.",
                remedy="Ask for a metric of videos, or take the scores of one stream.",
                code="metric",
            )
        value = int(scores.clip_hits[known].sum()) / clips
        return replace(blank, value=value, count=clips, unit="clips")
    k = _TOP.get(name, 1)
    hits, ties = _hits(scores, known, k)
    measured = replace(blank, count=len(known), ties=int(ties.sum()))
    if name != "mean-class-accuracy":
        return replace(measured, value=float(hits.mean()))
    truth = _truth(scores, known)
    videos = np.bincount(truth, minlength=len(scores.classes))
    recall = np.bincount(truth, weights=hits, minlength=len(videos))[videos > 0] / videos[videos > 0]
    absent = tuple(label for label, number in zip(scores.classes, videos, strict=True) if not number)
    return replace(measured, value=float(recall.mean()), absent=absent)


def mean_over_splits(measures: Sequence[Measure], *, wanted: Sequence[str] = ()) -> SplitMean:
    """Return the mean of a metric over splits, as papers report it on UCF101 and HMDB51.

    Parameters
    ----------
    measures : sequence of Measure
        One a split.
    wanted : sequence of str
        Identities of the splits that the mean should have (``ucf101/1`` …).

    Raises
    ------
    RunError
        No measure, several metrics, a split twice or one that is not wanted.
    """
    names = sorted({measure.name for measure in measures})
    splits = [measure.split_id for measure in measures]
    twice = sorted({split for split in splits if splits.count(split) > 1})
    strange = [split for split in splits if wanted and split not in wanted]
    if len(names) != 1:
        problem = f"a mean over splits is of one metric, got {', '.join(names) or 'none'}."
    elif twice:
        problem = f"split {twice[0] or 'without a name'} stands in the mean twice."
    elif strange:
        problem = f"split {strange[0]} is none of {', '.join(wanted)}."
    else:
        value = float(np.mean([measure.value for measure in measures]))
        missing = tuple(split for split in wanted if split not in splits)
        return SplitMean(names[0], measures[0].title, value, tuple(measures), missing)
    raise RunError(problem, remedy="Give one value of the same metric for each split.", code="splits")


def bootstrap_interval(
    scores: ScoreSet, name: str, *, groups: Mapping[str, str] | None = None, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the 95 % interval of a video metric, by drawing groups of videos with replacement.

    Parameters
    ----------
    scores : ScoreSet
        Scores.
    name : str
        A metric of videos.
    groups : mapping, optional
        From video to what it was cut from (`Video.group`): the clips of one film are no independent samples. A video
        that is not in it, or all of them without, are groups of their own.
    resamples, seed : int
        Number of draws, and their seed.

    Raises
    ------
    ConfigError, RunError
        As `metric_of`.
    """
    metric_of(scores, name)
    known = _labelled(scores)
    own = [(groups or {}).get(scores.videos[place], "") or f"\0{scores.videos[place]}" for place in known]
    _, owners = np.unique(np.array(own), return_inverse=True)
    count = int(owners.max()) + 1
    if name.startswith("clip-"):
        parts, total = scores.clip_hits[known][:, None], scores.clips[known][:, None]
    else:
        hits, _ = _hits(scores, known, _TOP.get(name, 1))
        total = np.ones((len(known), 1))
        if name == "mean-class-accuracy":
            total = np.eye(len(scores.classes))[_truth(scores, known)]
        parts = total * hits[:, None]
    if count < 2 or resamples < 1:
        reason = "there is a single group of videos" if count < 2 else "no resamples were drawn"
        return Interval(None, None, count, resamples, reason)
    # Sums a group: a resample is a vector of how often each group was drawn.
    gained, given = (np.stack([np.bincount(owners, column, count) for column in both.T], 1) for both in (parts, total))
    rng = np.random.default_rng(seed)
    values: list[Array] = []
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start)).astype(np.float64)
        right, of = drawn @ gained, drawn @ given
        share = np.divide(right, of, out=np.full(of.shape, np.nan), where=of > 0)
        values.append(np.nanmean(share, axis=1))  # classes that were not drawn are left out; some class always was
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return Interval(float(low), float(high), count, resamples)


def predictions(scores: ScoreSet) -> NDArray[np.int64]:
    """Return the best class of each video (N,), places in `classes`; of equal ones that whose name comes first."""
    by_name = np.array(sorted(range(len(scores.classes)), key=scores.classes.__getitem__), dtype=np.int64)
    return by_name[np.argmax(scores.scores[:, by_name], axis=1)] if len(scores.videos) else np.empty(0, np.int64)


def class_table(scores: ScoreSet) -> list[ClassRow]:
    """Return a row a class in the order of the classes, absent ones too; for videos of one class each.

    Raises
    ------
    RunError
        As `metric_of` with ``mean-class-accuracy``.
    """
    counts = _confusion(scores)
    rows = []
    for place, name in enumerate(scores.classes):
        others = counts[place].copy()
        others[place] = 0
        worst = min(range(len(others)), key=lambda other: (-others[other], scores.classes[other]))
        mistaken = int(others[worst])
        videos, correct = int(counts[place].sum()), int(counts[place, place])
        rows.append(ClassRow(name, videos, correct, scores.classes[worst] if mistaken else "", mistaken))
    return rows


def confused_pairs(scores: ScoreSet, *, most: int = 10) -> list[Confusion]:
    """Return which class was most often taken for which other one, the worst first, then by name.

    Raises
    ------
    RunError
        As `metric_of` with ``mean-class-accuracy``.
    """
    counts = _confusion(scores)
    videos = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    found = [
        Confusion(scores.classes[truth], scores.classes[said], int(counts[truth, said]), int(videos[truth]))
        for truth, said in np.argwhere(counts > 0)
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.truth, pair.said))[:most]


def _confusion(scores: ScoreSet) -> NDArray[np.int64]:
    """Return counts (K, K): true class, class that was said."""
    metric_of(scores, "mean-class-accuracy")
    known = _labelled(scores)
    counts = np.zeros((len(scores.classes),) * 2, dtype=np.int64)
    np.add.at(counts, (_truth(scores, known), predictions(scores)[known]), 1)
    return counts


def _labelled(scores: ScoreSet) -> NDArray[np.int64]:
    """Return the places of videos with a label."""
    known = np.flatnonzero([bool(own) for own in scores.labels])
    if not len(known):
        raise RunError(
            f"none of the {len(scores.videos)} videos has a label.",
            remedy="Nothing can be measured on them; test on videos with known classes.",
            code="metric",
        )
    return known


def _truth(scores: ScoreSet, known: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array([scores.labels[place][0] for place in known], dtype=np.int64)


def _hits(scores: ScoreSet, known: NDArray[np.int64], k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for each labelled video whether a true class is among its k best, and whether that hung on a tie."""
    order = np.empty(len(scores.classes), dtype=np.int64)
    order[sorted(range(len(scores.classes)), key=scores.classes.__getitem__)] = np.arange(len(scores.classes))
    hits, ties = np.zeros(len(known), dtype=bool), np.zeros(len(known), dtype=bool)
    for start in range(0, len(known), _ROWS):
        part = known[start : start + _ROWS]
        values = scores.scores[part]
        true = np.zeros(values.shape, dtype=bool)
        for row, place in enumerate(part):
            true[row, list(scores.labels[place])] = True
        best = np.where(true, values, -np.inf).max(axis=1, keepdims=True)
        better = (values > best).sum(axis=1)
        rivals = (values == best) & ~true
        first = np.where(true & (values == best), order, len(order)).min(axis=1, keepdims=True)
        hits[start : start + len(part)] = better + (rivals & (order < first)).sum(axis=1) < k
        ties[start : start + len(part)] = (better < k) & (better + rivals.sum(axis=1) >= k)
    return hits, ties
