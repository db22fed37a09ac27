"""What the folders of a run say of their extraction, counted, and where it is not what the streams ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from videos import encode, moving

from volrec.benchmarks.conditions import condition_deviations, condition_notes, conditions
from volrec.benchmarks.extraction import extract
from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.sets.common import Video
from volrec.config import StreamProtocol


def stream(name: str, resize: Any = None, **motion: Any) -> StreamProtocol:
    own = next(one for one in load_protocol("tsn-eccv16").streams if one.reads == [name])
    changed: dict[str, Any] = {"frames": own.frames.model_copy(update={"resize": resize})}
    if own.motion is not None:
        changed["motion"] = own.motion.model_copy(update={"estimator": "dis", **motion})
    return own.model_copy(update=changed)


@pytest.fixture
def videos(tmp_path: Path) -> list[Video]:
    path = encode(tmp_path / "clip.avi", moving(3), codec="mpeg4")
    return [Video(name=f"Walk/v_{number}", path=path, labels=(0,)) for number in range(4)]


def by_others(root: Path, name: str) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    for prefix in ("img", "flow_x", "flow_y"):
        for number in (1, 2):
            shape = (40, 60, 3) if prefix == "img" else (40, 60)
            Image.fromarray(np.zeros(shape, np.uint8)).save(folder / f"{prefix}_{number:05d}.jpg")


def test_conditions_count_what_folders_say(videos: list[Video], tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(videos[:1], out, estimator="dis", jobs=1)
    extract(videos[1:2], out, estimator="farneback", bound=15, quality=80, size=24, jobs=1)
    by_others(out, "v_2")
    found = conditions(out, videos)
    assert json.loads(json.dumps(found)) == found
    assert (found["folders"], found["missing"], found["unreadable"], found["other_tools"]) == (3, 1, 0, 1)
    facts = [json.loads((out / video.name / "extraction.json").read_text()) for video in videos[:2]]
    assert found["decoder"] == {f"pyav {facts[0]['decoder_version']}": 2, "not said": 1}
    assert found["order"] == {"decode, resize, flow": 2, "not said": 1}
    assert found["resize"] == {facts[1]["resize"]: 1, "none": 1, "not said": 1}
    assert found["rgb"]["size"] == {"24 x 32": 1, "40 x 60": 1, "48 x 64, as decoded": 1}
    assert found["flow"]["quality"] == {"80": 1, "95": 1, "not said": 1}
    assert found["flow"]["method"] == {"dis": 1, "farneback": 1, "not said": 1}
    assert set(found["flow"]["estimator"]) == {*(each["flow"]["estimator"] for each in facts), "not said"}
    assert found["flow"]["bound"] == {"15": 1, "20": 1, "20, not said": 1}
    assert found["notes"] == {"as many fields as frames": 1, "bound of flow not said: 20 taken": 1}
    notes = " ".join(condition_notes(found))
    for words in (
        "Extracted pictures of 3 videos: 1 left by other tools",
        "missing: 1 video",
        "farneback",
        '"levels": 5',
    ):
        assert words in notes


def test_an_extraction_as_the_streams_ask_is_no_deviation(videos: list[Video], tmp_path: Path) -> None:
    extract(videos, tmp_path / "out", size=24, estimator="dis", jobs=1)
    found = conditions(tmp_path / "out", videos)
    for size in (24, (24, 32)):
        assert condition_deviations(found, [stream("rgb", size), stream("flow", size)]) == []


def test_frames_of_full_size_are_no_deviation_but_flow_estimated_on_them_is(
    videos: list[Video], tmp_path: Path
) -> None:
    extract(videos, tmp_path / "out", estimator="dis", jobs=1)
    found = conditions(tmp_path / "out", videos)
    (one,) = condition_deviations(found, [stream("rgb", (24, 32)), stream("flow", (24, 32))])
    assert (one.field, one.paper, one.here) == (
        "streams.flow.frames.resize",
        [24, 32],
        "48 x 64, as decoded (4 videos)",
    )
    assert condition_deviations(found, [stream("rgb"), stream("flow")]) == []


def test_what_differs_is_told_with_the_number_of_videos(videos: list[Video], tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(videos[:2], out, size=24, estimator="farneback", bound=15, quality=80, jobs=1)
    extract(videos[2:3], out, estimator="dis", jobs=1)
    by_others(out, "v_3")
    found = conditions(out, videos)
    told = {
        one.field: (one.paper, one.here) for one in condition_deviations(found, [stream("rgb", 32), stream("flow")])
    }
    assert told == {
        "streams.rgb.frames.resize": (32, "24 x 32 (2 videos); 40 x 60 (1 video)"),
        "streams.rgb.pictures.quality": (95, "80 (2 videos); not said (1 video)"),
        "streams.flow.frames.resize": (None, "24 x 32 (2 videos); 40 x 60 (1 video)"),
        "streams.flow.pictures.quality": (95, "80 (2 videos); not said (1 video)"),
        "streams.flow.motion.estimator": ("dis", "farneback (2 videos); not said (1 video)"),
        "streams.flow.motion.bound": (20, "15 (2 videos); 20, not said (1 video)"),
    }


def test_nothing_extracted_says_nothing(videos: list[Video], tmp_path: Path) -> None:
    found = conditions(tmp_path / "absent", videos)
    assert found["missing"] == 4 and condition_notes(found) == [] and condition_deviations(found, [stream("rgb")]) == []
    (tmp_path / "out" / videos[0].name).mkdir(parents=True)
    assert conditions(tmp_path / "out", videos)["unreadable"] == 1
