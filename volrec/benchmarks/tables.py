"""The tables of published numbers, beside what was reproduced here: a number of a run, or *not run*.

Nothing is ever filled in: a reproduction is the number of a ``benchmark.json`` whose data set, official splits,
protocol and metric are those of the published result. What a run did otherwise is counted beside its number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.benchmarks.publications import (
    SOURCES,
    SURVEY,
    PublishedResult,
    SurveyRow,
    find_published,
    load_published,
    load_survey,
    same_system,
)
from volrec.benchmarks.results import BenchmarkResult, SplitResult
from volrec.errors import ConfigError
from volrec.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "NOT_RUN",
    "PublishedTable",
    "Reproduction",
    "Row",
    "markdown",
    "print_tables",
    "published_tables",
    "reproduction",
    "unplaced",
    "write_csv",
]

NOT_RUN = "not run"
"""What stands in place of a number that no run gave."""

WIDE = 112
"""Columns of a terminal from which on facts of the published number have columns of their own."""

METRICS = {
    "clip-top1": "clip top-1",
    "video-top1": "video top-1",
    "video-top5": "video top-5",
    "mean-class-accuracy": "class mean",
    "clip-hit1": "clip hit@1",
    "video-hit1": "video hit@1",
    "video-hit5": "video hit@5",
    "group-map": "group mAP",
    "map": "mAP",
    "weighted-map": "wAP",
    "bleu4": "BLEU-4",
    "meteor": "METEOR",
    "cider": "CIDEr",
}
"""Names of metrics in tables; others are called as they are."""

DATASETS = {"ucf101": "UCF101", "hmdb51": "HMDB51", "kinetics": "Kinetics", "sports1m": "Sports-1M"}
"""Names of data sets in tables; others are called as they are."""

TEST_VIDEOS = {
    "ucf101/1": 3783,
    "ucf101/2": 3734,
    "ucf101/3": 3696,
    "hmdb51/1": 1530,
    "hmdb51/2": 1530,
    "hmdb51/3": 1530,
}
"""Videos that official test lists name (counted from the lists); shortened lists of UCF101 are in circulation."""

COLUMNS = (
    "table", "system", "variant", "dataset", "survey", "paper", "published", "split", "metric", "source", "verified",
    "reproduced", "difference", "date", "weights", "evaluated", "listed", "deviations", "protocol", "stream", "run",
    "note", "key",
)  # fmt: skip
"""Of the CSV file."""


@dataclass(frozen=True)
class Reproduction:
    """What one run gives for a published result.

    Attributes
    ----------
    result : BenchmarkResult
        The run.
    value : float
        Its number on the result's splits, percent.
    evaluated, listed : int
        Test videos of these splits.
    difference : float or None
        `value` less the published one, points; None where that is not verified.
    """

    result: BenchmarkResult
    value: float
    evaluated: int
    listed: int
    difference: float | None

    @property
    def deviations(self) -> int:
        """In how many things the run differs from the paper's protocol."""
        return len(self.result.differences)

    @property
    def weights(self) -> str:
        """Where the weights come from: ``trained here``, ``given``, or both."""
        return " and ".join(sorted({weights.origin for weights in self.result.weights}, reverse=True)) or "no weights"

    @property
    def run(self) -> str:
        """Name of the run folder."""
        return "" if self.result.folder is None else self.result.folder.name


@dataclass(frozen=True)
class Row:
    """One published result, in the survey or in a paper, and what was reproduced of it.

    Attributes
    ----------
    system, variant : str
        What the number is of.
    survey : SurveyRow or None
        What the survey says.
    published : PublishedResult or None
        What the paper says.
    reproductions : tuple of Reproduction
        All runs of it, fewest deviations first, then latest; empty: not run.
    """

    system: str
    variant: str
    survey: SurveyRow | None
    published: PublishedResult | None
    reproductions: tuple[Reproduction, ...]

    @property
    def note(self) -> str:
        """What a reader must know of either number."""
        notes = [entry.note for entry in (self.survey, self.published) if entry is not None and entry.note]
        if self.survey is not None and self.published is not None and self.survey.split != self.published.split:
            notes.insert(0, f"the survey heads it split {self.survey.split}, the paper's is {self.published.split}")
        return " ".join(note if note.endswith(".") else f"{note}." for note in notes)


@dataclass(frozen=True)
class PublishedTable:
    """Rows under one title.

    Attributes
    ----------
    title : str
        Of the table.
    rows : tuple of Row
        In the order of their source.
    surveyed : bool
        Whether the survey's numbers are a column of it.
    """

    title: str
    rows: tuple[Row, ...]
    surveyed: bool


def reproduction(published: PublishedResult, result: BenchmarkResult) -> Reproduction | None:
    """Return what a run gives for a published result, or None where it does not stand for it.

    Data set, protocol and metric must be the same, and all splits of the published result must be official ones that
    were run. A run on the rendered motion set stands for no published result.
    """
    if result.dataset != published.dataset or published.protocol is None or result.protocol != published.protocol:
        return None
    ids = published.split_ids
    if any(split.id in ids and not _is_official(split) for split in result.splits):
        return None
    value = result.value(published.metric, splits=ids, stream=published.stream)
    if value is None:
        return None
    evaluated, listed = result.counts(ids)
    difference = value - published.value if published.verified else None
    return Reproduction(result, value, evaluated, listed, difference)


def published_tables(
    results: Sequence[BenchmarkResult] = (),
    *,
    system: str | None = None,
    dataset: str | None = None,
    everything: bool = False,
) -> tuple[PublishedTable, ...]:
    """Return the survey's table, and those of the papers where a system or everything is asked for.

    Parameters
    ----------
    results : sequence of BenchmarkResult
        Runs (see `volrec.benchmarks.results.find_results`).
    system : str, optional
        Only of this system, with the tables of its paper.
    dataset : str, optional
        Only of this data set.
    everything : bool
        The tables of all papers too.

    Raises
    ------
    ConfigError
        No published result is of that system or data set.
    """
    chosen = find_published(system=system, dataset=dataset)
    by_key = {entry.key: entry for entry in load_published()}
    rows = tuple(
        _row(row.system, row.variant, results, survey=row, published=by_key.get(row.beside or ""))
        for row in load_survey()
        if (system is None or same_system(row.system, system)) and dataset in (None, "ucf101")
    )
    tables = [PublishedTable(f"UCF101: the survey ({SURVEY})", rows, surveyed=True)] if rows else []
    if everything or system is not None or not rows:
        groups: dict[tuple[str, str, str], list[PublishedResult]] = {}
        for entry in chosen:
            groups.setdefault((entry.system, entry.paper, entry.dataset), []).append(entry)
        tables += [
            PublishedTable(
                f"{name}, {DATASETS.get(where, where)}: {paper}",
                tuple(_row(entry.system, entry.variant, results, published=entry) for entry in entries),
                surveyed=False,
            )
            for (name, paper, where), entries in groups.items()
        ]
    return tuple(tables)


def unplaced(results: Iterable[BenchmarkResult]) -> tuple[BenchmarkResult, ...]:
    """Return the runs that stand for no published result at all."""
    entries = load_published()
    return tuple(r for r in results if all(reproduction(entry, r) is None for entry in entries))


def print_tables(
    tables: Sequence[PublishedTable], console: Console, *, results: Sequence[BenchmarkResult] = ()
) -> None:
    """Print tables on a terminal, in as many columns as fit, and below them what marks and sources mean.

    Parameters
    ----------
    tables : sequence of PublishedTable
        From `published_tables`.
    console : rich.console.Console
        Where to.
    results : sequence of BenchmarkResult
        All runs that were looked at: those that stand for nothing are told.
    """
    wide = console.width >= WIDE
    for table in tables:
        console.print(_for_terminal(table, wide=wide))
        console.print()
    for line in _legend(tables, results):
        console.print(line, markup=False, highlight=False)


def markdown(tables: Sequence[PublishedTable], *, results: Sequence[BenchmarkResult] = ()) -> str:
    """Return tables as Markdown, with the same words and legend as on a terminal."""
    parts = []
    for table in tables:
        heads = ["system", "variant", *(["survey"] if table.surveyed else []), "paper", "split", "metric", "source"]
        heads += ["reproduced here", "difference", "of videos", "date", "weights", "deviations", "run", "note"]
        lines = [f"### {table.title}", "", _line(heads), _line(["---"] * len(heads))]
        for row in table.rows:
            known = [row.system, row.variant, *([row.survey.text if row.survey else "-"] if table.surveyed else [])]
            known += list(_published_cells(row))
            for got in row.reproductions or (None,):
                lines.append(_line([*known, *_reproduced_cells(row, got), row.note]))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in _legend(tables, results))]) + "\n"


def write_csv(tables: Sequence[PublishedTable], path: Path | str) -> None:
    """Write tables to a CSV file (UTF-8): one line a published number and run, numbers without units.

    Raises
    ------
    ConfigError
        The folder of the file does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError("the folder of this file does not exist.", remedy="Make it, or name another.", where=path)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for got in row.reproductions or (None,):
                writer.writerow(_flat(table, row, got))
    write_atomically(path, stream.getvalue())


def _is_official(split: SplitResult) -> bool:
    """Tell whether a split is the papers': said to be, and with as many test videos listed."""
    return split.official and split.listed == TEST_VIDEOS.get(split.id, split.listed)


def _row(
    system: str,
    variant: str,
    results: Sequence[BenchmarkResult],
    *,
    survey: SurveyRow | None = None,
    published: PublishedResult | None = None,
) -> Row:
    found = [] if published is None else [got for result in results if (got := reproduction(published, result))]
    found.sort(key=lambda got: got.result.date, reverse=True)
    found.sort(key=lambda got: got.deviations)
    return Row(system, variant, survey, published, tuple(found))


def _published_cells(row: Row) -> tuple[str, str, str, str]:
    """Return value, split, metric and source of the paper's number."""
    entry = row.published
    if entry is None:
        return "-", "-", "-", "-"
    source = entry.source if entry.verified else f"{entry.source}, not verified"
    return entry.text, entry.split, METRICS.get(entry.metric, entry.metric), source


def _value(row: Row, got: Reproduction) -> str:
    """Return a run's number, with as many decimals as the paper's, two at most, and its mark."""
    published = row.published.text if row.published else "0.0"
    digits = min(2, len(published.split(".")[1]))
    return f"{got.value:.{digits}f}" + ("*" if got.deviations else "")


def _difference(row: Row, got: Reproduction | None) -> str:
    if got is None or got.difference is None or row.published is None:
        return "-"
    digits = min(2, len(row.published.text.split(".")[1]))
    text = f"{got.difference:+.{digits}f}"
    return text if text.strip("+-0.") else text.lstrip("+-")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _reproduced_cells(row: Row, got: Reproduction | None) -> tuple[str, ...]:
    """Return number, difference, videos, date, weights, deviations and run."""
    if got is None:
        return (NOT_RUN, "-", "-", "-", "-", "-", "-")
    videos = f"{got.evaluated:,} of {got.listed:,}"
    return (
        _value(row, got),
        _difference(row, got),
        videos,
        got.result.date[:10],
        got.weights,
        str(got.deviations),
        got.run,
    )


def _reproduced(row: Row, got: Reproduction | None) -> str:
    """Return all of a run in one cell of several lines."""
    number, _, videos, date, weights, _, run = _reproduced_cells(row, got)
    if got is None:
        return number
    marks = [_counted(got.deviations, "deviation")] if got.deviations else []
    return "\n".join([number, f"{videos} videos", date, weights, *marks, *([run] if run else [])])


def _reproduced_width(table: PublishedTable) -> int:
    """Return the columns that facts of runs take; the names of their folders may be folded."""
    cells = [_reproduced_cells(row, got) for row in table.rows for got in row.reproductions]
    return max([len("reproduced here"), *(len(f"{cell[2]} videos") for cell in cells)])


def _for_terminal(table: PublishedTable, *, wide: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(table.title), title_justify="left", show_edge=False, show_lines=not wide)

    def number(name: str, width: int, justify: str = "right") -> None:
        grid.add_column(name, justify=justify, no_wrap=True, min_width=width)  # type: ignore[arg-type]

    # Folded: what does not fit goes on in the next line; only words give way, numbers keep their width.
    grid.add_column("system", overflow="fold")
    if wide:
        grid.add_column("variant", overflow="fold")
    if table.surveyed:
        number("survey", 6)
    number("paper", 12 if not wide else 5)
    if wide:
        number("split", 5, "left")
        number("metric", 11, "left")
        grid.add_column("source", overflow="fold")
    grid.add_column("reproduced here", overflow="fold", width=_reproduced_width(table))
    number("points", 6)
    for row in table.rows:
        value, split, metric, source = _published_cells(row)
        for place, got in enumerate(row.reproductions or (None,)):
            cells = [row.system, row.variant] if wide else [f"{row.system}\n{row.variant}"]
            cells += [row.survey.text if row.survey else "-"] if table.surveyed else []
            if wide:
                cells += [value, split, metric, source]
            else:
                cells.append(value if row.published is None else "\n".join([value, f"split {split}", metric, source]))
            if place:  # further runs of the same number
                cells = [""] * len(cells)
            cells += [_reproduced(row, got), _difference(row, got)]
            grid.add_row(*(Text(cell) for cell in cells))
    return grid


def _legend(tables: Sequence[PublishedTable], results: Sequence[BenchmarkResult]) -> list[str]:
    entries = {row.published.key: row for table in tables for row in table.rows if row.published is not None}
    done = sum(bool(row.reproductions) for row in entries.values())
    tags = dict.fromkeys(row.published.source for row in entries.values() if row.published is not None)
    lines = [
        f"{done} of {_counted(len(entries), 'published result')} reproduced here; the others were not run.",
        "Percent; split 1,2,3: mean over the three official splits; points: reproduced less paper.",
        "Sources: " + "; ".join(f"{tag}: {SOURCES[tag]}" for tag in SOURCES if tag in tags) + ".",
    ]
    if any(table.surveyed for table in tables):
        lines.append("The survey heads all its tables 'UCF101-split1'; the split that is printed is the paper's.")
        for row in (row for table in tables if table.surveyed for row in table.rows):
            if row.survey is not None and row.survey.note:
                lines.append(f"{row.system}, {row.variant}: {row.survey.note}")
    if any(got.deviations for row in entries.values() for got in row.reproductions):
        lines.append("*: the run differs from the paper's protocol; `volrec benchmark show RUN` lists in what.")
    lost = unplaced(results)
    if lost:
        names = ", ".join(f"{'?' if r.folder is None else r.folder.name} ({r.protocol} on {r.dataset})" for r in lost)
        lines.append(f"{_counted(len(lost), 'run')} of no published result: {names}.")
    return lines


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _flat(table: PublishedTable, row: Row, got: Reproduction | None) -> dict[str, object]:
    entry, survey = row.published, row.survey
    flat: dict[str, object] = {
        "table": "survey" if table.surveyed else "paper",
        "system": row.system,
        "variant": row.variant,
        "dataset": entry.dataset if entry is not None else "ucf101",
        "survey": "" if survey is None or survey.value is None else survey.text,
        "note": row.note,
        "key": survey.key if survey is not None else (entry.key if entry is not None else ""),
        "reproduced": NOT_RUN,
    }
    if entry is not None:
        flat |= {"paper": entry.paper, "published": entry.text, "split": entry.split, "metric": entry.metric}
        flat |= {"source": entry.source, "verified": "yes" if entry.verified else "no"}
        flat |= {"protocol": entry.protocol or "", "stream": entry.stream or ""}
    if got is not None:
        flat |= {"reproduced": repr(got.value), "date": got.result.date, "weights": got.weights}
        flat |= {"difference": "" if got.difference is None else round(got.difference, 4) + 0.0}
        flat |= {"evaluated": got.evaluated, "listed": got.listed, "deviations": got.deviations}
        flat |= {"run": "" if got.result.folder is None else str(got.result.folder)}
    return flat
