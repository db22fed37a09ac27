"""``protocol.method: dense``: a network that is convolutional along slices, applied to a whole study at once.

The maps of the study are computed once. The head scores every run of positions that one clip would have, a position
apart: every place where a clip fits, at the price of about one pass. Only the two ends of the study are padded as the
network pads a clip; a clip in the middle sees its neighbours where it would see padding. Scores therefore differ from
those of clips, except of a network without padding along slices, where they are the same.

A long study is read in chunks that overlap by what a position of the maps can reach, so that chunks change no number.
Reach and stride are found by trying: slices that are no numbers (NaN) leave their mark on every position that depends
on them. A narrow copy of the network serves for that, since widths change nothing along slices.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.inference.backends import TorchBackend
from volrec.networks import SequenceNetwork, SlicewiseNetwork, create
from volrec.transforms.clips import clip_indices
from volrec.transforms.flips import AXES

__all__ = ["AlongSlices", "along_slices", "check_dense", "dense_maps", "dense_outputs"]

NARROW = 1 / 32
"""Width of the copy."""
LONGEST = 4096
"""Slices up to which the reach of a position is looked for; nothing reaches further but what reaches everywhere."""
FAR = 1 << 20
"""Slices, of no memory, by which strides are told."""


@dataclass(eq=False)
class AlongSlices:
    """How the maps of a network lie along the slices.

    Attributes
    ----------
    stride : int
        Slices between neighbouring positions.
    """

    network: SequenceNetwork
    size: tuple[int, int]
    stride: int = 0
    _shapes: SequenceNetwork | None = None
    _counts: dict[int, int] = field(default_factory=dict)
    _reach: dict[int, tuple[int, int]] = field(default_factory=dict)

    def positions(self, slices: int) -> int:
        """Return how many positions a sequence of so many slices gives."""
        if slices not in self._counts:
            if self._shapes is None:
                self._shapes = copy.deepcopy(self.network).to("meta")
            shape = (1, self.network.in_channels, slices, *self.size)
            with torch.no_grad():
                maps = self._shapes.forward_features(torch.empty(shape, device="meta"))
            if maps.ndim != 5:
                raise _unfit(self.network, "its features have no axis of slices")
            self._counts[slices] = int(maps.shape[2])
        return self._counts[slices]

    def find_stride(self) -> None:
        """Find the stride.

        Raises
        ------
        ConfigError
            Where there is none: the number of positions does not grow with the sequence.
        """
        grown = self.positions(2 * FAR) - self.positions(FAR)
        self.stride = round(FAR / grown) if grown > 0 else 0
        start = 64 * self.stride
        tried = range(start, start + min(self.stride, 32))
        if not self.stride or any(self.positions(n + self.stride) != self.positions(n) + 1 for n in tried):
            raise _unfit(self.network, "its maps do not grow with the study, a position for so many slices")

    def reach(self, slices: int) -> tuple[int, int]:
        """Return how many positions behind a cut, and before one, know of what was cut away.

        Cuts of a sequence of so many slices lie at multiples of the stride where it begins anew, and at such places
        with the same remainder as its own end where it ends: every layer then sees the same steps as in the whole.

        Raises
        ------
        ConfigError
            Where a position reaches everywhere, or depends on where it lies.
        """
        rest = slices % self.stride
        if rest not in self._reach:
            length = 8 * self.stride + rest
            while (found := self._try(length)) is None:
                length = 2 * (length - rest) + rest
                if length > max(LONGEST, 16 * self.stride):
                    raise _unfit(self.network, "what it computes of a slice depends on all others")
            self._reach[rest] = found
        return self._reach[rest]

    def _try(self, length: int) -> tuple[int, int] | None:
        """Return the reach, or None where a sequence of so many slices is too short to tell."""
        step = self.stride
        whole = torch.randn(
            (1, self.network.in_channels, length, *self.size), generator=torch.Generator().manual_seed(0)
        )
        marked = whole.repeat(2, 1, 1, 1, 1)
        marked[0, :, :step] = torch.nan
        marked[1, :, length - step :] = torch.nan
        with torch.no_grad():
            lost = self.network.forward_features(marked).isnan().any(dim=4).any(dim=3).any(dim=1)
            if lost[0].all() or lost[1].all():
                return None
            # A cut one stride from the end tells all: what reaches beyond it reaches the slice next to it.
            behind = int(lost[0].nonzero().max()) if lost[0].any() else 0
            first = int(lost[1].nonzero().min()) if lost[1].any() else len(lost[1])
            before = max(0, self.positions(length - step) - first)
            maps = self.network.forward_features(whole)
            later = self.network.forward_features(whole[:, :, step:])[:, :, behind:]
            earlier = self.network.forward_features(whole[:, :, : length - step])
            earlier = earlier[:, :, : earlier.shape[2] - before]
        near = 1e-3 * float(maps.abs().max()) + 1e-12
        for part, same in ((later, maps[:, :, 1 + behind :]), (earlier, maps[:, :, : earlier.shape[2]])):
            if part.shape != same.shape or float((part - same).abs().max()) > near:
                raise _unfit(self.network, "what it computes of a slice depends on its place in the study")
        return behind, before


def along_slices(network: nn.Module) -> AlongSlices:
    """Return how the maps of a network lie along the slices; found once for networks of one architecture.

    Raises
    ------
    ConfigError
        For a network that cannot be applied to a whole study so, with the reason.
    """
    if isinstance(network, SlicewiseNetwork):
        raise _unfit(network, "it encodes every slice once in any case")
    if not isinstance(network, SequenceNetwork):
        raise ConfigError(
            f"dense needs the maps of a network, and {type(network).__name__} does not say them.",
            remedy="Derive it from volrec.networks.SequenceNetwork, or use --method clips.",
            where="protocol.method",
            code="dense",
        )
    architecture = getattr(network, "architecture", None)
    if architecture is None:
        return _found(network, copy.deepcopy(network).cpu().float())
    key = json.dumps(architecture | {"num_classes": 0, "width": 0}, sort_keys=True)
    if key not in _KNOWN:
        _KNOWN[key] = _found(network, _narrow(architecture))
    return _KNOWN[key]


_KNOWN: dict[str, AlongSlices] = {}


def check_dense(network: nn.Module, *, mode: str, backend: str) -> AlongSlices:
    """Make sure that the protocol can be dense, before the first study is read; see `along_slices`.

    Parameters
    ----------
    network : nn.Module
        What is to be applied.
    mode : str
        ``sampling.train``: clips of spread slices have no place in the study.
    backend : str
        What computes it.

    Raises
    ------
    ConfigError
        Where it cannot.
    """
    problem = ""
    if mode not in ("random", "center"):
        problem = f"reads a study from end to end, and the network was trained on slices spread over it ({mode})."
    elif backend != "torch":
        problem = f"has chunks of many lengths, and {backend} needs a network made ready for each of them."
    if problem:
        raise ConfigError(
            f"dense {problem}",
            remedy="Use --method clips" + (", or --backend torch." if backend != "torch" else "."),
            where="protocol.method",
            code="dense",
        )
    return along_slices(network)


def sequences(slices: int, *, clip_length: int, stride: int) -> list[np.ndarray]:
    """Return the sequences that a study is read as: all slices, or with a stride the interleaved ones, as clips have.

    One shorter than a clip repeats its first and last slice, as clips do.
    """
    found = []
    for phase in range(min(stride, slices)):
        own = np.arange(phase, slices, stride)
        if len(own) < clip_length:
            own = own[clip_indices(len(own), clip_length=clip_length, mode="center")]
        found.append(own)
    return found


def chunk_positions(along: AlongSlices, slices: int, most: int) -> int:
    """Return how many positions are computed at a time where about `most` slices fit in memory.

    At least a quarter of what has to be computed beside them: a network that reaches far needs the memory for it.
    """
    if slices <= most:
        return along.positions(slices)
    beside = sum(along.reach(slices))
    return max(1, most // along.stride - beside, beside // 4)


def dense_maps(
    maps: Callable[[Tensor], Tensor], read: Callable[[int, int], Tensor], along: AlongSlices, slices: int, *, core: int
) -> Iterator[Tensor]:
    """Compute the maps of a sequence in chunks.

    Parameters
    ----------
    maps : callable
        Gives maps (1, F, P, h, w) of a sequence (1, C, T, H, W).
    read : callable
        Gives the input (1, C, stop - start, H, W) from one slice to before another.
    along : AlongSlices
        Of the network.
    slices : int
        T of the sequence.
    core : int
        Positions that a chunk gives; the last may give fewer. What a chunk reads is longer by the reach.

    Yields
    ------
    Tensor
        (1, F, up to `core`, h, w), one after another: together what `maps` gives of the whole.
    """
    total, stride = along.positions(slices), along.stride
    if core >= total:
        yield maps(read(0, slices))
        return
    behind, before = along.reach(slices)
    rest = slices % stride
    ends = total - slices // stride  # positions of a sequence of k strides and the rest, less k
    for first in range(0, total, core):
        last = min(total, first + core)
        begin = max(0, first - behind)
        strides = max(0, last - begin + before - ends)
        stop = min(slices, (begin + strides) * stride + rest)
        chunk = maps(read(begin * stride, stop))
        yield chunk[:, :, first - begin : last - begin]


def window_logits(
    head: Callable[[Tensor], Tensor], chunks: Iterator[Tensor], *, positions: int, most: int
) -> Iterator[Tensor]:
    """Apply a head to every run of positions of the maps, as the maps come.

    Parameters
    ----------
    head : callable
        Gives logits (B, K) of maps (B, F, positions, h, w).
    chunks : iterator of Tensor
        Maps (1, F, P, h, w), one after another.
    positions : int
        Of a clip.
    most : int
        Values of maps that are scored at once, at most.

    Yields
    ------
    Tensor
        Logits (windows, K).
    """
    kept: Tensor | None = None
    for chunk in chunks:
        kept = chunk if kept is None else torch.cat([kept, chunk], dim=2)
        windows = kept.shape[2] - positions + 1
        if windows < 1:
            continue
        together = max(1, most // (positions * kept[:, :, 0].numel()))
        for start in range(0, windows, together):
            places = range(start, min(windows, start + together))
            yield head(torch.cat([kept[:, :, place : place + positions] for place in places]))
        kept = kept[:, :, windows:]


def dense_outputs(
    backend: TorchBackend,
    along: AlongSlices,
    slices: int,
    *,
    clip_length: int,
    stride: int,
    views: list[tuple[int, ...]],
    read: Callable[[np.ndarray], Tensor],
    seen: Callable[[Tensor, tuple[int, ...]], Tensor],
    most: int,
    pre_logits: bool = False,
) -> tuple[Tensor, list[np.ndarray]]:
    """Score every place of a study where a clip fits.

    Parameters
    ----------
    backend, along
        Of the network.
    slices : int
        T of the study.
    clip_length, stride : int
        Of the clips.
    views : list of tuple of int
        Mirrored axes of each view.
    read : callable
        Gives the input (1, C, n, H, W) of slices (n,).
    seen : callable
        Gives input mirrored along axes.
    most : int
        Slices that fit in memory at a time.
    pre_logits : bool
        Give what enters the last layer in place of logits.

    Returns
    -------
    outputs : Tensor
        (windows, views, K).
    windows : list of ndarray
        The slices of the clip that fits at each.
    """
    positions = along.positions(clip_length)
    outputs, windows = [], []
    for order in sequences(slices, clip_length=clip_length, stride=stride):
        rows = []
        for axes in views:
            backwards = AXES["T"] in axes

            def part(start: int, stop: int, order: np.ndarray = order, axes: tuple[int, ...] = axes) -> Tensor:
                """Return slices of the mirrored sequence: read in their own order, then mirrored."""
                if AXES["T"] in axes:
                    start, stop = len(order) - stop, len(order) - start
                return seen(read(order[start:stop]), axes)

            core = chunk_positions(along, len(order), most)
            found = window_logits(
                lambda maps: backend.head(maps, pre_logits=pre_logits),
                dense_maps(backend.maps, part, along, len(order), core=core),
                positions=positions,
                most=most * part(0, 1).numel(),
            )
            logits = torch.cat(list(found))
            # The same place of the study stands in the same row of every view.
            rows.append(logits.flip(0) if backwards else logits)
        outputs.append(torch.stack(rows, dim=1))
        starts = along.stride * np.arange(len(rows[0]))
        windows += [order[start : start + clip_length] for start in starts]
    return torch.cat(outputs), windows


def _found(network: SequenceNetwork, narrow: SequenceNetwork) -> AlongSlices:
    """Return what was found out by a narrow copy of a network, on the processor."""
    narrow.eval()
    for module in narrow.modules():
        if isinstance(module, (nn.InstanceNorm3d, nn.GroupNorm)):
            module.register_forward_pre_hook(_refuse_whole_norm(network))
    side = [min(64, edge) for edge in narrow.smallest[1:]]
    try:
        along = AlongSlices(narrow, (side[0], side[1]))
        along.positions(FAR)
    except RuntimeError:  # a paper's network of one size
        exact = narrow.exact or narrow.smallest
        along = AlongSlices(narrow, (exact[1] or narrow.smallest[1], exact[2] or narrow.smallest[2]))
    along.find_stride()
    along.reach(along.stride)
    return along


def _narrow(architecture: dict[str, Any]) -> SequenceNetwork:
    """Return a narrow network of the same architecture; the state of random numbers stays as it was."""
    given = {key: architecture[key] for key in ("name", "num_classes", "in_channels", "faithful")}
    width = min(NARROW, float(architecture["width"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(**given, width=width, **architecture["options"])


def _refuse_whole_norm(network: SequenceNetwork) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim == 5:
            raise _unfit(network, f"its normalisation ({type(module).__name__}) reads the whole clip")

    return refuse


def _unfit(network: nn.Module, reason: str) -> ConfigError:
    name = getattr(network, "registry_name", type(network).__name__)
    return ConfigError(
        f"dense is for networks that are convolutional along slices; {name} is not: {reason}.",
        remedy="Use --method clips (protocol.method: clips).",
        where="protocol.method",
        code="dense",
    )
