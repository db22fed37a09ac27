"""Which series of a study is read, and the reason in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

from volrec.config import SeriesConfig
from volrec.data.naming import file_stem, folder_of, name_of, relative_path
from volrec.data.studies import Group
from volrec.io import SET_ASIDE, Series
from volrec.io.geometry import canonical_shape

__all__ = ["Choice", "Habits", "choose", "grid_of", "habits", "matches", "modality_of", "series_name"]


@dataclass(frozen=True)
class Choice:
    """The verdict on the series of one study.

    Attributes
    ----------
    chosen : Series, optional
        None where no series can be used.
    why : str
        Reason of the choice, or of there being none.
    status : dict
        From `id` of a series to ``"chosen"``, ``"alternative"``, ``"filtered"``, ``"set aside"``, ``"unusable"`` or
        ``"mask"``, and the reason.
    """

    chosen: Series | None
    why: str
    status: Mapping[int, tuple[str, str]]


@dataclass(frozen=True)
class Habits:
    """What is usual in a folder: it settles the choice alike in every study.

    Attributes
    ----------
    modality : str
        Most frequent modality of the usable series, counted by study.
    roles : dict
        From role of a series (its file or folder name within the study, and its orientation) to its rank.
    frequency : dict
        Number of studies that have the role.
    studies : int
        Studies with a usable series.
    """

    modality: str = ""
    roles: Mapping[tuple[str, str], int] = field(default_factory=dict)
    frequency: Mapping[tuple[str, str], int] = field(default_factory=dict)
    studies: int = 0


def habits(groups: Iterable[Group], config: SeriesConfig, root: Path) -> Habits:
    """Count modalities and roles over the series that may be chosen."""
    modalities: Counter[str] = Counter()
    slices: dict[tuple[str, str], list[int]] = defaultdict(list)
    studies = 0
    for group in groups:
        candidates = [one for one in group.series if not _reject(one, config, root)]
        studies += bool(candidates)
        modalities.update({modality_of(one) for one in candidates})
        best: dict[tuple[str, str], int] = {}
        for one in candidates:
            role = _role(one, group, root)
            best[role] = max(best.get(role, 0), grid_of(one)[0][0])
        for role, count in best.items():
            slices[role].append(count)
    frequency = {role: len(counts) for role, counts in slices.items()}
    shared = [role for role, count in frequency.items() if count > 1 and role[0]]
    usual = max(frequency.values(), default=0)
    # The role that most studies have, unless it is a thin one beside another that is common too.
    thick = max((median(slices[role]) for role in shared if 2 * frequency[role] >= usual), default=0)
    shared.sort(key=lambda role: (2 * median(slices[role]) < thick, -frequency[role], -median(slices[role]), role))
    modality = min(modalities, key=lambda name: (-modalities[name], name), default="")
    return Habits(modality, {role: rank for rank, role in enumerate(shared)}, frequency, studies)


def choose(group: Group, config: SeriesConfig, usual: Habits, root: Path) -> Choice:
    """Choose one series of a study.

    Localizers, masks and unusable series never; then, in this order: the folder's most frequent modality, no missing
    slice, original before derived, the role that most studies of the folder share, more slices, thinner slices, and the
    order of the uids.
    """
    status: dict[int, tuple[str, str]] = {id(one): ("mask", "a segmentation by its name") for one in group.masks}
    candidates: list[Series] = []
    for one in group.series:
        rejected = _reject(one, config, root)
        if rejected:
            status[id(one)] = rejected
        else:
            candidates.append(one)
    if not candidates:
        return Choice(None, _none(group, status, root), status)
    keys = {id(one): _key(one, group, usual, root) for one in candidates}
    candidates.sort(key=lambda one: keys[id(one)])
    winner = candidates[0]
    why = _why(winner, candidates, group, usual, keys, root)
    for one in candidates[1:]:
        status[id(one)] = ("alternative", f"usable; {series_name(winner, group, root)} was chosen")
    status[id(winner)] = ("chosen", why)
    return Choice(winner, why, status)


def series_name(series: Series, group: Group, root: Path) -> str:
    """Return the shortest name that tells a series from the others of its study, without free text."""
    path = _path(series, root)
    alike = [one for one in group.series if _path(one, root) == path]
    name = name_of(path) or root.name
    if len(alike) == 1:
        twins = sum(name_of(_path(one, root)) == name_of(path) for one in group.series)
        return name if twins == 1 else path
    split = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in series.split_by.items())
    kind = "/".join(part for part in series.image_type[2:3] if part)
    text = split or " ".join(part for part in (kind.lower(), series.orientation) if part)
    return f"{text} (…{series.uid[-8:]})"


def modality_of(series: Series) -> str:
    """Return the DICOM modality, or ``"NIfTI"`` where the file does not tell."""
    return series.modality or ("NIfTI" if series.kind == "nifti" else "unknown")


def grid_of(series: Series) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return shape (T, H, W) and spacing (t, h, w) in mm as they will be read; as stored where there is no geometry."""
    if not all(series.shape) or not all(step > 0 for step in series.spacing):
        return series.shape, series.spacing
    return canonical_shape(series)


def _path(series: Series, root: Path) -> str:
    """Relative folder (DICOM) or file that holds the series."""
    if len(series.files) == 1:
        return relative_path(series.files[0], root)
    return "" if series.path in {".", ""} else relative_path(series.path, root)


def _role(series: Series, group: Group, root: Path) -> tuple[str, str]:
    """Name what a series is within its study, comparable between studies: its name without the study's."""
    path = _path(series, root)
    folder, name = folder_of(path), file_stem(name_of(path))
    if series.kind == "nifti":
        if name == group.study:  # t1/case-1.nii.gz
            name = name_of(folder)
        for owner in (group.study, group.patient, name_of(folder)):
            if name.startswith(owner) and name != owner:
                name = name[len(owner) :].strip("_-. ")
        return name, series.orientation
    if path == group.path or len(series.files) == 1:
        name = "/".join(series.image_type[2:])
    return name, series.orientation


def _reject(series: Series, config: SeriesConfig, root: Path) -> tuple[str, str] | None:
    """Return status and reason of a series that may not be chosen."""
    fatal = [problem for problem in series.problems if problem.fatal]
    aside = [problem for problem in series.problems if problem.code in SET_ASIDE]
    if series.localizer or aside:
        return "set aside", aside[0].reason if aside else "a localizer"
    if fatal:
        return "unusable", fatal[0].reason
    if config.modality and modality_of(series).upper() != config.modality.upper():
        return "filtered", f"modality {modality_of(series)}; {config.modality} was asked for"
    if config.orientation and series.orientation != config.orientation:
        return "filtered", f"orientation {series.orientation}; {config.orientation} was asked for"
    if config.path and not matches(series, config.path, root):
        return "filtered", f"its path does not match {config.path}"
    if grid_of(series)[0][0] < config.min_slices:
        return "filtered", f"{_count(grid_of(series)[0][0], 'slice')}; at least {config.min_slices} were asked for"
    return None


def matches(series: Series, pattern: str, root: Path) -> bool:
    """Tell whether a glob pattern finds a series by its path or that of its first file, relative to the root."""
    first = relative_path(series.files[0], root)
    path = _path(series, root)
    # A leading slash stands for the root, so that */t2/* finds a folder t2 at the top as well.
    return any(fnmatchcase(text, pattern) for text in (path, first, f"/{path}", f"/{first}"))


def _key(series: Series, group: Group, usual: Habits, root: Path) -> tuple[Any, ...]:
    return (
        modality_of(series) != usual.modality,
        bool(series.missing),
        series.derived,
        usual.roles.get(_role(series, group, root), len(usual.roles)),
        -grid_of(series)[0][0],
        round(grid_of(series)[1][0], 2),
        series.uid,
    )


def _why(
    winner: Series,
    candidates: Sequence[Series],
    group: Group,
    usual: Habits,
    keys: Mapping[int, tuple[Any, ...]],
    root: Path,
) -> str:
    left = len(group.series) - len(candidates)
    if len(candidates) == 1:
        return "the only series" if not left else f"the only usable one of {len(group.series)} series"
    # The criteria that thinned the field, up to the one that left a single series.
    reasons: list[str] = []
    field_ = list(candidates)
    (slices, _, _), (thickness, _, _) = grid_of(winner)
    for number in range(len(keys[id(winner)])):
        beaten = [one for one in field_ if keys[id(one)][number] != keys[id(winner)][number]]
        if not beaten:
            continue
        names = _names(beaten, group, root)
        kinds = {(modality_of(one), one.orientation) for one in field_}
        what = " ".join(kinds.pop()[::-1]) if len(kinds) == 1 else modality_of(winner)
        role = _role(winner, group, root)
        reasons.append(
            (
                f"{modality_of(winner)} is the folder's most frequent modality",
                f"complete, {names} {_lack(beaten)} slices",
                f"original, {names} {'is' if len(beaten) == 1 else 'are'} derived",
                f"'{role[0]}' {role[1]} is in {usual.frequency.get(role, 0)} of {usual.studies} studies",
                f"most slices ({slices}) of {len(field_)} {what} series",
                f"thinnest slices ({thickness:.3g} mm) of {len(field_)} {what} series with {slices}",
                f"the first by uid of {len(field_)} alike {what} series with {slices} slices",
            )[number]
        )
        field_ = [one for one in field_ if one not in beaten]
        if len(field_) == 1:
            break
    return "; ".join(reasons)


def _names(series: Sequence[Series], group: Group, root: Path) -> str:
    if len(series) > 2:
        return f"{len(series)} others"
    return " and ".join(series_name(one, group, root) for one in series)


def _lack(series: Sequence[Series]) -> str:
    return "lacks" if len(series) == 1 else "lack"


def _none(group: Group, status: Mapping[int, tuple[str, str]], root: Path) -> str:
    """Say why no series of a study can be used: each reason with the number of series it holds for."""
    reasons: dict[str, list[Series]] = defaultdict(list)
    for one in group.series:
        reasons[status[id(one)][1]].append(one)
    if len(group.series) == 1:
        return next(iter(reasons))
    parts = [
        f"{series_name(found[0], group, root)}: {reason}" if len(found) == 1 else f"{len(found)} series: {reason}"
        for reason, found in reasons.items()
    ]
    return f"none of its {len(group.series)} series can be used ({'; '.join(part.rstrip('.') for part in parts)})."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
