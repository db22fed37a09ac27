"""Several runs score as one: a vote a run, outputs joined by name; and what a protocol may be changed to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from untrained import CONFIG, make_run, write_folder

import volrec
from volrec.config import parse_config
from volrec.errors import ConfigError, RunError
from volrec.inference import load_members, predict_folder
from volrec.inference.protocols import ProtocolChanges


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("several") / "in", studies=2, slices=9)


def test_each_run_has_one_vote_however_many_members_it_has(tmp_path: Path, folder: Path) -> None:
    runs = [make_run(tmp_path / "a", members=3), make_run(tmp_path / "b", seed=1)]
    alone = [predict_folder(run, folder, device="cpu", by_member=True)[0] for run in runs]
    table, _ = predict_folder(runs[0], folder, also=runs[1:], device="cpu")
    for row in table.itertuples():
        a, b = (one.loc[one["study"] == row.study, "score_1"].to_numpy() for one in alone)
        mean = (a.mean() + b.mean()) / 2
        assert row.score_1 == pytest.approx(mean, rel=1e-12)
        assert row.logit_1 == pytest.approx(np.log(mean / (1 - mean)))
        votes = np.array([1 / 6, 1 / 6, 1 / 6, 1 / 2])
        spread = np.sqrt(np.average((np.concatenate([a, b]) - mean) ** 2, weights=votes))
        assert row.spread == pytest.approx(spread)
        assert (row.members, row.clips) == (4, 2 * alone[0]["clips"][0])


def test_outputs_are_joined_by_name(tmp_path: Path, folder: Path) -> None:
    facts: dict[str, Any] = {"task": "multiclass", "targets": ["kind"]}
    first = make_run(tmp_path / "a", classes=["x", "y", "z"], **facts)
    other = make_run(tmp_path / "b", seed=1, classes=["z", "x", "y"], **facts)
    both, _ = predict_folder(first, folder, also=[other], device="cpu")
    columns = ["score_x", "score_y", "score_z"]
    each = [predict_folder(run, folder, device="cpu")[0][columns].to_numpy() for run in (first, other)]
    np.testing.assert_allclose(both[columns], (each[0] + each[1]) / 2, rtol=1e-12)
    assert both["entropy"].between(0, np.log2(3)).all()
    turned = make_run(tmp_path / "c", seed=1, classes=["1", "0"])
    plain = make_run(tmp_path / "d")
    out = tmp_path / "out" / "s.csv"
    both, _ = predict_folder(plain, folder, also=[turned], out=out, device="cpu")
    negative = predict_folder(turned, folder, device="cpu")[0]["score_0"]
    positive = predict_folder(plain, folder, device="cpu")[0]["score_1"]
    np.testing.assert_allclose(both["score_1"], (positive + 1 - negative) / 2)
    slices = pd.read_csv(tmp_path / "out" / "s-slices.csv")
    assert list(slices.columns) == ["run", "study", "slice", "position_mm", "score_1"]
    own = load_members(turned, device="cpu")[0].predictor
    assert own.protocol.clips == 0
    assert slices.groupby(["study", "run"]).size().tolist() == [9] * 4


def test_quantities_are_averaged_in_their_own_units(tmp_path: Path, folder: Path) -> None:
    facts: dict[str, Any] = {"task": "regression", "targets": ["volume", "age"], "classes": []}
    runs = [make_run(tmp_path / str(seed), seed=seed, **facts) for seed in (0, 1)]
    table, _ = predict_folder(runs[0], folder, also=runs[1:], device="cpu")
    each = [predict_folder(run, folder, device="cpu")[0] for run in runs]
    for name in ("volume", "age"):
        values = np.stack([one[f"score_{name}"] for one in each])
        np.testing.assert_allclose(table[f"score_{name}"], values.mean(0))
        np.testing.assert_allclose(table[f"spread_{name}"], values.std(0))
    assert not [column for column in table if column.startswith(("logit", "entropy", "disagreement"))]


def test_a_study_that_one_run_cannot_score_is_named(tmp_path: Path, folder: Path) -> None:
    whole = parse_config({**CONFIG.to_dict(), "data": {"series": {"min_slices": 3}}})
    picky = parse_config({**CONFIG.to_dict(), "data": {"series": {"path": "p1"}}})
    runs = [make_run(tmp_path / "whole", config=whole), make_run(tmp_path / "picky", config=picky)]
    table, problems = predict_folder(runs[0], folder, also=runs[1:], device="cpu")
    assert table["study"].tolist() == ["p1"]
    (problem,) = [problem for problem in problems if problem.fatal and "p0" in problem.study + problem.where]
    assert "picky" in problem.reason


def test_runs_of_other_questions_are_refused(tmp_path: Path, folder: Path) -> None:
    first = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", task="regression", targets=["age"], classes=[])
    with pytest.raises(RunError, match="the task of b is regression, that of a is binary") as caught:
        predict_folder(first, folder, also=[other], device="cpu")
    assert "same targets and classes" in caught.value.remedy
    with pytest.raises(RunError, match="named twice"):
        predict_folder(first, folder, also=[tmp_path / "a"], device="cpu")


def test_a_changed_protocol_scores_as_a_run_of_that_protocol(tmp_path: Path, folder: Path) -> None:
    changed = parse_config({**CONFIG.to_dict(), "protocol": {"overlap": 0.75, "flips": ["H", "T"]}})
    expected = predict_folder(make_run(tmp_path / "changed", config=changed), folder, device="cpu")[0]
    run = make_run(tmp_path / "run")
    loaded = volrec.load(run.path)
    found = loaded.predict(folder, overlap=0.75, flips=["T", "H"], device="cpu", out=tmp_path / "o" / "s.json")
    assert found["score_1"].tolist() == expected["score_1"].tolist()
    assert found["clips"].tolist() == expected["clips"].tolist()
    record = json.loads((tmp_path / "o" / "s.json").read_text(encoding="utf-8"))
    assert record["settings"]["protocol_changes"] == {"flips": ["T", "H"], "overlap": 0.75}
    assert record["runs"][0]["protocol"]["overlap"] == 0.75
    assert [row["score_1"] for row in record["rows"]] == found["score_1"].tolist()
    plain = loaded.predict(folder, device="cpu")
    assert plain["score_1"].tolist() != found["score_1"].tolist()
    assert loaded.predict(folder, device="cpu", clips=1)["clips"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "protocol", "match"),
    [
        ({"overlap": 1.0}, {}, "--overlap: 1.0 cannot be used"),
        ({"clips": -1}, {}, "--clips: -1 cannot be used"),
        ({"flips": ["Z"]}, {}, r"--flips: \['Z'\] cannot be used"),
        ({"overlap": 0.5}, {"clips": 3}, "--overlap: it would change nothing: there are 3 clips a study"),
        ({"overlap": 0.5, "clips": 2}, {}, "--overlap: it would change nothing: there are 2 clips a study"),
        ({"method": "dense", "overlap": 0.5}, {}, "--overlap: it would change nothing: the method dense"),
        ({"method": "whole"}, {}, "--method: 'whole' cannot be used"),
    ],
    ids=str,
)
def test_a_protocol_that_cannot_be_names_the_option(
    changes: dict[str, Any], protocol: dict[str, Any], match: str, tmp_path: Path, folder: Path
) -> None:
    config = parse_config({**CONFIG.to_dict(), "protocol": protocol})
    run = make_run(tmp_path / "run", config=config)
    with pytest.raises(ConfigError, match=match):
        predict_folder(run, folder, changes=ProtocolChanges(**changes), device="cpu", out=tmp_path / "o" / "s.csv")
    assert not list((tmp_path / "o").iterdir())


def test_a_mirror_along_slices_is_refused_where_motion_is_read() -> None:
    protocol = CONFIG.protocol
    with pytest.raises(ConfigError, match="--flips: a mirror along T turns the motion between slices"):
        ProtocolChanges(flips=["T"]).applied(protocol, motion=["flow"])
    assert ProtocolChanges(flips=["W"]).applied(protocol, motion=["flow"]).flips == ["W"]
    with pytest.raises(ConfigError, match="--overlap: it would change nothing: clips of this run are spread"):
        ProtocolChanges(overlap=0.5).applied(protocol, sampling="segments")


def test_an_unknown_backend_is_refused_before_anything_is_read(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="no backend 'tensorflow'"):
        predict_folder(make_run(tmp_path / "run"), folder, backend="tensorflow")
