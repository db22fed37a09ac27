"""What the student learned, measured on patients that it has never seen: one line for each kind of pair.

Every place of a held-out study is asked against its own slices, and against slices that do not belong to it: another
patient's, the same patient's elsewhere, and its own while the clip is shuffled. Beside the student stands what the
mean, the spread and the lit area of both sides tell by themselves: the easy way out, had the two sides not been
augmented independently.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from volrec.data.datasets import own_slices
from volrec.errors import StoreError
from volrec.evaluation import weighted
from volrec.progress import track
from volrec.training.callbacks import Validation
from volrec.training.distributed import any_rank, gather, rank, world_size
from volrec.training.interrupts import StopFlag, StopTraining
from volrec.training.seeds import step_seed
from volrec.transfer.features import TeacherFeatures
from volrec.transfer.matching import MatchingNetwork, shuffled_order
from volrec.transfer.places import clip_at, elsewhere
from volrec.transfer.prepare import Prepared
from volrec.transforms.batch import BatchTransform

if TYPE_CHECKING:
    from volrec.data.entries import StoredVolume

__all__ = ["HeldOut", "MatchingReport", "bootstrap_pairs", "intensity_statistics"]

KINDS = ("patient", "place", "order")
PLACES = 4
"""Places of a held-out study."""
STRANGERS = 8
"""Slices of other patients that each clip is asked against."""
RESAMPLES = 1000
_DRAW, _ORDER, _STRANGERS = range(3)


@dataclass(frozen=True)
class MatchingReport:
    """Accuracy of the kept weights on held-out patients.

    Attributes
    ----------
    table : DataFrame
        A row a kind of pair: number of pairs, accuracy, AUC with 95 % intervals over patients, AUC of plain intensity
        statistics.
    facts : dict
        The same for ``metrics.json``.
    """

    table: pd.DataFrame
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Row:
    """One place of one held-out study."""

    study: int
    here: np.ndarray
    other: np.ndarray | None
    clip: np.ndarray
    shuffled: np.ndarray | None
    slice_statistics: np.ndarray
    other_statistics: np.ndarray | None
    clip_statistics: np.ndarray


class HeldOut:
    """Places of the held-out studies, drawn once: every epoch is measured on the same pairs.

    Parameters
    ----------
    made : Prepared
        Studies, store, configuration.
    features : TeacherFeatures
        Of the held-out studies at least.
    transform : BatchTransform
        The student's normalisation and augmentation.
    negatives : mapping, optional
        Kinds that are taught, with their weights; None: those of the configuration.
    """

    def __init__(
        self,
        made: Prepared,
        features: TeacherFeatures,
        transform: BatchTransform,
        *,
        negatives: Mapping[str, float] | None = None,
    ) -> None:
        self.made = made
        self.features = features
        self.transform = transform
        self.seed = made.config.trainer.seed
        self.negatives = {
            kind: weight for kind, weight in (negatives or made.config.matching.negatives).items() if weight
        }

    def validate(self, network: nn.Module, *, stop: StopFlag) -> Validation:
        """Return the mean AUC of matching pairs against each kind that does not match, and the loss."""
        rows = self._rows(network, stop=stop, statistics=False)
        if not rows:
            return Validation(float("nan"), float("nan"))
        pairs = self._pairs(network, rows)
        truth = np.ones(len(pairs["match"][0]))
        found, losses = [], []
        for kind in self.negatives:
            logits = pairs[kind][0]
            if not len(logits):
                continue
            scores = np.concatenate([pairs["match"][0], logits])
            labels = np.concatenate([truth, np.zeros(len(logits))])
            found.append(_metrics(labels, scores, np.ones((1, len(labels))))["auc"][0])
            losses.append(float(np.logaddexp(0, logits).mean()))
        match_loss = float(np.logaddexp(0, -pairs["match"][0]).mean())
        if not found:
            return Validation(float("nan"), match_loss)
        return Validation(float(np.mean(found)), (match_loss + float(np.mean(losses))) / 2)

    def report(self, network: MatchingNetwork) -> MatchingReport:
        """Measure every kind of pair, also those that were not taught, with intervals over patients."""
        network.eval()
        rows = self._rows(network, stop=StopFlag(), statistics=True, alone=True)
        if not rows:
            return MatchingReport(pd.DataFrame(), {})
        pairs = self._pairs(network, rows)
        patients = np.array([self.made.held[row.study].patient for row in rows])
        lines, facts = [], {}
        match, match_owner, match_distance = pairs["match"]
        for kind in KINDS:
            logits, owners, distance = pairs[kind]
            if not len(logits):
                continue
            labels = np.concatenate([np.ones(len(match)), np.zeros(len(logits))])
            groups = patients[np.concatenate([match_owner, owners])]
            student = bootstrap_pairs(labels, np.concatenate([match, logits]), groups, seed=self.seed)
            line: dict[str, Any] = {"negatives": kind, "taught": kind in self.negatives, "pairs": len(logits)}
            line |= {f"{name}{suffix}": values[place] for name, values in student.items()
                     for place, suffix in enumerate(("", "_low", "_high"))}  # fmt: skip
            # A clip and its shuffled self have the same statistics: there is nothing to tell.
            plain = 0.5
            if kind != "order":
                scores = -np.concatenate([match_distance, distance])
                plain = float(_metrics(labels, scores, np.ones((1, len(labels))))["auc"][0])
            line["auc_of_statistics"] = plain
            lines.append(line)
            facts[kind] = {key: value for key, value in line.items() if key != "negatives"}
        value = float(np.mean([line["auc"] for line in lines if line["taught"]] or [float("nan")]))
        whole = {"metric": "matching", "value": value, "matching": facts, "patients": len(set(patients))}
        return MatchingReport(pd.DataFrame(lines), whole | {"matches": len(match)})

    @torch.no_grad()
    def _rows(self, network: nn.Module, *, stop: StopFlag, statistics: bool, alone: bool = False) -> list[_Row]:
        found: list[_Row] = []
        first, step = (0, 1) if alone else (rank(), world_size())
        mine = range(first, len(self.made.held), step)
        for index in track(mine, "measuring what was learned", len(mine)) if alone else mine:
            if stop.requested:
                break
            case = self.made.held[index]
            entry = self.made.entries[case.series.uid]
            try:
                volume = self.made.store.open(entry)
                kept = self.features.open(entry, case.study)
                found += self._of_study(network, index, volume, kept, statistics=statistics)
            except StoreError:  # reported where it was met first
                continue
        if alone:
            return found
        if any_rank(stop.requested):
            raise StopTraining
        return sorted(gather(found), key=lambda row: row.study)

    def _of_study(
        self, network: Any, index: int, volume: StoredVolume, kept: np.ndarray, *, statistics: bool
    ) -> list[_Row]:
        sampling = self.made.config.sampling
        device = next(network.parameters()).device
        first, last = own_slices(volume)
        span = (sampling.clip_length - 1) * sampling.stride + 1
        slack = max(0, last - first - span)
        starts = np.unique(np.rint(np.linspace(first, first + slack, min(PLACES, slack + 1))).astype(np.int64))
        if slack == 0 and last - first < span:
            starts = np.array([first + (last - first - span) // 2])
        rng = np.random.default_rng([self.seed, _DRAW, zlib.crc32(self.made.held[index].study.encode())])
        here = [clip_at(int(start), first, last, sampling) for start in starts]
        others = [elsewhere(int(start), first, last, sampling) for start in starts]
        away = [clip_at(int(rng.choice(found)), first, last, sampling) if found.size else None for found in others]
        clips = torch.stack([torch.from_numpy(volume.read(slices))[None] for slices in here]).to(device)
        quantiles = torch.from_numpy(volume.quantiles)[None].repeat(len(clips), 1).to(device)
        generator = torch.Generator().manual_seed(step_seed(self.seed, _DRAW, index))
        images = self.transform({"image": clips, "quantiles": quantiles}, generator=generator)["image"]
        seen = network.head.student_norm(network(images)).float().cpu().numpy()
        shuffled = None
        if sampling.clip_length > 2:
            orders = shuffled_order(
                len(images), images.shape[2], torch.Generator().manual_seed(step_seed(self.seed, _ORDER, index))
            ).to(device)
            mixed = images.gather(2, orders[:, None, :, None, None].expand_as(images))
            shuffled = network.head.student_norm(network(mixed)).float().cpu().numpy()
        views = rng.integers(len(kept), size=(len(here), 2))
        shown: dict[int, Tensor] = {}

        def slices_of(view: int) -> Tensor:
            """All slices of one view of this study, augmented once."""
            if view not in shown:
                shown[view] = self.features.view.images(volume, self.made.held[index].study, view, device)
            return shown[view]

        nothing = np.zeros(0)
        rows = []
        for number, (slices, elsewhere_) in enumerate(zip(here, away, strict=True)):
            view, other_view = (int(value) for value in views[number])
            facts: tuple[np.ndarray, np.ndarray | None, np.ndarray] = nothing, None, nothing
            if statistics:
                own = slices_of(view)[slices]
                far = None if elsewhere_ is None else intensity_statistics(slices_of(other_view)[elsewhere_])
                facts = intensity_statistics(own), far, intensity_statistics(images[number].movedim(1, 0))
            rows.append(
                _Row(
                    index,
                    kept[view, slices].astype(np.float32).mean(axis=0),
                    None if elsewhere_ is None else kept[other_view, elsewhere_].astype(np.float32).mean(axis=0),
                    seen[number],
                    None if shuffled is None else shuffled[number],
                    *facts,
                )
            )
        return rows

    @torch.no_grad()
    def _pairs(self, network: Any, rows: list[_Row]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return for each kind logits, rows of the clips, and distances of plain statistics."""
        head, device = network.head, next(network.parameters()).device
        norm = head.teacher_norm
        here = norm(torch.from_numpy(np.stack([row.here for row in rows])).to(device))
        clips = torch.from_numpy(np.stack([row.clip for row in rows])).to(device)
        everyone = np.arange(len(rows))
        distance = _distances(rows)

        def ask(slices: Tensor, seen: Tensor) -> np.ndarray:
            return head(slices, seen).float().cpu().numpy().astype(np.float64)

        pairs = {"match": (ask(here, clips), everyone, distance(everyone, everyone))}
        patients = np.array([zlib.crc32(self.made.held[row.study].patient.encode()) for row in rows])
        rng = np.random.default_rng([self.seed, _STRANGERS])
        chosen = [rng.permutation(np.flatnonzero(patients != patients[row]))[:STRANGERS] for row in everyone]
        owners = np.repeat(everyone, [len(found) for found in chosen])
        strangers = np.concatenate(chosen) if len(owners) else owners
        pairs["patient"] = (ask(here[strangers], clips[owners]), owners, distance(strangers, owners))
        with_other = np.array([row for row in everyone if rows[row].other is not None], dtype=np.int64)
        empty = np.empty(0), np.empty(0, dtype=np.int64), np.empty(0)
        pairs["place"] = pairs["order"] = empty
        if len(with_other):
            other = norm(torch.from_numpy(np.array([rows[row].other for row in with_other])).to(device))
            pairs["place"] = (ask(other, clips[with_other]), with_other, distance(with_other, with_other, other=True))
        if rows[0].shuffled is not None:
            mixed = torch.from_numpy(np.array([row.shuffled for row in rows])).to(device)
            pairs["order"] = (ask(here, mixed), everyone, np.zeros(len(rows)))
        return pairs


def intensity_statistics(images: Tensor) -> np.ndarray:
    """Return what needs no look at the content: mean, deviation and lit area (3,) of slices (T, C, H, W)."""
    flat = images.float().movedim(1, 0).flatten(1)
    middle = (flat.amax(dim=1, keepdim=True) + flat.amin(dim=1, keepdim=True)) / 2
    lit = (flat > middle).float().mean(dim=1)
    found = torch.stack([flat.mean(dim=1), flat.std(dim=1), lit]).mean(dim=1)
    return found.cpu().numpy().astype(np.float64)


def bootstrap_pairs(
    labels: np.ndarray, logits: np.ndarray, patients: np.ndarray, *, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Return accuracy and AUC of pairs with 95 % intervals: patients are drawn again, each with all pairs of its clips.

    Parameters
    ----------
    labels : ndarray
        ``(N,)`` 1 for a match, 0 for none.
    logits : ndarray
        ``(N,)`` answers; above 0 is a match.
    patients : ndarray
        ``(N,)`` patient of the clip.
    seed : int
        Of the draws.

    Returns
    -------
    dict
        ``accuracy`` (mean of the accuracies on matches and on the others), ``auc``: value, lower and upper end.
    """
    names, owner = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES).astype(np.float64)
    weights = np.concatenate([np.ones((1, len(labels))), counts[:, owner]])
    found = _metrics(labels, logits, weights)
    result = {}
    for name, key in (("accuracy", "balanced_accuracy"), ("auc", "auc")):
        values = found[key]
        low, high = np.nanpercentile(values[1:], [2.5, 97.5]) if len(names) > 1 else (np.nan, np.nan)
        result[name] = (float(values[0]), float(low), float(high))
    return result


def _metrics(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    probabilities = functional.sigmoid(torch.from_numpy(np.asarray(logits, dtype=np.float64))).numpy()
    return weighted.binary(labels, probabilities, weights)


def _distances(rows: list[_Row]) -> Any:
    """Return a function of rows (slices, clips) to how far their plain statistics lie apart, each side standardised."""
    if not rows[0].slice_statistics.size:
        return lambda slices, clips, other=False: np.zeros(len(clips))
    near, clip = (np.stack([getattr(row, name) for row in rows]) for name in ("slice_statistics", "clip_statistics"))
    far = np.stack([row.slice_statistics if row.other_statistics is None else row.other_statistics for row in rows])
    sides = [(side - near.mean(axis=0)) / (near.std(axis=0) + 1e-9) for side in (near, far)]
    clip = (clip - clip.mean(axis=0)) / (clip.std(axis=0) + 1e-9)

    def distance(slices: np.ndarray, clips: np.ndarray, other: bool = False) -> np.ndarray:
        return np.abs(sides[int(other)][slices] - clip[clips]).sum(axis=1)

    return distance
