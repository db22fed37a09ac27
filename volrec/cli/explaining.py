"""The command that shows where a run looked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.shell import USE, app, console, finish, pairs


@app.command(group=USE)
def explain(
    run: Annotated[Path, Parameter(help="Run folder.")],
    studies: Annotated[
        list[str],
        Parameter(help="Names of studies of the run (as in its scores.csv), or paths: a DICOM folder, a NIfTI file."),
    ],
    *,
    method: Annotated[
        list[str] | None,
        Parameter(
            help="What is drawn; repeat it for several. gradcam (the default): a smooth map, quick. gradcam-slicewise: "
            "the same for each slice. occlusion: how far the score falls without a slice. occlusion-3d: without a "
            "block of voxels, slow. integrated-gradients: what every voxel adds. deconvnet: the network run in "
            "reverse. Of some networks: slice-scores (each slice alone), attention, vlad. With the extra `explain`: "
            "captum:saliency, captum:smoothgrad, captum:input-x-gradient, captum:integrated-gradients, "
            "captum:deeplift, captum:gradient-shap, captum:guided-backprop."
        ),
    ] = None,
    output: Annotated[
        str | None,
        Parameter(
            help="Class, label or target that is explained. Default: the positive class of two, the class with the "
            "highest score of several."
        ),
    ] = None,
    folder: Annotated[
        Path | None, Parameter(help="Look for studies by name in this folder instead of the one of the training.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Where the folders STUDY/METHOD are written; default RUN/explain.")
    ] = None,
    image: Annotated[
        bool, Parameter(negative="", help="Also write the study itself as NIfTI, to overlay a DICOM study on.")
    ] = False,
    sanity: Annotated[
        bool,
        Parameter(
            negative="",
            help="Also make each map with random weights, and warn where it hardly changes: such a map shows the "
            "image, not what was learned. Takes eight times as long.",
        ),
    ] = False,
    settings: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="Option of a method: slab, fill (occlusion; fill is median, mean, neighbours or minimum), block, "
            "stride (occlusion-3d), steps (integrated-gradients), start, feature (deconvnet; start is output or "
            "strongest), word (vlad), e.g. --set slab=3.",
        ),
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute.")] = "auto",
) -> int:
    """Show where the networks of a run looked, as a map that lies on the study in any viewer.

    Each study and method gets a folder RUN/explain/STUDY/METHOD: evidence.nii.gz (in the study's own geometry; for a
    NIfTI study voxel by voxel that of its file), montage.png, slices.csv with curves.svg and curves.png (the map slice
    by slice, and what networks of some kinds say of each slice), and explain.json with all that made it. A study that
    the run tested is explained by the network that did not see it in training. A map says where a network found what it
    reads as a sign; it does not say that the sign is one.

    Example: `volrec explain runs/c3d-label case007 --method gradcam --method occlusion`
    """
    from volrec import commands

    problems = commands.explain(
        run,
        studies,
        methods=list(dict.fromkeys(method or ["gradcam"])),
        output=output,
        options=pairs(settings),
        folder=folder,
        out=out,
        image=image,
        sanity=sanity,
        device=device,
        console=console(),
    )
    return finish(problems, table="")
