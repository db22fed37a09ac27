"""Who trains, who chooses the checkpoint, who is tested: whole patients, stratified, the same for the same seed."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volrec.data.label_table import read_table, some
from volrec.data.targets import head_sizes
from volrec.errors import ConfigError, LabelsError, Problem
from volrec.files import write_atomically

if TYPE_CHECKING:
    from volrec.config import SplitConfig
    from volrec.data.labels import Case, Cohort

__all__ = ["PARTS", "Split", "check_leak", "make_splits", "read_splits", "split_problems", "write_splits"]

PARTS = ("train", "validation", "test")
COLUMNS = ("split", "part", "study", "patient")
Divide = Callable[[Iterable[str], Sequence[float], str], list[list[str]]]
BINS = 5  # quantile bins that stratify a regression


@dataclass(frozen=True)
class Split:
    """One division of the studies.

    Attributes
    ----------
    name : str
        ``"fold-0"`` …, or ``"split"`` where there is only one.
    train, validation, test : tuple of str
        Studies, sorted.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def part(self, name: str) -> tuple[str, ...]:
        """Return the studies of ``"train"``, ``"validation"`` or ``"test"``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def make_splits(cohort: Cohort, config: SplitConfig) -> list[Split]:
    """Divide the studies.

    A column ``split`` of the labels is obeyed (where it names no validation studies, they are drawn from the training
    patients). Else, with folds, every study is tested once; without, one split by shares. Classes, label combinations
    or quantiles of the target are spread evenly. Neither the order of the rows nor studies of other patients' classes
    decide a tie, only the seed.

    Parameters
    ----------
    cohort : Cohort
        Studies with targets and patients.
    config : SplitConfig
        Shares, folds and seed. `config.fold` does not matter here: all folds are made, so that a fold trained alone is
        the same as among the others.

    Returns
    -------
    list of Split
        One a fold, or one alone.

    Raises
    ------
    LabelsError
        A patient on two sides, too few patients, or a class that training or testing would lack.
    ConfigError
        Folds together with a column ``split``, a single fold, or a fold that is not there.
    """
    _check_config(cohort, config)
    _check_heads(cohort)
    hard = cohort.task in ("binary", "multiclass", "multihead")
    patients = _patients(cohort.cases)
    features, names = _features(cohort)
    counts = {patient: np.sum([features[study] for study in studies], axis=0) for patient, studies in patients.items()}

    def divide(among: Iterable[str], shares: Sequence[float], purpose: str) -> list[list[str]]:
        return _allocate({patient: counts[patient] for patient in among}, shares, f"{config.seed}/{purpose}")

    def named(name: str, train: Iterable[str], validation: Iterable[str], test: Iterable[str]) -> Split:
        return Split(name, _studies(train, patients), _studies(validation, patients), _studies(test, patients))

    if any(case.split for case in cohort.cases):
        splits = [_obey(cohort, config, patients, divide)]
    elif config.folds:
        _check_folds(patients, counts, names, config.folds, hard=hard)
        folds = divide(patients, [1 / config.folds] * config.folds, "folds")
        splits = []
        for number, test in enumerate(folds):
            rest = [patient for other, fold in enumerate(folds) if other != number for patient in fold]
            train, validation = _carve(rest, config.validation, divide, f"validation/{number}")
            splits.append(named(f"fold-{number}", train, validation, test))
    else:
        needed = 1 + (config.validation > 0) + (config.test > 0)
        if len(patients) < needed:
            raise _too_few(len(patients), f"training{', validation' * (config.validation > 0)} and test", needed)
        validation_share = (1 - config.test) * config.validation
        shares = [1 - config.test - validation_share, validation_share, config.test]
        splits = [named("split", *divide(patients, shares, "shares"))]
    for split in splits:
        _check_classes(split, features, names, hard=hard)
    check_leak(splits, cohort)
    return splits


def check_leak(splits: Iterable[Split], cohort: Cohort, *, table: Path | str = "split") -> None:
    """Make sure that no patient, and no study, is in two parts of a split.

    To be called whenever a split meets studies: when it is made, when a training goes on, and before a test.

    Parameters
    ----------
    splits : iterable of Split
        Divisions to check.
    cohort : Cohort
        Says whose the studies are. Studies that it does not know are not checked.
    table : path or str
        Where the split comes from, for the message.

    Raises
    ------
    LabelsError
        Names the patients, where they are, and the table.
    """
    owner = {case.study: case.patient for case in cohort.cases}
    for split in splits:
        parts: dict[str, dict[str, None]] = defaultdict(dict)
        for part in PARTS:
            for study in split.part(part):
                parts[f"patient {owner[study]}" if study in owner else f"study {study}"][part] = None
        leaks = [f"{name} ({' and '.join(found)})" for name, found in sorted(parts.items()) if len(found) > 1]
        if leaks:
            raise LabelsError(
                f"{len(leaks)} on two sides of '{split.name}': {some(leaks, 10)}.",
                remedy="Put all studies of a patient into one part: a test on what training saw proves nothing.",
                where=table,
                code="leak",
            )


def split_problems(cohort: Cohort, splits: Iterable[Split]) -> list[Problem]:
    """Return what makes a split poor but not useless: a class or label that validation or test lacks.

    Scores that need both classes, such as the AUC, are then not defined for that part.
    """
    features, names = _features(cohort)
    problems = []
    for split in splits:
        for part in PARTS:
            studies = split.part(part)
            lacking = _lacking(studies, features, names) if studies else []
            if lacking and cohort.task != "regression":
                problems.append(
                    Problem(
                        split.name,
                        "class-missing",
                        f"No {part} study of {some(lacking)} ({len(studies)} studies): "
                        "metrics that need it are not defined there.",
                        "Add patients of it, or use fewer folds or larger shares.",
                        fatal=False,
                    )
                )
    return problems


def write_splits(path: Path | str, splits: Iterable[Split], cohort: Cohort) -> Path:
    """Write ``split, part, study, patient``, a row a study and split."""
    owner = {case.study: case.patient for case in cohort.cases}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for split in splits:
        for part in PARTS:
            writer.writerows((split.name, part, study, owner[study]) for study in split.part(part))
    write_atomically(path, text.getvalue())
    return Path(path)


def read_splits(path: Path | str, cohort: Cohort | None = None) -> list[Split]:
    """Read what `write_splits` wrote.

    Parameters
    ----------
    path : path
        The table.
    cohort : Cohort, optional
        Present studies: each split is checked for leaks against them, as patients may have been renamed since.

    Raises
    ------
    LabelsError
        No such table, other columns, an unknown part, or a leak.
    """
    table = read_table(path)
    if not {"split", "part", "study"} <= set(table.columns):
        raise LabelsError(
            f"it has the columns {some(table.columns)}, not {', '.join(COLUMNS)}.",
            remedy="Give the splits.csv of a run.",
            where=path,
            code="labels-columns",
        )
    found: dict[str, dict[str, list[str]]] = {}
    for line, name, part, study in zip(table.index, table["split"], table["part"], table["study"], strict=True):
        if part not in PARTS:
            raise LabelsError(
                f"line {line}: '{part}' is none of {', '.join(PARTS)}.",
                remedy="Mend that line.",
                where=path,
                code="labels-split",
            )
        found.setdefault(str(name), {known: [] for known in PARTS})[part].append(str(study))
    splits = [Split(name, *(tuple(sorted(parts[part])) for part in PARTS)) for name, parts in found.items()]
    if cohort is not None:
        check_leak(splits, cohort, table=path)
    return splits


def _check_config(cohort: Cohort, config: SplitConfig) -> None:
    if config.folds == 1:
        raise ConfigError(
            "one fold is no cross-validation.",
            remedy="Set split.folds to 2 or more, or to 0 for a single split.",
            where="split.folds",
            code="folds",
        )
    if config.fold is not None and not 0 <= config.fold < max(config.folds, 1):
        raise ConfigError(
            f"there is no fold {config.fold}: "
            + (f"folds count from 0 to {config.folds - 1}." if config.folds else "split.folds is 0."),
            remedy="Choose one of them, or none to train all.",
            where="split.fold",
            code="folds",
        )
    if config.folds and any(case.split for case in cohort.cases):
        raise ConfigError(
            f"{config.folds} folds are asked for, and the labels have a column split.",
            remedy="Set split.folds to 0 to obey the column, or take it out of the table.",
            where="split.folds",
            code="folds",
        )


def _check_heads(cohort: Cohort) -> None:
    """Make sure that there is something to learn for every head of a multihead task."""
    for place in range(len(head_sizes(cohort.task, cohort.classes, cohort.targets))):
        found = {float(case.target[place]) for case in cohort.cases if np.isfinite(case.target[place])}
        if len(found) < 2:
            raise LabelsError(
                f"target '{cohort.targets[place]}' has studies of {len(found)} class(es): it cannot be learned.",
                remedy="Leave it out of the targets, or add studies of another class.",
                code="one-class",
            )


def _obey(cohort: Cohort, config: SplitConfig, patients: Mapping[str, list[str]], divide: Divide) -> Split:
    """Return the split that the table asks for."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for case in cohort.cases:
        parts[str(case.split)].append(case.study)
    split = Split("split", *(tuple(sorted(parts[part])) for part in PARTS))
    check_leak([split], cohort, table="column split of the labels")
    if not split.train:
        raise LabelsError(
            "column split names no training study.",
            remedy="Write train for some of them.",
            where="column split of the labels",
            code="few-patients",
        )
    if split.validation or not config.validation:
        return split
    inside = set(split.train)
    among = [patient for patient, studies in patients.items() if inside.issuperset(studies)]
    train, validation = _carve(among, config.validation, divide, "validation")
    return Split(split.name, _studies(train, patients), _studies(validation, patients), split.test)


def _carve(among: Sequence[str], share: float, divide: Divide, purpose: str) -> list[list[str]]:
    """Divide patients into those that train and those that choose the checkpoint."""
    if share and len(among) < 2:
        raise _too_few(len(among), "training and validation", 2)
    return divide(among, [1 - share, share], purpose)


def _patients(cases: Sequence[Case]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.study):
        found[case.patient].append(case.study)
    return dict(sorted(found.items()))


def _studies(chosen: Iterable[str], patients: Mapping[str, list[str]]) -> tuple[str, ...]:
    return tuple(sorted(study for patient in chosen for study in patients[patient]))


def _features(cohort: Cohort) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return what is to be spread evenly: for each study 0 or 1 per class, label or quantile bin, and their names."""
    cases = sorted(cohort.cases, key=lambda case: case.study)
    if not cases:
        raise LabelsError("there is no study to split.", remedy="Check folder and labels.", code="few-patients")
    values = np.stack([np.asarray(case.target, dtype=np.float64).reshape(-1) for case in cases])
    if cohort.task in ("binary", "multiclass"):
        table = values[:, :1] == np.arange(len(cohort.classes))
        names = [f"class '{name}'" for name in cohort.classes]
    elif cohort.task == "multihead":
        sizes = head_sizes(cohort.task, cohort.classes, cohort.targets)
        # A study without a class of a head is in none of its columns.
        table = np.column_stack([values[:, [place]] == np.arange(size) for place, size in enumerate(sizes)])
        names = [f"class '{name}'" for name in cohort.classes]
    elif cohort.task == "multilabel":
        table = np.column_stack((values > 0.5, values < 0.5))
        names = [f"{sign} '{name}'" for sign in ("positive", "negative") for name in cohort.targets]
    else:
        columns = []
        for column in values.T:
            edges = np.unique(np.quantile(column, np.arange(1, BINS) / BINS))
            columns.append(np.searchsorted(edges, column, side="right")[:, None] == np.arange(len(edges) + 1))
        table = np.concatenate(columns, axis=1)
        names = [f"quantile bin {number}" for number in range(table.shape[1])]
    used = table.any(axis=0)
    kept = [name for name, present in zip(names, used, strict=True) if present]
    rows = table[:, used].astype(np.int64)
    return {case.study: row for case, row in zip(cases, rows, strict=True)}, kept


def _allocate(counts: Mapping[str, np.ndarray], shares: Sequence[float], seed: str) -> list[list[str]]:
    """Give every patient to a part, so that each part gets its share of every feature.

    Iterative stratification [1]_ over patients instead of examples: the rarest feature first, the largest patient
    first, to the part that still lacks most of that feature. A part that lacks a feature altogether, or is empty, is
    served before the patients run out.

    References
    ----------
    .. [1] K. Sechidis, G. Tsoumakas, I. Vlahavas: On the stratification of multi-label data. ECML PKDD 2011.
    """
    parts: list[list[str]] = [[] for _ in shares]
    if not counts:
        return parts
    weights = np.asarray(shares, dtype=np.float64)
    total = np.sum(list(counts.values()), axis=0).astype(np.float64)
    wanted = weights[:, None] * total
    room = weights * len(counts)
    given = np.zeros_like(wanted)
    # A hash, not a generator: a tie is decided by seed and patient alone.
    order = {patient: hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=8).hexdigest() for patient in counts}
    waiting = dict(sorted(counts.items(), key=lambda item: order[item[0]]))
    while waiting:
        left = np.sum(list(waiting.values()), axis=0)
        feature = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        holders = sorted(
            (patient for patient, count in waiting.items() if count[feature]),
            key=lambda patient: (-waiting[patient][feature], order[patient]),
        )
        for place, patient in enumerate(holders):
            # In order of importance: what training lacks nobody learns, what the test lacks nobody measures.
            lacking = [part for part in _by_importance(weights) if weights[part] > 0 and not given[part, feature]]
            empty = [part for part in _by_importance(weights) if weights[part] > 0 and not parts[part]]
            if empty and len(waiting) <= len(empty):
                part = empty[0]
            elif lacking and len(holders) - place <= len(lacking):
                part = lacking[0]
            else:
                need = wanted[:, feature] - given[:, feature]
                part = max(
                    (number for number in range(len(parts)) if weights[number] > 0),
                    key=lambda number: (round(float(need[number]), 9), round(float(room[number]), 9), -number),
                )
            parts[part].append(patient)
            given[part] += waiting.pop(patient)
            room[part] -= 1
    return [sorted(part) for part in parts]


def _by_importance(weights: np.ndarray) -> list[int]:
    return [0, 2, 1] if len(weights) == 3 else list(range(len(weights)))


def _check_folds(
    patients: Mapping[str, list[str]], counts: Mapping[str, np.ndarray], names: Sequence[str], folds: int, *, hard: bool
) -> None:
    if len(patients) < folds:
        raise _too_few(len(patients), f"{folds} folds", folds)
    holders = np.sum([count > 0 for count in counts.values()], axis=0)
    for name, number in zip(names, holders, strict=True):
        if hard and number < folds:
            raise LabelsError(
                f"{name} has {number} {'patient' if number == 1 else 'patients'}, too few for {folds} folds.",
                remedy=f"Use at most {number} folds, or add patients of it."
                if number > 1
                else "Add patients of it, or leave it out (data.classes).",
                code="few-patients",
            )


def _check_classes(split: Split, features: Mapping[str, np.ndarray], names: Sequence[str], *, hard: bool) -> None:
    """Refuse a split that cannot be learned from, or tested."""
    lacking = _lacking(split.train, features, names)
    if not split.train or (hard and lacking):
        what = f"training study of {some(lacking)}" if split.train else "training study"
        raise LabelsError(
            f"'{split.name}' would have no {what}.",
            remedy="Add patients, or use smaller shares for validation and test.",
            code="few-patients",
        )
    lacking = _lacking(split.test, features, names)
    if split.test and hard and len(lacking) == len(names) - 1 and len(names) > 1:
        raise LabelsError(
            f"'{split.name}' would be tested on one class only: no test study of {some(lacking)}.",
            remedy="Add patients of it, or use a larger split.test, fewer folds, or a column split.",
            code="few-patients",
        )


def _lacking(studies: Sequence[str], features: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    there = np.sum([features[study] for study in studies], axis=0) if studies else np.zeros(len(names))
    return [name for name, number in zip(names, there, strict=True) if not number]


def _too_few(patients: int, what: str, needed: int) -> LabelsError:
    return LabelsError(
        f"{patients} {'patient is' if patients == 1 else 'patients are'} too few for {what}: at least {needed}.",
        remedy="Add patients, use fewer folds or parts; if the files carry one PatientID for all, "
        "name the patients in a column `patient` of the labels.",
        code="few-patients",
    )
