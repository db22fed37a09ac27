"""From a folder and a table of labels to a finished run: what `volrec train` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from volrec.config import TrainConfig
from volrec.data.datasets import StudyDataset
from volrec.data.entries import Entry
from volrec.data.label_table import some
from volrec.data.labels import Case, Cohort, join, num_outputs
from volrec.data.splits import PARTS, Split, make_splits, read_splits, split_problems, write_splits
from volrec.data.store import Store
from volrec.data.streams import check_streams, fill_streams
from volrec.errors import ConfigError, LabelsError, Problem
from volrec.inference.consensus import check_consensus
from volrec.inference.members import load_member
from volrec.inference.tables import score_table, target_values
from volrec.runs import Member, RunFolder
from volrec.training.clock import describe_times
from volrec.training.devices import own_device, place
from volrec.training.distributed import check_world, is_launched, is_main_process, on_main, process_group
from volrec.training.fit import fit_member
from volrec.training.initial import absolute_source, seen_in_source
from volrec.training.launch import run_processes
from volrec.training.member import Subject
from volrec.training.scoring import score_studies
from volrec.weights import find_weights

if TYPE_CHECKING:
    from volrec.inference.decision import Decision

__all__ = ["train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """What every process needs once the first has read, joined, split and decoded."""

    run: RunFolder
    config: TrainConfig
    subject: Subject
    cases: dict[str, Case]
    splits: tuple[Split, ...]
    entries: dict[str, Entry]
    store: Store
    problems: tuple[Problem, ...]


def train(
    config: TrainConfig, out: Path | str, *, resume: bool = False, reasons: Mapping[str, str] | None = None
) -> RunFolder | None:
    """Read, join, split, decode, train every member, score the test studies, and write it all into a run folder.

    Parameters
    ----------
    config : TrainConfig
        ``data.folder`` and ``data.labels`` must be set. When resuming, the run's own configuration is obeyed.
    out : path
        Run folder: new or empty, unless `resume`.
    resume : bool
        Go on with the run that is there: finished members are kept, the one that was interrupted goes on after its
        last whole epoch. On a CPU the result is bit-equal to a run that was never interrupted.
    reasons : mapping, optional
        From dotted key to one line of why, written into ``config.yaml``.

    Returns
    -------
    RunFolder
        The finished run, without its report; None in the other processes of a training over several.

    Raises
    ------
    VolrecError
        Wrong configuration, labels that do not fit, no usable study, a device that is not there or out of memory.
    Interrupted
        After Ctrl-C or SIGTERM (a `KeyboardInterrupt`); its text says how to go on.
    """
    out = Path(out)
    if resume:
        run = RunFolder.open(out)
        if run.finished:
            log.info("%s is finished already", out)
            return run if is_main_process() else None
        config = run.config
    check_world(config.trainer.devices, config.trainer.num_nodes)
    if config.trainer.devices > 1 and not is_launched():
        place(config)
        run_processes(config.to_dict(), out, resume=resume, reasons=reasons or {}, devices=config.trainer.devices)
        return RunFolder.open(out)
    with process_group(place(config).accelerator):
        made = on_main(lambda: _prepare(config, out, resume=resume, reasons=reasons))
        problems = list(made.problems)
        tables: dict[str, list[pd.DataFrame]] = {"test": [], "validation": []}
        for split in made.splits:
            problems += _train_member(made, split)
            _keep_quarantine(made, problems)
            for part, studies in (("test", split.test), ("validation", split.validation)):
                table, missed = _score_part(made, split, studies)
                tables[part].append(table)
                problems += missed
        on_main(lambda: _finish(made, tables, problems))
    return made.run if is_main_process() else None


def _prepare(config: TrainConfig, out: Path, *, resume: bool, reasons: Mapping[str, str] | None) -> _Prepared:
    """Do what one process does for all: everything up to the first member."""
    from volrec.data.index import index

    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        RunFolder.create(out, config)  # raises: said before the folder is scanned, not after
    config = _absolute(config)
    check_streams(config.streams)
    if config.init.source is not None and not resume:
        find_weights(config.init.source)
    folder, labels = config.data.folder, config.data.labels
    if folder is None or labels is None:
        raise ConfigError(
            f"data.{'folder' if folder is None else 'labels'} is not set.",
            remedy="Name the folder of studies and the table of labels.",
            where="data",
            code="config",
        )
    found = index(folder, series=config.data.series, missing_slices=config.data.missing_slices)
    cohort = join(found, labels, config.data)
    check_consensus(config.protocol.consensus, task=cohort.task, stage=config.protocol.stage)
    run = RunFolder.open(out) if resume else None
    splits = _splits(run, config, cohort)
    if run is None:
        run = RunFolder.create(out, config, reasons=reasons)
    with run.logging():
        for note in cohort.notes:
            log.info("%s", note)
        run.write_table("index", found.table)
        write_splits(run.path / "splits.csv", splits, cohort)
        run.write_table("labels", _label_table(cohort))
        store = Store(config.store.folder, format=config.store.format, verify=config.store.verify)
        entries, unreadable = store.fill(
            cohort.cases, config.preprocess, missing_slices=config.data.missing_slices, jobs=config.store.jobs
        )
        entries, fieldless = fill_streams(
            store, cohort.cases, entries, config.streams, config.intensity, jobs=config.store.jobs
        )
        # When going on, the source of the first weights may be gone; what was noted stands in the quarantine.
        seen = [] if resume else seen_in_source(config.init.source, _chosen(splits, config), _by_study(cohort))
        problems = [
            *run.quarantine(),
            *found.problems,
            *cohort.problems,
            *split_problems(cohort, splits),
            *seen,
            *unreadable,
            *fieldless,
        ]
        run.write_quarantine(_unique(problems))
    modalities = {case.series.modality for case in cohort.cases}
    subject = Subject(
        cohort.task,
        tuple(cohort.targets),
        tuple(cohort.classes),
        num_outputs(cohort.task, cohort.classes, cohort.targets),
        modalities.pop() if len(modalities) == 1 else "",
    )
    # Headers of every slice have done their part: neither the other ranks nor loading processes need them.
    cases = {case.study: replace(case, series=replace(case.series, headers=(), files=())) for case in cohort.cases}
    return _Prepared(run, config, subject, cases, _chosen(splits, config), entries, store, tuple(problems))


def _label_table(cohort: Cohort) -> pd.DataFrame:
    """Return what each study is labelled with, a column a target, as the training understood it."""
    naming: dict[str, Any] = {"task": cohort.task, "classes": cohort.classes, "targets": cohort.targets}
    rows = [{"study": case.study, "patient": case.patient} | target_values(case, **naming) for case in cohort.cases]
    return pd.DataFrame(rows, columns=["study", "patient", *cohort.targets])


def _chosen(splits: list[Split], config: TrainConfig) -> tuple[Split, ...]:
    return tuple(split for number, split in enumerate(splits) if config.split.fold in (None, number))


def _by_study(cohort: Cohort) -> dict[str, Case]:
    return {case.study: case for case in cohort.cases}


def _train_member(made: _Prepared, split: Split) -> list[Problem]:
    member = made.run.member(split.name)
    # Asked once for all: another rank may look before or after the file is there.
    if on_main(lambda: member.finished):
        log.info("%s is trained already", split.name)
        return []
    with _main_log(made.run):
        result = fit_member(
            made.config,
            made.subject,
            member=member,
            train=_cases(made, split.train),
            validation=_cases(made, split.validation),
            entries=made.entries,
            store=made.store,
            resume=on_main(lambda: member.begun),
        )
        if is_main_process():
            member.finish()
            log.info(
                "%s: %d epochs, weights of epoch %d%s",
                split.name,
                result.epochs,
                result.epoch + 1,
                "" if result.value is None else f" (validation {result.metric} {result.value:.3f})",
            )
    return list(result.problems)


def _score_part(made: _Prepared, split: Split, studies: tuple[str, ...]) -> tuple[pd.DataFrame, list[Problem]]:
    """Score one part of a split with its member, from the file that users will load."""
    on_main(lambda: None)  # the weights are there for every rank from here on
    cases = _cases(made, studies)
    placement = place(made.config)
    subject = made.subject
    naming: dict[str, Any] = {"task": subject.task, "classes": subject.classes, "targets": subject.targets}
    rows: list[Any] = []
    problems: tuple[Problem, ...] = ()
    if cases:
        loaded = load_member(
            Member(made.run.path / split.name), device=own_device(placement.accelerator), precision=placement.precision
        )
        scored = score_studies(loaded.predictor, StudyDataset(cases, made.entries, store=made.store))
        problems = scored.problems
        for case, result in zip(scored.cases, scored.results, strict=True):
            facts = {"study": case.study, "patient": case.patient, "fold": split.name}
            rows.append((facts | target_values(case, **naming), result))
    return score_table(rows, **naming, leading=("study", "patient", "fold")), list(problems)


def _finish(made: _Prepared, tables: Mapping[str, list[pd.DataFrame]], problems: list[Problem]) -> None:
    """Fit decisions, write scores, metrics and quarantine, and mark the run as complete."""
    from volrec.evaluation import evaluate_scores
    from volrec.evaluation.calibration import calibration_report
    from volrec.evaluation.decisions import decision_facts, thresholds_by_fold

    run, subject = made.run, made.subject
    naming: dict[str, Any] = {"task": subject.task, "classes": subject.classes, "targets": subject.targets}
    with run.logging():
        decisions = _decide(made, tables["validation"])
        scores = {part: pd.concat(found, ignore_index=True) for part, found in tables.items() if any(map(len, found))}
        if len(made.splits) == 1:
            scores = {part: table.drop(columns="fold") for part, table in scores.items()}
        if "validation" in scores:
            run.write_table("validation_scores", scores["validation"])
        # Without a test part the validation studies are all there is; that they chose the weights has to be said.
        part = next((part for part in ("test", "validation") if part in scores), None)
        metrics: dict[str, Any] = {"part": part, "members": _members(run)}
        if part is not None:
            run.write_table("scores", scores[part])
            found = evaluate_scores(scores[part], **naming, thresholds=thresholds_by_fold(decisions))
            metrics |= found
            metrics[part] = found["metrics"]
            if decisions:
                chosen_on = part == "validation"
                metrics["calibration"] = {"part": part} | calibration_report(
                    scores[part], decisions, **naming, fitted_on_these=chosen_on
                )
        if decisions:
            metrics["decision"] = decision_facts(decisions)
        metrics["time"] = _times(run)
        run.write_metrics(metrics)
        run.write_quarantine(_unique(problems))
        run.finish()
        _say_times(metrics["time"])


def _decide(made: _Prepared, validation: list[pd.DataFrame]) -> dict[str, Decision]:
    """Fit the thresholds and the calibration of each member on its own validation studies, into its card.

    Returns
    -------
    dict
        Name of the split to decision, ``""`` where there is one split; empty for quantities.
    """
    from volrec.evaluation.decisions import fit_decision
    from volrec.inference.decision import CARD_KEY

    subject = made.subject
    naming: dict[str, Any] = {"task": subject.task, "classes": subject.classes, "targets": subject.targets}
    found: dict[str, Decision] = {}
    for split, table in zip(made.splits, validation, strict=True):
        member = made.run.member(split.name)
        learned = member.card().get("svm") == "validation"
        unusable = "the support vector machine of this network has learned from the validation studies"
        decision = fit_decision(table, made.config.decision, **naming, unusable=unusable if learned else "")
        if decision is None:
            continue
        member.amend_card(**{CARD_KEY: decision.to_card()})
        found[split.name if len(made.splits) > 1 else ""] = decision
        for sentence in decision.describe():
            log.info("%s, %s", split.name, sentence)
    return found


def _members(run: RunFolder) -> dict[str, Any]:
    """Return for each finished member its epochs and what chose its weights; and that of each stage, in turn."""
    facts: dict[str, Any] = {}
    for member in run.members:
        if member.finished:
            facts[member.name] = _epochs(member)
            trainings = run.trainings_of(member)
            if len(trainings) > 1:
                names = [stage.name for stage in run.config.stages]
                facts[member.name]["stages"] = dict(zip(names, map(_epochs, trainings), strict=True))
    return facts


def _epochs(member: Member) -> dict[str, Any]:
    card = member.card()
    return {"epochs": len(member.history()), "epoch": card["epoch"], "validation": card["validation"]}


def _times(run: RunFolder) -> dict[str, float]:
    """Add up where the time of all trainings went; the first epoch of each fills caches and is told apart."""
    trainings = [training for member in run.members for training in run.trainings_of(member)]
    histories = [training.history().to_dict("records") for training in trainings]
    first = [row for rows in histories for row in rows[:1]]
    later = [row for rows in histories for row in rows[1:]]
    whole = describe_times([*first, *later])  # type: ignore[list-item]
    whole = {key: value for key, value in whole.items() if not key.endswith("_later")}
    return whole | {f"{key}_later": value for key, value in describe_times(later).items() if key.endswith("_share")}  # type: ignore[arg-type]


def _say_times(times: Mapping[str, float]) -> None:
    if "compute_share" in times:
        log.info(
            "time in steps: %.1f %% waiting for data, %.1f %% transfer, %.1f %% compute",
            *(100 * times[f"{part}_share"] for part in ("data_wait", "transfer", "compute")),
        )


def _cases(made: _Prepared, studies: tuple[str, ...]) -> list[Case]:
    """Return the studies of a part that could be decoded."""
    found = [made.cases[study] for study in studies if study in made.cases]
    return [case for case in found if case.series.uid in made.entries]


def _has_splits(run: RunFolder) -> bool:
    return (run.path / "splits.csv").is_file()


def _splits(run: RunFolder | None, config: TrainConfig, cohort: Cohort) -> list[Split]:
    """Divide the studies, or take up the division of an interrupted run.

    Raises
    ------
    LabelsError
        A leak, too few patients, or studies of the run that are not there any more.
    """
    table = None if run is None else run.path / "splits.csv"
    if table is None or not table.is_file():
        return make_splits(cohort, config.split)
    splits = read_splits(table, cohort)
    known = {case.study for case in cohort.cases}
    gone = sorted({study for split in splits for part in PARTS for study in split.part(part)} - known)
    if gone:
        raise LabelsError(
            f"{len(gone)} studies of this run are not in the folder or its labels any more: {some(gone)}.",
            remedy="Bring them back, or start a new run without them.",
            where=table,
            code="studies-gone",
        )
    return splits


def _absolute(config: TrainConfig) -> TrainConfig:
    """Make paths independent of the working folder, so that the run can be gone on with from anywhere."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().resolve())

    data = config.data.model_copy(
        update={key: whole(getattr(config.data, key)) for key in ("folder", "labels", "slice_labels")}
    )
    store = config.store.model_copy(update={"folder": whole(config.store.folder)})
    init = config.init.model_copy(update={"source": absolute_source(config.init.source)})
    flow = config.streams.flow.model_copy(update={"folder": whole(config.streams.flow.folder)})
    streams = config.streams.model_copy(update={"flow": flow})
    return config.model_copy(update={"data": data, "store": store, "init": init, "streams": streams})


def _keep_quarantine(made: _Prepared, problems: list[Problem]) -> None:
    if is_main_process():
        made.run.write_quarantine(_unique(problems))


def _unique(problems: list[Problem]) -> list[Problem]:
    """Leave out what is said twice: the same fault of the same file is met in every fold."""
    return list({(problem.where, problem.code, problem.study): problem for problem in problems}.values())


def _main_log(run: RunFolder) -> Any:
    from contextlib import nullcontext

    return run.logging() if is_main_process() else nullcontext()
