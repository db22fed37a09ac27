"""volrec recognises what is in a CT or MR volume by reading its slice axis as the time axis of a video.

The public names are handed out lazily: ``import volrec`` costs nothing until one is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec import networks as networks
    from volrec.api import Benchmark as Benchmark
    from volrec.api import FusedRun as FusedRun
    from volrec.api import Plan as Plan
    from volrec.api import Run as Run
    from volrec.api import audit as audit
    from volrec.api import benchmark as benchmark
    from volrec.api import compare as compare
    from volrec.api import fuse as fuse
    from volrec.api import import_weights as import_weights
    from volrec.api import index as index
    from volrec.api import load as load
    from volrec.api import make_phantoms as make_phantoms
    from volrec.api import make_report as make_report
    from volrec.api import plan as plan
    from volrec.api import pretrain as pretrain
    from volrec.api import read_volume as read_volume
    from volrec.api import teach as teach
    from volrec.api import train as train
    from volrec.config import TrainConfig as TrainConfig
    from volrec.errors import VolrecError as VolrecError

__version__ = "0.1.0"

_HOMES = {
    "Benchmark": "volrec.api",
    "FusedRun": "volrec.api",
    "Plan": "volrec.api",
    "Run": "volrec.api",
    "audit": "volrec.api",
    "benchmark": "volrec.api",
    "compare": "volrec.api",
    "fuse": "volrec.api",
    "import_weights": "volrec.api",
    "index": "volrec.api",
    "load": "volrec.api",
    "make_phantoms": "volrec.api",
    "make_report": "volrec.api",
    "plan": "volrec.api",
    "pretrain": "volrec.api",
    "read_volume": "volrec.api",
    "teach": "volrec.api",
    "train": "volrec.api",
    "TrainConfig": "volrec.config",
    "VolrecError": "volrec.errors",
}

__all__ = ["__version__", "networks", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "networks":
        return importlib.import_module("volrec.networks")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'volrec' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
