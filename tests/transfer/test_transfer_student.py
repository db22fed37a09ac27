"""One step of a transfer: which pairs are asked, what learns, and what is done when next to nothing is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_studies import small_teacher, transfer_config

from volrec.config import AugmentConfig
from volrec.errors import ConfigError
from volrec.training.optim import make_optimizer
from volrec.transfer.matching import MatchingHead
from volrec.transfer.student import TeacherStep, TransferModule, _check

FEATURES = 32


def module_of(**sections: Any) -> TransferModule:
    values = transfer_config(**sections).to_dict()
    return TransferModule(
        **{name: values[name] for name in ("network", "intensity", "augment", "matching", "optim")},
        spacing=[3.0, 1.0, 1.0],
        teacher_features=FEATURES,
        seed=0,
        steps_per_epoch=2,
        epochs=2,
    ).train()


def batch_of(patients: list[int], *, other: list[bool] | None = None, kept: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = len(patients)
    image = torch.randint(-200, 800, (count, 1, 4, 16, 16), generator=generator).to(torch.int16)
    batch = {
        "image": image,
        "quantiles": torch.linspace(-200, 800, 1001).repeat(count, 1),
        "patient": torch.tensor(patients),
        "has_other": torch.tensor(other or [True] * count),
        "valid": torch.ones(count, dtype=torch.bool),
        "study": torch.arange(count),
    }
    features = torch.randn(2, count, FEATURES, generator=generator)
    return batch | ({"teacher": features[0], "other": features[1]} if kept else {"other_image": image.flip(2)})


class Asked(torch.nn.Module):
    """A head that answers nothing and remembers what it was asked."""

    def __init__(self, head: MatchingHead) -> None:
        super().__init__()
        self.projection, self.teacher_norm, self.student_norm = torch.nn.Identity(), *[torch.nn.Identity()] * 2
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, slices: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        self.pairs.append((slices, clips))
        return slices.new_zeros(len(slices), requires_grad=True)


def asked_of(module: TransferModule, batch: dict[str, torch.Tensor]) -> dict[str, list[tuple[int, int]]]:
    """Return the pairs (slices, clip) of each kind by their numbers; slices of the other place count from 100."""
    head = Asked(module.network.head)
    module.network.head = head  # type: ignore[assignment]
    clips = len(batch["image"])
    features = torch.arange(clips * 2.0)[:, None]  # the clips, then the shuffled ones from `clips` on
    shuffled = clips // 2 if module.negatives.get("order") else 0
    here = torch.arange(clips * 1.0)[:, None]
    module._pairs(here, here + 100, features[: clips + clips - clips // 2 if shuffled else clips], batch, clips=clips)
    kinds = ("match", "patient", "place", "order")
    return {
        kind: list(zip(a[:, 0].int().tolist(), b[:, 0].int().tolist(), strict=True))
        for kind, (a, b) in zip(kinds, head.pairs, strict=True)
    }


def test_strangers_are_slices_of_other_patients_alone() -> None:
    asked = asked_of(module_of(), batch_of([7, 8, 7, 9]))
    assert asked["match"] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    patients = [7, 8, 7, 9]
    assert sorted(asked["patient"]) == [
        (a, b) for a in range(4) for b in range(4) if patients[a] != patients[b]
    ]  # fmt: skip
    assert (0, 2) not in asked["patient"] and (2, 0) not in asked["patient"]


def test_elsewhere_is_asked_where_there_is_one_and_order_of_the_second_half() -> None:
    asked = asked_of(module_of(), batch_of([1, 2, 3, 4, 5], other=[True, False, True, False, False]))
    assert asked["place"] == [(100, 0), (102, 2)]
    assert asked["order"] == [(2, 5), (3, 6), (4, 7)]  # the clips of the same studies, shuffled


def test_a_batch_of_one_patient_has_no_stranger() -> None:
    module = module_of()
    assert asked_of(module_of(), batch_of([3, 3, 3]))["patient"] == []
    loss = module.training_step(batch_of([3, 3, 3]), 0)
    assert loss.isfinite() and loss > 0


def test_shuffled_clips_are_those_of_the_second_half_with_their_slices_in_another_order() -> None:
    module = module_of()
    clips = torch.arange(5 * 4.0).view(5, 1, 4, 1, 1).expand(5, 1, 4, 2, 2)
    shuffled = module._shuffled(clips, torch.Generator().manual_seed(0))
    assert shuffled.shape == (3, 1, 4, 2, 2)
    for own, mixed in zip(clips[2:], shuffled, strict=True):
        assert sorted(mixed[0, :, 0, 0].tolist()) == own[0, :, 0, 0].tolist()
        assert not torch.equal(mixed, own) and not torch.equal(mixed, own.flip(1))
    without = module_of(matching={"negatives": {"patient": 1.0}})
    assert len(without._shuffled(clips, torch.Generator())) == 0


def test_only_student_and_head_learn() -> None:
    module = module_of()
    teacher = small_teacher()
    module.encode_with(TeacherStep(teacher, AugmentConfig()))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    module.training_step(batch_of([1, 2, 3, 4], kept=False), 0).backward()
    network = module.network
    classifier = {id(parameter) for parameter in network.student.get_classifier().parameters()}
    for name, parameter in network.named_parameters():
        if id(parameter) in classifier:
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any(name.startswith("_encoder") or "teacher." in name for name in module.state_dict())
    optimised = {
        id(p) for group in make_optimizer(network, module.hparams["optim"]).param_groups for p in group["params"]
    }
    assert not optimised & classifier
    assert optimised == {id(p) for p in network.parameters()} - classifier


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("mix", [{}, {"patient": 1.0}, {"place": 1.0}])
def test_a_single_study_gives_a_loss_of_zero_and_gradients_of_zero(kept: bool, mix: dict[str, float]) -> None:
    module = module_of(**({"matching": {"negatives": mix}} if mix else {}))
    module.encode_with(TeacherStep(small_teacher(), AugmentConfig()))
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    loss = module.training_step(batch_of([1], kept=kept), 0)
    assert loss.item() == 0.0
    loss.backward()
    wanted = [parameter for parameter in module.network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in wanted)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.network.state_dict().items())


def test_a_batch_that_lost_studies_goes_on_with_the_rest() -> None:
    module = module_of()
    batch: dict[str, Any] = batch_of([1, 2, 3, 4])
    batch["valid"] = torch.tensor([True, False, True, True])
    batch["problems"] = [{"study": "x"}]
    smaller = module.on_before_batch_transfer(batch, 0)
    assert smaller["patient"].tolist() == [1, 3, 4]
    assert module.training_step(smaller, 0).isfinite()
    batch = batch_of([1, 2])
    batch["valid"] = torch.tensor([False, False])
    batch["problems"] = [{"study": "x"}]
    assert module.training_step(module.on_before_batch_transfer(batch, 0), 0).item() == 0.0


def test_a_step_is_a_function_of_seed_epoch_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(matching={"dropout": 0.3})
    module.network.eval()  # running statistics would move
    module.network.head.layers.train()
    losses = []
    for step, seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(seed)
        losses.append(module.training_step(batch_of([1, 2, 3, 4]), step).item())
    assert losses[0] == losses[1] != losses[2]


def test_the_same_weights_begin_whatever_the_caller_drew() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = module_of().network.state_dict()
    assert torch.equal(torch.rand(1), expected)
    other = module_of().network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_teachers_step_encodes_slices_one_by_one_and_averages() -> None:
    teacher = small_teacher()
    batch = batch_of([1, 2, 3], kept=False)
    found = TeacherStep(teacher, AugmentConfig())(batch["image"], batch["quantiles"], 5)
    low, high = (float(batch["quantiles"][0, place]) for place in (5, 995))
    for study in range(3):
        slices = (batch["image"][study].float().movedim(0, 1).clip(low, high) - low) / (high - low)
        expected = np.mean([teacher(slices[t : t + 1])[0].double().numpy() for t in range(4)], axis=0)
        np.testing.assert_allclose(found[study], expected, atol=1e-4)
    step = TeacherStep(teacher, AugmentConfig(noise=0.5))
    one, again, other = (step(batch["image"], batch["quantiles"], seed) for seed in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_both_sides_are_augmented_by_draws_of_their_own() -> None:
    module = module_of()
    seeds: list[int] = []

    def step(images: torch.Tensor, quantiles: torch.Tensor, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return torch.randn(len(images), FEATURES)

    module.encode_with(step)  # type: ignore[arg-type]
    for number in range(2):
        module.training_step(batch_of([1, 2], kept=False), number)
    assert len(set(seeds)) == 4  # here and elsewhere, in each of two steps


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"augment": {"mixup": 0.2}}, r"augment\.mixup is 0\.2"),
        ({"sampling": {"clip_length": 2}}, "clips of 2 slices have no order"),
    ],
)
def test_settings_that_pairs_cannot_have(sections: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        _check(transfer_config(**sections))
    if "sampling" in sections:
        _check(transfer_config(matching={"negatives": {"patient": 1.0, "order": 0.0}}, **sections))
