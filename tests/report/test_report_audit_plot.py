"""The plot of an audit: one element that stands alone, all conditions and lengths in it, and files for papers."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from volrec.report.audit_plot import audit_plot


def span(value: float | None, width: float = 0.1) -> dict[str, Any]:
    known = value is not None
    return {"value": value, "low": value - width if known else None, "high": value + width if known else None}


def example(metric: str = "auc", **changed: float | None) -> dict[str, Any]:
    values: dict[str, float | None] = {"as it is": 0.95, "1 slice": 0.55, "3 slices": 0.8, "shuffled": 0.6} | changed
    kinds = {"as it is": "whole", "1 slice": "slice", "3 slices": "window", "shuffled": "order"}
    conditions = [
        {"name": name, "kind": kinds[name], "slices": None, "metrics": {metric: span(value)}}
        for name, value in values.items()
    ]
    context = [
        {"slices": slices, "millimetres": 2.5 * slices, **span(values[name]), "whole": name == "as it is"}
        for slices, name in ((1, "1 slice"), (3, "3 slices"), (20, "as it is"))
    ]
    return {"metric": metric, "conditions": conditions, "context": context}


@pytest.mark.parametrize("metric", ["auc", "correlation"])
def test_the_plot_shows_lengths_in_slices_and_mm_and_every_condition(metric: str) -> None:
    text = audit_plot(example(metric))
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    words = {"".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("text")}
    assert {"as it is", "1 slice", "shuffled", "1", "3", "all", "2", "8", "50", "slices", "mm"} <= words
    assert any(("AUC" if metric == "auc" else "correlation") in word for word in words)
    assert "currentColor" in text
    assert not re.search(r"(?<!xmlns:xlink=\")(?<!xmlns=\")https?://(?!www\.w3\.org)", text)


def test_the_same_audit_gives_the_same_bytes() -> None:
    assert audit_plot(example()) == audit_plot(example())


def test_a_condition_without_a_value_is_left_out() -> None:
    text = audit_plot(example(shuffled=None))
    assert "shuffled" not in text
    assert "1 slice" in text


def test_files_for_papers_are_written(tmp_path: Path) -> None:
    vector, raster = audit_plot(example()).save(tmp_path)
    ElementTree.parse(vector)
    head = raster.read_bytes()
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width > 1400
    assert height > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.png", "audit.svg"]
