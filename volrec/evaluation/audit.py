"""The context audit: whether a task, as a network solves it, uses the order and the extent of slices.

Every study is scored as it is; with its slices shuffled, reversed, thinned and halved; and cut down to windows of 1, 3,
5, 9, 17 … slices at many places, of which the most informative one counts (`audit_summary.choose_windows`: chosen
without labels, of what the network says of windows of that length alone). What that means is said by
`audit_verdict`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from volrec.data.targets import head_sizes
from volrec.errors import ConfigError, DataError, LabelsError, Problem, VolrecError
from volrec.evaluation.audit_conditions import AS_IS, FIXED, MIDDLE
from volrec.evaluation.audit_responses import AuditSettings, Journal, Responder, Responses
from volrec.evaluation.audit_summary import Audited, Chosen, summarise
from volrec.inference.members import LoadedMember, load_members
from volrec.inference.studies import Studies
from volrec.inference.tables import score_columns, target_values
from volrec.progress import progress
from volrec.runs import RunFolder
from volrec.runs.parts import write_part

if TYPE_CHECKING:
    import pandas as pd

    from volrec.data.labels import Case

__all__ = ["AuditSettings", "audit_run", "read_audit"]

log = logging.getLogger(__name__)

SCHEMA = 1
"""Of the conditions and the rule that chooses windows: raise it when they change, and nothing old is reused."""
QUANTILE_BINS = 5
NAME = "audit"


@dataclass(frozen=True)
class _Unit:
    """A study and who scores it."""

    case: Case
    fold: str
    members: tuple[str, ...]
    key: str


def audit_run(
    run: RunFolder,
    studies: Studies,
    *,
    most: int = 100,
    device: torch.device | str | None = None,
    settings: AuditSettings | None = None,
    resamples: int = 1000,
    out: Path | str | None = None,
    refresh: bool = False,
) -> dict[str, Any]:
    """Audit the use of context of a run's networks.

    Parameters
    ----------
    run : RunFolder
        With at least one finished member.
    studies : Studies
        Of `volrec.inference.studies.open_run`: the test studies (those of validation where there are none) are scored
        each by the member that did not see it. Of splits that bear no member's name (other studies): by the mean of
        all members.
    most : int
        Most studies, as many of each class (of each fifth of a quantity) as can be; 0 takes all. A larger number
        takes the same ones and more.
    device : torch device or str, optional
        None takes the best there is.
    settings : AuditSettings, optional
        Seed, permutations, what stands outside a window.
    resamples : int
        Bootstrap resamples of patients.
    out : path, optional
        Folder of ``audit.json``, ``audit.csv`` (the scores of every study and condition) and ``audit.jsonl`` (the
        journal); None takes the run's.
    refresh : bool
        Score everything again. Otherwise what was made with the same weights, settings and voxels is kept, and an
        interrupted audit goes on where it was, with the same result.

    Returns
    -------
    dict
        JSON types, as in ``audit.json``: ``metric, part, studies, patients, conditions, context, verdict`` and how
        they were made. A study that could not be scored is in ``problems``, and nowhere else.

    Raises
    ------
    ConfigError
        Wrong settings, or a network that reads pictures of flow from a folder.
    LabelsError
        There is no study to audit.
    DataError
        None of the studies could be scored.
    """
    settings = settings or AuditSettings()
    for name, value, low in (("studies", most, 0), ("resamples", resamples, 0)):
        if value < low:
            raise ConfigError(
                f"{name} must be at least {low}, got {value}.",
                remedy="Leave it out for the usual number.",
                where=name,
                code="parameter",
            )
    folder = Path(out) if out is not None else run.path
    part, units = _units(run, studies, settings, most)
    signature = _hash([SCHEMA, part, resamples, [(unit.key, unit.case.patient, _target(unit.case)) for unit in units]])
    if not refresh:
        old = read_audit(folder)
        if old is not None and old.get("signature") == signature and (folder / f"{NAME}.csv").is_file():
            return old
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / f"{NAME}.jsonl")
    if refresh:
        journal.path.unlink(missing_ok=True)
    responses, problems = _respond(run, studies, units, journal, settings, device)
    audited = [
        Audited(unit.case.study, unit.case.patient, unit.fold, np.asarray(unit.case.target), responses[unit.key])
        for unit in units
        if unit.key in responses
    ]
    if not audited:
        raise DataError(
            f"none of {len(units)} studies could be scored: {problems[0].reason}",
            remedy=problems[0].remedy,
            where=folder,
            code="no-usable-study",
        )
    cohort = studies.cohort
    heads = head_sizes(cohort.task, cohort.classes, cohort.targets)
    found, chosen = summarise(audited, task=cohort.task, heads=heads, resamples=resamples, seed=settings.seed)
    result = {
        "schema": SCHEMA,
        "task": cohort.task,
        "part": part,
        **found,
        "settings": {**asdict(settings), "resamples": resamples, "most": most},
        "problems": [problem.as_dict() for problem in problems],
        "signature": signature,
    }
    kept = {one.study for one in audited}
    table = _table(audited, chosen, [unit.case for unit in units if unit.case.study in kept], studies)
    write_part(folder / f"{NAME}.csv", table.to_csv(index=False))
    write_part(folder / f"{NAME}.json", json.dumps(result, indent=2) + "\n")
    log.info("context audit: %s", found["verdict"]["sentence"])
    return result


def read_audit(folder: Path | str) -> dict[str, Any] | None:
    """Return what ``audit.json`` of a folder holds; None where there is none, or a damaged or older one."""
    try:
        found = json.loads((Path(folder) / f"{NAME}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _units(run: RunFolder, studies: Studies, settings: AuditSettings, most: int) -> tuple[str, list[_Unit]]:
    """Return the part that is audited, and its studies with the members that score them."""
    finished = {member.name: member for member in run.finished_members()}
    hashes = {name: _member_hash(member.card()) for name, member in finished.items()}
    part = next((part for part in ("test", "validation") if any(split.part(part) for split in studies.splits)), "")
    if not part:
        raise LabelsError(
            "there is no study to audit: the run has neither test nor validation studies.",
            remedy="Give others: `volrec audit RUN FOLDER --labels labels.csv`.",
            where=run.path,
            code="no-studies",
        )
    cases, own = studies.cases, any(split.name in finished for split in studies.splits)
    units = []
    for split in studies.splits:
        members = (split.name,) if split.name in finished else tuple(finished)
        for study in split.part(part):
            if study not in cases:
                continue
            entry = studies.entries[study]
            voxels = [entry.key, entry.fields.key if entry.fields is not None else ""]
            key = _hash([SCHEMA, study, voxels, [hashes[name] for name in members], asdict(settings)])
            units.append(_Unit(cases[study], split.name if own and len(finished) > 1 else "", members, key))
    return part if own else "given", _balanced(units, studies.cohort.task, most, settings.seed)


def _balanced(units: Sequence[_Unit], task: str, most: int, seed: int) -> list[_Unit]:
    """Take `most` studies, one of each group in turn, in an order that neither their number nor others decide."""
    if not most or len(units) <= most:
        return list(units)
    groups: dict[Any, list[_Unit]] = defaultdict(list)
    targets = np.stack([np.asarray(unit.case.target, dtype=np.float64).reshape(-1) for unit in units])
    if task == "regression":
        first = np.nan_to_num(targets[:, 0], nan=float(np.nanmedian(targets[:, 0])))
        bounds = np.quantile(first, np.linspace(0, 1, QUANTILE_BINS + 1)[1:-1])
        labels = [(int(bin),) for bin in np.searchsorted(bounds, first)]
    else:
        labels = [tuple(np.nan_to_num(row, nan=-1).astype(int).tolist()) for row in targets]
    for unit, label in zip(units, labels, strict=True):
        groups[label].append(unit)
    drawn = []
    for label in sorted(groups):
        ordered = sorted(groups[label], key=lambda unit: _hash([seed, unit.fold, unit.case.study]))
        drawn += [(turn, label, unit) for turn, unit in enumerate(ordered)]
    drawn.sort(key=lambda item: item[:2])
    taken = {id(unit) for _, _, unit in drawn[:most]}
    return [unit for unit in units if id(unit) in taken]


def _respond(
    run: RunFolder,
    studies: Studies,
    units: Sequence[_Unit],
    journal: Journal,
    settings: AuditSettings,
    device: torch.device | str | None,
) -> tuple[dict[str, Responses], list[Problem]]:
    """Return what is known of each study by key: from the journal, or found now and written there."""
    known = journal.read()
    found = {unit.key: known[unit.key] for unit in units if unit.key in known}
    missing = [unit for unit in units if unit.key not in found]
    problems: list[Problem] = []
    if not missing:
        return found, problems
    responders = _Responders(load_members(run, device=device), settings)
    with progress("auditing context", len(units)) as bar, journal:
        bar.advance(len(found))
        for unit, responder in responders.grouped(missing):
            try:
                volume = studies.store.open(studies.entries[unit.case.study])
                answer = responder.respond(volume, study=unit.case.study)
            except VolrecError as error:
                log.warning("%s is left out of the audit: %s", unit.case.study, error)
                problems.append(Problem.of(error, where=error.where or unit.case.study, study=unit.case.study))
            else:
                journal.add(unit.key, answer)
                found[unit.key] = answer
            bar.advance()
    return found, problems


class _Responders:
    """One responder for each set of members that scores studies together."""

    def __init__(self, members: Sequence[LoadedMember], settings: AuditSettings) -> None:
        self._members = {member.name: member for member in members}
        self._settings = settings

    def grouped(self, units: Sequence[_Unit]) -> Iterator[tuple[_Unit, Responder]]:
        """Give each study with its responder."""
        made: dict[tuple[str, ...], Responder] = {}
        for unit in units:
            if unit.members not in made:
                predictors = [self._members[name].predictor for name in unit.members]
                made[unit.members] = Responder(predictors, self._settings)
            yield unit, made[unit.members]


def _table(
    audited: Sequence[Audited], chosen: Sequence[Chosen], cases: Sequence[Case], studies: Studies
) -> pd.DataFrame:
    """Return a row a study and condition: names, targets, the slices shown, scores."""
    import pandas as pd

    cohort = studies.cohort
    naming: dict[str, Any] = {"task": cohort.task, "classes": cohort.classes, "targets": cohort.targets}
    columns = score_columns(**naming)
    targets = {case.study: target_values(case, **naming) for case in cases}
    folds = any(one.fold for one in audited)
    rows = []
    for number, one in enumerate(audited):
        count = one.responses.slices
        windows = [
            (
                "1 slice" if window.slices == 1 else f"{window.slices} slices",
                int(window.firsts[number]),
                min(window.slices, count),
                window.scores[number],
            )
            for window in chosen
        ]
        half = (count + 1) // 2
        places = {MIDDLE: (count // 2, 1), "first half": (0, half), "second half": (count - half, half)}
        fixed = [(name, *places.get(name, (0, count)), one.responses.fixed[name]) for name in FIXED]
        ordered = sorted(fixed, key=lambda row: row[0] != AS_IS)
        for condition, first, slices, scores in [ordered[0], *windows, *ordered[1:]]:
            facts: dict[str, Any] = {"study": one.study, "patient": one.patient}
            facts |= {"fold": one.fold} if folds else {}
            facts |= {"condition": condition, "first_slice": first, "slices": slices, **targets[one.study]}
            rows.append(facts | dict(zip(columns, map(float, scores), strict=True)))
    return pd.DataFrame(rows)


def _member_hash(card: Mapping[str, Any]) -> str:
    """Return a hash of all that decides what a member says of the voxels of a study."""
    wanted = ("architecture", "intensity", "streams", "sampling", "protocol", "regression", "task", "field_source")
    return _hash([card["tensors"]["sha256"], [card.get(key) for key in wanted]])


def _target(case: Case) -> list[float | None]:
    values = np.asarray(case.target, dtype=np.float64).reshape(-1)
    return [None if np.isnan(value) else float(value) for value in values]


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
