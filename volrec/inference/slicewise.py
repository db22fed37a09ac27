"""Studies scored by networks that encode slices one by one: each slice once, however clips overlap.

What a slice or a clip gives does not depend on what it is computed beside. Matrix products and convolutions differ in
the last bits with the *number* of images at once, not with the others among them. So batches of one study have one
size, the last one being filled by repetition: the scores are bit-equal to those of a loop over clips that encodes the
slices of each anew in batches of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from volrec.inference.backends import TorchBackend
from volrec.transforms.flips import AXES

__all__ = ["TOGETHER", "aggregate_clips", "encode_once", "score_slicewise"]

TOGETHER = 8
"""Clips of slice vectors that are aggregated at a time: recurrent networks take about as long for one. Clips of maps
are taken one by one, since what they cost grows with their number."""


def score_slicewise(
    backend: TorchBackend,
    clips: Sequence[np.ndarray],
    *,
    read: Callable[[np.ndarray], Tensor],
    mirror: Callable[[Tensor, tuple[int, ...]], Tensor],
    views: Sequence[tuple[int, ...]],
    slices: int,
    most: int,
    pre_logits: bool = False,
    per_slice: bool = False,
) -> tuple[Tensor, np.ndarray | None]:
    """Score the clips of one study.

    Parameters
    ----------
    backend : TorchBackend
        Computes the network.
    clips : sequence of ndarray
        The slices (T',) of each clip.
    read : callable
        Gives the network input (n, C, H, W) of slices (n,).
    mirror : callable
        Gives input (n, C, H, W) mirrored along axes of the plane.
    views : sequence of tuple of int
        Mirrored axes of each view.
    slices : int
        T of the study.
    most : int
        Slices that are encoded at once, at most.
    pre_logits : bool
        Give what enters the last layer in place of logits.
    per_slice : bool
        Score every slice alone, too.

    Returns
    -------
    outputs : Tensor
        (clips, views, K).
    per_slice : ndarray or None
        (T, K) float64 logits; NaN for slices in no clip.
    """
    wanted = np.unique(np.concatenate(clips))
    places = torch.as_tensor(np.searchsorted(wanted, np.stack(clips)))
    # A mirror along T changes the order of the features only; one in plane has to be encoded anew.
    planes = {tuple(axis for axis in axes if axis != AXES["T"]) for axes in views}
    features = encode_once(backend, wanted, sorted(planes), read=read, mirror=mirror, most=most)
    outputs = []
    for axes in views:
        own = features[tuple(axis for axis in axes if axis != AXES["T"])]
        order = places.flip(1) if AXES["T"] in axes else places
        outputs.append(aggregate_clips(backend, own, order.to(own.device), pre_logits=pre_logits))
    alone = None
    if per_slice:
        # As many at a time as a clip has: a network that reads windows repeats each slice to fill one.
        parts = features[()].split(len(clips[0]))
        logits = torch.cat([backend.slice_logits(part[None])[0] for part in parts])
        alone = np.full((slices, logits.shape[1]), np.nan)
        alone[wanted] = logits.detach().to(device="cpu", dtype=torch.float64).numpy()
    return torch.stack(outputs, dim=1), alone


def encode_once(
    backend: TorchBackend,
    wanted: np.ndarray,
    planes: Sequence[tuple[int, ...]],
    *,
    read: Callable[[np.ndarray], Tensor],
    mirror: Callable[[Tensor, tuple[int, ...]], Tensor],
    most: int,
) -> dict[tuple[int, ...], Tensor]:
    """Return the features (n, ...) of slices (n,), for each way of mirroring the plane."""
    batches = -(-len(wanted) // max(2, most))
    # Never a slice by itself: convolutions of a single image take another path.
    size = max(2, -(-len(wanted) // batches))
    encoded: dict[tuple[int, ...], list[Tensor]] = {axes: [] for axes in planes}
    for start in range(0, len(wanted), size):
        part = wanted[start : start + size]
        images = _filled(read(part), size)
        for axes in planes:
            encoded[axes].append(backend.encode(mirror(images, axes))[: len(part)])
    return {axes: torch.cat(parts) for axes, parts in encoded.items()}


def aggregate_clips(
    backend: TorchBackend, features: Tensor, places: Tensor, *, pre_logits: bool = False, together: int = TOGETHER
) -> Tensor:
    """Return logits (clips, K) of the clips whose slices lie at `places` (clips, T') of the features (n, ...)."""
    size = together if features.ndim == 2 else 1
    rows = []
    for part in places.split(size):
        rows.append(backend.aggregate(_filled(features[part], size), pre_logits=pre_logits)[: len(part)])
    return torch.cat(rows)


def _filled(batch: Tensor, size: int) -> Tensor:
    """Return a batch (size, ...), the last entry repeated."""
    lack = size - len(batch)
    return batch if lack <= 0 else torch.cat([batch, batch[-1:].expand(lack, *batch.shape[1:])])
