"""Whole pretrainings and transfers on tiny phantoms: what they leave, what they learn, and going on after a stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_studies import pretrain_config, transfer_config

from volrec.config import apply_overrides
from volrec.data.images import hold_out
from volrec.data.phantoms import make_phantoms
from volrec.errors import ConfigError, DataError, LabelsError, RunError
from volrec.runs import RunFolder
from volrec.training.interrupts import Interrupted
from volrec.transfer import PretrainRun, TransferRun, pretrain, transfer
from volrec.transfer.pretraining import SliceModule, guessed_retrieval, place_retrieval
from volrec.transfer.student import TransferModule
from volrec.weights import load_backbone, load_network

PRETRAIN_NUMBERS = ["epoch", "step", "lr", "train_loss", "val_loss", "val_retrieval", "kept"]
TRANSFER_NUMBERS = ["epoch", "step", "lr", "train_loss", "val_loss", "val_matching", "kept"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "bleed"
    return make_phantoms(folder, task="bleed", studies=10, seed=3, size=32, slices=12)


@pytest.fixture(scope="module")
def common(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "data": {"folder": str(phantoms)},
        "preprocess": {"canvas": [10, 16, 16]},
        "intensity": {"kind": "window", "windows": ["brain"]},
        "store": {"folder": str(tmp_path_factory.mktemp("store")), "jobs": 1},
    }


def labelled(common: dict[str, Any], phantoms: Path, **more: str) -> dict[str, Any]:
    return {**common, "data": {**common["data"], "labels": str(phantoms / "labels.csv"), "target": ["label"], **more}}


@pytest.fixture(scope="module")
def teacher(common: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> PretrainRun:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    run = pretrain(pretrain_config(**common), out, reasons={"method.name": "it is usual"})
    assert run is not None
    return run


@pytest.fixture(scope="module")
def student(common: dict[str, Any], teacher: PretrainRun, tmp_path_factory: pytest.TempPathFactory) -> TransferRun:
    config = transfer_config(**common, teacher={"source": str(teacher.path)})
    run = transfer(config, tmp_path_factory.mktemp("runs") / "student")
    assert run is not None
    return run


def same_weights(one: RunFolder, other: RunFolder, member: str) -> bool:
    for name in [path.name for path in one.member(member).path.glob("*.safetensors")]:
        a, b = (load_file(run.member(member).path / name) for run in (one, other))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return False
    c, d = (torch.load(run.member(member).checkpoint, weights_only=True)["state_dict"] for run in (one, other))
    return c.keys() == d.keys() and all(torch.equal(c[key], d[key]) for key in c)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


@contextmanager
def at_step(patch: pytest.MonkeyPatch, module: type, *, epoch: int, step: int, do: Any) -> Iterator[None]:
    """Do something in the middle of a training step."""
    original = module.training_step  # type: ignore[attr-defined]

    def training_step(self: Any, batch: Any, number: int) -> torch.Tensor:
        if (self.current_epoch, number) == (epoch, step):
            do()
        return original(self, batch, number)

    with patch.context() as inner:
        inner.setattr(module, "training_step", training_step)
        yield


def kill() -> None:
    raise Killed


def send() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class TestPretraining:
    def test_a_run_folder_is_whole(self, teacher: PretrainRun) -> None:
        assert teacher.finished
        assert {path.name for path in teacher.path.iterdir()} == {
            "config.yaml", "versions.json", "index.csv", "studies.csv", "quarantine.csv", "metrics.json", "log.txt",
            "finished", "teacher",
        }  # fmt: skip
        assert {path.name for path in (teacher.path / "teacher").iterdir()} == {
            "weights.safetensors", "card.json", "last.ckpt", "history.csv", "tensorboard", "finished",
        }  # fmt: skip
        assert "# it is usual" in (teacher.path / "config.yaml").read_text()
        assert "kind: pretrain" in (teacher.path / "config.yaml").read_text()
        assert "8 studies teach, 2 of other patients are held out" in (teacher.path / "log.txt").read_text()
        history = teacher.member("teacher").history()
        assert history["epoch"].tolist() == [0, 1]
        assert set(PRETRAIN_NUMBERS) <= set(history.columns)

    def test_the_card_says_what_the_weights_are(self, teacher: PretrainRun) -> None:
        card = teacher.member("teacher").card()
        config = teacher.config.to_dict()
        assert (card["kind"], card["schema"], card["modality"], card["studies"]) == ("teacher", 1, "CT", 8)
        assert card["architecture"] == {
            "backbone": "resnet-18", "in_channels": 1, "width": 0.0625, "stem_stride": 1, "norm": "batch",
            "faithful": False, "tail": "pool", "dropout": 0.0,
        } | {key: card["architecture"][key] for key in ("tail", "dropout")}  # fmt: skip
        assert all(card[section] == config[section] for section in ("preprocess", "intensity", "method"))
        assert (card["size"], card["classes"], len(card["data_signature"])) == ([16, 16], [], 64)
        history = teacher.member("teacher").history()
        kept = history[history["kept"] == 1].iloc[-1]
        assert card["epoch"] == kept["epoch"]
        assert card["validation"] == {"metric": "retrieval", "value": pytest.approx(kept["val_retrieval"])}

    def test_the_metrics_are_of_the_kept_weights_and_say_what_guessing_gives(self, teacher: PretrainRun) -> None:
        metrics, card = teacher.metrics, teacher.member("teacher").card()
        assert (metrics["studies"], metrics["held_out"], metrics["epochs"], metrics["method"]) == (8, 2, 2, "vicreg")
        assert metrics["value"] == pytest.approx(card["validation"]["value"])
        assert (metrics["metric"], metrics["places"], metrics["chance"]) == ("retrieval", 20, 0.05)
        assert 0 <= metrics["value"] <= 1

    def test_whole_patients_are_held_out_as_written_down(self, teacher: PretrainRun, common: dict[str, Any]) -> None:
        table = teacher.read_table("studies")
        assert table["part"].value_counts().to_dict() == {"train": 8, "held-out": 2}
        assert table.groupby("patient")["part"].nunique().max() == 1
        index = teacher.read_table("index")
        assert sorted(table["study"]) == sorted(index["study"].unique())
        from volrec.data.labels import Case

        cases = [Case(row.study, row.patient, None, np.empty(0)) for row in table.itertuples()]  # type: ignore[arg-type]
        held = {case.study for case in hold_out(cases, 0.15, seed=0)[1]}
        assert held == set(table.loc[table["part"] == "held-out", "study"])

    def test_the_weights_come_back_as_the_network_that_was_trained(self, teacher: PretrainRun) -> None:
        backbone, card = load_backbone(teacher.member("teacher").weights)
        assert not backbone.training
        assert backbone(torch.rand(2, 1, 16, 16)).shape == (2, backbone.num_features)
        assert card["method"]["name"] == "vicreg"
        stored = torch.load(teacher.member("teacher").checkpoint, weights_only=True)["state_dict"]
        if card["epoch"] == 1:
            own = backbone.state_dict()
            assert all(torch.equal(stored[f"network.backbone.{name}"], tensor) for name, tensor in own.items())
        assert not any("head" in name for name in backbone.state_dict())

    @pytest.mark.parametrize("do", [kill, send], ids=["killed", "signal"])
    def test_an_interrupted_run_goes_on_bit_for_bit(
        self, do: Any, teacher: PretrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        with at_step(monkeypatch, SliceModule, epoch=1, step=1, do=do), pytest.raises((Killed, Interrupted)) as caught:
            pretrain(teacher.config, out)
        if do is send:
            assert f"volrec pretrain --resume {out}" in str(caught.value)
        assert not PretrainRun(out).finished and len(PretrainRun(out).member("teacher").history()) == 1
        torch.manual_seed(77)
        run = pretrain(teacher.config, out, resume=True)
        assert run is not None and run.finished
        assert same_weights(run, teacher, "teacher")
        one, other = (each.member("teacher").history()[PRETRAIN_NUMBERS] for each in (run, teacher))
        assert one.equals(other)
        assert run.metrics == teacher.metrics

    def test_a_finished_run_is_neither_overwritten_nor_done_again(self, teacher: PretrainRun) -> None:
        before = (teacher.path / "metrics.json").stat().st_mtime_ns
        with pytest.raises(RunError, match="finished run"):
            pretrain(teacher.config, teacher.path)
        again = pretrain(teacher.config, teacher.path, resume=True)
        assert again is not None and again.path == teacher.path
        assert (teacher.path / "metrics.json").stat().st_mtime_ns == before

    def test_simclr_on_a_hard_disk_of_many_epochs_learns(self, common: dict[str, Any], tmp_path: Path) -> None:
        config = pretrain_config(
            **common, method={"name": "simclr"}, augment={"shift": 0.0, "noise": 0.02},
            trainer={"epochs": 8}, views={"slices": 4}, optim={"batch_size": 16},
        )  # fmt: skip
        run = pretrain(config, tmp_path / "run")
        assert run is not None
        losses = run.member("teacher").history()["train_loss"]
        assert losses.iloc[-1] < 0.75 * losses.iloc[0]
        assert run.metrics["value"] > 3 * run.metrics["chance"]

    @pytest.mark.parametrize("slices", [False, True], ids=["study labels", "slice labels"])
    def test_labels_teach_where_there_are_any(
        self, slices: bool, common: dict[str, Any], phantoms: Path, tmp_path: Path
    ) -> None:
        more = {"slice_labels": str(phantoms / "slice_labels.csv")} if slices else {}
        config = pretrain_config(
            **labelled(common, phantoms, **more), method={"name": "supervised"}, holdout={"share": 0.4},
            trainer={"epochs": 2},
        )  # fmt: skip
        run = pretrain(config, tmp_path / "run")
        assert run is not None
        card = run.member("teacher").card()
        assert card["classes"] == ["0", "1"]
        assert run.metrics["metric"] == card["validation"]["metric"] == "auc"
        history = run.member("teacher").history()
        assert np.isfinite(history["train_loss"]).all()
        assert "val_auc" in history

    def test_nobody_held_out_keeps_the_last_weights(self, common: dict[str, Any], tmp_path: Path) -> None:
        run = pretrain(pretrain_config(**common, holdout={"share": 0.0}), tmp_path / "run")
        assert run is not None
        assert "value" not in run.metrics and run.metrics["held_out"] == 0
        assert run.metrics["epoch"] == 1
        assert run.member("teacher").card()["validation"] == {}


def test_retrieval_by_hand() -> None:
    gallery = np.eye(4)
    queries = np.array([[1, 0.1, 0, 0], [1, 0.2, 0, 0], [0, 0, 0.1, 1], [0.9, 0, 0, 1]])
    places = np.array([[0, 0.0], [0, 3.0], [0, 6.0], [1, 0.0]])
    # The first is found, the second takes its neighbour, the third a slice of another study, the fourth is found.
    assert place_retrieval(queries, gallery, places, 0.0) == 0.5
    assert place_retrieval(queries, gallery, places, 3.0) == 0.75
    assert place_retrieval(10 * queries, 0.1 * gallery, places, 3.0) == 0.75
    # Blindly: one of four for its own slice; with 3 mm of reach 2, 3, 2 and 1 of four.
    assert guessed_retrieval(places, 0.0) == 0.25
    assert guessed_retrieval(places, 3.0) == 0.5


class TestTransfer:
    def test_a_run_folder_is_whole(self, student: TransferRun) -> None:
        assert student.finished
        assert {path.name for path in student.path.iterdir()} == {
            "config.yaml", "versions.json", "index.csv", "studies.csv", "quarantine.csv", "matching.csv",
            "metrics.json", "log.txt", "finished", "student",
        }  # fmt: skip
        assert {path.name for path in (student.path / "student").iterdir()} == {
            "weights.safetensors", "card.json", "head.safetensors", "head.json", "last.ckpt", "history.csv",
            "tensorboard", "finished",
        }  # fmt: skip
        assert "the teacher encodes 10 of 10 studies, 2 views each" in (student.path / "log.txt").read_text()

    def test_the_card_says_what_the_student_is_and_who_taught_it(
        self, student: TransferRun, teacher: PretrainRun
    ) -> None:
        card, theirs = student.member("student").card(), teacher.member("teacher").card()
        config = student.config.to_dict()
        sections = ("network", "preprocess", "intensity", "sampling", "matching")
        assert all(card[section] == config[section] for section in sections)
        assert (card["kind"], card["studies"], card["modality"]) == ("student", 8, "CT")
        assert card["data_signature"] == theirs["data_signature"]  # the same studies, with the same ones held out
        assert card["teacher"] == {
            "source": "teacher", "sha256": theirs["tensors"]["sha256"], "architecture": theirs["architecture"],
            "data_signature": theirs["data_signature"], "outside": False,
        }  # fmt: skip
        assert card["validation"]["metric"] == "matching"

    def test_the_report_is_of_the_kept_weights(self, student: TransferRun) -> None:
        metrics = student.metrics
        table = student.read_table("matching")
        assert table["negatives"].tolist() == ["patient", "place", "order"] == list(metrics["matching"])
        assert table["taught"].tolist() == [True, True, False]  # slice-mean cannot tell the order of slices
        assert metrics["value"] == pytest.approx(table["auc"][:2].mean())
        assert metrics["value"] == pytest.approx(student.member("student").card()["validation"]["value"])
        assert (metrics["patients"], metrics["held_out"], metrics["studies"]) == (2, 2, 8)
        assert table["auc"].between(0, 1).all() and (table["auc_low"] <= table["auc"]).all()

    def test_a_student_that_cannot_see_order_is_not_asked_about_it(self, student: TransferRun) -> None:
        (problem,) = [problem for problem in student.quarantine() if problem.code == "order-blind"]
        assert "slice-mean" in problem.reason and not problem.fatal

    def test_a_teacher_that_saw_the_held_out_patients_is_noted(
        self, common: dict[str, Any], teacher: PretrainRun, student: TransferRun, tmp_path: Path
    ) -> None:
        assert not [problem for problem in student.quarantine() if problem.code == "teacher-saw-held-out"]
        other = {**common, "holdout": {"share": 0.2, "seed": 5}}
        run = transfer(transfer_config(**other, teacher={"source": str(teacher.path)}), tmp_path / "run")
        assert run is not None
        (problem,) = [problem for problem in run.quarantine() if problem.code == "teacher-saw-held-out"]
        assert "of the 2 patients held out" in problem.reason

    def test_the_classifier_of_the_student_took_no_part(self, student: TransferRun) -> None:
        network, _ = load_network(student.member("student").weights)
        values = student.config.to_dict()
        fresh = TransferModule(
            **{name: values[name] for name in ("network", "intensity", "augment", "matching", "optim")},
            spacing=None, teacher_features=32, seed=0, steps_per_epoch=1, epochs=1,
        ).network.student  # fmt: skip
        for name, tensor in network.get_classifier().state_dict().items():
            assert torch.equal(tensor, fresh.get_classifier().state_dict()[name])
        changed = [
            name for name, p in network.named_parameters() if not torch.equal(p, fresh.state_dict()[name])
        ]  # fmt: skip
        assert len(changed) > 10

    @pytest.mark.parametrize("do", [kill, send], ids=["killed", "signal"])
    def test_an_interrupted_run_goes_on_bit_for_bit(
        self, do: Any, student: TransferRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        patch = at_step(monkeypatch, TransferModule, epoch=1, step=1, do=do)
        with patch, pytest.raises((Killed, Interrupted)) as caught:
            transfer(student.config, out)
        if do is send:
            assert f"volrec transfer --resume {out}" in str(caught.value)
        torch.manual_seed(78)
        run = transfer(student.config, out, resume=True)
        assert run is not None and run.finished
        assert same_weights(run, student, "student")
        one, other = (each.member("student").history()[TRANSFER_NUMBERS] for each in (run, student))
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        assert run.metrics == student.metrics
        pd.testing.assert_frame_equal(run.read_table("matching"), student.read_table("matching"))

    def test_a_student_learns_what_it_is_taught(
        self, common: dict[str, Any], teacher: PretrainRun, tmp_path: Path
    ) -> None:
        config = transfer_config(
            **common, teacher={"source": str(teacher.path), "augment": {}}, augment={"shift": 0.0, "noise": 0.0},
            trainer={"epochs": 10, "batches_per_epoch": 8, "checkpoint": "last"}, optim={"batch_size": 8, "lr": 1e-2},
        )  # fmt: skip
        run = transfer(config, tmp_path / "run")
        assert run is not None
        losses = run.member("student").history()["train_loss"]
        assert losses.iloc[0] > 0.6
        assert losses.iloc[-1] < 0.8 * losses.iloc[0]
        assert run.metrics["epoch"] == 9  # the last weights, as asked

    def test_new_views_of_the_teacher_in_every_step(
        self, common: dict[str, Any], teacher: PretrainRun, tmp_path: Path
    ) -> None:
        store = {**common["store"], "folder": str(tmp_path / "store")}
        config = transfer_config(**{**common, "store": store}, teacher={"source": str(teacher.path), "views": 0})
        run = transfer(config, tmp_path / "run")
        assert run is not None and np.isfinite(run.metrics["value"])
        assert len(list((tmp_path / "store" / "features").rglob("*.npy"))) == 2  # of the held-out studies alone

    def test_a_network_from_outside_teaches_too(self, common: dict[str, Any], tmp_path: Path) -> None:
        from volrec.networks.backbones import create_backbone
        from volrec.weights import save_weights

        backbone = create_backbone("resnet-18", in_channels=3, width=0.0625)
        contract = {"channels": "RGB", "range": [0, 1], "mean": [0.4] * 3, "std": [0.2] * 3, "size": [24, 24]}
        save_weights(tmp_path / "net.safetensors", backbone, {"input": contract, "classes": []})
        source = {"source": str(tmp_path / "net.safetensors")}
        run = transfer(transfer_config(**common, teacher=source, trainer={"epochs": 1}), tmp_path / "run")
        assert run is not None
        facts = run.member("student").card()["teacher"]
        assert (facts["source"], facts["outside"], facts["data_signature"]) == ("net.safetensors", True, None)
        assert str(tmp_path) not in json.dumps(run.member("student").card())


class TestOnlyTheStudiesAskedFor:
    def test_no_other_study_is_decoded(self, common: dict[str, Any], phantoms: Path, tmp_path: Path) -> None:
        names = sorted(pd.read_csv(phantoms / "labels.csv", dtype=str)["study"])
        table = tmp_path / "splits.csv"
        rows = [f"split,{'test' if n in (2, 5) else 'train'},{name},p{n}" for n, name in enumerate(names[:6])]
        table.write_text("\n".join(["split,part,study,patient", *rows, "split,train,nobody,px"]) + "\n")
        chosen = {
            **common,
            "data": {**common["data"], "studies": str(table)},
            "store": {**common["store"], "folder": str(tmp_path / "store")},
        }
        run = pretrain(pretrain_config(**chosen, trainer={"epochs": 1}), tmp_path / "run")
        assert run is not None
        wanted = {names[number] for number in (0, 1, 3, 4)}
        assert set(run.read_table("studies")["study"]) == wanted
        index = run.read_table("index")
        uids = set(index.loc[index["study"].isin(wanted), "series"])
        records = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("??/*.json")]
        assert len(records) == 4
        assert {record["uid"] for record in records} == uids
        assert [(problem.code, problem.study) for problem in run.quarantine()] == [("unknown-study", "nobody")]
        source = {"source": str(run.path)}
        taught = transfer(transfer_config(**chosen, teacher=source, trainer={"epochs": 1}), tmp_path / "student")
        assert taught is not None
        assert set(taught.read_table("studies")["study"]) == wanted
        assert len(list((tmp_path / "store").glob("??/*.json"))) == 4

    def test_with_labels_as_well(self, common: dict[str, Any], phantoms: Path, tmp_path: Path) -> None:
        names = sorted(pd.read_csv(phantoms / "labels.csv", dtype=str)["study"])
        (tmp_path / "list.txt").write_text("\n".join([*names[:6], "nobody"]))
        sections = labelled(common, phantoms, studies=str(tmp_path / "list.txt"))
        config = pretrain_config(
            **sections, method={"name": "supervised"}, holdout={"share": 0.0}, trainer={"epochs": 1}
        )  # fmt: skip
        run = pretrain(config, tmp_path / "run")
        assert run is not None
        assert sorted(run.read_table("studies")["study"]) == names[:6]
        assert ("unknown-study", "nobody") in [(problem.code, problem.study) for problem in run.quarantine()]


class TestWhatIsWrong:
    @pytest.mark.parametrize(
        ("overrides", "kind", "match"),
        [
            ({"data.folder": None}, ConfigError, "no folder of studies is named"),
            ({"method.name": "supervised"}, ConfigError, "no table of labels is named"),
            (
                {"method.name": "supervised", "data.labels": "labels.csv", "data.task": "multihead"},
                ConfigError,
                "labels of one target",
            ),
            ({"augment.mixup": 0.2}, ConfigError, r"augment\.mixup is 0\.2"),
            ({"optim.freeze": 1}, ConfigError, r"optim\.freeze"),
            ({"optim.layer_decay": 0.5}, ConfigError, r"optim\.layer_decay"),
            ({"optim.partial_bn": "all"}, ConfigError, r"optim\.partial_bn is all"),
            ({"data.studies": "/nowhere.txt"}, LabelsError, "list of studies cannot be read"),
            ({"trainer.num_nodes": 2}, ConfigError, "started alone"),
        ],
    )
    def test_it_is_said_before_a_folder_is_made(
        self, overrides: dict[str, Any], kind: type[Exception], match: str, common: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(kind, match=match):
            pretrain(apply_overrides(pretrain_config(**common), overrides), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        if "method.name" not in overrides:
            write_teacher(tmp_path / "net.safetensors")
            config = transfer_config(**common, teacher={"source": str(tmp_path / "net.safetensors")})
            with pytest.raises(kind, match=match):
                transfer(apply_overrides(config, overrides), tmp_path / "run")
            assert not (tmp_path / "run").exists()

    def test_a_teacher_that_is_not_there(self, common: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is no teacher"):
            transfer(transfer_config(**common, teacher={"source": str(tmp_path / "x")}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_runs_of_another_kind_are_not_taken_up(self, teacher: PretrainRun, student: TransferRun) -> None:
        with pytest.raises(RunError, match="pretrain"):
            transfer(student.config, teacher.path, resume=True)
        with pytest.raises(RunError, match="transfer"):
            pretrain(teacher.config, student.path, resume=True)

    def test_a_folder_that_is_no_run_is_not_touched(self, common: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(RunError, match="not empty"):
            pretrain(pretrain_config(**common), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_studies_that_went_away_are_named_when_a_run_goes_on(
        self, teacher: PretrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with at_step(monkeypatch, SliceModule, epoch=0, step=0, do=kill), pytest.raises(Killed):
            pretrain(teacher.config, tmp_path / "run")
        table = tmp_path / "run" / "studies.csv"
        table.write_text(table.read_text() + "gone-study,gone-patient,train\n")
        with pytest.raises(LabelsError, match="gone-study"):
            pretrain(teacher.config, tmp_path / "run", resume=True)

    def test_an_empty_folder(self, common: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        config = apply_overrides(pretrain_config(**common), {"data.folder": str(tmp_path / "empty")})
        with pytest.raises(DataError):
            pretrain(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_held_out_patients_that_say_nothing_leave_valid_json(
        self, common: dict[str, Any], phantoms: Path, tmp_path: Path, teacher: PretrainRun
    ) -> None:
        names = sorted(pd.read_csv(phantoms / "labels.csv", dtype=str)["study"])
        (tmp_path / "list.txt").write_text("\n".join(names[:4]))
        few = {**common, "data": {**common["data"], "studies": str(tmp_path / "list.txt")}, "holdout": {"share": 0.25}}
        source = {"source": str(teacher.path)}
        mix = {"negatives": {"patient": 1.0}}
        run = transfer(transfer_config(**few, teacher=source, matching=mix, trainer={"epochs": 1}), tmp_path / "run")
        assert run is not None
        text = (run.path / "metrics.json").read_text()
        assert "NaN" not in text and "Infinity" not in text
        metrics = json.loads(text)
        assert metrics["held_out"] == 1 and metrics.get("value") is None
        sections = labelled(few, phantoms, studies=str(tmp_path / "list.txt"))
        config = pretrain_config(**sections, method={"name": "supervised"}, trainer={"epochs": 1})
        run = pretrain(config, tmp_path / "labels")
        assert run is not None and "NaN" not in (run.path / "metrics.json").read_text()


def write_teacher(path: Path) -> None:
    from volrec.networks.backbones import create_backbone
    from volrec.weights import save_weights

    save_weights(path, create_backbone("resnet-18", in_channels=1, width=0.0625), {})


@pytest.mark.slow
def test_two_processes_over_gloo_give_one_run(common: dict[str, Any], teacher: PretrainRun, tmp_path: Path) -> None:
    store = {**common["store"], "folder": str(tmp_path / "store")}
    several = {**common, "store": store, "trainer": {"devices": 2}}
    run = pretrain(pretrain_config(**several), tmp_path / "teacher")
    assert run is not None and run.finished
    assert run.read_table("studies").equals(teacher.read_table("studies"))
    assert run.member("teacher").history()["epoch"].tolist() == [0, 1]
    assert (run.path / "log.txt").read_text().count("teacher epoch 2/2") == 1
    taught = transfer(transfer_config(**several, teacher={"source": str(run.path)}), tmp_path / "student")
    assert taught is not None and taught.finished
    assert len(list((tmp_path / "store" / "features").rglob("*.npy"))) == 10
    assert taught.metrics["patients"] == 2
    assert taught.member("student").history()["epoch"].tolist() == [0, 1]
