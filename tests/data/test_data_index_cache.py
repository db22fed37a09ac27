from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.data.header_cache import HeaderCache, cache_folder, decode_scans, encode_scans
from volrec.errors import Problem
from volrec.io import FileScan, Header

ROOT = Path("/data/root")


def _scan(relative: str, *, frames: int = 1, size: int = 10, mtime_ns: int = 5, **values: object) -> FileScan:
    path = f"{ROOT}/{relative}"
    headers = tuple(
        Header(path, size, mtime_ns, frame=frame, frames=frames, position=(0.0, 0.5, float(frame)), **values)  # type: ignore[arg-type]
        for frame in range(frames)
    )
    return FileScan(path, size, mtime_ns, "dicom", headers)


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udcdf"), max_size=6)
numbers = st.none() | st.integers(-5, 5)
reals = st.none() | st.floats(allow_nan=False)
headers = st.builds(
    Header,
    path=st.just(""),
    frame=st.integers(0, 3),
    series_uid=texts,
    image_type=st.lists(texts, max_size=3).map(tuple),
    position=st.none() | st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9)),
    signed=st.booleans(),
    slope=st.floats(0.1, 3) | st.just(1.0),
    padding=numbers,
    padding_limit=st.sampled_from([0, 0.0, 1, 1.0, True]),  # equal, and yet not the same
    b_value=reals,
    echo_number=st.sampled_from([0, 1, None]),
    affine=st.none() | st.lists(st.floats(-2, 2), min_size=2, max_size=2).map(tuple),
    notes=st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
)
problems = st.none() | st.builds(Problem, texts, texts, texts, texts, fatal=st.booleans())


@given(
    st.lists(
        st.tuples(st.lists(headers, max_size=4), problems, st.sampled_from(["dicom", "nifti", "other"])), max_size=6
    )
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_comes_back(files: list[tuple[list[Header], Problem | None, str]]) -> None:
    scans = []
    for number, (found, problem, kind) in enumerate(files):
        path = f"{ROOT}/f{number}"
        mine = tuple(dataclasses.replace(header, path=path, size=number, mtime_ns=7) for header in found)
        scans.append((f"f{number}", FileScan(path, number, 7, kind, mine, problem)))  # type: ignore[arg-type]
    back = decode_scans(encode_scans(scans), ROOT)
    assert back == scans
    # 1 == 1.0 == True: equality alone would not notice a changed type.
    for (_, old), (_, new) in zip(scans, back, strict=True):
        for one, other in zip(old.headers, new.headers, strict=True):
            assert json.dumps(one.to_json()) == json.dumps(other.to_json())


def test_facts_that_files_share_are_stored_and_held_once() -> None:
    scans = [
        (f"{n}.dcm", _scan(f"{n}.dcm", series_uid="1.2.3" * 10, image_type=("ORIGINAL", "PRIMARY"))) for n in range(50)
    ]
    payload = encode_scans(scans)
    assert payload.count("1.2.3" * 10) == 1
    back = decode_scans(payload, ROOT)
    assert len({id(scan.headers[0].image_type) for _, scan in back}) == 1


def _fill(cache: HeaderCache, names: list[str], **values: object) -> None:
    with cache.writer() as out:
        for name in names:
            out.add(encode_scans([(name, _scan(name, **values))]))  # type: ignore[arg-type]


def _files(names: list[str]) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(names, (10, 5))


def test_only_unchanged_files_are_known(tmp_path: Path) -> None:
    _fill(HeaderCache(ROOT, folder=tmp_path), ["a", "b", "c", "d"])
    now = {"a": (10, 5), "b": (11, 5), "c": (10, 6)}
    assert set(HeaderCache(ROOT, folder=tmp_path).load(now)) == {"a"}


def test_another_root_has_another_cache(tmp_path: Path) -> None:
    _fill(HeaderCache(ROOT, folder=tmp_path), ["a"])
    assert HeaderCache(Path("/data/other"), folder=tmp_path).load(_files(["a"])) == {}


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty", "binary"])
def test_damage_costs_the_damaged_lines_alone_and_is_mended(tmp_path: Path, damage: str) -> None:
    names = [f"f{number}" for number in range(6)]
    cache = HeaderCache(ROOT, folder=tmp_path)
    _fill(cache, names)
    (part,) = cache.folder.iterdir()
    content = part.read_bytes()
    middle = content.index(b"f3")
    part.write_bytes(
        {
            "cut": content[: len(content) - 40],
            "flip": content[:middle] + b"f9" + content[middle + 2 :],
            "garbage": content + b"deadbeef {]\n",
            "empty": b"",
            "binary": os.urandom(3000),
        }[damage]
    )
    again = HeaderCache(ROOT, folder=tmp_path)
    known = again.load(_files([*names, "f9"]))
    lost = {"cut": {"f5"}, "flip": {"f3"}, "garbage": set(), "empty": set(names), "binary": set(names)}[damage]
    assert set(known) == set(names) - lost
    complete = {name: _scan(name) for name in names}
    _fill(again, sorted(lost))
    again.tidy(complete, added=len(lost))
    (mended,) = cache.folder.iterdir()
    assert mended.name != part.name
    assert HeaderCache(ROOT, folder=tmp_path).load(_files(names)) == complete


def test_a_killed_scan_keeps_what_it_read(tmp_path: Path) -> None:
    cache = HeaderCache(ROOT, folder=tmp_path)
    out = cache.writer()
    for name in ("a", "b"):
        out.add(encode_scans([(name, _scan(name))]))
    # Neither closed nor renamed: the process is gone. The last line may have been cut as well.
    (part,) = cache.folder.iterdir()
    part.write_bytes(part.read_bytes() + b'0badc0de {"path":["c')
    assert set(HeaderCache(ROOT, folder=tmp_path).load(_files(["a", "b", "c"]))) == {"a", "b"}


def test_an_interrupted_block_keeps_its_lines(tmp_path: Path) -> None:
    def interrupted() -> None:
        with HeaderCache(ROOT, folder=tmp_path).writer() as out:
            out.add(encode_scans([("a", _scan("a"))]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(HeaderCache(ROOT, folder=tmp_path).load(_files(["a"]))) == {"a"}


def test_several_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    with HeaderCache(ROOT, folder=tmp_path).writer() as one, HeaderCache(ROOT, folder=tmp_path).writer() as other:
        for name in "abc":
            one.add(encode_scans([(name, _scan(name))]))
            other.add(encode_scans([(name.upper(), _scan(name.upper()))]))
    assert set(HeaderCache(ROOT, folder=tmp_path).load(_files(list("abcABC")))) == set("abcABC")


def test_tidying_leaves_the_file_of_a_scan_that_is_still_running(tmp_path: Path) -> None:
    running = HeaderCache(ROOT, folder=tmp_path).writer()
    running.add(encode_scans([("a", _scan("a"))]))
    cache = HeaderCache(ROOT, folder=tmp_path)
    known = cache.load(_files(["a"]))
    cache.tidy(known, added=0, replace=True)
    running.add(encode_scans([("b", _scan("b"))]))
    running.__exit__(None, None, None)
    assert set(HeaderCache(ROOT, folder=tmp_path).load(_files(["a", "b"]))) == {"a", "b"}


def test_scattered_and_stale_lines_are_written_anew(tmp_path: Path) -> None:
    for number in range(10):
        _fill(HeaderCache(ROOT, folder=tmp_path), [f"f{number}"])
    cache = HeaderCache(ROOT, folder=tmp_path)
    names = [f"f{number}" for number in range(5)]
    known = cache.load(_files(names))
    cache.tidy(known, added=0)
    assert len(list(cache.folder.iterdir())) == 1
    assert set(HeaderCache(ROOT, folder=tmp_path).load(_files([f"f{n}" for n in range(10)]))) == set(names)


def test_what_other_code_read_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(HeaderCache(ROOT, folder=tmp_path), ["a"])
    monkeypatch.setattr("volrec.data.header_cache.HEADER_SCHEMA", 10_000)
    assert HeaderCache(ROOT, folder=tmp_path).load(_files(["a"])) == {}


def test_a_cache_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "headers").write_text("a file where the folder should be")
    cache = HeaderCache(ROOT, folder=tmp_path)
    assert cache.load(_files(["a"])) == {}
    _fill(cache, ["a", "b"])
    assert caplog.text.count("cannot be written") == 1


def test_nothing_in_a_line_can_run_code(tmp_path: Path) -> None:
    _fill(HeaderCache(ROOT, folder=tmp_path), ["a"])
    (part,) = HeaderCache(ROOT, folder=tmp_path).folder.iterdir()
    _, *lines = part.read_text("ascii").splitlines()
    assert all(isinstance(json.loads(line.partition(" ")[2]), dict) for line in lines)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VOLREC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("VOLREC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "volrec"
