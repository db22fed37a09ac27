"""What is made of the scores once a network is trained: decisions, and what the report shows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from volrec.config.sections import Section

__all__ = ["DecisionConfig", "ReportConfig"]


class DecisionConfig(Section):
    """From scores to decisions; everything is fitted on validation studies and carried with the weights."""

    rule: Literal["youden", "sensitivity", "specificity", "half"] = "youden"
    """Threshold of each binary output: best mean of sensitivity and specificity; the highest threshold that reaches
    `at` in sensitivity; the lowest that reaches it in specificity; or 0.5."""
    at: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Sensitivity or specificity that the threshold has to reach."""
    calibration: Literal["temperature", "isotonic", "none"] = "temperature"
    """How scores become probabilities: logits divided by one temperature, or a monotone curve (isotonic: for several
    hundred validation studies). It stands beside the scores and does not change them."""


class ReportConfig(Section):
    """What the report of a training shows beside its metrics."""

    by: list[str] = Field(default_factory=list)
    """Columns of the labels file that make groups of studies (sex, scanner, site): how good the run is in each."""
    audit: bool = True
    """Score the test studies again with slices shuffled, reversed, repeated, left out and cut away."""
    audit_studies: Annotated[int, Field(ge=0)] = 100
    """Most studies of the audit, as many of each class as can be; 0 takes all."""
    gallery: Annotated[int, Field(ge=0)] = 3
    """Studies shown of each kind (best, worst, most uncertain) with a map of where the network looked; 0 shows none."""
    method: Literal[
        "occlusion-3d", "gradcam", "gradcam-slicewise", "occlusion", "integrated-gradients", "deconvnet"
    ] = "occlusion-3d"
    """Map of the gallery. occlusion-3d covers block after block: of the methods the one that finds planted lesions most
    dependably (``examples/where_networks_look.py``); integrated-gradients takes fewer passes of a large network."""
