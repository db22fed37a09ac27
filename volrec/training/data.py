"""Training clips for Lightning: this rank's sampler, the loader, and what its workers had in hand when one died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, get_worker_info

from volrec.config import TrainConfig
from volrec.data.datasets import ClipDataset, Draw, StudySampler, balance_groups, clip_loader
from volrec.data.entries import Entry, StoredVolume
from volrec.data.store import Store
from volrec.parallel import available_cpus
from volrec.training.distributed import rank, world_size

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = ["ClipData", "WatchedClips", "choose_workers"]


class KeptOpen(Store):
    """A store that keeps volumes open between epochs: opening one costs several times what a clip of it does.

    Parameters
    ----------
    store : Store
        Whose entries are read.
    """

    limit = 256
    """Volumes kept open; each holds a file handle."""

    def __init__(self, store: Store) -> None:
        self.__dict__.update(store.__dict__)
        self._volumes: dict[str, StoredVolume] = {}

    def open(self, entry: Entry) -> StoredVolume:
        """Return the volume, opened now or before."""
        found = self._volumes.get(entry.key)
        if found is None:
            if len(self._volumes) >= self.limit:
                self._volumes.pop(next(iter(self._volumes)))
            found = self._volumes[entry.key] = super().open(entry)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be sent to a loading process as the whole array.
        return {**self.__dict__, "_volumes": {}}


class WatchedClips(ClipDataset):
    """Clips that leave a note of the study each worker has in hand, in memory that outlives the worker."""

    def watch(self, workers: int) -> None:
        """Make room for the notes of so many workers."""
        self.in_hand = torch.full((workers,), -1, dtype=torch.int64).share_memory_()

    def __getitem__(self, item: int | Draw) -> dict[str, Any]:
        worker = get_worker_info()
        if worker is None:
            return super().__getitem__(item)
        self.in_hand[worker.id] = item.study if isinstance(item, Draw) else item
        sample = super().__getitem__(item)
        self.in_hand[worker.id] = -1
        return sample

    def studies_in_hand(self) -> list[str]:
        """Return the studies that workers had begun and not finished."""
        if not hasattr(self, "in_hand"):
            return []
        return [self.cases[index].study for index in self.in_hand.tolist() if index >= 0]


class ClipData(pl.LightningDataModule):
    """Loader of the training clips of one member.

    Parameters
    ----------
    config : TrainConfig
        Sampling, batch size, balance, workers and seed are used.
    cases : sequence of Case
        Training studies.
    entries : mapping of str to Entry
        By series uid.
    store : Store
        Reads the entries.
    task : str
        For balanced sampling.
    accelerator : {"cpu", "cuda", "mps"}
        Where batches go.
    """

    def __init__(
        self,
        config: TrainConfig,
        cases: Sequence[Case],
        entries: Mapping[str, Entry],
        *,
        store: Store,
        task: str,
        accelerator: str,
    ) -> None:
        super().__init__()
        seed = config.trainer.seed
        self.clips = WatchedClips(
            cases, entries, store=KeptOpen(store), sampling=config.sampling, seed=seed, streams=config.streams
        )
        self.batch_size = config.optim.batch_size
        self.workers = choose_workers(config.trainer.workers, accelerator=accelerator)
        self.clips.watch(self.workers)
        self.pin_memory = accelerator == "cuda"
        self.sampler = StudySampler(
            len(self.clips),
            seed=seed,
            rank=rank(),
            world_size=world_size(),
            groups=balance_groups(self.clips.cases, task) if config.data.balance == "sampler" else None,
            length=config.trainer.batches_per_epoch * self.batch_size,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch and rank."""
        return -(-len(self.sampler) // self.batch_size)

    def studies_in_hand(self) -> list[str]:
        """Return the studies that workers had begun and not finished."""
        return self.clips.studies_in_hand()

    def one_pass(self) -> DataLoader[dict[str, Any]]:
        """Return a loader that gives one clip of every study, however short an epoch is, in the training process."""
        return clip_loader(
            self.clips, StudySampler(len(self.clips), seed=self.sampler.seed), batch_size=self.batch_size
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader; its first epoch is the one that the trainer is about to begin."""
        if self.trainer is not None:
            # Lightning draws the first batches before it tells the sampler which epoch an interrupted training is in.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            self.sampler.set_epoch(progress.processed)
        return clip_loader(
            self.clips, self.sampler, batch_size=self.batch_size, workers=self.workers, pin_memory=self.pin_memory
        )


def choose_workers(workers: int, *, accelerator: str) -> int:
    """Return the number of loading processes.

    On the processor the store's memory maps give a clip in a small part of the time of a step, and a loading process
    would take a core from the network: none. On a GPU a few keep it fed, shared among the ranks of the machine.
    """
    if workers >= 0:
        return workers
    if accelerator == "cpu":
        return 0
    return max(1, min(8, (available_cpus() - 1) // world_size()))
