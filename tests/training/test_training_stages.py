"""Trainings that are done in turn: each begins where the last ended, what is finished is not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, tiny_config
from safetensors.torch import load_file
from test_training_fit import NUMBERS, Killed, at_step, kill, same_weights, train

from volrec.config import parse_config
from volrec.errors import ConfigError
from volrec.runs import Member
from volrec.training import fit

STAGES: list[dict[str, Any]] = [
    {"name": "head", "freeze": ["encoder.*"], "lr": 0.01, "epochs": 2},
    {"name": "all", "epochs": 3},
]


def staged(stages: list[dict[str, Any]] = STAGES, **sections: Any) -> Any:
    return parse_config({**tiny_config(**sections).to_dict(), "stages": stages})


def test_each_stage_begins_where_the_last_ended_and_keeps_what_it_freezes(tiny: Tiny, tmp_path: Path) -> None:
    config = staged()
    result = train(tiny, tmp_path / "m", config)
    member = Member(tmp_path / "m")
    first = member.stage("head")
    assert first.finished
    assert first.path == tmp_path / "m" / "stages" / "head"
    assert (first.name, first.split, first.run) == ("m head", "m", tmp_path)
    assert len(first.history()) == 2
    assert 0.004 < first.history()["lr"].max() < 0.01  # warmed up for two of three steps
    assert result.epochs == len(member.history()) == 3
    assert first.card()["split"] == member.card()["split"] == "m"
    head, last = load_file(first.weights), load_file(member.weights)
    # The first stage trains the classifier alone, from the weights that the seed draws.
    alone = train(tiny, tmp_path / "alone", staged([{"name": "all", "freeze": ["encoder.*"], "epochs": 1}]))
    drawn = load_file(tmp_path / "alone" / "weights.safetensors")
    assert alone.epochs == 1
    encoder = [name for name in head if name.startswith("encoder.")]
    assert all(torch.equal(head[name], drawn[name]) for name in encoder)
    assert not any(torch.equal(last[name], head[name]) for name in encoder if name.endswith("0.weight"))
    assert not torch.equal(head["classifier.weight"], drawn["classifier.weight"])


def test_the_second_stage_starts_with_the_weights_of_the_first(tiny: Tiny, tmp_path: Path) -> None:
    still = [STAGES[0], {"name": "all", "epochs": 1, "lr": 1e-12}]
    train(tiny, tmp_path / "m", staged(still, optim={"weight_decay": 0.0}))
    member = Member(tmp_path / "m")
    head, last = load_file(member.stage("head").weights), load_file(member.weights)
    for name, value in head.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(last[name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("lengths", "epoch"), [((2, 3), 1), ((3, 1), 2)], ids=["second", "first"])
def test_a_training_killed_in_a_stage_goes_on_bit_for_bit(
    lengths: tuple[int, int], epoch: int, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{**stage, "epochs": epochs} for stage, epochs in zip(STAGES, lengths, strict=True)]
    config = staged(stages)
    train(tiny, tmp_path / "whole", config)
    killed = Member(tmp_path / "killed")

    def die() -> None:
        if epoch == 2 or killed.stage("head").finished:
            kill()

    with at_step(monkeypatch, epoch=epoch, step=1, do=die), pytest.raises(Killed):
        train(tiny, killed.path, config)
    assert killed.begun
    assert killed.stage("head").finished == (epoch == 1)
    trained = []
    original = fit.run_loop

    def run_loop(*arguments: Any, **named: Any) -> Any:
        trained.append(named["member"].name)
        return original(*arguments, **named)

    monkeypatch.setattr(fit, "run_loop", run_loop)
    train(tiny, killed.path, config, resume=True)
    assert trained == (["killed"] if epoch == 1 else ["killed head", "killed"])
    assert same_weights(tmp_path / "whole", killed.path)
    one, other = (Member(path).history()[NUMBERS] for path in (tmp_path / "whole", killed.path))
    assert one.equals(other)


def test_an_objective_that_the_network_does_not_have_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="slice-mean has no loss without labels"):
        train(tiny, tmp_path / "m", staged([{"name": "motion", "objective": "motion"}, {"name": "all"}]))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], "names of their own"),
        ([{"name": "a", "objective": "motion"}], "learns no label"),
        ([{"name": "../a"}], "stages.0.name"),
        ([{"name": "a", "objectve": "motion"}], "objectve"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        staged(stages)


def test_shares_of_the_whole_are_settled_where_no_plan_has_done_so(tiny: Tiny, tmp_path: Path) -> None:
    shares = [{**STAGES[0], "epochs": "50%", "lr": "100%"}, {"name": "all", "epochs": "25%", "lr": "10%"}]
    train(tiny, tmp_path / "m", staged(shares, trainer={"epochs": 4}, optim={"warmup_epochs": 0}))
    member = Member(tmp_path / "m")
    assert (len(member.stage("head").history()), len(member.history())) == (2, 1)
    assert member.history()["lr"].max() == pytest.approx(1.5e-4)  # the second of two steps, half way down


def test_words_are_found_on_every_stream_of_all_training_studies(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    original = fit.fit_words

    def fit_words(network: Any, batches: Any, **named: Any) -> int:
        kept = list(batches)
        found.append(sum(len(batch["image"]) for batch in kept))
        before = network.vlad.centres.clone()
        count = original(network, kept, **named)
        assert not torch.equal(before, network.vlad.centres)
        return count

    monkeypatch.setattr(fit, "fit_words", fit_words)
    config = staged(
        [{"name": "head", "freeze": ["backbone.*"], "epochs": 1}, {"name": "all", "epochs": 1}],
        network={"name": "actionvlad", "options": {"backbone": "resnet-18", "words": 4}},
        streams={"inputs": ["intensity", "difference"]},
        augment={"flip": {}},
        trainer={"batches_per_epoch": 1},
    )
    train(tiny, tmp_path / "m", config)
    assert found == [8]  # once, of every study that trains, though an epoch has one batch of four


def test_a_stage_waits_for_a_better_epoch_in_proportion_to_its_length() -> None:
    config = staged(trainer={"epochs": 30, "patience": 10})
    for epochs, patience in ((15, 5), (30, 10), (60, 10), (1, 1)):
        stage = config.stages[0].model_copy(update={"epochs": epochs})
        assert fit._staged(config, stage).trainer.patience == patience
    never = staged(trainer={"epochs": 30, "patience": 0})
    assert fit._staged(never, never.stages[0]).trainer.patience == 0
