"""The verdict follows its rules, each of them, at their bounds."""

from __future__ import annotations

from typing import Any

import pytest

from volrec.evaluation.audit_verdict import Facts, judge, order_use, reach


def span(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high}


def point(slices: int, loss: float, *, whole: bool = False) -> dict[str, Any]:
    return {"slices": slices, "millimetres": 5.0 * slices, "difference": span(loss), "whole": whole}


def facts(**changed: Any) -> Facts:
    given: dict[str, Any] = {
        "metric": "auc",
        "studies": 60,
        "patients": 50,
        "least": 25,
        "whole": span(0.95, 0.9, 0.99),
        "single": span(0.6, 0.5, 0.7),
        "loss": span(-0.35, -0.45, -0.25),
        "shuffled": span(0.7, 0.6, 0.8),
        "shuffling": span(-0.25, -0.35, -0.15),
        "ignores_order": False,
        "context": [point(1, -0.35), point(3, -0.1), point(5, -0.01), point(9, 0.0), point(24, 0.0, whole=True)],
    }
    return Facts(**{**given, **changed})


def test_context_that_is_needed_is_said_with_its_extent_and_order() -> None:
    found = judge(facts())
    assert (found["code"], found["order"]) == ("needs-context", "used")
    assert found["reach"] == {"slices": 5, "millimetres": 25.0, "whole": False}
    assert found["sentence"] == (
        "One slice alone gives AUC 0.60 [0.50, 0.70], all slices 0.95 [0.90, 0.99]: the task, as this network solves "
        "it, needs context across slices. About 5 slices (25 mm) come within 0.02 of the whole. The order of slices is "
        "used: shuffled, they give 0.70 [0.60, 0.80]."
    )


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"loss": span(-0.02, -0.049, 0.01)}, "one-slice"),
        ({"loss": span(0.04, -0.01, 0.09)}, "one-slice"),
        ({"loss": span(-0.02, -0.051, 0.01)}, "unclear"),
        ({"loss": span(-0.05, -0.09, -0.001)}, "needs-context"),
        ({"loss": span(-0.05, -0.09, 0.001)}, "unclear"),
        ({"loss": span(-0.04, -0.06, -0.01)}, "unclear"),
        ({"loss": span(None)}, "unclear"),
        ({"whole": span(0.6, 0.5, 0.7)}, "nothing-learned"),
        ({"whole": span(0.6, 0.501, 0.7)}, "needs-context"),
        ({"whole": span(0.4, 0.3, 0.49)}, "nothing-learned"),
        ({"whole": span(None)}, "nothing-learned"),
        ({"patients": 19}, "unclear"),
        ({"least": 4}, "unclear"),
        ({"metric": "correlation", "least": None, "whole": span(0.3, 0.1, 0.5)}, "needs-context"),
        ({"metric": "correlation", "least": None, "whole": span(0.1, -0.1, 0.3)}, "nothing-learned"),
    ],
)
def test_each_rule_at_its_bound(changed: dict[str, Any], code: str) -> None:
    found = judge(facts(**changed))
    assert found["code"] == code
    assert found["sentence"].endswith(".")
    assert (found["reach"] is None) == (code not in ("one-slice", "needs-context"))


@pytest.mark.parametrize(
    ("shuffling", "use"),
    [
        (span(-0.25, -0.35, -0.15), "used"),
        (span(0.0, -0.04, 0.04), "not-used"),
        (span(-0.06, -0.15, 0.03), "unclear"),
        (span(-0.04, -0.06, -0.02), "unclear"),
    ],
)
def test_order_is_judged_by_what_shuffling_costs(shuffling: dict[str, Any], use: str) -> None:
    assert order_use(shuffling) == use


def test_a_network_that_cannot_use_order_is_said_to_be_one() -> None:
    found = judge(facts(ignores_order=True, shuffling=span(0.0)))
    assert found["order"] == "cannot"
    assert "cannot use the order" in found["sentence"]


def test_extent_without_order_is_told_from_order() -> None:
    assert "not their order" in judge(facts(shuffling=span(0.0, -0.02, 0.02)))["sentence"]


def test_a_length_reaches_the_whole_only_if_all_longer_ones_do() -> None:
    found = reach([point(1, 0.0), point(3, -0.03), point(5, -0.02), point(9, 0.1), point(24, 0, whole=True)])
    assert found is not None
    assert found["slices"] == 5
    assert "No shorter part" in judge(facts(context=[point(1, -0.3), point(24, 0, whole=True)]))["sentence"]
