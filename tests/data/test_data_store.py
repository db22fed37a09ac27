"""The store: what is read is what was decoded, and nothing that happens to it is believed unseen."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from studies import write_study

from volrec import files
from volrec.config import PreprocessConfig
from volrec.data import entries as entries_module
from volrec.data import store as store_module
from volrec.data.entries import locked, remove_leftovers, study_quantiles
from volrec.data.store import Store
from volrec.errors import ConfigError, StoreError
from volrec.io import Series, assemble, read_series, scan_file
from volrec.transforms.preprocess import preprocess_array

PLAIN = PreprocessConfig()


def nifti(path: Path, *, shape: tuple[int, int, int] = (9, 8, 5), kind: Any = np.int16, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(kind)
    if kind == np.float32:
        values += np.float32(0.25)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.7, 0.8, 3.0, 1.0])), path)
    return path


def series_of(*paths: Path) -> list[Series]:
    headers = [header for path in paths for header in scan_file(path).headers]
    found, problems = assemble(headers, root=paths[0].parent)
    assert not [problem for problem in problems if problem.fatal]
    return sorted(found, key=lambda series: series.uid)


@pytest.fixture
def three(tmp_path: Path) -> list[Series]:
    return series_of(*(nifti(tmp_path / "source" / f"s{n}.nii.gz", seed=n) for n in range(3)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Uids of the series that are decoded in this process."""
    seen: list[str] = []

    def counted(series: Series, **options: Any) -> Any:
        seen.append(series.uid)
        return read_series(series, **options)

    monkeypatch.setattr(store_module, "read_series", counted)
    return seen


def again(store: Store) -> Store:
    """Return the store as a new process sees it."""
    return Store(store.folder, format=store.format, verify=store.verify)  # type: ignore[arg-type]


def leftovers(store: Store) -> list[Path]:
    return list(store.folder.glob("??/*.tmp"))


# What is stored


@pytest.mark.parametrize("kind", [np.int16, np.float32])
@pytest.mark.parametrize(
    "preprocess",
    [PLAIN, PreprocessConfig(spacing=(2.0, None, 1.1), canvas=(8, 12, 6)), PreprocessConfig(slice_axis="sagittal")],
)
def test_an_entry_is_the_decoded_preprocessed_series(
    tmp_path: Path, store: Store, kind: Any, preprocess: PreprocessConfig
) -> None:
    (series,) = series_of(nifti(tmp_path / "a.nii.gz", kind=kind))
    found, problems = store.fill([series], preprocess)
    assert problems == []
    stored = store.open(found[series.uid])
    volume = read_series(series, slice_axis=preprocess.slice_axis)
    array, affine = preprocess_array(
        volume.array[0], volume.affine, spacing=preprocess.spacing, canvas=preprocess.canvas
    )
    assert isinstance(stored.array, np.memmap)
    assert stored.dtype == kind
    assert stored.shape == array.shape == found[series.uid].shape
    np.testing.assert_array_equal(stored.read(), array)
    np.testing.assert_allclose(stored.affine, affine)
    expected = np.quantile(volume.array.astype(np.float64), np.linspace(0, 1, 1001))
    np.testing.assert_allclose(stored.quantiles, expected, rtol=1e-5, atol=1e-4)
    assert stored.meta["source_shape"] == list(volume.array.shape[1:])
    np.testing.assert_array_equal(stored.meta["source_affine"], volume.affine)
    assert stored.meta["slice_axis"] == volume.slice_axis


def test_whole_numbers_of_small_range_keep_their_fractions_when_resampled(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "narrow.nii.gz"
    values = np.arange(9)[:, None, None] * np.ones((9, 8, 5))
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([1, 1, 3, 1])), path)
    (series,) = series_of(path)
    for preprocess, kind in ((PLAIN, "int16"), (PreprocessConfig(spacing=(None, None, 0.5)), "float32")):
        stored = store.open(store.fill([series], preprocess)[0][series.uid])
        assert stored.dtype == kind
    assert (stored.read() % 1 > 0.1).any()


def test_dicom_series_are_stored_too(tmp_path: Path, store: Store) -> None:
    paths = write_study(tmp_path / "ct", slices=7)
    (series,) = series_of(*paths)
    stored = store.open(store.fill([series], PLAIN)[0][series.uid])
    np.testing.assert_array_equal(stored.read(), read_series(series).array[0])
    assert b"Doe" not in b"".join(path.read_bytes() for path in store.folder.rglob("*") if path.is_file())


def test_slices_are_read_in_any_order_with_repeats(three: list[Series], store: Store) -> None:
    stored = store.open(store.fill(three, PLAIN)[0][three[0].uid])
    whole = stored.read()
    part = stored.read([4, 0, 0, 3])
    np.testing.assert_array_equal(part, whole[[4, 0, 0, 3]])
    part += 1
    np.testing.assert_array_equal(stored.read(), whole)
    for wrong in ([5], [-1]):
        with pytest.raises(IndexError, match="of a stack of 5"):
            stored.read(wrong)


def test_quantiles_of_large_studies_come_from_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(size=(20, 64, 64)).astype(np.float32)
    # A pattern along W: a step that keeps to some columns would miss the others.
    array[:, :, ::2] += 100
    exact = study_quantiles(array)
    monkeypatch.setattr(entries_module, "SAMPLE", array.size // 8)
    sampled = study_quantiles(array)
    np.testing.assert_array_equal(sampled, study_quantiles(array))
    assert np.abs(sampled - exact)[[100, 300, 700, 900]].max() < 0.1
    assert not np.array_equal(sampled, exact)


# When it is decoded


def test_a_second_fill_decodes_nothing(three: list[Series], store: Store, decoded: list[str]) -> None:
    first, _ = store.fill(three, PLAIN)
    assert sorted(decoded) == [series.uid for series in three]
    decoded.clear()
    second, problems = again(store).fill([*three, three[0]], PLAIN)
    assert decoded == []
    assert second == first
    assert problems == []


def test_the_key_changes_with_all_that_determines_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    (series,) = series_of(path)
    store = Store(tmp_path)
    keys = [store.key(series, PLAIN)]
    assert store.key(series, PreprocessConfig()) == keys[0]
    changes: list[dict[str, Any]] = [
        {"slice_axis": "coronal"},
        {"spacing": (None, 1, 1)},
        {"canvas": (None, 4, 4)},
        {"interpolation": "nearest"},
        {"padding": "edge"},
    ]
    assert set().union(*changes) == set(PreprocessConfig.model_fields), "a new field has to be tried here"
    keys += [store.key(series, PreprocessConfig(**change)) for change in changes]
    keys.append(store.key(series, PLAIN, "interpolate"))
    keys.append(Store(tmp_path, format="blosc2").key(series, PLAIN))
    for name in ("SCHEMA", "PREPROCESSING"):
        with monkeypatch.context() as patch:
            patch.setattr(store_module, name, 999)
            keys.append(store.key(series, PLAIN))
    os.utime(path, ns=(1, 1))
    keys.append(store.key(series_of(path)[0], PLAIN))
    assert len(set(keys)) == len(keys)


def test_a_changed_source_is_decoded_anew(tmp_path: Path, store: Store) -> None:
    path = nifti(tmp_path / "a.nii.gz", seed=1)
    before = store.fill(series_of(path), PLAIN)[0]
    os.utime(nifti(path, seed=2), ns=(5, 5))
    (series,) = series_of(path)
    after = store.fill([series], PLAIN)[0]
    assert before[series.uid].key != after[series.uid].key
    np.testing.assert_array_equal(store.open(after[series.uid]).read(), read_series(series).array[0])


def test_the_default_folder_follows_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLREC_CACHE", str(tmp_path))
    assert Store().folder == tmp_path / "store"
    monkeypatch.delenv("VOLREC_CACHE")
    assert Store().folder == Path.home() / ".cache" / "volrec" / "store"


# Failing studies


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_series_that_fails_is_quarantined_by_its_study_and_the_rest_is_stored(
    three: list[Series], store: Store, jobs: int
) -> None:
    broken = Path(three[1].headers[0].path)
    broken.write_bytes(broken.read_bytes()[:60])

    class Study:
        study = "patient-7"
        series = three[1]

    found, problems = store.fill([three[0], Study(), three[2]], PLAIN, jobs=jobs)
    assert list(found) == [three[0].uid, three[2].uid]
    assert [problem.study for problem in problems] == ["patient-7"]
    assert problems[0].fatal
    assert problems[0].reason
    assert not leftovers(store)
    assert all(store.open(entry).read().any() for entry in found.values())


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "header": lambda path: path.write_bytes(path.read_bytes().replace(b"(5, 8, 9)", b"(5, 9, 8)")),
    "no description": lambda path: path.with_suffix(".json").unlink(),
    "half description": lambda path: path.with_suffix(".json").write_text(path.with_suffix(".json").read_text()[:99]),
    "other description": lambda path: path.with_suffix(".json").write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_mended_from_the_source(
    three: list[Series], store: Store, decoded: list[str], kind: str
) -> None:
    found, _ = store.fill(three, PLAIN)
    entry = found[three[1].uid]
    DAMAGE[kind](Path(entry.path))
    decoded.clear()
    mended, problems = again(store).fill(three, PLAIN)
    assert decoded == [three[1].uid]
    assert problems == []
    np.testing.assert_array_equal(again(store).open(mended[three[1].uid]).read(), read_series(three[1]).array[0])


@pytest.mark.parametrize("kind", ["missing", "truncated", "header", "half description"])
def test_length_and_header_are_checked_even_when_checksums_are_not(
    three: list[Series], tmp_path: Path, decoded: list[str], kind: str
) -> None:
    quick = Store(tmp_path / "store", verify="size")
    entry = quick.fill(three, PLAIN)[0][three[0].uid]
    DAMAGE[kind](Path(entry.path))
    decoded.clear()
    again(quick).fill(three, PLAIN)
    assert decoded == [three[0].uid]


def test_reading_a_damaged_entry_names_it_and_the_remedy(three: list[Series], store: Store) -> None:
    found, _ = store.fill(three, PLAIN)
    unchecked = entries_module.find_entry(store.folder, found[three[0].uid].key, uid="s0", format="npy")
    assert unchecked is not None
    flip(Path(unchecked.path))
    with pytest.raises(StoreError, match="series s0 is damaged: its checksum") as caught:
        again(store).open(unchecked)
    assert caught.value.code == "store-damaged"
    assert "decoded anew" in caught.value.remedy


def test_checksums_are_compared_once_a_process(
    three: list[Series], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = []
    checksum = entries_module._checksum
    monkeypatch.setattr(entries_module, "_checksum", lambda path: summed.append(path) or checksum(path))
    found, _ = store.fill(three, PLAIN)
    for entry in found.values():
        store.open(entry)
    assert summed == [], "just written"
    fresh = again(store)
    found, _ = fresh.fill(three, PLAIN)
    fresh.fill(three, PLAIN)
    for entry in found.values():
        fresh.open(entry)
        Store(store.folder).open(entry)
    assert len(summed) == 3


# Killed, crowded, full

CHILD = """
import sys, time
from pathlib import Path
from volrec.config import PreprocessConfig
from volrec.data import entries, store
from volrec.io import assemble, scan_file

source, folder, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
headers = [header for path in sorted(source.glob("*.nii.gz")) for header in scan_file(path).headers]
series, _ = assemble(headers, root=source)
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(found: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_kill_while_writing_costs_that_entry_alone(three: list[Series], tmp_path: Path, decoded: list[str]) -> None:
    store = Store(tmp_path / "store")
    process = child(
        """
encode, started = entries._encode, []
def slow(array, format):
    started.append(1)
    for block in encode(array, format):
        yield block[: len(block) // 2] if len(started) == 2 else block
        if len(started) == 2:
            time.sleep(600)
entries._encode = slow
store.Store(folder).fill(series, PreprocessConfig(), jobs=1)
""",
        tmp_path / "source",
        store.folder,
        "",
    )
    wait_for(lambda: len(list(store.folder.glob("??/*.json"))) == 1 and leftovers(store), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(leftovers(store)) == 1
    assert len(list(store.folder.glob("??/*.npy"))) == 1
    orphan = store.folder / "zz" / "zzz.npy.1-2.tmp"  # of a series that nobody asks for any more
    orphan.parent.mkdir()
    orphan.touch()
    found, problems = store.fill(three, PLAIN)
    assert problems == []
    assert len(decoded) == 2, "what was finished is kept"
    assert not leftovers(store)
    for series in three:
        np.testing.assert_array_equal(store.open(found[series.uid]).read(), read_series(series).array[0])


def test_two_processes_fill_at_once_and_decode_each_series_once(three: list[Series], tmp_path: Path) -> None:
    folder, log, go = tmp_path / "store", tmp_path / "log", tmp_path / "go"
    code = """
read = store.read_series
def noted(series, **options):
    with open(folder.with_name("log"), "a") as log:
        log.write(series.uid + chr(10))
    time.sleep(0.2)
    return read(series, **options)
store.read_series = noted
folder.with_name("ready-" + name).touch()
while not folder.with_name("go").exists():
    time.sleep(0.005)
found, problems = store.Store(folder).fill(series, PreprocessConfig(canvas=(4, 4, 4)), jobs=1)
assert len(found) == 3 and not problems
"""
    both = [child(code, tmp_path / "source", folder, name) for name in "ab"]
    for name, process in zip("ab", both, strict=True):
        wait_for((tmp_path / f"ready-{name}").exists, process)
    go.touch()
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert sorted(log.read_text().split()) == [series.uid for series in three]
    found, _ = Store(folder).fill(three, PreprocessConfig(canvas=(4, 4, 4)))
    assert all(Store(folder).open(entry).shape == (4, 4, 4) for entry in found.values())


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    partial = tmp_path / "ab" / "abc.npy.1-2.tmp"
    partial.touch()
    with locked(tmp_path, "abc") as held:
        assert held
        assert remove_leftovers(tmp_path) == 0
        assert partial.exists()
    assert remove_leftovers(tmp_path) == 1
    assert not partial.exists()


class FullDisk:
    """A disk that takes so many bytes more; files on it are real."""

    def __init__(self, room: int) -> None:
        self.room = room

    def open(self, path: Path, mode: str) -> Any:
        disk = self

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                if len(content) > disk.room:
                    super().write(content[: disk.room])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                disk.room -= len(content)
                return super().write(content)

        return File(path, mode)


def test_a_disk_that_fills_up_stops_with_figures_and_keeps_what_is_finished(
    three: list[Series], store: Store, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "open", FullDisk(9_000).open, raising=False)
    with pytest.raises(StoreError, match=r"the disk is full: a study needs 720 B and .* are free\.") as caught:
        store.fill(three, PLAIN, jobs=1)
    assert caught.value.code == "disk-full"
    assert "store.folder" in caught.value.remedy
    assert not leftovers(store)
    finished = len(list(store.folder.glob("??/*.json")))
    assert 1 <= finished < 3
    monkeypatch.undo()
    decoded.clear()
    found, _ = store.fill(three, PLAIN, jobs=1)
    assert len(found) == 3
    assert len(list(store.folder.glob("??/*.json"))) == 3


def test_too_small_a_disk_is_seen_before_anything_is_decoded(
    three: list[Series], store: Store, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.folder.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000))
    with pytest.raises(StoreError, match=r"3 studies will take 2\.5 kB and 2\.0 kB are free") as caught:
        store.fill(three, PLAIN)
    assert "blosc2" in caught.value.remedy
    assert decoded == []
    store.fill(three[:2], PLAIN)
    store.fill(three, PLAIN)  # one more fits: what is there is not counted again
    assert len(decoded) == 3


@pytest.mark.parametrize(
    "preprocess",
    [
        PLAIN,
        PreprocessConfig(slice_axis="coronal"),
        PreprocessConfig(spacing=(1.5, 1.0, None)),
        PreprocessConfig(slice_axis="sagittal", spacing=(2.0, None, None), canvas=(None, 7, 30)),
    ],
)
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_the_forecast_is_the_size_to_come(
    tmp_path: Path, store: Store, preprocess: PreprocessConfig, kind: Any
) -> None:
    (series,) = series_of(nifti(tmp_path / "a.nii.gz", kind=kind))
    assert store.forecast([series], preprocess) == store.fill([series], preprocess)[0][series.uid].size


@pytest.mark.parametrize("angles", [(9, 69, -36), (50, 27, -80), (-39, 18, 42), (54, 30, 32)])
def test_the_forecast_of_an_oblique_stack_knows_its_axes(
    angles: tuple[int, int, int], tmp_path: Path, store: Store
) -> None:
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([3.0, 0.5, 0.7])
    affine[:3, :3] = turned[:, ::-1]
    path = tmp_path / "oblique.nii.gz"
    values = np.random.default_rng(0).integers(-1000, 1000, (20, 12, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    (series,) = series_of(path)
    for canvas in ((2, None, None), (None, 3, None)):  # a product of sizes alone would not tell the axes apart
        preprocess = PreprocessConfig(canvas=canvas, slice_axis="axial")
        assert store.forecast([series], preprocess) == store.fill([series], preprocess)[0][series.uid].size


def test_a_folder_that_cannot_be_written_is_named(three: list[Series], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/store: it cannot be written") as caught:
        Store(tmp_path / "file" / "store").fill(three, PLAIN)
    assert caught.value.code == "store-unwritable"


def test_a_full_store_is_read_without_writing(
    three: list[Series], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.fill(three, PLAIN)
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(again(store).fill(three, PLAIN)[0]) == 3
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before


# Upkeep and options


def test_pruning_keeps_what_is_named(three: list[Series], store: Store) -> None:
    found, _ = store.fill(three, PLAIN)
    kept = found[three[1].uid]
    (Path(kept.path).parent / f"{kept.key}.npy.1-2.tmp").write_bytes(b"x" * 50)
    before = store.size()
    freed = store.prune([kept])
    assert freed > 50
    assert store.size() == before - freed
    assert again(store).open(kept).shape == kept.shape
    assert {path.stem for path in store.folder.glob("??/*")} == {kept.key}


@pytest.mark.parametrize("option", [{"format": "zarr"}, {"verify": "never"}])
def test_unknown_options_are_named(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must be one of .*, got '(zarr|never)'"):
        Store(**option)


@pytest.fixture
def packed(tmp_path: Path) -> Store:
    pytest.importorskip("blosc2", reason="the extra blosc2 is not installed")
    return Store(tmp_path / "packed", format="blosc2")


@pytest.mark.parametrize("indices", [[0], [4, 3, 3, 0], [0, 1, 4], [2, 3, 4]])
def test_blosc2_gives_the_same_slices(three: list[Series], store: Store, packed: Store, indices: Sequence[int]) -> None:
    plain, other = (one.open(one.fill(three, PLAIN)[0][three[2].uid]) for one in (store, packed))
    np.testing.assert_array_equal(other.read(indices), plain.read(indices))
    np.testing.assert_array_equal(other.read(), plain.read())
    assert other.dtype == plain.dtype
    with pytest.raises(IndexError):
        other.read([5])


def test_blosc2_takes_less_room_and_its_damage_is_found(tmp_path: Path, packed: Store, decoded: list[str]) -> None:
    path = tmp_path / "smooth.nii.gz"
    ramp = np.arange(64 * 64 * 20).reshape(64, 64, 20).astype(np.int16) // 64
    nibabel.save(nibabel.Nifti1Image(ramp, np.diag([1, 1, 3, 1])), path)
    (series,) = series_of(path)
    entry = packed.fill([series], PLAIN)[0][series.uid]
    assert entry.size < 0.6 * ramp.nbytes
    for harm in (flip, DAMAGE["truncated"]):
        harm(Path(entry.path))
        decoded.clear()
        entry = again(packed).fill([series], PLAIN)[0][series.uid]
        assert decoded == [series.uid]
    np.testing.assert_array_equal(packed.open(entry).read(), read_series(series).array[0])


def test_blosc2_without_its_package_says_what_to_install(
    three: list[Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(StoreError, match=r"pip install volrec\[blosc2\]"):
        Store(tmp_path / "packed", format="blosc2").fill(three, PLAIN)


def test_entries_travel_as_plain_facts(three: list[Series], store: Store) -> None:
    entry = next(iter(store.fill(three, PLAIN)[0].values()))
    assert json.loads(json.dumps(vars(entry)))["path"] == entry.path
