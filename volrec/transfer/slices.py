"""Slices by twos for pretraining: two neighbours of one place, each seen through a window and a crop of its own."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from volrec.config import AugmentConfig, IntensityConfig, PretrainConfig, ViewsConfig
from volrec.data.datasets import Draw, StudySampler, collate, own_slices, sizes_differ
from volrec.data.entries import Entry
from volrec.data.store import Store
from volrec.training.data import KeptOpen, WatchedClips, choose_workers
from volrec.training.distributed import rank, world_size
from volrec.transforms.batch import BatchAugment
from volrec.transforms.random_window import RandomWindow

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = ["SlicePairs", "SliceViews", "ViewData", "even_slices", "make_augment"]


class SlicePairs(WatchedClips):
    """Two neighbouring slices of one study a sample: a clip of two, whose second is at most so many mm from the first.

    Parameters
    ----------
    cases, entries, store, seed
        As for `volrec.data.datasets.ClipDataset`.
    views : ViewsConfig
        How far two views may lie apart.
    """

    def __init__(
        self, cases: Sequence[Case], entries: Mapping[str, Entry], *, store: Store, views: ViewsConfig, seed: int
    ) -> None:
        from volrec.config import SamplingConfig

        super().__init__(cases, entries, store=store, sampling=SamplingConfig(clip_length=2), seed=seed)
        self.views = views

    def __getitem__(self, item: int | Draw) -> dict[str, Any]:
        sample = super().__getitem__(item)
        study = item.study if isinstance(item, Draw) else item
        # Places are told apart in mm along the slice axis; one that could not be read lies nowhere.
        sample.setdefault("place", float("nan"))
        sample["patient"] = zlib.crc32(self.cases[study].patient.encode())
        return sample

    def _sample(self, index: int, volume: Any, slices: np.ndarray | None) -> dict[str, Any]:
        sample = super()._sample(index, volume, slices)
        if slices is not None:
            sample["place"] = float(slices[0]) * step_mm(volume)
        return sample

    def draw(self, index: int, n_slices: int, *, epoch: int, repeat: int = 0) -> np.ndarray:
        """Return the two slices (2,) of a study's pair in an epoch."""
        volume = self.store.open(self.entries[index])
        name = zlib.crc32(self.cases[index].study.encode())
        rng = np.random.default_rng([self.seed, epoch, name, repeat])
        first, last = own_slices(volume)
        reach = int(self.views.neighbours / step_mm(volume))
        one = int(rng.integers(first, last))
        other = int(rng.integers(max(first, one - reach), min(last, one + reach + 1)))
        return np.array([one, other], dtype=np.int64)


class ViewData(pl.LightningDataModule):
    """Loader of the pairs of one pretraining.

    Parameters
    ----------
    config : PretrainConfig
        Views, batch size, workers and seed are used. A batch of B holds B / 2 places with two views each.
    cases : sequence of Case
        Studies that teach.
    entries : mapping
        By series uid.
    store : Store
        Reads the entries.
    accelerator : {"cpu", "cuda", "mps"}
        Where batches go.
    """

    def __init__(
        self,
        config: PretrainConfig,
        cases: Sequence[Case],
        entries: Mapping[str, Entry],
        *,
        store: Store,
        accelerator: str,
    ) -> None:
        super().__init__()
        seed = config.trainer.seed
        self.pairs = SlicePairs(cases, entries, store=KeptOpen(store), views=config.views, seed=seed)
        self.places = max(2, config.optim.batch_size // 2)
        self.workers = choose_workers(config.trainer.workers, accelerator=accelerator)
        self.pairs.watch(self.workers)
        self.pin_memory = accelerator == "cuda"
        draws = -(-len(self.pairs) * config.views.slices // world_size())
        if config.trainer.batches_per_epoch:
            draws = config.trainer.batches_per_epoch * self.places
        # Whole batches only: a loss over pairs of a batch says nothing of a rest of one.
        draws = max(1, draws // self.places) * self.places
        self.sampler = StudySampler(len(self.pairs), seed=seed, rank=rank(), world_size=world_size(), length=draws)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch and rank."""
        return len(self.sampler) // self.places

    def studies_in_hand(self) -> list[str]:
        """Return the studies that workers had begun and not finished."""
        return self.pairs.studies_in_hand()

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader; its first epoch is the one that the trainer is about to begin."""
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            self.sampler.set_epoch(progress.processed)
        return study_loader(
            self.pairs, self.sampler, batch_size=self.places, workers=self.workers, pin_memory=self.pin_memory
        )


class SliceViews:
    """From stored slices to what a 2D network reads: a window drawn for each slice, then the other augmentations.

    Parameters
    ----------
    intensity : IntensityConfig
        How voxel values become network input.
    views : ViewsConfig
        How far windows move.
    augment : AugmentConfig
        Crops (scale and shift), turns, noise and the rest, each slice by itself.
    """

    def __init__(self, intensity: IntensityConfig, views: ViewsConfig, augment: AugmentConfig) -> None:
        self.window = RandomWindow(
            intensity.kind,
            windows=intensity.windows,
            percentiles=intensity.percentiles,
            level=views.window_level,
            width=views.window_width,
        )
        self.augment = make_augment(augment)

    @property
    def channels(self) -> int:
        """Channels of a slice."""
        return self.window.channels

    @torch.no_grad()
    def __call__(self, images: Tensor, quantiles: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return slices (N, C, H, W) of stored slices (N, 1, 1, H, W) and their studies' quantiles (N, Q).

        Without a generator nothing is drawn: every slice as it is.
        """
        if generator is None:
            return self.window(images, quantiles)[:, :, 0]
        seeds = torch.randint(2**62, (2,), generator=generator).tolist()
        for_window, for_rest = (torch.Generator().manual_seed(seed) for seed in seeds)
        out = self.window.apply(images, self.window.draw(len(images), for_window), quantiles)
        if self.augment is not None:
            out = self.augment.apply(out, self.augment.draw(len(out), out.shape[-3:], for_rest))
        return out[:, :, 0]


def make_augment(augment: AugmentConfig, *, spacing: Sequence[float] | None = None) -> BatchAugment | None:
    """Build the augmentation of a section, or None where it changes nothing."""
    values = augment.to_dict()
    changes = any(value for key, value in values.items() if key not in {"spatial_probability", "flip"})
    if not changes and not any(values["flip"].values()):
        return None
    return BatchAugment(**values, spacing=spacing)


def even_slices(first: int, last: int, count: int) -> np.ndarray:
    """Return at most `count` slices spread evenly over [first, last): the middle of each of so many equal parts."""
    count = min(count, last - first)
    return first + ((np.arange(count) + 0.5) * (last - first) / count).astype(np.int64)


def step_mm(volume: Any) -> float:
    """Return the distance between two slices of the store, mm."""
    return max(float(np.linalg.norm(volume.affine[:3, 0])), 1e-6)


def study_loader(
    dataset: WatchedClips, sampler: StudySampler, *, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[dict[str, Any]]:
    """Return a loader of samples that know their place and patient as well."""
    if batch_size > 1 and len({entry.shape[1:] for entry in dataset.entries}) > 1:
        raise sizes_differ(entry.shape for entry in dataset.entries)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_more,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(sampler.seed),
    )


def collate_more(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples as `volrec.data.datasets.collate`, with every further number or tensor that all of them have."""
    batch = collate(samples)
    for key, value in samples[0].items():
        if key in batch or key == "problem" or not all(key in sample for sample in samples):
            continue
        values = [sample[key] for sample in samples]
        batch[key] = torch.stack(values) if isinstance(value, Tensor) else torch.tensor(values)
    return batch
