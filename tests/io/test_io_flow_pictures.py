"""Folders of 8-bit flow pictures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from volrec.errors import DataError
from volrec.io.flow_pictures import read_flow_folder


def write(folder, count=3, first=1, suffix="png", size=(6, 8)):
    values = np.random.default_rng(0).integers(0, 256, (count, 2, *size)).astype(np.uint8)
    for place, pair in enumerate(values):
        for component, picture in zip("xy", pair, strict=True):
            Image.fromarray(picture).save(folder / f"flow_{component}_{place + first:05d}.{suffix}")
    (folder / "img_00001.txt").write_text("not a flow picture")
    return values


@pytest.mark.parametrize("first", [0, 1])
def test_reads_every_pair_in_the_order_of_the_numbers(tmp_path, first):
    values = write(tmp_path, count=12, first=first)
    found = read_flow_folder(tmp_path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


def test_reads_jpeg_and_colour_as_pillow_does(tmp_path):
    values = write(tmp_path, suffix="jpg", size=(16, 16))
    Image.fromarray(np.repeat(values[1, 0][..., None], 3, axis=2)).save(tmp_path / "flow_x_00002.jpg")
    found = read_flow_folder(str(tmp_path))
    assert found.shape == (3, 2, 16, 16)
    for t in range(3):
        for component, name in enumerate("xy"):
            with Image.open(tmp_path / f"flow_{name}_{t + 1:05d}.jpg") as picture:
                np.testing.assert_array_equal(found[t, component], np.asarray(picture.convert("L")))


@pytest.mark.parametrize("lost", ["flow_x_00001.png", "flow_x_00002.png", "flow_y_00003.png"])
def test_a_missing_number_is_named(tmp_path, lost):
    write(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(DataError, match=f"{lost}: number .* is missing") as error:
        read_flow_folder(tmp_path)
    assert error.value.code == "flow-pictures"


def test_a_missing_pair_and_numbers_that_start_later_are_named(tmp_path):
    write(tmp_path, first=3)
    with pytest.raises(DataError, match=r"flow_x_00001\.png: number 1 of component x is missing"):
        read_flow_folder(tmp_path)


def test_another_size_is_named(tmp_path):
    write(tmp_path)
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(tmp_path / "flow_y_00002.png")
    with pytest.raises(DataError, match=r"flow_y_00002\.png: the picture is 8 x 5 pixels, .* 8 x 6 pixels"):
        read_flow_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_broken_picture_is_named(tmp_path, content):
    write(tmp_path)
    broken = tmp_path / "flow_x_00003.png"
    broken.write_bytes(broken.read_bytes()[:45] if content is None else content)
    with pytest.raises(DataError, match=r"flow_x_00003\.png: the picture cannot be read"):
        read_flow_folder(tmp_path)


def test_a_picture_whose_parts_have_wrong_lengths_is_named(tmp_path):
    write(tmp_path)
    broken = tmp_path / "flow_x_00003.png"
    content = bytearray(broken.read_bytes())
    content[content.index(b"IDAT") - 1] //= 2
    broken.write_bytes(content)
    with pytest.raises(DataError, match=r"flow_x_00003\.png: the picture cannot be read"):
        read_flow_folder(tmp_path)


def test_a_number_that_is_there_twice_is_named(tmp_path):
    write(tmp_path)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "flow_x_2.jpg")
    with pytest.raises(DataError, match="number 2 of component x is there twice"):
        read_flow_folder(tmp_path)


def test_a_folder_without_pictures_or_none_is_told(tmp_path):
    with pytest.raises(DataError, match="holds no flow pictures"):
        read_flow_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_flow_folder(tmp_path / "absent")


def test_reading_needs_no_torch():
    code = "import sys, volrec.io.flow_pictures; print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
