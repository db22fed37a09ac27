"""What tests of whole benchmark runs share: a rendered set of twelve clips, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volrec import api
from volrec.cli import main

CLASSES = ("AmberDriftUp", "DriftLeft", "DriftRight")
TINY = ("--scale", "0.1", "--width", "0.0625", "--batch", "4", "--flow", "farneback")


def render(folder: Path) -> Path:
    """Three classes of four groups: each split learns from nine clips and tests three."""
    api.make_motion(folder, classes=CLASSES, groups=4, frames=(16, 20), size=(40, 48))
    return folder


def run(root: Path, protocol: str | Path, out: Path, *more: str | Path, epochs: int = 1) -> int:
    """Run `volrec benchmark` at a tiny size and return its exit code."""
    given = ["benchmark", "motion", "--root", root, "--protocol", protocol, "--out", out, "--epochs", epochs, *TINY]
    if "--split" not in more:
        given += ["--split", "1"]
    return main([str(part) for part in (*given, *more)])


def result(out: Path) -> dict[str, Any]:
    """Return what benchmark.json says."""
    found: dict[str, Any] = json.loads((out / "benchmark.json").read_text())
    return found


def report(out: Path) -> str:
    return (out / "report.md").read_text(encoding="utf-8")
