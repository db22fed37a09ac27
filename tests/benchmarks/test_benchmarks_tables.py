"""Published numbers are what the sheet says, and no table prints a number that no run gave."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from volrec.benchmarks import publications
from volrec.benchmarks.publications import (
    find_published,
    load_published,
    load_survey,
    parse_published,
    parse_survey,
)
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
from volrec.benchmarks.tables import (
    NOT_RUN,
    markdown,
    print_tables,
    published_tables,
    reproduction,
    unplaced,
    write_csv,
)
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


def a_result(dataset="ucf101", *, protocol="tsn", splits=("1", "2", "3"), metrics=TSN, official=True, **fields):
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


# ---- data


def test_every_published_number_is_well_formed_and_has_a_key_of_its_own():
    results = load_published()
    assert len(results) > 450
    assert len({result.key for result in results}) == len(results)
    for result in results:
        assert (
            result.split in {"ucf101": "1 2 3 1,2,3", "hmdb51": "1 2 3 1,2,3"}.get(result.dataset, "val test").split()
        )
        assert (result.value * 100) % 1 == pytest.approx(0, abs=1e-6) or (result.value * 100) % 1 == pytest.approx(1)
        assert float(result.text) == result.value


# Typed from the sheet of the papers' numbers.
SHEET = {
    "karpathy-slow-sports1m-video-hit1": (60.9, "test", "video-hit1", "T"),
    "karpathy-average-sports1m-video-hit5": (82.4, "test", "video-hit5", "T"),
    "karpathy-slow-top3-ucf101": (65.4, "1,2,3", "video-top1", "T"),
    "ji3d-kth": (90.2, "test", "accuracy", "T"),
    "two-stream-svm-ucf101": (88.0, "1,2,3", "video-top1", "T"),
    "two-stream-average-hmdb51": (58.0, "1,2,3", "video-top1", "T"),
    "two-stream-temporal-bidirectional-ucf101-1": (81.2, "1", "video-top1", "T"),
    "two-stream-temporal-multitask-hmdb51-1": (55.4, "1", "video-top1", "T"),
    "c3d-scratch-sports1m-clip-hit1": (44.9, "test", "clip-hit1", "T"),
    "c3d-3nets-idt-ucf101": (90.4, "1,2,3", "video-top1", "T"),
    "c3d-replication-ucf101-2": (79.75, "2", "video-top1", "I"),
    "fstcn-sci-hmdb51": (59.1, "1,2,3", "video-top1", "T"),
    "lrcn-fc6-weighted-ucf101-1": (82.92, "1", "video-top1", "T"),
    "lrcn-fc6-weighted-ucf101": (82.66, "1,2,3", "video-top1", "T"),
    "lrcn-fc6-weighted-ucf101-pami": (82.34, "1,2,3", "video-top1", "M"),
    "ng-pooling-sports1m-video-hit1": (72.4, "test", "video-hit1", "T"),
    "ng-lstm-flow-ucf101": (88.6, "1,2,3", "video-top1", "A"),
    "ltc-flow-rgb-idt-ucf101": (92.7, "1,2,3", "video-top1", "A"),
    "ltc-flow-rgb-ucf101": (91.7, "1,2,3", "video-top1", "M"),
    "yao-both-youtube2text-bleu4": (41.92, "test", "bleu4", "C"),
    "twostreamfusion-vgg16-idt-ucf101": (93.5, "1,2,3", "video-top1", "T"),
    "twostreamfusion-relu5-conv-ucf101-1": (85.96, "1", "video-top1", "T"),
    "tsn-2modalities-ucf101": (94.0, "1,2,3", "mean-class-accuracy", "T"),
    "tsn-3modalities-hmdb51": (69.4, "1,2,3", "mean-class-accuracy", "T"),
    "tsn-partialbn-flow-ucf101-1": (87.2, "1", "mean-class-accuracy", "T"),
    "tsn-k7-both-ucf101": (94.9, "1,2,3", "mean-class-accuracy", "T"),
    "tsn-pytorch-rgb-ucf101-1": (85.57, "1", "mean-class-accuracy", "I"),
    "actionvlad-idt-ucf101": (93.6, "1,2,3", "video-top1", "T"),
    "actionvlad-trained-flow-hmdb51-1": (58.4, "1", "video-top1", "T"),
    "actionvlad-scores-both-hmdb51-2": (66.54, "2", "video-top1", "X"),
    "hidden-two-stream-c-ucf101-1": (89.82, "1", "video-top1", "T"),
    "hidden-tsn-ucf101": (93.2, "1,2,3", "video-top1", "T"),
    "i3d-imagenet-kinetics-ucf101": (98.0, "1,2,3", "video-top1", "T"),
    "i3d-kinetics-hmdb51": (80.9, "1,2,3", "video-top1", "T"),
    "i3d-table-i3d-both-kinetics": (74.2, "test", "video-top1", "T"),
    "i3d-transfer-full-noimagenet-hmdb51-1": (81.3, "1", "video-top1", "T"),
    "i3d-released-rgb-kinetics-top5": (89.3, "test", "video-top5", "C"),
    "t3d-transfer-hmdb51": (61.1, "1,2,3", "video-top1", "T"),
    "t3d-kinetics": (62.2, "val", "video-top1", "M"),
    "idt-fisher-ucf101": (85.9, "1,2,3", "video-top1", "T"),
    "idt-ltc-scores-hmdb51-3": (57.78, "3", "video-top1", "X"),
    "mmaction2-tsn-r50-1x1x3-kinetics": (72.83, "val", "video-top1", "C"),
    "mmaction2-c3d-ucf101-1-top5": (95.93, "1", "video-top5", "C"),
    "gluon-cv-i3d-r50-kinetics-hmdb51-1": (70.9, "1", "video-top1", "C"),
}


@pytest.mark.parametrize("key", SHEET)
def test_published_numbers_are_those_of_the_sheet(key):
    result = {result.key: result for result in load_published()}[key]
    assert (result.value, result.split, result.metric, result.source) == SHEET[key]


SURVEYED = {  # what the survey prints, and what the paper's own number is
    "survey-lrcn": (82.92, 82.92, "1"),
    "survey-lrcn-rgb": (71.1, 71.12, "1"),
    "survey-c3d-1net": (82.3, 82.3, "1,2,3"),
    "survey-c3d-3nets": (85.2, 85.2, "1,2,3"),
    "survey-c3d-3nets-idt": (90.4, 90.4, "1,2,3"),
    "survey-yao": (None, None, None),
    "survey-twostreamfusion": (92.5, 92.5, "1,2,3"),
    "survey-twostreamfusion-idt": (94.2, 93.5, "1,2,3"),
    "survey-tsn-2modalities": (94.0, 94.0, "1,2,3"),
    "survey-tsn-3modalities": (94.2, 94.2, "1,2,3"),
    "survey-actionvlad": (92.7, 92.7, "1,2,3"),
    "survey-actionvlad-idt": (93.6, 93.6, "1,2,3"),
    "survey-hidden": (89.8, 89.82, "1"),
    "survey-hidden-tsn": (92.5, 92.5, "1,2,3"),
    "survey-i3d": (93.4, 93.4, "1"),
    "survey-i3d-pretrained": (98.0, 98.0, "1,2,3"),
    "survey-t3d": (90.3, 90.3, "1,2,3"),
    "survey-t3d-transfer": (91.7, 91.7, "1,2,3"),
    "survey-t3d-tsn": (93.2, 93.2, "1,2,3"),
}


def test_the_survey_stands_beside_the_papers():
    rows = published_tables()[0].rows
    seen = {
        row.survey.key: (
            row.survey.value,
            row.published and row.published.value,
            row.published and row.published.split,
        )
        for row in rows
    }
    assert seen == SURVEYED
    assert list(seen) == list(SURVEYED)  # in the survey's order


def test_recalled_numbers_are_never_shown_as_verified():
    recalled = [result for result in load_published() if result.source == "M"]
    assert recalled and not any(result.verified for result in recalled)
    for table in published_tables(everything=True):
        for line, row in zip(markdown([table]).split("\n")[4:], table.rows, strict=False):
            unverified = row.published is not None and row.published.source == "M"
            assert ("not verified" in line) == unverified


def test_a_number_is_looked_up_by_system_data_set_and_protocol():
    assert {r.system for r in find_published(system="two stream")} == {"Two-Stream"}
    assert {r.dataset for r in find_published(system="I3D", dataset="kinetics")} == {"kinetics"}
    assert "tsn-2modalities-ucf101" in {r.key for r in find_published(protocol="tsn")}
    assert {r.kind for r in find_published(kinds=["zoo"])} == {"zoo"}
    with pytest.raises(ConfigError, match=r"'resnext'.*ActionVLAD"):
        find_published(system="resnext")
    with pytest.raises(ConfigError, match=r"dataset 'ucf11'"):
        find_published(dataset="ucf11")


GOOD = "- {system: A, paper: P, year: 2015, dataset: ucf101, split: '1', metric: video-top1, source: T, results: [%s]}"


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("{key: a-1, variant: v, value: 101}", "value"),
        ("{key: a-1, variant: v, value: 0.5, valu: 1}", "valu"),
        ("{key: A_1, variant: v, value: 50}", "key"),
        ("{key: a-1, variant: v, value: 50, metric: top-1}", "metric"),
        ("{key: a-1, variant: v, value: 50, split: '4'}", "split"),
        ("{key: a-1, variant: v, value: 50, source: Z}", "source"),
        ("{key: a-1, variant: v, value: 50, dataset: ucf-101}", "dataset"),
        ("{key: a-1, variant: v, value: 50, stream: rgb}", "protocol"),
        ("{key: a-1, variant: v}", "value"),
        ("{key: a-1, variant: v, value: 50}, {key: a-1, variant: w, value: 51}", "twice"),
        ("a-1", "mapping"),
    ],
)
def test_data_that_break_the_schema_are_refused(result, told):
    assert parse_published(GOOD % "{key: a-1, variant: v, value: 50}", where="here")[0].value == 50
    with pytest.raises(ConfigError, match=f"(?s)here.*{told}"):
        parse_published(GOOD % result, where="here")


@pytest.mark.parametrize("text", ["a: 1", "- 1", "- {system: A}", "- [", "- {results: 3}"])
def test_files_that_are_no_tables_are_refused(text):
    with pytest.raises(ConfigError, match="here"):
        parse_published(text, where="here")
    with pytest.raises(ConfigError, match="here"):
        parse_survey(text, where="here")


def test_a_survey_row_beside_nothing_is_refused(monkeypatch, tmp_path):
    (tmp_path / "survey.yaml").write_text("- {key: a, system: A, heading: A, variant: v, value: 1, beside: nowhere}")
    monkeypatch.setattr(publications, "_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="nowhere"):
        load_survey.__wrapped__()


def test_protocols_and_published_numbers_name_each_other():
    """Of protocols that are there: every name, stream and key that either side says is one of the other."""
    import yaml

    folder = Path(publications.__file__).parent / "protocols"
    protocols = {p["name"]: p for path in folder.glob("*.yaml") if (p := yaml.safe_load(path.read_text()))}
    keys = {result.key: result for result in load_published()}
    for protocol in protocols.values():
        for key in protocol.get("published", []):
            assert key in keys, f"{protocol['name']} stands for '{key}', which is not published"
            assert keys[key].protocol == protocol["name"]
    if protocols:
        for result in keys.values():
            if result.protocol is not None:
                assert result.protocol in protocols, f"'{result.key}' waits for the protocol '{result.protocol}'"
                streams = {stream["name"] for stream in protocols[result.protocol].get("streams", [])}
                assert result.stream is None or result.stream in streams, result.key


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
    got = {r.key: reproduction(r, result) for r in find_published(protocol="tsn", dataset="ucf101") if not r.stream}
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
        everything = {m: 99.0 for m in ("video-top1", "video-top5", "mean-class-accuracy", "clip-hit1", "video-hit1")}
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


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_number_is_cut_at_any_width(width):
    results = [a_result(metrics={"mean-class-accuracy": 100.0}, evaluated=3000)]
    text = rendered(results, width=width)
    assert max(len(line) for line in text.splitlines()) <= width and "…" not in text
    numbers = re.findall(r"(?<![\w.])\d+\.\d+\*?(?![\w])", text.split("reproduced here;")[0])
    wanted = [f"{v:.2f}".rstrip("0").ljust(4, "0") for s in SURVEYED.values() for v in s[:2] if v is not None]
    assert sorted(numbers) == sorted([*(w if "." in w else w for w in wanted), "100.0*", "6.0"])
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
