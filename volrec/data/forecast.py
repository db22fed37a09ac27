"""What decoding and training will need: rough figures before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from volrec.io import Series
from volrec.parallel import available_cpus

__all__ = ["forecast"]

NATIVE = frozenset({"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
"""Transfer syntaxes without compression of pixels."""
RATE = 500e6
"""Bytes a second and processor of uncompressed slices (512x512x60 in 60 ms)."""
COMPRESSED = 24.0
"""JPEG 2000 takes so many times as long to decode; the other codecs less."""
STUDY_SECONDS = 4.4
"""Forward and backward of C3D on one clip of 16x112x112, one processor."""
TRAINING_BYTES = 2_000_000_000
"""Resident memory of a training of C3D on clips of 16x112x112, batch 8."""


def forecast(series: Sequence[Series]) -> dict[str, Any]:
    """Estimate what training on these series takes.

    Parameters
    ----------
    series : sequence of Series
        One a study.

    Returns
    -------
    dict
        ``decoded_bytes`` (all voxels at 2 bytes, as acquired: also the disk the store takes), ``largest_bytes`` (of one
        study), ``memory_bytes`` (while training C3D), ``decode_seconds`` (once) and ``epoch_seconds`` (C3D, one clip of
        16x112x112 a study, on the processors at hand without a GPU).
    """
    cpus = available_cpus()
    sizes = [2 * prod(one.shape) for one in series]
    seconds = sum(size / RATE * _cost(one) for size, one in zip(sizes, series, strict=True))
    largest = max(sizes, default=0)
    return {
        "decoded_bytes": sum(sizes),
        "largest_bytes": largest,
        # Filling the store resamples one study a process in float32, next to its source.
        "memory_bytes": max(TRAINING_BYTES, 5 * largest * min(cpus, max(1, len(sizes)))),
        "decode_seconds": round(seconds / cpus, 1),
        "epoch_seconds": round(len(sizes) * STUDY_SECONDS / cpus, 1),
        "processors": cpus,
    }


def _cost(series: Series) -> float:
    if series.kind == "nifti":
        return 2.5 if series.files[0].lower().endswith((".gz", ".zip")) else 0.2
    return 1.0 if all(header.transfer_syntax in NATIVE for header in series.headers[:1]) else COMPRESSED
