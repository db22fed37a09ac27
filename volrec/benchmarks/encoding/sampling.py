"""Rows drawn from many videos in one pass: bounded memory, and the same rows in whatever order the videos come.

Every row gets a random number that depends on the seed, the name of its video and its place in it alone; the rows with
the smallest numbers are the sample. That is a uniform draw without replacement ("bottom-k" sampling: what a reservoir
gives, but whatever the order of arrival).
"""

from __future__ import annotations

import hashlib

import numpy as np

from volrec.errors import ConfigError, DataError

__all__ = ["RowSample"]


class RowSample:
    """A uniform sample of the rows of videos that are given one after the other.

    At most a quarter more rows than asked for are held, beside those of one video: 320,000 of 436 float32 numbers are
    0.56 GB, twice that while they are sifted.

    Parameters
    ----------
    count : int
        Rows in all.
    seed : int
        Same seed, names and rows: same sample, in the same order.
    per_video : int, optional
        At most so many of a video, drawn at random: with `count` over the number of videos every video counts alike
        (those with fewer rows give all they have). None: every row counts alike, long videos give more.

    Raises
    ------
    ConfigError
        A number below one, or a negative seed.
    """

    def __init__(self, count: int, *, seed: int = 0, per_video: int | None = None) -> None:
        if count < 1 or seed < 0 or (per_video is not None and per_video < 1):
            raise ConfigError(
                f"a sample has at least one row, one a video and a seed from 0, got count={count}, "
                f"per_video={per_video} and seed={seed}.",
                remedy="Leave them out for the usual numbers.",
                code="sample",
            )
        self.count = count
        self.seed = seed
        self.per_video = per_video
        self.videos = 0
        """Videos that were given, those without rows among them."""
        self.seen = 0
        """Rows that were given."""
        self._names: set[str] = set()
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = 0
        self._limit: np.uint64 | None = None

    def add(self, name: str, rows: np.ndarray) -> None:
        """Take the rows (n, D) of a video into account.

        Raises
        ------
        DataError
            A name that was there before, or rows of another length.
        """
        if name in self._names:
            raise DataError(
                "its trajectories were given twice, which would count them twice.",
                remedy="Give every video a name of its own.",
                where=name,
                code="twice",
            )
        if self._parts and self._parts[0][1].shape[1:] != rows.shape[1:]:
            raise DataError(
                f"its rows have {rows.shape[1:]} numbers, those before {self._parts[0][1].shape[1:]}.",
                remedy="Compute all trajectories in the same way.",
                where=name,
                code="trajectories",
            )
        self._names.add(name)
        self.videos += 1
        self.seen += len(rows)
        if not len(rows):
            return
        keys = _keys(name, len(rows), self.seed)
        chosen = np.arange(len(rows))
        if self.per_video is not None and len(rows) > self.per_video:
            chosen = np.argpartition(keys, self.per_video - 1)[: self.per_video]
        if self._limit is not None:
            chosen = chosen[keys[chosen] <= self._limit]
        if len(chosen):
            self._parts.append((keys[chosen], rows[chosen]))
            self._held += len(chosen)
        if self._held > self.count + max(self.count // 4, 1):
            self._compact()

    def rows(self) -> np.ndarray:
        """Return the sample (n, D), n at most `count`, in an order that is random but always the same."""
        if not self._parts:
            return np.empty((0, 0), dtype=np.float32)
        self._compact()
        keys, rows = self._parts[0]
        return rows[np.argsort(keys, kind="stable")]

    def _compact(self) -> None:
        keys, rows = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if len(keys) > self.count:
            chosen = np.argpartition(keys, self.count - 1)[: self.count]
            keys, rows = keys[chosen], rows[chosen]
            self._limit = keys.max()
        self._parts = [(keys, rows)]
        self._held = len(keys)


def _keys(name: str, count: int, seed: int) -> np.ndarray:
    """Return one random number a row, (n,) uint64."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.default_rng([seed, digest]).integers(0, 2**64, size=count, dtype=np.uint64)
