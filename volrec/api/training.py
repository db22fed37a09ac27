"""From a folder and a table of labels to a plan and a trained run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.api.settings import ConfigLike, destination, flatten, given_sections, origin
from volrec.api.studies import Run
from volrec.config import TrainConfig, apply_overrides, dump_yaml, parse_config
from volrec.errors import ConfigError, Problem

if TYPE_CHECKING:
    from volrec.data.labels import Cohort
    from volrec.planning import Fingerprint

__all__ = ["Plan", "check_network", "plan", "resume", "train"]


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
    from volrec.planning import inherit, make_plan, outline_stages, reads_segments

    overrides = dict(overrides or {})
    given = given_sections(config)
    data = dict(given.get("data") or {})
    for key, value in {"folder": folder, "labels": labels}.items():
        if value is not None:
            data[key] = str(value)
    if target:
        data["target"] = [target] if isinstance(target, str) else list(target)
    given["data"] = data
    # What the user wrote is checked before an hour of scanning, not after. Keys that are set last count here as well:
    # they may name the folder, the target or the series.
    where = origin(config)
    written = given.get("network")
    other = overrides.get("network.name")
    kept: dict[str, Any] = {}
    if isinstance(written, Mapping) and other not in (None, written.get("name")):
        # What stands there is another network's; options of this one are planned, at the same width.
        given.pop("network")
        given.pop("stages", None)
        kept = {"network.width": written["width"]} if written.get("width") is not None else {}
        if _written_for_segments(written, given.get("sampling")):
            given.pop("sampling")
        if _reads_what_its_paper_does(written, given.get("streams")):
            given.pop("streams", None)
    init = {key: value for key, value in overrides.items() if key.split(".")[0] == "init"}
    given["init"] = apply_overrides(parse_config({"init": given.get("init")}, where=where), init).init.to_dict()
    inherited = inherit(given["init"]["source"], given, overrides)
    given |= inherited.sections
    if "network" in given:  # the source's, which goes with its weights
        kept = {}
    fixed = {**kept, **inherited.keys, **overrides}
    # What will be planned for this network is there in outline already, so that keys are checked as beside the whole.
    name = str(fixed.get("network.name") or (given.get("network") or {}).get("name"))
    outlined: dict[str, Any] = {"stages": outline_stages(name)}
    if reads_segments(name):
        outlined["sampling"] = {"train": "segments"}
    checked: TrainConfig = apply_overrides(parse_config(outlined | given, where=where), fixed)
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
    if written and kept.keys() - inherited.keys.keys() - overrides.keys():
        reasons["network.width"] = f"as written for {written['name']}"
    notes = (*cohort.notes, *result.notes, *filter(None, [inherited.note]))
    problems = tuple({(p.where, p.code, p.study): p for p in [*found.problems, *cohort.problems]}.values())
    return Plan(result.config, reasons, notes, problems, result.facts)


def check_network(config: TrainConfig, *, init: bool = True) -> None:
    """Make sure that the network and its options exist, before anything is scanned or written.

    Parameters
    ----------
    config : TrainConfig
        Whose network, streams, frozen parts and first weights are looked at.
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
    from volrec.inference.inputs import check_streams
    from volrec.networks.partial_bn import partial_bn
    from volrec.weights.initial import fit_source

    def build() -> networks.SequenceNetwork:
        options: dict[str, Any] = dict(config.network.options)
        with torch.device("meta"):  # nothing is allocated
            return networks.create(config.network.name, num_classes=1, width=config.network.width, **options)

    network = build()
    check_streams(config.streams, config.network.name, config.network.options)
    if config.optim.freeze:
        networks.freeze_stages(network, config.optim.freeze)
    partial_bn(network, config.optim.partial_bn)
    for stage in config.stages:
        staged = build()
        for frozen, where in ((config.optim.freeze, "optim.freeze"), (stage.freeze, f"stages.{stage.name}.freeze")):
            if frozen:
                networks.freeze_stages(staged, frozen, where=where)
    if init and config.init.source is not None:
        fit_source(network, config.init.source, first_layer=config.init.first_layer, inflate=config.init.inflate)


def _reads_what_its_paper_does(network: Mapping[str, Any], streams: Any) -> bool:
    """Tell whether streams that are written down are those that a plan gives that network."""
    from volrec import networks

    if not isinstance(streams, Mapping) or network.get("name") not in networks.list_networks():
        return False
    return list(streams.get("inputs", ["intensity"])) == list(networks.spec(str(network["name"])).streams)


def _written_for_segments(network: Mapping[str, Any], sampling: Any) -> bool:
    """Tell whether the clips that are written down are those that a plan gives a network of segments."""
    from volrec.planning import reads_segments

    if not isinstance(sampling, Mapping):
        return False
    return sampling.get("train") == "segments" and reads_segments(str(network.get("name")))


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
    from volrec.api.reporting import report_run
    from volrec.training import train as run_training

    merged = dict(overrides or {}) | flatten(sections)
    made = plan(folder, labels=labels, target=target, config=config, overrides=merged)
    name = made.config.name or f"{made.config.network.name}-{'-'.join(made.config.data.target)}"
    folder_of_run = destination(name, out)
    if announce is not None:
        announce(made, folder_of_run)
    run = run_training(made.config, folder_of_run, reasons=made.reasons)
    if run is None:
        return None
    report_run(run)
    return Run(run)


def resume(path: Path | str) -> Run | None:
    """Go on with an interrupted training; the result is the same as without the interruption."""
    from volrec.api.reporting import report_run
    from volrec.runs import RunFolder
    from volrec.training import train as run_training

    old = RunFolder.open(path)
    run = run_training(old.config, old.path, resume=True)
    if run is None:
        return None
    report_run(run)
    return Run(run)
