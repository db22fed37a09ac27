"""C3D's features and machines of several networks; vectors beside a network's features for studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from volrec.benchmarks.encoding import (
    BesideClassifier,
    FeatureMachine,
    LinearClassifier,
    fit_beside,
    layer_features,
    video_feature,
)
from volrec.benchmarks.encoding.features import unit
from volrec.config import FeatureClassifier
from volrec.errors import ConfigError, DataError, LabelsError, RunError
from volrec.networks import create

CLASSES = ("Run", "Jump", "Swim")
LABELS = np.arange(60) % 3
GROUPS = [f"g{place // 6}" for place in range(60)]


def features(seed: int, columns: int = 8, strength: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(60, columns)) + strength * np.eye(columns)[LABELS]


# The feature of a video


def test_clips_are_averaged_before_the_length_is_taken() -> None:
    clips = np.array([[3.0, 0.0], [0.0, 1.0]])
    mean = np.array([1.5, 0.5])
    assert np.allclose(video_feature(clips), mean / np.linalg.norm(mean))
    assert not np.allclose(video_feature(clips), unit(unit(clips).mean(axis=0)))  # the other order
    assert np.allclose(video_feature(clips, normalize="none"), mean)
    assert not video_feature(np.zeros((2, 3))).any()


@pytest.mark.parametrize("clips", [np.empty((0, 4)), np.ones(4), np.array([[np.inf, 1.0]])])
def test_a_video_without_finite_features_is_an_error(clips: np.ndarray) -> None:
    with pytest.raises(DataError):
        video_feature(clips)


# The layer of a network


@pytest.fixture(scope="module")
def c3d() -> torch.nn.Module:
    torch.manual_seed(0)
    return create("c3d", num_classes=5, in_channels=1, width=1 / 32, head="fc", hidden=24)


def test_fc6_is_what_fc7_reads(c3d: torch.nn.Module) -> None:
    """With normalisation between fc6 and its ReLU, as the adapted form has it."""
    x = torch.randn(3, 1, 16, 32, 32)
    seen: list[torch.Tensor] = []
    handle = c3d.fc7.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    c3d.train()
    found = layer_features(c3d, x, "fc6")
    handle.remove()
    assert found.shape == (3, 24) and torch.equal(found, seen[0]) and not found.requires_grad
    assert (found == 0).any() and (found > 0).any()
    assert c3d.training and c3d.drop6.training


def test_fc6_of_the_papers_form_is_after_its_relu() -> None:
    torch.manual_seed(0)
    network = create("c3d", num_classes=5, in_channels=3, faithful=True, width=1 / 32).eval()
    x = torch.randn(1, 3, 16, 112, 112)
    with torch.no_grad():
        maps = network.forward_features(x)
        expected = F.relu(network.fc6(network.pool(maps)))
        scores = network(x)
    assert torch.equal(layer_features(network, x, "fc6"), expected)
    assert torch.equal(layer_features(network, x, "pool5"), maps.flatten(1))
    assert torch.equal(layer_features(network, x, "fc8"), scores) and (scores < 0).any()  # scores have no ReLU


def test_a_layer_that_is_not_there_is_answered_with_those_that_are() -> None:
    network = create("c3d", num_classes=5, in_channels=1, width=1 / 32)
    with pytest.raises(ConfigError, match=r"no layer 'fc6'; it has .*conv5b.*fc8"):
        layer_features(network, torch.randn(1, 1, 16, 32, 32), "fc6")


def test_a_layer_that_reads_single_frames_is_refused() -> None:
    network = create("slice-mean", num_classes=2, in_channels=1)
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    with pytest.raises(ConfigError, match="every clip"):
        layer_features(network, torch.randn(2, 1, 4, 32, 32), names[0])


# Several networks


def test_three_networks_side_by_side_are_one_machine_on_the_joined_features() -> None:
    nets = [unit(features(seed)) for seed in range(3)]
    found = FeatureMachine.fit(FeatureClassifier(nets=3), nets, LABELS, classes=CLASSES, groups=GROUPS)
    alone = LinearClassifier.fit(np.concatenate(nets, axis=1), LABELS, classes=CLASSES, c=1.0)
    assert np.allclose(found.scores(nets), alone.scores(np.concatenate(nets, axis=1)), atol=1e-5)


def test_three_predictions_averaged_are_the_mean_of_three_machines() -> None:
    nets = [unit(features(seed)) for seed in range(3)]
    beside = features(9, 100)
    chosen = FeatureClassifier(nets=3, combine="average", trajectories=True, c=[0.1, 1])
    found = FeatureMachine.fit(chosen, nets, LABELS, classes=CLASSES, groups=GROUPS, trajectories=beside)
    alone = [
        LinearClassifier.fit([net, beside], LABELS, classes=CLASSES, c=[0.1, 1], groups=GROUPS).scores([net, beside])
        for net in nets
    ]
    assert np.allclose(found.scores(nets, trajectories=beside), np.mean(alone, axis=0))
    assert len(found.choices) == 3 and all(len(choice.table) == 2 for choice in found.choices)


@pytest.mark.parametrize("combine", ["concatenate", "average"])
def test_a_saved_machine_gives_equal_scores(combine: str, tmp_path: Path) -> None:
    nets, beside = [unit(features(seed)) for seed in range(2)], features(9, 100)
    chosen = FeatureClassifier(nets=2, combine=combine, trajectories=True, c=[0.1, 1])
    found = FeatureMachine.fit(chosen, nets, LABELS, classes=CLASSES, groups=GROUPS, trajectories=beside)
    found.save(tmp_path / "svm.safetensors")
    again = FeatureMachine.load(tmp_path / "svm.safetensors")
    assert np.array_equal(again.scores(nets, trajectories=beside), found.scores(nets, trajectories=beside))
    assert again.settings == chosen and again.choices == found.choices and again.classes == CLASSES
    with pytest.raises(RunError, match="'feature-svm'"):
        LinearClassifier.load(tmp_path / "svm.safetensors")


def test_what_the_protocol_does_not_say_is_refused() -> None:
    nets = [unit(features(0))]
    with pytest.raises(ConfigError, match="3 networks are joined, got those of 1"):
        FeatureMachine.fit(FeatureClassifier(nets=3), nets, LABELS, classes=CLASSES, groups=GROUPS)
    with pytest.raises(ConfigError, match="none were given"):
        FeatureMachine.fit(FeatureClassifier(trajectories=True), nets, LABELS, classes=CLASSES, groups=GROUPS)
    with pytest.raises(ConfigError, match="has none beside"):
        FeatureMachine.fit(FeatureClassifier(), nets, LABELS, classes=CLASSES, groups=GROUPS, trajectories=features(1))


# Studies


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("model", ["logistic", "svm"])
def test_vectors_beside_features_tell_what_neither_tells_alone(model: str, classes: int) -> None:
    labels = np.arange(60) % classes
    generator = np.random.default_rng(0)
    # The vector says whether it is the first class, the feature which of the others.
    sides = 6 * np.eye(300)[(labels > 0).astype(int)], 6 * np.eye(10)[(labels > 1).astype(int)]
    vectors, pooled = (side + 0.5 * generator.normal(size=side.shape) for side in sides)
    found = fit_beside(vectors, pooled, labels, classes=CLASSES[:classes], groups=GROUPS, model=model)
    chances = found.probabilities(vectors, pooled)
    assert chances.shape == (60, classes) and np.allclose(chances.sum(axis=1), 1) and (chances >= 0).all()
    assert (chances.argmax(axis=1) == labels).mean() > 0.9
    assert len(found.choice.table) == 6 and found.choice.folds == 5
    assert np.allclose(found.probabilities(10 * vectors, pooled / 3), chances, atol=1e-5)  # lengths do not count


def test_logistic_chances_are_those_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, pooled = features(0, 200), features(1, 10)
    inputs = np.concatenate([unit(vectors), unit(pooled)], axis=1).astype(np.float64)
    found = fit_beside(vectors, pooled, LABELS, classes=CLASSES, groups=GROUPS, c=[10.0])
    theirs = LogisticRegression(C=10, tol=1e-8, max_iter=10_000).fit(inputs, LABELS)
    assert np.allclose(found.probabilities(vectors, pooled), theirs.predict_proba(inputs), atol=1e-4)


def test_chances_of_an_svm_that_has_learned_nothing_are_modest() -> None:
    """Margins of training studies are far apart in 300 dimensions; those of studies left out are not."""
    generator = np.random.default_rng(0)
    vectors, pooled, labels = generator.normal(size=(60, 300)), generator.normal(size=(60, 10)), LABELS % 2
    found = fit_beside(vectors, pooled, labels, classes=CLASSES[:2], groups=GROUPS, model="svm", c=[100.0])
    new = found.probabilities(generator.normal(size=(200, 300)), generator.normal(size=(200, 10)))
    assert np.abs(new[:, 0] - 2 / 3).max() < 0.15  # as common as the class is


def test_a_study_without_trajectories_and_one_patient_alone() -> None:
    vectors, pooled = features(0, 200), features(1, 10)
    vectors[4] = 0
    assert np.isfinite(
        fit_beside(vectors, pooled, LABELS, classes=CLASSES, groups=GROUPS).probabilities(vectors, pooled)
    ).all()
    with pytest.raises(ConfigError, match="1 group"):
        fit_beside(vectors, pooled, LABELS, classes=CLASSES, groups=["p"] * 60)
    with pytest.raises(LabelsError, match="59 vectors"):
        fit_beside(vectors, pooled[1:], LABELS, classes=CLASSES, groups=GROUPS)
    with pytest.raises(ConfigError, match="forest"):
        fit_beside(vectors, pooled, LABELS, classes=CLASSES, groups=GROUPS, model="forest")


@pytest.mark.parametrize("model", ["logistic", "svm"])
def test_a_saved_classifier_of_studies_gives_equal_chances(model: str, tmp_path: Path) -> None:
    vectors, pooled = features(0, 100), features(1, 10)
    found = fit_beside(vectors, pooled, LABELS, classes=CLASSES, groups=GROUPS, model=model, c=[0.1, 1])
    found.save(tmp_path / "beside.safetensors")
    again = BesideClassifier.load(tmp_path / "beside.safetensors")
    assert np.array_equal(again.probabilities(vectors, pooled), found.probabilities(vectors, pooled))
    assert again.classes == CLASSES and again.choice == found.choice
