"""One vector a video in a file on disk, written as videos come, and gone on with after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from volrec.errors import ConfigError, RunError
from volrec.files import is_disk_full, readable_size, write_atomically

__all__ = ["VectorTable"]


class VectorTable:
    """A folder with ``vectors.npy`` (N, F), ``done.npy`` (N,) and ``table.json``; opened again, it goes on.

    Parameters
    ----------
    folder : path
        Made where it is not there.
    names : sequence of str
        Videos, in the order of the rows.
    columns : int
        F.
    source : str
        What the vectors are made by (`TrajectoryEncoder.digest`); a table of another source is refused.
    dtype : {"float32", "float16"}
        float16 halves the space; numbers of a Fisher vector lose what is past their third digit.

    Raises
    ------
    ConfigError
        The folder holds a table of other videos, size or source.
    RunError
        It cannot be written, or its files do not belong together.
    """

    def __init__(
        self,
        folder: Path | str,
        names: Sequence[str],
        *,
        columns: int,
        source: str = "",
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        self.folder = Path(folder)
        self.names = tuple(names)
        self._places = {name: place for place, name in enumerate(self.names)}
        if len(self._places) != len(self.names) or not self.names or columns < 1:
            raise ConfigError(
                f"a table has videos with names of their own and vectors, got {len(self.names)} names "
                f"({len(self._places)} different) and {columns} columns.",
                remedy="Name each video once.",
                where=self.folder,
                code="table",
            )
        facts = {"names": list(self.names), "columns": columns, "source": source, "dtype": dtype}
        shape = (len(self.names), columns)
        card = self.folder / "table.json"
        try:
            if card.is_file():
                self._check(json.loads(card.read_text()), facts)
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                for name, kind, size in (("vectors", dtype, shape), ("done", "bool", shape[:1])):
                    np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype=kind, shape=size).flush()
                write_atomically(card, json.dumps(facts) + "\n")  # last: a folder with it is whole
            self._vectors = np.load(self.folder / "vectors.npy", mmap_mode="r+")
            self._done = np.load(self.folder / "done.npy", mmap_mode="r+")
        except OSError as error:
            need = readable_size(shape[0] * shape[1] * np.dtype(dtype).itemsize)
            raise RunError(
                f"a table of {need} cannot be written there: "
                + ("the disk is full." if is_disk_full(error) else f"{error.strerror or error}."),
                remedy="Make room, choose float16, or choose another folder.",
                where=self.folder,
                code="unwritable",
            ) from error
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if self._vectors.shape != shape or self._done.shape != shape[:1]:
            raise self._damaged(f"{self._vectors.shape} vectors where {shape} are needed")

    @property
    def missing(self) -> tuple[str, ...]:
        """Videos whose vector is not there yet."""
        return tuple(name for name, done in zip(self.names, self._done, strict=True) if not done)

    @property
    def vectors(self) -> np.ndarray:
        """(N, F), on disk and read-only: rows are read when they are looked at."""
        view = self._vectors.view()
        view.flags.writeable = False
        return view

    def put(self, name: str, vector: np.ndarray) -> None:
        """Write the vector (F,) of a video."""
        place = self._places[name]
        self._vectors[place] = vector
        self._done[place] = True

    def flush(self) -> None:
        """Make sure that everything is on the disk."""
        self._vectors.flush()
        self._done.flush()

    def _check(self, found: object, wanted: dict[str, object]) -> None:
        if found == wanted:
            return
        other = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
        raise ConfigError(
            f"it holds vectors of another kind: {', '.join(other)} differ.",
            remedy="Choose another folder, or remove this one.",
            where=self.folder,
            code="table",
        )

    def _damaged(self, why: str) -> RunError:
        return RunError(
            f"its files are damaged or do not belong together ({why}).",
            remedy="Remove the folder and encode the videos again.",
            where=self.folder,
            code="table-damaged",
        )
