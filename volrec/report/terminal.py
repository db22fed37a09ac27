"""What a finished command says on the terminal: a run's metrics, the networks, the keys of a plan."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from volrec.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["compared", "interval", "print_keys", "print_learning", "print_metrics", "print_rows", "say", "schema_rows"]

# Order in which a person reads them; what is not listed follows.
FIRST = (
    "auc",
    "macro_auc",
    "average_precision",
    "balanced_accuracy",
    "accuracy",
    "sensitivity",
    "specificity",
    "r2",
    "mae",
    "rmse",
)
NAMES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "specificity_at_90_sensitivity": "specificity at 90 % sensitivity",
    "specificity_at_95_sensitivity": "specificity at 95 % sensitivity",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "r2": "R²",
    "mae": "MAE",
    "rmse": "RMSE",
}


def interval(metric: Mapping[str, Any] | None) -> str:
    """Return ``0.87 [0.80, 0.93]`` for a metric with its 95 % interval, ``-`` where it could not be computed."""
    if not metric or metric.get("value") is None:
        return "-"
    value, low, high = metric["value"], metric.get("low"), metric.get("high")
    digits = 3 if abs(value) < 10 else 1
    text = f"{value:.{digits}f}"
    if low is None or high is None:
        return text
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def compared(task: str, metric: str = "auto") -> tuple[str, ...]:
    """Return the metrics that runs are compared by: the one that chose their weights first, then the usual ones."""
    from volrec.evaluation import default_metric

    first = default_metric(task) if metric == "auto" else metric
    usual = ("mae",) if task == "regression" else ("balanced_accuracy", "accuracy")
    return tuple(dict.fromkeys((first, *usual)))


def print_metrics(metrics: Mapping[str, Any], console: Console, *, title: str) -> None:
    """Print a table of metrics with their intervals."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", show_edge=False)
    table.add_column("metric")
    table.add_column("value [95 % interval]", justify="right")
    named = [name for name in FIRST if name in metrics] + [name for name in metrics if name not in FIRST]
    for name in named:
        metric = metrics[name]
        if isinstance(metric, Mapping) and "value" in metric:
            note = f"  ({metric['reason']})" if metric.get("reason") else ""
            table.add_row(NAMES.get(name, name.replace("_", " ")), interval(metric) + note)
    console.print(table)


def print_learning(facts: Mapping[str, Any], console: Console) -> None:
    """Print what a network reads and the trainings that it goes through, from `volrec.networks.describe`."""
    lines = [f"Reads: {', '.join(facts['streams'])}"]
    if facts["segments"]:
        lines.append(f"Clips in the paper: a snippet from each of {facts['segments']} equal parts of a study")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    titles = {"training": "Trained in turn", "refining": "Trained in turn where first weights exist (init)"}
    headings = ("stage", "learns from", "epochs", "rate", "frozen", "why")
    for key, title in titles.items():
        if facts[key]:
            console.print()
            print_rows(headings, [_stage_row(stage) for stage in facts[key]], console, title=title, plain=True)


def _stage_row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what one of several trainings learns from; epochs and learning rate are over those of a training alone."""
    motion = f"motion x {stage['motion_weight']:g}"
    learns = {"labels": "labels", "motion": "motion", "joint": f"labels, {motion}"}[stage["objective"]]
    frozen = ", ".join(stage["freeze"]) or "-"
    return stage["name"], learns, f"x {stage['epochs']:g}", f"x {stage['lr']:g}", frozen, stage["why"]


def schema_rows(model: type[BaseModel] = TrainConfig, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Return key, type, default and meaning of every key of a plan, from the schema itself."""
    rows: list[tuple[str, str, str, str]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows.extend(schema_rows(kind, f"{prefix}{name}."))
            continue
        default = field.get_default(call_default_factory=True)
        rows.append((f"{prefix}{name}", _kind(kind), _plain(default), " ".join((field.description or "").split())))
        for inner in typing.get_args(kind):  # a list of sections that are called by their names
            if isinstance(inner, type) and issubclass(inner, BaseModel) and "name" in inner.model_fields:
                rows.extend(row for row in schema_rows(inner, f"{prefix}{name}.NAME.") if not row[0].endswith(".name"))
    return rows


def print_keys(console: Console, *, schema: type[BaseModel] = TrainConfig) -> None:
    """Print every key of a plan with its meaning."""
    from rich.table import Table

    table = Table(show_edge=False, show_lines=False)
    for heading in ("key", "values", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for row in schema_rows(schema):
        table.add_row(*(_escape(cell) for cell in row))
    console.print(table)


def print_rows(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    console: Console,
    *,
    title: str = "",
    plain: bool = False,
) -> None:
    """Print a table; a plain one has no lines between columns, which spares width."""
    from rich.box import HEAVY_HEAD
    from rich.table import Table

    look: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0)} if plain else {"box": HEAVY_HEAD}
    table = Table(title=title or None, title_justify="left", show_edge=False, **look)
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number == 0)  # names stay whole: they are typed again
    for row in rows:
        table.add_row(*(_escape(str(cell)) for cell in row))
    console.print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _plain(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _kind(kind: Any) -> str:
    """Name a type as a person writes it in YAML."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(dict.fromkeys(_kind(argument) for argument in arguments))
    if origin in {list, tuple}:
        inner = [argument for argument in arguments if argument is not Ellipsis]
        return "[" + ", ".join(_kind(argument) for argument in inner) + (", …]" if origin is list else "]")
    if origin is dict:
        return f"{{{_kind(arguments[0])}: {_kind(arguments[1])}}}"
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "{" + ", ".join(kind.model_fields) + "}"
    if isinstance(kind, type):
        return {"str": "text", "int": "integer", "float": "number", "bool": "true | false"}.get(
            kind.__name__, kind.__name__
        )
    return str(kind)


def say(console: Console, text: str) -> None:
    """Print a line as it is: nothing in it is markup, and the terminal breaks it."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
