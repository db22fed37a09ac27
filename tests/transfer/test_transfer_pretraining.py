"""One step of a pretraining: which losses are taken of which slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_studies import pretrain_config

from volrec.transfer.losses import nt_xent, vicreg
from volrec.transfer.pretraining import SliceModule, SliceNetwork


def module_of(*, task: str = "none", outputs: int = 0, scaling: Any = None, **sections: Any) -> SliceModule:
    values = pretrain_config(**sections).to_dict()
    return SliceModule(
        **{name: values[name] for name in ("backbone", "method", "intensity", "views", "augment", "optim")},
        task=task,
        num_outputs=outputs,
        scaling=scaling,
        seed=0,
        steps_per_epoch=2,
        epochs=2,
    )


def batch_of(count: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(-200, 800, (count, 1, 2, 16, 16), generator=generator).to(torch.int16),
        "quantiles": torch.linspace(-200, 800, 1001).repeat(count, 1),
        "target": torch.empty(count, 0),
        "place": torch.arange(count) * 30.0,
        "study": torch.arange(count),
        "valid": torch.ones(count, dtype=torch.bool),
        **more,
    }


class Shown(torch.nn.Module):
    """Stands for the network: gives rows that are known, and remembers what it was shown."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.seen = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.rows


STILL = {"views": {"window_level": 0.0, "window_width": 0.0}, "augment": {"shift": 0.0, "noise": 0.0}}


def test_first_views_stand_before_second_ones() -> None:
    module = module_of(method={"name": "vicreg"}, **STILL)
    module.network = shown = Shown(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))  # type: ignore[assignment]
    batch = batch_of(3)
    loss = module.training_step(batch, 0)
    assert loss.item() == pytest.approx(vicreg(*shown.rows.chunk(2), weights=(25.0, 25.0, 1.0)).item())
    # Percentiles 0.5 and 99.5 of -200 … 800 are -195 and 795.
    expected = (batch["image"][:, 0].float().clip(-195, 795) + 195) / 990
    np.testing.assert_allclose(shown.seen[:3, 0], expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(shown.seen[3:, 0], expected[:, 1], atol=1e-5)


def test_places_beside_each_other_in_one_study_are_no_negatives() -> None:
    module = module_of(method={"name": "simclr", "temperature": 0.3}, **STILL)  # neighbours at most 3.01 mm apart
    module.network = shown = Shown(torch.randn(10, 4, generator=torch.Generator().manual_seed(1)))  # type: ignore[assignment]
    batch = batch_of(5, study=torch.tensor([0, 0, 1, 0, 1]), place=torch.tensor([3.0, 6.0, 6.0, 12.0, 6.0]))
    alike = torch.eye(5, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = True  # 3 mm apart
    alike[2, 4] = alike[4, 2] = True  # the same place twice; 6 mm of another study is another place
    found = module.training_step(batch, 0).item()
    assert found == pytest.approx(nt_xent(*shown.rows.chunk(2), temperature=0.3, alike=alike).item())
    assert found != pytest.approx(nt_xent(*shown.rows.chunk(2), temperature=0.3).item())


def cross_entropy(logit: float, target: float) -> float:
    return float(np.logaddexp(0, logit) - target * logit)


def test_labels_of_the_study_are_those_of_both_its_slices() -> None:
    module = module_of(task="binary", outputs=1, method={"name": "supervised"}, **STILL)
    logits = torch.tensor([[0.5], [-1.0], [2.0], [0.3]])
    module.network = Shown(logits)  # type: ignore[assignment]
    loss = module.training_step(batch_of(2, target=torch.tensor([[1.0], [0.0]])), 0).item()
    # First views of both studies, then second ones.
    expected = np.mean([cross_entropy(float(z), t) for z, t in zip(logits[:, 0], (1, 0, 1, 0), strict=True)])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_labels_of_slices_go_before_those_of_the_study_and_unknown_ones_do_not_count() -> None:
    module = module_of(task="binary", outputs=1, method={"name": "supervised"}, **STILL)
    logits = torch.tensor([[0.5], [-1.0], [2.0], [0.3]])
    module.network = Shown(logits)  # type: ignore[assignment]
    marks = torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    batch = batch_of(2, target=torch.tensor([[0.0], [0.0]]), slice_target=marks)
    expected = np.mean([cross_entropy(0.5, 1), cross_entropy(2.0, 0), cross_entropy(0.3, 1)])
    assert module.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_targets_of_a_regression_are_standardised() -> None:
    scaling = {"mean": [100.0], "std": [20.0]}
    module = module_of(task="regression", outputs=1, scaling=scaling, method={"name": "supervised"}, **STILL)
    module.network = Shown(torch.zeros(4, 1))  # type: ignore[assignment]
    one = module.training_step(batch_of(2, target=torch.tensor([[100.0], [100.0]])), 0).item()
    other = module.training_step(batch_of(2, target=torch.tensor([[120.0], [80.0]])), 0).item()
    assert one == 0.0
    assert other == pytest.approx(1.0) or other == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["simclr", "vicreg"])
def test_next_to_nothing_left_of_a_batch_is_a_loss_of_zero(method: str) -> None:
    module = module_of(method={"name": method})
    loss = module.training_step(batch_of(1), 0)
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    batch = batch_of(2, valid=torch.tensor([False, False]))
    assert module.training_step(batch, 0).item() == 0.0


@pytest.mark.parametrize("method", ["simclr", "vicreg"])
def test_every_parameter_learns(method: str) -> None:
    module = module_of(method={"name": method})
    module.training_step(batch_of(4), 0).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_head_is_a_projection_or_one_linear_layer() -> None:
    backbone: Any = torch.nn.Flatten()
    backbone.num_features = 12
    kinds = [type(layer).__name__ for layer in SliceNetwork(backbone, outputs=0, projection=[8, 6, 4]).head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    projected = SliceNetwork(backbone, outputs=0, projection=[8, 4]).eval()(torch.rand(3, 1, 3, 4))
    labels = SliceNetwork(backbone, outputs=2, projection=[8, 4])
    assert projected.shape == (3, 4)
    assert [type(layer).__name__ for layer in labels.head] == ["Linear"]
    assert labels(torch.rand(3, 1, 3, 4)).shape == (3, 2)


def test_a_step_is_a_function_of_seed_epoch_and_step() -> None:
    module = module_of(augment={"noise": 0.3, "shift": 3.0}).eval()
    losses = []
    for step, seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(seed)
        losses.append(module.training_step(batch_of(4), step).item())
    assert losses[0] == losses[1] != losses[2]
