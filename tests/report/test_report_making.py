"""The whole report of a run: audit and gallery beside the metrics, whatever becomes of single studies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import chromium, opened
from studies import two_class_folder

import volrec
from volrec.cli import main
from volrec.data import entries
from volrec.report import gallery, html, making
from volrec.report.gallery import read_gallery
from volrec.report.making import complete_report
from volrec.runs import RunFolder

KEYS = ("network.width=0.03125", "trainer.workers=0", "trainer.accelerator=cpu", "report.gallery=1", "split.test=0.5")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("making")
    two_class_folder(root / "data")
    options = [option for key in (*KEYS, f"store.folder={root / 'store'}") for option in ("--set", key)]
    arguments = [str(root / "data"), "--labels", str(root / "data" / "labels.csv"), "--out", str(root / "run")]
    assert main(["train", *arguments, "--epochs", "1", *options]) == 0
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> RunFolder:
    """A copy that a test may change; data and store stay where they are."""
    shutil.copytree(root / "run", tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


def text_of(run: RunFolder) -> str:
    return run.report_path.read_text(encoding="utf-8")


def test_one_command_trains_audits_explains_and_reports(root: Path) -> None:
    run = RunFolder.open(root / "run")
    page = text_of(run)
    for heading in ("How well", "Metrics", "Does it need context?", "Where it looked", "Data", "Model card"):
        assert f"<h2>{heading}</h2>" in page, heading
    assert run.facts("audit")["verdict"]["sentence"] in page
    kinds = [study.group for study in read_gallery(run)]
    assert kinds == ["worst", "most uncertain", "best"]
    assert {path.suffix for path in (run.path / "figures").iterdir()} == {".svg", ".png"}
    assert (run.path / "model_card.md").read_text().startswith("# Model card")


def test_the_gallery_shows_studies_as_they_were_acquired(root: Path) -> None:
    run = RunFolder.open(root / "run")
    listed = json.loads((run.path / "gallery" / "gallery.json").read_text())["studies"]
    for shown, entry in zip(read_gallery(run), listed, strict=True):
        original = volrec.read_volume(root / "data" / entry["study"])
        assert shown.title == entry["study"]
        np.testing.assert_array_equal(shown.image, original.array[0])
        assert shown.spacing == pytest.approx(original.spacing)
        assert shown.origin == pytest.approx(original.affine[2, 3])
        assert np.abs(shown.overlay).max() == pytest.approx(1)


def test_the_page_works_in_a_browser_and_asks_for_nothing(root: Path) -> None:
    with chromium() as browser, opened(browser, root / "run" / "report.html") as tab:
        canvas = tab.page.locator("#where-it-looked canvas").first
        before = canvas.screenshot()
        tab.page.locator("#where-it-looked input[type=range]").first.focus()
        tab.page.keyboard.press("ArrowLeft")
        tab.page.wait_for_timeout(200)
        assert canvas.screenshot() != before
        tab.check_quiet()


def test_a_report_is_written_again_without_the_studies(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = text_of(run)
    made = complete_report(run)
    assert made.notes == ()
    assert text_of(run) == before
    monkeypatch.setattr(entries.StoredVolume, "read", None)  # nothing is scored or explained again
    assert complete_report(run).notes == ()


def test_studies_that_are_gone_are_said_and_the_rest_stays(run: RunFolder, root: Path, tmp_path: Path) -> None:
    config = run.config
    moved = config.model_copy(update={"data": config.data.model_copy(update={"folder": str(tmp_path / "gone")})})
    run.write_config(moved)
    for name in ("audit.json", "audit.csv", "audit.jsonl"):
        (run.path / name).unlink()
    shutil.rmtree(run.path / "gallery")
    made = complete_report(run)
    assert len(made.notes) == 2
    page = text_of(run)
    assert "The context audit could not be made" in page
    assert "<h2>How well</h2>" in page
    assert "Where it looked" not in page


def test_a_study_that_cannot_be_read_is_left_out_of_the_gallery(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = json.loads((run.path / "gallery" / "gallery.json").read_text())["studies"]
    shutil.rmtree(run.path / "gallery")
    victim, draw = listed[0]["study"], gallery._draw

    def fail(one: object, *arguments: object, **options: object) -> None:
        if one.study == victim:
            raise RuntimeError("a bug")
        draw(one, *arguments, **options)

    monkeypatch.setattr(gallery, "_draw", fail)
    assert complete_report(run).notes == ()
    assert [study.title for study in read_gallery(run)] == [entry["study"] for entry in listed[1:]]


def test_a_map_that_the_network_does_not_have_is_said(run: RunFolder) -> None:
    made = complete_report(run, method="attention")
    assert len(made.notes) == 1
    assert made.notes[0].startswith("The gallery could not be made")


def test_an_interrupted_report_says_how_to_go_on_and_leaves_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.report_path.unlink()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "make_gallery", interrupt)
    with pytest.raises(KeyboardInterrupt, match="volrec report"):
        complete_report(run)
    assert "<h2>How well</h2>" in text_of(run)


def test_the_command_writes_what_was_asked_for(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--no-audit", "--gallery", "2", "--method", "occlusion"]) == 0
    shown = capsys.readouterr().out
    assert "Context:" not in shown
    assert "report.html" in shown
    assert len(read_gallery(run)) == 6
    assert {study.overlay_name for study in read_gallery(run)} == {"occlusion for 1"}


def test_a_damaged_gallery_is_said_with_what_to_do(run: RunFolder) -> None:
    next((run.path / "gallery").glob("*.npz")).write_bytes(b"nothing")
    html.write_report(run)
    assert "cannot be read" in text_of(run)
    assert "--refresh" in text_of(run)
    assert complete_report(run, refresh=True).notes == ()
    assert "Where it looked" in text_of(run)


def test_an_unfinished_run_is_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "finished").unlink()
    assert main(["report", str(run.path)]) == 2
    assert "has not finished" in capsys.readouterr().err


def test_groups_of_studies_are_shown_where_a_column_is_named(run: RunFolder, root: Path, tmp_path: Path) -> None:
    table = pd.read_csv(root / "data" / "labels.csv", dtype=str)
    table["sex"] = ["F", "M", "M", "F"] * (len(table) // 4)
    table.to_csv(tmp_path / "labels.csv", index=False)
    config = run.config
    data = config.data.model_copy(update={"labels": str(tmp_path / "labels.csv"), "target": ["label"]})
    run.write_config(config.model_copy(update={"data": data}))
    made = volrec.make_report(run.path, by="sex", audit=False, gallery=0)
    assert made.notes == ()
    page = text_of(run)
    assert "<h2>For whom</h2>" in page
    assert (run.path / "figures" / "subgroups.png").is_file()
    assert [group["name"] for group in run.facts("subgroups")["columns"][0]["groups"]] == ["F", "M"]
    made = volrec.make_report(run.path, by=["sxe"], audit=False, gallery=0)
    assert "sxe" in made.notes[0]
    assert "<h2>For whom</h2>" in text_of(run)  # what was found before


@pytest.mark.parametrize(("option", "said"), [("--gallery=-1", "at least 0"), ("--method=gradkam", "mean 'gradcam'")])
def test_a_mistyped_option_leaves_the_report_as_it_was(
    run: RunFolder, option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run.report_path.stat().st_mtime_ns
    assert main(["report", str(run.path), option]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert run.report_path.stat().st_mtime_ns == before
