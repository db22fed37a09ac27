"""Another test-time protocol than the run's, for one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from volrec.config import ProtocolConfig
from volrec.errors import ConfigError

__all__ = ["ProtocolChanges"]

OWN = "Leave it out for the run's own."


@dataclass(frozen=True)
class ProtocolChanges:
    """What is asked for in place of the run's own protocol; None keeps that.

    Attributes
    ----------
    flips : sequence of str, optional
        Axes (T, H, W) that are mirrored, in every combination; empty: none.
    overlap : float, optional
        Of neighbouring clips, from 0 to below 1.
    clips : int, optional
        Clips a study; 0 covers it at the overlap.
    method : {"clips", "dense"}, optional
        Clips one after another, or the whole study at once.
    """

    flips: Sequence[str] | None = None
    overlap: float | None = None
    clips: int | None = None
    method: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is asked for, by the name of its option, in plain JSON types."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if name == "flips" else value for name, value in found.items()}

    def applied(
        self, protocol: ProtocolConfig, *, sampling: str = "random", motion: Sequence[str] = ()
    ) -> ProtocolConfig:
        """Return a protocol with what is asked for.

        Parameters
        ----------
        protocol : ProtocolConfig
            The run's.
        sampling : str
            How its training clips were cut (`SamplingConfig.train`).
        motion : sequence of str
            Streams of the run that hold the motion between slices.

        Raises
        ------
        ConfigError
            A value that cannot be, or that would change nothing; the message names the option.
        """
        given = self.given
        if not given:
            return protocol
        try:
            changed = ProtocolConfig(**{**protocol.model_dump(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else next(iter(given))
            raise refused(name, f"{given.get(name)!r} cannot be used: {_lower(str(first['msg']))}.", OWN) from None
        if motion and "T" in changed.flips:
            raise refused(
                "flips",
                f"a mirror along T turns the motion between slices ({', '.join(motion)}) around, and the other way was "
                "not computed.",
                "Leave T out.",
            )
        for name in given:
            if name in ("overlap", "clips") and (reason := _without_effect(name, changed, sampling)):
                raise refused(name, f"it would change nothing: {reason}.", "Leave it out.")
        return changed


def refused(name: str, problem: str, remedy: str) -> ConfigError:
    """Return the error of an option, by its name on the command line."""
    return ConfigError(problem, remedy=remedy, where=f"--{name}", code="protocol")


def _without_effect(name: str, protocol: ProtocolConfig, sampling: str) -> str:
    """Return why the number or the overlap of clips does not count, empty where it does."""
    if protocol.method == "dense":
        return "the method dense reads a study as a whole"
    if protocol.snippets:
        return f"this run is tested by one clip of {protocol.snippets} snippets"
    if name == "overlap" and sampling in ("uniform", "segments"):
        return "clips of this run are spread over the whole study"
    if name == "overlap" and protocol.clips:
        return f"there are {protocol.clips} clips a study, spread evenly (--clips 0 covers it at an overlap)"
    return ""


def _lower(text: str) -> str:
    text = text.removeprefix("Value error, ").rstrip(".")
    return text[:1].lower() + text[1:]
