"""The scores of one network on the videos of a split: what is kept, and metrics and fusion are computed from.

One safetensors file holds them: the arrays as tensors; names, labels and facts as JSON in its metadata, with a SHA-256
over both. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from volrec.errors import RunError
from volrec.files import is_disk_full, write_atomically

__all__ = ["FACTS", "STAGES", "ScoreSet", "class_order", "read_scores", "unwritable", "write_scores"]

FACTS = (
    "set",
    "split_id",
    "split_digest",
    "protocol",
    "stream",
    "stage",
    "weights",
    "decoder",
    "class_order",
    "evaluated",
    "listed",
)
"""What every file says of its scores.

``set`` to ``stream`` are names (``split_digest`` as `volrec.benchmarks.sets.split_digest`), ``stage`` that of the
scores, ``weights`` the SHA-256 of the network's tensors, ``decoder`` its name and version, ``class_order`` as
`class_order`, ``evaluated`` the videos here and ``listed`` those that the split lists. What is not known of the scores
of others (``split_digest``, ``weights``, ``decoder``, ``listed``) is null, never left out.
"""
STAGES = ("logits", "softmax")
"""Stages that scores of a single network may have."""

Labels = Sequence["int | str | Sequence[int | str]"]

_KEY = "volrec_scores"
_VERSION = 1
_ARRAYS = ("logits", "probabilities", "clips", "clip_hits")
_MAY_BE_NULL = frozenset({"split_digest", "weights", "decoder", "listed"})
_MOST_NAMED = 5


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """Scores of N videos for K classes; they travel with names, never with places alone.

    Attributes
    ----------
    videos : tuple of str
        Names, N.
    classes : tuple of str
        Names, K.
    labels : tuple of tuple of int
        True classes of each video, places in `classes`.
    logits, probabilities : ndarray
        (N, K) float32: what the network gave, joined over the views of each video at either stage. Of an SVM: its
        margins and NaN.
    stage : {"logits", "softmax"}
        Which of the two the protocol takes.
    clips : ndarray
        (N,) int64: clips of each video (their crops joined); 0 where only the video is known.
    clip_hits : ndarray
        (N,) int64: clips whose best class is a true one.
    facts : mapping
        Plain JSON: split id and digest, stream, protocol, weights, decoder … (`FACTS`).
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    logits: np.ndarray
    probabilities: np.ndarray
    stage: str
    clips: np.ndarray
    clip_hits: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> np.ndarray:
        """(N, K) at the stage of the protocol."""
        return self.logits if self.stage == "logits" else self.probabilities

    @classmethod
    def from_arrays(
        cls,
        videos: Sequence[str],
        classes: Sequence[str],
        *,
        labels: Labels,
        logits: Any = None,
        probabilities: Any = None,
        stage: str = "",
        clips: Any = None,
        clip_hits: Any = None,
        facts: Mapping[str, Any] | None = None,
    ) -> ScoreSet:
        """Make a score set of arrays that came from anywhere (HDF5, MATLAB …).

        Parameters
        ----------
        videos, classes : sequence of str
            N and K names, in the order of the arrays' rows and columns *as their author had it*: the class lists of
            HMDB51 circulate in three orders.
        labels : sequence
            True classes of each video: a place in `classes`, a name, or several of these.
        logits, probabilities : array_like, optional
            (N, K); at least one. Margins of an SVM are given as logits. What is not given is NaN.
        stage : {"logits", "softmax"}, optional
            Default: logits where they are given.
        clips, clip_hits : array_like, optional
            (N,) integers; 0 where not given.
        facts : mapping, optional
            What is known; ``stage``, ``class_order`` and ``evaluated`` are filled in.

        Raises
        ------
        RunError
            Shapes that do not fit, names that repeat, labels that are no class, values that are no numbers.
        """
        videos, classes = tuple(map(str, videos)), tuple(map(str, classes))
        shape = (len(videos), len(classes))
        blank = np.full(shape, np.nan, dtype=np.float32)
        none = np.zeros(len(videos), dtype=np.int64)
        stage = stage or ("softmax" if logits is None else "logits")
        own = {"stage": stage, "class_order": class_order(classes), "evaluated": len(videos)}
        made = cls(
            videos=videos,
            classes=classes,
            labels=_places(labels, classes),
            logits=blank if logits is None else np.array(logits, dtype=np.float32),
            probabilities=blank if probabilities is None else np.array(probabilities, dtype=np.float32),
            stage=stage,
            clips=none if clips is None else np.array(clips, dtype=np.int64),
            clip_hits=none if clip_hits is None else np.array(clip_hits, dtype=np.int64),
            facts={**(facts or {}), **own},
        )
        made.check()
        return made

    def check(self, *, where: Path | str | None = None) -> None:
        """Make sure that everything fits together.

        Raises
        ------
        RunError
            With what does not fit.
        """
        wrong = _misfit(self)
        if wrong:
            raise RunError(f"{wrong}.", remedy="Score the videos again.", where=where, code="scores")

    def write(self, path: Path | str) -> None:
        """Write them, see `write_scores`."""
        write_scores(path, self)

    @classmethod
    def read(cls, path: Path | str) -> ScoreSet:
        """Read a file that `write` wrote, see `read_scores`."""
        return read_scores(path)


def class_order(classes: Sequence[str]) -> str:
    """Return 16 hex digits that tell apart two orders of the same classes."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]


def write_scores(path: Path | str, scores: ScoreSet) -> None:
    """Write scores to one safetensors file, all or nothing.

    Parameters
    ----------
    path : path
        ``….safetensors``; its folder must exist. An older file is replaced.
    scores : ScoreSet
        Its facts must hold every one of `FACTS`.

    Raises
    ------
    RunError
        What does not fit together, a fact that is missing or says something else than the scores, a file that cannot
        be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    scores.check(where=path)
    _check_facts(scores, path)
    arrays = _arrays(scores)
    described = {
        "version": _VERSION,
        "videos": list(scores.videos),
        "classes": list(scores.classes),
        "labels": [list(map(int, own)) for own in scores.labels],
        "stage": scores.stage,
        "facts": dict(scores.facts),
    }
    try:
        text = json.dumps(described, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"the facts cannot be written as JSON ({error}).",
            remedy="Use text, finite numbers, lists and mappings only.",
            where=path,
            code="scores-facts",
        ) from error
    try:
        write_atomically(path, save(arrays, metadata={_KEY: text, "sha256": _digest(arrays, text)}))
    except OSError as error:
        raise unwritable(path, error) from error


def read_scores(path: Path | str) -> ScoreSet:
    """Read a file that `write_scores` wrote.

    Raises
    ------
    RunError
        When it is missing, no such file, or damaged: the SHA-256 of its content must be the one that was written.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise RunError("there is no such file.", remedy="Give a score file.", where=path, code="missing")
    try:
        with safe_open(path, framework="numpy") as file:
            kept = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError, TypeError, ValueError) as error:  # dtypes that numpy does not know
        raise _damaged(path, str(error)) from error
    if _KEY not in kept:
        raise RunError(
            "it is a safetensors file without scores.",
            remedy="Give a file that volrec benchmark wrote; tables and arrays of others: ScoreSet.from_arrays.",
            where=path,
            code="no-scores",
        )
    if set(arrays) != set(_ARRAYS) or kept.get("sha256") != _digest(arrays, kept[_KEY]):
        raise _damaged(path, "its content is not what was written")
    described = json.loads(kept[_KEY])
    if described["version"] != _VERSION:
        raise RunError(
            f"its format is version {described['version']}, this volrec reads {_VERSION}.",
            remedy="Read it with the volrec that wrote it.",
            where=path,
            code="scores-version",
        )
    read = ScoreSet(
        videos=tuple(described["videos"]),
        classes=tuple(described["classes"]),
        labels=tuple(tuple(own) for own in described["labels"]),
        stage=described["stage"],
        facts=described["facts"],
        **arrays,
    )
    read.check(where=path)
    return read


def unwritable(path: Path | str, error: OSError) -> RunError:
    """Return what to tell a user whose scores could not be written."""
    full = is_disk_full(error)
    return RunError(
        "it cannot be written: the disk is full." if full else f"it cannot be written ({error.strerror or error}).",
        remedy="Make room and go on." if full else "Choose a folder that exists and that you may write to.",
        where=path,
        code="disk-full" if full else "unwritable",
    )


def _places(labels: Labels, classes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return labels as places, whether they are given as places or names, one or several a video."""
    index = {name: place for place, name in enumerate(classes)}
    found = []
    for number, own in enumerate(labels):
        several = [own] if isinstance(own, (str, int, np.integer)) else list(own)
        unknown = [name for name in several if isinstance(name, str) and name not in index]
        if unknown:
            raise RunError(
                f"the label {unknown[0]!r} of video {number + 1} is none of the classes.",
                remedy="Give names as the classes have them.",
                code="unknown-class",
            )
        found.append(tuple(index[name] if isinstance(name, str) else int(name) for name in several))
    return tuple(found)


def _misfit(scores: ScoreSet) -> str:
    """Say what does not fit together in a score set; empty text where everything does."""
    count, classes = len(scores.videos), len(scores.classes)
    for what, names in (("video", scores.videos), ("class", scores.classes)):
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            return f"{what} {', '.join(twice[:_MOST_NAMED])} stands in the scores twice"
    if scores.stage not in STAGES:
        return f"the stage of scores is one of {', '.join(STAGES)}, got {scores.stage!r}"
    if len(scores.labels) != count:
        return f"there are labels of {len(scores.labels)} videos and scores of {count}"
    for name, own in zip(scores.videos, scores.labels, strict=True):
        if any(not 0 <= place < classes for place in own):
            return f"video {name} has label {max(own)}; there are {classes} classes, counted from 0"
    for what in ("logits", "probabilities"):
        values = getattr(scores, what)
        if values.shape != (count, classes):
            return f"{what} have shape {values.shape}; {count} videos and {classes} classes have {(count, classes)}"
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any() and not (np.isnan(values).all() and values is not scores.scores):
            return f"the {what} of video {scores.videos[int(bad.argmax())]} are no numbers"
    for what in ("clips", "clip_hits"):
        if getattr(scores, what).shape != (count,):
            return f"{what} have shape {getattr(scores, what).shape}, not {(count,)}"
    off = (scores.clip_hits < 0) | (scores.clip_hits > scores.clips)
    if off.any():
        place = int(off.argmax())
        return f"video {scores.videos[place]} has {scores.clip_hits[place]} clips right of {scores.clips[place]}"
    return ""


def _check_facts(scores: ScoreSet, path: Path) -> None:
    """Make sure that the facts are all there, and say what the scores say."""
    lacking = [
        name for name in FACTS if name not in scores.facts or (scores.facts[name] is None and name not in _MAY_BE_NULL)
    ]
    if lacking:
        raise RunError(
            f"scores without {', '.join(lacking)} cannot be told from others later.",
            remedy=f"Put it among the facts: {', '.join(FACTS)}.",
            where=path,
            code="scores-facts",
        )
    is_so = {"stage": scores.stage, "class_order": class_order(scores.classes), "evaluated": len(scores.videos)}
    for name, value in is_so.items():
        if scores.facts[name] != value:
            raise RunError(
                f"the facts say {name} {scores.facts[name]}, the scores {value}.",
                remedy="Facts of other scores were taken over; give their own.",
                where=path,
                code="scores-facts",
            )


def _arrays(scores: ScoreSet) -> dict[str, np.ndarray]:
    kinds = {"logits": np.float32, "probabilities": np.float32, "clips": np.int64, "clip_hits": np.int64}
    return {name: np.ascontiguousarray(getattr(scores, name), dtype=kind) for name, kind in kinds.items()}


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """Return the SHA-256 over names, shapes and bytes of the arrays and over the text."""
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        found.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def _damaged(path: Path, why: str) -> RunError:
    return RunError(
        f"it is no safetensors file or is damaged ({why}).",
        remedy="Score the videos again, or restore it from a copy.",
        where=path,
        code="scores-damaged",
    )
