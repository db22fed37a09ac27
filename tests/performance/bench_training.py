"""What training costs beyond the network itself: ``python tests/performance/bench_training.py [--data FOLDER]``.

1. Overhead: an epoch of `fit_member`, against a bare loop over the same loader with the same module, transform, loss
   and optimiser. Both see the same studies in the same order; the least of some rounds that take turns.
2. Data wait: shares of data wait, transfer and compute as ``volrec train`` reports them, on synthetic studies of the
   size of the hippocampus set, or on that set itself (``--data``: the folder that holds ``hippocampus/``).
3. With a CUDA device: the same shares on it, for float32 and mixed precision, and what the clock itself costs.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# One thread: on a busy machine, threads that wait for each other would be measured instead.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from volrec.config import TrainConfig, parse_config
from volrec.data.entries import StoredVolume, study_quantiles, write_entry
from volrec.data.labels import Case
from volrec.data.store import Store
from volrec.runs import Member
from volrec.training.data import ClipData
from volrec.training.fit import fit_member
from volrec.training.member import Subject, make_module

SUBJECT = Subject("binary", ("label",), ("0", "1"), 1)


def studies(folder: Path, *, count: int, shape: tuple[int, int, int]) -> tuple[list[Case], dict[str, Any], Store]:
    """Write random studies into a store."""
    rng = np.random.default_rng(0)
    cases, entries = [], {}
    for number in range(count):
        array = rng.integers(0, 1000, shape).astype(np.int16)
        uid = f"1.2.{number}"
        volume = StoredVolume(array, np.eye(4), study_quantiles(array), {"source_affine": np.eye(4).tolist()})
        entries[uid] = write_entry(folder, f"{number:040x}", volume, uid=uid, format="npy")
        series: Any = SimpleNamespace(uid=uid, signature="", path=uid, spacing=(1.0, 1.0, 1.0))
        cases.append(Case(f"s{number}", f"p{number}", series, np.array([number % 2], dtype=np.float32)))
    return cases, entries, Store(folder)


def settings(shape: Sequence[int], *, epochs: int, network: str, width: float, **trainer: Any) -> TrainConfig:
    return parse_config(
        {
            "network": {"name": network, "width": width},
            "sampling": {"clip_length": shape[0], "train": "center"},
            "augment": {"flip": {"T": 0.5}, "rotate": 10, "noise": 0.05},
            "optim": {"batch_size": 8},
            "trainer": {"epochs": epochs, "patience": 0, "accelerator": "cpu", **trainer},
        }
    )


def processor() -> float:
    """Return the processor seconds of this process so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bare(config: TrainConfig, cases: list[Case], entries: dict[str, Any], store: Store) -> float:
    """Return the seconds of a loop that does what has to be done and nothing else."""
    data = ClipData(config, cases, entries, store=store, task="binary", accelerator="cpu")
    module = make_module(config, SUBJECT, data).train()
    optimizer = torch.optim.AdamW(module.network.parameters(), lr=config.optim.lr)
    loader = data.train_dataloader()
    began = processor()
    for epoch in range(config.trainer.epochs):
        data.sampler.set_epoch(epoch)
        for step, batch in enumerate(loader):
            batch.pop("problems")
            generator = torch.Generator().manual_seed(step)
            moved = module.transform({**batch, "target": batch["target"].float()}, generator=generator)
            loss = module.loss(module.network(moved["image"]), moved["target"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.network.parameters(), config.optim.clip_norm)
            optimizer.step()
            loss.item()
    return processor() - began


def whole(config: TrainConfig, cases: list[Case], entries: dict[str, Any], store: Store) -> float:
    """Return the seconds of `fit_member`."""
    with tempfile.TemporaryDirectory() as folder:
        began = processor()
        fit_member(
            config, SUBJECT, member=Member(Path(folder, "m")), train=cases, validation=[], entries=entries, store=store
        )
        return processor() - began


def overhead(rounds: int) -> None:
    print("overhead over a bare loop (a step of 8 studies; 4 steps an epoch)")
    for shape, network, width in (((8, 16, 16), "slice-mean", 0.125), ((32, 48, 48), "c3d", 0.125)):
        with tempfile.TemporaryDirectory() as folder:
            cases, entries, store = studies(Path(folder), count=32, shape=shape)
            short, long = (settings(shape, epochs=epochs, network=network, width=width, workers=0) for epochs in (1, 4))
            ours, loop = [], []
            for _ in range(rounds):
                # What a longer training costs more: what happens once (start, first batches) is not counted.
                loop.append((bare(long, cases, entries, store) - bare(short, cases, entries, store)) / 12 * 1e3)
                ours.append((whole(long, cases, entries, store) - whole(short, cases, entries, store)) / 12 * 1e3)
        one, other = min(loop), min(ours)
        print(f"  {network} on {shape}: bare {one:.2f} ms, volrec {other:.2f} ms: {other / one:.2f}x", flush=True)


def shares(accelerator: str, precision: str, *, shape: tuple[int, int, int], width: float, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cases, entries, store = studies(Path(folder, "store"), count=max(64, 4 * batch), shape=shape)
        config = settings(shape, epochs=4, network="c3d", width=width, precision=precision).model_copy(deep=True)
        config.trainer.accelerator = accelerator  # type: ignore[assignment]
        config.optim.batch_size = batch
        member = Member(Path(folder, "m"))
        result = fit_member(config, SUBJECT, member=member, train=cases, validation=[], entries=entries, store=store)
        steps = member.history()[["data_wait", "transfer", "compute"]].sum(axis=1).iloc[1:].min()
    later = {part: result.times[f"{part}_share_later"] for part in ("data_wait", "transfer", "compute")}
    rate = len(cases) / steps
    print(
        f"  {accelerator} {precision:>4}, {shape}, width {width:g}, batch {batch}: "
        + ", ".join(f"{part} {100 * share:.1f} %" for part, share in later.items())
        + f"; {rate:.0f} studies/s"
    )


def real(data: Path) -> None:
    """Train a fold of the hippocampus recipe for some epochs."""
    from volrec.api import recipe_folders
    from volrec.config import apply_overrides, load_config
    from volrec.training import train

    recipes = [path for folder in recipe_folders() for path in sorted(folder.glob("hippocampus*.yaml"))]
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as folder:
            labels = next((data / "hippocampus").glob("labels*"))
            config = apply_overrides(
                load_config(recipe),
                {
                    "data.folder": str(data / "hippocampus"),
                    "data.labels": str(labels),
                    "split.folds": 5,
                    "split.fold": 0,
                    "trainer.epochs": 4,
                    "trainer.patience": 0,
                    "store.folder": str(Path(folder, "store")),
                },
            )
            run = train(config, Path(folder, "run"))
            assert run is not None
            times = run.metrics["time"]
        print(
            f"  {recipe.stem}: data wait {100 * times['data_wait_share']:.1f} %, after the first epoch "
            f"{100 * times['data_wait_share_later']:.1f} %; {times['compute_seconds'] / 4:.1f} s compute an epoch"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that holds hippocampus/")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    logging.disable(logging.INFO)
    overhead(chosen.rounds)
    print("share of the time in steps, after the first epoch")
    shares("cpu", "32", shape=(32, 64, 64), width=0.125, batch=8)
    if chosen.data is not None:
        real(chosen.data)
    if torch.cuda.is_available():
        print(f"on {torch.cuda.get_device_name(0)}")
        for precision in ("32", "auto"):
            shares("cuda", precision, shape=(32, 128, 128), width=0.5, batch=16)
    else:
        print("no CUDA device here: the GPU section was left out")


if __name__ == "__main__":
    main()
