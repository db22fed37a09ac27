"""Sequence to clips to scores to study: validation, testing and prediction all score through `Predictor`.

`score_cohort` and `predict_folder` apply a run to studies and give the score table.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec.inference.folders import predict_folder, score_cohort, score_studies
    from volrec.inference.members import LoadedMember, load_members
    from volrec.inference.predictor import Ensemble, Predictor, StudyScore
    from volrec.inference.tables import score_columns, score_table

_HOME = {
    "Ensemble": "predictor",
    "LoadedMember": "members",
    "Predictor": "predictor",
    "StudyScore": "predictor",
    "load_members": "members",
    "predict_folder": "folders",
    "score_cohort": "folders",
    "score_columns": "tables",
    "score_studies": "folders",
    "score_table": "tables",
}

__all__ = [
    "Ensemble",
    "LoadedMember",
    "Predictor",
    "StudyScore",
    "load_members",
    "predict_folder",
    "score_cohort",
    "score_columns",
    "score_studies",
    "score_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
