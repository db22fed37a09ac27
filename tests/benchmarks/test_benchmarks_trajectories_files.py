"""Trajectories on disk: round trips, the text of other programs, and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from volrec.benchmarks.trajectories import (
    Trajectories,
    TrajectorySettings,
    read_boxes,
    read_trajectories,
    read_trajectory_text,
    write_trajectories,
    write_trajectory_text,
)
from volrec.errors import DataError

STANDARD = TrajectorySettings()


def made_up(count, chosen=STANDARD, seed=0):
    rows = np.random.default_rng(seed).random((count, chosen.width)).astype(np.float32)
    rows[:, 0] = np.arange(count) + 15
    rows[:, 1:6] *= 300
    rows[:, 10:40] -= 0.5
    return Trajectories(rows, chosen.columns, {"frames": 40, "settings": vars(chosen)})


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_binary_file_gives_back_rows_columns_and_facts(tmp_path, count):
    written = made_up(count)
    write_trajectories(tmp_path / "a.safetensors", written)
    found = read_trajectories(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found.rows, written.rows)
    assert found.rows.dtype == np.float32
    assert (found.columns, found.facts) == (written.columns, written.facts)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), count=st.integers(0, 5))
def test_the_text_gives_back_what_its_decimals_hold(tmp_path, name, seed, count):
    written = made_up(count, seed=seed)
    write_trajectory_text(tmp_path / name, written)
    found = read_trajectory_text(tmp_path / name)
    np.testing.assert_allclose(found.rows[:, :40], written.rows[:, :40], rtol=1e-6, atol=6e-7)
    np.testing.assert_allclose(found.rows[:, 40:], written.rows[:, 40:], rtol=0, atol=1.2e-7)
    assert found.columns == written.columns
    assert found.facts["settings"] == vars(STANDARD)


def test_more_lines_than_are_read_at_a_time_are_read(tmp_path):
    small = TrajectorySettings(length=1, time_cells=1, cells=1, hog_bins=2, hof_bins=3, mbh_bins=2)
    written = made_up(5000, small)
    write_trajectory_text(tmp_path / "a.gz", written)
    found = read_trajectory_text(tmp_path / "a.gz", settings=small)
    np.testing.assert_array_equal(found.rows[:, 0], written.rows[:, 0])


def test_the_text_is_written_as_the_authors_program_prints_it(tmp_path):
    rows = np.full((1, 436), 0.5, np.float32)
    rows[0, :7] = 15, 100.25, 3, 1, 2, 30, 1
    write_trajectory_text(tmp_path / "a.txt", Trajectories(rows, STANDARD.columns, {}))
    line = (tmp_path / "a.txt").read_bytes()
    assert line.startswith(b"15\t100.250000\t3.000000\t1.000000\t2.000000\t30.000000\t1.000000\t0.500000\t")
    assert line.endswith(b"\t0.5000000\t\n")
    fields = line.split()
    assert len(fields) == 436
    assert fields[39] == b"0.500000" and fields[40] == b"0.5000000"


@pytest.mark.parametrize("packed", [False, True])
def test_text_of_others_is_read_with_or_without_gzip_and_by_content(tmp_path, packed):
    lines = "".join(f"{n}\t" + "\t".join(["1e-3"] * 435) + ending for n, ending in ((15, "\t\n"), (16, "\r\n\n")))
    path = tmp_path / "features.bin"
    path.write_bytes(gzip.compress(lines.encode()) if packed else lines.encode())
    found = read_trajectory_text(path)
    assert found.rows.shape == (2, 436)
    assert found.part("frame")[:, 0].tolist() == [15, 16]
    assert (found.part("mbhy") == np.float32(1e-3)).all()


def test_the_same_trajectories_are_the_same_compressed_file(tmp_path):
    for name in ("a.gz", "b.gz"):
        write_trajectory_text(tmp_path / name, made_up(3))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("widths", [[433, 433], [436, 435], [436, 437]])
def test_another_number_of_columns_is_told_with_its_line(tmp_path, widths):
    path = tmp_path / "a.txt"
    path.write_text("".join("\t".join(["1"] * width) + "\n" for width in widths))
    line = 1 + (widths[0] == 436)
    with pytest.raises(DataError, match=f"line {line} has {widths[line - 1]} columns, not 436") as caught:
        read_trajectory_text(path)
    assert caught.value.where == str(path) and caught.value.remedy


@pytest.mark.parametrize("word", ["nan", "inf", "abc", "#"])
def test_what_is_no_number_is_told_with_its_column(tmp_path, word):
    path = tmp_path / "a.txt"
    path.write_text("\t".join(["1"] * 41 + [word] + ["1"] * 394) + "\n")
    with pytest.raises(DataError, match=f"line 1 has '{word}' in column 42"):
        read_trajectory_text(path)


def test_damaged_missing_and_foreign_files_are_refused(tmp_path):
    write_trajectory_text(tmp_path / "a.gz", made_up(3))
    (tmp_path / "cut.gz").write_bytes((tmp_path / "a.gz").read_bytes()[:-900])
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("cut.gz", "bytes.txt", "missing.txt"):
        with pytest.raises(DataError, match=name):
            read_trajectory_text(tmp_path / name)
    write_trajectories(tmp_path / "a.safetensors", made_up(3))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-10])
    save_file({"rows": np.zeros((2, 436), np.float32)}, tmp_path / "other.safetensors")
    facts = '{"settings": {"length": 6, "time_cells": 3}}'
    save_file(
        {"rows": np.zeros((2, 436), np.float32)},
        tmp_path / "width.safetensors",
        metadata={"format": "volrec trajectories 1", "facts": facts},
    )
    for name in ("cut", "other", "width", "missing"):
        with pytest.raises(DataError, match=name):
            read_trajectories(tmp_path / f"{name}.safetensors")


def test_boxes_of_each_frame_are_read(tmp_path):
    path = tmp_path / "people.bb"
    path.write_text("0 1 2 30 40 0.9 5 6 7 8 -0.5\n1\n2 1.5 2 3 4 1\n")
    found = read_boxes(path)
    assert [box.shape for box in found] == [(2, 5), (0, 5), (1, 5)]
    assert found[0][1].tolist() == [5, 6, 7, 8, -0.5]


@pytest.mark.parametrize("line", ["0 1 2 3 4", "0 1 2 3 4 x"])
def test_a_line_of_boxes_that_does_not_fit_is_told(tmp_path, line):
    (tmp_path / "people.bb").write_text(f"0\n{line}\n")
    with pytest.raises(DataError, match="line 2"):
        read_boxes(tmp_path / "people.bb")
