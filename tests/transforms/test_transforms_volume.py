"""The volume functions as MONAI transforms in a Compose."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, LoadImaged

from volrec import transforms
from volrec.errors import ConfigError, DataError
from volrec.transforms.clips import clip_indices
from volrec.transforms.preprocess import preprocess_array
from volrec.transforms.slice_axis import slice_axis_to_time
from volrec.transforms.volume import (
    CropOrPad,
    CropOrPadd,
    Resample,
    Resampled,
    SampleClip,
    SampleClipd,
    SliceAxisToTime,
    SliceAxisToTimed,
    WindowChannels,
    WindowChannelsd,
)

RAS = np.array([[-0.8, 0, 0, 30], [0, 0.9, 0, -20], [0, 0, 3.0, 10], [0, 0, 0, 1]])
TO_LPS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture
def nifti(tmp_path):
    values = np.random.default_rng(0).integers(-1000, 1000, (14, 12, 9)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, RAS), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz", values


def test_a_compose_equals_the_array_functions_and_keeps_the_affine_in_ras(nifti):
    path, values = nifti
    load = LoadImage(ensure_channel_first=True, dtype=np.int16)
    out = Compose([load, SliceAxisToTime(), Resample(spacing=(2, 1.1, 1.1)), CropOrPad(canvas=(16, 8, None))])(path)
    array, affine = slice_axis_to_time(values, TO_LPS @ RAS)
    expected, moved = preprocess_array(array, affine, spacing=(2, 1.1, 1.1), canvas=(16, 8, None))
    own = expected != expected.min()
    np.testing.assert_array_equal(out[0].numpy()[own], expected[own])
    np.testing.assert_allclose(out.affine.numpy(), TO_LPS @ moved, atol=1e-6)
    assert out.meta["space"] == "RAS"
    assert out.meta["filename_or_obj"].endswith("ct.nii.gz")


def test_an_lps_image_stays_in_lps():
    affine = torch.diag(torch.tensor([1.0, 1, 4, 1]).double())
    image = MetaTensor(torch.zeros(1, 4, 5, 6), affine=affine, meta={"space": "LPS"})
    out = SliceAxisToTime()(image)
    assert out.shape == (1, 6, 5, 4)
    assert out.meta["space"] == "LPS"
    assert torch.equal(out.affine @ torch.tensor([1.0, 0, 0, 0]).double(), torch.tensor([0, 0, 4.0, 0]).double())


def test_dictionary_transforms_equal_the_array_ones(nifti):
    path, _ = nifti
    steps = [SliceAxisToTimed("ct"), Resampled("ct", spacing=(None, 2, 2)), CropOrPadd("ct", canvas=(8, 5, 5))]
    steps += [WindowChannelsd("ct", windows=["brain", "bone"])]
    out = Compose([LoadImaged("ct", ensure_channel_first=True), *steps])({"ct": path, "label": 1})
    image = LoadImage(ensure_channel_first=True)(path)
    for step in (
        SliceAxisToTime(),
        Resample(spacing=(None, 2, 2)),
        CropOrPad(canvas=(8, 5, 5)),
        WindowChannels(windows=["brain", "bone"]),
    ):
        image = step(image)
    assert out["ct"].shape == (2, 8, 5, 5)
    assert torch.equal(out["ct"].as_tensor(), image.as_tensor())
    assert torch.equal(out["ct"].affine, image.affine)
    assert out["label"] == 1


def test_sample_clip_draws_keeps_and_replays():
    sequence = torch.arange(40.0).view(1, 40, 1, 1).expand(2, 40, 3, 3)
    sample = SampleClip(clip_length=8, stride=2).set_random_state(seed=0)
    clip = sample(sequence)
    assert clip[0, :, 0, 0].long().tolist() == sample.indices.tolist()
    assert torch.equal(sample(sequence, randomize=False), clip)
    starts = {int(sample(sequence)[0, 0, 0, 0]) for _ in range(30)}
    assert len(starts) > 10
    centre = SampleClip(clip_length=5, mode="center")(sequence)
    assert centre[0, :, 0, 0].long().tolist() == clip_indices(40, clip_length=5, mode="center").tolist()


def test_sample_clip_moves_the_affine_with_the_slices():
    image = MetaTensor(torch.zeros(1, 20, 2, 2), affine=torch.diag(torch.tensor([3.0, 1, 1, 1]).double()))
    clip = SampleClip(clip_length=4, stride=2, mode="center")(image)
    np.testing.assert_allclose(clip.affine.numpy()[0], [6, 0, 0, 3 * 6], atol=1e-9)


def test_sample_clip_takes_the_same_slices_of_image_and_mask():
    sequence = torch.arange(40.0).view(1, 40, 1, 1)
    sample = SampleClipd(["image", "mask"], clip_length=6)
    first = sample.set_random_state(seed=4)({"image": sequence, "mask": sequence * 2})
    again = sample.set_random_state(seed=4)({"image": sequence, "mask": sequence * 2})
    assert torch.equal(first["image"] * 2, first["mask"])
    assert torch.equal(first["image"], again["image"])


def test_missing_key_is_an_error_unless_allowed():
    with pytest.raises(KeyError, match="ct"):
        CropOrPadd("ct", canvas=(1, 1, 1))({})
    assert CropOrPadd("ct", canvas=(1, 1, 1), allow_missing_keys=True)({}) == {}


def test_an_image_without_affine_is_refused():
    with pytest.raises(DataError, match="Tensor without one"):
        SliceAxisToTime()(torch.zeros(1, 2, 2, 2))
    with pytest.raises(ConfigError, match="canvas"):
        CropOrPad(canvas=(1, 2))


def test_the_room_hands_out_its_names():
    for name in transforms.__all__:
        assert getattr(transforms, name).__doc__
    with pytest.raises(AttributeError, match="Resampel"):
        _ = transforms.Resampel
