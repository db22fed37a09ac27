"""From what was read of a study to the channels of a network: intensity, displacement fields, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.transforms.transform import Transform

from volrec.errors import ConfigError
from volrec.transforms.flow_fields import STORED_BOUND
from volrec.transforms.intensity import BatchIntensity

__all__ = ["STREAMS", "StreamInput", "turn_vectors"]

STREAMS = ("intensity", "flow", "warped", "difference")


class StreamInput(Transform):
    """Build the input (B, C, T, H, W) of a network from the streams of a batch.

    Channels come in the order of the streams: those of intensity (one a window), then x and y of each displacement
    field in turn, or the differences of each channel of intensity. Augmentation moves all of them alike; until `finish`
    displacements are in voxels, so that what turns the slices can turn them too (`turn_vectors`).

    Parameters
    ----------
    intensity : BatchIntensity
        Normalisation of voxel values.
    inputs : sequence of str
        Streams, of `STREAMS`.
    stack : int
        Fields that a slice carries (L): 2 L channels.
    differences : int
        Differences that a slice carries (D): D channels for each of intensity.
    bound : float
        Displacement, in `units`, that becomes 1; larger ones are clipped.
    units : {"voxels", "mm"}
        Of `bound`; mm needs the ``pixel`` of each study.

    Raises
    ------
    ConfigError
        For an unknown stream, none, or one named twice.
    """

    def __init__(
        self,
        intensity: BatchIntensity,
        inputs: Sequence[str] = ("intensity",),
        *,
        stack: int = 1,
        differences: int = 1,
        bound: float = 20.0,
        units: str = "voxels",
    ) -> None:
        if not inputs or len(set(inputs)) != len(inputs) or not set(inputs) <= set(STREAMS):
            raise ConfigError(
                f"streams are some of {', '.join(STREAMS)}, each once; got {list(inputs)}.",
                remedy="Name at least one.",
                where="streams.inputs",
                code="streams",
            )
        if not bound > 0 or units not in ("voxels", "mm"):
            raise ConfigError(
                f"the bound of displacements is above 0, in voxels or mm; got {bound} {units}.",
                where="streams.flow",
                code="streams",
            )
        self.intensity = intensity
        self.inputs = tuple(inputs)
        self.bound, self.units = float(bound), units
        self._sizes = {
            "intensity": intensity.channels,
            "flow": 2 * stack,
            "warped": 2 * stack,
            "difference": differences * intensity.channels,
        }

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return sum(self._sizes[stream] for stream in self.inputs)

    @property
    def appearance(self) -> int:
        """Channels of intensity, which come first; 0 where it is not read."""
        return self._sizes["intensity"] if "intensity" in self.inputs else 0

    @property
    def vectors(self) -> range:
        """Channels that are displacements: x and y in turn."""
        start = 0
        for stream in self.inputs:
            if stream in ("flow", "warped"):
                return range(start, start + self._sizes[stream])
            start += self._sizes[stream]
        return range(0)

    def __call__(self, data: Mapping[str, Any]) -> torch.Tensor:
        """Return the channels (B, C, T, H, W) float32, displacements in voxels.

        Parameters
        ----------
        data : mapping
            ``image`` (B, 1, T, H, W) and ``quantiles`` (B, Q); ``fields`` (B, 2 L, T, H, W) as stored, ``following``
            (B, D + 1, T, H, W), where they are read.
        """
        parts = [self._stream(stream, data) for stream in self.inputs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def finish(self, images: torch.Tensor, data: Mapping[str, Any]) -> torch.Tensor:
        """Bring displacements from voxels to [-1, 1] of the bound; the input is changed.

        Parameters
        ----------
        images : torch.Tensor
            (B, C, T, H, W) as `__call__` gave it, augmented or not.
        data : mapping
            ``pixel`` (B, 2), mm along W and H, where the bound is in mm.
        """
        where = self.vectors
        if len(where):
            fields = images[:, where.start : where.stop]
            if self.units == "mm":
                pixel = data["pixel"].to(images).repeat(1, len(where) // 2)
                fields.mul_(pixel[:, :, None, None, None])
            fields.mul_(1 / self.bound).clamp_(-1, 1)
        return images

    def mirror(self, images: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """Return the input mirrored along some of the last axes (-2: H, -1: W), displacements turned with it."""
        if not axes:
            return images
        mirrored = images.flip(tuple(axes))
        for axis, first in ((-1, 0), (-2, 1)):
            if axis in axes and len(self.vectors):
                mirrored[:, self.vectors.start + first : self.vectors.stop : 2].neg_()
        return mirrored

    def _stream(self, stream: str, data: Mapping[str, Any]) -> torch.Tensor:
        quantiles = data.get("quantiles")
        if stream == "intensity":
            return self.intensity(data["image"], quantiles)
        if stream in ("flow", "warped"):
            return data["fields"].to(torch.float32).mul_(STORED_BOUND / 32767)
        following = data["following"]
        batch, count, *sizes = following.shape
        shown = self.intensity(following.reshape(batch, 1, count * sizes[0], *sizes[1:]), quantiles)
        shown = shown.unflatten(2, (count, sizes[0]))  # (B, C, D + 1, T, H, W)
        return (shown[:, :, 1:] - shown[:, :, :-1]).transpose(1, 2).flatten(1, 2)


def turn_vectors(images: torch.Tensor, matrix: torch.Tensor, vectors: range) -> torch.Tensor:
    """Turn displacements as an affine change of the sequence turns the paths that they are part of.

    A field of (x, y) voxels a slice follows a path along (1, y, x) in (T, H, W); its image under the change of the
    sequence, divided by its part along T, is the displacement a slice afterwards. Exact for paths that are straight.

    Parameters
    ----------
    images : torch.Tensor
        (B, C, T, H, W), already resampled; its vectors are changed in place.
    matrix : torch.Tensor
        (B, 3, 4) float64 from output voxel (t, h, w, 1) to the input voxel it shows.
    vectors : range
        Channels that are x and y in turn.
    """
    forward = torch.linalg.inv(matrix[:, :, :3])
    rows = torch.nonzero((forward != torch.eye(3, dtype=forward.dtype)).flatten(1).any(dim=1)).flatten()
    if not len(rows):
        return images
    turn = forward[rows].to(device=images.device, dtype=torch.float32)[:, :, :, None, None, None, None]
    chosen = rows.to(images.device)
    fields = images[chosen, vectors.start : vectors.stop].unflatten(1, (-1, 2))
    x, y = fields[:, :, 0], fields[:, :, 1]
    along, down, across = (turn[:, row, 0] + turn[:, row, 1] * y + turn[:, row, 2] * x for row in range(3))
    turned = torch.stack([across / along, down / along], dim=2).flatten(1, 2)
    images[chosen, vectors.start : vectors.stop] = turned
    return images
