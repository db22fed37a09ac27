"""Trajectories to vectors: samples, projections, Fisher vectors and bags of words against plain loops and libraries."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.benchmarks.encoding import TrajectoryEncoder, VectorTable, encode_videos
from volrec.benchmarks.encoding.bow import fit_words, histogram, nearest_words, run_of_words
from volrec.benchmarks.encoding.descriptors import COLUMNS, ROW, check_rows, descriptor, width
from volrec.benchmarks.encoding.encode import _Part
from volrec.benchmarks.encoding.fisher import Mixture, fisher_vector, fit_mixture
from volrec.benchmarks.encoding.pca import Projection, fit_projection
from volrec.benchmarks.encoding.sampling import RowSample
from volrec.config import TrajectoryClassifier
from volrec.errors import ConfigError, DataError, RunError


def trajectories(count: int, seed: int = 0) -> np.ndarray:
    """Rows (n, 436) whose descriptors lie around one of four centres."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(4, ROW))
    rows = centres[generator.integers(0, 4, count)] + 0.3 * generator.normal(size=(count, ROW))
    return rows.astype(np.float32)


def mixture(components: int = 5, dimension: int = 3, seed: int = 0) -> Mixture:
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.2, 1, components)
    variances = generator.uniform(0.2, 2, (components, dimension))
    return Mixture(weights / weights.sum(), generator.normal(size=(components, dimension)), variances)


def fisher_by_loops(rows: np.ndarray, model: Mixture) -> np.ndarray:
    components, dimension = model.means.shape
    by_mean, by_variance = np.zeros((components, dimension)), np.zeros((components, dimension))
    for x in rows.astype(np.float64):
        density = [
            w * np.prod(np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v))
            for w, m, v in zip(model.weights, model.means, model.variances, strict=True)
        ]
        for k in range(components):
            chance = density[k] / sum(density)
            for d in range(dimension):
                z = (x[d] - model.means[k, d]) / np.sqrt(model.variances[k, d])
                by_mean[k, d] += chance * z / np.sqrt(model.weights[k]) / len(rows)
                by_variance[k, d] += chance * (z * z - 1) / np.sqrt(2 * model.weights[k]) / len(rows)
    return np.concatenate([by_mean.ravel(), by_variance.ravel()])


# Descriptors


def test_the_columns_of_a_row_are_ten_facts_and_five_descriptors_without_gap() -> None:
    edges = [(10, 10), *COLUMNS.values()]
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert edges[-1][1] == ROW == 436
    assert [width(name) for name in COLUMNS] == [2 * 15, 8 * 12, 9 * 12, 8 * 12, 8 * 12]
    rows = np.arange(2 * ROW, dtype=np.float32).reshape(2, ROW)
    assert descriptor(rows, "hof")[0, 0] == 136


@pytest.mark.parametrize("rows", [np.zeros((3, 435)), np.zeros(ROW), np.full((2, ROW), np.nan)])
def test_rows_that_are_no_trajectories_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(DataError, match="video-1"):
        check_rows(rows, where="video-1")


# Samples


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
    count=st.integers(1, 60),
    per_video=st.none() | st.integers(1, 10),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_does_not_depend_on_the_order_of_videos(lengths, order, count, per_video) -> None:
    videos = {f"v{place}": np.stack([np.full(n, place), np.arange(n)], 1) for place, n in enumerate(lengths)}
    found = []
    for _ in range(2):
        sample = RowSample(count, seed=3, per_video=per_video)
        for name, rows in videos.items():
            sample.add(name, rows)
            assert sample._held <= count + max(count // 4, 1)
        found.append(sample.rows())
        names = list(videos)
        order.shuffle(names)
        videos = {name: videos[name] for name in names}
    assert np.array_equal(*found)
    there = sum(min(n, per_video or n) for n in lengths)
    assert len(found[0]) == min(count, there)
    if len(found[0]):
        assert len(np.unique(found[0], axis=0)) == len(found[0])  # without replacement
        assert per_video is None or np.bincount(found[0][:, 0].astype(int)).max() <= per_video


def test_every_row_is_as_likely_and_seeds_differ() -> None:
    counts = np.zeros(50)
    for seed in range(400):
        sample = RowSample(10, seed=seed)
        for place in range(5):
            sample.add(f"v{place}", np.arange(place * 10, place * 10 + 10)[:, None])
        counts[sample.rows()[:, 0]] += 1
    # 400 draws of one row in five: 80 expected, standard deviation 8.
    assert counts.sum() == 4000 and abs(counts - 80).max() < 5 * 8
    assert np.square((counts - 80) / 8).mean() < 2


def test_videos_of_one_name_would_count_twice() -> None:
    sample = RowSample(5)
    sample.add("a", np.zeros((2, 3)))
    with pytest.raises(DataError, match="twice"):
        sample.add("a", np.zeros((2, 3)))
    with pytest.raises(DataError, match="numbers"):
        sample.add("b", np.zeros((2, 4)))
    with pytest.raises(ConfigError):
        RowSample(0)


# Projection and mixture


@pytest.mark.parametrize("whiten", [False, True])
def test_a_projection_is_that_of_scikit_learn(whiten: bool) -> None:
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(0).normal(size=(200, 8)) * np.arange(1, 9)
    ours = fit_projection(rows, whiten=whiten)(rows)
    assert ours.shape == (200, 4)
    assert np.allclose(ours, PCA(4, svd_solver="full", whiten=whiten).fit_transform(rows))
    with pytest.raises(DataError, match="directions"):
        fit_projection(rows[:3])


def test_a_mixture_is_repeatable_and_finds_clusters() -> None:
    generator = np.random.default_rng(1)
    rows = np.concatenate([generator.normal(place, 0.1, (100, 2)) for place in (-3, 0, 3)])
    first, again = fit_mixture(rows, 3, seed=4), fit_mixture(rows, 3, seed=4)
    assert np.array_equal(first.means, again.means) and np.array_equal(first.variances, again.variances)
    assert np.allclose(np.sort(first.means[:, 0]), [-3, 0, 3], atol=0.05)
    assert np.allclose(first.variances, 0.01, atol=0.005)
    with pytest.raises(DataError, match="1 among 50"):
        fit_mixture(np.ones((50, 2)), 3)


# Fisher vectors


def test_a_fisher_vector_is_the_formula_of_perronnin_in_float64() -> None:
    model, rows = mixture(), np.random.default_rng(1).normal(size=(40, 3))
    plain = fisher_by_loops(rows, model)
    assert np.allclose(fisher_vector(rows, model, improved=False), plain, rtol=1e-10, atol=1e-12)
    root = np.sign(plain) * np.sqrt(np.abs(plain))
    found = fisher_vector(rows, model)
    assert np.allclose(found, root / np.linalg.norm(root), rtol=1e-8, atol=1e-10)
    assert np.linalg.norm(found) == pytest.approx(1)


def test_a_fisher_vector_is_that_of_scikit_image_but_for_the_sign_of_variances() -> None:
    feature = pytest.importorskip("skimage.feature")
    if not hasattr(feature, "fisher_vector"):
        pytest.skip("this scikit-image has no Fisher vectors")
    from sklearn.mixture import GaussianMixture

    rows = np.random.default_rng(2).normal(size=(300, 4))
    gmm = GaussianMixture(6, covariance_type="diag", random_state=0).fit(rows)
    model = Mixture(gmm.weights_, gmm.means_, gmm.covariances_)
    theirs = feature.fisher_vector(rows[:50], gmm)[6:]  # behind the gradients by weights
    ours = fisher_vector(rows[:50], model, improved=False)
    assert np.allclose(ours, np.concatenate([theirs[:24], -theirs[24:]]), rtol=1e-8, atol=1e-10)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40), shift=st.sampled_from([0.0, 50.0]))
@settings(max_examples=25, deadline=None)
def test_a_fisher_vector_knows_no_order_and_no_number_of_descriptors(seed, count, shift) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, 3)) + shift  # far away no density is above the smallest float
    model = mixture(seed=seed)
    found = fisher_vector(rows, model)
    assert np.isfinite(found).all()
    assert np.allclose(found, fisher_vector(generator.permutation(np.repeat(rows, 2, axis=0)), model), atol=1e-6)


def test_blocks_of_descriptors_do_not_change_a_fisher_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = mixture(), np.random.default_rng(1).normal(size=(40, 3))
    whole = fisher_vector(rows, model)
    monkeypatch.setattr("volrec.benchmarks.encoding.fisher._BLOCK", 7)
    assert np.allclose(fisher_vector(rows, model), whole)
    assert not fisher_vector(rows[:0], model).any()


# Bags of words


def test_words_are_counted_as_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volrec.benchmarks.encoding.bow._BLOCK", 16)
    generator = np.random.default_rng(0)
    rows, words = generator.normal(size=(70, 5)), generator.normal(size=(9, 5))
    nearest = [int(np.argmin([np.linalg.norm(row - word) for word in words])) for row in rows]
    assert nearest_words(rows, words).tolist() == nearest
    counts = np.bincount(nearest, minlength=9)
    assert histogram(rows, words, normalize="none").tolist() == counts.tolist()
    assert np.allclose(histogram(rows, words), counts / 70)
    assert np.allclose(histogram(rows, words, normalize="l2"), counts / np.sqrt((counts**2).sum()))
    assert not histogram(rows[:0], words).any()
    with pytest.raises(ConfigError, match="max"):
        histogram(rows, words, normalize="max")


def test_the_best_of_eight_runs_is_kept() -> None:
    rows = np.random.default_rng(0).uniform(size=(120, 2)).astype(np.float32)
    runs = [run_of_words(rows, 12, seed=1, run=run) for run in range(8)]
    losses = [((rows - run.centres[nearest_words(rows, run.centres)]) ** 2).sum() for run in runs]
    assert losses == pytest.approx([run.loss for run in runs], rel=1e-4) and max(losses) > min(losses) * 1.001
    assert np.array_equal(fit_words(rows, 12, seed=1), runs[int(np.argmin(losses))].centres)
    with pytest.raises(DataError, match="2 words need as many different"):
        fit_words(np.ones((5, 2)), 2)


# The encoder


def encoder(**changes: object) -> TrajectoryEncoder:
    chosen = TrajectoryClassifier(**{"words": 3, "samples": 200, **changes})
    return TrajectoryEncoder.fit(((f"v{n}", trajectories(60, n)) for n in range(5)), chosen, seed=1)


def test_the_usual_vectors_have_109056_numbers_and_101376_without_the_trajectory() -> None:
    parts = {}
    for name in COLUMNS:
        half = width(name) // 2
        shape = np.broadcast_to(0.0, (256, half))
        parts[name] = _Part(
            Projection(np.zeros(2 * half), np.zeros((half, 2 * half))), Mixture(shape[:, 0], shape, shape)
        )
    whole = TrajectoryEncoder(TrajectoryClassifier(), parts, {})
    assert whole.dimension == 109_056
    assert whole.channels["hof"] == (512 * (15 + 48), 512 * (15 + 48 + 54))
    assert (
        TrajectoryEncoder(TrajectoryClassifier(), {n: p for n, p in parts.items() if n != "trajectory"}, {}).dimension
        == 101_376
    )


def test_a_vector_is_the_fisher_vector_of_each_descriptor_side_by_side() -> None:
    found, rows = encoder(), trajectories(30, 50)
    vector = found.encode(rows)
    assert vector.dtype == np.float32 and vector.shape == (2 * 3 * 213,) == (found.dimension,)
    start, end = found.channels["mbhx"]
    part = found.parts["mbhx"]
    single = fisher_by_loops((rows[:, 244:340] - part.projection.mean) @ part.projection.components.T, part.mixture)
    root = np.sign(single) * np.sqrt(np.abs(single))
    assert np.allclose(vector[start:end], root / np.linalg.norm(root), atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(np.sqrt(5))


def test_the_same_seed_gives_the_same_vector_in_any_order_and_with_processes() -> None:
    chosen = TrajectoryClassifier(words=3, samples=200, descriptors=["hog", "mbhy"])
    videos = [(f"v{n}", trajectories(60, n)) for n in range(5)]
    first = TrajectoryEncoder.fit(videos, chosen, seed=1)
    again = TrajectoryEncoder.fit(videos[::-1], chosen, seed=1)
    other = TrajectoryEncoder.fit(videos, chosen, seed=2)
    assert first.digest == again.digest != other.digest
    assert np.array_equal(first.encode(videos[0][1]), again.encode(videos[0][1]))
    assert first.facts == {
        "seed": 1,
        "videos": 5,
        "trajectories": 300,
        "drawn": 200,
        "per_video": None,
        "whiten": False,
    }


@pytest.mark.slow
def test_processes_do_not_change_a_vocabulary() -> None:
    videos = [(f"v{n}", trajectories(60, n)) for n in range(5)]
    for encoding in ("fisher", "bow"):
        chosen = TrajectoryClassifier(encoding=encoding, words=3, samples=200, descriptors=["hog", "mbhy"])
        alone, together = (TrajectoryEncoder.fit(videos, chosen, seed=1, jobs=jobs) for jobs in (1, 2))
        assert alone.digest == together.digest


@pytest.mark.parametrize(("kernel", "length"), [("linear", np.linalg.norm), ("chi2", np.sum)])
def test_a_bag_of_words_suits_its_kernel(kernel: str, length) -> None:
    found = encoder(encoding="bow", words=15, kernel=kernel, descriptors=["hog", "hof"])
    vector = found.encode(trajectories(30, 50))
    assert vector.shape == (30,) and found.channels == {"hog": (0, 15), "hof": (15, 30)}
    assert length(vector[:15]) == pytest.approx(1) and length(vector[15:]) == pytest.approx(1)
    for name in ("hog", "hof"):  # the best run is the last one of the one, the first of the other
        words = fit_words(descriptor(_drawn(), name), 15, seed=1)
        assert np.array_equal(found.parts[name].words, words)


def _drawn() -> np.ndarray:
    sample = RowSample(200, seed=1)
    for n in range(5):
        sample.add(f"v{n}", trajectories(60, n))
    return sample.rows()


@pytest.mark.parametrize("encoding", ["fisher", "bow"])
def test_a_saved_encoder_gives_equal_vectors(encoding: str, tmp_path: Path) -> None:
    found, rows = encoder(encoding=encoding), trajectories(30, 50)
    found.save(tmp_path / "words.safetensors")
    again = TrajectoryEncoder.load(tmp_path / "words.safetensors")
    assert np.array_equal(again.encode(rows), found.encode(rows))
    assert again.settings == found.settings and again.facts == found.facts and again.digest == found.digest
    assert list(again.channels.items()) == list(found.channels.items())
    assert (tmp_path / "words.json").is_file()


def test_a_file_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    from volrec.benchmarks.encoding.stored import save_arrays

    path = tmp_path / "words.safetensors"
    with pytest.raises(RunError, match="no such file"):
        TrajectoryEncoder.load(path)
    save_arrays(path, {"a": np.ones(300)}, kind="linear-svm", facts={})
    with pytest.raises(RunError, match="'linear-svm'"):
        TrajectoryEncoder.load(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="not those that were written"):
        TrajectoryEncoder.load(path)
    path.write_bytes(b"\x80\x04nothing")
    with pytest.raises(RunError, match="damaged"):
        TrajectoryEncoder.load(path)


def test_no_trajectories_at_all_are_an_error() -> None:
    with pytest.raises(DataError, match="no trajectories were found in 2 videos"):
        TrajectoryEncoder.fit([("a", np.empty((0, ROW))), ("b", np.empty((0, ROW)))])


# The table


def test_a_video_without_trajectories_is_zero_and_counted(tmp_path: Path) -> None:
    found = encoder()
    videos = {"b": trajectories(20, 7), "still": np.empty((0, ROW), np.float32), "a": trajectories(20, 8)}
    table = VectorTable(tmp_path / "t", ["a", "still", "b"], columns=found.dimension, source=found.digest)
    encoded = encode_videos(found, videos.items(), table)
    assert encoded.empty == ("still",)
    assert np.array_equal(table.vectors[2], found.encode(videos["b"])) and not table.vectors[1].any()
    assert not table.vectors.flags.writeable


def test_an_interrupted_table_is_gone_on_with(tmp_path: Path) -> None:
    found = encoder(descriptors=["hog"])
    names = ["a", "b", "c"]
    videos = [(name, trajectories(20, place)) for place, name in enumerate(names)]
    facts = {"columns": found.dimension, "source": found.digest}

    def until_killed():
        yield videos[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_videos(found, until_killed(), VectorTable(tmp_path / "t", names, **facts))
    again = VectorTable(tmp_path / "t", names, **facts)
    assert again.missing == ("b", "c")
    with pytest.raises(DataError, match="1 of 3 videos"):
        encode_videos(found, videos[1:2], again)
    encode_videos(found, videos[2:], again)
    assert np.array_equal(again.vectors, np.stack([found.encode(rows) for _, rows in videos]))


@pytest.mark.parametrize("change", [{"columns": 5}, {"source": "other"}, {"dtype": "float16"}, {"names": ["b", "a"]}])
def test_a_table_of_other_vectors_is_refused(tmp_path: Path, change: dict) -> None:
    facts = {"names": ["a", "b"], "columns": 4, "source": "one"}
    VectorTable(tmp_path / "t", **facts)
    with pytest.raises(ConfigError, match=next(iter(change))):
        VectorTable(tmp_path / "t", **{**facts, **change})


def test_half_precision_halves_the_table(tmp_path: Path) -> None:
    vector = encoder(descriptors=["hog"]).encode(trajectories(20, 3))
    sizes = []
    for dtype in ("float32", "float16"):
        table = VectorTable(tmp_path / dtype, ["a"] * 1, columns=len(vector), dtype=dtype)
        table.put("a", vector)
        table.flush()
        assert np.allclose(table.vectors[0], vector, atol=5e-4)
        sizes.append((tmp_path / dtype / "vectors.npy").stat().st_size - 128)
    assert sizes[0] == 2 * sizes[1]


def test_encoding_imports_neither_torch_nor_scikit_learn_until_it_fits() -> None:
    import subprocess
    import sys

    code = "import sys, volrec.benchmarks.encoding; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
