"""The table of bad inputs: each ends with its message and exit code, and no good study is lost."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from studies import two_class_folder, write_labels, write_study

from volrec import files
from volrec.cli import main
from volrec.data import entries, store
from volrec.io import scan


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


# From here on whole trainings, as small as they get: what breaks on the way costs its own study and no more.

# What becomes of a bad study while the report is made: tests/report/test_report_making.py.
QUICK = [
    option
    for key in (
        "network.width=0.03125",
        "trainer.workers=0",
        "trainer.accelerator=cpu",
        "report.audit=false",
        "report.gallery=0",
    )
    for option in ("--set", key)
]
WHOLE_RUN = {"splits.csv", "scores.csv", "metrics.json", "report.html", "quarantine.csv"}


def _train(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    arguments = [str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out), "--epochs", "1"]
    code = main(["train", *arguments, *QUICK, *options])
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert "Traceback" not in text
    return code, text


def _quarantined(run: Path) -> dict[str, str]:
    """Return the reason by study of what a finished run left out."""
    assert {path.name for path in run.iterdir()} >= WHOLE_RUN
    table = pd.read_csv(run / "quarantine.csv", dtype=str)
    table = table[table["fatal"].str.lower() == "true"]
    return dict(zip(table["study"], table["reason"], strict=True))


def _stored() -> list[Path]:
    """Return the entries of the store that count, and see that nothing half-written lies beside them."""
    folder = Path(os.environ["VOLREC_CACHE"]) / "store"
    assert not list(folder.rglob(f"*{files.TEMPORARY}"))
    return sorted(folder.glob("??/*.json"))


@pytest.mark.parametrize(
    ("syntax", "package"),
    [("1.2.840.10008.1.2.4.90", "python-gdcm"), ("1.2.840.10008.1.2.4.201", "pylibjpeg-openjpeg")],
    ids=["JPEG 2000", "HTJ2K"],
)
def test_compressed_with_no_codec_names_the_package(
    syntax: str, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.pixels import get_decoder

    def compress(data: Dataset, number: int) -> None:
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = encapsulate([b"\xff\x4f a code stream that nobody here can read"])
        data["PixelData"].VR = "OB"

    two_class_folder(tmp_path / "data")
    write_study(tmp_path / "data" / "case04", change=compress)
    monkeypatch.setattr(get_decoder(syntax), "_available", {})
    code, text = _train(tmp_path / "data", tmp_path / "run", capsys, "--set", "store.jobs=1")
    assert code == 3
    assert "no decoder is installed" in text
    assert f"pip install {package}" in text.replace("pylibjpeg pylibjpeg-openjpeg", "pylibjpeg-openjpeg")
    assert list(_quarantined(tmp_path / "run")) == ["case04"]
    assert len(_stored()) == 11


def test_a_file_that_may_not_be_read_costs_its_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "data" / "good")
    locked = write_study(tmp_path / "data" / "bad")[3]

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, *arguments, **options)

    monkeypatch.setattr(scan, "open", refuse, raising=False)  # root may read everything, whatever its mode says
    code, text, index = _inspect(tmp_path / "data", capsys)
    assert code == 3
    assert "bad/slice003.dcm" in text.replace(" ", "")
    assert "Permission denied" in text
    assert "good" in json.dumps(index["studies"])


def test_a_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "data" / "good")
    write_study(tmp_path / "data" / "bad")
    listing, locked = os.scandir, [tmp_path / "data" / "bad"]

    def refuse(path: Any = ".") -> Any:
        if not isinstance(path, int) and Path(path) in locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, text, index = _inspect(tmp_path / "data", capsys)
    assert code == 3
    assert "bad" in text and "permission denied" in text
    assert "good" in json.dumps(index["studies"])
    locked.append(tmp_path / "data")
    code, text, _ = _inspect(tmp_path / "data", capsys)
    assert code == 2
    assert "permission denied" in text


def test_a_disk_that_fills_up_keeps_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_class_folder(tmp_path / "data")
    write, written = entries.replacing, []

    def full(path: Path) -> Any:
        written.append(path)
        if sum(path.suffix == ".npy" for path in written) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path)

    with monkeypatch.context() as patch:
        patch.setattr(entries, "replacing", full)
        code, text = _train(tmp_path / "data", tmp_path / "run", capsys)
    assert code == 2
    assert "the disk is full: a study needs" in text and "are free" in text
    assert "finished studies are kept" in text
    kept = {path: path.stat().st_mtime_ns for path in _stored()}
    assert len(kept) == 5
    code, _ = _train(tmp_path / "data", tmp_path / "again", capsys)
    assert code == 0
    assert _quarantined(tmp_path / "again") == {}
    assert len(_stored()) == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "they were not decoded again"


KILLED = """
import sys, time
from volrec.cli import main
from volrec.data import entries
encode, started = entries._encode, []
def slow(array, format):
    started.append(1)
    for block in encode(array, format):
        if len(started) < 6:
            yield block
        else:
            yield block[: len(block) // 2]
            time.sleep(600)
entries._encode = slow
main(sys.argv[1:])
"""


def test_a_kill_while_the_store_is_written_costs_one_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = two_class_folder(tmp_path / "data")
    arguments = ["train", str(tmp_path / "data"), "--labels", str(labels), "--epochs", "1", *QUICK]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments, "--out", str(tmp_path / "killed")])
    folder = Path(os.environ["VOLREC_CACHE"]) / "store"
    try:
        end = time.monotonic() + 120
        while not list(folder.rglob(f"*{files.TEMPORARY}")) or len(list(folder.glob("??/*.json"))) < 5:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert len(list(folder.rglob(f"*{files.TEMPORARY}"))) == 1
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("??/*.json")}
    assert len(kept) == 5
    code, _ = _train(tmp_path / "data", tmp_path / "again", capsys)
    assert code == 0
    assert _quarantined(tmp_path / "again") == {}
    assert len(_stored()) == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert main(["train", "--resume", str(tmp_path / "killed")]) == 0  # and the run that was killed goes on, too
    one, other = (pd.read_csv(tmp_path / name / "scores.csv") for name in ("again", "killed"))
    pd.testing.assert_frame_equal(one, other)


_fill = store._fill_one


def _fill_or_die(task: Any) -> Any:
    if task.study == "case11":
        end = time.monotonic() + 10  # the others first: each that runs beside it costs a process when it is tried again
        while len(list(Path(task.folder).glob("??/*.json"))) < 11 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    return _fill(task)


def test_a_decoding_worker_that_dies_costs_its_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_class_folder(tmp_path / "data")
    monkeypatch.setattr(store, "_fill_one", _fill_or_die)
    code, text = _train(tmp_path / "data", tmp_path / "run", capsys, "--set", "store.jobs=2")
    assert code == 3
    assert "case11" in text and "died" in text
    reasons = _quarantined(tmp_path / "run")
    assert list(reasons) == ["case11"]
    assert "the process that worked on it died" in reasons["case11"]
    assert len(_stored()) == 11


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_study_that_is_damaged_during_training_is_quarantined(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_class_folder(tmp_path / "data")
    fill, victims = store.Store.fill, []

    def fill_and_damage(self: store.Store, *arguments: Any, **options: Any) -> Any:
        found, problems = fill(self, *arguments, **options)
        splits = pd.read_csv(tmp_path / "run" / "splits.csv", dtype=str)
        victims.append(splits.loc[splits["part"] == part, "study"].iloc[0])
        case = next(case for case in arguments[0] if case.study == victims[0])
        Path(found[case.series.uid].path).write_bytes(b"nothing")
        return found, problems

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "fill", fill_and_damage)
        code, text = _train(tmp_path / "data", tmp_path / "run", capsys)
    assert code == 3
    assert victims[0] in text
    reasons = _quarantined(tmp_path / "run")
    assert list(reasons) == victims
    assert "damaged" in reasons[victims[0]]
    code, _ = _train(tmp_path / "data", tmp_path / "again", capsys)
    assert code == 0, "the damaged copy was decoded anew"


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, os.strerror(errno.EIO)), RuntimeError("a bug")], ids=["OS", "bug"]
)
def test_a_study_whose_read_raises_is_quarantined(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_class_folder(tmp_path / "data")
    read = entries.StoredVolume.read

    def fail(self: entries.StoredVolume, *arguments: Any) -> np.ndarray:
        if self.meta["series"] == victim:
            raise error
        return read(self, *arguments)

    from pydicom import dcmread

    victim = str(dcmread(tmp_path / "data" / "case07" / "slice000.dcm").SeriesInstanceUID)
    monkeypatch.setattr(entries.StoredVolume, "read", fail)
    code, text = _train(tmp_path / "data", tmp_path / "run", capsys)
    assert code == 3
    assert "case07" in text
    assert list(_quarantined(tmp_path / "run")) == ["case07"]
