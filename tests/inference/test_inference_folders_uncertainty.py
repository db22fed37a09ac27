"""Uncertainty of a study against SciPy's entropy, scikit-learn's mutual information and cases that are plain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as reference
from sklearn.metrics import mutual_info_score

from volrec.inference.uncertainty import entropy, uncertainty


def softmaxed(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values = np.exp(rng.normal(0, 2, shape))
    return values / values.sum(axis=-1, keepdims=True)


def test_entropy_is_that_of_scipy_for_every_task() -> None:
    rng = np.random.default_rng(0)
    several = softmaxed(rng, 5)
    assert entropy(several, "multiclass") == pytest.approx([reference(several, base=2)])
    labels = rng.uniform(0, 1, 3)
    each = [reference([p, 1 - p], base=2) for p in labels]
    np.testing.assert_allclose(entropy(labels, "multilabel"), each)
    np.testing.assert_allclose(entropy(labels[:1], "binary"), each[:1])
    heads = np.concatenate([softmaxed(rng, 2), softmaxed(rng, 3)])
    expected = [reference(heads[:2], base=2), reference(heads[2:], base=2)]
    np.testing.assert_allclose(entropy(heads, "multihead", heads=(2, 3)), expected)
    found = uncertainty(heads[None], task="multihead", names=["a=0", "a=1", "b=0", "b=1", "b=2"], heads=(2, 3))
    assert found == {"entropy": pytest.approx(max(expected))}


def test_members_that_contradict_each_other_disagree_by_one_bit_and_a_coin_by_none() -> None:
    torn = uncertainty(np.array([[0.0], [1.0]]), task="binary", names=["yes"])
    assert torn == {"spread": 0.5, "entropy": 1.0, "disagreement": 1.0}
    coin = uncertainty(np.array([[0.5], [0.5]]), task="binary", names=["yes"])
    assert coin == {"spread": 0.0, "entropy": 1.0, "disagreement": 0.0}
    sure = uncertainty(np.array([[1.0], [1.0]]), task="binary", names=["yes"])
    assert sure == {"spread": 0.0, "entropy": 0.0, "disagreement": 0.0}


def test_disagreement_is_the_mutual_information_of_member_and_class() -> None:
    # Counts of a table member x class, as scikit-learn takes it (in nats).
    counts = np.array([[6, 1, 1], [2, 2, 4], [0, 8, 0]])
    found = uncertainty(counts / 8, task="multiclass", names=list("abc"))
    expected = mutual_info_score(None, None, contingency=counts) / np.log(2)
    assert found["disagreement"] == pytest.approx(expected)


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_votes_count_as_if_members_were_repeated(members: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = softmaxed(rng, members, classes)
    times = rng.integers(1, 4, members)
    names = [str(number) for number in range(classes)]
    weighted = uncertainty(scores, task="multiclass", names=names, votes=times / times.sum())
    repeated = uncertainty(np.repeat(scores, times, axis=0), task="multiclass", names=names)
    assert weighted == pytest.approx(repeated, abs=1e-9)
    assert 0 <= weighted["disagreement"] <= weighted["entropy"] + 1e-12
    assert weighted["entropy"] <= np.log2(classes) + 1e-12


def test_quantities_have_a_spread_each_and_no_entropy() -> None:
    values = np.array([[1000.0, 40.0], [1200.0, 41.0], [1100.0, 45.0]])
    found = uncertainty(values, task="regression", names=["volume", "age"])
    assert found == pytest.approx({"spread_volume": values[:, 0].std(), "spread_age": values[:, 1].std()})
    assert uncertainty(values[:, :1], task="regression", names=["volume"]) == {"spread": pytest.approx(81.64965)}
    assert uncertainty(values[:1], task="regression", names=["volume", "age"]) == {}
