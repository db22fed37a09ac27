"""Whole runs of `volrec benchmark`: numbers with all that they depend on, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.runs import CLASSES, TINY, render, report, result, run

from volrec import networks
from volrec.benchmarks import ScoreSet
from volrec.benchmarks.leaks import SplitCheck
from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.publications import load_published
from volrec.benchmarks.report import markdown, result_of
from volrec.benchmarks.results import BenchmarkResult, Decoder, Deviation, SplitResult
from volrec.benchmarks.sets import Video
from volrec.benchmarks.settings import settle_protocol
from volrec.benchmarks.summary import build_report, results_of
from volrec.benchmarks.tables import published_tables
from volrec.benchmarks.testing import StreamScorer
from volrec.benchmarks.training import StreamModule
from volrec.cli import main
from volrec.config import BenchmarkConfig
from volrec.io.video import open_video
from volrec.weights import OWN_KEYS, load_network, load_weights, save_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("motion") / "set")


@pytest.fixture(scope="module")
def c3d(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stream, two epochs, on split 1."""
    out = tmp_path_factory.mktemp("c3d") / "run"
    assert run(root, "c3d-finetuned", out, epochs=2) == 0
    return out


@pytest.fixture(scope="module")
def tsn(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two streams, flow estimated on the way."""
    out = tmp_path_factory.mktemp("tsn") / "run"
    assert run(root, "tsn-eccv16", out) == 0
    return out


def weights(out: Path, split: str = "1") -> Path:
    return out / f"split-{split}-rgb" / "weights.safetensors"


def same_scores(one: Path, other: Path) -> bool:
    first, second = ScoreSet.read(one), ScoreSet.read(other)
    return first.videos == second.videos and all(
        np.array_equal(getattr(first, name), getattr(second, name), equal_nan=True)
        for name in ("logits", "probabilities", "clips", "clip_hits")
    )


def condition(text: str, what: str) -> str:
    """Return the value of a row of the conditions in report.md."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {what} |")]
    assert len(rows) == 1, rows
    return rows[0][1]


def test_a_run_leaves_numbers_that_its_scores_give(c3d: Path, root: Path) -> None:
    there = {path.relative_to(c3d).as_posix() for path in c3d.rglob("*") if path.is_file()}
    assert {
        "benchmark.json",
        "report.md",
        "config.yaml",
        "paper.yaml",
        "quarantine.csv",
        "split-1.safetensors",
    } <= there
    assert {f"split-1-rgb/{name}" for name in ("weights.safetensors", "card.json", "scores.safetensors")} <= there
    assert not [name for name in there if name.endswith((".partial", ".tmp"))]
    scores, found = ScoreSet.read(c3d / "split-1.safetensors"), result(c3d)
    right = [int(row.argmax()) in labels for row, labels in zip(scores.scores, scores.labels, strict=True)]
    split = found["splits"][0]
    assert (split["id"], split["evaluated"], split["listed"]) == ("motion/1", 3, 3)
    assert found["metrics"]["video-top1"] == pytest.approx(100 * np.mean(right))
    assert "video-top5" not in found["metrics"]  # of three classes it is always 100
    card = json.loads((c3d / "split-1-rgb" / "card.json").read_text())
    assert (
        found["weights"][0]["sha256"] == card["tensors"]["sha256"] and found["weights"][0]["origin"] == "trained here"
    )
    assert card["split_id"] == "motion/1" and card["classes"] == list(CLASSES)


def test_the_report_says_what_was_looked_at(c3d: Path, root: Path) -> None:
    text = report(c3d)
    names = [line.strip() for line in (root / "ucfTrainTestlist" / "testlist01.txt").read_text().splitlines()]
    frames = 0
    for name in names:
        with open_video(root / "videos" / name) as video:
            frames += video.info.frames
    assert condition(text, "frames of these videos") == str(frames)
    assert condition(text, "frames a second") == "25"
    assert condition(text, "missing videos") == condition(text, "quarantined videos") == "0"
    assert condition(text, "flow") == "none"
    assert "not recorded" not in text
    assert text.count("leaves open") == 1
    # What follows from the size of the try stands in one row, with the paper's values.
    (row,) = [line for line in text.splitlines() if line.startswith("| width 0.0625, scale 0.1 |")]
    assert "frames.crop 112" in row and "network.width 0.0625" in row
    assert "streams.rgb.network.width" not in text
    deviating = {one["field"] for one in result(c3d)["deviations"]}
    assert {"streams.rgb.network.width", "streams.rgb.frames.crop", "streams.rgb.training.init"} <= deviating


def test_given_weights_on_their_split_give_the_scores_of_the_training(c3d: Path, root: Path, tmp_path: Path) -> None:
    assert run(root, "c3d-finetuned", tmp_path / "run", "--weights", weights(c3d)) == 0
    assert same_scores(tmp_path / "run/split-1.safetensors", c3d / "split-1.safetensors")
    assert result(tmp_path / "run")["weights"][0]["origin"] == "given"
    assert "given: weights.safetensors" in report(tmp_path / "run")
    assert not weights(tmp_path / "run").exists()


def test_weights_of_another_split_are_a_leak(
    c3d: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--split", "2", "--weights", f"rgb={weights(c3d)}"]
    assert run(root, "c3d-finetuned", tmp_path / "refused", *given) == 2
    said = capsys.readouterr().err
    assert "trained on motion/1 and would be tested on motion/2" in said and "--allow-leak" in said
    assert run(root, "c3d-finetuned", tmp_path / "run", *given, "--allow-leak") == 0
    assert "LEAK" in capsys.readouterr().out
    (row,) = [
        line for line in report(tmp_path / "run").splitlines() if "| video top-1 |" in line and "motion/2" in line
    ]
    assert "LEAK" in row
    (marked,) = [one for one in result(tmp_path / "run")["deviations"] if str(one["here"]).startswith("LEAK")]
    assert "trained on motion/1, tested on motion/2" in marked["here"]
    assert BenchmarkResult.model_validate(result(tmp_path / "run")).leaks


def test_a_weights_file_that_does_not_fit_is_refused_before_anything_is_done(
    c3d: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((c3d / "split-1-rgb" / "card.json").read_text())
    arguments = dict(card["architecture"])
    card = {key: value for key, value in card.items() if key not in ("architecture", "tensors", "versions")}
    name, options = arguments.pop("name"), arguments.pop("options", {})
    wrong: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "tell 4 classes apart": ({"num_classes": 4}, {"classes": [*CLASSES, "Swing"]}),
        "read 1 channels": ({"in_channels": 1}, {}),
        "classes are others": ({}, {"classes": [*CLASSES[:2], "Swing"]}),
    }
    for number, (said, (other, about)) in enumerate(wrong.items()):
        network = networks.create(name, **{**arguments, **other}, **options)
        file = tmp_path / f"{number}.safetensors"
        save_weights(file, network, {**card, **about})
        assert run(root, "c3d-finetuned", tmp_path / f"run-{number}", "--weights", file) == 2
        assert said in capsys.readouterr().err
        assert not list((tmp_path / f"run-{number}").glob("split-*"))
    assert run(root, "tsn-eccv16", tmp_path / "run", "--weights", f"rgb={weights(c3d)}") == 2
    assert "they are of c3d, the protocol has" in capsys.readouterr().err
    assert not (tmp_path / "run" / "extracted").exists()
    assert run(root, "c3d-finetuned", tmp_path / "none", "--weights", tmp_path / "none.safetensors") == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_classes_of_weights_in_another_order_give_the_same_metrics(c3d: Path, root: Path, tmp_path: Path) -> None:
    network, card = load_network(weights(c3d))
    state, _ = load_weights(weights(c3d))
    order = [2, 0, 1]
    last = [key for key, value in state.items() if value.shape[:1] == (3,)]
    assert last
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key in last:
                value.copy_(state[key][order])
    kept = {key: value for key, value in card.items() if key not in ("architecture", "tensors", "versions")}
    file = tmp_path / "permuted.safetensors"
    save_weights(file, network, {**kept, "classes": [CLASSES[place] for place in order]})
    assert run(root, "c3d-finetuned", tmp_path / "run", "--weights", file) == 0
    assert result(tmp_path / "run")["metrics"] == result(c3d)["metrics"]
    ours, theirs = (ScoreSet.read(out / "split-1.safetensors") for out in (c3d, tmp_path / "run"))
    assert theirs.classes == tuple(CLASSES[place] for place in order)
    np.testing.assert_allclose(theirs.logits, ours.logits[:, order], rtol=1e-5, atol=1e-6)
    named = [[[each.classes[place] for place in own] for own in each.labels] for each in (ours, theirs)]
    assert named[0] == named[1]


def stops_at(call: int, inner: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """Return a function that is interrupted at its so-and-so-many-th call."""

    def outer(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return inner(*args, **kwargs)

    return outer


def test_weights_of_others_are_shown_what_they_were_trained_on(c3d: Path, root: Path, tmp_path: Path) -> None:
    network, card = load_network(c3d / "split-1-rgb" / "weights.safetensors")
    own = {key: value for key, value in card.items() if key not in OWN_KEYS}
    read = {"channels": "RGB", "range": [0.0, 1.0], "mean": [0.4, 0.5, 0.6], "std": [0.25], "size": [16, 112, 112]}
    save_weights(tmp_path / "port.safetensors", network, {**own, "input": read})
    weights = ("--weights", f"rgb={tmp_path / 'port.safetensors'}")
    assert run(root, "c3d-finetuned", tmp_path / "as-trained", *weights) == 0
    # The same, asked for by hand, of weights that say nothing.
    plain = ("--weights", f"rgb={c3d / 'split-1-rgb' / 'weights.safetensors'}")
    asked = [
        f"streams.rgb.frames.{key}={value}"
        for key, value in (("order", "rgb"), ("mean", [102, 127.5, 153]), ("scale", [4 / 255]))
    ]
    more = [part for one in asked for part in ("--set", one)]
    assert run(root, "c3d-finetuned", tmp_path / "by-hand", *plain, *more) == 0
    first, second = (ScoreSet.read(tmp_path / name / "split-1.safetensors") for name in ("as-trained", "by-hand"))
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-4, atol=1e-5)
    named = {one["field"] for one in result(tmp_path / "as-trained")["deviations"]}
    assert {f"streams.rgb.frames.{key}" for key in ("order", "mean", "scale")} <= named


def test_a_training_that_was_stopped_goes_on_to_the_same_scores(
    c3d: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        # Three steps an epoch: stopped in the second one.
        patched.setattr(StreamModule, "training_step", stops_at(5, StreamModule.training_step, []))
        assert run(root, "c3d-finetuned", out, epochs=2) == 130
    assert f"volrec benchmark --resume {out}\n" in capsys.readouterr().err
    assert not (out / "benchmark.json").exists()
    steps: list[Any] = []
    monkeypatch.setattr(StreamModule, "training_step", stops_at(0, StreamModule.training_step, steps))
    assert main(["benchmark", "--resume", str(out)]) == 0
    assert len(steps) == 3
    assert same_scores(out / "split-1.safetensors", c3d / "split-1.safetensors")
    assert result(out)["deviations"] == result(c3d)["deviations"]


def test_a_test_that_was_stopped_goes_on_with_the_videos_that_are_left(
    tsn: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        # Three videos of rgb, one of flow, and stopped in the next.
        patched.setattr(StreamScorer, "score", stops_at(5, StreamScorer.score, []))
        assert run(root, "tsn-eccv16", out, "--extracted", tsn / "extracted") == 130
    assert f"go on with: volrec benchmark --resume {out}" in capsys.readouterr().err
    scored: list[Any] = []
    monkeypatch.setattr(StreamScorer, "score", stops_at(0, StreamScorer.score, scored))
    assert main(["benchmark", "--resume", str(out)]) == 0
    assert len(scored) == 2
    for name in ("split-1.safetensors", "split-1-rgb/scores.safetensors", "split-1-flow/scores.safetensors"):
        assert same_scores(out / name, tsn / name)
    assert condition(report(out), "frames of these videos") == condition(report(tsn), "frames of these videos")
    # A finished run is only shown again.
    assert main(["benchmark", "--resume", str(out)]) == 0
    assert len(scored) == 2


def test_a_run_that_is_told_to_end_says_how_to_go_on(
    c3d: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    out, score = tmp_path / "run", StreamScorer.score

    def told(scorer: StreamScorer, footage: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return score(scorer, footage)

    with monkeypatch.context() as patched:
        patched.setattr(StreamScorer, "score", told)
        more = ["--split", "2", "--weights", weights(c3d), "--allow-leak"]
        assert run(root, "c3d-finetuned", out, *more) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    # The leak was allowed for once: it has to be said again.
    assert f"go on with: volrec benchmark --resume {out} --allow-leak\n" in capsys.readouterr().err
    assert main(["benchmark", "--resume", str(out)]) == 2
    assert "--allow-leak" in capsys.readouterr().err
    assert main(["benchmark", "--resume", str(out), "--allow-leak"]) == 0


def test_an_extraction_that_was_stopped_goes_on(
    tsn: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from volrec.benchmarks import extraction

    out, made = tmp_path / "run", "_make"
    with monkeypatch.context() as patched:
        patched.setattr(extraction, made, stops_at(5, getattr(extraction, made), []))
        assert run(root, "tsn-eccv16", out) == 130
    assert f"go on with: volrec benchmark --resume {out}" in capsys.readouterr().err
    assert len(list((out / "extracted").glob("*/*/extraction.json"))) == 4
    again: list[Any] = []
    monkeypatch.setattr(extraction, made, stops_at(0, getattr(extraction, made), again))
    assert main(["benchmark", "--resume", str(out)]) == 0
    assert len(again) == 8
    assert same_scores(out / "split-1.safetensors", tsn / "split-1.safetensors")


def test_what_was_only_trained_is_tested_later(
    c3d: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(root, "c3d-finetuned", out, "--only", "train", epochs=2) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"volrec benchmark --resume {out} --only test" in said and not (out / "benchmark.json").exists()
    assert main(["benchmark", "--resume", str(out), "--only", "test"]) == 0
    assert same_scores(out / "split-1.safetensors", c3d / "split-1.safetensors")
    # Or in a folder of its own, with the weights of the first.
    pattern = out / "split-{split}-rgb" / "weights.safetensors"
    assert run(root, "c3d-finetuned", tmp_path / "test", "--only", "test", "--weights", pattern) == 0
    assert same_scores(tmp_path / "test/split-1.safetensors", c3d / "split-1.safetensors")
    assert run(root, "c3d-finetuned", tmp_path / "none", "--only", "test") == 2
    assert "has no weights for motion/1" in capsys.readouterr().err


def test_three_splits_have_their_mean(root: Path, tmp_path: Path) -> None:
    assert run(root, "c3d-finetuned", tmp_path / "run", "--split", "1,2,3") == 0
    found = result(tmp_path / "run")
    assert [split["id"] for split in found["splits"]] == ["motion/1", "motion/2", "motion/3"]
    values = [split["metrics"]["video-top1"] for split in found["splits"]]
    own = []
    for split in "123":
        scores = ScoreSet.read(tmp_path / f"run/split-{split}.safetensors")
        own.append(
            100 * np.mean([row.argmax() in labels for row, labels in zip(scores.scores, scores.labels, strict=True)])
        )
    np.testing.assert_allclose(values, own)
    assert found["metrics"]["video-top1"] == pytest.approx(np.mean(own))
    assert f"| rgb | video top-1 | {np.mean(own):.2f} | 1: {own[0]:.2f}, 2: {own[1]:.2f}, 3: {own[2]:.2f}" in report(
        tmp_path / "run"
    )


@pytest.mark.parametrize("protocol", ["c3d-finetuned", "tsn-eccv16"])
def test_videos_that_are_broken_or_missing_are_counted(
    protocol: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "set"
    shutil.copytree(root, own)
    tested, learned = (
        [
            own / "videos" / line.split()[0]
            for line in (own / "ucfTrainTestlist" / f"{side}list01.txt").read_text().splitlines()
        ]
        for side in ("test", "train")
    )
    tested[0].write_bytes(tested[0].read_bytes()[:200])
    tested[1].unlink()
    learned[0].write_bytes(b"no video")
    learned[1].unlink()
    assert run(own, protocol, tmp_path / "run") == 3
    shown = capsys.readouterr()
    text = report(tmp_path / "run")
    assert condition(text, "videos evaluated") == "1 of 3 listed"
    assert condition(text, "missing videos") == "1" and condition(text, "quarantined videos") == "1"
    split = result(tmp_path / "run")["splits"][0]
    assert (split["evaluated"], split["listed"]) == (1, 3)
    assert "| 1 of 3 videos |" in text and "| test videos | 3 | 1 |" in text
    assert "| training videos | 9 | 7 |" in text
    # Each video once, though flow, training and test all wanted it; and one line for those that are missing.
    assert (
        "3 quarantined" in shown.err
        and "1 of 9 training and 1 of 3 test videos that are listed are not here" in shown.err
    )
    listed = (tmp_path / "run" / "quarantine.csv").read_text()
    assert listed.count(f"{tested[0].parent.name}/{tested[0].stem},True") == 1
    # Gone on with, all of it is still said.
    assert main(["benchmark", "--resume", str(tmp_path / "run")]) == 3
    assert "3 quarantined" in capsys.readouterr().err
    assert condition(report(tmp_path / "run"), "quarantined videos") == "1"


def test_flow_is_estimated_of_videos_that_are_looked_at(tsn: Path, root: Path, tmp_path: Path) -> None:
    given = [f"{stream}={tsn}/split-1-{stream}/weights.safetensors" for stream in ("rgb", "flow")]
    assert run(root, "tsn-eccv16", tmp_path / "given", "--weights", given[0], "--weights", given[1]) == 0
    assert len(list((tmp_path / "given").glob("extracted/*/*/extraction.json"))) == 3
    assert same_scores(tmp_path / "given/split-1.safetensors", tsn / "split-1.safetensors")
    # The stream of frames learns, that of flow is given.
    assert run(root, "tsn-eccv16", tmp_path / "part", "--weights", given[1]) == 0
    assert len(list((tmp_path / "part").glob("extracted/*/*/extraction.json"))) == 3
    assert len(list(tsn.glob("extracted/*/*/extraction.json"))) == 12


def test_a_video_that_one_stream_cannot_read_costs_the_fusion_that_video(
    tsn: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tsn / "extracted", tmp_path / "extracted")
    for picture in (tmp_path / "extracted").glob("DriftLeft/v_DriftLeft_g01_c01/flow_x_*.jpg"):
        picture.write_bytes(b"")
    given = [f"{stream}={tsn}/split-1-{stream}/weights.safetensors" for stream in ("rgb", "flow")]
    out = tmp_path / "run"
    more = ["--weights", given[0], "--weights", given[1], "--extracted", tmp_path / "extracted"]
    assert run(root, "tsn-eccv16", out, *more) == 3
    counts = [
        len(ScoreSet.read(out / name).videos) for name in ("split-1-rgb/scores.safetensors", "split-1.safetensors")
    ]
    assert counts == [3, 2]
    text = report(out)
    assert (
        "| quarantined videos | 0 | rgb (1) |" in text and "| quarantined videos | 1 | flow (1); rgb+flow (1) |" in text
    )


def test_flow_pictures_of_another_estimator_are_told(tsn: Path, root: Path, tmp_path: Path) -> None:
    given = [f"{stream}={tsn}/split-1-{stream}/weights.safetensors" for stream in ("rgb", "flow")]
    more = ["--weights", given[0], "--weights", given[1], "--extracted", tsn / "extracted"]
    more += ["--set", "streams.flow.motion.estimator=dis"]
    assert run(root, "tsn-eccv16", tmp_path / "run", *more) == 0
    found = [one for one in result(tmp_path / "run")["deviations"] if one["field"] == "streams.flow.motion.estimator"]
    assert found == [{"field": "streams.flow.motion.estimator", "paper": "tvl1", "here": "farneback (3 videos)"}]
    assert "| flow: motion.estimator | tvl1 | farneback (3 videos) |" in report(tmp_path / "run")
    assert "- Extracted pictures of 3 videos: 0 left by other tools." in report(tmp_path / "run")


@pytest.mark.parametrize("protocol", ["c3d-svm", "two-stream-svm", "idt-fv"])
def test_support_vector_machines_end_a_run(protocol: str, root: Path, tsn: Path, tmp_path: Path) -> None:
    more: list[str | Path] = ["--extracted", tsn / "extracted"] if protocol == "two-stream-svm" else []
    if protocol == "idt-fv":
        more += ["--set", "trajectories.words=2", "--set", "trajectories.samples=500"]
    assert run(root, protocol, tmp_path / "run", *more) == 0
    scores, text = ScoreSet.read(tmp_path / "run/split-1.safetensors"), report(tmp_path / "run")
    assert scores.stage == "logits" and np.isnan(scores.probabilities).all() and len(scores.videos) == 3
    assert "not recorded" not in text
    if protocol == "two-stream-svm":
        assert "linear SVM on spatial, temporal, fitted on 9 training videos" in condition(text, "fusion")
    else:
        assert condition(text, "C of the SVM")


def test_a_fusion_is_marked_for_the_worst_of_its_streams() -> None:
    checks = {"rgb": SplitCheck("unknown", "not known"), "flow": SplitCheck("leak", "LEAK: seen")}
    made = [
        ScoreSet.from_arrays(["v", "w"], ["a", "b"], labels=[0, 1], logits=np.eye(2), facts={"stream": stream})
        for stream in ("rgb", "flow", "rgb+flow")
    ]
    videos: Any = SimpleNamespace(
        multilabel=False, split=SimpleNamespace(test=[Video(name, Path(name), (0,), name) for name in ("v", "w")])
    )
    nets: Any = [SimpleNamespace(stream=SimpleNamespace(name=name), check=check) for name, check in checks.items()]
    shown = results_of(videos, made[2], made[:2], nets)
    assert [one.check and one.check.state for one in shown] == ["unknown", "leak", "leak"]


def test_videos_of_several_classes_are_run(root: Path, tmp_path: Path) -> None:
    names = {"DriftLeft/v_DriftLeft": (1,), "DriftRight/v_DriftRight": (2,), "AmberDriftUp/v_AmberDriftUp": (0, 1)}
    lines: dict[str, list[str]] = {"train": [], "test": []}
    (tmp_path / "set").mkdir()
    for place, (name, labels) in enumerate(names.items()):
        for group in (1, 2, 3, 4):
            address = f"abcdefghi{place}{group}"
            shutil.copy(root / "videos" / f"{name}_g0{group}_c01.avi", tmp_path / "set" / f"{address}.avi")
            lines["test" if group == 1 else "train"].append(
                f"https://www.youtube.com/watch?v={address} {','.join(map(str, labels))}"
            )
    (tmp_path / "set" / "original").mkdir()
    (tmp_path / "set" / "labels.txt").write_text("\n".join(CLASSES))
    for side, text in lines.items():
        (tmp_path / "set" / "original" / f"{side}_partition.txt").write_text("\n".join(text))
    arguments = [
        "benchmark",
        "sports1m",
        "--root",
        tmp_path / "set",
        "--protocol",
        "c3d-sports1m",
        "--epochs",
        "1",
        *TINY,
    ]
    arguments += ["--out", tmp_path / "run", "--split", "own-test"]
    assert main([str(part) for part in arguments]) == 0
    scores, found = ScoreSet.read(tmp_path / "run/split-own-test.safetensors"), result(tmp_path / "run")
    right = [int(row.argmax()) in own for row, own in zip(scores.scores, scores.labels, strict=True)]
    assert max(map(len, scores.labels)) == 2
    assert found["metrics"]["video-hit1"] == pytest.approx(100 * np.mean(right))
    assert "video-top1" not in found["metrics"] and "| video hit@1 |" in report(tmp_path / "run")


def test_videos_by_lists_of_ones_own_and_the_usual_split_of_a_set(root: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    for side in ("train", "test"):
        names = (root / "ucfTrainTestlist" / f"{side}list01.txt").read_text().split()
        names = [name for name in names if name.endswith(".avi")]
        (tmp_path / "lists" / f"{side}.txt").write_text("\n".join(f"videos/{one} {one.split('/')[0]}" for one in names))
    # The protocol's own splits are 1, 2 and 3, and a list has none of these.
    arguments = ["benchmark", "list", "--root", root, "--lists", tmp_path / "lists", "--protocol", "c3d-finetuned"]
    assert main([str(part) for part in (*arguments, "--epochs", "1", *TINY, "--out", tmp_path / "run")]) == 0
    assert [split["id"] for split in result(tmp_path / "run")["splits"]] == ["list/own-1"]
    # This one's is val, and the rendered set has numbers.
    arguments = ["benchmark", "motion", "--root", root, "--protocol", "c3d-sports1m", "--epochs", "1", *TINY]
    assert main([str(part) for part in (*arguments, "--out", tmp_path / "other")]) == 0
    assert [split["id"] for split in result(tmp_path / "other")["splits"]] == ["motion/1"]


def test_published_values_stand_beside_their_like() -> None:
    paper = load_protocol("tsn-eccv16")
    config = BenchmarkConfig(
        dataset="ucf101", root="/videos", splits=["1", "2", "3"], paper=paper.name, protocol=settle_protocol(paper)
    )
    shown, splits = [], []
    for number in (1, 2, 3):
        for stream in ("rgb", "flow", "rgb+flow"):
            truth = np.arange(12) % 6
            scores = ScoreSet.from_arrays(
                [f"v{place}" for place in range(12)],
                [f"class {place}" for place in range(6)],
                labels=truth.tolist(),
                logits=np.eye(6)[truth if stream == "rgb+flow" else (truth + (np.arange(12) < number)) % 6],
                facts={"set": "ucf101", "split_id": f"ucf101/{number}", "stream": stream, "listed": 3783},
            )
            shown.append(result_of(scores, ["video-top1", "mean-class-accuracy"], resamples=0))
        values = {"video-top1": 100.0, "mean-class-accuracy": 100.0}
        splits.append(
            SplitResult(id=f"ucf101/{number}", digest="d", official=True, evaluated=12, listed=3783, metrics=values)
        )
    done = BenchmarkResult(
        dataset="ucf101",
        protocol=paper.name,
        splits=splits,
        date="2026-01-01",
        decoder=Decoder(name="pyav", version="18"),
        deviations=[
            Deviation(field=f"streams.{name}.training.init", paper="imagenet", here="scratch")
            for name in ("rgb", "flow")
        ],
    )
    text = markdown(build_report(config, paper, shown, done))
    own = paper.model_copy(update={"name": "mine"})
    assert "mine extends none of the papers' protocols" in markdown(build_report(config, own, shown, done))
    leaky = done.model_copy(update={"deviations": [Deviation(field="w.split", paper="ucf101/1", here="LEAK: trained")]})
    counted = {
        name: sum(len(row.reproductions) for table in published_tables([one], everything=True) for row in table.rows)
        for name, one in (("sound", done), ("leaky", leaky))
    }
    assert counted["sound"] > 0 == counted["leaky"]
    entries = [one for one in load_published() if one.protocol == paper.name and one.dataset == "ucf101"]
    assert entries
    for entry in entries:
        rows = [line for line in text.splitlines() if line.startswith(f"| {entry.value:g} |") and entry.paper in line]
        assert any(f"| {entry.split} |" in row for row in rows), entry
    headline = next(one for one in entries if one.kind == "headline" and one.split == "1,2,3" and one.stream is None)
    assert f"100.00 ({100 - headline.value:+.2f})" in text
    assert "| training.init | imagenet | scratch |" in text
    assert "TSN (2 modalities) on ucf101: protocol tsn-eccv16 (Wang et al., ECCV 2016)" in text
    assert "The paper's number" not in text  # it is this one
    one = dataclasses.replace(shown[0])
    alone = build_report(
        config.model_copy(update={"splits": ["1"]}), paper, [one], done.model_copy(update={"splits": splits[:1]})
    )
    assert "this run has split 1." in markdown(alone)
