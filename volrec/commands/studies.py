"""Commands on studies, runs and weights: what they do with the API, and what they tell."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volrec import api
from volrec.errors import ConfigError, LabelsError, Problem
from volrec.report import terminal
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from volrec.api import ImagePlan, Plan, Run
    from volrec.config import TrainConfig
    from volrec.planning import Fingerprint

WIDE = 130
"""Columns from which the table of networks names the options instead of counting them."""
MIDDLING = 100
"""Columns from which runs are compared by three metrics, each with its interval on one line."""
MOST_LAYERS = 64
"""Layers of a network up to which each has a line of its own."""

__all__ = [
    "demo",
    "fuse",
    "import_weights",
    "inspect",
    "learn_weights",
    "models",
    "plan",
    "schema",
    "train",
]


def inspect(
    folder: Path,
    *,
    labels: Path | None,
    target: Sequence[str] | None,
    write: Path | None,
    sheet: Path | None,
    all_studies: bool,
    jobs: int,
    refresh: bool,
    console: Console,
) -> list[Problem]:
    """Print, write and draw what is in a folder; return its problems."""
    from volrec.config import DataConfig
    from volrec.data.labels import join
    from volrec.report.inspect import render_cohort, render_index

    found = api.index(folder, jobs=jobs, refresh=refresh)
    render_index(found, console, all_studies=all_studies)
    problems = list(found.problems)
    if labels is not None:
        cohort = join(found, labels, DataConfig(target=list(target or ())))
        render_cohort(cohort, console)
        problems += [problem for problem in cohort.problems if problem not in problems]
    if write is not None:
        found.write(write)
        say(console, f"Index written to {write}.")
    if sheet is not None and found.studies:
        from volrec.report.contact_sheet import contact_sheet

        contact_sheet(found, sheet)
        say(console, f"Contact sheet written to {sheet}.")
    if not found.studies:
        raise LabelsError(
            f"no study of {folder} can be used.",
            remedy="The reasons are listed above.",
            code="no-usable-study",
        )
    return problems


def plan(
    folder: Path | None,
    *,
    labels: Path | None,
    target: Sequence[str] | None,
    config: str | None,
    overrides: Mapping[str, Any],
    out: Path,
    console: Console,
) -> list[Problem]:
    """Derive a plan, print and write it; return what was quarantined."""
    made = api.plan(folder, labels=labels, target=target, config=config, overrides=overrides)
    made.write(out)
    _tell(made, console)
    console.print(made.text(), markup=False, highlight=False, soft_wrap=True)
    say(console, f"Written to {out}. Edit it, then: volrec train --config {out}")
    return list(made.problems)


def train(
    folder: Path | None,
    *,
    labels: Path | None,
    target: Sequence[str] | None,
    config: str | None,
    overrides: Mapping[str, Any],
    out: Path | None,
    resume: Path | None,
    console: Console,
) -> list[Problem]:
    """Train or go on training; print metrics and where the report is."""

    def announce(made: Plan, destination: Path) -> None:
        _tell(made, console)
        chosen = made.config
        say(
            console,
            f"Plan: {chosen.network.name} (width {chosen.network.width:g}), "
            f"clips of {chosen.sampling.clip_length} slices, "
            f"canvas {_sizes(chosen.preprocess.canvas)}, batch {chosen.optim.batch_size}, "
            f"at most {_lengths(chosen)} epochs; reasons in {destination / 'config.yaml'}",
        )

    if resume is not None:
        run = api.resume(resume)
    else:
        run = api.train(
            config, folder=folder, labels=labels, target=target, out=out, overrides=overrides, announce=announce
        )
    if run is None:  # another process of the same training tells
        return []
    _show(run, console)
    return run.problems


def learn_weights(
    kind: Literal["pretrain", "transfer"],
    folder: Path | None,
    *,
    out: Path | None,
    resume: Path | None,
    plan_to: Path | None,
    console: Console,
    **given: Any,
) -> list[Problem]:
    """Pretrain a slice teacher, or transfer from one; or only write the plan of it. Return what was quarantined."""
    from volrec.report.weights import matching_rows, weights_headline

    derive: Any = api.plan_pretrain if kind == "pretrain" else api.plan_transfer
    run_it: Any = api.pretrain if kind == "pretrain" else api.teach
    if plan_to is not None:
        made = derive(folder, **given)
        made.write(plan_to)
        console.print(made.text(), markup=False, highlight=False, soft_wrap=True)
        say(console, f"Written to {plan_to}. Edit it, then: volrec {kind} --config {plan_to}")
        return list(made.problems)

    def announce(made: ImagePlan, destination: Path) -> None:
        if made.facts is not None:
            say(console, _facts(made.facts))
        chosen = made.config
        what = (
            f"{chosen.backbone.name} (width {chosen.backbone.width:g}) by {chosen.method.name}"
            if kind == "pretrain"
            else f"{chosen.network.name} (width {chosen.network.width:g}) taught by {chosen.teacher.source}, clips of "
            f"{chosen.sampling.clip_length} slices"
        )
        say(
            console,
            f"Plan: {what}, canvas {_sizes(chosen.preprocess.canvas)}, batch {chosen.optim.batch_size}, "
            f"{chosen.trainer.epochs} epochs; reasons in {destination / 'config.yaml'}",
        )

    run = run_it(None, resume=resume) if resume is not None else run_it(folder, out=out, announce=announce, **given)
    if run is None:
        return []
    say(console, weights_headline(run.folder))
    headings, rows = matching_rows(run.folder, narrow=console.width < WIDE)
    if rows:
        terminal.print_rows(headings, rows, console, plain=True)
    use = "transfer FOLDER --teacher" if kind == "pretrain" else "train FOLDER --labels labels.csv --init"
    say(console, f"Run: {run.path}\nReport: {run.report.resolve().as_uri()}\nNext: volrec {use} {run.path}")
    return run.problems


def fuse(
    runs: Sequence[Path],
    *,
    out: Path | None,
    weights: Sequence[float] | None,
    stage: str | None,
    method: str,
    preset: str | None,
    as_given: bool,
    console: Console,
) -> None:
    """Fuse runs and print each one's metrics beside the fused ones."""
    made = api.fuse(runs, out, weights=weights, stage=stage, method=method, preset=preset, as_given=as_given)
    found, first = made.metrics, made.runs[0].config.protocol.metric
    names = terminal.compared(found["task"], first)[: 2 if console.width < MIDDLING else None]
    given = made.weights or {}
    rows = [
        (name, f"{given[name]:.3g}" if name in given else "-", *(terminal.interval(one.get(key)) for key in names))
        for name, one in found["runs"].items()
    ]
    rows.append(("fused", "", *(terminal.interval(found["metrics"].get(key)) for key in names)))
    headings = ("run", "weight", *(terminal.NAMES.get(key, key.replace("_", " ")) for key in names))
    how = "svm on probabilities" if method == "svm" else f"{method} at stage {found['stage']}"
    how = "weighted values" if found["task"] == "regression" else how
    title = f"{found['studies']} {found['part']} studies of {found['patients']} patients; {how}"
    terminal.print_rows(headings, rows, console, title=title, plain=True)
    if len(made.rule.parts) > 1:
        say(console, "Fitted fold by fold" + ("; the weights shown are the mean over folds." if given else "."))
    if found["part"] == "validation":
        say(console, "These studies chose the weights of the runs: expect less on others.")
    say(console, f"Fused run: {made.path}\nNext: volrec predict {made.path} FOLDER")


def demo(out: Path, *, seed: int, console: Console) -> list[Problem]:
    """Run the demonstration and print its table."""
    from volrec.demo import run_demo

    return run_demo(out, seed=seed, console=console)


def models(name: str | None, console: Console) -> None:
    """Print the zoo, or one network in full."""
    from volrec import networks
    from volrec.networks.backbones import BACKBONES

    names = networks.list_networks(name) if name and any(sign in name for sign in "*?[") else None
    if names == []:
        raise ConfigError(
            f"no network matches '{name}'.",
            remedy=f"Known networks: {', '.join(networks.list_networks())}.",
            code="network-name",
        )
    if name is None or names is not None:
        from volrec.progress import track

        rows = []
        names = networks.list_networks() if names is None else names
        wide = console.width >= WIDE
        for each in track(names, "counting", len(names)):
            facts = networks.describe(each)
            rows.append(
                (
                    each,
                    _short(facts["paper"], facts["year"]),
                    f"{facts['parameters'] / 1e6:.1f}",
                    f"{facts['gmacs']:.3g}",
                    "x".join(map(str, facts["clip"])),
                    "x".join(map(str, networks.spec(each).smallest)),
                    "yes" if facts["slicewise"] else "no",
                    ", ".join(facts["options"]) if wide else len(facts["options"]),
                )
            )
        headings = ("name", "paper", "M par", "GMAC", "clip\nC x T x H x W", "least\nTxHxW", "by\nslice", "options")
        headings = headings if wide else (*headings[:-1], "opts")
        terminal.print_rows(headings, rows, console, plain=True)
        say(
            console,
            "One in full, with its layers and options: volrec models NAME.\nParameters (millions) and multiply-adds: "
            "the paper's network at its own clip.\nLeast: the smallest clip of the form adapted to volumes.\n"
            "2D networks, for `inflated`, slices and teachers:\n  "
            + textwrap.fill(", ".join([*BACKBONES, "monai:NAME", "timm:NAME."]), 76, subsequent_indent="  "),
        )
        return
    facts = networks.describe(name)
    say(console, f"{name}: {facts['title']}\n{facts['paper']}\n{facts['summary']}\n")
    say(
        console,
        f"{facts['parameters']:,} parameters, {facts['gmacs']:.2f} GMAC at {' x '.join(map(str, facts['clip']))}",
    )
    say(
        console,
        f"Smallest clip (T, H, W) of the form adapted to volumes: {' x '.join(map(str, networks.spec(name).smallest))}"
        + ("; encodes slice by slice" if facts["slicewise"] else ""),
    )
    terminal.print_learning(facts, console)
    say(console, "")
    layers = [
        (layer["name"], layer["kind"], " x ".join(map(str, layer["output"])), f"{layer['parameters']:,}")
        for layer in _by_block(facts["layers"], facts["blocks"])
    ]
    terminal.print_rows(
        ("layer", "kind", "output", "parameters"), layers, console, title="Layers of the paper's network", plain=True
    )
    say(console, "")
    options = [
        (key, value["default"], value["paper"], value["allowed"], value["meaning"])
        for key, value in facts["options"].items()
    ]
    terminal.print_rows(("option", "default", "paper", "values", "meaning"), options, console, title="Options")
    for ambiguity in facts["ambiguities"]:
        say(console, f"* {ambiguity}")


def _by_block(layers: Sequence[Mapping[str, Any]], blocks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Put the layers of a deep network together by the blocks that hold them, until they fit on a screen or two."""
    layers = [layer for layer in layers if layer["kind"] != "Identity"]
    outputs = {block["name"]: block["output"] for block in blocks}
    held: dict[str, list[Mapping[str, Any]]] = {}
    for depth in range(max(layer["name"].count(".") for layer in layers) + 1, 0, -1):
        held = {}
        for layer in layers:
            held.setdefault(".".join(layer["name"].split(".")[:depth]), []).append(layer)
        if len(held) <= MOST_LAYERS:
            break
    return [
        inner[0]
        if len(inner) == 1
        else {
            "name": name,
            "kind": f"{len(inner)} layers",
            "output": outputs.get(name, inner[-1]["output"]),
            "parameters": sum(layer["parameters"] for layer in inner),
        }
        for name, inner in held.items()
    ]


def _short(paper: str, year: int | None) -> str:
    """Return ``Tran 2015`` for the list of authors; ``baseline`` for a network of no paper."""
    if paper == "-":
        return "baseline"
    return f"{paper.split(',')[0]}{f' {year}' if year else ''}"


def schema(console: Console, *, as_json: bool, kind: str = "train") -> None:
    """Print every key of a plan with its meaning, or the JSON schema; `kind` is the command that obeys it."""
    from volrec.config import PretrainConfig, Section, TrainConfig, TransferConfig, json_schema

    schemas: dict[str, type[Section]] = {"train": TrainConfig, "pretrain": PretrainConfig, "transfer": TransferConfig}
    chosen = schemas[kind]
    if as_json:
        console.print(json.dumps(json_schema(chosen), indent=2), markup=False, highlight=False, soft_wrap=True)
    else:
        terminal.print_keys(console, schema=chosen)


def import_weights(
    path: str,
    *,
    as_: str | None,
    format: str | None,
    classes: Path | None,
    mean: Path | None,
    out: Path | None,
    all_keys: bool,
    console: Console,
) -> None:
    """Import weights and print what became of every key; those that were taken as they are on one line."""
    if out is None:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem)
        out = Path(f"{as_ or ''}{'-' if as_ else ''}{stem}.safetensors")
    done = api.import_weights(path, as_=as_, format=format, classes=classes, mean=mean, out=out)
    loaded = done.table.of_action("loaded")
    rows = [
        (row.source or "-", row.target or "-", row.action, " x ".join(map(str, row.shape)), row.reason)
        for row in done.table.rows
        if all_keys or row.action != "loaded"
    ]
    if loaded and not all_keys:
        rows.insert(0, (f"{len(loaded)} keys", f"{len(loaded)} keys", "loaded", "", ""))
    terminal.print_rows(("source", "network", "action", "shape", "why"), rows, console, title=Path(path).name)
    source = done.card["source"]
    say(console, f"Format: {source['format']}. Keys: {done.table.summary}.")
    for note in source.get("notes", ()):
        say(console, f"* {note}")
    say(console, f"Written to {done.path}, with its card beside it.")


def _tell(made: Plan, console: Console) -> None:
    for note in made.notes:
        say(console, note)
    if made.facts is not None:
        say(console, _facts(made.facts))


def _facts(facts: Fingerprint) -> str:
    spacing = " x ".join(f"{spread.median:.3g}" for spread in facts.spacing)
    size = " x ".join(f"{spread.median:.0f}" for spread in facts.size)
    return (
        f"{facts.studies} studies of {facts.patients} patients, {facts.modality}, "
        f"median {size} voxels of {spacing} mm (T, H, W); {facts.device}"
    )


def _show(run: Run, console: Console) -> None:
    from volrec.report.html import context_verdict, headline, time_share

    say(console, headline(run.folder))
    if verdict := context_verdict(run.folder):
        say(console, f"Context: {verdict}")
    if share := time_share(run.folder):
        say(console, share)
    say(console, f"Run: {run.path}\nReport: {run.report.resolve().as_uri()}")


def _lengths(config: TrainConfig) -> str:
    """Return the longest training in epochs, or that of each stage."""
    whole = config.trainer.epochs
    return ", ".join(f"{stage.name} {stage.epochs or whole}" for stage in config.stages) or str(whole)


def _sizes(sizes: Sequence[int | None] | None) -> str:
    return " x ".join("own" if size is None else str(size) for size in sizes) if sizes else "as it is"
