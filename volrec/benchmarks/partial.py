"""Scores of a test that is under way: a line a video, on disk as soon as it is known, so that a run can go on."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from volrec.benchmarks.scores import ScoreSet, class_order, unwritable
from volrec.errors import RunError
from volrec.files import write_atomically

__all__ = ["PartialScores"]

_MARK = "volrec partial scores 1"
_MOST_NAMED = 5


class PartialScores:
    """Scores that are kept video by video and outlive a kill at any byte.

    The file begins with a line of classes, stage and facts; each video is one line more (JSON; arrays as base64 of
    little-endian float32) that ends in a checksum. A line that was cut off is dropped when the file is opened again,
    and that video alone is scored once more. One process at a time writes to a file.

    Parameters
    ----------
    path : path
        The file; its folder must exist. It is begun where it does not exist.
    classes : sequence of str
        K names in the order of the scores.
    stage : {"logits", "softmax"}
        That of the protocol.
    facts : mapping
        Plain JSON: everything that scores depend on. A file that was begun with others is refused.

    Raises
    ------
    RunError
        A file of something else, of other settings, damaged before its last line, or that cannot be written.

    Examples
    --------
    >>> with PartialScores(path, classes=classes, stage="softmax", facts=facts) as partial:  # doctest: +SKIP
    ...     for video in videos:
    ...         if video.name not in partial.done:
    ...             partial.add(video.name, labels=video.labels, logits=..., probabilities=..., clips=25, clip_hits=20)
    ...     scores = partial.finish([video.name for video in videos])
    """

    def __init__(self, path: Path | str, *, classes: Sequence[str], stage: str, facts: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.classes = tuple(classes)
        self.stage = stage
        head = {"what": _MARK, "stage": stage, "classes": list(self.classes), "facts": dict(facts)}
        text = json.dumps(head, allow_nan=False, sort_keys=True)
        self.facts: dict[str, Any] = json.loads(text)["facts"]
        self._places: dict[str, int] = {}
        """From video to the byte at which its line begins."""
        self._file: FileIO | None = None
        self._begin(text.encode() + b"\n")

    @property
    def done(self) -> frozenset[str]:
        """Videos that are in the file."""
        return frozenset(self._places)

    def __enter__(self) -> PartialScores:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Flush to the disk and close; further videos need the file opened anew."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def add(
        self,
        video: str,
        *,
        labels: Sequence[int],
        logits: np.ndarray,
        probabilities: np.ndarray,
        clips: int,
        clip_hits: int,
    ) -> None:
        """Keep the scores of one video.

        Parameters
        ----------
        video : str
            Name; each once.
        labels : sequence of int
            True classes, places in `classes`.
        logits, probabilities : ndarray
            (K,) over all views.
        clips, clip_hits : int
            Clips, and those whose best class is a true one.

        Raises
        ------
        RunError
            A video that is there already, an array of another length or with what is no number, a full disk.
        """
        if self._file is None:
            raise RunError("it is closed.", remedy="Open it anew to go on.", where=self.path, code="scores")
        arrays = {"logits": np.asarray(logits, "<f4"), "probabilities": np.asarray(probabilities, "<f4")}
        wrong = f"video {video} is already in the file" if video in self._places else ""
        for name, values in arrays.items():
            own = (name == "logits") == (self.stage == "logits")
            if values.shape != (len(self.classes),):
                wrong = f"the {name} of video {video} have shape {values.shape}, not {(len(self.classes),)}"
            elif not np.isfinite(values).all() and (own or not np.isnan(values).all()):
                wrong = f"the {name} of video {video} are no numbers"
        if wrong:
            raise RunError(f"{wrong}.", remedy="Score each video once.", where=self.path, code="scores")
        record: dict[str, Any] = {"video": video, "labels": list(map(int, labels))}
        record |= {"clips": int(clips), "clip_hits": int(clip_hits)}
        record |= {name: base64.b64encode(values.tobytes()).decode() for name, values in arrays.items()}
        left = memoryview(_sealed(json.dumps(record)))
        start = self._file.tell()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(start)  # what fitted on a full disk is half a line
            self._file.seek(start)
            raise unwritable(self.path, error) from error
        self._places[video] = start

    def finish(self, videos: Sequence[str]) -> ScoreSet:
        """Return the scores of `videos`, in this order, with the facts that the file was begun with.

        Raises
        ------
        RunError
            A video that was not scored, or one in the file that is not among them.
        """
        lacking = [name for name in videos if name not in self._places]
        others = sorted(self.done.difference(videos))
        for names, said in ((lacking, "has no scores of"), (others, "has scores of")):
            if names:
                more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
                raise RunError(
                    f"it {said} video {', '.join(names[:_MOST_NAMED])}{more}"
                    + (", of which the list says nothing." if names is others else "."),
                    remedy="Score what is missing, and finish with the videos that were scored.",
                    where=self.path,
                    code="scores-incomplete",
                )
        shape = (len(videos), len(self.classes))
        arrays = {name: np.empty(shape, np.float32) for name in ("logits", "probabilities")}
        labels, clips, hits = [], [], []
        with open(self.path, "rb") as file:
            for row, name in enumerate(videos):
                file.seek(self._places[name])
                record = _opened(file.readline())
                if record is None:
                    raise _damaged(self.path, f"the line of video {name}")
                for kind, values in arrays.items():
                    values[row] = np.frombuffer(base64.b64decode(record[kind]), "<f4")
                labels.append(record["labels"])
                clips.append(record["clips"])
                hits.append(record["clip_hits"])
        return ScoreSet.from_arrays(
            videos,
            self.classes,
            labels=labels,
            stage=self.stage,
            clips=clips,
            clip_hits=hits,
            facts=self.facts,
            **arrays,
        )

    def _begin(self, head: bytes) -> None:
        try:
            # A kill while the first line was written leaves its beginning, and nothing that anyone could miss.
            if not self.path.exists() or head.startswith(_first_bytes(self.path, len(head) + 1)):
                write_atomically(self.path, head)
            end = self._read(head)
            self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115  (closed by `close`)
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _read(self, head: bytes) -> int:
        """Learn where the line of each video begins; return where the whole lines end."""
        with open(self.path, "rb") as file:
            self._same_settings(file.readline(), head)
            end, broken = file.tell(), 0
            for number, line in enumerate(file, start=2):
                record = _opened(line)
                if broken:
                    raise _damaged(self.path, f"line {broken}")
                if record is None:
                    broken = number
                elif record["video"] in self._places:
                    raise _damaged(self.path, f"line {number}, a second one of video {record['video']}")
                else:
                    self._places[record["video"]] = end
                    end += len(line)
        return end

    def _same_settings(self, line: bytes, head: bytes) -> None:
        if line == head:
            return
        ours = json.loads(head)
        try:
            theirs = json.loads(line)
            foreign = theirs["what"] != _MARK
        except (ValueError, TypeError, KeyError):
            foreign = True
        if foreign:
            raise RunError(
                "it is no file of partial scores.", remedy="Choose another file.", where=self.path, code="no-scores"
            )
        differ = [f"stage {theirs['stage']} then, {ours['stage']} now"] if theirs["stage"] != ours["stage"] else []
        if theirs["classes"] != ours["classes"]:
            differ.append(f"class order {class_order(theirs['classes'])} then, {class_order(ours['classes'])} now")
        for key in sorted({*theirs["facts"], *ours["facts"]}):
            old, new = theirs["facts"].get(key), ours["facts"].get(key)
            if old != new:
                differ.append(f"{key} {json.dumps(old)} then, {json.dumps(new)} now")
        raise RunError(
            f"it was begun with other settings: {'; '.join(differ)}.",
            remedy="Go on with the same ones, or delete it and begin anew.",
            where=self.path,
            code="other-settings",
        )


def _sealed(text: str) -> bytes:
    """Return a line of a record with its checksum."""
    return f"{text}\t{zlib.crc32(text.encode()):08x}\n".encode()


def _opened(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, None where it is not whole."""
    if not line.endswith(b"\n"):
        return None
    text, _, seal = line[:-1].rpartition(b"\t")
    if seal != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _first_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def _damaged(path: Path, what: str) -> RunError:
    return RunError(
        f"{what} is damaged.",
        remedy="Take that line out of the file: its video is scored again; or delete the file.",
        where=path,
        code="scores-damaged",
    )
