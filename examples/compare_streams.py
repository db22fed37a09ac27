"""What motion between slices and learned aggregation are worth: each system with and without its idea, one table.

Systems: Two-Stream, TwoStreamFusion, TSN, ActionVLAD, Hidden Two-Stream, C3D and I3D. Ideas: motion (flow, differences,
warped flow) or none; towers that meet inside the network or at their scores; a learned consensus or the average;
segments all over the stack or its middle; a vocabulary or the average; predicted flow or TV-L1; stages or labels alone.
`ARMS` holds them all: an arm is what it overrides of the plan of `volrec train`, and what it is compared with.

Tasks: a *bleed* shows in one slice; of a *nodule* only the order of the slices tells; in *motion* the way that textured
shapes go from slice to slice is the class (left, right, front or back of the patient), with *drift* while the whole
stack moves in plane as well; *hippocampus* are MR crops (Medical Segmentation Decathlon, Task04), both labels.

Every arm has the same studies, split, steps and batches; the stages of one that trains in turn share its steps. No
mirrors: they turn motion around. An interval is that of 2000 resamples, which draw the test studies and the seeds
anew; in a difference both arms have the same draws. What is finished is kept: an interrupted comparison goes on with
the same command. An arm that fails is named, and the others go on. TV-L1 needs the extra flow.

Usage: python examples/compare_streams.py [--tasks motion] [--arms "two-stream*" c3d] [--seeds 0 1 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from volrec.evaluation.weighted import binary
from volrec.files import write_atomically

SLICES, SIZE = 24, 48
BATCHES = 40  # an epoch
RESAMPLES = 2000


@dataclass(frozen=True)
class Arm:
    """A system with one choice made: dotted keys over the plan, and the arms that lack its idea."""

    system: str
    choice: str
    overrides: Mapping[str, Any]
    against: tuple[str, ...] = ()


def _arm(
    system: str,
    network: str,
    choice: str,
    reads: str,
    *,
    against: Sequence[str] = (),
    keys: Mapping[str, Any] | None = None,
    **options: Any,
) -> Arm:
    """Return an arm: what its network reads, options of the network, further keys, and what it is compared with."""
    named = {f"network.options.{name}": value for name, value in options.items()}
    all_keys = {"network.name": network, "streams.inputs": reads.split(), **named, **(keys or {})}
    return Arm(system, choice, all_keys, tuple(against))


_SLICES, _FLOW, _BOTH = "intensity", "flow", "intensity flow"
_SEGMENTS = {"sampling.train": "segments", "sampling.clip_length": 7}
_MIDDLE = {"sampling.train": "center", "sampling.clip_length": 7}
_AT_ONCE: dict[str, Any] = {"stages": []}

_TWO = ("Two-Stream", "two-stream")
_FUSION = ("TwoStreamFusion", "two-stream-fusion")
_TSN = ("TSN", "tsn")
_VLAD = ("ActionVLAD", "actionvlad")
_NARROW: dict[str, Any] = {"network.options.backbone": "cnn-m-2048"}  # Two-Stream's: VGG-16 costs seven times as much
_HIDDEN = ("Hidden Two-Stream", "hidden-two-stream")

ARMS: dict[str, Arm] = {
    "slice-mean": _arm("slice by slice", "slice-mean", "one tower, no motion", _SLICES),
    # Two-Stream: motion has a tower of its own.
    "two-stream-still": _arm(*_TWO, "flow off", _SLICES),
    "two-stream": _arm(*_TWO, "flow", _BOTH, against=["two-stream-still", "slice-mean"]),
    "two-stream-difference": _arm(
        *_TWO, "differences", "intensity difference", against=["two-stream-still", "two-stream"]
    ),
    "two-stream-warped": _arm(*_TWO, "warped flow", "intensity warped", against=["two-stream"]),
    # TwoStreamFusion: the towers meet inside the network. Two-Stream adds them at the scores.
    "fusion-still": _arm(*_FUSION, "3D convolution, flow off", _SLICES, fusion="conv", pooling="3d-3d"),
    "fusion-sum": _arm(*_FUSION, "sum of maps", _BOTH, fusion="sum", pooling="2d-2d"),
    "fusion": _arm(
        *_FUSION, "3D convolution", _BOTH, fusion="conv", pooling="3d-3d",
        against=["two-stream", "fusion-sum", "fusion-still"],
    ),
    # TSN: snippets from all over the stack, and a consensus of their scores.
    "tsn-still": _arm(*_TSN, "average, flow off", _SLICES, keys=_SEGMENTS),
    "tsn-center": _arm(*_TSN, "average, from the middle", _BOTH, keys=_MIDDLE),
    "tsn": _arm(*_TSN, "average, from segments", _BOTH, keys=_SEGMENTS, against=["tsn-center", "tsn-still"]),
    "tsn-attention": _arm(
        *_TSN, "attention", _BOTH, consensus="attention", test_consensus="same", keys=_SEGMENTS, against=["tsn"]
    ),
    "tsn-weighted": _arm(
        *_TSN, "learned weights", _BOTH, consensus="weighted", segments=7, test_consensus="same", keys=_SEGMENTS,
        against=["tsn"],
    ),
    "tsn-top-k": _arm(*_TSN, "top-k", _BOTH, consensus="top-k", test_consensus="same", keys=_SEGMENTS, against=["tsn"]),
    # ActionVLAD: a vocabulary. All at once: from drawn weights the paper's first turn would teach a classifier noise.
    "actionvlad-still": _arm(*_VLAD, "vocabulary, flow off", _SLICES, pooling="vlad", keys=_AT_ONCE | _NARROW),
    "actionvlad-average": _arm(*_VLAD, "average", _BOTH, pooling="average", keys=_AT_ONCE | _NARROW),
    "actionvlad": _arm(
        *_VLAD, "vocabulary", _BOTH, pooling="vlad", keys=_AT_ONCE | _NARROW,
        against=["actionvlad-average", "actionvlad-still"],
    ),
    # Hidden Two-Stream: flow is predicted, first without labels.
    "hidden-labels": _arm(*_HIDDEN, "predicted flow, labels alone", _SLICES, keys=_AT_ONCE),
    "hidden": _arm(
        *_HIDDEN, "predicted flow, in stages", _SLICES, against=["hidden-labels", "two-stream", "two-stream-still"]
    ),
    # 3D networks, which could find motion by themselves.
    "c3d": _arm("C3D", "c3d", "slices", _SLICES),
    "c3d-flow": _arm("C3D", "c3d", "flow", _FLOW, against=["c3d"]),
    "c3d-both": _arm("C3D", "c3d", "slices and flow", _BOTH, against=["c3d"]),
    "i3d": _arm("I3D", "i3d", "slices", _SLICES),
    "i3d-flow": _arm("I3D", "i3d", "flow", _FLOW, against=["i3d"]),
    "i3d-both": _arm("I3D", "i3d", "slices and flow", _BOTH, against=["i3d"]),
}  # fmt: skip

# What is the same for every arm; the rest is planned from the data, epochs and seed come from the command line.
COMMON: dict[str, Any] = {
    "split.validation": 0,
    "split.test": 0.35,
    "split.seed": 0,
    "augment.flip": {},
    "network.width": 0.125,
    "optim.lr": 1e-3,
    "optim.batch_size": 8,
    "optim.ema_decay": 0.0,
    "trainer.batches_per_epoch": BATCHES,
    "trainer.patience": 0,
    "trainer.checkpoint": "last",
    "trainer.workers": 0,
}
# Fields that a slice carries, and where displacements are clipped (pixels); only for arms that read flow.
FLOW: dict[str, Any] = {"streams.flow.method": "tvl1", "streams.flow.stack": 3, "streams.flow.bound": 5.0}

PHANTOM: dict[str, Any] = {
    "preprocess.canvas": [SLICES, SIZE, SIZE],
    "intensity.kind": "window",
    "intensity.windows": [{"level": 40, "width": 400}],
    "augment.rotate": 0.0,
    "augment.shift": 2.0,
}
CROPS: dict[str, Any] = {
    "preprocess.slice_axis": "acquired",
    "preprocess.spacing": [2, 2, 2],
    "preprocess.canvas": [24, 32, 32],
    "intensity.kind": "zscore",
}


@dataclass(frozen=True)
class Task:
    """Studies and what is asked of them; `phantom` holds the arguments that make them, empty for those that exist."""

    what: str
    target: str
    overrides: Mapping[str, Any]
    phantom: Mapping[str, Any] = field(default_factory=dict)


TASKS: dict[str, Task] = {
    "bleed": Task("one slice shows it", "label", PHANTOM, {"task": "bleed"}),
    "nodule": Task("only the order of slices tells", "label", PHANTOM, {"task": "nodule"}),
    "motion": Task("which way shapes go", "direction", PHANTOM, {"task": "motion"}),
    "drift": Task("which way they go in a stack that moves", "direction", PHANTOM, {"task": "motion", "drift": 2.0}),
    "hippocampus-large": Task("larger than its crop suggests", "large_for_crop", CROPS),
    "hippocampus-anterior": Task("a larger front part than its crop suggests", "anterior_for_crop", CROPS),
}


# One training


@dataclass(frozen=True)
class Job:
    """One arm on one task from one seed."""

    out: Path
    task: str
    arm: str
    seed: int
    epochs: int
    folder: Path
    labels: Path
    accelerator: str = "auto"

    @property
    def name(self) -> str:
        return f"{self.task}-{self.arm}-{self.seed}"

    @property
    def scores(self) -> Path:
        return scores_path(self.out, self.task, self.arm, self.seed)


def scores_path(out: Path, task: str, arm: str, seed: int) -> Path:
    return out / "scores" / f"{task}-{arm}-{seed}.csv"


def overrides(job: Job) -> dict[str, Any]:
    """Return every key that is set: of all arms, of the task, of the arm."""
    task, arm = TASKS[job.task], ARMS[job.arm]
    reads_flow = {"flow", "warped"} & set(arm.overrides["streams.inputs"])
    return {
        **COMMON,
        **task.overrides,
        **(FLOW if reads_flow else {}),
        **arm.overrides,
        "data.target": [task.target],
        "trainer.epochs": job.epochs,
        "trainer.seed": job.seed,
        "trainer.accelerator": job.accelerator,
        "store.folder": str(job.out / "store"),
    }


def share_out(wanted: Sequence[int], total: int) -> list[int]:
    """Divide `total` epochs among stages in proportion to what they want, at least one each."""
    if total < len(wanted):
        raise SystemExit(f"{total} epochs cannot be shared by {len(wanted)} stages: give more (--epochs).")
    spare = (total - len(wanted)) * np.asarray(wanted, dtype=float) / sum(wanted)
    shares = 1 + np.floor(spare).astype(int)
    for place in np.argsort(np.floor(spare) - spare, kind="stable")[: total - shares.sum()]:
        shares[place] += 1
    return shares.tolist()


def planned(job: Job) -> Any:
    """Plan the training; its stages share the epochs of one."""
    import volrec
    from volrec.config import apply_overrides

    config = volrec.plan(job.folder, labels=job.labels, overrides=overrides(job)).config
    if not config.stages:
        return config
    shares = share_out([stage.epochs or job.epochs for stage in config.stages], job.epochs)
    turns = [{**stage.to_dict(), "epochs": share} for stage, share in zip(config.stages, shares, strict=True)]
    return apply_overrides(config, {"stages": turns})


def train_once(job: Job) -> None:
    """Train, or go on, and keep the scores of the test studies."""
    from volrec.runs import RunFolder
    from volrec.training import train

    if job.scores.is_file():
        return
    run = RunFolder(job.out / "runs" / job.name)
    if not run.finished:
        if (run.path / "config.yaml").is_file():
            train(run.config, run.path, resume=True)
        else:
            train(planned(job), run.path)
    job.scores.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.scores, run.scores().to_csv(index=False))


# The table


def scores_of(out: Path, task: str, arm: str, seeds: Sequence[int]) -> dict[int, pd.DataFrame]:
    """Return the scores of every seed that is there, studies in one order."""
    paths = {seed: scores_path(out, task, arm, seed) for seed in seeds}
    return {
        seed: pd.read_csv(path, dtype={"study": str}).sort_values("study", ignore_index=True)
        for seed, path in paths.items()
        if path.is_file()
    }


def aucs(table: pd.DataFrame, target: str) -> np.ndarray:
    """Return the AUC of one seed, mean over the classes that have a score: as it is, then of RESAMPLES resamples.

    The draws depend on the number of studies alone: seeds and arms, which have one split, share them.
    """
    count = len(table)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), drawn])
    truth = table[target].astype(str)
    columns = [name for name in table.columns if name.startswith("score_")]
    own = [(truth == name.removeprefix("score_")).to_numpy(float) for name in columns]
    return np.mean(
        [binary(is_it, table[name].to_numpy(float), weights)["auc"] for is_it, name in zip(own, columns, strict=True)],
        axis=0,
    )


def over_seeds(values: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean over seeds with a 95 % interval: each resample of studies has seeds drawn anew as well."""
    stacked = np.stack(values)
    chosen = np.random.default_rng(1).integers(len(stacked), size=(len(stacked), RESAMPLES))
    drawn = np.take_along_axis(stacked[:, 1:], chosen, axis=0).mean(axis=0)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"value": float(stacked[:, 0].mean()), "low": float(low), "high": float(high)}


def summary(out: Path, tasks: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the AUC of every arm and task, and what its idea adds over the seeds that both arms have."""
    found: dict[str, Any] = {"auc": [], "gains": []}
    needed = [name for name in ARMS if name in arms or any(name in ARMS[arm].against for arm in arms)]
    for task in tasks:
        values = {
            arm: {seed: aucs(table, TASKS[task].target) for seed, table in scores_of(out, task, arm, seeds).items()}
            for arm in needed
        }
        for arm in arms:
            own = values[arm]
            if not own:
                continue
            by_seed = {str(seed): float(value[0]) for seed, value in own.items()}
            found["auc"].append({"task": task, "arm": arm, **over_seeds(list(own.values())), "seeds": by_seed})
            for other in ARMS[arm].against:
                both = [seed for seed in own if seed in values[other]]
                if both:
                    gain = over_seeds([own[seed] - values[other][seed] for seed in both])
                    found["gains"].append({"task": task, "arm": arm, "against": other, **gain, "seeds": both})
    return found


def markdown(found: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """Return the AUC of the arms, then the differences, as two Markdown tables."""

    def shown(row: Mapping[str, Any] | None, sign: str = "") -> str:
        if row is None:
            return "-"
        return f"{row['value']:{sign}.3f} [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"

    def table(headings: Sequence[str], lines: Mapping[tuple[str, ...], Mapping[str, Any]], sign: str = "") -> str:
        rows = [[*leading, *(shown(cells.get(task), sign) for task in tasks)] for leading, cells in lines.items()]
        parts = [[*headings, *tasks], ["---"] * (len(headings) + len(tasks)), *rows]
        return "\n".join(f"| {' | '.join(part)} |" for part in parts)

    levels: dict[tuple[str, ...], dict[str, Any]] = {}
    gains: dict[tuple[str, ...], dict[str, Any]] = {}
    order = {name: place for place, name in enumerate(ARMS)}
    for row in sorted(found["auc"], key=lambda row: order[row["arm"]]):
        arm = ARMS[row["arm"]]
        levels.setdefault((arm.system, arm.choice), {})[row["task"]] = row
    for row in sorted(found["gains"], key=lambda row: order[row["arm"]]):
        arm, other = ARMS[row["arm"]], ARMS[row["against"]]
        less = other.choice if other.system == arm.system else f"{other.system}: {other.choice}"
        gains.setdefault((arm.system, arm.choice, less), {})[row["task"]] = row
    counts = {len(row["seeds"]) for row in found["auc"]}
    seeds = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    text = f"AUC on test studies, mean of {seeds} seed{'s' if counts != {1} else ''} [95 % interval]:\n\n"
    text += table(["system", "with"], levels)
    if gains:
        text += "\n\nDifference of AUC:\n\n" + table(["system", "with", "less"], gains, "+")
    return text + "\n"


# The whole


def chosen_arms(patterns: Sequence[str]) -> list[str]:
    """Return the arms that match, in the order of the table."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in ARMS):
            raise SystemExit(f"no arm is called {pattern!r}; there are {', '.join(ARMS)}.")
    return [name for name in ARMS if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_settings(out: Path, given: Mapping[str, Any]) -> None:
    """Refuse to mix runs of unlike budgets in one table."""
    path = out / "settings.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        unlike = [name for name, value in given.items() if known.get(name) != value]
        if unlike:
            told = ", ".join(f"{name} {known.get(name)}" for name in unlike)
            raise SystemExit(f"{out} holds a comparison with {told}: give the same, or another --out.")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dict(given), indent=2) + "\n")


def place_of(task: str, *, out: Path, data: Path, studies: int) -> tuple[Path, Path]:
    """Return the folder and the labels of a task; phantoms are made where they are missing."""
    arguments = TASKS[task].phantom
    if not arguments:
        return data / "images", data / "labels.csv"
    folder = out / "phantoms" / task
    if not (folder / "labels.csv").is_file():
        import volrec

        volrec.make_phantoms(folder, studies=studies, seed=0, size=SIZE, slices=SLICES, **arguments)
    return folder, folder / "labels.csv"


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run(job: Job) -> str | None:
    """Return what went wrong, so that one arm does not stop the others."""
    from volrec.errors import VolrecError

    try:
        train_once(job)
    except VolrecError as error:
        return f"{job.name}: {error}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=["*"], help="names or patterns of the table above")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--epochs", type=int, default=20, help=f"of {BATCHES} steps each")
    parser.add_argument("--studies", type=int, default=320, help="phantoms a task")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hippocampus"), help="images/ and labels.csv")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--table", action="store_true", help="no training: the table of what is there")
    parser.add_argument("--out", type=Path, default=Path("streams"))
    arguments = parser.parse_args()
    from volrec.progress import progress

    arms, out = chosen_arms(arguments.arms), arguments.out
    failed = []
    if not arguments.table:
        check_settings(out, {"epochs": arguments.epochs, "studies": arguments.studies})
        places = {
            task: place_of(task, out=out, data=arguments.data, studies=arguments.studies) for task in arguments.tasks
        }
        jobs = [
            Job(out, task, arm, seed, arguments.epochs, *places[task], arguments.accelerator)
            for seed in arguments.seeds for task in arguments.tasks for arm in arms
        ]  # fmt: skip
        os.environ["OMP_NUM_THREADS"] = "1"
        context = get_context("spawn")
        with (
            ProcessPoolExecutor(arguments.jobs, mp_context=context, initializer=_single_thread) as pool,
            progress("trainings", len(jobs)) as bar,
        ):
            for wrong in pool.map(_run, jobs):
                failed += [wrong] if wrong else []
                bar.advance()
    found = summary(out, arguments.tasks, arms, arguments.seeds)
    if found["auc"]:
        text = markdown(found, arguments.tasks)
        write_atomically(out / "results.json", json.dumps(found, indent=1) + "\n")
        write_atomically(out / "table.md", text)
        print(text)
        for task in arguments.tasks:
            print(f"{task}: {TASKS[task].what}")
    else:
        print("Nothing has been trained yet: no table.")
    if failed:
        raise SystemExit("\n".join(["These failed; the same command tries them again:", *failed]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("Stopped; the same command goes on where it was.") from None
