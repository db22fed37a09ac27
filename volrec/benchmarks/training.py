"""Training of the network of one stream on the training videos of a split, in the course that its paper takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from volrec import networks
from volrec.benchmarks.clips import VideoClipData, VideoClips
from volrec.benchmarks.reading import StreamReader
from volrec.benchmarks.sets import VideoSet
from volrec.config import BenchmarkConfig, StreamProtocol
from volrec.errors import Problem
from volrec.networks.facts import TrainingStage
from volrec.networks.partial_bn import partial_bn
from volrec.runs import Member
from volrec.training.callbacks import Validation
from volrec.training.devices import own_device, place
from volrec.training.distributed import rank
from volrec.training.initial import took_words
from volrec.training.loop import NetworkModule, checkpoint_of, run_loop
from volrec.training.losses import StudyLoss
from volrec.training.optim import parameter_groups
from volrec.training.seeds import seed_dropout, step_seed
from volrec.training.vocabulary import fit_words, has_words
from volrec.weights import init_network, load_state, load_weights
from volrec.weights.initial import short_source

__all__ = ["StreamModule", "create_network", "fit_stream", "paper_epochs", "rate_factor"]

log = logging.getLogger(__name__)

_INIT, _DROPOUT = range(2)


def create_network(stream: StreamProtocol, *, num_classes: int) -> networks.SequenceNetwork:
    """Build the network of a stream for the channels that it reads.

    Raises
    ------
    ConfigError
        For a network, option or form that the registry does not have.
    """
    reader = StreamReader(stream)
    options = dict(stream.network.options)
    known = networks.spec(stream.network.name).options
    if reader.appearance and "appearance_channels" in known:
        options.setdefault("appearance_channels", reader.appearance)
    return networks.create(
        stream.network.name,
        num_classes=num_classes,
        in_channels=reader.channels,
        width=stream.network.width,
        faithful=stream.network.faithful,
        **options,
    )


def paper_epochs(stream: StreamProtocol, *, videos: int, epochs: int = 0) -> int:
    """Return passes over the training videos: those asked for, or as many as the paper's updates are."""
    if epochs:
        return epochs
    return max(1, math.ceil(stream.training.iterations * stream.training.batch / max(1, videos)))


def rate_factor(done: float, stream: StreamProtocol) -> float:
    """Return the learning rate over the first one when the share `done` of a training is over.

    The paper's steps lie at their share of its own length, so that a shorter training takes the same course.
    """
    training = stream.training
    # A share of a whole number comes back a hair too small at times.
    passed = sum(done * training.iterations >= step * (1 - 1e-9) for step in training.steps)
    return training.gamma**passed


class StreamModule(NetworkModule):
    """Lightning module of one stream; its hyper-parameters are plain Python types.

    Parameters
    ----------
    stream : dict
        `StreamProtocol` as plain types.
    num_classes : int
        K.
    optim : dict
        Fields of `volrec.config.OptimConfig`.
    seed, steps_per_epoch, epochs : int
        Seed of weights and dropout; length.
    stage : dict
        Fields of `volrec.networks.facts.TrainingStage`.
    split : dict
        ``split_id`` and ``split_digest``: kept in the checkpoint.
    """

    network: networks.SequenceNetwork

    def __init__(
        self,
        *,
        stream: dict[str, Any],
        num_classes: int,
        optim: dict[str, Any],
        seed: int,
        steps_per_epoch: int,
        epochs: int,
        stage: dict[str, Any],
        split: dict[str, str],
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stream = StreamProtocol.model_validate(stream)
        self.reader = StreamReader(self.stream)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(step_seed(seed, _INIT))
            self.network = create_network(self.stream, num_classes=num_classes)
        if stage["freeze"]:
            networks.freeze_stages(self.network, list(stage["freeze"]))
        partial_bn(self.network, optim["partial_bn"])
        self.objective = stage["objective"]
        self.motion_weight = stage["motion_weight"]
        self.partial = self.objective == "motion"
        self.loss = StudyLoss("multiclass", label_smoothing=optim["label_smoothing"])
        self.seed = seed
        self._rank = rank()

    def training_step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Return the loss of a batch of cut clips."""
        seed_dropout(step_seed(self.seed, _DROPOUT, self.current_epoch, step, self._rank), self.device)
        images, targets = self.reader.finish(batch), batch["target"]
        count = batch["valid"].any().to(targets.dtype)
        network = self.network
        network.check_input(images)
        loss: Any = 0.0
        if self.objective != "motion":
            branches = network.forward_branches(network.forward_features(images))
            for part, logits in branches.items():
                loss = loss + network.branch_weights.get(part, 1.0) * self.loss(logits, targets)
        if self.objective != "labels":
            weight = 1.0 if self.objective == "motion" else self.motion_weight
            unlabelled: Any = network.auxiliary_loss(images)
            loss = loss + weight * unlabelled
        return count * loss

    def configure_optimizers(self) -> Any:
        """Return the paper's optimiser, and its steps at their share of this training."""
        training, optim = self.stream.training, self.hparams["optim"]
        groups = parameter_groups(self.network, optim["weight_decay"])
        lr = optim["lr"]
        optimizer: torch.optim.Optimizer
        if training.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=training.momentum, nesterov=training.nesterov)
        else:
            kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
            optimizer = kind(groups, lr=lr, eps=training.epsilon)
        updates = -(-self.hparams["steps_per_epoch"] // optim["accumulate"]) * self.hparams["epochs"]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step / updates, self.stream))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_stream(
    config: BenchmarkConfig,
    stream: StreamProtocol,
    videos: VideoSet,
    *,
    member: Member,
    card: Mapping[str, Any],
) -> list[Problem]:
    """Train the network of a stream and leave weights, card, history and checkpoint; goes on where it was stopped.

    The trainings that the paper does in turn (`NetworkSpec.training`) are done in turn. The rate and the updates of a
    protocol are those of the last one; the others have theirs over it, and share the epochs with it where so many are
    asked for. The last weights are kept: the sets have no validation part, and choosing epochs on test videos is what a
    benchmark must not do.

    Parameters
    ----------
    config : BenchmarkConfig
        The run's.
    stream : StreamProtocol
        Of ``config.protocol``.
    videos : VideoSet
        Its training side is used.
    member : Member
        Folder of the stream and split.
    card : mapping
        Facts for the card of the weights.

    Returns
    -------
    list of Problem
        Videos that could not be read.
    """
    init = config.init.get(stream.name)
    spec = networks.spec(stream.network.name)
    stages: Sequence[TrainingStage] = (spec.refining if init and spec.refining else spec.training) or (
        TrainingStage("all"),
    )
    total = paper_epochs(stream, videos=len(videos.split.train), epochs=config.epochs)
    last = stages[-1]
    whole = total if config.epochs else total / last.epochs
    problems: dict[str, Problem] = {}
    before: Member | None = None
    members = [*(member.stage(stage.name) for stage in stages[:-1]), member]
    for stage, own in zip(stages, members, strict=True):
        if own is member or not own.finished:
            training = stream.training.model_copy(update={"lr": stream.training.lr * stage.lr / last.lr})
            part = stream.model_copy(update={"training": training})
            found = _fit_stage(
                config.for_stream(part, epochs=round(whole * stage.epochs)),
                part,
                stage,
                videos,
                member=own,
                first=members[0],
                before=before,
                card=card,
            )
            problems |= {problem.study: problem for problem in found}
            own.finish()
        before = own
    return list(problems.values())


def _fit_stage(
    config: BenchmarkConfig,
    stream: StreamProtocol,
    stage: TrainingStage,
    videos: VideoSet,
    *,
    member: Member,
    first: Member,
    before: Member | None,
    card: Mapping[str, Any],
) -> list[Problem]:
    placement = place(config)
    seed = config.trainer.seed
    init = config.init.get(stream.name)
    # Layers that a paper leaves as their first weights are would stay random here without these weights.
    frozen = [*stage.freeze, *(stream.training.freeze if init is not None and init.source else ())]
    clips = VideoClips(
        videos.split.train,
        stream,
        decoder=config.decoder,
        extracted=config.extracted,
        num_classes=len(videos.classes),
        seed=seed,
    )
    data = VideoClipData(config, clips, accelerator=placement.accelerator)
    module = StreamModule(
        stream=stream.to_dict(),
        num_classes=len(videos.classes),
        optim=config.optim.to_dict(),
        seed=seed,
        steps_per_epoch=data.steps_per_epoch,
        epochs=config.trainer.epochs,
        stage={"freeze": frozen, "objective": stage.objective, "motion_weight": stage.motion_weight},
        split={"split_id": videos.split.id, "split_digest": videos.split.digest},
    )
    checkpoint = checkpoint_of(member)
    if checkpoint is None and before is not None:
        load_state(module.network, load_weights(before.weights)[0], where=before.weights)
    elif checkpoint is None:
        if init is not None and init.source is not None:
            table = init_network(
                module.network,
                init.source,
                first_layer=init.first_layer,
                inflate=init.inflate,
                classes=videos.classes,
                targets=[videos.name],
            )
            member.make()
            member.write_init({"source": short_source(init.source), "counts": table.counts}, table)
            log.info("init of %s: %s", member.name, table.summary)
        if has_words(module.network) and not took_words(member):
            module.network.to(own_device(placement.accelerator))
            fit_words(
                module.network,
                ({"image": module.reader.finish(batch), "valid": batch["valid"]} for batch in data.one_pass()),
                transform=_as_it_is,  # type: ignore[arg-type]
                seed=seed,
            )

    def save(network: torch.nn.Module, epoch: int, found: Validation | None) -> None:
        member.save(network, {**card, "init": first.init(), "epoch": epoch, "epochs": config.trainer.epochs})

    state = run_loop(
        config,
        placement=placement,
        module=module,
        data=data,
        member=member,
        save=save,
        validate=None,
        metric="",
        higher=True,
        checkpoint=checkpoint,
    )
    return [Problem(**problem) for problem in state.problems]


def _as_it_is(tensors: dict[str, Tensor], *, augment: bool) -> dict[str, Tensor]:
    return tensors
