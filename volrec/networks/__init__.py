"""The network zoo: one file a paper, plain ``nn.Module``s that know neither DICOM nor training.

`create`, `list_networks`, `spec` and `describe` are the entrance; torch is imported when one of them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec.networks.base import SequenceNetwork, SlicewiseNetwork
    from volrec.networks.facts import NetworkSpec, Option, TrainingStage
    from volrec.networks.registry import create, list_networks, register, spec
    from volrec.networks.stages import freeze_stages, network_stages
    from volrec.networks.summary import describe, training_bytes

__all__ = [
    "NetworkSpec",
    "Option",
    "SequenceNetwork",
    "SlicewiseNetwork",
    "TrainingStage",
    "create",
    "describe",
    "freeze_stages",
    "list_networks",
    "network_stages",
    "register",
    "spec",
    "training_bytes",
]

# Every file here has another name than the functions: importing a submodule binds its name in the package.
_HOME = {
    "NetworkSpec": "facts",
    "Option": "facts",
    "SequenceNetwork": "base",
    "SlicewiseNetwork": "base",
    "TrainingStage": "facts",
    "create": "registry",
    "describe": "summary",
    "freeze_stages": "stages",
    "list_networks": "registry",
    "network_stages": "stages",
    "register": "registry",
    "spec": "registry",
    "training_bytes": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
