"""Where a network looked: maps in the study's own geometry, and curves along its slices.

`explain_study` maps a study, `to_study_geometry` brings the map to where the study is; `METHODS` are what there is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec.explain.geometry import Grid, to_study_geometry
    from volrec.explain.methods import METHODS, Method, find_method, list_methods
    from volrec.explain.study import EvidenceMap, explain_study
    from volrec.explain.writing import Explanation

_HOME = {
    "METHODS": "methods",
    "EvidenceMap": "study",
    "Explanation": "writing",
    "Grid": "geometry",
    "Method": "methods",
    "explain_study": "study",
    "find_method": "methods",
    "list_methods": "methods",
    "to_study_geometry": "geometry",
}

__all__ = [
    "METHODS",
    "EvidenceMap",
    "Explanation",
    "Grid",
    "Method",
    "explain_study",
    "find_method",
    "list_methods",
    "to_study_geometry",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
