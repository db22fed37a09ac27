"""What a network reads, as a configuration says it: training, validation and prediction build their input here."""

from __future__ import annotations

from volrec.config import IntensityConfig, StreamsConfig
from volrec.transforms.intensity import BatchIntensity
from volrec.transforms.stream_input import StreamInput

__all__ = ["make_input"]


def make_input(intensity: IntensityConfig, streams: StreamsConfig | None = None) -> StreamInput:
    """Return what turns a batch of stored slices, fields and differences into the channels of a network.

    Parameters
    ----------
    intensity : IntensityConfig
        How voxel values become network input.
    streams : StreamsConfig, optional
        What is read; None: the slices alone.
    """
    streams = streams or StreamsConfig()
    normalise = BatchIntensity(intensity.kind, windows=intensity.windows, percentiles=intensity.percentiles)
    return StreamInput(
        normalise,
        streams.inputs,
        stack=streams.flow.stack,
        differences=streams.difference_stack,
        bound=streams.flow.bound,
        units=streams.flow.units,
    )
