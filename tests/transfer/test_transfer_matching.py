"""Head, loss and shuffled orders of the question whether slices and a clip belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from volrec import networks
from volrec.errors import ConfigError, VolrecError
from volrec.transfer.matching import MatchingHead, MatchingNetwork, PairLogits, matching_loss, shuffled_order


def head(**changes) -> MatchingHead:
    values = {
        "teacher_features": 12,
        "student_features": 20,
        "projection": None,
        "hidden": [7, 5],
        "head": "concat",
        "dropout": 0.0,
    }
    return MatchingHead(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "projected", "read"),
    [
        ({}, 12, 24),
        ({"projection": 9}, 9, 21),
        ({"projection": 0}, 20, 32),
        ({"head": "product"}, 12, 36),
        ({"head": "product", "projection": 12}, 12, 36),
        ({"head": "product", "projection": 0, "student_features": 12}, 12, 36),
        ({"hidden": [3]}, 12, 24),
    ],
)
def test_lengths_of_the_heads(changes: dict, projected: int, read: int) -> None:
    made = head(**changes)
    hidden = changes.get("hidden", [7, 5])
    sizes = [(layer.in_features, layer.out_features) for layer in made.layers if isinstance(layer, nn.Linear)]
    assert sizes == list(zip([read, *hidden], [*hidden, 1], strict=True))
    assert made.projection(torch.zeros(4, changes.get("student_features", 20))).shape == (4, projected)
    assert made(torch.zeros(4, 12), torch.zeros(4, projected)).shape == (4,)
    assert made(torch.zeros(2, 3, 12), torch.zeros(2, 3, projected)).shape == (2, 3)


@pytest.mark.parametrize("projection", [0, 9])
def test_a_product_of_different_lengths_is_refused(projection: int) -> None:
    with pytest.raises(ConfigError, match=r"the teacher's 12 features with the student's (20|9)"):
        head(head="product", projection=projection)


@pytest.mark.parametrize("kind", ["concat", "product"])
def test_the_answer_is_what_the_layers_say_of_both_features(kind: str) -> None:
    made = head(head=kind, dropout=0.4).eval()
    slices, clips = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))
    parts = [slices, clips, slices * clips] if kind == "product" else [slices, clips]
    values = np.concatenate([part.double().numpy() for part in parts], axis=1)
    linear = [layer for layer in made.layers if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(linear):
        values = values @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        values = np.maximum(values, 0) if number < len(linear) - 1 else values
    np.testing.assert_allclose(made(slices, clips).detach(), values[:, 0], atol=1e-5)
    assert isinstance(made.layers[0], nn.Dropout) and made.layers[0].p == 0.4
    assert sum(parameter.numel() for parameter in made.teacher_norm.parameters()) == 0


def test_the_network_asks_the_student_for_what_it_says_before_its_classifier() -> None:
    student = networks.create("slice-mean", num_classes=3, in_channels=1, width=0.0625)
    network = MatchingNetwork(student, head(student_features=student.num_features)).eval()
    clips = torch.randn(2, 1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    features = student.forward_head(student.forward_features(clips), pre_logits=True)
    assert features.shape == (2, student.num_features)
    assert torch.equal(network(clips), network.head.projection(features))
    assert not any(parameter.requires_grad for parameter in student.get_classifier().parameters())
    with pytest.raises(VolrecError):
        network(torch.zeros(2, 3, 5, 32, 32))


def pairs(**numbers: int) -> PairLogits:
    generator = torch.Generator().manual_seed(1)
    counts = {"match": 4, "patient": 9, "place": 3, "order": 2, **numbers}
    return PairLogits(
        **{name: (3 * torch.randn(count, generator=generator)).requires_grad_() for name, count in counts.items()}
    )


def loss_by_hand(asked: PairLogits, negatives: dict[str, float]) -> float:
    def mean(logits: torch.Tensor, sign: int) -> float:
        return sum(math.log1p(math.exp(sign * float(value))) for value in logits.detach()) / len(logits)

    total = weight = 0.0
    for kind, share in negatives.items():
        if len(getattr(asked, kind)) and share:
            total, weight = total + share * mean(getattr(asked, kind), +1), weight + share
    match = mean(asked.match, -1)
    return 0.5 * match + 0.5 * total / weight if weight else match


@pytest.mark.parametrize(
    "negatives",
    [
        {"patient": 0.5, "place": 0.25, "order": 0.25},
        {"patient": 3.0, "place": 1.0},
        {"place": 0.1},
        {"patient": 1.0, "order": 0.0},
    ],
)
@pytest.mark.parametrize("empty", [[], ["place"], ["place", "patient"], ["patient", "place", "order"]])
def test_half_the_weight_is_on_matches_and_the_mix_on_what_is_there(
    negatives: dict[str, float], empty: list[str]
) -> None:
    asked = pairs(**dict.fromkeys(empty, 0))
    loss, parts = matching_loss(asked, negatives)
    assert loss.item() == pytest.approx(loss_by_hand(asked, negatives), rel=1e-6)
    assert set(parts) == {"match", *(kind for kind, share in negatives.items() if share and kind not in empty)}
    loss.backward()
    assert asked.match.grad is not None and (asked.match.grad < 0).all()
    for kind in ("patient", "place", "order"):
        asked_for = kind in parts
        grad = getattr(asked, kind).grad
        assert (grad is not None and (grad > 0).all()) if asked_for else grad is None


def test_large_logits_give_finite_losses() -> None:
    huge = PairLogits(*(torch.tensor([sign * 500.0]) for sign in (-1, 1, 1, 1)))
    assert matching_loss(huge, {"patient": 1.0})[0].item() == pytest.approx(500.0)


@pytest.mark.parametrize("length", [3, 4, 9])
def test_an_order_is_never_the_true_one_nor_its_mirror_image(length: int) -> None:
    orders = shuffled_order(300, length, torch.Generator().manual_seed(0))
    assert orders.shape == (300, length)
    assert (orders.sort(dim=1).values == torch.arange(length)).all()
    straight = torch.arange(length)
    assert not (orders == straight).all(dim=1).any()
    assert not (orders == straight.flip(0)).all(dim=1).any()
    every = math.factorial(length) - 2
    if every < 30:
        assert len(torch.unique(orders, dim=0)) == every
    assert torch.equal(orders, shuffled_order(300, length, torch.Generator().manual_seed(0)))
    assert shuffled_order(0, length, torch.Generator()).shape == (0, length)


@pytest.mark.parametrize("length", [1, 2])
def test_clips_too_short_to_be_shuffled_are_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"clips of {length} slices"):
        shuffled_order(1, length, torch.Generator())
