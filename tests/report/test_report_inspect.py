from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from trees import write_nifti, write_series

from volrec.data.index import StudyIndex, index
from volrec.errors import DataError, Problem
from volrec.report.contact_sheet import contact_sheet, pick
from volrec.report.inspect import index_json, printable, readable_time, render_cohort, render_index, render_problems

sheets = import_module("volrec.report.contact_sheet")  # the room hands out the function under the module's name


def _console(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _shown(found: StudyIndex, *, width: int = 120, all_studies: bool = False) -> str:
    console = _console(width)
    render_index(found, console, all_studies=all_studies)
    return _text(console)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_series(root / "A" / "axial", study="a", patient="PA", slices=6)
    write_series(root / "A" / "mpr", study="a", patient="PA", series="2", slices=9, image_type=("DERIVED", "PRIMARY"))
    write_series(root / "B[red]", study="b", patient="PB", slices=4)
    cut = write_series(root / "C", study="c", patient="PC", slices=4)
    cut[1].write_bytes(cut[1].read_bytes()[:-20])
    return root


def test_studies_reasons_and_problems_are_shown(tree: Path) -> None:
    text = _shown(index(tree))
    row = next(line for line in text.splitlines() if line.startswith("A "))
    for part in ("PA", "CT", "6x6x8", "5x0.8x0.8", "axial", "original, mpr is derived"):
        assert part in row
    assert "B[red]" in text  # no markup
    assert "not used" in text
    assert any("C" in line and "truncated" in text for line in text.splitlines())
    assert "2 studies of 2 patients" in text
    assert "training will need about" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_any_width_keeps_names_and_sizes(tree: Path, width: int) -> None:
    text = _shown(index(tree), width=width)
    assert "original, mpr is derived" in text
    assert "6x6x8" in text
    assert "B[red]" in text


def test_hundreds_of_studies_are_shortened_and_problems_are_not(tmp_path: Path) -> None:
    for number in range(60):
        write_nifti(tmp_path / f"s{number:03d}.nii", shape=(3, 3, 4))
    for number in range(30):
        (tmp_path / f"broken{number:03d}.nii").write_bytes(b"x" * 500)
    found = index(tmp_path)
    text = _shown(found)
    assert "… 35 more" in text
    assert "s000" in text
    assert "s059" in text
    assert "s030" not in text
    assert all(f"broken{number:03d}" in text for number in range(30))
    everything = _shown(found, all_studies=True)
    assert all(f"s{number:03d}" in everything for number in range(60))


def test_remarks_are_capped_and_grouped() -> None:
    console = _console()
    remarks = [Problem(f"f{n}", "no-pixels", "it holds no image.", "Nothing.", fatal=False) for n in range(50)]
    faults = [Problem("x", "gap", "Slice 3 is missing.", "Export it again.", "study-x")]
    render_problems([*remarks, *faults], console)
    text = _text(console)
    assert text.index("not used: 1") < text.index("used, but note: 50")
    assert text.count("it holds no image.") == 1
    assert "f7" in text
    assert "f8" not in text
    assert "42 more" in text
    assert "study-x: x: Slice 3 is missing." in text
    assert "Export it again." in text


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\udcdf\n") == "a�[31mb��"
    assert printable("ä 日本 x") == "ä 日本 x"


def test_an_index_without_studies_is_shown(tmp_path: Path) -> None:
    (tmp_path / "x.nii").write_bytes(b"no image" * 100)
    text = _shown(index(tmp_path))
    assert "x.nii" in text
    assert "0 studies of 0 patients" in text


def test_json_is_plain(tree: Path) -> None:
    values = json.loads(json.dumps(index_json(index(tree)), allow_nan=False))
    assert [study["study"] for study in values["studies"]] == ["A", "B[red]"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.01, "no time"), (0.25, "0.25 s"), (12, "12 s"), (600, "10 min"), (7200, "2 h"), (360_000, "100 h")],
)
def test_times(seconds: float, expected: str) -> None:
    assert readable_time(seconds) == expected


def _cohort(task: str, labels: list[list[float]], **values: object) -> SimpleNamespace:
    cases = tuple(
        SimpleNamespace(study=f"s{n}", patient=f"p{n // 2}", target=np.array(target, np.float32), split=None)
        for n, target in enumerate(labels)
    )
    return SimpleNamespace(
        **{"cases": cases, "task": task, "targets": ("y",), "classes": (), "problems": (), "notes": ()} | values
    )


def test_counts_of_each_class() -> None:
    console = _console()
    problems = (Problem("labels.csv", "unknown-study", "no study 'zz' in the folder.", "Check the name.", "zz"),)
    render_cohort(
        _cohort(
            "binary", [[0], [0], [0], [1]], classes=("benign", "cancer"), problems=problems, notes=("task: binary",)
        ),
        console,
    )
    text = _text(console)
    for part in ("y, binary; 4 studies of 2 patients", "benign: 3 (75 %)", "cancer: 1 (25 %)", "zz", "task: binary"):
        assert part in text
    console = _console()
    render_cohort(_cohort("multilabel", [[0, 1], [1, 1]], targets=("a", "b"), classes=("a", "b")), console)
    assert "a: 1 (50 %)" in _text(console)
    assert "b: 2 (100 %)" in _text(console)
    console = _console()
    heads = {"targets": ("a", "b"), "classes": ("a=x", "a=y", "b=u", "b=v")}
    render_cohort(_cohort("multihead", [[0, 1], [1, np.nan], [1, 0], [1, np.nan]], **heads), console)
    for part in ("a: 4 studies", "x: 1 (25 %)", "y: 3 (75 %)", "b: 2 studies", "u: 1 (50 %)"):
        assert part in _text(console)
    console = _console()
    render_cohort(_cohort("regression", [[1], [3]]), console)
    assert "y: mean 2, sd 1, 1 to 3" in _text(console)


def test_labels_of_real_studies_are_joined_and_shown(tree: Path) -> None:
    labels = pytest.importorskip("volrec.data.labels")
    config = pytest.importorskip("volrec.config")
    path = tree / "labels.csv"
    path.write_text("study,label\nA,yes\nB[red],no\nunheard-of,no\n")
    console = _console()
    render_cohort(labels.join(index(tree), path, config.DataConfig()), console)
    text = _text(console)
    assert "yes: 1 (50 %)" in text
    assert "unheard-of" in text


# --- the contact sheet


def _pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


def test_the_sheet_is_a_png_with_a_picture_a_study(tree: Path, tmp_path: Path) -> None:
    path = contact_sheet(index(tree), tmp_path / "sheet.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    image = _pixels(path)
    assert image.shape[1] > image.shape[0]  # two CT studies, two windows each, in one row
    assert image[..., :3].std() > 0.05


def test_pictures_have_the_shape_that_they_have_in_the_patient(tmp_path: Path) -> None:
    # 40 rows of 0.5 mm, 10 columns of 2 mm: a square of 20 mm.
    write_series(tmp_path / "s", study="s", size=(40, 10), spacing=(3.0, 0.5, 2.0), modality="MR")
    (record,) = index(tmp_path)
    (panel,) = sheets.panels_of(record)
    assert panel.image is not None
    height, width = panel.image.shape
    assert panel.aspect * height / width == pytest.approx(1.0)
    assert "4x40x10" in panel.title
    assert "3x0.5x2 mm" in panel.title


def test_the_middle_slice_is_shown_through_the_window(tmp_path: Path) -> None:
    # Stored ramp 0, 10, 20 … plus the slice's number; soft tissue is L50 W400.
    write_series(tmp_path / "s", study="s", slices=5, size=(6, 8))
    soft, own = sheets.panels_of(index(tmp_path).studies[0])
    ramp = np.arange(48).reshape(6, 8) * 10 + 2.0
    assert soft.image is not None
    assert own.image is not None
    np.testing.assert_allclose(soft.image, np.clip((ramp + 150) / 400, 0, 1), atol=1e-6)
    assert own.image.min() == 0
    assert own.image.max() == 1


def test_a_study_that_cannot_be_decoded_is_a_picture_of_the_reason(tree: Path, tmp_path: Path) -> None:
    found = index(tree)
    for path in (tree / "A" / "axial").iterdir():
        path.unlink()
    panels = list(sheets.panels_of(found.studies[0]))
    assert [panel.image for panel in panels] == [None]
    assert panels[0].fault
    assert contact_sheet(found, tmp_path / "sheet.png").stat().st_size > 1000


def test_many_studies_are_thinned_evenly_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick(list(range(100)), 4) == [0, 33, 66, 99]  # type: ignore[arg-type]
    assert pick(list(range(3)), 4) == [0, 1, 2]  # type: ignore[arg-type]
    for number in range(6):
        write_nifti(tmp_path / f"$s{number}.nii", shape=(4, 4, 4))
    drawn: list[str] = []
    real = sheets.panels_of
    monkeypatch.setattr(sheets, "panels_of", lambda record: (drawn.append(record.study), real(record))[1])
    contact_sheet(index(tmp_path), tmp_path / "sheet.png", most=3, columns=2)
    assert drawn == ["$s0", "$s2", "$s5"]


def test_a_sheet_of_nothing_and_to_nowhere_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.nii").write_bytes(b"no image")
    with pytest.raises(DataError, match="no usable study"):
        contact_sheet(index(tmp_path / "bad"), tmp_path / "sheet.png")
    with pytest.raises(DataError, match="cannot be written"):
        contact_sheet(index(tree), tmp_path / "no" / "such" / "sheet.png")


def test_the_real_studies_are_drawn(data_dir: Path, tmp_path: Path) -> None:
    ct = list(sheets.panels_of(index(data_dir / "ct_liver_dicom").studies[0]))
    assert [panel.image.shape for panel in ct if panel.image is not None] == [(512, 512), (512, 512)]
    # An abdomen in the soft-tissue window: black air around, grey organs within.
    assert ct[0].image is not None
    assert np.mean(ct[0].image[:20] == 0) > 0.9
    assert 0.3 < np.median(ct[0].image[200:300, 150:350]) < 0.9
    (mr,) = sheets.panels_of(index(data_dir / "mr_pelvis_dicom").studies[0])
    assert mr.image is not None
    assert mr.image.shape == (512, 584)
