"""What encoding costs, in seconds of one processor: vectors of 10,000 trajectories, machines on long vectors.

    OMP_NUM_THREADS=1 python tests/performance/bench_fisher.py

Vocabularies are drawn, not learned: the time does not depend on what they hold. Beside Fisher vectors stands the time
of scikit-image's ``fisher_vector`` for the same projected descriptors where it is installed; beside the linear machine
that of LinearSVC on the vectors themselves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from volrec.benchmarks.encoding.bow import histogram
from volrec.benchmarks.encoding.classifiers import LinearClassifier
from volrec.benchmarks.encoding.descriptors import COLUMNS, ROW, descriptor, width
from volrec.benchmarks.encoding.fisher import Mixture, fisher_vector
from volrec.benchmarks.encoding.pca import Projection


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=10_000)
    parser.add_argument("--gaussians", type=int, default=256)
    parser.add_argument("--words", type=int, default=4000)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--numbers", type=int, default=10_000)
    chosen = parser.parse_args()
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(chosen.trajectories, ROW)).astype(np.float32)

    parts = {}
    for name in COLUMNS:
        half = width(name) // 2
        components = np.linalg.qr(generator.normal(size=(2 * half, half)))[0].T
        weights = generator.uniform(0.5, 1.5, chosen.gaussians)
        means = 0.5 * generator.normal(size=(chosen.gaussians, half))
        variances = generator.uniform(0.5, 1.5, (chosen.gaussians, half))
        parts[name] = Projection(np.zeros(2 * half), components), Mixture(weights / weights.sum(), means, variances)

    def ours() -> None:
        for name, (projection, mixture) in parts.items():
            fisher_vector(projection(descriptor(rows, name)), mixture)

    def projected() -> None:
        for name, (projection, _) in parts.items():
            projection(descriptor(rows, name))

    whole, before = seconds(ours), seconds(projected)
    print(
        f"Fisher vectors, 5 descriptors, {chosen.gaussians} Gaussians: {whole:.2f} s, {before:.2f} s of it to project"
    )
    try:
        from skimage.feature import fisher_vector as theirs_of
        from sklearn.mixture import GaussianMixture
    except ImportError:
        print("scikit-image is not installed: no comparison")
    else:
        given = []
        for name, (projection, mixture) in parts.items():
            model = GaussianMixture(chosen.gaussians, covariance_type="diag")
            model.weights_, model.means_, model.covariances_ = mixture.weights, mixture.means, mixture.variances
            model.precisions_cholesky_ = 1 / np.sqrt(mixture.variances)
            given.append((projection(descriptor(rows, name)), model))
        other = seconds(lambda: [theirs_of(*pair) for pair in given])
        print(f"scikit-image without the projection: {other:.2f} s; ours over theirs {(whole - before) / other:.2f}")

    words = {name: generator.normal(size=(chosen.words, width(name))).astype(np.float32) for name in COLUMNS}
    bags = seconds(lambda: [histogram(descriptor(rows, name), words[name]) for name in COLUMNS])
    print(f"bags of {chosen.words} words, 5 descriptors: {bags:.2f} s")

    from sklearn.svm import LinearSVC

    labels = np.arange(chosen.videos) % 10
    vectors = generator.normal(size=(chosen.videos, chosen.numbers)).astype(np.float32)
    vectors[:, :10] += 5 * np.eye(10)[labels]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    classes = [str(place) for place in range(10)]
    own = seconds(lambda: LinearClassifier.fit(vectors, labels, classes=classes, c=100.0), 1)
    plain = LinearSVC(C=100.0, dual=False, tol=1e-6, max_iter=10_000)
    direct = seconds(lambda: plain.fit(vectors, labels), 1)
    print(
        f"linear machine of {chosen.videos} videos, {chosen.numbers} numbers, 10 classes: {own:.2f} s; "
        f"over LinearSVC on the vectors {own / direct:.2f}"
    )


if __name__ == "__main__":
    main()
