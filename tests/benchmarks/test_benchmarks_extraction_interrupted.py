"""An extraction over processes that is killed, stopped, or loses a worker: nothing half done, and it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from videos import encode, moving

from volrec.benchmarks.extracted import ExtractedVideo
from volrec.benchmarks.extraction import extract
from volrec.benchmarks.sets.common import Video

FRAMES, VIDEOS = 6, 9

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
from pathlib import Path
from volrec.benchmarks.extraction import extract
from volrec.benchmarks.sets.common import Video
clip, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
videos = [Video(name=f"Walk/v_{n}", path=clip, labels=(0,)) for n in range(count)]
print(extract(videos, out, estimator="farneback", size=(240, 320), jobs=2))
"""


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that map their work, not the one that tracks resources."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"loky" in command and b"resource_tracker" not in command:
                found.append(int(child))
    return found


def wait_for(done: Callable[[], object], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "nothing was begun"
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
@pytest.mark.parametrize("end", ["kill all", "Ctrl-C", "kill a worker"])
def test_an_extraction_that_ends_early_leaves_nothing_half_done_and_goes_on(end: str, tmp_path: Path) -> None:
    clip = encode(tmp_path / "clip.avi", moving(FRAMES), codec="mpeg4")
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(clip), str(out), str(VIDEOS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        # A video is done, and another one in the making.
        wait_for(lambda: list(out.glob("Walk/v_?/extraction.json")) and list(out.glob("Walk/*.tmp/flow_y_*.jpg")))
        if end == "kill a worker":
            os.kill(children(process.pid)[0], signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL if end == "kill all" else signal.SIGINT)
        told, _ = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert (process.returncode == 0) == (end == "kill a worker")
    if end == "kill a worker":
        assert told.strip() == "[]"  # What it was at is tried again.
    # A worker that was ended in the midst of a video leaves a folder ".tmp", which nobody takes for a finished one.
    there = [folder for folder in (out / "Walk").iterdir() if folder.suffix != ".tmp"]
    assert there
    if end != "kill a worker":
        assert len(there) < VIDEOS
    for folder in there:
        check(folder)
    before = {folder: (folder / "extraction.json").stat().st_mtime_ns for folder in there}

    videos = [Video(name=f"Walk/v_{n}", path=clip, labels=(0,)) for n in range(VIDEOS)]
    assert extract(videos, out, estimator="farneback", size=(240, 320), jobs=1) == []
    assert sorted(folder.name for folder in (out / "Walk").iterdir()) == [f"v_{n}" for n in range(VIDEOS)]
    for folder in (out / "Walk").iterdir():
        check(folder)
    assert before == {folder: (folder / "extraction.json").stat().st_mtime_ns for folder in there}  # Not done twice.


def check(folder: Path) -> None:
    """A folder holds all pictures, and they are whole."""
    extracted = ExtractedVideo(folder)
    assert len(list(folder.iterdir())) == 3 * FRAMES - 1
    assert extracted.frames(range(FRAMES)).shape == (FRAMES, 240, 320, 3)
    assert np.isfinite(extracted.flow(range(FRAMES - 1))).all()
