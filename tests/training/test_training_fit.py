"""One member: it learns, it can be stopped anywhere and gone on with, and what goes wrong is said."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, make_tiny, tiny_config
from safetensors.torch import load_file

from volrec.config import TrainConfig
from volrec.data.datasets import StudyDataset
from volrec.errors import ConfigError, DataError, RunError
from volrec.evaluation import study_metric
from volrec.inference.members import load_member
from volrec.runs import Member
from volrec.training import callbacks
from volrec.training.data import KeptOpen, WatchedClips
from volrec.training.fit import fit_member
from volrec.training.interrupts import Interrupted, Signals, StopFlag
from volrec.training.member import MemberResult
from volrec.training.module import StudyModule
from volrec.training.scoring import score_studies

NUMBERS = ["epoch", "step", "lr", "train_loss", "val_loss", "val_auc", "kept"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def train(tiny: Tiny, folder: Path, config: TrainConfig, *, resume: bool = False, validation: int = 4) -> MemberResult:
    part = len(tiny.cases) - validation
    return fit_member(
        config,
        tiny.subject,
        member=Member(folder),
        train=tiny.cases[:part],
        validation=tiny.cases[part:],
        entries=tiny.entries,
        store=tiny.store,
        resume=resume,
    )


@contextmanager
def at_step(monkeypatch: pytest.MonkeyPatch, *, epoch: int, step: int, do: Any) -> Iterator[None]:
    """Do something in the middle of a training step."""
    original = StudyModule.training_step

    def training_step(self: StudyModule, batch: Any, number: int) -> torch.Tensor:
        if (self.current_epoch, number) == (epoch, step):
            do()
        return original(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(StudyModule, "training_step", training_step)
        yield


def kill() -> None:
    raise Killed


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    c, d = (torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (one, other))
    kept = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return kept and all(torch.equal(c[name], d[name]) for name in c)


def test_a_member_learns_and_leaves_everything(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny_config(trainer={"epochs": 6}, optim={"lr": 1e-2}, augment={"noise": 0.0})
    result = train(tiny, tmp_path / "run" / "split", config)
    member = Member(tmp_path / "run" / "split")
    history = member.history()
    assert result.value == 1.0
    assert history["train_loss"].iloc[-1] < 0.8 * history["train_loss"].iloc[0]
    assert len(history) == result.epochs == 6
    assert {path.name for path in member.path.iterdir()} == {
        "weights.safetensors", "card.json", "last.ckpt", "history.csv", "tensorboard",
    }  # fmt: skip
    assert list((member.path / "tensorboard").iterdir())
    card = member.card()
    assert card["epoch"] == result.epoch
    assert card["split"] == "split"
    assert len(card["data_signature"]) == 64
    assert 0 <= result.times["data_wait_share"] <= 1


def test_validation_in_training_equals_scoring_the_saved_weights(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny, tmp_path / "m", tiny_config(optim={"ema_decay": 0.5}))
    member = Member(tmp_path / "m")
    loaded = load_member(member, device=torch.device("cpu"))
    scored = score_studies(loaded.predictor, StudyDataset(tiny.cases[8:], tiny.entries, store=tiny.store))
    row = member.history().iloc[result.epoch]
    assert row["val_loss"] == pytest.approx(study_metric("loss", "binary", scored.targets, scored.scores), abs=1e-12)
    assert row["val_auc"] == study_metric("auc", "binary", scored.targets, scored.scores)


RICH = {
    "network": {"name": "c3d", "width": 0.0625},
    "optim": {"ema_decay": 0.9, "accumulate": 2, "batch_size": 3, "label_smoothing": 0.1},
    "augment": {"mixup": 0.4, "elastic": 1.0, "slice_dropout": 0.2},
    "data": {"balance": "sampler"},
}


@pytest.mark.parametrize("sections", [{}, RICH], ids=["plain", "everything"])
def test_a_killed_training_goes_on_bit_for_bit(
    sections: dict[str, Any], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**sections)
    train(tiny, tmp_path / "whole", config)
    with at_step(monkeypatch, epoch=2, step=1, do=kill), pytest.raises(Killed):
        train(tiny, tmp_path / "killed", config)
    assert len(Member(tmp_path / "killed").history()) == 2
    torch.manual_seed(1234)  # the caller's random numbers must not matter
    train(tiny, tmp_path / "killed", config, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    one, other = (Member(tmp_path / name).history()[NUMBERS] for name in ("whole", "killed"))
    assert one.equals(other)


def test_killed_between_weights_and_checkpoint(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    train(tiny, tmp_path / "whole", config)
    original = callbacks.EpochEnd._checkpoint

    def checkpoint(self: callbacks.EpochEnd, trainer: Any) -> None:
        if trainer.current_epoch == 2:
            raise Killed
        original(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.EpochEnd, "_checkpoint", checkpoint)
        with pytest.raises(Killed):
            train(tiny, tmp_path / "killed", config)
    train(tiny, tmp_path / "killed", config, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    one, other = (Member(tmp_path / name).history()[NUMBERS] for name in ("whole", "killed"))
    assert one.equals(other)


def test_loading_processes_change_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(trainer={"epochs": 3})
    train(tiny, tmp_path / "here", config)
    several = tiny_config(trainer={"epochs": 3, "workers": 2})
    with at_step(monkeypatch, epoch=1, step=1, do=kill), pytest.raises(Killed):
        train(tiny, tmp_path / "there", several)
    train(tiny, tmp_path / "there", several, resume=True)
    assert same_weights(tmp_path / "here", tmp_path / "there")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_can_be_gone_on_with(
    number: signal.Signals, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    steps: list[int] = []
    config = tiny_config(trainer={"epochs": 3})

    def send() -> None:
        os.kill(os.getpid(), number)
        steps.append(1)

    with at_step(monkeypatch, epoch=1, step=0, do=send), pytest.raises(Interrupted, match=f"--resume {tmp_path}$"):
        train(tiny, tmp_path / "m", config)
    assert steps == [1]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert len(Member(tmp_path / "m").history()) == 1
    train(tiny, tmp_path / "m", config, resume=True)
    train(tiny, tmp_path / "whole", config)
    assert same_weights(tmp_path / "whole", tmp_path / "m")


def test_a_second_signal_is_obeyed_at_once_and_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    flag = StopFlag()
    with Signals(flag) as signals:
        signals.install()
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_caller_is_left_as_he_was(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    level = logging.getLogger("pytorch_lightning").level
    train(tiny, tmp_path / "m", tiny_config(trainer={"epochs": 1}))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert logging.getLogger("pytorch_lightning").level == level


def test_patience_ends_and_is_remembered(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(trainer={"epochs": 9, "patience": 2})
    result = train(tiny, tmp_path / "m", config)  # the first epoch has an AUC of 1 already
    assert result.value == 1.0
    assert result.epochs == 3
    again = train(tiny, tmp_path / "m", config, resume=True)
    assert again.epochs == 3


def test_among_equal_metrics_the_lower_loss_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny, tmp_path / "m", tiny_config())
    history = Member(tmp_path / "m").history()
    assert (history["val_auc"] == 1.0).all()
    assert Member(tmp_path / "m").card()["epoch"] == history["val_loss"].idxmin()


def test_without_validation_the_last_weights_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny, tmp_path / "m", tiny_config(), validation=0)
    assert (result.metric, result.value, result.epoch) == ("", None, 3)
    state = torch.load(tmp_path / "m" / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_file(tmp_path / "m" / "weights.safetensors")
    assert all(torch.equal(state[f"network.{name}"], tensor) for name, tensor in kept.items())
    assert "val_loss" not in Member(tmp_path / "m").history()


def test_a_metric_that_validation_cannot_carry_gives_way_to_the_loss(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.cases.sort(key=lambda case: float(case.target[0]))  # the last ones are all positive
    with caplog.at_level(logging.WARNING):
        result = train(tiny, tmp_path / "m", tiny_config(trainer={"epochs": 1}))
    assert result.metric == "loss"
    assert "auc is not defined on the 4 validation studies" in caplog.text


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_other_tasks(task: str, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "store", task=task)
    config = tiny_config(optim={"lr": 1e-2}, augment={"mixup": 0.2}, data={"balance": "none"})
    result = train(tiny, tmp_path / "m", config)
    loaded = load_member(Member(tmp_path / "m"), device=torch.device("cpu"))
    scored = score_studies(loaded.predictor, StudyDataset(tiny.cases[8:], tiny.entries, store=tiny.store))
    assert result.value == pytest.approx(study_metric("auto", task, scored.targets, scored.scores))
    if task == "regression":
        targets = np.array([case.target[0] for case in tiny.cases[:8]], dtype=np.float64)
        assert loaded.card["regression"]["mean"] == pytest.approx([targets.mean()])
        assert loaded.card["regression"]["std"] == pytest.approx([targets.std()])
        assert 900 < scored.scores.mean() < 1700  # in the target's own unit
    else:
        assert scored.scores.shape == (4, 2)


def test_slice_labels_teach_slicewise_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_tiny(tmp_path / "store", slice_labels=True)
    weights = {}
    for weight in (0.0, 2.0):
        config = tiny_config(data={"slice_label_weight": weight}, trainer={"epochs": 2})
        train(tiny, tmp_path / f"m{weight}", config)
        weights[weight] = load_file(tmp_path / f"m{weight}" / "weights.safetensors")
    assert any(not torch.equal(weights[0.0][name], weights[2.0][name]) for name in weights[0.0])
    other = tiny_config(network={"name": "c3d", "width": 0.0625}, trainer={"epochs": 1})
    train(tiny, tmp_path / "c3d", other)  # a network that is not slicewise leaves them alone


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_study_that_cannot_be_read_is_quarantined(part: str, tiny: Tiny, tmp_path: Path) -> None:
    victim = tiny.cases[2 if part == "train" else 9]
    Path(tiny.entries[victim.series.uid].path).write_bytes(b"nothing")
    result = train(tiny, tmp_path / "m", tiny_config())
    assert result.epochs == 4
    assert [problem.study for problem in result.problems] == [victim.study]
    assert result.problems[0].code == "store-damaged"
    assert np.isfinite(Member(tmp_path / "m").history()["train_loss"]).all()


def test_a_batch_without_a_readable_study_is_no_end(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "store", task="multiclass")  # the mean loss of no study at all would be no number
    for case in tiny.cases[:6]:
        Path(tiny.entries[case.series.uid].path).write_bytes(b"nothing")
    result = train(tiny, tmp_path / "m", tiny_config(optim={"batch_size": 1}, trainer={"epochs": 2}))
    assert len(result.problems) == 6
    assert np.isfinite(Member(tmp_path / "m").history()["train_loss"]).all()


def test_no_study_at_all(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no study to train on"):
        fit_member(
            tiny_config(),
            tiny.subject,
            member=Member(tmp_path / "m"),
            train=[],
            validation=[],
            entries={},
            store=tiny.store,
        )


def test_a_loss_that_is_no_number_says_where(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny_config(optim={"lr": 1e30, "clip_norm": 0, "warmup_epochs": 0, "schedule": "constant"})
    with pytest.raises(RunError, match=r"epoch \d, step \d, at learning rate 1e\+30") as caught:
        train(tiny, tmp_path / "m", config)
    assert caught.value.code == "loss-not-finite"


def test_out_of_memory_names_what_to_change(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with (
        at_step(monkeypatch, epoch=0, step=1, do=exhaust),
        pytest.raises(RunError, match=r"optim\.batch_size 4") as caught,
    ):
        train(tiny, tmp_path / "m", tiny_config())
    assert caught.value.code == "out-of-memory"
    assert "optim.accumulate" in caught.value.remedy


def test_a_worker_that_dies_is_told_with_its_study(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = KeptOpen.open
    victim = tiny.cases[3]

    def die(self: KeptOpen, entry: Any) -> Any:
        if entry.uid == victim.series.uid and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, entry)

    monkeypatch.setattr(KeptOpen, "open", die)
    with pytest.raises(RunError, match=f"was reading {victim.study}") as caught:
        train(tiny, tmp_path / "m", tiny_config(trainer={"workers": 1}))
    assert caught.value.code == "worker-died"


def test_a_damaged_checkpoint_is_said(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "last.ckpt").write_bytes(b"\x00" * 100)
    with pytest.raises(RunError, match="checkpoint cannot be read"):
        train(tiny, tmp_path / "m", tiny_config(), resume=True)


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"trainer": {"precision": "16"}}, "trainer.precision is 16"),
        ({"trainer": {"mlflow": "/somewhere"}}, r"volrec\[mlflow\]"),
        ({"network": {"name": "c4d"}}, "no network 'c4d'"),
        ({"network": {"name": "c3d", "options": {"drpout": 0.1}}}, "drpout"),
        ({"protocol": {"metric": "r2"}}, "no metric 'r2'"),
    ],
)
def test_settings_that_do_not_fit(
    sections: dict[str, Any], match: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match=match):
        train(tiny, tmp_path / "m", tiny_config(**sections))
    assert not (tmp_path / "m").exists()


def test_bf16_is_refused_where_the_processor_has_none(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    with pytest.raises(ConfigError, match="many times slower"):
        train(tiny, tmp_path / "m", tiny_config(trainer={"precision": "bf16"}))


def test_kept_volumes_are_bounded_and_never_sent(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptOpen, "limit", 3)
    store = KeptOpen(tiny.store)
    for entry in tiny.entries.values():
        assert store.open(entry) is store.open(entry)
    assert len(store._volumes) == 3
    assert pickle.loads(pickle.dumps(store))._volumes == {}  # noqa: S301
    assert len(pickle.dumps(store)) < 3000


def test_notes_of_studies_in_hand() -> None:
    clips = WatchedClips.__new__(WatchedClips)
    assert clips.studies_in_hand() == []


def test_mlflow_gets_the_numbers(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the four calls that are used: the real package is an extra of 36 packages."""
    seen: dict[str, Any] = {"metrics": [], "params": {}, "runs": 0}

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            seen["uri"] = tracking_uri

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            seen["runs"] += 1
            return type("R", (), {"info": type("I", (), {"run_id": "abc"})})

        def log_param(self, run: str, key: str, value: str) -> None:
            seen["params"][key] = value

        def log_metric(self, run: str, key: str, value: float, step: int) -> None:
            seen["metrics"].append((key, step, value))

        def set_terminated(self, run: str, status: str) -> None:
            seen["status"] = status

    module = ModuleType("mlflow")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    module.exceptions = type("E", (), {"MlflowException": RuntimeError})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    config = tiny_config(trainer={"mlflow": "file:/x", "epochs": 2})
    with at_step(monkeypatch, epoch=1, step=0, do=kill), pytest.raises(Killed):
        train(tiny, tmp_path / "m", config)
    assert seen["status"] == "KILLED"
    train(tiny, tmp_path / "m", config, resume=True)
    assert (seen["uri"], seen["runs"], seen["status"]) == ("file:/x", 1, "FINISHED")
    assert seen["params"]["optim.batch_size"] == "4"
    losses = [(step, value) for key, step, value in seen["metrics"] if key == "train_loss"]
    assert [step for step, _ in losses] == [0, 1]
    assert losses[1][1] == Member(tmp_path / "m").history()["train_loss"][1]
