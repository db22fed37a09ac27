from __future__ import annotations

import os
from pathlib import Path

import pytest

from volrec.data import walk as module
from volrec.data.walk import walk
from volrec.errors import DataError


def _write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_every_file_is_listed_with_size_and_time_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/d/e/f.dcm"):
        _write(tmp_path / name, b"12345")
    tree = walk(tmp_path)
    assert list(tree.files) == ["a", "b/1", "b/2", "c/d/e/f.dcm"]
    about = (tmp_path / "b/1").stat()
    assert tree.files["b/1"] == (5, about.st_mtime_ns)
    assert tree.problems == []


def test_hidden_entries_are_passed_over_and_counted(tmp_path: Path) -> None:
    for name in (".DS_Store", "._1.dcm", ".git/config", "__MACOSX/x", "1.dcm"):
        _write(tmp_path / name)
    tree = walk(tmp_path)
    assert list(tree.files) == ["1.dcm"]
    assert tree.hidden == 4


def test_a_hidden_root_is_walked(tmp_path: Path) -> None:
    _write(tmp_path / ".data" / "1.dcm")
    assert list(walk(tmp_path / ".data").files) == ["1.dcm"]


def test_loops_of_links_end_and_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "root/a/1")
    _write(tmp_path / "sibling/2")
    (tmp_path / "root/a/self").symlink_to(tmp_path / "root/a")
    (tmp_path / "root/a/up").symlink_to(tmp_path)
    tree = walk(tmp_path / "root")
    assert list(tree.files) == ["a/1"]
    assert {(problem.where, problem.code, problem.fatal) for problem in tree.problems} == {
        ("a/self", "repeated-link", False),
        ("a/up", "repeated-link", False),
    }


def test_linked_folders_and_files_outside_are_read_once(tmp_path: Path) -> None:
    _write(tmp_path / "store/s1/1")
    _write(tmp_path / "store/alone", b"123")
    root = tmp_path / "root"
    _write(root / "own")
    (root / "s1").symlink_to(tmp_path / "store/s1")
    (root / "s1-again").symlink_to(tmp_path / "store/s1")
    (root / "x1").symlink_to(tmp_path / "store/alone")
    (root / "x2").symlink_to(tmp_path / "store/alone")
    (root / "own-again").symlink_to(root / "own")
    tree = walk(root)
    assert list(tree.files) == ["own", "s1/1", "x1"]
    assert tree.files["x1"][0] == 3
    assert [problem.where for problem in tree.problems] == ["s1-again"]


def test_a_broken_link_is_a_fault(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (problem,) = walk(tmp_path).problems
    assert (problem.where, problem.code, problem.fatal) == ("gone", "broken-link", True)


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    tree = walk(tmp_path)
    assert list(tree.files) == ["a"]
    assert [(problem.where, problem.code) for problem in tree.problems] == [("pipe", "special-file")]


def test_a_folder_that_cannot_be_listed_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "good/1")
    _write(tmp_path / "bad/2")
    real = os.scandir

    def scandir(path: str):
        if str(path).endswith("bad"):  # permissions do not stop the superuser, who may run this test
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(module.os, "scandir", scandir)
    tree = walk(tmp_path)
    assert list(tree.files) == ["good/1"]
    (problem,) = tree.problems
    assert (problem.where, problem.code, problem.fatal) == ("bad", "unreadable-folder", True)
    assert "permission denied" in problem.reason


def test_a_missing_folder_names_the_last_one_that_exists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        walk(tmp_path / "typo" / "data")
    assert caught.value.code == "missing-folder"
    assert str(tmp_path) in caught.value.problem


def test_a_single_file_is_a_tree_of_its_own(tmp_path: Path) -> None:
    _write(tmp_path / "a.nii.gz")
    _write(tmp_path / "b.nii.gz")
    tree = walk(tmp_path / "a.nii.gz")
    assert (tree.root, list(tree.files)) == (tmp_path, ["a.nii.gz"])


def test_volrecs_own_cache_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "cache/big.npy")
    _write(tmp_path / "1.dcm")
    assert list(walk(tmp_path, skip=tmp_path / "cache").files) == ["1.dcm"]


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"stra\xdfe.dcm")  # Latin-1
    try:
        _write(tmp_path / name)
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    assert list(walk(tmp_path).files) == [name]
