"""The score table: one row a study, one column an output, in names that a person understands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.data.targets import head_classes

if TYPE_CHECKING:
    import pandas as pd

    from volrec.data.labels import Case
    from volrec.inference.predictor import StudyScore

__all__ = ["logit_columns", "prediction_table", "score_columns", "score_table", "target_values"]

TRAILING = ("clips", "slices", "warning")
"""Columns that come last, of those that there are."""


def score_columns(task: str, *, classes: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Return the score columns in the order of the outputs.

    ``score_`` and the positive class (binary), each class (multiclass), each ``target=class`` (multihead), or each
    target (multilabel, regression).
    """
    if task == "binary":
        return [f"score_{classes[-1]}"]
    return [f"score_{name}" for name in (classes if task in ("multiclass", "multihead") else targets)]


def logit_columns(task: str, *, classes: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Return the logit columns beside `score_columns`; none for regression, whose scores are the network's values."""
    if task == "regression":
        return []
    return ["logit_" + name.removeprefix("score_") for name in score_columns(task, classes=classes, targets=targets)]


def target_values(case: Case, *, task: str, classes: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """Return the target columns of a study as in its labels: class names, 0 and 1, or numbers; None where unknown."""
    values = np.asarray(case.target, dtype=np.float64).reshape(-1)
    if task in {"binary", "multiclass"}:
        return {targets[0]: None if np.isnan(values[0]) else classes[int(values[0])]}
    if task == "multihead":
        heads = head_classes(task, classes, targets)
        parts = zip(heads.items(), values, strict=True)
        return {name: None if np.isnan(value) else own[int(value)] for (name, own), value in parts}
    plain = [None if np.isnan(value) else int(value) if task == "multilabel" else float(value) for value in values]
    return dict(zip(targets, plain, strict=True))


def score_table(
    rows: Iterable[tuple[Mapping[str, Any], StudyScore]],
    *,
    task: str,
    classes: Sequence[str],
    targets: Sequence[str],
    leading: Sequence[str] = ("study", "patient"),
) -> pd.DataFrame:
    """Build the table.

    Logits stand beside the scores, so that runs can be fused before sigmoid or softmax. Those of a study pooled at the
    stage probabilities, or averaged over members, follow from its score: they are the logarithm of the probability
    (multiclass, multihead), or the log odds.

    Parameters
    ----------
    rows : iterable of (mapping, StudyScore)
        The mapping holds the columns before and after the scores: ``study``, ``patient``, targets, ``warning`` …
    task, classes, targets
        As in the cohort.
    leading : sequence of str
        Columns that come first; those of the mappings that are not named here follow them, then scores, logits and
        ``clips``.

    Returns
    -------
    DataFrame
        A row a study, in the order given.
    """
    import pandas as pd

    names = score_columns(task, classes=classes, targets=targets)
    before = logit_columns(task, classes=classes, targets=targets)
    found = [
        {
            **facts,
            **dict(zip(names, map(float, score.scores), strict=True)),
            **dict(zip(before, map(float, score.logits if before else ()), strict=True)),
            "clips": score.clips,
        }
        for facts, score in rows
    ]
    others = [key for row in found for key in row if key not in {*leading, *names, *before, *TRAILING}]
    columns = [*leading, *dict.fromkeys(others), *names, *before]
    columns += [name for name in TRAILING if name == "clips" or any(name in row for row in found)]
    return pd.DataFrame(found, columns=columns)


def prediction_table(
    rows: Iterable[Mapping[str, Any]], *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> pd.DataFrame:
    """Build the table of a prediction.

    Parameters
    ----------
    rows : iterable of mapping
        Each with ``study, patient, scores`` (K,), ``logits`` (K,), the columns of `volrec.inference.uncertainty`,
        ``members, clips, slices`` and ``warning``.
    task, classes, targets
        As in the cohort.

    Returns
    -------
    DataFrame
        A row a study, in the order given: ``study, patient, score_…, logit_…``, what the decision of the cards gives
        (``called``, ``calibrated_…``: `volrec.inference.decision`), uncertainty, ``members`` (networks
        that were averaged), ``clips`` (that a network read of it; added up over runs), ``slices`` (of the study) and
        ``warning`` (where it differs from the training data; empty where it does not).
    """
    import pandas as pd

    names = score_columns(task, classes=classes, targets=targets)
    before = logit_columns(task, classes=classes, targets=targets)
    last = ("members", *TRAILING)
    found = []
    for row in rows:
        scores = dict(zip(names, map(float, row["scores"]), strict=True))
        logits = dict(zip(before, map(float, row["logits"] if before else ()), strict=True))
        rest = {key: value for key, value in row.items() if key not in ("scores", "logits")}
        found.append({"study": rest.pop("study"), "patient": rest.pop("patient"), **scores, **logits, **rest})
    columns = list(found[0]) if found else ["study", "patient", *names, *before, *last]
    return pd.DataFrame(found, columns=columns)
