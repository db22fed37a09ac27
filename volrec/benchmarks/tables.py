"""The tables of published numbers, beside what was reproduced here: a number of a run, or *not run*.

Nothing is ever filled in: a reproduction is the number of a ``benchmark.json`` whose data set, official splits,
protocol and metric are those of the published result. What a run did otherwise is counted beside its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from volrec.benchmarks.publications import (
    SURVEY,
    PublishedResult,
    SurveyRow,
    find_published,
    load_published,
    load_survey,
    same_system,
)
from volrec.benchmarks.results import BenchmarkResult, SplitResult

__all__ = [
    "NOT_RUN",
    "PublishedTable",
    "Reproduction",
    "Row",
    "published_tables",
    "reproduction",
    "unplaced",
]

NOT_RUN = "not run"
"""What stands in place of a number that no run gave."""

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
    were run. A run on the rendered motion set stands for no published result, nor does one of weights that had seen
    the test videos.
    """
    if published.protocol is None or result.protocol != published.protocol or result.leaks:
        return None
    ids = published.split_ids  # they begin with the data set's name
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
