"""Runs applied to a folder, one after another: a row a study and run, kept until the table is made of them."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from volrec.config import PreprocessConfig, ProtocolConfig
from volrec.data.targets import head_sizes
from volrec.errors import ConfigError, Problem, RunError
from volrec.inference.decision import Decision, combine
from volrec.inference.decoding import Facts, Queue, Waiting, decode_and_score
from volrec.inference.differences import Learned, learned_from
from volrec.inference.journal import Journal, MemoryRows, Rows, StudyRow
from volrec.inference.members import Contract, LoadedMember, load_members
from volrec.inference.outputs import check_out, write_outputs
from volrec.inference.predictor import StudyScore, best_device
from volrec.inference.protocols import ProtocolChanges
from volrec.inference.several import slice_rows
from volrec.networks import SlicewiseNetwork
from volrec.runs import RunFolder
from volrec.versions import collect_versions
from volrec.weights import read_card

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Options", "Scored", "ScoredRun", "common_contract", "name_runs", "predict_runs"]

log = logging.getLogger(__name__)

RECORDED = (
    "task",
    "targets",
    "classes",
    "modality",
    "series",
    "missing_slices",
    "preprocess",
    "intensity",
    "streams",
    "sampling",
)
SETTINGS = ("device", "backend", "precision", "protocol_changes", "slices")
"""What the record says of a card, and of a call."""
OWN_PROTOCOL = "thresholds and calibration were chosen under the run's own protocol, and this prediction has another"
"""What the record says of a run with decisions whose protocol was changed."""


@dataclass(frozen=True)
class Options:
    """How a folder is scored.

    Attributes
    ----------
    device : str, optional
        None takes the best there is.
    backend : str
        What computes: ``"torch"`` or ``"onnxruntime"``.
    jobs : int
        Processes that read headers and decode compressed slices; 0 takes the processors at hand.
    changes : ProtocolChanges
        To the protocol of every run.
    slices : bool
        Write the scores of every slice, where the network gives them and files are written at all.
    """

    device: torch.device | str | None = None
    backend: Literal["torch", "onnxruntime"] = "torch"
    jobs: int = 0
    changes: ProtocolChanges = field(default_factory=ProtocolChanges)
    slices: bool = True


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """A run that has scored a folder.

    Attributes
    ----------
    name : str
        What warnings and tables call it.
    contract : Contract
        Of its members.
    members : tuple of str
        Their names.
    studies : dict
        From the name of a study to its source, of those with a row, in the order of the folder.
    problems : list of Problem
        What was left out, or assumed.
    facts : dict
        For the record: weights, settings, protocol.
    decisions : tuple of (Decision or None)
        Of each member, as its card has it.
    """

    name: str
    contract: Contract
    members: tuple[str, ...]
    studies: dict[str, str]
    problems: list[Problem]
    facts: dict[str, Any]
    decisions: tuple[Decision | None, ...] = ()

    @property
    def naming(self) -> dict[str, Any]:
        """Task, classes and targets, as the functions of tables take them."""
        contract = self.contract
        return {"task": contract.task, "classes": contract.classes, "targets": contract.targets}

    @property
    def heads(self) -> tuple[int, ...]:
        """Outputs of each head of a multihead task."""
        return tuple(head_sizes(self.contract.task, self.contract.classes, self.contract.targets))


@dataclass(frozen=True, eq=False)
class Scored:
    """All runs that have scored a folder, and their rows."""

    runs: tuple[ScoredRun, ...]
    rows: Rows

    def row(self, run: int, study: str) -> StudyRow:
        """Return what a run says of a study."""
        return self.rows.get(run, study, self.runs[run].studies[study])


Combine = Callable[[Scored], tuple["pd.DataFrame", list[Problem]]]
"""Makes one table of what the runs say, a row a study, and the problems of all."""


def predict_runs(
    runs: Mapping[str, RunFolder],
    folder: Path | str,
    *,
    combine: Combine,
    options: Options,
    out: Path | str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> tuple[pd.DataFrame, list[Problem]]:
    """Score every study of a folder with runs, make one table of it, and write it where asked.

    One run after another, so that the networks of one are in memory at a time. What is scored is kept in a journal
    beside `out`: after an interruption the same call goes on, and gives the same bytes as if nothing had happened.

    Parameters
    ----------
    runs : mapping
        From the name of a run to its folder, in their order.
    folder : path
        Studies.
    combine : callable
        Makes the table.
    options : Options
        How.
    out : path, optional
        ``NAME.csv``, or ``NAME.json``; see `volrec.inference.outputs.write_outputs`. None writes nothing.
    facts : mapping, optional
        More for the record.

    Raises
    ------
    RunError, ConfigError, DataError
        A run, an option or a folder that cannot be used; a file that cannot be written.
    KeyboardInterrupt
        Says how to go on.
    """
    if options.jobs < 0:
        raise ConfigError(
            f"there cannot be {options.jobs} processes.",
            remedy="Give a number of them, or 0 for one a processor.",
            where="--jobs",
            code="jobs",
        )
    place = None if out is None else check_out(out)
    per_slice = place is not None and options.slices
    opened = [_open(name, run) for name, run in runs.items()]
    settings = _settings(opened, options, slices=per_slice)
    with _kept(place, settings) as rows:
        scored = []
        for number, one in enumerate(opened):
            told = "" if len(opened) == 1 else f" with {one.name} (run {number + 1} of {len(opened)})"
            scored.append(_score(number, one, folder, rows, options, per_slice=per_slice, told=told))
            gc.collect()  # its networks go before the next run's come
        whole = Scored(tuple(scored), rows)
        table, problems = combine(whole)
        if place is not None:
            record = {
                "folder": str(folder),
                "runs": [one.facts for one in scored],
                **(facts or {}),
                "settings": {key: settings[key] for key in SETTINGS},
                "versions": collect_versions(),
            }
            slices = slice_rows(whole, table["study"]) if per_slice else iter(())
            write_outputs(place, table, problems, record=record, slices=slices)
        return table, problems


def name_runs(paths: Sequence[RunFolder | Path | str]) -> dict[str, RunFolder]:
    """Open runs under names of their own: their folders', or their paths where two have the same.

    Raises
    ------
    RunError
        No run, or the same one twice.
    """
    runs = [one if isinstance(one, RunFolder) else RunFolder.open(one) for one in paths]
    places = [run.path.resolve() for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise RunError(
                "this run is named twice.", remedy="Name each run once.", where=runs[number].path, code="twice"
            )
    plain = [place.name for place in places]
    return {name if plain.count(name) == 1 else str(run.path): run for name, run in zip(plain, runs, strict=True)}


def common_contract(run: RunFolder, members: Sequence[LoadedMember]) -> Contract:
    """Return the contract of all members of a run, which they share.

    Raises
    ------
    RunError
        They do not.
    """
    contract = members[0].contract
    other = next((member for member in members if member.contract != contract), None)
    if other is not None:
        raise RunError(
            f"its members {members[0].name} and {other.name} were not trained alike.",
            remedy="Keep the members of one training in a run folder.",
            where=run.path,
            code="mixed-members",
        )
    return contract


@contextmanager
def _kept(place: Path | None, settings: Mapping[str, Any]) -> Iterator[Rows]:
    """Keep rows in memory, or in a journal beside the file of scores, which stays when the block is left early."""
    if place is None:
        yield MemoryRows()
        return
    journal = Journal(place, settings)
    try:
        yield journal
    except KeyboardInterrupt:
        count = len(journal)
        journal.close()
        if not count:
            raise KeyboardInterrupt("Interrupted before the first study was scored; nothing is written.") from None
        raise KeyboardInterrupt(
            f"Interrupted; {count} {'score is' if count == 1 else 'scores are'} kept in {journal.path}. Go on with the "
            "same command."
        ) from None
    except BaseException:
        journal.close()
        raise
    journal.remove()


@dataclass(frozen=True, eq=False)
class _Opened:
    """A run before it scores."""

    name: str
    run: RunFolder
    cards: list[dict[str, Any]]
    learned: Learned | None


def _open(name: str, run: RunFolder) -> _Opened:
    cards = [read_card(member.weights) for member in run.finished_members()]
    preprocess = cards[0].get("preprocess")  # a card without it is refused when the member is loaded
    learned = learned_from(run, run.config.preprocess if preprocess is None else PreprocessConfig(**preprocess))
    return _Opened(name, run, cards, learned)


def _settings(opened: Sequence[_Opened], options: Options, *, slices: bool) -> dict[str, Any]:
    """Return everything that determines a row, beside the files of the study."""
    versions = collect_versions()
    # ONNX Runtime takes the processor where no device is named.
    device = options.device or ("cpu" if options.backend == "onnxruntime" else "auto")
    learned = [
        one.learned and [one.learned.as_dict(), sorted(one.learned.known), sorted(one.learned.chose)] for one in opened
    ]
    return {
        "runs": [[one.name, *(card["tensors"]["sha256"] for card in one.cards)] for one in opened],
        "training": _digest([[one.cards for one in opened], learned]),
        "precision": [one.run.config.trainer.precision for one in opened],
        "device": str(best_device(str(device))),
        "backend": options.backend,
        "protocol_changes": options.changes.given,
        "slices": slices,
        "versions": {name: versions[name] for name in ("volrec", "torch", "numpy", "git_commit")},
    }


def _score(
    number: int, opened: _Opened, folder: Path | str, rows: Rows, options: Options, *, per_slice: bool, told: str
) -> ScoredRun:
    """Let one run score what it has not scored before."""
    from volrec.data.index import index

    members = load_members(opened.run, device=options.device, backend=options.backend, changes=options.changes)
    contract = common_contract(opened.run, members)
    found = index(folder, series=contract.series, missing_slices=contract.missing_slices, jobs=options.jobs)
    problems = list(found.problems)
    with Queue(found.studies, contract) as queue:
        del found
        todo = [one for one in queue.waiting if not rows.has(number, one.study, one.source)]
        if len(todo) < len(queue.waiting):
            log.warning(
                "%d of %d studies%s are scored already.", len(queue.waiting) - len(todo), len(queue.waiting), told
            )
        stream = decode_and_score(
            members,
            map(queue.take, todo),
            weights=[one.slices for one in todo],
            jobs=options.jobs,
            learned=opened.learned,
            per_slice=per_slice,
            description=f"scoring {len(todo)} studies{told}, by slices",
        )
        with closing(stream):
            for waiting, (_, result, facts) in zip(todo, stream, strict=True):
                if isinstance(result, StudyScore) and facts is not None:
                    rows.add(number, _row(waiting, result, facts))
                elif isinstance(result, Problem):
                    problems.append(result)
        studies = {one.study: one.source for one in queue.waiting if rows.has(number, one.study, one.source)}
    decisions = tuple(Decision.from_card(card) for card in opened.cards)
    together = combine(decisions)
    predictor, card = members[0].predictor, opened.cards[0]
    by_slice = predictor.along is None and isinstance(predictor.network, SlicewiseNetwork)
    own = predictor.protocol == ProtocolConfig(**card["protocol"])
    return ScoredRun(
        opened.name,
        contract,
        tuple(member.name for member in members),
        studies,
        problems,
        {
            "name": opened.name,
            "path": str(opened.run.path),
            **{key: card.get(key) for key in RECORDED},
            "protocol": predictor.protocol.model_dump(mode="json"),
            "members": [
                {"name": member.name, "weights_sha256": theirs["tensors"]["sha256"]}
                for member, theirs in zip(members, opened.cards, strict=True)
            ],
            "decision": [] if together is None else together.describe(),
            "decision_note": None if together is None or own else OWN_PROTOCOL,
            "slice_scores": "slice alone" if by_slice else "clips that hold the slice",
            "training": None if opened.learned is None else opened.learned.as_dict(),
        },
        decisions,
    )


def _row(waiting: Waiting, result: StudyScore, facts: Facts) -> StudyRow:
    each = result.members or (result,)
    scores = np.empty((0, len(result.scores))) if result.per_slice is None else result.per_slice
    kept = np.zeros(0, dtype=bool)
    if result.per_slice is not None:  # not padding, nor slices that no clip holds
        kept = (facts.numbers >= 0) & np.isfinite(scores).all(axis=1)
    return StudyRow(
        study=waiting.study,
        patient=waiting.patient,
        source=waiting.source,
        scores=result.scores,
        logits=result.logits,
        members=np.stack([one.scores for one in each]),
        member_logits=np.stack([one.logits for one in each]),
        clips=result.clips,
        slices=facts.slices,
        warning=facts.warning,
        numbers=facts.numbers[: len(kept)][kept],
        positions=facts.positions[: len(kept)][kept],
        slice_scores=scores[kept],
    )


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
