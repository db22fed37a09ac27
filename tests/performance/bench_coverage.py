"""How often 95 % intervals hold the truth, in draws of studies whose AUC is known.

    python tests/performance/bench_coverage.py
    python tests/performance/bench_coverage.py --draws 200 --only auc
    python tests/performance/bench_coverage.py --only bootstrap

Scores are binormal: N(0, 1) without the finding, N(d, 1) with it, which has an AUC of Phi(d / sqrt 2). Patients with
several studies share half of the variance of their scores and, mostly, the label. Printed for each row: how many
per cent of the intervals held the true value, and how many missed it above (the interval lies below it) and below.
What 1,000 draws print for an exact 95 % interval lies between 93.6 and 96.4 in 95 of 100 rows. True values of what
has no formula (average precision, F1, Brier score, calibration error) come from 500,000 studies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, ndtri

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from volrec.evaluation import weighted
from volrec.evaluation.delong import auc_difference, auc_interval
from volrec.evaluation.resampling import Scored, resampled, with_intervals

SHARED = 0.5
SAME_LABEL = 0.7
SHOWN = (
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "sensitivity_at_90_specificity",
    "specificity_at_90_sensitivity",
    "brier",
    "ece",
    "loss",
)


class Cohort(NamedTuple):
    """Labels (N,), scores (N, K) and patients (N,)."""

    truth: np.ndarray
    scores: np.ndarray
    patients: np.ndarray


def cohort(
    rng: np.random.Generator, studies: int, share: float, areas: tuple[float, ...], *, each: int = 1, fixed: bool = True
) -> Cohort:
    """Draw studies with `share` of findings, exactly so where they are fixed and each patient has one study.

    Parameters
    ----------
    rng : numpy.random.Generator
        Of the draw.
    studies : int
        In all.
    share : float
        With the finding.
    areas : tuple of float
        True AUC of each of K scores; half of the noise of a study is common to them.
    each : int
        Studies a patient.
    fixed : bool
        At least two studies with the finding, and the rounded share of them, instead of a random number.
    """
    patients = np.arange(studies) // each
    if each == 1 and fixed:
        truth = np.zeros(studies)
        truth[: max(2, round(studies * share))] = 1
    else:
        common = (rng.random(patients[-1] + 1) < share)[patients]
        truth = np.where(rng.random(studies) < SAME_LABEL, common, rng.random(studies) < share).astype(float)

    def noise() -> np.ndarray:
        alone = rng.normal(size=studies)
        if each == 1:
            return alone
        return np.sqrt(SHARED) * rng.normal(size=patients[-1] + 1)[patients] + np.sqrt(1 - SHARED) * alone

    both = noise()
    scores = [np.sqrt(0.5) * both + np.sqrt(0.5) * noise() + np.sqrt(2) * ndtri(area) * truth for area in areas]
    return Cohort(truth, np.stack(scores, axis=1), patients)


def probabilities(scores: np.ndarray, area: float, share: float) -> np.ndarray:
    """Turn binormal scores into probabilities that are somewhat too timid."""
    gap = np.sqrt(2) * ndtri(area)
    return expit(0.8 * (gap * scores - gap**2 / 2 + np.log(share / (1 - share))))


def auc_rows(draws: int, seed: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Give for each setting what one AUC's intervals did: (D,) of -1 (below the truth), 0 (held it), 1 (above)."""
    rng = np.random.default_rng(seed)
    for studies, each in ((20, 1), (50, 1), (100, 1), (200, 1), (60, 3), (150, 3), (300, 3)):
        for share in (0.1, 0.3, 0.5):
            for area in (0.6, 0.8, 0.9, 0.98):
                held = []
                for _ in range(draws):
                    drawn = cohort(rng, studies, share, (area,), each=each)
                    found = auc_interval(drawn.truth, drawn.scores[:, 0], patients=drawn.patients)
                    held.append(place(found, area))
                yield setting(studies, each, share, f"{area:.2f}"), "AUC", np.array(held)


def difference_rows(draws: int, seed: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Give the same for the difference of two AUCs on the same studies."""
    rng = np.random.default_rng(seed)
    for studies, each in ((20, 1), (50, 1), (100, 1), (200, 1), (60, 3), (150, 3), (300, 3)):
        for share in (0.1, 0.3, 0.5):
            for areas in ((0.6, 0.7), (0.8, 0.8), (0.9, 0.95), (0.8, 0.95)):
                held = []
                for _ in range(draws):
                    drawn = cohort(rng, studies, share, areas, each=each)
                    found = auc_difference(drawn.truth, *drawn.scores.T, patients=drawn.patients)
                    held.append(place(found, areas[1] - areas[0]))
                yield setting(studies, each, share, "{:.2f} {:.2f}".format(*areas)), "difference", np.array(held)


def bootstrap_rows(draws: int, seed: int, resamples: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Give the same for all other metrics of a binary task."""
    rng = np.random.default_rng(seed)
    for studies, each, share, area in (
        (30, 1, 0.4, 0.8),
        (60, 1, 0.3, 0.85),
        (100, 1, 0.2, 0.9),
        (200, 1, 0.3, 0.85),
        (150, 3, 0.3, 0.85),
        (300, 3, 0.3, 0.85),
    ):
        large = cohort(rng, 500_000, share, (area,), fixed=False)
        scores = probabilities(large.scores[:, 0], area, share)
        true = weighted.binary(large.truth, scores, np.ones((1, len(scores))))
        held: dict[str, list[float]] = {name: [] for name in SHOWN}
        for _ in range(draws):
            drawn = cohort(rng, studies, share, (area,), each=each, fixed=False)
            scores = probabilities(drawn.scores, area, share)
            scored = Scored("binary", drawn.truth[:, None], scores, drawn.patients)
            point, _ = scored.values(np.ones((1, studies)))
            found = with_intervals(point, resampled(scored, resamples, rng)[0], "", scored)
            for name in SHOWN:
                held[name].append(place(found[name], float(true[name][0])))
        for name, values in held.items():
            yield setting(studies, each, share, f"{area:.2f}"), name.replace("_", " "), np.array(values)


def place(found: dict[str, Any], true: float) -> float:
    """Say where an interval lies: -1 below the truth, 0 around it, 1 above it, NaN where there is none."""
    if found["low"] is None:
        return float("nan")
    return float(found["low"] > true + 1e-12) - float(found["high"] < true - 1e-12)


def setting(studies: int, each: int, share: float, area: str) -> str:
    return f"{studies // each:4d} patients x {each}, {100 * share:.0f} % with finding, AUC {area}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="draws of a cohort for each row")
    parser.add_argument("--resamples", type=int, default=400, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("auc", "difference", "bootstrap"), help="one of the three tables")
    options = parser.parse_args()
    tables = {
        "auc": lambda: auc_rows(options.draws, options.seed),
        "difference": lambda: difference_rows(options.draws, options.seed),
        "bootstrap": lambda: bootstrap_rows(options.draws, options.seed, options.resamples),
    }
    for name, rows in tables.items():
        if options.only not in (None, name):
            continue
        inside, seen = 0, 0
        for text, what, held in rows():
            known = held[np.isfinite(held)]
            cover = 100 * float(np.mean(known == 0))
            inside, seen = inside + (93 <= cover <= 97), seen + 1
            missed = f"missed above {100 * np.mean(known < 0):4.1f}, below {100 * np.mean(known > 0):4.1f}"
            none = f", none in {len(held) - len(known)}" if len(known) < len(held) else ""
            print(f"{text:58s} {what:30s} {cover:5.1f} %   {missed}{none}", flush=True)
        print(f"{name}: {inside} of {seen} rows between 93 and 97 %\n", flush=True)


if __name__ == "__main__":
    main()
