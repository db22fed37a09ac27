"""Optical flow: every estimator against motions that are known, order, sign, units, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from volrec.errors import ConfigError, DataError
from volrec.transforms import flow_estimators
from volrec.transforms.flow import (
    FLOW_METHODS,
    estimate_flow,
    flow_backend,
    flow_settings,
    slice_difference,
    slice_flow,
)

BORDER = 8  # What moves in from outside cannot be known.
TURN = np.deg2rad(4)
# The map from where something is in the first slice to where it is in the second, about the middle: (x, y) order.
MOTIONS = {
    "translation": (np.eye(2), (2.3, -1.4)),
    "long translation": (np.eye(2), (5.6, -4.0)),
    "rotation": (np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]]), (0, 0)),
    "zoom": (np.eye(2) * 1.06, (0, 0)),
}


def texture(height, width, linear=None, shift=(0, 0), spacing=(1, 1), seed=0):
    """Draw waves of 10 to 40 mm, their content moved by an affine map in mm; exact at any place."""
    rng = np.random.default_rng(seed)
    wavelengths, angles, phases = rng.uniform(10, 40, 40), rng.uniform(0, np.pi, 40), rng.uniform(0, 2 * np.pi, 40)
    y, x = np.mgrid[:height, :width].astype(float)
    places = np.stack([(x - (width - 1) / 2) * spacing[1], (y - (height - 1) / 2) * spacing[0]])
    back = np.linalg.inv(np.eye(2) if linear is None else linear)
    u, v = np.tensordot(back, places - np.reshape(shift, (2, 1, 1)), axes=1)
    waves = sum(
        length * np.sin(2 * np.pi / length * (np.cos(angle) * u + np.sin(angle) * v) + phase)
        for length, angle, phase in zip(wavelengths, angles, phases, strict=True)
    )
    return np.clip(0.5 + 1.6 * waves / wavelengths.sum(), 0, 1).astype(np.float32)


def truth(height, width, linear, shift, spacing=(1, 1)):
    y, x = np.mgrid[:height, :width].astype(float)
    places = np.stack([(x - (width - 1) / 2) * spacing[1], (y - (height - 1) / 2) * spacing[0]])
    moved = np.tensordot(linear, places, axes=1) + np.reshape(shift, (2, 1, 1)) - places
    return moved / np.array([spacing[1], spacing[0]]).reshape(2, 1, 1)


def endpoint_error(found, expected, border=BORDER):
    return np.hypot(*(found - expected))[border:-border, border:-border]


def no_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)


class TestEstimators:
    # Mean endpoint error in pixels that each may have, on 72 x 64.
    LIMITS = {
        ("tvl1", "translation"): 0.08, ("tvl1", "long translation"): 0.08,
        ("tvl1", "rotation"): 0.1, ("tvl1", "zoom"): 0.1,
        ("farneback", "translation"): 0.05, ("farneback", "long translation"): 0.25,
        ("farneback", "rotation"): 0.35, ("farneback", "zoom"): 0.3,
        ("dis", "translation"): 0.05, ("dis", "long translation"): 0.06,
        ("dis", "rotation"): 0.2, ("dis", "zoom"): 0.15,
        ("demons", "translation"): 0.08, ("demons", "long translation"): 0.06,
        ("demons", "rotation"): 0.06, ("demons", "zoom"): 0.06,
    }  # fmt: skip

    @pytest.mark.parametrize("motion", list(MOTIONS))
    @pytest.mark.parametrize("method", FLOW_METHODS)
    def test_find_a_known_motion(self, method, motion):
        linear, shift = MOTIONS[motion]
        first, second = texture(72, 64), texture(72, 64, linear, shift)
        found = estimate_flow(first, second, method=method)
        assert found.shape == (2, 72, 64)
        assert found.dtype == np.float32
        assert endpoint_error(found, truth(72, 64, linear, shift)).mean() < self.LIMITS[method, motion]

    @pytest.mark.parametrize("method", FLOW_METHODS)
    def test_warping_the_next_slice_by_the_field_restores_the_slice(self, method):
        linear, shift = MOTIONS["rotation"]
        first, second = texture(72, 64), texture(72, 64, linear, shift)
        x, y = estimate_flow(first, second, method=method)
        rows, columns = np.mgrid[:72, :64]
        restored = ndimage.map_coordinates(second, [rows + y, columns + x], order=1, mode="nearest")
        inner = (slice(BORDER, -BORDER),) * 2
        before, after = np.abs(second - first)[inner].mean(), np.abs(restored - first)[inner].mean()
        assert after < before / (6 if method == "farneback" else 10)

    @pytest.mark.parametrize("method", FLOW_METHODS)
    def test_x_comes_first_and_points_forward(self, method):
        first, second = texture(48, 64), texture(48, 64, shift=(2, 0))  # content moves to larger w
        x, y = estimate_flow(first, second, method=method)[:, 12:-12, 12:-12]
        np.testing.assert_allclose([x.mean(), y.mean()], [2, 0], atol=0.1)

    @pytest.mark.parametrize("method", FLOW_METHODS)
    def test_the_same_slice_twice_and_a_flat_slice_do_not_move(self, method):
        noise = np.random.default_rng(0).random((40, 40), dtype=np.float32)
        assert not estimate_flow(noise, noise.copy(), method=method).any()
        assert not estimate_flow(np.full((40, 40), 0.5), np.full((40, 40), 0.5), method=method).any()

    @pytest.mark.parametrize("method", FLOW_METHODS)
    def test_a_field_is_found_again_to_the_bit(self, method):
        first, second = texture(40, 40), texture(40, 40, shift=(1, 1))
        found = estimate_flow(first, second, method=method)
        np.testing.assert_array_equal(estimate_flow(first, second, method=method), found)

    @pytest.mark.parametrize("method", FLOW_METHODS)
    @pytest.mark.parametrize("shape", [(1, 1), (3, 40), (12, 7)])
    def test_small_slices_keep_their_shape(self, method, shape):
        rng = np.random.default_rng(0)
        found = estimate_flow(rng.random(shape), rng.random(shape), method=method)
        assert found.shape == (2, *shape)
        assert np.isfinite(found).all()

    @pytest.mark.parametrize("method", FLOW_METHODS)
    def test_bytes_are_read_as_the_floats_they_stand_for(self, method):
        first, second = (np.rint(image * 255).astype(np.uint8) for image in (texture(40, 40), texture(40, 40, seed=1)))
        of_bytes = estimate_flow(first, second, method=method)
        np.testing.assert_array_equal(of_bytes, estimate_flow(first / 255.0, second / 255.0, method=method))

    def test_opencv_keeps_the_number_of_threads_it_had(self):
        cv2 = pytest.importorskip("cv2")
        before = cv2.getNumThreads()
        try:
            cv2.setNumThreads(2)
            for method in ("tvl1", "farneback", "dis"):
                estimate_flow(texture(20, 20), texture(20, 20, shift=(1, 0)), method=method)
                assert cv2.getNumThreads() == 2
        finally:
            cv2.setNumThreads(before)


class TestDemonsInMillimetres:
    @pytest.mark.parametrize("spacing", [(0.7, 0.7), (2.1, 0.7), (0.5, 2.0)])
    def test_find_several_mm_on_any_pixel_and_give_voxels(self, spacing):
        height, width = 64, 56
        shift = (4.2, -3.1)  # mm
        scene = {"spacing": spacing, "seed": 3}
        first, second = texture(height, width, **scene), texture(height, width, shift=shift, **scene)
        found = estimate_flow(first, second, method="demons", spacing=spacing)
        millimetres = found * np.array([spacing[1], spacing[0]]).reshape(2, 1, 1)
        expected = np.broadcast_to(np.reshape(shift, (2, 1, 1)), found.shape)
        assert endpoint_error(millimetres, expected, border=12).mean() < 0.25
        np.testing.assert_allclose(
            found[:, 12:-12, 12:-12].mean(axis=(1, 2)), [shift[0] / spacing[1], shift[1] / spacing[0]], rtol=0.08
        )

    def test_the_border_is_right_where_no_level_divides_the_sides(self):
        linear, shift = MOTIONS["long translation"]
        first, second = texture(71, 71), texture(71, 71, linear, shift)
        error = endpoint_error(estimate_flow(first, second, method="demons"), truth(71, 71, linear, shift), border=1)
        assert max(error[:, 0].mean(), error[:, -1].mean(), error[0].mean(), error[-1].mean()) < 0.15

    def test_slice_flow_takes_the_spacing_in_plane(self):
        volume = np.stack([texture(32, 32), texture(32, 32, shift=(1, 1))])
        pair = estimate_flow(*volume, method="demons", spacing=(2.0, 1.0))
        np.testing.assert_array_equal(slice_flow(volume, method="demons", spacing=(5.0, 2.0, 1.0))[0], pair)
        assert not np.array_equal(slice_flow(volume, method="demons", spacing=(5.0, 1.0, 2.0))[0], pair)


class TestSliceFlow:
    def test_goes_from_each_slice_to_the_next(self):
        volume = np.stack([texture(24, 28, shift=(t, 0)) for t in (0, 1, 3, 3)])
        fields = slice_flow(volume, method="farneback", progress=True)
        assert fields.shape == (3, 2, 24, 28)
        for t, field in enumerate(fields):
            np.testing.assert_array_equal(field, estimate_flow(volume[t], volume[t + 1], method="farneback"))
        assert not fields[2].any()

    def test_one_slice_has_no_field(self):
        assert slice_flow(texture(20, 24)[None], method="demons").shape == (0, 2, 20, 24)

    def test_a_difference_is_the_next_minus_this(self):
        volume = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 6)).astype(np.uint8)
        out = slice_difference(volume)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, np.diff(volume.astype(float), axis=1))
        with pytest.raises(DataError, match=r"\(5, 6\)"):
            slice_difference(volume[0, 0])


class TestBackends:
    def test_are_named_with_their_version_and_have_settings(self):
        for method in FLOW_METHODS:
            name, settings = flow_backend(method), flow_settings(method)
            assert name.endswith(f" {method}")
            assert name.split(" ")[0].split("-")[-1].replace(".", "").isdigit()
            assert settings
            settings.clear()
            assert flow_settings(method)
        assert flow_backend("demons").startswith("simpleitk-")

    def test_tvl1_falls_back_to_scikit_image_and_says_so(self, monkeypatch):
        pytest.importorskip("skimage")
        before = flow_backend("tvl1")
        no_opencv(monkeypatch)
        assert flow_backend("tvl1").startswith("scikit-image-")
        assert flow_backend("tvl1") != before
        linear, shift = MOTIONS["translation"]
        found = estimate_flow(texture(72, 64), texture(72, 64, linear, shift), method="tvl1")
        assert endpoint_error(found, truth(72, 64, linear, shift)).mean() < 0.05

    def test_opencv_without_its_contributed_modules_has_no_tvl1_but_the_others(self, monkeypatch):
        cv2 = pytest.importorskip("cv2")
        monkeypatch.delattr(cv2, "optflow")
        monkeypatch.setitem(sys.modules, "skimage.registration", None)
        with pytest.raises(ConfigError, match="contributed modules"):
            flow_backend("tvl1")
        assert flow_backend("dis").startswith("opencv-")

    @pytest.mark.parametrize("method", ["tvl1", "farneback", "dis"])
    def test_a_missing_package_is_told_with_what_to_do(self, monkeypatch, method):
        no_opencv(monkeypatch)
        monkeypatch.setitem(sys.modules, "skimage.registration", None)
        with pytest.raises(ConfigError, match=r"pip install 'volrec\[flow\]'.*'demons', which needs nothing"):
            slice_flow(np.zeros((1, 20, 20)), method=method)
        assert estimate_flow(texture(20, 20), texture(20, 20, shift=(1, 0)), method="demons").any()

    def test_the_constants_of_tvl1_are_those_of_opencv(self):
        cv2 = pytest.importorskip("cv2")
        default = cv2.optflow.DualTVL1OpticalFlow_create()
        for name, value in flow_estimators.SETTINGS["opencv tvl1"].items():
            assert getattr(default, f"get{name}")() == value

    def test_neither_torch_nor_monai_is_loaded(self):
        code = (
            "import sys, numpy as np\n"
            "from volrec.transforms import slice_flow, stack_fields, warped_flow, quantise\n"
            "volume = np.random.default_rng(0).random((3, 20, 20))\n"
            "for method in ('tvl1', 'demons'):\n"
            "    stack_fields(quantise(slice_flow(volume, method=method)), 0, length=2, order='trajectory')\n"
            "warped_flow(volume[0], volume[1])\n"
            "print([name for name in ('torch', 'monai', 'pandas') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("first", "second", "options", "error", "message"),
        [
            (np.zeros((20, 20)), np.zeros((20, 21)), {}, DataError, r"\(20, 21\)"),
            (np.zeros((2, 20, 20)), np.zeros((2, 20, 20)), {}, DataError, r"\(H, W\)"),
            (np.zeros((0, 20)), np.zeros((0, 20)), {}, DataError, r"\(0, 20\)"),
            (np.full((20, 20), -40.0), np.zeros((20, 20)), {}, DataError, "-40"),
            (np.full((20, 20), np.nan), np.zeros((20, 20)), {}, DataError, "nan"),
            (np.zeros((20, 20), np.int16), np.zeros((20, 20), np.int16), {}, DataError, "int16"),
            (np.zeros((20, 20)), np.zeros((20, 20)), {"spacing": (1, 0)}, DataError, r"\(1, 0\)"),
            (np.zeros((20, 20)), np.zeros((20, 20)), {"spacing": (1, 1, 1)}, DataError, "2 finite values"),
            (np.zeros((20, 20)), np.zeros((20, 20)), {"method": "brox"}, ConfigError, "tvl1, farneback, dis, demons"),
        ],
    )
    def test_says_what_was_seen(self, first, second, options, error, message):
        with pytest.raises(error, match=message):
            estimate_flow(first, second, **{"method": "demons", **options})
