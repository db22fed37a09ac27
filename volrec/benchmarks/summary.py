"""What a run comes to: metrics of its scores, the report, and all in which it differs from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from volrec.benchmarks.conditions import condition_deviations, condition_notes, conditions
from volrec.benchmarks.metrics import METRICS, mean_over_splits, metric_of
from volrec.benchmarks.protocol import list_protocols
from volrec.benchmarks.publications import SOURCES, load_published
from volrec.benchmarks.report import BenchmarkReport, Published, Result, result_of
from volrec.benchmarks.results import BenchmarkResult, Deviation, SplitResult
from volrec.benchmarks.scores import ScoreSet
from volrec.benchmarks.sets import VideoSet
from volrec.benchmarks.split_run import Net, SplitRun
from volrec.benchmarks.views import differences, scaled
from volrec.config import BenchmarkConfig, VideoProtocol

__all__ = ["build_report", "facts_of_weights", "results_of", "split_result", "training_videos", "with_pictures"]

SINGLE_LABEL = ("video-top1", "video-top5", "mean-class-accuracy")
SEVERAL_LABELS = ("video-hit1", "video-hit5")
FIVE = 5
DONE = 100
"""Per cent."""


def split_result(videos: VideoSet, whole: ScoreSet, parts: Sequence[ScoreSet]) -> SplitResult:
    """Return the numbers of a split, of the whole system and of its parts."""
    return SplitResult(
        id=videos.split.id,
        digest=videos.split.digest,
        official=videos.split.official,
        evaluated=len(whole.videos),
        listed=videos.split.listed[1],
        metrics=_measured(videos, whole),
        streams={str(one.facts["stream"]): _measured(videos, one) for one in parts},
    )


def _measured(videos: VideoSet, scores: ScoreSet) -> dict[Any, float]:
    return {name: DONE * metric_of(scores, name).value for name in _names(videos, scores)}


def _names(videos: VideoSet, scores: ScoreSet) -> list[str]:
    """Return the metrics of scores: of clips too, where clips were scored."""
    names = list(SEVERAL_LABELS if videos.multilabel else SINGLE_LABEL)
    # The best five of five classes are all of them.
    names = [name for name in names if len(scores.classes) > FIVE or not name.endswith("5")]
    if scores.clips.size and scores.clips.all():
        names.append("clip-hit1" if videos.multilabel else "clip-top1")
    return names


def results_of(videos: VideoSet, whole: ScoreSet, parts: Sequence[ScoreSet], nets: Sequence[Net]) -> list[Result]:
    """Return what is shown of a split: its parts, the whole system last."""
    groups = {video.name: video.group or video.name for video in videos.split.test}
    checks = {net.stream.name: net.check for net in nets}
    # A fusion is as bad as the worst of its streams.
    worst = min((net.check for net in nets if net.check.note), key=lambda check: check.state != "leak", default=None)
    return [
        result_of(
            scores,
            _names(videos, scores),
            groups={name: groups[name] for name in scores.videos},
            check=checks.get(str(scores.facts["stream"]), worst),
            details=scores is whole and not videos.multilabel,
        )
        for scores in (*parts, whole)
    ]


def build_report(
    config: BenchmarkConfig,
    paper: VideoProtocol,
    shown: Sequence[Result],
    result: BenchmarkResult,
    *,
    notes: Sequence[str] = (),
) -> BenchmarkReport:
    """Return what is shown of a run.

    Parameters
    ----------
    config : BenchmarkConfig
        Of the run.
    paper : VideoProtocol
        The paper's protocol.
    shown : sequence of Result
        Streams and fusions, split by split; the whole system is the last of a split.
    result : BenchmarkResult
        The numbers, with all that differs from the paper.
    notes : sequence of str
        Further sentences.
    """
    means: dict[str, list[Any]] = {}
    for stream in dict.fromkeys(one.stream for one in shown):
        own = [one for one in shown if one.stream == stream]
        names = [measure.name for measure in own[0].measures]
        means[stream] = [
            mean_over_splits([next(m for m in one.measures if m.name == name) for one in own]) for name in names
        ]
    published = [
        Published(
            value=entry.value,
            split=entry.split,
            source=f"{entry.paper}: {entry.variant} ({SOURCES[entry.source]})",
            metric=entry.metric,
            stream=entry.stream or shown[-1].stream,
            verified=entry.verified,
        )
        for entry in load_published()
        if entry.protocol == result.protocol and entry.dataset == config.dataset
    ]
    return BenchmarkReport(
        title=f"{paper.system} on {config.dataset}: protocol {result.protocol} ({paper.paper})",
        results=tuple(shown),
        means=means if len(result.splits) > 1 else {},
        published=tuple(published),
        differences=_difference_rows(config, paper, result),
        open=tuple(paper.open),
        notes=(*_headline(config, paper), *notes),
    )


def _headline(config: BenchmarkConfig, paper: VideoProtocol) -> tuple[str, ...]:
    """Say what the paper's number is, where this run has another set or other splits."""
    if paper.name not in list_protocols():
        return (
            f"{paper.name} extends none of the papers' protocols: there is nothing that it could differ from, and no "
            "published number to compare with.",
        )
    splits = paper.splits.split(",")
    what = f"the mean of {METRICS[paper.metric]} over splits {paper.splits}" if len(splits) > 1 else ""
    what = what or f"{METRICS[paper.metric]} on split {paper.splits}"
    if config.dataset not in paper.datasets:
        return (f"The paper's number is {what} of {' and '.join(paper.datasets)}; no number here compares with it.",)
    if list(config.splits) != splits:
        return (f"The paper's number is {what}; this run has split {', '.join(config.splits)}.",)
    return ()


def _difference_rows(
    config: BenchmarkConfig, paper: VideoProtocol, result: BenchmarkResult
) -> tuple[tuple[str, str, str], ...]:
    """Return field, the paper's and here: streams that differ in the same way, and all that follows from size, once."""
    shrunk: dict[str, Any] = {}
    if config.scale != 1 or config.width != 1:
        small = scaled(paper, scale=config.scale, width=config.width)
        shrunk = {one.field: _text(one.here) for one in differences(paper, small)}
    rows: dict[tuple[str, str, str], list[str]] = {}
    by_size: dict[tuple[str, str, str], list[str]] = {}
    for one in result.differences:
        if one.field in ("scale", "width"):
            continue
        paper_says, here = _text(one.paper), _text(one.here)
        head, _, key = one.field.partition(".")
        name, _, key = key.partition(".")
        known = by_size if shrunk.get(one.field) == here else rows
        if head == "streams" and key:
            known.setdefault((key, paper_says, here), []).append(name)
        else:
            known.setdefault((one.field, paper_says, here), []).append("")
    every = [stream.name for stream in config.protocol.streams]
    found = [(_of_streams(key, names, every), paper_says, here) for (key, paper_says, here), names in rows.items()]
    if shrunk:
        names = [_of_streams(key, streams, every) for (key, _, _), streams in by_size.items()]
        size = f"width {config.width:g}, scale {config.scale:g}"
        before = "; ".join(f"{name} {key[1]}" for name, key in zip(names, by_size, strict=True))
        after = "; ".join(f"{name} {key[2]}" for name, key in zip(names, by_size, strict=True))
        found.insert(0, (size, before or "1", after or size))
    return tuple(found)


def _of_streams(key: str, names: Sequence[str], every: Sequence[str]) -> str:
    """Return a key of a protocol with the streams that it is of, where these are not all."""
    return f"{', '.join(names)}: {key}" if all(names) and list(names) != list(every) else key


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(one) for one in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def facts_of_weights(nets: Sequence[Net]) -> list[Deviation]:
    """Return what given weights leave unknown, once a stream."""
    facts: dict[str, Deviation] = {}
    for net in nets:
        name = f"streams.{net.stream.name}.weights"
        if net.given:
            facts[name] = Deviation(field=name, paper="trained as the paper says", here=f"given: {net.used.file}")
            if not net.card.get("classes"):
                facts[f"{name}.classes"] = Deviation(
                    field=f"{name}.classes", paper="known", here="not said: taken in the order of the set"
                )
        facts |= {one.field: one for one in net.fed}
        if net.check.note:
            facts[f"{name}.split {net.used.split}"] = Deviation(
                field=f"{name}.split", paper=net.used.split, here=net.check.note
            )
    return list(facts.values())


def training_videos(works: Sequence[SplitRun], nets: Sequence[Net]) -> list[Deviation]:
    """Return how many videos were learned from here, where these are not all that the lists have, over all splits."""
    protocol = works[0].config.protocol
    if protocol.features is None and protocol.trajectories is None and all(net.given for net in nets):
        return []
    listed = used = 0
    for work in works:
        lost = {problem.study for problem in work.problems if problem.fatal and problem.study}
        listed += work.videos.split.listed[0]
        used += sum(video.name not in lost for video in work.videos.split.train)
    return [Deviation(field="training videos", paper=listed, here=used)] if used < listed else []


def with_pictures(
    found: Sequence[Deviation], works: Sequence[SplitRun], protocol: VideoProtocol
) -> tuple[list[Deviation], list[str]]:
    """Return deviations with those of extracted pictures among them, and sentences on how these were made."""
    folder = works[0].config.extracted
    videos = list({video.name: video for work in works for video in work.videos.split.test}.values())
    if folder is None:
        return list(found), []
    made = conditions(folder, videos)
    whole = list(found)
    for one in condition_deviations(made, protocol.streams):
        # What the pictures are counts, not what the protocol of the run asked for.
        place = next((number for number, known in enumerate(whole) if known.field == one.field), None)
        if place is None:
            whole.append(one)
        else:
            whole[place] = Deviation(field=one.field, paper=whole[place].paper, here=one.here)
    return whole, condition_notes(made)
