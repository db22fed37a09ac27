"""A run of a benchmark: split by split trained and tested, measured, reported; what is finished is not redone."""

from __future__ import annotations

import datetime
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.report import BenchmarkReport, Result, write_report
from volrec.benchmarks.results import BenchmarkResult, Decoder, SplitResult, write_result
from volrec.benchmarks.scores import ScoreSet
from volrec.benchmarks.sets import Video, VideoSet, open_set
from volrec.benchmarks.settings import deviations, nets_of
from volrec.benchmarks.split_run import Net, Say, SplitRun, note_problems
from volrec.benchmarks.summary import (
    build_report,
    facts_of_weights,
    results_of,
    split_result,
    training_videos,
    with_pictures,
)
from volrec.config import BenchmarkConfig, VideoProtocol, dump_yaml
from volrec.errors import DataError, Problem
from volrec.files import write_atomically
from volrec.runs import RunFolder
from volrec.training.interrupts import Interrupted
from volrec.versions import collect_versions

if TYPE_CHECKING:
    from volrec.benchmarks.reading import StreamReader

__all__ = ["BenchmarkRun", "Finished", "run_benchmark"]

log = logging.getLogger(__name__)


PAPER = "paper.yaml"
"""File of the paper's protocol in a run folder."""


class BenchmarkRun(RunFolder):
    """The folder of a benchmark run: config, parts ``split-1-rgb`` .., scores, ``benchmark.json``, ``report.md``."""

    schema = BenchmarkConfig

    @property
    def paper(self) -> VideoProtocol:
        """The paper's protocol, as the run was begun with it."""
        file = self.path / PAPER
        return load_protocol(file) if file.is_file() else self.config.protocol

    def write_paper(self, paper: VideoProtocol) -> None:
        """Keep the paper's protocol: a run goes on with the same one, whatever becomes of its file."""
        write_atomically(self.path / PAPER, dump_yaml(paper))

    def discard_unbegun(self) -> None:
        """Remove the folder of a run that was refused before anything was done: the mended command can be given again.

        A folder with anything else in it stays.
        """
        own = {"config.yaml", "versions.json", "quarantine.csv", PAPER}
        there = list(self.path.iterdir())
        if all(path.name in own for path in there):
            for path in there:
                path.unlink()
            self.path.rmdir()

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
    run: BenchmarkRun,
    paper: VideoProtocol,
    *,
    parts: Sequence[str] | None = None,
    jobs: int = 1,
    allow_leak: bool = False,
    say: Say = log.info,
) -> Finished:
    """Do what the configuration of a run says; goes on where it was stopped.

    Parameters
    ----------
    run : BenchmarkRun
        Its folder.
    paper : VideoProtocol
        The paper's protocol, for what differs.
    parts : sequence of {"train", "test"}, optional
        What is done, in place of what the configuration says.
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
    command = run.resume_command
    if parts is not None and list(parts) != list(run.config.parts):
        command += f" --only {parts[0]}" if len(parts) == 1 else ""
    command += " --allow-leak" if allow_leak else ""
    # What earlier parts of an interrupted run left out stays left out of their weights and scores.
    done = Finished(problems=[problem for problem in run.quarantine() if problem.study])
    try:
        with _terminated_as_interrupted():
            _run(run, paper, done, parts=parts, jobs=jobs, allow_leak=allow_leak, say=say)
    except KeyboardInterrupt as stop:
        if isinstance(stop, Interrupted) and command in str(stop):
            raise
        raise Interrupted(f"Stopped. What is finished is kept; go on with: {command}") from None
    finally:
        run.write_quarantine(done.problems)
    return done


def _run(
    run: BenchmarkRun,
    paper: VideoProtocol,
    done: Finished,
    *,
    parts: Sequence[str] | None,
    jobs: int,
    allow_leak: bool,
    say: Say,
) -> None:
    config: BenchmarkConfig = run.config
    if parts is not None:
        config = config.model_copy(update={"parts": list(parts)})
    works = []
    for split in dict.fromkeys(config.splits):
        videos = open_set(config.dataset, config.root, split=split, lists=config.lists)
        _tell(videos, done.problems, say)
        works.append(
            SplitRun(run, config, split, videos, jobs=jobs, allow_leak=allow_leak, say=say, problems=done.problems)
        )
    # What cannot work is refused before anything long begins.
    _check_decoder(config, works)
    for work in works:
        work.check()
    splits: list[SplitResult] = []
    shown: list[Result] = []
    nets: list[Net] = []
    for work in works:
        work.config = _with_pictures(run, config, work, jobs=jobs, problems=done.problems, say=say)
        if "train" in config.parts:
            work.train()
        if "test" in config.parts:
            whole, streams = work.test()
            whole.write(run.fused(work.split))
            done.scores[work.split] = whole
            splits.append(split_result(work.videos, whole, streams))
            shown += results_of(work.videos, whole, streams, work.nets)
            nets += work.nets
        run.write_quarantine(done.problems)
    if splits:
        learned = len(works[0].videos.split.train)
        facts = [*facts_of_weights(nets), *training_videos(works, nets)]
        differing, notes = with_pictures(deviations(paper, config, videos=learned, facts=facts), works, config.protocol)
        done.result = BenchmarkResult(
            dataset=config.dataset,
            protocol=config.protocol.name,
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
        said = [note for work in works for note in work.notes]
        done.report = build_report(config, paper, shown, done.result, notes=[*said, *notes])
        write_result(run.path, done.result)
        write_report(run.path / "report.md", done.report)
    run.finish()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does (in the main thread only): what is finished is kept and said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _tell(videos: VideoSet, known: list[Problem], say: Say) -> None:
    for problem in videos.problems:
        if problem not in known:
            known.append(problem)
            if not problem.fatal:  # the others are told at the end
                say(f"{problem.reason} {problem.remedy}".strip())


def _check_decoder(config: BenchmarkConfig, works: Sequence[SplitRun]) -> None:
    """Make sure, with one video, that the package of the decoder is there."""
    from volrec.io.video import open_video

    files = (video.path for work in works for video in (*work.videos.split.test, *work.videos.split.train))
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        return
    try:
        open_video(path, decoder=config.decoder).close()
    except DataError as error:
        if error.code == "video-package":
            raise DataError(error.problem, remedy=error.remedy, code=error.code) from error


def _decoder_version(decoder: str) -> str:
    from importlib import metadata

    package = {"pyav": "av", "opencv": "opencv-contrib-python-headless", "torchcodec": "torchcodec"}[decoder]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _with_pictures(
    run: BenchmarkRun, config: BenchmarkConfig, work: SplitRun, *, jobs: int, problems: list[Problem], say: Say
) -> BenchmarkConfig:
    """Return the configuration with a folder of flow, estimated first where a stream reads flow and there is none.

    Training videos have theirs estimated where a network, or an SVM on networks, learns from them: to test weights
    takes the flow of the test videos alone.
    """
    from volrec.benchmarks.reading import StreamReader

    readers = [reader for reader in map(StreamReader, nets_of(config.protocol)) if reader.field]
    if not readers:
        return config
    folder = Path(config.extracted) if config.extracted else run.path / "extracted"
    split = work.videos.split
    testing = "test" in config.parts
    all_sides = testing and (config.protocol.fusion.method == "svm" or config.protocol.features is not None)
    for reader in readers:
        sides = [
            *(split.train if all_sides or work.learns(reader.stream.name) else ()),
            *(split.test if testing else ()),
        ]
        note_problems(problems, _estimated(reader, sides, folder, config, jobs, say))
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
    count = "1 video" if len(todo) == 1 else f"{len(todo)} videos"
    say(f"Estimating {kind} ({motion.estimator}) of {count} into {folder}; it is kept.")
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
