"""What a benchmark says: no number without its name and its videos, and what differs from the paper beside it."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from volrec.benchmarks import ScoreSet
from volrec.benchmarks.fusion import fuse
from volrec.benchmarks.leaks import SplitCheck
from volrec.benchmarks.metrics import METRICS, mean_over_splits
from volrec.benchmarks.report import (
    CONDITIONS,
    BenchmarkReport,
    Published,
    Result,
    TextTable,
    markdown,
    print_report,
    report_tables,
    result_of,
    write_report,
)

SPLITS = ("ucf101/1", "ucf101/2", "ucf101/3")


def drawn(split: str = "ucf101/1", stream: str = "rgb", *, count: int = 60, **facts: Any) -> ScoreSet:
    rng = np.random.default_rng([SPLITS.index(split), len(stream)])
    truth = np.arange(count) % 3
    known = {
        "set": "ucf101",
        "split_id": split,
        "split_digest": "0123456789abcdef",
        "protocol": "tsn",
        "stream": stream,
        "weights": "ab" * 32,
        "decoder": "pyav 18.0.0",
        "listed": 3783,
        "crops": 10,
        "missing": 3700,
        "quarantined": 23,
        "fps": "as decoded",
        "frames": 123456,
        "resize": "340 x 256, then crop",
        "flow": {"method": "tvl1", "bound": 20} if stream == "flow" else "none",
        "seed": 7,
    }
    return ScoreSet.from_arrays(
        [f"v{place}" for place in range(count)],
        ["a|b", "c", "d"],
        labels=truth.tolist(),
        logits=rng.normal(size=(count, 3)) + np.eye(3)[truth],
        stage="logits",
        clips=np.full(count, 25),
        clip_hits=rng.binomial(25, 0.5, count),
        facts={**known, **facts},
    )


def full() -> BenchmarkReport:
    results: list[Result] = []
    for split in SPLITS:
        streams = [drawn(split), drawn(split, "flow")]
        metrics = ["clip-top1", "video-top1", "mean-class-accuracy"]
        results += [result_of(each, metrics, resamples=50) for each in streams]
        results.append(result_of(fuse(streams, [1, 1.5], "logits"), metrics[1:], resamples=50, details=True))
    own = [measure for result in results if result.stream == "rgb+flow" for measure in result.measures]
    means = [mean_over_splits([each for each in own if each.name == name], wanted=SPLITS) for name in metrics[1:]]
    return BenchmarkReport(
        "TSN on UCF101",
        tuple(results),
        {"rgb+flow": means},
        (
            Published(94.0, "1,2,3", "Wang et al. 2016, table 5", "mean-class-accuracy", "rgb+flow"),
            Published(85.5, "1", "a blog", "", "rgb"),
            Published(50.0, "1", "another", "video-top1", "rgb"),
        ),
        (("flow.estimator", "tvl1 on a GPU", "tvl1"),),
        ("Weights were trained for 10 of 3,500 updates.",),
        ("the batch: 128 is taken",),
    )


def table(report: BenchmarkReport, title: str) -> TextTable:
    return next(each for each in report_tables(report, classes=True) if each.title == title)


def conditions(report: BenchmarkReport) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for what, value, of in table(report, "Conditions").rows:
        found.setdefault(what, {})[of] = value
    return found


def test_no_number_goes_without_its_name_and_its_videos() -> None:
    report = full()
    rows = table(report, "Results").rows
    assert len(rows) == 3 * (3 + 3 + 2)
    for split, stream, metric, value, count in rows:
        assert split in SPLITS and stream in ("rgb", "flow", "rgb+flow") and metric in METRICS.values()
        assert count == ("1,500 clips of 60 of 3,783 videos" if "clip" in metric else "60 of 3,783 videos")
        low, high = (float(part) for part in value.partition("[")[2].rstrip("]").split(", "))
        assert low <= float(value.partition(" ")[0]) <= high


def test_the_mean_shows_its_splits() -> None:
    report = full()
    values = [
        float(row[3].partition(" ")[0])
        for row in table(report, "Results").rows
        if row[1:3] == ("rgb+flow", "video top-1")
    ]
    row = table(report, "Mean over splits, each of the same weight").rows[0]
    assert float(row[2]) == pytest.approx(np.mean(values), abs=0.006)
    assert row[3] == ", ".join(f"{number}: {value:.2f}" for number, value in enumerate(values, start=1))
    assert row[4] == "60 + 60 + 60 videos"


def test_every_condition_is_there_and_what_is_not_known_is_said() -> None:
    found = conditions(full())
    assert list(found) == [title for fact, title in CONDITIONS.items() if fact not in ("c", "unlabelled")]
    assert found["decoder"] == {"all": "pyav 18.0.0"} and found["videos evaluated"] == {"all": "60 of 3,783 listed"}
    assert found["missing videos"] == {"all": "3700"} and found["quarantined videos"] == {"all": "23"}
    assert found["clips × crops"] == {"all": "25 × 10"}
    assert found["flow"]["flow (1, 2, 3)"] == "tvl1, clipped to 20 pixels" and found["flow"]["rgb (1, 2, 3)"] == "none"
    assert found["fusion"] == {"all": "0.4 rgb + 0.6 flow at stage logits"}
    machine = conditions(BenchmarkReport("c", (result_of(drawn(c=0.01, unlabelled=4), ["video-top1"]),)))
    assert machine["C of the SVM"] == {"all": "0.01"} and machine["videos without a label"] == {"all": "4"}
    both = tuple(result_of(each, ["video-top1"]) for each in (drawn(), drawn(stream="trajectories", c=100.0)))
    assert conditions(BenchmarkReport("one", both))["C of the SVM"] == {"trajectories (1)": "100.0"}
    bare = ScoreSet.from_arrays(["v"], ["a", "b"], labels=[0], logits=[[1, 0]])
    found = conditions(BenchmarkReport("theirs", (result_of(bare, ["video-top1"]),)))
    assert found["decoder"] == found["seed"] == found["clips × crops"] == {"all": "not recorded"}
    assert "(listed: not recorded)" in markdown(BenchmarkReport("theirs", (result_of(bare, ["video-top1"]),)))


def test_a_published_value_is_compared_with_its_like_only() -> None:
    report = full()
    mean, unclear, one = table(report, "Published").rows
    here = 100 * report.means["rgb+flow"][1].value
    assert mean[4] == f"{here:.2f} ({here - 94:+.2f})" and mean[2] == "1,2,3"
    assert unclear[1] == "not said" and unclear[4] == "not measured here"
    assert one[4].endswith(")") and one[1] == "video top-1"
    two = dataclasses.replace(
        report, means={"rgb+flow": [mean_over_splits(report.means["rgb+flow"][1].splits[:2], wanted=SPLITS)]}
    )
    assert table(two, "Published").rows[0][4] == "not measured here"
    recalled = dataclasses.replace(report, published=(dataclasses.replace(report.published[0], verified=False),))
    assert table(recalled, "Published").rows[0][4] == "not compared: not verified"
    assert "without 3" in table(two, "Mean over splits, each of the same weight").rows[0][3]


def test_a_leak_is_marked_wherever_its_number_goes() -> None:
    report = full()
    seen = SplitCheck("leak", "LEAK: trained on ucf101/1, tested on ucf101/2")
    leaky = tuple(
        dataclasses.replace(result, check=seen)
        if (result.split_id, result.stream) in (("ucf101/2", "rgb+flow"), ("ucf101/1", "rgb"))
        else result
        for result in report.results
    )
    report = dataclasses.replace(report, results=leaky)
    marked = {row[:2] for row in table(report, "Results").rows if row[3].endswith("LEAK")}
    assert marked == {("ucf101/2", "rgb+flow"), ("ucf101/1", "rgb")}
    assert all(row[2].endswith("LEAK") for row in table(report, "Mean over splits, each of the same weight").rows)
    assert [row[4] for row in table(report, "Published").rows] == ["not measured here"] * 3
    assert "trained on ucf101/1, tested on ucf101/2" in markdown(report)


def test_the_terminal_and_the_file_show_the_same(tmp_path: Path) -> None:
    report = full()
    out = io.StringIO()
    print_report(report, Console(file=out, width=200))
    shown = out.getvalue()
    write_report(tmp_path / "report.md", report)
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    for each in report_tables(report):
        for row in each.rows:
            assert all(cell in shown for cell in row)
            assert "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" in written
    for text in ("TSN on UCF101", "10 of 3,500 updates", "bootstrap over 60 groups", "the batch: 128 is taken"):
        assert text in shown and text in written
    assert shown.count("leaves open") == written.count("leaves open") == 1
    assert "## Classes" in written and "Classes" not in shown
    lines = [line for line in written.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") - 1 for line in lines} == {3, 5, 6}


def test_what_a_number_hung_on_is_said() -> None:
    scores = ScoreSet.from_arrays(
        ["v1", "v2", "v3"],
        ["a", "b", "c"],
        labels=[0, 1, ()],
        logits=[[1, 1, 0], [0, 1, 0], [0, 0, 1]],
        facts={"split_id": "list/1", "stream": "rgb"},
    )
    result = result_of(scores, ["video-top1", "mean-class-accuracy"], groups=dict.fromkeys(scores.videos, "film"))
    text = markdown(BenchmarkReport("ties", (result,)))
    for said in (
        "list/1 rgb: 1 video without a label left out of video top-1.",
        "1 video of video top-1 hung on equal scores",
        "mean class accuracy is over classes with videos; without c.",
        "no interval of video top-1, there is a single group of videos.",
        "No difference from the paper's protocol was recorded.",
    ):
        assert said in text
