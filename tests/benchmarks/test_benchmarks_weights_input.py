"""Given weights are shown the values they were trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.reading import StreamReader
from volrec.benchmarks.weights_input import read_as_trained
from volrec.weights.foreign.formats import Inputs

PIXELS = torch.randint(0, 256, (1, 2, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs("RGB", (0.0, 255.0), (104.0, 117.0, 128.0), (1.0,), (16, 112, 112)),
        Inputs("BGR", (0.0, 255.0), (90.25, 97.66, 101.41), (1.0,), (16, 112, 112)),
        Inputs("RGB", (0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (16, 112, 112)),
        Inputs("RGB", (-1.0, 1.0), (0.0,), (1.0,), (16, 112, 112), 25.0),
    ],
)
def test_values_become_what_the_card_says(inputs: Inputs) -> None:
    stream = load_protocol("c3d-finetuned").streams[0]
    changed, _ = read_as_trained(stream, {"input": inputs.as_card()})
    shown = StreamReader(changed).finish({"rgb": PIXELS})[0].permute(1, 2, 3, 0).numpy()
    low, high = inputs.range
    wanted = low + PIXELS[0].numpy().astype(np.float64) / 255 * (high - low)
    wanted = wanted[..., ::-1] if inputs.channels == "BGR" else wanted
    np.testing.assert_allclose(shown, (wanted - np.array(inputs.mean)) / np.array(inputs.std), rtol=1e-5, atol=1e-4)


def test_what_differs_from_the_paper_is_named_and_nothing_else() -> None:
    stream = load_protocol("c3d-finetuned").streams[0]
    same = Inputs("BGR", (0.0, 255.0), tuple(stream.frames.mean), (1.0,), (16, 112, 112))
    assert read_as_trained(stream, {"input": same.as_card()}) == (stream, [])
    other = Inputs("RGB", (0.0, 255.0), tuple(stream.frames.mean), (1.0,), (16, 112, 112))
    _, found = read_as_trained(stream, {"input": other.as_card()})
    assert [(one.field, one.paper, one.here) for one in found] == [("streams.rgb.frames.order", "bgr", "rgb")]


def test_weights_that_say_nothing_and_streams_of_flow_stay_with_the_protocol() -> None:
    rgb, flow = load_protocol("tsn-eccv16").streams
    assert read_as_trained(rgb, {}) == (rgb, [])
    inputs = Inputs("RGB", (0.0, 1.0), (0.5,), (0.25,), (224, 224))
    assert read_as_trained(flow, {"input": inputs.as_card()}) == (flow, [])
