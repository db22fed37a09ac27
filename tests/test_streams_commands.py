"""Whole commands for networks of streams, segments and stages: planned, trained, gone on with, tested and used."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import volrec
from volrec.cli import main
from volrec.config import load_config
from volrec.data.phantoms import make_phantoms
from volrec.runs import RunFolder
from volrec.training import fit
from volrec.training.module import StudyModule

SLICES, SIDE = 12, 32
TINY: dict[str, Any] = {
    "network.width": 0.0625,
    "preprocess.canvas": [6, 16, 16],
    "intensity.windows": ["mediastinum"],
    "optim.batch_size": 4,
    "trainer.batches_per_epoch": 2,
    "trainer.workers": 0,
    "trainer.accelerator": "cpu",
    "report.audit": False,  # tests/evaluation and tests/explain have what is asked of networks with streams
    "report.gallery": 0,
    "store.jobs": 1,
}
FLOW: dict[str, Any] = {"streams.flow.method": "farneback", "streams.flow.stack": 2}


@dataclass(frozen=True)
class System:
    """A network of the list, as the commands below train it.

    Attributes
    ----------
    network : str
        Registry name.
    keys : dict
        Set on top of `TINY`.
    stages : tuple of str
        Folders under ``stages/``.
    epochs : int
        Of the whole training.
    killed_at : int
        Step at which the training is killed, counted over all stages: the second of an epoch, with an epoch of the
        same stage before it. 0: while the SVM is fitted.
    """

    network: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    epochs: int = 2
    killed_at: int = 4


SYSTEMS = {
    "two-stream": System("two-stream", FLOW),
    "two-stream-svm": System("two-stream", {**FLOW, "network.options.fusion": "svm"}, killed_at=0),
    "two-stream-fusion": System("two-stream-fusion", FLOW, ("streams",), epochs=4, killed_at=8),
    "tsn-attention": System("tsn", {"network.options.consensus": "attention"}),
    "tsn-c3d": System("tsn", {"network.options.network": "c3d", "network.options.consensus": "weighted"}),
    "tsn-t3d": System("tsn", {"network.options.network": "t3d-121"}),
    "actionvlad": System("actionvlad", {"network.options.words": 4}),
    "actionvlad-c3d": System("actionvlad", {"network.options.network": "c3d", "network.options.words": 4}),
    "hidden-two-stream": System(
        "hidden-two-stream",
        {"network.options.fields": 2, "preprocess.canvas": [6, 32, 32]},
        ("motion", "temporal"),
        epochs=5,
        killed_at=8,
    ),
    "tsn-difference": System("tsn", {"streams.inputs": ["difference"], "streams.difference_stack": 2}),
    "two-stream-warped": System("two-stream", {"streams.inputs": ["intensity", "warped"], **FLOW}),
    "tsn-demons": System("tsn", {"streams.inputs": ["flow"], "streams.flow.method": "demons"}),
}
LONGER = {"tsn-t3d", "tsn-demons", "tsn-difference", "two-stream-warped"}
"""Trained to the end here, and killed by `-m slow` only: others of their kind are killed."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def setting(keys: Mapping[str, Any]) -> list[str]:
    return [
        part
        for key, value in keys.items()
        for part in ("--set", f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10))}")
    ]


@dataclass(frozen=True)
class Place:
    """A folder of studies with its labels, and where runs go."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def train(self, name: str, out: Path, **keys: Any) -> int:
        """Train a system by the command."""
        system = SYSTEMS[name]
        given = ["--labels", str(self.data / "labels.csv"), "--network", system.network, "--out", str(out)]
        options = ["--epochs", str(system.epochs), *setting({**TINY, **system.keys, **keys})]
        return main(["train", str(self.data), *given, *options])

    def plan(self, *arguments: str, **keys: Any) -> dict[str, Any]:
        """Plan by the command and return the plan."""
        out = self.root / "plan.yaml"
        begin = ["plan", str(self.data), "--labels", str(self.data / "labels.csv"), "--out", str(out), "--overwrite"]
        assert main([*begin, *arguments, *setting(keys)]) == 0
        return yaml.safe_load(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("streams")
    make_phantoms(root / "data", task="motion", studies=14, directions=2, size=SIDE, slices=SLICES)
    return Place(root)


@pytest.fixture(autouse=True)
def _one_store(place: Place, monkeypatch: pytest.MonkeyPatch, _own_cache: None) -> None:
    """Decode each study, and compute its flow, once for all tests of this file."""
    monkeypatch.setenv("VOLREC_CACHE", str(place.root / "cache"))


@pytest.fixture(scope="module")
def trained(place: Place) -> Callable[[str], Path]:
    """Train a system the first time it is asked for."""

    def run_of(name: str) -> Path:
        run = place.root / "runs" / name
        if not run.exists():
            assert place.train(name, run) == 0
        return run

    return run_of


def steps_before_death(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Kill the training in its step of this number, or while the SVM is fitted."""
    if not count:
        monkeypatch.setattr(fit, "fit_svm", _die)
        return
    original, seen = StudyModule.training_step, [0]

    def training_step(self: StudyModule, batch: Any, number: int) -> torch.Tensor:
        seen[0] += 1
        if seen[0] == count:
            _die()
        return original(self, batch, number)

    monkeypatch.setattr(StudyModule, "training_step", training_step)


def _die(*_: Any, **__: Any) -> Any:
    raise Killed


def same_files(one: Path, other: Path, names: str) -> bool:
    files = sorted(path.relative_to(one) for path in one.rglob(names))
    assert files
    return all(same_tensors(one / path, other / path) for path in files)


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def score_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table if column.startswith("score_")]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_trains_and_its_run_is_complete(name: str, trained: Callable[[str], Path]) -> None:
    system, run = SYSTEMS[name], trained(name)
    there = {path.name for path in run.iterdir()}
    assert there >= {"config.yaml", "scores.csv", "validation_scores.csv", "metrics.json", "report.html", "finished"}
    config, member = load_config(run / "config.yaml"), RunFolder(run).member("split")
    assert config.network.name == system.network
    assert tuple(path.name for path in sorted(member.path.glob("stages/*"))) == system.stages
    trainings = RunFolder(run).trainings_of(member)
    assert [training.path.name for training in trainings] == [*system.stages, "split"]
    assert all(training.finished and len(training.history()) for training in trainings)
    metrics, report = json.loads((run / "metrics.json").read_text()), (run / "report.html").read_text(encoding="utf-8")
    told = metrics["members"]["split"]
    assert metrics["test"]["auc"]["value"] is not None
    assert metrics["time"]["compute_seconds"] == pytest.approx(
        sum(training.history()["compute"].sum() for training in trainings), abs=1e-3
    )
    stages = [stage.name for stage in config.stages]
    if stages:
        assert list(told["stages"]) == stages
        assert sum(stage["epochs"] for stage in told["stages"].values()) == system.epochs
        assert all(f"Stage {number} of {len(stages)}, {name}" in report for number, name in enumerate(stages, 1))
    else:
        assert told["epochs"] == system.epochs
        assert "stages" not in told
    if system.keys.get("network.options.fusion") == "svm":
        assert member.card()["svm"] in ("train", "validation")
        assert load_file(member.weights)["svm.fitted"].item()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONGER else n for n in SYSTEMS])
def test_a_training_killed_in_the_middle_goes_on_bit_for_bit(
    name: str, trained: Callable[[str], Path], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = trained(name), tmp_path / "killed"
    with monkeypatch.context() as patch:
        steps_before_death(patch, SYSTEMS[name].killed_at)
        with pytest.raises(Killed):
            place.train(name, killed)
    member = RunFolder(killed).member("split")
    assert not member.finished
    begun = [one for one in RunFolder(killed).trainings_of(member) if one.checkpoint.is_file()][-1]
    assert len(begun.history()), "killed before the first epoch of its stage was kept"
    assert main(["train", "--resume", str(killed)]) == 0
    assert same_files(whole, killed, "*.safetensors")
    assert (whole / "scores.csv").read_bytes() == (killed / "scores.csv").read_bytes()


@pytest.mark.parametrize("name", SYSTEMS)
def test_evaluate_and_predict_give_the_scores_of_the_training(
    name: str,
    trained: Callable[[str], Path],
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = trained(name)
    own = pd.read_csv(run / "scores.csv").set_index("study")
    assert main(["evaluate", str(run)]) == 0
    assert "AUC" in capsys.readouterr().out
    # Nothing of what was stored is there: every study is decoded, and its flow computed, anew.
    monkeypatch.setenv("VOLREC_CACHE", str(tmp_path / "none"))
    assert main(["predict", str(run), str(place.data), "--out", str(tmp_path / "scores.csv")]) == 0
    again = pd.read_csv(tmp_path / "scores.csv").set_index("study")
    assert len(again) == 14
    columns = score_columns(own)
    assert columns == score_columns(again)
    np.testing.assert_allclose(again.loc[own.index, columns], own[columns], atol=1e-5)
    assert own[columns].nunique().min() > 1, "the scores of all studies are the same"


def test_two_runs_are_fused_and_score_new_studies(
    trained: Callable[[str], Path], place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [trained(name) for name in ("two-stream", "hidden-two-stream")]
    both = tmp_path / "both"
    assert main(["fuse", *map(str, runs), "--out", str(both), "--weights", "1", "2"]) == 0
    parts = [pd.read_csv(run / "scores.csv").set_index("study") for run in runs]
    own = pd.read_csv(both / "scores.csv").set_index("study")
    columns = score_columns(own)
    mean = (parts[0][columns] + 2 * parts[1].loc[parts[0].index, columns]) / 3
    np.testing.assert_allclose(own.loc[mean.index, columns], mean, atol=1e-6)
    capsys.readouterr()
    assert main(["predict", str(both), str(place.data), "--out", str(tmp_path / "new.csv")]) == 0
    again = pd.read_csv(tmp_path / "new.csv").set_index("study")
    np.testing.assert_allclose(again.loc[own.index, columns], own[columns], atol=1e-5)
    assert main(["evaluate", str(both)]) == 0


def write_flow_pictures(folder: Path, studies: list[str]) -> None:
    """Write for each study pictures of as many fields as a stack of `SLICES` slices has."""
    rng = np.random.default_rng(0)
    for study in studies:
        (folder / study).mkdir(parents=True)
        for number in range(1, SLICES):
            for axis in "xy":
                field = rng.integers(96, 160, (SIDE, SIDE)).astype(np.uint8)
                Image.fromarray(field).save(folder / study / f"flow_{axis}_{number:05d}.png")


def test_a_study_without_its_flow_pictures_is_set_aside_and_the_rest_goes_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(place.data / "labels.csv")
    studies = table["study"].tolist()
    write_flow_pictures(tmp_path / "flow", studies)
    lost, short = studies[0], studies[1]
    shutil.rmtree(tmp_path / "flow" / lost)
    (tmp_path / "flow" / short / f"flow_x_{SLICES - 1:05d}.png").unlink()
    # A folder given from where the command is called is found again from elsewhere.
    monkeypatch.chdir(tmp_path)
    keys = {"preprocess.canvas": [SLICES, SIDE, SIDE], "streams.flow.method": "folder", "streams.flow.folder": "flow"}
    assert place.train("two-stream", tmp_path / "run", **keys) == 3
    told = capsys.readouterr().err
    assert lost in told and short in told
    run = RunFolder(tmp_path / "run")
    assert {problem.study for problem in run.quarantine() if problem.fatal} == {lost, short}
    assert run.finished
    monkeypatch.chdir(place.root)
    assert main(["predict", str(run.path), str(place.data), "--out", str(tmp_path / "scores.csv")]) == 3
    again = pd.read_csv(tmp_path / "scores.csv").set_index("study")
    assert set(again.index) == set(studies) - {lost, short}
    own = run.scores().set_index("study")
    np.testing.assert_allclose(again.loc[own.index, score_columns(own)], own[score_columns(own)], atol=1e-5)
    # Without any pictures it is said once, not of every study.
    (tmp_path / "flow").rename(tmp_path / "gone")
    capsys.readouterr()
    assert main(["predict", str(run.path), str(place.data), "--out", str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.count("there is no folder of flow pictures") == 1


@pytest.mark.parametrize(
    ("network", "key", "told"),
    [
        ("two-stream", "streams.inputs=[intensity, flw]", "did you mean 'flow'"),
        ("two-stream", "streams.flw.stack=2", "did you mean 'flow'"),
        ("two-stream", "streams.flow.methd=demons", "did you mean 'method'"),
        ("two-stream", "streams.flow.method=farnback", "did you mean 'farneback'"),
        ("hidden-two-stream", "stages.moton.epochs=2", "did you mean 'motion'"),
        ("hidden-two-stream", "stages.motion.epoch=2", "did you mean 'epochs'"),
        ("hidden-two-stream", "stages.motion=2", "stages.motion.KEY=VALUE"),
        ("hidden-two-stream", "stages=[{name: motion, objectve: motion}, {name: all}]", "did you mean 'objective'"),
        ("hidden-two-stream", "stages=[{name: motion, objective: moton}, {name: all}]", "did you mean 'motion'"),
        ("hidden-two-stream", "stages=[{name: a, freeze: [motoin.*]}, {name: b}]", "stages.a.freeze"),
        ("c3d", "stages.motion.epochs=2", "there is no 'motion' in stages"),
        ("tsn", "network.options.network=c3", "Did you mean 'c3d'"),
        ("tsn", "network.options.consensus=attenton", "Did you mean 'attention'"),
    ],
)
def test_a_typo_is_told_with_the_nearest_name_before_anything_is_scanned(
    network: str, key: str, told: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", str(tmp_path / "nowhere"), "--labels", str(place.data / "labels.csv"), "--out", str(tmp_path / "r")]
    assert main([*run, "--network", network, "--set", key]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "r").exists()


def test_options_of_a_network_within_are_set_one_by_one(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    within = ["--network", "tsn", "--set", "network.options.network=c3d"]
    made = place.plan(*within, **{"network.options.network_options.dropout": 0.1})
    assert made["network"]["options"]["network_options"]["dropout"] == 0.1
    out = ["--out", str(place.root / "no.yaml")]
    begin = ["plan", str(place.data), "--labels", str(place.data / "labels.csv"), *out, *within]
    assert main([*begin, "--set", "network.options.network_options.droput=0.1"]) == 2
    assert "'dropout'" in capsys.readouterr().err


def test_without_opencv_the_plan_registers_and_other_methods_name_the_extra(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert place.plan("--network", "two-stream")["streams"]["flow"]["method"] == "demons"
    assert "is not installed (extra flow)" in (place.root / "plan.yaml").read_text(encoding="utf-8")
    assert place.train("two-stream", tmp_path / "run") == 2
    assert "pip install 'volrec[flow]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_prediction_without_opencv_says_so_once(
    trained: Callable[[str], Path],
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = trained("two-stream")
    monkeypatch.setitem(sys.modules, "cv2", None)
    capsys.readouterr()
    assert main(["predict", str(run), str(place.data), "--out", str(tmp_path / "scores.csv")]) == 2
    assert capsys.readouterr().err.count("volrec[flow]") == 1


def test_a_plan_tells_streams_and_stages_with_their_reasons(place: Place) -> None:
    made = place.plan("--network", "two-stream")
    text = (place.root / "plan.yaml").read_text(encoding="utf-8")
    assert made["streams"]["inputs"] == ["intensity", "flow"]
    assert "inputs: [intensity, flow]  # what two-stream reads" in text
    assert "method: tvl1  # the papers' estimator" in text
    assert "  flow:  # 2 fields a slice: an eighth of the stack, up to the 10 of the paper" in text
    made = place.plan("--network", "hidden-two-stream")
    text = (place.root / "plan.yaml").read_text(encoding="utf-8")
    assert [stage["name"] for stage in made["stages"]] == ["motion", "temporal", "joint"]
    (line,) = (line for line in text.splitlines() if line.startswith("  - {name: motion"))
    assert "without labels" in line.partition("  # ")[2]


def test_a_plan_of_one_network_hands_nothing_of_its_own_to_another(place: Place) -> None:
    def turned(first: str, second: str, *more: str) -> dict[str, Any]:
        place.plan("--network", first)
        written = place.root / f"{first}.yaml"
        (place.root / "plan.yaml").rename(written)
        return place.plan("--config", str(written), "--network", second, *more)

    made = turned("hidden-two-stream", "two-stream-fusion")
    assert made["streams"]["inputs"] == ["intensity", "flow"]
    assert [stage["name"] for stage in made["stages"]] == ["streams", "fusion"]
    assert made["sampling"]["train"] == "center"  # what was written for contiguous clips serves this one as well
    made = turned("c3d", "i3d", "--set", "trainer.epochs=3")
    assert made["network"]["options"] == place.plan("--network", "i3d")["network"]["options"] != {}
    made = turned("two-stream-fusion", "c3d")
    assert made["streams"]["inputs"] == ["intensity"]
    assert made["stages"] == []
    assert made["sampling"]["train"] == "center"
    made = turned("tsn", "tsn", "--set", "streams.inputs=[difference]")
    assert made["sampling"]["train"] == "segments"
    assert made["streams"]["inputs"] == ["difference"]


def test_stages_of_a_written_plan_follow_the_length_and_rate_that_are_asked_for(place: Place) -> None:
    def facts(made: dict[str, Any]) -> list[tuple[int, float]]:
        return [(stage["epochs"], stage["lr"]) for stage in made["stages"]]

    planned = place.plan("--network", "hidden-two-stream", **{"trainer.epochs": 100})
    assert facts(planned) == [(30, 1e-3), (40, 1e-3), (30, 1e-4)]
    written = place.root / "hidden.yaml"
    (place.root / "plan.yaml").rename(written)
    made = place.plan("--config", str(written), **{"trainer.epochs": 10, "optim.lr": 2e-3})
    assert facts(made) == [(3, 2e-3), (4, 2e-3), (3, 2e-4)]
    made = place.plan("--config", str(written), **{"trainer.epochs": 10, "stages.joint.epochs": 7})
    assert facts(made) == [(3, 1e-3), (4, 1e-3), (7, 1e-4)]
    assert facts(place.plan("--config", str(written))) == facts(planned)


def test_folds_have_stages_each_and_the_report_tells_them(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert place.train("hidden-two-stream", run, **{"split.folds": 2, "stages.temporal.epochs": 1}) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    for fold in ("fold-0", "fold-1"):
        lengths = {name: stage["epochs"] for name, stage in metrics["members"][fold]["stages"].items()}
        assert lengths == {"motion": 2, "temporal": 1, "joint": 1}
    assert len(pd.read_csv(run / "scores.csv")) == 14
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "2 + 1 + 1" in report
    assert report.count("Stage 1 of 3, motion. Loss of each epoch.") == 1


def test_a_training_goes_on_from_a_run_and_reads_the_same_streams(trained: Callable[[str], Path], place: Place) -> None:
    own = load_config(trained("two-stream") / "config.yaml")
    made = place.plan("--init", str(trained("two-stream")))
    assert made["network"]["name"] == "two-stream"
    assert made["streams"] == own.to_dict()["streams"]
    made = place.plan("--init", str(trained("actionvlad")))
    assert [stage["name"] for stage in made["stages"]] == ["classifier", "fine"]
    made = place.plan("--init", str(trained("actionvlad-c3d")))
    assert made["stages"] == []


def test_every_key_of_streams_and_stages_is_told_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    from volrec.report.terminal import schema_rows

    rows = {key: meaning for key, _, _, meaning in schema_rows()}
    keys = {"streams.inputs", "streams.flow.method", "streams.flow.stack", "streams.difference_stack"}
    keys |= {f"stages.NAME.{key}" for key in ("objective", "freeze", "lr", "epochs", "motion_weight")}
    assert keys <= set(rows)
    assert all(rows[key] for key in rows if key.startswith(("streams.", "stages")))
    assert main(["plan", "--keys"]) == 0
    assert "StageConfig" not in capsys.readouterr().out


def test_models_tells_options_that_hold_those_of_a_network_within(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tsn", "actionvlad"):
        assert main(["models", name]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "network_options" in told
        assert "a dict" in told
    assert "network_options" in volrec.networks.describe("tsn")["options"]
