"""The model card: what the networks of a run are for, what they were made from, how good they are, what is not known.

Its headings follow Mitchell et al., "Model cards for model reporting" (FAT* 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from volrec.errors import RunError
from volrec.report.cohort import GEOMETRY
from volrec.report.findings import Findings, metric_name, plain_value
from volrec.report.page import section

__all__ = ["card_markdown", "card_section"]

FIRST = ("auc", "average_precision", "sensitivity", "specificity", "balanced_accuracy", "ece", "r2", "mae", "rmse")
"""Metrics that a card names; the report has them all."""

Block = tuple[str, list[str]]


def card_section(found: Findings) -> str:
    """Return the model card as a section of the report."""
    blocks = [
        f"<h3>{escape(heading)}</h3><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for heading, lines in _blocks(found)
    ]
    return section("Model card", *blocks)


def card_markdown(found: Findings, name: str) -> str:
    """Return the model card as a file of its own (Markdown)."""
    parts = [f"# Model card: {name}"]
    parts += [f"## {heading}\n\n" + "\n".join(f"- {line}" for line in lines) for heading, lines in _blocks(found)]
    return "\n\n".join(parts) + "\n"


def _blocks(found: Findings) -> list[Block]:
    """Return headings with their lines; none before a network is trained."""
    cards = [member.card() for member in found.run.members if member.card_path.is_file()]
    if not cards:
        return []
    blocks = [
        ("What it is", list(_network(found, cards))),
        ("What it reads", list(_input(found, cards[0]))),
        ("What it gives", list(_output(found, cards))),
        ("What it was trained on", list(_training(found))),
        ("How good it is", list(_performance(found))),
        ("What it is not for", list(_limits(found, cards[0]))),
    ]
    return [(heading, lines) for heading, lines in blocks if lines]


def _network(found: Findings, cards: Sequence[dict[str, Any]]) -> Iterator[str]:
    from volrec import networks

    config = found.run.config.network
    spec = networks.spec(config.name)
    yield f"Network: {config.name} ({spec.paper}{f', {spec.year}' if spec.year else ''}), width {config.width:g}."
    count = cards[0].get("tensors", {}).get("parameters")
    if count:
        yield f"Parameters: {count:,}."
    if len(cards) > 1:
        yield f"{len(cards)} networks, one a fold; new studies get the mean of their scores."
    source = found.run.config.init.source
    yield f"First weights: {'taken from other weights (init.source)' if source else 'drawn at random'}."
    version = cards[0].get("versions", {}).get("volrec")
    if version:
        yield f"Made with volrec {version}."


def _input(found: Findings, card: dict[str, Any]) -> Iterator[str]:
    config = found.run.config
    modality = card.get("modality") or "of several modalities"
    yield f"Studies: {modality}, slices along the {config.preprocess.slice_axis} axis."
    grid = []
    if config.preprocess.spacing:
        grid.append(f"resampled to {_sizes(config.preprocess.spacing)} mm")
    if config.preprocess.canvas:
        grid.append(f"cropped or padded to {_sizes(config.preprocess.canvas)} voxels")
    if grid:
        yield f"Grid (T x H x W): {', '.join(grid)}."
    sampling, protocol = config.sampling, config.protocol
    cover = f"{protocol.clips} clips" if protocol.clips else f"clips at {protocol.overlap:.0%} overlap"
    yield (
        f"Clips of {sampling.clip_length} slices, {cover}; consensus {protocol.consensus} of {protocol.stage}"
        + (f", mirrored along {', '.join(protocol.flips)}" if protocol.flips else "")
        + "."
    )


def _output(found: Findings, cards: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{found.what}."
    decisions = [card["decision"] for card in cards if card.get("decision")]
    shown = sorted(
        {f"{name} from {value:.3f}" for one in decisions for name, value in one.get("thresholds", {}).items()}
    )
    if shown:
        rule = decisions[0].get("rule", "")
        yield f"Thresholds (rule: {rule}; chosen on validation studies): {'; '.join(shown)}."
    kinds = sorted({str(one.get("calibration", {}).get("method", "none")) for one in decisions})
    if kinds and kinds != ["none"]:
        yield f"Calibration: {', '.join(kinds)}, fitted on validation studies; it stands beside the scores."
    elif decisions:
        yield "Scores are not calibrated: take them as a ranking, not as probabilities."


def _training(found: Findings) -> Iterator[str]:
    try:
        index, splits = found.run.read_table("index"), found.run.read_table("splits")
    except RunError:
        return
    trained = splits[splits["part"] == "train"]
    yield f"{trained['study'].nunique()} studies of {trained['patient'].nunique()} patients."
    used = index[(index["chosen"].astype(str) == "True") & index["study"].isin(trained["study"])]
    for column in ("slices", "spacing_t", "spacing_h"):
        values = used[column].dropna() if column in used else used.iloc[:0]
        if len(values):
            name, unit = GEOMETRY[column]
            low, high = f"{values.min():.4g}", f"{values.max():.4g}"
            yield f"{name.capitalize()}: {low if low == high else f'{low} to {high}'} {unit}".rstrip() + "."
    signatures = sorted({str(member.card().get("data_signature", ""))[:16] for member in found.run.finished_members()})
    yield f"Signature of the training studies: {', '.join(signatures)}."


def _performance(found: Findings) -> Iterator[str]:
    metrics = found.metrics.get("metrics", {})
    if not metrics:
        return
    studies, patients = found.metrics.get("studies"), found.metrics.get("patients")
    whose = "these studies also chose the weights" if found.part == "validation" else "none of them seen in training"
    yield f"Measured on {studies} {found.part} studies of {patients} patients, {whose}."
    for name in FIRST:
        if metrics.get(name, {}).get("value") is not None:
            yield f"{metric_name(name)}: {plain_value(metrics[name])}"


def _limits(found: Findings, card: dict[str, Any]) -> Iterator[str]:
    yield "A research result: no medical device, not to be used for decisions on patients."
    yield "Not measured on studies of another hospital or scanner, unless `volrec evaluate RUN FOLDER` was run on them."
    if card.get("modality"):
        yield f"Studies other than {card['modality']}, or of a geometry outside the ranges above: volrec warns of them."
    if found.metrics.get("patients", 0) and found.metrics["patients"] < 100:
        yield f"{found.metrics['patients']} patients were tested: read the intervals before the values."


def _sizes(sizes: Sequence[float | None]) -> str:
    return " x ".join("own" if size is None else f"{size:g}" for size in sizes)
