"""The protocols that come with the package, against tables of the papers that are typed here again."""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
import torch

from volrec.benchmarks.protocol import list_protocols, load_protocol, paper_of, stream_channels
from volrec.benchmarks.views import Deviation, crop_boxes, differences, scaled
from volrec.config import apply_overrides, dump_yaml
from volrec.config.benchmark import VideoProtocol
from volrec.errors import ConfigError
from volrec.networks import create

NAMES = list_protocols()

# Fusion weights and stages: protocol -> weights, stage of the views, stage of the fusion, share of the trajectories.
WEIGHTS = {
    "two-stream": ({"spatial": 1, "temporal": 1}, "softmax", "softmax", 0),
    "two-stream-vgg16": ({"spatial": 1, "temporal": 1}, "softmax", "softmax", 0),
    "lrcn": ({"rgb": 1 / 3, "flow": 2 / 3}, "softmax", "softmax", 0),
    "lrcn-equal": ({"rgb": 1 / 2, "flow": 1 / 2}, "softmax", "softmax", 0),
    "lrcn-fc7": ({"rgb": 1 / 3, "flow": 2 / 3}, "softmax", "softmax", 0),
    "lrcn-fc7-equal": ({"rgb": 1 / 2, "flow": 1 / 2}, "softmax", "softmax", 0),
    "tsn-eccv16": ({"rgb": 1, "flow": 1.5}, "logits", "logits", 0),
    "tsn-eccv16-3modalities": ({"rgb": 1, "flow": 1, "warped": 0.5}, "logits", "logits", 0),
    "tsn-pami18": ({"rgb": 1, "flow": 1}, "logits", "logits", 0),
    "tsn-pami18-7segments": ({"rgb": 1, "flow": 1}, "logits", "logits", 0),
    "actionvlad": ({"rgb": 1 / 3, "flow": 2 / 3}, "logits", "logits", 0),
    "actionvlad-idt": ({"rgb": 1 / 3, "flow": 2 / 3}, "logits", "logits", 0.25),
    "hidden-two-stream": ({"spatial": 1, "temporal": 1.5}, "logits", "relu-l1", 0),
    "i3d-kinetics": ({"rgb": 1, "flow": 1}, "logits", "logits", 0),
    "i3d-ucf101": ({"rgb": 1, "flow": 1}, "logits", "logits", 0),
    "ltc": ({"rgb-100": 1, "flow-100": 1, "rgb-60": 1, "flow-60": 1}, "softmax", "softmax", 0),
}

# Clips (rule and number), crops, frames of a clip, frames from one to the next, frames from one window to the next.
VIEWS = {
    "karpathy-single": {"rgb": ("random", 20, 4, 1, 1, None)},
    "karpathy-early": {"rgb": ("random", 20, 4, 10, 1, None)},
    "karpathy-late": {"rgb": ("random", 20, 4, 16, 1, None)},
    "karpathy-slow": {"rgb": ("random", 20, 4, 10, 1, None)},
    "karpathy-slow-ucf101": {"rgb": ("random", 50, 4, 10, 1, None)},
    "two-stream": {"spatial": ("even", 25, 10, 1, 1, None), "temporal": ("even", 25, 10, 1, 1, None)},
    "c3d-sports1m": {"rgb": ("random", 10, 1, 16, 1, None)},
    "c3d-svm": {"rgb": ("windows", 0, 1, 16, 1, 8)},
    "c3d-finetuned": {"rgb": ("even", 10, 1, 16, 1, None)},
    "fstcn": {"rgb": ("windows", 0, 18, 30, 1, 30)},
    "lrcn": {"rgb": ("windows", 0, 10, 16, 1, 8), "flow": ("windows", 0, 10, 16, 1, 8)},
    "ltc": {f"{kind}-{n}": ("windows", 0, 10, n, 1, 4) for n in (100, 60) for kind in ("rgb", "flow")},
    "two-stream-fusion": {"fusion": ("even", 20, 2, 5, 10, None)},
    "tsn-eccv16": {"rgb": ("even", 25, 10, 1, 1, None), "flow": ("even", 25, 10, 1, 1, None)},
    "actionvlad": {"rgb": ("even", 25, 5, 1, 1, None), "flow": ("even", 25, 5, 1, 1, None)},
    "hidden-two-stream": {"spatial": ("even", 25, 10, 1, 1, None), "temporal": ("even", 25, 10, 11, 1, None)},
    "i3d-kinetics": {"rgb": ("whole", 0, 1, 250, 1, None), "flow": ("whole", 0, 1, 250, 1, None)},
    "t3d": {"rgb": ("windows", 0, 1, 32, 2, 64)},
    "views-30": {"rgb": ("even", 10, 3, 64, 1, None)},
}

# Parameters: with this many classes, exactly or in millions as the sources print them.
COUNTS = {
    ("karpathy-single", "rgb"): (487, 73.9),
    ("karpathy-early", "rgb"): (487, 74.2),
    ("karpathy-late", "rgb"): (487, 125.3),
    ("karpathy-slow", "rgb"): (487, 75.5),
    ("karpathy-multires", "rgb"): (487, 129.0),
    ("two-stream", "spatial"): (101, 90.63),
    ("two-stream", "temporal"): (101, 90.71),
    ("two-stream-vgg16", "spatial"): (101, 134.7),
    ("two-stream-vgg16", "temporal"): (101, 134.7),
    ("c3d-sports1m", "rgb"): (487, 79_991_015),
    ("c3d-finetuned", "rgb"): (101, 78_409_573),
    ("fstcn", "rgb"): (101, 206.9),
    ("lrcn", "rgb"): (101, 65.4),
    ("lrcn", "flow"): (101, 65.4),
    ("ltc", "flow-100"): (101, 12.20),
    ("ltc", "flow-60"): (101, 10.63),
    ("two-stream-fusion", "fusion"): (101, 283.5),
    ("tsn-eccv16", "rgb"): (101, 10_373_765),
    ("tsn-eccv16", "flow"): (101, 10.4),
    ("actionvlad", "rgb"): (101, 18.1),
    ("hidden-two-stream", "temporal"): (101, 177.0),
    ("i3d-kinetics", "rgb"): (400, 12_697_264),
    ("i3d-kinetics", "flow"): (400, 12_675_312),
    ("t3d", "rgb"): (400, 29.88),
    ("t3d-169", "rgb"): (400, 38.52),
}

METRICS = {
    **dict.fromkeys(("karpathy-slow", "karpathy-average", "c3d-sports1m"), ("video-hit1", "test")),
    **dict.fromkeys(("two-stream", "c3d-svm", "lrcn", "ltc", "t3d", "fstcn", "actionvlad"), ("video-top1", "1,2,3")),
    **dict.fromkeys(("tsn-eccv16", "tsn-pami18-7segments"), ("mean-class-accuracy", "1,2,3")),
    "views-30": ("video-top1", "val"),
}


def streams(name: str) -> dict:
    return {stream.name: stream for stream in load_protocol(name).streams}


@cache
def built(name: str, options: str, channels: int, classes: int, faithful: bool = True):
    with torch.device("meta"):
        return create(name, num_classes=classes, in_channels=channels, faithful=faithful, **json.loads(options))


def network(stream, classes: int = 101):
    return built(stream.network.name, json.dumps(stream.network.options), stream_channels(stream), classes)


class TestEveryProtocol:
    def test_is_listed_by_its_file(self):
        assert len(NAMES) >= 40 and tuple(sorted(NAMES)) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_loads_under_its_name_and_says_where_it_comes_from(self, name):
        protocol = load_protocol(name)
        assert protocol.name == name
        assert protocol.source and protocol.open and protocol.summary.endswith(".")
        assert VideoProtocol.model_validate(protocol.to_dict()) == protocol

    @pytest.mark.parametrize("name", NAMES)
    def test_has_networks_in_the_papers_form_that_read_its_clips(self, name):
        for stream in load_protocol(name).streams:
            assert stream.network.faithful and stream.network.width == 1
            found = network(stream)
            views, train = stream.test, stream.train
            lengths = {views.count if views.joint else views.length, train.length * (train.segments or 1)}
            if name.startswith("tsn-"):  # scores of snippets are averaged over views in the test
                lengths = {1, train.segments}
            crop = stream.frames.crop
            for wanted, have in zip(found.exact or (None,) * 3, ("time", crop, crop), strict=True):
                assert wanted is None or ({wanted} == lengths if have == "time" else wanted == have)
            if views.clips != "whole":
                assert all(n >= found.smallest[0] for n in lengths)
            assert crop >= max(found.smallest[1:])

    @pytest.mark.parametrize("name", NAMES)
    def test_keeps_frames_no_smaller_than_its_crop_and_freezes_what_is_there(self, name):
        for stream in load_protocol(name).streams:
            resize, crop = stream.frames.resize, stream.frames.crop
            assert min(resize if isinstance(resize, tuple) else (resize,)) >= crop
            assert len(stream.frames.mean) in (1, 3) and len(stream.frames.scale) in (1, 3)
            assert stream.training.steps == sorted(stream.training.steps)
            assert all(step < stream.training.iterations for step in stream.training.steps)
            weights = [key for key, _ in network(stream).named_parameters()]
            for pattern in stream.training.freeze:
                assert 0 < sum(fnmatchcase(key, pattern) for key in weights) < len(weights)

    @pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("c3d-svm")])
    def test_takes_features_from_a_layer_of_its_network(self, name):
        protocol = load_protocol(name)
        assert protocol.features is not None and protocol.features.layer == "fc6"
        assert network(protocol.streams[0]).get_submodule("fc6").out_features == 4096
        combine = {"c3d-svm": 1, "c3d-svm-3nets": 3, "c3d-svm-3nets-average": 3, "c3d-svm-idt": 3}
        assert protocol.features.nets == combine[name]
        assert (protocol.features.combine == "average") == name.endswith("average")
        assert protocol.features.trajectories == name.endswith("idt")


class TestThePapersNumbers:
    @pytest.mark.parametrize("name", WEIGHTS)
    def test_are_the_weights_and_stages_of_the_fusion(self, name):
        weights, views, fusion, share = WEIGHTS[name]
        protocol = load_protocol(name)
        found = {stream.name: stream.weight for stream in protocol.streams}
        total, wanted = sum(found.values()), sum(weights.values())
        assert {key: value / total for key, value in found.items()} == pytest.approx(
            {key: value / wanted for key, value in weights.items()}
        )
        assert {stream.test.stage for stream in protocol.streams} == {views}
        assert (protocol.fusion.stage, protocol.fusion.trajectories) == (fusion, share)
        assert protocol.fusion.method == "weights"

    def test_are_the_other_ways_of_joining_scores(self):
        assert load_protocol("two-stream-svm").fusion.method == "svm"
        views = streams("fstcn")["rgb"].test
        assert (views.crop_consensus, views.clip_consensus, views.stage) == ("sci", "max", "softmax")
        assert all(stream.test.joint for stream in load_protocol("actionvlad").streams)
        assert load_protocol("actionvlad-idt").fusion.trajectory_stage == "l2"

    @pytest.mark.parametrize("name", VIEWS)
    def test_are_the_clips_and_crops_of_the_test(self, name):
        found = {}
        for key, stream in streams(name).items():
            views = stream.test
            crops = len(crop_boxes(views.crops, (256, 340), stream.frames.crop))
            step = (views.step or views.length * views.stride) if views.clips == "windows" else None
            found[key] = (views.clips, views.count, crops, views.length, views.stride, step)
        assert found == VIEWS[name]

    @pytest.mark.parametrize(("name", "stream"), COUNTS)
    def test_are_the_parameters(self, name, stream):
        classes, expected = COUNTS[name, stream]
        count = sum(weight.numel() for weight in network(streams(name)[stream], classes).parameters())
        if isinstance(expected, int):
            assert count == expected
        else:
            digits = len(str(expected).split(".")[1])
            assert round(count / 1e6, digits) == expected

    @pytest.mark.parametrize("name", METRICS)
    def test_are_of_this_metric_and_these_splits(self, name):
        protocol = load_protocol(name)
        assert (protocol.metric, protocol.splits) == METRICS[name]

    @pytest.mark.parametrize(
        ("name", "stream", "channels"),
        [
            ("two-stream", "temporal", 20),
            ("lrcn", "flow", 3),
            ("tsn-eccv16", "flow", 10),
            ("tsn-eccv16-3modalities", "warped", 10),
            ("tsn-pami18-difference", "difference", 15),
            ("two-stream-fusion", "fusion", 23),
            ("actionvlad", "flow", 20),
            ("hidden-two-stream", "temporal", 3),
            ("i3d-kinetics", "flow", 2),
            ("ltc", "flow-60", 2),
            ("ng-lstm", "flow", 3),
        ],
    )
    def test_are_the_channels(self, name, stream, channels):
        assert stream_channels(streams(name)[stream]) == channels

    def test_are_the_values_that_networks_read(self):
        flow = streams("i3d-kinetics")["flow"].motion
        assert flow.gain * flow.bound == pytest.approx(1)  # -20 to 20 pixels become -1 to 1
        rgb = streams("i3d-kinetics")["rgb"].frames
        assert [(value - rgb.mean[0]) * rgb.scale[0] for value in (0, 255)] == pytest.approx([-1, 1])
        for name in ("tsn-eccv16", "actionvlad"):
            flow = streams(name)["flow"].motion
            assert flow.gain * 2 * flow.bound == pytest.approx(255)  # pictures around 128
        lrcn = streams("lrcn")["flow"].motion
        assert lrcn.gain * lrcn.bound == 128 and lrcn.third == "magnitude"
        assert streams("hidden-two-stream")["temporal"].frames.scale[0] == pytest.approx(1 / 255)
        assert streams("two-stream")["temporal"].motion.subtract_mean


class TestLoading:
    def test_an_unknown_name_is_answered_with_the_nearest(self):
        with pytest.raises(ConfigError, match="no protocol 'tsn-ecv16'") as error:
            load_protocol("tsn-ecv16")
        assert "Did you mean 'tsn-eccv16'?" in error.value.remedy and "idt-fv" in error.value.remedy

    def test_a_file_of_ones_own_builds_on_a_protocol(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(
            "extends: two-stream\nname: mine\nstreams:\n- {name: temporal, motion: {stack: 5}, weight: 2}\n"
        )
        mine, base = load_protocol(path), load_protocol("two-stream")
        assert [(found.field, found.paper, found.here) for found in differences(base, mine)] == [
            ("streams.temporal.motion.stack", 10, 5),
            ("streams.temporal.weight", 1.0, 2.0),
        ]
        assert load_protocol(str(path)) == mine

    def test_streams_of_several_protocols_stand_side_by_side(self, tmp_path):
        path = tmp_path / "both.yaml"
        path.write_text("extends: [two-stream, tsn-eccv16]\nname: both\n")
        assert [stream.name for stream in load_protocol(path).streams] == ["spatial", "temporal", "rgb", "flow"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("streams: [", "no valid YAML at line 1"),
            ("- 1", "holds list"),
            ("extends: 3", "extends names protocols"),
            ("extends: two-stream\nfusion: {stagee: logits}", "stagee"),
        ],
    )
    def test_a_file_that_is_none_is_refused(self, tmp_path, text, message):
        path = tmp_path / "wrong.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as error:
            load_protocol(path)
        assert str(path) in error.value.where

    def test_a_file_that_builds_on_itself_or_is_missing_is_refused(self, tmp_path):
        path = tmp_path / "circle.yaml"
        path.write_text(f"extends: {path}\n")
        with pytest.raises(ConfigError, match="end somewhere"):
            load_protocol(path)
        with pytest.raises(ConfigError, match="cannot be read"):
            load_protocol(tmp_path / "missing.yaml")

    def test_is_light(self):
        code = (
            "import sys, volrec.benchmarks.protocol as p; p.load_protocol('tsn-eccv16'); print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


def distinct() -> list:
    """One stream of every network with these options and channels."""
    found = {}
    for name in NAMES:
        for stream in load_protocol(name).streams:
            key = (stream.network.name, repr(stream.network.options), stream_channels(stream))
            found.setdefault(key, pytest.param(name, stream.name, id=f"{name}-{stream.name}"))
    return list(found.values())


class TestScaled:
    @pytest.mark.parametrize(("name", "stream"), distinct())
    def test_every_network_still_reads_its_crops(self, name, stream):
        small = scaled(load_protocol(name), scale=0.25, width=1 / 16)
        found = next(item for item in small.streams if item.name == stream)
        resize, crop = found.frames.resize, found.frames.crop
        assert crop % 2 == 0 and min(resize if isinstance(resize, tuple) else (resize,)) >= crop
        channels, options = stream_channels(found), found.network.options
        torch.manual_seed(0)
        network = create(found.network.name, num_classes=4, in_channels=channels, width=found.network.width, **options)
        length = max(network.smallest[0], min(4, found.test.length))
        with torch.no_grad():
            scores = network.eval()(torch.randn(1, channels, length, crop, crop))
        assert scores.shape == (1, 4) and torch.isfinite(scores).all()

    def test_multiplies_sizes_and_width_and_nothing_else(self):
        paper = load_protocol("tsn-eccv16")
        small = scaled(paper, scale=0.5, width=0.25)
        fields = {"network.width": 0.25, "network.faithful": False, "frames.resize": (128, 170), "frames.crop": 112}
        assert {found.field: found.here for found in differences(paper, small)} == {
            f"streams.{stream}.{field}": value for stream in ("rgb", "flow") for field, value in fields.items()
        }
        assert paper == load_protocol("tsn-eccv16")

    def test_keeps_what_the_network_reads_and_the_frame_around_it(self):
        found = scaled(load_protocol("ltc"), scale=0.1, width=0.125).streams[0].frames
        assert found.crop == 16 and found.resize == (18, 24)

    def test_of_one_is_the_papers(self):
        paper = load_protocol("two-stream")
        assert scaled(paper) == paper and scaled(paper).streams[0].network.faithful

    @pytest.mark.parametrize("values", [{"scale": 0}, {"scale": 1.5}, {"width": -1}])
    def test_refuses_what_is_no_share(self, values):
        with pytest.raises(ConfigError, match=next(iter(values))):
            scaled(load_protocol("two-stream"), **values)


class TestDifferences:
    PAPER = load_protocol("two-stream")

    def changed(self, **values) -> VideoProtocol:
        return VideoProtocol.model_validate(self.PAPER.model_dump() | values)

    def test_between_equals_are_none(self):
        assert differences(self.PAPER, self.PAPER.model_copy(deep=True)) == []

    def test_are_exactly_what_was_changed(self):
        here = self.PAPER.model_copy(deep=True)
        here.streams[1].test.count = 5
        here.streams[1].network.options = {**here.streams[1].network.options, "dropout": 0.5}
        here.streams[0].training.init = "scratch"
        here.fusion.stage = "logits"
        here.metric = "clip-top1"
        here.summary = here.source = here.name = "mine"
        assert differences(self.PAPER, here) == [
            Deviation("streams.spatial.training.init", "imagenet", "scratch"),
            Deviation("streams.temporal.network.options.dropout", 0.9, 0.5),
            Deviation("streams.temporal.test.count", 25, 5),
            Deviation("fusion.stage", "softmax", "logits"),
            Deviation("metric", "video-top1", "clip-top1"),
        ]

    def test_name_a_stream_or_a_section_that_one_of_them_lacks(self):
        one = self.changed(streams=[self.PAPER.streams[0].model_dump()])
        assert differences(self.PAPER, one) == [Deviation("streams.temporal", True, False)]
        assert differences(one, self.PAPER) == [Deviation("streams.temporal", False, True)]
        added = self.changed(trajectories={"words": 16})
        (found,) = differences(self.PAPER, added)
        assert found.field == "trajectories" and found.paper is None and found.here["words"] == 16

    def test_are_said_in_words(self):
        assert str(Deviation("streams.rgb.frames.resize", (256, 340), (64, 84), "--scale")) == (
            "streams.rgb.frames.resize: 64 x 84, the paper's is 256 x 340 (--scale)"
        )
        assert str(Deviation("streams.flow", True, False)) == "streams.flow: no, the paper's is yes"


def test_a_file_of_ones_own_is_compared_with_the_protocol_it_builds_on(tmp_path: Path) -> None:
    first, second, alone = (tmp_path / f"{name}.yaml" for name in ("first", "second", "alone"))
    first.write_text("extends: tsn-eccv16\nname: mine\n")
    second.write_text(f"extends: [{first}, two-stream]\nname: mine-too\n")
    alone.write_text(dump_yaml(load_protocol("tsn-eccv16").model_copy(update={"name": "own"})))
    assert paper_of(first).name == "tsn-eccv16"
    assert paper_of(second).name == "tsn-eccv16"
    assert paper_of(alone).name == "own"
    assert paper_of("tsn-eccv16-3modalities").name == "tsn-eccv16-3modalities"


def test_a_chi_square_machine_is_for_bags_of_words() -> None:
    with pytest.raises(ConfigError, match="bags of words"):
        apply_overrides(load_protocol("idt-fv"), {"trajectories.kernel": "chi2"})
