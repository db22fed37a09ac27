"""What the numbers of a context audit mean: a code and one sentence, by rules that a reader can check.

In the order in which they are asked, all of differences from the studies as they are, paired over patients, with 95 %
intervals (``MARGIN`` 0.05, ``NEAR`` 0.02):

``unclear``
    Fewer than 20 patients, or fewer than 5 studies of a class: more studies are needed.
``nothing-learned``
    The interval of the whole studies holds what chance gives (AUC 0.5, correlation 0).
``one-slice``
    The interval of the loss with one slice ends above -0.05: one slice is enough.
``needs-context``
    The loss with one slice is 0.05 or more, and its interval ends below 0.
``unclear``
    Anything else: the intervals are too wide.

The order of slices is judged by the same two rules on the loss by shuffling: ``used``, ``not-used``, ``unclear``;
``cannot`` where the network puts slices together without regard to their order, whatever they are. Windows *reach* the
whole from the shortest length on from which all losses are within 0.02.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Facts", "judge", "order_use", "reach"]

MARGIN = 0.05
"""A loss that matters; one whose interval ends above it is taken for none."""
NEAR = 0.02
"""A window whose loss is no larger reaches the whole."""
LEAST_PATIENTS, LEAST_OF_CLASS = 20, 5
CHANCE = {"auc": 0.5, "correlation": 0.0}
NAMES = {"auc": "AUC", "correlation": "a correlation of"}


@dataclass(frozen=True)
class Facts:
    """What a verdict is made of; intervals as everywhere, ``{value, low, high}``.

    Attributes
    ----------
    metric : str
        ``auc`` or ``correlation``.
    studies, patients : int
        Their number.
    least : int, optional
        Studies of the rarest class.
    whole, single, shuffled : mapping
        The metric of studies as they are, of their most informative slice, and of shuffled ones.
    loss, shuffling : mapping
        Difference of the latter two from the first.
    ignores_order : bool
        The network cannot use the order of slices.
    context : sequence of mapping
        ``slices, millimetres, difference, whole`` of each window, the shortest first, the whole studies last.
    """

    metric: str
    studies: int
    patients: int
    least: int | None
    whole: Mapping[str, Any]
    single: Mapping[str, Any]
    loss: Mapping[str, Any]
    shuffled: Mapping[str, Any]
    shuffling: Mapping[str, Any]
    ignores_order: bool
    context: Sequence[Mapping[str, Any]]


def judge(facts: Facts) -> dict[str, Any]:
    """Return ``code, sentence, order, reach, rules`` (JSON types) by the rules at the head of this file."""
    order = "cannot" if facts.ignores_order else order_use(facts.shuffling)
    reached = reach(facts.context)
    code, sentence = _verdict(facts, order, reached)
    if code not in ("one-slice", "needs-context"):
        reached = None  # where the whole says nothing, to come near it says nothing either
    rules = {
        "margin": MARGIN,
        "near": NEAR,
        "least_patients": LEAST_PATIENTS,
        "least_of_class": LEAST_OF_CLASS,
        "chance": CHANCE[facts.metric],
    }
    return {"code": code, "sentence": sentence, "order": order, "reach": reached, "rules": rules}


def order_use(shuffling: Mapping[str, Any]) -> str:
    """Return ``used``, ``not-used`` or ``unclear`` for the difference that shuffling makes."""
    if _no_loss(shuffling):
        return "not-used"
    return "used" if _clear_loss(shuffling) else "unclear"


def reach(context: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return ``slices, millimetres, whole`` of the shortest window from which on all are near the whole."""
    found = None
    for point in reversed(context):
        loss = point["difference"]["value"]
        if loss is None or loss < -NEAR:
            break
        found = point
    return None if found is None else {key: found[key] for key in ("slices", "millimetres", "whole")}


def _verdict(facts: Facts, order: str, reached: Mapping[str, Any] | None) -> tuple[str, str]:
    few = f"{facts.studies} studies of {facts.patients} patients"
    whole, single = _said(facts.whole), _said(facts.single)
    name = NAMES[facts.metric]
    if facts.patients < LEAST_PATIENTS or (facts.least is not None and facts.least < LEAST_OF_CLASS):
        rare = "" if facts.least is None else f", {facts.least} of the rarest class,"
        return "unclear", (
            f"More studies are needed: {few}{rare} are too few to tell (at least {LEAST_PATIENTS} patients"
            + (")." if facts.least is None else f" and {LEAST_OF_CLASS} studies of each class).")
        )
    if facts.whole["value"] is None or facts.whole["low"] is None or facts.whole["low"] <= CHANCE[facts.metric]:
        return "nothing-learned", (
            f"Nothing can be said of context: on these {few} the network gives {name} {whole}, which chance "
            f"({CHANCE[facts.metric]:g}) may give as well." + (_order(facts, order) if order == "cannot" else "")
        )
    if _no_loss(facts.loss):
        return "one-slice", (
            f"One slice is enough: the most informative one alone gives {name} {single}, all slices {whole}."
            + (_order(facts, order) if order == "used" else "")
        )
    if _clear_loss(facts.loss):
        return "needs-context", (
            f"One slice alone gives {name} {single}, all slices {whole}: the task, as this network solves it, needs "
            f"context across slices.{_reached(reached)}{_order(facts, order)}"
        )
    return "unclear", (
        f"More studies are needed: one slice alone gives {name} {single}, all slices {whole}; with {few} the "
        f"difference, {_said(facts.loss)}, may be none or one that matters."
    )


def _no_loss(difference: Mapping[str, Any]) -> bool:
    return difference["low"] is not None and difference["low"] > -MARGIN


def _clear_loss(difference: Mapping[str, Any]) -> bool:
    value, high = difference["value"], difference["high"]
    return value is not None and high is not None and value <= -MARGIN and high < 0


def _reached(reached: Mapping[str, Any] | None) -> str:
    if reached is None or reached["whole"]:
        return f" No shorter part of a study comes within {NEAR:g} of the whole."
    return f" About {reached['slices']} slices ({reached['millimetres']:.0f} mm) come within {NEAR:g} of the whole."


def _order(facts: Facts, order: str) -> str:
    shuffled = _said(facts.shuffled)
    if order == "cannot":
        return (
            " This network cannot use the order of slices: it reads each by itself, and a clip scores the same in any "
            "order."
        )
    if order == "used":
        return f" The order of slices is used: shuffled, they give {shuffled}."
    if order == "not-used":
        return f" How many slices are seen counts, not their order: shuffled, they give {shuffled}."
    return f" Whether their order is used is not clear: shuffled, they give {shuffled}."


def _said(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "of no value"
    text = f"{value['value']:.2f}"
    return text if value["low"] is None else f"{text} [{value['low']:.2f}, {value['high']:.2f}]"
