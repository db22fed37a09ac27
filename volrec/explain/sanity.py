"""Does a map show what the network learned? The same method on copies of the network whose weights mean nothing.

J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt, B. Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018: a
map that looks the same when the weights are random shows edges of the image, not reasons of the network. As there,
weights are randomised from the last layer downwards, and maps are compared by their ranks and by structural similarity
(Z. Wang et al., 2004).

A layer is randomised by putting the values of each of its tensors in random order: it keeps their sizes and loses what
they mean. Batch normalisation above the input takes its mean and variance from the study's first clip meanwhile, so
that signals neither die nor explode, which would change any map for a trivial reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from volrec.data.entries import StoredVolume
from volrec.explain.methods import METHODS
from volrec.explain.passes import Tick, at_rest, resting
from volrec.explain.study import EvidenceMap, clips_of, explain_study, inputs_of
from volrec.inference.members import LoadedMember

__all__ = [
    "HARDLY",
    "MAPS",
    "Sanity",
    "Similarity",
    "randomised",
    "rank_correlation",
    "sanity_check",
    "structural_similarity",
]

HARDLY = 0.5
"""Rank correlation with the map of each of several random networks from which on a map is said to hardly change."""
COPIES = 5
"""Networks with all weights random; a single one may resemble by chance: where only a lesion differs from slice to
slice, covering it moves any output, and it is a coin that says which way."""
SHARES = (("the last layer", 0.0, 1), ("half of the layers, from the last", 0.5, 1), ("all layers", 1.0, COPIES))
MAPS = sum(copies for *_, copies in SHARES)
"""Maps that are made beside the one that is checked."""
WINDOW = 7
"""Side of the window of structural similarity, in voxels."""


@dataclass(frozen=True)
class Similarity:
    """How much two maps have in common.

    Attributes
    ----------
    randomised : str
        Which layers had random weights.
    rank_correlation : float, optional
        Spearman's, over voxels that either map marks (over slices where a method has one value a slice); the mean over
        the copies. 0 where the other map is flat; None where the map itself is.
    structural_similarity : float, optional
        Of both maps divided by their largest size, over the same voxels.
    lowest : float, optional
        The lowest rank correlation of a copy.
    copies : int
        Networks.
    """

    randomised: str
    rank_correlation: float | None
    structural_similarity: float | None
    lowest: float | None
    copies: int


@dataclass(frozen=True)
class Sanity:
    """What is left of a map where the weights mean nothing.

    Attributes
    ----------
    method : str
        Of the map.
    similarities : tuple of Similarity
        From the last layer alone to all layers.
    """

    method: str
    similarities: tuple[Similarity, ...]

    @property
    def rank_correlation(self) -> float | None:
        """That of all layers."""
        return self.similarities[-1].rank_correlation

    @property
    def changes(self) -> bool | None:
        """Whether some copy with all weights random has another map; None where there was nothing to compare."""
        found = self.similarities[-1].lowest
        return None if found is None else found < HARDLY

    @property
    def warning(self) -> str:
        """What has to be said of the map; empty where it changes as it should."""
        if self.changes is None:
            return "the map is the same everywhere: there is nothing that random weights could change."
        if self.changes:
            return ""
        return (
            f"the map hardly changes when the weights are random (rank correlation {self.rank_correlation:.2f}, and "
            f"{HARDLY} or more with each of {self.similarities[-1].copies} random networks): here {self.method} shows "
            "the image rather than what the network learned."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the facts in JSON types."""
        return {
            "changes": self.changes,
            "threshold": HARDLY,
            "similarities": [asdict(one) for one in self.similarities],
        }


def sanity_check(
    members: LoadedMember | Sequence[LoadedMember],
    volume: StoredVolume,
    evidence: EvidenceMap,
    *,
    seed: int = 0,
    tick: Tick = resting,
) -> Sanity:
    """Make the map again with random weights, and compare.

    Parameters
    ----------
    members : LoadedMember or sequence of LoadedMember
        Whose map it is.
    volume : StoredVolume
        The study.
    evidence : EvidenceMap
        Its map, as `volrec.explain.explain_study` gave it.
    seed : int
        Of the random orders.
    tick : callable
        Told the share of the work that is done.
    """
    members = [members] if isinstance(members, LoadedMember) else list(members)
    done, found = 0, []
    for name, share, copies in SHARES:
        pairs = []
        for number in range(copies):
            others = [_without_meaning(member, volume, share, seed=seed + number) for member in members]

            def told(part: float, done: int = done) -> None:
                tick((done + part) / MAPS)

            other = explain_study(
                others,
                volume,
                method=evidence.method,
                output=evidence.output,
                options=evidence.options,
                tick=told,
            )
            pairs.append(_compared(evidence, other))
            done += 1
        ranks, structures = zip(*pairs, strict=True)
        known = [rank for rank in ranks if rank is not None]
        lowest = min(known) if known else None
        found.append(Similarity(name, _mean(ranks), _mean(structures), lowest, copies))
    return Sanity(evidence.method, tuple(found))


def randomised(network: nn.Module, clip: Tensor, *, share: float = 1.0, seed: int = 0) -> nn.Module:
    """Return a copy of a network whose last layers have lost what they learned.

    Parameters
    ----------
    network : nn.Module
        Is left as it is.
    clip : Tensor
        (B, C, T', H, W): the order in which layers read it is their order, and batch normalisation takes its statistics
        from it.
    share : float
        Of the layers with weights, from the last; 0 is the last one alone.
    seed : int
        Of the random order of the values.
    """
    other = copy.deepcopy(network)
    layers = _layers(other, clip)
    count = max(1, round(share * len(layers)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers[len(layers) - count :]:
            for parameter in layer.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    with _own_statistics(other):
        _run(other, clip)
    return other


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return Spearman's rank correlation of two maps over what either marks; None where `first` is flat there.

    Voxels at which both are exactly 0 are left out: the air around a patient agrees in any two maps.
    """
    from scipy.stats import rankdata

    marked = (first != 0) | (second != 0)
    own, other = first[marked], second[marked]
    if not own.size or np.ptp(own) == 0:
        return None
    if np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(own), rankdata(other))[0, 1])


def structural_similarity(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the mean structural similarity of two maps, each divided by its largest size, over what either marks.

    With a uniform window of at most `WINDOW` voxels along each axis, and the constants of the paper (0.01 and 0.03,
    squared, of the largest size). None where `first` is 0 everywhere.
    """
    from scipy.ndimage import uniform_filter

    if not first.any():
        return None
    own, other = (one.astype(np.float64) / max(float(np.abs(one).max()), 1e-300) for one in (first, second))
    window = [min(WINDOW, size - (size + 1) % 2) for size in own.shape]

    def local(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, window, mode="reflect")

    mean, other_mean = local(own), local(other)
    variance, other_variance = local(own**2) - mean**2, local(other**2) - other_mean**2
    shared = local(own * other) - mean * other_mean
    light, contrast = 0.01**2, 0.03**2
    found = (2 * mean * other_mean + light) * (2 * shared + contrast)
    found /= (mean**2 + other_mean**2 + light) * (variance + other_variance + contrast)
    return float(found[(first != 0) | (second != 0)].mean())


def _compared(evidence: EvidenceMap, other: EvidenceMap) -> tuple[float | None, float | None]:
    if METHODS[evidence.method].per_slice == "mean":  # one value a slice
        known = np.isfinite(evidence.per_slice)
        first, second = evidence.per_slice[known], other.per_slice[known]
    else:
        first, second = evidence.array, other.array
    return rank_correlation(first, second), structural_similarity(first, second)


def _without_meaning(member: LoadedMember, volume: StoredVolume, share: float, *, seed: int) -> LoadedMember:
    predictor = copy.copy(member.predictor)
    stored = predictor.complete(volume)
    clip = inputs_of(predictor, stored, clips_of(predictor, stored)[:1])
    predictor.network = randomised(member.network, clip, share=share, seed=seed).eval()
    return replace(member, predictor=predictor)


def _layers(network: nn.Module, clip: Tensor) -> list[nn.Module]:
    """Return the modules with weights of their own in the order in which they read a clip, then those not called."""
    owners = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
    seen: dict[nn.Module, None] = {}
    hooks = [owner.register_forward_pre_hook(lambda module, given: seen.setdefault(module)) for owner in owners]
    try:
        _run(network, clip)
    finally:
        for hook in hooks:
            hook.remove()
    return [*seen, *(owner for owner in owners if owner not in seen)]


@contextmanager
def _own_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch normalisation at rest take mean and variance from what it reads within the block, and keep them."""

    def take(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].detach().transpose(0, 1).flatten(1).float()
        if values.shape[1] > 1 and module.running_mean is not None:
            module.running_mean.copy_(values.mean(1))  # type: ignore[operator]
            module.running_var.copy_(values.var(1, correction=0))  # type: ignore[operator]

    hooks = [module.register_forward_pre_hook(take) for module in network.modules() if isinstance(module, _BatchNorm)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(network: nn.Module, clip: Tensor) -> None:
    with at_rest(network), torch.no_grad():
        network(clip)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
