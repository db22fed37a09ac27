"""Tables, plots and pages for people: what inspect says of a folder, and the one-file report of a run.

`write_report` renders a run, `write_weights_report` one of pretraining or transfer; `contact_sheet` draws the studies
of an index.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volrec.report.contact_sheet import contact_sheet
    from volrec.report.html import write_report
    from volrec.report.weights import write_weights_report

__all__ = ["contact_sheet", "write_report", "write_weights_report"]

_HOME = {"contact_sheet": "contact_sheet", "write_report": "html", "write_weights_report": "weights"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    # A function and the file that holds it share a name, and an import binds the file here.
    globals()[name] = value
    return value
