"""The network of a plan: which one, how wide, and the options that follow from the slices it will read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volrec.planning.facts import Fingerprint
from volrec.planning.keys import with_keys

if TYPE_CHECKING:
    from volrec.networks import SequenceNetwork

__all__ = ["WITHIN", "build_network", "is_slicewise", "organ_crop", "plan_network"]

ORGAN_CROP_MM = 120.0
FEWEST_SLICES = 4
LARGEST_SHRINK = 16  # that c3d takes
# Stems of networks that read 224 x 224 pixels leave a quarter of each side: too little of slices smaller than this.
SMALL_SLICE = 96
WITHIN = {"network": "network_options", "temporal_network": "temporal_options"}
"""Options that name a network within, and those that hold its options."""


def build_network(network: Mapping[str, Any], *, width: float = 0.0625) -> SequenceNetwork:
    """Build the network of a section as plain values; nothing is allocated."""
    import torch

    from volrec.networks import create

    with torch.device("meta"):
        return create(str(network.get("name", "c3d")), num_classes=1, width=width, **network.get("options", {}))


def is_slicewise(network: SequenceNetwork) -> bool:
    """Tell whether a network encodes slices one by one: one within may change what its spec says."""
    from volrec.networks import SlicewiseNetwork

    return isinstance(network, SlicewiseNetwork)


def plan_network(
    facts: Fingerprint,
    canvas: Sequence[int | None],
    clip: Sequence[int | None],
    spacing: Sequence[float | None],
    fixed: Mapping[str, Any],
    reasons: dict[str, str],
    *,
    crops: bool = True,
    snippet: int | None = None,
) -> dict[str, Any]:
    """Choose network, width and options.

    Parameters
    ----------
    facts : Fingerprint
        Of the studies.
    canvas, clip : sequence of int
        Size (T, H, W) of a study, and of what the network reads of it; None: its own.
    spacing : sequence of float
        mm along (T, H, W); None: its own.
    fixed : mapping
        Dotted keys that the user set.
    reasons : dict
        Is filled.
    crops : bool
        Allow what is made for crops around one organ that lie alike.
    snippet : int, optional
        Slices that a network within reads at a time; None: a clip.
    """
    name = fixed.get("network.name", "c3d")
    asked = with_keys({}, "network", fixed).get("options", {})
    width = 0.125 if facts.studies < 1_000 else 0.25 if facts.studies < 10_000 else 0.5
    if facts.device == "cpu":
        width = min(width, 0.25)
    reasons["network.width"] = f"{facts.studies} studies on a {facts.device}: narrow overfits less and trains sooner"
    if name != "c3d" or not crops or not organ_crop(facts) or None in canvas:
        options = _strides(facts, clip, spacing, name, asked, reasons, snippet=snippet)
        if name == "c3d":
            reasons["network.name"] = "the plainest 3D network of the zoo; `volrec models` lists the others"
            options = {"dropout": 0.3, **options}
        return {"name": name, "width": width, "options": options}
    # Measured on 213 hippocampus crops (configs/hippocampus-large.yaml): deep stages and global pooling overfit there.
    reasons["network.name"] = "crops around one organ lie alike: one stage, and a head with weights for every position"
    shrink = max(1, min(LARGEST_SHRINK, round(4.0 / max(0.1, min(spread.median for spread in facts.spacing)))))
    grid = [max(1, min(8, round((size or 8) / shrink / 2))) for size in canvas]
    options = {"shrink": shrink, "stages": 1, "pool5": "none", "grid": grid, "dropout": 0.0}
    reasons["network.width"] = "one stage of 32 channels"
    return {"name": name, "width": 0.5, "options": options}


def organ_crop(facts: Fingerprint) -> bool:
    """Tell whether the studies are crops around one organ, few enough that a deep network would overfit."""
    return facts.studies < 1_000 and all(spread.maximum <= ORGAN_CROP_MM for spread in facts.extent)


def _strides(
    facts: Fingerprint,
    clip: Sequence[int | None],
    spacing: Sequence[float | None],
    name: str,
    asked: Mapping[str, Any],
    reasons: dict[str, str],
    *,
    snippet: int | None = None,
) -> dict[str, Any]:
    """Spare the slices of thick or short stacks, and the detail of small slices, where the network can.

    Slices are merged only where they lie closer than twice the pixels of that stage (as nnU-Net pools), and only while
    at least `FEWEST_SLICES` of a clip are left. A backbone of another library has a stem of its own. `asked` are the
    options that the user set: what they name within has such options of its own, and may take the place of the rest.
    """
    from volrec.networks import spec
    from volrec.networks.backbones import PREFIXES

    network = spec(name)
    options: dict[str, Any] = {}
    why: list[str] = []
    spared = 1  # what the stem would have merged in the plane
    has_stem = "stem_stride" in network.options and not str(asked.get("backbone", "")).startswith(PREFIXES)
    has_stem = has_stem and "stem_stride" not in asked and not asked.get("network")
    if has_stem and min(clip[axis] or SMALL_SLICE for axis in (1, 2)) < SMALL_SLICE:
        options["stem_stride"] = 1
        spared = int(network.options["stem_stride"].default or 1)
        why.append(f"slices under {SMALL_SLICE} pixels keep their detail")
    between, pixel = (spacing[axis] or facts.spacing[axis].median for axis in (0, 2))
    slices = float(clip[0] or facts.size[0].median)
    strides = []
    for along, in_plane in network.strides:
        if between >= 2 * pixel or slices / along < FEWEST_SLICES:
            along = 1
        strides.append(along)
        kept = math.gcd(in_plane, spared)
        spared //= kept
        between, pixel, slices = between * along, pixel * in_plane / kept, slices / along
    if strides != [along for along, _ in network.strides]:
        options["temporal_strides"] = strides
        why.append(
            f"slices are merged only where they lie closer than two pixels of that stage, and {FEWEST_SLICES} stay"
        )
    if why:
        reasons["network.options"] = "; ".join(why)
    for option, place in WITHIN.items():
        inner = asked.get(option)
        if inner and option in network.options:
            read = clip if snippet is None else (snippet, *clip[1:])
            known = {key: value for key, value in asked.items() if key == "stem_stride"}  # is handed on
            found = _strides(facts, read, spacing, str(inner), known | (asked.get(place) or {}), reasons)
            if found:
                options[place] = found
    return options
