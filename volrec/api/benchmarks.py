"""Video benchmarks: run a protocol, extract frames and flow, render the motion set, and the published tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.api.settings import destination
from volrec.config import BenchmarkConfig, VideoProtocol
from volrec.errors import Problem, VolrecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from volrec.benchmarks.motion_set import MotionSet
    from volrec.benchmarks.pipeline import BenchmarkRun
    from volrec.benchmarks.report import BenchmarkReport
    from volrec.benchmarks.results import BenchmarkResult
    from volrec.benchmarks.scores import ScoreSet
    from volrec.benchmarks.tables import PublishedTable

__all__ = [
    "Benchmark",
    "benchmark",
    "benchmark_results",
    "extract_videos",
    "list_protocols",
    "load_protocol",
    "make_motion",
    "published_tables",
    "resume_benchmark",
]

Lists = Path | str | Sequence[Path | str] | None


@dataclass(frozen=True)
class Benchmark:
    """A run of a video benchmark.

    Attributes
    ----------
    path : Path
        Its folder.
    result : BenchmarkResult, optional
        Numbers and all that they depend on, as ``benchmark.json`` has them; None where only training was asked for.
    report : BenchmarkReport, optional
        The same as it is shown.
    scores : mapping
        From split to the `ScoreSet` of the whole system.
    problems : list of Problem
        What was left out or noticed.
    """

    path: Path
    result: BenchmarkResult | None
    report: BenchmarkReport | None = None
    scores: Mapping[str, ScoreSet] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def benchmark(
    dataset: str,
    root: Path | str,
    *,
    protocol: str | Path | VideoProtocol,
    splits: Sequence[str] | None = None,
    out: Path | str | None = None,
    lists: Lists = None,
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
        Official splits by number; ``own-1``, ``random-0`` by name. Default: those of the paper's headline, where the
        set has such splits.
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
    from volrec.benchmarks.protocol import list_protocols, load_protocol, paper_of
    from volrec.benchmarks.settings import check_streams, settle_protocol

    given = protocol if isinstance(protocol, VideoProtocol) else load_protocol(protocol)
    # A changed copy of a paper's protocol, or one that builds on it, is measured against the paper's.
    paper = given if isinstance(protocol, VideoProtocol) else paper_of(protocol)
    paper = load_protocol(given.name) if given.name in list_protocols() else paper
    here = settle_protocol(given, scale=scale, width=width, estimator=flow, overrides=overrides)
    check_streams(list(weights or {}), here, what="weights")
    check_streams(list(init or {}), here, what="init")
    trainer = {key: settings.pop(key) for key in ("seed", "accelerator", "workers", "precision") if key in settings}
    values: dict[str, Any] = {
        "dataset": dataset,
        "root": str(Path(root).resolve()),
        "lists": _resolved(lists),
        "splits": list(splits or _headline_splits(dataset, here)),
        "paper": paper.name,
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
    run = BenchmarkRun.create(path, config)
    run.write_paper(paper)
    try:
        return _run(run, paper, parts=None, jobs=jobs, allow_leak=allow_leak, say=say)
    except VolrecError:
        run.discard_unbegun()
        raise


def resume_benchmark(
    path: Path | str,
    *,
    parts: Sequence[str] | None = None,
    jobs: int = 1,
    allow_leak: bool = False,
    say: Callable[[str], None] | None = None,
) -> Benchmark:
    """Go on with an interrupted benchmark, or test what one has trained; what is finished is not done again.

    Parameters
    ----------
    path : path
        Run folder.
    parts : sequence of {"train", "test"}, optional
        What is done; default: what the run was begun for. ``["test"]`` tests a run that only trained.
    jobs, allow_leak, say
        As `benchmark`.

    Raises
    ------
    RunError
        There is no such run.
    """
    from volrec.benchmarks.pipeline import BenchmarkRun

    run = BenchmarkRun.open(path)
    return _run(run, run.paper, parts=parts, jobs=jobs, allow_leak=allow_leak, say=say)


def extract_videos(
    dataset: str,
    root: Path | str,
    out: Path | str,
    *,
    what: Sequence[str] = ("rgb", "flow"),
    lists: Lists = None,
    split: str | None = None,
    decoder: str = "pyav",
    jobs: int | None = None,
    **settings: Any,
) -> tuple[list[Problem], int]:
    """Write frames and flow of a data set as pictures, and improved dense trajectories as files.

    Parameters
    ----------
    dataset, root, lists, split
        As `benchmark`.
    out : path
        Folder; what is there is not made again.
    what : sequence of {"rgb", "flow", "warped", "trajectories"}
        What is written.
    decoder : str
        What decodes videos.
    jobs : int, optional
        Processes; None: all cores.
    **settings
        As `volrec.benchmarks.extraction.extract`: ``size``, ``quality``, ``estimator``, ``bound``, ``overwrite``.

    Returns
    -------
    list of Problem
        Of the set and of videos that could not be read.
    int
        Videos.
    """
    from volrec.benchmarks.extraction import extract
    from volrec.benchmarks.handcrafted import compute_trajectories
    from volrec.benchmarks.sets import open_set
    from volrec.parallel import available_cpus

    found = open_set(dataset, root, split=split, lists=lists)
    videos = [*found.split.train, *found.split.test]
    problems = list(found.problems)
    pictures = [part for part in what if part != "trajectories"]
    if pictures:
        problems += extract(videos, out, what=pictures, decoder=decoder, jobs=jobs, **settings)
    if "trajectories" in what:
        own = compute_trajectories(videos, Path(out), decoder=decoder, jobs=jobs or available_cpus())
        problems += [problem for problem in own if problem not in problems]
    return problems, len(videos)


def make_motion(out: Path | str, **settings: Any) -> MotionSet:
    """Render the motion set; see `volrec.benchmarks.motion_set.make_motion`."""
    from volrec.benchmarks.motion_set import make_motion as render

    return render(out, **settings)


def load_protocol(name: str | Path) -> VideoProtocol:
    """Return a protocol by its name or file; see `volrec.benchmarks.protocol.load_protocol`."""
    from volrec.benchmarks.protocol import load_protocol as load

    return load(name)


def list_protocols() -> tuple[str, ...]:
    """Return the names of the protocols that come with the package."""
    from volrec.benchmarks.protocol import list_protocols as names

    return names()


def benchmark_results(places: Sequence[Path | str]) -> list[BenchmarkResult]:
    """Return the results of benchmark runs in or below these folders."""
    from volrec.benchmarks.results import find_results

    return find_results(places)


def published_tables(results: Sequence[BenchmarkResult] = (), **chosen: Any) -> tuple[PublishedTable, ...]:
    """Return published numbers beside those of runs; see `volrec.benchmarks.tables.published_tables`."""
    from volrec.benchmarks.tables import published_tables as tables

    return tables(results, **chosen)


def _run(
    run: BenchmarkRun,
    paper: VideoProtocol,
    *,
    parts: Sequence[str] | None,
    jobs: int,
    allow_leak: bool,
    say: Callable[[str], None] | None,
) -> Benchmark:
    from volrec.benchmarks.pipeline import run_benchmark

    done = run_benchmark(run, paper, parts=parts, jobs=jobs, allow_leak=allow_leak, say=say or (lambda text: None))
    return Benchmark(run.path, done.result, done.report, done.scores, done.problems)


def _headline_splits(dataset: str, protocol: VideoProtocol) -> list[str]:
    """Return the splits of the paper's headline, or the usual one of a set that has no such splits."""
    from volrec.benchmarks.sets import SETS

    wanted, usual = protocol.splits.split(","), SETS.get(dataset, "1")
    if wanted[0].isdigit():
        return wanted if usual.isdigit() else [usual]
    return wanted if dataset in protocol.datasets and not usual.isdigit() else [usual]


def _resolved(lists: Lists) -> list[str] | None:
    if lists is None:
        return None
    return [str(Path(one).resolve()) for one in ([lists] if isinstance(lists, (str, Path)) else lists)]
