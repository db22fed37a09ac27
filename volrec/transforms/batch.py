"""What happens to a batch on its device: intensity normalisation, then augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms.transform import Transform

from volrec.transforms.blur import RandomBlur
from volrec.transforms.border import RandomBorder
from volrec.transforms.drawn import DrawnTransform, spawn, warn_noop
from volrec.transforms.dropout import RandomSliceDropout
from volrec.transforms.flips import RandomFlip
from volrec.transforms.intensity import BatchIntensity
from volrec.transforms.mixup import MixupParams, RandomMixup
from volrec.transforms.noise import NoiseParams, RandomNoise
from volrec.transforms.spatial import RandomSpatial, SpatialParams
from volrec.transforms.stream_input import StreamInput, turn_vectors
from volrec.transforms.tone import RandomTone, ToneParams

__all__ = ["AugmentParams", "BatchAugment", "BatchTransform"]

_PARTS = ("flip", "dropout", "spatial", "border", "blur", "tone", "noise", "mixup")
# Generators are handed out in this order, which is older: a part that is added later changes no other part's draws.
_SPAWNED = ("flip", "dropout", "spatial", "blur", "tone", "noise", "mixup", "border")
_OF_INTENSITY = ("border", "blur", "tone", "noise")


@dataclass(frozen=True)
class AugmentParams:
    """What was drawn for a batch, part by part; None where a part is off."""

    flip: torch.Tensor | None = None
    dropout: torch.Tensor | None = None
    spatial: SpatialParams | None = None
    blur: torch.Tensor | None = None
    tone: ToneParams | None = None
    noise: NoiseParams | None = None
    mixup: MixupParams | None = None
    border: torch.Tensor | None = None


class BatchAugment(DrawnTransform):
    """Every augmentation of a recipe, in order: mirror, lost slices, space, border, blur, tone, noise, mixup.

    Works on normalised images, and in their units. Each part draws from a generator of its own, spawned from the one
    given: turning a part on or off leaves the draws of the others as they were.

    Parameters
    ----------
    flip : mapping, optional
        Probability of a mirror along ``"T"``, ``"H"``, ``"W"`` (`RandomFlip`).
    rotate, tilt, scale, shift, shift_slices, elastic, spatial_probability, slice_jitter : float
        See `RandomSpatial`.
    noise : float
        Largest standard deviation of added noise (`RandomNoise`).
    contrast, brightness, gamma : float
        See `RandomTone`.
    blur : float
        Largest standard deviation of an in-plane blur, voxels (`RandomBlur`).
    slice_dropout : float
        Probability that a slice is replaced by its neighbour (`RandomSliceDropout`).
    mixup : float
        Alpha of mixup (`RandomMixup`).
    border : float
        Largest share of the plane that is cut away on each side (`RandomBorder`).
    spacing : (float, float, float), optional
        Spacing of the images along T, H, W; without it voxels count as cubes. It matters for `tilt` alone.

    Raises
    ------
    ConfigError
        For a value outside its range.
    """

    params: AugmentParams | None = None

    def __init__(
        self,
        *,
        flip: Mapping[str, float] | None = None,
        rotate: float = 0.0,
        tilt: float = 0.0,
        scale: float = 0.0,
        shift: float = 0.0,
        shift_slices: float = 0.0,
        elastic: float = 0.0,
        spatial_probability: float = 1.0,
        noise: float = 0.0,
        contrast: float = 0.0,
        brightness: float = 0.0,
        gamma: float = 0.0,
        blur: float = 0.0,
        slice_dropout: float = 0.0,
        slice_jitter: float = 0.0,
        mixup: float = 0.0,
        border: float = 0.0,
        spacing: Sequence[float] | None = None,
    ) -> None:
        parts: dict[str, DrawnTransform] = {}
        if flip:
            parts["flip"] = RandomFlip(flip)
        if slice_dropout:
            parts["dropout"] = RandomSliceDropout(probability=slice_dropout)
        if rotate or tilt or scale or shift or shift_slices or elastic or slice_jitter:
            parts["spatial"] = RandomSpatial(
                rotate=rotate,
                tilt=tilt,
                scale=scale,
                shift=shift,
                shift_slices=shift_slices,
                elastic=elastic,
                slice_jitter=slice_jitter,
                probability=spatial_probability,
                spacing=(1.0, 1.0, 1.0) if spacing is None else spacing,
            )
        if blur:
            parts["blur"] = RandomBlur(sigma=blur)
        if gamma or contrast or brightness:
            parts["tone"] = RandomTone(gamma=gamma, contrast=contrast, brightness=brightness)
        if noise:
            parts["noise"] = RandomNoise(std=noise)
        if border:
            parts["border"] = RandomBorder(border=border)
        if mixup:
            parts["mixup"] = RandomMixup(alpha=mixup)
        self.parts = {name: parts[name] for name in _PARTS if name in parts}
        if not parts:
            warn_noop(self, "any augmentation (flip, rotate, noise …)")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> AugmentParams:
        """Draw every part for `batch_size` sequences of `shape` ``(T, H, W)``."""
        generators = dict(zip(_SPAWNED, spawn(generator, len(_SPAWNED)), strict=True))
        return AugmentParams(
            **{name: part.draw(batch_size, shape, generators[name]) for name, part in self.parts.items()}
        )

    def apply(self, images: torch.Tensor, params: AugmentParams, *, streams: StreamInput | None = None) -> torch.Tensor:
        """Apply every part to ``(B, C, T, H, W)`` images; the input is not changed.

        With `streams`, what changes brightness or sharpness comes to the channels of intensity alone, and displacements
        (in voxels) are turned and stretched with the slices. An elastic change bends them too little to count.
        """
        count = images.shape[1] if streams is None else streams.appearance
        vectors = range(0) if streams is None else streams.vectors
        for name, part in self.parts.items():
            drawn = getattr(params, name)
            if count == images.shape[1] or name not in _OF_INTENSITY:
                images = part.apply(images, drawn)
            else:
                still, motion = images[:, :count], images[:, count:]
                if name == "border" and drawn is not None:  # where nothing is seen, nothing moves
                    motion = motion * part.inside(images, drawn)  # type: ignore[attr-defined]
                images = torch.cat([part.apply(still, drawn) if count else still, motion], dim=1)
            if drawn is not None and len(vectors):
                images = _turned(images, name, drawn, vectors)
        return images

    def apply_targets(
        self, targets: torch.Tensor, params: AugmentParams, *, num_classes: int | None = None
    ) -> torch.Tensor:
        """Blend targets as mixup blended the images.

        Parameters
        ----------
        targets : torch.Tensor
            ``(B, K)`` values or probabilities; with `num_classes`, class indices ``(B, 1)`` or ``(B,)``.
        params : AugmentParams
            What was drawn.
        num_classes : int, optional
            Classes of a multiclass task: the result is then ``(B, num_classes)`` probabilities, mixed or not.
        """
        if num_classes is not None:
            targets = torch.nn.functional.one_hot(targets.reshape(len(targets)).long(), num_classes).to(torch.float32)
        return targets if params.mixup is None else self.parts["mixup"].apply(targets, params.mixup)

    def apply_slice_targets(self, targets: torch.Tensor, params: AugmentParams) -> torch.Tensor:
        """Move labels of slices ``(B, T, ...)`` with the slices: mirrored, lost, shifted and blended as they were."""
        depth = targets.shape[1]
        source = torch.arange(depth).expand(len(targets), depth)
        if params.flip is not None:
            source = torch.where(params.flip[:, :1], source.flip(1), source)
        if params.dropout is not None:
            source = source.gather(1, params.dropout)
        if params.spatial is not None:
            source = source.gather(1, params.spatial.slice_source(depth))
        rows = torch.arange(len(targets)).view(-1, 1)
        moved = targets[rows.to(targets.device), source.to(targets.device)]
        return self.apply_targets(moved, params) if moved.is_floating_point() else moved


def _turned(images: torch.Tensor, part: str, drawn: Any, vectors: range) -> torch.Tensor:
    """Let displacements follow a mirror or an affine change that the images have undergone."""
    if part == "flip":
        for axis, first in ((2, 0), (1, 1)):  # W turns x, H turns y
            signs = torch.where(drawn[:, axis], -1.0, 1.0).to(images)
            if (drawn[:, axis]).any():
                images = images.clone()
                images[:, vectors.start + first : vectors.stop : 2] *= signs[:, None, None, None, None]
    elif part == "spatial":
        images = turn_vectors(images.clone(), drawn.matrix, vectors)
    return images


class BatchTransform(Transform):
    """From a batch as the loader gives it to the network's input.

    Parameters
    ----------
    intensity : BatchIntensity or StreamInput
        Normalisation, or what makes the channels of several streams.
    augment : BatchAugment, optional
        Augmentation, in training.
    num_classes : int, optional
        Classes of a multiclass task: with mixup, targets become ``(B, num_classes)`` probabilities.
    """

    def __init__(
        self,
        intensity: BatchIntensity | StreamInput,
        augment: BatchAugment | None = None,
        *,
        num_classes: int | None = None,
    ) -> None:
        self.streams = intensity if isinstance(intensity, StreamInput) else StreamInput(intensity)
        self.augment = augment
        self.num_classes = num_classes

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return self.streams.channels

    @torch.no_grad()
    def __call__(
        self,
        data: Mapping[str, Any],
        *,
        augment: bool = True,
        generator: torch.Generator | None = None,
        params: AugmentParams | None = None,
    ) -> dict[str, Any]:
        """Normalise, then augment.

        Parameters
        ----------
        data : mapping
            ``image`` ``(B, 1, T, H, W)``, and what the streams need beside it (`StreamInput`); ``quantiles`` ``(B, Q)``
            where the normalisation needs it; ``target``
            ``(B, K)`` and ``slice_target`` ``(B, T, ...)`` where there are any.
        augment : bool
            False in validation.
        generator : torch.Generator, optional
            Source of the draw (a CPU generator); without it the augmentation's own random state.
        params : AugmentParams, optional
            Replays an earlier draw.

        Returns
        -------
        dict
            The same keys, ``image`` as float32 ``(B, C, T, H, W)``, targets as mixup and motion left them.
        """
        out = dict(data)
        images = self.streams(data)
        if augment and self.augment is not None:
            if params is None:
                if generator is None:
                    self.augment.randomize(images)
                    params = self.augment.params
                else:
                    params = self.augment.draw(len(images), images.shape[-3:], generator)
            if params is not None:
                images = self.augment.apply(images, params, streams=self.streams)
                self._move_targets(out, self.augment, params)
        out["image"] = self.streams.finish(images, data)
        return out

    def _move_targets(self, out: dict[str, Any], augment: BatchAugment, params: AugmentParams) -> None:
        if params.mixup is not None and out.get("target") is not None:
            out["target"] = augment.apply_targets(out["target"], params, num_classes=self.num_classes)
        if out.get("slice_target") is not None:
            out["slice_target"] = augment.apply_slice_targets(out["slice_target"], params)
