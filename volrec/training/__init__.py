"""Training: Lightning modules, losses and callbacks around a plain network.

Validation goes through `volrec.inference` and `volrec.evaluation`, so training and testing score alike.
`train` runs the whole pipeline; `fit_member` trains one network on one split.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec.training.distributed import is_main_process
    from volrec.training.fit import fit_member
    from volrec.training.losses import StudyLoss
    from volrec.training.member import MemberResult, Subject
    from volrec.training.pipeline import train

__all__ = ["MemberResult", "StudyLoss", "Subject", "fit_member", "is_main_process", "train"]

_HOME = {
    "MemberResult": "member",
    "Subject": "member",
    "StudyLoss": "losses",
    "fit_member": "fit",
    "is_main_process": "distributed",
    "train": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
