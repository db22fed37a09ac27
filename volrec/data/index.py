"""What is in a folder: studies, the series chosen of each and why, and everything that was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.config import SeriesConfig
from volrec.data.choose import choose, grid_of, habits, matches, modality_of
from volrec.data.forecast import forecast
from volrec.data.naming import folder_of, name_of, natural, relative_path
from volrec.data.scan import Scan, scan_tree
from volrec.data.studies import Group, group_studies
from volrec.errors import DataError, Problem
from volrec.files import write_atomically
from volrec.io import SET_ASIDE, Series, assemble

if TYPE_CHECKING:
    from pandas import DataFrame

    from volrec.io.series import MissingSlices

__all__ = ["StudyIndex", "StudyRecord", "index"]

TABLES = frozenset({".csv", ".tsv"})
"""Suffixes of what is more likely a table of labels than an image."""
COLUMNS = (
    "study",
    "patient",
    "series",
    "path",
    "kind",
    "modality",
    "orientation",
    "slices",
    "height",
    "width",
    "spacing_t",
    "spacing_h",
    "spacing_w",
    "chosen",
    "why",
    "status",
    "problem",
)


@dataclass(frozen=True)
class StudyRecord:
    """A study that can be used.

    Attributes
    ----------
    study, patient : str
        Name, unique in the index; key of the patient.
    path : str
        Its folder or file, relative to the root.
    series : Series
        The one chosen.
    alternatives : tuple of Series
        Its others, usable or not.
    why : str
        Why this series.
    aliases : frozenset of str
        Every name that means this study alone: uid, folder, file, stem, relative or absolute.
    """

    study: str
    patient: str
    path: str
    series: Series
    alternatives: tuple[Series, ...]
    why: str
    aliases: frozenset[str]


class StudyIndex:
    """The studies of a folder.

    Attributes
    ----------
    root : Path
        The folder, resolved.
    studies : list of StudyRecord
        Studies with a usable series, in natural order of their names.
    problems : list of Problem
        Fatal ones: a file, series or study that is not used. Others: assumptions and corrections.
    files, read, hidden : int
        Files in the tree; files that this scan opened; hidden entries passed over.
    """

    def __init__(
        self, root: Path, studies: list[StudyRecord], problems: list[Problem], rows: list[dict[str, Any]], scan: Scan
    ) -> None:
        self.root = root
        self.studies = studies
        self.problems = problems
        self.files = len(scan.tree.files)
        self.read = scan.read
        self.hidden = scan.tree.hidden
        self._rows = rows
        self._kinds = Counter(found.kind for found in scan.files.values())

    def __len__(self) -> int:
        return len(self.studies)

    def __iter__(self) -> Iterator[StudyRecord]:
        return iter(self.studies)

    def __repr__(self) -> str:
        return f"StudyIndex({str(self.root)!r}: {len(self.studies)} studies, {len(self._rows)} series)"

    @cached_property
    def table(self) -> DataFrame:
        """One row a series; size in voxels and spacing in mm along (T, H, W), as it will be read."""
        from pandas import DataFrame

        return DataFrame(self._rows, columns=list(COLUMNS))

    def find(self, name: str) -> StudyRecord | None:
        """Return the study that a label means by `name`: name, uid, folder, file or file stem; None if none does."""
        relative = relative_path(name, self.root).strip("/")
        found = self._by_alias.get(name) or self._by_alias.get(relative)
        if found is None and "/" in relative:  # one slice of a series in files
            holder = self._by_alias.get(folder_of(relative))
            path = str(self.root / relative)
            if holder and any(path in one.files for one in (holder.series, *holder.alternatives)):
                return holder
        return found

    @cached_property
    def _by_alias(self) -> dict[str, StudyRecord]:
        return {alias: record for record in self.studies for alias in record.aliases}

    def summary(self) -> dict[str, Any]:
        """Return counts, and what decoding and training will need.

        Returns
        -------
        dict
            ``studies, patients, series, files, modalities, orientations, statuses, quarantined`` and ``needs`` (see
            `forecast`).
        """
        chosen = [record.series for record in self.studies]
        return {
            "studies": len(self.studies),
            "patients": len({record.patient for record in self.studies}),
            "series": len(self._rows),
            "files": self.files,
            "dicom_files": self._kinds["dicom"],
            "nifti_files": self._kinds["nifti"],
            "other_files": self._kinds["other"] + self._kinds["dicomdir"],
            "hidden": self.hidden,
            "modalities": _counts(modality_of(series) for series in chosen),
            "orientations": _counts(series.orientation for series in chosen),
            "statuses": _counts(row["status"] for row in self._rows),
            "quarantined": sum(problem.fatal for problem in self.problems),
            "needs": forecast(chosen),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types: no name, date or free text of a patient is among them."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in self._rows:
            rows.setdefault(row["study"], []).append(
                {key: row[key] for key in COLUMNS if key not in {"study", "patient"}}
            )
        return {
            "format": "volrec index 1",
            "root": str(self.root),
            "summary": self.summary(),
            "studies": [
                {
                    "study": record.study,
                    "patient": record.patient,
                    "path": record.path,
                    "chosen": record.series.uid,
                    "why": record.why,
                    "series": rows.pop(record.study, []),
                }
                for record in self.studies
            ],
            "unused": [{"study": study, "series": found} for study, found in rows.items()],
            "problems": [problem.as_dict() for problem in self.problems],
        }

    def write(self, path: Path | str) -> Path:
        """Write the index: everything as ``.json``, or the table of series as ``.csv``.

        Raises
        ------
        DataError
            Another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".json":
            text = json.dumps(self.as_dict(), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
        elif path.suffix.lower() == ".csv":
            text = self.table.to_csv(index=False, lineterminator="\n")
        else:
            raise DataError(
                f"an index is not written as '{path.suffix}'.",
                remedy="Name it .json or .csv.",
                where=path,
                code="suffix",
            )
        try:
            # File names may hold bytes that are no text.
            write_atomically(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise DataError(
                f"it cannot be written ({error.strerror or error}).",
                remedy="Choose another place.",
                where=path,
                code="unwritable",
            ) from None
        return path


def index(
    folder: Path | str,
    *,
    series: SeriesConfig | None = None,
    missing_slices: MissingSlices = "quarantine",
    cache: Path | str | None = None,
    jobs: int = 0,
    refresh: bool = False,
) -> StudyIndex:
    """Find the studies of a folder and choose a series of each.

    Parameters
    ----------
    folder : path or str
        Any tree of DICOM and NIfTI files, or a single file.
    series : SeriesConfig, optional
        Which series are wanted.
    missing_slices : str
        Whether a series that lacks a single slice is refused (``"quarantine"``) or will be filled (``"interpolate"``).
    cache : path, optional
        Where headers are kept between scans; default ``$VOLREC_CACHE`` or ``~/.cache/volrec``.
    jobs : int
        Processes that read headers; 0 takes the processors at hand.
    refresh : bool
        Read every header again.

    Returns
    -------
    StudyIndex
        Possibly without a usable study: then its problems say why.

    Raises
    ------
    DataError
        No such folder, an empty one, or one without a medical image.
    """
    scan = scan_tree(folder, cache=cache, jobs=jobs, refresh=refresh)
    _check_images(scan, Path(folder))
    config = series or SeriesConfig()
    root = scan.tree.root
    found, loose = assemble([header for file in scan.files.values() for header in file.headers], root=root)
    if missing_slices == "quarantine":
        found = [_refuse_gaps(one) for one in found]
    pattern = config.path
    wanted = None if pattern is None else (lambda one: matches(one, pattern, root))
    groups, masks, assumed = group_studies(found, root, wanted=wanted)
    usual = habits(groups, config, root)
    studies: list[StudyRecord] = []
    rows: list[dict[str, Any]] = []
    problems = [*map(_aside, scan.problems), *map(_aside, loose), *assumed]
    for group in groups:
        choice = choose(group, config, usual, root)
        problems.extend(_of_study(group, choice.chosen, choice.why, usual.modality))
        for one in sorted([*group.series, *group.masks], key=lambda one: (one is not choice.chosen, natural(one.path))):
            rows.append(_row(one, group, *choice.status[id(one)], root))
        if choice.chosen is not None:
            others = tuple(one for one in group.series if one is not choice.chosen)
            studies.append(
                StudyRecord(
                    group.study,
                    group.patient,
                    group.path or ".",
                    choice.chosen,
                    others,
                    choice.why,
                    frozenset(group.aliases),
                )
            )
    rows.extend(_row(one, Group(), "mask", "a segmentation by its name", root) for one in masks)
    return StudyIndex(root, studies, list(dict.fromkeys(problems)), rows, scan)


def _refuse_gaps(series: Series) -> Series:
    """Make a lacking slice, which could be filled, the reason not to use the series."""
    if not series.missing:
        return series
    told = (replace(problem, fatal=True) if problem.code == "missing-slice" else problem for problem in series.problems)
    return replace(series, problems=tuple(told))


def _check_images(scan: Scan, folder: Path) -> None:
    files = scan.tree.files
    if any(found.headers or found.problem for found in scan.files.values()) or scan.problems:
        return
    if not files:
        hidden = f" but {scan.tree.hidden} hidden entries" if scan.tree.hidden else ""
        raise DataError(
            f"the folder holds no file{hidden}.",
            remedy="Give the folder that holds your studies.",
            where=folder,
            code="empty-folder",
        )
    if folder.expanduser().is_file():
        is_table = folder.suffix.lower() in TABLES
        raise DataError(
            f"it is a {'table' if is_table else 'file'} ({folder.suffix or 'no suffix'}), no DICOM or NIfTI image.",
            remedy="Give the folder that holds your studies"
            + (f", and the table of labels beside it: FOLDER --labels {folder}." if is_table else ", or an image."),
            where=folder,
            code="no-images",
        )
    suffixes = Counter("".join(Path(name_of(path)).suffixes[-2:]).lower() or "no suffix" for path in files)
    seen = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(6)) + (
        " …" if len(suffixes) > 6 else ""
    )
    raise DataError(
        f"none of its {len(files)} files is a DICOM or NIfTI image ({seen}).",
        remedy="Give the folder that holds your studies.",
        where=folder,
        code="no-images",
    )


def _aside(problem: Problem) -> Problem:
    """Count what is no volume (localizers, reports, DICOMDIR) as seen, not as quarantined."""
    return replace(problem, fatal=False) if problem.code in SET_ASIDE and problem.fatal else problem


def _of_study(group: Group, chosen: Series | None, why: str, modality: str) -> Iterator[Problem]:
    """Yield what has to be said of one study: faults of its series, corrections of the chosen one, a lack of any."""
    faults = 0
    for one in group.series:
        for problem in one.problems:
            if problem.fatal and problem.code not in SET_ASIDE:
                faults += 1
                yield replace(problem, study=group.study)
            elif one is chosen or chosen is None:
                yield replace(problem, study=group.study)
    if chosen is None and not (faults and len(group.series) == 1):
        yield Problem(
            group.path or ".",
            "no-usable-series",
            why,
            "Look at its series in `volrec inspect FOLDER --json index.json`; data.series chooses among them.",
            group.study,
        )
    elif chosen is not None and modality_of(chosen) != modality:
        yield Problem(
            group.path or ".",
            "other-modality",
            f"its series is {modality_of(chosen)}; most of the folder is {modality}.",
            f"Set data.series.modality to {modality} to leave it out.",
            group.study,
            fatal=False,
        )


def _row(one: Series, group: Group, status: str, why: str, root: Path) -> dict[str, Any]:
    problem = "; ".join(f"{problem.code}: {problem.reason}" for problem in one.problems)
    shape, spacing = grid_of(one)
    values: Sequence[Any] = (
        group.study,
        group.patient,
        one.uid,
        relative_path(one.path, root) or ".",
        one.kind,
        modality_of(one),
        one.orientation,
        *(int(size) for size in shape),
        *(round(float(size), 6) for size in spacing),
        status == "chosen",
        why,
        status,
        problem,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _counts(values: Iterator[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
