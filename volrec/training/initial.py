"""First weights of a member from a run or file that exists, and whether that saw studies which are tested here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.config import InitConfig
from volrec.errors import Problem, RunError
from volrec.networks import SequenceNetwork
from volrec.runs import Member
from volrec.training.distributed import is_main_process
from volrec.weights import find_weights, init_network, read_source_card
from volrec.weights.initial import INFLATE, short_source, split_source

if TYPE_CHECKING:
    import pandas as pd

    from volrec.data.labels import Case
    from volrec.data.splits import Split
    from volrec.training.member import Subject

__all__ = ["absolute_source", "load_initial", "seen_in_source", "took_words"]

log = logging.getLogger(__name__)


def absolute_source(source: str | None) -> str | None:
    """Return the source independent of the working folder."""
    if source is None:
        return None
    inflate, path = split_source(source)
    return f"{'inflate:' if inflate else ''}{path.resolve()}"


def load_initial(network: SequenceNetwork, init: InitConfig, *, subject: Subject, member: Member) -> dict[str, Any]:
    """Load the first weights at a fresh start, and write what became of every key into the member's ``init.json``.

    Returns
    -------
    dict
        For the member's card: name, checksum and data signature of the source, number of keys an action.

    Raises
    ------
    RunError
        As `volrec.weights.init_network`.
    """
    if init.source is None:
        return {}
    table = init_network(
        network,
        init.source,
        first_layer=init.first_layer,
        inflate=init.inflate,
        classes=subject.classes,
        targets=subject.targets,
    )
    card = read_source_card(init.source)
    facts = {
        "source": short_source(init.source),
        "sha256": card["tensors"]["sha256"],
        "data_signature": card.get("data_signature", ""),
        "counts": table.counts,
    }
    if is_main_process():
        member.write_init(facts, table)
        log.info("init: %s from %s", table.summary, facts["source"])
    return facts


def took_words(member: Member) -> bool:
    """Tell whether the first weights of a member brought the words of a vocabulary (`volrec.training.vocabulary`)."""
    rows = member.init_keys()
    return any(row["target"].endswith("centres") and row["action"] in ("loaded", "adapted") for row in rows)


def seen_in_source(source: str | None, splits: Sequence[Split], cases: Mapping[str, Case]) -> list[Problem]:
    """Tell for every split whether test studies of it are among those that the source's training saw, and log it.

    A run of `volrec transfer` or `volrec pretrain` lists what it saw in ``studies.csv``, one of `volrec train` in
    ``splits.csv``. What its teacher or its own first weights saw counts as well, as far back as the runs lie where
    they lay; where there is no such table, nothing is known and nothing is said.

    Parameters
    ----------
    source : str, optional
        As in ``init.source``.
    splits : sequence of Split
        Whose test studies are looked at.
    cases : mapping
        From study to case, for their patients.

    Returns
    -------
    list of Problem
        Notes that stop nothing.

    Raises
    ------
    RunError
        There is no such source, or its table cannot be read.
    """
    if source is None:
        return []
    studies: dict[str, str] = {}
    patients: dict[str, str] = {}
    for table, labels in _tables_behind(find_weights(source)):
        for names, column in ((studies, "study"), (patients, "patient")):
            for name in set(table.get(column, ())) - {""}:
                names[name] = "with" if "with" in (labels, names.get(name)) else labels
    notes = []
    for split in splits:
        found = [(studies.get(s), patients.get(cases[s].patient) if s in cases else None) for s in split.test]
        met = [each for each in found if any(each)]
        if met:
            labels = "with" if any("with" in each for each in met) else "without"
            note = Problem(
                split.name,
                "seen-in-init",
                f"{len(met)} of {len(split.test)} test studies are of patients that the first weights "
                f"({short_source(source)}) have seen {labels} labels.",
                "Their scores may be too good: begin with weights that have not seen them, or say so beside the "
                "numbers.",
                fatal=False,
            )
            log.warning("%s: %s %s", note.where, note.reason, note.remedy)
            notes.append(note)
    return notes


def _tables_behind(weights: Path) -> list[tuple[pd.DataFrame, str]]:
    """Return what the training of these weights saw, "with" or "without" labels, and that of all they came from."""
    tables, left, known = [], [weights], set()
    while left:
        weights = left.pop()
        if weights in known or weights.name != "weights.safetensors":
            continue
        known.add(weights)
        config = _config_beside(weights)
        found = _studies_of(weights)
        if found is not None:
            table, labelled = found
            tables.append((table, "with" if labelled or (config.get("data") or {}).get("labels") else "without"))
        sources = [(config.get(section) or {}).get("source") for section in ("teacher", "init")]
        for source, prefix in zip(sources, (INFLATE, ""), strict=True):
            if source:
                with suppress(RunError):  # it is gone, or no run: nothing is known of it
                    left.append(find_weights(f"{prefix}{source}"))
    return tables


def _config_beside(weights: Path) -> dict[str, Any]:
    """Return the configuration of the run that a member's weights lie in; empty where there is none."""
    import yaml

    try:
        values = yaml.safe_load((weights.parent.parent / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _studies_of(weights: Path) -> tuple[pd.DataFrame, bool] | None:
    """Return the table of studies that the training of these weights saw, and whether it was one of `volrec train`."""
    import pandas as pd

    folder = weights.parent
    for name in ("studies.csv", "splits.csv"):
        path = folder.parent / name
        if not path.is_file():
            continue
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise RunError(
                f"it cannot be read ({error}).",
                remedy="Restore it: it says which studies the first weights have seen.",
                where=path,
                code="run-damaged",
            ) from error
        if {"split", "part"} <= set(table.columns):
            table = table[(table["split"] == folder.name) & (table["part"] != "test")]
        return (table, name == "splits.csv") if "study" in table.columns else None
    return None
