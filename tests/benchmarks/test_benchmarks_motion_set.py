"""The rendered set as files: UCF101's lists, pictures that survive the codec, sets that go on, refusals."""

from __future__ import annotations

import errno
import io
import json
import re
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from volrec.benchmarks import motion_set
from volrec.benchmarks.motion_clips import MOTION_CLASSES, render_clip
from volrec.benchmarks.motion_set import MotionSet, encode_clip, held_out_groups, make_motion
from volrec.errors import ConfigError, DataError

SMALL = {"frames": (16, 18), "size": (40, 48)}
NAMES = ("DriftLeft", "DriftRight")
TINY = {**SMALL, "classes": NAMES, "groups": 3}
LINE = re.compile(r"(\w+)/v_\1_g(\d\d)_c(\d\d)\.avi")


def decode(source: Path | bytes) -> np.ndarray:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def lines(path: Path) -> list[str]:
    text = path.read_bytes().decode("ascii")
    assert text.endswith("\r\n") and text.count("\n") == text.count("\r\n") == text.count("\r")
    return text.split("\r\n")[:-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> MotionSet:
    """Two classes of 25 groups, as many as UCF101 has."""
    out = tmp_path_factory.mktemp("motion") / "set"
    return make_motion(out, classes=["DriftRight", "AmberDriftUp"], seed=1, **SMALL)


# Layout


def test_classes_are_numbered_from_one_in_the_order_of_the_alphabet(made):
    assert made.classes == ("AmberDriftUp", "DriftRight")
    assert lines(made.folder / "ucfTrainTestlist" / "classInd.txt") == ["1 AmberDriftUp", "2 DriftRight"]
    assert sorted(MOTION_CLASSES) == list(MOTION_CLASSES)


def test_every_listed_video_is_there_and_every_video_is_listed(made):
    there = {str(path.relative_to(made.folder / "videos")) for path in made.folder.glob("videos/*/*")}
    assert len(there) == made.videos == 50 and made.skipped == 0
    for split in (1, 2, 3):
        train = [line.split(" ")[0] for line in lines(made.folder / "ucfTrainTestlist" / f"trainlist0{split}.txt")]
        test = lines(made.folder / "ucfTrainTestlist" / f"testlist0{split}.txt")
        assert len(train) == 36 and len(test) == 14
        assert set(train) | set(test) == there and not set(train) & set(test)
        assert train == sorted(train) and test == sorted(test)


def test_split_k_tests_the_groups_of_ucf101_and_trains_on_the_others(made):
    for split, tested in ((1, set(range(1, 8))), (2, set(range(8, 15))), (3, set(range(15, 22)))):
        folder = made.folder / "ucfTrainTestlist"
        test = {int(LINE.fullmatch(line)[2]) for line in lines(folder / f"testlist0{split}.txt")}
        train = {int(LINE.match(line)[2]) for line in lines(folder / f"trainlist0{split}.txt")}
        assert test == tested and train == set(range(1, 26)) - tested


def test_train_lists_give_labels_and_test_lists_none(made):
    for split in (1, 2, 3):
        for line in lines(made.folder / "ucfTrainTestlist" / f"trainlist0{split}.txt"):
            name, label = line.split(" ")
            assert LINE.fullmatch(name)[1] == made.classes[int(label) - 1]
        assert not any(" " in line for line in lines(made.folder / "ucfTrainTestlist" / f"testlist0{split}.txt"))


@pytest.mark.parametrize("groups", [3, 4, 10, 25, 50, 99])
def test_held_out_groups_of_three_splits_do_not_overlap_and_leave_some_to_learn_from(groups):
    tested = [set(held_out_groups(split, groups=groups)) for split in (1, 2, 3)]
    assert len(set().union(*tested)) == sum(map(len, tested)) <= groups
    assert all(one <= set(range(1, groups + 1)) and 1 <= len(one) < groups for one in tested)


def test_clips_of_a_group_are_numbered_and_stay_on_one_side(tmp_path):
    made = make_motion(tmp_path, **TINY, clips_per_group=2)
    assert made.videos == 12
    assert lines(tmp_path / "ucfTrainTestlist" / "testlist02.txt") == [
        f"{name}/v_{name}_g02_c{clip:02d}.avi" for name in NAMES for clip in (1, 2)
    ]
    assert len(lines(tmp_path / "ucfTrainTestlist" / "trainlist02.txt")) == 8


def test_the_folder_says_what_it_is_and_what_can_be_reached_on_it(made):
    text = (made.folder / "README.txt").read_text()
    assert "no recordings" in text and "AmberDriftUp" in text
    assert re.search(r"single frames +1\.000", text) and re.search(r"flow +1\.000", text)  # these two differ in both
    assert json.loads((made.folder / "settings.json").read_text())["seed"] == 1


# Pictures


def test_files_are_as_those_of_ucf101_and_every_frame_stands_alone(made):
    path = made.folder / "videos" / "DriftRight" / "v_DriftRight_g03_c01.avi"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert container.format.name == "avi" and stream.codec_context.name == "mpeg4"
        assert stream.codec_context.codec_tag == "XVID" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 25
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert all(packet.is_keyframe for packet in packets) and len(packets) == stream.frames


@pytest.mark.parametrize("name", MOTION_CLASSES)
def test_files_decode_to_the_rendered_pictures_within_the_stated_error(name):
    pictures = render_clip(name, 4)
    decoded = decode(encode_clip(pictures))
    assert decoded.shape == pictures.shape
    luma = [
        np.stack([cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in many]).astype(int) for many in (pictures, decoded)
    ]
    error = np.abs(luma[0] - luma[1])
    assert error.mean() < 2.2 and error.max() <= 20
    assert np.abs(pictures.astype(int) - decoded).mean() < 5
    # Frames follow one another in the right order: each is nearest to its own.
    apart = np.abs(luma[1][:, None] - luma[0][None]).mean(axis=(2, 3))
    assert (apart.argmin(axis=1) == np.arange(len(pictures))).all()


def test_written_files_hold_the_clips_of_their_names(made):
    path = made.folder / "videos" / "AmberDriftUp" / "v_AmberDriftUp_g12_c01.avi"
    assert path.read_bytes() == encode_clip(render_clip("AmberDriftUp", 12, seed=1, **SMALL))


def test_a_frame_of_a_file_does_not_depend_on_the_frames_before_it():
    pictures = render_clip("SwingFast", 2, **SMALL)
    assert np.array_equal(decode(encode_clip(pictures))[::-1], decode(encode_clip(pictures[::-1])))


@pytest.mark.parametrize("rate", [12.5, 30000 / 1001, 60])
def test_files_state_the_frame_rate_asked_for(rate):
    with av.open(io.BytesIO(encode_clip(render_clip("DriftUp", 1, **SMALL), frame_rate=rate))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(rate)


# Once more, and on


def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(tmp_path):
    made = [make_motion(tmp_path / str(jobs), jobs=jobs, **TINY) for jobs in (1, 2)]
    assert contents(made[0].folder) == contents(made[1].folder)
    other = make_motion(tmp_path / "other", seed=1, **TINY)
    assert not set(contents(made[0].folder / "videos").values()) & set(contents(other.folder / "videos").values())


def test_a_set_that_was_interrupted_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = make_motion(tmp_path / "whole", **TINY)
    done = []

    def interrupted(*args: object, **options: object) -> bytes:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(args)
        return encode_clip(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(motion_set, "encode_clip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_motion(tmp_path / "part", **TINY)
    part = tmp_path / "part"
    written = {path: path.stat().st_mtime_ns for path in part.rglob("*.avi")}
    assert len(written) == 4 and not (part / "ucfTrainTestlist").exists()
    (part / "videos" / "DriftLeft" / "v_DriftLeft_g03_c01.avi.77-abc.tmp").write_bytes(b"half")
    again = make_motion(part, **TINY)
    assert (again.videos, again.skipped) == (6, 4)
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    assert contents(part) == contents(whole.folder)
    assert make_motion(part, **TINY).skipped == 6


def test_other_settings_are_refused_by_name_and_leave_the_set_as_it_is(tmp_path):
    made = make_motion(tmp_path, **TINY)
    before = contents(made.folder)
    with pytest.raises(ConfigError, match=r"seed was 0, now 5") as raised:
        make_motion(tmp_path, seed=5, **TINY)
    assert raised.value.code == "not-empty" and "size" not in raised.value.problem
    assert contents(made.folder) == before


@pytest.mark.parametrize("name", ["scan.dcm", "settings.json"])
def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="already") as raised:
        make_motion(tmp_path, **TINY)
    assert raised.value.remedy and contents(tmp_path) == {name: b"mine"}


# Refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ["DriftLeft", "DriftAway"]}, "DriftAway"),
        ({"classes": []}, "no class"),
        ({"size": (16, 16)}, "40 to 1080, got 16"),
        ({"size": (61, 80)}, "even"),
        ({"frames": (4, 8)}, "16"),
        ({"groups": 2}, "groups"),
        ({"clips_per_group": 0}, "clips_per_group"),
        ({"frame_rate": 0}, "frame_rate"),
        ({"shaken": 2}, "shaken"),
        ({"seed": 1.5}, "seed"),
        ({"jobs": -1}, "jobs"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_written(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said) as raised:
        make_motion(tmp_path / "set", **{**TINY, **options})
    assert raised.value.remedy and not (tmp_path / "set").exists()


def test_a_single_class_may_be_named_by_a_string(tmp_path):
    assert make_motion(tmp_path, **{**TINY, "classes": "SwingFast"}).classes == ("SwingFast",)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(ConfigError, match="already"):
        make_motion(tmp_path / "set", **TINY)


def test_a_full_disk_is_told_and_what_was_finished_is_kept(tmp_path, monkeypatch):
    write, done = motion_set.write_atomically, []

    def full(path: Path, content: bytes) -> None:
        if Path(path).suffix == ".avi":
            done.append(path)
            if len(done) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(motion_set, "write_atomically", full)
        with pytest.raises(DataError, match="disk is full") as raised:
            make_motion(tmp_path, **TINY)
    assert raised.value.code == "disk-full"
    assert make_motion(tmp_path, **TINY).skipped == 2


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"PyAV.*volrec\[video\]"):
        make_motion(tmp_path / "set", **TINY)
    assert not (tmp_path / "set").exists()
