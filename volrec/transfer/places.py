"""Places of a study: the clip that the student reads, the teacher's features of its slices, and of others elsewhere."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from volrec.config import SamplingConfig, TransferConfig
from volrec.data.datasets import Draw, StudySampler, own_slices
from volrec.data.entries import Entry, StoredVolume
from volrec.data.store import Store
from volrec.training.data import KeptOpen, WatchedClips, choose_workers
from volrec.training.distributed import rank, world_size
from volrec.transfer.features import TeacherFeatures
from volrec.transfer.slices import study_loader

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = ["Place", "PlaceData", "Places", "clip_at", "elsewhere"]


class Place(NamedTuple):
    """The slices of a clip ``(T',)``, and those of another place of the study; the same where there is none."""

    here: np.ndarray
    other: np.ndarray

    @property
    def has_other(self) -> bool:
        """Whether the study has another place."""
        return not np.array_equal(self.here, self.other)


def clip_at(start: int, first: int, last: int, sampling: SamplingConfig) -> np.ndarray:
    """Return the slices ``(T',)`` of the clip that starts there; slices beyond [first, last) repeat the border's."""
    return np.clip(start + sampling.stride * np.arange(sampling.clip_length, dtype=np.int64), first, last - 1)


def elsewhere(start: int, first: int, last: int, sampling: SamplingConfig) -> np.ndarray:
    """Return where clips of another place may start.

    Those that share no slice with the clip at `start`; where the stack is too short for that, those that share at most
    half of its length; else none.
    """
    span = (sampling.clip_length - 1) * sampling.stride + 1
    starts = np.arange(first, max(first, last - span) + 1)
    for distance in (span, -(-span // 2)):
        found = starts[np.abs(starts - start) >= distance]
        if found.size:
            return found
    return starts[:0]


class Places(WatchedClips):
    """One clip of one study a sample, with the teacher's features of its slices and of another place.

    Beside what `ClipDataset` gives: ``teacher`` and ``other`` (F,) where features are kept (each the mean over the
    slices of one augmented view, drawn anew), else ``other_image`` (1, T', H, W); ``has_other``; ``patient``.

    Parameters
    ----------
    cases, entries, store, sampling, seed
        As for `volrec.data.datasets.ClipDataset`.
    features : TeacherFeatures, optional
        Kept features; None leaves the encoding to the training step.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        entries: Mapping[str, Entry],
        *,
        store: Store,
        sampling: SamplingConfig,
        seed: int,
        features: TeacherFeatures | None,
    ) -> None:
        super().__init__(cases, entries, store=store, sampling=sampling, seed=seed)
        self.features = features

    def draw_place(self, volume: StoredVolume, rng: np.random.Generator) -> Place:
        """Draw a place among the study's own slices, and another one."""
        first, last = own_slices(volume)
        span = (self.sampling.clip_length - 1) * self.sampling.stride + 1
        slack = last - first - span
        start = first + (slack // 2 if slack <= 0 or self.sampling.train == "center" else int(rng.integers(slack + 1)))
        here = clip_at(start, first, last, self.sampling)
        others = elsewhere(start, first, last, self.sampling)
        return Place(here, clip_at(int(rng.choice(others)), first, last, self.sampling) if others.size else here)

    def __getitem__(self, item: int | Draw) -> dict[str, Any]:
        draw = item if isinstance(item, Draw) else Draw(self.epoch, int(item))
        sample = super().__getitem__(draw)
        case = self.cases[draw.study]
        sample["patient"] = zlib.crc32(case.patient.encode())
        if not sample["valid"]:
            empty = torch.zeros(1) if self.features is None else torch.zeros(self.features.view.teacher.num_features)
            more = {"teacher": empty, "other": empty} if self.features is not None else {}
            sample |= {"has_other": False, "other_image": sample["image"]} if not more else {"has_other": False, **more}
        return sample

    def _sample(self, index: int, volume: StoredVolume, slices: np.ndarray | None) -> dict[str, Any]:
        place: Place = slices  # type: ignore[assignment]
        sample = super()._sample(index, volume, place.here)
        sample["has_other"] = place.has_other
        if self.features is None:
            sample["other_image"] = torch.from_numpy(volume.read(place.other))[None]
            return sample
        kept = self.features.open(self.entries[index], self.cases[index].study)
        views = self._rng.integers(len(kept), size=2)
        for name, view, slices_of in zip(("teacher", "other"), views, place, strict=True):
            sample[name] = torch.from_numpy(kept[int(view), slices_of].astype(np.float32).mean(axis=0))
        return sample

    def draw(self, index: int, n_slices: int, *, epoch: int, repeat: int = 0) -> Any:
        """Return the `Place` of a study in an epoch."""
        name = zlib.crc32(self.cases[index].study.encode())
        self._rng = np.random.default_rng([self.seed, epoch, name, repeat])
        return self.draw_place(self.store.open(self.entries[index]), self._rng)


class PlaceData(pl.LightningDataModule):
    """Loader of the places of one transfer.

    Parameters
    ----------
    config : TransferConfig
        Sampling, batch size, workers and seed are used.
    cases : sequence of Case
        Studies that teach.
    entries : mapping
        By series uid.
    store : Store
        Reads the entries.
    features : TeacherFeatures, optional
        Kept features of the teacher.
    accelerator : {"cpu", "cuda", "mps"}
        Where batches go.
    """

    def __init__(
        self,
        config: TransferConfig,
        cases: Sequence[Case],
        entries: Mapping[str, Entry],
        *,
        store: Store,
        features: TeacherFeatures | None,
        accelerator: str,
    ) -> None:
        super().__init__()
        seed = config.trainer.seed
        self.places = Places(
            cases, entries, store=KeptOpen(store), sampling=config.sampling, seed=seed, features=features
        )
        self.batch_size = max(2, config.optim.batch_size)
        self.workers = choose_workers(config.trainer.workers, accelerator=accelerator)
        self.places.watch(self.workers)
        self.pin_memory = accelerator == "cuda"
        draws = config.trainer.batches_per_epoch * self.batch_size or -(-len(self.places) // world_size())
        # Whole batches only: what does not belong together is found within a batch.
        draws = max(1, round(draws / self.batch_size)) * self.batch_size
        self.sampler = StudySampler(len(self.places), seed=seed, rank=rank(), world_size=world_size(), length=draws)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch and rank."""
        return len(self.sampler) // self.batch_size

    def studies_in_hand(self) -> list[str]:
        """Return the studies that workers had begun and not finished."""
        return self.places.studies_in_hand()

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader; its first epoch is the one that the trainer is about to begin."""
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            self.sampler.set_epoch(progress.processed)
        return study_loader(
            self.places, self.sampler, batch_size=self.batch_size, workers=self.workers, pin_memory=self.pin_memory
        )
