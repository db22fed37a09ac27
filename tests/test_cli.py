"""The command line: help that teaches, wrong arguments that end with code 2, and a fast start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from volrec.cli import app, main
from volrec.cli.shell import finish
from volrec.errors import Problem

COMMANDS = (
    "audit",
    "inspect",
    "plan",
    "train",
    "evaluate",
    "explain",
    "compare",
    "predict",
    "fuse",
    "report",
    "demo",
    "phantom",
    "models",
    "pretrain",
    "transfer",
    "import-weights",
    "benchmark",
)
HEAVY = ("torch", "monai", "pytorch_lightning", "pandas", "numpy", "pydicom", "sklearn", "matplotlib", "pydantic")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert f"volrec {command}" in shown


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from volrec.cli import main; main(['--help']); main(['train', '--help']);"
        "main(['benchmark', '--help']); main(['benchmark', 'extract', '--help']);"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]; assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train", "--lables", "x"], "Did you mean --labels?"),
        (["train", "x", "--epochs", "many"], "--epochs"),
        (["train"], "no folder of studies is named"),
        (["plan"], "no folder of studies is named"),
        (["predict"], "--run"),
        (["train", "nowhere", "--labels", "x.csv", "--set", "optim.lr"], "key=value"),
        (["train", "nowhere", "--labels", "x.csv", "--set", "optim.lrr=1"], "did you mean 'lr'"),
        (["train", "nowhere", "--labels", "x.csv", "--config", "hippocampus-larg"], "hippocampus-large"),
        (["train", "nowhere", "--labels", "x.csv"], "nowhere"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["inspect", "nowhere"], "nowhere"),
        (["predict", "nowhere", "nowhere"], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["models", "c4d"], "c3d"),
    ],
)
def test_wrong_arguments_end_with_code_2_and_say_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert message in text.replace(" │ │ ", " ")
    assert "Traceback" not in text


def test_the_keys_of_a_plan_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--schema"]) == 0
    assert '"Largest in-plane rotation, degrees."' in capsys.readouterr().out
    assert main(["plan", "--keys"]) == 0
    assert "augment.rotate" in capsys.readouterr().out


def test_more_than_twenty_left_out_name_the_table_that_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem(f"f{number}.dcm", "truncated", "it is cut short.", "Copy it again.") for number in range(23)]
    assert finish(problems, table=Path("out-quarantine.csv")) == 3
    assert "and 3 more (out-quarantine.csv has them all)" in capsys.readouterr().err
    assert finish(problems, table="") == 3
    assert capsys.readouterr().err.endswith("and 3 more\n")
