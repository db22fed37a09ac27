"""Crops in plane of whole clips: the fixed ones of test protocols, and TSN's drawn ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional

from volrec.errors import ConfigError, DataError
from volrec.transforms.drawn import DrawnTransform

__all__ = ["RandomCornerCrop", "center_crop", "corner_crops", "five_crop", "mirror_width", "ten_crop"]

# Where a crop lies, in quarters of what is left over along H and W: 4 corners and the centre, then the 8 further ones.
_FIVE = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
_THIRTEEN = (*_FIVE, (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))

Size = int | Sequence[int]


def center_crop(images: torch.Tensor, size: Size) -> torch.Tensor:
    """Cut the centre ``(..., h, w)`` out of ``(..., H, W)``: a view; an odd voxel is left over at the end."""
    return _views(images, size)[4]


def five_crop(images: torch.Tensor, size: Size) -> tuple[torch.Tensor, ...]:
    """Cut the four corners and the centre out of images.

    Parameters
    ----------
    images : torch.Tensor
        ``(..., H, W)``.
    size : int or (int, int)
        Along H and W; one number for both.

    Returns
    -------
    tuple of torch.Tensor
        Five views ``(..., h, w)`` of the images, nothing is copied: top left, top right, bottom left, bottom right,
        centre.

    Raises
    ------
    DataError
        For images smaller than the crop.
    """
    return _views(images, size)


def ten_crop(
    images: torch.Tensor, size: Size, *, x_channels: Sequence[int] = (), channel_axis: int = -4
) -> tuple[torch.Tensor, ...]:
    """Cut the five crops of `five_crop`, then the mirrors (along W) of the same five in the same order.

    Parameters
    ----------
    images, size
        As in `five_crop`.
    x_channels, channel_axis
        As in `mirror_width`: channels of flow whose sign the mirror turns.

    Returns
    -------
    tuple of torch.Tensor
        Ten views: five of the images and five of one mirrored copy. Crop 5 + i is the mirror of crop i.
    """
    mirrored = mirror_width(images, x_channels=x_channels, channel_axis=channel_axis)
    return _views(images, size) + _views(mirrored, size, mirrored=True)


def mirror_width(images: torch.Tensor, *, x_channels: Sequence[int] = (), channel_axis: int = -4) -> torch.Tensor:
    """Mirror ``(..., C, T, H, W)`` along W, and change the sign of the displacements along x.

    Parameters
    ----------
    images : torch.Tensor
        Intensities, and displacements around 0.
    x_channels : sequence of int
        Channels that are x components of flow. With A channels of intensity and then x1, y1, x2, y2 ..:
        ``range(A, C, 2)``.
    channel_axis : int
        -4 for clips; -3 for slices ``(N, C, H, W)``.
    """
    out = images.flip(-1)
    if len(x_channels):
        chosen = torch.as_tensor(list(x_channels), device=out.device)
        out.index_copy_(channel_axis, chosen, -out.index_select(channel_axis, chosen))
    return out


class RandomCornerCrop(DrawnTransform):
    """Cut a corner or the centre out of each clip at one of several sizes, and resize it (TSN [1]_).

    Height and width are drawn from `scales` times the shorter side of the slice, at most `max_distort` steps of that
    list apart; then one of the fixed places is drawn. Every pair of sizes is as likely as any other, and every place.
    All slices and channels of a clip get the same crop. The places lie at the quarters of what the crop leaves over,
    rounded down; TSN takes four times a rounded quarter, which is the same where the rest divides by 4, and leaves a
    corner up to 3 pixels short where it does not.

    Displacements of flow keep their values when a crop is resized, as in TSN.

    Parameters
    ----------
    size : int or (int, int)
        What comes out, along H and W.
    scales : sequence of float
        Falling, in (0, 1]; TSN has 1, .875, .75, .66 for RGB and 1, .875, .75 for flow.
    max_distort : int
        Steps of `scales` that height and width may lie apart; 0 keeps crops square.
    more_fix_crop : bool
        Add the centres of the four sides and of the four quarters to the corners and the centre.
    mirror : float
        Probability of a mirror along W.
    x_channels : sequence of int
        Channels of flow whose sign a mirror turns (`mirror_width`).

    Raises
    ------
    ConfigError
        For a size, scale, step or probability outside its range.

    References
    ----------
    .. [1] L. Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016.
    """

    def __init__(
        self,
        size: Size,
        *,
        scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66),
        max_distort: int = 1,
        more_fix_crop: bool = True,
        mirror: float = 0.0,
        x_channels: Sequence[int] = (),
    ) -> None:
        self.size = _pair(size)
        if not scales or not all(0 < scale <= 1 for scale in scales) or list(scales) != sorted(scales, reverse=True):
            raise ConfigError(
                f"scales must fall and lie in (0, 1], got {tuple(scales)}.",
                remedy="TSN has 1, .875, .75, .66.",
                where="crop.scales",
                code="crop",
            )
        if max_distort < 0 or not 0 <= mirror <= 1:
            raise ConfigError(
                f"max_distort must be at least 0 and mirror in [0, 1]; got {max_distort} and {mirror}.",
                remedy="TSN has 1 and 0.5.",
                where="crop",
                code="crop",
            )
        self.scales = tuple(scales)
        self.max_distort, self.more_fix_crop = max_distort, more_fix_crop
        self.mirror, self.x_channels = mirror, tuple(x_channels)

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw int64 ``(B, 5)``: top, left, height, width of the crop, and whether it is mirrored."""
        boxes = torch.tensor(
            corner_crops(shape[-2:], scales=self.scales, max_distort=self.max_distort, more_fix_crop=self.more_fix_crop)
        )
        chosen = torch.randint(len(boxes), (batch_size,), generator=generator)
        mirrored = torch.rand((batch_size, 1), generator=generator) < self.mirror
        return torch.cat([boxes[chosen], mirrored.long()], dim=1)

    def apply(self, images: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Cut, resize (bilinear, anti-aliased) and mirror what `draw` chose: ``(B, C, T, h, w)``."""
        batch, channels, depth = images.shape[:3]
        out = images.new_empty((batch, channels, depth, *self.size))
        for clip, into, (top, left, height, width, mirrored) in zip(images, out, params.tolist(), strict=True):
            crop = clip[..., top : top + height, left : left + width]
            if crop.shape[-2:] != self.size:
                crop = functional.interpolate(crop, self.size, mode="bilinear", align_corners=False, antialias=True)
            into.copy_(mirror_width(crop, x_channels=self.x_channels) if mirrored else crop)
        return out


def corner_crops(
    shape: Sequence[int],
    *,
    scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66),
    max_distort: int = 1,
    more_fix_crop: bool = True,
) -> list[tuple[int, int, int, int]]:
    """List every crop that `RandomCornerCrop` may draw from slices of `shape` ``(H, W)``: (top, left, height, width).

    A crop that fills a side lies at one place along it only, and is listed once for each of its places, as it is drawn.
    """
    height, width = shape
    sides = [max(1, int(min(height, width) * scale)) for scale in scales]
    return [
        (down * (height - h) // 4, along * (width - w) // 4, h, w)
        for i, h in enumerate(sides)
        for j, w in enumerate(sides)
        if abs(i - j) <= max_distort
        for down, along in (_THIRTEEN if more_fix_crop else _FIVE)
    ]


def _views(images: torch.Tensor, size: Size, mirrored: bool = False) -> tuple[torch.Tensor, ...]:
    h, w = _pair(size)
    height, width = images.shape[-2:]
    if h > height or w > width:
        raise DataError(
            f"a crop of {h} x {w} does not fit into slices of {height} x {width}.",
            remedy="Enlarge the slices or take a smaller crop.",
            code="crop",
        )
    views = []
    for down, along in _FIVE:
        top, left = down * (height - h) // 4, along * (width - w) // 4
        if mirrored:
            left = width - w - left
        views.append(images[..., top : top + h, left : left + w])
    return tuple(views)


def _pair(size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ConfigError(
            f"a crop has one size or two of at least 1, got {size}.",
            remedy="Give (height, width).",
            where="crop.size",
            code="crop",
        )
    return pair[0], pair[1]
