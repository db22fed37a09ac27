"""The table of bad inputs: each ends with its message and exit code, and no good study is lost."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from studies import two_class_folder, write_labels, write_study

from volrec.cli import main


def _truncated(folder: Path) -> None:
    path = write_study(folder / "bad")[2]
    path.write_bytes(path.read_bytes()[:-100])


def _not_dicom(folder: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "image.dcm").write_text("not an image", encoding="utf-8")


def _changed(change: Callable[[Dataset, int], None], **options: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_study(folder / "bad", change=change, **options)  # type: ignore[arg-type]

    return make


def _without(*tags: str) -> Callable[[Dataset, int], None]:
    def change(data: Dataset, number: int) -> None:
        for tag in tags:
            delattr(data, tag)

    return change


def _spacing(value: float) -> Callable[[Dataset, int], None]:
    def change(data: Dataset, number: int) -> None:
        if math.isnan(value):
            data.PixelSpacing = ["1", "1"]
            data["PixelSpacing"]._value = ["nan", "nan"]  # pydicom refuses to write what scanners have written
        else:
            data.PixelSpacing = [value, value]

    return change


def _one_larger(data: Dataset, number: int) -> None:
    if number == 3:
        data.Rows = data.Columns = 8
        data.PixelData = np.zeros((8, 8), "<i2").tobytes()


def _same_place_other_pixels(data: Dataset, number: int) -> None:
    if number == 3:
        data.ImagePositionPatient = [-8.0, -8.0, 4.0]


def _missing_slice(folder: Path) -> None:
    write_study(folder / "bad", skip=[2], slices=8)


def _nan_voxels_everywhere(folder: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)).to_filename(folder / "bad.nii.gz")


def _truncated_nifti(folder: Path) -> None:
    import nibabel

    path = folder / "bad.nii.gz"
    rng = np.random.default_rng(0)
    nibabel.Nifti1Image(rng.normal(size=(16, 16, 16)).astype(np.float32), np.eye(4)).to_filename(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _two_nifti_in_one_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bad.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")


FILES: list[tuple[str, Callable[[Path], None], int, str]] = [
    ("truncated file", _truncated, 3, "truncated"),
    ("no pixels", _changed(_without("PixelData")), 3, "pixel"),
    ("missing geometry", _changed(_without("ImagePositionPatient", "ImageOrientationPatient")), 3, "position"),
    ("zero spacing", _changed(_spacing(0.0)), 3, "spacing"),
    ("NaN spacing", _changed(_spacing(math.nan)), 3, "spacing"),
    ("mixed sizes", _changed(_one_larger), 3, "8x8"),
    ("two slices in one place", _changed(_same_place_other_pixels), 3, "lie where another one does"),
    ("missing slice", _missing_slice, 3, "missing"),
]


def _inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, dict]:
    out = folder.parent / "index.json"
    code = main(["inspect", str(folder), "--no-sheet", "--json", str(out)])
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert "Traceback" not in text
    return code, text, json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}


@pytest.mark.parametrize(("make", "code", "message"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_bad_study_is_quarantined_and_the_good_one_stays(
    make: Callable[[Path], None], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    write_study(folder / "good")
    make(folder)
    seen, text, index = _inspect(folder, capsys)
    assert seen == code
    assert message in text.lower()
    assert "bad" in text
    assert "good" in json.dumps(index["studies"])


def test_files_that_are_no_images_are_counted_and_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "data" / "good")
    (tmp_path / "data" / "notes.txt").write_text("hello", encoding="utf-8")
    code, _, index = _inspect(tmp_path / "data", capsys)
    assert code == 0
    assert len(index["studies"]) == 1


def test_an_empty_folder_and_one_without_images_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    code, text, _ = _inspect(tmp_path / "empty", capsys)
    assert code == 2
    assert "empty" in text
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.dcm").write_text("hello", encoding="utf-8")
    code, text, _ = _inspect(tmp_path / "texts", capsys)
    assert code == 2
    assert ".dcm" in text


TWELVE: dict[str, object] = {f"case{number:02d}": number % 2 for number in range(12)}
LABELS: list[tuple[str, Callable[[Path], Path], list[str], int, str]] = [
    ("wrong columns", lambda f: write_labels(f / "l.csv", {"case00": 0}, column="name"), [], 2, "name"),
    ("no target column", lambda f: write_labels(f / "l.csv", {"case00": 0}), ["--target", "lable"], 2, "label"),
    ("one class only", lambda f: write_labels(f / "l.csv", dict.fromkeys(TWELVE, 1)), [], 2, "one class"),
    ("missing file", lambda f: f / "none.csv", [], 2, "none.csv"),
    ("unknown study", lambda f: write_labels(f / "l.csv", TWELVE | {"x9": 1}), [], 3, "x9"),
    ("NaN label", lambda f: write_labels(f / "l.csv", TWELVE | {"case00": "nan"}), [], 3, "case00"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "options", "code", "message"), [row[1:] for row in LABELS], ids=[row[0] for row in LABELS]
)
def test_bad_labels(
    make: Callable[[Path], Path],
    options: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "data"
    two_class_folder(folder)
    (folder / "labels.csv").unlink()
    table = make(tmp_path)
    plan = tmp_path / "plan.yaml"
    assert main(["plan", str(folder), "--labels", str(table), *options, "--out", str(plan)]) == code
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert message in text
    assert "Traceback" not in text
    assert plan.exists() == (code == 3)


def test_two_patients_in_a_folder_with_one_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    table = two_class_folder(folder)
    write_study(folder / "both" / "a", patient="P-one")
    write_study(folder / "both" / "b", patient="P-two")
    table.write_text(table.read_text(encoding="utf-8") + "both,1\n", encoding="utf-8")
    assert main(["plan", str(folder), "--labels", str(table), "--out", str(tmp_path / "plan.yaml")]) == 3
    text = capsys.readouterr().err
    assert "P-one" in text and "P-two" in text


def test_a_typo_in_a_config_names_the_nearest_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = two_class_folder(tmp_path / "data", studies=4)
    plan = tmp_path / "plan.yaml"
    plan.write_text("optim: {learning_rat: 0.1, lr: 0.1}\nnetwrok: {name: c3d}\n", encoding="utf-8")
    assert main(["train", str(tmp_path / "data"), "--labels", str(table), "--config", str(plan)]) == 2
    text = capsys.readouterr().err
    assert "netwrok" in text and "'network'" in text
    assert not (tmp_path / "runs").exists()


def test_nothing_that_is_written_holds_a_name_a_date_or_free_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("VOLREC_CACHE", str(cache))
    write_study(tmp_path / "data" / "good")
    _inspect(tmp_path / "data", capsys)
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.relative_to(tmp_path).parts
    ]
    assert any(cache in path.parents for path in written)
    for path in written:
        content = path.read_bytes()
        assert b"Doe" not in content, path
        assert b"20200229" not in content, path
        assert b"free text" not in content, path
