"""Fields are computed once a study, kept in the store, and read slice by slice with the stack that belongs to each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from volrec.config import IntensityConfig, StreamsConfig
from volrec.data import streams as module
from volrec.data.entries import Entry, StoredVolume, study_quantiles, write_entry
from volrec.data.store import Store
from volrec.data.streams import (
    add_streams,
    check_streams,
    field_source,
    fill_streams,
    no_streams,
    read_streams,
)
from volrec.errors import DataError, StoreError
from volrec.transforms.flow_fields import STORED_BOUND, dequantise

INTENSITY = IntensityConfig(kind="percentile")


@dataclass(frozen=True)
class OneSeries:
    uid: str


@dataclass(frozen=True)
class Study:
    study: str
    series: OneSeries


def drifting(depth: int = 6, side: int = 40, *, x: float = 1.5, y: float = -1.0, seed: int = 0) -> np.ndarray:
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side + 40, side + 40)), 3)
    rows, columns = np.meshgrid(np.arange(side) + 20.0, np.arange(side) + 20.0, indexing="ij")
    slices = [ndimage.map_coordinates(texture, [rows - y * t, columns - x * t], order=3) for t in range(depth)]
    return (np.stack(slices) / texture.std() * 300).astype(np.int16)


def volume_of(array: np.ndarray, spacing: tuple[float, float, float] = (5.0, 0.8, 0.7)) -> StoredVolume:
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag(spacing[::-1]))
    return StoredVolume(array, affine, study_quantiles(array), {})


def stored(folder: Path, arrays: list[np.ndarray]) -> tuple[list[Study], dict[str, Entry], Store]:
    studies, entries = [], {}
    for number, array in enumerate(arrays):
        studies.append(Study(f"s{number}", OneSeries(f"u{number}")))
        volume = volume_of(array)
        entries[f"u{number}"] = write_entry(folder, f"{number:040x}", volume, uid=f"u{number}", format="npy")
    return studies, entries, Store(folder)


def flow_of(method: str = "farneback", inputs: tuple[str, ...] = ("intensity", "flow"), **flow) -> StreamsConfig:
    return StreamsConfig(inputs=list(inputs), flow={"method": method, **flow})  # type: ignore[arg-type]


@pytest.mark.parametrize("inputs", [("flow",), ("warped",)])
def test_fields_are_computed_once_and_found_again(tmp_path, monkeypatch, inputs):
    studies, entries, store = stored(tmp_path, [drifting(seed=0), drifting(seed=1)])
    streams = flow_of(inputs=inputs)
    filled, problems = fill_streams(store, studies, entries, streams, INTENSITY, jobs=1)
    assert not problems
    assert list(filled) == ["u0", "u1"]
    field = store.open(filled["u0"]).fields
    assert field.shape == (2 * 5, 40, 40)
    assert field.dtype == np.int16
    found = dequantise(np.asarray(field.array).reshape(5, 2, 40, 40), bound=STORED_BOUND)[:, :, 12:-12, 12:-12]
    expected = (1.5, -1.0) if inputs == ("flow",) else (0.0, 0.0)
    np.testing.assert_allclose(np.median(found, axis=(0, 2, 3)), expected, atol=0.2)
    assert field.meta["units"] == "voxels"
    assert "opencv" in field.meta["method"]
    monkeypatch.setattr(module, "_compute", None)  # would fail if anything were computed
    again, _ = fill_streams(Store(tmp_path), studies, entries, streams, INTENSITY, jobs=1)
    assert {uid: entry.fields.key for uid, entry in again.items()} == {
        uid: entry.fields.key for uid, entry in filled.items()
    }


def test_what_determines_a_field_is_in_its_key(tmp_path):
    studies, entries, store = stored(tmp_path, [drifting(depth=3, side=24)])

    def key(streams: StreamsConfig, intensity: IntensityConfig = INTENSITY) -> str:
        return fill_streams(store, studies, entries, streams, intensity, jobs=1)[0]["u0"].fields.key

    base = key(flow_of())
    assert key(flow_of(stack=4, bound=3.0, order="centred", units="mm")) == base  # how it is read, not what it is
    others = [
        key(flow_of("dis")),
        key(flow_of(), IntensityConfig(kind="percentile", percentiles=(5, 95))),
        key(flow_of(inputs=("warped",))),
        key(flow_of(inputs=("warped",), drift="affine")),
    ]
    assert len({base, *others}) == 5
    # A further window changes what the network sees, not what the estimators do.
    brain, more = (IntensityConfig(kind="window", windows=windows) for windows in (["brain"], ["brain", "bone"]))
    assert key(flow_of(), brain) == key(flow_of(), more) != base


def test_a_damaged_field_is_computed_anew_and_pruning_keeps_fields_of_kept_volumes(tmp_path):
    studies, entries, store = stored(tmp_path, [drifting(depth=3, side=24), drifting(depth=3, side=24, seed=2)])
    filled, _ = fill_streams(store, studies, entries, flow_of(), INTENSITY, jobs=1)
    path = Path(filled["u0"].fields.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    again, problems = fill_streams(Store(tmp_path), studies, entries, flow_of(), INTENSITY, jobs=1)
    assert not problems
    assert Path(again["u0"].fields.path).read_bytes() == whole
    store.prune([again["u0"]])
    assert store.open(again["u0"]).fields is not None
    assert not Path(again["u1"].fields.path).exists()


def test_without_a_stream_of_fields_nothing_is_computed(tmp_path):
    studies, entries, store = stored(tmp_path, [drifting(depth=3, side=24)])
    for inputs in (("intensity",), ("intensity", "difference")):
        filled, problems = fill_streams(store, studies, entries, StreamsConfig(inputs=list(inputs)), INTENSITY)
        assert filled == entries
        assert not problems


@given(
    depth=st.integers(1, 9),
    wanted=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    stack=st.integers(1, 4),
    differences=st.integers(1, 4),
)
def test_every_slice_brings_its_own_stack(depth, wanted, stack, differences):
    wanted = [index % depth for index in wanted]
    rng = np.random.default_rng(0)
    array = rng.integers(-500, 500, size=(depth, 3, 4)).astype(np.int16)
    fields = rng.integers(-30000, 30000, size=(2 * max(1, depth - 1), 3, 4)).astype(np.int16)
    volume = volume_of(array)
    volume = StoredVolume(
        array, volume.affine, volume.quantiles, {}, StoredVolume(fields, volume.affine, volume.quantiles)
    )
    streams = StreamsConfig(
        inputs=["intensity", "flow", "difference"], flow={"stack": stack}, difference_stack=differences
    )
    found = read_streams(volume, streams, wanted)
    np.testing.assert_array_equal(found["image"][0], array[wanted])
    np.testing.assert_allclose(found["pixel"], (0.7, 0.8), rtol=1e-6)  # W, then H
    last = len(fields) // 2 - 1
    for place, t in enumerate(wanted):
        for k in range(stack):
            field = min(t + k, last)
            np.testing.assert_array_equal(found["fields"][2 * k : 2 * k + 2, place], fields[2 * field : 2 * field + 2])
        start = min(t, max(0, depth - 1 - differences))
        for k in range(differences + 1):
            np.testing.assert_array_equal(found["following"][k, place], array[min(start + k, depth - 1)])
    blank = no_streams(streams, (len(wanted), 3, 4), "int16")
    assert {name: (value.shape, value.dtype) for name, value in blank.items()} == {
        name: (value.shape, value.dtype) for name, value in found.items()
    }


def test_a_volume_of_no_store_gets_the_same_fields(tmp_path):
    array = drifting(depth=4, side=32)
    studies, entries, store = stored(tmp_path, [array])
    filled, _ = fill_streams(store, studies, entries, flow_of(), INTENSITY, jobs=1)
    loose = add_streams(volume_of(array), flow_of(), INTENSITY)
    np.testing.assert_array_equal(np.asarray(loose.fields.array), np.asarray(store.open(filled["u0"]).fields.array))
    with pytest.raises(DataError, match="'flow' was not computed"):
        read_streams(volume_of(array), flow_of())


def test_anisotropic_pixels_reach_the_registration(tmp_path):
    array = drifting(depth=3, side=40, x=2.0, y=0.0)
    found = add_streams(volume_of(array, (5.0, 0.5, 2.0)), flow_of("demons"), INTENSITY).fields
    x, y = dequantise(np.asarray(found.array).reshape(2, 2, 40, 40), bound=STORED_BOUND).transpose(1, 0, 2, 3)
    assert abs(np.median(x[:, 10:-10, 10:-10]) - 2.0) < 0.4
    assert abs(np.median(y[:, 10:-10, 10:-10])) < 0.4


def write_pictures(folder: Path, fields: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number, field in enumerate(fields, start=1):
        for axis, component in zip("xy", field, strict=True):
            Image.fromarray(component).save(folder / f"flow_{axis}_{number:05d}.png")


def test_flow_pictures_of_others_are_read_under_the_study_s_name(tmp_path):
    studies, entries, store = stored(tmp_path / "store", [drifting(depth=4, side=24), drifting(depth=4, side=24)])
    pictures = np.random.default_rng(0).integers(0, 256, size=(3, 2, 24, 24)).astype(np.uint8)
    write_pictures(tmp_path / "flow" / "s0", pictures)
    write_pictures(tmp_path / "flow" / "s1", pictures[:2])
    streams = flow_of("folder", folder=str(tmp_path / "flow"), folder_bound=10.0)
    filled, problems = fill_streams(store, studies, entries, streams, INTENSITY, jobs=1)
    assert list(filled) == ["u0"]
    assert [problem.study for problem in problems] == ["s1"]
    assert "2 fields" in problems[0].reason
    assert "4 slices" in problems[0].reason
    found = dequantise(np.asarray(store.open(filled["u0"]).fields.array).reshape(3, 2, 24, 24), bound=STORED_BOUND)
    np.testing.assert_allclose(found, (pictures.astype(float) - 128) * 10 / 127.5, atol=0.01)
    # Other pictures are other fields.
    before = filled["u0"].fields.key
    Image.fromarray(255 - pictures[0, 0]).save(tmp_path / "flow" / "s0" / "flow_x_00001.png", optimize=False)
    (tmp_path / "flow" / "s1").rename(tmp_path / "flow" / "gone")
    filled, problems = fill_streams(store, studies, entries, streams, INTENSITY, jobs=1)
    assert filled["u0"].fields.key != before
    assert [problem.code for problem in problems] == ["no-flow"]


def test_fields_of_another_estimator_than_in_training_are_told(caplog):
    here = field_source(flow_of("demons"))
    check_streams(flow_of("demons"), trained_on=here)
    assert field_source(StreamsConfig()) == ""
    assert not caplog.records
    check_streams(flow_of("demons"), trained_on="another-1.0 demons")
    assert "another-1.0 demons" in caplog.text
    assert here in caplog.text


def test_fields_that_the_disk_has_no_room_for_are_refused_before_the_first(tmp_path, monkeypatch):
    studies, entries, store = stored(tmp_path, [drifting(depth=3, side=24)] * 2)
    monkeypatch.setattr(module, "_compute", None)
    monkeypatch.setattr("volrec.data.store.shutil.disk_usage", lambda path: SimpleNamespace(free=9_000))
    with pytest.raises(StoreError, match=r"the fields of 2 studies will take 9.* and 9"):
        fill_streams(store, studies, entries, flow_of(), INTENSITY, jobs=1)
