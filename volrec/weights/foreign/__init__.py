"""Weights that others trained: read from their files, renamed, checked key by key, written as volrec's.

`import_weights` is the entrance; `FORMATS` holds what is known, one entry a format.
"""

from __future__ import annotations

from volrec.weights.foreign.importer import FORMATS, Imported, import_weights

__all__ = ["FORMATS", "Imported", "import_weights"]
