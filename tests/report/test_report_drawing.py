"""A plot of the report as files for a paper."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from volrec.report import plots


@pytest.fixture
def drawing() -> plots.Drawing:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 40)
    names = np.array([f"p{number}" for number in range(40)])
    return plots.roc(truth, rng.random(40) + truth, groups=names, folds=np.full(40, "all"), name="x / y")


def test_a_drawing_is_the_element_of_the_page(drawing: plots.Drawing) -> None:
    assert drawing.startswith("<svg")
    assert "currentColor" in drawing
    assert plots.INK not in drawing


def test_files_are_in_dark_ink_on_white(drawing: plots.Drawing, tmp_path: Path) -> None:
    svg, png = drawing.save(tmp_path / "figures")
    assert (svg.name, png.name) == ("roc-x-y.svg", "roc-x-y.png")
    assert "currentColor" not in svg.read_text()
    assert ET.fromstring(svg.read_text()).attrib["width"].endswith("pt")
    pixels = np.asarray(Image.open(png).convert("L"))
    assert pixels[0, 0] == 255
    assert pixels.min() < 20
    assert pixels.shape[1] > 1000


def test_the_same_plot_gives_the_same_bytes(drawing: plots.Drawing, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in drawing.save(tmp_path / "a")]
    assert first == [path.read_bytes() for path in drawing.save(tmp_path / "b")]


def test_svg_alone_can_be_asked_for(drawing: plots.Drawing, tmp_path: Path) -> None:
    assert [path.suffix for path in drawing.save(tmp_path, png=False)] == [".svg"]
