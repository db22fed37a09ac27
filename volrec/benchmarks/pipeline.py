"""A run of a benchmark: split by split trained and tested, measured, reported; what is finished is not redone."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.benchmarks.metrics import mean_over_splits, metric_of
from volrec.benchmarks.publications import load_published
from volrec.benchmarks.report import BenchmarkReport, Published, Result, result_of, write_report
from volrec.benchmarks.results import BenchmarkResult, Decoder, Deviation, SplitResult, write_result
from volrec.benchmarks.scores import ScoreSet
from volrec.benchmarks.sets import Video, VideoSet, open_set
from volrec.benchmarks.settings import deviations, nets_of
from volrec.benchmarks.split_run import Net, Say, SplitRun
from volrec.config import BenchmarkConfig, VideoProtocol
from volrec.errors import Problem
from volrec.runs import RunFolder
from volrec.versions import collect_versions

if TYPE_CHECKING:
    from volrec.benchmarks.reading import StreamReader

__all__ = ["BenchmarkRun", "Finished", "run_benchmark"]

log = logging.getLogger(__name__)

SINGLE_LABEL = ("video-top1", "video-top5", "mean-class-accuracy")
SEVERAL_LABELS = ("video-hit1", "video-hit5")
DONE = 100
"""Per cent."""


class BenchmarkRun(RunFolder):
    """The folder of a benchmark run: config, parts ``split-1-rgb`` .., scores, ``benchmark.json``, ``report.md``."""

    schema = BenchmarkConfig

    def fused(self, split: str) -> Path:
        """Return the file of the scores of the whole system on a split."""
        return self.path / f"split-{split}.safetensors"


@dataclass
class Finished:
    """What came of a run.

    Attributes
    ----------
    result : BenchmarkResult, optional
        Numbers; None where only training was asked for.
    report : BenchmarkReport, optional
        The same as it is shown.
    problems : list of Problem
        Of the sets and the videos.
    scores : mapping
        Scores of the whole system by split.
    """

    result: BenchmarkResult | None = None
    report: BenchmarkReport | None = None
    problems: list[Problem] = field(default_factory=list)
    scores: dict[str, ScoreSet] = field(default_factory=dict)


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
    splits: list[SplitResult] = []
    shown: list[Result] = []
    nets: list[Net] = []
    trained = 0
    for split in config.splits:
        videos = open_set(config.dataset, config.root, split=split, lists=config.lists)
        _tell(videos, done.problems, say)
        trained = trained or len(videos.split.train)
        config = _with_pictures(run, config, videos, jobs=jobs, problems=done.problems, say=say)
        part = SplitRun(run, config, split, videos, jobs=jobs, allow_leak=allow_leak, say=say, problems=done.problems)
        if "train" in config.parts:
            part.train()
        if "test" in config.parts:
            whole, parts = part.test()
            whole.write(run.fused(split))
            done.scores[split] = whole
            splits.append(_split_result(videos, whole, parts))
            shown += _shown(videos, whole, parts, part.nets)
            nets += part.nets
    run.write_quarantine(done.problems)
    if splits:
        differing = deviations(paper, config, videos=trained, facts=_facts_of(nets))
        done.result = BenchmarkResult(
            dataset=config.dataset,
            protocol=paper.name,
            splits=splits,
            streams=[stream.name for stream in nets_of(config.protocol)],
            date=datetime.date.today().isoformat(),
            weights=[net.used for net in nets],
            decoder=Decoder(name=config.decoder, version=_decoder_version(config.decoder)),
            deviations=differing,
            versions=collect_versions(),
            width=config.width,
            scale=config.scale,
            seed=config.trainer.seed,
        )
        done.report = _report(config, paper, shown, done.result)
        write_result(run.path, done.result)
        write_report(run.path / "report.md", done.report)
    run.finish()
    return done


def _tell(videos: VideoSet, known: list[Problem], say: Say) -> None:
    for problem in videos.problems:
        if problem not in known:
            known.append(problem)
            say(f"{problem.reason} {problem.remedy}".strip())


def _split_result(videos: VideoSet, whole: ScoreSet, parts: Sequence[ScoreSet]) -> SplitResult:
    return SplitResult(
        id=videos.split.id,
        digest=videos.split.digest,
        official=videos.split.official,
        evaluated=len(whole.videos),
        listed=videos.split.listed[1],
        metrics=_measured(videos, whole),
        streams={str(one.facts["stream"]): _measured(videos, one) for one in parts},
    )


def _measured(videos: VideoSet, scores: ScoreSet) -> dict[Any, float]:
    return {name: DONE * metric_of(scores, name).value for name in _names(videos, scores)}


def _names(videos: VideoSet, scores: ScoreSet) -> list[str]:
    """Return the metrics of scores: of clips too, where clips were scored."""
    names = list(SEVERAL_LABELS if videos.multilabel else SINGLE_LABEL)
    if scores.clips.size and scores.clips.all():
        names.append("clip-hit1" if videos.multilabel else "clip-top1")
    return names


def _shown(videos: VideoSet, whole: ScoreSet, parts: Sequence[ScoreSet], nets: Sequence[Net]) -> list[Result]:
    groups = {video.name: video.group or video.name for video in videos.split.test}
    checks = {net.stream.name: net.check for net in nets}
    worst = next((net.check for net in nets if net.check.note), None)
    return [
        result_of(
            scores,
            _names(videos, scores),
            groups={name: groups[name] for name in scores.videos},
            check=checks.get(str(scores.facts["stream"]), worst),
            details=scores is whole and not videos.multilabel,
        )
        for scores in (*parts, whole)
    ]


def _report(
    config: BenchmarkConfig, paper: VideoProtocol, shown: Sequence[Result], result: BenchmarkResult
) -> BenchmarkReport:
    means: dict[str, list[Any]] = {}
    for stream in dict.fromkeys(one.stream for one in shown):
        own = [one for one in shown if one.stream == stream]
        names = [measure.name for measure in own[0].measures]
        means[stream] = [
            mean_over_splits([next(m for m in one.measures if m.name == name) for one in own]) for name in names
        ]
    published = [
        Published(
            value=entry.value,
            split=entry.split,
            source=f"{entry.paper} [{entry.source}]",
            metric=entry.metric,
            stream=entry.stream or shown[-1].stream,
        )
        for entry in load_published()
        if entry.protocol == paper.name and entry.dataset == config.dataset
    ]
    return BenchmarkReport(
        title=f"{paper.system} on {config.dataset}: protocol {paper.name}",
        results=tuple(shown),
        means=means if len(config.splits) > 1 else {},
        published=tuple(published),
        differences=tuple((one.field, _text(one.paper), _text(one.here)) for one in result.differences),
        notes=tuple(f"The paper leaves open: {line}" for line in paper.open),
    )


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _facts_of(nets: Sequence[Net]) -> list[Deviation]:
    """Return what given weights leave unknown, once a stream."""
    facts: dict[str, Deviation] = {}
    for net in nets:
        name = f"streams.{net.stream.name}.weights"
        if net.given:
            facts[name] = Deviation(field=name, paper="trained as the paper says", here=f"given: {net.used.file}")
            if not net.card.get("classes"):
                facts[f"{name}.classes"] = Deviation(
                    field=f"{name}.classes", paper="known", here="not said: taken in the order of the set"
                )
        if net.check.note:
            facts[f"{name}.split"] = Deviation(field=f"{name}.split", paper=net.used.split, here=net.check.note)
    return list(facts.values())


def _decoder_version(decoder: str) -> str:
    from importlib import metadata

    package = {"pyav": "av", "opencv": "opencv-contrib-python-headless", "torchcodec": "torchcodec"}[decoder]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _with_pictures(
    run: BenchmarkRun, config: BenchmarkConfig, videos: VideoSet, *, jobs: int, problems: list[Problem], say: Say
) -> BenchmarkConfig:
    """Return the configuration with a folder of flow, estimated first where a stream reads flow and there is none."""
    from volrec.benchmarks.reading import StreamReader

    readers = [reader for reader in map(StreamReader, nets_of(config.protocol)) if reader.field]
    if not readers:
        return config
    folder = Path(config.extracted) if config.extracted else run.path / "extracted"
    sides: list[Video] = []
    if "train" in config.parts or config.protocol.fusion.method == "svm" or config.protocol.features:
        sides += videos.split.train
    if "test" in config.parts:
        sides += videos.split.test
    for reader in readers:
        problems += [one for one in _estimated(reader, sides, folder, config, jobs, say) if one not in problems]
    return config.model_copy(update={"extracted": str(folder)})


def _estimated(
    reader: StreamReader, videos: Sequence[Video], folder: Path, config: BenchmarkConfig, jobs: int, say: Say
) -> list[Problem]:
    """Estimate the fields that a stream reads for the videos that have none."""
    from volrec.benchmarks.extracted import extracted_parts
    from volrec.benchmarks.extraction import extract

    motion, kind = reader.motion, str(reader.field)
    todo = [video for video in videos if kind not in extracted_parts(folder, video)]
    if motion is None or not todo:
        return []
    say(f"Estimating {kind} ({motion.estimator}) of {len(todo)} videos into {folder}; it is kept.")
    return extract(
        todo,
        folder,
        what=(kind,),
        size=reader.frames.resize,
        estimator=motion.estimator,
        bound=motion.bound,
        decoder=config.decoder,
        interpolation=reader.frames.interpolation,
        jobs=jobs,
    )
