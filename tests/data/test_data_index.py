"""The index of whole folders of real files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trees import uid, write_nifti, write_series

import volrec.data.scan as scanning
from volrec.config import SeriesConfig
from volrec.data.index import COLUMNS, StudyIndex, index
from volrec.errors import DataError
from volrec.parallel import Outcome


def _tree(root: Path) -> Path:
    """Two patients with CT, one of them with a scout and a derived series, one with a gap."""
    write_series(root / "A" / "axial", study="a", patient="PA", slices=6)
    write_series(
        root / "A" / "mpr", study="a", patient="PA", series="2", slices=9, image_type=("DERIVED", "SECONDARY", "MPR")
    )
    write_series(
        root / "A" / "scout",
        study="a",
        patient="PA",
        series="3",
        slices=1,
        image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
    )
    write_series(root / "B", study="b", patient="PB", slices=6)
    gap = write_series(root / "C", study="c", patient="PC", slices=9)
    for path in (gap[3], gap[4], gap[6]):
        path.unlink()
    (root / "labels.csv").write_text("study,label\nA,1\n")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return _tree(tmp_path / "data")


def _codes(found: StudyIndex, *, fatal: bool) -> list[tuple[str, str]]:
    return [(problem.study, problem.code) for problem in found.problems if problem.fatal is fatal]


def test_studies_series_and_reasons(tree: Path) -> None:
    found = index(tree)
    assert [(record.study, record.patient, record.path, record.series.path) for record in found] == [
        ("A", "PA", "A", "A/axial"),
        ("B", "PB", "B", "B"),
    ]
    assert found.studies[0].why == "original, mpr is derived"
    assert found.studies[1].why == "the only series"
    assert [one.path for one in found.studies[0].alternatives] == ["A/mpr", "A/scout/000.dcm"]
    faults = _codes(found, fatal=True)
    assert [study for study, _ in faults] == ["C"]


def test_the_table_has_a_row_a_series(tree: Path) -> None:
    table = index(tree).table
    assert tuple(table.columns) == COLUMNS
    assert list(table["path"]) == ["A/axial", "A/mpr", "A/scout/000.dcm", "B", "C"]
    assert list(table["chosen"]) == [True, False, False, True, False]
    assert list(table["status"]) == ["chosen", "alternative", "set aside", "chosen", "unusable"]
    row = table.iloc[0]
    assert (row["slices"], row["height"], row["width"]) == (6, 6, 8)
    assert (row["spacing_t"], row["spacing_h"], row["spacing_w"]) == (5.0, 0.8, 0.8)
    assert (row["modality"], row["orientation"], row["kind"]) == ("CT", "axial", "dicom")
    assert table["problem"].iloc[4]


def test_every_alias_finds_its_study(tree: Path) -> None:
    found = index(tree)
    for name in (
        "A",
        "PA/../A",
        uid("study", "a"),
        str(tree / "A"),
        "A/axial",
        "A/",
        "A/axial/003.dcm",
        str(tree / "A/mpr/001.dcm"),
    ):
        record = found.find(os.path.normpath(name) if ".." in name else name)
        assert record is not None, name
        assert record.study == "A"
    assert found.find("axial") is not None
    assert found.find("nobody") is None
    assert found.find("A/axial/999.dcm") is None
    assert found.find("") is None


def test_a_rescan_opens_no_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tree / "nifti" / "x.nii.gz")
    first = index(tree)
    assert first.read == first.files
    inside = str(tree)

    def refuse(path: object) -> None:
        raise AssertionError(f"{path} was read again")

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).startswith(inside):
            raise AssertionError(f"{arguments[0]} was opened")

    monkeypatch.setattr(scanning, "scan_file", refuse)
    watching = True
    sys.addaudithook(audit)  # hooks cannot be removed: it sleeps from here on
    try:
        second = index(tree)
    finally:
        watching = False
    assert second.read == 0
    assert second.as_dict() == first.as_dict()
    assert second.studies == first.studies


def test_only_changed_and_new_files_are_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index(tree)
    touched = tree / "B" / "002.dcm"
    os.utime(touched, ns=(1, 1))
    write_series(tree / "D", study="d", patient="PD", slices=3)
    (tree / "A" / "mpr" / "000.dcm").unlink()
    read: list[str] = []
    real = scanning.scan_file
    monkeypatch.setattr(scanning, "scan_file", lambda path: (read.append(os.path.relpath(path, tree)), real(path))[1])
    found = index(tree)
    assert sorted(read) == ["B/002.dcm", "D/000.dcm", "D/001.dcm", "D/002.dcm"]
    assert [record.study for record in found] == ["A", "B", "D"]
    read.clear()
    index(tree)
    assert read == []
    index(tree, refresh=True)
    assert len(read) == found.files


def test_what_an_interrupted_scan_read_is_not_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scanning.scan_file
    monkeypatch.setattr(scanning, "CHUNK", 4)

    def interrupted(path: str):
        if path.endswith("B/003.dcm"):
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(scanning, "scan_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index(tree)
    read: list[str] = []
    monkeypatch.setattr(scanning, "scan_file", lambda path: (read.append(os.path.relpath(path, tree)), real(path))[1])
    found = index(tree)
    assert "A/axial/000.dcm" not in read
    assert "B/003.dcm" in read
    assert 0 < len(read) < found.files


def test_a_damaged_cache_is_rebuilt(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = index(tree, cache=cache)
    for path in (cache / "headers").rglob("*.jsonl"):
        path.write_bytes(os.urandom(2000))
    again = index(tree, cache=cache)
    assert again.read == again.files
    assert again.as_dict() == first.as_dict()
    assert index(tree, cache=cache).read == 0
    # What was replaced is gone.
    assert len(list((cache / "headers").rglob("*.*"))) == 1


def test_a_cache_inside_the_folder_is_not_scanned(tree: Path) -> None:
    first = index(tree, cache=tree / "cache")
    assert index(tree, cache=tree / "cache").files == first.files


def test_a_pool_finds_the_same(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = index(tree, jobs=1, refresh=True)
    monkeypatch.setattr(scanning, "FEW", 0)
    monkeypatch.setattr(scanning, "SOON", -1.0)
    monkeypatch.setattr(scanning, "CHUNK", 5)
    real = scanning.time.monotonic
    clock = iter(range(10_000))
    monkeypatch.setattr(scanning.time, "monotonic", lambda: real() + next(clock))
    together = index(tree, jobs=2, refresh=True)
    assert together.as_dict() == alone.as_dict()


def test_one_raising_file_is_named_and_costs_itself_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scanning.scan_file

    def scan(path: str):
        if path.endswith("scout/000.dcm"):
            raise RuntimeError("parser bug")
        return real(path)

    monkeypatch.setattr(scanning, "scan_file", scan)
    found = index(tree)
    assert [record.study for record in found] == ["A", "B"]
    (problem,) = [problem for problem in found.problems if problem.code == "unexpected"]
    assert problem.where == "A/scout/000.dcm"
    assert "RuntimeError: parser bug" in problem.reason
    monkeypatch.setattr(scanning, "scan_file", real)
    # It may have been the weather: such a file is looked at again.
    assert index(tree).read == 1


def test_no_name_date_or_free_text_leaves_the_headers(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = index(tree, cache=cache)
    written = [found.write(tmp_path / "index.json"), found.write(tmp_path / "index.csv"), *cache.rglob("*.jsonl")]
    assert len(written) >= 3
    for path in written:
        content = path.read_text()
        for secret in ("Secret", "19700101", "20200202", "free text"):
            assert secret not in content, (path, secret)


def test_json_and_csv_hold_the_index(tree: Path, tmp_path: Path) -> None:
    found = index(tree)
    values = json.loads(found.write(tmp_path / "index.json").read_text())
    assert [study["study"] for study in values["studies"]] == ["A", "B"]
    assert [one["path"] for one in values["studies"][0]["series"]] == ["A/axial", "A/mpr", "A/scout/000.dcm"]
    assert [study["study"] for study in values["unused"]] == ["C"]
    assert values["summary"]["studies"] == 2
    assert {problem["study"] for problem in values["problems"] if problem["fatal"]} == {"C"}
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(found.write(tmp_path / "index.csv"), keep_default_na=False)
    assert list(table["path"]) == list(found.table["path"])
    with pytest.raises(DataError, match=r"\.xlsx"):
        found.write(tmp_path / "index.xlsx")
    with pytest.raises(DataError, match="cannot be written"):
        found.write(tmp_path / "no" / "such" / "index.json")


def test_the_summary_counts_and_forecasts(tree: Path) -> None:
    summary = index(tree).summary()
    assert {key: summary[key] for key in ("studies", "patients", "series", "files", "dicom_files", "other_files")} == {
        "studies": 2,
        "patients": 2,
        "series": 5,
        "files": 29,
        "dicom_files": 28,
        "other_files": 1,
    }
    assert summary["modalities"] == {"CT": 2}
    assert summary["needs"]["decoded_bytes"] == 2 * (6 * 6 * 8) * 2
    assert summary["needs"]["largest_bytes"] == 6 * 6 * 8 * 2
    assert summary["needs"]["memory_bytes"] > 0
    assert summary["needs"]["epoch_seconds"] > 0


def test_two_patients_in_one_folder_are_kept_apart_and_named(tmp_path: Path) -> None:
    write_series(tmp_path / "x", study="1", patient="P1", name="a{:03d}")
    write_series(tmp_path / "x", study="2", patient="P2", name="b{:03d}")
    found = index(tmp_path)
    assert [(record.study, record.patient) for record in found] == sorted(
        [(uid("study", "1"), "P1"), (uid("study", "2"), "P2")]
    )
    (problem,) = found.problems
    assert (problem.where, problem.code, problem.fatal) == ("x", "several-patients", False)
    assert "P1, P2" in problem.reason
    assert found.find("x") is None


def test_a_copied_folder_adds_no_slices(tmp_path: Path) -> None:
    write_series(tmp_path / "a", study="1", patient="P1", slices=5)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    found = index(tmp_path)
    assert [record.series.shape[0] for record in found] == [5]
    assert {problem.fatal for problem in found.problems} == {False}


def test_another_modality_is_used_and_said(tmp_path: Path) -> None:
    for number in range(2):
        write_series(tmp_path / f"ct{number}", study=f"c{number}", patient=f"c{number}")
    write_series(tmp_path / "mr", study="m", patient="m", modality="MR")
    found = index(tmp_path)
    assert len(found) == 3
    assert _codes(found, fatal=False) == [("mr", "other-modality")]
    only = index(tmp_path, series=SeriesConfig(modality="CT"))
    assert len(only) == 2
    assert _codes(only, fatal=True) == [("mr", "no-usable-series")]
    assert "modality MR; CT was asked for" in only.problems[-1].reason


def test_nifti_is_read_as_it_will_be_given_out(tmp_path: Path) -> None:
    # Stored i = left-right in steps of 4 mm: acquired sagittal, and T is the first axis as stored.
    write_nifti(tmp_path / "s.nii.gz", shape=(7, 9, 11), spacing=(4.0, 1.0, 1.5))
    write_nifti(tmp_path / "t.nii", shape=(7, 9, 11), spacing=(1.0, 1.0, 3.0))
    table = index(tmp_path).table.set_index("study")
    assert list(table.loc["s", ["orientation", "slices", "height", "width"]]) == ["sagittal", 7, 11, 9]
    assert np.allclose(list(table.loc["s", ["spacing_t", "spacing_h", "spacing_w"]]), (4.0, 1.5, 1.0))
    assert list(table.loc["t", ["orientation", "slices", "height", "width"]]) == ["axial", 11, 9, 7]


def test_masks_can_be_asked_for_by_path(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_nifti(tmp_path / "images" / f"{name}.nii")
        write_nifti(tmp_path / "masks" / f"{name}.nii")
    assert {record.path for record in index(tmp_path)} == {"images/a.nii", "images/b.nii"}
    assert len(index(tmp_path, series=SeriesConfig(path="masks/*"))) == 2


def test_folders_without_images_say_what_was_seen(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no file") as caught:
        index(empty)
    assert caught.value.code == "empty-folder"
    (empty / ".hidden").touch()
    with pytest.raises(DataError, match="1 hidden"):
        index(empty)
    for name in ("a.csv", "b.csv", "c.tar.gz", "LICENSE"):
        (tmp_path / name).write_text("text")
    with pytest.raises(
        DataError, match=r"none of its 4 files .* \(2 \.csv, 1 \.tar\.gz, 1 no suffix\)|none of its 4 files"
    ) as caught:
        index(tmp_path)
    assert caught.value.code == "no-images"
    assert "2 .csv" in caught.value.problem
    assert "1 .tar.gz" in caught.value.problem
    with pytest.raises(DataError, match="no such folder"):
        index(tmp_path / "missing")


def test_a_file_that_is_no_image_is_named_for_what_it_is(tmp_path: Path) -> None:
    for name in ("labels.csv", "notes.txt"):
        (tmp_path / name).write_text("study,label\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"it is a table \(\.csv\), no DICOM or NIfTI image") as caught:
        index(tmp_path / "labels.csv")
    assert "--labels" in caught.value.remedy
    with pytest.raises(DataError, match=r"it is a file \(\.txt\), no DICOM or NIfTI image") as caught:
        index(tmp_path / "notes.txt")
    assert "--labels" not in caught.value.remedy
    assert "folder that holds your studies" in caught.value.remedy
    with pytest.raises(DataError, match="no such folder or file"):
        index(tmp_path / "absent.csv")


def test_a_folder_of_broken_files_is_an_index_of_problems(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, study="1", slices=1)
    path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "x.nii").write_bytes(b"no image")
    found = index(tmp_path)
    assert len(found) == 0
    assert {problem.where for problem in found.problems if problem.fatal} >= {"x.nii"}


def test_a_single_file_can_be_indexed(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "b.nii.gz")
    assert [record.study for record in index(tmp_path / "a.nii.gz")] == ["a"]


def test_file_names_of_any_kind(tmp_path: Path) -> None:
    write_series(tmp_path / "ä b$[x]", study="1", name="IM {:d}")
    found = index(tmp_path)
    assert [record.study for record in found] == ["ä b$[x]"]
    assert index(tmp_path).read == 0


def test_the_real_series_are_found(data_dir: Path) -> None:
    ct = index(data_dir / "ct_liver_dicom")
    assert [(record.study, record.series.modality, record.series.shape) for record in ct] == [
        ("CRLM-CT-1004", "CT", (41, 512, 512))
    ]
    assert ct.problems == []
    mr = index(data_dir / "mr_pelvis_dicom")
    (record,) = mr.studies
    assert record.patient == "CMB-CRC-MSB-06489"
    assert (record.series.path, record.series.shape) == ("t2", (33, 512, 584))
    assert [(one.path, one.shape) for one in record.alternatives] == [("adc", (36, 288, 256))]
    assert record.why == "original, adc is derived"
    (record,) = index(data_dir / "mr_pelvis_dicom", series=SeriesConfig(path="*/adc*")).studies
    assert record.series.path == "adc"


def test_the_hippocampus_set_is_its_images(data_dir: Path) -> None:
    found = index(data_dir / "hippocampus")
    assert len(found) == 213
    assert {record.path.split("/")[0] for record in found} == {"images"}
    assert {(problem.code, problem.fatal) for problem in found.problems} == {
        ("mask", False),
        ("assumed-patient", False),
    }
    record = found.find("hippocampus_001")
    assert record is not None
    assert record is found.find("images/hippocampus_001.nii.gz")
    assert record.patient == "hippocampus_001"


def test_the_index_starts_without_heavy_imports() -> None:
    code = (
        "import sys, volrec.data.index, volrec.report.inspect\n"
        "heavy = {'torch', 'monai', 'pandas', 'pydicom', 'nibabel', 'matplotlib', 'sklearn', 'SimpleITK'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_that_kills_its_worker_is_named_and_costs_itself_alone(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []

    def pool(function, items, **_: object):  # type: ignore[no-untyped-def]
        rounds.append(len(items))
        for item in items:
            if "A/mpr/004.dcm" in item.relatives:
                yield Outcome(item, error=DataError("the process died.", where=str(item), code="worker-died"))
            else:
                yield Outcome(item, function(item))

    monkeypatch.setattr(scanning, "map_processes", pool)
    monkeypatch.setattr(scanning, "FEW", 0)
    monkeypatch.setattr(scanning, "SOON", -1.0)
    monkeypatch.setattr(scanning, "CHUNK", 5)
    clock = iter(range(1000))
    monkeypatch.setattr(scanning.time, "monotonic", lambda: float(next(clock)))
    found = index(tree, jobs=2)
    assert rounds == [5, 5]  # all chunks but the first, then the files of the one that was lost
    (problem,) = [problem for problem in found.problems if problem.code == "worker-died"]
    assert problem.where == "A/mpr/004.dcm"
    assert [record.study for record in found] == ["A", "B"]
    assert found.read == found.files - 1
