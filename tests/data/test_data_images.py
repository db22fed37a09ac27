"""Studies without labels: which are taken, which lists name them, and who is held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volrec.data.images import hold_out, read_studies, unlabelled
from volrec.data.labels import Case
from volrec.errors import DataError, LabelsError


@dataclass(frozen=True)
class Record:
    """As much of a study of the index as is looked at."""

    study: str
    patient: str
    series: object = None
    aliases: tuple[str, ...] = field(default=())


def folder_of(*names: str) -> SimpleNamespace:
    studies = [Record(name, f"P{name}", aliases=(f"alias-{name}",)) for name in names]
    return SimpleNamespace(studies=studies, root="/data")


def cases(*patients: str) -> list[Case]:
    return [Case(f"s{number}", patient, None, np.empty(0)) for number, patient in enumerate(patients)]  # type: ignore[arg-type]


class TestUnlabelled:
    def test_every_study_is_taken_in_the_order_of_the_index(self) -> None:
        images = unlabelled(folder_of("b", "a", "c"))
        assert [case.study for case in images.cases] == ["b", "a", "c"]
        assert [case.patient for case in images.cases] == ["Pb", "Pa", "Pc"]
        assert all(case.target.size == 0 for case in images.cases)
        assert (images.task, images.problems) == ("none", ())

    def test_a_list_takes_its_own_by_name_or_alias_and_names_what_is_not_there(self, tmp_path: Path) -> None:
        wanted = tmp_path / "list.txt"
        wanted.write_text("case3\nalias-case1\ncase33\n", encoding="utf-8")
        images = unlabelled(folder_of("case1", "case2", "case3"), wanted)
        assert [case.study for case in images.cases] == ["case1", "case3"]
        (problem,) = images.problems
        assert (problem.code, problem.study, problem.fatal) == ("unknown-study", "case33", False)
        assert "Did you mean 'case3'?" in problem.reason

    def test_nothing_left_is_said(self, tmp_path: Path) -> None:
        wanted = tmp_path / "list.txt"
        wanted.write_text("nobody\n", encoding="utf-8")
        with pytest.raises(DataError, match="none of the 2 studies"):
            unlabelled(folder_of("a", "b"), wanted)


class TestReadStudies:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("a.txt", "one\n\n  two  \none\n", ["one", "two"]),
            ("a.csv", "patient,study\np,one\nq,two\n", ["one", "two"]),
            ("a.tsv", "study\tpart\none\ttrain\ntwo\ttest\n", ["one"]),
            ("splits.csv", "split,part,study,patient\ns,train,one,p\ns,validation,two,q\ns,test,three,r\n",
             ["one", "two"]),
            ("studies.csv", "study,patient,part\none,p,train\ntwo,q,held-out\n", ["one", "two"]),
            ("bom.txt", "\ufeffone\ntwo\n", ["one", "two"]),
            ("comma.txt", "Doe, scan\n", ["Doe, scan"]),
        ],
    )  # fmt: skip
    def test_lists_and_tables(self, tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert read_studies(path) == expected

    @pytest.mark.parametrize("column", ["fold", "split"])
    def test_several_folds_together_train_on_everyone(self, tmp_path: Path, column: str) -> None:
        path = tmp_path / "splits.csv"
        path.write_text(f"{column},part,study\nfold-0,train,a\nfold-1,train,b\n", encoding="utf-8")
        with pytest.raises(LabelsError, match="several folds"):
            read_studies(path)

    @pytest.mark.parametrize("text", ["", "\n\n", "study,part\na,test\n", "study\n"])
    def test_a_list_of_nobody(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "list.csv"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(LabelsError, match="names no study"):
            read_studies(path)

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(LabelsError, match="cannot be read"):
            read_studies(tmp_path / "none.txt")
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
        with pytest.raises(LabelsError, match="cannot be read"):
            read_studies(tmp_path / "binary")


class TestHoldOut:
    @given(
        patients=st.lists(st.sampled_from([f"p{number}" for number in range(30)]), min_size=1, max_size=60),
        share=st.floats(0, 0.99),
        seed=st.integers(0, 5),
    )
    def test_patients_stay_whole_and_their_number_is_what_was_asked(
        self, patients: list[str], share: float, seed: int
    ) -> None:
        everyone = cases(*patients)
        kept, held = hold_out(everyone, share, seed=seed)
        one, other = ({case.patient for case in part} for part in (kept, held))
        assert not one & other and one
        order = {case.study: number for number, case in enumerate(everyone)}
        for part in (kept, held):
            assert [order[case.study] for case in part] == sorted(order[case.study] for case in part)
        assert len(kept) + len(held) == len(everyone)
        count = len(set(patients))
        wanted = round(share * count)
        if share > 0 and count >= 8:
            wanted = max(2, wanted)
        assert len(other) == min(wanted, count - 1)

    def test_the_choice_follows_from_seed_and_names_alone(self) -> None:
        names = [f"patient-{number}" for number in range(40)]
        held = [{case.patient for case in hold_out(cases(*names), 0.2, seed=seed)[1]} for seed in (0, 0, 1)]
        assert held[0] == held[1] != held[2]
        assert {case.patient for case in hold_out(cases(*reversed(names)), 0.2, seed=0)[1]} == held[0]

    def test_a_patient_keeps_its_side_when_others_come(self) -> None:
        names = [f"patient-{number}" for number in range(40)]
        before = {case.patient for case in hold_out(cases(*names), 0.2, seed=0)[1]}
        more = [*names, *(f"new-{number}" for number in range(10))]
        after = {case.patient for case in hold_out(cases(*more), 8 / 50, seed=0)[1]}
        # As many are held out: those that a newcomer pushed over the edge are no more than the newcomers.
        assert len(after) == len(before) == 8
        assert before - after == set() or after - before <= set(more) - set(names)

    def test_nobody_is_held_out_for_a_share_of_nothing(self) -> None:
        assert hold_out(cases("a", "b"), 0.0, seed=0)[1] == []
        assert hold_out(cases("a"), 0.9, seed=0)[1] == []
