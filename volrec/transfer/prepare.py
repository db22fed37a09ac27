"""What pretraining and transfer share before and after the steps: studies, held-out patients, store, run folder."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from volrec.config import DataConfig, PretrainConfig, TransferConfig
from volrec.data.entries import Entry
from volrec.data.images import ImageSet, hold_out, unlabelled
from volrec.data.label_table import some
from volrec.data.labels import Case, Cohort, join
from volrec.data.store import Store
from volrec.errors import ConfigError, DataError, LabelsError, Problem
from volrec.runs import RunFolder
from volrec.training.devices import place
from volrec.training.distributed import check_world, is_launched, is_main_process, on_main, process_group
from volrec.training.launch import run_processes
from volrec.transfer.worker import WORKER

__all__ = [
    "Prepared",
    "PretrainRun",
    "TransferRun",
    "check_pretrain",
    "check_settings",
    "images_of",
    "prepare",
    "signature_of",
    "unique",
    "without_nan",
]

log = logging.getLogger(__name__)


class PretrainRun(RunFolder):
    """What `volrec pretrain` leaves: the teacher's weights and card under ``teacher/``, metrics and report."""

    schema = PretrainConfig


class TransferRun(RunFolder):
    """What `volrec transfer` leaves: the student's weights and card under ``student/``, the matching report."""

    schema = TransferConfig


Run = TypeVar("Run", bound=RunFolder)


@dataclass(frozen=True)
class Prepared:
    """What every process needs once the first has read, chosen and decoded.

    Attributes
    ----------
    run : RunFolder
        The run on disk.
    config : PretrainConfig or TransferConfig
        With absolute paths.
    train, held : tuple of Case
        Studies that teach, and those of the patients held out; all decoded.
    entries : dict
        By series uid.
    store : Store
        Reads them.
    cohort : Cohort or ImageSet
        Task and classes, where there are labels.
    problems : tuple of Problem
        What was quarantined or assumed so far.
    """

    run: RunFolder
    config: Any
    train: tuple[Case, ...]
    held: tuple[Case, ...]
    entries: dict[str, Entry]
    store: Store
    cohort: Cohort | ImageSet
    problems: tuple[Problem, ...]

    @property
    def modality(self) -> str:
        """Modality of the studies, where they share one."""
        found = {case.series.modality for case in (*self.train, *self.held)}
        return found.pop() if len(found) == 1 else ""

    def logging(self) -> AbstractContextManager[None]:
        """Write the run's log during a block, in the first process alone."""
        return self.run.logging() if is_main_process() else nullcontext()


def learn(
    config: Any,
    out: Path | str,
    *,
    kind: type[Run],
    resume: bool,
    reasons: Mapping[str, str] | None,
    begin: Callable[[Any], Callable[[Prepared], list[Problem]]],
) -> Run | None:
    """Run a pretraining or transfer from its configuration to the finished run folder.

    Parameters
    ----------
    config : PretrainConfig or TransferConfig
        When resuming, the run's own is obeyed.
    out : path
        Run folder: new or empty, unless `resume`.
    kind : type
        `PretrainRun` or `TransferRun`.
    resume : bool
        Go on with the run that is there.
    reasons : mapping, optional
        Written into ``config.yaml``.
    begin : callable
        Takes the configuration and checks what can be checked before the folder is scanned; gives what then trains on
        the studies and returns the problems that it met.

    Returns
    -------
    RunFolder or None
        The finished run, without its report; None in the other processes of a training over several.
    """
    out = Path(out)
    if resume:
        run = kind.open(out)
        config = run.config  # raises for a run of another command
        if run.finished:
            log.info("%s is finished already", out)
            return run if is_main_process() else None
    fit = begin(config)
    check_world(config.trainer.devices, config.trainer.num_nodes)
    if config.trainer.devices > 1 and not is_launched():
        place(config)
        told: Any = {"resume": resume, "reasons": reasons or {}, "devices": config.trainer.devices}
        run_processes(config.to_dict(), out, worker=WORKER, **told)
        return kind.open(out)
    with process_group(place(config).accelerator):
        made = on_main(lambda: prepare(config, kind, out, resume=resume, reasons=reasons))
        problems = [*made.problems, *fit(made)]
        if is_main_process():
            made.run.write_quarantine(unique(problems))
            made.run.finish()
    return made.run if is_main_process() else None  # type: ignore[return-value]


def prepare(
    config: Any, kind: type[Run], out: Path, *, resume: bool, reasons: Mapping[str, str] | None = None
) -> Prepared:
    """Find and decode the studies, hold patients out, and start or open the run folder.

    Parameters
    ----------
    config : PretrainConfig or TransferConfig
        ``data.folder`` must be set.
    kind : type
        `PretrainRun` or `TransferRun`.
    out : path
        Run folder, new or empty unless `resume`.
    resume : bool
        Go on: the division of the patients is the one written down.
    reasons : mapping, optional
        Written into ``config.yaml``.

    Raises
    ------
    VolrecError
        No folder, no study that can be used, a run folder that is taken, studies that are gone since.
    """
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        kind.create(out, config)  # raises: said before the folder is scanned, not after
    config = _absolute(config)
    cohort, problems, table = images_of(config)
    run = kind.open(out) if resume else None
    train, held = _divided(run, config, cohort.cases)
    if run is None:
        run = kind.create(out, config, reasons=reasons)
    with run.logging():
        run.write_table("index", table)
        rows = [
            (case.study, case.patient, part) for part, own in (("train", train), ("held-out", held)) for case in own
        ]
        run.write_table("studies", pd.DataFrame(rows, columns=["study", "patient", "part"]))
        store = Store(config.store.folder, format=config.store.format, verify=config.store.verify)
        entries, unreadable = store.fill(
            cohort.cases, config.preprocess, missing_slices=config.data.missing_slices, jobs=config.store.jobs
        )
        problems = [*run.quarantine(), *problems, *unreadable]
        run.write_quarantine(unique(problems))
        log.info("%d studies teach, %d of other patients are held out", len(train), len(held))
    decoded = [tuple(_light(case) for case in own if case.series.uid in entries) for own in (train, held)]
    if not decoded[0]:
        raise DataError("there is no study to learn from.", remedy="See the quarantine for why.", code="no-studies")
    return Prepared(run, config, decoded[0], decoded[1], entries, store, cohort, tuple(problems))


def images_of(config: Any) -> tuple[Cohort | ImageSet, list[Problem], pd.DataFrame]:
    """Scan the folder and take its studies, with labels where a table is named.

    Returns
    -------
    cohort : Cohort or ImageSet
        The studies to be used.
    problems : list of Problem
        What was quarantined or assumed.
    table : DataFrame
        The index, a row a series.
    """
    from volrec.data.index import index

    data = config.data
    if data.folder is None:
        raise ConfigError(
            "no folder of studies is named.",
            remedy=f"Say `volrec {config.kind} FOLDER`.",
            where="data.folder",
            code="config",
        )
    found = index(data.folder, series=data.series, missing_slices=data.missing_slices)
    images = unlabelled(found, data.studies)
    cohort: Cohort | ImageSet
    if data.labels is None:
        cohort = images
    else:
        shared = ("target", "task", "classes", "slice_labels", "series", "missing_slices")
        cohort = join(found, data.labels, DataConfig(**{key: getattr(data, key) for key in shared}))
        wanted = {case.study for case in images.cases}
        cohort = replace(cohort, cases=tuple(case for case in cohort.cases if case.study in wanted))
    if not cohort.cases:
        raise DataError("there is no study to learn from.", remedy="See `volrec inspect`.", code="no-studies")
    return cohort, unique([*found.problems, *images.problems, *cohort.problems]), found.table


def check_settings(config: Any, what: str) -> None:
    """Raise `ConfigError` for settings of `volrec train` that `what` cannot have: silence would look like use."""
    asked: dict[str, tuple[Any, Any]] = {
        "augment.mixup": (config.augment.mixup, 0),
        "optim.freeze": (config.optim.freeze, 0),
        "optim.layer_decay": (config.optim.layer_decay, 1),
        "optim.partial_bn": (config.optim.partial_bn, "none"),
    }
    if isinstance(config, TransferConfig):
        # The teacher's slices are found by their place in the stack: they must still lie there.
        augment = config.teacher.augment
        asked["teacher.augment.mixup"] = (augment.mixup, 0)
        asked["teacher.augment.shift_slices"] = (augment.shift_slices, 0)
        asked["teacher.augment.flip.T"] = (augment.flip.get("T", 0), 0)
    for key, (value, off) in asked.items():
        if value and value != off:
            raise ConfigError(
                f"{key} is {value}, which {what} cannot have.", remedy=f"Set it to {off}.", where=key, code="config"
            )


def check_pretrain(config: PretrainConfig) -> None:
    """Raise `ConfigError` for what a pretraining cannot have, or lacks: before a folder is scanned."""
    if config.method.name == "supervised" and config.data.labels is None:
        raise ConfigError(
            "supervised needs labels, and no table of labels is named.",
            remedy="Give --labels labels.csv, or choose simclr or vicreg, which need none.",
            where="method.name",
            code="config",
        )
    if config.method.name == "supervised" and config.data.task == "multihead":
        raise ConfigError(
            "slices are pretrained with the labels of one target, and the task is multihead.",
            remedy="Choose one target and its task, or simclr or vicreg, which need no labels.",
            where="data.task",
            code="config",
        )
    check_settings(config, "a pretraining of slices")


def without_nan(value: Any) -> Any:
    """Return facts for ``metrics.json`` with None where a number could not be measured: JSON has no other word."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_patients(table: Path) -> set[str]:
    """Return the patients of the training part of a ``studies.csv``."""
    rows = pd.read_csv(table, dtype=str)
    return set(rows.loc[rows["part"] == "train", "patient"])


def signature_of(cases: Sequence[Case]) -> str:
    """Return a hash of the studies' series and source files."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.study):
        digest.update(f"{case.study}|{case.series.uid}|{case.series.signature}|".encode())
    return digest.hexdigest()


def unique(problems: Sequence[Problem]) -> list[Problem]:
    """Leave out what is said twice."""
    return list({(problem.where, problem.code, problem.study): problem for problem in problems}.values())


def _light(case: Case) -> Case:
    """Leave out the headers of every slice: they have done their part."""
    return replace(case, series=replace(case.series, headers=(), files=()))


def _divided(run: RunFolder | None, config: Any, cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    if run is None or not (run.path / "studies.csv").is_file():
        return hold_out(cases, config.holdout.share, seed=config.holdout.seed)
    table = run.read_table("studies")
    part = dict(zip(table["study"], table["part"], strict=True))
    known = {case.study for case in cases}
    gone = sorted(set(part) - known)
    if gone:
        raise LabelsError(
            f"{len(gone)} studies of this run are not in the folder any more: {some(gone)}.",
            remedy="Bring them back, or start a new run without them.",
            where=run.path / "studies.csv",
            code="studies-gone",
        )
    taught = [case for case in cases if part.get(case.study) == "train"]
    return taught, [case for case in cases if part.get(case.study) == "held-out"]


def _absolute(config: Any) -> Any:
    """Make paths independent of the working folder, so that the run can be gone on with from anywhere."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().resolve())

    keys = ("folder", "studies", "labels", "slice_labels")
    data = config.data.model_copy(update={key: whole(getattr(config.data, key)) for key in keys})
    store = config.store.model_copy(update={"folder": whole(config.store.folder)})
    updates: dict[str, Any] = {"data": data, "store": store}
    teacher = getattr(config, "teacher", None)
    if teacher is not None:
        source = teacher.source
        if source is not None and Path(source).expanduser().exists():
            source = whole(source)
        updates["teacher"] = teacher.model_copy(update={"source": source, "weights": whole(teacher.weights)})
    return config.model_copy(update=updates)
