"""From frames and fields of a video to what a network reads, step by step as the protocol of a stream says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from volrec.benchmarks.footage import Footage
from volrec.benchmarks.opencv import load_opencv
from volrec.benchmarks.protocol import stream_channels
from volrec.benchmarks.sets import Video
from volrec.config import MotionInput, StreamProtocol
from volrec.errors import ConfigError
from volrec.transforms.flow_fields import stack_fields

__all__ = ["RawClip", "StreamReader"]

_INTERPOLATION = {"bilinear": "INTER_LINEAR", "bicubic": "INTER_CUBIC", "area": "INTER_AREA"}
"""Names in OpenCV."""
RawClip = dict[str, np.ndarray]
"""What was read of a clip: ``rgb`` (T, H, W, 3) uint8, ``motion`` (T, C, H, W) float32 in pixels or grey values."""
CHUNK = 32
"""Frames or fields that are held at their full size at a time."""


class StreamReader:
    """Read clips of videos, and turn them into the input of the network of one stream.

    Parameters
    ----------
    stream : StreamProtocol
        What is read, and how values become input.
    """

    def __init__(self, stream: StreamProtocol) -> None:
        self.stream = stream
        self.frames, self.motion = stream.frames, stream.motion
        self.motion_kind = next((kind for kind in stream.reads if kind != "rgb"), None)
        if sum(kind != "rgb" for kind in stream.reads) > 1:
            raise ConfigError(
                f"stream '{stream.name}' reads {', '.join(stream.reads)}: a stream reads one kind of motion.",
                remedy="Make a stream of each.",
                where="streams.reads",
                code="protocol",
            )

    @property
    def field(self) -> str | None:
        """Which extracted fields are read: ``"flow"``, ``"warped"`` or none."""
        return self.motion_kind if self.motion_kind in ("flow", "warped") else None

    @property
    def appearance(self) -> int:
        """Channels of appearance, the first ones."""
        return 3 if "rgb" in self.stream.reads else 0

    @property
    def channels(self) -> int:
        """Channels of a frame as the network reads it."""
        return stream_channels(self.stream)

    def open(self, video: Video, *, decoder: str, extracted: str | None) -> Footage:
        """Open a video for this stream."""
        return Footage(
            video,
            decoder=decoder,
            extracted=extracted,
            frame_rate=self.frames.frame_rate,
            fields=self.field,
            frames="rgb" in self.stream.reads or self.motion_kind == "difference",
        )

    def read(self, footage: Footage, indices: np.ndarray) -> RawClip:
        """Read frames `indices` (T,) and their motion, at the protocol's size, uncropped.

        Past the end of the video the last field is repeated, and nothing changes any more.
        """
        found: RawClip = {}
        # A video is read forwards, and nothing twice.
        wanted, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if "rgb" in self.stream.reads:
            found["rgb"] = self._shown(footage, wanted)
        if self.motion_kind == "difference":
            found["motion"] = self._differences(footage, wanted)
        elif self.motion_kind is not None:
            size = found["rgb"].shape[1:3] if "rgb" in found else self._target(footage.field_size)
            found["motion"] = self._stacked(footage, wanted, size)
        if len(back) == len(wanted) and (np.diff(back) == 1).all():
            return found
        return {name: values[back] for name, values in found.items()}

    def size(self, raw: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Return height and width of what was read."""
        height, width = raw["rgb"].shape[1:3] if "rgb" in raw else raw["motion"].shape[-2:]
        return int(height), int(width)

    def crop_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return height and width of what the network sees of frames of `size`."""
        crop = self.frames.crop
        if crop is None:
            return int(size[0]), int(size[1])
        return (crop, crop) if isinstance(crop, int) else (int(crop[0]), int(crop[1]))

    def cut(self, raw: Mapping[str, np.ndarray], box: Sequence[int], *, mirrored: bool) -> RawClip:
        """Cut ``(top, left, height, width)`` out, at the size that the network sees, and mirror it along W.

        Displacements keep their values when a crop is resized, as in TSN; those along x change their sign in a mirror.
        """
        top, left, height, width = box
        target = self.crop_size((height, width))
        cut: RawClip = {}
        for name, axes in (("rgb", (1, 2)), ("motion", (2, 3))):
            if name not in raw:
                continue
            place: list[slice] = [slice(None)] * raw[name].ndim
            place[axes[0]], place[axes[1]] = slice(top, top + height), slice(left, left + width)
            part = raw[name][tuple(place)]
            part = self._scaled(part, target, last=name == "rgb")
            if mirrored:
                part = np.flip(part, axis=axes[1])
                if name == "motion" and self.motion_kind != "difference":
                    part = part.copy()
                    part[:, ::2] *= -1
            cut[name] = np.ascontiguousarray(part)
        return cut

    def finish(self, cut: Mapping[str, Tensor]) -> Tensor:
        """Return network input (B, C, T, h, w) float32 of cut clips.

        Parameters
        ----------
        cut : mapping
            ``rgb`` (B, T, h, w, 3) uint8, ``motion`` (B, T, C, h, w) float32.
        """
        parts = []
        if "rgb" in cut:
            shown = cut["rgb"].permute(0, 4, 1, 2, 3).float()
            if self.frames.order == "bgr":
                shown = shown.flip(1)
            mean, scale = (self._a_channel(values, shown) for values in (self.frames.mean, self.frames.scale))
            parts.append((shown - mean) * scale)
        if "motion" in cut:
            parts.append(self._motion(cut["motion"]))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _motion(self, motion: Tensor) -> Tensor:
        settings = self._settings
        if self.motion_kind == "difference":
            return motion.transpose(1, 2) * settings.gain
        bound = settings.bound
        fields = motion.clamp(-bound, bound)
        if settings.eight_bit:
            # 256 levels, the middle one (128) for no displacement, as flow pictures have them.
            fields = ((fields * (127.5 / bound) + 128).round().clamp(0, 255) - 128) * (bound / 127.5)
        if settings.subtract_mean:
            fields = fields - fields.mean((-2, -1), keepdim=True)
        if settings.third != "none":
            pairs = fields.unflatten(2, (-1, 2))
            third = pairs.norm(dim=3, keepdim=True)
            third = third if settings.third == "magnitude" else torch.zeros_like(third)
            fields = torch.cat([pairs, third], dim=3).flatten(2, 3)
        return fields.transpose(1, 2) * settings.gain

    @property
    def _settings(self) -> MotionInput:
        if self.motion is None:
            raise ConfigError(f"stream '{self.stream.name}' reads no motion.", where="streams.motion", code="protocol")
        return self.motion

    def _shown(self, footage: Footage, wanted: np.ndarray) -> np.ndarray:
        """Return frames (N, H, W, 3) uint8, resized."""
        parts = (footage.frames(wanted[start : start + CHUNK]) for start in range(0, len(wanted), CHUNK))
        return np.concatenate([self._scaled(part, self._target(part.shape[1:3]), last=True) for part in parts])

    def _differences(self, footage: Footage, wanted: np.ndarray) -> np.ndarray:
        """Return differences (T, 3 L, H, W) of each of frames `wanted` and the L after it to the next one."""
        stack = self._settings.stack
        places = np.minimum(wanted[:, None] + np.arange(stack + 1), footage.count - 1)
        unique, back = np.unique(places, return_inverse=True)
        back = back.reshape(places.shape)
        shown = self._shown(footage, unique).transpose(0, 3, 1, 2)
        if self.frames.order == "bgr":
            shown = shown[:, ::-1]
        out = np.empty((len(wanted), 3 * stack, *shown.shape[-2:]), np.float32)
        for number in range(stack):
            np.subtract(
                shown[back[:, number + 1]],
                shown[back[:, number]],
                out=out[:, 3 * number : 3 * number + 3],
                dtype=np.float32,
            )
        return out

    def _stacked(self, footage: Footage, wanted: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """Return stacks (T, 2 L, H, W) of the fields of frames `wanted` (rising), in pixels of height and width `size`.

        Fields are resized before they are stacked: each is in up to L stacks.
        """
        settings = self._settings
        stack, last = settings.stack, footage.count - 2
        out = np.zeros((len(wanted), 2 * stack, *size), np.float32)
        if last < 0:
            return out
        first = -(stack // 2) if settings.order in ("centred", "bidirectional") else 0
        done = 0
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > stack) + 1):  # frames whose stacks overlap
            low, high = np.clip([run[0] + first, run[-1] + first + stack - 1], 0, last).tolist()
            fields = np.concatenate(
                [
                    self._fitted(footage.fields(start, min(start + CHUNK, high + 1)), size)
                    for start in range(low, high + 1, CHUNK)
                ]
            )
            found = stack_fields(fields, run - low, length=stack, order=settings.order, bound=settings.bound)
            out[done : done + len(run)] = found.swapaxes(0, 1)
            done += len(run)
        return out

    def _fitted(self, fields: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """Return fields (N, 2, h, w) at another height and width, in pixels of that size."""
        height, width = fields.shape[-2:]
        if (height, width) == tuple(size):
            return fields
        ratio = np.array([size[1] / width, size[0] / height], dtype=np.float32)
        return self._scaled(fields, size, last=False) * ratio[:, None, None]

    def _target(self, size: Sequence[int]) -> tuple[int, int]:
        """Return height and width after the resize."""
        height, width = int(size[0]), int(size[1])
        wanted = self.frames.resize
        if wanted is None:
            return height, width
        if isinstance(wanted, int):
            factor = wanted / min(height, width)
            return max(wanted, round(height * factor)), max(wanted, round(width * factor))
        return int(wanted[0]), int(wanted[1])

    def _scaled(self, images: np.ndarray, target: Sequence[int], *, last: bool) -> np.ndarray:
        """Return images (N, H, W, 3) or (with `last` False) planes (N, C, H, W) at another height and width."""
        planes = images if last else images.reshape(-1, *images.shape[-2:])
        height, width = target
        if planes.shape[1:3] == (height, width):
            return images
        cv2 = load_opencv()
        method = getattr(cv2, _INTERPOLATION[self.frames.interpolation])
        out = np.empty((len(planes), height, width, *planes.shape[3:]), dtype=images.dtype)
        for image, into in zip(planes, out, strict=True):
            cv2.resize(np.ascontiguousarray(image), (width, height), dst=into, interpolation=method)
        return out if last else out.reshape(*images.shape[:2], height, width)

    def _a_channel(self, values: Sequence[float], like: Tensor) -> Tensor:
        if len(values) not in (1, 3):
            raise ConfigError(
                f"mean and scale have one number, or one a channel; got {list(values)}.",
                remedy="Give 1 or 3 numbers.",
                where="streams.frames",
                code="protocol",
            )
        return torch.tensor(list(values), device=like.device)[None, :, None, None, None]
