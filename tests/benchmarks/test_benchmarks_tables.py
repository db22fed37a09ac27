"""No table prints a number that no run gave, and a run's number stands in its row and in no other."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from pydantic import ValidationError
from rich.console import Console

from volrec.benchmarks.publications import find_published, load_published, load_survey
from volrec.benchmarks.rendering import markdown, print_tables, write_csv
from volrec.benchmarks.results import (
    BenchmarkResult,
    Decoder,
    Deviation,
    SplitResult,
    WeightsUsed,
    find_results,
    read_result,
    write_result,
)
from volrec.benchmarks.tables import NOT_RUN, published_tables, reproduction, unplaced
from volrec.errors import ConfigError, RunError

LISTED = {
    "ucf101/1": 3783,
    "ucf101/2": 3734,
    "ucf101/3": 3696,
    "hmdb51/1": 1530,
    "hmdb51/2": 1530,
    "hmdb51/3": 1530,
    "motion/1": 40,
}
TSN = {"mean-class-accuracy": 93.0, "video-top1": 93.2}


def a_result(dataset="ucf101", *, protocol="tsn-eccv16", splits=("1", "2", "3"), metrics=TSN, official=True, **fields):
    """A run with the same numbers on each split."""
    parts = [
        SplitResult(
            id=f"{dataset}/{part}",
            digest="0" * 16,
            official=official,
            evaluated=fields.get("evaluated") or LISTED[f"{dataset}/{part}"],
            listed=fields.get("listed") or LISTED[f"{dataset}/{part}"],
            metrics=metrics,
            streams=fields.get("of_streams", {}),
        )
        for part in splits
    ]
    others = {key: value for key, value in fields.items() if key not in ("evaluated", "listed", "of_streams")}
    return BenchmarkResult(
        dataset=dataset,
        protocol=protocol,
        splits=parts,
        date="2026-11-24",
        decoder=Decoder(name="pyav", version="18.0"),
        weights=[WeightsUsed(file="rgb.safetensors", sha256="a" * 64, origin="trained here", stream="rgb")],
        seed=0,
        **others,
    )


def rendered(results=(), *, width=120, **asked):
    file = io.StringIO()
    print_tables(published_tables(results, **asked), Console(file=file, width=width), results=results)
    return file.getvalue()


def reproduced_keys(results):
    """Keys of everything that some table shows as reproduced."""
    tables = published_tables(results, everything=True)
    return {row.published.key for table in tables if not table.surveyed for row in table.rows if row.reproductions}


# ---- results


def test_a_result_is_what_was_written(tmp_path):
    result = a_result(deviations=[Deviation(field="streams.flow.motion.estimator", paper="brox", here="tvl1")])
    path = write_result(tmp_path, result)
    assert path.name == "benchmark.json" and "folder" not in json.loads(path.read_text())
    for place in (tmp_path, path):
        again = read_result(place)
        assert again.folder == tmp_path
        assert again.model_copy(update={"folder": None}) == result


def test_the_mean_over_splits_is_computed_and_checked():
    parts = [a_result(splits=[s], metrics={"video-top1": v}).splits[0] for s, v in (("1", 90.0), ("2", 93.0))]
    facts = {"dataset": "ucf101", "protocol": "tsn", "date": "2026-11-24", "decoder": {"name": "a", "version": "1"}}
    result = BenchmarkResult(splits=parts, **facts)
    assert result.metrics == {"video-top1": 91.5}
    assert BenchmarkResult.model_validate(result.model_dump(mode="json")) == result
    with pytest.raises(ValidationError, match="means over splits"):
        BenchmarkResult(splits=parts, metrics={"video-top1": 93.0}, **facts)
    with pytest.raises(ValidationError, match="means over splits"):
        BenchmarkResult(splits=parts, metrics={"video-top1": 91.5, "video-top5": 99.0}, **facts)


@pytest.mark.parametrize(
    "broken",
    [
        {"evaluated": 4000},
        {"dataset": "hmdb51"},
        {"splits": ["1", "1"]},
        {"metrics": {"video-top1": 101.0}},
        {"metrics": {"video-top1": float("nan")}},
        {"metrics": {"accuracy": 50.0}},
        {"width": 0},
        {"colour": "red"},
    ],
)
def test_a_result_that_cannot_be_is_refused(broken):
    if "dataset" in broken:
        content = a_result().model_dump(mode="json") | broken
        with pytest.raises(ValidationError, match="begin with its name"):
            BenchmarkResult.model_validate(content)
    else:
        with pytest.raises(ValidationError):
            a_result(**broken)


def test_results_are_found_below_a_root_each_once_and_bad_files_are_told(tmp_path, caplog):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        write_result(tmp_path / name, a_result())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "benchmark.json").write_text('{"version": 1}')
    found = find_results([tmp_path, tmp_path / "a"])
    assert [result.folder.name for result in found] == ["a", "c"]
    assert "bad" in caplog.text and "left out" in caplog.text
    with pytest.raises(RunError, match="no result of a benchmark run"):
        read_result(tmp_path / "bad")
    with pytest.raises(RunError, match="there is no benchmark"):
        read_result(tmp_path / "b")
    with pytest.raises(RunError, match="does not exist"):
        find_results(tmp_path / "nowhere")


# ---- tables


def test_without_runs_everything_is_not_run(tmp_path):
    tables = published_tables(everything=True)
    assert not any(row.reproductions for table in tables for row in table.rows)
    write_csv(tables, tmp_path / "all.csv")
    lines = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert len(lines) == len(load_published()) + len(load_survey())
    assert {line["reproduced"] for line in lines} == {NOT_RUN}
    assert {line["difference"] for line in lines} == {""}
    assert "0 of 18 published results reproduced here" in rendered()
    assert rendered().count(NOT_RUN) == len(load_survey()) + 1  # and the legend


def test_a_result_appears_in_its_row_and_in_no_other():
    assert reproduced_keys([a_result()]) == {"tsn-2modalities-ucf101", "tsn-pytorch-both-ucf101-1"}
    tables = published_tables([a_result()])
    rows = [row for row in tables[0].rows if row.reproductions]
    assert [(row.survey.key, row.reproductions[0].value) for row in rows] == [("survey-tsn-2modalities", 93.0)]
    assert rows[0].reproductions[0].difference == pytest.approx(-1.0)
    line = next(line for line in rendered([a_result()]).splitlines() if "93.0" in line)
    assert "TSN" in line and "94.0" in line and "-1.0" in line


def test_a_split_of_a_run_stands_for_numbers_of_that_split():
    result = a_result(splits=("1",))
    assert reproduced_keys([result]) == {"tsn-pytorch-both-ucf101-1"}  # a mean over three splits it is not
    values = [
        a_result(splits=[s], metrics={"mean-class-accuracy": v}).splits[0]
        for s, v in (("1", 80.0), ("2", 90.0), ("3", 97.0))
    ]
    result = BenchmarkResult.model_validate(
        a_result().model_dump(mode="json") | {"splits": [v.model_dump() for v in values], "metrics": {}}
    )
    got = {
        r.key: reproduction(r, result) for r in find_published(protocol="tsn-eccv16", dataset="ucf101") if not r.stream
    }
    assert got["tsn-pytorch-both-ucf101-1"].value == 80.0 and got["tsn-pytorch-both-ucf101-1"].listed == 3783
    assert got["tsn-2modalities-ucf101"].value == pytest.approx(89.0)
    assert got["tsn-2modalities-ucf101"].listed == 3783 + 3734 + 3696


def test_a_stream_alone_stands_for_numbers_of_that_stream():
    result = a_result(splits=("1",), of_streams={"rgb": {"mean-class-accuracy": 84.0}})
    assert reproduced_keys([result]) == {"tsn-pytorch-both-ucf101-1", "tsn-pytorch-rgb-ucf101-1"}
    entry = next(r for r in load_published() if r.key == "tsn-pytorch-rgb-ucf101-1")
    assert reproduction(entry, result).value == 84.0


@pytest.mark.parametrize(
    "other",
    [
        {"metrics": {"video-top1": 93.2}},  # TSN's is the mean over classes
        {"protocol": "actionvlad", "metrics": {"mean-class-accuracy": 93.2}},
        {"protocol": "not-a-paper"},
        {"official": False},
        {"splits": ("2", "3")},
        {"splits": ("1", "2", "3"), "listed": 1794, "evaluated": 1794},  # shortened test lists
        {"dataset": "motion", "splits": ("1",)},
    ],
    ids=str,
)
def test_a_result_of_something_else_stands_for_nothing(other):
    result = a_result(**other)
    assert reproduced_keys([result]) == set()
    assert unplaced([result]) == (result,)
    assert "0 of 18" in rendered([result]) and "1 run of no published result" in rendered([result])


def test_a_motion_run_counts_nowhere_whatever_its_protocol():
    for protocol in {entry.protocol for entry in load_published() if entry.protocol}:
        everything = dict.fromkeys(("video-top1", "video-top5", "mean-class-accuracy", "clip-hit1", "video-hit1"), 99.0)
        motion = a_result("motion", splits=("1",), protocol=protocol, metrics=everything)
        assert all(reproduction(entry, motion) is None for entry in load_published())


def test_deviations_are_marked_and_counted():
    deviations = [Deviation(field=f"field{n}", paper=1, here=2) for n in range(12)]
    text = rendered([a_result(deviations=deviations)])
    assert "93.0*" in text and "12 deviations" in text and "volrec benchmark show RUN" in text
    plain = rendered([a_result()])
    assert "93.0*" not in plain and "deviation" not in plain and "93.0" in plain


def test_width_scale_and_missing_videos_are_deviations_of_themselves():
    assert a_result().differences == ()
    result = a_result(width=0.25, scale=0.5, evaluated=3000)
    assert [(d.field, d.paper, d.here) for d in result.differences] == [
        ("width", 1, 0.25),
        ("scale", 1, 0.5),
        ("test videos", 11213, 9000),
    ]
    told = a_result(width=0.25, deviations=[Deviation(field="streams.rgb.width", paper=1, here=0.25)])
    assert len(told.differences) == 1  # not twice
    text = rendered([result])
    assert "9,000 of 11,213 videos" in text and "3 deviations" in text


def test_all_runs_of_a_number_are_shown_the_faithful_first_whatever_they_reach(tmp_path):
    runs = {"worse": a_result(), "better": a_result(metrics={"mean-class-accuracy": 95.5}, width=0.5)}
    for name, result in runs.items():
        (tmp_path / name).mkdir()
        write_result(tmp_path / name, result)
    found = find_results(tmp_path)
    row = next(r for r in published_tables(found)[0].rows if r.reproductions)
    assert [(got.run, got.value) for got in row.reproductions] == [("worse", 93.0), ("better", 95.5)]
    text = rendered(found)
    assert text.index("93.0") < text.index("95.5*") and text.count("94.0") == 2  # survey and paper, once
    assert "worse" in text and "better" in text


def test_recalled_numbers_get_no_difference():
    entry = next(r for r in load_published() if r.source == "M" and r.protocol == "ltc" and r.dataset == "ucf101")
    got = reproduction(entry, a_result(protocol="ltc"))
    assert got.value == pytest.approx(93.2) and got.difference is None
    lines = rendered([a_result(protocol="ltc")], system="ltc", dataset="ucf101").splitlines()
    line = next(line for line in lines if "91.7" in line)
    assert "93.2" in line and line.split("│")[-1].strip() == "-"


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_number_is_cut_at_any_width(width):
    results = [a_result(metrics={"mean-class-accuracy": 100.0}, evaluated=3000)]
    text = rendered(results, width=width)
    assert max(len(line) for line in text.splitlines()) <= width and "…" not in text
    numbers = re.findall(r"(?<![\w.])\d+\.\d+\*?(?![\w])", text.split("reproduced here;")[0])
    beside = {entry.key: entry.value for entry in load_published()}
    values = [value for row in load_survey() for value in (row.value, beside.get(row.beside)) if value is not None]
    wanted = [f"{value:.2f}".rstrip("0").ljust(4, "0") for value in values]
    assert sorted(numbers) == sorted([*wanted, "100.0*", "6.0"])
    for fact in ("9,000 of 11,213 videos", "2026-11-24", "trained here", "+6.0", "1 deviation", "1,2,3", "class mean"):
        assert fact in text


@pytest.mark.parametrize("width", [80, 120])
def test_tables_of_papers_keep_their_numbers(width):
    text = rendered(width=width, everything=True)
    assert max(len(line) for line in text.splitlines()) <= width and "…" not in text
    for entry in load_published():
        assert re.search(rf"(?<![\d.]){re.escape(entry.text)}(?![\d.])", text), entry.key


def test_tables_are_of_what_was_asked_for():
    assert [table.surveyed for table in published_tables()] == [True]
    tables = published_tables(system="tsn")
    assert tables[0].surveyed and {row.system for table in tables for row in table.rows} == {"TSN"}
    assert {r.published.dataset for t in published_tables(dataset="hmdb51") for r in t.rows} == {"hmdb51"}
    assert not any(table.surveyed for table in published_tables(system="fstcn"))  # the survey has no number of it
    with pytest.raises(ConfigError, match="There are"):
        published_tables(system="nothing")


def test_markdown_and_csv_say_the_same_as_the_terminal(tmp_path):
    results = [a_result(width=0.5)]
    tables = published_tables(results)
    text = markdown(tables, results=results)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count(" | ") for line in lines}) == 1 and len(lines) == 2 + len(load_survey())
    line = next(line for line in lines if "93.0*" in line)
    assert [cell.strip() for cell in line.split("|")][1:13] == [
        "TSN", "RGB and flow", "94.0", "94.0", "1,2,3", "class mean", "T", "93.0*", "-1.0", "11,213 of 11,213",
        "2026-11-24", "trained here",
    ]  # fmt: skip
    write_csv(tables, tmp_path / "table.csv")
    rows = {row["key"]: row for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())}
    row = rows["survey-tsn-2modalities"]
    assert (row["survey"], row["published"], row["reproduced"], row["difference"]) == ("94.0", "94.0", "93.0", "-1.0")
    assert (row["evaluated"], row["listed"], row["deviations"], row["verified"]) == ("11213", "11213", "1", "yes")
    assert rows["survey-yao"]["survey"] == "" and rows["survey-yao"]["reproduced"] == NOT_RUN
    with pytest.raises(ConfigError, match="does not exist"):
        write_csv(tables, tmp_path / "nowhere" / "table.csv")
