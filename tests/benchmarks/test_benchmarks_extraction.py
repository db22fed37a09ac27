"""Extraction: what is written is what was decoded, once, completely, and one bad video stops nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from videos import encode, moving

from volrec.benchmarks import extraction
from volrec.benchmarks.extracted import ExtractedVideo, to_pictures
from volrec.benchmarks.extraction import extract
from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.reading import StreamReader
from volrec.benchmarks.sets.common import Video
from volrec.errors import ConfigError, DataError, StoreError
from volrec.io.flow_pictures import read_flow_folder
from volrec.io.video import read_video
from volrec.transforms import drift, flow, from_pictures
from volrec.transforms.drift import warped_slice_flow
from volrec.transforms.flow import slice_flow

FAST = {"estimator": "dis", "jobs": 1}


def video_of(path: Path, name: str) -> Video:
    return Video(name=name, path=path, labels=(0,))


@pytest.fixture
def clip(tmp_path: Path) -> Video:
    return video_of(encode(tmp_path / "clip.avi", moving(5), codec="mpeg4"), "Walk/v_clip")


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_what_is_written_is_what_was_decoded_resized_and_estimated(clip: Video, tmp_path: Path) -> None:
    assert extract([clip], tmp_path / "out", what=("rgb", "flow", "warped"), size=32, quality=100, **FAST) == []
    folder = tmp_path / "out" / "Walk" / "v_clip"
    extracted = ExtractedVideo(folder)
    whole = read_video(clip.path)
    small = np.stack([cv2.resize(frame, (43, 32)) for frame in whole])
    assert (
        extracted.length == 5 and extracted.facts["size"] == [32, 43] and extracted.facts["original_size"] == [48, 64]
    )
    frames = extracted.frames([4, 0, 4])
    assert frames.shape == (3, 32, 43, 3) and frames.dtype == np.uint8
    # JPEG halves the resolution of colour; its brightness is within some levels.
    brightness = frames.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(brightness - small[[4, 0, 4]] @ [0.299, 0.587, 0.114]).max() < 8

    grey = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in small])
    step = 20 / 127.5
    for stream, prefix, expected in (
        ("flow", "flow", slice_flow(grey, method="dis")),
        ("warped", "warp", warped_slice_flow(grey, drift="homography", method="dis")[0]),
    ):
        read = extracted.flow([0, 3, 1], stream=stream)
        assert read.shape == (3, 2, 32, 43) and read.dtype == np.float32
        assert np.abs(read - np.clip(expected, -20, 20)[[0, 3, 1]]).max() < 4 * step  # Half a step, and JPEG.
        assert len(list(folder.glob(f"{prefix}_x_*.jpg"))) == len(list(folder.glob(f"{prefix}_y_*.jpg"))) == 4
    np.testing.assert_array_equal(from_pictures(read_flow_folder(folder)), extracted.flow(range(4)))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_facts_say_what_made_it_and_hold_no_path(clip: Video, tmp_path: Path) -> None:
    extract([clip], tmp_path / "out", quality=80, bound=15, **FAST)
    text = (tmp_path / "out" / clip.name / "extraction.json").read_text()
    facts = json.loads(text)
    about = clip.path.stat()
    assert facts["source"] == {
        "name": "clip.avi", "size": about.st_size, "mtime_ns": about.st_mtime_ns, "files": None,
    }  # fmt: skip
    assert (facts["frames"], facts["frame_rate"], facts["codec"], facts["decoder"]) == (5, 25.0, "mpeg4", "pyav")
    assert facts["order"] == "decode, resize, flow" and facts["resize"] is None
    assert facts["rgb"]["quality"] == facts["flow"]["quality"] == 80
    assert facts["flow"]["bound"] == 15 and facts["flow"]["estimator"].endswith(" dis") and facts["flow"]["settings"]
    assert str(tmp_path) not in text and "warped" not in facts


def as_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize("size", [25, 33, (40, 30)])
def test_frames_are_those_of_a_run_that_decodes_the_video_but_for_the_jpeg(
    size: int | tuple[int, int], interpolation: str, tmp_path: Path
) -> None:
    """Also where the other side falls between two pixels: 37 and 48.84 of a width of 74."""
    video = video_of(encode(tmp_path / "v.avi", moving(3, height=50, width=74), codec="mpeg4"), "v")
    tsn = load_protocol("tsn-eccv16").streams[0]
    frames = tsn.frames.model_copy(update={"resize": size, "interpolation": interpolation})
    reader = StreamReader(tsn.model_copy(update={"frames": frames}))
    out = tmp_path / "out"
    assert extract([video], out, what=["rgb"], size=size, interpolation=interpolation, quality=90, **FAST) == []
    kept = reader.open(video, decoder="pyav", extracted=str(out))
    decoded = reader.open(video, decoder="pyav", extracted=None)
    with kept, decoded:
        one, other = (reader.read(each, np.arange(3))["rgb"] for each in (kept, decoded))
    np.testing.assert_array_equal(one, np.stack([as_jpeg(picture, 90) for picture in other]))
    resized = ExtractedVideo(out / "v").facts["resize"]
    assert resized.startswith("opencv ") and resized.endswith(f" {interpolation}")


def test_the_smoothing_resize_is_pillows(clip: Video, tmp_path: Path) -> None:
    extract([clip], tmp_path / "out", what=["rgb"], size=16, interpolation="antialiased", quality=100, **FAST)
    extracted = ExtractedVideo(tmp_path / "out" / clip.name)
    expected = np.asarray(Image.fromarray(read_video(clip.path)[2]).resize((21, 16), Image.Resampling.BILINEAR))
    weights = [0.299, 0.587, 0.114]
    assert np.abs(extracted.frames([2])[0] @ weights - expected @ weights).max() < 8
    assert "antialiasing" in extracted.facts["resize"]


def test_flow_and_warped_flow_are_estimated_from_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same pictures as apart, with two estimates a pair in place of three: the camera moves."""
    scene = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13), np.uint8)).resize((96, 64), 3)
    )
    video = np.repeat(np.stack([scene[8:56, 2 * t : 2 * t + 64] for t in range(4)])[..., None], 3, axis=3)
    clip = video_of(encode(tmp_path / "pan.avi", video, codec="mpeg4"), "pan")
    calls = []

    def counted(one: np.ndarray, other: np.ndarray, *, method: str, spacing: Any = (1, 1)) -> np.ndarray:
        calls.append(method)
        return flow.estimate_flow(one, other, method=method, spacing=spacing)

    monkeypatch.setattr(extraction, "estimate_flow", counted)
    monkeypatch.setattr(drift, "estimate_flow", counted)
    for parts, estimates in ((["flow"], 3), (["warped"], 6), (["flow", "warped"], 6)):
        calls.clear()
        extract([clip], tmp_path / "-".join(parts), what=parts, **FAST)
        assert len(calls) == estimates
    both, apart = (
        {path.name: path.read_bytes() for name in names for path in (tmp_path / name / "pan").glob("*.jpg")}
        for names in (["flow-warped"], ["flow", "warped"])
    )
    assert both == apart and len(both) == 12


@settings(max_examples=60, deadline=None)
@given(
    displacement=st.floats(-60, 60, width=32),
    bound=st.sampled_from([5.0, 15.0, 20.0]),
)
def test_displacements_survive_8_bits(displacement: float, bound: float) -> None:
    back = float(from_pictures(to_pictures(np.array([displacement]), bound=bound), bound=bound)[0])
    assert abs(back - np.clip(displacement, -bound, bound)) <= bound / 127.5 * 1.001
    assert to_pictures(np.zeros(1), bound=bound)[0] == 128


def test_a_second_run_does_nothing_and_flow_is_added_to_frames(
    clip: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folder = out / clip.name
    extract([clip], out, what=["rgb"], size=32, **FAST)
    before = state(folder)
    assert set(before) == {"extraction.json", *(f"img_{n:05d}.jpg" for n in range(1, 6))}
    assert extract([clip], out, what=["flow"], size=32, **FAST) == []
    after = state(folder)
    assert {name: value for name, value in after.items() if name.startswith("img")} == {
        name: value for name, value in before.items() if name.startswith("img")
    }
    assert ExtractedVideo(folder).flow([0]).shape == (1, 2, 32, 43)
    assert ExtractedVideo(folder).facts["rgb"] and ExtractedVideo(folder).facts["flow"]

    monkeypatch.setattr(extraction, "open_video", None)  # Nothing is decoded again.
    assert extract([clip], out, what=["rgb", "flow"], size=32, **FAST) == []
    assert state(folder) == after


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": 24}, "another size"),
        ({"quality": 60}, "another quality of rgb"),
        ({"bound": 10}, "another bound of flow"),
        ({"estimator": "farneback"}, "another method of flow"),
        ({"decoder": "opencv"}, "another decoder"),
        ({"interpolation": "area"}, "another interpolation"),
    ],
)
def test_other_settings_are_a_problem_unless_overwriting(
    changed: dict[str, Any], words: str, clip: Video, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    how = {"size": 32, **FAST}
    extract([clip], out, **how)  # type: ignore[arg-type]
    before = state(out / clip.name)
    (problem,) = extract([clip], out, **{**how, **changed})  # type: ignore[arg-type]
    assert words in problem.reason and problem.remedy and problem.where == clip.name
    assert state(out / clip.name) == before
    assert extract([clip], out, overwrite=True, **{**how, **changed}) == []  # type: ignore[arg-type]
    assert extract([clip], out, **{**how, **changed}) == []  # type: ignore[arg-type]


def test_a_video_that_changed_is_told_and_made_anew_when_overwriting(clip: Video, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract([clip], out, **FAST)
    encode(clip.path, moving(3), codec="mpeg4")
    (problem,) = extract([clip], out, **FAST)
    assert "another source" in problem.reason
    assert extract([clip], out, what=["rgb"], overwrite=True, **FAST) == []
    names = set(state(out / clip.name))
    assert names == {"extraction.json", "img_00001.jpg", "img_00002.jpg", "img_00003.jpg"}  # No flow of the old one.


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_video_is_told_and_the_others_are_done(jobs: int, clip: Video, tmp_path: Path) -> None:
    bad = tmp_path / "bad.avi"
    bad.write_text("no video")
    videos = [video_of(bad, "Run/v_bad"), clip, video_of(tmp_path / "absent.avi", "Run/v_absent")]
    problems = extract(videos, tmp_path / "out", estimator="dis", jobs=jobs)
    assert [(problem.where, problem.code) for problem in problems] == [
        ("Run/v_bad", "video-unreadable"),
        ("Run/v_absent", "video-missing"),
    ]
    assert ExtractedVideo(tmp_path / "out" / clip.name).length == 5
    assert not (tmp_path / "out" / "Run" / "v_bad").exists() and not list(tmp_path.rglob("*.tmp"))


def test_an_extraction_that_is_interrupted_leaves_nothing_that_looks_complete(
    clip: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    extract([clip], out, what=["rgb"], **FAST)
    save, saved = extraction._save, []

    def stop(path: Path, picture: np.ndarray, quality: int) -> None:
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, picture, quality)

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            extract([clip, video_of(clip.path, "other")], out, what=["flow"], **FAST)
    assert ExtractedVideo(out / clip.name).frames([4]).shape == (1, 48, 64, 3)
    with pytest.raises(DataError, match="'flow' was not extracted, only rgb"):
        ExtractedVideo(out / clip.name).flow([0])
    with pytest.raises(DataError, match=r"the folder has no extraction\.json"):
        ExtractedVideo(out / "other")
    (out / "other.tmp").mkdir()  # As a run leaves it that was killed.
    (out / "other.tmp" / "img_00099.jpg").touch()
    assert extract([clip, video_of(clip.path, "other")], out, **FAST) == []
    assert ExtractedVideo(out / clip.name).flow([3]).shape == (1, 2, 48, 64)
    assert len(list((out / "other").glob("img_*"))) == 5 and not (out / "other.tmp").exists()


def test_a_full_disk_and_a_missing_decoder_end_the_run(
    clip: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "_save", full)
        with pytest.raises(StoreError, match="the disk is full"):
            extract([clip], tmp_path / "out", **FAST)

    def absent(*_: object, **__: object) -> None:
        raise DataError("decoder 'pyav' cannot be used.", code="video-package")

    monkeypatch.setattr(extraction, "open_video", absent)
    with pytest.raises(DataError, match="cannot be used"):
        extract([clip], tmp_path / "out", **FAST)


def test_a_folder_of_frames_is_extracted_too(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, picture in enumerate(moving(3), start=1):
        Image.fromarray(picture).save(frames / f"img_{number:05d}.png")
    video = video_of(frames, "v")
    for _ in range(2):
        assert extract([video], tmp_path / "out", size=(20, 30), **FAST) == []
    facts = ExtractedVideo(tmp_path / "out" / "v").facts
    assert facts["decoder"] == "frames" and facts["frame_rate"] is None and facts["size"] == [20, 30]
    assert facts["source"]["files"] == 3


def test_a_video_of_one_frame_has_no_flow(tmp_path: Path) -> None:
    video = video_of(encode(tmp_path / "one.avi", moving(1), codec="mpeg4"), "one")
    assert extract([video], tmp_path / "out", **FAST) == []
    extracted = ExtractedVideo(tmp_path / "out" / "one")
    assert extracted.frames([0, 0]).shape == (2, 48, 64, 3)
    with pytest.raises(DataError, match="number 0 of 'flow' is asked for, of 0"):
        extracted.flow([0])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"what": ["depth"]}, "what must be some of rgb, flow, warped; got depth"),
        ({"what": []}, "got nothing"),
        ({"size": 0}, "size must be"),
        ({"size": (240, 320, 3)}, "size must be"),
        ({"quality": 101}, "quality must be from 1 to 100; got 101"),
        ({"bound": 0.0}, "bound must be"),
        ({"decoder": "decord"}, "decoder must be one of"),
        ({"estimator": "raft"}, "method must be one of"),
        (
            {"interpolation": "nearest"},
            "interpolation must be one of bilinear, bicubic, area, antialiased; got nearest",
        ),
        ({"jobs": 0}, "jobs must be"),
    ],
)
def test_values_that_cannot_be_used_are_told_before_anything_is_done(
    wrong: dict[str, Any], words: str, clip: Video, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        extract([clip], tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_names_that_meet_or_leave_the_folder_are_told(clip: Video, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two videos have the name"):
        extract([clip, clip], tmp_path / "out")
    for name in ("../v", "/v", ""):
        with pytest.raises(DataError, match="is no place inside of the output folder"):
            extract([video_of(clip.path, name)], tmp_path / "out")


def test_a_picture_that_is_missing_or_of_another_size_is_named(clip: Video, tmp_path: Path) -> None:
    extract([clip], tmp_path / "out", **FAST)
    folder = tmp_path / "out" / clip.name
    extracted = ExtractedVideo(folder)
    (folder / "flow_y_00002.jpg").unlink()
    with pytest.raises(DataError, match=r"flow_y_00002\.jpg: the picture cannot be read"):
        extracted.flow([1])
    Image.fromarray(moving(1, height=40)[0]).save(folder / "img_00003.jpg")
    with pytest.raises(DataError, match=r"img_00003\.jpg: the picture is 64 x 40 pixels, not 64 x 48"):
        extracted.frames([2])


def test_what_another_tool_left_is_not_replaced(clip: Video, tmp_path: Path) -> None:
    """Neither in the place of the folder to come, nor where TSN's tools put it, whatever is asked for."""
    for name in (clip.name, "v_clip"):
        left = tmp_path / name.replace("/", "-") / name / "img_00001.jpg"
        left.parent.mkdir(parents=True)
        Image.fromarray(moving(1)[0]).save(left)
        (problem,) = extract([clip], tmp_path / name.replace("/", "-"), overwrite=True, **FAST)
        assert problem.code == "extraction-foreign" and "Extract to another folder" in problem.remedy
        assert [path.name for path in left.parent.iterdir()] == ["img_00001.jpg"]


def test_a_folder_that_is_replaced_is_whole_until_then(
    clip: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run leaves it that was killed before the old pictures were gone."""
    out = tmp_path / "out"
    extract([clip], out, what=["rgb"], **FAST)

    def killed(folder: Path) -> None:
        if (folder / "img_00001.jpg").exists() and (folder.parent / "v_clip.old.tmp").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "_finish_removal", killed)
        with pytest.raises(KeyboardInterrupt):
            extract([clip], out, what=["rgb"], size=24, overwrite=True, **FAST)
    assert len(list((out / "Walk" / "v_clip.old.tmp").iterdir())) == 6  # Moved as a whole: five frames and the facts.
    assert ExtractedVideo(out / clip.name).facts["size"] == [24, 32]
    assert extract([clip], out, what=["rgb"], size=24, **FAST) == []
    assert [path.name for path in (out / "Walk").iterdir()] == ["v_clip"]
    assert ExtractedVideo(out / clip.name).frames([0]).shape == (1, 24, 32, 3)


def test_flow_of_other_slices_is_refused() -> None:
    slices = np.zeros((2, 20, 30), np.float32)
    with pytest.raises(DataError, match=r"has shape \(2, 20, 30\), got \(2, 30, 20\)"):
        drift.warped_flow(*slices, method="dis", flow=np.zeros((2, 30, 20), np.float32))
