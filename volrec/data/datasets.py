"""What a training step and a validation step are fed: clips and whole studies, read slice by slice from the store."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from volrec.config import SamplingConfig, StreamsConfig
from volrec.data.entries import QUANTILES, Entry, StoredVolume
from volrec.data.store import Store
from volrec.data.streams import no_streams, read_streams
from volrec.errors import ConfigError, DataError, Problem, VolrecError
from volrec.transforms.clips import clip_indices

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = [
    "ClipDataset",
    "Draw",
    "StudyDataset",
    "StudySampler",
    "balance_groups",
    "clip_loader",
    "collate",
    "own_slices",
    "sizes_differ",
    "source_slices",
    "stored_slice_targets",
]

log = logging.getLogger(__name__)

STREAMS = ("image", "fields", "pixel", "following")
"""What `volrec.data.streams.read_streams` may give."""


class Draw(NamedTuple):
    """Which study, in which epoch, and for the how-many-eth time in it; what a clip is drawn from.

    It travels from the sampler to the workers, so that workers that live for the whole training need no message about
    the epoch.
    """

    epoch: int
    study: int
    repeat: int = 0


class _Studies(Dataset[dict[str, Any]]):
    """Studies that have an entry in the store; one that cannot be read gives a flagged sample, not an exception."""

    def __init__(
        self, cases: Sequence[Case], entries: Mapping[str, Entry], store: Store, streams: StreamsConfig | None
    ) -> None:
        self.cases = tuple(case for case in cases if case.series.uid in entries)
        self.entries = tuple(entries[case.series.uid] for case in self.cases)
        self.store = store
        self.streams = streams or StreamsConfig()

    def __len__(self) -> int:
        return len(self.cases)

    def _sample(self, index: int, volume: StoredVolume, slices: np.ndarray | None) -> dict[str, Any]:
        case = self.cases[index]
        sample = {
            **{name: torch.from_numpy(array) for name, array in read_streams(volume, self.streams, slices).items()},
            "quantiles": torch.from_numpy(volume.quantiles),
            "target": torch.as_tensor(np.asarray(case.target, dtype=np.float32)),
            "study": index,
            "valid": True,
        }
        if case.slice_targets is not None:
            targets = stored_slice_targets(case.slice_targets, volume)
            sample["slice_target"] = torch.from_numpy(targets if slices is None else targets[slices])
        return sample

    def _failed(self, index: int, error: Exception, shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return a sample of the right shape that says it is none, and why."""
        case = self.cases[index]
        if not isinstance(error, VolrecError):
            error = DataError(f"it could not be read ({type(error).__name__}: {error}).", code="unexpected")
        entry = self.entries[index]
        problem = Problem.of(error, where=error.where or entry.path, study=case.study)
        blank = no_streams(self.streams, shape, entry.dtype)
        return {
            **{name: torch.from_numpy(array) for name, array in blank.items()},
            "quantiles": torch.linspace(0.0, 1.0, QUANTILES),
            "target": torch.as_tensor(np.asarray(case.target, dtype=np.float32)),
            "study": index,
            "valid": False,
            "problem": problem.as_dict(),
        }


class ClipDataset(_Studies):
    """One clip of one study a sample; which slices is a function of seed, epoch, study and repeat alone.

    A sample holds ``image`` (1, T', H, W) int16 or float32 as stored, what the streams ask for beside it
    (`volrec.data.streams.read_streams`), ``quantiles`` (1001,), ``target`` (K,) float32, ``study`` (position in
    `cases`), ``valid``, and ``slice_target`` (T', …) where the case has slice labels. A study
    that cannot be read gives ``valid`` False, zeros, and its `Problem` as a dictionary under ``problem``.

    Parameters
    ----------
    cases : sequence of Case
        Those without an entry are left out; `cases` of the dataset holds the rest.
    entries : mapping of str to Entry
        By series uid, from `Store.fill`.
    store : Store
        Reads the entries.
    sampling : SamplingConfig
        Clip length, stride, mode and snippet length.
    seed : int
        Seed of all draws.
    streams : StreamsConfig, optional
        What is read; None: the slices alone.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        entries: Mapping[str, Entry],
        *,
        store: Store,
        sampling: SamplingConfig,
        seed: int = 0,
        streams: StreamsConfig | None = None,
    ) -> None:
        super().__init__(cases, entries, store, streams)
        self.sampling = sampling
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for plain indices; a `Draw` brings its own."""
        self.epoch = epoch

    def draw(self, index: int, n_slices: int, *, epoch: int, repeat: int = 0) -> np.ndarray:
        """Return the slices (T',) of a study's clip in an epoch."""
        # The study's name, not its position: a study gets the same clips whatever others are trained on.
        name = zlib.crc32(self.cases[index].study.encode())
        return clip_indices(
            n_slices,
            clip_length=self.sampling.clip_length,
            stride=self.sampling.stride,
            mode=self.sampling.train,
            snippet_length=self.sampling.snippet_length,
            rng=np.random.default_rng([self.seed, epoch, name, repeat]),
        )

    def __getitem__(self, item: int | Draw) -> dict[str, Any]:
        draw = item if isinstance(item, Draw) else Draw(self.epoch, int(item))
        entry = self.entries[draw.study]
        try:
            volume = self.store.open(entry)
            slices = self.draw(draw.study, volume.shape[0], epoch=draw.epoch, repeat=draw.repeat)
            return self._sample(draw.study, volume, slices)
        except Exception as error:  # noqa: BLE001 - one bad study never stops a training
            return self._failed(draw.study, error, (self.sampling.clip_length, *entry.shape[1:]))


class StudyDataset(_Studies):
    """One whole study a sample: as `ClipDataset`, with ``image`` (1, T, H, W).

    Parameters
    ----------
    cases, entries, store, streams
        As for `ClipDataset`.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        entries: Mapping[str, Entry],
        *,
        store: Store,
        streams: StreamsConfig | None = None,
    ) -> None:
        super().__init__(cases, entries, store, streams)

    def volume(self, index: int) -> StoredVolume:
        """Open a study without reading its voxels.

        Raises
        ------
        StoreError
            When its entry is missing or damaged.
        """
        return self.store.open(self.entries[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._sample(index, self.volume(index), None)
        except Exception as error:  # noqa: BLE001 - one bad study never stops a validation
            return self._failed(index, error, self.entries[index].shape)


class StudySampler(Sampler[Draw]):
    """Order of the studies in each epoch: a function of seed and epoch, split evenly among ranks.

    Give it to a `DataLoader` as ``sampler`` (and ``use_distributed_sampler=False`` to a Lightning trainer). Lightning
    calls `set_epoch`.

    Parameters
    ----------
    count : int
        Number of studies.
    seed : int
        Seed of the order.
    rank, world_size : int
        This process, and how many there are. Each gets the same number of draws: the last ones are filled up with
        draws of the next pass.
    groups : sequence of int, optional
        Group of each study (see `balance_groups`): every group is drawn equally often.
    length : int
        Draws an epoch and rank; 0 is one pass over all studies. Longer epochs pass over the studies again, each time
        in another order and with other clips.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] | None = None,
        length: int = 0,
    ) -> None:
        if count < 1:
            raise DataError("there is no study to train on.", remedy="See the quarantine for why.", code="no-studies")
        self.count = count
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.groups = None if groups is None else np.asarray(groups)
        self.length = length or -(-count // world_size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        yield from self.order(self.epoch)[self.rank :: self.world_size]

    def order(self, epoch: int) -> list[Draw]:
        """Return the draws of all ranks in an epoch; rank r takes every `world_size`-th from r on."""
        total = self.length * self.world_size
        rng = np.random.default_rng([self.seed, epoch])
        if self.groups is None:
            return [Draw(epoch, index, repeat) for index, repeat in _passes(np.arange(self.count), total, rng)]
        members = [np.flatnonzero(self.groups == group) for group in np.unique(self.groups)]
        quotas = np.full(len(members), total // len(members))
        quotas[rng.permutation(len(members))[: total % len(members)]] += 1
        drawn = [pair for own, quota in zip(members, quotas, strict=True) for pair in _passes(own, int(quota), rng)]
        return [Draw(epoch, *drawn[place]) for place in rng.permutation(total)]


def balance_groups(cases: Sequence[Case], task: str) -> list[int]:
    """Return the group of each study for balanced sampling.

    The class for binary and multiclass tasks; for multilabel tasks the rarest label that the study has, or none; for
    multihead tasks the combination of its classes.

    Raises
    ------
    ConfigError
        For a regression, which has no classes.
    """
    if task == "regression":
        raise ConfigError(
            "balanced sampling needs classes and the task is a regression.",
            remedy="Set data.balance to none.",
            where="data.balance",
            code="balance",
        )
    targets = np.stack([np.asarray(case.target, dtype=np.float64).reshape(-1) for case in cases])
    if task == "multihead":
        _, groups = np.unique(np.nan_to_num(targets, nan=-1), axis=0, return_inverse=True)
        return [int(group) for group in groups.reshape(-1)]
    if task != "multilabel":
        return [int(value) for value in targets[:, 0]]
    present = targets > 0.5
    rarity = np.where(present, present.sum(axis=0), len(targets) + 1)
    return [int(row.argmin()) if has.any() else -1 for row, has in zip(rarity, present, strict=True)]


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples to a batch: ``image`` (B, 1, T', H, W), ``quantiles``, ``target``, ``study`` (B,), ``valid`` (B,).

    What the streams ask for beside the image is stacked likewise.
    ``problems`` lists the problems (dictionaries) of samples whose ``valid`` is False: their share of the loss is to
    be masked. The batch keeps its size, so that every rank of a distributed training takes the same steps.
    ``slice_target`` is there when any sample has it, NaN for the others.

    Raises
    ------
    ConfigError
        When the studies differ in size.
    """
    shapes = {tuple(sample["image"].shape[1:]) for sample in samples}
    if len(shapes) > 1:
        raise sizes_differ(shapes)
    batch = {
        **{name: _stacked([sample[name] for sample in samples]) for name in STREAMS if name in samples[0]},
        "quantiles": torch.stack([sample["quantiles"] for sample in samples]),
        "target": torch.stack([sample["target"] for sample in samples]),
        "study": torch.tensor([sample["study"] for sample in samples]),
        "valid": torch.tensor([sample["valid"] for sample in samples]),
        "problems": [sample["problem"] for sample in samples if "problem" in sample],
    }
    labelled = next((sample["slice_target"] for sample in samples if "slice_target" in sample), None)
    if labelled is not None:
        unknown = torch.full_like(labelled, float("nan"))
        batch["slice_target"] = torch.stack([sample.get("slice_target", unknown) for sample in samples])
    return batch


def _stacked(arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    mixed = len({array.dtype for array in arrays}) > 1
    return torch.stack([array.float() for array in arrays] if mixed else list(arrays))


def clip_loader(
    dataset: ClipDataset, sampler: StudySampler, *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> DataLoader[dict[str, Any]]:
    """Return the training loader: batches of clips, with workers that live as long as the loader.

    Raises
    ------
    ConfigError
        When studies of different size in plane would have to share a batch.
    """
    if batch_size > 1 and len({entry.shape[1:] for entry in dataset.entries}) > 1:
        raise sizes_differ(entry.shape for entry in dataset.entries)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        # A generator of its own: the loader draws from it at every epoch, and would disturb the training's numbers.
        generator=torch.Generator().manual_seed(sampler.seed),
    )


def stored_slice_targets(targets: np.ndarray, volume: StoredVolume) -> np.ndarray:
    """Bring labels of the canonical volume's slices to the slices of the store, through their place in mm.

    Parameters
    ----------
    targets : ndarray
        (T, ...) a slice of the volume before resampling and canvas; NaN where unknown.
    volume : StoredVolume
        Knows where its slices were before.

    Returns
    -------
    ndarray
        (T_stored, ...) float32: the label of the nearest slice; NaN outside the study (padding).
    """
    nearest = source_slices(volume)
    inside = (nearest >= 0) & (nearest < len(targets))
    mapped = np.full((len(nearest), *np.shape(targets)[1:]), np.nan, dtype=np.float32)
    mapped[inside] = np.asarray(targets, dtype=np.float32)[nearest[inside]]
    return mapped


def source_slices(volume: StoredVolume) -> np.ndarray:
    """Return, for each slice of the store, the nearest slice (T_stored,) of the study before resampling and canvas.

    Numbers below 0 or beyond the study's own are those of padding.
    """
    source = np.asarray(volume.meta["source_affine"], dtype=np.float64)
    slices, height, width = volume.shape
    middle = np.array([(height - 1) / 2, (width - 1) / 2, 1.0])
    places = np.column_stack([np.arange(slices, dtype=np.float64), np.tile(middle, (slices, 1))])
    return np.rint((places @ volume.affine.T @ np.linalg.inv(source).T)[:, 0]).astype(np.int64)


def own_slices(volume: StoredVolume) -> tuple[int, int]:
    """Return the first slice of the store that is the study's own, and one past the last; the rest is padding."""
    nearest = source_slices(volume)
    own = np.flatnonzero((nearest >= 0) & (nearest < volume.meta["source_shape"][0]))
    return (int(own[0]), int(own[-1]) + 1) if own.size else (0, volume.shape[0])


def _passes(indices: np.ndarray, total: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return `total` pairs (index, pass): permutations of the indices, one after another."""
    passes = -(-total // len(indices))
    pairs = [(int(index), number) for number in range(passes) for index in rng.permutation(indices)]
    return pairs[:total]


def sizes_differ(shapes: Any) -> ConfigError:
    """Return the error for studies of several sizes in plane, given their shapes."""
    seen = sorted({"x".join(str(n) for n in shape[-2:]) for shape in shapes})
    shown = ", ".join(seen[:4]) + (" …" if len(seen) > 4 else "")
    return ConfigError(
        f"studies of different size in plane ({shown}) cannot share a batch.",
        remedy="Set preprocess.canvas, for example [null, 224, 224], or optim.batch_size to 1.",
        where="preprocess.canvas",
        code="canvas",
    )
