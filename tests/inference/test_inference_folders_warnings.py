"""The warning of a study says where it differs from the training data, and is empty where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from studies import write_study
from untrained import CONFIG, make_run, write_folder

from volrec.config import parse_config
from volrec.data.index import index
from volrec.inference import predict_folder
from volrec.runs import RunFolder


def learned_run(path: Path, folder: Path, *, config: Any = CONFIG, parts: Sequence[str] = ()) -> RunFolder:
    """Write a run with the tables that a training on these studies leaves; the last of them was tested."""
    run = make_run(path, config=config)
    found = index(folder)
    run.write_table("index", found.table)
    names = [record.study for record in found.studies]
    parts = list(parts) or ["train"] * (len(names) - 1) + ["test"]
    table = pd.DataFrame({"split": "fold-0", "part": parts, "study": names, "patient": names})
    run.write_table("splits", table)
    return run


def config_with(**sections: dict[str, Any]) -> Any:
    return parse_config({**CONFIG.to_dict(), **sections})


@pytest.fixture
def trained_on(tmp_path: Path) -> Path:
    """Studies of 8 and 10 slices, 2 and 2.5 mm apart, and a tested one that is like none of them."""
    for number, (slices, apart) in enumerate([(8, 2.0), (10, 2.5)]):
        write_study(tmp_path / "old" / f"t{number}", slices=slices, spacing=(apart, 1.0, 1.0))
    write_study(tmp_path / "old" / "x", slices=50, spacing=(20.0, 4.0, 4.0))
    return tmp_path / "old"


def warning(run: RunFolder, folder: Path, **study: Any) -> str:
    write_study(folder, **study)
    table, _ = predict_folder(run, folder.parent, device="cpu")
    return str(table.set_index("study").loc[folder.name, "warning"])


def test_studies_like_those_of_the_training_get_no_warning(tmp_path: Path, trained_on: Path) -> None:
    run = learned_run(tmp_path / "run", trained_on)
    for number, study in enumerate(
        [{"slices": 8}, {"slices": 5, "spacing": (3.7, 1.4, 1.4)}, {"slices": 20, "spacing": (1.4, 0.7, 0.7)}]
    ):
        assert warning(run, tmp_path / "new" / f"n{number}", **study) == ""


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ({"slices": 8, "spacing": (5.0, 1, 1)}, "slices 5 mm apart (training had 2 to 2.5)"),
        ({"slices": 8, "spacing": (0.75, 1, 1)}, "slices 0.75 mm apart (training had 2 to 2.5)"),
        ({"slices": 30}, "30 slices (training had 8 to 10)"),
        ({"slices": 3}, "3 slices (training had 8 to 10)"),
        # In plane this run brings pixels to one size: finer ones are as good, coarser ones are not.
        ({"slices": 8, "spacing": (2.0, 1, 1.75)}, "pixels of 1.75 mm (training had 1)"),
        ({"slices": 8, "spacing": (2.0, 0.5, 0.5)}, ""),
        # 40 pixels of 1 mm become 27 of 1.5 mm, of which the canvas keeps 16; of a training study it cut nothing.
        (
            {"slices": 8, "size": (40, 16)},
            "the crop leaves out 41% of its height (of a training study nothing)",
        ),
    ],
    ids=str,
)
def test_what_differs_is_told(study: dict[str, Any], expected: str, tmp_path: Path, trained_on: Path) -> None:
    run = learned_run(tmp_path / "run", trained_on)
    assert warning(run, tmp_path / "new" / "n", **study) == expected


def test_after_resampling_along_slices_their_number_does_not_matter_but_what_they_cover(
    tmp_path: Path, trained_on: Path
) -> None:
    run = learned_run(tmp_path / "run", trained_on, config=config_with(preprocess={"spacing": [2.0, None, None]}))
    assert warning(run, tmp_path / "a" / "n", slices=40, spacing=(0.5, 1, 1)) == ""
    told = warning(run, tmp_path / "b" / "n", slices=60, spacing=(1.0, 1, 1))
    assert told == "slices cover 60 mm (training had 16 to 25)"


def test_a_crop_is_no_news_where_training_studies_were_cropped_alike(tmp_path: Path, trained_on: Path) -> None:
    run = learned_run(tmp_path / "run", trained_on, config=config_with(preprocess={"canvas": [5, 16, 16]}))
    # Of 8 and 10 slices the canvas left out up to 50 %; of 11 it leaves out 55 %, of 19 74 %.
    assert warning(run, tmp_path / "a" / "n", slices=11) == ""
    told = warning(run, tmp_path / "b" / "n", slices=19)
    assert told == "the crop leaves out 74% of its slices (of a training study at most 50%)"


def test_slices_of_another_plane_are_told_and_not_compared(tmp_path: Path, trained_on: Path) -> None:
    run = learned_run(tmp_path / "run", trained_on)

    def coronal(data: Any, number: int) -> None:
        data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]
        data.ImagePositionPatient = [-8.0, number * 9.0, 8.0]

    told = warning(run, tmp_path / "a" / "n", slices=8, spacing=(9.0, 1, 1), change=coronal)
    assert told == "coronal slices (training had axial ones)"


def test_a_study_that_was_learned_from_is_told_and_one_that_was_tested_is_not(tmp_path: Path, trained_on: Path) -> None:
    run = learned_run(tmp_path / "run", trained_on)
    table = predict_folder(run, trained_on, device="cpu")[0].set_index("study")["warning"]
    learned = "the run was trained on this study: its score looks better than it is"
    assert table[["t0", "t1"]].tolist() == [learned, learned]
    assert learned not in table["x"]
    # Another study of the same name, from elsewhere, is none that it knows.
    write_study(tmp_path / "elsewhere" / "t0", slices=8)
    assert predict_folder(run, tmp_path / "elsewhere", device="cpu")[0]["warning"].tolist() == [""]


LEARNED = "the run was trained on this study: its score looks better than it is"
CHOSE = "this study chose the weights and thresholds of the run: its score looks better than it is"


def test_a_study_that_chose_the_weights_has_its_own_sentence(tmp_path: Path, trained_on: Path) -> None:
    write_study(trained_on / "t2", slices=9)
    run = learned_run(tmp_path / "run", trained_on, parts=["train", "train", "validation", "test"])
    table = predict_folder(run, trained_on, device="cpu")[0].set_index("study")["warning"]
    assert table[["t0", "t1", "t2"]].tolist() == [LEARNED, LEARNED, CHOSE]
    assert "looks better" not in table["x"]


def test_what_one_member_learned_from_and_another_was_chosen_by_counts_as_learned(
    tmp_path: Path, trained_on: Path
) -> None:
    run = learned_run(tmp_path / "run", trained_on, parts=["train", "validation", "test"])
    splits = run.read_table("splits")
    other = splits.assign(split="fold-1", part=["validation", "train", "test"])
    run.write_table("splits", pd.concat([splits, other]))
    make_run(tmp_path / "two", members=2)
    for name in ("index.csv", "splits.csv"):
        (tmp_path / "two" / name).write_bytes((run.path / name).read_bytes())
    table = predict_folder(tmp_path / "two", trained_on, device="cpu")[0].set_index("study")["warning"]
    assert table[["t0", "t1"]].tolist() == [LEARNED, LEARNED]


def test_nifti_studies_are_recognised_by_their_place_and_not_by_their_name(tmp_path: Path) -> None:
    for folder in ("old", "other"):
        (tmp_path / folder / "images").mkdir(parents=True)
        for name in ("a", "b", "c"):
            array = np.random.default_rng(0).normal(0, 100, (16, 16, 8)).astype(np.int16)
            nibabel.save(
                nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])), tmp_path / folder / "images" / f"{name}.nii"
            )
    config = config_with(data={"folder": str(tmp_path / "old")})
    run = learned_run(tmp_path / "run", tmp_path / "old", config=config, parts=["train", "validation", "test"])

    def told(folder: Path) -> list[str]:
        warnings = predict_folder(run, folder, device="cpu")[0]["warning"]
        return [next((one for one in (LEARNED, CHOSE) if one in text), "") for text in warnings]

    assert told(tmp_path / "old") == [LEARNED, CHOSE, ""]
    assert told(tmp_path / "old" / "images") == [LEARNED, CHOSE, ""]  # seen from within, its relative path is another
    (tmp_path / "link").symlink_to(tmp_path / "old" / "images")
    assert told(tmp_path / "link") == [LEARNED, CHOSE, ""]
    assert told(tmp_path / "other") == ["", "", ""]


def test_a_run_without_its_tables_compares_the_modality_alone(tmp_path: Path, trained_on: Path) -> None:
    run = learned_run(tmp_path / "run", trained_on)
    (run.path / "index.csv").unlink()
    assert warning(run, tmp_path / "a" / "n", slices=40, spacing=(9.0, 1, 1)) == ""


def test_slices_are_named_as_acquired_and_where_they_lie(tmp_path: Path) -> None:
    """Resampled to half the distance and padded: every slice has its nearest acquired one, padding no row."""
    config = config_with(preprocess={"spacing": [1.0, None, None], "canvas": [20, 16, 16]})
    run = make_run(tmp_path / "run", config=config)

    def from_foot(data: Any, number: int) -> None:
        data.ImagePositionPatient = [-8.0, -8.0, 100.0 - 2.0 * number]  # acquired from the head to the feet

    write_study(tmp_path / "in" / "n", slices=6, change=from_foot)
    predict_folder(run, tmp_path / "in", out=tmp_path / "s.csv", device="cpu")
    table = pd.read_csv(tmp_path / "s-slices.csv")
    assert sorted(set(table["slice"])) == list(range(6))
    at = table["position_mm"].to_numpy()
    np.testing.assert_allclose(np.diff(at), 1.0)
    # Canonical order grows to the head: slice 0 lies at 90 mm, as its header says.
    np.testing.assert_allclose(np.abs(at - (90 + 2 * table["slice"])) <= 1.0, True)
    assert at.min() >= 89.0 and at.max() <= 101.0


def test_positions_are_those_of_the_headers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_folder(tmp_path / "in", studies=1, slices=5)
    predict_folder(run, tmp_path / "in", out=tmp_path / "s.csv", device="cpu")
    table = pd.read_csv(tmp_path / "s-slices.csv")
    assert table["slice"].tolist() == [0, 1, 2, 3, 4]
    assert table["position_mm"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
