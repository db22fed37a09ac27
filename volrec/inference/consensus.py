"""How the outputs of clips and views become one score a study; the stage of the pooling is always named."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit, softmax

from volrec.errors import ConfigError

__all__ = ["TASKS", "inverse_link", "link", "pool"]

TASKS = ("binary", "multiclass", "multilabel", "regression")
TINY = np.finfo(np.float64).tiny


def link(logits: np.ndarray, task: str) -> np.ndarray:
    """Return scores (..., K) of logits (..., K): sigmoid, softmax over K (multiclass), or the values themselves."""
    if task == "regression":
        return logits
    return softmax(logits, axis=-1) if task == "multiclass" else expit(logits)


def inverse_link(scores: np.ndarray, task: str) -> np.ndarray:
    """Return logits (..., K) whose scores these are (for multiclass those that sum up in exp to one)."""
    if task == "regression":
        return scores
    if task == "multiclass":
        return np.log(np.maximum(scores, TINY))
    return logit(np.clip(scores, TINY, 1 - np.finfo(np.float64).epsneg))


def pool(outputs: np.ndarray, *, task: str, consensus: str, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Pool the outputs of a study: the mean over its views, then the consensus over its clips.

    Parameters
    ----------
    outputs : ndarray
        (clips, views, K) float64 logits; a view is one combination of mirrored axes.
    task : str
        ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
    consensus : {"mean", "max"}
        Over clips. Probabilities of several classes are brought back to a sum of one after ``max``.
    stage : {"logits", "probabilities"}
        What is pooled: before or after sigmoid or softmax.

    Returns
    -------
    scores, logits : ndarray
        (K,) float64 each; one follows from the other by `link`.
    """
    for name, value, known in (
        ("task", task, TASKS),
        ("consensus", consensus, ("mean", "max")),
        ("stage", stage, ("logits", "probabilities")),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.", where=name, code="config")
    values = np.asarray(outputs, dtype=np.float64)
    if stage == "probabilities":
        values = link(values, task)
    views = values.mean(axis=1)
    pooled = views.mean(axis=0) if consensus == "mean" else views.max(axis=0)
    if task == "regression":
        return pooled, pooled
    if stage == "logits":
        return link(pooled, task), pooled
    if task == "multiclass":
        pooled = pooled / pooled.sum()
    return pooled, inverse_link(pooled, task)
