"""C3D's feature protocol: a layer of a network, averaged over the clips of a video, length one, and a linear machine.

D. Tran et al., ICCV 2015: fc6 after its ReLU on clips of 16 frames every 8; first the mean, then the length (the order
that an author confirmed). C was never published.

Three networks are joined in one of two ways: the paper puts their features, each of length one, side by side; an author
later said that the predictions of three machines are averaged. Improved dense trajectories are put beside the features
(beside those of each network, where predictions are averaged). They keep the length that their encoder gave them, one
for each descriptor, so that a descriptor counts as much as a network: the paper does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.benchmarks.encoding.choice import Choice
from volrec.benchmarks.encoding.classifiers import LinearClassifier
from volrec.benchmarks.encoding.stored import load_arrays, save_arrays
from volrec.config import FeatureClassifier
from volrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FeatureMachine", "layer_features", "unit", "video_feature"]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (..., F) as float32 of length one; zeros stay."""
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1.0)).astype(np.float32)


def video_feature(clips: np.ndarray, *, normalize: str = "l2") -> np.ndarray:
    """Return the feature (F,) float32 of a video: the mean over its clips (n, F), then length one.

    Parameters
    ----------
    clips : ndarray
        (n, F), n at least 1.
    normalize : {"l2", "none"}
        Of the mean.

    Raises
    ------
    DataError
        No clip, or features that are not finite.
    """
    clips = np.asarray(clips, dtype=np.float64)
    if clips.ndim != 2 or not len(clips) or not np.isfinite(clips).all():
        what = "not finite" if clips.ndim == 2 and len(clips) else f"of shape {clips.shape}"
        raise DataError(
            f"features of a video are one row a clip, finite numbers; got some that are {what}.",
            remedy="Look at the video and at the weights of the network.",
            code="clip-features",
        )
    mean = clips.mean(axis=0)
    return unit(mean) if normalize == "l2" else mean.astype(np.float32)


def layer_features(network: nn.Module, x: torch.Tensor, layer: str) -> torch.Tensor:
    """Return what a layer of a network gives after its ReLU, (B, F) for clips (B, C, T, H, W).

    The network runs in evaluation mode without gradients, and is left in the mode it was in.

    Parameters
    ----------
    network : nn.Module
        Of the registry. Where it calls a normalisation ``norm<number>`` beside ``conv<number>``, or ``normfc6`` beside
        ``fc6`` (C3D), the ReLU comes after that.
    x : Tensor
        Clips.
    layer : str
        A layer as in ``named_modules()``: ``"fc6"``. Its ReLU is applied here (which changes nothing of a layer that
        had it before); the last layer has none. Maps are flattened.

    Raises
    ------
    ConfigError
        No such layer, or one that does not run once on all clips.
    """
    import torch
    from torch import nn

    known = dict(network.named_modules())
    if layer not in known or not layer:
        names = [name for name in known if name and not name.startswith(("drop", "norm"))]
        raise ConfigError(
            f"{type(network).__name__} has no layer {layer!r}; it has {', '.join(names)}.",
            remedy="Choose one of them; C3D has fc6 with faithful=True or head='fc'.",
            where="features.layer",
            code="layer",
        )
    found: list[torch.Tensor] = []
    after = [known.get(name) for name in (f"norm{layer}", layer.replace("conv", "norm", 1)) if name != layer]
    # Layers that normalise before the ReLU; local response normalisation (AlexNet and its kin) comes behind it.
    norms = [one for one in after if one is not None and not isinstance(one, nn.LocalResponseNorm)]
    watched = norms[0] if norms else known[layer]

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        # A copy: what follows may work in place.
        found.append(output.clone() if isinstance(output, torch.Tensor) else output)  # type: ignore[arg-type]

    handle = watched.register_forward_hook(keep)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            network(x)
    finally:
        handle.remove()
        for module, training in modes:
            module.training = training
    if len(found) != 1 or not isinstance(found[0], torch.Tensor) or len(found[0]) != len(x):
        raise ConfigError(
            f"layer {layer!r} of {type(network).__name__} does not run once on every clip "
            f"(it ran {len(found)} times on {len(x)} clips{f', the first on {len(found[0])}' if found else ''}).",
            remedy="Choose a layer behind the consensus over frames.",
            where="features.layer",
            code="layer",
        )
    output = found[0].flatten(1)
    return output if layer == getattr(network, "classifier_name", None) else torch.relu(output)


@dataclass(frozen=True, eq=False)
class FeatureMachine:
    """Linear machines on the features of one or several networks.

    Attributes
    ----------
    settings : FeatureClassifier
    machines : tuple of LinearClassifier
        One on everything side by side, or one a network.
    """

    settings: FeatureClassifier
    machines: tuple[LinearClassifier, ...]

    @classmethod
    def fit(
        cls,
        settings: FeatureClassifier,
        features: Sequence[np.ndarray],
        labels: Sequence[int],
        *,
        classes: Sequence[str],
        groups: Sequence[str],
        trajectories: np.ndarray | None = None,
    ) -> FeatureMachine:
        """Fit to training videos.

        Parameters
        ----------
        settings : FeatureClassifier
            How networks are joined, the choice of C, whether trajectories stand beside.
        features : sequence of ndarray
            (N, F) of each network, as `video_feature` gives them.
        labels : sequence of int
            (N,).
        classes : sequence of str
            K names.
        groups : sequence of str
            (N,) for the choice of C.
        trajectories : ndarray, optional
            (N, G) vectors of a `TrajectoryEncoder`, also on disk.

        Raises
        ------
        ConfigError
            Another number of networks than the settings say, trajectories where they say none, or none where they do.
        """
        given = _inputs(settings, features, trajectories)
        machines = [
            LinearClassifier.fit(parts, labels, classes=classes, c=settings.c, groups=groups) for parts in given
        ]
        return cls(settings, tuple(machines))

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.machines[0].classes

    @property
    def choices(self) -> tuple[Choice, ...]:
        """How the C of each machine was chosen."""
        return tuple(machine.choice for machine in self.machines)

    def scores(self, features: Sequence[np.ndarray], *, trajectories: np.ndarray | None = None) -> np.ndarray:
        """Return margins (N, K) float64, the mean over machines where there are several."""
        given = _inputs(self.settings, features, trajectories)
        return np.mean([machine.scores(parts) for machine, parts in zip(self.machines, given, strict=True)], axis=0)

    def save(self, path: Path | str) -> None:
        """Write it to ``….safetensors`` (see `stored`)."""
        arrays: dict[str, np.ndarray] = {}
        for place, machine in enumerate(self.machines):
            arrays |= {f"{place}.weights": machine.weights, f"{place}.intercepts": machine.intercepts}
        facts = {
            "settings": self.settings.to_dict(),
            "classes": list(self.classes),
            "choices": [choice.facts() for choice in self.choices],
        }
        save_arrays(path, arrays, kind="feature-svm", facts=facts)

    @classmethod
    def load(cls, path: Path | str) -> FeatureMachine:
        """Read what `save` wrote; its scores are the same to the last digit."""
        arrays, _, facts = load_arrays(path, kinds=("feature-svm",))
        classes = tuple(facts["classes"])
        machines = [
            LinearClassifier(classes, arrays[f"{place}.weights"], arrays[f"{place}.intercepts"], Choice.of(choice))
            for place, choice in enumerate(facts["choices"])
        ]
        return cls(FeatureClassifier(**facts["settings"]), tuple(machines))


def _inputs(
    settings: FeatureClassifier, features: Sequence[np.ndarray], trajectories: np.ndarray | None
) -> list[list[np.ndarray]]:
    """Return what each machine reads: parts that lie side by side."""
    if len(features) != settings.nets:
        raise ConfigError(
            f"features of {settings.nets} networks are joined, got those of {len(features)}.",
            remedy="Give those of every network.",
            where="features.nets",
            code="nets",
        )
    if (trajectories is not None) != settings.trajectories:
        raise ConfigError(
            "vectors of trajectories were given, and the protocol has none beside the features."
            if trajectories is not None
            else "the protocol puts vectors of trajectories beside the features, and none were given.",
            remedy="Set features.trajectories, or give what it asks for.",
            where="features.trajectories",
            code="trajectories",
        )
    beside: list[Any] = [] if trajectories is None else [trajectories]
    if settings.combine == "concatenate":
        return [[*features, *beside]]
    return [[feature, *beside] for feature in features]
