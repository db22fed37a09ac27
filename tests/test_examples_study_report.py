"""The ten lines of Python from studies to a report do what they say, on a few small phantoms."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "study_report.py"


def test_the_example_leaves_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("study_report", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = module.main(tmp_path, task="bleed", studies=24, epochs=1)
    page = run.report.read_text(encoding="utf-8")
    assert "<h2>Does it need context?</h2>" in page
    assert "<h2>Where it looked</h2>" in page
    assert (tmp_path / "scores.json").is_file()
    assert "More studies are needed" in capsys.readouterr().out
