from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.layers.vlad import VladPooling, normalise_words, unit_length

WORDS, FEATURES = 5, 7


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def descriptors(*size: int) -> torch.Tensor:
    return F.normalize(torch.randn(*size, FEATURES), dim=-1)


def pooling(alpha: float = 1000.0) -> VladPooling:
    return VladPooling(WORDS, FEATURES, alpha=alpha)


def brute(x: np.ndarray, centres: np.ndarray, share) -> np.ndarray:
    """VLAD vector of descriptors (P, D) by loops; `share` turns squared distances (K,) into shares."""
    sums = np.zeros_like(centres)
    for each in x:
        shares = share(((each - centres) ** 2).sum(1))
        for word, centre in enumerate(centres):
            sums[word] += shares[word] * (each - centre)
    for word in sums:
        if np.linalg.norm(word) > 0:
            word /= np.linalg.norm(word)
    return sums.ravel() / np.linalg.norm(sums)


class TestVladVector:
    def test_of_sharp_shares_is_that_of_hard_assignment(self):
        layer = pooling(alpha=1e6).double()
        x = descriptors(2, 40).double()
        found = normalise_words(layer(x)).detach().numpy()
        centres = layer.centres.detach().numpy()
        for volume, vector in zip(x.numpy(), found, strict=True):
            np.testing.assert_allclose(vector, brute(volume, centres, lambda d: d == d.min()), atol=1e-9)

    @pytest.mark.parametrize("alpha", [0.5, 10.0, 1000.0])
    def test_equals_loops_in_float64(self, alpha):
        layer = pooling(alpha)
        x = descriptors(2, 30)
        centres = layer.centres.detach().double().numpy()

        def share(distances: np.ndarray) -> np.ndarray:
            powers = np.exp(-alpha * (distances - distances.min()))
            return powers / powers.sum()

        found = normalise_words(layer(x)).detach().double().numpy()
        for volume, vector in zip(x.double().numpy(), found, strict=True):
            np.testing.assert_allclose(vector, brute(volume, centres, share), atol=3e-4)

    def test_has_length_one_and_so_has_every_word(self):
        vector = normalise_words(pooling(10.0)(descriptors(3, 50)))
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(3))
        words = vector.unflatten(1, (WORDS, FEATURES)).norm(dim=2)
        torch.testing.assert_close(words, torch.full((3, WORDS), WORDS**-0.5))

    def test_is_the_same_for_descriptors_in_any_order(self):
        layer, x = pooling(20.0), descriptors(1, 60)
        torch.testing.assert_close(layer(x[:, torch.randperm(60)]), layer(x))

    def test_sums_of_parts_add_up(self):
        layer, x = pooling(20.0), descriptors(2, 60)
        torch.testing.assert_close(layer(x[:, :13]) + layer(x[:, 13:]), layer(x))


class TestLearning:
    def test_gradients_are_those_of_finite_differences(self):
        layer = pooling(3.0).double()
        x = (descriptors(1, 6).double() * 1.3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, *_: normalise_words(layer(x)), (x, *layer.parameters()))

    def test_shares_and_centres_are_trained_apart(self):
        layer, x = pooling(3.0), descriptors(1, 20)
        before = layer.shares(x)
        with torch.no_grad():
            layer.centres += 0.1
        assert torch.equal(layer.shares(x), before)
        sums = layer(x)
        with torch.no_grad():
            layer.weight += 0.1 * torch.randn_like(layer.weight)
        assert not torch.allclose(layer(x), sums)
        assert [parameter.numel() for parameter in VladPooling(64, 512, alpha=1.0).parameters()] == [32768, 64, 32768]

    def test_words_set_centres_and_shares(self):
        layer, x = pooling(12.0), descriptors(1, 20)
        words = torch.randn(WORDS, FEATURES)
        layer.set_words(words)
        assert torch.equal(layer.centres, words)
        expected = (-12 * torch.cdist(x, words[None]).square()).softmax(-1)
        torch.testing.assert_close(layer.shares(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.shares(x).sum(-1), torch.ones(1, 20))

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (torch.zeros(WORDS, FEATURES + 1), r"5 x 7 values .* got words of shape \(5, 8\)"),
            (torch.full((WORDS, FEATURES), torch.nan), "words must be finite"),
        ],
    )
    def test_refuses_other_words(self, words, told):
        with pytest.raises(ConfigError, match=told):
            pooling().set_words(words)


class TestNumbers:
    def test_descriptors_without_length_stay_zero_and_pass_no_gradient(self):
        x = torch.zeros(2, 4)
        x[0] = torch.tensor([3.0, 0.0, 4.0, 0.0])
        x.requires_grad_()
        out = unit_length(x, 1)
        assert out.tolist() == [[pytest.approx(0.6), 0, pytest.approx(0.8), 0], [0, 0, 0, 0]]
        out.sum().backward()
        assert x.grad.isfinite().all()
        assert (x.grad[1] == 0).all()

    def test_words_that_nothing_falls_to_stay_zero(self):
        layer = pooling()
        words = torch.eye(FEATURES)[:WORDS]
        layer.set_words(words)
        x = F.normalize(words[:1] + 0.01 * torch.randn(1, 9, FEATURES), dim=-1)
        vector = normalise_words(layer(x)).unflatten(1, (WORDS, FEATURES))
        assert vector[0].norm(dim=1).tolist() == [pytest.approx(1), 0, 0, 0, 0]
        vector.square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())

    def test_sharp_shares_keep_their_digits_under_autocast(self):
        layer, x = pooling(1000.0), descriptors(2, 200)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(x)
            coarse = layer(x.bfloat16())
        assert found.dtype == coarse.dtype == torch.float32
        assert torch.equal(found, layer(x))
        assert torch.equal(coarse, layer(x.bfloat16().float()))

    def test_runs_in_half_precision_throughout(self):
        layer = pooling(10.0)
        x = descriptors(1, 20)
        assert (layer.bfloat16()(x.bfloat16()) - pooling(10.0).float()(x)).isfinite().all()

    def test_draws_words_on_the_sphere(self):
        torch.testing.assert_close(pooling().centres.norm(dim=1), torch.ones(WORDS))
