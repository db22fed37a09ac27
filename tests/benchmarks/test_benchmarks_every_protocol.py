"""Every protocol of the package trains and tests on a set of twelve clips, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.runs import render, report, result, run

from volrec.benchmarks import ScoreSet
from volrec.benchmarks.protocol import list_protocols, load_protocol

MORE = {
    # Twelve clips have few descriptors to make words of, and no second frame at one frame a second.
    "actionvlad": {"network.options.words": 8},
    "ng-lstm": {"frames.frame_rate": "null"},
}
"""Changed in every stream of the protocols whose names begin so."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("motion") / "set")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trajectories, that all protocols share."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", list_protocols())
def test_a_protocol_trains_and_tests(protocol: str, root: Path, shared: Path, tmp_path: Path) -> None:
    paper = load_protocol(protocol)
    more: list[str | Path] = ["--trajectories", shared / "trajectories"]
    if paper.trajectories is not None:
        more += ["--set", "trajectories.words=2", "--set", "trajectories.samples=500"]
    for name, changes in MORE.items():
        for stream in paper.streams if protocol.startswith(name) else []:
            for key, value in changes.items():
                more += ["--set", f"streams.{stream.name}.{key}={value}"]
    assert run(root, protocol, tmp_path / "run", *more) == 0
    scores, found = ScoreSet.read(tmp_path / "run/split-1.safetensors"), result(tmp_path / "run")
    assert len(scores.videos) == 3 and np.isfinite(scores.scores).all()
    if scores.stage == "softmax":
        np.testing.assert_allclose(scores.scores.sum(axis=1), 1, rtol=1e-5)
    right = [int(row.argmax()) in labels for row, labels in zip(scores.scores, scores.labels, strict=True)]
    assert found["metrics"]["video-top1"] == pytest.approx(100 * np.mean(right))
    nets = (paper.features.nets if paper.features is not None else 1) * len(paper.streams)
    assert len(found["weights"]) == nets and found["protocol"] == protocol
    text = report(tmp_path / "run")
    assert text.startswith(f"# {paper.system} on motion: protocol {protocol}") and "not recorded" not in text
    assert all(
        " ".join(line.replace("|", "\\|").split()) in " ".join(text.split()) or line in text for line in paper.open
    )
