"""What several formats were trained to read."""

from __future__ import annotations

from volrec.weights.foreign.formats import Inputs

__all__ = ["IMAGENET", "RADIMAGENET"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of torchvision, of values in [0, 1]."""

RADIMAGENET = Inputs("BGR", (-1.0, 1.0), (0.0,), (1.0,), (224, 224))
"""Gray images read as three equal channels."""
