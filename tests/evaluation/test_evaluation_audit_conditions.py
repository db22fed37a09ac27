"""What the audit shows of a study: exactly the slices it says, and nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.data.entries import StoredVolume, study_quantiles
from volrec.evaluation.audit_conditions import (
    SIZES,
    Window,
    own_slices,
    rearranged,
    show,
    show_window,
    spacing_along,
    window_places,
    window_sizes,
)
from volrec.transforms import own_region, preprocess_array


def study(array: np.ndarray, **meta: object) -> StoredVolume:
    return StoredVolume(array, np.diag([2.5, 1.0, 1.0, 1.0]), study_quantiles(array), dict(meta), fields=None)


@given(
    depth=st.integers(1, 40),
    canvas=st.one_of(st.none(), st.integers(1, 50)),
    spacing=st.one_of(st.none(), st.floats(0.7, 9)),
    thick=st.floats(0.7, 9),
)
@settings(max_examples=60, deadline=None)
def test_own_slices_are_those_that_the_canvas_did_not_pad(
    depth: int, canvas: int | None, spacing: float | None, thick: float
) -> None:
    array, affine = np.ones((depth, 4, 4), np.float32), np.diag([thick, 1.0, 1.0, 1.0])
    wanted = {"spacing": (spacing, None, None), "canvas": (canvas, None, None)}
    stored, moved = preprocess_array(array, affine, **wanted)
    meta = {"source_shape": list(array.shape), "source_affine": affine.tolist()}
    found = own_slices(StoredVolume(stored, moved, study_quantiles(array), meta))
    own = own_region(array.shape, affine, **wanted)[0]
    assert found == (own.start, own.stop)


def test_a_volume_that_does_not_say_where_it_comes_from_is_all_its_own() -> None:
    assert own_slices(study(np.zeros((5, 2, 2), np.int16))) == (0, 5)
    assert spacing_along(study(np.zeros((5, 2, 2), np.int16))) == 2.5


@given(own=st.tuples(st.integers(0, 6), st.integers(1, 12)), after=st.integers(0, 5), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_only_own_slices_change_places(own: tuple[int, int], after: int, seed: int) -> None:
    low, length = own
    high, count = low + length, low + length + after
    shuffled = rearranged("shuffled", count, (low, high), study="a", seed=seed)
    backwards = rearranged("reversed", count, (low, high))
    thinned = rearranged("every second slice", count, (low, high))
    for places in (shuffled, backwards, thinned):
        assert len(places) == count
        np.testing.assert_array_equal(places[:low], np.arange(low))
        np.testing.assert_array_equal(places[high:], np.arange(high, count))
    assert sorted(shuffled) == list(range(count))
    np.testing.assert_array_equal(backwards[low:high], np.arange(high - 1, low - 1, -1))
    np.testing.assert_array_equal(thinned[low:high], [low + place - place % 2 for place in range(length)])


def test_a_permutation_is_decided_by_study_seed_and_draw() -> None:
    def drawn(**given: object) -> list[int]:
        return rearranged("shuffled", 20, (0, 20), **{"study": "a", "seed": 0, "draw": 0} | given).tolist()  # type: ignore[arg-type]

    assert drawn() == drawn()
    assert len({tuple(drawn(**other)) for other in ({}, {"study": "b"}, {"seed": 1}, {"draw": 1})}) == 4


@given(own=st.integers(1, 80), size=st.sampled_from(SIZES[:6]))
@settings(max_examples=80, deadline=None)
def test_whatever_is_three_quarters_as_long_as_a_window_lies_wholly_in_one(own: int, size: int) -> None:
    size = min(size, own)
    places = window_places(own, size, most=1000)
    assert places[0] == 0
    assert places[-1] == own - size
    extent = size - max(0, size // 4 - 1)
    for begin in range(own - extent + 1):
        assert any(place <= begin and begin + extent <= place + size for place in places)


@given(own=st.integers(1, 300), size=st.sampled_from(SIZES[:6]), most=st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_windows_are_no_more_than_asked_for_and_stay_inside(own: int, size: int, most: int) -> None:
    size = min(size, own)
    places = window_places(own, size, most=most)
    assert len(places) <= most + (size == 1)  # the middle slice is scored whatever the spread
    assert places == sorted(set(places))
    assert 0 <= places[0] <= places[-1] <= own - size
    if size == 1:
        assert own // 2 in places


def test_window_lengths_end_below_the_study() -> None:
    assert window_sizes(1) == [1]
    assert window_sizes(9) == [1, 3, 5]
    assert window_sizes(24) == [1, 3, 5, 9, 17]


@pytest.mark.parametrize(
    ("outside", "wanted"),
    [("cut", [3, 4]), ("edge", [3, 3, 3, 3, 4, 4, 4]), ("blank", [1, 1, 1, 3, 4, 1, 1])],
)
def test_a_window_leaves_nothing_of_other_slices(outside: str, wanted: list[int]) -> None:
    array = np.array([1, 2, 9, 3, 4, 5, 6], dtype=np.int16)[:, None, None] * np.ones((7, 2, 2), np.int16)
    whole = study(array)
    shown = show_window(whole, whole.read(), Window(3, 2), outside=outside)  # type: ignore[arg-type]
    assert shown.array[:, 0, 0].tolist() == wanted
    assert shown.dtype == np.int16
    assert shown.quantiles is whole.quantiles


def test_fields_of_the_old_order_are_left_out() -> None:
    array = np.zeros((4, 2, 2), np.int16)
    with_fields = StoredVolume(array, np.eye(4), study_quantiles(array), {}, fields=study(array))
    assert show(with_fields, array, [3, 2, 1, 0]).fields is None
