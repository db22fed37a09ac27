"""Curves along slices: what networks of some kinds say of each slice by themselves, as numbers and as maps.

score alone
    Of a network that encodes slices one by one: its output for a slice without the others.
attention
    Of temporal attention (L. Yao et al., "Describing Videos by Exploiting Temporal Structure", ICCV 2015) and of
    segments that are weighed by their features: the weights of the slices, which sum to one over a clip. They say where
    the network read, not what it made of it.
contribution, words
    Of VLAD (R. Girdhar et al., "ActionVLAD", CVPR 2017): the share of each word in a slice, and what each slice adds to
    the output. Without the lengths that words and vector are divided by, the output is linear in the sums over places;
    with these lengths as the clip has them it is a sum of one number a place, exactly the output less its bias.

`slice_scores`, `attention` and `vlad` are methods (`volrec.explain.methods`); `curves_of` gives the curves that stand
in ``slices.csv`` beside any map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volrec.data.entries import StoredVolume
from volrec.errors import ConfigError
from volrec.explain.passes import Opposite, Tick, at_rest, check_output, fitting, resting
from volrec.inference.members import Contract, LoadedMember
from volrec.networks import SlicewiseNetwork
from volrec.networks.layers.consensus import SegmentConsensus, attention_weights
from volrec.networks.layers.vlad import VladPooling, unit_length

__all__ = ["WORDS", "Curve", "attention", "curves_of", "slice_scores", "vlad", "vlad_contributions"]

WORDS = 6
"""Words that have a curve: those that add or take most."""
_MEANINGS = {
    "alone": "the output for this slice without the others, before sigmoid or softmax",
    "attention": "share of the network's attention; the slices of a clip share 1",
    "contribution": "what the slice adds to the output, before sigmoid or softmax",
}


@dataclass(frozen=True, eq=False)
class Curve:
    """One number a slice.

    Attributes
    ----------
    name : str
        Column of ``slices.csv``.
    group : str
        Curves of a group have the same unit and are drawn together.
    meaning : str
        What a value says.
    values : ndarray
        (T,) float32; NaN for slices in no clip.
    """

    name: str
    group: str
    meaning: str
    values: np.ndarray


def slice_scores(network: nn.Module, x: Tensor, output: int, *, tick: Tick = resting) -> Tensor:
    """Return the output for every slice alone, the same all over its plane.

    Parameters
    ----------
    network : nn.Module
        One that encodes slices one by one.
    x : Tensor
        (B, C, T', H, W), as the network reads it.
    output : int
        Which output, from 0.
    tick : callable
        Told the share of the clips that is done.

    Returns
    -------
    Tensor
        (B, T', H, W) float32, before sigmoid or softmax.

    Raises
    ------
    ConfigError
        A network of another kind, or no such output.
    """
    bare, sign = _bare(network)
    if not isinstance(bare, SlicewiseNetwork):
        raise _unfit(bare, "does not encode slices one by one, so that no slice has a score of its own")
    check_output(bare, output)
    return _spread(_by_parts(bare, x, tick, lambda clips: sign * _alone(bare, clips)[:, :, output]), x)


def attention(network: nn.Module, x: Tensor, output: int, *, tick: Tick = resting) -> Tensor:
    """Return the weight of every slice, the same all over its plane; arguments and result as of `slice_scores`.

    The weights are those of all outputs; of several steps their mean.
    """
    bare, _ = _bare(network)
    if not _attends(bare):
        raise _unfit(bare, "has no attention over slices")
    check_output(bare, output)
    return _spread(_by_parts(bare, x, tick, lambda clips: _attention(bare, clips).mean(dim=1)), x)


def vlad(network: nn.Module, x: Tensor, output: int, *, word: int | None = None, tick: Tick = resting) -> Tensor:
    """Return what every place adds to the output, or the share of a word in it.

    Parameters
    ----------
    word : int, optional
        Whose share is mapped, from 0 to 1; None maps contributions.
    network, x, output, tick
        As of `slice_scores`; the network has words.

    Returns
    -------
    Tensor
        (B, T', H, W) float32, brought to the clip's grid by trilinear interpolation. Contributions are spread over the
        voxels of a place, so that those of a clip add up to the output less its bias, before sigmoid or softmax.
    """
    bare, sign = _bare(network)
    if not isinstance(getattr(bare, "vlad", None), VladPooling):
        raise _unfit(bare, "puts nothing into words")
    check_output(bare, output)
    count = len(bare.vlad.centres)
    if word is not None and (isinstance(word, bool) or not isinstance(word, int) or not 0 <= word < count):
        raise ConfigError(
            f"there is no word {word!r}.",
            remedy=f"They are counted from 0 to {count - 1}.",
            where="word",
            code="explain-option",
        )

    def mapped(clips: Tensor) -> Tensor:
        contributions, shares = vlad_contributions(bare, clips, output)
        small = sign * contributions if word is None else shares[:, :, word]
        large = F.interpolate(small[:, None].float(), size=x.shape[2:], mode="trilinear", align_corners=False)[:, 0]
        return large * (small[0].numel() / large[0].numel()) if word is None else large

    return _by_parts(bare, x, tick, mapped)


def vlad_contributions(network: Any, x: Tensor, output: int) -> tuple[Tensor, Tensor]:
    """Return what each place of the maps of a network with words adds to an output, and the words' shares in it.

    Returns
    -------
    contributions : Tensor
        (B, T', h, w); the sum of a clip is the output less its bias.
    shares : Tensor
        (B, T', K, h, w).
    """
    maps = network.block_maps(x)
    places = unit_length(maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2).transpose(1, 2), 2)
    pooling = network.vlad
    shares, sums = pooling.shares(places), pooling(places)
    # The logit is linear in the sums (B, K, D) once the lengths that they are divided by stand still.
    lengths = _length(sums)
    whole = _length(unit_length(sums, -1).flatten(1))[:, :, None]
    direction = network.classifier.weight[output].to(sums).view(1, *sums.shape[1:]) / (lengths * whole)
    centred = places @ direction.transpose(1, 2) - (pooling.centres.to(sums) * direction).sum(-1)[:, None]
    size = maps.shape[2:]
    by_word = shares.transpose(1, 2).unflatten(2, size).transpose(1, 2)
    return (shares * centred).sum(-1).unflatten(1, size), by_word


def curves_of(members: Sequence[LoadedMember], volume: StoredVolume, *, output: str) -> tuple[Curve, ...]:
    """Return the curves along the stored slices of a study that the networks of a run have; of 3D networks none.

    A slice has the mean over the positions at which clips show it, and over members. Words are a member's own: they
    have curves where one member speaks.

    Parameters
    ----------
    members : sequence of LoadedMember
        Of one run.
    volume : StoredVolume
        The study.
    output : str
        Class, label or target that is explained.
    """
    from volrec.explain.study import clips_of, inputs_of

    if not _has_curves(members[0].network):
        return ()
    number, sign = _place(output, members[0].contract)
    totals: dict[str, np.ndarray] = {}
    for member in members:
        predictor = member.predictor
        stored = predictor.complete(volume)
        sums: dict[str, np.ndarray] = {}
        shows = np.zeros(stored.shape[0])
        for clip in clips_of(predictor, stored):
            with at_rest(member.network), torch.no_grad():
                found = dict(_curves(member.network, inputs_of(predictor, stored, [clip]), number, sign))
            for name, own in found.items():
                np.add.at(sums.setdefault(name, np.zeros(len(shows))), clip, own.cpu().double().numpy())
            np.add.at(shows, clip, 1)
        with np.errstate(invalid="ignore"):
            for name, values in sums.items():
                totals[name] = totals.get(name, 0) + values / shows / len(members)
    return tuple(_told(totals, words=len(members) == 1))


def _told(totals: dict[str, np.ndarray], *, words: bool) -> Iterator[Curve]:
    """Give curves of what was found by name; of words the `WORDS` that differ most from slice to slice."""
    for name, values in totals.items():
        if not name.startswith("word_"):
            group = "attention" if name.startswith("attention") else name
            yield Curve(name, group, _MEANINGS[group], values.astype(np.float32))
    own = {name: values for name, values in totals.items() if name.startswith("word_")}
    if words:
        varied = sorted(own, key=lambda name: -float(np.nanstd(own[name])))[:WORDS]
        for name in sorted(varied, key=lambda name: int(name.removeprefix("word_"))):
            meaning = f"share of word {name.removeprefix('word_')} in the slice; all words share 1"
            yield Curve(name, "words", meaning, own[name].astype(np.float32))


def _curves(network: Any, x: Tensor, output: int, sign: int) -> Iterator[tuple[str, Tensor]]:
    """Give name and values (T',) of the curves of one clip (1, C, T', H, W)."""
    slices = x.shape[2]
    if isinstance(network, SlicewiseNetwork):
        yield "alone", sign * _alone(network, x)[0, :, output]
    if _attends(network):
        steps = _attention(network, x)[0]
        yield "attention", steps.mean(dim=0)
        if len(steps) > 1:
            for number, weights in enumerate(steps, 1):
                yield f"attention_step_{number}", weights
    if isinstance(getattr(network, "vlad", None), VladPooling):
        contributions, shares = vlad_contributions(network, x, output)
        yield "contribution", sign * _along(contributions[0].sum((1, 2)), slices) * (contributions.shape[1] / slices)
        for number, share in enumerate(shares[0].mean((2, 3)).T):
            yield f"word_{number}", _along(share, slices)


def _has_curves(network: nn.Module) -> bool:
    has_words = isinstance(getattr(network, "vlad", None), VladPooling)
    return isinstance(network, SlicewiseNetwork) or _attends(network) or has_words


def _alone(network: SlicewiseNetwork, x: Tensor) -> Tensor:
    """Return logits (B, T', K) of each slice alone."""
    batch, _, slices = x.shape[:3]
    features = network.encode_slices(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, slices))
    return network.slice_logits(features)


def _attends(network: Any) -> bool:
    consensus = getattr(network, "consensus", None)
    if isinstance(consensus, SegmentConsensus):
        # As in evaluation mode, in which networks are explained.
        return consensus.kind == "attention" and consensus.test == "same"
    return callable(getattr(network, "step_weights", None))


def _attention(network: Any, x: Tensor) -> Tensor:
    """Return weights (B, steps, T'), which sum to one over the slices."""
    if not isinstance(getattr(network, "consensus", None), SegmentConsensus):
        return network.attention(x)
    features = network.forward_features(x)
    weights = attention_weights(features, network.consensus.direction)
    length = x.shape[2] // weights.shape[1]
    return weights.repeat_interleave(length, dim=1)[:, None] / length


def _along(values: Tensor, slices: int) -> Tensor:
    """Return values (T'',) brought to (T',) slices, linearly between middles."""
    if len(values) == slices:
        return values
    return F.interpolate(values[None, None], size=slices, mode="linear", align_corners=False)[0, 0]


def _length(x: Tensor) -> Tensor:
    """Return what `unit_length` divides by: infinity for what is too short to have a direction."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(unit_length(x, -1).abs().amax(-1, keepdim=True) > 0, length, torch.inf)


def _bare(network: nn.Module) -> tuple[Any, int]:
    """Return a network as it is, and -1 where what speaks against its output is asked for."""
    return (network.network, -1) if isinstance(network, Opposite) else (network, 1)


def _by_parts(network: nn.Module, x: Tensor, tick: Tick, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what is computed of clips, as many at a time as fit, of a network at rest and without gradients."""
    found: list[Tensor] = []
    with at_rest(network), torch.no_grad():
        for clips in x.split(fitting(x)):
            found.append(compute(clips))
            tick(sum(map(len, found)) / len(x))
    return torch.cat(found)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """Return values (B, T') of the slices of clips as maps (B, T', H, W)."""
    return values.float()[:, :, None, None].expand(-1, -1, *x.shape[3:]).contiguous()


def _place(output: str, contract: Contract) -> tuple[int, int]:
    """Return the number of an output by name, and -1 where it is the negative class of two."""
    from volrec.explain.study import output_names

    number = output_names(contract).index(output)
    return (0, 1 if number == 1 else -1) if contract.task == "binary" else (number, 1)


def _unfit(network: nn.Module, why: str) -> ConfigError:
    return ConfigError(
        f"{type(network).__name__} {why}.",
        remedy="Use occlusion, which says of any network what each slice is worth to it.",
        where="method",
        code="explain-network",
    )
