"""One member: a network trained on one split, in one stage or several, from scratch or from where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from volrec.config import StageConfig, TrainConfig
from volrec.data.datasets import StudyDataset
from volrec.data.entries import Entry
from volrec.data.store import Store
from volrec.errors import Problem
from volrec.runs import Member
from volrec.training.callbacks import MemberState, Validation
from volrec.training.clock import describe_times
from volrec.training.data import ClipData
from volrec.training.devices import Placement, own_device, place
from volrec.training.distributed import on_main
from volrec.training.initial import load_initial, took_words
from volrec.training.interrupts import StopFlag
from volrec.training.logs import require_mlflow
from volrec.training.loop import checkpoint_of, run_loop
from volrec.training.member import (
    MemberResult,
    Subject,
    check_clip_size,
    choose_metric,
    data_signature,
    make_card,
    make_module,
    validate_on,
)
from volrec.training.svm import check_svm, fit_svm, has_svm
from volrec.training.vocabulary import fit_words, has_words
from volrec.weights import OWN_KEYS, load_state, load_weights

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = ["MemberResult", "Subject", "fit_member"]


def fit_member(
    config: TrainConfig,
    subject: Subject,
    *,
    member: Member,
    train: Sequence[Case],
    validation: Sequence[Case],
    entries: Mapping[str, Entry],
    store: Store,
    resume: bool = False,
) -> MemberResult:
    """Train one network on one split and leave weights, card, history and checkpoint in the member's folder.

    Parameters
    ----------
    config : TrainConfig
        Network, optimiser, augmentation, protocol, trainer.
    subject : Subject
        Task, targets and classes.
    member : Member
        Folder of the member.
    train, validation : sequence of Case
        Studies that teach, and those that choose the weights (may be empty: the last weights are kept).
    entries : mapping of str to Entry
        By series uid.
    store : Store
        Reads the entries.
    resume : bool
        Go on from the member's ``last.ckpt`` where there is one, or that of the stage that was interrupted; a stage
        that is finished is not trained again. On a CPU the result is bit-equal to a training that
        was never interrupted.

    Raises
    ------
    Interrupted
        After Ctrl-C or SIGTERM: the last whole epoch is kept.
    RunError
        The loss is no number, memory is out, a loading process died, the checkpoint cannot be read.
        The source of the first weights is missing or does not fit (at a fresh start only).
    ConfigError, DataError
        Settings that do not fit the device, the network or the studies; no study to train on.
    """
    placement = place(config)
    if config.trainer.mlflow is not None:
        require_mlflow()
    stages = config.stages or [StageConfig(name="all")]
    members = [*(member.stage(stage.name) for stage in stages[:-1]), member]
    result: MemberResult | None = None
    problems: dict[str, Problem] = {}
    before: Member | None = None
    for stage, own in zip(stages, members, strict=True):
        if own is member or not (resume and on_main(lambda own=own: own.finished)):  # type: ignore[misc]
            result = _fit_stage(
                _staged(config, stage),
                stage,
                subject,
                placement=placement,
                member=own,
                before=before,
                first=members[0],
                train=train,
                validation=validation,
                entries=entries,
                store=store,
                resume=resume,
            )
            problems |= {problem.study: problem for problem in result.problems}
            if own is not member:
                on_main(own.finish)
        before = own
    return replace(result, problems=tuple(problems.values()))  # type: ignore[return-value, type-var]


def _staged(config: TrainConfig, stage: StageConfig) -> TrainConfig:
    """Return the configuration with a stage's own learning rate and length, its patience in proportion."""
    stage = stage.settled(lr=config.optim.lr, epochs=config.trainer.epochs)
    optim, trainer = config.optim, config.trainer
    if stage.lr is not None:
        optim = optim.model_copy(update={"lr": stage.lr})
    if stage.epochs is not None:
        share = min(1.0, stage.epochs / trainer.epochs)  # type: ignore[operator]
        patience = trainer.patience and max(1, round(trainer.patience * share))
        trainer = trainer.model_copy(update={"epochs": stage.epochs, "patience": patience})
    return config.model_copy(update={"optim": optim, "trainer": trainer})


def _fit_stage(
    config: TrainConfig,
    stage: StageConfig,
    subject: Subject,
    *,
    placement: Placement,
    member: Member,
    before: Member | None,
    first: Member,
    train: Sequence[Case],
    validation: Sequence[Case],
    entries: Mapping[str, Entry],
    store: Store,
    resume: bool,
) -> MemberResult:
    """Train one stage, from the weights of the one `before` it; the `first` begins as the configuration says."""
    data = ClipData(config, train, entries, store=store, task=subject.task, accelerator=placement.accelerator)
    module = make_module(config, subject, data, stage)
    check_clip_size(module, config, data)
    studies = StudyDataset(validation, entries, store=store, streams=config.streams)
    metric, higher = choose_metric(config.protocol.metric, subject, studies.cases)
    taught = StudyDataset(train, entries, store=store, streams=config.streams)
    if has_svm(module.network):
        check_svm(module.network, train=taught, validation=studies, config=config, task=subject.task)
    checkpoint = checkpoint_of(member) if resume else None
    if checkpoint is not None or before is not None:
        # The source need not be there any more: weights come from the checkpoint, facts from the first start.
        init = first.init()
    else:
        init = load_initial(module.network, config.init, subject=subject, member=member)
    if checkpoint is None and before is not None:
        load_state(module.network, load_weights(before.weights)[0], where=before.weights)
    elif checkpoint is None and has_words(module.network) and not took_words(member):
        module.network.to(own_device(placement.accelerator))
        fit_words(module.network, data.one_pass(), transform=module.transform, seed=config.trainer.seed)
    signature = data_signature(data.clips.cases)

    def save(network: torch.nn.Module, epoch: int, found: Validation | None) -> None:
        card = make_card(
            config, subject, member, module, epoch=epoch, metric=metric, found=found, signature=signature, init=init
        )
        member.save(network, card)

    def validate(network: torch.nn.Module, flag: StopFlag) -> Validation:
        return validate_on(
            studies,
            network,
            config=config,
            subject=subject,
            placement=placement,
            metric=metric,
            scaling=module.scaling,
            stop=lambda: flag.requested,
        )

    # A stage that learns no label has nothing that a label could choose its weights by.
    validated = len(studies) > 0 and stage.objective != "motion"
    state = run_loop(
        config,
        placement=placement,
        module=module,
        data=data,
        member=member,
        save=save,
        validate=validate if validated else None,
        metric=metric,
        higher=higher,
        checkpoint=checkpoint,
    )
    if has_svm(module.network) and member.of is None:
        _fit_svm(module.network, member, taught, studies, config, subject)
    return _result(member, state, metric if validated else "")


def _fit_svm(
    network: torch.nn.Module,
    member: Member,
    train: StudyDataset,
    validation: StudyDataset,
    config: TrainConfig,
    subject: Subject,
) -> None:
    """Fit the SVM on the weights that were kept, and keep it with them."""

    def fit() -> None:
        load_state(network, load_weights(member.weights)[0], where=member.weights)
        part = fit_svm(
            network, train=train, validation=validation, config=config, task=subject.task, seed=config.trainer.seed
        )
        card = {key: value for key, value in member.card().items() if key not in OWN_KEYS}
        member.save(network, {**card, "svm": part})

    on_main(fit)


def _result(member: Member, state: MemberState, metric: str) -> MemberResult:
    times = describe_times(state.history)
    kept = next((row for row in reversed(state.history) if row["kept"]), None)
    return MemberResult(
        name=member.name,
        metric=metric,
        value=None if kept is None or not metric else float(kept[f"val_{metric}"]),
        epoch=state.best_epoch,
        epochs=len(state.history),
        times=times,
        problems=tuple(Problem(**problem) for problem in state.problems),
    )
