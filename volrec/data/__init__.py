"""Which files, which labels, which split: the index of a folder, its labels, the store of decoded volumes, datasets.

Names are handed out lazily: ``volrec inspect`` needs the index only and starts without torch. The function that
indexes a folder is ``volrec.data.index.index`` (``volrec.index`` for users): here its name would hide its module.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "StudyIndex": "index",
    "StudyRecord": "index",
}

__all__ = ["StudyIndex", "StudyRecord"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
