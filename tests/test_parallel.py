"""Work over processes: a failing item costs that item, a dying worker is named, the rest goes on."""

from __future__ import annotations

import os
import signal

import pytest

from volrec.errors import DataError
from volrec.parallel import map_processes


def work(item: int) -> int:
    if item == 3:
        raise DataError("it is three.", remedy="Give another.", where="three", code="three")
    if item == 5:
        raise ValueError("five")
    return item * item


def work_or_die(item: int) -> int:
    if item == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_stay_with_their_item(jobs: int) -> None:
    outcomes = {outcome.item: outcome for outcome in map_processes(work, range(12), jobs=jobs, description="squares")}
    assert sorted(outcomes) == list(range(12))
    assert {item: outcome.result for item, outcome in outcomes.items() if outcome.error is None} == {
        item: item * item for item in range(12) if item not in (3, 5)
    }
    three, five = outcomes[3].error, outcomes[5].error
    assert isinstance(three, DataError) and three.code == "three" and three.remedy == "Give another."
    assert isinstance(five, DataError) and "ValueError: five" in five.problem


def test_a_worker_that_dies_is_named_and_the_rest_is_done() -> None:
    outcomes = {
        outcome.item: outcome
        for outcome in map_processes(
            work_or_die, range(12), jobs=2, description="squares", name=lambda item: f"study {item}"
        )
    }
    assert sorted(outcomes) == list(range(12))
    dead = outcomes.pop(4).error
    assert isinstance(dead, DataError) and dead.code == "worker-died" and dead.where == "study 4"
    assert {item: outcome.result for item, outcome in outcomes.items()} == {item: item * item for item in outcomes}


def test_leaving_early_ends_the_workers() -> None:
    for outcome in map_processes(work, range(100), jobs=2, description="squares"):
        assert outcome.item < 100
        break
