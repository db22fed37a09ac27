"""The protocol that is run and what differs from the paper's: nothing is hidden, and nothing is made up."""

from __future__ import annotations

from typing import Any

import pytest

from volrec.benchmarks.protocol import list_protocols, load_protocol
from volrec.benchmarks.results import Deviation
from volrec.benchmarks.settings import available_estimator, check_streams, deviations, nets_of, settle_protocol
from volrec.config import BenchmarkConfig, VideoProtocol
from volrec.errors import ConfigError

VIDEOS = 9537  # training videos of the first split of UCF101


def run_of(here: VideoProtocol, **keys: Any) -> BenchmarkConfig:
    return BenchmarkConfig(protocol=here, **keys)


def found(paper: VideoProtocol, config: BenchmarkConfig, **keys: Any) -> dict[str, tuple[Any, Any]]:
    differing = deviations(paper, config, videos=VIDEOS, **keys)
    assert len({one.field for one in differing}) == len(differing)
    return {one.field: (one.paper, one.here) for one in differing}


def begun(protocol: VideoProtocol) -> dict[str, Any]:
    """Return first weights as the paper names them."""
    return {net.name: net.training.init for net in nets_of(protocol) if net.training.init != "scratch"}


# What is run


@pytest.mark.parametrize("name", list_protocols())
def test_the_papers_own_run_differs_in_nothing_but_what_no_package_has(name: str) -> None:
    paper = load_protocol(name)
    config = run_of(settle_protocol(paper), init=begun(paper))
    expected = {
        f"streams.{stream.name}.motion.estimator": ("brox", "tvl1")
        for stream in paper.streams
        if stream.motion is not None and stream.motion.estimator == "brox"
    }
    assert found(paper, config) == expected


def test_brox_is_replaced_and_said() -> None:
    assert available_estimator("brox") == "tvl1" and available_estimator("farneback") == "farneback"
    paper = load_protocol("two-stream")
    here = settle_protocol(paper)
    assert paper.streams[1].motion is not None and paper.streams[1].motion.estimator == "brox"
    assert here.streams[1].motion is not None and here.streams[1].motion.estimator == "tvl1"
    quick = settle_protocol(paper, estimator="farneback")
    differing = found(paper, run_of(quick, init=begun(paper)))
    assert differing == {"streams.temporal.motion.estimator": ("brox", "farneback")}


def test_a_stream_that_reads_no_flow_has_no_estimator_to_replace() -> None:
    paper = load_protocol("tsn-pami18-difference")
    assert found(paper, run_of(settle_protocol(paper, estimator="farneback"), init=begun(paper))) == {}


def test_a_smaller_run_lists_every_size_and_width() -> None:
    paper = load_protocol("tsn-eccv16")
    config = run_of(settle_protocol(paper, scale=0.5, width=0.25), init=begun(paper))
    expected: dict[str, tuple[Any, Any]] = {}
    for name in ("rgb", "flow"):
        expected |= {
            f"streams.{name}.network.width": (1.0, 0.25),
            f"streams.{name}.network.faithful": (True, False),
            f"streams.{name}.frames.resize": ([256, 340], [128, 170]),
            f"streams.{name}.frames.crop": (224, 112),
        }
    assert found(paper, config) == expected


def test_overrides_are_taken_and_listed() -> None:
    paper = load_protocol("tsn-eccv16")
    keys = {"streams.rgb.training.lr": 0.01, "fusion.stage": "softmax", "streams.flow.test.count": 10}
    here = settle_protocol(paper, overrides=keys)
    assert here.streams[0].training.lr == 0.01 and here.streams[1].training.lr == paper.streams[1].training.lr
    assert found(paper, run_of(here, init=begun(paper))) == {
        "streams.rgb.training.lr": (0.001, 0.01),
        "fusion.stage": ("logits", "softmax"),
        "streams.flow.test.count": (25, 10),
    }
    with pytest.raises(ConfigError):
        settle_protocol(paper, overrides={"streams.rgb.training.rate": 1})
    with pytest.raises(ConfigError):
        settle_protocol(paper, overrides={"streams.rgb.training.lr": -1})


# How it is trained


def test_a_training_from_scratch_says_so_and_keeps_no_statistics() -> None:
    paper = load_protocol("tsn-eccv16")
    assert found(paper, run_of(settle_protocol(paper), init={"flow": "imagenet"})) == {
        "streams.rgb.training.init": ("imagenet", "scratch"),
        "streams.rgb.training.partial_bn": ("statistics", "none"),
    }


def test_a_shorter_training_has_its_updates_and_its_steps_at_the_same_shares() -> None:
    paper = load_protocol("tsn-eccv16")
    config = run_of(settle_protocol(paper), init=begun(paper), epochs=2)
    differing = found(paper, config)
    updates = 2 * -(-VIDEOS // 128)  # batches of 16, eight of them an update, the last one of an epoch smaller
    assert differing["streams.rgb.training.iterations"] == (3500, updates)
    assert differing["streams.flow.training.iterations"] == (18000, updates)
    steps = [round(1500 * updates / 3500), round(3000 * updates / 3500)]
    assert differing["streams.rgb.training.steps"] == ([1500, 3000], steps)
    assert len(differing) == 4


def test_a_smaller_batch_makes_more_updates_of_the_same_videos() -> None:
    paper = load_protocol("tsn-eccv16")
    differing = found(paper, run_of(settle_protocol(paper), init=begun(paper), batch=32))
    assert differing["streams.rgb.training.batch"] == (128, 32)
    epochs = -(-3500 * 128 // VIDEOS)
    assert differing["streams.rgb.training.iterations"] == (3500, epochs * -(-VIDEOS // 32))
    assert differing["streams.rgb.training.iterations"][1] == pytest.approx(4 * 3500, rel=0.02)


def test_weights_that_are_given_leave_their_training_out() -> None:
    paper = load_protocol("tsn-eccv16")
    here = settle_protocol(paper, overrides={"streams.rgb.training.lr": 0.5, "streams.rgb.train.mirror": False})
    both = run_of(here, weights={"rgb": "a", "flow": "b"}, epochs=3, batch=8)
    assert found(paper, both) == {}
    one = found(paper, run_of(here, weights={"rgb": "a"}, epochs=3, batch=8))
    assert one and all(name.startswith("streams.flow.training.") for name in one)


def test_weights_of_every_network_of_an_ensemble_leave_its_training_out() -> None:
    paper = load_protocol("c3d-svm-3nets")
    three = {f"rgb-{number}": "file" for number in (1, 2, 3)}
    assert found(paper, run_of(settle_protocol(paper), weights=three)) == {}
    two = {"rgb-1": "file", "rgb-2": "file"}
    assert "streams.rgb.training.init" in found(paper, run_of(settle_protocol(paper), weights=two))


def test_what_else_is_known_is_added() -> None:
    paper = load_protocol("c3d-finetuned")
    fact = Deviation(field="streams.rgb.weights", paper="x", here="y")
    config = run_of(settle_protocol(paper), init=begun(paper))
    assert deviations(paper, config, videos=VIDEOS, facts=[fact]) == [fact]


# Networks


def test_an_ensemble_has_a_network_a_name() -> None:
    assert [net.name for net in nets_of(load_protocol("c3d-svm-3nets"))] == ["rgb-1", "rgb-2", "rgb-3"]
    assert [net.name for net in nets_of(load_protocol("c3d-svm"))] == ["rgb"]
    assert [net.name for net in nets_of(load_protocol("two-stream"))] == ["spatial", "temporal"]
    assert nets_of(load_protocol("idt-bow")) == []


def test_streams_that_there_are_not_are_named_with_those_there_are() -> None:
    check_streams(["rgb-2"], load_protocol("c3d-svm-3nets"), what="--weights")
    with pytest.raises(ConfigError, match="no stream 'rgb' in two-stream") as caught:
        check_streams(["rgb"], load_protocol("two-stream"), what="--weights")
    assert "spatial, temporal" in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        check_streams(["rgb"], load_protocol("idt-bow"), what="--init")
    assert "trajectories alone" in caught.value.remedy
