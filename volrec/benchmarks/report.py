"""What is said after a benchmark: every number with its full name, the videos behind it, and what made it.

Most of what looks like a bug of a network in this field is a difference of protocol: clip or video accuracy, one split
or three, another decoder, missing videos. So the numbers stand beside the conditions of this run, the published values
with their split and source, and the differences from the paper's protocol. The terminal and ``report.md`` show the same
tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.benchmarks.leaks import SplitCheck
from volrec.benchmarks.metrics import (
    METRICS,
    ClassRow,
    Confusion,
    Interval,
    Measure,
    SplitMean,
    bootstrap_interval,
    class_table,
    confused_pairs,
    metric_of,
)
from volrec.benchmarks.scores import ScoreSet
from volrec.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "CONDITIONS",
    "BenchmarkReport",
    "Published",
    "Result",
    "TextTable",
    "markdown",
    "print_report",
    "report_tables",
    "result_of",
    "write_report",
]

CONDITIONS = {
    "protocol": "protocol",
    "views": "clips × crops",
    "stage": "averaged",
    "fusion": "fusion",
    "evaluated": "videos evaluated",
    "missing": "missing videos",
    "quarantined": "quarantined videos",
    "unlabelled": "videos without a label",
    "split_digest": "digest of the split",
    "class_order": "order of classes",
    "weights": "weights",
    "decoder": "decoder",
    "fps": "frames a second",
    "frames": "frames of these videos",
    "resize": "resize",
    "flow": "flow",
    "c": "C of the SVM",
    "seed": "seed",
}
"""Facts of a score set that are shown, in this order, and what they are called. One that is not there is shown as such
(of `_WHERE_KNOWN`: left out); what a fusion takes over from its streams is shown of these alone.

``views`` is made here of the clips of the videos and the fact ``crops``; ``flow`` is a mapping of ``method`` and
``bound`` (pixels), ``resize`` the order of steps in words.
"""
_WHERE_KNOWN = frozenset({"c", "unlabelled"})
_OF_STREAMS = frozenset({"views", "fps", "frames", "resize", "flow", "seed", "weights"})
UNKNOWN = "not recorded"
LEAK = "LEAK"


@dataclass(frozen=True)
class Result:
    """The numbers of one stream, or of a fusion, on one split.

    Attributes
    ----------
    stream, split_id : str
        Which.
    measures : tuple of Measure
        In the order in which they are shown.
    intervals : mapping
        From the name of a metric to its interval.
    facts : mapping
        Of the score set, with ``views``.
    check : SplitCheck, optional
        What the weights have seen.
    confused : tuple of Confusion
        Pairs that are shown.
    classes : tuple of ClassRow
        Rows that are shown in ``report.md``.
    """

    stream: str
    split_id: str
    measures: tuple[Measure, ...]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    check: SplitCheck | None = None
    confused: tuple[Confusion, ...] = ()
    classes: tuple[ClassRow, ...] = ()


@dataclass(frozen=True)
class Published:
    """A value of a paper in per cent, for which split and metric, and where it stands.

    `split` is ``"1"``, ``"1,2,3"``, ``"val"`` … as `VideoProtocol.splits`; `metric` and `stream` are empty where the
    source does not say, and nothing is then compared with it, nor with one that is not `verified`.
    """

    value: float
    split: str
    source: str
    metric: str = ""
    stream: str = ""
    verified: bool = True


@dataclass(frozen=True)
class TextTable:
    """A table of text: title, headings, rows."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that a report shows.

    Attributes
    ----------
    title : str
        For example ``"TSN on UCF101"``.
    results : tuple of Result
        One a stream and split; fusions after their streams.
    means : mapping
        From stream to its means over splits.
    published : tuple of Published
        Values to stand beside.
    differences : tuple of (str, str, str)
        Field, the paper's, here.
    notes : tuple of str
        Sentences that go with the numbers.
    open : tuple of str
        What the paper leaves open, and what is taken here.
    """

    title: str
    results: tuple[Result, ...]
    means: Mapping[str, Sequence[SplitMean]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    differences: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


def result_of(
    scores: ScoreSet,
    metrics: Sequence[str],
    *,
    groups: Mapping[str, str] | None = None,
    resamples: int = 1000,
    check: SplitCheck | None = None,
    details: bool = False,
) -> Result:
    """Measure scores for a report.

    Parameters
    ----------
    scores : ScoreSet
        Of a stream or a fusion.
    metrics : sequence of str
        Names of `METRICS`, in the order in which they are shown.
    groups : mapping, optional
        From video to group, for the intervals.
    resamples : int
        Of the bootstrap; 0 gives no intervals.
    check : SplitCheck, optional
        What the weights have seen.
    details : bool
        With confusions and a table of classes (one class a video).

    Raises
    ------
    ConfigError, RunError
        As `metric_of`.
    """
    counts = sorted(set(scores.clips.tolist()) - {0})
    clips = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
    views = f"{clips} × {scores.facts.get('crops', UNKNOWN)}" if clips else None
    return Result(
        stream=str(scores.facts.get("stream") or ""),
        split_id=str(scores.facts.get("split_id") or ""),
        measures=tuple(metric_of(scores, name) for name in metrics),
        intervals={
            name: bootstrap_interval(scores, name, groups=groups, resamples=resamples) for name in metrics if resamples
        },
        facts={**scores.facts, **({"views": views} if views else {})},
        check=check,
        confused=tuple(confused_pairs(scores)) if details else (),
        classes=tuple(class_table(scores)) if details else (),
    )


def report_tables(report: BenchmarkReport, *, classes: bool = False) -> list[TextTable]:
    """Return the tables of a report in the order of reading; a table without rows is left out.

    Parameters
    ----------
    report : BenchmarkReport
        What is shown.
    classes : bool
        With the table of classes, which is long.
    """
    tables = [
        TextTable(
            "Results",
            ("split", "stream", "metric", "% [95 % interval]", "n"),
            tuple(row for result in report.results for row in _result_rows(result)),
        ),
        TextTable(
            "Mean over splits, each of the same weight",
            ("stream", "metric", "mean %", "splits (%)", "n"),
            tuple(_mean_row(stream, mean, report) for stream, means in report.means.items() for mean in means),
        ),
        TextTable(
            "Published",
            ("%", "metric", "split", "stream", "here", "source"),
            tuple(_published_row(value, report) for value in report.published),
        ),
        TextTable("Protocol: the paper and here", ("field", "paper", "here"), report.differences),
        TextTable("Conditions", ("what", "value", "of"), tuple(_condition_rows(report.results))),
        TextTable(
            "Most confused",
            ("split", "stream", "class", "taken for", "videos"),
            tuple(
                (result.split_id, result.stream, pair.truth, pair.said, f"{pair.count} of {pair.videos}")
                for result in report.results
                for pair in result.confused
            ),
        ),
    ]
    if classes:
        tables.append(
            TextTable(
                "Classes",
                ("split", "stream", "class", "right", "%", "most often taken for"),
                tuple(_class_row(result, row) for result in report.results for row in result.classes),
            )
        )
    return [table for table in tables if table.rows]


def print_report(report: BenchmarkReport, console: Console) -> None:
    """Print the tables and notes of a report."""
    from rich.padding import Padding
    from rich.text import Text

    from volrec.report.terminal import print_rows

    console.print(report.title, style="bold", markup=False, highlight=False)
    console.print()
    for table in report_tables(report):
        print_rows(table.headings, table.rows, console, title=table.title, plain=True)
        console.print()
    for title, lines in _texts(report):
        console.print(title, style="bold", markup=False, highlight=False)
        for line in lines:
            console.print(Padding(Text(f"- {line}"), (0, 0, 0, 2)))
        console.print()


def markdown(report: BenchmarkReport) -> str:
    """Return a report as Markdown, with the table of classes where there is one."""
    lines = [f"# {report.title}", ""]
    for table in report_tables(report, classes=True):
        lines += [f"## {table.title}", ""]
        lines += [_row(table.headings), _row(["---"] * len(table.headings)), *map(_row, table.rows), ""]
    for title, texts in _texts(report):
        lines += [f"## {title}", "", *(f"- {text}" for text in texts), ""]
    return "\n".join(lines)


def write_report(path: Path | str, report: BenchmarkReport) -> None:
    """Write a report as Markdown, all or nothing."""
    write_atomically(path, markdown(report))


def _result_rows(result: Result) -> Iterable[tuple[str, ...]]:
    evaluated, listed = (result.facts.get(name) for name in ("evaluated", "listed"))
    for measure in result.measures:
        value = f"{100 * measure.value:.2f}"
        interval = result.intervals.get(measure.name)
        if interval and interval.low is not None and interval.high is not None:
            value += f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        if result.check and result.check.state == "leak":
            value += f" {LEAK}"
        videos = measure.count if measure.unit == "videos" or evaluated is None else evaluated - measure.unlabelled
        count = f"{videos:,} of {listed:,} videos" if isinstance(listed, int) else f"{videos:,} videos"
        if measure.unit == "clips":
            count = f"{measure.count:,} clips" + ("" if evaluated is None else f" of {count}")
        count += "" if isinstance(listed, int) else f" (listed: {UNKNOWN})"
        yield result.split_id, result.stream, measure.title, value, count


def _mean_row(stream: str, mean: SplitMean, report: BenchmarkReport) -> tuple[str, ...]:
    parts = ", ".join(f"{_part(each.split_id)}: {100 * each.value:.2f}" for each in mean.splits)
    value = f"{100 * mean.value:.2f}"
    if _leaks(stream, mean, report):
        value += f" {LEAK}"
    if mean.missing:
        parts += f"; without {', '.join(map(_part, mean.missing))}"
    count = " + ".join(f"{each.count:,}" for each in mean.splits)
    return stream, mean.title, value, parts, f"{count} {mean.splits[0].unit}"


def _published_row(published: Published, report: BenchmarkReport) -> tuple[str, ...]:
    """Return a published value beside the one here of the same metric, split and stream, if there is one."""
    found = [
        measure.value
        for result in report.results
        for measure in result.measures
        if (measure.name, _part(result.split_id), result.stream)
        == (published.metric, published.split, published.stream)
        and not (result.check and result.check.state == "leak")
    ]
    found += [
        mean.value
        for stream, means in report.means.items()
        for mean in means
        if not _leaks(stream, mean, report)
        and (mean.name, ",".join(sorted(_part(each.split_id) for each in mean.splits)), stream)
        == (published.metric, published.split, published.stream)
    ]
    here = "not measured here"
    if not published.verified:
        here = "not compared: not verified"
    elif len(found) == 1:
        here = f"{100 * found[0]:.2f} ({100 * found[0] - published.value:+.2f})"
    title = METRICS.get(published.metric, published.metric) or "not said"
    return f"{published.value:g}", title, published.split, published.stream or "-", here, published.source


def _leaks(stream: str, mean: SplitMean, report: BenchmarkReport) -> bool:
    """Tell whether one of the values of a mean is of weights that had seen their test videos."""
    splits = {each.split_id for each in mean.splits}
    own = (result for result in report.results if result.stream == stream and result.split_id in splits)
    return any(result.check is not None and result.check.state == "leak" for result in own)


def _condition_rows(results: Sequence[Result]) -> Iterable[tuple[str, str, str]]:
    """Return what, value and for which streams and splits, a row for each value that differs."""
    for fact, title in CONDITIONS.items():
        groups: dict[str, list[Result]] = {}
        for result in _those_that_know(fact, results):
            groups.setdefault(_condition(fact, result.facts), []).append(result)
        for value, own in groups.items():
            everywhere = len(groups) == 1 and (fact not in _WHERE_KNOWN or len(own) == len(results))
            yield title, value, "all" if everywhere else _which(own)


def _those_that_know(fact: str, results: Sequence[Result]) -> list[Result]:
    """Return the results that a fact is shown of."""
    fused = [isinstance(result.facts.get("fusion"), Mapping) for result in results]
    if fact == "fusion" and any(fused):
        return [result for result, yes in zip(results, fused, strict=True) if yes]
    if fact in _OF_STREAMS and not all(fused):
        results = [result for result, yes in zip(results, fused, strict=True) if not yes]
    if fact in _WHERE_KNOWN:
        return [result for result in results if result.facts.get(fact)]
    if fact == "weights":  # an SVM on trajectories has a vocabulary in place of weights
        results = [result for result in results if not result.facts.get("vocabulary")]
    return list(results)


def _condition(fact: str, facts: Mapping[str, Any]) -> str:
    value = facts.get(fact)
    fused = isinstance(facts.get("fusion"), Mapping)
    if fact == "fusion":
        return _fusion_text(value) if fused and isinstance(value, Mapping) else "none"
    if value is None:
        # What streams differ in is theirs to say.
        return "of its streams" if fused and fact in _OF_STREAMS else UNKNOWN
    if fact == "evaluated":
        listed = facts.get("listed")
        return f"{value:,} of {listed:,} listed" if isinstance(listed, int) else f"{value:,}; listed: {UNKNOWN}"
    if fact == "flow" and isinstance(value, Mapping):
        return f"{value.get('method', UNKNOWN)}, clipped to {value.get('bound', UNKNOWN)} pixels"
    if fact == "weights":
        return f"sha256 {str(value)[:16]}"
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) and fact == "frames" else str(value)


def _fusion_text(fusion: Mapping[str, Any]) -> str:
    streams = list(fusion.get("streams", ()))
    if fusion.get("method") == "svm":
        return f"linear SVM on {', '.join(streams)}, fitted on {fusion.get('fitted_on', UNKNOWN)} training videos"
    weights = list(fusion.get("weights", ()))
    parts = [f"{weight:.3g} {stream}" for weight, stream in zip(weights, streams, strict=False)]
    return f"{' + '.join(parts)} at stage {fusion.get('stage', UNKNOWN)}"


def _which(results: Sequence[Result]) -> str:
    by_stream: dict[str, list[str]] = {}
    for result in results:
        by_stream.setdefault(result.stream, []).append(_part(result.split_id))
    return "; ".join(f"{stream} ({', '.join(splits)})" for stream, splits in by_stream.items())


def _class_row(result: Result, row: ClassRow) -> tuple[str, ...]:
    share = f"{100 * row.recall:.1f}" if row.videos else "-"
    mistaken = f"{row.mistaken_for} ({row.mistaken})" if row.mistaken else "-"
    return result.split_id, result.stream, row.name, f"{row.correct} of {row.videos}", share, mistaken


def _texts(report: BenchmarkReport) -> list[tuple[str, Sequence[str]]]:
    """Return lists of sentences, each under its title."""
    lists = [("What the paper leaves open, and what is taken here", report.open), ("Notes", _notes(report))]
    return [(title, lines) for title, lines in lists if lines]


def _notes(report: BenchmarkReport) -> list[str]:
    notes = list(report.notes)
    for result in report.results:
        where = f"{result.split_id} {result.stream}".strip()
        if result.check and result.check.note:
            notes.append(f"{where}: {result.check.note}.")
        for measure in result.measures:
            if measure.unlabelled:
                notes.append(f"{where}: {_videos(measure.unlabelled)} without a label left out of {measure.title}.")
            if measure.absent:
                names = ", ".join(measure.absent[:5]) + (" …" if len(measure.absent) > 5 else "")
                notes.append(f"{where}: {measure.title} is over classes with videos; without {names}.")
            if measure.ties:
                notes.append(
                    f"{where}: {_videos(measure.ties)} of {measure.title} hung on equal scores; the first name counts."
                )
            interval = result.intervals.get(measure.name)
            if interval and interval.reason:
                notes.append(f"{where}: no interval of {measure.title}, {interval.reason}.")
    if any(interval.low is not None for result in report.results for interval in result.intervals.values()):
        units = sorted({interval.units for result in report.results for interval in result.intervals.values()})
        counts = " to ".join(f"{unit:,}" for unit in dict.fromkeys((units[0], units[-1])))
        notes.append(f"Intervals: bootstrap over {counts} groups of videos; they hold no variance of training.")
    if not report.differences:
        notes.append("No difference from the paper's protocol was recorded.")
    return list(dict.fromkeys(notes))


def _videos(count: int) -> str:
    return f"{count:,} video" if count == 1 else f"{count:,} videos"


def _part(split_id: str) -> str:
    """Return the number of a split without the name of its set."""
    return split_id.partition("/")[2] or split_id


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in cells) + " |"
