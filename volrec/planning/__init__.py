"""Fingerprint and plan: the configuration that the data themselves suggest, with one line of reason per choice.

As nnU-Net does for segmentation (Isensee et al., Nature Methods 2021): facts of the data set and the machine are
collected first, fixed rules turn them into settings, and the result is a file that a person can read and edit.
"""

from __future__ import annotations

from volrec.planning.facts import Fingerprint, Spread, fingerprint
from volrec.planning.plan import PlanResult, make_plan
from volrec.planning.source import Inherited, inherit
from volrec.planning.streams import outline_stages, reads_segments

__all__ = [
    "Fingerprint",
    "Inherited",
    "PlanResult",
    "Spread",
    "fingerprint",
    "inherit",
    "make_plan",
    "outline_stages",
    "reads_segments",
]
