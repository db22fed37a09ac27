"""`volrec benchmark`: the papers' protocols on the video sets they report on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from volrec.cli.shell import USE, Seed, app, console, finish, pairs
from volrec.errors import VolrecError

Dataset = Literal["ucf101", "hmdb51", "kinetics", "sports1m", "motion", "list"]
Root = Annotated[Path | None, Parameter(help="Folder of the videos (files, or folders of frames img_00001.jpg ..).")]
Lists = Annotated[
    list[Path] | None,
    Parameter(
        consume_multiple=True,
        help="Folder of the official lists, or the files themselves, training list first; default: found beside the "
        "videos.",
    ),
]
Decoder = Annotated[
    Literal["pyav", "opencv", "torchcodec"] | None, Parameter(help="What decodes videos; default: pyav.")
]
Resume = Annotated[
    Path | None,
    Parameter(
        help="Go on with the run in this folder as it was begun; only --only, --jobs and --allow-leak may come with "
        "it. --resume RUN --only test tests what --only train has trained."
    ),
]
Jobs = Annotated[int, Parameter(help="Videos in hand at a time; processes when flow or trajectories are computed.")]

benchmark = App(
    name="benchmark",
    group=USE,
    help=(
        "Run a paper's protocol on UCF101, HMDB51, Kinetics, Sports-1M, or on a rendered set that needs no "
        "download.\n\n"
        "Examples. Test weights: `volrec benchmark ucf101 --root UCF-101 --protocol tsn-eccv16 --split 1 --weights "
        "rgb=rgb.safetensors --weights flow=flow.safetensors`\n\n"
        "Train and test: `volrec benchmark ucf101 --root UCF-101 --protocol tsn-eccv16 --split 1`; after an "
        "interruption: `volrec benchmark --resume RUN`\n\n"
        "Without any data: `volrec benchmark make-motion motion`, then `volrec benchmark motion --root motion "
        "--protocol tsn-eccv16 --split 1 --scale 0.25 --width 0.25 --epochs 10 --batch 16 --flow farneback`\n\n"
        "Every number comes with the list of what differs from the paper. Needs `pip install 'volrec[video]'`."
    ),
    help_format="markdown",
    default_parameter=Parameter(negative_iterable=""),
)
app.command(benchmark)


@benchmark.default
def run(
    dataset: Annotated[Dataset | None, Parameter(help="Which set; motion is the rendered one.")] = None,
    *,
    root: Root = None,
    protocol: Annotated[
        str | None, Parameter(help="Name (`volrec benchmark protocols` lists them), or a YAML file.")
    ] = None,
    split: Annotated[
        str | None,
        Parameter(
            help="Official splits, e.g. 1 or 1,2,3; default: those of the paper's headline. own-1 takes lists that are "
            "not the official ones, random-0 draws a split with that seed: both by name only."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        Parameter(
            help="Test these weights: STREAM=FILE, or FILE where there is one stream; {split} in the name stands for "
            "the split. Repeat it for several streams."
        ),
    ] = None,
    init: Annotated[
        list[str] | None,
        Parameter(
            help="Begin the training with these weights: STREAM=FILE, or inflate: before the file of a 2D network."
        ),
    ] = None,
    only: Annotated[
        Literal["train", "test"] | None,
        Parameter(
            help="Only train, or only test: a run that has trained (--resume RUN --only test), or given weights "
            "(--weights; of a run: RUN/split-{split}-STREAM/weights.safetensors)."
        ),
    ] = None,
    lists: Lists = None,
    extracted: Annotated[
        Path | None,
        Parameter(
            help="Folder of frames and flow, one folder a video (`volrec benchmark extract`, denseflow, TSN's tools); "
            "missing flow is estimated into it. Default: in the run folder."
        ),
    ] = None,
    trajectories: Annotated[
        Path | None,
        Parameter(help="Folder of improved dense trajectories; missing ones are computed. Default: in the run folder."),
    ] = None,
    flow: Annotated[
        Literal["tvl1", "farneback", "dis"] | None, Parameter(help="Estimator of flow in place of the paper's.")
    ] = None,
    epochs: Annotated[
        int | None, Parameter(help="Passes over the training videos; default: the paper's updates.")
    ] = None,
    batch: Annotated[int | None, Parameter(help="Videos an update; default: the paper's.")] = None,
    step_batch: Annotated[
        int | None, Parameter(help="Videos in memory at a time; their gradients are added up.")
    ] = None,
    scale: Annotated[
        float | None, Parameter(help="Factor of frame and crop sizes; below 1 for a try. Default: 1, the paper's.")
    ] = None,
    width: Annotated[
        float | None, Parameter(help="Factor of the networks' channels; below 1 for a try. Default: 1, the paper's.")
    ] = None,
    decoder: Decoder = None,
    out: Annotated[Path | None, Parameter(help="Run folder; default runs/benchmark-SET-PROTOCOL.")] = None,
    resume: Resume = None,
    jobs: Jobs = 1,
    seed: Seed = None,
    allow_leak: Annotated[
        bool,
        Parameter(negative="", help="Test weights on a split that they were not trained for; the number is marked."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", help="Change one key of the protocol, e.g. --set streams.rgb.training.lr=0.01."),
    ] = None,
) -> int:
    """Run a paper's protocol on a set of videos: train, test, or both.

    The run folder holds weights and scores of every stream and split, `report.md`, and `benchmark.json`, which `volrec
    benchmark table` reads. An interrupted run goes on with --resume. Exit codes: 0 all listed videos were used; 3 some
    are missing or could not be read; 2 nothing was run.
    """
    from volrec import commands

    given: dict[str, Any] = {
        "a data set": dataset,
        "--root": root,
        "--protocol": protocol,
        "--split": split,
        "--weights": weights,
        "--init": init,
        "--lists": lists,
        "--extracted": extracted,
        "--trajectories": trajectories,
        "--flow": flow,
        "--epochs": epochs,
        "--batch": batch,
        "--step-batch": step_batch,
        "--scale": scale,
        "--width": width,
        "--decoder": decoder,
        "--out": out,
        "--seed": seed,
        "--set": set_,
    }
    if resume is not None:
        others = [name for name, value in given.items() if value is not None]
        if others:
            raise VolrecError(
                f"--resume goes on with a run as it was begun, and {', '.join(others)} came with it.",
                remedy="Leave that out, or begin another run.",
            )
        parts = None if only is None else [only]
        return finish(
            commands.resume_benchmark(resume, parts=parts, jobs=jobs, allow_leak=allow_leak, console=console())
        )
    if dataset is None or root is None or protocol is None:
        missing = next(name for name in ("a data set", "--root", "--protocol") if given[name] is None)
        raise VolrecError(
            f"volrec benchmark needs {missing}.",
            remedy="For example: volrec benchmark ucf101 --root UCF-101 --protocol tsn-eccv16 --split 1. "
            "`volrec benchmark --help` has more.",
        )
    chosen = {"epochs": epochs, "batch": batch, "step_batch": step_batch, "seed": seed, "decoder": decoder}
    problems = commands.benchmark(
        dataset,
        root,
        protocol=protocol,
        splits=None if split is None else [part.strip() for part in split.split(",") if part.strip()],
        weights=weights,
        init=init,
        parts=["train", "test"] if only is None else [only],
        lists=lists,
        extracted=extracted,
        trajectories=trajectories,
        flow=flow,
        scale=1.0 if scale is None else scale,
        width=1.0 if width is None else width,
        out=out,
        jobs=jobs,
        allow_leak=allow_leak,
        overrides=pairs(set_),
        settings={name: value for name, value in chosen.items() if value is not None},
        console=console(),
    )
    return finish(problems)


@benchmark.command
def extract(
    dataset: Annotated[Dataset, Parameter(help="Which set.")],
    *,
    root: Annotated[Path, Parameter(help="Folder of the videos.")],
    out: Annotated[Path, Parameter(help="Where the pictures go, a folder a video.")],
    what: Annotated[
        list[Literal["rgb", "flow", "warped", "trajectories"]] | None,
        Parameter(
            consume_multiple=True,
            help="rgb: frames. flow. warped: flow without the movement of the camera. trajectories: improved dense "
            "trajectories, a file a video. Default: rgb flow.",
        ),
    ] = None,
    size: Annotated[
        list[int] | None,
        Parameter(
            consume_multiple=True,
            help="Shorter side, or height and width, e.g. --size 256 340 as TSN; default: as decoded.",
        ),
    ] = None,
    quality: Annotated[int, Parameter(help="Of the JPEG pictures, 1 to 100.")] = 95,
    flow: Annotated[Literal["tvl1", "farneback", "dis"], Parameter(help="Estimator.")] = "tvl1",
    bound: Annotated[float, Parameter(help="Pixels at which displacements are clipped.")] = 20.0,
    lists: Lists = None,
    split: Annotated[
        str | None, Parameter(help="Videos of this split; all splits of UCF101 and HMDB51 have the same.")
    ] = None,
    decoder: Decoder = None,
    jobs: Annotated[int | None, Parameter(help="Processes; default: all cores.")] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="Make again what was made with other settings.")] = False,
) -> int:
    """Write frames and flow of a set to disk as pictures; an interrupted extraction goes on with the same command.

    `extraction.json` beside the pictures says decoder, sizes, order of steps, estimator and bound: what replications
    of papers differ in.

    Example: `volrec benchmark extract ucf101 --root UCF-101 --out ucf101-340x256 --size 256 340`
    """
    from volrec import commands

    problems = commands.extract_videos(
        dataset,
        root,
        out,
        what=what or ["rgb", "flow"],
        size=size,
        quality=quality,
        estimator=flow,
        bound=bound,
        lists=lists,
        split=split,
        decoder=decoder or "pyav",
        jobs=jobs,
        overwrite=overwrite,
        console=console(),
    )
    return finish(problems)


@benchmark.command(name="make-motion")
def make_motion(
    out: Annotated[Path, Parameter(help="Folder of the set; new, or one that was interrupted.")],
    *,
    clips: Annotated[int, Parameter(help="Clips of each of the 25 groups of a class.")] = 1,
    size: Annotated[list[int] | None, Parameter(consume_multiple=True, help="Height and width; default 60 80.")] = None,
    classes: Annotated[list[str] | None, Parameter(consume_multiple=True, help="Only these classes.")] = None,
    seed: Annotated[int, Parameter(help="Of everything that is drawn.")] = 0,
    jobs: Annotated[int, Parameter(help="Processes.")] = 1,
) -> int:
    """Render a set of short clips in UCF101's exact layout, so that every protocol can be run without a download.

    Some classes are told apart by one frame, most by motion alone (direction, pace, sense of rotation); a README.txt
    beside the clips says how far single frames, flow and both can get at best.

    Example: `volrec benchmark make-motion motion`
    """
    from volrec import commands

    commands.make_motion(out, clips=clips, size=size, classes=classes, seed=seed, jobs=jobs, console=console())
    return 0


@benchmark.command
def table(
    runs: Annotated[list[Path] | None, Parameter(help="Run folders, or folders that hold some; default: runs.")] = None,
    *,
    system: Annotated[str | None, Parameter(help="Only this system, with all its results.")] = None,
    dataset: Annotated[str | None, Parameter(help="Only results on this set.")] = None,
    all_: Annotated[
        bool, Parameter(name="--all", negative="", help="The tables of the papers too, not the survey's alone.")
    ] = False,
    markdown: Annotated[Path | None, Parameter(help="Write the table as Markdown, too.")] = None,
    csv: Annotated[Path | None, Parameter(help="Write the table as CSV, too.")] = None,
) -> int:
    """Print what was published, by split and metric, beside what was reproduced here, or "not run".

    A run stands beside a published number only where set, splits, metric and protocol are the same; what differs from
    the paper is counted (`volrec benchmark show RUN` lists it).
    """
    from volrec import commands

    commands.benchmark_table(
        runs, system=system, dataset=dataset, everything=all_, markdown=markdown, csv=csv, console=console()
    )
    return 0


@benchmark.command
def show(run: Annotated[Path, Parameter(help="Run folder of `volrec benchmark`.")]) -> int:
    """Print the report of a finished run: numbers, conditions, and how its protocol differs from the paper's."""
    from volrec import commands

    commands.show_benchmark(run, console=console())
    return 0


@benchmark.command
def protocols(
    name: Annotated[str | None, Parameter(help="Print this one whole, as YAML.")] = None,
) -> int:
    """List the protocols of the papers; with a name, print everything that one says, to edit and give as a file.

    Example: `volrec benchmark protocols tsn-eccv16 > mine.yaml`
    """
    from volrec import commands

    commands.benchmark_protocols(name, console=console())
    return 0
