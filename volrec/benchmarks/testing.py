"""One network on whole videos, as the test of its protocol says: clips, crops, what is averaged and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from volrec.benchmarks.footage import Footage
from volrec.benchmarks.reading import RawClip, StreamReader
from volrec.benchmarks.views import clip_indices, crop_boxes, reach
from volrec.config import StreamProtocol, TestViews
from volrec.errors import DataError
from volrec.inference.consensus import sparsity
from volrec.inference.predictor import BUDGET, BUDGET_GPU
from volrec.networks.base import SequenceNetwork, SlicewiseNetwork

__all__ = ["StreamScorer", "VideoScore", "join_views"]

FRAMES = 96
"""Frames of three channels that are held decoded at a time, where a clip is not longer; fewer of more channels."""


@dataclass(frozen=True, eq=False)
class VideoScore:
    """What a network says of one video.

    Attributes
    ----------
    logits, probabilities : ndarray
        (K,) float64 each, joined over crops and clips at either stage.
    clips : ndarray
        (clips, K) float64: scores of each clip at the stage of the protocol, its crops joined.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    clips: np.ndarray


class StreamScorer:
    """Score videos with the network of a stream.

    Parameters
    ----------
    network : SequenceNetwork
        (B, C, T, H, W) to logits (B, K); put in evaluation mode here.
    stream : StreamProtocol
        What it reads and how it is tested.
    device : torch device or str
        Where to compute.
    seed : int
        Of clips that are drawn; each video has its own draw, whatever was scored before.
    """

    encodes_frames = True
    """Whether overlapping clips may share the encoding of their frames, where the network allows it."""

    def __init__(
        self, network: SequenceNetwork, stream: StreamProtocol, *, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.reader = StreamReader(stream)
        self.views: TestViews = stream.test
        self.seed = seed

    def indices(self, footage: Footage) -> np.ndarray:
        """Return the frames (clips, T) of every clip; of joint snippets one clip side by side."""
        before, after = reach(self.reader.stream)
        return clip_indices(
            footage.count,
            self.views,
            before=before,
            extra=after,
            least=self.network.smallest[0],
            seed=self.seed,
            name=footage.video.name,
        )

    @torch.inference_mode()
    def score(self, footage: Footage) -> VideoScore:
        """Score one video.

        Raises
        ------
        DataError
            It cannot be read, or the network gives a value that is no number.
        ConfigError
            The network cannot read clips of this size.
        """
        outputs = self.outputs(footage)
        if not np.isfinite(outputs).all():
            raise DataError(
                "the network gives values that are no numbers (NaN or infinite) for it.",
                remedy="Score with precision 32, and look at the video.",
                where=footage.video.path,
                code="not-finite",
            )
        return join_views(outputs, self.views)

    def run(self, images: Tensor) -> Tensor:
        """Return what is joined over views, (B, K), of clips (B, C, T, H, W)."""
        return self.network(images)

    def outputs(self, footage: Footage) -> np.ndarray:
        """Return the logits (clips, crops, K) float64 of every view."""
        clips = self.indices(footage)
        network = self.network
        # Where clips overlap, a network that encodes frames one by one encodes each of them once.
        if self.encodes_frames and isinstance(network, SlicewiseNetwork) and len(np.unique(clips)) < 0.8 * clips.size:
            return self._by_frame(network, footage, clips)
        window = _Window(self.reader, footage)
        rows = [self._portion(window, part) for part in _portions(clips, self._held)]
        return np.concatenate(rows)

    @property
    def _held(self) -> int:
        """Frames that are held at a time."""
        return max(8, min(FRAMES, 3 * FRAMES // self.reader.channels))

    def _portion(self, window: _Window, clips: np.ndarray) -> np.ndarray:
        """Return the logits (clips, crops, K) of a few clips."""
        wanted, back = np.unique(clips, return_inverse=True)
        raw = window.take(wanted)
        boxes = self._boxes(raw)
        rows: list[Tensor] = []
        views = self._views(raw, back.reshape(clips.shape), boxes)
        for batch in _batches(views, self._fitting(clips.shape[1], raw)):
            rows.append(self.run(self._input(batch)).float().cpu())
        return torch.cat(rows).double().numpy().reshape(len(clips), len(boxes), -1)

    def _views(
        self, raw: RawClip, clips: np.ndarray, boxes: Sequence[tuple[int, int, int, int, bool]]
    ) -> Iterator[RawClip]:
        for clip in clips:
            whole = {name: values[clip] for name, values in raw.items()}
            for box in boxes:
                yield self._cut(whole, box)

    def _by_frame(self, network: SlicewiseNetwork, footage: Footage, clips: np.ndarray) -> np.ndarray:
        """Return the logits (clips, crops, K) with every frame encoded once a crop."""
        wanted, back = np.unique(clips, return_inverse=True)
        back = back.reshape(clips.shape)
        encoded: list[list[Tensor]] = []
        for part in np.array_split(wanted, -(-len(wanted) // self._held)):
            raw = self.reader.read(footage, part)
            boxes = self._boxes(raw)
            encoded = encoded or [[] for _ in boxes]
            size = max(2, self._fitting(1, raw))
            for number, box in enumerate(boxes):
                cut = self._cut(raw, box)
                # Never a frame by itself: convolutions of a single image take another path.
                for some in np.array_split(np.arange(len(part)), max(1, len(part) // size)):
                    images = self._input([{name: values[some] for name, values in cut.items()}])
                    # A clip is checked as it would be as a whole.
                    network.check_input(images[:, :, :1].expand(-1, -1, clips.shape[1], -1, -1))
                    encoded[number].append(network.encode_slices(images[0].transpose(0, 1)))
        columns = []
        for parts in encoded:
            features = torch.cat(parts)
            rows = [network.aggregate(features[torch.as_tensor(clip)][None]) for clip in back]
            columns.append(torch.cat(rows).float().cpu())
        return torch.stack(columns, dim=1).double().numpy()

    def _boxes(self, raw: RawClip) -> list[tuple[int, int, int, int, bool]]:
        size = self.reader.size(raw)
        height, width = self.reader.crop_size(size)
        return [
            (top, left, height, width, mirrored)
            for top, left, mirrored in crop_boxes(self.views.crops, size, (height, width))
        ]

    def _cut(self, raw: RawClip, box: tuple[int, int, int, int, bool]) -> RawClip:
        return self.reader.cut(raw, box[:4], mirrored=box[4])

    def _input(self, cut: Sequence[RawClip]) -> Tensor:
        batch = {name: torch.from_numpy(np.stack([one[name] for one in cut])).to(self.device) for name in cut[0]}
        return self.reader.finish(batch)

    def _fitting(self, frames: int, raw: RawClip) -> int:
        """Return how many views of so many frames are passed through the network at a time."""
        height, width = self.reader.crop_size(self.reader.size(raw))
        budget = BUDGET if self.device.type == "cpu" else BUDGET_GPU
        return max(1, budget // (frames * height * width * self.reader.channels))


def join_views(outputs: np.ndarray, views: TestViews) -> VideoScore:
    """Join the logits of all views of a video.

    Parameters
    ----------
    outputs : ndarray
        (clips, crops, K) float64.
    views : TestViews
        How: over crops the mean, or the mean weighted by the sparsity concentration index of each (FSTCN, Sun et al.
        2015); over clips mean or maximum.

    Returns
    -------
    VideoScore
        Both stages are joined by the same rule; weights of the index are those of the probabilities.
    """
    probabilities = softmax(outputs, axis=-1)
    weights = np.ones(outputs.shape[:2])
    if views.crop_consensus == "sci":
        weights = sparsity(probabilities)
        # Crops that are all uniform carry no weight; their plain mean is uniform too.
        weights[weights.sum(axis=1) <= np.finfo(np.float64).tiny] = 1.0
    weights = weights / weights.sum(axis=1, keepdims=True)
    joined = []
    for values in (outputs, probabilities):
        clips = np.einsum("cv,cvk->ck", weights, values)
        joined.append((clips, clips.mean(axis=0) if views.clip_consensus == "mean" else clips.max(axis=0)))
    return VideoScore(joined[0][1], joined[1][1], joined[0 if views.stage == "logits" else 1][0])


class _Window:
    """The frames of a video that clips in turn ask for; those that the next clips ask for again are kept."""

    def __init__(self, reader: StreamReader, footage: Footage) -> None:
        self._reader, self._footage = reader, footage
        self._places = np.empty(0, np.int64)
        self._raw: RawClip = {}

    def take(self, wanted: np.ndarray) -> RawClip:
        """Return what was read of frames `wanted` (rising)."""
        kept = np.isin(self._places, wanted)
        lacking = np.setdiff1d(wanted, self._places)
        parts = [{name: values[kept] for name, values in self._raw.items()}] if kept.any() else []
        self._raw = {}
        if len(lacking):
            parts.append(self._reader.read(self._footage, lacking))
        if len(parts) > 1:
            order = np.argsort(np.concatenate([self._places[kept], lacking]))
            parts = [{name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}]
        self._places, self._raw = wanted, parts[0]
        return self._raw


def _portions(clips: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Divide clips (N, T) into runs of no more different frames than `most`, or one and a half clips if that is more.

    Runs of long clips that overlap are read on from where the last one ended.
    """
    most = max(most, clips.shape[1] * 3 // 2)
    start, seen = 0, set(clips[0].tolist())
    for number in range(1, len(clips)):
        more = seen.union(clips[number].tolist())
        if len(more) > most:
            yield clips[start:number]
            start, more = number, set(clips[number].tolist())
        seen = more
    yield clips[start:]


def _batches(views: Iterator[RawClip], size: int) -> Iterator[list[RawClip]]:
    batch: list[RawClip] = []
    for view in views:
        batch.append(view)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
