"""What a network reads, as a configuration says it: training, validation and prediction build their input here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from volrec import networks
from volrec.config import IntensityConfig, StreamsConfig
from volrec.errors import ConfigError
from volrec.transforms.intensity import BatchIntensity
from volrec.transforms.stream_input import StreamInput

__all__ = ["check_streams", "make_input"]


def check_streams(streams: StreamsConfig, network: str, options: Mapping[str, Any]) -> None:
    """Make sure that a network, and one within it, reads streams in the sense that it gives its channels.

    Parameters
    ----------
    streams : StreamsConfig
        What is read.
    network : str
        Registry name.
    options : mapping
        Options that are set for it.

    Raises
    ------
    ConfigError
        Motion alone for a network of two towers, whose first would take a part of the motion for slices; motion for a
        network that finds it in the slices by itself.
    """
    spec, problem, remedy = networks.spec(network), "", ""
    if "appearance_channels" in spec.options and "intensity" not in streams.inputs:
        problem = "has a tower for slices and one for motion"
        remedy = "Put intensity first, or choose a network of one tower (tsn, c3d) for motion alone."
    elif streams.motion and any(stage.objective == "motion" for stage in spec.training):
        problem = "finds the motion in the slices by itself"
        remedy = "Leave streams.inputs out, or choose a network that reads motion (two-stream, tsn)."
    if problem:
        raise ConfigError(
            f"{network} {problem}; got {', '.join(streams.inputs)}.",
            remedy=remedy,
            where="streams.inputs",
            code="streams",
        )
    if options.get("network"):
        check_streams(streams, str(options["network"]), options.get("network_options") or {})


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
