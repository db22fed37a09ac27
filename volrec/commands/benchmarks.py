"""Commands on video benchmarks: what they do with the API, and what they tell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import ConfigError, Problem, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from volrec.config import VideoProtocol

__all__ = [
    "benchmark",
    "benchmark_protocols",
    "benchmark_table",
    "extract_videos",
    "make_motion",
    "resume_benchmark",
    "show_benchmark",
]

REPORT = "report.md"


def benchmark(
    dataset: str,
    root: Path,
    *,
    protocol: str,
    weights: Sequence[str] | None,
    init: Sequence[str] | None,
    settings: Mapping[str, Any],
    console: Console,
    **given: Any,
) -> list[Problem]:
    """Run a benchmark; print its report and where it is."""
    chosen = api.load_protocol(protocol)
    done = api.benchmark(
        dataset,
        root,
        protocol=protocol,
        weights=_by_stream(weights, chosen, what="--weights"),
        init=_by_stream(init, chosen, what="--init"),
        say=lambda text: _say(console, text),
        **given,
        **settings,
    )
    return _told(done, console)


def resume_benchmark(
    run: Path, *, parts: Sequence[str] | None, jobs: int, allow_leak: bool, console: Console
) -> list[Problem]:
    """Go on with a benchmark, or test what it has trained; print as `benchmark` does."""
    done = api.resume_benchmark(
        run, parts=parts, jobs=jobs, allow_leak=allow_leak, say=lambda text: _say(console, text)
    )
    return _told(done, console)


def _told(done: api.Benchmark, console: Console) -> list[Problem]:
    from volrec.benchmarks.report import print_report

    if done.report is not None:
        console.print()
        print_report(done.report, console)
    _say(console, f"Run: {done.path}")
    run = shlex.quote(str(done.path))
    if done.report is not None:
        _say(console, f"Report: {done.path / REPORT}\nBeside the published numbers: volrec benchmark table {run}")
    else:
        _say(console, f"Trained. Test it with: volrec benchmark --resume {run} --only test")
    return done.problems


def extract_videos(
    dataset: str,
    root: Path,
    out: Path,
    *,
    what: Sequence[str],
    size: Sequence[int] | None,
    console: Console,
    **given: Any,
) -> list[Problem]:
    """Write frames, flow or trajectories of a set and say how many videos have them."""
    problems, count = api.extract_videos(dataset, root, out, what=what, size=_size(size), **given)
    fatal = sum(problem.fatal and bool(problem.study) for problem in problems)
    for problem in problems:
        if not problem.study:
            _say(console, f"{problem.reason} {problem.remedy}".strip())
    _say(console, f"{count - fatal} of {count} videos: {', '.join(what)} in {out}.")
    return problems


def make_motion(
    out: Path,
    *,
    clips: int,
    size: Sequence[int] | None,
    classes: Sequence[str] | None,
    seed: int,
    jobs: int,
    console: Console,
) -> None:
    """Render the motion set and say what to do with it."""
    more: dict[str, Any] = {}
    shape = _size(size)
    if shape is not None:
        more["size"] = (shape, shape) if isinstance(shape, int) else shape
    made = api.make_motion(out, classes=classes, clips_per_group=clips, seed=seed, jobs=jobs, **more)
    there = f", {made.skipped} of them there already" if made.skipped else ""
    _say(console, f"{made.videos} clips of {len(made.classes)} classes in {made.folder}{there}.")
    _say(
        console,
        f"Next: volrec benchmark motion --root {shlex.quote(str(out))} --protocol tsn-eccv16 --split 1 "
        "--scale 0.25 --width 0.25 --epochs 10 --batch 16 --flow farneback",
    )


def benchmark_table(
    runs: Sequence[Path] | None,
    *,
    system: str | None,
    dataset: str | None,
    everything: bool,
    markdown: Path | None,
    csv: Path | None,
    console: Console,
) -> None:
    """Print published numbers beside those of runs, and write them where asked."""
    from volrec.benchmarks import rendering

    if runs:
        results = api.benchmark_results(list(runs))
    else:
        results = api.benchmark_results([Path("runs")]) if Path("runs").is_dir() else []
    tables = api.published_tables(results, system=system, dataset=dataset, everything=everything)
    rendering.print_tables(tables, console, results=results)
    if markdown is not None:
        from volrec.files import write_atomically

        write_atomically(markdown, rendering.markdown(tables, results=results))
        _say(console, f"Written to {markdown}.")
    if csv is not None:
        rendering.write_csv(tables, csv)
        _say(console, f"Written to {csv}.")


def show_benchmark(run: Path, *, console: Console) -> None:
    """Print the report of a finished run."""
    from rich.markdown import Markdown

    report = run / REPORT
    if not report.is_file():
        begun = (run / "config.yaml").is_file()
        raise RunError(
            "it holds no finished benchmark.",
            remedy=f"Go on with `volrec benchmark --resume {shlex.quote(str(run))}`."
            if begun
            else "Give the folder of a benchmark run.",
            where=run,
            code="not-a-run",
        )
    console.print(Markdown(report.read_text(encoding="utf-8")))


def benchmark_protocols(name: str | None, *, console: Console) -> None:
    """List the protocols, or print one as YAML."""
    from volrec.config import dump_yaml
    from volrec.report import terminal

    if name is not None:
        console.print(dump_yaml(api.load_protocol(name)), markup=False, highlight=False, soft_wrap=True, end="")
        return
    rows = []
    for known in api.list_protocols():
        one = api.load_protocol(known)
        rows.append([known, one.paper, ", ".join(one.datasets), _views(one), one.metric])
    terminal.print_rows(["protocol", "paper", "sets", "clips x crops", "metric"], rows, console, plain=True)


def _views(protocol: VideoProtocol) -> str:
    """Return clips and crops of a protocol in a few words."""
    if not protocol.streams:
        return "whole video"
    views = protocol.streams[0].test
    clips = (
        str(views.count)
        if views.count
        else "whole"
        if views.clips == "whole"
        else f"every {views.step or views.length * views.stride}"
    )
    return f"{clips} x {views.crops}"


def _by_stream(given: Sequence[str] | None, protocol: VideoProtocol, *, what: str) -> dict[str, str]:
    """Return a file a stream from ``STREAM=FILE``, or from ``FILE`` where there is one stream."""
    from volrec.benchmarks.settings import nets_of

    if not given:
        return {}
    names = [stream.name for stream in nets_of(protocol)]
    found: dict[str, str] = {}
    for text in given:
        stream, separator, file = text.partition("=")
        if not separator or "/" in stream or stream.startswith("inflate:"):
            if len(names) != 1:
                several = f"{len(names)} networks" if names else "no network"
                raise ConfigError(
                    f"'{text}' names no stream, and {protocol.name} has {several}.",
                    remedy=f"Write {what} STREAM=FILE, once a stream; its streams: {', '.join(names)}."
                    if names
                    else f"Leave {what} out: it is trajectories alone.",
                    where=what,
                    code="stream",
                )
            stream, file = names[0], text
        if stream in found:
            raise ConfigError(
                f"the stream '{stream}' is named twice ({found[stream]}, {file}).",
                remedy="Give one file a stream.",
                where=what,
                code="stream",
            )
        found[stream] = file
    return found


def _size(size: Sequence[int] | None) -> int | tuple[int, int] | None:
    if not size:
        return None
    if len(size) > 2:
        raise ConfigError(
            f"--size takes the shorter side, or height and width; got {len(size)} numbers.",
            remedy="For example --size 256 340.",
            where="--size",
            code="size",
        )
    return size[0] if len(size) == 1 else (size[0], size[1])


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
