"""Weights that exist: imported, taught by slices, transferred from a 2D teacher to a 3D student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.api.settings import ConfigLike, destination, flatten, given_sections, origin
from volrec.config import PretrainConfig, Section, TransferConfig, apply_overrides, dump_yaml, kind_of, parse_config
from volrec.errors import ConfigError, Problem

if TYPE_CHECKING:
    from volrec.networks import SequenceNetwork
    from volrec.networks.backbones.contract import Backbone
    from volrec.planning import Fingerprint
    from volrec.runs import RunFolder
    from volrec.weights.foreign import Imported

__all__ = ["ImagePlan", "WeightsRun", "import_weights", "plan_pretrain", "plan_transfer", "pretrain", "teach"]


@dataclass(frozen=True)
class ImagePlan:
    """A complete configuration of a pretraining or transfer, with the reasons for it.

    Attributes
    ----------
    config : PretrainConfig or TransferConfig
        What will be obeyed.
    reasons : dict
        Dotted key -> one line of why.
    problems : tuple of Problem
        Studies that were quarantined on the way.
    facts : Fingerprint, optional
        What the plan rests on.
    """

    config: Any
    reasons: dict[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    facts: Fingerprint | None = None

    def text(self) -> str:
        """Return the plan as YAML with its reasons as comments."""
        return dump_yaml(self.config, self.reasons)

    def write(self, path: Path | str) -> Path:
        """Write `text` to a file that ``--config`` takes."""
        from volrec.files import write_atomically

        write_atomically(path, self.text())
        return Path(path)


class WeightsRun:
    """A finished pretraining or transfer: its network, its metrics, and where the weights lie.

    ``init=run.path`` begins a training with them.

    Parameters
    ----------
    folder : RunFolder
        The run on disk.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.path = folder.path

    def __repr__(self) -> str:
        return f"WeightsRun('{self.path}')"

    @property
    def config(self) -> Any:
        """The configuration that was obeyed."""
        return self.folder.config

    @property
    def metrics(self) -> dict[str, Any]:
        """What the held-out patients show, as in ``metrics.json``."""
        return self.folder.metrics

    @property
    def problems(self) -> list[Problem]:
        """Quarantined studies."""
        return self.folder.quarantine()

    @property
    def weights(self) -> Path:
        """The teacher's or student's ``weights.safetensors``."""
        return self.folder.finished_members()[0].weights

    @property
    def network(self) -> SequenceNetwork | Backbone:
        """The student, or the 2D teacher, in evaluation mode."""
        from volrec.weights import load_backbone, load_network

        load: Any = load_backbone if kind_of(self.folder.schema) == "pretrain" else load_network
        return load(self.weights)[0]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder.report_path


def plan_pretrain(
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    config: ConfigLike = None,
    overrides: Mapping[str, Any] | None = None,
) -> ImagePlan:
    """Derive the configuration of a slice pretraining from the data, without training (see `pretrain`)."""
    from volrec.planning.images import plan_pretrain as derive
    from volrec.transfer.prepare import check_pretrain

    fixed = dict(overrides or {})
    given, checked = _given(config, PretrainConfig, {"folder": folder, "labels": labels}, fixed)
    check_pretrain(checked)
    _check_backbone(checked)
    return _planned(checked, lambda images: derive(images, given, overrides=fixed))


def plan_transfer(
    folder: Path | str | None = None,
    *,
    teacher: Path | str | None = None,
    config: ConfigLike = None,
    overrides: Mapping[str, Any] | None = None,
) -> ImagePlan:
    """Derive the configuration of a transfer from the data, without training (see `teach`)."""
    from volrec.planning.images import plan_transfer as derive
    from volrec.transfer.prepare import check_settings

    fixed = dict(overrides or {})
    if teacher is not None:
        fixed["teacher.source"] = str(teacher)
    given, checked = _given(config, TransferConfig, {"folder": folder}, fixed)
    check_settings(checked, "a transfer")
    _check_student(checked)
    card = _teacher_card(checked)
    return _planned(checked, lambda images: derive(images, given, overrides=fixed, teacher_card=card))


def pretrain(
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    config: ConfigLike = None,
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: Path | str | None = None,
    announce: Callable[[ImagePlan, Path], None] | None = None,
    **sections: Any,
) -> WeightsRun | None:
    """Train a 2D network on the slices of a folder, without labels or with them: a teacher for `teach`.

    Parameters
    ----------
    folder : path, optional
        Studies.
    labels : path, optional
        Table of labels, for the method ``supervised``.
    config : path, mapping or PretrainConfig, optional
        Sections that it holds are obeyed; those it leaves out are planned.
    out : path, optional
        Run folder; default ``runs/teacher-METHOD``, numbered when taken.
    overrides : mapping, optional
        Dotted keys that are set last (``{"method.name": "simclr"}``).
    resume : path, optional
        Go on with this run, as it was begun; nothing else is given then.
    announce : callable, optional
        Called with the plan and the run folder before the training begins.
    **sections
        As for `volrec.train`.

    Returns
    -------
    WeightsRun
        None in the other processes of a training over several.

    Raises
    ------
    VolrecError
        Wrong configuration, no usable study.
    """
    from volrec.report import write_weights_report
    from volrec.transfer import PretrainRun
    from volrec.transfer import pretrain as run_pretraining

    if resume is not None:
        run = run_pretraining(PretrainRun.open(resume).config, resume, resume=True)
    else:
        merged = dict(overrides or {}) | flatten(sections, schema=PretrainConfig)
        made = plan_pretrain(folder, labels=labels, config=config, overrides=merged)
        place = destination(made.config.name or f"teacher-{made.config.method.name}", out)
        if announce is not None:
            announce(made, place)
        run = run_pretraining(made.config, place, reasons=made.reasons)
    if run is None:
        return None
    write_weights_report(run)
    return WeightsRun(run)


def teach(
    folder: Path | str | None = None,
    *,
    teacher: Path | str | None = None,
    config: ConfigLike = None,
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: Path | str | None = None,
    announce: Callable[[ImagePlan, Path], None] | None = None,
    **sections: Any,
) -> WeightsRun | None:
    """Teach a 3D network, without any label, to tell whether slices and a clip belong together (T3D's transfer).

    What `volrec transfer` does; `volrec.transfer` itself is the room that does it. A. Diba et al., "Temporal 3D
    ConvNets", arXiv 1711.08200, 2017.

    Parameters
    ----------
    folder : path, optional
        Studies.
    teacher : path or str, optional
        A run of `pretrain`, a 2D weights file, ``efficientnet-lite0``, or ``monai:NAME`` or ``timm:NAME`` with
        ``teacher.weights`` among the overrides.
    config : path, mapping or TransferConfig, optional
        Sections that it holds are obeyed; those it leaves out are planned.
    out : path, optional
        Run folder; default ``runs/transfer-NETWORK``, numbered when taken.
    overrides : mapping, optional
        Dotted keys that are set last (``{"network.name": "t3d-121"}``).
    resume : path, optional
        Go on with this run, as it was begun; nothing else is given then.
    announce : callable, optional
        Called with the plan and the run folder before the training begins.
    **sections
        As for `volrec.train`.

    Returns
    -------
    WeightsRun
        None in the other processes of a training over several.

    Raises
    ------
    VolrecError
        Wrong configuration, no teacher, no usable study.
    """
    from volrec.report import write_weights_report
    from volrec.transfer import TransferRun
    from volrec.transfer import transfer as run_transfer

    if resume is not None:
        run = run_transfer(TransferRun.open(resume).config, resume, resume=True)
    else:
        merged = dict(overrides or {}) | flatten(sections, schema=TransferConfig)
        made = plan_transfer(folder, teacher=teacher, config=config, overrides=merged)
        place = destination(made.config.name or f"transfer-{made.config.network.name}", out)
        if announce is not None:
            announce(made, place)
        run = run_transfer(made.config, place, reasons=made.reasons)
    if run is None:
        return None
    write_weights_report(run)
    return WeightsRun(run)


def import_weights(
    path: Path | str,
    *,
    as_: str | None = None,
    format: str | None = None,
    classes: Path | str | Sequence[str] | None = None,
    mean: Path | str | None = None,
    out: Path | str | None = None,
) -> Imported:
    """Read a foreign checkpoint into a network, every key accounted for (see `volrec.weights.foreign`).

    Parameters
    ----------
    path : path
        State dict of PyTorch, safetensors file, caffemodel or TensorFlow checkpoint; or ``efficientnet-lite0``, whose
        weights a package carries.
    as_ : str, optional
        Network of the registry, or backbone; needed unless a package carries the weights.
    format : str, optional
        None: recognised by the keys.
    classes : path or sequence of str, optional
        Class names, or a file with one a line.
    mean : path, optional
        Mean volume of Caffe (binaryproto).
    out : path, optional
        Safetensors file to be written with its card; None writes nothing.

    Returns
    -------
    Imported
        ``network`` (evaluation mode), ``table`` (what became of every key), ``card``, ``path``.

    Raises
    ------
    VolrecError
        For a file that is damaged or would run code, unknown formats, and keys that do not fit, all of them named.
    """
    from volrec.weights.foreign import import_weights as run_import

    return run_import(path, as_=as_, format=format, classes=classes, mean=mean, out=out)


def _given(
    config: ConfigLike, schema: type[Section], data: Mapping[str, Any], fixed: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """Return what the user wrote, and the same checked as a whole: before an hour of scanning, not after."""
    given = given_sections(config, schema=schema)
    named = {key: str(value) for key, value in data.items() if value is not None}
    given["data"] = {**(given.get("data") or {}), **named}
    checked = apply_overrides(parse_config(given, where=origin(config), schema=schema), fixed)
    if checked.data.folder is None:  # type: ignore[attr-defined]
        raise ConfigError("no folder of studies is named.", remedy=f"Say `volrec {kind_of(schema)} FOLDER`.")
    return given, checked


def _planned(checked: Any, derive: Callable[[Any], Any]) -> ImagePlan:
    from volrec.transfer.prepare import images_of

    images, problems, _ = images_of(checked)
    made = derive(images)
    return ImagePlan(made.config, made.reasons, tuple(problems), made.facts)


def _check_backbone(config: PretrainConfig) -> None:
    """Make sure that the 2D network exists, before anything is scanned or written."""
    import torch

    from volrec.networks.backbones import create_backbone

    asked = config.backbone
    with torch.device("meta"):
        create_backbone(asked.name, in_channels=1, width=asked.width, norm=asked.norm, stem_stride=asked.stem_stride)


def _check_student(config: TransferConfig) -> None:
    """Make sure that student and teacher exist, before anything is scanned or written."""
    import torch

    from volrec import networks
    from volrec.transfer import load_teacher

    with torch.device("meta"):
        options: dict[str, Any] = dict(config.network.options)
        networks.create(config.network.name, num_classes=1, width=config.network.width, **options)
    load_teacher(config.teacher, intensity=config.intensity, canvas=None)


def _teacher_card(config: TransferConfig) -> dict[str, Any] | None:
    """Return the card of a teacher that was pretrained here; None for one from outside."""
    from volrec.transfer.teacher import card_of

    card = card_of(config.teacher)
    return card if card is not None and card.get("kind") == "teacher" else None
