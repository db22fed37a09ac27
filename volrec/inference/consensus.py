"""How the outputs of clips and views become one score a study; the stage of the pooling is always named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit, softmax

from volrec.errors import ConfigError

__all__ = ["CONSENSUSES", "TASKS", "check_consensus", "inverse_link", "link", "pool", "sparsity", "split_heads"]

CONSENSUSES = ("mean", "max", "sci")
TASKS = ("binary", "multiclass", "multilabel", "multihead", "regression")
TINY = np.finfo(np.float64).tiny


def link(logits: np.ndarray, task: str, *, heads: Sequence[int] = ()) -> np.ndarray:
    """Return scores (..., K) of logits (..., K): sigmoid, softmax over K (multiclass), or the values themselves.

    Multihead: the softmax over the outputs of each of the `heads`.
    """
    if task == "regression":
        return logits
    if task == "multihead":
        return np.concatenate([softmax(part, axis=-1) for part in split_heads(logits, heads)], axis=-1)
    return softmax(logits, axis=-1) if task == "multiclass" else expit(logits)


def inverse_link(scores: np.ndarray, task: str) -> np.ndarray:
    """Return logits (..., K) whose scores these are (for multiclass and each head those that sum up in exp to one)."""
    if task == "regression":
        return scores
    if task in ("multiclass", "multihead"):
        return np.log(np.maximum(scores, TINY))
    return logit(np.clip(scores, TINY, 1 - np.finfo(np.float64).epsneg))


def split_heads(values: np.ndarray, heads: Sequence[int]) -> list[np.ndarray]:
    """Return the part (..., outputs) of values (..., sum of heads) that belongs to each head of a multihead task."""
    return np.split(values, np.cumsum(heads)[:-1], axis=-1)


def sparsity(probabilities: np.ndarray) -> np.ndarray:
    """Return the sparsity concentration index (...) of distributions (..., N): 1 when one-hot, 0 when uniform.

    ``(N * max / sum - 1) / (N - 1)``, the weight that FSTCN (Sun et al., ICCV 2015) gives a score vector.
    """
    classes = probabilities.shape[-1]
    index = (classes * probabilities.max(axis=-1) / probabilities.sum(axis=-1) - 1) / (classes - 1)
    return np.clip(index, 0.0, 1.0)  # rounding may leave a uniform vector a hair below 0


def check_consensus(consensus: str, *, task: str, stage: str) -> None:
    """Raise `ConfigError` where the outputs of a task cannot be pooled so, with what to choose instead."""
    for name, value, known in (
        ("task", task, TASKS),
        ("consensus", consensus, CONSENSUSES),
        ("stage", stage, ("logits", "probabilities")),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.", where=name, code="config")
    if consensus != "sci":
        return
    if task not in ("binary", "multiclass", "multihead"):
        lack = "its values are no probabilities" if task == "regression" else "its labels do not exclude each other"
        raise ConfigError(
            f"consensus 'sci' weighs a score by how far one class stands out from the others; the task is {task}, and "
            f"{lack}.",
            remedy="Set protocol.consensus to mean or max.",
            where="protocol.consensus",
            code="consensus",
        )
    if stage != "probabilities":
        raise ConfigError(
            f"consensus 'sci' weighs probabilities, but the stage is {stage!r}.",
            remedy="Set protocol.stage to probabilities, or protocol.consensus to mean or max.",
            where="protocol.stage",
            code="consensus",
        )


def pool(
    outputs: np.ndarray, *, task: str, consensus: str, stage: str, heads: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Pool the outputs of a study: the mean over its views, then the consensus over its clips.

    The consensus ``sci`` is FSTCN's: over the views of a clip a mean weighted by `sparsity`, over clips the maximum.
    A binary score p counts as the distribution (p, 1 - p).

    Parameters
    ----------
    outputs : ndarray
        (clips, views, K) float64 logits; a view is one combination of mirrored axes.
    task : str
        ``binary``, ``multiclass``, ``multilabel``, ``multihead`` (each head as a multiclass task) or ``regression``.
    consensus : {"mean", "max", "sci"}
        Over clips. Probabilities of exclusive classes are brought back to a sum of one after ``max`` and ``sci``.
    stage : {"logits", "probabilities"}
        What is pooled: before or after sigmoid or softmax.
    heads : sequence of int
        Outputs of each head of a multihead task.

    Returns
    -------
    scores, logits : ndarray
        (K,) float64 each; one follows from the other by `link`.

    Raises
    ------
    ConfigError
        As `check_consensus`.
    """
    check_consensus(consensus, task=task, stage=stage)
    values = np.asarray(outputs, dtype=np.float64)
    if task == "multihead":
        own = [pool(part, task="multiclass", consensus=consensus, stage=stage) for part in split_heads(values, heads)]
        scores, logits = (np.concatenate(parts) for parts in zip(*own, strict=True))
        return scores, logits
    if stage == "probabilities":
        values = link(values, task)
    if consensus == "sci":
        pooled = _weighted_by_sparsity(np.concatenate([values, 1 - values], axis=-1) if task == "binary" else values)
        pooled = pooled[:1] if task == "binary" else pooled
        return pooled, inverse_link(pooled, task)
    views = values.mean(axis=1)
    pooled = views.mean(axis=0) if consensus == "mean" else views.max(axis=0)
    if task == "regression":
        return pooled, pooled
    if stage == "logits":
        return link(pooled, task), pooled
    if task == "multiclass":
        pooled = pooled / pooled.sum()
    return pooled, inverse_link(pooled, task)


def _weighted_by_sparsity(probabilities: np.ndarray) -> np.ndarray:
    """Return one distribution (N,) of those of clips and views (clips, views, N)."""
    weights = sparsity(probabilities)
    # Views that are all uniform carry no weight; their plain mean is uniform too.
    weights[weights.sum(axis=1) <= TINY] = 1.0
    clips = np.einsum("cv,cvn->cn", weights, probabilities) / weights.sum(axis=1, keepdims=True)
    strongest = clips.max(axis=0)
    return strongest / strongest.sum()
