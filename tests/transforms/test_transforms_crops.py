"""Crops of test protocols and TSN's drawn crops, against numpy slices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.errors import ConfigError, DataError
from volrec.transforms.crops import RandomCornerCrop, center_crop, corner_crops, five_crop, mirror_width, ten_crop


def clips(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def slow_places(height, width, h, w):
    """Top left, top right, bottom left, bottom right, centre."""
    return [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w), ((height - h) // 2, (width - w) // 2)]


class TestFixedCrops:
    @given(st.integers(1, 12), st.integers(1, 12), st.data())
    @settings(max_examples=60, deadline=None)
    def test_are_the_slices_of_numpy_in_order_and_their_mirrors(self, height, width, data):
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        images = clips(1, 4, 2, height, width)
        array = images.numpy()
        expected = [array[..., top : top + h, left : left + w] for top, left in slow_places(height, width, h, w)]
        five = five_crop(images, (h, w))
        assert len(five) == 5
        for found, crop in zip(five, expected, strict=True):
            np.testing.assert_array_equal(found.numpy(), crop)
        np.testing.assert_array_equal(center_crop(images, (h, w)).numpy(), expected[4])

        ten = ten_crop(images, (h, w), x_channels=(2,))
        assert len(ten) == 10
        for found, crop in zip(ten[:5], expected, strict=True):
            np.testing.assert_array_equal(found.numpy(), crop)
        for found, crop in zip(ten[5:], expected, strict=True):
            mirrored = crop[..., ::-1].copy()
            mirrored[:, 2] *= -1
            np.testing.assert_array_equal(found.numpy(), mirrored)

    def test_nothing_is_copied_but_one_mirror(self):
        images = clips(2, 3, 4, 9, 8)
        crops = ten_crop(images, 5)
        storages = [crop.untyped_storage().data_ptr() for crop in crops]
        assert set(storages[:5]) == {images.untyped_storage().data_ptr()}
        assert len(set(storages[5:])) == 1

    def test_the_mirror_knows_which_channels_point_along_x(self):
        images = clips(2, 5, 3, 4, 6)
        out = mirror_width(images, x_channels=range(1, 5, 2))
        expected = images.numpy()[..., ::-1].copy()
        expected[:, [1, 3]] *= -1
        np.testing.assert_array_equal(out.numpy(), expected)
        of_slices = mirror_width(images[:, :, 0], x_channels=(1, 3), channel_axis=-3)
        assert torch.equal(of_slices, out[:, :, 0])
        assert torch.equal(mirror_width(out, x_channels=(1, 3)), images)

    def test_a_crop_that_does_not_fit_is_refused(self):
        with pytest.raises(DataError, match="8 x 4 does not fit into slices of 7 x 9"):
            five_crop(clips(1, 1, 1, 7, 9), (8, 4))
        with pytest.raises(ConfigError, match="got 0"):
            center_crop(clips(1, 1, 1, 7, 9), 0)


def slow_corner_crops(height, width, scales, max_distort, more):
    found = []
    sides = [int(min(height, width) * scale) for scale in scales]
    for (i, h), (j, w) in itertools.product(enumerate(sides), repeat=2):
        if abs(i - j) > max_distort:
            continue
        rows, columns = ([rest * quarter // 4 for quarter in range(5)] for rest in (height - h, width - w))
        for a, b in itertools.product(range(5), repeat=2):
            corner = a in (0, 4) and b in (0, 4)
            side = (a, b) in ((0, 2), (2, 0), (4, 2), (2, 4))
            quarter = a in (1, 3) and b in (1, 3)
            if corner or (a, b) == (2, 2) or (more and (side or quarter)):
                found.append((rows[a], columns[b], h, w))
    return found


class TestRandomCornerCrop:
    @pytest.mark.parametrize("shape", [(256, 340), (48, 64), (33, 20)])
    @pytest.mark.parametrize(("max_distort", "more"), [(1, True), (1, False), (0, True), (3, False)])
    def test_the_list_of_crops_is_that_of_a_loop(self, shape, max_distort, more):
        scales = (1, 0.875, 0.75, 0.66)
        found = corner_crops(shape, scales=scales, max_distort=max_distort, more_fix_crop=more)
        assert sorted(found) == sorted(slow_corner_crops(*shape, scales, max_distort, more))
        assert all(0 <= top <= shape[0] - h and 0 <= left <= shape[1] - w for top, left, h, w in found)
        pairs = {0: 4, 1: 10, 3: 16}[max_distort]
        assert len(found) == pairs * (13 if more else 5)

    def test_has_the_sizes_and_corners_of_the_paper(self):
        found = corner_crops((256, 340))
        assert {h for _, _, h, _ in found} == {256, 224, 192, 168}
        assert (32, 116, 224, 224) in found
        assert {(h, w) for _, _, h, w in found if h == 256} == {(256, 256), (256, 224)}

    @pytest.mark.parametrize("more", [True, False])
    def test_draws_every_crop_of_the_list_and_none_else_equally_often(self, more):
        transform = RandomCornerCrop(16, more_fix_crop=more, mirror=0.5)
        listed = corner_crops((53, 64), more_fix_crop=more)
        drawn = transform.draw(len(listed) * 100, (4, 53, 64), torch.Generator().manual_seed(0))
        seen, counts = np.unique(drawn[:, :4].numpy(), axis=0, return_counts=True)
        expected, shares = np.unique(np.array(listed), axis=0, return_counts=True)
        np.testing.assert_array_equal(seen, expected)
        assert (np.abs(counts / shares - 100) < 50).all()
        assert abs(float(drawn[:, 4].float().mean()) - 0.5) < 0.05

    def test_applies_what_was_drawn_and_replays(self):
        images = clips(6, 3, 2, 20, 26)
        transform = RandomCornerCrop((11, 12), scales=(1, 0.6, 0.55), mirror=0.5, x_channels=(1,))
        params = transform.draw(6, images.shape[2:], torch.Generator().manual_seed(1))
        params[0] = torch.tensor([3, 5, 11, 12, 0])
        params[1] = torch.tensor([0, 7, 11, 12, 1])
        before = images.clone()
        out = transform.apply(images, params)
        assert torch.equal(images, before)
        assert out.shape == (6, 3, 2, 11, 12)
        for clip, found, (top, left, h, w, mirrored) in zip(images, out, params.tolist(), strict=True):
            expected = clip[:, :, top : top + h, left : left + w]
            expected = functional.interpolate(expected, (11, 12), mode="bilinear", antialias=True)
            if mirrored:
                expected = expected.flip(-1)
                expected[1] *= -1
            torch.testing.assert_close(found, expected)
        assert torch.equal(out[0], images[0, :, :, 3:14, 5:17])  # no resize: to the bit
        assert torch.equal(transform.apply(images, params), out)

    def test_is_a_monai_transform_with_a_state_of_its_own(self):
        images = clips(4, 1, 2, 20, 26)
        transform = RandomCornerCrop(8).set_random_state(3)
        first = transform(images)
        assert torch.equal(transform(images, randomize=False), first)
        assert torch.equal(RandomCornerCrop(8).set_random_state(3)(images), first)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": 0}, "got 0"),
            ({"size": (3, 4, 5)}, r"\(3, 4, 5\)"),
            ({"scales": ()}, r"\(\)"),
            ({"scales": (0.5, 1.0)}, "must fall"),
            ({"scales": (1.2, 1.0)}, "1.2"),
            ({"max_distort": -1}, "-1"),
            ({"mirror": 2}, "2"),
        ],
    )
    def test_refuses_what_cannot_be(self, options, message):
        with pytest.raises(ConfigError, match=message):
            RandomCornerCrop(**{"size": 8, **options})
