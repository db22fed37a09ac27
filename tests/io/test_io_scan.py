"""One file at a time: what it is, what may be kept of it, and whether it is whole."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pydicom.data
import pytest
from io_writer import noise, positions_of, save, slice_dataset, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ImplicitVRLittleEndian

from volrec.errors import VolrecError
from volrec.io import FileScan, assemble, read_series, read_volume, scan_file
from volrec.io.elements import _ask_pydicom, _walk, read_elements

CORPUS = Path(pydicom.data.__file__).parent / "test_files"
CORPUS_FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def one(path: Path, **tags: Any) -> Path:
    return Path(save(slice_dataset(noise((8, 9)), position=(0, 0, 0), **tags), path))


# -- the fast reader against pydicom ---------------------------------------------------------------------------------


def both(path: Path) -> tuple[Any, Any]:
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(1 << 15)
        if head[128:132] != b"DICM":
            return None, None
        return _walk(handle, size, head), _ask_pydicom(handle, size)


def test_fast_reader_equals_pydicom_on_its_own_files() -> None:
    compared = 0
    for path in CORPUS_FILES:
        fast, slow = both(path)
        if fast is None or fast.truncated:
            continue
        assert fast == slow, path.name
        compared += 1
    assert compared > 100


def test_fast_reader_equals_pydicom_on_real_files(data_dir: Path) -> None:
    for path in sorted(data_dir.glob("*_dicom/**/*.dcm"))[::9]:
        fast, slow = both(path)
        assert fast == slow
        assert fast.values["position"]


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_fast_reader_steps_over_nested_sequences_and_long_private_values(
    tmp_path: Path, undefined: bool, syntax: str | None
) -> None:
    def item(depth: int) -> Dataset:
        ds = Dataset()
        ds.CodeValue = "x" * 16
        ds.PixelSpacing = [9, 9]  # inside a sequence: not the image's
        if depth:
            inner = DicomSequence([item(depth - 1), item(depth - 1)])
            ds.ReferencedImageSequence = inner
            ds["ReferencedImageSequence"].is_undefined_length = undefined
            ds.is_undefined_length_sequence_item = undefined
        return ds

    ds = slice_dataset(noise((8, 8)), position=(1, 2, 3), **({"syntax": syntax} if syntax else {}))
    ds.ProcedureCodeSequence = DicomSequence([item(3), item(0)])
    ds["ProcedureCodeSequence"].is_undefined_length = undefined
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "750")
    ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"\1\2" * 40_000)
    path = Path(save(ds, tmp_path / "a"))
    fast, slow = both(path)
    assert fast == slow
    assert fast.values["pixel_spacing"] == (0.7, 0.7)
    assert fast.first("siemens_b") == 750
    assert path.read_bytes()[fast.pixel_offset :][: fast.pixel_length] == ds.PixelData


# -- kinds of file ---------------------------------------------------------------------------------------------------


def test_any_name_is_read_by_content(tmp_path: Path) -> None:
    for name in ("IM_0001", "scan.txt", "x.nii.gz", "with space.dcm.bak"):
        scan = scan_file(one(tmp_path / name))
        assert scan.kind == "dicom"
        assert scan.problem is None
        assert (scan.headers[0].rows, scan.headers[0].columns) == (8, 9)


def test_dicom_without_preamble_is_read(tmp_path: Path) -> None:
    content = one(tmp_path / "a").read_bytes()
    whole = scan_file(tmp_path / "a").headers[0]
    ds = pydicom.dcmread(tmp_path / "a")
    (tmp_path / "bare").write_bytes(content[132:])
    ds.file_meta = None
    for implicit, name in ((True, "implicit"), (False, "explicit")):
        bare = Dataset(ds)
        pydicom.dcmwrite(tmp_path / name, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    for name in ("bare", "implicit", "explicit"):
        scan = scan_file(tmp_path / name)
        assert scan.kind == "dicom", name
        assert scan.headers[0].position == whole.position
        offset = scan.headers[0].pixel_offset
        assert (tmp_path / name).read_bytes()[offset : offset + 144] == ds.PixelData


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x08\0\x05\0" + bytes(200), bytes(5000), b"\x02\0\0\0" + b"UL" + bytes(300), os.urandom(4096)],
)
def test_what_is_no_image_is_other(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    scan = scan_file(tmp_path / "f")
    assert (scan.kind, scan.headers, scan.problem) == ("other", (), None)


def test_names_that_promise_an_image_and_hold_none_are_named(tmp_path: Path) -> None:
    for name, code in (("a.dcm", "not-dicom"), ("a.nii", "nifti-header"), ("a.nii.gz", "nifti-header")):
        (tmp_path / name).write_bytes(b"something else")
        assert scan_file(tmp_path / name).problem.code == code
        (tmp_path / name).write_bytes(b"")
        assert scan_file(tmp_path / name).problem is not None


def test_dicomdir_is_set_aside() -> None:
    scan = scan_file(CORPUS / "dicomdirtests" / "DICOMDIR")
    assert (scan.kind, scan.headers, scan.problem) == ("dicomdir", (), None)


def test_documents_without_pixels_say_so() -> None:
    scan = scan_file(CORPUS / "rtstruct.dcm")
    assert scan.problem.code == "no-image"
    assert "contours" in scan.problem.reason


def test_unreadable_and_absent_files_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scan_file(tmp_path / "absent").problem.code == "unreadable"
    path = one(tmp_path / "a.dcm")

    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    problem = scan_file(path).problem
    assert problem.code == "unreadable"
    assert "Permission denied" in problem.reason


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert scan_file(tmp_path / "pipe").kind == "other"


def test_archives(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2, 2, 3, 1]))
    nib.save(image, tmp_path / "a.nii")
    nib.save(image, tmp_path / "b.nii.gz")
    expected = read_volume(tmp_path / "a.nii")
    for number, names in enumerate((["a.nii"], ["b.nii.gz"], ["a.nii", "b.nii.gz"], [])):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme.txt", "text " * 100)
            for name in names:
                archive.write(tmp_path / name, f"folder/{name}")
    for number in (0, 1):
        volume = read_volume(tmp_path / f"{number}.zip")
        np.testing.assert_array_equal(volume.array, expected.array)
        np.testing.assert_allclose(volume.affine, expected.affine)
    assert scan_file(tmp_path / "2.zip").problem.code == "several-in-zip"
    assert scan_file(tmp_path / "3.zip").kind == "other"
    dicom = one(tmp_path / "x.dcm").read_bytes()
    (tmp_path / "x.gz").write_bytes(gzip.compress(dicom))
    assert scan_file(tmp_path / "x.gz").problem.code == "gzipped-dicom"
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(tmp_path / "x.dcm")
    assert scan_file(tmp_path / "d.zip").problem.code == "zipped-dicom"
    (tmp_path / "cut.zip").write_bytes((tmp_path / "0.zip").read_bytes()[:200])
    assert scan_file(tmp_path / "cut.zip").problem.code == "zip"


# -- whole or cut ----------------------------------------------------------------------------------------------------


def test_every_cut_of_a_dicom_file_is_noticed(tmp_path: Path) -> None:
    content = one(tmp_path / "a").read_bytes()
    assert scan_file(tmp_path / "a").problem is None
    for length in [*range(140, len(content) - 1, 61), len(content) - 1]:
        (tmp_path / "a").write_bytes(content[:length])
        scan = scan_file(tmp_path / "a")
        noted = any(code in ("truncated", "no-pixels") for header in scan.headers for code, _ in header.notes)
        assert noted or scan.problem is not None, f"{length} of {len(content)} bytes"


def test_cuts_of_compressed_pixels_are_noticed(tmp_path: Path) -> None:
    for name in ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"):
        content = (CORPUS / name).read_bytes()
        for length in (len(content) - 200, len(content) - 1000):
            (tmp_path / "a").write_bytes(content[:length])
            (header,) = scan_file(tmp_path / "a").headers
            assert header.notes[0][0] == "truncated"


def test_header_that_promises_more_pixels_than_there_are(tmp_path: Path) -> None:
    path = one(tmp_path / "a", Rows=80)
    assert scan_file(path).headers[0].notes == (("truncated", "144 of 1440 bytes of pixels are there"),)


# -- privacy ---------------------------------------------------------------------------------------------------------


def test_no_name_date_or_free_text_is_kept(tmp_path: Path) -> None:
    secret = {
        "PatientName": "Secret^Name",
        "PatientBirthDate": "19550301",
        "StudyDate": "20200229",
        "AcquisitionDateTime": "20200229101112",
        "StudyDescription": "SECRET study",
        "SeriesDescription": "SECRET series",
        "ProtocolName": "SECRET protocol",
        "ImageComments": "SECRET comment",
        "ReferringPhysicianName": "Secret^Doctor",
        "InstitutionName": "SECRET hospital",
        "PatientAddress": "SECRET street",
        "OperatorsName": "Secret^Operator",
        "AccessionNumber": "SECRET1",
    }
    for index, place in enumerate(positions_of(3)):
        one(tmp_path / str(index), **secret)
        save(slice_dataset(noise((8, 9)), position=place, **secret), tmp_path / str(index))
    scans = [scan_file(tmp_path / str(index)) for index in range(3)]
    (series,), _ = assemble([header for scan in scans for header in scan.headers], root=tmp_path)
    meta = read_series(series).meta
    kept = json.dumps([[scan.to_json() for scan in scans], series.to_json(), meta]).lower()
    assert "p1" in kept
    for word in ("secret", "surname", "19550301", "20200229"):
        assert word not in kept


def test_scans_survive_json(tmp_path: Path) -> None:
    for path in [one(tmp_path / "a"), CORPUS / "MR_truncated.dcm", CORPUS / "rtplan.dcm", CORPUS / "README.txt"]:
        scan = scan_file(path)
        assert FileScan.from_json(json.loads(json.dumps(scan.to_json()))) == scan


# -- the corpus ------------------------------------------------------------------------------------------------------


def test_every_file_of_pydicoms_corpus_is_used_or_has_a_reason(tmp_path: Path) -> None:
    used = reasons = 0
    for path in CORPUS_FILES:
        scan = scan_file(path)
        if scan.kind in ("other", "dicomdir") and scan.problem is None:
            assert path.suffix in {".txt", ".icc", ".dump", ".json", ".dcm", ""}
            continue
        if not scan.headers:
            assert scan.problem is not None, path.name
            assert scan.problem.reason
            assert scan.problem.remedy
            reasons += 1
            continue
        series, _ = assemble(scan.headers)
        for item in series:
            if item.usable:
                used += read_series(item).array.size > 0
            else:
                assert all(problem.reason and problem.remedy for problem in item.problems if problem.fatal), path.name
                reasons += 1
    assert reasons > 80
    # Its only volumes lie over several files.
    shutil.copytree(CORPUS / "dicomdirtests" / "98892001" / "CT5N", tmp_path / "CT5N")
    assert read_volume(tmp_path / "CT5N").shape == (1, 5, 16, 16)


def test_the_corpus_as_one_folder_never_raises_but_with_a_reason() -> None:
    headers = [header for path in CORPUS_FILES for header in scan_file(path).headers]
    series, problems = assemble(headers, root=CORPUS)
    usable = 0
    for item in series:
        if item.usable:
            usable += read_series(item).array.size > 0
        else:
            with pytest.raises(VolrecError) as caught:
                read_series(item)
            assert caught.value.problem
            assert caught.value.remedy
    assert usable >= 1
    assert all(problem.code in ("copy", "incomplete-copy", "conflicting-copies") for problem in problems)
    aside = {problem.where for item in series for problem in item.problems if problem.code == "unplaced-image"}
    assert sum(len(item.headers) for item in series) + len(problems) + len(aside) == len(headers)


def test_broken_bytes_never_raise(tmp_path: Path) -> None:
    sources = [one(tmp_path / "a"), CORPUS / "MR_small_RLE.dcm", CORPUS / "liver_1frame.dcm", CORPUS / "rtdose.dcm"]
    rng = np.random.default_rng(0)
    for source in sources:
        content = bytearray(source.read_bytes()[:8000])
        for _ in range(60):
            broken = bytearray(content)
            for place in rng.integers(132, len(broken), 6):
                broken[place] = rng.integers(256)
            (tmp_path / "b").write_bytes(broken)
            scan = scan_file(tmp_path / "b")
            for item in assemble(scan.headers)[0]:
                with contextlib.suppress(VolrecError):
                    read_series(item)


def test_elements_of_something_else_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"plain text, long enough to look at" * 20)
    with path.open("rb") as handle:
        assert read_elements(handle, path.stat().st_size, path.read_bytes()) is None


def test_a_series_scans_with_its_fingerprint(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise((3, 64, 64)))
    prints = [scan_file(path).headers[0].fingerprint for path in paths]
    assert len(set(prints)) == 3
