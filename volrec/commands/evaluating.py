"""How good runs are: what is computed, and what is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import ConfigError, Problem
from volrec.files import write_atomically
from volrec.report import terminal
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["compare", "evaluate"]

WIDE = 110
"""Columns from which numbers stand with three digits."""
MOST_NAME = 18
COLUMNS = ("part", "fold", "group", "label", "studies", "patients", "metric", "value", "low", "high", "note")
COMPARED = ("first", "second", "label", "metric")
VALUES = ("value", "low", "high")


def evaluate(
    run: Path,
    folder: Path | None,
    *,
    labels: Path | None,
    out: Path | None,
    include_training: bool = False,
    by: Sequence[str] = (),
    resamples: int | None = None,
    scores: Path | None = None,
    console: Console,
) -> list[Problem]:
    """Print metrics with intervals, overall and in groups, and write them where asked."""
    _check_place(out)
    _make_folders(out, scores)
    found = api.evaluate(
        api.load(run), folder, labels=labels, include_training=include_training, by=by, resamples=resamples
    )
    metrics = found.metrics
    for problem in found.problems:
        if problem.code == "seen-in-training":
            say(console, f"{problem.reason} {problem.remedy}")
    part = metrics.get("part", "test")
    say(console, f"{run} on {folder if folder is not None else f'its own {part} studies'}")
    say(console, f"{metrics.get('studies', 0)} studies of {metrics.get('patients', 0)} patients")
    if found.decided.sentence:
        say(console, found.decided.sentence)
    terminal.print_metrics(metrics.get("metrics", {}), console, title="")
    if "fold_mean" in metrics:
        terminal.print_metrics(metrics["fold_mean"], console, title="mean over folds")
    for label, one in metrics.get("labels", {}).items():
        terminal.print_metrics(one["metrics"], console, title=label)
    groups = list(metrics.get("subgroups", {}).values())
    for table in groups:
        _say_subgroups(table, console)
    count = sum(table["comparisons"] for table in groups)
    if len(groups) > 1 and count:
        say(
            console,
            f"\nIn all {count} comparisons of groups: {0.05 * count:.2g} would be expected to differ by chance.",
        )
    if scores is not None:
        write_atomically(scores, found.scores.to_csv(index=False))
        say(console, f"Scores of the studies: {scores}.")
    if out is not None:
        written = _write(out, metrics, _metric_rows(metrics), COLUMNS)
        if groups:
            from volrec.report.forest import save_forest, subgroup_rows

            metric = groups[0]["metric"]
            overall = metrics["metrics"].get(metric)
            rows = subgroup_rows(groups, metric=metric, overall=overall)
            reference = None if overall is None else overall["value"]
            written += save_forest(rows, out, axis=terminal.NAMES.get(metric, metric), reference=reference)
        say(console, f"Written: {', '.join(map(str, written))}.")
    return found.problems


def compare(
    runs: Sequence[Path],
    *,
    folder: Path | None,
    labels: Path | None,
    out: Path | None,
    include_training: bool,
    resamples: int,
    console: Console,
) -> list[Problem]:
    """Print what runs differ in, in a sentence and a table, and write it where asked."""
    _check_place(out)
    _make_folders(out)
    found, problems = api.compare_runs(
        list(runs), folder, labels=labels, include_training=include_training, resamples=resamples
    )
    for problem in problems:
        if problem.code == "seen-in-training":
            say(console, f"{problem.reason} {problem.remedy}")
    for one in found["comparisons"]:
        _say_comparison(one, console)
    say(console, "")
    for name, sentence in found["decided"].items():
        if sentence:
            say(console, f"{name}: {sentence}")
    for sentence in found["warnings"]:
        say(console, f"Note: {sentence}")
    if out is not None:
        from volrec.report.forest import comparison_rows, save_forest

        columns = (*COMPARED, *(f"{side}_{key}" for side in ("first", "second", "difference") for key in VALUES))
        written = _write(
            out, found, _comparison_rows(found), (*columns, "p", "method", "better", "studies", "patients")
        )
        written += save_forest(comparison_rows(found["comparisons"]), out, axis="difference", reference=0.0)
        say(console, f"Written: {', '.join(map(str, written))}.")
    return problems


def _check_place(out: Path | None) -> None:
    if out is not None and out.suffix.lower() in (".svg", ".png"):
        raise ConfigError(
            f"the metrics cannot be written as {out.suffix}.",
            remedy="Name a .json file; .csv, .svg and .png are written beside it where there is something for them.",
            where=out,
            code="out",
        )


def _make_folders(*places: Path | None) -> None:
    """Make the folders of files, before anything is scored that could not be written."""
    for place in places:
        if place is None:
            continue
        if place.is_dir():
            raise ConfigError(
                "it is a folder, and a file is to be written.",
                remedy=f"Name a file in it, such as {place / 'metrics.json'}.",
                where=place,
                code="out",
            )
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"its folder cannot be made ({error.strerror or error}).",
                remedy="Choose a place that you may write to.",
                where=place,
                code="out",
            ) from error


def _write(
    out: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> list[Path]:
    """Write JSON, and a table with a row a metric beside it."""
    import pandas as pd

    place = out.with_suffix(".json") if out.suffix.lower() == ".csv" else out
    write_atomically(place, json.dumps(facts, indent=2) + "\n")
    beside = place.with_suffix(".csv")
    write_atomically(beside, pd.DataFrame(list(rows), columns=list(columns)).to_csv(index=False))
    return [place, beside]


def _metric_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row a metric: overall, of each label, of folds, of groups."""
    whole = {key: metrics.get(key) for key in ("studies", "patients")}
    rows = _rows_of(metrics.get("metrics", {}), {"part": "all", **whole})
    for label, one in metrics.get("labels", {}).items():
        rows += _rows_of(one["metrics"], {"part": "label", "label": label, "studies": one["studies"]})
    rows += _rows_of(metrics.get("fold_mean", {}), {"part": "mean over folds", **whole})
    for fold, one in metrics.get("folds", {}).items():
        plain = {name: {"value": value} for name, value in one["metrics"].items()}
        rows += _rows_of(plain, {"part": "fold", "fold": fold, **{key: one[key] for key in ("studies", "patients")}})
    for column, table in metrics.get("subgroups", {}).items():
        for group in table["groups"]:
            facts = {"part": column, "group": group["name"], "studies": group["studies"], "patients": group["patients"]}
            rows += _rows_of(group["metrics"], facts | {"note": group["warning"]})
            if group.get("difference"):
                name = f"{table['metric']} minus the rest"
                rows += _rows_of({name: group["difference"]}, facts | {"note": group["warning"]})
    return rows


def _rows_of(metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, one in metrics.items():
        notes = [note for note in (facts.get("note"), one.get("reason")) if note]
        rows.append({**facts, "metric": name, **{key: one.get(key) for key in VALUES}, "note": "; ".join(notes)})
    return rows


def _comparison_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row a comparison and metric."""
    rows = []
    for one in found["comparisons"]:
        parts = [("", one["metrics"], one["studies"])]
        parts += [(name, label["metrics"], label["studies"]) for name, label in one.get("labels", {}).items()]
        for label, metrics, studies in parts:
            for name, entry in metrics.items():
                row = {key: one[key] for key in ("first", "second", "patients")}
                row |= {"label": label, "metric": name, "studies": studies}
                for side in ("first", "second", "difference"):
                    row |= {f"{side}_{key}": entry[side].get(key) for key in VALUES}
                rows.append(row | {key: entry["difference"].get(key) for key in ("p", "method", "better")})
    return rows


def _say_subgroups(table: Mapping[str, Any], console: Console) -> None:
    """Print the groups of one column: how many, the metrics, and the difference from the rest."""
    names = list(table["groups"][0]["metrics"])
    finding = isinstance(table["groups"][0]["positives"], int)
    rows = [_group_row(group, names, console, finding=finding) for group in table["groups"]]
    headings = ["group", "studies", *(["positive"] if finding else []), *map(_called, names)]
    needed = sum(max(map(len, column)) + 1 for column in zip(headings, *rows, strict=True))
    if needed > console.width:  # an interval below its value is better than one broken in two
        rows = [[cell.replace(" [", "\n[") for cell in row] for row in rows]
    say(console, f"\nBy {table['column']}: {table['cut']}" if table["cut"] else f"\nBy {table['column']}:")
    terminal.print_rows(headings, rows, console, plain=True)
    if any(group["patients"] != group["studies"] for group in table["groups"]):
        say(console, "In brackets: patients.")
    for group in table["groups"]:
        if group["warning"]:
            say(console, f"* {group['name']}: too few to trust the intervals: {group['warning']}.")
    told = [group for group in table["groups"] if group.get("differs") is not None]
    for group in told[: 1 if len(table["groups"]) == 2 else None]:
        sign = "+" if group["difference"]["value"] > 0 else ""
        against = f"{group['name']} minus the rest"
        say(console, f"  {_called(table['metric'])}, {against}: {sign}{_interval(group['difference'], None)}")
    say(console, table["sentence"])


def _group_row(group: Mapping[str, Any], names: Sequence[str], console: Console, *, finding: bool) -> list[str]:
    digits = None if console.width >= WIDE else 2
    mark = " *" if group["warning"] else ""
    more = f" ({group['patients']})" if group["patients"] != group["studies"] else ""
    return [
        f"{_short(group['name'])}{mark}",
        f"{group['studies']}{more}",
        *([str(group["positives"])] if finding else []),
        *(_interval(group["metrics"][name], digits) for name in names),
    ]


def _say_comparison(one: Mapping[str, Any], console: Console) -> None:
    """Print the sentence of one comparison, and a table of its metrics."""
    say(console, f"\n{one['verdict']['sentence']}")
    lacking = [
        f"{one[key]} only tested by {one[side]}"
        for key, side in (("only_first", "first"), ("only_second", "second"))
        if one[key]
    ]
    if one["other_fold"]:
        lacking.append(f"{one['other_fold']} in folds of other names")
    if one["left_out"]:
        lacking.append(f"{one['left_out']} without label or score")
    if lacking:
        say(console, f"Studies: {one['studies']} compared; {', '.join(lacking)}.")
    digits = None if console.width >= WIDE else 2
    headings = ("metric", _short(one["first"]), _short(one["second"]), "difference", "p")
    # The operating points stand in the files; on a terminal they would bury the others.
    names = [name for name in (*terminal.FIRST, "f1", "brier", "ece", "loss") if name in one["metrics"]]
    rows = []
    for name in names:
        entry = one["metrics"][name]
        sides = (_interval(entry[side], digits) for side in ("first", "second", "difference"))
        p = entry["difference"]["p"]
        mark = " *" if entry["difference"]["better"] else ""
        shown = "ECE" if name == "ece" else _called(name)
        rows.append((f"{shown}{mark}", *sides, "-" if p is None else "<0.001" if p < 0.001 else f"{p:.2g}"))
    terminal.print_rows(headings, rows, console, plain=True)
    say(console, f"Difference: {one['second']} minus {one['first']}, 95 % intervals; * where it leaves out 0.")


def _interval(found: Mapping[str, Any], digits: int | None) -> str:
    """Return a value with its interval; two digits where there is little room."""
    low, high = found.get("low"), found.get("high")
    if digits is None or found["value"] is None or abs(found["value"]) >= 10:
        return terminal.interval(found)
    text = f"{found['value']:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _called(metric: str) -> str:
    return terminal.NAMES.get(metric, metric.replace("_", " "))


def _short(name: str) -> str:
    return name if len(name) <= MOST_NAME else name[: MOST_NAME - 1] + "…"
