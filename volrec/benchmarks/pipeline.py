"""A run of a benchmark: split by split and stream by stream, trained, tested, fused; what is finished is not redone."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volrec.benchmarks.extraction import extract
from volrec.benchmarks.fusion import check_split, fuse
from volrec.benchmarks.metrics import metric_of
from volrec.benchmarks.results import BenchmarkResult, Decoder, Deviation, SplitResult, WeightsUsed, write_result
from volrec.benchmarks.scores import ScoreSet, class_order
from volrec.benchmarks.sets import Video, VideoSet, open_set
from volrec.benchmarks.settings import deviations
from volrec.benchmarks.streams import score_videos
from volrec.benchmarks.testing import StreamScorer
from volrec.benchmarks.training import fit_stream
from volrec.config import BenchmarkConfig, StreamProtocol, VideoProtocol
from volrec.errors import ConfigError, Problem, RunError
from volrec.networks.base import SequenceNetwork
from volrec.runs import Member, RunFolder
from volrec.training.devices import own_device, place
from volrec.versions import collect_versions
from volrec.weights import load_network

__all__ = ["BenchmarkRun", "Finished", "run_benchmark"]

log = logging.getLogger(__name__)

SINGLE_LABEL = ("video-top1", "video-top5", "mean-class-accuracy")
SEVERAL_LABELS = ("video-hit1", "video-hit5")
CLIP = {False: "clip-top1", True: "clip-hit1"}
Say = Callable[[str], None]


class BenchmarkRun(RunFolder):
    """The folder of a benchmark run: config, versions, members ``split-1-rgb`` .., scores, ``benchmark.json``."""

    schema = BenchmarkConfig

    def stream(self, split: str, name: str) -> Member:
        """Return the folder of a stream on a split."""
        return self.member(f"split-{split}-{name}")

    def fused(self, split: str) -> Path:
        """Return the file of the fused scores of a split."""
        return self.path / f"split-{split}.safetensors"


@dataclass
class Finished:
    """What came of a run.

    Attributes
    ----------
    result : BenchmarkResult, optional
        Numbers; None where only training was asked for.
    problems : list of Problem
        Of the sets and the videos.
    scores : mapping
        Fused scores by split.
    """

    result: BenchmarkResult | None = None
    problems: list[Problem] = field(default_factory=list)
    scores: dict[str, ScoreSet] = field(default_factory=dict)


@dataclass(frozen=True)
class _Side:
    """One stream on one split, ready to score."""

    stream: StreamProtocol
    member: Member
    network: SequenceNetwork
    card: Mapping[str, Any]
    used: WeightsUsed


def run_benchmark(
    run: BenchmarkRun, paper: VideoProtocol, *, jobs: int = 1, allow_leak: bool = False, say: Say = log.info
) -> Finished:
    """Do what the configuration of a run says; goes on where it was stopped.

    Parameters
    ----------
    run : BenchmarkRun
        Its folder.
    paper : VideoProtocol
        The paper's protocol, for what differs.
    jobs : int
        Videos in hand at a time.
    allow_leak : bool
        Test weights on a split that they were not trained for: the number is marked.
    say : callable
        Takes what a user may want to read on the way.

    Raises
    ------
    VolrecError
        Lists, splits, weights or videos that cannot be used.
    Interrupted
        After Ctrl-C or SIGTERM; the same run goes on later.
    """
    config: BenchmarkConfig = run.config
    done = Finished()
    splits, used, facts = [], [], []
    videos = None
    decoder = Decoder(name=config.decoder, version="")
    for split in config.splits:
        videos = open_set(config.dataset, config.root, split=split, lists=config.lists)
        for problem in videos.problems:
            if problem not in done.problems:
                done.problems.append(problem)
                say(f"{problem.reason} {problem.remedy}".strip())
        config = _with_pictures(run, config, videos, jobs=jobs, problems=done.problems, say=say)
        if "train" in config.parts:
            _train(run, config, videos, split, problems=done.problems, say=say)
        if "test" not in config.parts:
            continue
        sets, sides = _test(run, config, videos, split, jobs=jobs, allow_leak=allow_leak, done=done)
        fused = join_streams(config.protocol, sets)
        fused.write(run.fused(split))
        done.scores[split] = fused
        used += [side.used for side in sides]
        facts = [fact for side in sides for fact in _facts_of(side, videos)]
        decoder = _decoder(sets, decoder)
        splits.append(_split_result(videos, fused, sets))
    run.write_quarantine(done.problems)
    if splits and videos is not None:
        done.result = BenchmarkResult(
            dataset=config.dataset,
            protocol=config.protocol.name,
            splits=splits,
            streams=[stream.name for stream in config.protocol.streams],
            date=datetime.date.today().isoformat(),
            weights=used,
            decoder=decoder,
            deviations=deviations(paper, config, videos=len(videos.split.train), facts=facts),
            versions=collect_versions(),
            width=config.width,
            scale=config.scale,
            seed=config.trainer.seed,
        )
        write_result(run.path, done.result)
    run.finish()
    return done


def join_streams(protocol: VideoProtocol, sets: Sequence[ScoreSet]) -> ScoreSet:
    """Return the scores of the streams as one, by the rule of the protocol."""
    if len(sets) == 1:
        return sets[0]
    weights = [stream.weight for stream in protocol.streams]
    return fuse(list(sets), weights, protocol.fusion.stage)


def _train(
    run: BenchmarkRun, config: BenchmarkConfig, videos: VideoSet, split: str, *, problems: list[Problem], say: Say
) -> None:
    for stream in config.protocol.streams:
        member = run.stream(split, stream.name)
        if stream.name in config.weights or member.finished:
            continue
        say(f"Training {stream.name} on {videos.split.id}: {len(videos.split.train)} videos.")
        with run.logging():
            found = fit_stream(config, stream, videos, member=member, card=_card(config, stream, videos))
        problems += [problem for problem in found if problem not in problems]


def _test(
    run: BenchmarkRun,
    config: BenchmarkConfig,
    videos: VideoSet,
    split: str,
    *,
    jobs: int,
    allow_leak: bool,
    done: Finished,
) -> tuple[list[ScoreSet], list[_Side]]:
    """Return the scores of every stream on the test videos of a split."""
    device = own_device(place(config).accelerator)
    sets, sides = [], []
    for stream in config.protocol.streams:
        side = _side(run, config, stream, videos, split, allow_leak=allow_leak)
        scorer = StreamScorer(side.network, stream, device=device, seed=config.trainer.seed)
        classes = tuple(side.card.get("classes") or videos.classes)
        found, problems = score_videos(
            scorer,
            _relabelled(videos.split.test, videos.classes, classes),
            side.member.path / "scores.safetensors",
            classes=classes,
            facts=_score_facts(config, side, videos, classes),
            decoder=config.decoder,
            extracted=config.extracted,
            jobs=jobs,
            description=f"testing {stream.name} on {videos.split.id}",
        )
        done.problems += [problem for problem in problems if problem not in done.problems]
        sets.append(found)
        sides.append(side)
    return sets, sides


def _side(
    run: BenchmarkRun,
    config: BenchmarkConfig,
    stream: StreamProtocol,
    videos: VideoSet,
    split: str,
    *,
    allow_leak: bool,
) -> _Side:
    """Load the weights of a stream for a split, and make sure that they are for it."""
    member = run.stream(split, stream.name)
    given = config.weights.get(stream.name)
    path = Path(given.replace("{split}", split)) if given else member.weights
    if not given and not member.finished:
        raise RunError(
            f"the stream '{stream.name}' has no weights for {videos.split.id}.",
            remedy=f"Train it, or give some: --weights {stream.name}=FILE.",
            where=path,
            code="no-weights",
        )
    network, card = load_network(path)
    _check_fit(network, card, stream, videos, path)
    check_split(card, videos.split, allow_leak=allow_leak)
    used = WeightsUsed(
        file=path.name if given else f"{member.name}/{path.name}",
        sha256=card["tensors"]["sha256"],
        origin="given" if given else "trained here",
        stream=stream.name,
        split=videos.split.id,
    )
    return _Side(stream, member, network, card, used)


def _check_fit(
    network: SequenceNetwork, card: Mapping[str, Any], stream: StreamProtocol, videos: VideoSet, path: Path
) -> None:
    from volrec.benchmarks.reading import StreamReader

    channels = StreamReader(stream).channels
    architecture = card.get("architecture") or {}
    faults = []
    if network.registry_name != stream.network.name:
        faults.append(f"they are of {network.registry_name}, the protocol has {stream.network.name}")
    if architecture.get("in_channels") != channels:
        faults.append(f"they read {architecture.get('in_channels')} channels, the stream has {channels}")
    if network.num_classes != len(videos.classes):
        faults.append(f"they tell {network.num_classes} classes apart, {videos.name} has {len(videos.classes)}")
    theirs = card.get("classes")
    if theirs and set(theirs) != set(videos.classes):
        strange = sorted(set(theirs) - set(videos.classes)) or sorted(set(videos.classes) - set(theirs))
        faults.append(f"their classes are others ({', '.join(map(str, strange[:3]))})")
    if faults:
        raise RunError(
            f"these weights do not fit the stream '{stream.name}': {'; '.join(faults)}.",
            remedy="Give weights of that network for these classes, or begin with these and train: "
            f"--init {stream.name}={path}.",
            where=path,
            code="weights-mismatch",
        )


def _relabelled(videos: Sequence[Video], ours: Sequence[str], theirs: Sequence[str]) -> list[Video]:
    """Return labelled videos with labels as places in the classes of the weights, whose order may be another."""
    places = {name: place for place, name in enumerate(theirs)}
    return [
        Video(video.name, video.path, tuple(places[ours[label]] for label in video.labels), video.group)
        for video in videos
        if video.labels
    ]


def _card(config: BenchmarkConfig, stream: StreamProtocol, videos: VideoSet) -> dict[str, Any]:
    """Return what the card of weights that are trained here says."""
    return {
        "task": "multiclass",
        "targets": [videos.name],
        "classes": list(videos.classes),
        "set": videos.name,
        "split_id": videos.split.id,
        "split_digest": videos.split.digest,
        "protocol": config.protocol.name,
        "stream": stream.to_dict(),
        "decoder": config.decoder,
        "data_signature": videos.split.digest,
    }


def _score_facts(
    config: BenchmarkConfig, side: _Side, videos: VideoSet, classes: Sequence[str], *, test: bool = True
) -> dict[str, Any]:
    return {
        "set": videos.name,
        "split_id": videos.split.id,
        "split_digest": videos.split.digest,
        "side": "test" if test else "train",
        "protocol": config.protocol.name,
        "stream": side.stream.name,
        "stage": side.stream.test.stage,
        "views": side.stream.test.to_dict(),
        "frames": side.stream.frames.to_dict(),
        "weights": side.used.sha256,
        "decoder": config.decoder,
        "class_order": class_order(classes),
        "listed": videos.split.listed[1 if test else 0],
        "seed": config.trainer.seed,
    }


def _facts_of(side: _Side, videos: VideoSet) -> list[Deviation]:
    """Return what a given file of weights leaves unknown."""
    if side.used.origin == "trained here":
        return []
    name = f"streams.{side.stream.name}.weights"
    facts = [Deviation(field=name, paper="trained as the paper says", here=f"given: {side.used.file}")]
    if not side.card.get("classes"):
        facts.append(
            Deviation(field=f"{name}.classes", paper="known", here=f"not said; taken in the order of {videos.name}")
        )
    if side.card.get("split_id", videos.split.id) != videos.split.id:
        facts.append(
            Deviation(
                field=f"{name}.split",
                paper=videos.split.id,
                here=f"{side.card['split_id']}: trained on videos that are tested here",
            )
        )
    elif not side.card.get("split_id"):
        facts.append(Deviation(field=f"{name}.split", paper=videos.split.id, here="not said"))
    return facts


def _decoder(sets: Sequence[ScoreSet], before: Decoder) -> Decoder:
    from volrec.io.video import decoder_version

    return Decoder(name=before.name, version=before.version or decoder_version(before.name))


def _split_result(videos: VideoSet, fused: ScoreSet, sets: Sequence[ScoreSet]) -> SplitResult:
    names = SEVERAL_LABELS if videos.multilabel else SINGLE_LABEL

    def measured(scores: ScoreSet, *, clips: bool) -> dict[Any, float]:
        wanted = [*names, CLIP[videos.multilabel]] if clips else names
        return {name: 100 * metric_of(scores, name).value for name in wanted}

    whole = measured(fused, clips=len(sets) == 1 and bool(fused.clips.all()))
    return SplitResult(
        id=videos.split.id,
        digest=videos.split.digest,
        official=videos.split.official,
        evaluated=len(fused.videos),
        listed=videos.split.listed[1],
        metrics=whole,
        streams={
            str(one.facts["stream"]): measured(one, clips=bool(one.clips.all()))
            for one in (sets if len(sets) > 1 else ())
        },
    )


def _with_pictures(
    run: BenchmarkRun, config: BenchmarkConfig, videos: VideoSet, *, jobs: int, problems: list[Problem], say: Say
) -> BenchmarkConfig:
    """Return the configuration with a folder of flow, estimated first where a stream reads flow and there is none."""
    from volrec.benchmarks.reading import StreamReader

    readers = [StreamReader(stream) for stream in config.protocol.streams]
    fields = sorted({reader.field for reader in readers if reader.field})
    if not fields:
        return config
    first = next(reader for reader in readers if reader.field)
    if config.extracted is None:
        config = config.model_copy(update={"extracted": str(run.path / "extracted")})
    sides = [
        *(videos.split.train if "train" in config.parts else ()),
        *(videos.split.test if "test" in config.parts else ()),
    ]
    motion = first.stream.motion
    if motion is None:
        raise ConfigError(f"stream '{first.stream.name}' reads flow, and motion is not set.", code="protocol")
    say(
        f"Flow ({motion.estimator}) of {len(sides)} videos, kept in {config.extracted}; what is there is not estimated again."
    )
    found = extract(
        sides,
        config.extracted,  # type: ignore[arg-type]
        what=tuple(fields),  # type: ignore[arg-type]
        size=first.stream.frames.resize,
        estimator=motion.estimator,
        bound=motion.bound,
        decoder=config.decoder,
        jobs=jobs,
        keep=True,
    )
    problems += [problem for problem in found if problem not in problems]
    return config
