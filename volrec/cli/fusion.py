"""The command that makes one run of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.shell import OK, USE, app, console


@app.command(group=USE)
def fuse(
    runs: Annotated[
        list[Path], Parameter(help="Run folders, two or more, trained on the same labels, splits and folds.")
    ],
    *,
    out: Annotated[Path | None, Parameter(help="Folder of the fused run; default runs/fused-NAMES.")] = None,
    weights: Annotated[
        list[float] | None,
        Parameter(consume_multiple=True, help="One a run, in their order; only their ratio counts. Default: equal."),
    ] = None,
    stage: Annotated[
        Literal["softmax", "logits", "relu-l1"] | None,
        Parameter(
            help="What is weighted. softmax (the default): probabilities, so that no run counts more than its weight. "
            "logits: the values before softmax or sigmoid, so that a run that is sure counts more. relu-l1: the logits "
            "above 0, divided by their sum; for exclusive classes, of runs trained with --set protocol.stage=logits."
        ),
    ] = None,
    method: Annotated[
        Literal["weights", "learned", "svm"],
        Parameter(
            help="weights: as given. learned: weights of the least log loss on the validation studies. svm: a linear "
            "support vector machine on the probabilities of the validation studies; its scores rank, but are no "
            "calibrated probabilities."
        ),
    ] = "weights",
    preset: Annotated[
        Literal["two-stream", "lrcn", "tsn", "tsn-pami", "actionvlad", "i3d", "hidden-two-stream"] | None,
        Parameter(
            help="Weights and stage of a paper, for an intensity run and a flow run, in this order: two-stream 1:1 and "
            "lrcn 1:2 at softmax; tsn 1:1.5, tsn-pami 1:1, actionvlad 1:2 and i3d 1:1 at logits; hidden-two-stream "
            "1:1.5 at relu-l1."
        ),
    ] = None,
    as_given: Annotated[
        bool,
        Parameter(
            negative="",
            help="At stage logits: sum with the weights as they are instead of averaging. The leading class stays, "
            "probabilities become harder.",
        ),
    ] = False,
) -> int:
    """Fuse runs: several networks, or intensity and flow, answer as one.

    Scores are joined by study and by the name of the class, so that the order of classes in a run does not matter. A
    study or class that one run lacks ends the command and is named; so does a study that one run learned from and
    another is tested on. What is fitted is fitted on validation studies, fold by fold where the runs have folds; test
    studies only measure it.

    The folder holds `fusion.json` (the rule and the runs, which stay where they are), `scores.csv` and `metrics.json`;
    `volrec evaluate` and `volrec predict` take it like any run.

    Example: `volrec fuse runs/intensity runs/flow --weights 1 1.5 --stage logits --out runs/both`

    Weights from the validation studies: `volrec fuse runs/intensity runs/flow --method learned`
    """
    from volrec import commands

    commands.fuse(
        runs,
        out=out,
        weights=weights,
        stage=stage,
        method=method,
        preset=preset,
        as_given=as_given,
        console=console(),
    )
    return OK
