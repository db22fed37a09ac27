"""The report of a pretraining or a transfer: what held-out patients say of the weights, and how they came about."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.config import kind_of
from volrec.files import write_atomically
from volrec.report import plots
from volrec.report.page import details, figure, page, section, table, tiles

if TYPE_CHECKING:
    from volrec.runs import RunFolder

__all__ = ["KINDS", "matching_rows", "weights_headline", "write_weights_report"]

KINDS = {
    "patient": "slices of another patient",
    "place": "the same patient, elsewhere",
    "order": "the same place, clip shuffled",
}
"""What each kind of pair is called before people."""


def write_weights_report(run: RunFolder) -> Path:
    """Render a run of `volrec pretrain` or `volrec transfer` into its ``report.html`` and return the path."""
    name = run.config.name or run.path.resolve().name
    metrics = run.metrics
    parts = [
        f"<header><h1>{escape(name)}</h1><p class='soft'>{escape(_about(run))}</p>{_tiles(metrics)}"
        f'<p class="lead">{escape(weights_headline(run))}</p></header>',
        _matching(run),
        _curves(run, metrics),
        _left_out(run),
        _again(run),
    ]
    write_atomically(run.report_path, page(f"{name} - volrec", "\n".join(part for part in parts if part)))
    return run.report_path


def weights_headline(run: RunFolder) -> str:
    """Return the result in a line or two, for the terminal and the head of the report."""
    metrics = run.metrics
    if metrics.get("value") is None:
        held = metrics["held_out"] or "none"
        why = "they are too few to be told apart" if metrics["held_out"] else "so nothing was measured"
        return f"{metrics['studies']} studies taught it; held out: {held}, {why}."
    value, held = metrics["value"], metrics["held_out"]
    if metrics["metric"] == "matching":
        return (
            f"AUC {value:.3f} between what belongs together and what does not, mean of the kinds that were taught, on "
            f"{held} held-out studies; 0.5 is guessing."
        )
    if metrics["metric"] == "retrieval":
        return (
            f"Of {metrics['places']} slices of {held} held-out studies, {100 * value:.0f} % are found again from a "
            f"changed view of their place (guessing: {100 * metrics['chance']:.1f} %; after the first epoch "
            f"{100 * metrics['first']:.0f} %)."
        )
    return f"{metrics['metric']} {value:.3f} on {held} held-out studies."


def matching_rows(run: RunFolder, *, narrow: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the matching report, fewer columns for a narrow terminal; none without held-out."""
    headings = ["does not belong together", "taught", "pairs", "accuracy (95 %)", "AUC (95 %)", "statistics alone, AUC"]
    rows = []
    for kind, line in run.metrics.get("matching", {}).items():
        spans = [_span(line, name) for name in ("accuracy", "auc")]
        taught = "yes" if line["taught"] else "no"
        rows.append([KINDS[kind], taught, str(line["pairs"]), *spans, f"{line['auc_of_statistics']:.3f}"])
    if narrow:
        kept = (0, 4, 5) if all(row[1] == "yes" for row in rows) else (0, 1, 4, 5)
        return [headings[column] for column in kept], [[row[column] for column in kept] for row in rows]
    return headings, rows


def _span(line: dict[str, Any], name: str) -> str:
    if line[f"{name}_low"] is None:  # one patient cannot be drawn again
        return f"{line[name]:.3f}"
    return f"{line[name]:.3f} [{line[f'{name}_low']:.3f}, {line[f'{name}_high']:.3f}]"


def _about(run: RunFolder) -> str:
    config: Any = run.config
    if kind_of(run.schema) == "pretrain":
        return f"slice teacher · {config.backbone.name}, width {config.backbone.width:g} · {config.method.name}"
    source = Path(str(config.teacher.source)).name
    return f"transfer · {config.network.name}, width {config.network.width:g} · taught by {source}"


def _tiles(metrics: dict[str, Any]) -> str:
    facts = [(str(metrics["studies"]), "studies taught"), (str(metrics["held_out"]), "studies held out")]
    facts.append((str(metrics["epochs"]), "epochs"))
    if metrics.get("value") is not None:
        names = {"matching": "matching AUC", "retrieval": "places found again"}
        facts.insert(0, (f"{metrics['value']:.3f}", names.get(metrics["metric"], metrics["metric"])))
    return tiles(facts)


def _matching(run: RunFolder) -> str:
    headings, rows = matching_rows(run)
    if not rows:
        return ""
    return section(
        "What the student learned",
        "<p>Each clip of a held-out patient was asked against the teacher's view of its own slices, and against views "
        "that do not belong to it. Both sides were augmented independently. The last column is what the mean, the "
        "spread and the lit area of the two sides tell by themselves: a student that is not above it may have learned "
        "no more than that.</p>",
        table(headings, rows),
        '<p class="note">Intervals: the patients of the clips drawn again 1000 times; whose slices a clip is asked '
        "against stays. "
        f"{run.metrics['matches']} matching pairs of {run.metrics['patients']} patients.</p>",
    )


def _curves(run: RunFolder, metrics: dict[str, Any]) -> str:
    members = run.finished_members()
    history = members[0].history()
    metric = metrics.get("metric", "")
    columns: dict[str, Any] = {"epoch": history["epoch"].tolist(), "train_loss": history["train_loss"].tolist()}
    if f"val_{metric}" in history:
        columns |= {"val_metric": history[f"val_{metric}"].tolist(), "best": history["kept"].tolist()}
        if metric == "matching":
            columns["val_loss"] = history["val_loss"].tolist()
    svg = plots.learning_curves({members[0].name: columns}, metric=metric)
    return section("Learning curves", figure(svg, "Loss and held-out metric after each epoch.", wide=True))


def _left_out(run: RunFolder) -> str:
    problems = run.quarantine()
    rows = [[problem.study or problem.where, problem.reason, problem.remedy] for problem in problems]
    shown = table(["study or file", "what was seen", "what to do"], rows)
    return section("Left out or assumed", details(f"{len(rows)} lines", shown)) if rows else ""


def _again(run: RunFolder) -> str:
    kind = kind_of(run.schema)
    use = f"volrec train FOLDER --labels labels.csv --init {run.path}"
    if kind == "pretrain":
        use = f"volrec transfer FOLDER --teacher {run.path}"
    config = (run.path / "config.yaml").read_text(encoding="utf-8")
    return section(
        "To use it, and to do it again",
        f"<pre>{escape(use)}\nvolrec {kind} --config {escape(str(run.path / 'config.yaml'))} --out NEW</pre>",
        details("config.yaml", f"<pre>{escape(config)}</pre>"),
    )
