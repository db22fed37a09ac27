"""The studies of a run as its training had them: decoded in the store, labelled, divided."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.config import TrainConfig
from volrec.data.entries import Entry
from volrec.data.index import index
from volrec.data.labels import Case, Cohort, join
from volrec.data.splits import PARTS, Split, check_leak, make_splits, read_splits
from volrec.data.store import Store
from volrec.data.streams import check_streams, fill_streams
from volrec.errors import ConfigError, LabelsError, Problem, RunError

if TYPE_CHECKING:
    from volrec.runs import RunFolder

__all__ = ["Studies", "open_run", "open_studies"]


@dataclass(frozen=True)
class Studies:
    """Studies with labels, decoded volumes and their division.

    Attributes
    ----------
    config : TrainConfig
        Whose preprocessing, intensities, streams and store count.
    cohort : Cohort
        Those that could be decoded.
    entries : mapping of str to Entry
        By study.
    store : Store
        Opens them.
    splits : tuple of Split
        One a fold; studies that could not be decoded are in none.
    problems : tuple of Problem
        What was left out.
    """

    config: TrainConfig
    cohort: Cohort
    entries: dict[str, Entry]
    store: Store
    splits: tuple[Split, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Studies of the splits, sorted."""
        return tuple(sorted({study for split in self.splits for part in PARTS for study in split.part(part)}))

    @property
    def cases(self) -> dict[str, Case]:
        """By study."""
        return {case.study: case for case in self.cohort.cases}

    def without(self, left_out: Iterable[str], problems: Sequence[Problem] = ()) -> Studies:
        """Return the same without some studies, with the problems that say why."""
        gone = set(left_out)
        splits = tuple(
            Split(split.name, *(tuple(study for study in split.part(part) if study not in gone) for part in PARTS))
            for split in self.splits
        )
        cohort = replace(self.cohort, cases=tuple(case for case in self.cohort.cases if case.study not in gone))
        entries = {study: entry for study, entry in self.entries.items() if study not in gone}
        return replace(self, cohort=cohort, entries=entries, splits=splits, problems=(*self.problems, *problems))


def open_run(run: RunFolder, *, jobs: int = 0) -> Studies:
    """Take up the studies of a run of `volrec train`, in the splits of its finished members.

    Volumes come from the run's store; what is not there any more is decoded again.

    Raises
    ------
    RunError
        No finished member, or labels that are not those it was trained with.
    LabelsError
        Studies of the run that are gone, or patients on two sides.
    """
    members = {member.name: member for member in run.finished_members()}
    splits = [split for split in read_splits(run.path / "splits.csv") if split.name in members]
    found = open_studies(run.config, splits, jobs=jobs)
    for member in members.values():
        card = member.card()
        known = (str(card["task"]), tuple(map(str, card["targets"])), tuple(map(str, card["classes"])))
        here = (str(found.cohort.task), tuple(found.cohort.targets), tuple(found.cohort.classes))
        if known != here:
            raise RunError(
                f"it was trained with {known}, and its labels say {here} now.",
                remedy="Bring back the table of labels that it was trained with.",
                where=run.path,
                code="other-labels",
            )
    return found


def open_studies(config: TrainConfig, splits: Sequence[Split] | None = None, *, jobs: int = 0) -> Studies:
    """Read, join and decode the studies of a configuration, for which no network needs to be there.

    Parameters
    ----------
    config : TrainConfig
        With a folder and a table of labels.
    splits : sequence of Split, optional
        Of a run; made as for a training where they are left out.
    jobs : int
        Processes; 0 takes the processors at hand where the work is large.

    Raises
    ------
    ConfigError
        No folder or labels are named, or what the streams need is not here.
    DataError, LabelsError, StoreError
        As in a training.
    """
    folder, labels = config.data.folder, config.data.labels
    if folder is None or labels is None:
        raise ConfigError(
            f"data.{'folder' if folder is None else 'labels'} is not set.",
            remedy="Name the folder of studies and the table of labels.",
            where="data",
            code="config",
        )
    check_streams(config.streams)
    found = index(folder, series=config.data.series, missing_slices=config.data.missing_slices)
    cohort = join(found, labels, config.data)
    if splits is None:
        splits = make_splits(cohort, config.split)
    _check_there(splits, cohort, folder)
    check_leak(splits, cohort)
    used = {study for split in splits for part in PARTS for study in split.part(part)}
    cohort = replace(cohort, cases=tuple(case for case in cohort.cases if case.study in used))
    store = Store(config.store.folder, format=config.store.format, verify=config.store.verify)
    by_uid, unreadable = store.fill(
        cohort.cases, config.preprocess, missing_slices=config.data.missing_slices, jobs=jobs
    )
    by_uid, fieldless = fill_streams(store, cohort.cases, by_uid, config.streams, config.intensity, jobs=jobs)
    entries = {case.study: by_uid[case.series.uid] for case in cohort.cases if case.series.uid in by_uid}
    whole = Studies(config, cohort, entries, store, tuple(splits), (*found.problems, *cohort.problems))
    return whole.without(used - entries.keys(), [*unreadable, *fieldless])


def _check_there(splits: Sequence[Split], cohort: Cohort, folder: Path | str) -> None:
    known = {case.study for case in cohort.cases}
    gone = sorted({study for split in splits for part in PARTS for study in split.part(part)} - known)
    if gone:
        more = " …" if len(gone) > 3 else ""
        raise LabelsError(
            f"{len(gone)} studies of this run are not in the folder or its labels any more: "
            f"{', '.join(gone[:3])}{more}.",
            remedy="Bring them back: scores of other studies would not be comparable with the run's.",
            where=folder,
            code="studies-gone",
        )
