"""Training of a stream: the paper's course in a shorter time, stages in turn, and the same after an interruption."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_videos import a_config, a_set, a_stream, coloured, write_extracted

import volrec.benchmarks.training as training
from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.sets import Video, VideoSet
from volrec.benchmarks.training import StreamModule, create_network, fit_stream, paper_epochs, rate_factor
from volrec.config import BenchmarkConfig, StreamProtocol
from volrec.errors import Problem
from volrec.networks import spec
from volrec.runs import Member
from volrec.training.devices import translate_failure
from volrec.training.interrupts import Interrupted, StopFlag

FRAMES = {"mean": [127.5], "scale": [0.02]}
VIEWS = {"length": 2, "crop": "center"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    found = coloured(tmp_path_factory.mktemp("videos"))
    return a_set(found, found)


def learner(network: str = "slice-mean", options: dict[str, Any] | None = None, **keys: Any) -> StreamProtocol:
    """Return a stream that learns fast."""
    course = {"lr": 0.05, "momentum": 0.9, "batch": 3, "iterations": 8, "steps": [6], **keys.pop("training", {})}
    built = {"name": network, "options": options or {}}
    return a_stream(**{"network": built, "frames": FRAMES, "train": VIEWS, "training": course, **keys})


def fit(
    stream: StreamProtocol, videos: VideoSet, folder: Path, config: BenchmarkConfig | None = None, **keys: Any
) -> list[Problem]:
    config = config or a_config(stream, **{"epochs": 4, **keys})
    return fit_stream(config, stream, videos, member=Member(folder), card={"split_id": videos.split.id})


def weights(member: Member | Path) -> dict[str, torch.Tensor]:
    return load_file((member if isinstance(member, Member) else Member(member)).weights)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The course


def test_the_rate_falls_at_the_papers_steps() -> None:
    stream = learner(training={"iterations": 1000, "steps": [400, 900], "gamma": 0.5})
    assert [rate_factor(done, stream) for done in (0, 0.399, 0.4, 0.899, 0.9, 1)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


@given(updates=st.integers(1, 5000), iterations=st.integers(1, 2_000_000), share=st.fractions(0, 1))
def test_a_step_comes_at_its_share_whatever_the_length(updates: int, iterations: int, share: Fraction) -> None:
    """Counted in whole numbers: update u of U is past step s of S where u S >= s U."""
    step = max(1, int(share * iterations))
    stream = learner(training={"iterations": iterations, "steps": [step]})
    first = -(-step * updates // iterations)
    for update in (first - 1, first):
        passed = update * iterations >= step * updates
        assert rate_factor(update / updates, stream) == pytest.approx(0.1 if passed else 1)


def test_a_training_as_long_as_the_papers_steps_where_the_paper_does() -> None:
    stream = learner(training={"iterations": 49, "steps": list(range(1, 50))})
    assert [round(np.log10(1 / rate_factor(done / 49, stream))) for done in range(50)] == list(range(50))


@pytest.mark.parametrize(
    ("count", "asked", "found"), [(9537, 0, 47), (100, 0, 4480), (9537, 3, 3), (10**9, 0, 1), (448000, 0, 1)]
)
def test_epochs_are_those_asked_for_or_as_many_as_the_papers_updates(count: int, asked: int, found: int) -> None:
    stream = learner(training={"iterations": 3500, "batch": 128})
    assert paper_epochs(stream, videos=count, epochs=asked) == found


@pytest.mark.parametrize("batch", [1, 16, 24, 30, 96, 128, 256, 384, 25])
def test_an_update_is_of_as_many_videos_as_the_paper_says(batch: int) -> None:
    stream = learner(training={"batch": batch})
    optim = a_config(stream).for_stream(stream, epochs=1).optim
    assert optim.batch_size * optim.accumulate == batch and optim.batch_size <= 16


def test_an_update_that_cannot_be_divided_is_a_little_larger() -> None:
    stream = learner(training={"batch": 61})
    optim = a_config(stream).for_stream(stream, epochs=1).optim
    assert 61 <= optim.batch_size * optim.accumulate <= 64 and optim.batch_size <= 16


def test_optimisers_are_the_papers(videos: VideoSet) -> None:
    for name, kind, facts in (
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "lr": 0.2}),
        ("adam", torch.optim.Adam, {"eps": 1e-4, "lr": 0.2}),
        ("adamw", torch.optim.AdamW, {"eps": 1e-4, "lr": 0.2}),
    ):
        course = {"optimizer": name, "momentum": 0.8, "nesterov": True, "epsilon": 1e-4, "lr": 0.2, "weight_decay": 0.3}
        stream = learner(training=course)
        config = a_config(stream).for_stream(stream, epochs=2)
        module = StreamModule(
            stream=stream.to_dict(),
            num_classes=2,
            optim=config.optim.to_dict(),
            seed=0,
            steps_per_epoch=4,
            epochs=2,
            stage={"freeze": [], "objective": "labels", "motion_weight": 1.0},
            split={},
        )
        made = module.configure_optimizers()["optimizer"]
        assert type(made) is kind and all(made.defaults[key] == value for key, value in facts.items())
        assert {group["weight_decay"] for group in made.param_groups} == {0.3, 0.0}


# A training


def test_what_can_be_told_apart_is_learned_and_kept(videos: VideoSet, tmp_path: Path) -> None:
    stream = learner()
    assert fit(stream, videos, tmp_path / "m", epochs=12) == []
    member = Member(tmp_path / "m")
    history = member.history()
    assert member.finished and len(history) == 12
    assert history["train_loss"].iloc[-1] < 0.2 * history["train_loss"].iloc[0]
    # 2 updates an epoch; the step after 6 of 8 updates comes after 18 of 24.
    assert history["lr"].tolist() == pytest.approx([0.05] * 9 + [0.005] * 3)
    card = member.card()
    assert card["split_id"] == "motion/1" and (card["epoch"], card["epochs"]) == (11, 12)
    kept = torch.load(member.checkpoint, weights_only=True)["hyper_parameters"]
    assert kept["split"] == {"split_id": "motion/1", "split_digest": "0123456789abcdef"}
    assert kept["stream"]["name"] == "rgb"


def interrupt(patch: pytest.MonkeyPatch, *, stage: str | None, epoch: int) -> None:
    """Ask for a stop in the first step of an epoch."""
    flags: list[StopFlag] = []
    init, original = StopFlag.__init__, StreamModule.training_step

    def noted(self: StopFlag) -> None:
        init(self)
        flags.append(self)

    def step(self: StreamModule, batch: Any, number: int) -> torch.Tensor:
        if self.current_epoch == epoch and (stage is None or self.objective == stage):
            flags[-1].requested = True
        return original(self, batch, number)

    patch.setattr(StopFlag, "__init__", noted)
    patch.setattr(StreamModule, "training_step", step)


def test_a_training_that_was_interrupted_ends_as_if_it_had_not_been(
    videos: VideoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = learner(options={"dropout": 0.5}, training={"batch": 4})
    fit(stream, videos, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, stage=None, epoch=2)
        with pytest.raises(Interrupted, match="benchmark --resume"):
            fit(stream, videos, tmp_path / "run" / "cut")
    cut = Member(tmp_path / "run" / "cut")
    assert len(cut.history()) == 2 and not cut.finished
    fit(stream, videos, cut.path)
    assert cut.finished and same(weights(tmp_path / "whole"), weights(cut))
    columns = ["epoch", "step", "lr", "train_loss"]
    assert cut.history()[columns].equals(Member(tmp_path / "whole").history()[columns])


def test_a_seed_and_loading_processes(videos: VideoSet, tmp_path: Path) -> None:
    stream = learner()
    fit(stream, videos, tmp_path / "a", epochs=1)
    fit(stream, videos, tmp_path / "b", epochs=1, workers=2)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    config = a_config(stream, epochs=1)
    other = config.model_copy(update={"trainer": config.trainer.model_copy(update={"seed": 1})})
    fit(stream, videos, tmp_path / "c", config=other)
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_gradients_of_several_steps_make_one_update(videos: VideoSet, tmp_path: Path) -> None:
    """Of a network without a normalisation by batch the weights are those of the batch at once."""
    stream = learner("two-stream", {"tower": "spatial", "norm": "none", "dropout": 0.0}, training={"batch": 6})
    fit(stream, videos, tmp_path / "once", epochs=2)
    fit(stream, videos, tmp_path / "steps", epochs=2, step_batch=2)
    one, other = (Member(tmp_path / name).history() for name in ("once", "steps"))
    assert one["step"].tolist() == other["step"].tolist() == [1, 2]
    assert np.allclose(one["train_loss"], other["train_loss"], atol=1e-5)
    first, second = weights(tmp_path / "once"), weights(tmp_path / "steps")
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_bad_videos_are_counted_and_the_others_are_learned(videos: VideoSet, tmp_path: Path) -> None:
    gone = Video("gone", tmp_path / "gone.mp4", (1,))
    stream = learner()
    problems = fit(stream, a_set([*videos.split.train, gone], []), tmp_path / "m", epochs=3)
    assert [(problem.study, problem.where) for problem in problems] == [("gone", str(gone.path))]
    assert Member(tmp_path / "m").finished and np.isfinite(Member(tmp_path / "m").history()["train_loss"]).all()


# Trainings in turn


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: str) -> bool:
    chosen = [name for name in one if name.startswith(start) and one[name].is_floating_point()]
    assert chosen
    return any(not torch.equal(one[name], other[name]) for name in chosen)


def test_hidden_two_stream_learns_motion_then_labels_then_both(
    videos: VideoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = learner(
        "hidden-two-stream",
        {"fields": 2, "use_spatial": False, "levels": 3},
        train={"length": 3},
        training={"lr": 1e-4},
    )
    began: list[tuple[str, float, dict[str, torch.Tensor]]] = []
    loop = training.run_loop

    def noted(config: BenchmarkConfig, **keys: Any) -> Any:
        module = keys["module"]
        state = {name: value.clone() for name, value in module.network.state_dict().items()}
        began.append((module.objective, config.optim.lr, state))
        return loop(config, **keys)

    monkeypatch.setattr(training, "run_loop", noted)
    with monkeypatch.context() as patch:
        interrupt(patch, stage="labels", epoch=0)
        with pytest.raises(Interrupted):
            fit(stream, videos, tmp_path / "m", epochs=3)
    assert Member(tmp_path / "m").stage("motion").finished
    began.pop()
    fit(stream, videos, tmp_path / "m", epochs=3)
    member = Member(tmp_path / "m")
    assert [objective for objective, *_ in began] == ["motion", "labels", "joint"]
    # The protocol's rate is that of the last one, a tenth of those before.
    assert [lr for _, lr, _ in began] == pytest.approx([1e-3, 1e-3, 1e-4])
    first, second, last = (weights(one) for one in (member.stage("motion"), member.stage("temporal"), member))
    fresh, *starts = (state for *_, state in began)
    assert same(starts[0], first) and same(starts[1], second)
    assert moved(fresh, first, "motion.") and not moved(fresh, first, "temporal.")
    assert not moved(first, second, "motion.") and moved(first, second, "temporal.")
    assert moved(second, last, "motion.") and moved(second, last, "temporal.")


def test_two_stream_fusion_learns_its_towers_then_their_fusion(tmp_path: Path) -> None:
    found = []
    for place in range(4):
        write_extracted(tmp_path / "out" / f"v{place}", frames=8, seed=place)
        found.append(Video(f"v{place}", tmp_path / "gone.mp4", (place % 2,)))
    stream = learner(
        "two-stream-fusion",
        name="fusion",
        reads=["rgb", "flow"],
        motion={"stack": 2, "order": "centred", "gain": 0.05},
        train={"length": 2, "stride": 2},
        frames={**FRAMES, "crop": 16},
        training={"lr": 0.001},
    )
    config = a_config(stream, epochs=2, extracted=str(tmp_path / "out"))
    fit(stream, a_set(found, []), tmp_path / "m", config=config)
    member = Member(tmp_path / "m")
    before, after = weights(member.stage("streams")), weights(member)
    assert not moved(before, after, "spatial.") and not moved(before, after, "temporal.")
    assert moved(before, after, "fuse.") and moved(before, after, "classifier.")
    rates = [one.history()["lr"].iloc[0] for one in (member.stage("streams"), member)]
    assert rates == pytest.approx([0.01, 0.001])


def test_the_papers_two_trainings_of_actionvlad_have_its_rates_and_lengths(
    videos: VideoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 updates at .01, then the protocol's 8,000 at .0001, of first weights that exist."""
    course = {"lr": 1e-4, "iterations": 8000, "batch": 16}
    stream = learner("actionvlad", {"words": 4}, training=course)
    config = a_config(stream, init={"rgb": "weights.safetensors"})
    done: list[tuple[str, float, int]] = []

    def noted(config: BenchmarkConfig, stream: StreamProtocol, stage: Any, videos: VideoSet, **_: Any) -> list[Problem]:
        done.append((stage.name, config.optim.lr, config.trainer.epochs))
        assert stream.training.lr == config.optim.lr
        return []

    monkeypatch.setattr(training, "_fit_stage", noted)
    fit(stream, videos, tmp_path / "m", config=config)
    per_epoch = len(videos.split.train) / 16
    assert [name for name, *_ in done] == [stage.name for stage in spec("actionvlad").refining]
    assert [lr for _, lr, _ in done] == pytest.approx([1e-2, 1e-4])
    assert [epochs * per_epoch for *_, epochs in done] == pytest.approx([10000, 8000], rel=1e-3)


def test_words_are_found_once_before_the_training(
    videos: VideoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = learner("actionvlad", {"words": 3}, train={"segments": 2})
    calls: list[int] = []
    fit_words = training.fit_words

    def counted(network: Any, batches: Any, **keys: Any) -> int:
        calls.append(fit_words(network, batches, **keys))
        return calls[-1]

    monkeypatch.setattr(training, "fit_words", counted)
    with monkeypatch.context() as patch:
        interrupt(patch, stage=None, epoch=1)
        with pytest.raises(Interrupted):
            fit(stream, videos, tmp_path / "run" / "m", epochs=2)
    fit(stream, videos, tmp_path / "run" / "m", epochs=2)
    assert len(calls) == 1 and calls[0] > 3
    fit(stream, videos, tmp_path / "whole", epochs=2)
    assert len(calls) == 2 and same(weights(tmp_path / "whole"), weights(tmp_path / "run" / "m"))


# First weights


def test_frozen_layers_keep_first_weights_that_are_given_and_learn_without(videos: VideoSet, tmp_path: Path) -> None:
    fit(learner(), videos, tmp_path / "source", epochs=1)
    source = Member(tmp_path / "source")
    stream = learner(training={"freeze": ["encoder.stage1.*"]})
    fit(stream, videos, tmp_path / "given", epochs=1, init={"rgb": str(source.weights)})
    given_, before = weights(tmp_path / "given"), weights(source)
    assert not moved(before, given_, "encoder.stage1.") and moved(before, given_, "classifier.")
    assert moved(before, given_, "encoder.stage2.")
    card = Member(tmp_path / "given").card()
    assert card["init"]["source"] and json.loads(Member(tmp_path / "given").init_path.read_text())["keys"]
    fit(stream, videos, tmp_path / "drawn", epochs=1)
    torch.manual_seed(0)
    with_seed = StreamModule(
        stream=stream.to_dict(),
        num_classes=2,
        optim=a_config(stream).for_stream(stream, epochs=1).optim.to_dict(),
        seed=0,
        steps_per_epoch=1,
        epochs=1,
        stage={"freeze": [], "objective": "labels", "motion_weight": 1.0},
        split={},
    )
    fresh = dict(with_seed.network.state_dict())
    assert moved(fresh, weights(tmp_path / "drawn"), "encoder.stage1.")
    assert Member(tmp_path / "drawn").card()["init"] == {}


@pytest.mark.parametrize(
    ("reads", "motion", "channels"),
    [(["rgb"], None, 3), (["flow"], {"stack": 5}, 10), (["difference"], {"stack": 5, "eight_bit": False}, 15)],
)
def test_networks_are_built_for_what_a_stream_reads(reads: list[str], motion: Any, channels: int) -> None:
    network = create_network(a_stream(reads=reads, motion=motion), num_classes=7)
    assert (network.in_channels, network.num_classes) == (channels, 7)


def test_a_network_of_both_kinds_of_channels_knows_which_is_which() -> None:
    stream = a_stream(network={"name": "two-stream-fusion"}, reads=["rgb", "flow"], motion={"stack": 2})
    assert create_network(stream, num_classes=2).architecture["options"]["appearance_channels"] == 3


def test_out_of_memory_says_what_a_benchmark_can_change() -> None:
    config = BenchmarkConfig(protocol=load_protocol("c3d-finetuned"))
    own = config.for_stream(config.protocol.streams[0], epochs=1)
    failure = translate_failure(torch.OutOfMemoryError("CUDA out of memory"), config=own, in_hand=[])
    assert failure is not None and failure.where == "--step-batch"
    assert "15 videos at a time" in failure.problem and "--step-batch 7" in str(failure.remedy)
