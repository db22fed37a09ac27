"""The report on held-out patients: right numbers, the same pairs every time, and nobody who was taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from small_studies import SPACING, Small, make_small, prepared, small_teacher, spoil, transfer_config

from volrec.config import IntensityConfig
from volrec.data.entries import StoredVolume, study_quantiles, write_entry
from volrec.training.interrupts import StopFlag, StopTraining
from volrec.training.module import make_transform
from volrec.transfer import held_out as module
from volrec.transfer.features import TeacherFeatures, TeacherView
from volrec.transfer.held_out import HeldOut, bootstrap_pairs, intensity_statistics
from volrec.transfer.student import TransferModule

CPU = torch.device("cpu")


def network_of(config: Any) -> Any:
    values = config.to_dict()
    sections = {name: values[name] for name in ("network", "intensity", "augment", "matching", "optim")}
    made = TransferModule(
        **sections, spacing=None, teacher_features=32, seed=0, steps_per_epoch=1, epochs=1
    )  # fmt: skip
    return made.network.eval()


def held_of(small: Small, config: Any, *, held: int = 5, intensity: IntensityConfig | None = None) -> HeldOut:
    view = TeacherView(small_teacher(intensity=intensity), config.teacher.augment, seed=config.trainer.seed)
    features = TeacherFeatures(view, store=small.store, views=2)
    features.fill(small.cases[-held:], small.entries, device=CPU)  # type: ignore[arg-type]
    values = config.to_dict()
    return HeldOut(prepared(small, config, held=held), features, make_transform(values["intensity"], values["augment"]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Eight studies of seven patients; the last five are held out."""
    names = [*"abcdef", "f", "g"]
    return make_small(tmp_path_factory.mktemp("store"), count=8, shape=(14, 16, 16), pad=(1, 1), patients=names)


class TestBootstrap:
    def drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, 240)
        return labels, labels + rng.normal(0, 1.5, 240) - 0.3, rng.integers(0, 12, 240)

    def test_values_are_those_of_scikit_learn(self) -> None:
        labels, logits, patients = self.drawn()
        found = bootstrap_pairs(labels, logits, patients, seed=0)
        assert found["auc"][0] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
        assert found["accuracy"][0] == pytest.approx(balanced_accuracy_score(labels, logits > 0), abs=1e-12)

    def test_intervals_are_quantiles_over_patients_drawn_again(self) -> None:
        labels, logits, patients = self.drawn()
        found = bootstrap_pairs(labels, logits, patients, seed=3)
        rng = np.random.default_rng(99)
        values = []
        for _ in range(400):
            rows = np.concatenate([np.flatnonzero(patients == name) for name in rng.integers(0, 12, 12)])
            values.append(roc_auc_score(labels[rows], logits[rows]))
        value, low, high = found["auc"]
        assert low < value < high
        np.testing.assert_allclose([low, high], np.quantile(values, [0.025, 0.975]), atol=0.02)
        assert found == bootstrap_pairs(labels, logits, patients, seed=3)
        assert found != bootstrap_pairs(labels, logits, patients, seed=4)

    def test_many_pairs_of_few_patients_are_no_reason_to_be_sure(self) -> None:
        labels, logits, patients = self.drawn()
        few = bootstrap_pairs(np.tile(labels, 20), np.tile(logits, 20), np.tile(patients, 20), seed=0)
        once = bootstrap_pairs(labels, logits, patients, seed=0)
        assert few["auc"] == pytest.approx(once["auc"])

    def test_one_patient_has_no_interval(self) -> None:
        labels, logits, _ = self.drawn()
        value, low, high = bootstrap_pairs(labels, logits, np.zeros(240), seed=0)["auc"]
        assert np.isfinite(value) and np.isnan(low) and np.isnan(high)


def test_statistics_need_no_look_at_the_content() -> None:
    images = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = intensity_statistics(images)
    values = images.double().numpy()
    lit = [[(values[:, c] > (values[:, c].max() + values[:, c].min()) / 2).mean() for c in range(2)]]
    expected = [np.mean([values[:, c].mean() for c in range(2)]), np.mean([values[:, c].std(ddof=1) for c in range(2)])]
    np.testing.assert_allclose(found, [*expected, np.mean(lit)], atol=1e-6)
    moved = images[:, :, torch.randperm(8)][..., torch.randperm(8)]
    np.testing.assert_allclose(intensity_statistics(moved), found, atol=1e-6)


def answers_of(held: HeldOut, network: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return what a network's head was asked while it was validated."""
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = type(network.head).forward

    def forward(self: Any, slices: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        asked.append((slices.clone(), clips.clone()))
        return original(self, slices, clips)

    with monkeypatch.context() as patch:
        patch.setattr(type(network.head), "forward", forward)
        held.validate(network, stop=StopFlag())
    return asked


def test_every_epoch_asks_the_same_pairs(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transfer_config()
    network = network_of(config)
    held = held_of(small, config)
    first = answers_of(held, network, monkeypatch)
    torch.manual_seed(5)
    again = answers_of(held, network, monkeypatch)
    fresh = answers_of(held_of(small, config), network, monkeypatch)
    assert len(first) == 4
    for other in (again, fresh):
        assert all(
            torch.equal(a, b) for one, two in zip(first, other, strict=True) for a, b in zip(one, two, strict=True)
        )
    places = len(first[0][0])
    assert places == 5 * module.PLACES


def test_strangers_are_of_other_patients_and_never_of_those_taught(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transfer_config()
    held = held_of(small, config)
    asked = answers_of(held, network_of(config), monkeypatch)
    here, clips = asked[0]
    patients = np.repeat([case.patient for case in held.made.held], module.PLACES)
    strangers, seen = asked[1]

    def numbers(rows: torch.Tensor, known: torch.Tensor) -> list[int]:
        return [int((known == row).all(dim=1).nonzero()[0, 0]) for row in rows]

    asked_pairs = list(zip(numbers(strangers, here), numbers(seen, clips), strict=True))
    assert len(asked_pairs) == len(patients) * module.STRANGERS
    assert len(set(asked_pairs)) == len(asked_pairs)
    assert all(patients[one] != patients[other] for one, other in asked_pairs)
    assert not {case.patient for case in held.made.held} & {case.patient for case in held.made.train}


def test_the_report_agrees_with_scikit_learn_and_with_the_validation(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transfer_config()
    network, held = network_of(config), held_of(small, config)
    asked = answers_of(held, network, monkeypatch)
    with torch.no_grad():
        match, *others = [network.head(slices, clips).double().numpy() for slices, clips in asked]
    report = held.report(network)
    assert report.table["negatives"].tolist() == ["patient", "place", "order"]
    assert report.table["taught"].all()
    for logits, (_, line) in zip(others, report.table.iterrows(), strict=True):
        labels = np.r_[np.ones(len(match)), np.zeros(len(logits))]
        assert line["auc"] == pytest.approx(roc_auc_score(labels, np.r_[match, logits]), abs=1e-9)
        assert line["accuracy"] == pytest.approx(balanced_accuracy_score(labels, np.r_[match, logits] > 0), abs=1e-9)
        assert line["pairs"] == len(logits)
        assert line["auc_low"] <= line["auc"] <= line["auc_high"]
    assert report.facts["value"] == pytest.approx(report.table["auc"].mean())
    assert (report.facts["patients"], report.facts["matches"]) == (4, len(match))
    validation = held.validate(network, stop=StopFlag())
    assert validation.metric == pytest.approx(report.facts["value"])
    softplus = [np.logaddexp(0, -match).mean(), np.mean([np.logaddexp(0, logits).mean() for logits in others])]
    assert validation.loss == pytest.approx(np.mean(softplus))


def test_kinds_that_were_not_taught_are_measured_but_do_not_count(small: Small) -> None:
    config = transfer_config(matching={"negatives": {"place": 1.0, "order": 0.0}})
    network, held = network_of(config), held_of(small, config)
    report = held.report(network)
    lines = report.table.set_index("negatives")
    assert lines["taught"].to_dict() == {"patient": False, "place": True, "order": False}
    assert report.facts["value"] == lines.loc["place", "auc"]
    assert held.validate(network, stop=StopFlag()).metric == pytest.approx(lines.loc["place", "auc"])


def test_short_stacks_and_single_patients_are_measured_on_what_there_is(tmp_path: Path) -> None:
    small = make_small(tmp_path, count=3, shape=(4, 16, 16))
    config = transfer_config()
    report = held_of(small, config, held=2).report(network_of(config))
    assert report.table["negatives"].tolist() == ["patient", "order"]
    alone = held_of(small, config, held=1)
    report = alone.report(network_of(config))
    assert report.table["negatives"].tolist() == ["order"]
    assert np.isfinite(alone.validate(network_of(config), stop=StopFlag()).metric)
    strangers = transfer_config(matching={"negatives": {"patient": 1.0}})
    nothing = held_of(small, strangers, held=1).validate(network_of(strangers), stop=StopFlag())
    assert np.isnan(nothing.metric) and np.isfinite(nothing.loss)


@pytest.mark.parametrize("tones", [True, False])
def test_statistics_tell_studies_of_another_tone_unless_each_side_is_toned_by_itself(
    tmp_path: Path, tones: bool
) -> None:
    rng = np.random.default_rng(3)
    own = {"brightness": 300.0, "noise": 150.0, "contrast": 0.5, "shift": 0.0}
    augment = {"shift": 0.0, "noise": 0.0} if tones else own
    config = transfer_config(intensity={"kind": "none"}, augment=augment, teacher={"augment": augment})
    small = make_small(tmp_path, count=16)
    for number, tone in enumerate(np.linspace(-300, 300, 16) if tones else np.zeros(16)):
        array = rng.normal(tone, 40, (12, 16, 16)).astype(np.int16)
        meta = {"source_affine": np.diag([*SPACING, 1.0]).tolist(), "source_shape": [12, 16, 16]}
        volume = StoredVolume(array, np.diag([*SPACING, 1.0]), study_quantiles(array), meta)
        small.entries[f"1.2.{number}"] = write_entry(
            tmp_path, f"{number:040x}", volume, uid=f"1.2.{number}", format="npy"
        )
    held = held_of(small, config, held=16, intensity=IntensityConfig(kind="none"))
    alone = held.report(network_of(config)).table.set_index("negatives")["auc_of_statistics"]
    if tones:  # what is the same in both sides of a match gives it away
        assert alone["patient"] > 0.95
        assert alone["place"] > 0.5  # the same patient has the same tone; only the noise tells a little
    else:
        assert abs(alone["patient"] - 0.5) < 0.12 and abs(alone["place"] - 0.5) < 0.12
    assert alone["order"] == 0.5


def test_a_study_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    small = make_small(tmp_path, count=5)
    config = transfer_config()
    held = held_of(small, config, held=4)
    spoil(small, 2)
    path = held.features.path(small.entries["1.2.3"], "study-03")
    path.write_bytes(b"")
    report = held.report(network_of(config))
    assert report.facts["patients"] == 2
    for number in (1, 4):
        spoil(small, number)
    assert held.report(network_of(config)).facts == {}
    assert np.isnan(held.validate(network_of(config), stop=StopFlag()).metric)


def test_a_stop_is_obeyed_before_the_next_study(small: Small) -> None:
    config = transfer_config()
    flag = StopFlag()
    flag.requested = True
    with pytest.raises(StopTraining):
        held_of(small, config).validate(network_of(config), stop=flag)
