"""Clips are a function of seed, epoch and study; orders are fair to studies, ranks and classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.config import SamplingConfig
from volrec.data.datasets import (
    ClipDataset,
    Draw,
    StudyDataset,
    StudySampler,
    balance_groups,
    clip_loader,
    collate,
    own_slices,
    source_slices,
    stored_slice_targets,
)
from volrec.data.entries import Entry, StoredVolume, study_quantiles, write_entry
from volrec.data.store import Store
from volrec.errors import ConfigError, DataError, Problem
from volrec.transforms.preprocess import own_region, preprocess_array


@dataclass(frozen=True)
class OneSeries:
    uid: str


@dataclass(frozen=True)
class Study:
    """As much of a case as a data set looks at."""

    study: str
    series: OneSeries
    target: np.ndarray
    slice_targets: np.ndarray | None = None


def make(
    folder: Path, shapes: list[tuple[int, int, int]], **options: Any
) -> tuple[list[Study], dict[str, Entry], Store]:
    """Store volumes in which voxel (t, h, w) of study s is 1000 s + t."""
    store, studies, entries = Store(folder), [], {}
    for number, shape in enumerate(shapes):
        array = np.broadcast_to(np.arange(shape[0])[:, None, None] + 1000 * number, shape).astype(np.int16)
        meta = {"source_affine": np.eye(4).tolist(), "source_shape": list(shape)}
        volume = StoredVolume(array, np.eye(4), study_quantiles(array), meta)
        studies.append(
            Study(f"s{number}", OneSeries(f"u{number}"), np.array([number % 2], dtype=np.float32), **options)
        )
        entries[f"u{number}"] = write_entry(folder, f"{number:040x}", volume, uid=f"u{number}", format="npy")
    return studies, entries, store


def clips(studies: list[Study], entries: dict[str, Entry], store: Store, **options: Any) -> ClipDataset:
    return ClipDataset(studies, entries, store=store, **{"sampling": SamplingConfig(clip_length=6)} | options)


def test_a_clip_holds_the_stored_slices_as_stored(tmp_path: Path) -> None:
    dataset = clips(*make(tmp_path, [(30, 4, 5), (20, 4, 5)]))
    sample = dataset[Draw(0, 1)]
    assert sample["image"].dtype == torch.int16
    assert sample["image"].shape == (1, 6, 4, 5)
    slices = dataset.draw(1, 20, epoch=0)
    assert (sample["image"][0, :, 0, 0].numpy() - 1000).tolist() == slices.tolist()
    assert sample["quantiles"].shape == (1001,)
    assert sample["quantiles"][[0, -1]].tolist() == [1000.0, 1019.0]
    assert (sample["target"].tolist(), sample["study"], sample["valid"]) == ([1.0], 1, True)


def test_only_the_slices_of_the_clip_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = clips(*make(tmp_path, [(30, 4, 5)]))
    asked = []
    read = StoredVolume.read
    monkeypatch.setattr(StoredVolume, "read", lambda self, indices=None: asked.append(indices) or read(self, indices))
    dataset[0]
    assert [len(indices) for indices in asked] == [6]


def test_the_draw_depends_on_seed_epoch_study_and_repeat_alone(tmp_path: Path) -> None:
    studies, entries, store = make(tmp_path, [(500, 2, 2)] * 3)

    def drawn(dataset: ClipDataset, position: int, epoch: int = 4, repeat: int = 0) -> int:
        return int(dataset.draw(position, 500, epoch=epoch, repeat=repeat)[0])

    base = clips(studies, entries, store, seed=1)
    np.random.default_rng().random()
    torch.manual_seed(123)
    assert drawn(base, 2) == drawn(base, 2)
    assert drawn(base, 2) == drawn(clips(studies[2:], entries, store, seed=1), 0), "others beside it change nothing"
    others = {
        drawn(base, 2, epoch=5),
        drawn(base, 1),
        drawn(base, 2, repeat=1),
        drawn(clips(studies, entries, store), 2),
    }
    assert drawn(base, 2) not in others
    assert len(others) == 4


def test_snippets_of_the_sampling_stay_together(tmp_path: Path) -> None:
    sampling = SamplingConfig(clip_length=6, stride=2, snippet_length=3, train="segments")
    dataset = clips(*make(tmp_path, [(40, 4, 5)]), sampling=sampling)
    rows = dataset[Draw(0, 0)]["image"][0, :, 0, 0].numpy().reshape(2, 3)
    assert (np.diff(rows, axis=1) == 2).all()
    assert rows[0, 0] <= 18 <= rows[1, 0]  # 36 places, a snippet in each half of them


def test_plain_indices_take_the_epoch_that_was_set(tmp_path: Path) -> None:
    dataset = clips(*make(tmp_path, [(500, 2, 2)]))
    dataset.set_epoch(7)
    assert torch.equal(dataset[0]["image"], dataset[Draw(7, 0)]["image"])
    assert not torch.equal(dataset[0]["image"], dataset[Draw(8, 0)]["image"])


@pytest.mark.parametrize("workers", [2])
def test_persistent_workers_give_the_same_batches_as_none_in_every_epoch(tmp_path: Path, workers: int) -> None:
    dataset = clips(*make(tmp_path, [(60, 3, 3)] * 5))
    runs = []
    for count in (0, workers):
        sampler = StudySampler(len(dataset), seed=3)
        loader = clip_loader(dataset, sampler, batch_size=2, workers=count)
        batches = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches.append([(batch["study"].tolist(), batch["image"]) for batch in loader])
        runs.append(batches)
    for alone, spread in zip(*runs, strict=True):
        assert [study for study, _ in alone] == [study for study, _ in spread]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(alone, spread, strict=True))
    assert not torch.equal(runs[0][0][0][1], runs[0][1][0][1]), "epochs differ"


def test_the_loader_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    dataset = clips(*make(tmp_path, [(60, 3, 3)] * 2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(clip_loader(dataset, StudySampler(2), batch_size=1))
    assert torch.equal(before, torch.get_rng_state())


def damage(entry: Entry, kind: str) -> None:
    path = Path(entry.path)
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.with_suffix(".json").write_text("{")


@pytest.mark.parametrize("kind", ["missing", "truncated", "flipped", "description"])
def test_a_study_that_cannot_be_read_is_flagged_and_the_batch_goes_on(tmp_path: Path, kind: str) -> None:
    studies, entries, _ = make(tmp_path, [(30, 4, 5)] * 3)
    entries = {uid: Entry(**{**vars(entry), "verified": False}) for uid, entry in entries.items()}
    dataset = clips(studies, entries, Store(tmp_path))
    damage(entries["u1"], kind)
    batch = collate([dataset[Draw(0, index)] for index in range(3)])
    assert batch["valid"].tolist() == [True, False, True]
    assert batch["image"].shape == (3, 1, 6, 4, 5)
    assert not batch["image"][1].any()
    problem = Problem(**batch["problems"][0])
    assert (len(batch["problems"]), problem.study, problem.code) == (1, "s1", "store-damaged")
    whole = StudyDataset(studies, entries, store=Store(tmp_path))
    assert [whole[index]["valid"] for index in range(3)] == [True, False, True]


def test_any_error_of_a_study_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = clips(*make(tmp_path, [(30, 4, 5)]))

    def broken(self: StoredVolume, indices: Any = None) -> np.ndarray:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(StoredVolume, "read", broken)
    sample = dataset[0]
    assert not sample["valid"]
    assert "Input/output error" in sample["problem"]["reason"]


def test_whole_studies_come_whole(tmp_path: Path) -> None:
    studies, entries, store = make(tmp_path, [(30, 4, 5), (7, 4, 5)])
    dataset = StudyDataset(studies, {"u1": entries["u1"]}, store=store)
    assert [case.study for case in dataset.cases] == ["s1"], "studies without an entry are left out"
    assert dataset[0]["image"].shape == (1, 7, 4, 5)
    assert dataset.volume(0).read([3])[0, 0, 0] == 1003


def test_batches_mix_int16_and_float32_and_refuse_other_sizes(tmp_path: Path) -> None:
    studies, entries, store = make(tmp_path, [(30, 4, 5), (30, 4, 6)])
    dataset = clips(studies, entries, store)
    with pytest.raises(ConfigError, match=r"\(4x5, 4x6\) cannot share a batch.*canvas"):
        clip_loader(dataset, StudySampler(2), batch_size=2)
    clip_loader(dataset, StudySampler(2), batch_size=1)
    samples = [dataset[0], dataset[0]]
    samples[1] = {**samples[1], "image": samples[1]["image"].float() + 0.5}
    assert collate(samples)["image"].dtype == torch.float32
    with pytest.raises(ConfigError):
        collate([dataset[0], dataset[1]])


def test_slice_labels_follow_their_slices(tmp_path: Path) -> None:
    labels = np.arange(30, dtype=np.float32)
    labels[10] = np.nan
    studies, entries, store = make(tmp_path, [(30, 4, 5)] * 2, slice_targets=labels)
    studies[1] = Study("s1", OneSeries("u1"), studies[1].target)
    dataset = clips(studies, entries, store)
    sample = dataset[0]
    shown = sample["image"][0, :, 0, 0].numpy().astype(np.float32)
    np.testing.assert_array_equal(sample["slice_target"].numpy(), np.where(shown == 10, np.nan, shown))
    batch = collate([dataset[1], sample])
    assert batch["slice_target"].shape == (2, 6)
    assert batch["slice_target"][0].isnan().all()
    assert "slice_target" not in collate([dataset[1]])


@pytest.mark.parametrize("canvas", [None, (40, None, None), (9, 6, 3)])
@pytest.mark.parametrize("spacing", [None, (1.3, None, None), (4.0, 2.0, 2.0)])
def test_slice_labels_pass_through_resampling_and_canvas(spacing: Any, canvas: Any) -> None:
    source = np.array([[0, 0, 0.8, -20], [0, 0.8, 0, 5], [2.5, 0.1, 0, 100], [0, 0, 0, 1]], dtype=float)
    numbers = np.arange(1, 18, dtype=np.float32)
    volume = np.broadcast_to(numbers[:, None, None], (17, 6, 7)).copy()
    array, affine = preprocess_array(
        volume, source, spacing=spacing, canvas=canvas, interpolation="nearest", padding="zero"
    )
    meta = {"source_affine": source.tolist(), "source_shape": [17, 6, 7]}
    found = stored_slice_targets(numbers, StoredVolume(array, affine, np.empty(0), meta))
    expected = array.max(axis=(1, 2))
    np.testing.assert_array_equal(found, np.where(expected == 0, np.nan, expected))
    pairs = stored_slice_targets(np.stack([numbers, -numbers], axis=1), StoredVolume(array, affine, np.empty(0), meta))
    np.testing.assert_array_equal(pairs[:, 1], -found)


OBLIQUE = np.array([[0, 0, 0.8, -20], [0, 0.8, 0, 5], [2.5, 0.1, 0, 100], [0, 0, 0, 1]], dtype=float)


@pytest.mark.parametrize("source", [OBLIQUE, np.diag([2.5, 0.8, 0.8, 1.0]), np.diag([-2.5, 0.8, 0.8, 1.0])])
@pytest.mark.parametrize("canvas", [None, (40, None, None), (9, 6, 3), (41, 20, 5)])
@pytest.mark.parametrize("spacing", [None, (1.3, None, None), (4.0, 2.0, 2.0)])
def test_each_stored_slice_knows_the_nearest_one_of_its_study(source: np.ndarray, spacing: Any, canvas: Any) -> None:
    shape = (17, 6, 7)
    array, affine = preprocess_array(np.zeros(shape, np.int16), source, spacing=spacing, canvas=canvas)
    meta = {"source_affine": source.tolist(), "source_shape": list(shape)}
    volume = StoredVolume(array, affine, np.empty(0), meta)
    found = source_slices(volume)
    for number in range(array.shape[0]):
        middle = affine @ [number, (array.shape[1] - 1) / 2, (array.shape[2] - 1) / 2, 1.0]
        t = (np.linalg.inv(source) @ middle)[0]
        assert abs(found[number] - t) <= 0.5 + 1e-6
    own = own_region(shape, source, spacing=spacing, canvas=canvas)[0]
    assert own_slices(volume) == (own.start, own.stop)


def test_a_store_that_counts_slices_the_other_way_is_seen_through() -> None:
    source = np.diag([3.0, 1.0, 1.0, 1.0])
    turned = np.diag([-3.0, 1.0, 1.0, 1.0])
    turned[0, 3] = 3.0 * 6  # stored slice 0 is the study's slice 6
    volume = StoredVolume(
        np.zeros((9, 4, 4), np.int16),
        turned,
        np.empty(0),
        {"source_affine": source.tolist(), "source_shape": [5, 4, 4]},
    )
    assert source_slices(volume).tolist() == [6, 5, 4, 3, 2, 1, 0, -1, -2]
    assert own_slices(volume) == (2, 7)


def test_where_no_slice_is_known_to_be_the_studys_all_are_taken() -> None:
    far = np.eye(4)
    far[0, 3] = 1000.0
    meta = {"source_affine": np.eye(4).tolist(), "source_shape": [5, 4, 4]}
    assert own_slices(StoredVolume(np.zeros((6, 4, 4), np.int16), far, np.empty(0), meta)) == (0, 6)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 23),
    world=st.integers(1, 4),
    length=st.integers(0, 40),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_orders_are_fair_and_even_among_ranks(count: int, world: int, length: int, epoch: int, seed: int) -> None:
    ranks = []
    for rank in range(world):
        sampler = StudySampler(count, seed=seed, rank=rank, world_size=world, length=length)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler) == (length or -(-count // world))
    drawn = [draw for rank in ranks for draw in rank]
    assert len(set(drawn)) == len(drawn), "no clip is drawn twice"
    assert {draw.epoch for draw in drawn} == {epoch}
    times = Counter(draw.study for draw in drawn)
    assert max(times.values()) - min(times[study] for study in range(count)) <= 1


def test_orders_change_with_epoch_and_seed_and_come_again() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = StudySampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return [draw.study for draw in sampler]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=25), length=st.integers(0, 60), world=st.integers(1, 3))
def test_balanced_orders_draw_every_group_equally_and_its_studies_in_turn(
    groups: list[int], length: int, world: int
) -> None:
    sampler = StudySampler(len(groups), groups=groups, length=length, world_size=world)
    drawn = sampler.order(3)
    assert len(drawn) == len(sampler) * world
    assert len(set(drawn)) == len(drawn)
    by_group = Counter(groups[draw.study] for draw in drawn)
    quota = [by_group[group] for group in set(groups)]
    assert max(quota) - min(quota) <= 1
    for group in set(groups):
        own = [study for study, member in enumerate(groups) if member == group]
        times = Counter(draw.study for draw in drawn)
        assert max(times[study] for study in own) - min(times[study] for study in own) <= 1


def test_groups_are_classes_or_the_rarest_label() -> None:
    def studies(*targets: list[float]) -> list[Any]:
        return [Study(str(n), OneSeries(""), np.array(target)) for n, target in enumerate(targets)]

    assert balance_groups(studies([1], [0], [2]), "multiclass") == [1, 0, 2]
    assert balance_groups(studies([1, 1], [1, 0], [0, 0], [1, 0]), "multilabel") == [1, 0, -1, 0]
    with pytest.raises(ConfigError, match="regression"):
        balance_groups(studies([1.5]), "regression")


def test_no_study_is_an_error_in_words() -> None:
    with pytest.raises(DataError, match="no study to train on"):
        StudySampler(0)
