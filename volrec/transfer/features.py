"""Features of the teacher, kept beside the store: every slice is encoded a few times, each time augmented anew.

A frozen teacher gives the same features in every epoch and for every student: encoding once turns the costly half of
each step into a read of a few kilobytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from volrec.config import AugmentConfig
from volrec.data.entries import Entry, StoredVolume
from volrec.data.store import Store
from volrec.errors import Problem, StoreError
from volrec.files import is_disk_full, replacing
from volrec.progress import track
from volrec.training.seeds import step_seed
from volrec.transfer.slices import make_augment
from volrec.transfer.teacher import Teacher

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = ["TeacherFeatures", "TeacherView"]

log = logging.getLogger(__name__)

SCHEMA = 1
"""Raise it when the same settings would give other features."""
BLOCK = 64
"""Slices encoded at once."""


class TeacherView:
    """The teacher's side of a pair: a study augmented by itself, never as the student's clip is.

    Parameters
    ----------
    teacher : Teacher
        Whose normalisation is used.
    augment : AugmentConfig
        What is drawn for each view.
    seed : int
        Of the draws.
    """

    def __init__(self, teacher: Teacher, augment: AugmentConfig, *, seed: int) -> None:
        self.teacher = teacher
        self.augment_config = augment
        self.augment = make_augment(augment)
        self.seed = seed

    @torch.no_grad()
    def images(self, volume: StoredVolume, study: str, view: int, device: torch.device) -> torch.Tensor:
        """Return all slices (T, C, H, W) of a study in one of its views: a function of seed, study and view alone."""
        stored = torch.from_numpy(volume.read())[None, None].to(device)
        quantiles = torch.from_numpy(volume.quantiles)[None].to(device)
        images = self.teacher.intensity(stored, quantiles)
        if self.augment is not None:
            generator = torch.Generator().manual_seed(step_seed(self.seed, zlib.crc32(study.encode()), view))
            images = self.augment.apply(images, self.augment.draw(1, images.shape[-3:], generator))
        return images[0].movedim(1, 0)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (T, F) of slices (T, C, H, W)."""
        return torch.cat([self.teacher(block) for block in images.split(BLOCK)])


class TeacherFeatures:
    """Features (V, T, F) of the studies of a store, in files of their own, found again by what determines them.

    Parameters
    ----------
    view : TeacherView
        Teacher and augmentation.
    store : Store
        Whose volumes are encoded; the files lie in its folder.
    views : int
        Augmented views of each study, V.
    """

    def __init__(self, view: TeacherView, *, store: Store, views: int) -> None:
        self.view = view
        self.store = store
        self.views = views
        self.folder = Path(store.folder) / "features"

    def path(self, entry: Entry, study: str) -> Path:
        """Return the file of a study's features."""
        facts = [SCHEMA, self.view.teacher.signature, entry.key, study, self.view.augment_config.to_dict()]
        facts += [self.views, self.view.seed]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
        return self.folder / key[:2] / f"{key}.npy"

    def fill(
        self,
        cases: Sequence[Case],
        entries: Mapping[str, Entry],
        *,
        device: torch.device,
        part: tuple[int, int] = (0, 1),
    ) -> list[Problem]:
        """Encode what is not there yet; what was encoded before an interruption is kept.

        Parameters
        ----------
        cases : sequence of Case
            Studies with an entry.
        entries : mapping
            By series uid.
        device : torch.device
            Where the teacher computes.
        part : (int, int)
            This process's number and their count: each takes its share.

        Returns
        -------
        list of Problem
            Studies that could not be read.

        Raises
        ------
        StoreError
            When the disk is full or cannot be written.
        """
        # Shares of all studies, not of those left to do: the processes do not look at the same moment.
        share = cases[part[0] :: part[1]]
        todo = [case for case in share if not self.path(entries[case.series.uid], case.study).is_file()]
        problems: list[Problem] = []
        if todo:
            log.info("the teacher encodes %d of %d studies, %d views each", len(todo), len(share), self.views)
        teacher = self.view.teacher.to(device)
        for case in track(todo, "teacher encodes", len(todo)):
            entry = entries[case.series.uid]
            try:
                volume = self.store.open(entry)
            except StoreError as error:
                problems.append(Problem.of(error, where=entry.path, study=case.study))
                continue
            found = [
                self.view.encode(self.view.images(volume, case.study, number, device)) for number in range(self.views)
            ]
            self._write(self.path(entry, case.study), torch.stack(found).cpu().numpy().astype(np.float16))
        teacher.to("cpu")
        return problems

    def open(self, entry: Entry, study: str) -> np.ndarray:
        """Return features (V, T, F) float16 as a read-only memory map.

        Raises
        ------
        StoreError
            When they are missing or damaged.
        """
        path = self.path(entry, study)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(
                f"the teacher's features cannot be read ({error}).",
                remedy="Delete the file and go on with --resume: they are encoded anew.",
                where=path,
                code="features",
            ) from error

    def _write(self, path: Path, features: np.ndarray) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.save(file, features, allow_pickle=False)
        except OSError as error:
            full = is_disk_full(error)
            raise StoreError(
                "the disk is full." if full else f"it cannot be written ({error.strerror or error}).",
                remedy="Make room, or set teacher.views to 0: nothing is kept then.",
                where=path,
                code="disk-full" if full else "store-unwritable",
            ) from error
