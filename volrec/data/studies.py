"""Series to studies: which belong together, what the study is called, whose it is, and what labels may call it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volrec.data.naming import (
    BIDS,
    common_folder,
    file_stem,
    folder_of,
    is_mask,
    name_of,
    natural,
    nifti_names,
    relative_path,
    upwards,
    without_mask_word,
)
from volrec.errors import Problem
from volrec.io import Series

__all__ = ["Group", "group_studies"]

PLACEHOLDERS = re.compile(
    r"(?:anon(?:ym\w*)?|unknown|none|nn|test|patient|subject|no ?name|removed|deidentified|[0x*\- ]+)", re.IGNORECASE
)
"""Patient ids that anonymisers leave behind."""
SUSPICIOUS = 5
"""So many studies under the only patient id of a folder are taken for an anonymised set, not for one person."""


@dataclass
class Group:
    """The series of one study, while the index is made.

    Attributes
    ----------
    study, patient : str
        Its name, unique in the index, and the key of its patient.
    path : str
        Its folder, relative to the root (``""`` is the root), or its file.
    series : list of Series
        All, usable or not.
    masks : list of Series
        Segmentations by their name: never images.
    uid : str
        StudyInstanceUID, empty for NIfTI.
    aliases : set of str
        Every name a label may use for this study and no other.
    folders : frozenset of str
        Folders that hold its files, relative to the root.
    """

    study: str = ""
    patient: str = ""
    path: str = ""
    series: list[Series] = field(default_factory=list)
    masks: list[Series] = field(default_factory=list)
    uid: str = ""
    aliases: set[str] = field(default_factory=set)
    folders: frozenset[str] = frozenset()


def group_studies(
    series: Sequence[Series], root: Path, *, wanted: Callable[[Series], bool] | None = None
) -> tuple[list[Group], list[Series], list[Problem]]:
    """Sort series into studies.

    Parameters
    ----------
    series : sequence of Series
        As `assemble` gave them for `root`.
    root : Path
        Scanned folder.
    wanted : callable, optional
        Tells which series were asked for by path: these are images even where their names say that they are masks.

    Returns
    -------
    list of Group
        Studies, sorted by name.
    list of Series
        Masks that belong to no study.
    list of Problem
        What was assumed, and what looks wrong: several patients in a folder, one id for many patients …
    """
    problems: list[Problem] = []
    dicom = _group_dicom([one for one in series if one.kind == "dicom"], root)
    nifti, loose = _group_nifti([one for one in series if one.kind != "dicom"], root, problems, wanted)
    _name_dicom(dicom, root, taken={group.study for group in nifti}, owners=_owners([*dicom, *nifti]))
    groups = [*dicom, *nifti]
    problems.extend(_several_patients(dicom))
    problems.extend(_assign_patients(groups))
    _give_aliases(groups, root)
    return sorted(groups, key=lambda group: natural(group.study)), loose, problems


def _group_dicom(series: Iterable[Series], root: Path) -> list[Group]:
    patients: dict[str, set[str]] = defaultdict(set)
    for one in series:
        if one.study_uid and one.patient_id.strip():
            patients[one.study_uid].add(one.patient_id.strip())
    groups: dict[tuple[str, str, str], Group] = {}
    for one in series:
        folders = frozenset(folder_of(relative_path(path, root)) for path in one.files)
        patient = one.patient_id.strip()
        known = patients[one.study_uid]
        if not patient and len(known) == 1:  # some files of the study lost the tag
            (patient,) = known
        # Without a StudyInstanceUID the folder is all that holds a study together.
        key = (one.study_uid, patient, "" if one.study_uid else common_folder(folders))
        group = groups.setdefault(key, Group(patient=patient, uid=one.study_uid))
        group.series.append(one)
        group.folders |= folders
    return list(groups.values())


def _name_dicom(groups: Sequence[Group], root: Path, *, taken: set[str], owners: dict[str, int]) -> None:
    """Name studies by their folder where it is theirs alone, else by its path, else by UID."""
    own: dict[int, str] = {}
    for group in groups:
        folder = common_folder(group.folders)
        group.path = folder
        if owners.get(folder) == id(group):
            own[id(group)] = folder
    count = Counter(name_of(folder) or root.name for folder in own.values())
    for group in groups:
        if id(group) in own:
            folder = own[id(group)]
            name = name_of(folder) or root.name
            group.study = name if count[name] == 1 and name not in taken else folder
        else:
            group.study = group.uid or group.path or root.name
    used = {*taken, *(group.study for group in groups)}
    for name, times in Counter(group.study for group in groups).items():
        if times > 1 or name in taken:  # one StudyInstanceUID for two patients, or a folder within one of its name
            alike = [group for group in groups if group.study == name]
            for number, group in enumerate(alike, start=1):
                group.study = f"{name}/{group.patient}" if group.patient else f"{name}#{number}"
                while group.study in used:
                    group.study += f"#{number}"
                used.add(group.study)


def _group_nifti(
    series: Sequence[Series], root: Path, problems: list[Problem], wanted: Callable[[Series], bool] | None
) -> tuple[list[Group], list[Series]]:
    paths = {id(one): relative_path(one.files[0], root) for one in series}
    asked = {id(one) for one in series if wanted is not None and wanted(one)}
    aside = [one for one in series if id(one) not in asked and is_mask(paths[id(one)])]
    if len(aside) == len(series):  # a folder of masks alone is what the user wants to look at
        aside = []
    set_aside = {id(one) for one in aside}
    images = [one for one in series if id(one) not in set_aside]
    name, said = nifti_names({paths[id(one)] for one in images if not asked or id(one) in asked})
    groups: dict[str, Group] = {}
    for one in images:
        path = paths[id(one)]
        group = groups.setdefault(name(path), Group(study=name(path)))
        group.series.append(one)
        group.folders |= {folder_of(path)}
    for group in groups.values():
        files = {paths[id(one)] for one in group.series}
        group.path = files.pop() if len(files) == 1 else common_folder(group.folders)
        bids = BIDS.match(file_stem(name_of(paths[id(group.series[0])])))
        group.patient = bids.group(1) if bids and said == "bids" else ""
    loose: list[Series] = []
    for one in aside:
        owner = groups.get(name(paths[id(one)])) or groups.get(without_mask_word(name(paths[id(one)])))
        if owner is None:
            loose.append(one)
        else:
            owner.masks.append(one)
    if aside:
        example = paths[id(aside[0])]
        problems.append(
            Problem(
                folder_of(example),
                "mask",
                f"{len(aside)} NIfTI files are segmentations by their names ({example}): they are set aside.",
                "If they are images, choose them with data.series.path, or rename them.",
                fatal=False,
            )
        )
    if said == "folder":
        problems.append(
            Problem(
                ".",
                "study-is-folder",
                "file names repeat, or begin with their folder's name: each folder of NIfTI files is taken as a study.",
                "If every file is a study of its own, give them different names.",
                fatal=False,
            )
        )
    return list(groups.values()), loose


def _owners(groups: Iterable[Group]) -> dict[str, int]:
    """Map every folder that holds files, directly or below, to the id of its only study, or to 0 for several."""
    owners: dict[str, int] = {}
    for group in groups:
        for folder in group.folders:
            for above in upwards(folder):
                owner = owners.setdefault(above, id(group))
                if owner == 0:
                    break
                if owner != id(group):
                    owners[above] = 0
    return owners


def _several_patients(groups: Iterable[Group]) -> list[Problem]:
    inside: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        for folder in group.folders:
            if group.patient:
                inside[folder].add(group.patient)
    return [
        Problem(
            folder or ".",
            "several-patients",
            f"it holds files of {len(patients)} patients ({_some(patients)}); they are kept apart.",
            "Labels for them have to name the patient or the StudyInstanceUID, not this folder.",
            fatal=False,
        )
        for folder, patients in sorted(inside.items())
        if len(patients) > 1
    ]


def _assign_patients(groups: Sequence[Group]) -> list[Problem]:
    """Give every study a patient; where the files do not tell, the study is a patient of its own, and that is said."""
    problems: list[Problem] = []
    by_id: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_id[group.patient].append(group)
    unnamed = by_id.pop("", [])
    remedy = "If some of them are of one patient, say so in a column `patient` of the labels."
    for patient, alike in sorted(by_id.items()):
        dicom = [group for group in alike if group.uid]
        alone = len(by_id) == 1 and len(dicom) >= SUSPICIOUS
        if len(dicom) > 1 and (alone or PLACEHOLDERS.fullmatch(patient)):
            for group in dicom:
                group.patient = group.study
            problems.append(
                Problem(
                    ".",
                    "one-patient-id",
                    f"{len(dicom)} studies share the patient id '{patient}', as anonymised sets do: "
                    "each is taken as a patient of its own.",
                    remedy,
                    fatal=False,
                )
            )
    if unnamed:
        for group in unnamed:
            group.patient = group.study
        kinds = {"DICOM" if any(one.kind == "dicom" for one in group.series) else "NIfTI" for group in unnamed}
        problems.append(
            Problem(
                ".",
                "assumed-patient",
                f"{len(unnamed)} {' and '.join(sorted(kinds))} studies carry no patient id: "
                "each is taken as a patient of its own.",
                remedy,
                fatal=False,
            )
        )
    return problems


def _give_aliases(groups: Sequence[Group], root: Path) -> None:
    """Collect every name that means one study alone; a study's own name always means that study."""
    owners = _owners(groups)
    claims: dict[str, set[int]] = defaultdict(set)
    for group in groups:
        names = {group.uid} if group.uid else set()
        for folder in group.folders:
            for above in upwards(folder):
                if owners[above] != id(group):  # from here up it holds other studies too
                    break
                names |= {above or ".", name_of(above) or root.name, str(root / above)}
        for one in group.series:
            if len(one.files) == 1:  # NIfTI and multi-frame: the file stands for the study
                path = relative_path(one.files[0], root)
                names |= {path, name_of(path), file_stem(name_of(path)), str(root / path), file_stem(path)}
            names.add(one.uid)
        for name in names - {""}:
            claims[name].add(id(group))
        group.aliases = names - {""}
    own = {group.study: id(group) for group in groups}
    for group in groups:
        group.aliases = {
            name for name in group.aliases if len(claims[name]) == 1 and own.get(name, id(group)) == id(group)
        } | {group.study}


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (" …" if len(listed) > most else "")
