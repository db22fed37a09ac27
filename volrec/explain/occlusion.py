"""Occlusion: how far an output falls when a part of the study is covered.

M. D. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2, there with a
grey square that slides over an image. Here slices are covered, or blocks of voxels. Nothing is asked of the network but
its outputs; of one that encodes slices one by one only the slices that changed are encoded anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.explain.passes import Tick, at_rest, check_output, empty_clip, fitting, resting, values_of
from volrec.networks.base import SlicewiseNetwork

__all__ = ["FILLS", "occlude_blocks", "occlude_slices"]

FILLS = ("median", "mean", "neighbours", "minimum")
BLOCKS = 8
"""Blocks along each axis of a clip where no size is given: 512 passes a clip at most."""


def occlude_slices(
    network: nn.Module,
    x: Tensor,
    output: int,
    *,
    slab: int = 1,
    fill: str = "median",
    empty: Tensor | None = None,
    slices: Sequence[Tensor] | None = None,
    tick: Tick = resting,
) -> Tensor:
    """Cover each slice in turn, and say how far the output falls: above 0 where the slice speaks for it.

    Parameters
    ----------
    network : nn.Module
        (B, C, T', H, W) to logits (B, K).
    x : Tensor
        (B, C, T', H, W), as the network reads it.
    output : int
        Which output is explained, from 0.
    slab : int
        Slices that are covered together, an odd number; the result belongs to the one in the middle. A finding over
        several slices shows more clearly where all of them are covered.
    fill : {"median", "mean", "neighbours", "minimum"}
        What is put in place. ``median``: that of all slices of the clip, voxel by voxel; anatomy stays, and a finding
        in fewer than half of them is gone. ``mean``: that of the other slices; a finding fades, and stands faintly
        where there was none. ``neighbours``: between the nearest slices that are not covered, by linear interpolation;
        a finding that goes on in them stays. ``minimum``: an empty canvas, which the network has not learned from.
    empty : Tensor, optional
        (C,) value of an empty canvas; None: the minimum of each channel of the clip.
    slices : sequence of Tensor, optional
        (T',) of each clip: which slice of the study stands at each position. Positions with the same slice (repeated
        at the ends of a short study) are covered together. None: each position is a slice.
    tick : callable
        Told the share of the work that is done.

    Returns
    -------
    Tensor
        (B, T', H, W) float32: the same all over a slice, in the units of the output (before sigmoid or softmax).

    Raises
    ------
    ConfigError
        A slab that is even, an unknown fill, or no such output.
    """
    check_output(network, output)
    _check_fill(fill)
    if slab < 1 or slab % 2 == 0:
        raise ConfigError(
            f"slab must be an odd number of slices, got {slab}.",
            remedy="Use 1, 3 or 5.",
            where="slab",
            code="explain-option",
        )
    found = torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.float32, device=x.device)
    with at_rest(network), torch.no_grad():
        for number, clip in enumerate(x):
            shown = torch.arange(clip.shape[1]) if slices is None else torch.as_tensor(slices[number]).cpu()
            standing = _standing(clip, empty, fill)
            own = torch.unique(shown)
            covered = []
            for place in range(len(own)):
                slab_slices = own[max(0, place - slab // 2) : place + slab // 2 + 1]
                covered.append(torch.isin(shown, slab_slices).nonzero().flatten())
            changes = (_Change(places, _filling(clip, standing, places, fill)) for places in covered)
            drops = _drops(network, clip, output, changes, len(covered), _share(tick, number, len(x)))
            found[number] = drops[torch.searchsorted(own, shown)][:, None, None]
    return found


def occlude_blocks(
    network: nn.Module,
    x: Tensor,
    output: int,
    *,
    block: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    fill: str = "median",
    empty: Tensor | None = None,
    tick: Tick = resting,
) -> Tensor:
    """Cover blocks of voxels in turn, and say how far the output falls: above 0 where a block speaks for it.

    Parameters
    ----------
    network, x, output, fill, empty, tick
        As of `occlude_slices`; ``fill`` is computed for whole slices, and the block is taken out of them.
    block : sequence of int, optional
        (t, h, w) voxels of a block; None: an eighth of the clip along each axis.
    stride : sequence of int, optional
        Voxels from one block to the next; None: blocks side by side. The last ones may be cut by the border.

    Returns
    -------
    Tensor
        (B, T', H, W) float32: the mean over the blocks that a voxel lies in.

    Raises
    ------
    ConfigError
        A block or stride that is no three sizes, an unknown fill, or no such output.
    """
    check_output(network, output)
    _check_fill(fill)
    sides = _three(block, [-(-size // BLOCKS) for size in x.shape[2:]], "block")
    steps = _three(stride, sides, "stride")
    starts = [
        [start * step for start in range(1 + max(0, -(-(size - side) // step)))]
        for size, side, step in zip(x.shape[2:], sides, steps, strict=True)
    ]
    windows = [
        tuple(slice(at, min(at + side, size)) for at, side, size in zip(corner, sides, x.shape[2:], strict=True))
        for corner in product(*starts)
    ]
    found = torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.float32, device=x.device)
    counts = torch.zeros(x.shape[2:], device=x.device)
    for window in windows:
        counts[window] += 1
    with at_rest(network), torch.no_grad():
        for number, clip in enumerate(x):
            changes = _covered_blocks(clip, _standing(clip, empty, fill), windows, fill)
            drops = _drops(network, clip, output, changes, len(windows), _share(tick, number, len(x)))
            for window, drop in zip(windows, drops, strict=True):
                found[number][window] += drop
    return found / counts.clamp(min=1)


class _Change(NamedTuple):
    """Positions (m,) of a clip along T, and the slices (C, m, H, W) that are put there."""

    places: Tensor
    images: Tensor


def _covered_blocks(
    clip: Tensor, standing: Tensor, windows: Sequence[tuple[slice, ...]], fill: str
) -> Iterator[_Change]:
    before: slice | None = None
    places = filling = torch.empty(0)
    for along, down, across in windows:
        if along != before:  # blocks of one depth share their filling
            places = torch.arange(along.start, along.stop)
            filling, before = _filling(clip, standing, places, fill), along
        images = clip[:, along].clone()
        images[:, :, down, across] = filling[:, :, down, across]
        yield _Change(places, images)


def _standing(clip: Tensor, empty: Tensor | None, fill: str) -> Tensor:
    """Return what stands in for any slice (C, T', H, W), as a view: the median of the clip, or an empty canvas."""
    # The median of a single slice, repeated or not, would cover nothing.
    if fill == "median" and not torch.equal(clip, clip[:, :1].expand_as(clip)):
        return clip.median(dim=1, keepdim=True).values.expand_as(clip)
    return empty_clip(clip[None], empty)[0]


def _filling(clip: Tensor, standing: Tensor, places: Tensor, fill: str) -> Tensor:
    """Return what is put at some positions (m,) of a clip (C, T', H, W): slices (C, m, H, W).

    `standing` (C, T', H, W) is what does not depend on the positions: see `_standing`.
    """
    where = places.to(clip.device)
    kept = torch.ones(clip.shape[1], dtype=torch.bool, device=clip.device)
    kept[where] = False
    left = kept.nonzero().flatten()
    if fill in ("median", "minimum") or not len(left):
        return standing[:, where]
    if fill == "mean":
        return clip[:, left].mean(dim=1, keepdim=True).expand(-1, len(where), -1, -1)
    after = torch.searchsorted(left, where)
    low, high = left[(after - 1).clamp(min=0)], left[after.clamp(max=len(left) - 1)]
    # At an end both are the one neighbour there is.
    share = ((where - low) / (high - low).clamp(min=1)).clamp(0, 1).to(clip.dtype)
    return torch.lerp(clip[:, low], clip[:, high], share[None, :, None, None])


def _drops(network: nn.Module, clip: Tensor, output: int, changes: Iterator[_Change], count: int, tick: Tick) -> Tensor:
    """Return how far the output falls (count,) float32 under each change of a clip (C, T', H, W)."""
    scorer: _ByClip | _BySlice
    if isinstance(network, SlicewiseNetwork):
        scorer = _BySlice(network, clip, output)
    else:
        scorer = _ByClip(network, clip, output)
    room = fitting(clip[None])
    found: list[Tensor] = []
    waiting: list[_Change] = []
    for number, change in enumerate(changes, 1):
        waiting.append(change)
        if scorer.clips(waiting) >= room or number == count:
            found.append(scorer.whole - scorer.changed(waiting))
            waiting = []
            tick(number / count)
    return torch.cat(found).float()


class _ByClip:
    """The output of a network for a clip (C, T', H, W), and for changes of it, each scored as a whole."""

    def __init__(self, network: nn.Module, clip: Tensor, output: int) -> None:
        self.network, self.clip, self.output = network, clip, output
        self.whole = values_of(network, clip[None], output)

    def clips(self, changes: Sequence[_Change]) -> float:
        """Return how many clips have to be computed."""
        return len(changes)

    def changed(self, changes: Sequence[_Change]) -> Tensor:
        """Return the outputs (N,) of N changes."""
        clips = self.clip.expand(len(changes), *self.clip.shape).clone()
        for row, change in zip(clips, changes, strict=True):
            row[:, change.places.to(row.device)] = change.images
        return values_of(self.network, clips, self.output)


class _BySlice:
    """The same of a network that encodes slices: those that do not change are encoded once."""

    def __init__(self, network: SlicewiseNetwork, clip: Tensor, output: int) -> None:
        network.check_input(clip[None])
        self.network, self.output, self.length = network, output, clip.shape[1]
        self.features = _encoded(network, clip.transpose(0, 1))
        self.whole = network.aggregate(self.features[None])[:, output]

    def clips(self, changes: Sequence[_Change]) -> float:
        """Return how many clips have as many slices as have to be encoded."""
        return sum(len(change.places) for change in changes) / self.length

    def changed(self, changes: Sequence[_Change]) -> Tensor:
        """Return the outputs (N,) of N changes."""
        encoded = _encoded(self.network, torch.cat([change.images for change in changes], dim=1).transpose(0, 1))
        values = []
        for change, own in zip(changes, encoded.split([len(change.places) for change in changes]), strict=True):
            features = self.features.clone()
            features[change.places.to(features.device)] = own
            values.append(self.network.aggregate(features[None])[:, self.output])
        return torch.cat(values)


def _encoded(network: SlicewiseNetwork, images: Tensor) -> Tensor:
    """Return features (N, ...) of slices (N, C, H, W), a bounded number at a time."""
    return torch.cat([network.encode_slices(part) for part in images.split(fitting(images))])


def _share(tick: Tick, number: int, clips: int) -> Tick:
    return lambda done: tick((number + done) / clips)


def _check_fill(fill: str) -> None:
    if fill not in FILLS:
        raise ConfigError(
            f"fill must be one of {', '.join(FILLS)}; got {fill!r}.",
            remedy="Choose one of these.",
            where="fill",
            code="explain-option",
        )


def _three(given: Sequence[int] | None, default: Sequence[int], name: str) -> list[int]:
    sizes = default if given is None else given
    if not isinstance(sizes, (list, tuple)) or len(sizes) != 3 or any(int(size) != size or size < 1 for size in sizes):
        raise ConfigError(
            f"{name} must be three sizes in voxels (t, h, w), got {given!r}.",
            remedy=f"Write it as --set {name}=[2,16,16].",
            where=name,
            code="explain-option",
        )
    return [int(size) for size in sizes]
