"""One training step: batch on the device, windows and augmentation, network, loss; all that is random is seeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from volrec import networks
from volrec.config import IntensityConfig, StreamsConfig
from volrec.errors import ConfigError
from volrec.inference.inputs import make_input
from volrec.networks.base import SlicewiseNetwork
from volrec.networks.partial_bn import partial_bn
from volrec.training.distributed import rank
from volrec.training.loop import NetworkModule
from volrec.training.losses import StudyLoss, slice_loss, soft_slice_targets, soft_targets
from volrec.training.seeds import seed_dropout, step_seed
from volrec.transforms.batch import BatchAugment, BatchTransform

__all__ = ["StudyModule", "make_transform"]

_INIT, _DROPOUT, _AUGMENT = range(3)


class StudyModule(NetworkModule):
    """Lightning module of one member: network, loss, optimiser.

    Its hyper-parameters are plain Python types, so that the checkpoint can be read with ``weights_only``.

    Parameters
    ----------
    network : dict
        ``name``, ``width`` and ``options`` as in the configuration.
    task : str
        ``binary``, ``multiclass``, ``multilabel``, ``multihead`` or ``regression``.
    num_outputs : int
        Outputs of the network, K.
    intensity, augment, streams : dict
        As in the configuration.
    optim : dict
        Fields of `volrec.config.OptimConfig`.
    spacing : list of float
        Usual spacing (T, H, W) of the studies, mm: what a rotation out of the plane needs.
    class_weights : list, optional
        As `volrec.training.losses.class_weights` gives them.
    scaling : dict, optional
        ``mean`` and ``std`` of the training targets of a regression, a value each.
    slice_label_weight : float
        Weight of the slice loss of slicewise networks; 0 leaves it out.
    seed : int
        Seed of weights, dropout and augmentation.
    steps_per_epoch, epochs : int
        Batches an epoch and rank, and epochs of the whole schedule.
    objective : {"labels", "motion", "joint"}
        What is learned: the labels, the network's own loss without labels, or both.
    freeze : sequence of str
        Patterns of parameter names that stay as they are in this stage, beside those of `optim`.
    motion_weight : float
        Weight of the loss without labels beside that of the labels.
    heads : sequence of int
        Outputs of each head of a multihead task.

    Raises
    ------
    ConfigError
        For a network, option or window that does not exist, or an objective or heads that the network cannot have.
    """

    network: networks.SequenceNetwork

    def __init__(
        self,
        *,
        network: dict[str, Any],
        task: str,
        num_outputs: int,
        intensity: dict[str, Any],
        augment: dict[str, Any],
        streams: dict[str, Any],
        optim: dict[str, Any],
        spacing: list[float] | None,
        class_weights: list[Any] | None,
        scaling: dict[str, list[float]] | None,
        slice_label_weight: float,
        seed: int,
        steps_per_epoch: int,
        epochs: int,
        objective: str = "labels",
        freeze: Sequence[str] = (),
        motion_weight: float = 1.0,
        heads: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        kind: Any = task
        self.task = kind
        self.num_outputs = num_outputs
        self.heads = tuple(heads)
        self.transform = make_transform(intensity, augment, spacing=spacing, streams=streams)
        # Drawn under a seed of its own, without disturbing the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(step_seed(seed, _INIT))
            self.network = networks.create(
                network["name"],
                num_classes=num_outputs,
                in_channels=self.transform.channels,
                width=network["width"],
                **_with_heads(network["name"], _options(network, self.transform.streams.appearance), self.heads),
            )
        for frozen in (optim["freeze"], freeze):
            if frozen:
                networks.freeze_stages(self.network, frozen)
        if objective != "labels" and type(self.network).auxiliary_loss is networks.SequenceNetwork.auxiliary_loss:
            raise ConfigError(
                f"{network['name']} has no loss without labels, which the objective '{objective}' asks for.",
                remedy="Set the objective of the stage to labels, or choose hidden-two-stream.",
                where="stages.objective",
                code="objective",
            )
        partial_bn(self.network, optim["partial_bn"])
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.loss = StudyLoss(kind, label_smoothing=optim["label_smoothing"], weights=weights, heads=self.heads)
        self.slice_weight = slice_label_weight if isinstance(self.network, SlicewiseNetwork) else 0.0
        self.objective = objective
        self.partial = objective == "motion"  # what scores takes no part in it
        self.motion_weight = motion_weight
        self.scaling = scaling
        self.seed = seed
        self._rank = rank()

    def training_step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Return the loss of one batch.

        Parameters
        ----------
        batch : dict
            ``image`` (B, 1, T', H, W), ``quantiles`` (B, 1001), ``target`` (B, K), and where there are slice labels
            ``slice_target`` (B, T').
        step : int
            Batch within the epoch.
        """
        where = (self.current_epoch, step, self._rank)
        # Dropout draws from the global generator: tied to the step, it does not depend on what came before.
        seed_dropout(step_seed(self.seed, _DROPOUT, *where), self.device)
        generator = torch.Generator().manual_seed(step_seed(self.seed, _AUGMENT, *where))
        batch = self.transform(self._prepared(batch), generator=generator)
        images, targets = batch["image"], batch["target"]
        # Arithmetic rather than a branch: asking the device for the value would make it wait.
        count = batch["valid"].any().to(targets.dtype)
        network: Any = self.network
        network.check_input(images)
        if self.objective == "motion":
            return count * network.auxiliary_loss(images)
        features = network.forward_features(images)
        loss: Any = 0.0
        for part, logits in network.forward_branches(features).items():
            loss = loss + network.branch_weights.get(part, 1.0) * self.loss(logits, targets)
        if "slice_target" in batch:
            logits = network.slice_logits(features)
            loss = loss + self.slice_weight * slice_loss(logits, batch["slice_target"], self.task)
        if self.objective == "joint":
            loss = loss + self.motion_weight * network.auxiliary_loss(images)
        return count * loss

    def _prepared(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Bring targets to the form that the loss reads and mixup may average."""
        targets = batch["target"]
        if self.scaling is not None:
            mean, std = (targets.new_tensor(self.scaling[key]) for key in ("mean", "std"))
            targets = (targets - mean) / std
        prepared = {**batch, "target": soft_targets(targets, self.task, self.num_outputs, heads=self.heads)}
        labelled = prepared.pop("slice_target", None)
        if labelled is not None and self.slice_weight:
            prepared["slice_target"] = soft_slice_targets(labelled, self.task, self.num_outputs)
        return prepared


def make_transform(
    intensity: dict[str, Any],
    augment: dict[str, Any],
    *,
    spacing: list[float] | None = None,
    streams: dict[str, Any] | None = None,
) -> BatchTransform:
    """Build what turns a stored batch into network input.

    Parameters
    ----------
    intensity, augment : dict
        Sections of the configuration.
    spacing : list of float, optional
        Usual spacing (T, H, W), mm.
    streams : dict, optional
        Section of the configuration; None: the slices alone.
    """
    channels = make_input(IntensityConfig(**intensity), None if streams is None else StreamsConfig(**streams))
    changes = any(value for key, value in augment.items() if key not in {"spatial_probability", "flip"})
    changes = changes or any(augment["flip"].values())
    return BatchTransform(channels, BatchAugment(**augment, spacing=spacing) if changes else None)


def _options(network: dict[str, Any], appearance: int) -> dict[str, Any]:
    """Return the options of a network; one of two streams is told which channels are of intensity."""
    options = dict(network["options"])
    if appearance and "appearance_channels" in networks.spec(network["name"]).options:
        options["appearance_channels"] = options.get("appearance_channels") or appearance
    inner = options.get("network")
    if inner:  # a network within
        options["network_options"] = _options(
            {"name": inner, "options": options.get("network_options") or {}}, appearance
        )
    return options


def _with_heads(name: str, options: dict[str, Any], heads: tuple[int, ...]) -> dict[str, Any]:
    """Return the options of a network that is to have several heads: where probabilities are averaged, each by itself.

    Raises
    ------
    ConfigError
        Where the options ask for something that mixes the heads, or for other heads.
    """
    if not heads:
        return options
    if options.get("fusion") == "svm":
        raise ConfigError(
            f"fusion by an SVM needs classes that exclude each other; the task has {len(heads)} heads.",
            remedy="Set network.options.fusion to average.",
            where="network.options.fusion",
            code="svm",
        )
    if "heads" in networks.spec(name).options:
        if tuple(options.get("heads") or heads) != heads:
            raise ConfigError(
                f"the targets have {' + '.join(map(str, heads))} classes, got heads={list(options['heads'])}.",
                remedy="Leave heads out: training sets it.",
                where="network.options.heads",
                code="network-option",
            )
        return {**options, "heads": heads}
    if options.get("stage", "logits") != "logits":
        raise ConfigError(
            f"{name} fuses its streams at the stage {options['stage']!r} over all outputs at once, and the task has "
            f"{len(heads)} heads.",
            remedy="Set network.options.stage to logits.",
            where="network.options.stage",
            code="network-option",
        )
    return options
