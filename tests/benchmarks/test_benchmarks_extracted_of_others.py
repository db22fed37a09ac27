"""Frames and flow that other tools left: found where each puts them, in order, and what is not known is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from volrec.benchmarks.extracted import ExtractedVideo, extracted_parts, find_extracted
from volrec.benchmarks.sets.common import Video
from volrec.errors import DataError
from volrec.io.frame_folders import load_picture
from volrec.io.video import read_video

NAME = "HandstandPushups/v_HandStandPushups_g01_c01"
SHORT = NAME.rpartition("/")[2]
SIZE = (24, 32)


def video(name: str = NAME) -> Video:
    return Video(name=name, path=Path("absent.avi"), labels=(0,))


def write(template: Path, count: int, *, first: int = 1, seed: int = 0, colour: bool = False) -> np.ndarray:
    """Write pictures whose name holds ``{}`` for the number; png keeps what was drawn, so that it is the oracle."""
    shape = (count, *SIZE, 3) if colour else (count, *SIZE)
    values = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    template.parent.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(values, start=first):
        Image.fromarray(picture).save(str(template).format(number))
    return values


def pixels(x: np.ndarray, y: np.ndarray, bound: float = 20) -> np.ndarray:
    return (np.stack([x, y], axis=1).astype(np.float64) - 128) * bound / 127.5


LAYOUTS = {
    "tsn": (f"{SHORT}/img_{{:05d}}.png", f"{SHORT}/flow_x_{{:05d}}.png", f"{SHORT}/flow_y_{{:05d}}.png", 1),
    "mmaction2": (f"{NAME}/img_{{:05d}}.png", f"{NAME}/flow_x_{{:05d}}.png", f"{NAME}/flow_y_{{:05d}}.png", 1),
    "denseflow": (f"{NAME}/img_{{:05d}}.png", f"{NAME}/flow_x_{{:05d}}.png", f"{NAME}/flow_y_{{:05d}}.png", 0),
    "dense_flow": (f"{SHORT}/image_{{:04d}}.png", f"{SHORT}/flow_x_{{:04d}}.png", f"{SHORT}/flow_y_{{:04d}}.png", 1),
    "apart": (f"{NAME}/flow_i/flow_i_{{:04d}}.png", f"{NAME}/flow_x/flow_x_{{:04d}}.png",
              f"{NAME}/flow_y/flow_y_{{:04d}}.png", 1),
    "short": (f"{SHORT}/img_{{:05d}}.png", f"{SHORT}/x_{{:05d}}.png", f"{SHORT}/y_{{:05d}}.png", 1),
    "fusion": (f"jpegs_256/{SHORT}/frame{{:06d}}.png", f"tvl1_flow/u/{SHORT}/frame{{:06d}}.png",
               f"tvl1_flow/v/{SHORT}/frame{{:06d}}.png", 1),
    "trees": (f"rgb/{NAME}/{{:05d}}.png", f"u/{NAME}/{{:05d}}.png", f"v/{NAME}/{{:05d}}.png", 0),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_and_flow_are_found_and_read_in_every_layout(layout: str, tmp_path: Path) -> None:
    rgb, flow_x, flow_y, first = LAYOUTS[layout]
    frames = write(tmp_path / rgb, 12, first=first, colour=True)
    x = write(tmp_path / flow_x, 11, first=first, seed=1)
    y = write(tmp_path / flow_y, 11, first=first, seed=2)
    folder = find_extracted(tmp_path, video())
    assert folder is not None
    extracted = ExtractedVideo(folder)
    assert extracted.length == 12 and extracted_parts(tmp_path, video()) == {"rgb", "flow"}
    np.testing.assert_array_equal(extracted.frames([11, 0, 9, 10]), frames[[11, 0, 9, 10]])
    np.testing.assert_allclose(extracted.flow([10, 0, 9]), pixels(x, y)[[10, 0, 9]], atol=1e-5)
    np.testing.assert_allclose(ExtractedVideo(folder, bound=15).flow([3]), pixels(x, y, 15)[[3]], atol=1e-5)
    assert extracted.facts["notes"] == ["bound of flow not said: 20 taken"]
    assert ExtractedVideo(folder, bound=15).facts["notes"] == ["bound of flow as given"]
    assert extracted.facts["origin"] == "other tools" and extracted.facts["size"] == list(SIZE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("only", ["rgb", "flow"])
def test_frames_alone_and_flow_alone(layout: str, only: str, tmp_path: Path) -> None:
    rgb, flow_x, flow_y, first = LAYOUTS[layout]
    if only == "rgb":
        write(tmp_path / rgb, 5, first=first, colour=True)
    else:
        for name in (flow_x, flow_y):
            write(tmp_path / name, 5, first=first)
    folder = find_extracted(tmp_path, video())
    assert folder is not None
    extracted = ExtractedVideo(folder)
    assert extracted_parts(tmp_path, video()) == {only}
    assert extracted.length == (5 if only == "rgb" else 6)
    with pytest.raises(DataError, match="was not extracted, only") as told:
        extracted.flow([0]) if only == "rgb" else extracted.frames([0])
    assert "to another folder" in told.value.remedy


def test_pictures_are_jpegs_too(tmp_path: Path) -> None:
    write(tmp_path / SHORT / "img_{:05d}.jpg", 3, colour=True)
    extracted = ExtractedVideo(tmp_path / SHORT)
    expected = np.asarray(Image.open(tmp_path / SHORT / "img_00002.jpg"))
    np.testing.assert_array_equal(extracted.frames([1])[0], expected)


@pytest.mark.parametrize(
    ("frames", "fields", "length", "words"),
    [
        (6, 5, 6, None),
        (6, 6, 6, "as many fields as frames"),
        (8, 5, 6, "frames less fields is 3, not 1 or 0: the shorter count is used"),
        (4, 6, 4, "frames less fields is -2, not 1 or 0: the shorter count is used"),
    ],
)
def test_counts_that_do_not_go_together_are_said_and_the_shorter_is_used(
    frames: int, fields: int, length: int, words: str | None, tmp_path: Path
) -> None:
    """FFmpeg gives some videos two frames more than dense_flow."""
    write(tmp_path / SHORT / "img_{:05d}.png", frames, colour=True)
    for name in "xy":
        write(tmp_path / SHORT / f"flow_{name}_{{:05d}}.png", fields)
    extracted = ExtractedVideo(tmp_path / SHORT)
    assert extracted.length == length
    assert extracted.facts["notes"][:-1] == ([] if words is None else [words])
    assert len(extracted.frames(range(length))) == length and len(extracted.flow(range(length - 1))) == length - 1
    with pytest.raises(DataError, match=f"number {length} of 'rgb' is asked for, of {length}"):
        extracted.frames([length])


def test_frames_and_flow_may_be_of_two_sizes(tmp_path: Path) -> None:
    write(tmp_path / SHORT / "img_{:05d}.png", 3, colour=True)
    for name in "xy":
        write(tmp_path / SHORT / f"flow_{name}_{{:05d}}.png", 2)
        for picture in (tmp_path / SHORT).glob(f"flow_{name}_*"):
            Image.fromarray(np.zeros((10, 14), np.uint8)).save(picture)
    extracted = ExtractedVideo(tmp_path / SHORT)
    assert extracted.frames([2]).shape == (1, *SIZE, 3) and extracted.flow([0]).shape == (1, 2, 10, 14)
    assert (extracted.size_of("rgb"), extracted.size_of("flow")) == (SIZE, (10, 14))


def test_warped_flow_is_read_under_its_own_names(tmp_path: Path) -> None:
    x, y = (write(tmp_path / SHORT / f"warp_{name}_{{:05d}}.png", 4, seed=seed) for seed, name in enumerate("xy"))
    extracted = ExtractedVideo(tmp_path / SHORT)
    assert extracted_parts(tmp_path, video()) == {"warped"}
    np.testing.assert_allclose(extracted.flow([2], stream="warped"), pixels(x, y)[[2]], atol=1e-5)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("HandStandPushups/v_HandStandPushups_g01_c01", NAME),
        ("HandstandPushups/v_HandstandPushups_g01_c01", NAME),
        ("v_HandstandPushups_g01_c01", NAME),
        ("jpegs_256/v_HandstandPushups_g01_c01", NAME),
        ("brush_hair/clip", "brush hair/clip"),
        ("brush hair/Clip", "Brush_Hair/Clip"),
    ],
)
def test_other_spellings_are_found(place: str, name: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    assert find_extracted(tmp_path, video(name)) == tmp_path / place


def test_the_exact_name_goes_first_and_two_other_spellings_are_none(tmp_path: Path) -> None:
    for name in ("abc", "aBc", "ABC"):  # YouTube's names differ in capitals alone.
        (tmp_path / name).mkdir()
    assert find_extracted(tmp_path, video("aBc")) == tmp_path / "aBc"
    assert find_extracted(tmp_path, video("class/ABC")) == tmp_path / "ABC"
    assert find_extracted(tmp_path, video("Abc")) is None
    assert find_extracted(tmp_path, video("class/absent")) is None
    assert find_extracted(tmp_path / "nothing", video()) is None


def test_a_folder_that_came_later_is_found(tmp_path: Path) -> None:
    assert find_extracted(tmp_path, video("class/V_1")) is None
    (tmp_path / "v_1").mkdir()
    assert find_extracted(tmp_path, video("class/V_1")) == tmp_path / "v_1"


def test_what_does_not_go_together_is_told(tmp_path: Path) -> None:
    folder = tmp_path / SHORT
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no extraction\.json that can be read, nor pictures of another tool"):
        ExtractedVideo(folder)
    assert extracted_parts(tmp_path, video()) == set()
    write(folder / "image_{:04d}.png", 4, colour=True)
    (folder / "image_0002.png").rename(tmp_path / "kept.png")
    with pytest.raises(DataError, match=r"image_0002\.png: frame 2 is missing, of those up to 4"):
        ExtractedVideo(folder)
    assert extracted_parts(tmp_path, video()) == set()
    (tmp_path / "kept.png").rename(folder / "image_0002.png")
    write(folder / "flow_x_{:04d}.png", 3)
    with pytest.raises(DataError, match="number 1 of component y is missing, of 3 pictures of x and 0 of y"):
        ExtractedVideo(folder)


def test_the_half_of_an_archive_is_no_video_of_frames(tmp_path: Path) -> None:
    """Of the three parts of two-stream fusion's flow some unpack one, and have no folder v."""
    write(tmp_path / f"tvl1_flow/u/{SHORT}/frame{{:06d}}.png", 3)
    folder = find_extracted(tmp_path, video())
    assert folder is not None
    with pytest.raises(DataError, match="there is no folder of the other component of the flow") as told:
        ExtractedVideo(folder)
    assert told.value.where == str(tmp_path / f"tvl1_flow/v/{SHORT}")


def test_a_root_that_is_called_like_a_tree_does_not_mislead(tmp_path: Path) -> None:
    frames = write(tmp_path / "x" / SHORT / "img_{:05d}.png", 3, colour=True)
    np.testing.assert_array_equal(ExtractedVideo(tmp_path / "x" / SHORT).frames(range(3)), frames)


@pytest.mark.parametrize("template", ["image_{:05d}.png", "frame{:06d}.png", "frame_{:03d}.png", "{:05d}.png"])
def test_such_a_folder_is_a_video_too(template: str, tmp_path: Path) -> None:
    frames = write(tmp_path / template, 11, colour=True)
    np.testing.assert_array_equal(read_video(tmp_path), frames)


@pytest.mark.parametrize(
    ("suffix", "stored"),
    [("jpg", "RGB"), ("jpg", "L"), ("png", "RGB"), ("png", "L"), ("png", "RGBA"), ("png", "P"), ("png", "I;16")],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_are_decoded_as_pillow_does(suffix: str, stored: str, mode: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 33, 3)).astype(np.uint8)
    path = tmp_path / f"img_00001.{suffix}"
    picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 200) if stored == "I;16" else Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a right angle, for those who look; frames of videos are as they are stored.
    (picture if stored == "I;16" else picture.convert(stored)).save(path, exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert(mode))
    np.testing.assert_array_equal(load_picture(path, mode=mode), expected)


def test_a_picture_that_is_cut_short_is_told(tmp_path: Path) -> None:
    write(tmp_path / "img_{:05d}.jpg", 1, colour=True)
    path = tmp_path / "img_00001.jpg"
    content = path.read_bytes()
    for end in (len(content) // 2, len(content) - 40):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match="the frame cannot be read"):
            load_picture(path)
