"""CT windows: named presets, and several of them as the channels of one network input."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volrec.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["WINDOWS", "resolve_windows", "window_channels"]

WINDOWS: dict[str, tuple[float, float]] = {
    "brain": (40, 80),
    "subdural": (75, 215),
    "stroke": (32, 8),
    "stroke-wide": (40, 40),
    "head-soft-tissue": (40, 375),
    "temporal-bone": (600, 2800),
    "bone": (400, 1800),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "abdomen": (50, 400),
    "soft-tissue": (50, 400),
    "liver": (30, 150),
    "spine": (50, 250),
    "angio": (200, 600),
    "full": (1024, 4096),
}
"""Level and width in HU by name.

All but ``full`` follow the usual settings given in Radiopaedia, "Windowing (CT)"
(https://radiopaedia.org/articles/windowing-ct): brain L40 W80, subdural L50-100 W130-300 (the middle of both here),
stroke L32 W8 or L40 W40, temporal bones L600 W2800, soft tissues of the head L20-60 W350-400 (the middle), lungs L-600
W1500, mediastinum L50 W350, heart and vessels L200 W600, soft tissues of the abdomen L50 W400, liver L30 W150, spine
L50 W250, bone L400 W1800. ``full`` spans the 12 bits of a scanner, from -1024 HU.
"""


def resolve_windows(entries: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """Turn preset names and level-width pairs into (level, width) in HU.

    Parameters
    ----------
    entries : sequence
        Preset names, (level, width) pairs, mappings with the keys ``level`` and ``width``, or objects with those
        attributes.

    Raises
    ------
    ConfigError
        For an unknown preset (with the list of them), or a width that is not above zero.
    """
    found = []
    for entry in entries:
        if isinstance(entry, str):
            if entry not in WINDOWS:
                near = difflib.get_close_matches(entry, WINDOWS, n=1)
                guess = f" (did you mean {near[0]!r}?)" if near else ""
                raise ConfigError(
                    f"there is no window preset {entry!r}{guess}.",
                    remedy=f"Presets: {', '.join(WINDOWS)}; or give a level and a width in HU.",
                    where="intensity.windows",
                    code="window",
                )
            level, width = WINDOWS[entry]
        elif isinstance(entry, Mapping):
            level, width = entry["level"], entry["width"]
        elif hasattr(entry, "level"):
            level, width = entry.level, entry.width
        else:
            level, width = entry
        if not width > 0:
            raise ConfigError(
                f"a window needs a width above 0 HU, got {width}.",
                remedy="Give level and width.",
                where="intensity.windows",
                code="window",
            )
        found.append((float(level), float(width)))
    return tuple(found)


def window_channels(image: torch.Tensor, *, windows: Sequence[tuple[float, float]]) -> torch.Tensor:
    """Show one volume through several windows.

    Parameters
    ----------
    image : torch.Tensor
        ``(B, 1, T, H, W)`` in HU, any dtype; not changed.
    windows : sequence of (level, width)
        In HU: the window's lower end becomes 0, its upper end 1, values outside are clipped.

    Returns
    -------
    torch.Tensor
        float32 ``(B, len(windows), T, H, W)``.
    """
    out = image.new_empty((image.shape[0], len(windows), *image.shape[2:]), dtype=_float32())
    for channel, (level, width) in enumerate(windows):
        # One buffer is written and worked on in place: nothing is allocated beside the result.
        view = out[:, channel].copy_(image[:, 0])
        view.sub_(level - width / 2).mul_(1 / width).clamp_(0, 1)
    return out


def _float32() -> torch.dtype:
    import torch  # Presets are read where torch is not loaded (contact sheets of `inspect`).

    return torch.float32
