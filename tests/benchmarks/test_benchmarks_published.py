"""Published numbers are those of the papers and of the survey."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from volrec.benchmarks import publications
from volrec.benchmarks.publications import find_published, load_published, load_survey, parse_published, parse_survey
from volrec.benchmarks.rendering import markdown
from volrec.benchmarks.tables import published_tables
from volrec.errors import ConfigError


def test_every_published_number_is_well_formed_and_has_a_key_of_its_own():
    results = load_published()
    assert len(results) > 450
    assert len({result.key for result in results}) == len(results)
    for result in results:
        parts = {"1", "2", "3", "1,2,3"} if result.dataset in ("ucf101", "hmdb51") else {"val", "test"}
        assert result.split in parts
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
    assert "tsn-2modalities-ucf101" in {r.key for r in find_published(protocol="tsn-eccv16")}
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
    """Of protocols that are there: every name, stream, data set and key that either side says is one of the other."""
    files = (Path(publications.__file__).parent / "protocols").glob("*.yaml")
    protocols = {protocol["name"]: protocol for path in files if (protocol := yaml.safe_load(path.read_text()))}

    def all_of(name, field):
        protocol = protocols[name]
        own = protocol.get(field)
        inherited = all_of(protocol["extends"], field) if "extends" in protocol else []
        return [*(own or []), *inherited] if field == "streams" else (own or inherited)

    keys = {result.key: result for result in load_published()}
    for name, protocol in protocols.items():
        for key in protocol.get("published", []):
            assert key in keys, f"{name} stands for '{key}', which is not published"
            assert keys[key].protocol == name
    for result in keys.values() if protocols else []:
        if result.protocol is not None:
            assert result.protocol in protocols, f"'{result.key}' waits for the protocol '{result.protocol}'"
            assert result.dataset in all_of(result.protocol, "datasets"), result.key
            streams = {stream["name"] for stream in all_of(result.protocol, "streams")}
            assert result.stream is None or result.stream in streams, result.key
