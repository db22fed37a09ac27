"""The README keeps its word: its Python runs, its commands parse, its two lines are those that are checked."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from studies import write_study

import volrec
from volrec.api import make_motion
from volrec.cli import app, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def _commands() -> list[str]:
    """Return every command line that begins with volrec, in blocks and in running text."""
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE)]
    parts = [part.strip().removeprefix(".venv/bin/") for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("volrec ")]


@pytest.mark.parametrize("command", _commands())
def test_every_command_parses(command: str) -> None:
    tokens = shlex.split(command, comments=True)[1:]
    if tokens == ["--help"]:
        return
    _, bound, unused, *_ = app.parse_known_args(tokens)
    assert not unused
    assert bound.arguments or tokens == list(app.parse_commands(tokens)[0])


def test_the_commands_of_a_first_day_are_shown() -> None:
    shown = {shlex.split(command, comments=True)[1] for command in _commands()}
    assert shown >= {"demo", "inspect", "train", "predict", "plan", "models"}


def test_each_set_up_line_is_one_line() -> None:
    lines = [block.strip() for block in _blocks("sh") if "-m venv" in block]
    assert len(lines) == 2
    demo, tests = lines
    assert "\n" not in demo and "\n" not in tests
    for line in lines:
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert demo.endswith(".venv/bin/volrec demo")
    assert "-m pytest" in tests


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_the_gate_runs_the_test_line_word_for_word() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (found,) = re.findall(r"^command=\$\(.*\)$", script, flags=re.MULTILINE)
    assert re.search(r'^bash .*-c "\$command"$', script, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", f'{found}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == next(block.strip() for block in _blocks("sh") if "pytest" in block)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = _blocks("python")
    monkeypatch.chdir(tmp_path)
    folder = Path("phantoms/nodule")
    assert main(["phantom", str(folder), "--studies", "16", "--size", "32", "--slices", "12"]) == 0
    small = ["--set", "network.width=0.03125", "--set", "trainer.workers=0", "--set", "trainer.accelerator=cpu"]
    assert main(["plan", str(folder), "--labels", str(folder / "labels.csv"), "--out", "plan.yaml", *small]) == 0
    write_study(tmp_path / "new" / "one", slices=12, size=(32, 32))
    assert "/data/new" in snippet and "epochs=30" in snippet
    quick = snippet.replace("/data/new", str(tmp_path / "new")).replace("epochs=30", "epochs=1")
    assert quick.count("/data/ct") == 3 and quick.count('out="runs/t') == 2 and quick.count('"labels.csv"') == 1
    short = "epochs=1, batches_per_epoch=2, workers=0, accelerator='cpu', patience=0"
    quick = quick.replace("/data/ct", str(folder)).replace('"labels.csv"', f'"{folder}/labels.csv", {short}')
    quick = quick.replace('out="runs/t', f'{short}, out="runs/t')
    make_motion("motion", classes=("AmberDriftUp", "DriftLeft", "DriftRight"), groups=4, frames=(16, 20))
    names: dict[str, object] = {}
    exec(compile(quick, "README.md", "exec"), names)
    assert len(names["index"].studies) == 16  # type: ignore[attr-defined]
    assert isinstance(names["run"], volrec.Run)
    assert list(names["scores"]["study"]) == ["one"]  # type: ignore[index]
    assert set(names["done"].result.streams) == {"rgb"}  # type: ignore[attr-defined]
    assert names["network"].num_classes == 2  # type: ignore[attr-defined]
