"""Which study is meant, and which networks of a run may speak about it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.errors import DataError, RunError
from volrec.inference.members import Contract, LoadedMember

if TYPE_CHECKING:
    import pandas as pd

    from volrec.data.index import StudyRecord
    from volrec.io import Series
    from volrec.runs import RunFolder

__all__ = ["FoundStudy", "StudyFinder"]


@dataclass(frozen=True)
class FoundStudy:
    """A study to be explained.

    Attributes
    ----------
    study : str
        Its name.
    series : Series
        What is read.
    members : tuple of LoadedMember
        The networks that are asked: those that tested it, else all of the run.
    note : str
        What has to be said of it: that training saw it. Empty otherwise.
    """

    study: str
    series: Series
    members: tuple[LoadedMember, ...]
    note: str = ""


class StudyFinder:
    """Finds studies by name, in the run or in another folder, or by path; each folder is scanned once.

    Parameters
    ----------
    run : RunFolder
        Whose studies are known by name.
    members : sequence of LoadedMember
        Its networks.
    folder : path, optional
        Where studies are looked for by name; None: the folder that the run was trained on.
    """

    def __init__(self, run: RunFolder, members: Sequence[LoadedMember], *, folder: Path | str | None = None) -> None:
        self.run = run
        self.members = tuple(members)
        self.folder = folder
        self._series: dict[str, Series] | None = None
        self._splits: pd.DataFrame | None = None

    def find(self, study: str | Path) -> FoundStudy:
        """Find a study.

        Parameters
        ----------
        study : str or path
            Name of a study of the run (or of the folder), or a path to a DICOM folder or a file.

        Raises
        ------
        DataError
            There is no such study, or several are meant.
        RunError
            The run does not say where its studies are.
        """
        name = str(study)
        is_own = self.folder is None and name in set(self._table()["study"])
        if self.folder is None and not is_own and Path(name).exists():
            return self._of_path(Path(name))
        known = self._known()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise DataError(
                f"there is no study or path '{name}'" + (f" (did you mean '{near[0]}'?)." if near else "."),
                remedy="Give the name of a study as in scores.csv of the run, or a DICOM folder or NIfTI file.",
                code="no-study",
            )
        return self._judged(name, known[name], patient=None if self.folder is None else "")

    def _of_path(self, path: Path) -> FoundStudy:
        from volrec.data.index import index

        contract = self.members[0].contract
        found = index(path, series=contract.series, missing_slices=contract.missing_slices)
        if len(found.studies) != 1:
            names = ", ".join(record.study for record in found.studies[:4])
            fault = next((problem for problem in found.problems if problem.fatal), None)
            raise DataError(
                f"it holds {len(found.studies)} studies ({names} …)."
                if found.studies
                else fault.reason
                if fault
                else "it holds no usable study.",
                remedy=f"Give one of them, or --folder {path} and its name."
                if found.studies
                else fault.remedy
                if fault
                else "`volrec inspect` says what is in it.",
                where=path,
                code="several-studies" if found.studies else fault.code if fault else "no-usable-study",
            )
        record = found.studies[0]
        return self._judged(record.study, _suited(record, contract), patient=record.patient)

    def _known(self) -> dict[str, Series]:
        """Return the series of each study that can be named."""
        if self._series is None:
            from volrec.data.index import index
            from volrec.data.labels import join

            data = self.run.config.data
            place = self.folder or data.folder
            if place is None:
                raise RunError(
                    "its configuration names no folder of studies.",
                    remedy="Give it with --folder, or give the study as a path.",
                    where=self.run.path,
                    code="no-folder",
                )
            found = index(place, series=data.series, missing_slices=data.missing_slices)
            if self.folder is None and data.labels is not None:
                # Labels may have chosen another series than the index would.
                self._series = {case.study: case.series for case in join(found, data.labels, data).cases}
            else:
                contract = self.members[0].contract
                self._series = {record.study: _suited(record, contract) for record in found.studies}
        return self._series

    def _table(self) -> pd.DataFrame:
        """Return the splits of the run: ``study, patient, split, part``."""
        if self._splits is None:
            self._splits = self.run.read_table("splits")
        return self._splits

    def _judged(self, study: str, series: Series, *, patient: str | None) -> FoundStudy:
        """Return the study with the members that may speak, by its name or that of its patient in the run."""
        table = self._table()
        own = table[table["study"] == study]
        everyone = FoundStudy(study, series, self.members)
        if patient is not None and own.empty and "patient" in table:
            own = table[table["patient"] == patient]
        names = {member.name for member in self.members}
        own = own[own["split"].isin(names)]
        if own.empty:
            return everyone
        tested = set(own.loc[own["part"] == "test", "split"])
        if tested:
            return replace(everyone, members=tuple(member for member in self.members if member.name in tested))
        parts = " and ".join(sorted(set(own["part"])))
        return replace(
            everyone,
            note=f"{study} belongs to the {parts} studies of this run: its networks have seen it, and the map shows "
            "what they learned from it, not what they find in new studies.",
        )


def _suited(record: StudyRecord, contract: Contract) -> Series:
    """Return the study's chosen series, or one of the modality that the run was trained on, where it has one."""
    series = record.series
    if contract.modality and series.modality != contract.modality:
        fitting = (one for one in record.alternatives if one.modality == contract.modality)
        series = next((one for one in fitting if one.usable and not one.localizer), series)
    return series
