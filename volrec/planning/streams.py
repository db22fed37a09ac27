"""Streams, segments and stages of a plan: what the paper of a network reads, and in which order it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from volrec.config import StageConfig, TrainConfig
from volrec.errors import ConfigError
from volrec.planning.facts import Fingerprint

__all__ = ["plan_segments", "plan_stages", "plan_streams", "segment_options", "settle_stages", "stream_channels"]

FEWEST_SEGMENTS = 7
"""Segments in the journal version of TSN (PAMI 2018) beyond which nothing is gained; the first had 3."""
SNIPPET = 8
"""Slices of a snippet that a network of several slices reads, where the stack has as many for each segment."""
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


def plan_segments(slices: int, name: str, options: Mapping[str, Any], reasons: dict[str, str]) -> dict[str, Any] | None:
    """Spread a clip over the whole stack where the paper does; None where its clips are contiguous.

    `options` are those of the network that the user has set: one within reads snippets of several slices.
    """
    from volrec.networks import spec

    segments = spec(name).segments
    if not segments:
        return None
    segments = min(slices, max(FEWEST_SEGMENTS, segments))
    snippet = 1
    if options.get("network"):
        snippet = int(options.get("snippet_length") or max(1, min(SNIPPET, slices // segments)))
    what = "a slice" if snippet == 1 else f"{snippet} slices"
    reasons["sampling.train"] = f"{what} drawn in each of {segments} parts of the stack: {name} reads segments"
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
    found = {}
    if "segments" in known and sampling.get("train") == "segments":
        found["segments"] = int(sampling["clip_length"]) // snippet
    if "snippet_length" in known and options.get("network"):
        found["snippet_length"] = snippet
    return found


def plan_stages(
    network: Mapping[str, Any],
    optim: Mapping[str, Any],
    trainer: Mapping[str, Any],
    reasons: dict[str, str],
    *,
    begun: bool = False,
) -> list[dict[str, Any]]:
    """Write down the trainings that the paper of a network does in turn; `begun`: its first weights exist."""
    from volrec.networks import spec

    facts = spec(str(network.get("name", "c3d")))
    # Those that refine name parts of the paper's own network, not of one that was put in its place.
    refine = begun and not network.get("options", {}).get("network")
    stages = (facts.refining or facts.training) if refine else facts.training
    if stages:
        reasons["stages"] = "trained in turn, as in the paper; one that is finished is not trained again"
    planned = []
    for stage in stages:
        reasons[f"stages.{stage.name}"] = stage.why
        planned.append(
            {
                "name": stage.name,
                "objective": stage.objective,
                "freeze": list(stage.freeze),
                "lr": float(f"{optim['lr'] * stage.lr:.3g}"),
                "epochs": max(1, round(trainer["epochs"] * stage.epochs)),
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
