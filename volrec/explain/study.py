"""From the maps of clips to the map of a study: the clips of the protocol, put together on the stored slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volrec.data.entries import StoredVolume
from volrec.errors import ConfigError, DataError
from volrec.explain.methods import find_method
from volrec.explain.passes import Opposite, Tick, at_rest, empty_clip, fitting, resting, values_of
from volrec.inference.members import Contract, LoadedMember
from volrec.inference.predictor import Ensemble, Predictor, StudyScore
from volrec.inference.tables import score_columns

__all__ = ["EvidenceMap", "clips_of", "empty_values", "explain_study", "inputs_of", "output_names", "summarise_slices"]


@dataclass(frozen=True, eq=False)
class EvidenceMap:
    """Where in a study a network found what speaks for an output.

    Attributes
    ----------
    array : ndarray
        (T, H, W) float32 on the grid of the stored volume; 0 in slices that are in no clip.
    affine : ndarray
        (4, 4) float64: (t, h, w, 1) of that grid to LPS mm.
    per_slice : ndarray
        (T,) float32, by the rule of the method; NaN for slices in no clip.
    method : str
        Name of the method.
    output : str
        Class, label or measurement that is explained.
    signed : bool
        Whether values below 0 speak against it.
    scores : mapping of str to float
        What the study got, as `volrec predict` gives it: probabilities, or values in the targets' own units.
    options : mapping
        Of the method.
    clips : int
        Clips of a member.
    members : tuple of str
        Whose maps were averaged.
    completeness : mapping of str to float, optional
        Of methods whose values add up: ``sum`` of a clip's map and ``difference`` of the outputs for the clip and for
        an empty one, both as means over clips and members; ``largest_gap``, the largest distance of the two in any
        clip; ``relative_gap``, that over the largest difference, or over the sum of the sizes of all values where that
        is larger.
    """

    array: np.ndarray
    affine: np.ndarray
    per_slice: np.ndarray
    method: str
    output: str
    signed: bool
    scores: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    clips: int = 0
    members: tuple[str, ...] = ()
    completeness: Mapping[str, float] | None = None


def explain_study(
    members: LoadedMember | Sequence[LoadedMember],
    volume: StoredVolume,
    *,
    method: str = "gradcam",
    output: str | int | None = None,
    options: Mapping[str, Any] | None = None,
    tick: Tick = resting,
) -> EvidenceMap:
    """Map what speaks for an output of a network, or of several, over a whole study.

    The clips are those of the protocol, without mirrored views. A stored slice has the mean over the positions at which
    clips show it; members are averaged with equal weight. Networks that read motion are explained by all their channels
    together: what a displacement field says stands at the slice where the field begins.

    Parameters
    ----------
    members : LoadedMember or sequence of LoadedMember
        Of one run.
    volume : StoredVolume
        Of the study, as the store or `volrec.data.store.preprocess_volume` gives it; of its slices only those of the
        clips at hand are read.
    method : str
        One of `volrec.explain.METHODS`.
    output : str or int, optional
        What is explained: a class, a label or a target, or its number. None takes the positive class (binary), the
        class or label with the highest score, or the first target (regression).
    options : mapping, optional
        Of the method.
    tick : callable
        Told the share of the work that is done.

    Raises
    ------
    ConfigError
        An unknown method, option or output; a package is missing; the network does not suit the method.
    DataError
        The network gives values that are no numbers.
    """
    members = [members] if isinstance(members, LoadedMember) else list(members)
    chosen = find_method(method)
    settings, function = chosen.checked(options), chosen.function()
    ensemble = Ensemble([member.predictor for member in members])
    contract = members[0].contract
    stored = members[0].predictor.complete(volume)
    score = ensemble.score(stored)
    name, index, sign = _chosen_output(output, score, contract)
    total = np.zeros(stored.shape, dtype=np.float32)
    checks: list[tuple[float, float, float]] = []
    covered = np.zeros(stored.shape[0], dtype=bool)
    for number, member in enumerate(members):
        predictor = member.predictor
        network = Opposite(predictor.network) if sign < 0 else predictor.network
        clips = clips_of(predictor, stored)
        empty = empty_values(predictor, stored, padding=contract.preprocess.padding)
        sums = np.zeros(stored.shape, dtype=np.float32)
        shows = np.zeros(stored.shape[0])
        done = 0
        for part in _portions(clips, predictor, stored):
            x = inputs_of(predictor, stored, part)
            # Clips of the parts before, then of this one: the share of the member's clips, and of all members.
            first, count = done, len(part)
            told = _scaled(tick, (number + first / len(clips)) / len(members), count / len(clips) / len(members))
            known: dict[str, Any] = {"empty": empty, "slices": [torch.from_numpy(clip) for clip in part]}
            found = function(network, x, index, **settings, **{key: known[key] for key in chosen.reads}, tick=told)
            if chosen.complete:
                checks += _completeness(network, x, empty, index, found)
            for clip, one in zip(part, found.cpu().numpy(), strict=True):
                np.add.at(sums, clip, one)
                np.add.at(shows, clip, 1)
            done += count
        seen = shows > 0
        sums[seen] /= shows[seen, None, None].astype(np.float32)
        total += sums / np.float32(len(members))
        covered |= seen
    if not np.isfinite(total).all():
        raise DataError(
            f"the map of {method} holds values that are no numbers (NaN or infinite).",
            remedy="Look at the study's intensities, or use another method.",
            code="not-finite",
        )
    tick(1.0)
    return EvidenceMap(
        total,
        np.asarray(stored.affine, dtype=np.float64),
        summarise_slices(total, covered, chosen.per_slice),
        chosen.name,
        name,
        chosen.signed,
        scores=named_scores(score, contract),
        options=settings,
        clips=len(clips),
        members=tuple(member.name for member in members),
        completeness=_summary(checks) if checks else None,
    )


def clips_of(predictor: Predictor, volume: StoredVolume) -> list[np.ndarray]:
    """Return the slices (T',) of every clip of the protocol."""
    return predictor._clips(volume)


def inputs_of(predictor: Predictor, volume: StoredVolume, clips: Sequence[np.ndarray]) -> Tensor:
    """Return network input (B, C, T', H, W) of clips (T',) of a study."""
    return predictor._input(volume, clips)


def empty_values(predictor: Predictor, volume: StoredVolume, *, padding: str = "minimum") -> Tensor:
    """Return what an empty canvas looks like to the network, (C,): the padding of the study, and no motion.

    Parameters
    ----------
    predictor : Predictor
        Whose input it is.
    volume : StoredVolume
        The study: its minimum, or 0, fills its canvas.
    padding : {"minimum", "edge", "zero"}
        Of the preprocessing.
    """
    quantiles = torch.as_tensor(np.asarray(volume.quantiles, dtype=np.float32))[None]
    value = 0.0 if padding == "zero" else float(quantiles[0, 0])
    found = torch.zeros(predictor.input.channels, device=predictor.device)
    appearance = predictor.input.appearance
    if appearance:
        shown = predictor.input.intensity(torch.full((1, 1, 1, 1, 1), value), quantiles)
        found[:appearance] = shown.reshape(-1).to(found)
    return found


def output_names(contract: Contract) -> tuple[str, ...]:
    """Return what can be explained: classes (binary: negative and positive), labels or targets."""
    return contract.targets if contract.task in ("multilabel", "regression") else contract.classes


def named_scores(score: StudyScore, contract: Contract) -> dict[str, float]:
    """Return the scores of a study by the names of the outputs."""
    names = score_columns(contract.task, classes=contract.classes, targets=contract.targets)
    return {name.removeprefix("score_"): float(value) for name, value in zip(names, score.scores, strict=True)}


def summarise_slices(array: np.ndarray, covered: np.ndarray, rule: str) -> np.ndarray:
    """Return one value a slice (T,) of a map (T, H, W): ``sum``, ``max`` or ``mean``; NaN where not `covered` (T,)."""
    flat = array.reshape(len(array), -1)
    values = flat.sum(axis=1) if rule == "sum" else flat.max(axis=1) if rule == "max" else flat.mean(axis=1)
    return np.where(covered, values, np.nan).astype(np.float32)


def _chosen_output(output: str | int | None, score: StudyScore, contract: Contract) -> tuple[str, int, int]:
    """Return name and number of the output, and -1 where it is what speaks against it that is asked for."""
    names = output_names(contract)
    if output is None:
        number = 1 if contract.task == "binary" else 0 if contract.task == "regression" else int(score.scores.argmax())
    elif str(output) in names and isinstance(output, str):
        number = names.index(output)
    elif str(output).isdigit() and int(output) < len(names):
        number = int(output)
    else:
        raise ConfigError(
            f"there is no output '{output}'.",
            remedy=f"It is one of {', '.join(names)}.",
            where="output",
            code="output",
        )
    if contract.task == "binary":
        return names[number], 0, 1 if number == 1 else -1
    return names[number], number, 1


def _portions(clips: list[np.ndarray], predictor: Predictor, volume: StoredVolume) -> Iterator[list[np.ndarray]]:
    """Give as many clips at a time as are read together; what a method does to them it portions itself."""
    _, height, width = volume.shape
    size = fitting(torch.empty((1, predictor.input.channels, len(clips[0]), height, width), device="meta"))
    for start in range(0, len(clips), size):
        yield clips[start : start + size]


def _completeness(
    network: nn.Module, x: Tensor, empty: Tensor, output: int, found: Tensor
) -> Iterator[tuple[float, float, float]]:
    """Give for each clip the sum of its map, the difference of outputs that it should be, and the sum of its sizes."""
    with at_rest(network), torch.no_grad():
        for clip, one in zip(x, found, strict=True):
            shown, nothing = values_of(network, torch.stack([clip, empty_clip(clip[None], empty)[0]]), output)
            yield float(one.double().sum()), float(shown.double() - nothing.double()), float(one.double().abs().sum())


def _summary(checks: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    sums, differences, moved = np.array(checks).T
    gap, largest = float(np.abs(sums - differences).max()), float(np.abs(differences).max())
    return {
        "sum": float(sums.mean()),
        "difference": float(differences.mean()),
        "largest_gap": gap,
        # Against what the voxels move in all: where what speaks for and against cancels, the difference is near zero.
        "relative_gap": gap / max(largest, float(moved.max()), 1e-12),
    }


def _scaled(tick: Tick, start: float, share: float) -> Tick:
    return lambda done: tick(start + share * done)
