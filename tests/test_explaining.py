"""`volrec explain` and `Run.explain` on DICOM and NIfTI studies: files, places, and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from studies import two_class_folder, write_labels

import volrec
from volrec.cli import main
from volrec.errors import ConfigError, DataError, RunError
from volrec.explain.montage import MOST, chosen_slices

QUICK = [
    *("--epochs", "6", "--seed", "1"),
    *("--set", "network.name=slice-mean", "--set", "network.width=0.0625"),
    *("--set", "sampling.clip_length=4", "--set", "preprocess.spacing=[2,1.5,1.5]", "--set", "preprocess.canvas=null"),
    *("--set", "trainer.workers=0", "--set", "trainer.accelerator=cpu", "--set", "split.folds=2"),
    *("--set", "augment.flip={}", "--set", "preprocess.slice_axis=axial"),
]


def nifti_folder(folder: Path, *, studies: int = 12) -> Path:
    """Write oblique NIfTI studies, stored sideways; every other one holds a bright block in slices 3 and 4."""
    rng = np.random.default_rng(0)
    labels: dict[str, object] = {}
    folder.mkdir()
    for number in range(studies):
        data = rng.normal(100, 10, (36, 40, 8)).astype(np.int16)
        if number % 2:
            data[8:18, 20:32, 3:5] += 200
        affine = np.array([[1.1, 0, 0.1, -18], [0, 1.0, 0.2, -20], [-0.1, -0.2, 4.0, 7], [0, 0, 0, 1]])
        image = nibabel.Nifti1Image(data, affine).as_reoriented(nibabel.orientations.axcodes2ornt("PSR"))
        image.set_qform(None, code=0)
        image.set_sform(image.affine, code=2)
        image.header["descrip"] = b"Doe^Jane"
        nibabel.save(image, folder / f"case{number:02d}.nii.gz")
        labels[f"case{number:02d}"] = number % 2
    return write_labels(folder / "labels.csv", labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("explain")
    labels = nifti_folder(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLREC_CACHE", str(root / "cache"))
        assert main(["train", str(root / "data"), "--labels", str(labels), "--out", str(root / "run"), *QUICK]) == 0
    return root / "data", root / "run"


def test_a_map_lies_on_its_nifti_and_shows_the_block_that_decides(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = trained
    methods = ["gradcam", "occlusion", "occlusion-3d"]
    given = [argument for method in methods for argument in ("--method", method)]
    assert main(["explain", str(run), "case03", *given, "--set", "block=[1,6,6]", "--set", "stride=[1,3,3]"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "case03" in shown and "strongest in slice" in shown and "warning" not in shown
    original = nibabel.load(data / "case03.nii.gz")
    for method in methods:
        folder = run / "explain" / "case03" / method
        names = {path.name for path in folder.iterdir()}
        assert names == {
            *("evidence.nii.gz", "montage.png", "slices.csv", "explain.json"),
            *("curves.svg", "curves.png"),
        }
        found = nibabel.load(folder / "evidence.nii.gz")
        assert found.shape == original.shape
        np.testing.assert_array_equal(found.affine, original.affine)
        np.testing.assert_allclose(found.header.get_zooms(), original.header.get_zooms(), rtol=1e-6)
        # The block, by the world coordinates of nibabel, whatever the order of the axes.
        values = found.get_fdata()
        world = nibabel.affines.apply_affine(found.affine, np.argwhere(values == values.max())).mean(0)
        block = np.linalg.inv([[1.1, 0, 0.1, -18], [0, 1.0, 0.2, -20], [-0.1, -0.2, 4.0, 7], [0, 0, 0, 1]])
        i, j, k = nibabel.affines.apply_affine(block, world)
        assert 2 <= k <= 5
        if method == "occlusion-3d":  # the maps of Grad-CAM have one position a slice of this size
            assert 7 <= i <= 18 and 19 <= j <= 32
        for path in folder.iterdir():
            assert b"Doe" not in path.read_bytes()
        table = pd.read_csv(folder / "slices.csv")
        assert list(table.columns) == ["slice", "position_mm", "evidence", "alone"]
        assert len(table) == 8
        np.testing.assert_allclose(table["position_mm"].diff().dropna(), 4.0, rtol=0.05)
        facts = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
        assert facts["strongest_slice"]["slice"] == int(table["evidence"].idxmax())
        with Image.open(folder / "montage.png") as picture:
            assert picture.width > 400
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_explain_json_says_what_made_the_map(trained: tuple[Path, Path]) -> None:
    _, run = trained
    arguments = ["case03", "--method", "integrated-gradients", "--set", "steps=6", "--output", "0"]
    assert main(["explain", str(run), *arguments]) == 0
    facts = json.loads((run / "explain" / "case03" / "integrated-gradients-0" / "explain.json").read_text())
    assert facts["options"] == {"steps": 6}
    assert (facts["output"], facts["method"], facts["signed"]) == ("0", "integrated-gradients", True)
    assert facts["completeness"].keys() == {"sum", "difference", "largest_gap", "relative_gap"}
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    (tester,) = splits[(splits["study"] == "case03") & (splits["part"] == "test")]["split"]
    card = json.loads((run / tester / "card.json").read_text())
    assert facts["members"] == [{"name": tester, "weights_sha256": card["tensors"]["sha256"]}]
    scores = pd.read_csv(run / "scores.csv", dtype={"study": str}).set_index("study")
    assert facts["scores"]["1"] == pytest.approx(scores.loc["case03", "score_1"], abs=1e-5)


def test_a_study_that_training_saw_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: tuple[Path, Path]
) -> None:
    _, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    splits = pd.read_csv(copy / "splits.csv", dtype=str)
    tested = splits[splits["part"] == "test"]
    gone = tested.iloc[0]
    shutil.rmtree(copy / gone["split"])
    assert main(["explain", str(copy), gone["study"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "its networks have seen it" in shown
    facts = json.loads((copy / "explain" / gone["study"] / "gradcam" / "explain.json").read_text())
    assert "seen it" in facts["warnings"][0]


def test_paths_other_folders_and_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: tuple[Path, Path]
) -> None:
    """A DICOM study by its path, studies by name in another folder; one that is missing costs itself alone."""
    _, run = trained
    two_class_folder(tmp_path / "other", studies=2, size=(48, 48))
    out = tmp_path / "maps"
    given = [str(tmp_path / "other" / "case01"), "nowhere", "--out", str(out), "--image"]
    assert main(["explain", str(run), *given]) == 3
    shown = capsys.readouterr()
    assert "no study or path 'nowhere'" in " ".join(shown.err.split())
    assert main(["explain", str(run), "nowhere"]) == 2  # nothing was usable
    assert "no study or path 'nowhere'" in " ".join(capsys.readouterr().err.split())
    (folder,) = out.glob("*/gradcam")
    found, image = (nibabel.load(folder / f"{name}.nii.gz") for name in ("evidence", "image"))
    assert found.shape == image.shape == (48, 48, 6)
    np.testing.assert_array_equal(found.affine, image.affine)
    # Written at (-8, -8, 0) mm LPS, 1 mm by 1 mm by 2 mm: (8, 8, 0) RAS.
    np.testing.assert_allclose(found.affine, np.array([[-1, 0, 0, 8], [0, -1, 0, 8], [0, 0, 2, 0], [0, 0, 0, 1]]))
    volume = volrec.read_volume(tmp_path / "other" / "case01")
    np.testing.assert_array_equal(image.get_fdata(), volume.array[0].transpose(2, 1, 0))
    assert main(["explain", str(run), "case00", "--folder", str(tmp_path / "other"), "--out", str(out)]) == 0
    assert (out / "case00" / "gradcam" / "explain.json").is_file()


def test_from_python(trained: tuple[Path, Path]) -> None:
    data, run = trained
    loaded = volrec.load(run)
    found = loaded.explain("case05", method="occlusion", options={"slab": 3}, write=False)
    assert found.folder is None
    volume = volrec.read_volume(data / "case05.nii.gz", slice_axis="axial")
    assert found.array.shape == volume.array.shape[1:]
    np.testing.assert_allclose(found.affine, volume.affine)
    assert found.strongest in (2, 3, 4, 5)
    assert found.evidence.options["slab"] == 3
    with pytest.raises(DataError, match="did you mean 'case05'"):
        loaded.explain("case5")
    with pytest.raises(ConfigError, match="no option 'slab'"):
        loaded.explain("case05", options={"slab": 3})
    with pytest.raises(DataError, match="12 studies"):
        loaded.explain(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["case03", "--method", "grad-cam"], "did you mean 'gradcam'"),
        (["case03", "--output", "2"], "one of 0, 1"),
        (["case03", "--set", "steps=3"], "no option 'steps'"),
        (["case03", "--method", "occlusion", "--set", "slab=2"], "odd number"),
        (["nothing-of-the-kind"], "no study or path"),
    ],
)
def test_wrong_arguments_are_said(
    trained: tuple[Path, Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    assert main(["explain", str(run), *arguments]) in (2, 3)
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_option_goes_to_the_methods_that_have_it(trained: tuple[Path, Path]) -> None:
    _, run = trained
    from volrec.api import explain_run, load

    found = list(explain_run(load(run), ["case01"], methods=["gradcam", "occlusion"], options={"slab": 3}, write=False))
    assert [dict(one.evidence.options) for one in found] == [{}, {"slab": 3, "fill": "median"}]


def test_a_fused_run_is_explained_by_its_parts(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from volrec.api import explain_run, fuse, load

    _, run = trained
    shutil.copytree(run, tmp_path / "second")
    fuse([run, tmp_path / "second"], out=tmp_path / "fused")
    with pytest.raises(RunError, match="no network of its own"):
        list(explain_run(load(tmp_path / "fused"), ["case01"]))


def test_a_montage_draws_the_strongest_slice_of_many() -> None:
    values = np.zeros(100)
    values[37] = 1
    chosen = chosen_slices(values)
    assert len(chosen) == MOST
    assert 37 in chosen
    assert chosen == sorted(set(chosen))
    assert chosen_slices(np.full(5, np.nan)) == [0, 1, 2, 3, 4]
