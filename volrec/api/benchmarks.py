"""Video benchmarks: run a protocol, extract frames and flow, render the motion set, and the published tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.api.settings import destination
from volrec.config import BenchmarkConfig, VideoProtocol
from volrec.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from volrec.benchmarks.pipeline import BenchmarkRun
    from volrec.benchmarks.results import BenchmarkResult
    from volrec.benchmarks.scores import ScoreSet

__all__ = ["Benchmark", "benchmark", "extract_videos", "resume_benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """A run of a video benchmark.

    Attributes
    ----------
    path : Path
        Its folder.
    result : BenchmarkResult, optional
        Numbers and all that they depend on, as ``benchmark.json`` has them; None where only training was asked for.
    scores : mapping
        From split to the `ScoreSet` of the whole system.
    problems : list of Problem
        What was left out or noticed.
    """

    path: Path
    result: BenchmarkResult | None
    scores: Mapping[str, ScoreSet] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def benchmark(
    dataset: str,
    root: Path | str,
    *,
    protocol: str | Path | VideoProtocol,
    splits: Sequence[str] | None = None,
    out: Path | str | None = None,
    lists: Path | str | None = None,
    weights: Mapping[str, str] | None = None,
    init: Mapping[str, Any] | None = None,
    extracted: Path | str | None = None,
    trajectories: Path | str | None = None,
    parts: Sequence[str] = ("train", "test"),
    scale: float = 1.0,
    width: float = 1.0,
    flow: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    jobs: int = 1,
    allow_leak: bool = False,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> Benchmark:
    """Run a paper's protocol on a data set on disk.

    Parameters
    ----------
    dataset : str
        ``ucf101``, ``hmdb51``, ``kinetics``, ``sports1m``, ``motion`` (what `volrec benchmark make-motion` renders) or
        ``list``.
    root : path
        Folder of the videos.
    protocol : str, path or VideoProtocol
        Name of a protocol of the package, a YAML file in its form, or the protocol itself.
    splits : sequence of str, optional
        Official splits by number; ``own-1``, ``random-0`` by name. Default: those of the paper's headline.
    out : path, optional
        Run folder; default ``runs/benchmark-DATASET-PROTOCOL``.
    lists : path, optional
        Where the lists of the splits are; default: found.
    weights : mapping, optional
        From stream to a weights file to test; ``{split}`` in its name stands for the split. Streams without one are
        trained.
    init : mapping, optional
        From stream to weights to begin a training with.
    extracted, trajectories : path, optional
        Folders of extracted frames and flow, and of trajectories; what is missing is computed there.
    parts : sequence of {"train", "test"}
        What is done.
    scale, width : float
        Factors of frame sizes and channels; below 1 for a try on a small machine.
    flow : str, optional
        Estimator in place of the paper's.
    overrides : mapping, optional
        Dotted keys of the protocol, such as ``{"streams.rgb.training.lr": 0.01}``.
    jobs : int
        Videos in hand at a time.
    allow_leak : bool
        Test weights on a split that they did not learn for; the number is marked.
    say : callable, optional
        Takes lines for the user.
    **settings
        Further fields of `BenchmarkConfig`: ``epochs``, ``batch``, ``step_batch``, ``decoder``; and ``seed``,
        ``accelerator``, ``workers`` of its trainer.

    Returns
    -------
    Benchmark
        Metrics, scores and the folder.

    Raises
    ------
    VolrecError
        An unknown name, lists or a split that are not what they should be, weights that do not fit, no usable video.
    """
    from volrec.benchmarks.pipeline import BenchmarkRun
    from volrec.benchmarks.protocol import load_protocol
    from volrec.benchmarks.settings import check_streams, settle_protocol

    paper = protocol if isinstance(protocol, VideoProtocol) else load_protocol(protocol)
    here = settle_protocol(paper, scale=scale, width=width, estimator=flow, overrides=overrides)
    check_streams(list(weights or {}), here, what="weights")
    check_streams(list(init or {}), here, what="init")
    trainer = {key: settings.pop(key) for key in ("seed", "accelerator", "workers", "precision") if key in settings}
    values: dict[str, Any] = {
        "dataset": dataset,
        "root": str(Path(root).resolve()),
        "lists": None if lists is None else str(Path(lists).resolve()),
        "splits": list(splits or here.splits.split(",")),
        "paper": str(protocol) if not isinstance(protocol, VideoProtocol) else paper.name,
        "protocol": here.to_dict(),
        "scale": scale,
        "width": width,
        "extracted": None if extracted is None else str(Path(extracted).resolve()),
        "trajectories": None if trajectories is None else str(Path(trajectories).resolve()),
        "weights": {stream: str(Path(path).resolve()) for stream, path in (weights or {}).items()},
        "init": dict(init or {}),
        "parts": list(parts),
        **settings,
    }
    from volrec.config import parse_config

    config = parse_config({"kind": "benchmark", **values}, schema=BenchmarkConfig)
    if trainer:
        config = config.model_copy(
            update={"trainer": type(config.trainer).model_validate({**config.trainer.to_dict(), **trainer})}
        )
    path = destination(f"benchmark-{dataset}-{here.name}", out)
    return _run(BenchmarkRun.create(path, config), paper, jobs=jobs, allow_leak=allow_leak, say=say)


def resume_benchmark(
    path: Path | str,
    *,
    jobs: int = 1,
    allow_leak: bool = False,
    say: Callable[[str], None] | None = None,
) -> Benchmark:
    """Go on with an interrupted benchmark; what is finished is not done again.

    Raises
    ------
    RunError
        There is no such run.
    """
    from volrec.benchmarks.pipeline import BenchmarkRun
    from volrec.benchmarks.protocol import load_protocol

    run = BenchmarkRun.open(path)
    paper = run.config.paper
    try:
        known = load_protocol(paper)
    except ConfigError:
        known = run.config.protocol  # it was given as an object, or its file is gone
    return _run(run, known, jobs=jobs, allow_leak=allow_leak, say=say)


def extract_videos(
    dataset: str,
    root: Path | str,
    out: Path | str,
    *,
    lists: Path | str | None = None,
    split: str = "1",
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> list[Problem]:
    """Write frames and flow of a data set as pictures; see `volrec.benchmarks.extraction.extract`."""
    from volrec.benchmarks.extraction import extract
    from volrec.benchmarks.sets import open_set

    videos = open_set(dataset, root, split=split, lists=lists)
    return [*videos.problems, *extract([*videos.split.train, *videos.split.test], out, **settings)]


def _run(
    run: BenchmarkRun,
    paper: VideoProtocol,
    *,
    jobs: int,
    allow_leak: bool,
    say: Callable[[str], None] | None,
) -> Benchmark:
    from volrec.benchmarks.pipeline import run_benchmark

    done = run_benchmark(run, paper, jobs=jobs, allow_leak=allow_leak, say=say or (lambda text: None))
    return Benchmark(run.path, done.result, done.scores, done.problems)
