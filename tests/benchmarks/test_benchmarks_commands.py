"""The commands of `volrec benchmark`: what they say, what they refuse, and with which exit code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from benchmarks.runs import CLASSES, TINY, render, report, result, run

from volrec.benchmarks.pipeline import BenchmarkRun
from volrec.benchmarks.protocol import list_protocols, load_protocol
from volrec.cli import main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("motion") / "set")


@pytest.fixture(scope="module")
def done(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    assert run(root, "c3d-finetuned", out) == 0
    return out


def words(text: str) -> str:
    return " ".join(text.split())


def refused(arguments: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of a command that must end with code 2, without a traceback."""
    assert main([str(part) for part in arguments]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    assert said.err.count("error:") + said.err.count("─ Error ─") == 1
    return words(said.err.replace("│", " "))


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"--protocol": "tsn-eccv61"}, ["there is no protocol 'tsn-eccv61'", "tsn-eccv16"]),
        ({"--protocol": "nowhere.yaml"}, ["nowhere.yaml", "cannot be read as a protocol (No such file or directory)"]),
        (
            {"--set": "streams.rgb.training.lrr=1"},
            ["unknown key 'streams.rgb.training.lrr' (did you mean 'lr'?)", "volrec benchmark protocols c3d-finetuned"],
        ),
        ({"--set": "streams.rbg.training.lr=1"}, ["rbg", "streams go by their name: --set streams.rgb"]),
        ({"--set": "streams.rgb.training.lr=fast"}, ["'streams.rgb.training.lr'", "fast"]),
        ({"--set": "streams.rgb.training.lr"}, ["key=value"]),
        ({"--split": "4"}, ["4", "1, 2"]),
        ({"--split": "first"}, ["first"]),
        ({"--root": "nowhere"}, ["nowhere", "there is no such folder"]),
        ({"--weights": "rbg=x.safetensors"}, ["there is no stream 'rbg' in c3d-finetuned", "Its streams: rgb."]),
        ({"--weights": "x.safetensors"}, ["x.safetensors"]),
        ({"--init": "rbg=x.safetensors"}, ["there is no stream 'rbg'"]),
        ({"--scale": "2"}, ["scale: it must lie in (0, 1]"]),
        ({"--width": "0"}, ["width: it must lie in (0, 1]"]),
        ({"--epochs": "-1"}, ["epochs"]),
        ({"--batch": "0"}, ["batch"]),
        ({"--decoder": "ffmpeg"}, ["--decoder", "pyav"]),
        ({"--only": "tests"}, ["--only", "test"]),
        ({"--flow": "brox"}, ["--flow", "tvl1"]),
    ],
)
def test_a_wrong_argument_ends_with_code_2_and_one_message(
    change: dict[str, str],
    messages: list[str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"--root": str(root), "--protocol": "c3d-finetuned", "--split": "1", "--epochs": "1", "--out": "run"}
    given |= dict(zip(TINY[::2], TINY[1::2], strict=True)) | change
    said = refused(["benchmark", "motion", *(part for pair in given.items() for part in pair)], capsys)
    assert all(message in said for message in messages), said
    assert not Path("run").exists()  # the mended command can be given again


def test_what_is_missing_is_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs a data set" in refused(["benchmark"], capsys)
    assert "needs --root" in refused(["benchmark", "motion"], capsys)
    assert "needs --protocol" in refused(["benchmark", "motion", "--root", root], capsys)
    more: list[str | Path] = ["--root", root, "--protocol", "c3d-finetuned", "--out", tmp_path / "run"]
    assert "hmbd51" in refused(["benchmark", "hmbd51", *more], capsys)
    said = refused(["benchmark", "motion", *more, "--weights", "rgb=a", "--weights", "rgb=b"], capsys)
    assert "the stream 'rgb' is named twice" in said
    several = ["--root", root, "--protocol", "c3d-svm-3nets", "--weights", "x.safetensors", "--out", tmp_path / "run"]
    assert "its streams: rgb-1, rgb-2, rgb-3" in refused(["benchmark", "motion", *several], capsys)
    alone = ["--root", root, "--protocol", "idt-fv", "--weights", "x.safetensors", "--out", tmp_path / "run"]
    assert "trajectories alone" in refused(["benchmark", "motion", *alone], capsys)


def test_a_set_without_lists_or_with_others_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "videos", tmp_path / "set" / "videos")
    given: list[str | Path] = ["--root", tmp_path / "set", "--protocol", "c3d-finetuned", "--out", tmp_path / "run"]
    said = refused(["benchmark", "motion", *given], capsys)
    assert "were not found" in said and "lists" in said
    said = refused(["benchmark", "ucf101", "--root", root, *given[2:]], capsys)
    assert "own-1" in said  # these are not the official lists
    assert refused(["benchmark", "motion", *given, "--lists", tmp_path / "nowhere"], capsys)


def test_a_drawn_split_is_run_and_said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "c3d-finetuned", tmp_path / "run", "--split", "random-0") == 0
    said = words(capsys.readouterr().out)
    assert "motion/random-0" in said and "drawn" in said
    assert result(tmp_path / "run")["splits"][0]["official"] is False


def test_a_run_goes_on_as_it_was_begun(
    done: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["benchmark", "motion", "--resume", done, "--epochs", "5", "--scale", "1"], capsys)
    assert "a data set, --epochs, --scale came with it" in said
    assert "there is no such folder" in refused(["benchmark", "--resume", tmp_path / "none"], capsys)
    assert "it is not a volrec run folder" in refused(["benchmark", "--resume", root], capsys)
    again: list[str | Path] = ["benchmark", "motion", "--root", root, "--protocol", "c3d-finetuned", "--out", done]
    assert "it holds a finished run" in refused(again, capsys)


def test_a_report_is_shown_again(done: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "show", str(done)]) == 0
    shown = words(capsys.readouterr().out)
    for text in ("C3D (fine-tuned) on motion", "video top-1", "3 of 3 videos", "training.init", "quarantined videos"):
        assert text in shown
    assert "Give the folder of a benchmark run" in refused(["benchmark", "show", tmp_path], capsys)
    assert run(root, "c3d-finetuned", tmp_path / "run", "--only", "train") == 0
    capsys.readouterr()
    assert f"volrec benchmark --resume {tmp_path / 'run'}" in refused(["benchmark", "show", tmp_path / "run"], capsys)


def test_commands_to_go_on_with_can_be_pasted(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my run"
    assert run(root, "c3d-finetuned", out, "--only", "train") == 0
    said = words(capsys.readouterr().out)
    assert f"volrec benchmark --resume '{out}' --only test" in said
    assert f"`volrec benchmark --resume '{out}'`" in refused(["benchmark", "show", out], capsys)
    assert main(["benchmark", "--resume", str(out), "--only", "test"]) == 0
    assert f"volrec benchmark table '{out}'" in words(capsys.readouterr().out)
    assert BenchmarkRun.open(out).resume_command == f"volrec benchmark --resume '{out}'"


def test_a_run_stands_in_the_table(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--markdown", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv")]
    assert main(["benchmark", "table", str(done), *files]) == 0
    shown = words(capsys.readouterr().out)
    assert "1 run of no published result: run (c3d-finetuned on motion)" in shown and "94.0" in shown
    assert "not run" in (tmp_path / "t.md").read_text() and "94.0" in (tmp_path / "t.csv").read_text()
    assert refused(["benchmark", "table", tmp_path / "none"], capsys)


def test_a_printed_protocol_can_be_edited_and_given(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "protocols"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in list_protocols())
    # Windows of 32 frames, every second one, are 64 frames apart; a narrow terminal breaks the cell.
    assert "every 64 x" in next(line for line in listed.splitlines() if line.startswith("t3d "))
    for name in ("c3d-finetuned", "tsn-eccv16", "idt-fv", "c3d-svm-idt"):
        assert main(["benchmark", "protocols", name]) == 0
        (tmp_path / f"{name}.yaml").write_text(capsys.readouterr().out)
        assert load_protocol(tmp_path / f"{name}.yaml") == load_protocol(name)
    lines = (tmp_path / "tsn-eccv16.yaml").read_text().splitlines()
    assert "  - name: rgb" in lines and "    weight: 1.5" in lines and max(map(len, lines)) < 300
    mine = yaml.safe_load((tmp_path / "c3d-finetuned.yaml").read_text())
    mine["streams"][0]["training"]["lr"] = 0.5
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    assert run(root, tmp_path / "mine.yaml", tmp_path / "run") == 0
    # An edited copy is measured against the paper's protocol, also when it is gone on with and the file is gone.
    (tmp_path / "mine.yaml").unlink()
    paper = load_protocol("c3d-finetuned").streams[0].training.lr
    for _ in range(2):
        assert {"field": "streams.rgb.training.lr", "paper": paper, "here": 0.5} in result(tmp_path / "run")[
            "deviations"
        ]
        assert f"| training.lr | {paper:g} | 0.5 |" in report(tmp_path / "run")
        assert main(["benchmark", "--resume", str(tmp_path / "run")]) == 0
    (tmp_path / "other.yaml").write_text("extends: c3d-finetuned\nname: other\nstreams: [{name: rgb, weight: 2}]")
    assert run(root, tmp_path / "other.yaml", tmp_path / "other") == 0
    found = result(tmp_path / "other")
    assert found["protocol"] == "other" and "protocol other (Tran" in report(tmp_path / "other")
    assert {"field": "streams.rgb.weight", "paper": 1.0, "here": 2.0} in found["deviations"]
    assert "there is no protocol 'tsn'" in refused(["benchmark", "protocols", "tsn"], capsys)


def test_extraction_is_done_once(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pictures"
    command = ["benchmark", "extract", "motion", "--root", str(root), "--out", str(out), "--flow", "farneback"]
    command += ["--jobs", "1", "--size", "32"]
    assert main(command) == 0
    assert "12 of 12 videos: rgb, flow in" in words(capsys.readouterr().out)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert len(list(out.glob("*/*/extraction.json"))) == 12 and made
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")} == made
    capsys.readouterr()
    assert main([*command[:-1], "36"]) == 3
    said = capsys.readouterr()
    assert "0 of 12 videos" in words(said.out) and "another size" in words(said.err)
    assert "height and width" in refused([*command[:-1], "1", "2", "3"], capsys)


def test_trajectories_are_computed_once(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "set"
    shutil.copytree(root, small)
    lists = small / "ucfTrainTestlist"
    for side in ("train", "test"):
        lines = (lists / f"{side}list01.txt").read_text().splitlines()
        (lists / f"{side}list01.txt").write_text("\n".join(line for line in lines if "g01" in line or "g02" in line))
    command = ["benchmark", "extract", "motion", "--root", str(small), "--out", str(tmp_path / "t"), "--jobs", "1"]
    command += ["--what", "trajectories", "--split", "1"]
    assert main(command) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*.safetensors")}
    assert len(made) == 6
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*.safetensors")} == made
    assert "6 of 6 videos: trajectories in" in words(capsys.readouterr().out)


def test_the_motion_set_is_made_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["benchmark", "make-motion", str(tmp_path / "set"), "--size", "40", "40", "--classes", CLASSES[0]]
    assert main(command) == 0
    said = words(capsys.readouterr().out)
    assert "25 clips of 1 classes in" in said and "Next: volrec benchmark motion --root" in said
    (tmp_path / "set" / "videos" / CLASSES[0] / f"v_{CLASSES[0]}_g07_c01.avi").unlink()
    assert main(command) == 0
    assert "24 of them there already" in words(capsys.readouterr().out)
    assert "there is no class 'Swim'" in refused([*command[:-1], "Swim"], capsys)


@pytest.mark.parametrize("protocol", ["c3d-finetuned", "tsn-eccv16", "idt-fv"])
def test_without_pyav_it_is_said_how_to_install_it(
    protocol: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(root, protocol, tmp_path / "run") == 2
    said = words(capsys.readouterr().err)
    assert "pip install 'volrec[video]'" in said and said.count("error:") == 1
    assert not (tmp_path / "run").exists()
    out = str(tmp_path / "pictures")
    assert "pip install 'volrec[video]'" in refused(
        ["benchmark", "extract", "motion", "--root", root, "--out", out, "--jobs", "1"], capsys
    )
    assert "pip install 'volrec[video]'" in refused(["benchmark", "make-motion", tmp_path / "set"], capsys)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--help"]) == 0
    shown = words(capsys.readouterr().out.replace("│", " "))
    for text in ("--resume RUN --only test", "RUN/split-{split}-STREAM/weights.safetensors", "make-motion motion"):
        assert text in shown, text
    for command in ("extract", "make-motion", "protocols"):
        assert main(["benchmark", command, "--help"]) == 0
        assert f"volrec benchmark {command}" in words(capsys.readouterr().out)


def test_help_starts_without_torch_or_numpy() -> None:
    program = (
        "import sys; from volrec.cli import main; main(['--help']); main(['benchmark', '--help']);"
        "main(['benchmark', 'table', '--help']);"
        "heavy = {'torch', 'numpy', 'pandas', 'cv2', 'av', 'pydantic'} & set(sys.modules); assert not heavy, heavy"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
