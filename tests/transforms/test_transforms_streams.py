"""Flow, warped flow and difference as MONAI transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CopyItemsd
from scipy import ndimage

from volrec import transforms
from volrec.errors import ConfigError, DataError
from volrec.transforms import SliceDifference, SliceFlow, SliceFlowd, WarpedSliceFlow
from volrec.transforms.drift import warped_slice_flow
from volrec.transforms.flow import slice_flow

# 2.5 mm along T, 1.4 along H, 0.6 along W.
AFFINE = torch.tensor([[0, 0, -0.6, 20], [0, 1.4, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)


def image(channels=1, seed=0):
    noise = np.random.default_rng(seed).random((channels, 4, 24, 20))
    smooth = ndimage.gaussian_filter(noise, (0, 1, 2, 2))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def meta(array):
    return MetaTensor(torch.from_numpy(array), affine=AFFINE.clone(), meta={"space": "RAS", "patient": "p1"})


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy, meta])
def test_flow_is_that_of_the_array_function_with_the_channels_first(wrap):
    array = image()
    out = SliceFlow(method="farneback")(wrap(array))
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.float32
    assert out.shape == (2, 3, 24, 20)
    np.testing.assert_array_equal(out.numpy().swapaxes(0, 1), slice_flow(array[0], method="farneback"))


def test_the_spacing_comes_from_the_affine_which_is_kept():
    array = image()
    out = SliceFlow(method="demons", spacing=(9, 9, 9))(meta(array))
    expected = slice_flow(array[0], method="demons", spacing=(2.5, 1.4, 0.6))
    np.testing.assert_array_equal(out.numpy().swapaxes(0, 1), expected)
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, AFFINE)
    assert out.meta["patient"] == "p1"
    of_tensor = SliceFlow(method="demons", spacing=(2.5, 1.4, 0.6))(torch.from_numpy(array))
    np.testing.assert_array_equal(of_tensor.numpy().swapaxes(0, 1), expected)


def test_one_channel_or_the_mean_of_all_is_looked_at():
    array = image(channels=3)
    mean = SliceFlow(method="dis")(array).numpy().swapaxes(0, 1)
    np.testing.assert_array_equal(mean, slice_flow(array.mean(axis=0), method="dis"))
    last = SliceFlow(method="dis", channel=-1)(array).numpy().swapaxes(0, 1)
    np.testing.assert_array_equal(last, slice_flow(array[2], method="dis"))
    with pytest.raises(DataError, match="no channel 3 in an image of 3"):
        SliceFlow(method="dis", channel=3)(array)


def test_a_range_of_values_is_brought_to_the_unit_and_a_bound_to_the_network():
    array = image()
    hounsfield = np.rint(array * 400 - 160).astype(np.int16)
    hounsfield[0, 0, 0, 0] = 3000
    shown = ((hounsfield.astype(np.float32) + 160) / 400).clip(0, 1)
    expected = slice_flow(shown[0], method="farneback")
    found = SliceFlow(method="farneback", value_range=(-160, 240))(hounsfield).numpy().swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    bound = float(np.abs(expected).max() / 2)
    scaled = SliceFlow(method="farneback", value_range=(-160, 240), bound=bound)(hounsfield).numpy().swapaxes(0, 1)
    np.testing.assert_allclose(scaled, (expected / bound).clip(-1, 1), atol=1e-4)
    with pytest.raises(DataError, match="values from -160 to 3000"):
        SliceFlow(method="farneback")(hounsfield)


def test_bytes_are_a_video():
    video = np.rint(image(channels=3) * 255).astype(np.uint8)
    found = SliceFlow(method="farneback")(torch.from_numpy(video))
    torch.testing.assert_close(found, SliceFlow(method="farneback")(video / np.float32(255)))


def test_warped_flow_keeps_the_drifts():
    array = image()
    transform = WarpedSliceFlow(method="dis", drift="translation", seed=4)
    fields, drifts = warped_slice_flow(array[0], method="dis", drift="translation", seed=4, spacing=(2.5, 1.4, 0.6))
    np.testing.assert_array_equal(transform(meta(array)).numpy().swapaxes(0, 1), fields)
    np.testing.assert_array_equal(transform.drifts, drifts)


def test_the_difference_keeps_the_channels():
    array = image(channels=2)
    out = SliceDifference()(meta(array))
    np.testing.assert_array_equal(out.numpy(), array[:, 1:] - array[:, :-1])
    assert torch.equal(out.affine, AFFINE)


def test_the_dictionary_class_does_the_same_in_a_compose():
    array = image()
    chain = Compose([CopyItemsd("image", names="flow"), SliceFlowd("flow", method="dis", bound=20)])
    out = chain({"image": meta(array), "label": 1})
    assert torch.equal(out["flow"], SliceFlow(method="dis", bound=20)(meta(array)))
    np.testing.assert_array_equal(out["image"].numpy(), array)
    assert out["label"] == 1
    with pytest.raises(KeyError):
        SliceFlowd("absent", method="dis")({"image": array})
    assert SliceFlowd("absent", method="dis", allow_missing_keys=True)({"label": 1}) == {"label": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "brox"}, "tvl1, farneback, dis, demons; got 'brox'"),
        ({"value_range": (1, 1)}, r"\(1, 1\)"),
        ({"bound": 0}, "got 0"),
        ({"drift": "rigid"}, "got 'rigid'"),
    ],
)
def test_options_that_cannot_be_are_refused_when_made(options, message):
    with pytest.raises(ConfigError, match=message):
        WarpedSliceFlow(**options)


def test_a_shape_without_channels_is_refused():
    for transform in (SliceFlow(method="demons"), SliceDifference()):
        with pytest.raises(DataError, match=r"\(4, 24, 20\).*channels first"):
            transform(image()[0])


def test_every_name_is_handed_out():
    for name in transforms.__all__:
        assert getattr(transforms, name).__class__ is not None
