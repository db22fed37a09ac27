"""The folder of a fused run: the rule, the runs it fuses, its scores; and what it says of new studies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.errors import Problem, RunError
from volrec.files import write_atomically
from volrec.inference.fusion import Combination, FusionRule, fused_table, mean_over_folds
from volrec.inference.joining import Joined, RunTable, join_tables
from volrec.inference.several import common_studies, merged_warnings
from volrec.inference.tables import score_columns
from volrec.inference.uncertainty import uncertainty
from volrec.runs import RunFolder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FusedFolder", "Source", "check_leak", "fuse_new_scores", "open_sources"]

SCHEMA = 1
FILE = "fusion.json"

Scorer = Callable[["Source"], tuple["pd.DataFrame", list[Problem]]]
"""Scores studies with a run, a row a study and member, and gives its problems."""


@dataclass(frozen=True)
class Source:
    """A run that is fused.

    Attributes
    ----------
    name : str
        What messages and weights call it: its folder's name, or its path where two have the same.
    run : RunFolder
        The folder.
    task, targets, classes
        As its members were trained, in its own order.
    part : str
        ``"test"``, or ``"validation"`` where it has no test studies: what its scores are of.
    """

    name: str
    run: RunFolder
    task: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    part: str

    def named(self, table: pd.DataFrame) -> RunTable:
        """Return a score table of this run with its names."""
        return RunTable(self.name, table, self.task, self.targets, self.classes)

    def splits(self) -> pd.DataFrame:
        """Return ``split, part, study, patient`` of the splits that have a member."""
        table = self.run.read_table("splits")
        return table[table["split"].isin([member.name for member in self.run.finished_members()])]

    def checksum(self) -> str:
        """Return the SHA-256 of its scores."""
        path = self.run.path / "scores.csv"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def open_sources(paths: Sequence[Path | str]) -> list[Source]:
    """Open runs of ``volrec train``.

    Raises
    ------
    RunError
        No run, one of another command, an unfinished or a fused one, or the same one twice.
    """
    folders = [Path(path) for path in paths]
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise RunError("this run is named twice.", remedy="Give it a larger weight.", where=folder, code="twice")
    plain = [folder.resolve().name for folder in folders]
    found = []
    for folder, name in zip(folders, plain, strict=True):
        if FusedFolder(folder).exists:
            raise RunError(
                "it is a fused run.",
                remedy="Give the runs that it is made of, each with its weight.",
                where=folder,
                code="fused-run",
            )
        run = RunFolder.open(folder)
        run.config  # noqa: B018  (raises for a run of another command)
        if not run.finished:
            raise RunError(
                "this run has not finished.",
                remedy=f"Go on with `{run.resume_command}`.",
                where=folder,
                code="unfinished",
            )
        card = run.finished_members()[0].card()
        found.append(
            Source(
                name if plain.count(name) == 1 else str(folder),
                run,
                str(card["task"]),
                tuple(map(str, card["targets"])),
                tuple(map(str, card["classes"])),
                run.metrics.get("part") or "test",
            )
        )
    return found


def check_leak(sources: Sequence[Source], tables: Sequence[pd.DataFrame], *, learned: Sequence[str]) -> None:
    """Make sure that no run learned from what another is tested on.

    Parameters
    ----------
    sources : sequence of Source
        The runs.
    tables : sequence of DataFrame
        The scores that are to be fused, one a run.
    learned : sequence of str
        Parts of the splits that count as learned from: ``train``, and ``validation`` for test scores.

    Raises
    ------
    RunError
        With the study's name.
    """
    splits = [source.splits() for source in sources]
    for tested, table in zip(sources, tables, strict=True):
        for other, rows in zip(sources, splits, strict=True):
            used = rows[rows["part"].isin(learned)]
            for fold in table["fold"].unique() if "fold" in table else [None]:
                scored = table if fold is None else table[table["fold"] == fold]
                known = used if fold is None else used[used["split"] == fold]
                seen = scored["study"].isin(known["study"])
                if "patient" in scored:
                    seen |= scored["patient"].isin(known["patient"].dropna())
                if seen.any():
                    study = scored.loc[seen, "study"].iloc[0]
                    place = f" in {fold}" if fold else ""
                    raise RunError(
                        f"{other.name} learned from study {study} or its patient{place}, and {tested.name} is measured "
                        f"on it ({int(seen.sum())} such studies).",
                        remedy="Fuse runs with the same splits (the same labels, folds and split.seed).",
                        code="leak",
                    )


class FusedFolder:
    """A folder with ``fusion.json``, scores, metrics and splits of several runs fused.

    Parameters
    ----------
    path : path
        The folder; the constructor looks at nothing.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.tables = RunFolder(self.path)

    @property
    def exists(self) -> bool:
        """Whether there is a fused run."""
        return (self.path / FILE).is_file()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What ``fusion.json`` says.

        Raises
        ------
        RunError
            It is missing, damaged, or of a later version.
        """
        try:
            found = json.loads((self.path / FILE).read_text(encoding="utf-8"))
            if found["schema"] == SCHEMA:
                return dict(found)
            problem = f"its schema is {found['schema']}, this version of volrec reads {SCHEMA}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"it cannot be read ({error!r})"
        raise RunError(f"{problem}.", remedy="Fuse the runs again.", where=self.path / FILE, code="run-damaged")

    @cached_property
    def rule(self) -> FusionRule:
        """The rule that is applied.

        Raises
        ------
        RunError
            It does not read.
        """
        facts = self.facts
        try:
            parts = {
                fold: Combination(**{key: np.asarray(values, dtype=np.float64) for key, values in part.items()})
                for fold, part in facts["parts"].items()
            }
            return FusionRule(
                task=facts["task"],
                targets=tuple(facts["targets"]),
                classes=tuple(facts["classes"]),
                runs=tuple(run["name"] for run in facts["runs"]),
                names=tuple(facts["names"]),
                stage=facts["stage"],
                method=facts["method"],
                parts=parts,
                as_given=bool(facts["as_given"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"its rule cannot be read ({error!r}).",
                remedy="Fuse the runs again.",
                where=self.path / FILE,
                code="run-damaged",
            ) from error

    def table(self, name: str) -> pd.DataFrame:
        """Return ``scores.csv``, ``validation_scores.csv`` or ``splits.csv``.

        Raises
        ------
        RunError
            It is missing.
        """
        self._there(f"{name}.csv")
        return self.tables.read_table(name)

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` says.

        Raises
        ------
        RunError
            It is missing or damaged.
        """
        self._there("metrics.json")
        return self.tables.metrics

    def write_rule(self, rule: FusionRule, sources: Sequence[Source]) -> None:
        """Write ``fusion.json``: the last file, its presence makes the folder a fused run."""
        here = self.path.resolve()
        facts = {
            "schema": SCHEMA,
            "task": rule.task,
            "targets": rule.targets,
            "classes": rule.classes,
            "method": rule.method,
            "stage": rule.stage,
            "as_given": rule.as_given,
            "weights": None if rule.weights is None else dict(zip(rule.runs, rule.weights.tolist(), strict=True)),
            "runs": [
                {
                    "name": source.name,
                    "path": str(source.run.path.resolve()),
                    "relative": _relative(source.run.path, here),
                    "scores_sha256": source.checksum(),
                }
                for source in sources
            ],
            "names": rule.names,
            "parts": {
                fold: {
                    key: value.tolist()
                    for key in ("weights", "coefficients", "intercepts")
                    if (value := getattr(part, key)) is not None
                }
                for fold, part in rule.parts.items()
            },
        }
        write_atomically(self.path / FILE, json.dumps(facts, indent=1) + "\n")

    def sources(self) -> list[Source]:
        """Open the runs that are fused, where they are now: beside this folder as before, else where they were.

        Raises
        ------
        RunError
            A run is gone, or its scores are no longer those that were fused.
        """
        found = []
        for facts in self.facts["runs"]:
            beside = None if facts["relative"] is None else self.path / facts["relative"]
            path = beside if beside is not None and beside.is_dir() else Path(facts["path"])
            if not path.is_dir():
                raise RunError(
                    f"the run {facts['name']} that it fuses is not there any more ({facts['path']}).",
                    remedy="Bring it back, or fuse again.",
                    where=self.path,
                    code="run-gone",
                )
            (source,) = open_sources([path])
            if source.checksum() != facts["scores_sha256"]:
                raise RunError(
                    f"the scores of {facts['name']} have changed since they were fused ({path}).",
                    remedy="Fuse the runs again.",
                    where=self.path,
                    code="run-changed",
                )
            found.append(replace(source, name=facts["name"]))
        return found

    def _there(self, name: str) -> None:
        if not (self.path / name).is_file():
            raise RunError(
                "this part of the fused run is missing.",
                remedy="Restore it, or fuse the runs again.",
                where=self.path / name,
                code="run-incomplete",
            )


def fuse_new_scores(fused: FusedFolder, score: Scorer) -> tuple[pd.DataFrame, list[Problem]]:
    """Score studies with every run and fuse what they say by the stored rule.

    With folds, the members of a fold are fused by that fold's rule, and the fused scores of the folds are averaged.

    Parameters
    ----------
    fused : FusedFolder
        The rule and its runs.
    score : callable
        From a `Source` to its score table, a row a study and member, and its problems.

    Returns
    -------
    DataFrame
        A row a study that every run could score: ``study, patient``, target columns, ``score_…, logit_…``, then as
        `volrec.inference.tables.prediction_table`.
    list of Problem
        Those of the runs, and one a study that some run left without a score.
    """
    import pandas as pd

    sources, rule = fused.sources(), fused.rule
    tables: dict[str, pd.DataFrame] = {}
    problems: dict[str, list[Problem]] = {}
    for source in sources:
        table, problems[source.name] = score(source)
        tables[source.name] = table.drop(columns="fold") if "" in rule.parts and _single(table) else table
    common, found = common_studies(
        {name: table["study"].astype(str) for name, table in tables.items()}, problems, code="not-fused"
    )
    chosen = {name: table[table["study"].astype(str).isin(common)] for name, table in tables.items()}
    if not common:
        return pd.DataFrame(columns=["study", "patient", "warning"]), found
    joined = join_tables([source.named(chosen[source.name]) for source in sources], logits=rule.stage != "softmax")
    fused_scores = fused_table(rule, joined)
    if "fold" in fused_scores:
        fused_scores = mean_over_folds(rule, fused_scores)
    # Rows in the order in which the first run found the studies.
    order = list(dict.fromkeys(chosen[sources[0].name]["study"].astype(str)))
    fused_scores = fused_scores.set_index("study").loc[order].reset_index()
    told = _told(rule, joined, fused_scores, chosen)
    return fused_scores.assign(**{str(name): told[name].to_numpy() for name in told}), found


def _single(table: pd.DataFrame) -> bool:
    return "fold" in table and table["fold"].nunique() <= 1


def _told(rule: FusionRule, joined: Joined, fused: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return what stands beside the fused scores, a row a study in their order: uncertainty, counts, warnings.

    Members are the networks of all runs and folds, each with the same vote; the entropy is that of the fused score.
    """
    import pandas as pd

    columns = score_columns(rule.task, classes=rule.classes, targets=rule.targets)
    names = [column.removeprefix("score_") for column in columns]
    order = [0] if rule.task == "binary" else [joined.names.index(name) for name in names]
    whole = fused[columns].to_numpy(dtype=np.float64)
    places: dict[str, list[int]] = {}
    for place, study in enumerate(joined.keys["study"]):
        places.setdefault(study, []).append(place)
    by_study = {name: table.assign(study=table["study"].astype(str)) for name, table in tables.items()}
    firsts = {name: table.drop_duplicates("study").set_index("study") for name, table in by_study.items()}
    found = []
    for study, scores in zip(fused["study"], whole, strict=True):
        members = joined.scores[:, places[study]][..., order].reshape(-1, len(order))
        told: dict[str, Any] = dict(uncertainty(members, task=rule.task, names=names, scores=scores))
        told["members"] = len(members)
        own = [table.loc[study] for table in firsts.values()]
        told |= {"clips": sum(int(one["clips"]) for one in own)} if all("clips" in one for one in own) else {}
        told |= {"slices": int(own[0]["slices"])} if "slices" in own[0] else {}
        told["warning"] = merged_warnings(
            {name: str(one["warning"] or "") for name, one in zip(firsts, own, strict=True)}
        )
        found.append(told)
    return pd.DataFrame(found)


def _relative(path: Path, here: Path) -> str | None:
    """Return the path of a run as seen from the fused folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path.resolve(), here)).as_posix()
    except ValueError:  # on another drive
        return None
