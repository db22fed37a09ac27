"""Augmentation: each does what it says, nothing at 0, and what was drawn can be replayed."""

from __future__ import annotations

import dataclasses
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform, gaussian_filter, gaussian_filter1d

from volrec.errors import ConfigError
from volrec.transforms.batch import BatchAugment, BatchTransform
from volrec.transforms.blur import RandomBlur
from volrec.transforms.dropout import RandomSliceDropout
from volrec.transforms.flips import RandomFlip, flip_axes
from volrec.transforms.intensity import BatchIntensity
from volrec.transforms.mixup import RandomMixup
from volrec.transforms.noise import RandomNoise
from volrec.transforms.spatial import RandomSpatial, SpatialParams, rigid_matrix
from volrec.transforms.tone import RandomTone

SHAPE = (4, 2, 6, 12, 10)
EVERYTHING = {
    "flip": {"T": 0.5, "H": 0.5, "W": 0.5}, "rotate": 15, "tilt": 8, "scale": 0.2, "shift": 2, "shift_slices": 1,
    "elastic": 1, "noise": 0.1, "contrast": 0.3, "brightness": 0.2, "gamma": 0.4, "blur": 1, "slice_dropout": 0.3,
    "slice_jitter": 1, "mixup": 0.4,
}  # fmt: skip
SPATIAL = ("rotate", "tilt", "scale", "shift", "shift_slices", "elastic", "slice_jitter")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed))


def smooth(shape: tuple[int, int, int], sigma: float = 2.0) -> np.ndarray:
    volume = gaussian_filter(np.random.default_rng(0).normal(size=shape), sigma)
    return volume / volume.std()


def params_equal(first, second) -> bool:
    if dataclasses.is_dataclass(first):
        fields = [field.name for field in dataclasses.fields(first)]
        return all(params_equal(getattr(first, name), getattr(second, name)) for name in fields)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


class TestEvery:
    @pytest.mark.parametrize("name", list(EVERYTHING))
    def test_changes_the_images_leaves_the_input_and_replays(self, name):
        augment = BatchAugment(**{name: EVERYTHING[name]})
        images = batch()
        before = images.clone()
        params = augment.draw(4, SHAPE[2:], generator())
        out = augment.apply(images, params)
        assert torch.equal(images, before)
        assert out.shape == images.shape
        assert out.dtype == torch.float32
        assert not torch.allclose(out, images, atol=1e-3)
        assert torch.equal(augment.apply(images, params), out)
        assert params_equal(augment.draw(4, SHAPE[2:], generator()), params)
        assert not params_equal(augment.draw(4, SHAPE[2:], generator(1)), params)

    @pytest.mark.parametrize("name", list(EVERYTHING))
    def test_draws_the_same_whatever_else_is_on(self, name):
        alone = BatchAugment(**{name: EVERYTHING[name]}).draw(4, SHAPE[2:], generator())
        together = BatchAugment(**EVERYTHING).draw(4, SHAPE[2:], generator())
        for part in ("flip", "dropout", "blur", "noise", "mixup"):
            if getattr(alone, part) is not None:
                assert params_equal(getattr(alone, part), getattr(together, part))
        if name == "rotate":
            torch.testing.assert_close(
                RandomSpatial(rotate=15).draw(4, SHAPE[2:], generator()).matrix,
                RandomSpatial(rotate=15, elastic=1).draw(4, SHAPE[2:], generator()).matrix,
            )

    def test_everything_at_once_replays_and_stays_finite(self):
        augment = BatchAugment(**EVERYTHING)
        params = augment.draw(4, SHAPE[2:], generator())
        out = augment.apply(batch(), params)
        assert torch.equal(augment.apply(batch(), params), out)
        assert torch.isfinite(out).all()

    @pytest.mark.parametrize(
        ("make", "argument"),
        [
            (lambda: BatchAugment(), "any augmentation"),
            (lambda: RandomFlip({"T": 0.0}), "a probability of T, H or W"),
            (lambda: RandomSpatial(), "rotate or tilt"),
            (lambda: RandomSpatial(rotate=5, probability=0), "spatial_probability"),
            (lambda: RandomNoise(std=0), "std"),
            (lambda: RandomTone(), "gamma or contrast or brightness"),
            (lambda: RandomBlur(sigma=0), "sigma"),
            (lambda: RandomSliceDropout(probability=0), "probability"),
            (lambda: RandomMixup(alpha=0), "alpha"),
        ],
    )
    def test_without_strength_warns_names_the_argument_and_changes_nothing(self, make, argument):
        with pytest.warns(UserWarning, match=argument):
            transform = make()
        images = batch()
        out = transform.apply(images, transform.draw(4, SHAPE[2:], generator()))
        torch.testing.assert_close(out, images, atol=1e-6, rtol=0)

    def test_with_strength_does_not_warn(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            BatchAugment(**EVERYTHING)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"noise": -1}, "noise must be a finite number of at least 0, got -1"),
            ({"rotate": float("nan")}, "rotate"),
            ({"scale": 1.0}, "scale below 1"),
            ({"tilt": 60}, "at most 45 degrees"),
            ({"flip": {"X": 0.5}}, "'X'"),
            ({"flip": {"W": 1.5}}, "1.5"),
            ({"slice_dropout": 2}, "probability"),
            ({"rotate": 1, "spatial_probability": 2}, "spatial_probability"),
            ({"tilt": 1, "spacing": (0, 1, 1)}, "spacing"),
        ],
    )
    def test_impossible_strengths_are_named(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            BatchAugment(**arguments)

    def test_as_a_monai_transform_it_keeps_what_it_drew(self):
        augment = BatchAugment(rotate=20, noise=0.1)
        first = augment.set_random_state(seed=3)(batch())
        assert torch.equal(augment(batch(), randomize=False), first)
        assert not torch.equal(augment(batch()), first)
        assert torch.equal(augment.set_random_state(seed=3)(batch()), first)


class TestFlip:
    def test_mirrors_the_drawn_axes(self):
        images = batch()
        every = torch.tensor(list(product([False, True], repeat=3)))
        for start in (0, 4):
            out = RandomFlip({"T": 0.5}).apply(images, every[start : start + 4])
            for image, mirrored, row in zip(images, out, every[start : start + 4], strict=True):
                assert torch.equal(mirrored, flip_axes(image, [a for a, on in zip("THW", row, strict=True) if on]))

    def test_probabilities_hold(self):
        drawn = RandomFlip({"T": 0.2, "W": 1.0}).draw(4000, (1, 1, 1), generator()).float().mean(dim=0)
        assert drawn[0].item() == pytest.approx(0.2, abs=0.03)
        assert drawn[1:].tolist() == [0.0, 1.0]


class TestSpatial:
    def apply(self, volume: np.ndarray, matrix: torch.Tensor) -> np.ndarray:
        image = torch.from_numpy(volume).float()[None, None]
        return RandomSpatial(rotate=1).apply(image, SpatialParams(matrix, None, None))[0, 0].numpy()

    def oracle(self, volume: np.ndarray, matrix: torch.Tensor) -> np.ndarray:
        centre = (np.array(volume.shape) - 1) / 2
        linear, shift = matrix[0, :, :3].numpy(), matrix[0, :, 3].numpy()
        return affine_transform(volume, linear, offset=shift + centre - linear @ centre, order=3, mode="nearest")

    @given(
        angles=st.tuples(st.floats(-30, 30), st.floats(-12, 12), st.floats(-12, 12)),
        scale=st.floats(0.8, 1.25),
        shift=st.tuples(st.floats(-1.5, 1.5), st.floats(-3, 3), st.floats(-3, 3)),
        thickness=st.floats(0.5, 4),
    )
    @settings(max_examples=25, deadline=None)
    def test_a_rigid_motion_equals_scipy(self, angles, scale, shift, thickness):
        volume = smooth((14, 24, 20), 3.0)
        matrix = rigid_matrix(
            torch.tensor([angles]), scale=torch.tensor([scale]), shift=torch.tensor([shift]), spacing=(thickness, 1, 1)
        )
        ours, theirs = self.apply(volume, matrix), self.oracle(volume, matrix)
        grid = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij")).reshape(3, -1)
        centre = (np.array(volume.shape)[:, None] - 1) / 2
        source = matrix[0, :, :3].numpy() @ (grid - centre) + matrix[0, :, 3:].numpy() + centre
        limits = np.array(volume.shape)[:, None] - 1
        # The passes meet the border at different places: compare what stays well inside. Slices move sideways under a
        # tilt before they are mixed, so two slices of room above and below.
        room = np.array([[2.5], [1.0], [1.0]]) + np.abs(matrix[0, :, :1].numpy()) * [[0], [2], [2]]
        inside = ((source >= room) & (source <= limits - room)).all(axis=0).reshape(volume.shape)
        assert inside.sum() > 100
        assert np.abs(ours - theirs)[inside].max() < 0.12  # of a standard deviation of 1: linear against cubic
        assert np.sqrt(np.mean((ours - theirs)[inside] ** 2)) < 0.03

    def test_rotation_turns_the_way_it_says(self):
        volume = np.zeros((1, 9, 9))
        volume[0, 4, 7] = 1  # right of the centre
        matrix = rigid_matrix(torch.tensor([[90.0, 0, 0]]), scale=torch.ones(1), shift=torch.zeros(1, 3))
        assert np.unravel_index(self.apply(volume, matrix).argmax(), volume.shape) == (0, 1, 4)

    def test_whole_voxel_shifts_are_exact_and_repeat_the_border(self):
        volume = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
        matrix = rigid_matrix(torch.zeros(1, 3), scale=torch.ones(1), shift=torch.tensor([[1.0, -2.0, 3.0]]))
        index = [np.clip(np.arange(n) - s, 0, n - 1) for n, s in zip(volume.shape, (1, -2, 3), strict=True)]
        np.testing.assert_allclose(self.apply(volume, matrix), volume[np.ix_(*index)], atol=1e-5)

    def test_scale_above_one_grows_in_plane_alone(self):
        volume = np.zeros((5, 21, 21))
        volume[2, 8:13, 8:13] = 1
        matrix = rigid_matrix(torch.zeros(1, 3), scale=torch.tensor([2.0]), shift=torch.zeros(1, 3))
        grown = self.apply(volume, matrix)
        assert grown[2].sum() == pytest.approx(100, rel=0.05)
        assert grown[[0, 1, 3, 4]].sum() == 0

    def test_a_tilt_follows_the_millimetres(self):
        """Slices five times as thick as wide: a tilt moves far fewer slices than with cubes."""
        turned = torch.tensor([[0.0, 0.0, 30.0]])
        flat = rigid_matrix(turned, scale=torch.ones(1), shift=torch.zeros(1, 3), spacing=(5, 1, 1))
        assert flat[0, 0, 1].abs().item() == pytest.approx(np.sin(np.pi / 6) / 5)
        assert flat[0, 1, 0].abs().item() == pytest.approx(np.sin(np.pi / 6) * 5)

    def test_strengths_are_limits_and_are_reached(self):
        transform = RandomSpatial(rotate=10, scale=0.2, shift=3, shift_slices=2)
        matrix = transform.draw(3000, (4, 8, 8), generator()).matrix
        back = matrix[:, :, :3].inverse()
        scale = back[:, 1:, 1].norm(dim=1)
        angle = torch.rad2deg(torch.atan2(back[:, 2, 1], back[:, 1, 1]))
        shift = -(back @ matrix[:, :, 3:])[:, :, 0]
        for values, limit in ((scale - 1, 0.2), (angle, 10), (shift[:, 0], 2), (shift[:, 1], 3), (shift[:, 2], 3)):
            assert values.abs().max().item() == pytest.approx(limit, rel=0.02)
            assert values.mean().abs().item() < 0.1 * limit

    def test_elastic_displacement_has_the_standard_deviation_asked_for(self):
        shape = (16, 32, 32)
        ramps = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
        images = torch.stack([ramps[1], ramps[2]]).expand(24, 2, *shape)
        transform = RandomSpatial(elastic=0.7)
        out = transform.apply(images, transform.draw(24, shape, generator()))
        moved = (out - images)[:, :, :, 4:-4, 4:-4]
        assert moved.std().item() == pytest.approx(0.7, rel=0.1)
        assert moved.mean().abs().item() < 0.1
        assert moved.diff(dim=4).abs().max().item() < 0.7  # smooth
        assert moved.diff(dim=2).abs().max().item() > 0.01  # and not the same in every slice

    def test_jitter_moves_slices_as_wholes(self):
        images = torch.arange(12.0).expand(1, 1, 5, 10, 12)
        transform = RandomSpatial(slice_jitter=1.5)
        params = transform.draw(1, (5, 10, 12), generator())
        moved = (transform.apply(images, params) - images)[0, 0, :, :, 2:-2]
        torch.testing.assert_close(moved, params.jitter[0, :, 1, None, None].expand_as(moved), atol=1e-4, rtol=0)
        assert params.jitter.abs().max().item() <= 1.5
        assert moved[:, 0, 0].std().item() > 0.3

    def test_probability_leaves_the_rest_bit_equal(self):
        transform = RandomSpatial(rotate=20, elastic=1, probability=0.5)
        images = batch((40, 1, 3, 8, 8))
        params = transform.draw(40, (3, 8, 8), generator())
        out = transform.apply(images, params)
        same = (out == images).flatten(1).all(dim=1)
        assert torch.equal(same, ~params.touched)
        assert 10 < same.sum() < 30

    def test_chunks_do_not_change_the_result(self, monkeypatch):
        augment = BatchAugment(**{name: EVERYTHING[name] for name in SPATIAL}, spatial_probability=0.6)
        params = augment.draw(4, SHAPE[2:], generator())
        whole = augment.apply(batch(), params)
        monkeypatch.setattr("volrec.transforms.spatial._CHUNK_VOXELS", 1)
        torch.testing.assert_close(augment.apply(batch(), params), whole, atol=1e-6, rtol=0)

    def test_single_slices_and_pixels_are_no_trouble(self):
        augment = BatchAugment(**{name: EVERYTHING[name] for name in SPATIAL})
        for shape in ((2, 1, 1, 8, 8), (1, 3, 4, 1, 1)):
            out = augment.apply(batch(shape), augment.draw(shape[0], shape[2:], generator()))
            assert torch.isfinite(out).all()


class TestAppearance:
    def test_noise_has_the_drawn_deviation_and_is_white(self):
        transform = RandomNoise(std=0.5)
        images = torch.zeros(6, 2, 12, 24, 24)
        params = transform.draw(6, (12, 24, 24), generator())
        out = transform.apply(images, params)
        torch.testing.assert_close(out.flatten(1).std(dim=1), params.std, rtol=0.05, atol=1e-3)
        assert (out[:, 0] * out[:, 1]).mean().abs().item() < 2e-3
        assert params.std.max().item() <= 0.5
        other = transform.apply(images, transform.draw(6, (12, 24, 24), generator(1)))
        assert (out * other).mean().abs().item() < 2e-3  # another draw is other noise, not the same one rescaled

    def test_blur_equals_scipy(self):
        images = batch((2, 1, 2, 40, 36))
        params = torch.tensor([0.0, 1.7])
        out = RandomBlur(sigma=2.0).apply(images, params)
        assert torch.equal(out[0], images[0])
        inner = (slice(None), slice(8, -8), slice(8, -8))
        expected = images[1, 0].double().numpy()
        for axis in (1, 2):
            expected = gaussian_filter1d(expected, 1.7, axis=axis, truncate=8)
        np.testing.assert_allclose(out[1, 0].numpy()[inner], expected[inner], atol=1e-3)
        np.testing.assert_allclose(RandomBlur(sigma=2.0).apply(torch.ones(2, 1, 2, 9, 9), params).numpy(), 1, atol=1e-5)

    def test_contrast_keeps_the_mean_and_brightness_moves_it(self):
        images = batch()
        transform = RandomTone(contrast=0.5)
        params = transform.draw(4, SHAPE[2:], generator())
        out = transform.apply(images, params)
        torch.testing.assert_close(out.mean(dim=(2, 3, 4)), images.mean(dim=(2, 3, 4)))
        ratio = out.std(dim=(2, 3, 4)) / images.std(dim=(2, 3, 4))
        torch.testing.assert_close(ratio, params.contrast[:, None].expand(4, 2), rtol=1e-4, atol=1e-4)
        transform = RandomTone(brightness=0.5)
        params = transform.draw(4, SHAPE[2:], generator())
        torch.testing.assert_close(
            transform.apply(images, params) - images, params.brightness.view(4, 1, 1, 1, 1).expand_as(images)
        )
        assert (params.contrast == 1).all()
        assert (params.gamma == 1).all()

    def test_gamma_keeps_the_ends_and_the_order(self):
        images = batch() * 7 - 3
        transform = RandomTone(gamma=1 - 1e-6)
        params = transform.draw(4, SHAPE[2:], generator())
        out = transform.apply(images, params)
        for image, bent, power in zip(images, out, params.gamma, strict=True):
            unit = ((image - image.min()) / (image.max() - image.min())).double()
            expected = unit ** power.double() * (image.max() - image.min()) + image.min()
            torch.testing.assert_close(bent.double(), expected, atol=1e-4, rtol=0)
        drawn = torch.log2(transform.draw(2000, SHAPE[2:], generator()).gamma)
        assert drawn.abs().max().item() == pytest.approx(1, abs=0.01)
        assert drawn.mean().abs().item() < 0.05

    def test_gamma_of_a_constant_image_is_the_image(self):
        transform = RandomTone(gamma=0.5)
        images = torch.full((2, 1, 2, 3, 3), 4.0)
        assert torch.equal(transform.apply(images, transform.draw(2, (2, 3, 3), generator())), images)


class TestSliceDropout:
    def test_lost_slices_show_their_neighbour(self):
        transform = RandomSliceDropout(probability=0.4)
        images = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(50, 2, 9, 2, 2)
        params = transform.draw(50, (9, 2, 2), generator())
        shown = transform.apply(images, params)
        assert torch.equal(shown[:, 1, :, 1, 1].long(), params)
        steps = (params - torch.arange(9)).abs()
        assert steps.max() == 1
        assert steps.float().mean().item() == pytest.approx(0.4, abs=0.05)

    def test_the_ends_are_lost_like_the_others(self):
        params = RandomSliceDropout(probability=1.0).draw(20, (4, 1, 1), generator())
        assert ((params - torch.arange(4)).abs() == 1).all()

    def test_a_single_slice_stays(self):
        params = RandomSliceDropout(probability=1.0).draw(3, (1, 4, 4), generator())
        assert (params == 0).all()


class TestTargets:
    def test_mixup_blends_images_and_targets_alike(self):
        augment = BatchAugment(mixup=0.4)
        images, targets = batch(), torch.eye(4)
        params = augment.draw(4, SHAPE[2:], generator())
        mixed = augment.apply_targets(targets, params)
        torch.testing.assert_close(
            augment.apply(images, params), torch.einsum("ij,jcthw->icthw", mixed, images), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(mixed.sum(dim=1), torch.ones(4))
        assert (mixed.diagonal() >= 0.5).all()
        classes = augment.apply_targets(torch.tensor([[2], [0], [1], [1]]), params, num_classes=3)
        hot = torch.eye(3)[torch.tensor([2, 0, 1, 1])]
        torch.testing.assert_close(classes, mixed @ hot)

    def test_mixup_draws_from_its_beta(self):
        share = RandomMixup(alpha=2.0).draw(4000, (1, 1, 1), generator()).share
        draws = np.random.default_rng(0).beta(2, 2, 4000)
        assert share.mean().item() == pytest.approx(np.maximum(draws, 1 - draws).mean(), abs=0.01)
        assert share.min() >= 0.5

    @pytest.mark.parametrize(
        ("changes", "largest"),
        [
            ({"flip": {"T": 0.5}, "slice_dropout": 0.3}, 0.0),
            # The image is interpolated between two slices; the label is the nearer one's.
            ({"flip": {"T": 0.5}, "shift_slices": 2.4}, 0.5),
        ],
    )
    def test_slice_labels_go_where_their_slices_go(self, changes, largest):
        augment = BatchAugment(**changes)
        marks = torch.arange(8.0).expand(30, 8)
        params = augment.draw(30, (8, 4, 4), generator())
        labels = augment.apply_slice_targets(marks, params)
        shown = augment.apply(marks.view(30, 1, 8, 1, 1).expand(30, 1, 8, 4, 4), params)[:, 0, :, 1, 1]
        assert (labels - shown).abs().max().item() <= largest + 1e-5
        assert (labels != marks).any(dim=1).sum() > 20

    def test_slice_labels_of_several_targets_and_of_integers(self):
        augment = BatchAugment(flip={"T": 1.0}, mixup=0.4)
        params = augment.draw(3, (5, 4, 4), generator())
        integers = torch.arange(15).view(3, 5)
        assert torch.equal(augment.apply_slice_targets(integers, params), integers.flip(1))
        several = torch.rand(3, 5, 2, generator=generator())
        expected = augment.apply_targets(several.flip(1), params)
        assert torch.equal(augment.apply_slice_targets(several, params), expected)
        assert not torch.allclose(expected, several.flip(1))


class TestBatchTransform:
    def data(self) -> dict:
        return {
            "image": torch.randint(-1000, 1000, (4, 1, 6, 12, 10), generator=generator()).to(torch.int16),
            "quantiles": torch.linspace(-1000, 1000, 1001).expand(4, 1001),
            "target": torch.tensor([[0], [1], [2], [1]]),
            "slice_target": torch.rand(4, 6, generator=generator()),
            "study": torch.arange(4),
        }

    def test_normalises_then_augments_and_passes_the_rest_through(self):
        data = self.data()
        intensity, augment = BatchIntensity("window", windows=["brain", "bone"]), BatchAugment(**EVERYTHING)
        transform = BatchTransform(intensity, augment, num_classes=3)
        out = transform(data, generator=generator(5))
        params = augment.draw(4, (6, 12, 10), generator(5))
        assert torch.equal(out["image"], augment.apply(intensity(data["image"]), params))
        assert torch.equal(out["target"], augment.apply_targets(data["target"], params, num_classes=3))
        assert out["study"] is data["study"]
        assert transform.channels == 2
        assert torch.equal(transform(data, params=params)["image"], out["image"])
        assert data["image"].dtype == torch.int16

    def test_validation_only_normalises(self):
        data = self.data()
        intensity = BatchIntensity("zscore")
        out = BatchTransform(intensity, BatchAugment(**EVERYTHING), num_classes=3)(data, augment=False)
        assert torch.equal(out["image"], intensity(data["image"], data["quantiles"]))
        assert out["target"] is data["target"]
        assert torch.equal(BatchTransform(intensity)(data)["image"], out["image"])

    def test_without_a_generator_its_own_state_is_seeded(self):
        data = self.data()
        transform = BatchTransform(BatchIntensity("percentile"), BatchAugment(noise=0.2))
        first = [transform.augment.set_random_state(seed=1) and transform(data)["image"] for _ in range(2)]
        assert torch.equal(*first)
