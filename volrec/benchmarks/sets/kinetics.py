"""Kinetics-400: clips of ten seconds from as many videos, 400 classes.

Kay et al.: The Kinetics Human Action Video Dataset, arXiv 1705.06950, 2017.

Lists are CSV files, one a part (train, val, test), with columns label, youtube_id, time_start, time_end and split;
copies call them label-name, video-id, start-time, end-time, or have further ones (is_cc). A clip is called
ID_000417_000427 (start and end in seconds, six digits) or by its ID alone. Classes are the labels in alphabetical
order.

Videos vanish: published numbers are of 19,761, 19,768, 19,796 or 19,818 validation clips, so a report says how many it
is of.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from volrec.benchmarks.sets.common import VideoSet
from volrec.benchmarks.sets.disk import Catalogue, Lists, list_paths
from volrec.benchmarks.sets.splits import (
    Listed,
    assemble,
    both_sides,
    choose_split,
    draw,
    not_official,
    once,
    refuse_overlap,
    some,
    stem_keys,
)
from volrec.errors import LabelsError, Problem

__all__ = ["CLASSES", "EVALUATED", "read_kinetics"]

CLASSES = 400
"""Classes of the data set."""
EVALUATED = (19761, 19768, 19796, 19818)
"""Validation clips that published numbers are of."""
SOURCE = "the authors' CSV files of Kinetics-400"

_USUAL = ("annotations", "labels", "lists", "csv", "data")
_FILE = r"(?!\.).*(train|val|test).*\.csv"
_PARTS = {"train": "train", "training": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_COLUMNS = {
    "label": ("label", "label_name", "class", "class_name"),
    "id": ("youtube_id", "video_id", "ytid", "id"),
    "start": ("time_start", "start_time", "start"),
    "end": ("time_end", "end_time", "end"),
    "part": ("split", "subset", "part"),
}


class _Row(NamedTuple):
    """One line of a CSV file; `label` is empty where it is not told."""

    label: str
    id: str
    start: str
    end: str


def read_kinetics(root: Path, *, split: str, lists: Lists = None) -> VideoSet:
    """Read Kinetics-400.

    Parameters
    ----------
    root : Path
        Folder of the clips: in class folders (blanks or underscores) or all in one, files or folders of frames.
    split : str
        ``"val"`` or ``"test"``: train on the training list, test on that one; ``"own-val"``, ``"own-test"``: whatever
        these lists hold; ``"random-SEED"``: drawn over all clips with labels.
    lists : path or paths, optional
        The CSV files, or their folder. Without a training list there is nothing to learn from, and it is said.

    Returns
    -------
    VideoSet
        `Video.name` is "label/ID_start_end" (or "ID_start_end" without label), `Video.group` the ID. Labels are empty
        where the test list has none.

    Raises
    ------
    LabelsError
        Lists that are missing, malformed, not of 400 classes where the official ones were asked for, or that overlap.
    DataError
        No listed clip is there.
    """
    choice = choose_split("kinetics", split, official=("val", "test"))
    paths = list_paths(root, lists, usual=_USUAL, pattern=_FILE, what="the CSV files of Kinetics")
    tested = choice.key if choice.kind != "random" else ""
    parts: dict[str, list[_Row]] = {"train": [], "val": [], "test": []}
    for path in paths:
        for part, row in _read_csv(path):
            parts[part].append(row)
    where = paths[0].parent
    classes = tuple(sorted({row.label for rows in parts.values() for row in rows} - {""}))
    places = {label: place for place, label in enumerate(classes)}
    used = ("train", tested) if tested else tuple(parts)
    often = Counter(row.id for part in used for row in parts[part])
    listed = {part: [_clip(row, places, alone=often[row.id] == 1) for row in parts[part]] for part in used}
    problems: list[Problem] = []
    if not tested:
        train, test, note = draw(choice, [clip for part in used for clip in listed[part]])
        problems.append(note)
    else:
        if not listed[tested]:
            other = next((part for part in ("val", "test") if parts[part]), "")
            asked = choice.id.partition("/")[2]
            instead = f", or ask for the split {asked.replace(tested, other)}, which is there" if other else ""
            raise LabelsError(
                f"no list names a clip of the part '{tested}' ({some([path.name for path in paths])}).",
                remedy=f"Put its CSV file beside the others, with '{tested}' in its name or in the column split"
                f"{instead}.",
                where=where,
                code="no-lists",
            )
        (train, train_notes), (test, test_notes) = (once(listed[part], where) for part in used)
        problems += [*train_notes, *test_notes]
        refuse_overlap(choice, train, test, key=str, where=where)
        shared, groups = both_sides(train, test)
        if shared:
            reason = f"{len(shared):,} of {groups:,} videos have clips on both sides ({some(shared)})."
            problems.append(Problem(str(where), "group-leak", reason, "Take the authors' lists.", fatal=False))
        if choice.kind == "official" and len(classes) != CLASSES:
            raise not_official(choice, f"{len(classes)} classes, not {CLASSES}", source=SOURCE, where=where)
        if not train:
            reason = "No training list is here: nothing can be trained."
            problems.append(Problem(str(where), "no-training-list", reason, "Add train.csv.", fatal=False))
        unknown = sum(not clip.labels for clip in test)
        if unknown:
            reason = f"{unknown:,} of {len(test):,} test clips have no label: they can be scored, not counted."
            problems.append(Problem(str(where), "no-labels", reason, "Test on val.", fatal=False))
    catalogue = Catalogue(root, wanted=stem_keys([*train, *test], str))
    official = choice.kind == "official"
    found = assemble(
        "kinetics", choice, classes, train, test, catalogue=catalogue, official=official, problems=problems
    )
    if choice.key != "val":
        return found
    published = ", ".join(f"{count:,}" for count in EVALUATED)
    reason = f"{len(found.split.test):,} of {len(test):,} validation clips are evaluated; published: {published}."
    note = Problem(str(root), "evaluated-count", reason, "Put the number beside the result.", fatal=False)
    return VideoSet(found.name, found.classes, found.split, found.multilabel, (*found.problems, note))


def _clip(row: _Row, places: dict[str, int], *, alone: bool) -> Listed:
    """Return a clip as it is looked for; its ID alone is enough where no other clip has it."""
    stems = [row.id] if alone or not row.start else []
    if row.start:
        start, end = int(float(row.start)), int(float(row.end))
        stems[:0] = [f"{row.id}_{start:06d}_{end:06d}", f"{row.id}_{start}_{end}"]
    name = f"{row.label.replace('/', '_')}/{stems[0]}" if row.label else stems[0]
    labels = (places[row.label],) if row.label else ()
    return Listed(name, labels, row.id, tuple(stems), row.label)


def _read_csv(path: Path) -> Iterator[tuple[str, _Row]]:
    """Give the part and the columns that matter of every line."""
    guess = re.search("train|val|test", path.name.casefold())
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, skipinitialspace=True)
            header = [re.sub(r"[ -]+", "_", column.strip().casefold()) for column in next(lines, [])]
            column = {
                fact: next((header.index(name) for name in names if name in header), -1)
                for fact, names in _COLUMNS.items()
            }
            if column["id"] < 0 or (column["start"] < 0) is not (column["end"] < 0):
                raise LabelsError(
                    f"it has no columns youtube_id, time_start and time_end, but {', '.join(header) or 'nothing'}.",
                    remedy="The first line names the columns: label,youtube_id,time_start,time_end,split.",
                    where=path,
                    code="bad-list",
                )
            for cells in lines:
                if cells:
                    yield _read_row(path, lines.line_num, cells, column, guess[0] if guess else "")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelsError(
            f"the list cannot be read ({error}).",
            remedy="It is a CSV file in UTF-8.",
            where=path,
            code="bad-list",
        ) from error


def _read_row(path: Path, number: int, cells: list[str], column: dict[str, int], guess: str) -> tuple[str, _Row]:
    """Return part and facts of one line."""
    label, identity, start, end, told = (
        cells[place].strip() if 0 <= place < len(cells) else "" for place in column.values()
    )
    part = _PARTS.get(told.casefold() or guess, "")
    times = bool(start) is bool(end) and (not start or (_is_time(start) and _is_time(end)))
    if len(cells) <= column["id"] or not identity or not part or not times:
        wrong = (
            "no video" if not identity else f"the part '{told or guess}'" if not part else f"times '{start}', '{end}'"
        )
        raise LabelsError(
            f"line {number} has {wrong}: '{','.join(cells)}'.",
            remedy="Each line is like 'abseiling,0wR5jVB-WPk,417,427,val'.",
            where=path,
            code="bad-list",
        )
    return part, _Row(label, identity, start, end)


def _is_time(text: str) -> bool:
    return re.fullmatch(r"\d{1,9}(\.\d*)?", text) is not None
