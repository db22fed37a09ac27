"""Where a network looked: maps in the study's own geometry, and curves along its slices.

`explain_study` maps a study, `to_study_geometry` brings the map to where the study is; `METHODS` are what there is.
`curves_of` gives what a network says of each slice; `sanity_check` whether a map hangs on what was learned; `hit_rates`
how often maps of phantoms are strongest on the planted lesion.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec.explain.curves import Curve, curves_of
    from volrec.explain.geometry import Grid, to_study_geometry
    from volrec.explain.hits import HitRate, Lesion, hit_rates, lesion_of
    from volrec.explain.methods import METHODS, Method, find_method, list_methods
    from volrec.explain.sanity import Sanity, sanity_check
    from volrec.explain.study import EvidenceMap, explain_study
    from volrec.explain.writing import Explanation

_HOME = {
    "METHODS": "methods",
    "Curve": "curves",
    "EvidenceMap": "study",
    "Explanation": "writing",
    "Grid": "geometry",
    "HitRate": "hits",
    "Lesion": "hits",
    "Method": "methods",
    "Sanity": "sanity",
    "curves_of": "curves",
    "explain_study": "study",
    "find_method": "methods",
    "hit_rates": "hits",
    "lesion_of": "hits",
    "list_methods": "methods",
    "sanity_check": "sanity",
    "to_study_geometry": "geometry",
}

__all__ = [
    "METHODS",
    "Curve",
    "EvidenceMap",
    "Explanation",
    "Grid",
    "HitRate",
    "Lesion",
    "Method",
    "Sanity",
    "curves_of",
    "explain_study",
    "find_method",
    "hit_rates",
    "lesion_of",
    "list_methods",
    "sanity_check",
    "to_study_geometry",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
