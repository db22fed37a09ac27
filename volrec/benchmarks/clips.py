"""Training clips of videos for Lightning: a function of seed, epoch and video each, so that a training can go on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from volrec.benchmarks.reading import StreamReader
from volrec.benchmarks.sets import Video
from volrec.benchmarks.views import reach, train_indices
from volrec.config import BenchmarkConfig, StreamProtocol
from volrec.data.datasets import Draw, StudySampler
from volrec.errors import ConfigError, DataError, Problem, VolrecError
from volrec.training.distributed import rank, world_size
from volrec.transforms.crops import corner_crops

__all__ = ["VideoClipData", "VideoClips"]


class VideoClips(Dataset[dict[str, Any]]):
    """One drawn clip a video.

    Parameters
    ----------
    videos : sequence of Video
        Training videos.
    stream : StreamProtocol
        What is read, and how clips and crops are drawn.
    decoder, extracted
        As `volrec.benchmarks.footage.Footage` takes them.
    num_classes : int
        K.
    seed : int
        Of the draws.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        stream: StreamProtocol,
        *,
        decoder: str,
        extracted: str | None,
        num_classes: int,
        seed: int,
    ) -> None:
        self.videos = [video for video in videos if video.labels]
        if not self.videos:
            raise DataError("there is no labelled training video.", remedy="Check the lists.", code="no-videos")
        self.stream = stream
        self.reader = StreamReader(stream)
        self.decoder, self.extracted = decoder, extracted
        self.num_classes = num_classes
        self.seed = seed
        self._blank: dict[str, np.ndarray] | None = None
        self.watch(1)

    def __len__(self) -> int:
        return len(self.videos)

    def watch(self, workers: int) -> None:
        """Make room for notes of the video each loading process has in hand, in memory that outlives it."""
        self.in_hand = torch.full((max(1, workers),), -1, dtype=torch.int64).share_memory_()

    def studies_in_hand(self) -> list[str]:
        """Return the videos that loading processes had begun and not finished."""
        return [self.videos[index].name for index in self.in_hand.tolist() if index >= 0]

    def __getitem__(self, item: int | Draw) -> dict[str, Any]:
        draw = item if isinstance(item, Draw) else Draw(0, item, 0)
        worker = get_worker_info()
        if worker is not None:
            self.in_hand[worker.id] = draw.study
        video = self.videos[draw.study]
        # The video's name, not its place: it gets the same clips whatever others are trained on.
        name = zlib.crc32(video.name.encode())
        rng = np.random.default_rng([self.seed, draw.epoch, name, draw.repeat])
        target = np.zeros(self.num_classes, dtype=np.float32)
        target[list(video.labels)] = 1 / len(video.labels)
        sample: dict[str, Any] = {"study": draw.study, "target": target, "valid": True}
        try:
            sample |= self.clip(video, rng)
            self._blank = self._blank or {
                name: np.zeros_like(sample[name]) for name in ("rgb", "motion") if name in sample
            }
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - one bad video never stops a training
            if self._blank is None:
                self._blank = self._blank_clip()
            fault = error if isinstance(error, VolrecError) else DataError(f"{type(error).__name__}: {error}.")
            problem = Problem.of(fault, where=str(video.path), study=video.name)
            sample |= {**self._blank, "valid": False, "problem": problem.as_dict()}
        if worker is not None:
            self.in_hand[worker.id] = -1
        return sample

    def clip(self, video: Video, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return ``rgb`` (T, h, w, 3) uint8 and ``motion`` (T, C, h, w) float32 of one drawn clip, cut and mirrored."""
        with self.reader.open(video, decoder=self.decoder, extracted=self.extracted) as footage:
            before, after = reach(self.stream)
            indices = train_indices(footage.count, self.stream.train, rng, before=before, extra=after)
            raw = self.reader.read(footage, indices.reshape(-1))
        size = self.reader.size(raw)
        box = self._box(size, rng)
        mirrored = bool(self.stream.train.mirror and rng.random() < 0.5)
        return dict(self.reader.cut(raw, box, mirrored=mirrored))

    def _box(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the drawn crop."""
        way = self.stream.train
        height, width = self.reader.crop_size(size)
        if way.crop == "corners":
            boxes = corner_crops(size, scales=way.scales)
            return boxes[int(rng.integers(len(boxes)))]
        if height > size[0] or width > size[1]:
            raise ConfigError(
                f"a crop of {height} x {width} does not fit into frames of {size[0]} x {size[1]}.",
                remedy="Set streams.NAME.frames.resize.",
                where="streams.frames.crop",
                code="crop",
            )
        if way.crop == "center":
            return (size[0] - height) // 2, (size[1] - width) // 2, height, width
        top, left = (int(rng.integers(have - need + 1)) for have, need in zip(size, (height, width), strict=True))
        return top, left, height, width

    def _blank_clip(self) -> dict[str, np.ndarray]:
        """Return zeros in the form of a clip: of the first video that can be read."""
        for video in self.videos:
            try:
                found = self.clip(video, np.random.default_rng(0))
            except ConfigError:
                raise
            except Exception:  # noqa: BLE001 - the next one may be sound
                continue
            return {name: np.zeros_like(values) for name, values in found.items()}
        raise DataError(
            "none of the training videos can be read.",
            remedy="Look at one with a player; `volrec benchmark extract` says what is wrong with each.",
            code="no-videos",
        )


class VideoClipData(pl.LightningDataModule):
    """Loader of the training clips of one stream.

    Parameters
    ----------
    config : BenchmarkConfig
        Batch, workers and seed.
    clips : VideoClips
        What is loaded.
    accelerator : {"cpu", "cuda", "mps"}
        Where batches go.
    """

    def __init__(self, config: BenchmarkConfig, clips: VideoClips, *, accelerator: str) -> None:
        super().__init__()
        from volrec.training.data import choose_workers

        self.clips = clips
        self.batch_size = config.optim.batch_size
        self.workers = choose_workers(config.trainer.workers, accelerator=accelerator)
        clips.watch(self.workers)
        self.pin_memory = accelerator == "cuda"
        self.sampler = StudySampler(
            len(clips),
            seed=config.trainer.seed,
            rank=rank(),
            world_size=world_size(),
            length=config.trainer.batches_per_epoch * self.batch_size,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch and rank."""
        return -(-len(self.sampler) // self.batch_size)

    def studies_in_hand(self) -> list[str]:
        """Return the videos that loading processes had begun and not finished."""
        return self.clips.studies_in_hand() if self.workers else []

    def one_pass(self) -> DataLoader[dict[str, Any]]:
        """Return a loader that gives one clip of every video, in this process."""
        return self._loader(StudySampler(len(self.clips), seed=self.sampler.seed), workers=0)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader; its first epoch is the one that the trainer is about to begin."""
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            self.sampler.set_epoch(progress.processed)
        return self._loader(self.sampler, workers=self.workers)

    def _loader(self, sampler: StudySampler, *, workers: int) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self.clips,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=self.pin_memory and workers > 0,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(sampler.seed),
        )


def _collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shapes = {tuple(sample[name].shape for name in ("rgb", "motion") if name in sample) for sample in samples}
    if len(shapes) > 1:
        sizes = sorted({"x".join(map(str, shape[0][1:3])) for shape in shapes})
        raise ConfigError(
            f"clips of different size ({', '.join(sizes[:4])}) cannot share a batch.",
            remedy="Give the protocol a crop (streams.NAME.frames.crop), or train with --batch 1.",
            where="streams.frames.crop",
            code="crop",
        )
    batch: dict[str, Any] = {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in ("rgb", "motion", "target")
        if name in samples[0]
    }
    batch["study"] = torch.tensor([sample["study"] for sample in samples])
    batch["valid"] = torch.tensor([sample["valid"] for sample in samples])
    batch["problems"] = [sample["problem"] for sample in samples if "problem" in sample]
    return batch
