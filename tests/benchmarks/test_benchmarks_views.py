"""Frames and crops of the protocols' rules, against rules that are typed here again, and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.views import clip_indices, crop_boxes, frames_at_rate, reach, train_indices
from volrec.config.benchmark import TestViews as Views
from volrec.config.benchmark import TrainViews
from volrec.errors import ConfigError, DataError
from volrec.transforms.crops import center_crop, five_crop, ten_crop

COUNTS = st.integers(1, 400)


def even(count: int, **values) -> Views:
    return Views(clips="even", count=count, **values)


class TestEvenlySpacedClips:
    @given(frames=COUNTS, stack=st.integers(0, 12))
    @settings(max_examples=200, deadline=None)
    def test_follow_the_released_rule_of_tsn(self, frames, stack):
        # As in the released evaluation, which counts from 1: RGB has as many ticks as frames and a depth of 1, flow one
        # less and a depth of L.
        files, depth = (frames - 1, stack) if stack else (frames, 1)
        step = (files - depth) // 24
        ticks = [1 + k * step for k in range(25)] if step > 0 else [1] * 25
        found = clip_indices(frames, even(25, length=1, short="first"), extra=stack)
        assert found.dtype == np.int64 and found.shape == (25, 1)
        assert (found[:, 0] + 1).tolist() == ticks
        if step > 0:
            assert ticks[-1] + depth - 1 <= files

    @given(frames=COUNTS, clips=st.integers(2, 30), length=st.integers(1, 20), stride=st.integers(1, 3))
    @settings(max_examples=200, deadline=None)
    def test_spread_from_the_first_place_to_the_last(self, frames, clips, length, stride):
        found = clip_indices(frames, even(clips, rule="spread", length=length, stride=stride, short="last"))
        span = (length - 1) * stride + 1
        assert found.shape == (clips, length)
        if frames >= span:
            assert found[0, 0] == 0 and found[-1, -1] == frames - 1
            assert (np.diff(found, axis=1) == stride).all()
            gaps = np.diff(found[:, 0])
            assert gaps.max() - gaps.min() <= 1
        else:
            assert (found == np.minimum(np.arange(length) * stride, frames - 1)).all()

    def test_of_one_clip_is_the_middle(self):
        assert clip_indices(21, even(1, length=5)).tolist() == [[8, 9, 10, 11, 12]]

    def test_are_one_input_where_they_are_read_jointly(self):
        found = clip_indices(49, even(25, short="first", joint=True))
        assert found.tolist() == [list(range(0, 49, 2))]


class TestWindows:
    @given(
        frames=COUNTS, length=st.integers(1, 20), stride=st.integers(1, 3), step=st.integers(0, 20), last=st.booleans()
    )
    @settings(max_examples=200, deadline=None)
    def test_are_those_that_fit(self, frames, length, stride, step, last):
        views = Views(clips="windows", length=length, stride=stride, step=step, last=last)
        found = clip_indices(frames, views)
        every = [[start + stride * i for i in range(length)] for start in range(frames)]
        fit = [clip for clip in every if clip[-1] < frames]
        expected = fit[:: step or length * stride]
        if not fit:
            expected = [[(stride * i) % frames for i in range(length)]]
        elif last and expected[-1][-1] != frames - 1:
            expected.append(fit[-1])
        assert found.tolist() == expected

    def test_of_c3d_features_overlap_by_half(self):
        views = load_protocol("c3d-svm").streams[0].test
        assert clip_indices(39, views)[:, [0, -1]].tolist() == [[0, 15], [8, 23], [16, 31]]

    def test_of_lrcn_end_with_the_last_sixteen_frames(self):
        views = load_protocol("lrcn").streams[0].test
        assert clip_indices(39, views)[:, 0].tolist() == [0, 8, 16, 23]
        assert clip_indices(32, views)[:, 0].tolist() == [0, 8, 16]

    def test_of_t3d_skip_every_second_frame_and_do_not_overlap(self):
        views = load_protocol("t3d").streams[0].test
        found = clip_indices(130, views)
        assert found[:, 0].tolist() == [0, 64] and found[0].tolist() == list(range(0, 64, 2))


class TestRandomClips:
    VIEWS = load_protocol("c3d-sports1m").streams[0].test

    def test_depend_on_the_name_and_the_seed_alone(self):
        found = [clip_indices(300, self.VIEWS, name=name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("a", 1))]
        assert (found[0] == clip_indices(300, self.VIEWS, name="a")).all()
        assert (found[0] != found[1]).any() and (found[0] != found[2]).any()

    def test_reach_every_place_and_no_other(self):
        starts = {s for n in range(60) for s in clip_indices(20, self.VIEWS, name=str(n))[:, 0].tolist()}
        assert starts == set(range(5))

    def test_are_as_many_as_published(self):
        assert clip_indices(300, self.VIEWS).shape == (10, 16)
        assert clip_indices(3, self.VIEWS).shape == (10, 16)


class TestTheWholeVideo:
    @given(frames=COUNTS, stride=st.integers(1, 3), length=st.integers(1, 500), least=st.integers(1, 12))
    @settings(max_examples=200, deadline=None)
    def test_is_one_clip(self, frames, stride, length, least):
        views = Views(clips="whole", length=length, stride=stride, short="loop")
        found = clip_indices(frames, views, least=least)
        seen = list(range(0, frames, stride))[:length]
        assert found.shape == (1, max(len(seen), min(least, length)))
        assert found[0, : len(seen)].tolist() == seen

    def test_leaves_out_the_frames_that_have_no_field(self):
        flow = load_protocol("i3d-kinetics").streams[1]
        before, after = reach(flow)
        assert clip_indices(30, flow.test, before=before, extra=after).tolist() == [list(range(29))]

    def test_is_filled_up_to_what_the_network_reads(self):
        views = load_protocol("i3d-ucf101").streams[0].test
        assert clip_indices(4, views, least=9).tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0]]
        short = load_protocol("ng-conv-pooling").streams[0].test
        assert clip_indices(4, short, least=9).tolist() == [[0, 1, 2, 3]]


class TestShortVideos:
    @pytest.mark.parametrize(
        ("short", "expected"),
        [("first", [0, 1, 2, 0, 0]), ("loop", [0, 1, 2, 0, 1]), ("last", [0, 1, 2, 2, 2]), ("none", [0, 1, 2])],
    )
    def test_are_filled_as_said(self, short, expected):
        for views in (Views(clips="windows", length=5, short=short), even(1, length=5, short=short)):
            assert clip_indices(3, views).tolist() == [expected]

    @given(
        frames=st.integers(1, 40),
        clips=st.sampled_from(["even", "random", "windows", "whole"]),
        length=st.integers(1, 30),
        stride=st.integers(1, 4),
        before=st.integers(0, 12),
        extra=st.integers(0, 12),
        short=st.sampled_from(["first", "loop", "last", "none"]),
    )
    @settings(max_examples=400, deadline=None)
    def test_never_lead_out_of_the_video(self, frames, clips, length, stride, before, extra, short):
        count = 7 if clips in ("even", "random") else 0
        views = Views(clips=clips, count=count, length=length, stride=stride, short=short)
        found = clip_indices(frames, views, before=before, extra=extra, name="v")
        assert found.ndim == 2 and found.size and found.min() >= 0 and found.max() < frames
        if frames > before + extra:
            assert found.min() >= before and found.max() + extra < frames

    def test_without_frames_are_refused(self):
        for call in (lambda: clip_indices(0, even(3)), lambda: frames_at_rate(0, 25.0, 5)):
            with pytest.raises(DataError, match="0 frames"):
                call()


class TestWhatMotionNeeds:
    @pytest.mark.parametrize(
        ("protocol", "stream", "expected"),
        [
            ("two-stream", "spatial", (0, 0)),
            ("two-stream", "temporal", (0, 10)),
            ("tsn-eccv16", "flow", (0, 5)),
            ("tsn-pami18-difference", "difference", (0, 5)),
            ("i3d-kinetics", "flow", (0, 1)),
            ("two-stream-fusion", "fusion", (5, 5)),
        ],
    )
    def test_are_the_fields_of_its_stack(self, protocol, stream, expected):
        found = next(item for item in load_protocol(protocol).streams if item.name == stream)
        assert reach(found) == expected


class TestTrainingClips:
    @given(frames=COUNTS, segments=st.integers(1, 9), length=st.integers(1, 6), extra=st.integers(0, 10))
    @settings(max_examples=300, deadline=None)
    def test_lie_in_equal_parts_as_in_tsn(self, frames, segments, length, extra):
        views = TrainViews(segments=segments, length=length)
        found = train_indices(frames, views, np.random.default_rng(0), extra=extra)
        assert found.shape == (segments, length)
        files = max(1, frames - extra)
        duration = (files - length + 1) // segments
        starts = found[:, 0]
        if duration > 0:
            assert all(k * duration <= start < (k + 1) * duration for k, start in enumerate(starts))
            assert (found - starts[:, None] == np.arange(length)).all()
        elif files > segments and files >= length:
            assert (np.diff(starts) >= 0).all() and starts.max() <= files - length
        else:
            assert (starts == 0).all()

    def test_reach_every_place_of_a_part(self):
        views, draw = TrainViews(segments=3, length=1), np.random.default_rng(0)
        found = np.stack([train_indices(10, views, draw)[:, 0] for _ in range(200)])
        assert [sorted(set(column.tolist())) for column in found.T] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]

    def test_of_one_clip_come_from_anywhere(self):
        views, draw = TrainViews(length=4, stride=2), np.random.default_rng(0)
        found = np.concatenate([train_indices(10, views, draw) for _ in range(100)])
        assert sorted(set(found[:, 0].tolist())) == [0, 1, 2, 3] and (np.diff(found, axis=1) == 2).all()
        assert train_indices(3, views, draw).tolist() == [[0, 2, 1, 0]]


class TestFrameRates:
    @given(frames=COUNTS, rate=st.sampled_from([15.0, 24.0, 25.0, 29.97, 30.0]), wanted=st.sampled_from([1, 15, 25]))
    @settings(max_examples=200, deadline=None)
    def test_take_the_frame_on_the_screen(self, frames, rate, wanted):
        found = frames_at_rate(frames, rate, wanted)
        times = np.arange(len(found)) / wanted
        assert (found / rate <= times + 1e-6).all() and (times < (found + 1) / rate + 1e-6).all()
        assert len(found) / wanted >= frames / rate - 1e-6  # the next one would lie past the end

    def test_take_every_frame_where_nothing_is_said(self):
        for found in (frames_at_rate(7, 30.0, None), frames_at_rate(7, float("nan"), 25), frames_at_rate(7, 25.0, 25)):
            assert found.tolist() == list(range(7))


FRAME = torch.arange(31 * 42, dtype=torch.float32).reshape(1, 1, 31, 42)


def cut(crops: str, size) -> list[torch.Tensor]:
    pair = (size, size) if isinstance(size, int) else size or (31, 42)
    pieces = []
    for top, left, mirrored in crop_boxes(crops, (31, 42), size):
        piece = FRAME[..., top : top + pair[0], left : left + pair[1]]
        pieces.append(piece.flip(-1) if mirrored else piece)
    return pieces


class TestCrops:
    @pytest.mark.parametrize("size", [16, (20, 13), 31])
    def test_are_those_of_the_transforms(self, size):
        for name, expected in (
            ("center", [center_crop(FRAME, size)]),
            ("five", five_crop(FRAME, size)),
            ("ten", ten_crop(FRAME, size)),
        ):
            found = cut(name, size)
            assert len(found) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @pytest.mark.parametrize(
        ("name", "number"),
        [("center", 1), ("mirror", 2), ("three", 3), ("four", 4), ("five", 5), ("ten", 10), ("eighteen", 18)],
    )
    def test_are_as_many_as_they_say_and_all_different(self, name, number):
        assert len({tuple(piece.flatten().tolist()) for piece in cut(name, 16)}) == number

    def test_three_lie_along_the_longer_side(self):
        assert crop_boxes("three", (256, 340), 224) == [(16, 0, False), (16, 58, False), (16, 116, False)]
        assert crop_boxes("three", (340, 256), 224) == [(0, 16, False), (58, 16, False), (116, 16, False)]

    def test_eighteen_are_nine_places_and_their_mirrors(self):
        places = [(top, left) for top in (0, 18, 36) for left in (0, 58, 116)]
        found = crop_boxes("eighteen", (240, 320), 204)
        assert found == [(*place, mirrored) for mirrored in (False, True) for place in places]

    def test_mirror_is_the_centre_twice(self):
        centre, mirrored = cut("mirror", 16)
        assert torch.equal(centre, center_crop(FRAME, 16)) and torch.equal(mirrored, centre.flip(-1))

    def test_of_no_size_are_the_frame(self):
        assert crop_boxes("mirror", (31, 42), None) == [(0, 0, False), (0, 0, True)]

    def test_that_do_not_fit_are_refused(self):
        with pytest.raises(DataError, match="224 x 224 does not fit into frames of 200 x 300"):
            crop_boxes("ten", (200, 300), 224)
        with pytest.raises(ConfigError, match="no crops 'twelve'"):
            crop_boxes("twelve", (200, 300), 100)
