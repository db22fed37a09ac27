"""``report.html``: one file: what a run learned, how well, on whom, what was left out, and how to do it again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.errors import RunError
from volrec.files import write_atomically
from volrec.report import cohort, context, sections
from volrec.report.findings import Findings, gather, metric_name, plain_value
from volrec.report.gallery import read_gallery
from volrec.report.model_card import card_markdown, card_section
from volrec.report.page import Raw, navigation, page, tiles
from volrec.report.viewer import VIEWER_SCRIPT, VIEWER_STYLE

if TYPE_CHECKING:
    from volrec.runs import RunFolder

__all__ = ["context_verdict", "headline", "time_share", "write_report"]

log = logging.getLogger(__name__)


def write_report(run: RunFolder, *, notes: Sequence[str] = (), files: bool = False) -> Path:
    """Render a run into its ``report.html`` and return the path.

    A run that has not finished gives the report of what is there. No patient names are in it: studies are called by
    the names that the labels use.

    Parameters
    ----------
    run : RunFolder
        The run.
    notes : sequence of str
        What could not be shown, and why: said at the top.
    files : bool
        Also write every plot into ``figures/`` (SVG and PNG), and the model card as ``model_card.md``.
    """
    found = gather(run)
    name = run.config.name or run.path.resolve().name
    try:
        shown = read_gallery(run)
    except RunError as error:
        shown, notes = [], [*notes, f"The gallery is not shown: {error.problem} {error.remedy}"]
    parts = [
        sections.scores(found),
        sections.metrics(found),
        context.subgroups(found),
        context.audit(found),
        context.gallery(found, shown),
        sections.mistakes(found),
        cohort.data(found),
        cohort.people(found),
        cohort.quarantine(found),
        sections.curves(found),
        card_section(found),
        sections.plan(found),
        sections.time(found),
        sections.repeat(found),
    ]
    parts = [part for part in parts if part]
    style, script = (VIEWER_STYLE, VIEWER_SCRIPT) if shown else ("", "")
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    body = "\n".join([_header(found, name), navigation(parts), said, *parts])
    write_atomically(run.report_path, page(f"{name} - volrec", body, style=style, script=script))
    if files:
        for drawing in found.drawings:
            drawing.save(run.path / "figures")
        write_atomically(run.path / "model_card.md", card_markdown(found, name))
    return run.report_path


def headline(run: RunFolder) -> str:
    """Return the result of a run in one line."""
    found = gather(run)
    metric = found.headline
    if metric is None:
        return "The training has not finished; there are no scores yet."
    text = f"{metric_name(found.metric)} {plain_value(metric)} on {_counted(found)}"
    return f"{text}, which also chose the weights: expect less on others." if found.part == "validation" else f"{text}."


def time_share(run: RunFolder) -> str:
    """Return in one line where the time of the training steps went; empty before the end."""
    facts = gather(run).metrics.get("time", {})
    if "compute_share" not in facts:
        return ""
    waited = f"{100 * facts['data_wait_share']:.1f} %"
    if "data_wait_share_later" in facts:
        waited += f" ({100 * facts['data_wait_share_later']:.1f} % after the first epoch)"
    moved, computed = (f"{100 * facts[f'{part}_share']:.1f} %" for part in ("transfer", "compute"))
    return f"Time in training steps: data wait {waited}, transfer {moved}, compute {computed}."


def context_verdict(run: RunFolder) -> str:
    """Return what the context audit said in one sentence; empty where there was none."""
    return str(gather(run).audit.get("verdict", {}).get("sentence", ""))


def _header(found: Findings, name: str) -> str:
    network = found.run.config.network
    about = f"{network.name}, width {network.width:g}" if network.width != 1 else network.name
    metric = found.headline
    if metric is None:
        facts = '<p class="lead">The training has not finished; this is what there is so far.</p>'
    else:
        values = [(plain_value({"value": metric["value"]}), metric_name(found.metric))]
        if metric.get("low") is not None:
            low, high = (plain_value({"value": metric[key]}) for key in ("low", "high"))
            values.append((f"{low} to {high}", "95 % interval over patients"))
        values += [
            (str(found.metrics["studies"]), f"{found.part} studies"),
            (str(found.metrics["patients"]), "patients"),
            (str(len(found.histories)), "trained networks" if len(found.histories) > 1 else "trained network"),
        ]
        facts = tiles(values) + f'<p class="lead">{escape(_meaning(found))}</p>' + _caution(found)
    question = f"{escape(found.what)} &middot; " if found.task else ""
    return f'<header><h1>{escape(name)}</h1><p class="soft">{question}{escape(about)}</p>{facts}</header>'


def _meaning(found: Findings) -> str:
    """Say in one sentence what the headline means."""
    metric = found.headline or {}
    value = metric.get("value")
    if value is None:
        return f"{metric_name(found.metric)} is not defined here: {metric.get('reason', 'unknown reason')}."
    name = found.metric
    if name == "auc" and found.task == "binary":
        positive, negative = found.classes[-1], found.classes[0]
        return (
            f"Of a study with {found.targets[0]} = {positive} and one with {negative}, drawn at random, the first gets "
            f"the higher score in {100 * value:.0f} of 100 cases; 50 is chance."
        )
    if name == "auc":
        return "The chance that a study of a class gets a higher score for it than one of another; 0.5 is guessing."
    if name == "r2":
        if value < 0:
            return "The predictions are worse than always saying the mean."
        return f"The predictions explain {100 * value:.0f} % of the variance; always saying the mean explains none."
    if name in {"mae", "rmse"}:
        return f"A prediction is off by {value:.3g} on average, in the unit of {', '.join(found.targets)}."
    if name in {"accuracy", "balanced_accuracy"}:
        return f"{100 * value:.0f} of 100 studies{' (mean over classes)' if 'bal' in name else ''} are called right."
    return f"{metric_name(name).capitalize()} of {_counted(found)}."


def _caution(found: Findings) -> str:
    if found.part == "validation":
        return Raw(
            '<p class="note">There was no test part: these are the validation studies, which also chose the weights. '
            "Expect less on new studies.</p>"
        )
    if len(set(found.folds)) > 1:
        return Raw('<p class="note">Cross-validation: every study was scored by the network that had not seen it.</p>')
    return Raw('<p class="note">None of these patients was seen in training or in the choice of the weights.</p>')


def _counted(found: Findings) -> str:
    studies, patients = found.metrics["studies"], found.metrics["patients"]
    return f"{studies} {found.part} studies of {patients} patients"
