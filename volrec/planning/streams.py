"""Streams, segments and stages of a plan: what the paper of a network reads, and in which order it trains."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volrec.config import StageConfig, TrainConfig
from volrec.errors import ConfigError
from volrec.planning.facts import Fingerprint
from volrec.planning.network import build_network, is_slicewise

if TYPE_CHECKING:
    from volrec.networks import SequenceNetwork

__all__ = [
    "outline_stages",
    "plan_segments",
    "plan_stages",
    "plan_streams",
    "reads_segments",
    "rescale_stages",
    "segment_options",
    "settle_stages",
    "stream_channels",
]

FEWEST_SEGMENTS = 7
"""Segments in the journal version of TSN (PAMI 2018) beyond which nothing is gained; the first had 3."""
SNIPPET = 8
"""Slices of a snippet that a network of several slices reads, where the stack has as many for each segment."""
SHORTEST_SNIPPET = 4
"""Slices of a snippet below which a network of several slices has nothing to read between them."""
LONGEST_STACK = 10
"""Displacement fields that Two-Stream stacks (NIPS 2014)."""
PAPER_BOUND, PAPER_SIDE = 20.0, 224
"""Pixels at which flow is clipped, and the side of the slices that TSN reads."""
SECONDS_TVL1 = 0.84 / 224**2
"""Seconds a pixel of one TV-L1 field of OpenCV on one core (tests/performance/bench_flow.py)."""
PATIENCE_SECONDS = 1_200
"""Longest that the flow of a folder may take before a faster estimator is planned."""


def plan_streams(
    facts: Fingerprint, canvas: Sequence[int | None], name: str, fixed: Mapping[str, Any], reasons: dict[str, str]
) -> dict[str, Any]:
    """Choose the streams that a network reads: those of its paper."""
    from volrec.networks import spec

    inputs = list(fixed.get("streams.inputs", spec(name).streams))
    if inputs == ["intensity"]:
        return {}
    if "streams.inputs" not in fixed:
        reasons["streams.inputs"] = f"what {name} reads: slices, and what changes from one to the next"
    if not {"flow", "warped"} & set(inputs):
        return {"inputs": inputs}
    slices, height, width = (float(size or spread.median) for size, spread in zip(canvas, facts.size, strict=True))
    stack = max(1, min(LONGEST_STACK, round(slices / 8)))
    reasons["streams.flow"] = (
        f"{stack} field{'s' * (stack > 1)} a slice: an eighth of the stack, up to the {LONGEST_STACK} of the paper"
    )
    bound = round(max(1.0, PAPER_BOUND * max(height, width) / PAPER_SIDE), 1)
    method = _method(facts, height * width, reasons)
    order = "centred" if name == "two-stream-fusion" else "forward"
    return {"inputs": inputs, "flow": {"method": method, "stack": stack, "order": order, "bound": bound}}


def _method(facts: Fingerprint, pixels: float, reasons: dict[str, str]) -> str:
    """Take the papers' estimator where it is there and its time can be borne."""
    from volrec.parallel import available_cpus

    backend = _backend_of_tvl1()
    if not backend.startswith("opencv"):
        lacking = "OpenCV with its contributed modules is not installed (extra flow)"
        reasons["streams.flow.method"] = f"{lacking}: a registration by SimpleITK"
        return "demons"
    seconds = facts.studies * facts.size[0].median * pixels * SECONDS_TVL1 / available_cpus()
    if seconds > PATIENCE_SECONDS:
        reasons["streams.flow.method"] = f"TV-L1, the papers' estimator, would take about {seconds / 60:.0f} minutes"
        return "farneback"
    reasons["streams.flow.method"] = "the papers' estimator"
    return "tvl1"


def _backend_of_tvl1() -> str:
    """Return what estimates TV-L1 here; empty where nothing does: an OpenCV that is there may lack it, or not load."""
    from volrec.transforms.flow import flow_backend

    try:
        return flow_backend("tvl1")
    except ConfigError:
        return ""


def stream_channels(streams: Mapping[str, Any], windows: int) -> int:
    """Return the channels that a network reads, for streams as plain values and so many windows."""
    from volrec.config import StreamsConfig

    config = StreamsConfig(**streams)
    sizes = {"intensity": windows, "difference": windows * config.difference_stack}
    return sum(sizes.get(stream, 2 * config.flow.stack) for stream in config.inputs)


def plan_segments(
    slices: int, network: Mapping[str, Any], built: SequenceNetwork, reasons: dict[str, str]
) -> dict[str, Any] | None:
    """Spread a clip over the whole stack where the paper does; None where its clips are contiguous.

    Parameters
    ----------
    slices : int
        Of a stack.
    network : mapping
        Name and options as far as the user has set them.
    built : SequenceNetwork
        The same, built.
    reasons : dict
        Is filled.
    """
    from volrec.networks import spec

    facts = spec(str(network.get("name", "c3d")))
    options = network.get("options", {})
    if not facts.segments:
        return None
    segments, snippet = int(options.get("segments") or min(slices, max(FEWEST_SEGMENTS, facts.segments))), 1
    if options.get("network") and "snippet_length" in facts.options:
        shortest = max(built.smallest[0], SHORTEST_SNIPPET)
        if "segments" not in options and slices // segments < shortest:
            segments = max(min(segments, 2), slices // shortest)
        snippet = int(options.get("snippet_length") or max(built.smallest[0], min(SNIPPET, slices // segments)))
    elif options.get("network") and not is_slicewise(built):
        return None  # a 3D network within reads slices that are neighbours
    what = "a slice" if snippet == 1 else f"{snippet} slices"
    reasons["sampling.train"] = f"{what} drawn in each of {segments} parts of the stack: {facts.name} reads segments"
    return {
        "clip_length": segments * snippet,
        "stride": 1,
        "train": "segments",
        **({"snippet_length": snippet} if snippet > 1 else {}),
    }


def segment_options(name: str, sampling: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a network that follow from the snippets that it will read."""
    from volrec.networks import spec

    known, snippet = spec(name).options, int(sampling.get("snippet_length", 1))
    if sampling.get("train") != "segments":
        return {}
    found = {}
    if "segments" in known:
        found["segments"] = int(sampling["clip_length"]) // snippet
    if "snippet_length" in known and options.get("network"):
        found["snippet_length"] = snippet
    return found


def plan_stages(
    network: Mapping[str, Any], whole: Mapping[str, Any], reasons: dict[str, str], *, begun: bool = False
) -> list[dict[str, Any]]:
    """Write down the trainings that the paper of a network does in turn, in shares of the `whole` (epochs, lr).

    `begun` tells that its first weights exist. The trainings that refine those name parts of the paper's own network:
    another backbone, or a network within, has them by other names, and is trained as if from the start.
    """
    from volrec.networks import spec

    facts = spec(str(network.get("name", "c3d")))
    stages = facts.training
    if not stages and not (begun and facts.refining):
        return []
    names = [name for name, _ in build_network(network).named_parameters()]
    if begun and facts.refining:
        missing = [one for stage in facts.refining for one in stage.freeze if not fnmatch.filter(names, one)]
        if missing:
            reasons["stages"] = f"not in turn as the paper refines: there is no {missing[0]} in this network"
        else:
            stages = facts.refining
    if stages:
        reasons["stages"] = "trained in turn, as in the paper; one that is finished is not trained again"
    planned = []
    lengths = _lengths([stage.epochs for stage in stages], whole["epochs"])
    for stage, epochs in zip(stages, lengths, strict=True):
        reasons[f"stages.{stage.name}"] = stage.why
        planned.append(
            {
                "name": stage.name,
                "objective": stage.objective,
                "freeze": [pattern for pattern in stage.freeze if fnmatch.filter(names, pattern)],
                "lr": float(f"{whole['lr'] * stage.lr:.3g}"),
                "epochs": epochs,
                "motion_weight": stage.motion_weight,
            }
        )
    return planned


def settle_stages(config: TrainConfig, reasons: dict[str, str]) -> list[StageConfig]:
    """Turn the shares that a recipe gives its stages into epochs and learning rates."""
    settled = []
    for stage in config.stages:
        shares = [
            f"{share} of {section}"
            for share, section in ((stage.epochs, "trainer.epochs"), (stage.lr, "optim.lr"))
            if isinstance(share, str)
        ]
        if shares:
            reasons[f"stages.{stage.name}"] = ", ".join(shares)
        settled.append(stage.settled(lr=config.optim.lr, epochs=config.trainer.epochs))
    return settled


def reads_segments(name: str) -> bool:
    """Tell whether the clips of a network are planned as snippets of segments; not for one that does not exist."""
    from volrec.networks import list_networks, spec

    return name in list_networks() and spec(name).segments > 0


def outline_stages(name: str) -> list[dict[str, Any]]:
    """Return names and objectives of the stages that a plan may give a network; none for one that does not exist."""
    from volrec.networks import list_networks, spec

    if name not in list_networks():
        return []
    facts = spec(name)
    return [{"name": stage.name, "objective": stage.objective} for stage in (*facts.refining, *facts.training)]


def rescale_stages(
    stages: Sequence[Mapping[str, Any]],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    fixed: Mapping[str, Any],
    reasons: dict[str, str],
) -> list[dict[str, Any]]:
    """Let stages that are written down follow the length and the learning rate that the user sets for the whole.

    Parameters
    ----------
    stages : sequence of mapping
        As written.
    before, now : mapping
        ``epochs`` and ``lr`` of the whole, as they were written beside the stages and as they are set.
    fixed : mapping
        Dotted keys that the user set.
    reasons : dict
        Is filled.
    """
    found = [dict(stage) for stage in stages]
    if "trainer.epochs" in fixed and before.get("epochs") not in (None, now["epochs"]):
        told = [stage for stage in found if isinstance(stage.get("epochs"), int)]
        lengths = _lengths([stage["epochs"] / before["epochs"] for stage in told], now["epochs"])
        for stage, epochs in zip(told, lengths, strict=True):
            stage["epochs"] = epochs
        reasons["stages"] = "in proportion to trainer.epochs, which you set"
    if "optim.lr" in fixed and before.get("lr") not in (None, now["lr"]):
        for stage in found:
            if isinstance(stage.get("lr"), float):
                stage["lr"] = float(f"{stage['lr'] * now['lr'] / before['lr']:.3g}")
        reasons["stages"] = "; ".join(filter(None, [reasons.get("stages"), "learning rates in proportion to optim.lr"]))
    return found


def _lengths(shares: Sequence[float], whole: int) -> list[int]:
    """Return whole epochs in these shares, each one at least, that add up as the shares do as far as that goes."""
    ends = [round(whole * sum(shares[:count])) for count in range(len(shares) + 1)]
    return [max(1, end - start) for start, end in itertools.pairwise(ends)]
