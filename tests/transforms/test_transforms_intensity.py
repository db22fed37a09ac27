"""Windows, percentiles and z-scores against float64 numpy and MONAI."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRange

from volrec.errors import ConfigError
from volrec.transforms.intensity import BatchIntensity, clipped_moments, quantile_at
from volrec.transforms.windows import WINDOWS, resolve_windows, window_channels


def studies(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Skewed int16 studies of quite different scales, and their quantile tables."""
    rng = np.random.default_rng(0)
    values = (
        rng.gamma(2.0, size=(batch, 1, 12, 20, 20)) * np.array([30.0, 400.0, 3000.0])[:batch, None, None, None, None]
    )
    images = torch.from_numpy(values.clip(0, 32767).astype(np.int16))
    return images, torch.quantile(images.flatten(1).double(), torch.linspace(0, 1, 1001).double(), dim=1).T.float()


class TestWindows:
    def test_equals_monai_scale_intensity_range(self):
        image = torch.randint(-1200, 2000, (2, 1, 4, 5, 6)).to(torch.int16)
        before = image.clone()
        out = window_channels(image, windows=resolve_windows(["brain", "bone", "lung"]))
        assert out.dtype == torch.float32
        assert out.shape == (2, 3, 4, 5, 6)
        for channel, name in enumerate(["brain", "bone", "lung"]):
            level, width = WINDOWS[name]
            scale = ScaleIntensityRange(level - width / 2, level + width / 2, 0.0, 1.0, clip=True)
            torch.testing.assert_close(out[:, channel], scale(image[:, 0].float()), atol=1e-5, rtol=0)
        assert torch.equal(image, before)

    def test_the_usual_presets_are_there(self):
        wanted = {
            "brain",
            "subdural",
            "stroke",
            "bone",
            "lung",
            "mediastinum",
            "liver",
            "abdomen",
            "soft-tissue",
            "angio",
        }
        assert wanted <= set(WINDOWS)
        assert all(width > 0 for _, width in WINDOWS.values())

    def test_takes_names_pairs_mappings_and_objects(self):
        entries = ["brain", (10, 20), {"level": 30, "width": 40}, SimpleNamespace(level=50, width=60)]
        assert resolve_windows(entries) == ((40, 80), (10, 20), (30, 40), (50, 60))

    def test_unknown_preset_suggests_and_lists(self):
        with pytest.raises(ConfigError, match=r"'brian' \(did you mean 'brain'\?\).*mediastinum") as caught:
            resolve_windows(["brian"])
        assert caught.value.code == "window"

    def test_width_must_be_positive(self):
        with pytest.raises(ConfigError, match="got 0"):
            resolve_windows([(40, 0)])


class TestBatchIntensity:
    def test_percentile_equals_numpy(self):
        images, table = studies()
        out = BatchIntensity("percentile", percentiles=(0.5, 99.5))(images, table)
        for image, normal in zip(images.numpy(), out.numpy(), strict=True):
            low, high = np.percentile(image.astype(np.float64), [0.5, 99.5])
            np.testing.assert_allclose(normal, (image.clip(low, high) - low) / (high - low), atol=2e-3)
        assert out.dtype == torch.float32
        assert out.min() == 0
        assert out.max() == 1

    def test_zscore_equals_numpy_on_the_clipped_voxels(self):
        images, table = studies()
        out = BatchIntensity("zscore", percentiles=(1, 99))(images, table)
        for image, normal in zip(images.numpy(), out.numpy(), strict=True):
            clipped = image.astype(np.float64).clip(*np.percentile(image.astype(np.float64), [1, 99]))
            np.testing.assert_allclose(normal, (clipped - clipped.mean()) / clipped.std(), atol=5e-3)

    def test_a_clip_is_normalised_as_its_whole_study(self):
        images, table = studies()
        for kind in ("percentile", "zscore"):
            intensity = BatchIntensity(kind)
            whole = intensity(images, table)
            assert torch.equal(intensity(images[:, :, 2:5, :, 3:9], table), whole[:, :, 2:5, :, 3:9])

    @pytest.mark.parametrize("kind", ["percentile", "zscore"])
    @pytest.mark.parametrize("value", [0.0, -1000.0, 1e6, 3e-12])
    def test_a_study_of_one_value_becomes_zero(self, kind, value):
        image = torch.full((1, 1, 2, 3, 4), value)
        out = BatchIntensity(kind)(image, torch.full((1, 1001), value))
        assert torch.equal(out, torch.zeros_like(image))

    @pytest.mark.parametrize("kind", ["percentile", "zscore"])
    def test_rounding_of_a_constant_study_is_not_blown_up(self, kind):
        table = torch.linspace(1000, 1000.0002, 1001)[None]
        assert table.max() > table.min()
        image = table[0, :1000].view(1, 1, 10, 10, 10)
        assert torch.equal(BatchIntensity(kind)(image, table), torch.zeros_like(image))

    def test_scale_and_offset_of_the_scanner_do_not_matter(self):
        images, table = studies(2)
        for kind in ("percentile", "zscore"):
            intensity = BatchIntensity(kind)
            moved = intensity(images.double() * 1e-4 - 7, table.double() * 1e-4 - 7)
            torch.testing.assert_close(moved, intensity(images, table), atol=1e-4, rtol=0)

    def test_none_is_the_stored_value_and_window_gives_channels(self):
        images, _ = studies()
        assert torch.equal(BatchIntensity("none")(images), images.float())
        windows = BatchIntensity("window", windows=["brain", (0, 100)])
        assert windows.channels == 2
        assert BatchIntensity("zscore").channels == 1
        assert windows(images).shape[1] == 2

    def test_the_input_is_left_alone(self):
        images, table = studies()
        floats = images.float()
        before = floats.clone()
        for kind in ("percentile", "zscore"):
            BatchIntensity(kind)(floats, table)
        assert torch.equal(floats, before)

    def test_moments_of_a_known_distribution(self):
        table = torch.linspace(0, 12, 1001).double()[None]  # uniform on [0, 12]
        mean, std = clipped_moments(table, torch.tensor([0.0]).double(), torch.tensor([12.0]).double())
        assert mean.item() == pytest.approx(6)
        assert std.item() == pytest.approx(12 / np.sqrt(12))
        assert quantile_at(table, 99.95).item() == pytest.approx(11.994)
        assert quantile_at(table, 100).item() == pytest.approx(12)

    def test_bad_values_are_named(self):
        with pytest.raises(ConfigError, match="percentile, zscore, none; got 'minmax'"):
            BatchIntensity("minmax")
        with pytest.raises(ConfigError, match="got 99 and 1"):
            BatchIntensity("zscore", percentiles=(99, 1))
        with pytest.raises(ConfigError, match="no windows"):
            BatchIntensity("window")
        with pytest.raises(ConfigError, match="needs the quantiles"):
            BatchIntensity("zscore")(torch.zeros(1, 1, 2, 2, 2))
