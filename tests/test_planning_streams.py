"""Streams, segments and stages of a plan: the paper's where the data allow it, and why."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_planning import cohort, facts, spread

from volrec.config import IntensityConfig, StreamsConfig
from volrec.errors import ConfigError
from volrec.inference.inputs import make_input
from volrec.networks import create, freeze_stages, list_networks, spec
from volrec.planning import PlanResult, make_plan
from volrec.planning.streams import stream_channels


def plan(
    name: str,
    canvas: tuple[int, int, int] = (40, 64, 64),
    *,
    studies: int = 200,
    given: dict[str, Any] | None = None,
    **keys: Any,
) -> PlanResult:
    """Plan a network for stacks of this size; underscores stand for the dots of keys."""
    size: Any = tuple(spread(side) for side in canvas)
    found = facts(size, (spread(2.0), spread(1.0), spread(1.0)), studies=studies)
    fixed = {"preprocess.canvas": list(canvas), "preprocess.spacing": [2.0, 1.0, 1.0]}
    if given is None or "network" not in given:
        fixed["network.name"] = name
    fixed |= {key.replace("__", "."): value for key, value in keys.items()}
    return make_plan(cohort(), given or {}, facts=found, overrides=fixed)


@pytest.mark.parametrize("name", list_networks())
def test_a_network_is_given_the_streams_segments_and_stages_of_its_paper(name: str) -> None:
    made = plan(name)
    config, known = made.config, spec(name)
    assert tuple(config.streams.inputs) == known.streams
    assert ("streams.inputs" in made.reasons) == (known.streams != ("intensity",))
    assert (config.sampling.train == "segments") == (known.segments > 0)
    assert [stage.name for stage in config.stages] == [stage.name for stage in known.training]
    for stage in config.stages:
        assert made.reasons[f"stages.{stage.name}"]
    if config.streams.field:
        assert config.streams.flow.order == ("centred" if name == "two-stream-fusion" else "forward")


@pytest.mark.parametrize(("slices", "stack"), [(1, 1), (8, 1), (12, 2), (40, 5), (78, 10), (400, 10)])
def test_an_eighth_of_the_stack_is_carried_as_fields(slices: int, stack: int) -> None:
    made = plan("two-stream", (slices, 64, 64))
    assert made.config.streams.flow.stack == stack
    assert made.reasons["streams.flow"].startswith(f"{stack} field{'s' * (stack > 1)} a slice")


@pytest.mark.parametrize(("side", "bound"), [(224, 20.0), (112, 10.0), (48, 4.3), (64, 5.7)])
def test_the_bound_of_displacements_is_the_paper_s_share_of_a_side(side: int, bound: float) -> None:
    assert plan("two-stream", (12, 32, side)).config.streams.flow.bound == bound
    assert plan("two-stream", (12, side, 32)).config.streams.flow.bound == bound


def test_an_estimator_is_taken_that_is_there_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volrec.parallel.available_cpus", lambda: 2)
    few = plan("two-stream", (40, 224, 224), studies=20)
    assert few.config.streams.flow.method == "tvl1"
    assert few.reasons["streams.flow.method"] == "the papers' estimator"
    # 200 studies x 40 slices x .84 s on two cores.
    many = plan("two-stream", (40, 224, 224), studies=200)
    assert many.config.streams.flow.method == "farneback"
    assert "about 56 minutes" in many.reasons["streams.flow.method"]
    asked = plan("two-stream", (40, 224, 224), studies=200, streams__flow__method="tvl1")
    assert asked.config.streams.flow.method == "tvl1"
    assert asked.reasons["streams.flow.method"] == "set by you"
    monkeypatch.setitem(sys.modules, "cv2", None)
    without = plan("two-stream", (40, 224, 224), studies=20)
    assert without.config.streams.flow.method == "demons"
    assert "extra flow" in without.reasons["streams.flow.method"]


def test_streams_that_the_user_asks_for_are_planned_as_far_as_they_go() -> None:
    alone = plan("two-stream", streams__inputs=["intensity"])
    assert alone.config.streams == StreamsConfig()
    assert alone.reasons["streams.inputs"] == "set by you"
    assert "streams.flow" not in alone.reasons
    difference = plan("tsn", streams__inputs=["difference"])
    assert difference.config.streams.inputs == ["difference"]
    assert "streams.flow" not in difference.reasons
    warped = plan("tsn", (40, 112, 64), streams__inputs=["warped"])
    assert (warped.config.streams.flow.stack, warped.config.streams.flow.bound) == (5, 10.0)
    written = plan("two-stream", given={"streams": {"inputs": ["intensity", "flow"]}})
    assert written.config.streams.flow.stack == 1  # a section that is there is obeyed


@pytest.mark.parametrize("kind", ["window", "zscore"])
@pytest.mark.parametrize(
    "inputs", [["intensity"], ["flow"], ["intensity", "flow", "difference"], ["difference"], ["intensity", "warped"]]
)
def test_channels_are_counted_as_they_are_made(inputs: list[str], kind: Any) -> None:
    streams = {"inputs": inputs, "flow": {"stack": 3}, "difference_stack": 2}
    intensity = IntensityConfig(kind=kind, windows=["brain", "bone"] if kind == "window" else [])
    made = make_input(intensity, StreamsConfig(**streams))  # type: ignore[arg-type]
    assert stream_channels(streams, len(intensity.windows) or 1) == made.channels


SEGMENTS = [
    # 2D: a slice in each of seven parts or as many as the paper has, up to the slices that there are.
    ("tsn", {}, 40, 7, 1),
    ("tsn", {}, 5, 5, 1),
    ("tsn", {"segments": 3}, 40, 3, 1),
    ("two-stream-fusion", {}, 40, 7, 1),
    ("actionvlad", {}, 40, 25, 1),
    ("actionvlad", {}, 12, 12, 1),
    ("actionvlad", {"network": "slice-mean"}, 40, 25, 1),
    # A network within that reads several slices: snippets of as many as there are for each, up to eight.
    ("tsn", {"network": "c3d"}, 80, 7, 8),
    ("tsn", {"network": "c3d"}, 40, 7, 5),
    # Fewer parts where these would have less than four.
    ("tsn", {"network": "c3d"}, 12, 3, 4),
    ("tsn", {"network": "c3d"}, 6, 2, 3),
    ("tsn", {"network": "c3d", "segments": 6}, 12, 6, 2),
    ("tsn", {"network": "c3d", "snippet_length": 2}, 40, 7, 2),
]


@pytest.mark.parametrize(("name", "options", "slices", "segments", "snippet"), SEGMENTS)
def test_snippets_are_drawn_from_parts_of_the_stack(
    name: str, options: dict[str, Any], slices: int, segments: int, snippet: int
) -> None:
    keys: dict[str, Any] = {f"network__options__{key}": value for key, value in options.items()}
    made = plan(name, (slices, 64, 64), **keys)
    sampling, network = made.config.sampling, made.config.network
    assert (sampling.train, sampling.clip_length, sampling.snippet_length) == ("segments", segments * snippet, snippet)
    assert f"{segments} parts" in made.reasons["sampling.train"]
    built = create(network.name, num_classes=1, width=0.0625, **network.options)
    if name == "tsn":
        assert network.options["segments"] == segments
        assert network.options.get("snippet_length", 1) == snippet
    assert built.eval()(torch.zeros(1, 1, sampling.clip_length, 64, 64)).shape == (1, 1)


def test_a_3d_network_within_actionvlad_reads_slices_that_are_neighbours() -> None:
    made = plan("actionvlad", network__options__network="c3d")
    assert (made.config.sampling.train, made.config.sampling.clip_length) == ("center", 40)


def test_contiguous_clips_of_the_user_leave_the_network_as_it_is() -> None:
    sampling = {"clip_length": 16, "train": "random"}
    made = plan("tsn", given={"sampling": sampling}, network__options__network="c3d")
    assert not {"segments", "snippet_length"} & set(made.config.network.options)


def test_a_network_that_is_written_down_learns_the_snippets_that_are_planned() -> None:
    written = {"name": "tsn", "options": {"network": "c3d", "dropout": 0.1}}
    made = plan("", given={"network": written}).config
    assert made.network.options == {"network": "c3d", "dropout": 0.1, "segments": 7, "snippet_length": 5}
    written["options"] = {"network": "c3d", "segments": 4, "snippet_length": 3}
    made = plan("", given={"network": written}).config
    assert made.network.options == written["options"]
    assert made.sampling.clip_length == 12
    assert plan("", given={"network": {"name": "c3d"}}).config.network.options == {}


@pytest.mark.parametrize("name", ["tsn", "actionvlad"])
def test_detail_and_slices_are_kept_by_the_network_within(name: str) -> None:
    within = plan(name, network__options__network="i3d").config.network.options
    alone = plan("i3d").config.network.options
    assert "stem_stride" not in within  # there is no stem but that of the network within
    assert within["network_options"]["stem_stride"] == alone["stem_stride"] == 1
    if name == "tsn":  # which reads snippets of five slices: not one may be merged
        assert within["network_options"]["temporal_strides"] == [1, 1, 1, 1, 1]
    else:
        assert within["network_options"]["temporal_strides"] == alone["temporal_strides"]
    asked = {"network__options__network": "i3d", "network__options__network_options__dropout": 0.1}
    assert plan(name, **asked).config.network.options["network_options"]["dropout"] == 0.1


def test_a_reader_of_fields_within_keeps_their_slices() -> None:
    options = plan("hidden-two-stream", (8, 64, 64), network__options__temporal_network="i3d").config.network.options
    assert options["stem_stride"] == 1  # of the spatial stream
    assert options["temporal_options"] == plan("i3d", (8, 64, 64)).config.network.options
    create("hidden-two-stream", num_classes=1, width=0.0625, **options)


def test_slice_labels_are_of_use_where_slices_are_read_one_by_one() -> None:
    labelled = cohort()
    labelled.cases = tuple(SimpleNamespace(**vars(case), slice_targets=[0.0]) for case in labelled.cases)
    size: Any = (spread(40), spread(64), spread(64))
    found = facts(size, (spread(2.0), spread(1.0), spread(1.0)))
    for within, notes in ((None, 0), ("slice-mean", 1), ("c3d", 1)):
        fixed = {"network.name": "tsn", **({"network.options.network": within} if within else {})}
        assert len(make_plan(labelled, {}, facts=found, overrides=fixed).notes) == notes


def lengths(made: PlanResult) -> list[tuple[int | None, float | None]]:
    return [(stage.epochs, stage.lr) for stage in made.config.stages]


@pytest.mark.parametrize(
    ("epochs", "expected"), [(100, [30, 40, 30]), (10, [3, 4, 3]), (5, [2, 2, 1]), (4, [1, 2, 1]), (1, [1, 1, 1])]
)
def test_stages_share_the_epochs_of_the_whole(epochs: int, expected: list[int]) -> None:
    made = plan("hidden-two-stream", trainer__epochs=epochs, optim__lr=0.002)
    assert [stage.epochs for stage in made.config.stages] == expected
    assert [stage.lr for stage in made.config.stages] == [0.002, 0.002, 0.0002]
    assert [stage.objective for stage in made.config.stages] == ["motion", "labels", "joint"]


def test_stages_that_are_written_down_follow_the_whole_and_keep_what_is_open() -> None:
    stages = [
        {"name": "a", "epochs": 10, "lr": 1e-3},
        {"name": "b", "epochs": None, "lr": None},
        {"name": "c", "epochs": 30},
    ]
    given = {"network": {"name": "c3d"}, "stages": stages, "trainer": {"epochs": 40}, "optim": {"lr": 1e-3}}
    assert lengths(plan("", given=given)) == [(10, 1e-3), (None, None), (30, None)]
    made = plan("", given=given, trainer__epochs=8)
    assert lengths(made) == [(2, 1e-3), (None, None), (6, None)]
    assert made.reasons["stages"] == "in proportion to trainer.epochs, which you set"
    assert lengths(plan("", given=given, optim__lr=1e-4)) == [(10, 1e-4), (None, None), (30, None)]
    # Without a length beside them, nothing says what they are shares of.
    alone = {key: value for key, value in given.items() if key not in ("trainer", "optim")}
    assert lengths(plan("", given=alone, trainer__epochs=8)) == [(10, 1e-3), (None, None), (30, None)]
    assert stages[0]["epochs"] == 10


def test_a_stage_is_changed_by_its_name() -> None:
    made = plan("hidden-two-stream", trainer__epochs=10, stages__motion__epochs=7)
    assert [stage.epochs for stage in made.config.stages] == [7, 4, 3]
    assert made.reasons["stages.motion"].endswith("without labels; epochs set by you")
    with pytest.raises(ConfigError, match="did you mean 'motion'"):
        plan("hidden-two-stream", stages__moton__epochs=7)
    whole = plan("hidden-two-stream", stages=[{"name": "once"}])
    assert [stage.name for stage in whole.config.stages] == ["once"]


REFINING = [
    ({}, ["classifier", "fine"]),
    ({"tap": "conv4_3"}, ["classifier", "fine"]),
    # Other networks have no conv1 to conv4, and without a vocabulary there are no words.
    ({"backbone": "resnet-18"}, []),
    ({"pooling": "average"}, []),
    ({"network": "slice-mean"}, []),
    ({"network": "i3d"}, []),
]


@pytest.mark.parametrize(("options", "stages"), REFINING)
def test_weights_that_exist_are_refined_in_stages_where_the_network_has_the_paper_s_parts(
    options: dict[str, Any], stages: list[str]
) -> None:
    keys: dict[str, Any] = {f"network__options__{key}": value for key, value in options.items()}
    assert plan("actionvlad", **keys).config.stages == []
    made = plan("actionvlad", init__source="run", **keys)
    assert [stage.name for stage in made.config.stages] == stages
    if not stages:
        assert "there is no " in made.reasons["stages"]
    network = made.config.network
    for stage in made.config.stages:
        freeze_stages(create(network.name, num_classes=1, width=0.0625, **network.options), stage.freeze)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("two-stream-fusion", {"fusion": "sum", "temporal_branch": False}),
        ("two-stream-fusion", {"spatial_backbone": "resnet-18", "temporal_backbone": "resnet-18"}),
        ("hidden-two-stream", {"use_spatial": False}),
        ("hidden-two-stream", {"temporal_network": "i3d"}),
    ],
)
def test_what_stages_freeze_is_there_whatever_the_options(name: str, options: dict[str, Any]) -> None:
    keys: dict[str, Any] = {f"network__options__{key}": value for key, value in options.items()}
    config = plan(name, **keys).config
    assert config.stages
    for stage in config.stages:
        network = create(name, num_classes=2, in_channels=3, width=0.0625, **config.network.options)
        freeze_stages(network, stage.freeze)


def test_a_canvas_that_is_open_leaves_the_slices_to_the_studies() -> None:
    size: Any = (spread(30, 40, 50), spread(64), spread(64))
    found = facts(size, (spread(2.0), spread(1.0), spread(1.0)))
    fixed = {"network.name": "two-stream", "preprocess.canvas": [None, None, None]}
    streams = make_plan(cohort(), {}, facts=found, overrides=fixed).config.streams
    assert streams.flow.stack == 5
    assert streams.flow.bound == 5.7
