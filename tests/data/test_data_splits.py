"""Splits: whole patients, every study tested once, even classes, the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from volrec.config import DataConfig, SplitConfig
from volrec.data.index import index
from volrec.data.labels import Case, Cohort, join
from volrec.data.phantoms import make_phantoms
from volrec.data.splits import PARTS, Split, check_leak, make_splits, read_splits, split_problems, write_splits
from volrec.errors import ConfigError, LabelsError

SERIES = SimpleNamespace()


def cohort_of(rows: list[tuple[str, object]], task: str = "binary", *, parts: list[str | None] | None = None) -> Cohort:
    """A cohort of studies ``s000`` …: rows of patient and target."""
    cases = tuple(
        Case(f"s{number:03d}", patient, SERIES, np.atleast_1d(np.float32(target)), parts[number] if parts else None)
        for number, (patient, target) in enumerate(rows)
    )
    width = len(cases[0].target)
    targets = tuple(f"t{n}" for n in range(width))
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "multilabel": targets, "regression": ()}[task]
    return Cohort(cases, task, targets, classes)


def even(patients: int, per: int = 1, classes: int = 2) -> list[tuple[str, object]]:
    return [(f"P{n // per:02d}", (n // per) % classes) for n in range(patients * per)]


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    """Any cohort: 1 to 4 studies a patient, any task, any imbalance."""
    task = draw(st.sampled_from(["binary", "multiclass", "multilabel", "regression"]))
    sizes = draw(st.lists(st.integers(1, 4), min_size=4, max_size=40))
    value = {
        "binary": st.integers(0, 1),
        "multiclass": st.integers(0, 2),
        "multilabel": st.lists(st.integers(0, 1), min_size=2, max_size=2),
        "regression": st.floats(-1e3, 1e3, width=32),
    }[task]
    rows = [(f"P{number}", draw(value)) for number, size in enumerate(sizes) for _ in range(size)]
    return cohort_of(rows, task)


def headed(rows: list[tuple[float, float]]) -> Cohort:
    """A cohort of two heads of 2 and 3 classes, a patient a study."""
    cohort = cohort_of([(f"P{number:02d}", row) for number, row in enumerate(rows)], "multilabel")
    classes = ("t0=a", "t0=b", "t1=x", "t1=y", "t1=z")
    return Cohort(cohort.cases, "multihead", ("t0", "t1"), classes)


def test_the_classes_of_every_head_are_spread_evenly():
    nan = float("nan")
    rows = [(n % 2, nan) for n in range(20)] + [(nan, n % 3) for n in range(30)]
    cohort = headed(rows)
    (split,) = make_splits(cohort, SplitConfig(validation=0.25, test=0.2))
    targets = {case.study: case.target for case in cohort.cases}
    for part, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        own = np.stack([targets[study] for study in split.part(part)])
        for head, (size, each) in enumerate(((2, 10), (3, 10))):
            counts = [(own[:, head] == index).sum() for index in range(size)]
            assert counts == [round(share * each)] * size


def test_a_rare_class_of_one_head_is_in_every_part():
    rows = [(n % 2, float("nan")) for n in range(20)] + [(n % 2, 0 if n < 10 else 1) for n in range(20)]
    cohort = headed([*rows, (0, 2), (1, 2), (0, 2)])
    (split,) = make_splits(cohort, SplitConfig())
    targets = {case.study: case.target for case in cohort.cases}
    assert all(any(targets[study][1] == 2 for study in split.part(part)) for part in PARTS)
    with pytest.raises(LabelsError, match=r"class 't1=z' has 3 patients, too few for 5 folds"):
        make_splits(cohort, SplitConfig(folds=5))


def test_a_head_without_two_classes_cannot_be_trained():
    with pytest.raises(LabelsError, match=r"target 't1' has studies of 1 class"):
        make_splits(headed([(n % 2, 1 if n < 5 else float("nan")) for n in range(20)]), SplitConfig())


def attempt(cohort: Cohort, config: SplitConfig) -> list[Split]:
    """Splits, or give the example up where the cohort is too small for them."""
    try:
        return make_splits(cohort, config)
    except LabelsError as error:
        assume(error.code != "few-patients")
        raise


configs = st.builds(
    SplitConfig,
    folds=st.sampled_from([0, 2, 3, 5]),
    validation=st.sampled_from([0.0, 0.1, 0.2, 0.4]),
    test=st.sampled_from([0.0, 0.2, 0.4]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=120, deadline=None)
@given(cohort=cohorts(), config=configs, random=st.randoms(use_true_random=False))
def test_whole_patients_every_study_once_and_the_same_in_any_order(cohort, config, random):
    splits = attempt(cohort, config)
    owner = {case.study: case.patient for case in cohort.cases}
    for split in splits:
        studies = [study for part in PARTS for study in split.part(part)]
        assert sorted(studies) == sorted(owner)
        patients = [{owner[study] for study in split.part(part)} for part in PARTS]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]
        assert split.train
        assert bool(split.validation) == (config.validation > 0)
    if config.folds:
        assert [split.name for split in splits] == [f"fold-{number}" for number in range(config.folds)]
        assert sorted(study for split in splits for study in split.test) == sorted(owner)
        assert all(split.test for split in splits)
    else:
        assert [split.name for split in splits] == ["split"]
        assert bool(splits[0].test) == (config.test > 0)
    shuffled = list(cohort.cases)
    random.shuffle(shuffled)
    assert make_splits(Cohort(tuple(shuffled), cohort.task, cohort.targets, cohort.classes), config) == splits


def test_another_seed_is_another_split():
    cohort = cohort_of(even(40))
    splits = [make_splits(cohort, SplitConfig(seed=seed))[0].test for seed in range(4)]
    assert len(set(splits)) == 4
    assert make_splits(cohort, SplitConfig(seed=2))[0].test == splits[2]


def share(split: Split, part: str, target: dict[str, float]) -> float:
    return float(np.mean([target[study] for study in split.part(part)]))


@pytest.mark.parametrize("positives", [0.5, 0.2, 0.08])
def test_classes_are_as_even_as_whole_numbers_allow(positives):
    rng = np.random.default_rng(3)
    labels = rng.random(200) < positives
    cohort = cohort_of([(f"P{n}", int(label)) for n, label in enumerate(labels)])
    target = {case.study: float(case.target[0]) for case in cohort.cases}
    for split in make_splits(cohort, SplitConfig(folds=5)):
        for part, share_of_all in (("test", 0.2), ("validation", 0.16), ("train", 0.64)):
            studies = split.part(part)
            assert abs(len(studies) - 200 * share_of_all) <= 2
            assert abs(sum(target[study] for study in studies) - labels.sum() * share_of_all) <= 1


def test_folds_are_at_least_as_even_as_scikit_learns():
    """The oracle spreads classes over folds too; patients of 1 to 6 studies of mixed classes."""
    rng = np.random.default_rng(0)
    rows = [(f"P{n}", int(rng.random() < 0.3)) for n in range(60) for _ in range(int(rng.integers(1, 7)))]
    cohort = cohort_of(rows)
    target = {case.study: float(case.target[0]) for case in cohort.cases}
    mine = [sum(target[study] for study in split.test) for split in make_splits(cohort, SplitConfig(folds=5))]
    labels = np.array([label for _, label in rows])
    oracle = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
        labels[:, None], labels, [patient for patient, _ in rows]
    )
    theirs = [labels[test].sum() for _, test in oracle]
    assert sum(mine) == sum(theirs)
    assert np.ptp(mine) <= max(np.ptp(theirs), 2)


def test_regression_and_multilabel_are_stratified_too():
    rng = np.random.default_rng(1)
    values = rng.lognormal(size=150)
    cohort = cohort_of([(f"P{n}", value) for n, value in enumerate(values)], "regression")
    top = set(np.array([case.study for case in cohort.cases])[values >= np.quantile(values, 0.8)])
    for split in make_splits(cohort, SplitConfig(folds=5)):
        assert len(top & set(split.test)) == 6
    labels = rng.random((150, 3)) < (0.5, 0.2, 0.06)
    cohort = cohort_of([(f"P{n}", row) for n, row in enumerate(labels)], "multilabel")
    place = {case.study: row for case, row in zip(cohort.cases, labels, strict=True)}
    for split in make_splits(cohort, SplitConfig(folds=5)):
        count = np.sum([place[study] for study in split.test], axis=0)
        assert np.all(np.abs(count - labels.sum(axis=0) / 5) <= 1.5)


def test_a_rare_class_reaches_every_part():
    cohort = cohort_of([(f"P{n:02d}", int(n < 3)) for n in range(60)])
    for seed in range(10):
        (split,) = make_splits(cohort, SplitConfig(seed=seed, test=0.1, validation=0.1))
        for part in PARTS:
            assert sum(study in ("s000", "s001", "s002") for study in split.part(part)) == 1
        assert split_problems(cohort, [split]) == []


# ---------------------------------------------------------------- what cannot be split


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (even(3), {"folds": 5}, "3 patients are too few for 5 folds: at least 5"),
        (even(1, per=8), {}, "1 patient is too few for training, validation and test: at least 3.*PatientID"),
        ([(f"P{n}", int(n < 3)) for n in range(20)], {"folds": 5}, "class 'yes' has 3 patients, too few for 5 folds"),
        ([(f"P{n}", int(n < 1)) for n in range(20)], {"folds": 5}, "class 'yes' has 1 patient, too few"),
        ([(f"P{n}", int(n < 1)) for n in range(20)], {}, "one class only: no test study of class 'yes'"),
        (
            [(f"P{n // 10}", int(n < 10)) for n in range(20)],
            {"folds": 2},
            "class 'no' has 1 patient, too few for 2 folds",
        ),
    ],
)
def test_too_few_patients_are_an_error_that_says_how_many(rows, config, message):
    with pytest.raises(LabelsError, match=message) as caught:
        make_splits(cohort_of(rows), SplitConfig(**config))
    assert caught.value.code == "few-patients"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("config", "where", "message"),
    [
        ({"folds": 1}, "split.folds", "no cross-validation"),
        ({"folds": 5, "fold": 5}, "split.fold", "no fold 5: folds count from 0 to 4"),
        ({"fold": 2}, "split.fold", "split.folds is 0"),
        ({"folds": 5, "fold": -1}, "split.fold", "no fold -1"),
    ],
)
def test_folds_that_are_not_there(config, where, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_splits(cohort_of(even(20)), SplitConfig(**config))
    assert caught.value.where == where


def test_a_fold_trained_alone_is_the_same_as_among_the_others():
    cohort = cohort_of(even(20))
    assert make_splits(cohort, SplitConfig(folds=4, fold=2)) == make_splits(cohort, SplitConfig(folds=4))


def test_a_class_that_a_part_lacks_is_a_problem():
    cohort = cohort_of(even(20))
    split = Split("fold-0", *(tuple(f"s{n:03d}" for n in range(*span)) for span in ((0, 10), (10, 11), (11, 20))))
    (problem,) = split_problems(cohort, [split])
    assert (problem.code, problem.where, problem.fatal) == ("class-missing", "fold-0", False)
    assert "No validation study of class 'yes'" in problem.reason


def test_no_studies_at_all():
    with pytest.raises(LabelsError, match="no study to split"):
        make_splits(Cohort((), "binary", ("t",), ("a", "b")), SplitConfig())


# ---------------------------------------------------------------- leaks


def test_a_leak_names_the_patients_and_the_table():
    cohort = cohort_of([("ANNA", 0), ("BERT", 1), ("ANNA", 0), ("CARL", 1), ("BERT", 1), ("BERT", 0)])
    split = Split("fold-3", ("s000", "s001"), ("s003", "s004"), ("s002", "s005"))
    with pytest.raises(LabelsError) as caught:
        check_leak([split], cohort, table="runs/x/splits.csv")
    text = str(caught.value)
    assert caught.value.code == "leak"
    assert caught.value.where == "runs/x/splits.csv"
    assert "2 on two sides of 'fold-3'" in text
    assert "patient ANNA (train and test)" in text
    assert "patient BERT (train and validation and test)" in text
    assert "CARL" not in text
    check_leak([Split("fold-3", ("s000", "s002"), ("s003",), ("s001", "s004", "s005"))], cohort)


def test_a_study_on_two_sides_is_a_leak_even_if_nobody_knows_it():
    with pytest.raises(LabelsError, match="study x"):
        check_leak([Split("split", ("x",), (), ("x",))], cohort_of(even(4)))


# ---------------------------------------------------------------- a column split


def test_a_split_column_is_obeyed():
    parts = ["train"] * 10 + ["validation"] * 4 + ["test"] * 6
    (split,) = make_splits(cohort_of(even(20), parts=parts), SplitConfig())
    assert [len(split.part(part)) for part in PARTS] == [10, 4, 6]
    assert split.test == tuple(f"s{n:03d}" for n in range(14, 20))


def test_validation_is_drawn_from_training_patients_where_the_column_names_none():
    rows = even(20, per=2)
    parts = ["train"] * 30 + ["test"] * 10
    cohort = cohort_of(rows, parts=parts)
    (split,) = make_splits(cohort, SplitConfig(validation=0.2))
    assert len(split.validation) == 6
    assert len(split.train) == 24
    assert split.test == tuple(f"s{n:03d}" for n in range(30, 40))
    check_leak([split], cohort)
    (split,) = make_splits(cohort, SplitConfig(validation=0))
    assert (len(split.train), split.validation) == (30, ())


def test_a_split_column_that_leaks_is_refused():
    cohort = cohort_of([("ANNA", 0), ("BERT", 1), ("ANNA", 1), ("CARL", 0)], parts=["train", "train", "test", "test"])
    with pytest.raises(LabelsError, match=r"column split.*patient ANNA \(train and test\)") as caught:
        make_splits(cohort, SplitConfig())
    assert caught.value.code == "leak"


def test_a_split_column_does_not_go_with_folds_or_without_training():
    parts = ["train"] * 10 + ["test"] * 10
    with pytest.raises(ConfigError, match="5 folds are asked for"):
        make_splits(cohort_of(even(20), parts=parts), SplitConfig(folds=5))
    with pytest.raises(LabelsError, match="names no training study"):
        make_splits(cohort_of(even(20), parts=["test"] * 20), SplitConfig())
    with pytest.raises(LabelsError, match="no training study of class 'yes'"):
        make_splits(cohort_of(even(20), parts=["test" if n % 2 else "train" for n in range(20)]), SplitConfig())


# ---------------------------------------------------------------- tables


@settings(max_examples=30, deadline=None)
@given(cohort=cohorts(), config=configs)
def test_a_table_gives_back_what_was_written(tmp_path_factory, cohort, config):
    splits = attempt(cohort, config)
    path = write_splits(tmp_path_factory.mktemp("run") / "splits.csv", splits, cohort)
    assert read_splits(path, cohort) == splits


def test_a_table_that_was_changed_is_checked(tmp_path):
    cohort = cohort_of(even(10, per=2))
    path = write_splits(tmp_path / "splits.csv", make_splits(cohort, SplitConfig()), cohort)
    good = path.read_text()
    path.write_text(good.replace("split,train,s", "split,training,s", 1))
    with pytest.raises(LabelsError, match="'training' is none of train, validation, test"):
        read_splits(path)
    path.write_text(good.replace("split,train,s", "split,test,s", 1))
    with pytest.raises(LabelsError, match=r"splits\.csv: 1 on two sides"):
        read_splits(path, cohort)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(LabelsError, match="it has the columns a, b"):
        read_splits(path)


def test_from_phantoms_to_folds(tmp_path):
    """The whole chain: files, index, labels, folds."""
    folder: Path = make_phantoms(tmp_path / "ct", studies=10, size=16, slices=12, seed=9)
    cohort = join(index(folder), folder / "labels.csv", DataConfig())
    splits = make_splits(cohort, SplitConfig(folds=5))
    tested = Counter(study for split in splits for study in split.test)
    assert tested == Counter(f"nodule-{number:05d}" for number in range(10))
    assert all(len(split.test) == 2 for split in splits)
    order = list(cohort.cases)
    random.Random(0).shuffle(order)
    assert (
        make_splits(Cohort(tuple(order), cohort.task, cohort.targets, cohort.classes), SplitConfig(folds=5)) == splits
    )
