"""Snippets of several slices: drawn in segments, spread over a study, and evenly spaced by the rule of TSN."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.config import ProtocolConfig, SamplingConfig, TrainConfig
from volrec.errors import ConfigError
from volrec.transforms.clips import clip_indices, evenly_spaced, protocol_clips

counts = {
    "n_slices": st.integers(1, 90),
    "snippets": st.integers(1, 9),
    "length": st.integers(1, 8),
    "stride": st.integers(1, 3),
}


def ticks(frames: int, depth: int, number: int) -> list[int]:
    """The released rule as it is told: frame numbers from 1, in steps, or the first one all the time."""
    step = (frames - depth) // (number - 1)
    if step <= 0:
        return [1] * number
    return [1 + step * place for place in range(number)]


class TestEvenlySpaced:
    @given(count=st.integers(1, 600), length=st.integers(1, 10), snippets=st.integers(2, 30))
    @settings(max_examples=150, deadline=None)
    def test_is_the_released_rule_counted_from_zero(self, count, length, snippets):
        found = evenly_spaced(count, length, snippets=snippets)
        assert found.dtype == np.int64
        assert found.tolist() == [tick - 1 for tick in ticks(count, length, snippets)]
        if count >= length:
            assert found[-1] + length <= count

    def test_known_videos(self):
        assert evenly_spaced(250, 1).tolist() == list(range(0, 241, 10))
        assert evenly_spaced(249, 5).tolist() == list(range(0, 241, 10))
        assert evenly_spaced(244, 5).tolist() == list(range(0, 217, 9))
        assert evenly_spaced(24, 1).tolist() == [0] * 25  # a step of less than one
        assert evenly_spaced(25, 1).tolist() == list(range(25))
        assert evenly_spaced(3, 5).tolist() == [0] * 25

    def test_one_snippet_is_the_middle(self):
        assert evenly_spaced(11, 5, snippets=1).tolist() == [3]
        assert evenly_spaced(2, 5, snippets=1).tolist() == [0]

    def test_counts_below_one_are_named(self):
        with pytest.raises(ConfigError, match="snippets must be at least 1, got 0"):
            evenly_spaced(10, 1, snippets=0)
        with pytest.raises(ConfigError, match="count must be at least 1, got 0"):
            evenly_spaced(0, 1)


class TestDrawnSnippets:
    @given(mode=st.sampled_from(["segments", "uniform"]), seed=st.integers(0, 99), **counts)
    @settings(max_examples=200, deadline=None)
    def test_one_begins_in_each_segment_and_its_slices_stay_together(
        self, n_slices, snippets, length, stride, mode, seed
    ):
        clip = clip_indices(
            n_slices,
            clip_length=snippets * length,
            stride=stride,
            mode=mode,
            snippet_length=length,
            rng=np.random.default_rng(seed),
        )
        assert clip.shape == (snippets * length,) and clip.dtype == np.int64
        rows = clip.reshape(snippets, length)
        places = n_slices - (length - 1) * stride
        if places < 1:  # each snippet is the study with its edges repeated
            whole = clip_indices(n_slices, clip_length=length, stride=stride, mode="center")
            assert (rows == whole).all()
            return
        assert (np.diff(rows, axis=1) == stride).all()
        edges = np.arange(snippets + 1) * places / snippets
        assert (rows[:, 0] >= np.floor(edges[:-1])).all() and (rows[:, 0] <= edges[1:]).all()
        assert rows.min() >= 0 and rows.max() < n_slices

    @given(mode=st.sampled_from(["segments", "uniform"]), seed=st.integers(0, 99), **counts)
    @settings(max_examples=100, deadline=None)
    def test_of_one_slice_are_what_they_were(self, n_slices, snippets, length, stride, mode, seed):
        clip_length = snippets * length
        place = np.random.default_rng(seed).random(clip_length) if mode == "segments" else 0.5
        expected = np.floor((np.arange(clip_length) + place) * (n_slices / clip_length)).astype(int)
        found = clip_indices(
            n_slices, clip_length=clip_length, stride=stride, mode=mode, rng=np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(found, np.minimum(expected, n_slices - 1))

    def test_reach_every_slice_and_every_place_alike(self):
        rng = np.random.default_rng(0)
        draws = [
            clip_indices(26, clip_length=9, snippet_length=3, mode="segments", rng=rng).reshape(3, 3)
            for _ in range(900)
        ]
        assert set(np.ravel(draws)) == set(range(26))
        begins = np.bincount([row[0, 0] for row in draws])
        assert len(begins) == 8 and begins.min() > 70  # 24 places in three segments

    @pytest.mark.parametrize("mode", ["random", "center"])
    def test_contiguous_clips_do_not_know_them(self, mode):
        one, several = (
            clip_indices(40, clip_length=12, mode=mode, snippet_length=length, rng=np.random.default_rng(1))
            for length in (1, 4)
        )
        np.testing.assert_array_equal(one, several)

    def test_broken_snippets_are_refused(self):
        with pytest.raises(ConfigError, match=r"clip of 10 slices is no whole number of snippets of 4.*multiple"):
            clip_indices(40, clip_length=10, mode="center", snippet_length=4)
        with pytest.raises(ConfigError, match="clip of 10 slices is no whole number of snippets of 4"):
            protocol_clips(40, clip_length=10, snippet_length=4)
        with pytest.raises(ConfigError, match="snippet_length must be at least 1, got 0"):
            protocol_clips(40, clip_length=10, snippet_length=0)


class TestProtocol:
    @given(mode=st.sampled_from(["segments", "uniform"]), **counts)
    @settings(max_examples=200, deadline=None)
    def test_zero_clips_shows_every_slice(self, n_slices, snippets, length, stride, mode):
        clips = protocol_clips(n_slices, clip_length=snippets * length, stride=stride, mode=mode, snippet_length=length)
        assert set(np.concatenate(clips)) == set(range(n_slices))
        assert all(len(clip) == snippets * length for clip in clips)
        if length > 1 and stride == 1 and n_slices > length:
            fewest = -(-(n_slices - length) // length) + 1
            assert len(clips) <= -(-fewest // snippets)
            begins = sorted(int(clip[place]) for clip in clips for place in range(0, snippets * length, length))
            assert begins[0] == 0 and begins[-1] == (n_slices - length if len(begins) > 1 else 0)

    def test_clips_take_different_snippets_of_each_segment(self):
        clips = protocol_clips(13, clip_length=4, clips=2, snippet_length=2, mode="segments")
        assert [clip.tolist() for clip in clips] == [[1, 2, 7, 8], [4, 5, 10, 11]]
        (one,) = protocol_clips(13, clip_length=4, clips=1, snippet_length=2, mode="segments")
        np.testing.assert_array_equal(one, clip_indices(13, clip_length=4, snippet_length=2, mode="uniform"))

    @given(mode=st.sampled_from(["segments", "uniform"]), number=st.integers(2, 30), **counts)
    @settings(max_examples=100, deadline=None)
    def test_evenly_spaced_snippets_are_one_clip_from_the_first_to_the_last_slice(
        self, n_slices, snippets, length, stride, mode, number
    ):
        (clip,) = protocol_clips(
            n_slices,
            clip_length=snippets * length,
            stride=stride,
            mode=mode,
            snippet_length=length,
            snippets=number,
        )
        slack = max(0, n_slices - (length - 1) * stride - 1)
        expected = [
            min(n_slices - 1, math.floor(place * slack / (number - 1) + 1e-9) + step * stride)
            for place in range(number)
            for step in range(length)
        ]
        assert clip.tolist() == expected

    @pytest.mark.parametrize("n_slices", [1, 12, 24, 25, 26, 48, 49, 71, 300])
    def test_thin_stacks_are_seen_to_their_end(self, n_slices):
        (clip,) = protocol_clips(n_slices, clip_length=7, mode="segments", snippets=25)
        assert (clip[0], clip[-1]) == (0, n_slices - 1)
        assert len(set(clip.tolist())) == min(25, n_slices)
        by_rule = evenly_spaced(n_slices, 1)
        assert (clip >= by_rule).all()
        if (n_slices - 1) % 24 == 0:
            assert clip.tolist() == by_rule.tolist()

    @pytest.mark.parametrize("arguments", [{"mode": "random"}, {"mode": "segments", "clips": 4}])
    def test_evenly_spaced_snippets_beside_other_clips_are_refused(self, arguments):
        with pytest.raises(ConfigError, match="snippets=25"):
            protocol_clips(40, clip_length=8, snippets=25, **arguments)


def test_settings_that_do_not_fit_are_refused_before_anything_is_read():
    with pytest.raises(ValueError, match=r"clip_length \(10\) must be a multiple of snippet_length \(4\)"):
        SamplingConfig(clip_length=10, snippet_length=4)
    with pytest.raises(ValueError, match=r"protocol.snippets \(25\) are spread .* sampling.train is 'random'"):
        TrainConfig(protocol=ProtocolConfig(snippets=25))
    config = TrainConfig(
        sampling=SamplingConfig(clip_length=12, snippet_length=4, train="segments"), protocol={"snippets": 25}
    )
    assert config.protocol.snippets == 25
