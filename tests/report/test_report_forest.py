"""Forest plots: a row for what was found, marks where they belong, files that can be printed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from volrec.report.forest import (
    ForestRow,
    _draw,
    comparison_forest,
    comparison_rows,
    forest,
    save_forest,
    subgroup_forest,
    subgroup_rows,
)


def one(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


TABLE = {
    "column": "sex",
    "metric": "auc",
    "groups": [
        {"name": "F", "studies": 40, "metrics": {"auc": one(0.8, 0.7, 0.9)}, "warning": ""},
        {"name": "M <&>", "studies": 9, "metrics": {"auc": one(0.6, 0.3, 0.95)}, "warning": "9 patients"},
        {"name": "no value", "studies": 1, "metrics": {"auc": one(None)}, "warning": "1 patient"},
    ],
}


def test_a_group_has_a_row_with_its_numbers() -> None:
    svg = subgroup_forest([TABLE], overall=one(0.75, 0.7, 0.8))
    ET.fromstring(svg)  # well formed, whatever the names hold
    text = " ".join(re.findall(r">([^<>]+)</text>", svg))
    assert "F (40)" in text and "0.800 [0.700, 0.900]" in text
    assert "M &lt;&amp;&gt; (9)" in text and "all studies" in text and "sex" in text
    assert "currentColor" in svg and "#010203" not in svg
    assert svg.startswith("<svg") and svg == subgroup_forest([TABLE], overall=one(0.75, 0.7, 0.8))


def test_marks_stand_at_the_values_and_small_groups_are_open_and_dashed() -> None:
    rows = subgroup_rows([TABLE], metric="auc", overall=None)
    assert [row.doubtful for row in rows] == [False, False, True, True]
    (panel,) = _draw(rows, axis="AUC", reference=0.75, name="x").axes
    marks = [line for line in panel.lines if line.get_marker() == "s"]
    bars = [line for line in panel.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] in (1, 2)]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in marks] == [(0.8, 1), (0.6, 2)]
    assert [list(line.get_xdata()) for line in bars[:2]] == [[0.7, 0.9], [0.3, 0.95]]
    assert [line.get_linestyle() for line in bars[:2]] == ["-", "--"]
    assert [mark.get_markerfacecolor() == "none" for mark in marks] == [False, True]
    low, high = panel.get_xlim()
    assert low < 0.3 and high > 0.95


def test_a_comparison_shows_metrics_of_one_scale_against_no_difference() -> None:
    metrics = {name: {"difference": one(0.1, -0.1, 0.3)} for name in ("auc", "loss", "accuracy")}
    found = {"task": "binary", "first": "a", "second": "b", "studies": 60, "warning": "", "metrics": metrics}
    assert [row.label for row in comparison_rows([found])] == ["b minus a", "AUC", "accuracy"]
    quantities = {"task": "regression", "first": "a", "second": "b", "studies": 60, "warning": "few"}
    quantities["metrics"] = {name: {"difference": one(-2, -4, 0)} for name in ("mae", "rmse", "r2")}
    assert [row.label for row in comparison_rows([quantities])] == ["b minus a", "MAE", "RMSE"]
    assert "0.100 [-0.100, 0.300]" in comparison_forest([found])


@pytest.mark.parametrize("rows", [[], [ForestRow("nothing", one(None))], [ForestRow("a point", one(0.5))]], ids=len)
def test_plots_without_an_interval_are_drawn(rows: list[ForestRow]) -> None:
    ET.fromstring(forest(rows, axis="AUC"))


def test_files_for_papers_are_dark_on_white(tmp_path: Path) -> None:
    rows = subgroup_rows([TABLE], metric="auc", overall=None)
    svg, png = save_forest(rows, tmp_path / "metrics.json", axis="AUC", reference=0.75)
    assert (svg.name, png.name) == ("metrics.svg", "metrics.png")
    text = svg.read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.get("width", "").endswith("pt") and root.get("height", "").endswith("pt")
    assert "currentColor" not in text and "#1c2733" in text
    with Image.open(png) as image:
        pixels = image.convert("RGB")
        assert pixels.getpixel((2, 2)) == (255, 255, 255)
        assert max(min(colour for _, colour in pixels.getcolors(maxcolors=1 << 20))) < 60
