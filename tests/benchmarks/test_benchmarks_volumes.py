"""Trajectories of the studies of a run beside its network: what is learned from what, and what is kept."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score

import volrec
from volrec.api import trajectories_beside
from volrec.benchmarks.encoding import TrajectoryEncoder
from volrec.benchmarks.trajectories import (
    TrajectorySettings,
    read_trajectories,
    volume_trajectories,
    write_trajectories,
)
from volrec.benchmarks.trajectories.extract import Trajectories
from volrec.benchmarks.volumes import (
    Studies,
    StudyTrajectories,
    VolumeSettings,
    beside,
    choose_settings,
    measure_beside,
    network_features,
    open_run,
    study_trajectories,
    tracks,
)
from volrec.benchmarks.volumes.beside import gain
from volrec.benchmarks.volumes.tracks import own_box, own_windows
from volrec.cli import main
from volrec.config import IntensityConfig, parse_config
from volrec.data.entries import StoredVolume, study_quantiles, write_entry
from volrec.data.labels import Case, Cohort
from volrec.data.splits import Split
from volrec.data.store import Store
from volrec.errors import ConfigError, DataError, LabelsError, RunError
from volrec.inference import load_members
from volrec.transforms.clips import protocol_clips
from volrec.transforms.intensity import BatchIntensity

pytest.importorskip("cv2")

SMALL = {"grid_mm": 10.0, "patch_mm": 160.0, "step_mm": 40.0}


def stored(shape, spacing, *, source=None, offset=(0, 0, 0)):
    """Make a volume of the store whose own part has the shape `source` and begins at `offset`."""
    affine = np.diag([*spacing, 1.0])
    before = affine.copy()
    before[:3, 3] = np.asarray(offset) * spacing
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(np.int16)
    meta = {"source_affine": before.tolist(), "source_shape": list(source or shape)}
    return StoredVolume(array, affine, study_quantiles(array), meta)


# The grid


@pytest.mark.parametrize(
    ("shape", "spacing", "grid", "between"),
    [
        ((40, 128, 160), (5, 1, 1), 1, 5),  # as it is
        ((40, 256, 320), (5, 0.5, 1), 128 / 240, 5),  # 128 mm of rows that are finer than 240 pixels need
        ((40, 128, 100), (5, 1, 0.5), 0.5, 5),  # columns are finer, and 50 mm have 100 of them
        ((35, 50, 35), (1, 1, 1), 35 / 96, 1),  # a crop of hippocampus: three tubes along its shorter side
        ((40, 512, 512), (1, 0.7, 0.7), 512 * 0.7 / 240, 1),  # a chest: as large as the videos of the paper
        ((11, 128, 128), (8, 1, 1), 1, 80 / 19),  # 20 frames over 80 mm
    ],
)
def test_the_grid_follows_the_spacing_until_tubes_and_tracks_would_not_fit(shape, spacing, grid, between):
    found = choose_settings([stored(shape, spacing)])
    assert (found.grid_mm, found.slice_mm) == pytest.approx((grid, between), rel=1e-5)
    assert (found.step_mm, found.patch_mm, found.drift) == (None, None, "none")


def test_one_grid_for_all_studies_is_that_of_the_median_one_and_what_is_given_stays():
    volumes = [stored((30, 100 + 10 * extra, 300), (3, 1, 1)) for extra in (0, 4, 9)]
    assert choose_settings(volumes).grid_mm == 1
    assert choose_settings([*volumes, *volumes[:1], stored((30, 40, 40), (3, 1, 1))]).grid_mm == 1
    assert choose_settings(volumes, grid_mm=2.5, slice_mm=4, drift="homography") == VolumeSettings(
        2.5, 4, drift="homography"
    )
    with pytest.raises(DataError, match="no study"):
        choose_settings([])


@pytest.mark.parametrize(("slices", "size"), [(2, 8), (6, 24), (1, 40)])
def test_two_slices_are_the_smallest_volume_that_has_trajectories(slices, size):
    scene = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((size, size + 4 * slices)), 1)
    volume = np.stack([scene[:, 2 * t : 2 * t + size] for t in range(slices)])
    settings = choose_settings([stored(volume.shape, (3, 1, 1))])
    found = volume_trajectories(volume, (3, 1, 1), grid_mm=settings.grid_mm, slice_mm=settings.slice_mm)
    assert found.facts["height"] == 96
    assert (found.facts["frames"], len(found) > 50) == ((20, True) if slices > 1 else (1, False))


@pytest.mark.parametrize("padded", [(0, 0, 0), (2, 3, 1), (-1, -4, 0)])
def test_padding_of_the_canvas_is_no_part_of_a_study(padded):
    source = (10, 40, 30)
    volume = stored(
        tuple(n + 2 * p for n, p in zip(source, padded, strict=True)), (3, 1, 2), source=source, offset=padded
    )
    box = own_box(volume)
    kept = tuple(min(n, n + 2 * p) for n, p in zip(source, padded, strict=True))
    assert tuple(part.stop - part.start for part in box) == kept
    assert tuple(part.start for part in box) == tuple(max(p, 0) for p in padded)


@pytest.mark.parametrize("kind", ["percentile", "zscore", "window", "none"])
def test_grey_values_are_those_that_the_run_spreads(kind):
    rng = np.random.default_rng(1)
    array = (rng.gamma(2, 80, (6, 20, 20)) - 100).astype(np.float32)
    table = study_quantiles(array)
    config = IntensityConfig(kind=kind, windows=["brain", "bone"] if kind == "window" else [], percentiles=(2, 97))
    windows = own_windows(config, table)
    if kind == "none":
        low, high = np.quantile(array, (0.005, 0.995))
        assert windows[0] == pytest.approx(((low + high) / 2, high - low), rel=1e-3)
        return
    transform = BatchIntensity(kind, windows=config.windows, percentiles=config.percentiles)
    seen = transform(torch.from_numpy(array)[None, None], torch.from_numpy(table)[None])[0].numpy()
    assert len(windows) == len(seen)
    for (level, width), channel in zip(windows, seen, strict=True):
        grey = np.clip((array - (level - width / 2)) / width, 0, 1)
        # A z-score is the same picture in another unit.
        own = (channel - channel.min()) / np.ptp(channel) if kind == "zscore" else channel
        np.testing.assert_allclose(grey, own, atol=2e-3)


def test_a_study_of_one_value_has_a_window_all_the_same():
    assert own_windows(IntensityConfig(kind="percentile"), np.full(1001, 7.0)) == [(7.0, 1.0)]


# Studies whose trajectories are given: fast


def make_studies(folder: Path, *, task="binary", count=24, per_patient=2) -> tuple[Studies, StudyTrajectories]:
    """Make studies whose trajectories show the class, in two folds of whole patients."""
    rng = np.random.default_rng(3)
    targets = {"multilabel": ("a", "b"), "multihead": ("a", "b")}.get(task, ("label",))
    classes = {
        "binary": ("no", "yes"),
        "multiclass": ("x", "y", "z"),
        "multilabel": ("a", "b"),
        "multihead": ("a=0", "a=1", "b=u", "b=v", "b=w"),
        "regression": (),
    }[task]
    columns = TrajectorySettings().columns
    cases, files, counts = [], {}, {}
    for number in range(count):
        name = f"s{number:02d}"
        kind = number // per_patient % (3 if task in ("multiclass", "multihead") else 2)
        second = (number // per_patient // 2) % 2
        rows = rng.random((40, 436)).astype(np.float32)
        for descriptor, shown in {"trajectory": kind, "hog": kind, "hof": kind, "mbhx": second, "mbhy": second}.items():
            part = rows[:, columns[descriptor]]
            part[:, shown::3] += 0.08  # within the noise: a Gaussian for each class would hide it from Fisher vectors
        path = folder / f"{name}.safetensors"
        write_trajectories(path, Trajectories(rows, columns, {"settings": vars(TrajectorySettings())}))
        target = {
            "multilabel": [kind, second],
            "multihead": [np.nan if number == 5 else second, kind],
        }.get(task, [kind])
        series = SimpleNamespace(uid=name, path=name)
        cases.append(Case(name, f"p{number // per_patient:02d}", series, np.array(target, np.float32)))
        files[name], counts[name] = path, 40
    patients = sorted({case.patient for case in cases})
    splits = []
    for fold in range(2):
        tested = {patient for place, patient in enumerate(patients) if place // 6 == fold}
        names = [tuple(c.study for c in cases if (c.patient in tested) == side) for side in (False, True)]
        splits.append(Split(f"fold-{fold}", names[0], (), names[1]))
    cohort = Cohort(tuple(cases), task, targets, classes)
    studies = Studies(parse_config({}), cohort, {}, Store(folder / "store"), tuple(splits))
    return studies, StudyTrajectories(VolumeSettings(1, 1), files, counts)


def run_beside(studies, found, folder, **options):
    return measure_beside(studies, found, folder=folder, words=3, c=(1.0, 100.0), **options)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "multihead"])
def test_trajectories_that_show_the_class_tell_it_whatever_the_task(task, tmp_path):
    studies, found = make_studies(tmp_path, task=task)
    result = run_beside(studies, found, tmp_path / "out")
    assert list(result.scores) == ["trajectories"] and result.gains == {}
    table = result.scores["trajectories"]
    assert sorted(table["study"]) == sorted(studies.names) and set(table["fold"]) == {"fold-0", "fold-1"}
    assert result.metrics["trajectories"]["fold_mean"]["auc"]["value"] > 0.95
    read = pd.read_csv(tmp_path / "out" / "scores-trajectories.csv", dtype={name: table[name].dtype for name in table})
    pd.testing.assert_frame_equal(read, table)
    chosen = json.loads((tmp_path / "out" / "metrics.json").read_text())["choices"]["fold-1"]["trajectories"]
    assert set(chosen) == set(studies.cohort.targets) and all(one["c"] in (1, 100) for one in chosen.values())


def test_neither_vocabulary_nor_classifiers_see_a_study_that_is_tested(tmp_path):
    studies, found = make_studies(tmp_path)
    first = run_beside(studies, found, tmp_path / "first").scores["trajectories"]
    # Other contents and labels for the test studies of fold 0, under the same names.
    tested = studies.splits[0].test
    changed = {study: tmp_path / f"other-{study}.safetensors" for study in tested}
    for study, path in changed.items():
        old = read_trajectories(found.files[study])
        write_trajectories(path, replace(old, rows=old.rows[::-1] * 3))
    cases = tuple(
        replace(case, target=1 - case.target) if case.study in tested else case for case in studies.cohort.cases
    )
    other = replace(studies, cohort=replace(studies.cohort, cases=cases))
    run_beside(other, replace(found, files={**found.files, **changed}), tmp_path / "second")
    learned = [sorted((tmp_path / name / "fold-0").glob("*.safetensors")) for name in ("first", "second")]
    assert [path.name for path in learned[0]] == [path.name for path in learned[1]] and len(learned[0]) == 2
    for one, two in zip(*learned, strict=True):
        assert one.read_bytes() == two.read_bytes()
    # In fold 1 they are learned from, and everything is another.
    vocabularies = [next((tmp_path / name / "fold-1").glob("vocabulary*.safetensors")) for name in ("first", "second")]
    assert vocabularies[0].name != vocabularies[1].name
    encoder = TrajectoryEncoder.load(next((tmp_path / "first" / "fold-0").glob("vocabulary*.safetensors")))
    assert encoder.facts["videos"] == len(studies.splits[0].train)
    assert set(first["study"]) == set(studies.names)


def test_the_penalty_is_chosen_on_folds_of_whole_patients_that_are_learned_from(tmp_path, monkeypatch):
    studies, found = make_studies(tmp_path)
    seen = []
    fit = beside.fit_beside
    monkeypatch.setattr(
        beside, "fit_beside", lambda *parts, **given: seen.append(given["groups"]) or fit(*parts, **given)
    )
    run_beside(studies, found, tmp_path / "out")
    owner = {case.study: case.patient for case in studies.cohort.cases}
    assert seen == [[owner[study] for study in split.train] for split in studies.splits]
    for split, groups in zip(studies.splits, seen, strict=True):
        assert not set(groups) & {owner[study] for study in split.test}


def test_classifiers_never_learn_from_the_studies_they_are_measured_on(tmp_path):
    studies, found = make_studies(tmp_path)
    without_test = replace(
        studies, splits=tuple(Split(split.name, split.train, split.test, ()) for split in studies.splits)
    )
    for fit_on in ("validation", "train+validation"):
        with pytest.raises(ConfigError, match="measured on"):
            run_beside(without_test, found, tmp_path / "out", fit_on=fit_on)
    result = run_beside(without_test, found, tmp_path / "out")
    assert sorted(result.scores["trajectories"]["study"]) == sorted(studies.names)
    with pytest.raises(LabelsError, match="0 studies to learn from"):
        run_beside(studies, found, tmp_path / "out", fit_on="validation")


def test_a_class_that_nobody_can_learn_gets_no_chance(tmp_path):
    studies, found = make_studies(tmp_path, task="multilabel")
    cases = tuple(
        replace(case, target=np.array([case.target[0], float(case.study in studies.splits[0].test)], np.float32))
        for case in studies.cohort.cases
    )
    table = run_beside(replace(studies, cohort=replace(studies.cohort, cases=cases)), found, tmp_path / "out").scores
    scores = table["trajectories"].set_index("fold")["score_b"]
    assert (scores["fold-0"] == 0).all() and (scores["fold-1"] == 1).all()


def test_quantities_are_refused(tmp_path):
    studies, found = make_studies(tmp_path, task="regression")
    with pytest.raises(ConfigError, match="quantities"):
        run_beside(studies, found, tmp_path / "out")


def test_a_gain_has_the_interval_of_patients_drawn_for_both(monkeypatch):
    monkeypatch.setattr(beside, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 40)
    patients = [f"p{number // 2}" for number in range(40)]
    tables = [
        pd.DataFrame(
            {"study": [f"s{n:02d}" for n in range(40)], "patient": patients, "label": np.where(label, "yes", "no"),
             "score_yes": np.clip(label * strength + rng.random(40), 0, 2) / 2}
        )
        for strength in (0.1, 0.6)
    ]  # fmt: skip
    naming = {"task": "binary", "classes": ("no", "yes"), "targets": ("label",)}
    found = gain(tables[0], tables[1].sample(frac=1, random_state=0), **naming)["auc"]
    by_hand = [roc_auc_score(label, table["score_yes"]) for table in tables]
    assert found["value"] == pytest.approx(by_hand[1] - by_hand[0])
    _, owners = np.unique(patients, return_inverse=True)
    changes = []
    for counts in np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=200):
        drawn = np.repeat(np.arange(40), counts[owners])
        own = [roc_auc_score(label[drawn], table["score_yes"].to_numpy()[drawn]) for table in tables]
        changes.append(own[1] - own[0])
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(changes, [2.5, 97.5]), atol=1e-9)
    with pytest.raises(LabelsError, match="not of the same studies"):
        gain(tables[0], tables[1].iloc[:-1], **naming)


# A run of volrec train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on motion phantoms, two studies a patient, in two folds."""
    root = tmp_path_factory.mktemp("volumes")
    volrec.make_phantoms(root / "data", task="motion", studies=16, size=32, slices=20, directions=2)
    labels = root / "data" / "labels.csv"
    table = pd.read_csv(labels, dtype=str)
    table["patient"] = [f"patient-{number // 2}" for number in range(16)]
    table.to_csv(labels, index=False)
    settings = {
        "network.name": "slice-mean", "network.width": 0.0625, "sampling.clip_length": 8, "split.folds": 2,
        "trainer.workers": 0, "trainer.accelerator": "cpu", "trainer.epochs": 1, "trainer.batches_per_epoch": 2,
        "optim.batch_size": 2, "augment.flip": {}, "protocol.flips": ["W"], "split.validation": 0.25,
        "intensity.kind": "window", "intensity.windows": ["soft-tissue"], "preprocess.canvas": [20, 32, 32],
        "store.folder": str(root / "store"),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLREC_CACHE", str(root / "cache"))
        return volrec.train(folder=root / "data", labels=labels, out=root / "run", overrides=settings)


@pytest.fixture(scope="module")
def studies(trained):
    return open_run(trained.folder)


@pytest.fixture(scope="module")
def tracked(studies):
    return study_trajectories(studies, settings=VolumeSettings(slice_mm=5.0, **SMALL), jobs=1)


def test_studies_of_a_run_are_tracked_as_the_run_sees_them(studies, tracked):
    assert set(tracked.files) == set(studies.names) and not tracked.problems
    study = studies.names[3]
    volume = studies.store.open(studies.entries[study])
    np.testing.assert_allclose(tracks.spacing_of(volume), (5, 10, 10))
    (window,) = own_windows(studies.config.intensity, volume.quantiles)
    by_hand = volume_trajectories(volume.read(), (5, 10, 10), window=window, **SMALL)
    np.testing.assert_array_equal(read_trajectories(tracked.files[study]).rows, by_hand.rows)
    assert tracked.counts[study] == len(by_hand) > 5


def test_what_was_tracked_is_not_tracked_again(studies, tracked, monkeypatch):
    settings, track = tracked.settings, tracks.volume_trajectories
    first, second, third = studies.names[:3]
    kept = {study: read_trajectories(path).rows for study, path in tracked.files.items()}
    times = {study: path.stat().st_mtime_ns for study, path in tracked.files.items()}
    tracked.files[first].unlink()
    tracked.files[second].write_bytes(b"half a file")
    calls = []

    def interrupted(*arguments, **given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return track(*arguments, **given)

    monkeypatch.setattr(tracks, "volume_trajectories", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study_trajectories(studies, settings=settings, jobs=1)
    np.testing.assert_array_equal(read_trajectories(tracked.files[first]).rows, kept[first])
    again = study_trajectories(studies, settings=settings, jobs=1)
    assert len(calls) == 3 and again.files == tracked.files and again.counts == tracked.counts
    for study, path in again.files.items():
        np.testing.assert_array_equal(read_trajectories(path).rows, kept[study])
    assert tracked.files[third].stat().st_mtime_ns == times[third]
    other = study_trajectories(studies, [third], settings=replace(settings, step_mm=80.0), jobs=1)
    assert other.files[third] != tracked.files[third] and other.counts[third] < tracked.counts[third]


def test_a_study_that_cannot_be_read_is_set_aside_and_the_others_go_on(studies, tracked, tmp_path):
    names = studies.names[:4]
    volume = studies.store.open(studies.entries[names[0]])
    store = Store(tmp_path / "store")
    entries = {}
    for number, name in enumerate(names):
        array = np.array(volume.array, np.float32)
        if number == 1:
            array[3, 4, 5] = np.nan
        own = replace(volume, array=array)
        entries[name] = write_entry(store.folder, f"{number:040x}", own, uid=name, format="npy")
    Path(entries[names[2]].path).write_bytes(b"nothing")
    entries[names[2]] = replace(entries[names[2]], verified=False)
    still = replace(volume, array=np.zeros((20, 32, 32), np.int16))
    entries[names[3]] = write_entry(store.folder, f"{9:040x}", still, uid=names[3], format="npy")
    found = study_trajectories(replace(studies, entries=entries, store=store), names, settings=tracked.settings, jobs=1)
    assert set(found.files) == {names[0], names[3]} and found.counts[names[3]] == 0
    assert [(one.study, one.code, one.fatal) for one in found.problems] == [
        (names[1], "shape", True), (names[2], "store-damaged", True), (names[3], "no-trajectories", False)
    ]  # fmt: skip


def test_windows_of_a_run_give_trajectories_each(studies, tracked):
    config = studies.config.model_copy(
        update={"intensity": IntensityConfig(kind="window", windows=["soft-tissue", "bone"])}
    )
    study = studies.names[0]
    both = study_trajectories(replace(studies, config=config), [study], settings=tracked.settings, jobs=1)
    rows = read_trajectories(both.files[study])
    one = read_trajectories(tracked.files[study]).rows
    np.testing.assert_array_equal(rows.rows[: len(one)], one)
    assert len(rows.facts["windows"]) == 2 and len(rows) > len(one)


def test_settings_whose_rows_cannot_be_encoded_are_refused(studies, tracked):
    settings = replace(tracked.settings, tracks=TrajectorySettings(length=9))
    with pytest.raises(ConfigError, match="length=15"):
        study_trajectories(studies, settings=settings)


def test_features_are_a_direct_forward_over_the_clips_of_the_protocol(trained, studies, tmp_path):
    member = load_members(trained.folder, device="cpu")[1]
    found = network_features(studies, member, folder=tmp_path)
    assert found.names == studies.names and not found.problems
    network, config = member.network.eval(), studies.config
    transform = BatchIntensity("window", windows=config.intensity.windows)
    for study in studies.names[:3]:
        volume = studies.store.open(studies.entries[study])
        protocol = config.protocol
        clips = protocol_clips(20, clip_length=8, clips=protocol.clips, overlap=protocol.overlap)
        assert len(clips) > 1
        each = []
        for clip in clips:
            images = transform(torch.from_numpy(volume.read(clip))[None, None])
            for seen in (images, images.flip(-1)):
                with torch.no_grad():
                    each.append(network.forward_head(network.forward_features(seen), pre_logits=True)[0].numpy())
        np.testing.assert_allclose(found.rows([study])[0], np.mean(each, axis=0), rtol=1e-4, atol=1e-6)


def test_features_are_kept_and_those_of_other_weights_are_others(trained, studies, tmp_path, monkeypatch):
    first, second = load_members(trained.folder, device="cpu")
    before = network_features(studies, first, folder=tmp_path)
    other = network_features(studies, second, folder=tmp_path)
    assert np.abs(before.vectors - other.vectors).max() > 1e-6
    monkeypatch.setattr(first.predictor, "features", None)
    np.testing.assert_array_equal(network_features(studies, first, folder=tmp_path).vectors, before.vectors)


def test_a_study_without_features_is_told_and_tried_again(trained, studies, tmp_path, monkeypatch):
    member = load_members(trained.folder, device="cpu")[0]
    read, calls = member.predictor.features, []

    def second_fails(volume):
        calls.append(1)
        if len(calls) == 2:
            raise DataError("it is torn.", remedy="Mend it.", code="torn")
        return read(volume)

    monkeypatch.setattr(member.predictor, "features", second_fails)
    found = network_features(studies, member, studies.names[:3], folder=tmp_path)
    assert found.names == (studies.names[0], studies.names[2])
    assert [(one.study, one.code) for one in found.problems] == [(studies.names[1], "torn")]
    again = network_features(studies, member, studies.names[:3], folder=tmp_path)
    assert again.names == studies.names[:3] and len(calls) == 4


def test_three_classifiers_are_measured_on_the_studies_of_the_run(trained, tmp_path, capsys):
    result = trajectories_beside(trained, tmp_path / "out", words=2, jobs=1, device="cpu", slice_mm=5.0, **SMALL)
    own = trained.scores
    assert list(result.scores) == ["network", "trajectories", "both"] and set(result.metrics) == {*result.scores, "run"}
    assert result.metrics["run"]["metrics"]["auc"] == trained.metrics["test"]["auc"]
    for table in result.scores.values():
        assert [name for name in table if name != "trajectories"] == [name for name in own if name != "clips"]
        joined = table.merge(own, on=["study", "patient", "fold", "direction"])
        assert len(joined) == len(table) == len(own) == 16
    first = result.gains["auc"]
    assert first["value"] == pytest.approx(
        result.metrics["both"]["metrics"]["auc"]["value"] - result.metrics["network"]["metrics"]["auc"]["value"]
    )
    assert first["low"] <= first["value"] <= first["high"]
    # The command gives the same numbers; what is there is not computed again.
    arguments = ["--words", "2", "--jobs", "1", "--slice-mm", "5", "--grid-mm", "10", "--patch-mm", "160"]
    capsys.readouterr()
    assert main(["benchmark", "volumes", str(trained.path), "--out", str(tmp_path / "out"), *arguments,
                 "--step-mm", "40"]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "16 test studies of 8 patients" in shown and "both minus network" in shown
    assert f"{result.metrics['trajectories']['metrics']['auc']['value']:.3f} [" in shown
    for arm, table in result.scores.items():
        again = pd.read_csv(tmp_path / "out" / f"scores-{arm}.csv", dtype={"study": str})
        pd.testing.assert_frame_equal(again, table, check_dtype=False)


def test_a_patient_renamed_into_two_parts_is_a_leak(trained):
    labels = Path(trained.config.data.labels)
    before = labels.read_text()
    table = pd.read_csv(labels, dtype=str)
    parts = trained.folder.read_table("splits").query("split == 'fold-0'")
    pair = [parts.query("part == @part")["study"].iloc[0] for part in ("train", "test")]
    table.loc[table["study"].isin(pair), "patient"] = "same"
    try:
        table.to_csv(labels, index=False)
        with pytest.raises(LabelsError, match="on two sides"):
            open_run(trained.folder)
        table.query("study != @pair[0]").to_csv(labels, index=False)
        with pytest.raises(LabelsError, match="not in the folder or its labels any more"):
            open_run(trained.folder)
        table.assign(direction=table["direction"].replace("left", "up")).to_csv(labels, index=False)
        with pytest.raises((RunError, LabelsError)):
            open_run(trained.folder)
    finally:
        labels.write_text(before)


def test_the_example_prints_three_aucs_with_intervals(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "examples" / "trajectories_across_slices.py"
    arguments = ["--studies", "24", "--epochs", "1", "--words", "3", "--jobs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [str(script), *arguments, "--set", "trainer.batches_per_epoch=2"])
    runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr().out
    assert "12 test studies" in shown
    for arm in ("its features", "trajectories", "both side by side"):
        assert re.search(rf"^  {arm} +[01]\.\d{{3}} \[[01]\.\d{{3}}, [01]\.\d{{3}}\]$", shown, flags=re.MULTILINE)
