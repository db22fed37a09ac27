"""What is in a folder, for a person: studies, the series chosen and why, problems, what training will need."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.data.choose import modality_of
from volrec.data.targets import head_classes
from volrec.errors import Problem
from volrec.files import readable_size
from volrec.io.geometry import canonical_shape

if TYPE_CHECKING:
    from rich.console import Console

    from volrec.data.index import StudyIndex, StudyRecord
    from volrec.data.labels import Cohort

__all__ = ["index_json", "printable", "readable_time", "render_cohort", "render_index", "render_problems"]

MANY = 40
"""More studies than this are shortened to the first and the last few."""
FIRST, LAST = 20, 5
WIDE = 110
"""Columns of a terminal from which the reasons stand in the table."""
NAMED = 8
"""Places that are named of a remark that many share; faults are always named in full."""


def render_index(index: StudyIndex, console: Console, *, all_studies: bool = False) -> None:
    """Print the studies, everything that was left out or assumed, and totals.

    Parameters
    ----------
    index : StudyIndex
        What was found.
    console : rich.console.Console
        Where it is printed.
    all_studies : bool
        List every study, however many.
    """
    if index.studies:
        _studies(index.studies, console, all_studies=all_studies)
    render_problems(index.problems, console)
    _totals(index, console)


def index_json(index: StudyIndex) -> dict[str, Any]:
    """Return the index as plain JSON types, without a patient's name, dates or free text."""
    return index.as_dict()


def render_cohort(cohort: Cohort, console: Console) -> None:
    """Print what a table of labels says of the studies: task, cases of each class, who is missing or unknown."""
    targets = ", ".join(printable(target) for target in cohort.targets)
    patients = len({case.patient for case in cohort.cases})
    lines = [
        f"labels: {targets}, {cohort.task}; {_count(len(cohort.cases), 'study', 'studies')} "
        f"of {_count(patients, 'patient')}"
    ]
    values = np.array([case.target for case in cohort.cases], dtype=np.float64) if cohort.cases else np.zeros((0, 1))
    names = [printable(name) for name in cohort.classes]
    if cohort.task in {"binary", "multiclass"}:
        counts = Counter(int(value) for value in values[:, 0])
        lines += [f"  {name}: {_share(counts[number], len(values))}" for number, name in enumerate(names)]
    elif cohort.task == "multihead":
        for number, (target, own) in enumerate(head_classes(cohort.task, cohort.classes, cohort.targets).items()):
            column = values[:, number]
            known = int(np.isfinite(column).sum())
            lines.append(f"  {printable(target)}: {_count(known, 'study', 'studies')}")
            lines += [
                f"    {printable(name)}: {_share(int((column == index).sum()), known)}"
                for index, name in enumerate(own)
            ]
    elif cohort.task == "multilabel":
        lines += [
            f"  {name}: {_share(int(values[:, number].sum()), len(values))}"
            for number, name in enumerate(names or cohort.targets)
        ]
    else:
        for number, name in enumerate(cohort.targets):
            column = values[:, number]
            if column.size:
                around = f"mean {column.mean():.4g}, sd {column.std():.4g}, {column.min():.4g} to {column.max():.4g}"
                lines.append(f"  {printable(name)}: {around}")
    splits = Counter(case.split for case in cohort.cases if case.split)
    if splits:
        lines.append("  split column: " + ", ".join(f"{printable(name)} {count}" for name, count in splits.items()))
    _print(console, "\n".join([*lines, *(f"  {printable(note)}" for note in cohort.notes)]))
    render_problems(cohort.problems, console)


def render_problems(problems: Iterable[Problem], console: Console) -> None:
    """Print faults in full, then remarks, both grouped by what is wrong."""
    from rich.text import Text

    listed = list(dict.fromkeys(problems))
    for fatal, heading, style in ((True, "not used", "bold red"), (False, "used, but note", "bold yellow")):
        groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
        for problem in listed:
            if problem.fatal is fatal:
                groups[(problem.code, problem.remedy)].append(problem)
        if not groups:
            continue
        total = sum(len(group) for group in groups.values())
        console.print(Text(f"\n{heading}: {total}", style=style))
        for (code, remedy), group in sorted(groups.items(), key=lambda item: -len(item[1])):
            text = f"  {printable(code)}" + (f" ({len(group)})" if len(group) > 1 else "")
            _print(console, f"{text}: {printable(remedy)}" if remedy else text)
            _places(group, console, full=fatal)


def _places(group: Sequence[Problem], console: Console, *, full: bool) -> None:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for problem in group:
        place = printable(problem.where)
        study = printable(problem.study)
        if study and study not in place:
            place = f"{study}: {place}" if place not in {"", "."} else study
        by_reason[printable(problem.reason)].append(place)
    shown = len(by_reason) if full else NAMED
    for reason, places in list(by_reason.items())[:shown]:
        if len(places) == 1:
            _print(console, f"    {places[0]}: {reason}" if places[0] not in {"", "."} else f"    {reason}")
            continue
        _print(console, f"    {reason}")
        named = places if full else places[:NAMED]
        more = len(places) - len(named)
        _print(console, "      " + ", ".join(named) + (f" … and {more} more (--json lists them)" if more else ""))
    if len(by_reason) > shown:
        _print(console, f"    … and {len(by_reason) - shown} more (--json lists them)")


def _studies(studies: Sequence[StudyRecord], console: Console, *, all_studies: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    patients = any(record.patient != record.study for record in studies)
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("study", overflow="fold", min_width=8)
    if patients:
        table.add_column("patient", overflow="fold", min_width=8)
    for heading in ("kind", "TxHxW", "mm", "plane"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in {"kind", "plane"} else "right")
    if wide:
        table.add_column("series, and why", overflow="fold", ratio=1)
    short = len(studies) > MANY and not all_studies
    shown = [*studies[:FIRST], None, *studies[-LAST:]] if short else list(studies)
    for record in shown:
        if record is None:
            table.add_row(f"… {len(studies) - FIRST - LAST} more", *([""] * (len(table.columns) - 1)), style="dim")
            continue
        shape, spacing = canonical_shape(record.series)
        cells = [
            record.study,
            *([record.patient] if patients else []),
            modality_of(record.series),
            "x".join(str(size) for size in shape),
            "x".join(f"{size:.3g}" for size in spacing),
            record.series.orientation,
            *([_reason(record)] if wide else []),
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    if short:
        _print(console, "--all lists every study.")
    if not wide:
        _reasons([record for record in shown if record is not None], console)


def _reasons(studies: Sequence[StudyRecord], console: Console) -> None:
    """Print why each series was chosen, below a table that has no room for it."""
    alike: dict[str, list[str]] = defaultdict(list)
    for record in studies:
        alike[_reason(record)].append(record.study)
    _print(console, "\nchosen, and why:")
    for reason, names in sorted(alike.items(), key=lambda item: -len(item[1])):
        which = ", ".join(names) if len(names) <= NAMED else f"{len(names)} of these studies"
        _print(console, f"  {printable(which)}: {printable(reason)}")


def _reason(record: StudyRecord) -> str:
    path = _series_path(record)
    return f"{path} ({record.why})" if path else record.why


def _series_path(record: StudyRecord) -> str:
    """Return the series' place within the study, where that says more than the study's own place."""
    path = record.series.path
    if path == record.path or path in {"", "."}:
        return ""
    return path.removeprefix(f"{record.path}/")


def _totals(index: StudyIndex, console: Console) -> None:
    summary = index.summary()
    needs = summary["needs"]
    files = [f"{summary['dicom_files']} DICOM", f"{summary['nifti_files']} NIfTI", f"{summary['other_files']} other"]
    lines = [
        f"\n{_count(summary['studies'], 'study', 'studies')} of {_count(summary['patients'], 'patient')}; "
        f"{summary['series']} series ({_listed(summary['statuses'])}); "
        f"{_count(summary['files'], 'file')} ({', '.join(files)}"
        + (f"; {summary['hidden']} hidden passed over)" if summary["hidden"] else ")")
    ]
    chosen = [record.series for record in index.studies]
    if chosen:
        grids = [canonical_shape(series) for series in chosen]
        spread = [_spread([shape[axis] for shape, _ in grids], "d") for axis in range(3)]
        spacing = [_spread([steps[axis] for _, steps in grids], ".3g") for axis in range(3)]
        lines += [
            f"chosen: {_listed(summary['modalities'])}; {_listed(summary['orientations'])}",
            f"  slices {spread[0]}, rows {spread[1]}, columns {spread[2]}",
            f"  mm between slices {spacing[0]}, rows {spacing[1]}, columns {spacing[2]}",
            f"training will need about {readable_size(needs['decoded_bytes'])} of disk for decoded volumes "
            f"(largest {readable_size(needs['largest_bytes'])}), {readable_size(needs['memory_bytes'])} of memory, "
            f"{readable_time(needs['decode_seconds'])} to decode once, and without a GPU "
            f"{readable_time(needs['epoch_seconds'])} an epoch of C3D on 16x112x112 clips "
            f"({_count(needs['processors'], 'processor')})",
        ]
    _print(console, "\n".join(lines))


def printable(text: object) -> str:
    """Return text that any terminal shows as it is: file names may hold escape codes and bytes that are no text."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def readable_time(seconds: float) -> str:
    """Return a duration in the unit a person would use."""
    if seconds < 0.1:
        return "no time"
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"
    return "forever"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = min(values), median(values), max(values)
    if f"{low:.3g}" == f"{high:.3g}":
        return format(low, form)
    return f"{format(low, form)} to {format(high, form)} (median {middle:.3g})"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _share(number: int, total: int) -> str:
    return f"{number} ({100 * number / total:.0f} %)" if total else "0"
