"""One split of a benchmark run: its networks trained and tested, its trajectories, features and fusions."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from volrec.benchmarks.counting import CountingReader, flow_facts, frame_facts, of_all, order_of_steps
from volrec.benchmarks.fusion import apply_svm, fit_svm, fuse
from volrec.benchmarks.leaks import SplitCheck, check_split, trained_on
from volrec.benchmarks.reading import StreamReader
from volrec.benchmarks.results import Deviation, WeightsUsed
from volrec.benchmarks.scores import ScoreSet, class_order
from volrec.benchmarks.sets import Video, VideoSet
from volrec.benchmarks.settings import nets_of
from volrec.benchmarks.sides import beside, labelled, relabelled
from volrec.benchmarks.streams import score_videos
from volrec.benchmarks.testing import StreamScorer
from volrec.benchmarks.training import fit_stream
from volrec.benchmarks.views import crop_boxes
from volrec.benchmarks.weights_input import read_as_trained
from volrec.config import BenchmarkConfig, StreamProtocol
from volrec.errors import Problem, RunError, VolrecError
from volrec.io.video import open_video
from volrec.networks.base import SequenceNetwork
from volrec.runs import Member, RunFolder
from volrec.training.devices import own_device, place
from volrec.weights import load_network

__all__ = ["Net", "Say", "SplitRun", "note_problems"]

log = logging.getLogger(__name__)

Say = Callable[[str], None]
TRAJECTORIES = "trajectories"
FEATURES = "features"


@dataclass(frozen=True)
class Net:
    """The network of one stream, ready to look at videos of a split.

    Attributes
    ----------
    stream : StreamProtocol
        What it reads and how it is tested.
    member : Member
        Its folder.
    network : SequenceNetwork
        With its weights.
    card : mapping
        Of the weights.
    used : WeightsUsed
        Which weights.
    check : SplitCheck
        What they have seen.
    fed : tuple of Deviation
        What they are shown otherwise than the protocol says, because they were trained on it.
    """

    stream: StreamProtocol
    member: Member
    network: SequenceNetwork
    card: Mapping[str, Any]
    used: WeightsUsed
    check: SplitCheck
    fed: tuple[Deviation, ...] = ()

    @property
    def given(self) -> bool:
        """Whether the weights come from elsewhere."""
        return self.used.origin == "given"


@dataclass
class SplitRun:
    """What is done on one split.

    Attributes
    ----------
    run : RunFolder
        Folder of the whole run.
    config : BenchmarkConfig
        Of the run.
    split : str
        As asked for.
    videos : VideoSet
        The set with this split.
    jobs : int
        Videos in hand at a time.
    allow_leak : bool
        Whether weights of another split are tested.
    say : callable
        Takes lines for the user.
    problems : list of Problem
        Of videos; grows.
    nets : list of Net
        Those that were used; grows.
    notes : list of str
        Sentences for the report; grows.
    """

    run: RunFolder
    config: BenchmarkConfig
    split: str
    videos: VideoSet
    jobs: int
    allow_leak: bool
    say: Say
    problems: list[Problem] = field(default_factory=list)
    nets: list[Net] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Make sure that weights which are not trained here are there, fit, and have not seen the test videos.

        Raises
        ------
        RunError
            With what is wrong.
        """
        if "test" not in self.config.parts:
            return
        for stream in nets_of(self.config.protocol):
            if stream.name in self.config.weights or "train" not in self.config.parts:
                self._net(stream)

    def train(self) -> None:
        """Train every network that is neither given nor trained already."""
        for number, stream in enumerate(nets_of(self.config.protocol)):
            if not self.learns(stream.name):
                continue
            member = self.member(stream.name)
            self.say(f"Training {stream.name} on {self.videos.split.id}: {len(self.videos.split.train)} videos.")
            config = self.config
            if self.config.protocol.features is not None and number:
                trainer = config.trainer.model_copy(update={"seed": config.trainer.seed + number})
                config = config.model_copy(update={"trainer": trainer})
            with self.run.logging():
                found = fit_stream(config, stream, self.videos, member=member, card=self._card(stream))
            self._note(found)

    def learns(self, name: str) -> bool:
        """Tell whether a network is still to be trained."""
        return "train" in self.config.parts and name not in self.config.weights and not self.member(name).finished

    def test(self) -> tuple[ScoreSet, list[ScoreSet]]:
        """Return the scores of the whole system on the test videos, and those of its parts."""
        protocol = self.config.protocol
        if protocol.features is not None:
            return self._features(), []
        nets = [self._net(stream) for stream in protocol.streams]
        self.nets += nets
        if not nets:
            return self._trajectory_scores(), []
        parts = [self._scores(net) for net in nets]
        alike = of_all(parts)
        if protocol.fusion.method == "svm":
            whole = apply_svm(fit_svm(of_all([self._scores(net, train=True) for net in nets])), alike)
        elif len(parts) > 1:
            whole = fuse(alike, [stream.weight for stream in protocol.streams], protocol.fusion.stage)
        else:
            whole = parts[0]
        share = protocol.fusion.trajectories
        if share > 0:
            parts.append(self._trajectory_scores())
            if protocol.fusion.trajectory_stage == "scores":  # as they are, at whichever stage
                whole = replace(whole, logits=whole.scores, stage="logits", facts={**whole.facts, "stage": "logits"})
            stage = "l2" if protocol.fusion.trajectory_stage == "l2" else "logits"
            whole = fuse(of_all([whole, parts[-1]]), [1 - share, share], stage)
        if len(parts) == 1:
            return whole, []
        return replace(whole, facts={**whole.facts, **self._counts(whole.videos, "test")}), parts

    def member(self, name: str) -> Member:
        """Return the folder of a part on this split."""
        return self.run.member(f"split-{self.split}-{name}")

    def _scores(self, net: Net, *, train: bool = False) -> ScoreSet:
        """Return the scores of a network on the test videos, or on the training videos."""
        config, side = self.config, "train" if train else "test"
        classes = tuple(net.card.get("classes") or self.videos.classes)
        stream = net.stream
        path = net.member.path / ("train-scores.safetensors" if train else "scores.safetensors")
        videos = relabelled(getattr(self.videos.split, side), self.videos.classes, classes)
        facts = self._facts(
            stream.name,
            side=side,
            stage=stream.test.stage,
            class_order=class_order(classes),
            weights=net.used.sha256,
            trained_on=trained_on(net.card),
            crops=len(crop_boxes(stream.test.crops, (64, 80), 32)),
            resize=order_of_steps(stream),
            flow=flow_facts(stream),
            settings={"test": stream.test.to_dict(), "frames": stream.frames.to_dict()},
        )
        scorer = StreamScorer(net.network, stream, device=self._device(), seed=config.trainer.seed)
        scorer.reader = reader = CountingReader(stream)
        found, problems = score_videos(
            scorer,
            videos,
            path,
            classes=classes,
            facts=facts,
            decoder=config.decoder,
            extracted=config.extracted,
            jobs=self.jobs,
            description=f"{'scoring training videos' if train else 'testing'}: {stream.name}, {self.videos.split.id}",
        )
        self._note(problems)
        if "frames" in found.facts:  # all of it was finished before
            return found
        more = {**self._counts(found.videos, side), **self._lengths(reader, found.videos, side)}
        found = replace(found, facts={**found.facts, **more})
        found.write(path)
        return found

    def _net(self, stream: StreamProtocol) -> Net:
        """Load the weights of a stream, and make sure that they are for this split."""
        member = self.member(stream.name)
        given = self.config.weights.get(stream.name)
        path = Path(given.replace("{split}", self.split)) if given else member.weights
        if not given and not member.finished:
            raise RunError(
                f"the stream '{stream.name}' has no weights for {self.videos.split.id}.",
                remedy=f"Train it, or give some: --weights {stream.name}=FILE.",
                where=path,
                code="no-weights",
            )
        network, card = load_network(path)
        self._check_fit(network, card, stream, path)
        check = check_split(card, self.videos.split, allow_leak=self.allow_leak)
        used = WeightsUsed(
            file=path.name if given else f"{member.name}/{path.name}",
            sha256=card["tensors"]["sha256"],
            origin="given" if given else "trained here",
            stream=stream.name,
            split=self.videos.split.id,
        )
        fed: list[Deviation] = []
        if given:
            stream, fed = read_as_trained(stream, card)
        return Net(stream, member, network, card, used, check, tuple(fed))

    def _check_fit(self, network: SequenceNetwork, card: Mapping[str, Any], stream: StreamProtocol, path: Path) -> None:
        channels, names = StreamReader(stream).channels, self.videos.classes
        architecture = card.get("architecture") or {}
        faults = []
        if network.registry_name != stream.network.name:
            faults.append(f"they are of {network.registry_name}, the protocol has {stream.network.name}")
        if architecture.get("in_channels") != channels:
            faults.append(f"they read {architecture.get('in_channels')} channels, the stream has {channels}")
        if network.num_classes != len(names) and self.config.protocol.features is None:
            faults.append(f"they tell {network.num_classes} classes apart, {self.videos.name} has {len(names)}")
        theirs = card.get("classes")
        if theirs and set(theirs) != set(names) and self.config.protocol.features is None:
            strange = sorted(set(theirs) ^ set(names))
            faults.append(f"their classes are others ({', '.join(map(str, strange[:3]))})")
        if faults:
            raise RunError(
                f"these weights do not fit the stream '{stream.name}': {'; '.join(faults)}.",
                remedy="Give weights of that network for these classes, or begin with these and train: "
                f"--init {stream.name}={path}.",
                where=path,
                code="weights-mismatch",
            )

    def _features(self) -> ScoreSet:
        """Return the margins of an SVM on features of the networks, trajectories beside them where it is asked for."""
        from volrec.benchmarks.deep_features import FeatureTaker, score_features, take_features

        settings = self.config.protocol.features
        if settings is None:
            raise RunError("the protocol has no features.", code="protocol")
        nets = [self._net(stream) for stream in nets_of(self.config.protocol)]
        self.nets += nets
        sides = {"train": self.videos.split.train, "test": self.videos.split.test}
        lacking: set[str] = set()
        tables: list[dict[str, Any]] = []
        for net in nets:
            taker = FeatureTaker(
                net.network,
                net.stream,
                layer=settings.layer,
                normalize=settings.normalize,
                device=self._device(),
                seed=self.config.trainer.seed,
            )
            taker.reader = reader = CountingReader(net.stream)
            table = {}
            for side, videos in sides.items():
                table[side], problems = take_features(
                    taker,
                    videos,
                    net.member.path / f"{side}-features",
                    # Whatever a feature depends on: features of other settings are refused.
                    source=f"{net.used.sha256} {settings.layer} {net.stream.test.to_dict()} "
                    f"{net.stream.frames.to_dict()} {self.config.decoder}",
                    decoder=self.config.decoder,
                    extracted=self.config.extracted,
                    jobs=self.jobs,
                    description=f"features of {side}ing videos: {net.stream.name}, {self.videos.split.id}",
                )
                self._note(problems)
                lacking |= {problem.study for problem in problems}
            tables.append(table)
        vectors = self._vectors() if settings.trajectories else None
        if vectors is not None:
            lacking |= vectors[1]
        rows = {
            side: [number for number, video in enumerate(videos) if video.labels and video.name not in lacking]
            for side, videos in sides.items()
        }
        train, test = ([sides[side][number] for number in rows[side]] for side in ("train", "test"))
        tested = [video.name for video in test]
        views = nets[0].stream.test
        return score_features(
            settings,
            self.videos,
            train,
            test,
            features=[(table["train"][rows["train"]], table["test"][rows["test"]]) for table in tables],
            trajectories=None if vectors is None else beside(vectors[0], sides, rows),
            keep=self.run.path / f"split-{self.split}-svm.safetensors",
            facts=self._facts(
                FEATURES,
                side="test",
                stage="logits",
                weights=_digest_of(nets),
                trained_on=trained_on(nets[0].card),
                views=f"{views.count or f'every {views.step or views.length * views.stride} frames'} × "
                f"{len(crop_boxes(views.crops, (64, 80), 32))}, features averaged",
                resize=order_of_steps(nets[0].stream),
                flow=flow_facts(nets[0].stream),
                **self._counts(tested, "test"),
                **self._lengths(reader, tested, "test"),
            ),
        )

    def _trajectory_scores(self) -> ScoreSet:
        """Return the margins of an SVM on encoded trajectories."""
        from volrec.benchmarks.handcrafted import score_trajectories

        settings = self.config.protocol.trajectories
        if settings is None:
            raise RunError("the protocol has no trajectories.", code="protocol")
        vectors, lacking = self._vectors()
        train, test = (list(labelled(side, lacking)) for side in (self.videos.split.train, self.videos.split.test))
        self.say(f"Support vector machines on trajectories of {len(train)} videos.")
        return score_trajectories(
            settings,
            self.videos,
            vectors,
            train,
            test,
            facts=self._facts(
                TRAJECTORIES,
                side="test",
                stage="logits",
                weights=None,
                vocabulary=vectors.encoder.digest,
                views="whole video",
                resize="as decoded",
                flow="Farnebäck, of trajectories",
                **self._counts([video.name for video in test], "test"),
                **self._lengths(None, [video.name for video in test], "test"),
            ),
            jobs=self.jobs,
        )

    def _vectors(self) -> tuple[Any, set[str]]:
        """Return encoded trajectories of the labelled videos of both sides, and the names of videos without any."""
        from volrec.benchmarks.handcrafted import compute_trajectories, trajectory_vectors

        config = self.config
        settings = config.protocol.trajectories
        if settings is None:
            raise RunError("the protocol has no trajectories.", code="protocol")
        folder = Path(config.trajectories) if config.trajectories else self.run.path / TRAJECTORIES
        every = [*self.videos.split.train, *self.videos.split.test]
        problems = compute_trajectories(every, folder, decoder=config.decoder, jobs=self.jobs)
        self._note(problems)
        lacking = {problem.study for problem in problems}
        train, test = (list(labelled(side, lacking)) for side in (self.videos.split.train, self.videos.split.test))
        work = self.run.path / f"split-{self.split}-{TRAJECTORIES}"
        vectors = trajectory_vectors(settings, train, test, folder=folder, work=work, seed=config.trainer.seed)
        if vectors.empty:
            self.notes.append(
                f"{self.videos.split.id}: {len(vectors.empty)} of {len(train) + len(test)} videos have no trajectory "
                "(nothing moves in them, or they are too short); they are scored by an empty vector."
            )
            self.say(self.notes[-1])
        return vectors, lacking

    def _device(self) -> Any:
        return own_device(place(self.config).accelerator)

    def _note(self, problems: Sequence[Problem]) -> None:
        note_problems(self.problems, problems)

    def _counts(self, evaluated: Sequence[str], side: str) -> dict[str, Any]:
        """Return how many videos of a side are not there, cannot be used, or have no label."""
        there = getattr(self.videos.split, side)
        labelled = sum(bool(video.labels) for video in there)
        return {
            "missing": self.videos.split.listed[side == "test"] - len(there),
            "quarantined": labelled - len(evaluated),
            "unlabelled": len(there) - labelled,
        }

    def _lengths(self, reader: CountingReader | None, names: Sequence[str], side: str) -> dict[str, Any]:
        """Return frames and frame rates of videos; those of an earlier, interrupted part are opened once more."""
        videos = {video.name: video for video in getattr(self.videos.split, side)}
        seen = {} if reader is None else dict(reader.seen)
        for name in names:
            if name not in seen:
                seen[name] = self._length(reader, videos[name])
        return frame_facts(seen, names, None if reader is None else reader.frames.frame_rate)

    def _length(self, reader: CountingReader | None, video: Video) -> tuple[int, float]:
        try:
            if reader is not None:
                with reader.open(video, decoder=self.config.decoder, extracted=self.config.extracted) as footage:
                    return footage.count, footage.rate
            with open_video(video.path, decoder=self.config.decoder) as file:
                return file.info.frames, file.info.frame_rate
        except VolrecError:
            return 0, math.nan  # trajectories may come from a file of the authors' program

    def _card(self, stream: StreamProtocol) -> dict[str, Any]:
        """Return what the card of weights that are trained here says."""
        videos = self.videos
        own = {"split_id": videos.split.id, "split_digest": videos.split.digest}
        return {
            "task": "multiclass",
            "targets": [videos.name],
            "classes": list(videos.classes),
            "set": videos.name,
            **own,
            "trained_on": [own],
            "protocol": self.config.protocol.name,
            "stream": stream.to_dict(),
            "decoder": self.config.decoder,
            "data_signature": videos.split.digest,
        }

    def _facts(self, stream: str, *, side: str, stage: str, weights: str | None, **more: Any) -> dict[str, Any]:
        """Return what every score file says of where its scores come from."""
        videos = self.videos
        return {
            "set": videos.name,
            "split_id": videos.split.id,
            "split_digest": videos.split.digest,
            "side": side,
            "protocol": self.config.protocol.name,
            "stream": stream,
            "stage": stage,
            "weights": weights,
            "decoder": self.config.decoder,
            "listed": videos.split.listed[side == "test"],
            "seed": self.config.trainer.seed,
            **more,
        }


def note_problems(known: list[Problem], new: Sequence[Problem]) -> None:
    """Add problems to those known; a video that is left out already is not counted again."""
    for problem in new:
        out = problem.fatal and problem.study
        if problem not in known and not (out and any(one.fatal and one.study == problem.study for one in known)):
            known.append(problem)


def _digest_of(nets: Sequence[Net]) -> str:
    """Return the SHA-256 of the weights of a network, or that over those of several."""
    digests = [net.used.sha256 for net in nets]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
