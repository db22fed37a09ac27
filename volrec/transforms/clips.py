"""Which slices a clip takes: functions of the number of slices, shared by training, validation and prediction."""

from __future__ import annotations

import numpy as np

from volrec.errors import ConfigError

__all__ = ["SAMPLINGS", "clip_affine", "clip_indices", "evenly_spaced", "protocol_clips"]

SAMPLINGS = ("random", "center", "uniform", "segments")


def clip_indices(
    n_slices: int,
    *,
    clip_length: int,
    stride: int = 1,
    mode: str = "random",
    snippet_length: int = 1,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Draw the slices of one training clip.

    Parameters
    ----------
    n_slices : int
        Slices of the sequence (T).
    clip_length : int
        Slices of the clip (T').
    stride : int
        Step between the slices of a contiguous clip, or of a snippet; ``uniform`` and ``segments`` spread snippets
        over the sequence instead.
    mode : {"random", "center", "uniform", "segments"}
        A contiguous clip anywhere; in the middle; the middle snippet of each of K equal segments; or one snippet drawn
        in each of them (temporal segment networks, [1]_).
    snippet_length : int
        Slices of a snippet, ``K = T' / snippet_length``. By default every slice is one. A longer one begins in its
        segment of the places where snippets can begin, and may reach into the next.
    rng : numpy.random.Generator, optional
        Source of the draw; ``random`` and ``segments`` need it, no global state is ever used.

    Returns
    -------
    numpy.ndarray
        int64 ``(T',)``, not decreasing within a snippet, nor where that is one slice; each in [0, `n_slices`). A
        contiguous clip, or a snippet, longer than the sequence holds the sequence in its middle and repeats the first
        and the last slice around it; ``uniform`` and ``segments`` take every slice of a short sequence, evenly
        repeated.

    Raises
    ------
    ConfigError
        For a count below 1, a clip that is no whole number of snippets, an unknown mode, or a mode that draws without
        an `rng`.

    References
    ----------
    .. [1] L. Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016.
    """
    _check(n_slices=n_slices, clip_length=clip_length, stride=stride, snippet_length=snippet_length)
    snippets = _whole_snippets(clip_length, snippet_length)
    _check_mode(mode)
    if mode in ("random", "segments") and rng is None:
        raise ConfigError(
            f"clip sampling {mode!r} draws, and no rng was given.",
            remedy="Give rng=numpy.random.default_rng(seed).",
            where="rng",
            code="rng",
        )
    if mode == "uniform":
        return _spread(n_slices, snippets, snippet_length, stride, 0.5)
    if mode == "segments" and rng is not None:
        return _spread(n_slices, snippets, snippet_length, stride, rng.random(snippets))
    slack = n_slices - _span(clip_length, stride)
    start = slack // 2
    if mode == "random" and slack > 0 and rng is not None:
        start = int(rng.integers(0, slack + 1))
    return _contiguous(n_slices, clip_length, stride, start)


def protocol_clips(
    n_slices: int,
    *,
    clip_length: int,
    stride: int = 1,
    clips: int = 0,
    overlap: float = 0.5,
    mode: str = "random",
    snippet_length: int = 1,
    snippets: int = 0,
) -> list[np.ndarray]:
    """Lay the clips of the test protocol over a sequence; nothing is drawn.

    Parameters
    ----------
    n_slices, clip_length, stride : int
        As in `clip_indices`.
    clips : int
        Clips a study, spread evenly from the first slice to the last (one clip: the middle). 0 takes as few as show
        every slice, neighbours sharing at least `overlap` of their slices; with a stride, every phase of it.
    overlap : float
        Share of its slices that a clip has in common with the next, in [0, 1); used when `clips` is 0.
    mode : {"random", "center", "uniform", "segments"}
        How the network was trained: after ``random`` or ``center``, clips are contiguous. After ``uniform`` or
        ``segments``, a clip is spread over the sequence, and several of them take different snippets of each segment.
    snippet_length : int
        As in `clip_indices`.
    snippets : int
        After ``uniform`` or ``segments``: one clip of so many snippets, evenly spaced from the first to the last slice
        (`evenly_spaced`), whatever `clip_length` is; 25 in the paper of temporal segment networks. 0 leaves it to
        `clips`.

    Returns
    -------
    list of numpy.ndarray
        int64 ``(T',)`` each, or ``(snippets * snippet_length,)``. Never the same clip twice, so a short sequence may
        give fewer than `clips`.

    Raises
    ------
    ConfigError
        For a count that is too small, a clip that is no whole number of snippets, an overlap outside [0, 1), an
        unknown mode, or `snippets` beside contiguous or several clips.
    """
    _check(n_slices=n_slices, clip_length=clip_length, stride=stride, snippet_length=snippet_length)
    segments = _whole_snippets(clip_length, snippet_length)
    if clips < 0 or snippets < 0 or not 0 <= overlap < 1:
        raise ConfigError(
            f"clips and snippets must be at least 0 and overlap in [0, 1); got clips={clips}, snippets={snippets}, "
            f"overlap={overlap}.",
            remedy="0 clips covers the whole study.",
            where="protocol",
            code="protocol",
        )
    _check_mode(mode)
    if snippets:
        return [_evenly(n_slices, snippets, snippet_length, stride, clips=clips, mode=mode)]
    if mode in ("uniform", "segments") and (clips or snippet_length == 1):
        count = clips or -(-n_slices // clip_length)
        places = [(place + 0.5) / count for place in range(count)]
        found = [_spread(n_slices, segments, snippet_length, stride, place) for place in places]
    elif mode in ("uniform", "segments"):
        found = _covering_snippets(n_slices, segments, snippet_length, stride)
    elif clips:
        slack = n_slices - _span(clip_length, stride)
        starts = [slack // 2] if clips == 1 or slack <= 0 else np.rint(np.linspace(0, slack, clips)).astype(int)
        found = [_contiguous(n_slices, clip_length, stride, int(start)) for start in starts]
    else:
        found = _covering(n_slices, clip_length, stride, overlap)
    return list({clip.tobytes(): clip for clip in found}.values())


def evenly_spaced(count: int, length: int, *, snippets: int = 25, to_the_end: bool = False) -> np.ndarray:
    """Return where the snippets of a test begin by the rule of temporal segment networks.

    The step is ``(count - length) / (snippets - 1)`` rounded down, and the first snippet begins at the first frame. A
    sequence too short for a step of one repeats the first snippet.

    Parameters
    ----------
    count : int
        Frames (or fields of flow) of the sequence.
    length : int
        Frames of a snippet: 1 for RGB, 5 for stacks of flow in the paper.
    snippets : int
        Snippets. Of a single one the rule says nothing: it is taken from the middle.
    to_the_end : bool
        Round the places and not the step, so that the last snippet ends the sequence. The rule leaves up to
        ``snippets - 2`` frames at the end unseen: little of a video of hundreds, but a third of a stack of 71 slices,
        and all but the first of one of 24.

    Returns
    -------
    numpy.ndarray
        int64 ``(snippets,)``, from 0. (The released code counts frames from 1.)

    Raises
    ------
    ConfigError
        For a number below 1.

    References
    ----------
    .. [1] L. Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016.

    Examples
    --------
    >>> evenly_spaced(12, 1, snippets=4).tolist(), evenly_spaced(12, 1, snippets=4, to_the_end=True).tolist()
    ([0, 3, 6, 9], [0, 3, 7, 11])
    """
    _check(count=count, length=length, snippets=snippets)
    if snippets == 1:
        return np.array([max(0, (count - length) // 2)], dtype=np.int64)
    slack, places = max(0, count - length), np.arange(snippets, dtype=np.int64)
    return places * slack // (snippets - 1) if to_the_end else places * (slack // (snippets - 1))


def clip_affine(affine: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the affine of a clip cut by `indices`, ``(t, h, w, 1)`` of the clip to mm.

    Exact for an evenly spaced clip. Otherwise (repeated slices, ``segments``) the line through the slices that fits
    their places best, by least squares.
    """
    steps = np.arange(len(indices))
    if len(indices) > 1:
        step, first = np.polyfit(steps, np.asarray(indices, dtype=np.float64), 1)
    else:
        step, first = 1.0, float(indices[0])
    to_sequence = np.diag([max(step, 1e-3), 1.0, 1.0, 1.0])  # A clip of one slice, repeated, still has a direction.
    to_sequence[0, 3] = first
    return np.asarray(affine, dtype=np.float64) @ to_sequence


def _span(clip_length: int, stride: int) -> int:
    return (clip_length - 1) * stride + 1


def _contiguous(n_slices: int, clip_length: int, stride: int, start: int) -> np.ndarray:
    return np.clip(start + stride * np.arange(clip_length, dtype=np.int64), 0, n_slices - 1)


def _one_a_segment(n_slices: int, clip_length: int, place: float | np.ndarray) -> np.ndarray:
    """Take the slice at `place` (0 to 1, 1 excluded) of each of `clip_length` equal segments."""
    positions = np.floor((np.arange(clip_length) + place) * (n_slices / clip_length))
    return np.minimum(positions.astype(np.int64), n_slices - 1)


def _spread(n_slices: int, snippets: int, length: int, stride: int, place: float | np.ndarray) -> np.ndarray:
    """Take the snippet that begins at `place` (0 to 1, 1 excluded) of each of equal parts of all beginnings."""
    slack = n_slices - _span(length, stride)
    if slack < 0:
        return _snippets(n_slices, np.full(snippets, slack // 2), length, stride)
    return _snippets(n_slices, _one_a_segment(slack + 1, snippets, place), length, stride)


def _snippets(n_slices: int, begins: np.ndarray, length: int, stride: int) -> np.ndarray:
    steps = stride * np.arange(length, dtype=np.int64)
    return np.clip(begins[:, None] + steps, 0, n_slices - 1).reshape(-1)


def _evenly(n_slices: int, snippets: int, length: int, stride: int, *, clips: int, mode: str) -> np.ndarray:
    """Return the one clip of evenly spaced snippets."""
    if mode not in ("uniform", "segments") or clips > 1:
        raise ConfigError(
            f"evenly spaced snippets are one clip of a network that was trained on spread ones; got "
            f"snippets={snippets} with clips={clips} after sampling {mode!r}.",
            remedy="Set protocol.snippets to 0, or sampling.train to segments and protocol.clips to 0.",
            where="protocol.snippets",
            code="protocol",
        )
    begins = evenly_spaced(n_slices, _span(length, stride), snippets=snippets, to_the_end=True)
    return _snippets(n_slices, begins, length, stride)


def _covering_snippets(n_slices: int, snippets: int, length: int, stride: int) -> list[np.ndarray]:
    """Cover every slice by clips of spread snippets; a stride leaves interleaved sequences, as in `_covering`."""
    found = []
    for phase in range(min(stride, n_slices)):
        own = len(range(phase, n_slices, stride))
        slack = own - length
        if slack <= 0:
            begins = np.full((snippets, 1), slack // 2)
        else:
            # Neighbours begin no further apart than a snippet is long: nothing lies between them.
            clips = -(-(-(-slack // length) + 1) // snippets)
            count = snippets * clips
            begins = (np.arange(count) * slack // max(1, count - 1)).reshape(snippets, clips)
        found += [phase + stride * _snippets(own, begin, length, 1) for begin in begins.T]
    return found


def _covering(n_slices: int, clip_length: int, stride: int, overlap: float) -> list[np.ndarray]:
    """Cover every slice; a stride leaves `stride` interleaved sequences, each of which is covered by itself."""
    step = max(1, int(clip_length * (1 - overlap) + 1e-9))
    found = []
    for phase in range(min(stride, n_slices)):
        own = len(range(phase, n_slices, stride))
        slack = own - clip_length
        if slack <= 0:
            starts = np.array([slack // 2])
        else:
            starts = np.rint(np.linspace(0, slack, -(-slack // step) + 1)).astype(int)
        found += [phase + stride * _contiguous(own, clip_length, 1, int(start)) for start in starts]
    return found


def _check_mode(mode: str) -> None:
    if mode not in SAMPLINGS:
        raise ConfigError(
            f"clip sampling must be one of {', '.join(SAMPLINGS)}; got {mode!r}.",
            remedy="Choose one of these.",
            where="sampling.train",
            code="sampling",
        )


def _whole_snippets(clip_length: int, snippet_length: int) -> int:
    """Return how many snippets a clip has."""
    if clip_length % snippet_length:
        raise ConfigError(
            f"a clip of {clip_length} slices is no whole number of snippets of {snippet_length}.",
            remedy="Make clip_length a multiple of snippet_length.",
            where="sampling.snippet_length",
            code="sampling",
        )
    return clip_length // snippet_length


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(
                f"{name} must be at least 1, got {value}.", remedy="Give a count.", where=name, code="count"
            )
