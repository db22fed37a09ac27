"""Random rotation, tilt, scale, shift, elastic displacement and slice jitter, as two-dimensional samplings.

Sampling a batch in three dimensions costs more than many networks' step. A small spatial change factors: first every
slice is sampled in its own plane (rotation, scale, shift, elastic displacement, jitter, and the part of a tilt that
moves a slice sideways), then every voxel is sampled along the slice axis (tilt, shift of slices). Both passes are
two-dimensional, and the second is left out where nothing moves through the plane. For a rigid motion the factors
multiply to exactly that motion; only the interpolation differs from a trilinear one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from volrec.errors import ConfigError
from volrec.transforms.drawn import DrawnTransform, check_strength, spawn, uniform, warn_noop

__all__ = ["RandomSpatial", "SpatialParams", "rigid_matrix"]

_INTERVALS = (4, 5, 5)  # Stretches between the control points of the elastic displacement, along T, H, W.
_LARGEST_TILT = 45.0
_CHUNK_VOXELS = 2**21  # Sampled at once on a processor: grids stay in the reach of its caches.


@dataclass(frozen=True)
class SpatialParams:
    """What `RandomSpatial` drew.

    Attributes
    ----------
    matrix : torch.Tensor
        ``(B, 3, 4)`` float64: output voxel ``(t, h, w, 1)``, counted from the centre, to the input voxel it shows.
    control : torch.Tensor or None
        ``(B, 2, ...)`` control points of the displacement along H and W, voxels.
    jitter : torch.Tensor or None
        ``(B, T, 2)`` displacement of each slice along H and W, voxels.
    """

    matrix: torch.Tensor
    control: torch.Tensor | None
    jitter: torch.Tensor | None

    @property
    def through_plane(self) -> torch.Tensor:
        """Bool ``(B,)``: whether voxels move along the slice axis."""
        return (self.matrix[:, 0] != torch.tensor([1.0, 0, 0, 0], dtype=self.matrix.dtype)).any(dim=1)

    @property
    def touched(self) -> torch.Tensor:
        """Bool ``(B,)``: whether the sequence is changed at all."""
        touched = (self.matrix != torch.eye(3, 4, dtype=self.matrix.dtype)).flatten(1).any(dim=1)
        for part in (self.control, self.jitter):
            if part is not None:
                touched = touched | (part != 0).flatten(1).any(dim=1)
        return touched

    def of(self, chosen: torch.Tensor) -> SpatialParams:
        """Return the part of some sequences."""
        control = None if self.control is None else self.control[chosen]
        return SpatialParams(self.matrix[chosen], control, None if self.jitter is None else self.jitter[chosen])

    def slice_source(self, depth: int) -> torch.Tensor:
        """Return int64 ``(B, T)``: the input slice shown by the middle of each output slice."""
        centred = torch.arange(depth, dtype=self.matrix.dtype) - (depth - 1) / 2
        source = self.matrix[:, 0, :1] * centred + self.matrix[:, 0, 3:] + (depth - 1) / 2
        return source.round().long().clamp(0, depth - 1)


class RandomSpatial(DrawnTransform):
    """Move, turn, stretch and bend each sequence at random; what comes in from outside repeats the border.

    Parameters
    ----------
    rotate : float
        Largest rotation in plane, degrees.
    tilt : float
        Largest rotation about each of the two in-plane axes, degrees.
    scale : float
        Largest relative change of size in plane, below 1.
    shift, shift_slices : float
        Largest displacement along H and W (voxels) and along T (slices).
    elastic : float
        Standard deviation of a smooth displacement along H and W that changes from slice to slice, voxels.
    slice_jitter : float
        Largest displacement of single slices along H and W, voxels.
    probability : float
        Share of the sequences that are changed; the slice jitter comes to all of them.
    spacing : (float, float, float)
        Spacing along T, H, W (mm, or any unit): rotations turn the body, not the voxel grid.

    Raises
    ------
    ConfigError
        For a negative strength, a tilt above 45 degrees, a scale of 1 or more, or a probability outside [0, 1].
    """

    def __init__(
        self,
        *,
        rotate: float = 0.0,
        tilt: float = 0.0,
        scale: float = 0.0,
        shift: float = 0.0,
        shift_slices: float = 0.0,
        elastic: float = 0.0,
        slice_jitter: float = 0.0,
        probability: float = 1.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        check_strength(
            rotate=rotate, tilt=tilt, scale=scale, shift=shift, shift_slices=shift_slices, elastic=elastic,
            slice_jitter=slice_jitter,
        )  # fmt: skip
        if tilt > _LARGEST_TILT or scale >= 1 or not 0 <= probability <= 1:
            raise ConfigError(
                f"tilt must be at most {_LARGEST_TILT:g} degrees, scale below 1 and spatial_probability in [0, 1]; "
                f"got {tilt}, {scale} and {probability}.",
                remedy="Lower what is outside.",
                where="augment",
                code="augment",
            )
        if len(spacing) != 3 or not all(value > 0 for value in spacing):
            raise ConfigError(
                f"spacing must be three values above zero for T, H, W; got {tuple(spacing)}.",
                remedy="Give the spacing that the volumes were resampled to.",
                where="spacing",
                code="spacing",
            )
        self.rotate, self.tilt, self.scale = rotate, tilt, scale
        self.shift, self.shift_slices = shift, shift_slices
        self.elastic, self.slice_jitter = elastic, slice_jitter
        self.probability = probability
        self.spacing = tuple(float(value) for value in spacing)
        moves = bool(rotate or tilt or scale or shift or shift_slices or elastic)
        if moves and probability == 0:
            warn_noop(self, "probability (spatial_probability)")
        elif not moves and not slice_jitter:
            warn_noop(self, "rotate", "tilt", "scale", "shift", "shift_slices", "elastic", "slice_jitter")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> SpatialParams:
        """Draw the motion of each sequence; each kind of change has a generator of its own."""
        chosen, turn, size, move, move_slices, bend, shake = spawn(generator, 7)
        changed = torch.rand((batch_size,), generator=chosen) < self.probability
        largest = torch.tensor([self.rotate, self.tilt, self.tilt])
        shift = uniform((batch_size, 3), -1.0, 1.0, move)
        shift[:, 0] = uniform((batch_size,), -1.0, 1.0, move_slices)
        matrix = rigid_matrix(
            uniform((batch_size, 3), -1.0, 1.0, turn) * largest,
            scale=uniform((batch_size,), 1 - self.scale, 1 + self.scale, size),
            shift=shift * torch.tensor([self.shift_slices, self.shift, self.shift]),
            spacing=self.spacing,
        )
        matrix = torch.where(changed[:, None, None], matrix, torch.eye(3, 4, dtype=matrix.dtype))
        control = jitter = None
        if self.elastic:
            bases = [_spline_basis(length, count) for length, count in zip(shape, _INTERVALS, strict=True)]
            gain = torch.stack([basis.square().sum(dim=1).mean() for basis in bases]).prod().sqrt()
            points = [basis.shape[1] for basis in bases]
            control = torch.randn((batch_size, 2, *points), generator=bend) * (self.elastic / gain)
            control *= changed.view(-1, 1, 1, 1, 1)
        if self.slice_jitter:
            jitter = uniform((batch_size, shape[0], 2), -self.slice_jitter, self.slice_jitter, shake)
        return SpatialParams(matrix, control, jitter)

    def apply(self, images: torch.Tensor, params: SpatialParams) -> torch.Tensor:
        """Sample the images where `draw` said; untouched sequences are copied as they are."""
        touched = torch.nonzero(params.touched).flatten()
        if not len(touched):
            return images
        size = len(touched) if images.is_cuda else max(1, _CHUNK_VOXELS // images[0].numel())
        out = images.clone() if len(touched) < len(images) else torch.empty_like(images)
        with torch.autocast(images.device.type, enabled=False):  # Coordinates need all their digits.
            for chosen in touched.split(size):
                first, count = int(chosen[0]), len(chosen)
                run = int(chosen[-1]) - first + 1 == count  # neighbours are read where they lie
                where = slice(first, first + count) if run else chosen.to(images.device)
                out[where] = _sample(images[where], params.of(chosen))
        return out


def rigid_matrix(
    angles: torch.Tensor, *, scale: torch.Tensor, shift: torch.Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> torch.Tensor:
    """Build the map from output to input voxels of "scale in plane, turn, shift".

    Parameters
    ----------
    angles : torch.Tensor
        ``(B, 3)`` degrees about T (in plane), H and W (tilts).
    scale : torch.Tensor
        ``(B,)``: above 1 the content grows in plane.
    shift : torch.Tensor
        ``(B, 3)`` voxels that the content moves along T, H, W.
    spacing : sequence of float
        Along T, H, W.

    Returns
    -------
    torch.Tensor
        ``(B, 3, 4)`` float64, voxels counted from the centre.
    """
    radians = torch.deg2rad(angles.double())
    cos, sin = radians.cos(), radians.sin()
    turn = torch.eye(3, dtype=torch.float64).expand(len(angles), 3, 3)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        single = torch.eye(3, dtype=torch.float64).repeat(len(angles), 1, 1)
        single[:, first, first] = single[:, second, second] = cos[:, axis]
        single[:, first, second], single[:, second, first] = -sin[:, axis], sin[:, axis]
        turn = turn @ single
    millimetres = torch.tensor(list(spacing), dtype=torch.float64)
    back = turn.transpose(1, 2) * millimetres[None, None, :] / millimetres[None, :, None]
    back[:, 1:] /= scale.double()[:, None, None]
    return torch.cat([back, -(back @ shift.double()[:, :, None])], dim=2)


def _sample(images: torch.Tensor, params: SpatialParams) -> torch.Tensor:
    """Sample ``(b, C, T, H, W)``: in plane, then through it."""
    batch, channels, depth, height, width = images.shape
    matrix = params.matrix
    # In plane, the slice is the given one, and the output slice follows: t' = (t - A_th h - A_tw w - b_t) / A_tt.
    along = matrix[:, 1:, 0] / matrix[:, :1, 0]  # (b, 2): what a step of one slice adds to h and w
    plane = matrix[:, 1:, 1:] - along[:, :, None] * matrix[:, :1, 1:]  # (b, 2, 3): from h, w, 1 at the middle slice
    each_slice = bool((along != 0).any()) or params.control is not None or params.jitter is not None
    start = plane[:, None, :, 2].expand(batch, depth if each_slice else 1, 2)
    if each_slice:
        start = start + along[:, None] * _centred(depth)[None, :, None]
    if params.jitter is not None:
        start = start + params.jitter
    grid = _plane_grid(start, plane, (height, width), images.device, params.control)
    if each_slice:
        planes = images.transpose(1, 2).reshape(batch * depth, channels, height, width)
        out = _bilinear(planes, grid.flatten(0, 1)).view(batch, depth, channels, height, width).transpose(1, 2)
    else:
        out = _bilinear(images.reshape(batch, channels * depth, height, width), grid[:, 0]).view(images.shape)
    if not bool(params.through_plane.any()):
        return out

    row = matrix[:, 0]
    start = torch.zeros(batch, height, 2, dtype=torch.float64)
    start[:, :, 0] = row[:, 1:2] * _centred(height) + row[:, 3:]
    still = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(batch, 2)  # w stays
    turned = torch.stack([torch.stack([row[:, 0], row[:, 2]], dim=1), still], dim=1)
    grid = _plane_grid(start, turned, (depth, width), images.device)
    planes = out.permute(0, 3, 1, 2, 4).reshape(batch * height, channels, depth, width)
    sampled = _bilinear(planes, grid.flatten(0, 1))
    return sampled.view(batch, height, channels, depth, width).permute(0, 2, 3, 1, 4)


def _plane_grid(
    start: torch.Tensor,
    slopes: torch.Tensor,
    sizes: tuple[int, int],
    device: torch.device,
    control: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write the sampling grids of the planes of a batch as two matrix products.

    In plane m, coordinate k of pixel (i, j), counted from the centre, is ``start[b, m, k] + slopes[b, k, 0] * i +
    slopes[b, k, 1] * j`` plus the displacement of the control points: a sum of few products of a function of i and one
    of j. With the functions as the columns of a matrix, the grid comes out in the layout that sampling reads, and
    little is written beside it.

    Parameters
    ----------
    start : torch.Tensor
        ``(b, M, 2)``.
    slopes : torch.Tensor
        ``(b, 2, 2)`` or more along the last axis.
    sizes : (int, int)
        Pixels of a plane along its two axes.
    device : torch.device
        Where the grid is wanted.
    control : torch.Tensor, optional
        ``(b, 2, ...)`` control points of M planes.

    Returns
    -------
    torch.Tensor
        float32 ``(b, M, *sizes, 2)`` as `grid_sample` takes it.
    """
    batch, planes, _ = start.shape
    rows, columns = (
        torch.cat([torch.ones(size, 1, dtype=torch.float64), _centred(size)[:, None]], dim=1) for size in sizes
    )
    if control is not None:
        rows = torch.cat([rows, _spline_basis(sizes[0], _INTERVALS[1])], dim=1)
        columns = torch.cat([columns, _spline_basis(sizes[1], _INTERVALS[2])], dim=1)
    core = torch.zeros(batch, planes, rows.shape[1], 2, columns.shape[1], dtype=torch.float64)
    core[:, :, 0, :, 0] = start
    core[:, :, 1, :, 0] = slopes[:, None, :, 0]
    core[:, :, 0, :, 1] = slopes[:, None, :, 1]
    if control is not None:
        core[:, :, 2:, :, 2:] = torch.einsum("tx,bkxyz->btykz", _spline_basis(planes, _INTERVALS[0]), control.double())
    core *= torch.tensor([2.0 / sizes[0], 2.0 / sizes[1]], dtype=torch.float64)[:, None]  # to [-1, 1] at the borders
    spread = torch.zeros(2, columns.shape[1], sizes[1], 2, dtype=torch.float64)
    spread[0, :, :, 1] = spread[1, :, :, 0] = columns.T  # grid_sample takes the last axis first

    # On CUDA a float32 product may be rounded to ten bits, which moves voxels; a float64 product is not.
    dtype = torch.float64 if device.type == "cuda" else torch.float32
    core, rows, spread = (part.to(device=device, dtype=dtype) for part in (core.flatten(3), rows, spread.flatten(2)))
    grid = torch.matmul(rows, core) @ spread.flatten(0, 1)
    return grid.to(torch.float32).view(batch, planes, *sizes, 2)


def _bilinear(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def _centred(length: int) -> torch.Tensor:
    return torch.arange(length, dtype=torch.float64) - (length - 1) / 2


def _spline_basis(length: int, intervals: int) -> torch.Tensor:
    """Return ``(length, intervals + 3)`` float64: weights of cubic B-spline control points at each voxel."""
    place = (torch.arange(length, dtype=torch.float64) + 0.5) / length * intervals
    first = place.floor().clamp_max(intervals - 1)
    u = place - first
    weights = torch.stack(
        [(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], dim=1
    ) / 6  # fmt: skip
    basis = torch.zeros(length, intervals + 3, dtype=torch.float64)
    return basis.scatter_(1, first.long()[:, None] + torch.arange(4), weights)
