"""How tables of published and reproduced numbers are shown: on a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.benchmarks.publications import SOURCES
from volrec.benchmarks.results import BenchmarkResult
from volrec.benchmarks.tables import NOT_RUN, PublishedTable, Reproduction, Row, unplaced
from volrec.errors import ConfigError
from volrec.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["markdown", "print_tables", "write_csv"]

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

COLUMNS = (
    "table", "system", "variant", "dataset", "survey", "paper", "published", "split", "metric", "source", "verified",
    "reproduced", "difference", "date", "weights", "evaluated", "listed", "deviations", "protocol", "stream", "run",
    "note", "key",
)  # fmt: skip
"""Of the CSV file."""


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
