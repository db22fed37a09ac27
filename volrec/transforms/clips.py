"""Which slices a clip takes: functions of the number of slices, shared by training, validation and prediction."""

from __future__ import annotations

import numpy as np

from volrec.errors import ConfigError

__all__ = ["SAMPLINGS", "clip_affine", "clip_indices", "protocol_clips"]

SAMPLINGS = ("random", "center", "uniform", "segments")


def clip_indices(
    n_slices: int,
    *,
    clip_length: int,
    stride: int = 1,
    mode: str = "random",
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
        Step between the slices of a contiguous clip; ``uniform`` and ``segments`` spread over the sequence instead.
    mode : {"random", "center", "uniform", "segments"}
        A contiguous clip anywhere; in the middle; the middle slice of each of T' equal segments; or one slice drawn
        in each of them (temporal segment networks, [1]_).
    rng : numpy.random.Generator, optional
        Source of the draw; ``random`` and ``segments`` need it, no global state is ever used.

    Returns
    -------
    numpy.ndarray
        int64 ``(T',)``, not decreasing, each in [0, `n_slices`). A contiguous clip longer than the sequence holds the
        sequence in its middle and repeats the first and the last slice around it; ``uniform`` and ``segments`` take
        every slice of a short sequence, evenly repeated.

    Raises
    ------
    ConfigError
        For a count below 1, an unknown mode, or a mode that draws without an `rng`.

    References
    ----------
    .. [1] L. Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016.
    """
    _check(n_slices=n_slices, clip_length=clip_length, stride=stride)
    if mode not in SAMPLINGS:
        raise ConfigError(
            f"clip sampling must be one of {', '.join(SAMPLINGS)}; got {mode!r}.",
            remedy="Choose one of these.",
            where="sampling.train",
            code="sampling",
        )
    if mode in ("random", "segments") and rng is None:
        raise ConfigError(
            f"clip sampling {mode!r} draws, and no rng was given.",
            remedy="Give rng=numpy.random.default_rng(seed).",
            where="rng",
            code="rng",
        )
    if mode == "uniform":
        return _one_a_segment(n_slices, clip_length, 0.5)
    if mode == "segments" and rng is not None:
        return _one_a_segment(n_slices, clip_length, rng.random(clip_length))
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
        ``segments``, a clip is spread over the sequence, and several of them take different slices of each segment.

    Returns
    -------
    list of numpy.ndarray
        int64 ``(T',)`` each. Never the same clip twice, so a short sequence may give fewer than `clips`.

    Raises
    ------
    ConfigError
        For a count that is too small, an overlap outside [0, 1), or an unknown mode.
    """
    _check(n_slices=n_slices, clip_length=clip_length, stride=stride)
    if clips < 0 or not 0 <= overlap < 1:
        raise ConfigError(
            f"clips must be at least 0 and overlap in [0, 1); got clips={clips}, overlap={overlap}.",
            remedy="0 clips covers the whole study.",
            where="protocol",
            code="protocol",
        )
    if mode not in SAMPLINGS:
        raise ConfigError(
            f"clip sampling must be one of {', '.join(SAMPLINGS)}; got {mode!r}.",
            remedy="Choose one of these.",
            where="sampling.train",
            code="sampling",
        )
    if mode in ("uniform", "segments"):
        count = clips or -(-n_slices // clip_length)
        found = [_one_a_segment(n_slices, clip_length, (place + 0.5) / count) for place in range(count)]
    elif clips:
        slack = n_slices - _span(clip_length, stride)
        starts = [slack // 2] if clips == 1 or slack <= 0 else np.rint(np.linspace(0, slack, clips)).astype(int)
        found = [_contiguous(n_slices, clip_length, stride, int(start)) for start in starts]
    else:
        found = _covering(n_slices, clip_length, stride, overlap)
    return list({clip.tobytes(): clip for clip in found}.values())


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


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(
                f"{name} must be at least 1, got {value}.", remedy="Give a count.", where=name, code="count"
            )
