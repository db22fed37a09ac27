"""The card of a member is amended whole, or stays as it was; its weights never change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from volrec.errors import ConfigError, RunError
from volrec.networks import create
from volrec.runs.member import Member
from volrec.weights import files, load_weights, read_card

FACTS = {"thresholds": {"yes": 0.1 + 0.2}, "curve": [0.0, 1.0]}


@pytest.fixture
def member(tmp_path: Path) -> Member:
    torch.manual_seed(0)
    member = Member(tmp_path / "fold-0")
    member.save(create("slice-mean", num_classes=1, width=0.125), {"task": "binary", "epoch": 3})
    return member


def test_facts_are_added_to_the_card_and_to_nothing_else(member: Member) -> None:
    before, card = load_weights(member.weights)
    member.amend_card(decision=FACTS)
    after, amended = load_weights(member.weights)
    assert amended == {**card, "decision": FACTS}
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert member.card() == amended
    member.amend_card(decision={"thresholds": {}})
    assert read_card(member.weights)["decision"] == {"thresholds": {}}


def test_nothing_is_written_where_the_card_says_so_already(member: Member) -> None:
    member.amend_card(decision=FACTS)
    times = [path.stat().st_mtime_ns for path in (member.weights, member.card_path)]
    member.amend_card(decision=FACTS)
    assert [path.stat().st_mtime_ns for path in (member.weights, member.card_path)] == times


@pytest.mark.parametrize("written", [0, 1], ids=["before the weights", "between weights and copy"])
def test_an_interrupted_amendment_leaves_a_whole_member_and_is_done_again(
    member: Member, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = read_card(member.weights)
    original, calls = files.write_atomically, []

    def write(path: Path, content: Any) -> None:
        calls.append(path)
        if len(calls) > written:
            raise KeyboardInterrupt
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            member.amend_card(decision=FACTS)
    whole = {**old, "decision": FACTS}
    assert load_weights(member.weights)[1] == (whole if written else old)
    member.amend_card(decision=FACTS)
    assert read_card(member.weights) == member.card() == whole
    assert not list(member.path.glob("*.tmp"))


def test_what_belongs_to_the_weights_or_is_no_json_is_refused(member: Member) -> None:
    before = member.weights.read_bytes()
    with pytest.raises(ConfigError, match="already holds tensors"):
        member.amend_card(tensors={})
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        member.amend_card(decision=float("nan"))
    assert member.weights.read_bytes() == before


def test_weights_that_are_missing_say_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such file"):
        Member(tmp_path / "fold-0").amend_card(decision=FACTS)
