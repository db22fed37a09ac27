"""Fusion of streams by name, against the arithmetic of the papers' codes, and weights that saw their test videos."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from volrec.benchmarks import ScoreSet
from volrec.benchmarks.fusion import FUSION_STAGES, apply_svm, fit_svm, fuse, with_trajectories
from volrec.benchmarks.leaks import check_split, trained_on
from volrec.benchmarks.metrics import metric_of
from volrec.benchmarks.sets import Split, split_digest
from volrec.errors import ConfigError, RunError

# Orders of the class list of HMDB51 that circulate: sorted names, and sorted names of files.
SORTED = ("climb", "climb_stairs", "kick", "kick_ball", "sword", "sword_exercise")
OF_FILES = ("climb_stairs", "climb", "kick_ball", "kick", "sword_exercise", "sword")


def drawn(seed: int = 0, *, count: int = 24, stream: str = "rgb", **facts: Any) -> ScoreSet:
    rng = np.random.default_rng([seed, count])
    truth = np.arange(count) % 6
    logits = rng.normal(size=(count, 4, 6)) + np.eye(6)[truth][:, None]
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return ScoreSet.from_arrays(
        [f"v{place:03d}" for place in range(count)],
        SORTED,
        labels=truth.tolist(),
        logits=logits.mean(1),
        probabilities=chances.mean(1),
        stage="softmax",
        clips=np.full(count, 4),
        clip_hits=(logits.argmax(-1) == truth[:, None]).sum(1),
        facts={"set": "hmdb51", "split_id": "hmdb51/1", "split_digest": "d" * 16, "stream": stream, **facts},
    )


def turned(scores: ScoreSet, classes: tuple[str, ...], videos: list[int] | None = None) -> ScoreSet:
    """The same scores with classes and videos in another order."""
    columns = [scores.classes.index(name) for name in classes]
    rows = list(range(len(scores.videos))) if videos is None else videos
    return ScoreSet.from_arrays(
        [scores.videos[row] for row in rows],
        classes,
        labels=[[scores.classes[place] for place in scores.labels[row]] for row in rows],
        logits=scores.logits[np.ix_(rows, columns)],
        probabilities=scores.probabilities[np.ix_(rows, columns)],
        stage=scores.stage,
        facts=scores.facts,
    )


def by_hand(arrays: list[np.ndarray], weights: list[float], stage: str) -> np.ndarray:
    """The codes of the papers, in float64: late_fusion.m (relu-l1), combine_streams.py (l2)."""
    total = np.zeros(arrays[0].shape)
    for values, weight in zip(arrays, weights, strict=True):
        values = values.astype(np.float64)
        if stage == "relu-l1":
            values[values < 0] = 0
            values = values / values.sum(1, keepdims=True)
        elif stage == "l2":
            values = values / np.linalg.norm(values, axis=1, keepdims=True)
        total += weight * values
    return total / sum(weights)


@pytest.mark.parametrize("stage", FUSION_STAGES)
def test_each_stage_is_the_arithmetic_of_its_paper(stage: str) -> None:
    # Two more, so that every video has a positive logit: the code of the paper divides by 0 otherwise.
    one, two = (dataclasses.replace(each, logits=each.logits + 2) for each in (drawn(1), drawn(2, stream="flow")))
    given = [each.logits if stage in ("logits", "relu-l1") else each.probabilities for each in (one, two)]
    expected = by_hand(given, [1, 1.5], stage)
    fused = fuse([one, two], [1, 1.5], stage)
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-6, atol=1e-7)
    assert fused.stage == ("softmax" if stage in ("softmax", "relu-l1") else "logits")
    assert (fused.videos, fused.classes, fused.labels) == (one.videos, one.classes, one.labels)


@pytest.mark.parametrize("stage", FUSION_STAGES)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_order_of_classes_and_videos_does_not_change_a_bit(stage: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = drawn(seed), drawn(seed + 1, stream="flow")
    rows = rng.permutation(len(one.videos)).tolist()
    expected = fuse([one, two], [1, 2], stage)
    found = fuse([one, turned(two, OF_FILES, rows)], [1, 2], stage)
    np.testing.assert_array_equal(found.scores, expected.scores)
    both = fuse([turned(one, OF_FILES, rows), two], [1, 2], stage)
    assert both.classes == OF_FILES
    back = turned(both, SORTED, np.argsort(rows).tolist())
    np.testing.assert_array_equal(back.scores, expected.scores)
    assert back.videos == expected.videos and back.labels == expected.labels


def test_adding_by_place_would_have_cost_points() -> None:
    one, two = drawn(1, count=300), turned(drawn(2, count=300, stream="flow"), OF_FILES)
    by_place = dataclasses.replace(one, probabilities=one.probabilities + two.probabilities)
    fused = fuse([one, two], [1, 1], "softmax")
    assert metric_of(fused, "video-top1").value > metric_of(by_place, "video-top1").value + 0.1


@given(weights=st.lists(st.floats(0.01, 10), min_size=3, max_size=3))
@settings(max_examples=20, deadline=None)
def test_only_the_ratio_of_weights_counts(weights: list[float]) -> None:
    sets = [drawn(seed, stream=f"net-{seed}") for seed in range(3)]
    one, two = fuse(sets, weights, "softmax"), fuse(sets, [7 * weight for weight in weights], "softmax")
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-6)
    assert sum(one.facts["fusion"]["weights"]) == pytest.approx(1)


def test_trajectories_are_added_as_in_the_code_of_actionvlad() -> None:
    rgb, flow = drawn(1), drawn(2, stream="flow")
    idt = turned(drawn(3, stream="idt"), OF_FILES)
    idt = ScoreSet.from_arrays(idt.videos, OF_FILES, labels=idt.labels, logits=idt.logits, facts=idt.facts)
    found = with_trajectories(fuse([rgb, flow], [1, 2], "logits"), idt, 0.25)
    nets = rgb.logits.astype(float) / 3 + flow.logits.astype(float) * 2 / 3
    margins = idt.logits[:, [OF_FILES.index(name) for name in SORTED]].astype(float)
    expected = 0.75 * normalize(nets) + 0.25 * normalize(margins)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-7)
    assert found.stage == "logits" and np.isnan(found.probabilities).all()
    assert found.facts["fusion"]["members"][0]["fusion"]["stage"] == "logits"
    with pytest.raises(ConfigError, match=r"1\.5"):
        with_trajectories(rgb, idt, 1.5)


def test_margins_have_no_softmax() -> None:
    idt = drawn(3, stream="idt")
    idt = ScoreSet.from_arrays(idt.videos, idt.classes, labels=idt.labels, logits=idt.logits, facts=idt.facts)
    with pytest.raises(RunError, match="idt has no probabilities"):
        fuse([drawn(1), idt], [1, 1], "softmax")
    fused = fuse([drawn(1), idt], [1, 1], "logits")
    assert np.isnan(fused.probabilities).all() and np.isfinite(fused.logits).all()
    theirs = ScoreSet.from_arrays(
        idt.videos, idt.classes, labels=idt.labels, probabilities=drawn(1).probabilities, facts=idt.facts
    )
    with pytest.raises(RunError, match="no logits"):
        fuse([drawn(1), theirs], [1, 1], "relu-l1")


def test_a_video_without_a_positive_logit_says_nothing() -> None:
    one, two = drawn(1), drawn(2, stream="flow")
    logits = two.logits.copy()
    logits[0] = -1
    fused = fuse([one, dataclasses.replace(two, logits=logits)], [1, 1], "relu-l1")
    positive = np.maximum(one.logits[0].astype(float), 0)
    np.testing.assert_allclose(fused.probabilities[0], positive / positive.sum(), rtol=1e-6)
    with pytest.raises(RunError, match="no logit of flow is above 0"):
        fuse([one, dataclasses.replace(two, logits=-abs(logits))], [1, 1], "relu-l1")


def test_a_zero_vector_has_no_direction() -> None:
    one, two = drawn(1), drawn(2, stream="flow")
    values = two.probabilities.copy()
    values[3] = 0
    fused = fuse([one, dataclasses.replace(two, probabilities=values)], [1, 1], "l2")
    np.testing.assert_allclose(fused.scores[3], normalize(one.probabilities[3:4].astype(float))[0] / 2, rtol=1e-6)


def test_what_does_not_belong_together_is_refused() -> None:
    one, two = drawn(1), drawn(2, stream="flow")
    named = dataclasses.replace(two, classes=(*SORTED[:5], "swordplay"))
    for other, says in (
        (drawn(2, count=23, stream="flow"), "flow has no video v023, which rgb has"),
        (drawn(2, count=25, stream="flow"), "rgb has no video v024, which flow has"),
        (named, "flow has no class sword_exercise, which rgb has"),
        (drawn(2, stream="flow", split_id="hmdb51/2"), "split_id of rgb is hmdb51/1, that of flow is hmdb51/2"),
        (drawn(2, stream="flow", split_digest="e" * 16), "split_digest"),
        (drawn(2, stream="flow", side="train"), "side"),
        (dataclasses.replace(two, labels=((5,), *two.labels[1:])), "video v000 is climb and sword_exercise"),
    ):
        with pytest.raises(RunError, match=says):
            fuse([one, other], [1, 1], "softmax")
    for weights in ([1], [1, -1], [0, 0], [1, float("nan")]):
        with pytest.raises(ConfigError, match="weights"):
            fuse([one, two], weights, "softmax")
    with pytest.raises(ConfigError, match="sigmoid"):
        fuse([one, two], [1, 1], "sigmoid")
    with pytest.raises(RunError, match="no scores"):
        fuse([], [], "softmax")


def test_a_fused_set_says_what_it_is_made_of() -> None:
    own = {"listed": 24, "fps": 25, "trained_on": [{"split_id": "hmdb51/1", "split_digest": "d" * 16}]}
    one = drawn(1, protocol="tsn", weights="a" * 64, decoder="pyav 18", rate=25, **own)
    two = drawn(2, stream="flow", protocol="tsn", weights="b" * 64, decoder="frames", rate=5, **own)
    facts = fuse([one, two], [1, 1.5], "logits").facts
    assert facts["stream"] == "rgb+flow" and facts["decoder"] == "pyav 18 / frames"
    assert facts["fusion"]["weights"] == [0.4, 0.6] and facts["fusion"]["stage"] == "logits"
    assert [member["weights"] for member in facts["fusion"]["members"]] == ["a" * 64, "b" * 64]
    assert facts["fps"] == 25 and "rate" not in facts and facts["trained_on"] == own["trained_on"]
    with pytest.raises(RunError, match="single clips"):
        metric_of(fuse([one, two], [1, 1.5], "logits"), "clip-top1")


def test_a_fused_set_is_a_file_like_any_other(tmp_path: Any) -> None:
    known = {"protocol": "tsn", "weights": "a" * 64, "decoder": "pyav 18", "listed": 24}
    fused = fuse([drawn(1, **known), drawn(2, stream="flow", **known)], [1, 1], "relu-l1")
    fused.write(tmp_path / "fused.safetensors")
    np.testing.assert_array_equal(ScoreSet.read(tmp_path / "fused.safetensors").scores, fused.scores)


# ---- SVM


def sides() -> tuple[list[ScoreSet], list[ScoreSet]]:
    train = [drawn(seed, count=60, stream=name, side="train") for seed, name in ((1, "rgb"), (2, "flow"))]
    test = [drawn(seed, count=24, stream=name, side="test") for seed, name in ((3, "rgb"), (4, "flow"))]
    return train, [dataclasses.replace(each, videos=tuple(f"t{name}" for name in each.videos)) for each in test]


def test_the_svm_is_the_one_of_scikit_learn() -> None:
    train, test = sides()
    inputs, asked = (
        np.hstack([normalize(each.probabilities.astype(np.float64)) for each in both]) for both in (train, test)
    )
    truth = np.array([own[0] for own in train[0].labels])
    machine = LinearSVC(C=1.0, dual=False, tol=1e-8, max_iter=10_000).fit(inputs, truth)
    svm = fit_svm([train[0], turned(train[1], OF_FILES)])
    found = apply_svm(svm, [turned(test[0], OF_FILES), test[1]])
    margins = turned(found, SORTED).logits
    np.testing.assert_allclose(margins, machine.decision_function(asked), rtol=1e-4, atol=1e-5)
    assert found.stage == "logits" and np.isnan(found.probabilities).all()
    other_way = apply_svm(svm, [test[1], test[0]])
    np.testing.assert_array_equal(other_way.logits, margins)


def test_an_svm_does_not_see_what_it_is_tested_on() -> None:
    train, test = sides()
    with pytest.raises(RunError, match="not those of training videos"):
        fit_svm(test)
    blank = [dataclasses.replace(each, facts={"stream": each.facts["stream"]}) for each in train]
    with pytest.raises(RunError, match="side is test"):
        fit_svm(blank)
    with pytest.raises(RunError, match="fitted on video v000"):
        apply_svm(fit_svm(train), train)


def test_an_svm_needs_every_class_and_the_same_streams() -> None:
    train, test = sides()
    svm = fit_svm(train)
    with pytest.raises(RunError, match="rgb, flow, the scores are of rgb"):
        apply_svm(svm, test[:1])
    fewer = [
        ScoreSet.from_arrays(
            each.videos, SORTED[:5], labels=[0] * 24, probabilities=each.probabilities[:, :5], facts=each.facts
        )
        for each in test
    ]
    with pytest.raises(RunError, match="the scores have no class sword_exercise"):
        apply_svm(svm, fewer)
    labels = tuple((min(own[0], 4),) for own in train[0].labels)
    with pytest.raises(RunError, match="no training video is of class sword_exercise"):
        fit_svm([dataclasses.replace(each, labels=labels) for each in train])
    with pytest.raises(RunError, match="video v001 has not one class"):
        fit_svm([dataclasses.replace(each, labels=((0,), (), *each.labels[2:])) for each in train])


# ---- weights that saw their test videos


def split(name: str, lists: str = "") -> Split:
    return Split(name, split_digest([f"{name}{lists}-a"], [f"{name}{lists}-b"]), (), (), True, (1, 1))


def of(*splits: Split) -> dict[str, Any]:
    return {"evaluated": 3, "trained_on": [{"split_id": each.id, "split_digest": each.digest} for each in splits]}


def test_weights_of_one_split_are_not_tested_on_another() -> None:
    first, second = split("ucf101/1"), split("ucf101/2")
    assert check_split(of(first), first).state == "same"
    with pytest.raises(RunError, match=r"trained on ucf101/1 and would be tested on ucf101/2.*99\.6.*nets#9"):
        check_split(of(first), second)
    found = check_split(of(first), second, allow_leak=True)
    assert found.state == "leak" and "LEAK" in found.note and "ucf101/1" in found.note


def test_one_training_of_several_is_enough_for_a_leak() -> None:
    kinetics, first, second = split("kinetics/val"), split("ucf101/1"), split("ucf101/2")
    assert check_split(of(kinetics), first).state == "other-set"
    assert check_split(of(kinetics, first), first).state == "same"
    for order in ((kinetics, second, first), (kinetics, first, second)):
        with pytest.raises(RunError, match="trained on ucf101/2"):
            check_split(of(*order), first)


def test_lists_count_and_not_what_they_are_called() -> None:
    own = dataclasses.replace(split("ucf101/1"), id="ucf101/own-1")
    assert check_split(of(own), split("ucf101/1")).state == "same"
    with pytest.raises(RunError, match="by other lists"):
        check_split(of(split("ucf101/1", "else")), split("ucf101/1"))
    assert check_split({"evaluated": 1, "trained_on": {"split_id": "ucf101/1"}}, split("ucf101/1")).state == "same"
    with pytest.raises(RunError, match="random-0"):
        check_split(of(split("ucf101/random-0")), split("ucf101/1"))


def test_sets_with_one_training_list_may_be_tested_on_either_part() -> None:
    assert check_split(of(split("kinetics/val")), split("kinetics/test")).state == "same"
    with pytest.raises(RunError, match="kinetics/own"):
        check_split(of(split("kinetics/own")), split("kinetics/val"))


def test_a_card_says_what_it_was_trained_on_and_scores_what_was_tested() -> None:
    card = {"split_id": "ucf101/1", "split_digest": split("ucf101/1").digest}
    assert check_split(card, split("ucf101/1")).state == "same"
    with pytest.raises(RunError, match="ucf101/1"):
        check_split(card, split("ucf101/2"))
    tested = {**card, "evaluated": 3783}
    assert trained_on(tested) == []
    found = check_split(tested, split("ucf101/2"))
    assert found.state == "unknown" and "not known" in found.note
