"""Sections for what a network reads beside the slices themselves, and for trainings that are done in turn."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from volrec.config.sections import Count, NonNegative, Positive, Section

__all__ = ["FlowConfig", "StageConfig", "StreamsConfig"]

Stream = Literal["intensity", "flow", "warped", "difference"]
_SLICES: list[Stream] = ["intensity"]


class FlowConfig(Section):
    """How structures travel from slice to slice: the flow, computed once a study and kept in the store."""

    method: Literal["tvl1", "farneback", "dis", "demons", "folder"] = "tvl1"
    """``tvl1`` (OpenCV, else scikit-image), ``farneback`` and ``dis`` (OpenCV; extra ``flow``), ``demons``
    (SimpleITK: a registration in mm), ``folder``: pictures that exist, in `folder`."""
    folder: str | None = None
    """With method ``folder``: a folder with one folder a study, named as the study, of ``flow_x_00001.jpg`` and
    ``flow_y_00001.jpg`` and so on."""
    folder_bound: Positive = 20.0
    """Displacement, in pixels, that the pictures of `folder` show as white; its negative is black."""
    stack: Count = 1
    """Fields that a slice carries (L): 2 L channels, x and y in turn."""
    order: Literal["forward", "centred", "bidirectional", "trajectory"] = "forward"
    """Which fields: the L that follow the slice, those around it (as TwoStreamFusion), half of them back to the
    slices before (bidirectional), or those that follow, read along the paths (trajectory)."""
    units: Literal["voxels", "mm"] = "voxels"
    """Unit of `bound` and of the displacements that the network reads; mm sets studies of unlike pixels at par."""
    bound: Positive = 20.0
    """Displacements are clipped here and divided by it: the network reads -1 to 1."""
    drift: Literal["translation", "affine", "homography"] = "translation"
    """Common movement of a whole slice that the stream ``warped`` takes out."""

    @model_validator(mode="after")
    def _consistent(self) -> FlowConfig:
        if (self.method == "folder") != (self.folder is not None):
            raise ValueError(
                "streams.flow.folder goes with method 'folder', got "
                f"method '{self.method}' and folder {self.folder!r}: set both, or neither"
            )
        if self.order == "bidirectional" and self.stack % 2:
            raise ValueError(
                f"streams.flow.order 'bidirectional' takes half of the stack from each side, got stack {self.stack}: "
                "set an even one"
            )
        return self


class StreamsConfig(Section):
    """The streams that a network reads, in the order of its channels."""

    inputs: list[Stream] = Field(default_factory=_SLICES.copy)
    """``intensity`` (the windows), ``flow``, ``warped`` (flow without the drift of whole slices), ``difference``
    (of intensity, to the next slice)."""
    flow: FlowConfig = Field(default_factory=FlowConfig)
    difference_stack: Count = 1
    """Differences that a slice carries; TSN takes 5."""

    @field_validator("inputs")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"streams.inputs names each stream once, and at least one; got {value}")
        if "intensity" in value[1:]:
            raise ValueError(f"streams.inputs has intensity first; got {value}")
        if {"flow", "warped"} <= set(value):
            raise ValueError("streams.inputs takes flow or warped: fuse a run of each for both (`volrec fuse`)")
        return value

    @model_validator(mode="after")
    def _readable(self) -> StreamsConfig:
        if "warped" in self.inputs and self.flow.method == "folder":
            raise ValueError("streams.inputs 'warped' is computed here: take flow, or another flow.method than folder")
        return self

    @property
    def motion(self) -> list[str]:
        """Streams that tell what changes from slice to slice."""
        return [stream for stream in self.inputs if stream != "intensity"]

    @property
    def field(self) -> str | None:
        """Stream of displacements among the inputs: ``flow``, ``warped`` or none."""
        return next((stream for stream in self.inputs if stream in ("flow", "warped")), None)


class StageConfig(Section):
    """One of the trainings that are done in turn; the first begins as `init` says, each other where the last ended."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    """Name of its folder."""
    objective: Literal["labels", "motion", "joint"] = "labels"
    """``labels``: the loss of the scores; ``motion``: the network's own loss without labels; ``joint``: both."""
    freeze: list[str] = Field(default_factory=list)
    """Patterns of parameter names that stay as they are, beside those of `optim.freeze`."""
    lr: float | str | None = None
    """Peak learning rate, or a share of `optim.lr` (``10%``); null takes that."""
    epochs: int | str | None = None
    """Longest training, or a share of `trainer.epochs` (``30%``); null takes all of them, and stages add up. A plan
    turns shares into numbers."""
    motion_weight: NonNegative = 1.0
    """Weight of the loss without labels in ``joint``."""

    @field_validator("lr", "epochs", mode="before")
    @classmethod
    def _number_or_share(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None or (isinstance(value, str) and _share(value)):
            return value
        counted = info.field_name == "epochs"
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < math.inf or (counted and number != int(number)):
            kind, share = (
                ("a whole number of epochs", "30% of trainer.epochs") if counted else ("a rate", "10% of optim.lr")
            )
            raise ValueError(f"{kind} above 0, or a share such as {share}, written {share.split()[0]}; got {value!r}")
        return int(number) if counted else number

    def settled(self, *, lr: float, epochs: int) -> StageConfig:
        """Return the stage with numbers in the place of shares of `optim.lr` and `trainer.epochs`."""
        found: dict[str, Any] = {}
        if isinstance(self.lr, str):
            found["lr"] = float(f"{lr * _share(self.lr):.3g}")
        if isinstance(self.epochs, str):
            found["epochs"] = max(1, round(epochs * _share(self.epochs)))
        return self.model_copy(update=found)


def _share(text: str) -> float:
    """Return 0.3 for ``30%``; 0 for what is no share."""
    return float(text[:-1]) / 100 if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text) else 0.0
