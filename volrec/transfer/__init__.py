"""Learning without labels: slice teachers, and the transfer of what a frozen 2D teacher knows to a 3D student.

`pretrain` trains a 2D network on the slices of a folder; `transfer` teaches a 3D network to tell whether slices and a
clip belong together (T3D, Diba et al. 2017). Both are trainings of their own kind, with a run folder each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec.transfer.prepare import PretrainRun, TransferRun
    from volrec.transfer.pretraining import pretrain
    from volrec.transfer.student import transfer
    from volrec.transfer.teacher import Teacher, load_teacher

__all__ = ["PretrainRun", "Teacher", "TransferRun", "load_teacher", "pretrain", "transfer"]

_HOME = {
    "PretrainRun": "prepare",
    "Teacher": "teacher",
    "TransferRun": "prepare",
    "load_teacher": "teacher",
    "pretrain": "pretraining",
    "transfer": "student",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
