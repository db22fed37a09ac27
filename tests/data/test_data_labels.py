"""Tables as people save them, brought to studies: what is used, what is inferred, what is named as wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trees import make_series, write_nifti, write_series

from volrec.config import DataConfig
from volrec.data.index import StudyIndex, StudyRecord, index
from volrec.data.label_table import read_table, to_number
from volrec.data.labels import Cohort, join, num_outputs, read_labels
from volrec.data.slice_labels import slice_positions
from volrec.data.targets import infer_coding
from volrec.errors import LabelsError, Problem


def study_index(root: Path, patients: dict[str, str], problems: tuple[Problem, ...] = ()) -> StudyIndex:
    """An index of studies without files: study to patient."""
    records = [
        StudyRecord(
            study,
            patient,
            f"ct/{study}",
            make_series(f"ct/{study}", root=root, uid=f"1.{number}", patient=patient),
            (),
            "the only one",
            frozenset({study, f"ct/{study}", f"1.2.{number}", str(root / "ct" / study)}),
        )
        for number, (study, patient) in enumerate(patients.items())
    ]
    scan = SimpleNamespace(tree=SimpleNamespace(root=root, files=[], hidden=0), read=0, files={})
    return StudyIndex(root, records, list(problems), [], scan)


NAMES = [f"{number:03d}" for number in range(12)]


@pytest.fixture
def found(tmp_path) -> StudyIndex:
    return study_index(tmp_path, {name: f"P{name}" for name in NAMES})


def table(folder: Path, text: str, name: str = "labels.csv", *, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def rows(values: dict[str, object], head: str = "study,label") -> str:
    return "\n".join([head, *(f"{name},{value}" for name, value in values.items())]) + "\n"


def labelled(tmp_path: Path, found: StudyIndex, values: list[object], **options: object) -> Cohort:
    path = table(tmp_path, rows(dict(zip(NAMES, values, strict=False))))
    return join(found, path, DataConfig(**options))


def codes(cohort: Cohort) -> list[str]:
    return [problem.code for problem in cohort.problems]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_is_read_as_people_save_it(tmp_path, delimiter, encoding, newline):
    lines = [["Study", " label ", "größe"], ["007", " 1", "3,5"], ["", "", ""], [" 0x1F ", "0 ", "4"]]
    if delimiter == ",":
        lines[1][2] = '"3,5"'
    text = newline.join(delimiter.join(line) for line in lines) + newline
    read = read_table(table(tmp_path, text, encoding=encoding))
    assert list(read.columns) == ["Study", "label", "größe"]
    assert read.to_numpy().tolist() == [["007", "1", "3,5"], ["0x1F", "0", "4"]]
    assert list(read.index) == [2, 4]


def test_a_quoted_line_break_and_trailing_delimiters_are_no_trouble(tmp_path):
    read = read_table(table(tmp_path, 'study,label,note,\na,1,"two\nlines",\nb,0,one,\n'))
    assert read["note"].tolist() == ["two\nlines", "one"]
    assert read["label"].tolist() == ["1", "0"]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "labels-empty", "empty"),
        (b"  \n\n", "labels-empty", "empty"),
        (b"study,label\n", "labels-empty", "no rows"),
        (b"PK\x03\x04rest", "labels-format", "no text file"),
        (b"study,label\na,1\nb,1,2\n", "labels-format", "line 3 has 3 cells, the header has 2"),
        (b"study,label,Label\na,1,1\n", "labels-columns", "'label' stands there twice"),
        (b"study,,label\na,1,1\n", "labels-columns", "no name"),
        (
            b"Patients,label\na,1\n",
            "labels-columns",
            "no column 'study', 'patient' or 'path'.*Patients, label.*'Patients'",
        ),
        (b"study,patient,split\na,a,train\n", "labels-columns", "no target column"),
    ],
)
def test_a_file_that_is_no_table_of_labels_is_an_error(tmp_path, content, code, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(LabelsError, match=message) as caught:
        read_labels(path)
    assert caught.value.code == code
    assert caught.value.where == str(path)
    assert caught.value.remedy


def test_a_table_that_is_not_there_or_cannot_be_read(tmp_path):
    with pytest.raises(LabelsError, match="no such file"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(LabelsError, match="cannot be read"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1.0),
        ("-2,5", -2.5),
        ("1e3", 1000.0),
        ("inf", None),
        ("nan", None),
        ("1_0", None),
        ("1,2,3", None),
        ("x", None),
    ],
)
def test_numbers(text, number):
    assert to_number(text) == number


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize(
    ("values", "task", "classes", "targets"),
    [
        ([0, 1] * 6, "binary", ("0", "1"), [0, 1]),
        (["0.0", "1.0"] * 6, "binary", ("0", "1"), [0, 1]),
        (["2", "1"] * 6, "binary", ("1", "2"), [1, 0]),
        (["malignant", "benign"] * 6, "binary", ("benign", "malignant"), [1, 0]),
        (["abnormal", "normal"] * 6, "binary", ("normal", "abnormal"), [1, 0]),
        (["True", "false"] * 6, "binary", ("false", "true"), [1, 0]),
        (["01", "10"] * 6, "binary", ("01", "10"), [0, 1]),
        (["b", "c", "a"] * 4, "multiclass", ("a", "b", "c"), [1, 2, 0]),
        (["10", "9", "1"] * 4, "multiclass", ("1", "9", "10"), [2, 1, 0]),
        ([1.5, 2, 3] * 4, "regression", (), [1.5, 2, 3]),
        (['"1,5"', 2, 3] * 4, "regression", (), [1.5, 2, 3]),
        (list(range(12)), "regression", (), [0, 1, 2]),
    ],
)
def test_the_task_is_inferred_and_said(tmp_path, found, values, task, classes, targets):
    cohort = labelled(tmp_path, found, values)
    assert (cohort.task, cohort.classes, cohort.targets) == (task, classes, ("label",))
    np.testing.assert_array_equal([case.target[0] for case in cohort.cases[: len(targets)]], np.float32(targets))
    assert all(case.target.dtype == np.float32 and case.target.shape == (1,) for case in cohort.cases)
    assert any(note.startswith(f"task: {task}") for note in cohort.notes)
    assert any("'label', the only column left" in note for note in cohort.notes)
    assert codes(cohort) == []


def test_the_positive_class_is_said_and_can_be_turned(tmp_path, found):
    cohort = labelled(tmp_path, found, ["a", "b"] * 6)
    assert any("positive class: 'b'" in note for note in cohort.notes)
    cohort = labelled(tmp_path, found, ["a", "b"] * 6, classes=["b", "a"])
    assert cohort.classes == ("b", "a")
    assert [case.target[0] for case in cohort.cases[:2]] == [1, 0]


def test_a_task_that_is_asked_for_is_obeyed(tmp_path, found):
    assert labelled(tmp_path, found, [1, 2, 3] * 4).task == "multiclass"
    assert labelled(tmp_path, found, [1, 2, 3] * 4, task="regression").task == "regression"
    assert labelled(tmp_path, found, [0, 1] * 6, task="multilabel").classes == ("label",)
    cohort = labelled(tmp_path, found, [0, 1] * 6, task="multiclass", classes=["0", "1", "2"])
    assert (cohort.task, cohort.classes) == ("multiclass", ("0", "1", "2"))


@pytest.mark.parametrize(
    ("values", "options", "code", "message"),
    [
        (["a"] * 12, {}, "one-class", "all 12 studies are of one class \\('a'\\)"),
        ([1] * 12, {}, "one-class", "one class \\('1'\\)"),
        ([4.5] * 12, {"task": "regression"}, "one-class", "'label' is the same for all 12"),
        (["a"] * 12, {"classes": ["a", "b"]}, "one-class", "one class"),
        (["nan"] * 12, {}, "labels-nan", "no study has a value in column 'label'"),
        (["a", "b", "c"] * 4, {"task": "binary"}, "labels-task", "has 3 classes"),
        (["a", "b"] * 6, {"task": "regression"}, "labels-value", "'a', 'b', which are no numbers"),
        (["a", "b"] * 6, {"classes": ["a", "c"]}, "labels-classes", "also holds 'b'"),
        (["a", "b"] * 6, {"classes": ["a", "b", "b"]}, "labels-classes", "twice"),
        ([1.5, 2.5] * 6, {"task": "regression", "classes": ["a"]}, "labels-classes", "does not fit a regression"),
        ([0, 2] * 6, {"task": "multilabel"}, "labels-value", "holds '2'"),
        ([f"note {n}" for n in range(12)], {}, "labels-task", "12 different words for 12 studies"),
        ([*range(11), "high"], {}, "labels-value", "numbers, but also 'high'"),
        ([0, 1] * 6, {"target": ["lable"]}, "labels-target", "no target column 'lable'.*Did you mean 'label'"),
        ([0, 1] * 6, {"target": ["study"]}, "labels-target", "no target column 'study'"),
    ],
)
def test_values_that_fit_no_task_are_an_error(tmp_path, found, values, options, code, message):
    with pytest.raises(LabelsError, match=message) as caught:
        labelled(tmp_path, found, values, **options)
    assert caught.value.code == code
    assert caught.value.where.endswith("labels.csv")
    assert caught.value.remedy


def wide(tmp_path: Path) -> Path:
    lines = [f"{name},{n % 2},{n // 6},{n + 0.5},site,remark {n}" for n, name in enumerate(NAMES)]
    return table(tmp_path, "\n".join(["study,bleed,tumour,size,where,remark", *lines]))


def test_of_several_columns_the_first_with_classes_is_taken_and_the_others_are_named(tmp_path, found):
    cohort = join(found, wide(tmp_path), DataConfig())
    assert cohort.targets == ("bleed",)
    (note,) = [note for note in cohort.notes if note.startswith("target")]
    assert "the first of 3 columns that holds classes" in note
    assert "(tumour, size) with --target" in note


@pytest.mark.parametrize(
    ("columns", "target"),
    [("sex,size,bleed", "bleed"), ("sex,bleed,Diagnosis", "Diagnosis"), ("age,size", "size"), ("age,sex", "sex")],
)
def test_covariates_are_not_taken_for_the_target(columns, target, tmp_path, found):
    makers = {"age": lambda n: 40 + n, "sex": lambda n: "MF"[n % 2], "size": lambda n: n + 0.5}
    lines = [
        ",".join([name, *(str(makers.get(column, lambda n: n // 6)(n)) for column in columns.split(","))])
        for n, name in enumerate(NAMES)
    ]
    cohort = join(found, table(tmp_path, "\n".join([f"study,{columns}", *lines])), DataConfig())
    assert cohort.targets == (target,)


def test_a_table_in_which_nothing_varies_has_no_target(tmp_path, found):
    lines = [f"{name},1,x" for name in NAMES]
    with pytest.raises(LabelsError, match="none of its 2 columns varies"):
        join(found, table(tmp_path, "\n".join(["study,bleed,where", *lines])), DataConfig())


def test_the_only_useful_column_is_taken_and_said(tmp_path, found):
    lines = [f"{name},{n % 2},site,remark {n}" for n, name in enumerate(NAMES)]
    cohort = join(found, table(tmp_path, "\n".join(["study,bleed,where,remark", *lines])), DataConfig())
    assert cohort.targets == ("bleed",)
    assert any("where, remark" in note for note in cohort.notes)


def test_several_targets(tmp_path, found):
    path = wide(tmp_path)
    cohort = join(found, path, DataConfig(target=["Bleed", "tumour"]))
    assert (cohort.task, cohort.classes) == ("multilabel", ("bleed", "tumour"))
    np.testing.assert_array_equal(cohort.cases[7].target, [1, 1])
    assert num_outputs(cohort.task, cohort.classes, cohort.targets) == 2
    cohort = join(found, path, DataConfig(target=["size", "tumour"]))
    assert (cohort.task, cohort.classes) == ("regression", ())
    np.testing.assert_array_equal(cohort.cases[7].target, [7.5, 1])
    # A plan is joined again with the classes that it wrote.
    again = join(found, path, DataConfig(target=["bleed", "tumour"], task="multilabel", classes=["bleed", "tumour"]))
    assert again.classes == ("bleed", "tumour")
    with pytest.raises(LabelsError, match="has one target, got 2"):
        join(found, path, DataConfig(target=["bleed", "tumour"], task="binary"))
    with pytest.raises(LabelsError, match="neither all 0 and 1") as caught:
        join(found, path, DataConfig(target=["bleed", "where"]))
    assert "data.task=multihead" in caught.value.remedy
    with pytest.raises(LabelsError, match="'where' holds 'site'"):
        join(found, path, DataConfig(target=["bleed", "where"], task="multilabel"))


def heads_table(tmp_path: Path, lines: list[str], head: str = "study,organ,side") -> Path:
    return table(tmp_path, "\n".join([head, *(f"{name},{line}" for name, line in zip(NAMES, lines, strict=False))]))


HEADS = DataConfig(target=["organ", "side"], task="multihead")
HALVES = ["liver,left", "lung,", ",right", "spleen,right", "lung,?", ","]


def test_each_target_has_classes_of_its_own_and_cells_may_be_empty(tmp_path, found):
    cohort = join(found, heads_table(tmp_path, HALVES), HEADS)
    assert (cohort.task, cohort.targets) == ("multihead", ("organ", "side"))
    assert cohort.classes == ("organ=liver", "organ=lung", "organ=spleen", "side=left", "side=right")
    nan = np.nan
    targets = np.stack([case.target for case in cohort.cases])
    np.testing.assert_array_equal(targets, [[0, 0], [1, nan], [nan, 1], [2, 1], [1, nan]])
    assert targets.dtype == np.float32
    assert codes(cohort).count("label-empty") == 1  # the one with neither
    assert num_outputs(cohort.task, cohort.classes, cohort.targets) == 5
    assert "heads: 'organ' of 3 classes (4 studies), 'side' of 2 classes (3 studies)" in cohort.notes
    # A plan is joined again with the classes that it wrote.
    assert join(found, heads_table(tmp_path, HALVES), replaced(list(cohort.classes))).classes == cohort.classes


def replaced(classes: list[str]) -> DataConfig:
    return HEADS.model_copy(update={"classes": classes})


def test_new_studies_may_lack_all_of_what_a_head_has_learned(tmp_path, found):
    wanted = ["side=right", "side=left", "organ=lung", "organ=liver"]
    cohort = join(found, heads_table(tmp_path, [",left", ",right", ",left"]), replaced(wanted))
    assert cohort.classes == ("organ=lung", "organ=liver", "side=right", "side=left")
    np.testing.assert_array_equal([case.target[1] for case in cohort.cases], [1, 0, 1])
    assert np.isnan([case.target[0] for case in cohort.cases]).all()
    with pytest.raises(LabelsError, match="the same for all studies"):
        join(found, heads_table(tmp_path, [",left", ",left"]), replaced(wanted))


@pytest.mark.parametrize(
    ("lines", "options", "code", "message"),
    [
        (HALVES, {"target": ["organ"]}, "labels-task", "several targets, got 1"),
        (["liver,left", "lung,left"], {}, "one-class", "target 'side' has one class only"),
        (["liver,", "lung,"], {}, "labels-nan", "'side' is empty"),
        (HALVES, {"classes": ["organ=liver", "left"]}, "labels-classes", "holds 'left'; .* column=class"),
        (HALVES, {"classes": ["organ=liver", "organ=lung"]}, "labels-classes", "'organ' also holds 'spleen'"),
        (HALVES, {"task": "multiclass"}, "labels-task", "a multiclass task has one target, got 2"),
    ],
)
def test_heads_that_cannot_be_are_an_error(tmp_path, found, lines, options, code, message):
    with pytest.raises(LabelsError, match=message) as caught:
        join(found, heads_table(tmp_path, lines), HEADS.model_copy(update=options))
    assert caught.value.code == code


def test_a_column_with_the_sign_between_target_and_class_is_refused(tmp_path, found):
    path = heads_table(tmp_path, HALVES, head="study,organ=x,side")
    with pytest.raises(LabelsError, match="holds '='"):
        join(found, path, HEADS.model_copy(update={"target": ["organ=x", "side"]}))


def test_slice_labels_do_not_go_with_several_heads(tmp_path, found):
    marks = table(tmp_path, "study,slice,label\n000,0,liver\n", "slices.csv")
    with pytest.raises(LabelsError, match="slice labels are those of one target"):
        join(found, heads_table(tmp_path, HALVES), HEADS.model_copy(update={"slice_labels": str(marks)}))


def test_num_outputs():
    assert num_outputs("binary", ("a", "b"), ("x",)) == 1
    assert num_outputs("multiclass", ("a", "b", "c"), ("x",)) == 3
    assert num_outputs("multilabel", ("x", "y"), ("x", "y")) == 2
    assert num_outputs("regression", (), ("x", "y", "z")) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "B", "10", "9", "01", "1.0"]), min_size=6, max_size=40), st.randoms())
def test_the_coding_hangs_on_the_values_and_not_on_their_order(cells, random):
    shuffled = list(cells)
    random.shuffle(shuffled)
    assume(len(set(cells)) > 1)
    one, other = (infer_coding({"x": values}, task="multiclass") for values in (cells, shuffled))
    assert one == other
    assert all(0 <= one.value(cell) < len(one.classes) for cell in cells)
    assert {one.classes[int(one.value(cell))] for cell in cells} == set(one.classes)


# ---------------------------------------------------------------- whose label it is


def test_ids_are_text_and_spaces_do_not_count(tmp_path, found):
    cohort = join(found, table(tmp_path, "study;label\n 007 ;1\n  008;0\n"), DataConfig())
    assert [case.study for case in cohort.cases] == ["007", "008"]
    assert [case.patient for case in cohort.cases] == ["P007", "P008"]
    assert cohort.cases[0].series.patient_id == "P007"
    assert codes(cohort) == ["study-without-label"] * 10


@pytest.mark.parametrize("name", ["ct/{}", "./ct/{}", "ct\\{}", "ct/{}/", "{root}/ct/{}", "{}", "../{folder}/ct/{}"])
def test_a_path_is_found_however_it_is_written(tmp_path, found, name):
    def written(study: str) -> str:
        return name.format(study, root=tmp_path, folder=tmp_path.name)

    path = table(tmp_path, rows({written("003"): 1, written("004"): 0}, "path,label"))
    cohort = join(found, path, DataConfig())
    assert {case.study: case.target[0] for case in cohort.cases} == {"003": 1, "004": 0}


def test_a_path_may_be_relative_to_the_table(tmp_path, found):
    (tmp_path / "ct").mkdir()
    path = table(tmp_path / "ct", rows({"003": 1, "./004": 0}, "path,label"))
    renamed = StudyIndex.__new__(StudyIndex)
    renamed.__dict__ = dict(found.__dict__)
    renamed.studies = [replace(record, aliases=record.aliases - {record.study}) for record in found.studies]
    assert [case.study for case in join(renamed, path, DataConfig()).cases] == ["003", "004"]


def test_path_goes_before_study_before_patient(tmp_path, found):
    cohort = join(found, table(tmp_path, "study,path,label\n001,ct/002,1\n002,ct/001,0\n"), DataConfig())
    assert {case.study: case.target[0] for case in cohort.cases} == {"002": 1, "001": 0}


def test_a_column_that_fits_nothing_is_passed_over_and_said(tmp_path, found):
    cohort = join(found, table(tmp_path, "path,study,label\n/old/1.nii,001,1\n/old/2.nii,002,0\n"), DataConfig())
    assert [case.study for case in cohort.cases] == ["001", "002"]
    assert any("'study' names the studies: 'path' fits none" in note for note in cohort.notes)


def test_a_patients_label_holds_for_all_studies_of_the_patient(tmp_path):
    found = study_index(tmp_path, {"a": "P1", "b": "P1", "c": "P2"})
    cohort = join(found, table(tmp_path, "Patient,label\nP1,1\nP2,0\n"), DataConfig())
    assert {case.study: case.target[0] for case in cohort.cases} == {"a": 1, "b": 1, "c": 0}
    assert any("all studies of that patient" in note for note in cohort.notes)


def test_labels_without_a_study_and_studies_without_a_label_are_named(tmp_path):
    broken = Problem("ct/020", "truncated", "slice 4 is cut off.", "Copy it again.", "020")
    found = study_index(tmp_path, {name: f"P{name}" for name in NAMES}, (broken,))
    path = table(tmp_path, rows({"000": 0, "001": 1, "002x": 1, "020": 1, "elsewhere": 0, "": 1}))
    cohort = join(found, path, DataConfig())
    assert [case.study for case in cohort.cases] == ["000", "001"]
    lost = {problem.where: problem for problem in cohort.problems if problem.code == "label-without-study"}
    assert set(lost) == {f"{path}:{line}" for line in (4, 5, 6, 7)}
    assert "'002x'" in lost[f"{path}:4"].reason
    assert lost[f"{path}:4"].remedy == "Is it '002'?"
    assert "truncated: slice 4 is cut off" in lost[f"{path}:5"].reason
    assert "Add it to the folder" in lost[f"{path}:6"].remedy
    assert "is empty" in lost[f"{path}:7"].reason
    without = [problem for problem in cohort.problems if problem.code == "study-without-label"]
    assert [problem.study for problem in without] == NAMES[2:]
    assert all(problem.fatal for problem in cohort.problems)


def test_a_table_of_other_studies_is_an_error_that_shows_both_sides(tmp_path, found):
    with pytest.raises(LabelsError, match=r"holds x1, x2; the folder holds 000, 001, 002 … \(12 in all\)") as caught:
        join(found, table(tmp_path, rows({"x1": 0, "x2": 1})), DataConfig())
    assert caught.value.code == "labels-unknown"


def test_empty_labels_leave_their_study_out(tmp_path, found):
    cohort = labelled(tmp_path, found, [0, 1, "NaN", "", "n/a", "?", 0, 1, 0, 1, 0, 1])
    assert [case.study for case in cohort.cases] == ["000", "001", *NAMES[6:]]
    empty = [problem for problem in cohort.problems if problem.code == "label-empty"]
    assert [problem.study for problem in empty] == ["002", "003", "004", "005"]
    assert all("'label'" in problem.reason and problem.fatal for problem in empty)


def test_none_can_be_a_class(tmp_path, found):
    cohort = labelled(tmp_path, found, ["fracture", "none"] * 6)
    assert cohort.classes == ("none", "fracture")


def test_rows_that_say_the_same_are_one_and_rows_that_do_not_are_an_error(tmp_path, found):
    cohort = join(found, table(tmp_path, "study,label\n001,1\nct/001,1\n002,0\n"), DataConfig())
    assert [case.study for case in cohort.cases] == ["001", "002"]
    with pytest.raises(LabelsError, match=r"contradict each other.*001 \(lines 2, 3\)") as caught:
        join(found, table(tmp_path, "study,label\n001,1\nct/001,0\n002,0\n"), DataConfig())
    assert caught.value.code == "labels-contradiction"


def test_a_label_on_a_folder_of_two_patients_is_quarantined_with_both_ids(tmp_path):
    for patient in ("ALICE", "BOB"):
        write_series(tmp_path / "mixed", study=patient, patient=patient, name=f"{patient}-{{:03d}}.dcm")
    for number in range(2):
        write_series(tmp_path / f"clean{number}", study=str(number), patient=f"C{number}")
    path = table(tmp_path, rows({"mixed": 1, "clean0": 0, "clean1": 1}))
    cohort = join(index(tmp_path), path, DataConfig())
    assert [case.study for case in cohort.cases] == ["clean0", "clean1"]
    (problem,) = [problem for problem in cohort.problems if problem.code == "several-patients"]
    assert "ALICE, BOB" in problem.reason
    assert problem.fatal
    assert codes(cohort).count("study-without-label") == 2
    cohort = join(index(tmp_path), table(tmp_path, rows({"ALICE": 1, "BOB": 0}, "patient,label")), DataConfig())
    assert sorted(case.patient for case in cohort.cases) == ["ALICE", "BOB"]


def test_a_label_on_a_folder_of_two_studies_of_one_patient_is_not_guessed(tmp_path):
    for study in ("before", "after"):
        write_series(tmp_path / "anna" / study, study=study, patient="ANNA")
    for number in range(2):
        write_series(tmp_path / f"clean{number}", study=str(number), patient=f"C{number}")
    cohort = join(index(tmp_path), table(tmp_path, rows({"anna": 1, "clean0": 0, "clean1": 1})), DataConfig())
    (problem,) = [problem for problem in cohort.problems if problem.code == "several-studies"]
    assert "after" in problem.reason
    assert "before" in problem.reason


def test_the_table_says_who_is_one_patient(tmp_path, found):
    """NIfTI files name no patient: without the column every study would be its own."""
    lines = [f"{name},{n % 2},anna{n // 2}" for n, name in enumerate(NAMES)]
    cohort = join(found, table(tmp_path, "\n".join(["study,label,patient", *lines])), DataConfig())
    assert [case.patient for case in cohort.cases] == [f"anna{n // 2}" for n in range(12)]
    assert codes(cohort) == []


def test_one_patient_by_the_files_stays_together_whatever_the_table_says(tmp_path):
    found = study_index(tmp_path, {"a": "P1", "b": "P1", "c": "P2", "d": "P3"})
    path = table(tmp_path, "study,label,patient\na,0,X\nb,1,Y\nc,0,Y\nd,1,Z\n")
    cohort = join(found, path, DataConfig())
    assert [case.patient for case in cohort.cases] == ["X", "X", "X", "Z"]
    (problem,) = cohort.problems
    assert (problem.code, problem.fatal) == ("patients-differ", False)
    assert "X, Y" in problem.reason


# ---------------------------------------------------------------- split column


def test_a_split_column_is_read_in_any_dialect(tmp_path, found):
    parts = ["train", "Training", "VAL", "validation", "valid", "Test", "testing", "tr", "dev", "ts", "train", "train"]
    lines = [f"{name},{n % 2},{part}" for n, (name, part) in enumerate(zip(NAMES, parts, strict=True))]
    cohort = join(found, table(tmp_path, "\n".join(["study,label,Split", *lines])), DataConfig())
    short = {"train": "t", "validation": "v", "test": "e"}
    assert "".join(short[case.split] for case in cohort.cases) == "ttvvveetvett"


def test_a_split_column_that_is_empty_is_none_and_one_with_holes_is_an_error(tmp_path, found):
    cohort = join(found, table(tmp_path, "study,label,split\n001,1,\n002,0,\n"), DataConfig())
    assert {case.split for case in cohort.cases} == {None}
    with pytest.raises(LabelsError, match="'split' is empty for 002") as caught:
        join(found, table(tmp_path, "study,label,split\n001,1,train\n002,0,\n"), DataConfig())
    assert caught.value.code == "labels-split"
    with pytest.raises(LabelsError, match="holds 'trian'"):
        join(found, table(tmp_path, "study,label,split\n001,1,train\n002,0,trian\n"), DataConfig())


# ---------------------------------------------------------------- slices


def slice_case(tmp_path: Path, text: str, **options: object) -> Cohort:
    """Two CT studies of four slices, 5 mm apart from z = 0, and slice labels."""
    for name in ("a", "b"):
        write_series(tmp_path / "ct" / name, study=name, patient=name)
    marks = table(tmp_path, text, "slice_labels.csv")
    labels = table(tmp_path, rows({"a": 0, "b": 1}))
    return join(index(tmp_path / "ct"), labels, DataConfig(slice_labels=str(marks), **options))


def test_slices_are_named_by_number_or_by_place(tmp_path):
    found = slice_case(tmp_path, "study,slice,label\nb,3,1\nb,0,0\n")
    places = slice_positions(found.cases[1].series)
    assert found.cases[0].slice_targets is None
    expected = np.float32([0, np.nan, np.nan, 1])
    np.testing.assert_array_equal(found.cases[1].slice_targets, expected)
    assert found.cases[1].slice_targets.dtype == np.float32
    by_place = slice_case(tmp_path, f"study,z,label\nb,{places[3] + 2},1\nb,{places[0] - 2},0\n")
    np.testing.assert_array_equal(by_place.cases[1].slice_targets, expected)
    both = slice_case(tmp_path, f"study,slice,z,label\nb,3,{places[3]},1\nb,,{places[0]},0\n")
    np.testing.assert_array_equal(both.cases[1].slice_targets, expected)


def test_slice_numbers_count_upwards_as_the_volume_does(tmp_path):
    """The oracle is the volume: its affine says where slice 0 is."""
    from volrec.io import read_series

    cohort = slice_case(tmp_path, "study,slice,label\nb,0,1\n")
    volume = read_series(cohort.cases[1].series)
    places = (volume.affine @ np.array([[t, 0, 0, 1] for t in range(4)]).T)[2]
    np.testing.assert_allclose(slice_positions(cohort.cases[1].series), places, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1, 1, 3), (3, 1, 1), (1, 3, 1)])
def test_slice_places_of_nifti_are_those_of_the_volume(tmp_path, spacing):
    from volrec.io import read_series

    write_nifti(tmp_path / "one.nii.gz", spacing=spacing)
    (record,) = index(tmp_path).studies
    volume = read_series(record.series)
    middle = [(size - 1) / 2 for size in volume.array.shape[2:]]
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[record.series.orientation]
    count = volume.array.shape[1]
    expected = (volume.affine @ np.array([[t, *middle, 1] for t in range(count)]).T)[axis]
    np.testing.assert_allclose(slice_positions(record.series), expected, atol=1e-5)
    assert (axis, len(expected)) == (spacing.index(3), (8, 6, 5)[axis])


def test_slice_places_bridge_a_missing_slice(tmp_path):
    for path in write_series(tmp_path / "a", study="a", slices=6)[2:3]:
        path.unlink()
    (record,) = index(tmp_path, missing_slices="interpolate").studies
    assert record.series.missing == (2,)
    np.testing.assert_allclose(np.diff(slice_positions(record.series)), 5)
    assert len(slice_positions(record.series)) == 6


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("study,number,label\nb,1,1\n", "labels-columns", "study, label, and slice or z"),
        ("study,slice,label\nb,1.5,1\n", "labels-value", "'1.5' in column slice is no whole number"),
        ("study,slice,label\nb,x,1\n", "labels-value", "'x' in column slice"),
        ("study,slice,label\nb,1,maybe\n", "labels-value", "'maybe' is none of the classes 0, 1"),
        ("study,slice,label\nb,1,1\nb,1,0\n", "labels-contradiction", "slice 1 of b has two labels"),
        ("study,slice,z,label\nb,1,999,1\n", "slice-labels", "slice 1 of b lies at .* the table says 999"),
    ],
)
def test_slice_labels_that_make_no_sense_are_an_error(tmp_path, text, code, message):
    with pytest.raises(LabelsError, match=message) as caught:
        slice_case(tmp_path, text)
    assert caught.value.code == code
    assert "slice_labels.csv" in caught.value.where


def test_slice_labels_outside_or_of_nobody_are_named_and_the_study_is_kept(tmp_path):
    cohort = slice_case(tmp_path, "study,slice,label\nb,1,1\nb,4,1\nb,-1,1\nzz,0,1\n")
    assert len(cohort.cases) == 2
    np.testing.assert_array_equal(cohort.cases[1].slice_targets, np.float32([np.nan, 1, np.nan, np.nan]))
    assert sorted(codes(cohort)) == ["slice-label-outside", "slice-label-without-study"]
    assert not any(problem.fatal for problem in cohort.problems)
    assert "2 slice labels lie outside the series of 4" in next(p.reason for p in cohort.problems if p.study == "b")


def test_slice_labels_do_not_go_with_a_regression(tmp_path):
    with pytest.raises(LabelsError, match="the task is regression"):
        slice_case(tmp_path, "study,slice,label\nb,1,1\n", task="regression")


def test_the_real_hippocampus_table(data_dir):
    folder = data_dir / "hippocampus"
    found = index(folder)
    cohort = join(found, folder / "labels.csv", DataConfig(target=["large_for_crop"]))
    assert (len(cohort.cases), cohort.task, cohort.problems) == (213, "binary", ())
    cohort = join(found, folder / "labels.csv", DataConfig(target=["volume_mm3"]))
    assert cohort.task == "regression"
    assert cohort.cases[0].target[0] == 2948
