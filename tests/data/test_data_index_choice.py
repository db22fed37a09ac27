"""Grouping, names, patients and the choice of a series, on series without files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trees import fault, make_series

from volrec.config import SeriesConfig
from volrec.data.choose import choose, habits
from volrec.data.naming import file_stem, is_mask, natural
from volrec.data.studies import Group, group_studies
from volrec.errors import Problem
from volrec.io import Series

ROOT = Path("/tree")


def _nifti(*paths: str) -> list[Series]:
    return [make_series(path, kind="nifti") for path in paths]


def _groups(series: list[Series]) -> dict[str, Group]:
    groups, _, _ = group_studies(series, ROOT)
    return {group.study: group for group in groups}


def _members(series: list[Series]) -> dict[str, list[str]]:
    return {study: sorted(one.path for one in group.series) for study, group in _groups(series).items()}


def _codes(problems: list[Problem]) -> set[str]:
    return {problem.code for problem in problems}


# --- names of DICOM studies


def test_a_folder_that_holds_one_study_names_it() -> None:
    series = [
        make_series("site/A/t2", study="1", patient="a"),
        make_series("site/A/adc", study="1", patient="a"),
        make_series("site/B", study="2", patient="b"),
    ]
    assert _members(series) == {"A": ["site/A/adc", "site/A/t2"], "B": ["site/B"]}


def test_equal_folder_names_become_paths() -> None:
    series = [make_series("A/CT", study="1", patient="a"), make_series("B/CT", study="2", patient="b")]
    assert set(_groups(series)) == {"A/CT", "B/CT"}


def test_studies_that_share_a_folder_are_named_by_uid() -> None:
    series = [
        make_series("all", uid="s1", study="1.1", patient="a"),
        make_series("all", uid="s2", study="1.2", patient="b"),
    ]
    groups, _, problems = group_studies(series, ROOT)
    assert [group.study for group in groups] == ["1.1", "1.2"]
    (problem,) = [problem for problem in problems if problem.code == "several-patients"]
    assert problem.where == "all"
    assert not problem.fatal
    assert "a, b" in problem.reason
    # The folder's name may not label either of them.
    assert all("all" not in group.aliases for group in groups)


def test_one_study_uid_for_two_patients_makes_two_studies() -> None:
    series = [
        make_series("all", uid="s1", study="1.1", patient="a"),
        make_series("all", uid="s2", study="1.1", patient="b"),
    ]
    groups, _, problems = group_studies(series, ROOT)
    assert [(group.study, group.patient) for group in groups] == [("1.1/a", "a"), ("1.1/b", "b")]
    assert "several-patients" in _codes(problems)


def test_a_series_without_patient_id_joins_its_study() -> None:
    series = [make_series("A/t2", study="1", patient="a"), make_series("A/adc", study="1", patient="")]
    groups, _, problems = group_studies(series, ROOT)
    assert [(group.study, group.patient, len(group.series)) for group in groups] == [("A", "a", 2)]
    assert problems == []


def test_without_study_uid_the_folder_holds_a_study_together() -> None:
    series = [make_series("A", uid="1"), make_series("A", uid="2"), make_series("B", uid="3")]
    groups, _, problems = group_studies(series, ROOT)
    assert [(group.study, group.patient, len(group.series)) for group in groups] == [("A", "A", 2), ("B", "B", 1)]
    assert _codes(problems) == {"assumed-patient"}


def test_a_study_in_the_root_takes_its_name() -> None:
    root = Path("/data/CRLM-1")
    groups, _, _ = group_studies([make_series("", root=root, uid="s", study="1", patient="a")], root)
    assert [group.study for group in groups] == ["CRLM-1"]


# --- patients


def test_an_anonymised_set_is_noticed_and_said() -> None:
    series = [make_series(f"s{number}", study=str(number), patient="4711") for number in range(5)]
    groups, _, problems = group_studies(series, ROOT)
    assert [group.patient for group in groups] == [f"s{number}" for number in range(5)]
    (problem,) = problems
    assert (problem.code, problem.fatal) == ("one-patient-id", False)
    assert "5 studies share the patient id '4711'" in problem.reason


@pytest.mark.parametrize("placeholder", ["ANONYMOUS", "anon", "0", "000", "Unknown", "xxx"])
def test_what_anonymisers_leave_is_no_patient(placeholder: str) -> None:
    series = [
        make_series("s1", study="1", patient=placeholder),
        make_series("s2", study="2", patient=placeholder),
        make_series("s3", study="3", patient="P3"),
    ]
    groups, _, problems = group_studies(series, ROOT)
    assert [group.patient for group in groups] == ["s1", "s2", "P3"]
    assert _codes(problems) == {"one-patient-id"}


def test_a_patient_with_several_studies_stays_one() -> None:
    series = [make_series(f"s{number}", study=str(number), patient="p" if number < 6 else "q") for number in range(8)]
    groups, _, problems = group_studies(series, ROOT)
    assert [group.patient for group in groups] == ["p"] * 6 + ["q"] * 2
    assert problems == []


# --- NIfTI layouts


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["images/a.nii.gz", "images/b.nii"], {"a": 1, "b": 1}),
        (["s1/t1.nii.gz", "s1/t2.nii.gz", "s2/t1.nii.gz", "s3/t1.nii.gz"], {"s1": 2, "s2": 1, "s3": 1}),
        (["t1/s1.nii.gz", "t1/s2.nii.gz", "t1/s3.nii.gz", "t2/s1.nii.gz"], {"s1": 2, "s2": 1, "s3": 1}),
        (["s1/s1_t1.nii.gz", "s1/s1_t2.nii.gz", "s2/s2_t1.nii.gz"], {"s1": 2, "s2": 1}),
        (["s1/anat/t1.nii.gz", "s2/anat/t1.nii.gz"], {"s1/anat": 1, "s2/anat": 1}),
        (
            ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz", "sub-2/sub-2_T1w.nii"],
            {"sub-1": 2, "sub-2": 1},
        ),
        (["sub-1_ses-1_T1w.nii.gz", "sub-1_ses-2_T1w.nii.gz"], {"sub-1_ses-1": 1, "sub-1_ses-2": 1}),
        (["a.nii.zip", "b.hdr"], {"a": 1, "b": 1}),
    ],
)
def test_nifti_layouts(paths: list[str], expected: dict[str, int]) -> None:
    assert {study: len(found) for study, found in _members(_nifti(*paths)).items()} == expected


def test_bids_sessions_are_of_one_patient() -> None:
    groups = _groups(_nifti("sub-1_ses-1_T1w.nii.gz", "sub-1_ses-2_T1w.nii.gz"))
    assert {group.patient for group in groups.values()} == {"sub-1"}


def test_masks_are_set_aside_with_their_study_and_said() -> None:
    groups, loose, problems = group_studies(
        _nifti("images/a.nii", "images/b.nii", "masks/a.nii", "x/c.nii", "x/c_seg.nii", "labelsTr/z.nii"), ROOT
    )
    assert {group.study: [one.path for one in group.masks] for group in groups} == {
        "a": ["masks/a.nii"],
        "b": [],
        "c": ["x/c_seg.nii"],
    }
    assert [one.path for one in loose] == ["labelsTr/z.nii"]
    assert "3 NIfTI files are segmentations" in next(problem.reason for problem in problems if problem.code == "mask")
    assert "masks/a.nii" not in next(group for group in groups if group.study == "a").aliases


def test_a_folder_of_nothing_but_masks_is_taken_as_it_is() -> None:
    assert set(_groups(_nifti("masks/a.nii", "masks/b.nii"))) == {"a", "b"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("masks/a.nii", True),
        ("labelsTr/a.nii.gz", True),
        ("a/b-label.nii.gz", True),
        ("seg_a.nii", True),
        ("dataset-with-labels/images/a.nii", False),
        ("segmental/a.nii", False),
        ("label.nii", False),
        ("masked/a.nii", False),
    ],
)
def test_masks_are_known_by_whole_words(path: str, expected: bool) -> None:
    assert is_mask(path) is expected


def test_aliases_cover_what_a_table_may_say() -> None:
    groups = _groups([*_nifti("images/a.nii.gz", "images/b.nii.gz"), make_series("ct/P1/s", study="1.2", patient="x")])
    assert {"a", "a.nii.gz", "images/a.nii.gz", "images/a", "/tree/images/a.nii.gz"} <= groups["a"].aliases
    assert {"s", "P1", "ct/P1/s", "ct/P1", "ct", "1.2", "/tree/ct/P1"} <= groups["s"].aliases
    assert "images" not in groups["a"].aliases | groups["b"].aliases


trees = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abc"), max_size=3).map("/".join),
        st.sampled_from(["", "1", "2", "3"]),
        st.sampled_from(["", "p", "q", "anon"]),
        st.sampled_from(["", "t1.nii", "t2.nii.gz", "x_seg.nii", "a.nii"]),
    ),
    min_size=1,
    max_size=12,
)


@given(trees)
@example([("b", "", "p", ""), ("b/b", "", "p", "")])
def test_no_tree_loses_a_series_or_mixes_studies(tree: list[tuple[str, str, str, str]]) -> None:
    series, seen = [], set()
    for number, (folder, study, patient, name) in enumerate(tree):
        path = "/".join(part for part in (folder, name) if part)
        if name and path not in seen:
            seen.add(path)
            series.append(make_series(path, kind="nifti"))
        elif not name:
            series.append(make_series(folder, uid=f"u{number}", study=study, patient=patient))
    groups, loose, _ = group_studies(series, ROOT)
    placed = [id(one) for group in groups for one in [*group.series, *group.masks]] + [id(one) for one in loose]
    assert sorted(placed) == sorted(map(id, series))
    assert len({group.study for group in groups}) == len(groups)
    assert all(group.patient and group.study for group in groups)
    aliases = [alias for group in groups for alias in group.aliases]
    assert len(set(aliases)) == len(aliases)
    for group in groups:
        assert group.study in group.aliases
        assert len({one.study_uid for one in group.series}) <= 1
        assert len({one.patient_id for one in group.series if one.patient_id}) <= 1


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ", "a.nii.zip", "a.hdr", "a.dcm", "a.img"])
def test_stems(name: str) -> None:
    assert file_stem(name) == "a"


def test_names_are_sorted_as_people_count() -> None:
    assert sorted(["s10", "s2", "S1", "s2a"], key=natural) == ["S1", "s2", "s2a", "s10"]


# --- the choice


def _choose(series: list[Series], config: SeriesConfig | None = None, study: int = 0):
    config = config or SeriesConfig()
    groups, _, _ = group_studies(series, ROOT)
    return choose(groups[study], config, habits(groups, config, ROOT), ROOT)


def _s(path: str, **values: object) -> Series:
    return make_series(path, uid=str(values.pop("uid", path)), study="1", patient="p", **values)  # type: ignore[arg-type]


def test_the_only_series_is_chosen() -> None:
    assert _choose([_s("A/x")]).why == "the only series"


def test_unusable_and_localizer_series_are_never_chosen() -> None:
    choice = _choose(
        [
            _s("A/scout", slices=500, localizer=True),
            _s("A/broken", slices=400, problems=(fault("gap", "Slice 7 of 400 is missing."),)),
            _s("A/good"),
        ]
    )
    assert choice.chosen is not None
    assert choice.chosen.path == "A/good"
    assert choice.why == "the only usable one of 3 series"
    assert sorted(choice.status.values()) == [
        ("chosen", "the only usable one of 3 series"),
        ("set aside", "a localizer"),
        ("unusable", "Slice 7 of 400 is missing."),
    ]


def test_original_before_derived_even_with_fewer_slices() -> None:
    choice = _choose(
        [
            _s("A/t2", modality="MR", slices=33),
            _s("A/adc", modality="MR", slices=36, image_type=("DERIVED", "SECONDARY", "ADC")),
        ]
    )
    assert choice.chosen is not None
    assert choice.chosen.path == "A/t2"
    assert choice.why == "original, adc is derived"


def test_most_slices_then_thinnest_then_uid() -> None:
    thick, thin = _s("A/1", slices=60), _s("A/2", slices=60, thick=1.0)
    choice = _choose([_s("A/0", slices=20), thick, thin])
    assert choice.chosen is thin
    assert choice.why == "most slices (60) of 3 axial CT series; thinnest slices (1 mm) of 2 axial CT series with 60"
    assert _choose([_s("A/0", slices=20), thick]).why == "most slices (60) of 2 axial CT series"
    twins = [_s("A/b", uid="2"), _s("A/a", uid="1")]
    choice = _choose(twins)
    assert choice.chosen is twins[1]
    assert choice.why == "the first by uid of 2 alike axial CT series with 20 slices"


def test_a_complete_series_before_one_with_a_gap() -> None:
    choice = _choose([_s("A/gap", slices=60, missing=(7,)), _s("A/whole", slices=40)])
    assert choice.chosen is not None
    assert choice.chosen.path == "A/whole"


def test_the_folders_modality_comes_first() -> None:
    series = [make_series(f"p{n}", uid=f"u{n}", study=str(n + 5), patient=str(n), modality="MR") for n in range(3)]
    series += [_s("A/pet", modality="PT", slices=300), _s("A/mr", modality="MR", slices=30)]
    choice = _choose(series)
    assert choice.chosen is not None
    assert choice.chosen.path == "A/mr"
    assert choice.why == "MR is the folder's most frequent modality"


def test_the_same_role_is_chosen_in_every_study() -> None:
    # By slices alone every other study would give the other sequence.
    series = []
    for number in range(6):
        odd = number % 2
        series += [make_series(f"s{number}/t1.nii", kind="nifti", slices=100 + odd)]
        series += [make_series(f"s{number}/t2.nii", kind="nifti", slices=101 - odd)]
    groups, _, _ = group_studies(series, ROOT)
    usual = habits(groups, SeriesConfig(), ROOT)
    chosen = [choose(group, SeriesConfig(), usual, ROOT) for group in groups]
    assert {choice.chosen.path.rpartition("/")[2] for choice in chosen if choice.chosen} == {"t1.nii"}
    assert chosen[0].why == "'t1' axial is in 6 of 6 studies"


def test_a_thin_role_that_all_share_does_not_win() -> None:
    series = [make_series(f"s{n}/survey.nii", kind="nifti", slices=5) for n in range(5)]
    series += [make_series(f"s{n}/t2.nii", kind="nifti", slices=60) for n in range(4)]
    series += [make_series("s4/t3.nii", kind="nifti", slices=60)]
    groups, _, _ = group_studies(series, ROOT)
    usual = habits(groups, SeriesConfig(), ROOT)
    chosen = choose(groups[0], SeriesConfig(), usual, ROOT).chosen
    assert chosen is not None
    assert chosen.path == "s0/t2.nii"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"modality": "mr"}, "A/mr"),
        ({"orientation": "sagittal"}, "A/sag"),
        ({"path": "*/thin/*"}, "A/thin"),
        ({"path": "A/thin"}, "A/thin"),
        ({"min_slices": 100}, "A/ct"),
    ],
)
def test_filters(config: dict[str, object], expected: str) -> None:
    series = [
        _s("A/ct", slices=200),
        _s("A/mr", modality="MR"),
        _s("A/sag", orientation="sagittal"),
        _s("A/thin", slices=10),
    ]
    chosen = _choose(series, SeriesConfig(**config)).chosen  # type: ignore[arg-type]
    assert chosen is not None
    assert chosen.path == expected


def test_a_study_without_a_usable_series_says_why_of_each() -> None:
    choice = _choose(
        [_s("A/x", slices=2), _s("A/y", modality="PT"), _s("A/z", modality="PT")], SeriesConfig(modality="CT")
    )
    assert choice.chosen is None
    assert choice.why == (
        "none of its 3 series can be used "
        "(x: 2 slices; at least 3 were asked for; 2 series: modality PT; CT was asked for)."
    )


@given(st.permutations(range(5)))
def test_the_order_of_the_files_does_not_matter(order: list[int]) -> None:
    series = [
        _s("A/0", slices=20),
        _s("A/1", slices=60),
        _s("A/2", slices=60, thick=1.0),
        _s("A/3", slices=60, thick=1.0),
        _s("A/4", slices=90, image_type=("DERIVED", "SECONDARY")),
    ]
    choice = _choose([series[place] for place in order])
    assert choice.chosen is series[2]
