"""How far the members of an ensemble agree, and how sure they are together: three numbers a study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from volrec.inference.consensus import split_heads

__all__ = ["UNCERTAINTY", "entropy", "uncertainty"]

UNCERTAINTY = ("spread", "entropy", "disagreement")
"""The columns, in the order of the table."""


def entropy(scores: np.ndarray, task: str, *, heads: Sequence[int] = ()) -> np.ndarray:
    """Return the entropy, in bits, of every decision that scores (..., K) hold.

    Returns
    -------
    ndarray
        (..., D): one decision (binary, multiclass), one a label (multilabel), or one a head (multihead).
    """
    if task in ("binary", "multilabel"):
        return _bits(scores) + _bits(1 - scores)
    parts = split_heads(scores, heads) if task == "multihead" else [scores]
    return np.stack([_bits(part).sum(axis=-1) for part in parts], axis=-1)


def uncertainty(
    members: np.ndarray,
    *,
    task: str,
    names: Sequence[str],
    votes: Sequence[float] | np.ndarray | None = None,
    scores: np.ndarray | None = None,
    heads: Sequence[int] = (),
) -> dict[str, float]:
    """Return what the members' scores of a study say of its uncertainty.

    Parameters
    ----------
    members : ndarray
        (M, K) scores of each member.
    task : str
        As in the cohort.
    names : sequence of str
        Of the K outputs.
    votes : sequence of float, optional
        (M,) weight of each member, with a sum of 1; None: all alike.
    scores : ndarray, optional
        (K,) of the study; None: the members' mean.
    heads : sequence of int
        Outputs of each head of a multihead task.

    Returns
    -------
    dict
        ``spread``: standard deviation over the members (of all M of them, not M - 1), of the output where it is
        largest; of quantities, which have units of their own, ``spread_NAME`` each where there are several. 0 says
        that all members agree, 0.5 that half of them say 0 and half 1. Several members only.
        ``entropy``: of the study's score, in bits, of the most uncertain decision; 0 is certain, 1 a coin's throw
        between two classes. Classification only.
        ``disagreement``: that part of the entropy of the mean score which comes from members that contradict each
        other, in bits: the mutual information of decision and member, the entropy of the mean less the mean entropy
        ([1]_). Classification by several members.

    References
    ----------
    .. [1] S. Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning", ICML 2018, equation 6.
    """
    members = np.asarray(members, dtype=np.float64)
    weights = np.full(len(members), 1 / len(members)) if votes is None else np.asarray(votes, dtype=np.float64)
    mean = weights @ members
    found: dict[str, float] = {}
    if len(members) > 1:
        spread = np.sqrt(weights @ (members - mean) ** 2)
        if task == "regression" and len(names) > 1:
            found |= {f"spread_{name}": float(value) for name, value in zip(names, spread, strict=True)}
        else:
            found["spread"] = float(spread.max())
    if task == "regression":
        return found
    found["entropy"] = float(entropy(mean if scores is None else scores, task, heads=heads).max())
    if len(members) > 1:
        apart = entropy(mean, task, heads=heads) - weights @ entropy(members, task, heads=heads)
        found["disagreement"] = float(max(0.0, apart.max()))  # rounding may leave it a hair below 0
    return found


def _bits(probabilities: np.ndarray) -> np.ndarray:
    """Return -p log2 p, 0 where p is 0 (or a hair outside [0, 1])."""
    p = np.clip(probabilities, 0.0, 1.0)
    return np.asarray(-p * np.log2(np.where(p > 0, p, 1.0)) + 0.0)  # no -0.0 of a certain score
