"""Machines on the vectors of videos: against scikit-learn's own, formulas, and what must never leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.benchmarks.encoding import ChiSquareClassifier, LinearClassifier, fit_classifier, load_classifier
from volrec.benchmarks.encoding.choice import Choice, choose_c, group_folds
from volrec.benchmarks.encoding.kernels import Coordinates, channel_distances, chi_square, side_by_side
from volrec.config import TrajectoryClassifier
from volrec.errors import ConfigError, DataError, LabelsError

CLASSES = ("Run", "Jump", "Swim")


def problem(count: int = 45, columns: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length one (N, F) float32 and labels, not quite separable along a few directions."""
    labels = np.arange(count) % 3
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, columns))
    vectors[:, :3] += 2.5 * np.eye(3)[labels]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def bags(count: int = 45, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two channels of histograms (N, 6 + 4) float32 with a sum of one each, and labels."""
    labels = np.arange(count) % 3
    generator = np.random.default_rng(seed)
    parts = []
    for words in (6, 4):
        counts = generator.poisson(2 + 4 * np.eye(words)[labels])
        parts.append(counts / counts.sum(axis=1, keepdims=True))
    return np.concatenate(parts, axis=1).astype(np.float32), labels


CHANNELS = {"hog": (0, 6), "hof": (6, 10)}


# Linear


@pytest.mark.parametrize("c", [1.0, 100.0])
@pytest.mark.parametrize("columns", [20, 120])  # fewer and more than videos: on the vectors, and on inner products
def test_the_linear_machine_is_linear_svc_on_the_vectors(columns: int, c: float) -> None:
    from sklearn.svm import LinearSVC

    vectors, labels = problem(columns=columns)
    fresh, _ = problem(seed=1, columns=columns)
    theirs = LinearSVC(C=c, tol=1e-10, dual=False, max_iter=100_000).fit(vectors.astype(np.float64), labels)
    ours = LinearClassifier.fit(vectors, labels, classes=CLASSES, c=c)
    assert np.allclose(ours.scores(fresh), theirs.decision_function(fresh), atol=2e-4)
    assert (ours.scores(vectors).argmax(1) == labels).mean() > 0.8


def test_each_class_is_told_from_all_others() -> None:
    vectors, labels = problem()
    ours = LinearClassifier.fit(vectors, labels, classes=CLASSES, c=10)
    alone = LinearClassifier.fit(vectors, (labels == 1).astype(int), classes=("rest", "Jump"), c=10)
    assert np.allclose(ours.scores(vectors)[:, 1], alone.scores(vectors)[:, 1], atol=1e-4)
    assert np.allclose(alone.scores(vectors)[:, 0], -alone.scores(vectors)[:, 1])


def test_parts_side_by_side_and_vectors_on_disk_are_one_vector(tmp_path: Path) -> None:
    vectors, labels = problem()
    np.save(tmp_path / "v.npy", vectors[:, 50:])
    parts = [vectors[:, :50], np.load(tmp_path / "v.npy", mmap_mode="r")]
    whole, joined = (LinearClassifier.fit(given, labels, classes=CLASSES) for given in (vectors, parts))
    assert np.allclose(whole.scores(vectors), joined.scores(parts), atol=1e-4)


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 30)),
    seed=st.integers(0, 1000),
    twice=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_coordinates_keep_inner_products_and_weights(shape, seed, twice) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=shape)
    if twice:  # a video given twice: fewer directions than videos
        vectors = np.concatenate([vectors, vectors])
    own = Coordinates(vectors)
    assert own.rows.shape[1] <= min(vectors.shape[0], shape[1])
    assert np.allclose(own.rows @ own.rows.T, vectors @ vectors.T, atol=1e-8)
    weights = generator.normal(size=(2, own.rows.shape[1]))
    assert np.allclose(vectors @ own.weights(weights).T, own.rows @ weights.T, atol=1e-3)


def test_blocks_of_columns_do_not_change_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = problem()
    monkeypatch.setattr("volrec.benchmarks.encoding.kernels._COLUMNS", 17)
    own = Coordinates([vectors[:, :70], vectors[:, 70:].astype(np.float16)])
    expected = np.concatenate([vectors[:, :70], vectors[:, 70:].astype(np.float16)], axis=1).astype(np.float64)
    assert np.allclose(own.rows @ own.rows.T, expected @ expected.T)
    weights = np.random.default_rng(0).normal(size=(2, own.rows.shape[1]))
    assert np.allclose(expected @ own.weights(weights).T, own.rows @ weights.T, atol=1e-5)


def test_a_video_without_a_vector_gets_the_intercepts() -> None:
    vectors, labels = problem()
    vectors[7] = 0
    ours = LinearClassifier.fit(vectors, labels, classes=CLASSES)
    assert np.array_equal(ours.scores(vectors)[7], ours.intercepts)


def test_vectors_that_do_not_fit_are_refused() -> None:
    vectors, labels = problem()
    ours = LinearClassifier.fit(vectors, labels, classes=CLASSES)
    with pytest.raises(DataError, match="119 numbers, those it was fitted to 120"):
        ours.scores(vectors[:, 1:])
    vectors[3, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        LinearClassifier.fit(vectors, labels, classes=CLASSES)
    with pytest.raises(DataError, match="side by side"):
        side_by_side([vectors, vectors[1:]])


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 1], ("a", "b", "c", "d"), "2 of 4 classes have no training video: c, d"),
        ([0, 1], ("a", "b"), "3 vectors and 2 labels"),
        ([0, 1, 2], ("a", "b"), "0 to 2"),
        ([0, 0, 0], ("a",), "two classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, classes, message) -> None:
    with pytest.raises(LabelsError, match=message):
        LinearClassifier.fit(np.eye(3, dtype=np.float32), labels, classes=classes)


# Chi-square


def test_the_chi_square_distance_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volrec.benchmarks.encoding.kernels._ROWS", 4)
    vectors, _ = bags(11)
    first, second = vectors[:, :6], bags(5, seed=3)[0][:, :6]

    def plain(a, b):
        return 0.5 * sum((x - y) ** 2 / (x + y) for x, y in zip(a.astype(float), b.astype(float), strict=True) if x + y)

    for other, passed in ((first, None), (second, second)):
        expected = [[plain(a, b) for b in other] for a in first]
        assert np.allclose(chi_square(first, passed), expected)
        assert np.array_equal(chi_square(first, passed), chi_square(first, passed, jobs=3))


def test_channels_are_averaged_over_their_mean_training_distance() -> None:
    vectors, _ = bags(11)
    found, scales = channel_distances(vectors, channels=CHANNELS)
    expected = 0.0
    for name, (start, end) in CHANNELS.items():
        distances = chi_square(vectors[:, start:end])
        mean = distances[~np.eye(11, dtype=bool)].mean()
        assert scales[name] == pytest.approx(mean)
        expected = expected + distances / mean / 2
    assert np.allclose(found, expected)
    again, same = channel_distances(vectors[:3], vectors, channels=CHANNELS, scales=scales)
    assert np.allclose(again, expected[:3]) and same == scales


def test_histograms_that_lie_read_only_on_disk_have_the_same_distances(tmp_path: Path) -> None:
    vectors, _ = bags()
    np.save(tmp_path / "bags.npy", vectors)
    on_disk = np.load(tmp_path / "bags.npy", mmap_mode="r")
    np.testing.assert_array_equal(chi_square(on_disk[:, :6]), chi_square(vectors[:, :6]))
    np.testing.assert_array_equal(
        chi_square(on_disk[:4, :6], on_disk[4:, :6]), chi_square(vectors[:4, :6], vectors[4:, :6])
    )


def test_the_chi_square_machine_is_svc_on_the_kernel_for_each_class() -> None:
    from sklearn.svm import SVC

    vectors, labels = bags()
    fresh, _ = bags(seed=5)
    ours = ChiSquareClassifier.fit(vectors, labels, classes=CLASSES, channels=CHANNELS, c=100)
    distances, scales = channel_distances(vectors, channels=CHANNELS)
    test, _ = channel_distances(fresh, vectors, channels=CHANNELS, scales=scales)
    for place in range(3):
        theirs = SVC(C=100, kernel="precomputed", tol=1e-4).fit(np.exp(-distances), labels == place)
        assert np.allclose(ours.scores(fresh)[:, place], theirs.decision_function(np.exp(-test)))
    assert len(ours.support) <= 45
    assert (ours.scores(fresh).argmax(1) == labels).mean() > 0.8


def test_fisher_vectors_have_no_chi_square_distance() -> None:
    vectors, labels = problem()
    with pytest.raises(DataError, match="between histograms"):
        ChiSquareClassifier.fit(vectors, labels, classes=CLASSES, channels={"all": (0, 120)})
    with pytest.raises(ConfigError, match="channels"):
        ChiSquareClassifier.fit(np.abs(vectors), labels, classes=CLASSES, channels={})


# On disk


@pytest.mark.parametrize("kernel", ["linear", "chi2"])
def test_a_saved_classifier_gives_equal_scores(kernel: str, tmp_path: Path) -> None:
    vectors, labels = bags()
    chosen = TrajectoryClassifier(encoding="bow", kernel=kernel, c=10)
    found = fit_classifier(chosen, vectors, labels, classes=CLASSES, channels=CHANNELS)
    found.save(tmp_path / "svm.safetensors")
    again = load_classifier(tmp_path / "svm.safetensors")
    assert type(again) is type(found) and again.classes == CLASSES and again.choice == Choice(10.0)
    assert np.array_equal(again.scores(vectors), found.scores(vectors))
    refit = fit_classifier(chosen, vectors, labels, classes=CLASSES, channels=CHANNELS)
    assert np.array_equal(refit.scores(vectors), found.scores(vectors))


# The choice of C


@given(groups=st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=40), folds=st.integers(2, 6))
@settings(max_examples=80, deadline=None)
def test_no_group_is_ever_on_both_sides(groups, folds) -> None:
    if len(set(groups)) < 2:
        with pytest.raises(ConfigError, match="there is 1 group"):
            list(group_folds(groups, folds=folds))
        return
    left_out: list[int] = []
    for train, left in group_folds(groups, folds=folds):
        assert not {groups[place] for place in train} & {groups[place] for place in left}
        assert sorted([*train, *left]) == list(range(len(groups)))
        left_out.extend(left)
    assert sorted(left_out) == list(range(len(groups)))


def test_what_tells_groups_apart_does_not_choose_c() -> None:
    """Every group has one class and a signature of its own: only what is common to groups helps those left out."""
    generator = np.random.default_rng(0)
    groups = [f"g{place}" for place in range(12) for _ in range(4)]
    labels = np.repeat(np.arange(12) % 3, 4)
    signature = 3 * np.repeat(np.eye(12), 4, axis=0)
    common = 0.5 * np.eye(3)[labels] + 0.3 * generator.normal(size=(48, 3))
    vectors = np.concatenate([signature, common], axis=1)
    whole = LinearClassifier.fit(vectors, labels, classes=CLASSES, c=[0.001, 0.01, 0.1, 1, 100], groups=groups)
    mixed = LinearClassifier.fit(vectors, labels, classes=CLASSES, c=[0.001, 0.01, 0.1, 1, 100])
    errors, optimistic = (dict(found.choice.table) for found in (whole, mixed))
    assert optimistic[100] == 0 and errors[100] > 0.2


def test_the_table_of_c_is_what_a_loop_gives_and_the_smallest_of_equals_is_taken() -> None:
    from sklearn.svm import LinearSVC

    vectors, labels = problem(columns=20)
    groups = [f"g{place // 5}" for place in range(45)]
    found = LinearClassifier.fit(vectors, labels, classes=CLASSES, c=[10, 0.01, 1], groups=groups).choice
    assert [c for c, _ in found.table] == [0.01, 1, 10] and found.folds == 5 and found.loss == "error"
    for c, error in found.table:
        wrong = 0
        for train, left in group_folds(groups):
            machine = LinearSVC(C=c, dual=False, tol=1e-6, max_iter=10_000).fit(vectors[train], labels[train])
            wrong += int((machine.predict(vectors[left]) != labels[left]).sum())
        assert error == pytest.approx(wrong / 45)
    assert found.c == min(c for c, error in found.table if error == min(error for _, error in found.table))
    even = choose_c([3, 2, 5], lambda train, left, c: np.ones(len(left)), groups=groups)
    assert even.c == 2 and Choice.of(even.facts()) == even


def test_a_class_that_a_fold_has_not_seen_is_wrong_there_and_no_error() -> None:
    vectors, labels = problem()
    groups = [("a", "b", "c")[label] for label in labels]  # each class is one group
    found = LinearClassifier.fit(vectors, labels, classes=CLASSES, c=[1, 10], groups=groups).choice
    assert [error for _, error in found.table] == [1, 1]
    kernel = ChiSquareClassifier.fit(
        bags()[0], labels, classes=CLASSES, channels=CHANNELS, c=[1, 10], groups=groups
    ).choice
    assert [error for _, error in kernel.table] == [1, 1]


@pytest.mark.parametrize("values", [[], [0.0, 1.0], [-1.0]])
def test_c_is_above_zero(values) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        choose_c(values, lambda train, left, c: np.ones(len(left)), groups=["a", "b"])
