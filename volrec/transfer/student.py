"""`volrec transfer`: a 3D network taught by a frozen 2D one whether slices and a clip belong together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volrec import networks
from volrec.config import AugmentConfig, TransferConfig
from volrec.errors import ConfigError, Problem, StoreError
from volrec.runs import Member
from volrec.training.callbacks import Validation
from volrec.training.devices import own_device, place
from volrec.training.distributed import (
    gather,
    is_main_process,
    on_main,
    rank,
    world_size,
)
from volrec.training.interrupts import StopFlag
from volrec.training.loop import NetworkModule, checkpoint_of, run_loop
from volrec.training.module import make_transform
from volrec.training.seeds import seed_dropout, step_seed
from volrec.transfer.features import TeacherFeatures, TeacherView
from volrec.transfer.held_out import HeldOut
from volrec.transfer.matching import MatchingHead, MatchingNetwork, PairLogits, matching_loss, shuffled_order
from volrec.transfer.places import PlaceData
from volrec.transfer.prepare import (
    Prepared,
    TransferRun,
    check_settings,
    learn,
    read_patients,
    signature_of,
    without_nan,
)
from volrec.transfer.slices import make_augment
from volrec.transfer.teacher import Teacher, load_teacher
from volrec.weights import load_state, load_weights, save_weights

__all__ = ["TransferModule", "transfer"]

log = logging.getLogger(__name__)

MEMBER = "student"
HEAD = "head.safetensors"
METRIC = "matching"
_INIT, _DROPOUT, _AUGMENT, _ORDER, _TEACHER = range(5)


def transfer(
    config: TransferConfig, out: Path | str, *, resume: bool = False, reasons: Mapping[str, str] | None = None
) -> TransferRun | None:
    """Teach a student and leave weights, card, history and the matching report in a run folder.

    Parameters
    ----------
    config : TransferConfig
        ``data.folder`` and ``teacher.source`` must be set.
    out : path
        Run folder: new or empty, unless `resume`.
    resume : bool
        Go on with the run that is there, as it was begun; on a CPU the result is bit-equal to an uninterrupted one.
    reasons : mapping, optional
        From dotted key to one line of why, written into ``config.yaml``.

    Returns
    -------
    TransferRun
        The finished run, without its report; None in the other processes of a training over several.

    Raises
    ------
    VolrecError
        Wrong configuration, no teacher, no usable study, a device that is not there or out of memory.
    Interrupted
        After Ctrl-C or SIGTERM; its text says how to go on.
    """

    def begin(config: TransferConfig) -> Callable[[Prepared], list[Problem]]:
        teacher = load_teacher(config.teacher, intensity=config.intensity, canvas=config.preprocess.canvas)
        _check(config)
        return lambda made: _fit(made, teacher)

    return learn(config, out, kind=TransferRun, resume=resume, reasons=reasons, begin=begin)


class TransferModule(NetworkModule):
    """Lightning module of a transfer; its hyper-parameters are plain Python types.

    Parameters
    ----------
    network, intensity, augment, matching, optim : dict
        Sections of the configuration.
    spacing : list of float, optional
        Usual spacing (T, H, W) of the studies, mm.
    teacher_features : int
        Length of the teacher's feature.
    seed, steps_per_epoch, epochs : int
        As for `volrec.training.module.StudyModule`.
    """

    network: MatchingNetwork

    def __init__(
        self,
        *,
        network: dict[str, Any],
        intensity: dict[str, Any],
        augment: dict[str, Any],
        matching: dict[str, Any],
        optim: dict[str, Any],
        spacing: list[float] | None,
        teacher_features: int,
        seed: int,
        steps_per_epoch: int,
        epochs: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.transform = make_transform(intensity, augment, spacing=spacing)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(step_seed(seed, _INIT))
            student = networks.create(
                network["name"],
                num_classes=1,
                in_channels=self.transform.channels,
                width=network["width"],
                **network["options"],
            )
            head = MatchingHead(
                teacher_features=teacher_features,
                student_features=student.num_features,
                projection=matching["projection"],
                hidden=matching["hidden"],
                head=matching["head"],
                dropout=matching["dropout"],
            )
        self.network = MatchingNetwork(student, head)
        self.negatives = matching["negatives"]
        self.seed = seed
        self._rank = rank()
        # Not a submodule: it does not learn, and its weights have no place in a checkpoint.
        self._encoder: list[TeacherStep] = []

    def encode_with(self, step: TeacherStep) -> None:
        """Encode the teacher's slices in every step instead of reading kept features."""
        self._encoder = [step]

    def training_step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Return the loss of one batch.

        Parameters
        ----------
        batch : dict
            ``image`` (B, 1, T', H, W), ``quantiles`` (B, Q), ``patient``, ``has_other`` (B,), and ``teacher`` with
            ``other`` (B, F), or ``other_image`` (B, 1, T', H, W).
        step : int
            Batch within the epoch.
        """
        where = (self.current_epoch, step, self._rank)
        seed_dropout(step_seed(self.seed, _DROPOUT, *where), self.device)
        here, other = self._teacher_features(batch, where)
        generator = torch.Generator().manual_seed(step_seed(self.seed, _AUGMENT, *where))
        clips = self.transform(batch, generator=generator)["image"]
        shuffled = self._shuffled(clips, torch.Generator().manual_seed(step_seed(self.seed, _ORDER, *where)))
        if len(clips) < 2:
            return 0.0 * sum(p.sum() for p in self.network.parameters() if p.requires_grad)  # type: ignore[return-value]
        features = self.network(torch.cat([clips, shuffled]))
        count = batch["valid"].any().to(features.dtype)
        pairs = self._pairs(here, other, features, batch, clips=len(clips))
        return count * matching_loss(pairs, self.negatives)[0]

    def _shuffled(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Return clips of the second half of the batch with their slices shuffled, none where that is not asked."""
        if not self.negatives.get("order"):
            return clips[:0]
        some = clips[len(clips) // 2 :]
        orders = shuffled_order(len(some), clips.shape[2], generator).to(clips.device)
        return some.gather(2, orders[:, None, :, None, None].expand_as(some))

    def _pairs(
        self, here: Tensor, other: Tensor, features: Tensor, batch: dict[str, Tensor], *, clips: int
    ) -> PairLogits:
        head = self.network.head
        student = head.student_norm(features)
        # Both places share their statistics: a difference between them must not come from the norm.
        slices = head.teacher_norm(torch.cat([here, other]))
        here, other = slices[:clips], slices[clips:]
        seen, shuffled = student[:clips], student[clips:]
        strangers = batch["patient"][:, None] != batch["patient"][None, :]
        rows, columns = strangers.nonzero(as_tuple=True)
        elsewhere = batch["has_other"].nonzero().flatten()
        return PairLogits(
            match=head(here, seen),
            patient=head(here[rows], seen[columns]),
            place=head(other[elsewhere], seen[elsewhere]),
            order=head(here[clips - len(shuffled) :], shuffled),
        )

    def _teacher_features(self, batch: dict[str, Tensor], where: Sequence[int]) -> tuple[Tensor, Tensor]:
        if "teacher" in batch:
            return batch["teacher"], batch["other"]
        encoder = self._encoder[0]
        seeds = [step_seed(self.seed, _TEACHER, *where, side) for side in (0, 1)]
        images = (batch["image"], batch["other_image"])
        here, other = (encoder(image, batch["quantiles"], seed) for image, seed in zip(images, seeds, strict=True))
        return here, other


class TeacherStep:
    """The teacher in a training step: clips augmented by themselves, encoded slice by slice, averaged.

    Parameters
    ----------
    teacher : Teacher
        On the device of the batches.
    augment : AugmentConfig
        The teacher's own augmentation.
    """

    def __init__(self, teacher: Teacher, augment: AugmentConfig) -> None:
        self.teacher = teacher
        self.augment = make_augment(augment)

    @torch.no_grad()
    def __call__(self, images: Tensor, quantiles: Tensor, seed: int) -> Tensor:
        """Return features (B, F) of stored clips (B, 1, T', H, W)."""
        out = self.teacher.intensity(images, quantiles)
        if self.augment is not None:
            generator = torch.Generator().manual_seed(seed)
            out = self.augment.apply(out, self.augment.draw(len(out), out.shape[-3:], generator))
        batch, slices = out.shape[0], out.shape[2]
        return self.teacher(out.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, slices)).mean(dim=1)


def _fit(made: Prepared, teacher: Teacher) -> list[Problem]:
    config: TransferConfig = made.config
    member = made.run.member(MEMBER)
    placement = place(config)
    device = own_device(placement.accelerator)
    view = TeacherView(teacher, config.teacher.augment, seed=config.trainer.seed)
    kept = TeacherFeatures(view, store=made.store, views=max(1, config.teacher.views))
    problems: list[Problem] = []
    with made.logging():
        # The held-out studies are always encoded once: they are looked at after every epoch.
        wanted = [*made.train, *made.held] if config.teacher.views else [*made.held]
        problems += gather(kept.fill(wanted, made.entries, device=device, part=(rank(), world_size())))
    # Every rank has encoded its share from here on.
    features = kept if config.teacher.views else None
    data = PlaceData(
        config, made.train, made.entries, store=made.store, features=features, accelerator=placement.accelerator
    )
    values = config.to_dict()
    module = TransferModule(
        network=values["network"],
        intensity=values["intensity"],
        augment=values["augment"],
        matching=values["matching"],
        optim=values["optim"],
        spacing=_usual_spacing(made),
        teacher_features=teacher.num_features,
        seed=config.trainer.seed,
        steps_per_epoch=data.steps_per_epoch,
        epochs=config.trainer.epochs,
    )
    if features is None:
        module.encode_with(TeacherStep(teacher.to(device), config.teacher.augment))
    _check_clips(module, made)
    problems += _drop_order(module, made) + _seen_by_teacher(made)
    held = HeldOut(made, kept, module.transform, negatives=module.negatives)
    signature = signature_of(made.train)

    def save(network: nn.Module, epoch: int, found: Validation | None) -> None:
        member.make()
        card = _card(made, teacher, signature=signature, epoch=epoch, found=found)
        save_weights(member.weights, network.student, card)  # type: ignore[arg-type]
        facts = {"kind": "matching-head", "matching": values["matching"], "teacher_features": teacher.num_features}
        save_weights(member.path / HEAD, network.head, facts)  # type: ignore[arg-type]

    def validate(network: nn.Module, flag: StopFlag) -> Validation:
        return held.validate(network, stop=flag)

    with made.logging():
        state = run_loop(
            config,
            placement=placement,
            module=module,
            data=data,
            member=member,
            save=save,
            validate=validate if made.held else None,
            metric=METRIC,
            higher=True,
            checkpoint=on_main(lambda: checkpoint_of(member)),
        )
        if is_main_process():
            _finish(made, member, module, held)
    return [*problems, *(Problem(**problem) for problem in state.problems)]


def _finish(made: Prepared, member: Member, module: TransferModule, held: HeldOut) -> None:
    """Measure the weights that were kept and write what they know."""
    history = member.history().to_dict("records")
    kept = next((row for row in reversed(history) if row["kept"]), history[-1])
    facts: dict[str, Any] = {
        "epochs": len(history),
        "epoch": int(kept["epoch"]),
        "train_loss": float(kept["train_loss"]),
        "studies": len(made.train),
        "held_out": len(made.held),
    }
    if made.held:
        for network, path in ((module.network.student, member.weights), (module.network.head, member.path / HEAD)):
            load_state(network, load_weights(path)[0], where=path)
        report = held.report(module.network.to("cpu"))
        made.run.write_table("matching", report.table)
        facts |= report.facts
    made.run.write_metrics(without_nan(facts))
    member.finish()


def _card(made: Prepared, teacher: Teacher, *, signature: str, epoch: int, found: Validation | None) -> dict[str, Any]:
    values = made.config.to_dict()
    value = None if found is None or not np.isfinite(found.metric) else float(found.metric)
    return {
        "schema": 1,
        "kind": "student",
        "network": values["network"],
        "preprocess": values["preprocess"],
        "intensity": values["intensity"],
        "sampling": values["sampling"],
        "series": values["data"]["series"],
        "missing_slices": values["data"]["missing_slices"],
        "modality": made.modality,
        "teacher": teacher.facts,
        "matching": values["matching"],
        "data_signature": signature,
        "studies": len(made.train),
        "epoch": epoch,
        "validation": {} if found is None else {"metric": METRIC, "value": value},
    }


def _usual_spacing(made: Prepared) -> list[float] | None:
    """Return the median spacing (T, H, W) in mm of the stored studies, from some of them."""
    found = []
    for case in made.train[:: max(1, len(made.train) // 16)]:
        try:
            affine = made.store.open(made.entries[case.series.uid]).affine
        except StoreError:  # reported when the study's turn comes
            continue
        found.append(np.linalg.norm(affine[:3, :3], axis=0))
    return np.median(found, axis=0).tolist() if found else None


def _check(config: TransferConfig) -> None:
    check_settings(config, "a transfer")
    if config.matching.negatives.get("order") and config.sampling.clip_length < 3:
        shuffled_order(1, config.sampling.clip_length, torch.Generator())  # raises


@torch.no_grad()
def _drop_order(module: TransferModule, made: Prepared) -> list[Problem]:
    """Take shuffled clips out of the mix where the student cannot tell them: one that averages slices, say."""
    if not module.negatives.get("order"):
        return []
    student = module.network.student.eval()
    height, width = made.entries[made.train[0].series.uid].shape[1:]
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn((1, student.in_channels, made.config.sampling.clip_length, height, width), generator=generator)
    order = shuffled_order(1, clip.shape[2], generator)[0]
    seen, mixed = (module.network.clip_features(each) for each in (clip, clip[:, :, order]))
    student.train()
    if not torch.allclose(seen, mixed, rtol=1e-4, atol=1e-6):
        return []
    module.negatives = {kind: share for kind, share in module.negatives.items() if kind != "order"}
    name = made.config.network.name
    if not any(module.negatives.values()):
        raise ConfigError(
            f"{name} gives the same features whatever the order of the slices, and order is all it is to learn.",
            remedy="Take another network, or other kinds in matching.negatives.",
            where="matching.negatives",
            code="matching",
        )
    problem = Problem(
        "matching.negatives",
        "order-blind",
        f"{name} gives the same features whatever the order of the slices: it is not asked about shuffled clips.",
        "Take a network that reads context along the slices, such as t3d-121.",
        fatal=False,
    )
    log.warning("%s", problem.reason)
    return [problem]


def _seen_by_teacher(made: Prepared) -> list[Problem]:
    """Say when the teacher was taught by patients that are held out here: what they show is then less than it seems."""
    table = Path(str(made.config.teacher.source)) / "studies.csv"
    if not table.is_file():
        return []
    taught = read_patients(table)
    patients = {case.patient for case in made.held}
    seen = patients & taught
    if not seen:
        return []
    return [
        Problem(
            str(table),
            "teacher-saw-held-out",
            f"the teacher was taught by {len(seen)} of the {len(patients)} patients held out from the student.",
            "Give both the same holdout.share and holdout.seed, and the same studies.",
            fatal=False,
        )
    ]


def _check_clips(module: TransferModule, made: Prepared) -> None:
    height, width = made.entries[made.train[0].series.uid].shape[1:]
    clip = (1, module.transform.channels, made.config.sampling.clip_length, height, width)
    module.network.student.check_input(torch.empty(clip, device="meta"))
