"""The audit of networks whose use of context is known by design, and of scores that hold nothing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig, StreamsConfig
from volrec.data.entries import StoredVolume, study_quantiles
from volrec.errors import ConfigError
from volrec.evaluation.audit_conditions import AS_IS, FIXED
from volrec.evaluation.audit_memory import Remembering
from volrec.evaluation.audit_responses import AuditSettings, Journal, Responder, Responses, Scan
from volrec.evaluation.audit_summary import Audited, choose_windows, correlations, summarise
from volrec.inference import Predictor
from volrec.networks import SlicewiseNetwork, create

SLICES = 9


class Slices(SlicewiseNetwork):
    """Scores the mean, or the maximum, of the brightness of slices."""

    def __init__(self, pooling: str, outputs: int = 1) -> None:
        super().__init__(num_classes=outputs, in_channels=1, smallest=(1, 1, 1))
        self.weight = nn.Parameter(torch.ones(1))
        self.pooling = pooling
        self.encoded = 0

    def encode_maps(self, x: Tensor) -> Tensor:
        self.encoded += len(x)
        return x

    def embed_maps(self, maps: Tensor) -> Tensor:
        return maps.flatten(1)[:, : self.num_classes] * self.weight

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        return features.mean(1) if self.pooling == "mean" else features.amax(1)


class Order(nn.Module):
    """Scores how brightness changes from slice to slice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        profile = x.mean((1, 3, 4))
        return (profile[:, 1:] - profile[:, :-1]).clamp(-2, 2).sum(1, keepdim=True) * self.weight


def predictor(network: nn.Module, task: str = "binary", *, heads: tuple[int, ...] = (), **protocol: Any) -> Predictor:
    return Predictor(
        network,
        intensity=IntensityConfig(kind="none"),
        sampling=SamplingConfig(clip_length=SLICES, train="center"),
        protocol=ProtocolConfig(**protocol),
        task=task,
        heads=heads,
    )


def studies(kind: str, count: int = 60, seed: int = 1) -> list[tuple[StoredVolume, int]]:
    """Studies (9, 2, 2) whose class is in one bright slice, in all a little, in their order, or nowhere."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label, profile = number % 2, rng.normal(0, 0.3, SLICES)
        if kind == "one":
            profile[rng.integers(SLICES)] += 4 * label
        elif kind == "extent":
            profile = rng.normal(0.8 * label, 1.0, SLICES)
        elif kind == "order":
            profile = rng.normal(0, 0.1, SLICES) + np.arange(SLICES)[:: 1 if label else -1]
        array = np.repeat(profile, 4).reshape(SLICES, 2, 2).astype(np.float32)
        volume = StoredVolume(array, np.diag([2.0, 1, 1, 1]), study_quantiles(array))
        found.append((volume, label if kind != "nothing" else int(rng.integers(2))))
    return found


def audited(scorer: Predictor, kind: str, **options: Any) -> list[Audited]:
    responder = Responder([scorer], AuditSettings(**options))
    return [
        Audited(f"s{number}", f"p{number}", "", np.array([label]), responder.respond(volume, study=f"s{number}"))
        for number, (volume, label) in enumerate(studies(kind))
    ]


def value(result: dict[str, Any], condition: str, key: str = "value") -> float:
    return next(one for one in result["conditions"] if one["name"] == condition)["metrics"][result["metric"]][key]


def test_the_brightest_of_slices_is_one_slice() -> None:
    result, _ = summarise(audited(predictor(Slices("max")), "one"), task="binary")
    assert result["verdict"]["code"] == "one-slice"
    assert result["verdict"]["order"] == "cannot"
    assert value(result, "1 slice") > 0.99
    assert value(result, "middle slice") < 0.8
    assert result["verdict"]["reach"]["slices"] == 1


def test_a_mean_over_slices_is_extent_without_order() -> None:
    result, _ = summarise(audited(predictor(Slices("mean")), "extent"), task="binary")
    assert result["verdict"]["code"] == "needs-context"
    assert result["verdict"]["order"] == "cannot"
    assert value(result, "shuffled") == value(result, AS_IS) == value(result, "reversed")
    assert value(result, "1 slice") < value(result, AS_IS) - 0.05
    assert [point["slices"] for point in result["context"]] == [1, 3, 5, 9]
    assert result["context"][1]["millimetres"] == 6.0


def test_the_sign_of_the_change_between_slices_is_order() -> None:
    result, _ = summarise(audited(predictor(Order()), "order"), task="binary")
    assert result["verdict"]["code"] == "needs-context"
    assert result["verdict"]["order"] == "used"
    assert value(result, AS_IS) == 1.0
    assert value(result, "1 slice") == 0.5
    assert value(result, "reversed") == 0.0
    assert value(result, "every second slice") == 1.0
    assert result["verdict"]["reach"] == {"slices": 3, "millimetres": 6.0, "whole": False}


def test_nothing_is_said_of_a_network_that_learned_nothing() -> None:
    result, _ = summarise(audited(predictor(Slices("mean")), "nothing"), task="binary")
    assert result["verdict"]["code"] == "nothing-learned"


def noise(rng: np.random.Generator, count: int = 40, places: int = 30) -> list[Audited]:
    """Responses that know nothing of the class, though what one says of windows belongs to the whole study."""
    found = []
    for number in range(count):
        whole = rng.normal(0, 1, 1)
        fixed = dict.fromkeys(FIXED, whole)
        logits = rng.standard_t(3, (places, 1)) + 0.5 * whole
        scans = {1: Scan(np.arange(places), 1 / (1 + np.exp(-logits)), logits)}
        answer = Responses(places, 1.0, False, fixed, scans)
        found.append(Audited(f"s{number}", f"p{number}", "", np.array([number % 2]), answer))
    return found


def test_choosing_the_most_informative_slice_makes_nothing_of_noise() -> None:
    rng = np.random.default_rng(0)
    aucs = []
    for _ in range(300):
        drawn = noise(rng)
        chosen = choose_windows(drawn, 1, task="binary").scores[:, 0]
        aucs.append(roc_auc_score([one.target[0] for one in drawn], chosen))
    # The mean of 300 AUCs of 20 against 20 has a standard error of 0.0054.
    assert abs(np.mean(aucs) - 0.5) < 0.017


def test_what_the_whole_study_says_does_not_leak_into_the_choice() -> None:
    """Slices that know nothing, of a network that knows all of the whole study: a slice alone stays at chance."""
    rng = np.random.default_rng(1)
    aucs = []
    for _ in range(100):
        drawn = noise(rng)
        for one in drawn:
            logits = rng.normal(0, 1, one.responses.scans[1].logits.shape)
            one.responses.scans[1] = Scan(np.arange(len(logits)), logits, logits)
            one.responses.fixed[AS_IS] = np.array([float(one.target[0])])
        chosen = choose_windows(drawn, 1, task="binary").scores[:, 0]
        aucs.append(roc_auc_score([one.target[0] for one in drawn], chosen))
    assert abs(np.mean(aucs) - 0.5) < 0.03


def test_evidence_in_most_slices_and_against_is_found_alike() -> None:
    drawn = noise(np.random.default_rng(2), count=10, places=5)
    for one in drawn:
        sign = 2 * one.target[0] - 1
        logits = np.array([0.5, 3.0, 1.0, 0.8, 0.9])[:, None] * sign
        one.responses.scans[1] = Scan(np.arange(5), logits, logits)
    chosen = choose_windows(drawn, 1, task="binary")
    assert set(chosen.firsts.tolist()) == {1}


def test_of_slices_that_say_the_same_the_middle_one_is_taken() -> None:
    drawn = noise(np.random.default_rng(2), count=4, places=7)
    for one in drawn:
        one.responses.scans[1] = Scan(np.arange(7), np.ones((7, 1)), np.ones((7, 1)))
    assert choose_windows(drawn, 1, task="binary").firsts.tolist() == [3] * 4


def test_exclusive_classes_are_compared_without_their_common_part() -> None:
    drawn = noise(np.random.default_rng(2), count=6, places=4)
    for one in drawn:
        logits = np.array([[0.0, 0, 0], [9, 9, 9], [2, -1, -1], [0.1, 0, 0]])
        one.responses.scans[1] = Scan(np.arange(4), logits, logits)
        one.responses.fixed[AS_IS] = np.zeros(3)
    assert choose_windows(drawn, 1, task="multiclass").firsts.tolist() == [2] * 6


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "multihead", "regression"])
def test_other_tasks_have_conditions_intervals_and_a_verdict(task: str) -> None:
    heads = (2, 2) if task == "multihead" else ()
    outputs = {"multiclass": 3, "multilabel": 2, "multihead": 4, "regression": 1}[task]
    rng = np.random.default_rng(3)
    responder = Responder([predictor(Slices("mean", outputs), task, heads=heads)], AuditSettings(shuffles=1))
    found = []
    for number in range(30):
        array = rng.normal(0, 0.5, (SLICES, 2, 2)).astype(np.float32)
        # The network reads the first corners as its outputs.
        flat = array.reshape(SLICES, 4)
        if task == "multiclass":
            target = [number % 3]
            flat[:, number % 3] += 2
        elif task == "multilabel":
            target = [number % 2, number // 2 % 2]
            flat[:, :2] += np.array(target) * 2
        elif task == "multihead":
            target = [number % 2, number // 2 % 2]
            flat[:, target[0]] += 2
            flat[:, 2 + target[1]] += 2
        else:
            target = [float(number)]
            flat[:, 0] += number
        volume = StoredVolume(flat.reshape(SLICES, 2, 2), np.eye(4), study_quantiles(flat))
        answer = responder.respond(volume, study=f"s{number}")
        found.append(Audited(f"s{number}", f"p{number}", "", np.array(target, dtype=float), answer))
    result, chosen = summarise(found, task=task, heads=heads, resamples=50)
    assert value(result, AS_IS) > 0.95
    assert result["metric"] == ("correlation" if task == "regression" else "auc")
    assert all(value(result, one["name"], "low") is not None for one in result["conditions"])
    assert result["verdict"]["code"] == "one-slice"
    assert chosen[0].scores.shape == (30, outputs)


def test_differences_are_of_the_same_draws_of_patients() -> None:
    """Studies of a patient go together, and identical scores differ by nothing in every draw."""
    found = audited(predictor(Slices("mean")), "extent")
    found = [Audited(one.study, f"p{number // 3}", "", one.target, one.responses) for number, one in enumerate(found)]
    result, _ = summarise(found, task="binary", resamples=200)
    assert result["patients"] == 20
    same = next(one for one in result["conditions"] if one["name"] == "reversed")["difference"]
    assert (same["value"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    other = next(one for one in result["conditions"] if one["name"] == "1 slice")
    truth = np.array([one.target[0] for one in found])
    whole = np.array([one.responses.fixed[AS_IS][0] for one in found])
    single = choose_windows(found, 1, task="binary").scores[:, 0]
    assert other["difference"]["value"] == pytest.approx(roc_auc_score(truth, single) - roc_auc_score(truth, whole))
    rng, owners = np.random.default_rng(0), np.arange(60) // 3
    # Numbers of patients follow the order of their names as text.
    owners = np.unique([f"p{owner}" for owner in owners], return_inverse=True)[1]
    draws = []
    for counts in rng.multinomial(20, np.full(20, 1 / 20), size=200):
        rows = np.repeat(np.arange(60), counts[owners])
        draws.append(roc_auc_score(truth[rows], single[rows]) - roc_auc_score(truth[rows], whole[rows]))
    np.testing.assert_allclose(
        [other["difference"]["low"], other["difference"]["high"]], np.percentile(draws, [2.5, 97.5]), atol=1e-12
    )


def test_studies_without_a_label_are_left_out() -> None:
    found = audited(predictor(Slices("mean")), "extent")
    found[3] = Audited("s3", "p3", "", np.array([np.nan]), found[3].responses)
    result, _ = summarise(found, task="binary", resamples=20)
    assert (result["studies"], result["left_out"]) == (59, 1)


def test_correlations_are_those_of_scipy_on_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.normal(1e6, 1, 20), rng.normal(-1e5, 3, 20)
    weights = rng.multinomial(20, np.full(20, 0.05), size=5).astype(float)
    wanted = [pearsonr(np.repeat(truth, w.astype(int)), np.repeat(scores, w.astype(int)))[0] for w in weights]
    np.testing.assert_allclose(correlations(truth, scores, weights), wanted, atol=1e-7)
    assert correlations(truth, np.full(20, 3.3), weights).tolist() == [0.0] * 5
    assert np.isnan(correlations(np.full(20, 3.3), scores, weights)).all()


@pytest.mark.parametrize("flips", [[], ["T", "W"]])
def test_remembering_changes_no_score_and_encodes_a_slice_once(flips: list[str]) -> None:
    torch.manual_seed(0)
    network = create("slice-mean", num_classes=1, in_channels=1, width=0.125)
    plain, kept = predictor(copy.deepcopy(network), flips=flips), Remembering(predictor(network, flips=flips))
    encoded: list[int] = []
    encode = network.encode_slices
    network.encode_slices = lambda x: encoded.append(len(x)) or encode(x)
    rng = np.random.default_rng(0)
    array = rng.normal(0, 1, (14, 16, 16)).astype(np.float32)
    whole = kept.predictor.score(array)
    np.testing.assert_allclose(whole.scores, plain.score(array).scores, atol=1e-6)
    assert sum(encoded) == 14 * (2 if flips else 1)  # in plane a mirrored slice is another one
    for order in (np.arange(14)[::-1], rng.permutation(14), np.full(14, 3), np.array([5])):
        found = kept.predictor.score(array[order])
        np.testing.assert_allclose(found.scores, plain.score(array[order]).scores, atol=1e-6)
    assert sum(encoded) == 14 * (2 if flips else 1)
    kept.forget()
    kept.predictor.score(array)
    assert sum(encoded) == 28 * (2 if flips else 1)


def test_clips_that_come_again_are_not_computed_again() -> None:
    network = Order()
    plain = predictor(network)
    kept = Remembering(plain)
    array = np.random.default_rng(0).normal(0, 1, (20, 4, 4)).astype(np.float32)
    first = kept.predictor.score(array)
    seen = network.seen
    assert kept.predictor.score(array).scores.tolist() == first.scores.tolist()
    assert network.seen == seen
    np.testing.assert_allclose(first.scores, plain.score(array).scores, atol=1e-7)
    assert not kept.ignores_order()


@pytest.mark.parametrize(("name", "ignores"), [("slice-mean", True), ("lrcn", False), ("tsn", True)])
def test_networks_that_pool_without_order_are_known_by_their_scores(name: str, ignores: bool) -> None:
    torch.manual_seed(0)
    network = create(name, num_classes=2, in_channels=1, width=0.125)
    for parameter in network.get_classifier().parameters():
        nn.init.normal_(parameter)
    kept = Remembering(predictor(network, "multiclass"))
    kept.predictor.score(np.random.default_rng(0).normal(0, 1, (9, 64, 64)).astype(np.float32))
    assert kept.ignores_order() is ignores


def test_difference_streams_are_made_anew_of_slices_in_another_order() -> None:
    scorer = Predictor(
        Slices("mean"),
        intensity=IntensityConfig(kind="none"),
        sampling=SamplingConfig(clip_length=SLICES, train="center"),
        protocol=ProtocolConfig(),
        task="regression",
        streams=StreamsConfig(inputs=["difference"], difference_stack=1),
    )
    rising = np.repeat(np.arange(SLICES, dtype=np.float32), 4).reshape(SLICES, 2, 2)
    answer = Responder([scorer], AuditSettings()).respond(
        StoredVolume(rising, np.eye(4), study_quantiles(rising)), study="a"
    )
    assert answer.fixed["reversed"][0] == pytest.approx(-answer.fixed[AS_IS][0])
    assert answer.scans[1].scores.tolist() == [[0.0]] * SLICES
    assert not answer.ignores_order


def test_pictures_of_flow_from_a_folder_are_refused() -> None:
    scorer = predictor(Slices("mean"))
    scorer.streams = StreamsConfig(inputs=["flow"], flow={"method": "folder", "folder": "/nowhere"})
    with pytest.raises(ConfigError, match="slices in another order"):
        Responder([scorer], AuditSettings())


@pytest.mark.parametrize("wrong", [{"shuffles": 0}, {"seed": -1}, {"outside": "gone"}, {"places": -1}])
def test_wrong_settings_are_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AuditSettings(**wrong)


@pytest.mark.parametrize("outside", ["edge", "blank"])
def test_a_bright_slice_is_found_whatever_stands_around_it(outside: str) -> None:
    result, _ = summarise(audited(predictor(Slices("max")), "one", outside=outside), task="binary", resamples=50)
    assert value(result, "1 slice") > 0.99


def test_padding_of_the_canvas_is_no_slice_of_the_study() -> None:
    array = np.zeros((SLICES, 2, 2), np.float32)
    array[2:7] = np.arange(1, 6)[:, None, None]
    affine = np.diag([2.0, 1, 1, 1])
    source = affine.copy()
    source[0, 3] = 4.0
    meta = {"source_shape": [5, 2, 2], "source_affine": source.tolist()}
    volume = StoredVolume(array, affine, study_quantiles(array), meta)
    answer = Responder([predictor(Slices("mean"), "regression")], AuditSettings()).respond(volume, study="a")
    assert answer.slices == 5
    assert answer.scans[1].scores[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert answer.fixed[AS_IS][0] == pytest.approx(15 / 9)
    assert answer.fixed["shuffled"][0] == pytest.approx(15 / 9)
    assert answer.fixed["every second slice"][0] == pytest.approx((1 + 1 + 3 + 3 + 5) / 9)


def test_a_journal_survives_a_line_that_was_being_written(tmp_path: Any) -> None:
    volume, _ = studies("extent")[0]
    answer = Responder([predictor(Slices("mean"))], AuditSettings()).respond(volume, study="a")
    with Journal(tmp_path / "audit.jsonl") as journal:
        journal.add("first", answer)
        journal.add("second", answer)
    text = journal.path.read_text()
    journal.path.write_text(text[:-40])
    with Journal(journal.path) as again:
        again.add("third", answer)
    found = Journal(journal.path).read()
    assert set(found) == {"first", "third"}
    assert found["third"].to_json() == answer.to_json()
