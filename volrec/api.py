"""The public functions, each a few calls into the rooms."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from volrec.config import TrainConfig, apply_overrides, dump_yaml, load_config, parse_config
from volrec.errors import ConfigError, LabelsError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from volrec.data.index import StudyIndex
    from volrec.data.labels import Cohort
    from volrec.io import Volume
    from volrec.networks import SequenceNetwork
    from volrec.planning import Fingerprint
    from volrec.runs import RunFolder
    from volrec.weights.foreign import Imported

__all__ = [
    "Plan",
    "Run",
    "evaluate_run",
    "import_weights",
    "index",
    "load",
    "make_phantoms",
    "plan",
    "read_volume",
    "recipe_folders",
    "resume",
    "train",
]

ConfigLike = TrainConfig | Mapping[str, Any] | Path | str | None


def index(folder: Path | str, *, jobs: int = 0, refresh: bool = False) -> StudyIndex:
    """Find the studies of a folder.

    Parameters
    ----------
    folder : path
        Any tree of DICOM or NIfTI files, any names.
    jobs : int
        Processes that read headers; 0 takes the processors at hand.
    refresh : bool
        Read every header again instead of using the cache.

    Returns
    -------
    StudyIndex
        ``.table`` (a row a series), ``.studies``, ``.problems``, ``.write(path)``.

    Raises
    ------
    DataError
        The folder is missing, empty, or holds no image.
    """
    from volrec.data.index import index as scan

    return scan(folder, jobs=jobs, refresh=refresh)


def read_volume(
    path: Path | str,
    *,
    slice_axis: Literal["acquired", "axial", "coronal", "sagittal"] = "acquired",
    missing_slices: Literal["quarantine", "interpolate"] = "quarantine",
) -> Volume:
    """Read one DICOM series folder, or one file, into a volume in canonical orientation.

    Parameters
    ----------
    path : path
        Folder of one series, or a NIfTI or multi-frame DICOM file.
    slice_axis : str
        Plane that becomes the slices; ``acquired`` keeps the series' own.
    missing_slices : str
        ``interpolate`` fills a single missing slice; ``quarantine`` refuses it.

    Returns
    -------
    Volume
        ``array`` (1, T, H, W), int16 or float32, HU for CT; ``affine`` 4x4, (t, h, w, 1) to LPS mm; ``meta``.

    Raises
    ------
    DataError
        With what is wrong and what to do.
    """
    from volrec.io import read_volume as read

    return read(path, slice_axis=slice_axis, missing_slices=missing_slices)


@dataclass(frozen=True)
class Plan:
    """A complete configuration with the reasons for it.

    Attributes
    ----------
    config : TrainConfig
        What `train` obeys.
    reasons : dict
        Dotted key -> one line of why.
    notes : tuple of str
        What was inferred from labels and studies.
    problems : tuple of Problem
        Studies that were quarantined on the way.
    facts : Fingerprint, optional
        What the plan rests on.
    """

    config: TrainConfig
    reasons: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    facts: Fingerprint | None = None

    def text(self) -> str:
        """Return the plan as YAML with its reasons as comments."""
        return dump_yaml(self.config, self.reasons)

    def write(self, path: Path | str) -> Path:
        """Write `text` to a file that ``volrec train --config`` takes."""
        from volrec.files import write_atomically

        write_atomically(path, self.text())
        return Path(path)


def plan(
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    target: Sequence[str] | str | None = None,
    config: ConfigLike = None,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Derive a training plan from the data, without training.

    Parameters
    ----------
    folder, labels : path
        Studies and their table; may also stand in `config`.
    target : str or sequence of str
        Target columns.
    config : path, recipe name, mapping or TrainConfig, optional
        Sections that it holds are obeyed; those it leaves out are planned.
    overrides : mapping, optional
        Dotted keys that are set last (``{"optim.lr": 1e-4}``).

    Returns
    -------
    Plan
        Configuration, reasons, notes and quarantined studies.
    """
    from volrec.data.index import index as scan
    from volrec.data.labels import join
    from volrec.planning import inherit, make_plan

    overrides = dict(overrides or {})
    given = _given(config)
    data = dict(given.get("data") or {})
    for key, value in {"folder": folder, "labels": labels}.items():
        if value is not None:
            data[key] = str(value)
    if target:
        data["target"] = [target] if isinstance(target, str) else list(target)
    given["data"] = data
    # What the user wrote is checked before an hour of scanning, not after. Keys that are set last count here as well:
    # they may name the folder, the target or the series.
    origin = _origin(config)
    written = given.get("network")
    other = overrides.get("network.name")
    if isinstance(written, Mapping) and other not in (None, written.get("name")):
        given["network"] = {**written, "options": {}}  # those that stand there are another network's
    init = {key: value for key, value in overrides.items() if key.split(".")[0] == "init"}
    given["init"] = apply_overrides(parse_config({"init": given.get("init")}, where=origin), init).init.to_dict()
    inherited = inherit(given["init"]["source"], given, overrides)
    given |= inherited.sections
    fixed = {**inherited.keys, **overrides}
    checked: TrainConfig = apply_overrides(parse_config(given, where=origin), fixed)
    check_network(checked, init="network" in given or "network.width" in fixed)
    if checked.data.folder is None:
        raise ConfigError("no folder of studies is named.", remedy="Say `volrec train FOLDER --labels labels.csv`.")
    if checked.data.labels is None:
        raise ConfigError("no table of labels is named.", remedy="Give one: --labels labels.csv (see README).")
    found = scan(checked.data.folder, series=checked.data.series, missing_slices=checked.data.missing_slices)
    cohort: Cohort = join(found, checked.data.labels, checked.data)
    result = make_plan(cohort, given, overrides=fixed, accelerator=checked.trainer.accelerator)
    check_network(result.config)
    reasons = result.reasons | {key: why for key, why in inherited.reasons.items() if key not in overrides}
    notes = (*cohort.notes, *result.notes, *filter(None, [inherited.note]))
    problems = tuple({(p.where, p.code, p.study): p for p in [*found.problems, *cohort.problems]}.values())
    return Plan(result.config, reasons, notes, problems, result.facts)


def check_network(config: TrainConfig, *, init: bool = True) -> None:
    """Make sure that the network and its options exist, before anything is scanned or written.

    Parameters
    ----------
    config : TrainConfig
        Whose network, frozen stages and first weights are looked at.
    init : bool
        Whether the first weights must fit the network as it stands.

    Raises
    ------
    ConfigError
        With the nearest name.
    RunError
        When the first weights do not fit.
    """
    import torch

    from volrec import networks
    from volrec.weights.initial import fit_source

    with torch.device("meta"):  # nothing is allocated
        options: dict[str, Any] = dict(config.network.options)
        network = networks.create(config.network.name, num_classes=1, width=config.network.width, **options)
    if config.optim.freeze:
        networks.freeze_stages(network, config.optim.freeze)
    if init and config.init.source is not None:
        fit_source(network, config.init.source, first_layer=config.init.first_layer, inflate=config.init.inflate)


def train(
    config: ConfigLike = None,
    *,
    folder: Path | str | None = None,
    labels: Path | str | None = None,
    target: Sequence[str] | str | None = None,
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    announce: Callable[[Plan, Path], None] | None = None,
    **sections: Any,
) -> Run | None:
    """Train, validate and test a network; what the configuration leaves out is planned from the data.

    Parameters
    ----------
    config : path, recipe name, mapping or TrainConfig, optional
        Sections that it holds are obeyed; those it leaves out are planned.
    folder, labels, target
        Studies, table of labels, target columns.
    out : path, optional
        Run folder; default ``runs/NETWORK-TARGET``, numbered when taken.
    overrides : mapping, optional
        Dotted keys that are set last (``{"optim.lr": 1e-4}``).
    announce : callable, optional
        Called with the plan and the run folder before the training begins.
    **sections
        Sections with the keys to set (``optim={"lr": 1e-4}``), or a key whose name stands in one section only
        (``epochs=30``, ``folds=5``).

    Returns
    -------
    Run
        The finished run; None in the other processes of a training over several.

    Raises
    ------
    VolrecError
        Wrong configuration, labels that do not fit, no usable study.
    """
    from volrec.report import write_report
    from volrec.training import train as run_training

    merged = dict(overrides or {}) | _flatten(sections)
    made = plan(folder, labels=labels, target=target, config=config, overrides=merged)
    destination = _destination(made.config, out)
    if announce is not None:
        announce(made, destination)
    run = run_training(made.config, destination, reasons=made.reasons)
    if run is None:
        return None
    write_report(run)
    return Run(run)


def resume(path: Path | str) -> Run | None:
    """Go on with an interrupted training; the result is the same as without the interruption."""
    from volrec.report import write_report
    from volrec.runs import RunFolder
    from volrec.training import train as run_training

    old = RunFolder.open(path)
    run = run_training(old.config, old.path, resume=True)
    if run is None:
        return None
    write_report(run)
    return Run(run)


def load(path: Path | str) -> Run:
    """Open a run folder.

    Raises
    ------
    RunError
        It is no run folder, or holds no finished member.
    """
    from volrec.runs import RunFolder

    return Run(RunFolder.open(path))


class Run:
    """A finished training: its networks, scores and metrics, and what they say of new studies.

    Parameters
    ----------
    folder : RunFolder
        The run on disk.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.path = folder.path

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    @property
    def config(self) -> TrainConfig:
        """The configuration that was obeyed."""
        return self.folder.config

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics with their intervals, as in ``metrics.json``."""
        return self.folder.metrics

    @property
    def scores(self) -> pd.DataFrame:
        """Scores of the run's own test studies, a row a study."""
        return self.folder.scores()

    @property
    def problems(self) -> list[Problem]:
        """Quarantined studies."""
        return self.folder.quarantine()

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder.report_path

    @property
    def network(self) -> SequenceNetwork:
        """The network of the first member, in evaluation mode."""
        return self.networks[0]

    @property
    def networks(self) -> list[SequenceNetwork]:
        """One network a member (fold), in evaluation mode."""
        from volrec.inference import load_members

        return [member.network for member in load_members(self.folder)]

    def predict(self, folder: Path | str, *, device: str = "auto") -> pd.DataFrame:
        """Score every study of a folder: a row a study; what was quarantined is in ``.attrs["problems"]``."""
        from volrec.inference import predict_folder

        table, problems = predict_folder(self.folder, folder, device=None if device == "auto" else device)
        table.attrs["problems"] = [problem.as_dict() for problem in problems]
        return table

    def evaluate(self, folder: Path | str | None = None, *, labels: Path | str | None = None) -> dict[str, Any]:
        """Metrics with 95 % intervals, of the run's own test studies or of another folder with labels."""
        return evaluate_run(self, folder, labels=labels)[0]


def make_phantoms(out: Path | str, *, task: Literal["nodule", "bleed"] = "nodule", **options: Any) -> Path:
    """Write DICOM CT phantoms with ``labels.csv`` and ``slice_labels.csv`` (see `volrec.data.phantoms`)."""
    from volrec.data.phantoms import make_phantoms as make

    return make(out, task=task, **options)


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


def evaluate_run(
    run: Run,
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    include_training: bool = False,
) -> tuple[dict[str, Any], list[Problem]]:
    """Evaluate a run on its own test studies, or on another folder with labels.

    Parameters
    ----------
    run : Run
        A finished run.
    folder, labels : path, optional
        Other studies and their table.
    include_training : bool
        Score studies of patients that the run was trained on, too. By default they are left out, which is said: a
        test on what training saw proves nothing.

    Returns
    -------
    metrics : dict
        As `volrec.evaluation.evaluate_scores` gives them.
    problems : list of Problem
        Quarantined studies, and those left out because training saw them.

    Raises
    ------
    LabelsError
        When training saw every study.
    """
    from volrec.data.index import index as scan
    from volrec.data.labels import join
    from volrec.evaluation import evaluate_scores
    from volrec.inference import score_cohort

    if folder is None:
        return run.metrics, []
    config = run.config
    table = labels if labels is not None else _labels_beside(folder)
    data = config.data.model_copy(update={"folder": str(folder), "labels": str(table)})
    found = scan(folder, series=config.data.series, missing_slices=config.data.missing_slices)
    cohort = join(found, table, data)
    seen = set() if include_training else _seen_in_training(run, cohort)
    left = tuple(case for case in cohort.cases if case.study not in seen)
    if not left:
        raise LabelsError(
            f"all {len(seen)} studies are of patients that this run was trained or validated on.",
            remedy="`volrec evaluate RUN` shows its own test studies; give other studies, or --include-training.",
            where=folder,
            code="leak",
        )
    scores, problems = score_cohort(run.folder, replace(cohort, cases=left))
    if seen:
        problems.append(
            Problem(
                str(folder),
                "seen-in-training",
                f"{len(seen)} of {len(cohort.cases)} studies are of patients that this run was trained or validated "
                "on: left out.",
                "--include-training scores them all the same.",
                fatal=False,
            )
        )
    metrics = evaluate_scores(scores, task=cohort.task, classes=cohort.classes, targets=cohort.targets)
    return metrics, [*found.problems, *cohort.problems, *problems]


def _seen_in_training(run: Run, cohort: Cohort) -> set[str]:
    """Return the studies that any member of the run learned or chose its weights from, by study and patient."""
    splits = run.folder.read_table("splits")
    used = splits[splits["part"] != "test"]
    studies, patients = set(used["study"]), set(used["patient"])
    return {case.study for case in cohort.cases if case.study in studies or case.patient in patients}


def _labels_beside(folder: Path | str) -> Path:
    beside = Path(folder) / "labels.csv"
    if beside.is_file():
        return beside
    raise ConfigError("no table of labels is named.", remedy="Give one with --labels labels.csv.", where=folder)


def _given(config: ConfigLike) -> dict[str, Any]:
    """Return the sections that the user wrote, and only those."""
    if config is None:
        return {}
    if isinstance(config, TrainConfig):
        return config.to_dict()
    if isinstance(config, Mapping):
        return {str(key): value for key, value in config.items() if value is not None}
    parsed: TrainConfig = load_config(_find_recipe(config))
    # A section left out is planned, so the difference between a default and a choice must survive the check.
    return {
        key: value for key, value in parsed.to_dict().items() if key in parsed.model_fields_set and value is not None
    }


def _origin(config: ConfigLike) -> str:
    return str(config) if isinstance(config, str | Path) else "configuration"


def _find_recipe(name: Path | str) -> Path:
    """Find a file, or a recipe by its name, in ``configs/`` of the source or of the installation."""
    path = Path(name)
    if path.is_file() or path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        return path
    folders = recipe_folders()
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(recipe.stem for folder in folders for recipe in folder.glob("*.yaml"))
    near = difflib.get_close_matches(str(name), known, n=1)
    raise ConfigError(
        f"there is no recipe or file '{name}'" + (f" (did you mean '{near[0]}'?)." if near else "."),
        remedy=f"Known recipes: {', '.join(known) or 'none'}; or give the path of a YAML file.",
        code="config",
    )


def recipe_folders() -> list[Path]:
    """Return the folders that hold the shipped recipes: of a source tree, or of an installation."""
    candidates = [Path(__file__).resolve().parents[1] / "configs", Path(sys.prefix) / "share" / "volrec" / "configs"]
    return [folder for folder in candidates if folder.is_dir()]


def _flatten(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``optim={"lr": 1}, epochs=3`` into dotted keys; a bare key must belong to one section only."""
    homes: dict[str, list[str]] = {}
    for name, field_ in TrainConfig.model_fields.items():
        kind = field_.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for key in kind.model_fields:
                homes.setdefault(key, []).append(name)
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        if name in TrainConfig.model_fields:
            if isinstance(value, BaseModel):
                value = value.model_dump(mode="json")
            if isinstance(value, Mapping):
                flat |= {f"{name}.{key}": inner for key, inner in value.items()}
            else:
                flat[name] = value
            continue
        places = homes.get(name, [])
        if len(places) != 1:
            near = difflib.get_close_matches(name, [*homes, *TrainConfig.model_fields], n=1)
            hint = f" (did you mean '{near[0]}'?)" if near and not places else ""
            raise ConfigError(
                f"'{name}' stands in several sections: {', '.join(places)}."
                if places
                else f"unknown key '{name}'{hint}.",
                remedy="Name the section: optim={'lr': 0.001}.",
                code="config",
            )
        flat[f"{places[0]}.{name}"] = value
    return flat


def _destination(config: TrainConfig, out: Path | str | None) -> Path:
    """Return the run folder: as asked for, or ``runs/NAME`` with a number where that is taken."""
    if out is not None:
        return Path(out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several processes need to agree on the run folder.", remedy="Give it with --out runs/NAME.")
    name = config.name or f"{config.network.name}-{'-'.join(config.data.target)}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80]
    folder, number = Path("runs") / name, 2
    while folder.exists() and any(folder.iterdir()):
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder
