"""Random windows: nothing drawn is `BatchIntensity`, what is drawn is a window set elsewhere, before the clipping."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volrec.errors import ConfigError
from volrec.transforms.intensity import BatchIntensity
from volrec.transforms.random_window import RandomWindow, WindowParams

WINDOWS = ["brain", (300.0, 1500.0)]


def studies(size: tuple[int, int, int] = (3, 6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(4)
    scales = np.array([30.0, 400.0, 3000.0])[:, None, None, None, None]
    images = torch.from_numpy((rng.gamma(2.0, size=(3, 1, *size)) * scales - 40).clip(-2000, 9000)).to(torch.int16)
    steps = torch.linspace(0, 1, 1001).double()
    return images, torch.quantile(images.flatten(1).double(), steps, dim=1).T.float()


def still(batch: int) -> WindowParams:
    return WindowParams(torch.zeros(batch), torch.ones(batch))


@pytest.mark.parametrize("kind", ["window", "percentile", "zscore", "none"])
def test_without_a_change_it_is_the_plain_normalisation(kind: str) -> None:
    images, quantiles = studies()
    windows = WINDOWS if kind == "window" else ()
    random = RandomWindow(kind, windows=windows, level=0.0, width=0.0)
    params = random.draw(3, torch.Generator().manual_seed(1))
    assert (params.level == 0).all() and (params.width == 1).all()
    plain = BatchIntensity(kind, windows=windows)(images, quantiles)
    torch.testing.assert_close(random.apply(images, params, quantiles), plain, atol=2e-5, rtol=1e-5)
    assert torch.equal(random(images, quantiles), plain)


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
def test_a_study_of_one_value_stays_at_zero(kind: str) -> None:
    images = torch.full((1, 1, 2, 3, 3), 700, dtype=torch.int16)
    random = RandomWindow(kind, level=0.5, width=0.5)
    out = random.apply(images, random.draw(1, torch.Generator().manual_seed(0)), torch.full((1, 1001), 700.0))
    assert torch.equal(out, torch.zeros_like(out))


def test_windows_are_moved_and_stretched_before_the_clipping() -> None:
    images, _ = studies()
    random = RandomWindow("window", windows=WINDOWS, level=0.3, width=0.5)
    params = random.draw(3, torch.Generator().manual_seed(7))
    out = random.apply(images, params).numpy()
    assert out.shape == (3, 2, 3, 6, 5) and out.dtype == np.float32
    for study in range(3):
        for channel, (level, width) in enumerate([(40.0, 80.0), (300.0, 1500.0)]):
            moved_level = level + float(params.level[study]) * width
            moved_width = width * float(params.width[study])
            for place, value in np.ndenumerate(images[study, 0].numpy()):
                expected = (float(value) - (moved_level - moved_width / 2)) / moved_width
                assert out[study, channel][place] == pytest.approx(min(1.0, max(0.0, expected)), abs=2e-5)


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
def test_windows_of_a_study_move_by_its_own_range(kind: str) -> None:
    images, quantiles = studies((12, 20, 20))
    random = RandomWindow(kind, percentiles=(5.0, 95.0), level=0.3, width=0.5)
    params = random.draw(3, torch.Generator().manual_seed(8))
    out = random.apply(images, params, quantiles).numpy()
    for study in range(3):
        values = images[study, 0].numpy().astype(np.float64)
        low, high = np.percentile(values, [5, 95])
        shift, factor = float(params.level[study]), float(params.width[study])
        middle, width = (low + high) / 2 + shift * (high - low), (high - low) * factor
        clipped = values.clip(middle - width / 2, middle + width / 2)
        if kind == "percentile":
            expected = (clipped - (middle - width / 2)) / width
        else:  # zero mean and unit variance of the unmoved window, then moved and stretched with it
            plain = values.clip(low, high)
            expected = (clipped - plain.mean() - shift * (high - low)) / (plain.std() * factor)
        np.testing.assert_allclose(out[study, 0], expected, atol=0.02)


def test_what_lay_outside_comes_in_and_what_lay_inside_is_clipped() -> None:
    values = torch.tensor([-5.0, 20.0, 60.0, 85.0]).view(1, 1, 1, 1, 4)
    random = RandomWindow("window", windows=["brain"])  # 0 to 80
    up = random.apply(values, WindowParams(torch.tensor([0.1]), torch.ones(1))).flatten()  # 8 to 88
    down = random.apply(values, WindowParams(torch.tensor([-0.1]), torch.ones(1))).flatten()  # -8 to 72
    narrow = random.apply(values, WindowParams(torch.zeros(1), torch.tensor([0.5]))).flatten()  # 20 to 60
    np.testing.assert_allclose(up, [0.0, 0.15, 0.65, 0.9625], atol=1e-6)
    np.testing.assert_allclose(down, [0.0375, 0.35, 0.85, 1.0], atol=1e-6)
    np.testing.assert_allclose(narrow, [0.0, 0.0, 1.0, 1.0], atol=1e-6)


def test_draws_come_from_the_generator_alone_and_stay_in_range() -> None:
    random = RandomWindow("window", windows=["brain"], level=0.2, width=0.5)
    one, again = (random.draw(500, torch.Generator().manual_seed(3)) for _ in range(2))
    other = random.draw(500, torch.Generator().manual_seed(4))
    assert torch.equal(one.level, again.level) and torch.equal(one.width, again.width)
    assert not torch.equal(one.level, other.level) and not torch.equal(one.width, other.width)
    assert one.level.abs().max() <= 0.2 and one.level.min() < -0.18 and one.level.max() > 0.18
    assert one.width.min() >= 1 / 1.5 - 1e-6 and one.width.max() <= 1.5 + 1e-6
    assert (one.width < 1).float().mean() == pytest.approx(0.5, abs=0.1)  # as often narrower as wider
    # What is drawn for the shift says nothing of the width.
    assert abs(float(torch.corrcoef(torch.stack([one.level, one.width]))[0, 1])) < 0.15


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
def test_quantiles_are_asked_for(kind: str) -> None:
    images, _ = studies()
    with pytest.raises(ConfigError, match="needs the quantiles of each study"):
        RandomWindow(kind).apply(images, still(3))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"level": 1.0}, r"window_level must be in \[0, 1\), got 1\.0"),
        ({"level": -0.1}, r"window_level must be in \[0, 1\), got -0\.1"),
        ({"width": 1.5}, r"window_width must be in \[0, 1\), got 1\.5"),
        ({"width": float("nan")}, "window_width"),
        ({"kind": "windw"}, "windw"),
        ({"kind": "window"}, "got no windows"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RandomWindow(**arguments)
