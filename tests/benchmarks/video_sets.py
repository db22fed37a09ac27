"""Video data sets of full size without a video: lists with the published counts, and empty files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

UCF_TESTED = (3783, 3734, 3696, 2107)
"""Videos in groups 1-7, 8-14, 15-21 and 22-25 of all classes: what the three test lists hold, and the rest."""


def touch(root: Path, names: Iterable[str]) -> None:
    """Create empty files."""
    folders = set()
    for name in names:
        path = root / name
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        path.touch()


def write_lines(path: Path, lines: Iterable[str], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def ucf_classes() -> list[str]:
    return sorted(["HandstandPushups", *(f"Action{place:03d}" for place in range(100))])


def ucf_names(classes: Iterable[str] | None = None, totals: tuple[int, ...] = UCF_TESTED) -> list[str]:
    """Names as the lists of UCF101 have them: 25 groups a class, as many clips in each block of groups as it takes."""
    classes = ucf_classes() if classes is None else list(classes)
    names = []
    for block, total in enumerate(totals):
        groups = [(name, group) for name in classes for group in range(7 * block + 1, min(7 * block + 8, 26))]
        each, more = divmod(total, len(groups))
        for place, (name, group) in enumerate(groups):
            spelt = name.replace("Handstand", "HandStand")
            names += [f"{name}/v_{spelt}_g{group:02d}_c{clip + 1:02d}.avi" for clip in range(each + (place < more))]
    return names


def ucf_group(name: str) -> int:
    return int(name.rsplit("_g", 1)[1][:2])


def write_ucf_lists(folder: Path, names: list[str] | None = None, classes: list[str] | None = None) -> Path:
    """Write classInd and the six lists as the authors ship them."""
    classes = ucf_classes() if classes is None else classes
    names = ucf_names() if names is None else names
    numbers = {name: place + 1 for place, name in enumerate(classes)}
    write_lines(folder / "classInd.txt", (f"{number} {name}" for name, number in numbers.items()), "\r\n")
    for split in (1, 2, 3):
        tested = [name for name in names if (ucf_group(name) - 1) // 7 + 1 == split]
        learned = [f"{name} {numbers[name.split('/')[0]]}" for name in names if (ucf_group(name) - 1) // 7 + 1 != split]
        write_lines(folder / f"trainlist{split:02d}.txt", learned, "\r\n")
        write_lines(folder / f"testlist{split:02d}.txt", tested, "\r\n")
    return folder


HMDB_CLASSES = [
    *("climb", "climb_stairs", "kick", "kick_ball", "sword", "sword_exercise"),
    *(f"move_{place:02d}" for place in range(45)),
]


def hmdb_names(name: str, count: int) -> list[str]:
    """File names of a class; three clips a source, and characters as the set has them."""
    return [f"Source!_[{clip // 3}]_&_(x)__{name}_{name}_u_cm_np1_ba_goo_{clip % 3}.avi" for clip in range(count)]


def write_hmdb_lists(folder: Path, end: str = " \r\n") -> list[str]:
    """Write the 153 files: 70 train, 30 test, and 1,666 in neither over the 51 classes; return "class/file"."""
    each, more = divmod(1666, 51)
    listed = []
    for place, name in enumerate(HMDB_CLASSES):
        files = hmdb_names(name, 100 + each + (place < more))
        listed += [f"{name}/{file}" for file in files]
        for split in (1, 2, 3):
            turned = files[10 * split :] + files[: 10 * split]
            flags = [1] * 70 + [2] * 30 + [0] * (len(files) - 100)
            lines = [f"{file} {flag}" for file, flag in zip(turned, flags, strict=True)]
            write_lines(folder / f"{name}_test_split{split}.txt", lines, end)
    return listed
