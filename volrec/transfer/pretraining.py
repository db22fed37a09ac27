"""`volrec pretrain`: a 2D network taught by the slices of a folder, with or without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from volrec.config import AugmentConfig, IntensityConfig, PretrainConfig, ViewsConfig
from volrec.data.datasets import own_slices
from volrec.data.labels import Cohort, num_outputs
from volrec.errors import Problem, StoreError
from volrec.evaluation import default_metric, higher_is_better, study_metric
from volrec.networks.backbones import create_backbone
from volrec.networks.layers import channels_last
from volrec.runs import Member
from volrec.training.callbacks import Validation
from volrec.training.devices import place
from volrec.training.distributed import gather, is_main_process, on_main, rank
from volrec.training.distributed import world_size as ranks
from volrec.training.interrupts import StopFlag, StopTraining
from volrec.training.loop import NetworkModule, checkpoint_of, run_loop
from volrec.training.losses import StudyLoss, slice_loss, soft_slice_targets, soft_targets
from volrec.training.seeds import seed_dropout, step_seed
from volrec.transfer.losses import nt_xent, vicreg
from volrec.transfer.prepare import Prepared, PretrainRun, check_pretrain, learn, signature_of, without_nan
from volrec.transfer.slices import SliceViews, ViewData, even_slices, step_mm
from volrec.weights import save_weights

__all__ = ["SliceModule", "SliceNetwork", "guessed_retrieval", "place_retrieval", "pretrain"]

log = logging.getLogger(__name__)

MEMBER = "teacher"
HELD_SLICES = 16
"""Slices of a held-out study that are looked at."""
_INIT, _DROPOUT, _VIEWS, _HELD = range(4)


def pretrain(
    config: PretrainConfig, out: Path | str, *, resume: bool = False, reasons: Mapping[str, str] | None = None
) -> PretrainRun | None:
    """Train a slice teacher and leave weights, card, history and metrics in a run folder.

    Parameters
    ----------
    config : PretrainConfig
        ``data.folder`` must be set; labels only for the method ``supervised``.
    out : path
        Run folder: new or empty, unless `resume`.
    resume : bool
        Go on with the run that is there, as it was begun; on a CPU the result is bit-equal to an uninterrupted one.
    reasons : mapping, optional
        From dotted key to one line of why, written into ``config.yaml``.

    Returns
    -------
    PretrainRun
        The finished run, without its report; None in the other processes of a training over several.

    Raises
    ------
    VolrecError
        Wrong configuration, no usable study, a device that is not there or out of memory.
    Interrupted
        After Ctrl-C or SIGTERM; its text says how to go on.
    """

    def begin(config: PretrainConfig) -> Callable[[Prepared], list[Problem]]:
        check_pretrain(config)
        return _fit

    return learn(config, out, kind=PretrainRun, resume=resume, reasons=reasons, begin=begin)


class SliceNetwork(nn.Module):
    """A 2D network with the head that its pretraining needs.

    Parameters
    ----------
    backbone : Backbone
        Slices (N, C, H, W) to features (N, F).
    outputs : int
        Outputs of a linear head (labels); 0 takes the projection.
    projection : list of int
        Sizes of the projection's layers: linear, batch normalisation and ReLU each, the last one linear alone.
    """

    def __init__(self, backbone: nn.Module, *, outputs: int, projection: list[int]) -> None:
        super().__init__()
        self.backbone = backbone
        features = int(backbone.num_features)  # type: ignore[arg-type]
        layers: list[nn.Module] = []
        if not outputs:
            for size in projection[:-1]:
                layers += [nn.Linear(features, size, bias=False), nn.BatchNorm1d(size), nn.ReLU()]
                features = size
        layers.append(nn.Linear(features, outputs or projection[-1]))
        self.head = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return projections or logits (N, D) of slices (N, C, H, W)."""
        return self.head(self.backbone(x))


class SliceModule(NetworkModule):
    """Lightning module of a pretraining; its hyper-parameters are plain Python types.

    Parameters
    ----------
    backbone, method, intensity, views, augment, optim : dict
        Sections of the configuration.
    task : str
        Of the labels; ``"none"`` without.
    num_outputs : int
        Outputs for the labels.
    scaling : dict, optional
        ``mean`` and ``std`` of the targets of a regression.
    seed, steps_per_epoch, epochs : int
        As for `volrec.training.module.StudyModule`.
    """

    network: SliceNetwork

    def __init__(
        self,
        *,
        backbone: dict[str, Any],
        method: dict[str, Any],
        intensity: dict[str, Any],
        views: dict[str, Any],
        augment: dict[str, Any],
        optim: dict[str, Any],
        task: str,
        num_outputs: int,
        scaling: dict[str, list[float]] | None,
        seed: int,
        steps_per_epoch: int,
        epochs: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.views = SliceViews(IntensityConfig(**intensity), ViewsConfig(**views), AugmentConfig(**augment))
        self.method = method["name"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(step_seed(seed, _INIT))
            trunk = create_backbone(
                backbone["name"],
                in_channels=self.views.channels,
                width=backbone["width"],
                norm=backbone["norm"],
                stem_stride=backbone["stem_stride"],
            )
            outputs = num_outputs if self.method == "supervised" else 0
            channels_last(trunk)
            self.network = SliceNetwork(trunk, outputs=outputs, projection=method["projection"])
        kind: Any = task
        self.task, self.num_outputs, self.scaling = kind, num_outputs, scaling
        self.loss = StudyLoss(kind, label_smoothing=optim["label_smoothing"]) if outputs else None
        self.seed = seed
        self._rank = rank()

    def training_step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Return the loss of one batch of pairs: ``image`` (B, 1, 2, H, W), ``quantiles`` (B, Q)."""
        where = (self.current_epoch, step, self._rank)
        seed_dropout(step_seed(self.seed, _DROPOUT, *where), self.device)
        generator = torch.Generator().manual_seed(step_seed(self.seed, _VIEWS, *where))
        count = batch["valid"].any().to(torch.float32)
        images = batch["image"].movedim(2, 0).flatten(0, 1)[:, :, None]  # all first views, then all second ones
        outputs = self.network(self.views(images, batch["quantiles"].repeat(2, 1), generator)).float()
        first, second = outputs.chunk(2)
        if len(first) < 2 and self.method != "supervised":
            return 0.0 * outputs.sum()  # all but one study could not be read: nothing to compare with
        if self.method == "simclr":
            return count * nt_xent(
                first, second, temperature=self.hparams["method"]["temperature"], alike=self._alike(batch)
            )
        if self.method == "vicreg":
            return count * vicreg(first, second, weights=self.hparams["method"]["weights"])
        return count * self._supervised(torch.stack([first, second], dim=1), batch)

    def _alike(self, batch: dict[str, Tensor]) -> Tensor:
        """Return which places of a batch (B, B) lie so near in one study that they could be views of one."""
        near = (batch["place"][:, None] - batch["place"][None, :]).abs() <= self.hparams["views"]["neighbours"]
        return near & (batch["study"][:, None] == batch["study"][None, :])

    def _supervised(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of logits (B, 2, K) against the labels of the slices, or else of their study."""
        if "slice_target" in batch:
            targets = soft_slice_targets(batch["slice_target"], self.task, self.num_outputs)
            return slice_loss(logits, targets, self.task)
        targets = batch["target"]
        if self.scaling is not None:
            mean, std = (targets.new_tensor(self.scaling[key]) for key in ("mean", "std"))
            targets = (targets - mean) / std
        soft = soft_targets(targets, self.task, self.num_outputs).repeat_interleave(2, dim=0)
        return self.loss(logits.flatten(0, 1), soft)  # type: ignore[misc]


def place_retrieval(queries: np.ndarray, gallery: np.ndarray, places: np.ndarray, reach: float) -> float:
    """Return the share of views whose most similar slice shows their own place.

    Parameters
    ----------
    queries, gallery : ndarray
        ``(N, F)`` features of a changed view of each place, and of the slices as they are.
    places : ndarray
        ``(N, 2)`` number of the study, and mm along its slice axis.
    reach : float
        Slices of one study at most so far apart show one place, mm.

    Returns
    -------
    float
        In [0, 1]; see `guessed_retrieval` for what guessing gives.
    """
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (queries, gallery)]
    nearest = (unit[0] @ unit[1].T).argmax(axis=1)
    return float(np.mean(_one_place(places[nearest], places, reach)))


def guessed_retrieval(places: np.ndarray, reach: float) -> float:
    """Return what `place_retrieval` is on average for slices that are chosen blindly; neighbours count as found."""
    return float(np.mean(_one_place(places[:, None], places[None, :], reach)))


def _one_place(first: np.ndarray, second: np.ndarray, reach: float) -> np.ndarray:
    """Return which places (..., 2) are those of one study, and near enough to count as one."""
    return (first[..., 0] == second[..., 0]) & (np.abs(first[..., 1] - second[..., 1]) <= reach)


def _fit(made: Prepared) -> list[Problem]:
    config: PretrainConfig = made.config
    member = made.run.member(MEMBER)
    placement = place(config)
    data = ViewData(config, made.train, made.entries, store=made.store, accelerator=placement.accelerator)
    values = config.to_dict()
    task, outputs, scaling = _question(made)
    module = SliceModule(
        backbone=values["backbone"],
        method=values["method"],
        intensity=values["intensity"],
        views=values["views"],
        augment=values["augment"],
        optim=values["optim"],
        task=task,
        num_outputs=outputs,
        scaling=scaling,
        seed=config.trainer.seed,
        steps_per_epoch=data.steps_per_epoch,
        epochs=config.trainer.epochs,
    )
    metric = default_metric(task) if config.method.name == "supervised" else "retrieval"
    higher = metric == "retrieval" or higher_is_better(metric)
    signature = signature_of(made.train)

    def save(network: nn.Module, epoch: int, found: Validation | None) -> None:
        member.make()
        card = _card(made, signature=signature, epoch=epoch, metric=metric, found=found)
        save_weights(member.weights, network.backbone, card)  # type: ignore[arg-type]

    def validate(network: nn.Module, flag: StopFlag) -> Validation:
        return _validate(made, module, network, metric=metric, stop=flag)

    with made.logging():
        state = run_loop(
            config,
            placement=placement,
            module=module,
            data=data,
            member=member,
            save=save,
            validate=validate if made.held else None,
            metric=metric,
            higher=higher,
            checkpoint=on_main(lambda: checkpoint_of(member)),
        )
        if is_main_process():
            _finish(made, member, metric)
    return [Problem(**problem) for problem in state.problems]


def _finish(made: Prepared, member: Member, metric: str) -> None:
    member.finish()
    history = member.history().to_dict("records")
    kept = next((row for row in reversed(history) if row["kept"]), history[-1])
    facts: dict[str, Any] = {
        "method": made.config.method.name,
        "epochs": len(history),
        "epoch": int(kept["epoch"]),
        "train_loss": float(kept["train_loss"]),
        "studies": len(made.train),
        "held_out": len(made.held),
    }
    if f"val_{metric}" in kept:
        facts |= {"metric": metric, "value": float(kept[f"val_{metric}"]), "first": float(history[0][f"val_{metric}"])}
        if metric == "retrieval":
            places = np.concatenate([_held_places(made, index) for index in range(len(made.held))])
            chance = guessed_retrieval(places, made.config.views.neighbours) if len(places) else float("nan")
            facts |= {"places": len(places), "chance": chance}
    made.run.write_metrics(without_nan(facts))


def _held_slices(made: Prepared, index: int) -> np.ndarray:
    try:
        return even_slices(*own_slices(made.store.open(made.entries[made.held[index].series.uid])), HELD_SLICES)
    except StoreError:
        return np.empty(0, dtype=np.int64)


def _held_places(made: Prepared, index: int) -> np.ndarray:
    """Return number of the study, and mm along its slice axis, (N, 2) of the slices that are looked at."""
    slices = _held_slices(made, index)
    if not len(slices):
        return np.empty((0, 2))
    step = step_mm(made.store.open(made.entries[made.held[index].series.uid]))
    return np.column_stack([np.full(len(slices), index), slices * step])


@torch.no_grad()
def _validate(made: Prepared, module: SliceModule, network: nn.Module, *, metric: str, stop: StopFlag) -> Validation:
    """Look at slices of the held-out studies: how often views are found again, or how well labels are told."""
    rows: list[Any] = []
    reach = made.config.views.neighbours
    for index in range(rank(), len(made.held), ranks()):
        if stop.requested:
            break
        case = made.held[index]
        slices = _held_slices(made, index)
        if not len(slices):
            continue
        volume = made.store.open(made.entries[case.series.uid])
        images = torch.from_numpy(volume.read(slices))[:, None, None].to(module.device)
        quantiles = torch.from_numpy(volume.quantiles)[None].repeat(len(slices), 1).to(module.device)
        if metric != "retrieval":
            logits = network(module.views(images, quantiles)).float()
            rows.append((index, logits.mean(dim=0).cpu().numpy(), None, None))
            continue
        generator = torch.Generator().manual_seed(step_seed(module.seed, _HELD, index))
        trunk: Any = network.backbone
        shown = [trunk(module.views(images, quantiles, chosen)).float().cpu().numpy() for chosen in (generator, None)]
        rows.append((index, *shown, _held_places(made, index)))
    from volrec.training.distributed import any_rank

    if any_rank(stop.requested):
        raise StopTraining
    rows = sorted(gather(rows), key=lambda row: row[0])
    if not rows:
        return Validation(float("nan"), float("nan"))
    if metric == "retrieval":
        queries, gallery, places = (np.concatenate([row[part] for row in rows]) for part in (1, 2, 3))
        value = place_retrieval(queries, gallery, places, reach)
        return Validation(value, 1 - value)
    logits = np.stack([row[1] for row in rows]).astype(np.float64)
    truth = np.stack([np.asarray(made.held[row[0]].target, dtype=np.float64).reshape(-1) for row in rows])
    task = module.task
    if task == "regression":
        scale = module.scaling or {"mean": [0.0], "std": [1.0]}
        scores = logits * np.asarray(scale["std"]) + np.asarray(scale["mean"])
    else:
        values = torch.from_numpy(logits)
        scores = (functional.softmax(values, dim=1) if task == "multiclass" else values.sigmoid()).numpy()
    return Validation(study_metric(metric, task, truth, scores), study_metric("loss", task, truth, scores))


def _question(made: Prepared) -> tuple[str, int, dict[str, list[float]] | None]:
    cohort = made.cohort
    if not isinstance(cohort, Cohort):
        return "none", 0, None
    scaling = None
    if cohort.task == "regression":
        values = np.stack([np.asarray(case.target, dtype=np.float64).reshape(-1) for case in made.train])
        std = np.nanstd(values, axis=0)
        scaling = {"mean": np.nanmean(values, axis=0).tolist(), "std": np.where(std > 0, std, 1.0).tolist()}
    return cohort.task, num_outputs(cohort.task, cohort.classes, cohort.targets), scaling


def _card(made: Prepared, *, signature: str, epoch: int, metric: str, found: Validation | None) -> dict[str, Any]:
    values = made.config.to_dict()
    size = made.config.preprocess.canvas
    value = None if found is None or not np.isfinite(found.metric) else float(found.metric)
    return {
        "schema": 1,
        "kind": "teacher",
        "method": values["method"],
        "preprocess": values["preprocess"],
        "intensity": values["intensity"],
        "modality": made.modality,
        "classes": list(getattr(made.cohort, "classes", ())),
        "size": None if size is None else list(size[1:]),
        "data_signature": signature,
        "studies": len(made.train),
        "epoch": epoch,
        "validation": {} if found is None else {"metric": metric, "value": value},
    }
