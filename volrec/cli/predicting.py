"""The command that scores studies with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.shell import USE, Folder, app, console, finish


@app.command(group=USE)
def predict(
    run: Annotated[Path, Parameter(help="Run folder, of train or of fuse.")],
    folder: Folder,
    *,
    out: Annotated[
        Path,
        Parameter(
            help="Where the scores go: one row a study, as CSV and (same name, .json) with all settings as JSON."
        ),
    ] = Path("scores.csv"),
    also: Annotated[
        list[Path] | None,
        Parameter(
            help="One more run of the same targets and classes; repeat it for several. The score is the mean of the "
            "runs, each with one vote; the uncertainty is over all their networks."
        ),
    ] = None,
    flips: Annotated[
        list[Literal["T", "H", "W"]] | None,
        Parameter(
            consume_multiple=True,
            help="Average over mirror images along these axes, in every combination: two axes cost four times the "
            "time. T is the order of slices, W left and right.",
        ),
    ] = None,
    overlap: Annotated[
        float | None, Parameter(help="Overlap of neighbouring clips, from 0 to below 1, in place of the run's own.")
    ] = None,
    clips: Annotated[
        int | None, Parameter(help="Clips a study, spread evenly, in place of the run's own; 0 covers it.")
    ] = None,
    method: Annotated[
        Literal["clips", "dense"] | None,
        Parameter(
            help="clips: one after another. dense: the study as a whole, for networks that are convolutional along "
            "slices; its numbers are others."
        ),
    ] = None,
    slices: Annotated[
        bool, Parameter(help="Write the score of every slice, where the network gives one, to NAME-slices.csv.")
    ] = True,
    backend: Annotated[
        Literal["torch", "onnxruntime"],
        Parameter(
            help="What computes: onnxruntime is faster on a CPU for networks that read slice by slice (pip install "
            "'volrec[onnx]')."
        ),
    ] = "torch",
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute.")] = "auto",
    jobs: Annotated[
        int, Parameter(help="Processes that read headers and decode compressed slices; 0: one a processor.")
    ] = 0,
) -> int:
    """Score every study of a folder with a trained run, or with several.

    One row a study: scores, the uncertainty of the networks, clips, slices, and a warning where the study differs from
    those of the training. Beside it the same with all settings as JSON, the score of every slice, and what was left out
    and why. A study that fails is set aside and the rest goes on.

    Interrupted? The same command goes on where it was.

    Example: `volrec predict runs/c3d-label /data/new --out scores.csv`

    Three runs as one, with mirror images: `volrec predict runs/a /data/new --also runs/b --also runs/c --flips W`
    """
    from volrec import commands

    problems = commands.predict(
        run,
        folder,
        out=out,
        also=also or (),
        flips=flips,
        overlap=overlap,
        clips=clips,
        method=method,
        slices=slices,
        backend=backend,
        device=device,
        jobs=jobs,
        console=console(),
    )
    return finish(problems, table=out.with_name(f"{out.stem}-quarantine.csv"))
