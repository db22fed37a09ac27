"""Whether weights have seen the videos that they are tested on.

The three splits of UCF101 and HMDB51 share most of their videos: a network trained on split 1 has seen nearly all test
videos of split 2, and 99.6 % is what such a test gives (hbilen/dynamic-image-nets#9 on GitHub).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volrec.benchmarks.sets import Split
from volrec.errors import RunError

__all__ = ["SplitCheck", "check_split", "trained_on"]

# Whatever of these is tested, the training list is the same one.
_ONE_TRAINING_SIDE = frozenset({"kinetics", "sports1m"})
_HELD_OUT = frozenset({"val", "test"})


@dataclass(frozen=True)
class SplitCheck:
    """What is known of weights and a split.

    Attributes
    ----------
    state : {"same", "other-set", "unknown", "leak"}
        Trained on this split; on other sets alone; nothing is known; on another split of this set.
    note : str
        A sentence for the report; empty for ``same`` and ``other-set``.
    """

    state: str
    note: str = ""


def trained_on(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the splits that weights were trained on, in turn: each ``split_id`` and ``split_digest``.

    Parameters
    ----------
    facts : mapping
        Of a score set, or the card of weights. Both keep ``trained_on``; the card of one training may have
        ``split_id`` and ``split_digest`` instead (of scores these say what was tested).
    """
    found = facts.get("trained_on")
    if found is None:
        # Scores say how many videos were evaluated, weights do not.
        found = [facts] if facts.get("split_id") and "evaluated" not in facts else []
    several = [found] if isinstance(found, Mapping) else found
    return [{key: own.get(key) for key in ("split_id", "split_digest")} for own in several if own.get("split_id")]


def check_split(facts: Mapping[str, Any], split: Split, *, allow_leak: bool = False) -> SplitCheck:
    """Make sure that weights were not trained on another split of the set that they are tested on.

    Parameters
    ----------
    facts : mapping
        As for `trained_on`.
    split : Split
        What is tested.
    allow_leak : bool
        Test all the same, and have the number marked.

    Returns
    -------
    SplitCheck
        Its note goes beside the number.

    Raises
    ------
    RunError
        A leak that is not allowed.
    """
    known = trained_on(facts)
    if not known:
        return SplitCheck("unknown", f"what the weights were trained on is not known: {split.id} may be part of it")
    tested = split.id.partition("/")[0]
    same_set = [own for own in known if str(own["split_id"]).partition("/")[0] == tested]
    other = [own for own in same_set if not _same_side(own, split)]
    if not other:
        return SplitCheck("same" if same_set else "other-set")
    name, digest = other[0]["split_id"], other[0]["split_digest"]
    lists = " by other lists" if name == split.id else ""
    problem = (
        f"the weights were trained on {name}{lists} and would be tested on {split.id}: test videos of one are training"
    )
    problem += " videos of the other (99.6 % is what such a test gives; hbilen/dynamic-image-nets#9)"
    if not allow_leak:
        raise RunError(
            f"{problem}.",
            remedy=f"Train on {split.id}, or test on {name}; allow_leak=True (--allow-leak) gives a marked number.",
            where=f"{name} ({digest})" if lists else None,
            code="leak",
        )
    return SplitCheck("leak", f"LEAK: trained on {name}{lists}, tested on {split.id}; this is no result")


def _same_side(own: Mapping[str, Any], split: Split) -> bool:
    """Tell whether weights of this training have not seen the test side of the split."""
    if own["split_digest"]:
        if own["split_digest"] == split.digest:
            return True
    elif own["split_id"] == split.id:
        return True
    tested, _, part = split.id.partition("/")
    return tested in _ONE_TRAINING_SIDE and {part, str(own["split_id"]).partition("/")[2]} <= _HELD_OUT
