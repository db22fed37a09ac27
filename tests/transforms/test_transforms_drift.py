"""Flow without the drift of the whole slice."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from volrec.errors import ConfigError, DataError
from volrec.transforms.drift import DRIFTS, fit_drift, warped_flow, warped_slice_flow
from volrec.transforms.flow import FLOW_METHODS, estimate_flow

HEIGHT, WIDTH = 64, 72


def noise(seed=0, margin=20):
    """Draw smooth noise in [0, 1] that goes on outside of the slice."""
    rough = np.random.default_rng(seed).random((HEIGHT + 2 * margin, WIDTH + 2 * margin))
    smooth = ndimage.gaussian_filter(rough, 2)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def seen(scene, matrix, margin=20):
    """Show the scene after the map `matrix` of pixels (x, y, 1) has moved it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    back = np.tensordot(np.linalg.inv(matrix), np.stack([x, y, np.ones_like(x)]), axes=1)
    places = [back[1] / back[2] + margin, back[0] / back[2] + margin]
    return ndimage.map_coordinates(scene, places, order=3, mode="nearest").clip(0, 1).astype(np.float32)


def moved(matrix):
    """Give the field of a map, (2, H, W)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    to = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), axes=1)
    return np.stack([to[0] / to[2] - x, to[1] / to[2] - y])


SHIFT = np.array([[1, 0, 3.4], [0, 1, -2.2], [0, 0, 1]])
AFFINE = np.array([[1.03, -0.04, 1.5], [0.05, 0.98, -2.0], [0, 0, 1]])
HOMOGRAPHY = np.array([[1.02, -0.03, 2.0], [0.02, 1.01, -1.0], [2e-4, -3e-4, 1]])


class TestFitDrift:
    @pytest.mark.parametrize(
        ("drift", "matrix"),
        [("translation", SHIFT), ("affine", SHIFT), ("affine", AFFINE), ("homography", AFFINE)]
        + [("homography", HOMOGRAPHY)],
    )
    def test_is_exact_although_a_third_moves_otherwise(self, drift, matrix):
        field = moved(matrix)
        field[:, 20:50, 10:60] += np.array([5.0, 7.0]).reshape(2, 1, 1)
        np.testing.assert_allclose(fit_drift(field, drift=drift), matrix, atol=1e-5)

    def test_a_simpler_drift_is_the_best_of_its_kind(self):
        assert np.array_equal(fit_drift(moved(AFFINE), drift="translation")[:2, :2], np.eye(2))

    @pytest.mark.parametrize("drift", DRIFTS)
    def test_noise_and_stillness_have_none(self, drift):
        field = np.random.default_rng(0).uniform(-20, 20, (2, HEIGHT, WIDTH))
        assert np.array_equal(fit_drift(field, drift=drift), np.eye(3))
        assert np.array_equal(fit_drift(np.zeros_like(field), drift=drift), np.eye(3))

    def test_pixels_without_structure_do_not_count(self):
        image = np.zeros((HEIGHT, WIDTH))
        image[20:44, 20:44] = noise()[:24, :24]
        field = np.zeros((2, HEIGHT, WIDTH))
        field[:, 15:49, 15:49] = SHIFT[:2, 2].reshape(2, 1, 1)  # the body moves, the larger part is air
        assert np.array_equal(fit_drift(field, drift="translation"), np.eye(3))
        np.testing.assert_allclose(fit_drift(field, drift="translation", image=image), SHIFT)
        assert np.array_equal(fit_drift(field, drift="translation", image=np.zeros_like(image)), np.eye(3))

    def test_the_seed_alone_decides(self):
        field = moved(AFFINE) + np.random.default_rng(0).normal(0, 0.3, (2, HEIGHT, WIDTH))
        first = fit_drift(field, drift="affine", seed=3)
        np.random.default_rng(1).random()
        assert np.array_equal(fit_drift(field, drift="affine", seed=3), first)
        assert not np.array_equal(fit_drift(field, drift="affine", seed=4), first)


class TestWarpedFlow:
    @pytest.mark.parametrize("method", FLOW_METHODS)
    def test_a_translated_scene_is_left_still(self, method):
        first, second = seen(noise(), np.eye(3)), seen(noise(), SHIFT)
        field, matrix = warped_flow(first, second, drift="translation", method=method)
        np.testing.assert_allclose(matrix, SHIFT, atol=0.12)
        plain = np.hypot(*estimate_flow(first, second, method=method)).mean()
        assert plain > 3
        assert np.hypot(*field).mean() < 0.15
        assert np.quantile(np.hypot(*field), 0.99) < 0.8  # at the border, beside what came in from outside

    @pytest.mark.parametrize(("drift", "matrix"), [("affine", AFFINE), ("homography", HOMOGRAPHY)])
    def test_other_drifts_are_left_still_too(self, drift, matrix):
        field, found = warped_flow(seen(noise(), np.eye(3)), seen(noise(), matrix), drift=drift, method="demons")
        assert np.abs(moved(found) - moved(matrix)).mean() < 0.15
        assert np.hypot(*field).mean() < 0.15

    @pytest.mark.parametrize("drift", DRIFTS)
    def test_a_static_clip_stays_zero(self, drift):
        first = seen(noise(), np.eye(3))
        field, matrix = warped_flow(first, first.copy(), drift=drift)
        assert not field.any()
        assert np.array_equal(matrix, np.eye(3))

    # A disc of 22 pixels is little for DIS, which reads patches of 16: it finds two thirds of the motion.
    @pytest.mark.parametrize(("method", "tolerance"), [("tvl1", 0.4), ("demons", 0.4), ("dis", 1.1)])
    def test_a_disc_on_a_drifting_ground_keeps_its_own_motion(self, method, tolerance):
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        disc, own = noise(seed=5), np.array([-3.0, 2.0])
        first, second = seen(noise(), np.eye(3)), seen(noise(), SHIFT)
        in_first = np.hypot(x - 36, y - 32) < 11
        total = np.eye(3)
        total[:2, 2] = SHIFT[:2, 2] + own
        in_second = np.hypot(x - 36 - total[0, 2], y - 32 - total[1, 2]) < 11
        first[in_first] = seen(disc, np.eye(3))[in_first]
        second[in_second] = seen(disc, total)[in_second]
        field, matrix = warped_flow(first, second, drift="homography", method=method)
        inner, outer = np.hypot(x - 36, y - 32) < 8, np.hypot(x - 36, y - 32) > 19
        np.testing.assert_allclose(np.median(field[:, inner], axis=1), own, atol=tolerance)
        assert np.hypot(*field[:, outer]).mean() < 0.25
        assert np.abs(moved(matrix) - moved(SHIFT))[:, outer].mean() < 0.3

    def test_bytes_are_floats_of_255(self):
        first, second = (np.rint(seen(noise(), m) * 255).astype(np.uint8) for m in (np.eye(3), SHIFT))
        of_bytes = warped_flow(first, second, method="farneback")
        of_floats = warped_flow(first / np.float32(255), second / np.float32(255), method="farneback")
        for found, expected in zip(of_bytes, of_floats, strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_of_a_volume_is_that_of_its_pairs(self):
        volume = np.stack([seen(noise(), np.linalg.matrix_power(SHIFT, t)) for t in (0, 1, 1)])
        fields, drifts = warped_slice_flow(volume, drift="affine", method="dis", progress=True)
        assert fields.shape == (2, 2, HEIGHT, WIDTH)
        field, drift = warped_flow(volume[0], volume[1], drift="affine", method="dis")
        np.testing.assert_array_equal(fields[0], field)
        np.testing.assert_array_equal(drifts[0], drift)
        assert not fields[1].any()

    def test_refuses_what_it_does_not_know(self):
        with pytest.raises(ConfigError, match="translation, affine, homography; got 'rigid'"):
            warped_flow(np.zeros((20, 20)), np.zeros((20, 20)), drift="rigid")
        with pytest.raises(DataError, match=r"\(20, 20\)"):
            warped_slice_flow(np.zeros((20, 20)))
