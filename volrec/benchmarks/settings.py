"""From a protocol and what is asked for to the protocol as it is run, and to what differs between the two."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from volrec.benchmarks.protocol import list_protocols
from volrec.benchmarks.results import Deviation
from volrec.benchmarks.training import paper_epochs
from volrec.benchmarks.views import differences, scaled
from volrec.config import BenchmarkConfig, Section, StreamProtocol, VideoProtocol, apply_overrides
from volrec.errors import ConfigError

__all__ = ["available_estimator", "check_streams", "deviations", "nets_of", "settle_protocol"]


def settle_protocol(
    paper: VideoProtocol,
    *,
    scale: float = 1.0,
    width: float = 1.0,
    estimator: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> VideoProtocol:
    """Return the protocol that is run.

    Parameters
    ----------
    paper : VideoProtocol
        The paper's.
    scale, width : float
        Factors of frame sizes and of the networks' channels.
    estimator : str, optional
        Flow of all streams that read some; None: the paper's, or TV-L1 where that is in no package (Brox).
    overrides : mapping, optional
        Dotted keys of the protocol, such as ``streams.rgb.training.lr``.

    Raises
    ------
    ConfigError
        A key that does not exist, a value that cannot be.
    """
    here = paper if scale == 1 and width == 1 else scaled(paper, scale=scale, width=width)
    streams = []
    for stream in here.streams:
        if stream.motion is not None and stream.reads[-1] in ("flow", "warped"):
            own = estimator or available_estimator(stream.motion.estimator)
            motion = stream.motion.model_copy(update={"estimator": own})
            stream = stream.model_copy(update={"motion": motion})
        streams.append(stream)
    here = here.model_copy(update={"streams": streams})
    if not overrides:
        return here
    try:
        return apply_overrides(here, overrides)
    except ConfigError as error:
        known = paper.name if paper.name in list_protocols() else "NAME"
        raise ConfigError(
            _named(error.problem, here),
            remedy=f"`volrec benchmark protocols {known}` prints every key{_example(here)}.",
            where="--set",
            code=error.code,
        ) from None


def available_estimator(wanted: str) -> str:
    """Return the estimator that is used where a paper has `wanted`: Brox's is in no package that can be installed."""
    return "tvl1" if wanted == "brox" else wanted


def deviations(
    paper: VideoProtocol, config: BenchmarkConfig, *, videos: int, facts: Sequence[Deviation] = ()
) -> list[Deviation]:
    """Return how a run differs from the paper.

    Parameters
    ----------
    paper : VideoProtocol
        The paper's protocol.
    config : BenchmarkConfig
        The run.
    videos : int
        Training videos of a split.
    facts : sequence of Deviation
        What else is known: of extracted pictures, of weights.

    Returns
    -------
    list of Deviation
        Of a run that only tests weights which were trained elsewhere, training is left out: it is not known.
    """
    here = config.protocol
    streams = []
    nets = {stream.name: [net.name for net in _nets(stream, here)] for stream in here.streams}
    given = {stream for stream, names in nets.items() if set(names) <= set(config.weights)}
    for stream in here.streams:
        training = stream.training
        if stream.name not in given:
            epochs = paper_epochs(stream, videos=videos, epochs=config.epochs)
            optim = config.for_stream(stream, epochs=epochs).optim
            batch = optim.batch_size * optim.accumulate
            begun = next((config.init[name] for name in nets[stream.name] if name in config.init), None)
            updates = training.iterations
            if config.epochs or batch != training.batch:
                steps = config.trainer.batches_per_epoch or -(-videos // optim.batch_size)
                updates = epochs * max(1, -(-steps // optim.accumulate))
            own: dict[str, Any] = {
                "iterations": updates,
                "batch": batch,
                "init": begun.source if begun is not None and begun.source else "scratch",
            }
            if own["init"] == "scratch":
                own |= {"partial_bn": "none", "freeze": []}
            if updates != training.iterations:
                share = updates / training.iterations
                own["steps"] = [max(1, round(step * share)) for step in training.steps]
            stream = stream.model_copy(update={"training": training.model_copy(update=own)})
        streams.append(stream)
    left_out = tuple(f"streams.{name}.{part}." for name in given for part in ("train", "training"))
    found = [
        Deviation(field=one.field, paper=_plain(one.paper), here=_plain(one.here))
        for one in differences(paper, here.model_copy(update={"streams": streams}))
        if not one.field.startswith(left_out)
    ]
    return [*found, *facts]


def nets_of(protocol: VideoProtocol) -> list[StreamProtocol]:
    """Return the networks of a protocol: its streams, or for an ensemble of features so many of its one stream."""
    return [net for stream in protocol.streams for net in _nets(stream, protocol)]


def _nets(stream: StreamProtocol, protocol: VideoProtocol) -> list[StreamProtocol]:
    """Return the networks of a stream."""
    nets = protocol.features.nets if protocol.features is not None else 1
    if nets == 1:
        return [stream]
    return [stream.model_copy(update={"name": f"{stream.name}-{number}"}) for number in range(1, nets + 1)]


def check_streams(names: Sequence[str], protocol: VideoProtocol, *, what: str) -> None:
    """Make sure that weights or first weights are given for streams that exist.

    Raises
    ------
    ConfigError
        With the streams there are.
    """
    known = [stream.name for stream in nets_of(protocol)]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"there is no stream '{name}' in {protocol.name}.",
                remedy=f"Its streams: {', '.join(known) or 'none (trajectories alone)'}.",
                where=what,
                code="stream",
            )


def _named(text: str, protocol: VideoProtocol) -> str:
    """Return a sentence on a configuration with streams by name, where it counts them."""
    names = [stream.name for stream in protocol.streams]
    return re.sub(r"\bstreams\.(\d+)\b", lambda found: f"streams.{names[int(found[1])]}", text)


def _example(protocol: VideoProtocol) -> str:
    """Say how a key of a stream is written, where there are streams."""
    names = [stream.name for stream in protocol.streams]
    return f"; streams go by their name: --set streams.{names[0]}.training.lr=0.01" if names else ""


def _plain(value: Any) -> Any:
    """Return a value in types of JSON."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.to_dict() if isinstance(value, Section) else value
