"""Trainings that begin with weights that exist: loaded once, written down, gone on with; and what those have seen."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Tiny, TinyCase, tiny_config
from safetensors.torch import load_file
from test_training_fit import Killed, at_step, kill, same_weights, train

from volrec.config import InitConfig, parse_config
from volrec.data.phantoms import make_phantoms
from volrec.data.splits import Split
from volrec.errors import ConfigError, RunError
from volrec.networks import create, network_stages
from volrec.runs import Member
from volrec.training import initial
from volrec.training import train as run_training
from volrec.training.initial import absolute_source, seen_in_source
from volrec.training.module import StudyModule
from volrec.training.optim import parameter_groups
from volrec.weights import load_weights, save_weights

NETWORK = {"name": "slice-mean", "width": 0.125}


def transfer_run(folder: Path, **arguments: Any) -> Path:
    """Leave what a transfer leaves: a student with its card, and the studies that it saw."""
    torch.manual_seed(5)
    network = create(**{"name": NETWORK["name"], "num_classes": 4, "width": NETWORK["width"], **arguments})
    (folder / "student").mkdir(parents=True)
    save_weights(folder / "student" / "weights.safetensors", network, {"data_signature": "abc", "network": NETWORK})
    (folder / "config.yaml").write_text("kind: transfer\n")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return transfer_run(tmp_path / "transfer-x")


def seen_at_first_step(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Return what will hold the weights with which the first step is taken."""
    found: dict[str, torch.Tensor] = {}
    original = StudyModule.training_step

    def step(self: StudyModule, batch: Any, number: int) -> torch.Tensor:
        if not found:
            found.update({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        return original(self, batch, number)

    monkeypatch.setattr(StudyModule, "training_step", step)
    return found


def test_a_training_begins_with_the_weights_and_writes_down_what_became_of_every_key(
    tiny: Tiny, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = seen_at_first_step(monkeypatch)
    caplog.set_level(logging.INFO, logger="volrec")
    config = tiny_config(trainer={"epochs": 1}, init={"source": str(source)}, optim={"ema_decay": 0.9})
    train(tiny, tmp_path / "split", config)
    state, theirs = load_weights(source / "student" / "weights.safetensors")
    loaded = [name for name in state if not name.startswith("classifier")]
    assert all(torch.equal(first[name], state[name]) for name in loaded)
    card = Member(tmp_path / "split").card()
    assert card["init"] == {
        "source": f"{source.parent.name}/transfer-x",
        "sha256": theirs["tensors"]["sha256"],
        "data_signature": "abc",
        "counts": {"loaded": len(loaded), "adapted": 0, "dropped": 2, "missing": 2},
    }
    written = json.loads((tmp_path / "split" / "init.json").read_text())
    assert written["facts"] == card["init"]
    assert len(written["keys"]) == len(state) + 2
    assert f"init: {len(loaded)} loaded, 0 adapted, 2 dropped, 2 missing from {card['init']['source']}" in caplog.text


def test_without_a_source_nothing_changes(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a", tiny_config(trainer={"epochs": 1}))
    assert not (tmp_path / "a" / "init.json").exists()
    assert "init" not in Member(tmp_path / "a").card()


EVERYTHING = {"optim": {"ema_decay": 0.9, "layer_decay": 0.7, "freeze": 1, "accumulate": 2}}


@pytest.mark.parametrize("sections", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_killed_training_goes_on_bit_for_bit_without_its_source(
    tiny: Tiny, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    config = tiny_config(trainer={"epochs": 3}, init={"source": str(source)}, **sections)
    train(tiny, tmp_path / "whole", config)
    with at_step(monkeypatch, epoch=1, step=1, do=kill), pytest.raises(Killed):
        train(tiny, tmp_path / "cut", config)
    shutil.rmtree(source)
    train(tiny, tmp_path / "cut", config, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    one, other = (Member(tmp_path / name).card()["init"] for name in ("whole", "cut"))
    assert one == other and one["counts"]["loaded"] > 0


def test_a_fresh_start_needs_its_source(tiny: Tiny, tmp_path: Path, source: Path) -> None:
    config = tiny_config(trainer={"epochs": 1}, init={"source": str(source)})
    shutil.rmtree(source)
    with pytest.raises(RunError, match="no such file or folder to take first weights from"):
        train(tiny, tmp_path / "a", config)


def test_a_run_of_train_hands_on_its_classifier_for_the_same_question(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(trainer={"epochs": 1})
    train(tiny, tmp_path / "run" / "split", config)
    Member(tmp_path / "run" / "split").finish()
    first = seen_at_first_step(monkeypatch)
    train(tiny, tmp_path / "again", tiny_config(trainer={"epochs": 1}, init={"source": str(tmp_path / "run")}))
    kept = load_file(tmp_path / "run" / "split" / "weights.safetensors")
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def test_frozen_stages_come_out_as_they_went_in(tiny: Tiny, tmp_path: Path, source: Path) -> None:
    frozen = ["encoder.stage1.*", "encoder.stage2.*"]
    for name, freeze in (("number", 2), ("patterns", frozen)):
        config = tiny_config(
            trainer={"epochs": 2}, init={"source": str(source)}, optim={"freeze": freeze, "weight_decay": 0.1}
        )
        train(tiny, tmp_path / name, config)
        before = load_file(source / "student" / "weights.safetensors")
        after = load_file(tmp_path / name / "weights.safetensors")
        equal = {
            key for key in before if before[key].shape == after[key].shape and torch.equal(before[key], after[key])
        }
        # Running statistics are among them: validation between the epochs does not set them free.
        assert equal == {key for key in before if key.startswith(("encoder.stage1.", "encoder.stage2."))}
    assert same_weights(tmp_path / "number", tmp_path / "patterns")


@pytest.mark.parametrize("mode", ["statistics", "all"])
def test_partial_batch_normalisation_holds_through_a_whole_training(tiny: Tiny, tmp_path: Path, mode: str) -> None:
    config = tiny_config(
        network={
            "name": "tsn",
            "width": 0.125,
            "options": {"network": "slice-mean", "snippet_length": 2, "consensus": "weighted"},
        },
        sampling={"clip_length": 6, "snippet_length": 2, "train": "segments"},
        protocol={"snippets": 3},
        trainer={"epochs": 2},
        optim={"partial_bn": mode, "weight_decay": 0.1},
    )
    train(tiny, tmp_path / "run", config)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    norms = sorted(key.removesuffix(".running_mean") for key in after if key.endswith(".running_mean"))
    assert len(norms) > 3
    for name in norms:
        first = name == norms[0]
        assert bool((after[f"{name}.running_mean"] == 0).all()) != first, name
        assert bool((after[f"{name}.weight"] == 1).all()) == (mode == "all" and not first), name


def test_snippets_of_the_test_must_fit_the_network_before_the_first_step(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny_config(
        network={"name": "tsn", "width": 0.125, "options": {"network": "c3d", "snippet_length": 3}},
        sampling={"clip_length": 6, "train": "segments"},
        protocol={"snippets": 25},
        trainer={"epochs": 1},
    )
    with pytest.raises(ConfigError, match="clips of 25 slices are no whole number of snippets of 3"):
        train(tiny, tmp_path / "run", config)


def test_the_rate_in_the_records_is_that_of_the_fastest_stage(tiny: Tiny, tmp_path: Path) -> None:
    rates = []
    for decay in (1.0, 0.5):
        train(tiny, tmp_path / str(decay), tiny_config(trainer={"epochs": 2}, optim={"layer_decay": decay}))
        rates.append(Member(tmp_path / str(decay)).history()["lr"].tolist())
    assert rates[0] == rates[1]


def test_stages_learn_at_rates_that_fall_towards_the_input() -> None:
    network = create("slice-mean", num_classes=1, width=0.125)
    groups = parameter_groups(network, 0.1, lr=0.01, layer_decay=0.5)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    stages = network_stages(network)
    for number, stage in enumerate(stages):
        for name in stage:
            parameter = network.get_parameter(name)
            expected = 0.01 * 0.5 ** (len(stages) - 1 - number)
            assert found[id(parameter)] == (expected, 0.1 if parameter.ndim > 1 else 0.0), name
    assert len(found) == len(list(network.parameters()))
    assert found[id(network.classifier.weight)][0] == 0.01


def test_one_rate_for_all_makes_the_groups_of_always() -> None:
    network = create("c3d", num_classes=1, width=0.0625)
    groups = parameter_groups(network, 0.1, lr=0.01, layer_decay=1.0)
    kernels = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    assert [group.keys() for group in groups] == [{"params", "weight_decay"}] * 2
    for group, expected, decay in zip(groups, (kernels, vectors), (0.1, 0.0), strict=True):
        assert group["weight_decay"] == decay
        assert len(group["params"]) == len(expected)
        assert all(a is b for a, b in zip(group["params"], expected, strict=True))


def test_sources_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("runs/x") == f"{tmp_path}/runs/x"
    assert absolute_source("inflate:runs/x") == f"inflate:{tmp_path}/runs/x"
    assert absolute_source("/a/b.safetensors") == "/a/b.safetensors"
    assert absolute_source(None) is None


class TestLeaks:
    split = Split("split", ("study-00",), ("study-01",), ("study-02", "study-03", "study-04"))

    @staticmethod
    def cases() -> dict[str, Any]:
        return {f"study-{n:02d}": TinyCase(f"study-{n:02d}", f"patient-{n:02d}", None, np.zeros(1)) for n in range(6)}

    def seen(self, source: Path) -> list[Any]:
        return seen_in_source(str(source), [self.split], self.cases())  # type: ignore[arg-type]

    def test_test_studies_and_patients_that_a_transfer_saw_are_counted(
        self, source: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = {"study": ["study-00", "study-02", "elsewhere"], "patient": ["patient-00", "patient-02", "patient-04"]}
        pd.DataFrame(rows).to_csv(source / "studies.csv", index=False)
        (note,) = self.seen(source)
        assert note.code == "seen-in-init" and not note.fatal and note.where == "split"
        assert "2 of 3 test studies" in note.reason and "without labels" in note.reason
        assert note.reason in caplog.text

    def test_what_training_saw_of_other_parts_is_no_leak(self, source: Path) -> None:
        pd.DataFrame({"study": ["study-00", "study-01"], "patient": ["", ""]}).to_csv(
            source / "studies.csv", index=False
        )
        assert self.seen(source) == []

    def test_where_there_is_no_table_nothing_is_said(self, source: Path) -> None:
        assert self.seen(source) == []
        assert seen_in_source(None, [self.split], {}) == []
        pd.DataFrame({"series": ["study-02"]}).to_csv(source / "studies.csv", index=False)
        assert self.seen(source) == []

    def test_a_run_of_train_saw_labels_but_not_of_its_own_test_studies(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        transfer_run(run)
        shutil.move(run / "student", run / "fold-1")
        (run / "fold-1" / "finished").touch()
        rows = [("fold-0", "train", "study-04"), ("fold-1", "validation", "study-02"), ("fold-1", "test", "study-03")]
        table = pd.DataFrame(rows, columns=["split", "part", "study"]).assign(patient="")
        table.to_csv(run / "splits.csv", index=False)
        (note,) = self.seen(run)
        assert "1 of 3 test studies" in note.reason and "with labels" in note.reason

    def test_what_the_teacher_or_the_first_weights_behind_it_saw_counts_too(self, source: Path, tmp_path: Path) -> None:
        pd.DataFrame({"study": ["study-00"], "patient": [""]}).to_csv(source / "studies.csv", index=False)
        teacher = transfer_run(tmp_path / "teacher-x")
        shutil.move(teacher / "student", teacher / "teacher")
        pd.DataFrame({"study": ["study-02"], "patient": [""]}).to_csv(teacher / "studies.csv", index=False)
        (source / "config.yaml").write_text(f"kind: transfer\nteacher: {{source: {teacher}}}\n")
        (note,) = self.seen(source)
        assert "1 of 3 test studies" in note.reason and "without labels" in note.reason
        (teacher / "config.yaml").write_text("kind: pretrain\ndata: {labels: labels.csv}\n")
        assert "with labels" in self.seen(source)[0].reason
        later = transfer_run(tmp_path / "later")
        (later / "config.yaml").write_text(f"init: {{source: {source}}}\n")
        assert "1 of 3 test studies" in self.seen(later)[0].reason
        shutil.rmtree(teacher)
        assert self.seen(later) == []


def test_only_the_main_process_writes(
    tiny: Tiny, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial, "is_main_process", lambda: False)
    member = Member(tmp_path / "split")
    network = create(NETWORK["name"], num_classes=1, width=NETWORK["width"])
    facts = initial.load_initial(network, InitConfig(source=str(source)), subject=tiny.subject, member=member)
    assert facts["counts"]["loaded"] > 0 and not member.path.exists()


@pytest.mark.slow
def test_two_processes_begin_alike_and_keep_the_frozen_stages(tmp_path: Path, source: Path) -> None:
    folder = make_phantoms(tmp_path / "bleed", task="bleed", studies=16, seed=3, size=32, slices=12)
    config = parse_config(
        {
            "data": {"folder": str(folder), "labels": str(folder / "labels.csv"), "target": ["label"]},
            "preprocess": {"canvas": [8, 16, 16]},
            "intensity": {"kind": "window", "windows": ["brain"]},
            "sampling": {"clip_length": 8},
            "network": NETWORK,
            "init": str(source),
            "optim": {"batch_size": 2, "freeze": 2, "layer_decay": 0.8},
            "trainer": {"epochs": 2, "accelerator": "cpu", "workers": 0, "devices": 2},
            "store": {"folder": str(tmp_path / "store"), "jobs": 1},
        }
    )
    run = run_training(config, tmp_path / "run")
    assert run is not None and run.finished
    before = load_file(source / "student" / "weights.safetensors")
    after = load_file(run.members[0].weights)
    equal = {key for key in before if before[key].shape == after[key].shape and torch.equal(before[key], after[key])}
    assert equal == {key for key in before if key.startswith(("encoder.stage1.", "encoder.stage2."))}
    assert (run.path / "log.txt").read_text().count("init: 42 loaded") == 1
