"""Which slices a clip takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.errors import ConfigError
from volrec.transforms.clips import SAMPLINGS, clip_affine, clip_indices, protocol_clips

counts = {"n_slices": st.integers(1, 90), "clip_length": st.integers(1, 40), "stride": st.integers(1, 4)}


class TestClipIndices:
    @given(mode=st.sampled_from(SAMPLINGS), seed=st.integers(0, 99), **counts)
    @settings(max_examples=150, deadline=None)
    def test_has_the_length_rises_and_stays_inside(self, n_slices, clip_length, stride, mode, seed):
        rng = np.random.default_rng(seed)
        clip = clip_indices(n_slices, clip_length=clip_length, stride=stride, mode=mode, rng=rng)
        assert clip.shape == (clip_length,)
        assert clip.dtype == np.int64
        assert clip.min() >= 0
        assert clip.max() < n_slices
        assert (np.diff(clip) >= 0).all()
        again = clip_indices(
            n_slices, clip_length=clip_length, stride=stride, mode=mode, rng=np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(clip, again)

    @given(mode=st.sampled_from(["random", "center"]), seed=st.integers(0, 99), **counts)
    @settings(max_examples=100, deadline=None)
    def test_contiguous_clips_step_by_the_stride_and_short_stacks_repeat_the_edge(
        self, n_slices, clip_length, stride, mode, seed
    ):
        rng = np.random.default_rng(seed)
        clip = clip_indices(n_slices, clip_length=clip_length, stride=stride, mode=mode, rng=rng)
        if n_slices >= (clip_length - 1) * stride + 1:
            assert (np.diff(clip) == stride).all()
            return
        inner = clip[(clip > 0) & (clip < n_slices - 1)]
        assert (np.diff(inner) == stride).all()
        before, after = (clip == 0).sum(), (clip == n_slices - 1).sum()
        if n_slices > 1:
            assert abs(before - after) <= 2  # the stack lies in the middle
            assert before > 0
            assert after > 0
        if stride == 1:
            assert set(clip) == set(range(n_slices))

    def test_random_clips_reach_both_ends_and_every_start_alike(self):
        rng = np.random.default_rng(0)
        starts = [clip_indices(20, clip_length=8, stride=2, mode="random", rng=rng)[0] for _ in range(1200)]
        found = np.bincount(starts)
        assert len(found) == 6
        assert found.min() > 150

    def test_center_is_the_middle(self):
        assert clip_indices(10, clip_length=4, mode="center").tolist() == [3, 4, 5, 6]
        assert clip_indices(10, clip_length=3, stride=3, mode="center").tolist() == [1, 4, 7]
        assert clip_indices(3, clip_length=7, mode="center").tolist() == [0, 0, 0, 1, 2, 2, 2]

    def test_uniform_takes_the_middle_of_each_segment(self):
        assert clip_indices(12, clip_length=4, mode="uniform").tolist() == [1, 4, 7, 10]
        assert clip_indices(2, clip_length=4, mode="uniform").tolist() == [0, 0, 1, 1]

    @given(seed=st.integers(0, 99), n_slices=st.integers(1, 90), clip_length=st.integers(1, 40))
    @settings(max_examples=100, deadline=None)
    def test_segments_draws_one_slice_in_each(self, n_slices, clip_length, seed):
        clip = clip_indices(n_slices, clip_length=clip_length, mode="segments", rng=np.random.default_rng(seed))
        edges = np.arange(clip_length + 1) * n_slices / clip_length
        assert (clip >= np.floor(edges[:-1])).all()
        assert (clip <= edges[1:]).all()

    def test_segments_reaches_every_slice(self):
        rng = np.random.default_rng(0)
        seen = {int(i) for _ in range(300) for i in clip_indices(23, clip_length=5, mode="segments", rng=rng)}
        assert seen == set(range(23))

    @pytest.mark.parametrize("mode", ["random", "segments"])
    def test_drawing_without_an_rng_is_refused(self, mode):
        with pytest.raises(ConfigError, match="no rng was given"):
            clip_indices(10, clip_length=4, mode=mode)

    def test_bad_values_are_named(self):
        with pytest.raises(ConfigError, match="uniform, segments; got 'middle'"):
            clip_indices(10, clip_length=4, mode="middle")
        with pytest.raises(ConfigError, match="clip_length must be at least 1, got 0"):
            clip_indices(10, clip_length=0, mode="center")


class TestProtocolClips:
    @given(overlap=st.floats(0, 0.9), mode=st.sampled_from(SAMPLINGS), **counts)
    @settings(max_examples=200, deadline=None)
    def test_zero_clips_shows_every_slice(self, n_slices, clip_length, stride, overlap, mode):
        clips = protocol_clips(n_slices, clip_length=clip_length, stride=stride, overlap=overlap, mode=mode)
        assert set(np.concatenate(clips)) == set(range(n_slices))
        assert all(len(clip) == clip_length for clip in clips)
        assert len({clip.tobytes() for clip in clips}) == len(clips)

    @given(n_slices=st.integers(1, 200), clip_length=st.integers(1, 40), overlap=st.floats(0, 0.9))
    @settings(max_examples=100, deadline=None)
    def test_neighbours_overlap_as_asked_with_no_clip_too_many(self, n_slices, clip_length, overlap):
        clips = protocol_clips(n_slices, clip_length=clip_length, overlap=overlap)
        steps = np.diff([clip[0] for clip in clips])
        largest = max(1, int(clip_length * (1 - overlap) + 1e-9))
        assert (steps <= largest).all()
        assert len(clips) == 1 + -(-max(0, n_slices - clip_length) // largest)

    @given(clips=st.integers(1, 12), **counts)
    @settings(max_examples=100, deadline=None)
    def test_counted_clips_spread_from_end_to_end(self, n_slices, clip_length, stride, clips):
        found = protocol_clips(n_slices, clip_length=clip_length, stride=stride, clips=clips)
        slack = n_slices - ((clip_length - 1) * stride + 1)
        assert len(found) == (min(clips, slack + 1) if slack > 0 and clips > 1 else 1)
        if clips == 1 or slack <= 0:
            expected = clip_indices(n_slices, clip_length=clip_length, stride=stride, mode="center")
            np.testing.assert_array_equal(found[0], expected)
        else:
            assert found[0][0] == 0
            assert found[-1][-1] == n_slices - 1

    def test_a_stride_covers_all_its_phases(self):
        clips = protocol_clips(8, clip_length=4, stride=2)
        assert [clip.tolist() for clip in clips] == [[0, 2, 4, 6], [1, 3, 5, 7]]

    def test_spread_clips_take_different_slices_of_each_segment(self):
        clips = protocol_clips(12, clip_length=4, clips=3, mode="segments")
        assert [clip.tolist() for clip in clips] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
        (one,) = protocol_clips(12, clip_length=4, clips=1, mode="uniform")
        np.testing.assert_array_equal(one, clip_indices(12, clip_length=4, mode="uniform"))

    def test_bad_values_are_named(self):
        with pytest.raises(ConfigError, match=r"overlap=1\.0"):
            protocol_clips(10, clip_length=4, overlap=1.0)
        with pytest.raises(ConfigError, match="clips=-1"):
            protocol_clips(10, clip_length=4, clips=-1)
        with pytest.raises(ConfigError, match="got 'dense'"):
            protocol_clips(10, clip_length=4, mode="dense")


@given(start=st.integers(0, 20), stride=st.integers(1, 5), length=st.integers(2, 10))
def test_clip_affine_puts_every_slice_at_its_place(start, stride, length):
    affine = np.array([[0, 0, 0.7, 3], [0, 0.7, 0, 4], [5, 0.3, 0, 5], [0, 0, 0, 1.0]])
    indices = start + stride * np.arange(length)
    moved = clip_affine(affine, indices)
    for place, index in enumerate(indices):
        np.testing.assert_allclose(moved @ [place, 1, 2, 1], affine @ [index, 1, 2, 1], atol=1e-9)


def test_clip_affine_of_one_slice():
    np.testing.assert_allclose(clip_affine(np.diag([5, 1, 1, 1.0]), np.array([3]))[:, 3], [15, 0, 0, 1])
