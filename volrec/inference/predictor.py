"""One network, or several, applied to whole studies of any length in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig, StreamsConfig
from volrec.data.entries import StoredVolume, study_quantiles
from volrec.data.streams import add_streams, read_streams
from volrec.errors import ConfigError, DataError
from volrec.inference.consensus import check_consensus, inverse_link, link, pool
from volrec.inference.inputs import make_input
from volrec.networks.base import SequenceNetwork, SlicewiseNetwork
from volrec.transforms.clips import protocol_clips
from volrec.transforms.flips import AXES

__all__ = ["Ensemble", "Predictor", "StudyScore", "best_device"]

BUDGET = 1 << 20
"""Input voxels (B·C·T'·H·W) of one pass through a network; 64 channels of that size are 270 MB in float32."""
BUDGET_GPU = 1 << 23
"""The same on a GPU, which needs larger batches to be busy."""

Precision = Literal["auto", "32", "16", "bf16"]


@dataclass(frozen=True, eq=False)
class StudyScore:
    """What one study got.

    Attributes
    ----------
    scores : ndarray
        (K',) float64: probability of the positive class (binary, one value), of each class (multiclass; multihead: of
        each class of each head), of each label (multilabel), or values in the targets' own units (regression).
    logits : ndarray
        (K',) float64: the same before sigmoid or softmax; standardised values (regression).
    clips : int
        Clips that were pooled.
    per_slice : ndarray, optional
        (T, K') float64: scores of every slice alone, NaN for slices in no clip; of slicewise networks, when asked for.
    members : tuple of StudyScore
        What each member of an `Ensemble` said, in their order; empty where there was one predictor.
    """

    scores: np.ndarray
    logits: np.ndarray
    clips: int
    per_slice: np.ndarray | None = None
    members: tuple[StudyScore, ...] = ()


class Predictor:
    """Score whole studies with one network by the protocol.

    The network is put in evaluation mode for each study and left as it was; nothing is drawn. A slicewise network
    encodes each slice once, however clips overlap.

    Parameters
    ----------
    network : nn.Module
        (B, C, T', H, W) to logits (B, K).
    intensity : IntensityConfig
        How voxel values become network input.
    sampling : SamplingConfig
        Clip length, stride, and the mode and snippet length it was trained with.
    protocol : ProtocolConfig
        Clips, overlap, snippets, consensus, stage, flips.
    task : str
        ``binary``, ``multiclass``, ``multilabel``, ``multihead`` or ``regression``.
    device : torch device or str, optional
        Where to compute (the network is moved there); None: where it is.
    precision : {"32", "auto", "16", "bf16"}
        Arithmetic; ``auto`` is mixed on CUDA and float32 elsewhere.
    regression_scaling : mapping, optional
        ``mean`` and ``std`` (K,) of the training targets, undone in the scores.
    streams : StreamsConfig, optional
        What the network reads; None: the slices alone.
    heads : sequence of int
        Outputs of each head of a multihead task.

    Raises
    ------
    ConfigError
        For a consensus that the task cannot have.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        intensity: IntensityConfig,
        sampling: SamplingConfig,
        protocol: ProtocolConfig,
        task: str,
        device: torch.device | str | None = None,
        precision: Precision = "32",
        regression_scaling: Mapping[str, Sequence[float]] | None = None,
        streams: StreamsConfig | None = None,
        heads: Sequence[int] = (),
    ) -> None:
        check_consensus(protocol.consensus, task=task, stage=protocol.stage)
        self.network = network if device is None else network.to(device)
        self.intensity = intensity
        self.streams = streams or StreamsConfig()
        self.input = make_input(intensity, streams)
        self.sampling = sampling
        self.protocol = protocol
        self.task = task
        self.heads = tuple(heads)
        self.precision = precision
        self.scaling = None
        if regression_scaling is not None:
            mean, std = (np.asarray(regression_scaling[key], dtype=np.float64).reshape(-1) for key in ("mean", "std"))
            self.scaling = mean, std

    @property
    def device(self) -> torch.device:
        """Where the network is now."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    def score(
        self,
        volume: StoredVolume | np.ndarray | Tensor,
        quantiles: np.ndarray | Tensor | None = None,
        *,
        per_slice: bool = False,
    ) -> StudyScore:
        """Score one study.

        Parameters
        ----------
        volume : StoredVolume, array or tensor
            (T, H, W), or (1, T, H, W). Of a `StoredVolume` only the slices of the clips at hand are read. Displacement
            fields that the network reads and the volume does not bring are computed (of an array: in voxels).
        quantiles : array or tensor, optional
            (1001,) of the study; None takes the stored ones, or those of the array.
        per_slice : bool
            Add the score of every slice alone (slicewise networks).

        Raises
        ------
        DataError
            When the volume is no (T, H, W), or the network gives a value that is no number.
        ConfigError
            When the network cannot read clips of this size.
        """
        stored = self.complete(volume, quantiles)
        clips = self._clips(stored)
        slices: np.ndarray | None = None
        with _evaluating(self.network), torch.inference_mode(), self._autocast():
            if isinstance(self.network, SlicewiseNetwork):
                outputs, slices = self._by_slice(self.network, stored, clips, per_slice=per_slice)
            else:
                outputs = self._by_clip(stored, clips)
        _check_finite(outputs)
        scores, logits = pool(
            outputs,
            task=self.task,
            consensus=self.protocol.consensus,
            stage=self.protocol.stage,
            heads=self.heads,
        )
        if slices is not None:
            slices = self._unscaled(link(slices, self.task, heads=self.heads))
        return StudyScore(self._unscaled(scores), logits, len(clips), slices)

    def features(
        self, volume: StoredVolume | np.ndarray | Tensor, quantiles: np.ndarray | Tensor | None = None
    ) -> np.ndarray:
        """Return what enters the network's last layer, the mean over the clips of the protocol and their mirrors.

        Parameters
        ----------
        volume, quantiles
            As for `score`.

        Returns
        -------
        ndarray
            (F,) float64: of each clip ``forward_head(forward_features(clip), pre_logits=True)``.

        Raises
        ------
        DataError, ConfigError
            As `score`; ConfigError also for a network that is none of the zoo's kind.
        """
        network = self.network
        if not isinstance(network, SequenceNetwork):
            raise ConfigError(
                f"{type(network).__name__} does not say what enters its last layer.",
                remedy="Derive it from volrec.networks.SequenceNetwork.",
                code="no-features",
            )
        stored = self.complete(volume, quantiles)
        clips = self._clips(stored)
        with _evaluating(network), torch.inference_mode(), self._autocast():
            if isinstance(network, SlicewiseNetwork):
                outputs, _ = self._by_slice(network, stored, clips, per_slice=False, pre_logits=True)
            else:
                outputs = self._by_clip(stored, clips, pre_logits=True)
        _check_finite(outputs)
        return np.asarray(outputs.mean(axis=(0, 1)))

    def complete(
        self, volume: StoredVolume | np.ndarray | Tensor, quantiles: np.ndarray | Tensor | None = None
    ) -> StoredVolume:
        """Return a study in the form that slices are read from, with the fields that the network reads."""
        stored = _stored(volume, quantiles)
        if self.streams.field is not None and stored.fields is None:
            stored = add_streams(stored, self.streams, self.intensity)
        return stored

    def _unscaled(self, scores: np.ndarray) -> np.ndarray:
        return scores if self.scaling is None else scores * self.scaling[1] + self.scaling[0]

    def _clips(self, volume: StoredVolume) -> list[np.ndarray]:
        """Return the slices (T',) of every clip of the protocol."""
        return protocol_clips(
            volume.shape[0],
            clip_length=self.sampling.clip_length,
            stride=self.sampling.stride,
            clips=self.protocol.clips,
            overlap=self.protocol.overlap,
            mode=self.sampling.train,
            snippet_length=self.sampling.snippet_length,
            snippets=self.protocol.snippets,
        )

    def _by_clip(self, volume: StoredVolume, clips: list[np.ndarray], *, pre_logits: bool = False) -> np.ndarray:
        """Return the logits (clips, views, K) of a network that reads clips, or what enters its last layer."""
        run = partial(_before_logits, self.network) if pre_logits else self.network
        views = self._views()
        outputs: list[np.ndarray] = []
        for part in _portions(clips, self._fitting(len(clips[0]) * volume.shape[1] * volume.shape[2])):
            images = self._input(volume, part)
            logits = [run(self._seen(images, axes)) for axes in views]
            outputs.append(_to_numpy(torch.stack(logits, dim=1)))
        return np.concatenate(outputs)

    def _by_slice(
        self,
        network: SlicewiseNetwork,
        volume: StoredVolume,
        clips: list[np.ndarray],
        *,
        per_slice: bool,
        pre_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the logits (clips, views, K), and of each slice alone (T, K), of a slicewise network.

        With `pre_logits` what enters its last layer in place of the former.
        """
        length, shape = len(clips[0]), volume.shape
        network.check_input(torch.empty((1, self.input.channels, length, *shape[1:]), device="meta"))
        wanted = np.unique(np.concatenate(clips))
        # A mirror along T changes the order of the features only; one in plane has to be encoded anew.
        in_plane = sorted({tuple(axis for axis in axes if axis != AXES["T"]) for axes in self._views()})
        encoded: dict[tuple[int, ...], list[Tensor]] = {axes: [] for axes in in_plane}
        # Never a slice by itself: convolutions of a single image take another path, and scores would depend on it.
        size = max(2, self._fitting(shape[1] * shape[2]))
        for part in np.array_split(wanted, max(1, len(wanted) // size)):
            images = self._input(volume, [part])[0].transpose(0, 1)
            for axes in in_plane:
                encoded[axes].append(network.encode_slices(self.input.mirror(images[:, :, None], axes)[:, :, 0]))
        features = {axes: torch.cat(parts) for axes, parts in encoded.items()}
        places = torch.as_tensor(np.searchsorted(wanted, np.stack(clips)), device=self.device)
        outputs = []
        for axes in self._views():
            own = features[tuple(axis for axis in axes if axis != AXES["T"])]
            order = places.flip(1) if AXES["T"] in axes else places
            rows = [network.aggregate(own[clip][None], pre_logits=pre_logits) for clip in order]
            outputs.append(_to_numpy(torch.cat(rows)))
        slices = None
        if per_slice:
            # As many at a time as a clip has: a network that reads windows repeats each slice to fill one.
            parts = features[()].split(length)
            slices = np.full((shape[0], outputs[0].shape[1]), np.nan)
            slices[wanted] = np.concatenate([_to_numpy(network.slice_logits(part[None])[0]) for part in parts])
        return np.stack(outputs, axis=1), slices

    def _input(self, volume: StoredVolume, clips: Sequence[np.ndarray]) -> Tensor:
        """Return network input (B, C, T', H, W) of clips (T',) of a study."""
        read = [read_streams(volume, self.streams, clip) for clip in clips]
        batch = {name: torch.from_numpy(np.stack([one[name] for one in read])).to(self.device) for name in read[0]}
        table = torch.as_tensor(np.asarray(volume.quantiles, dtype=np.float32)).to(self.device)
        batch["quantiles"] = table[None].expand(len(clips), -1)
        return self.input.finish(self.input(batch), batch)

    def _seen(self, images: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return input (B, C, T', H, W) mirrored along some axes, displacements turned with it."""
        along = images.flip(AXES["T"]) if AXES["T"] in axes else images
        return self.input.mirror(along, [axis for axis in axes if axis != AXES["T"]])

    def _fitting(self, voxels: int) -> int:
        budget = BUDGET if self.device.type == "cpu" else BUDGET_GPU
        return max(1, budget // (voxels * self.input.channels))

    def _views(self) -> list[tuple[int, ...]]:
        """Return the axes mirrored in each view, the unchanged one first."""
        axes = [AXES[axis] for axis in sorted(set(self.protocol.flips), key=list(AXES).index)]
        return [chosen for size in range(len(axes) + 1) for chosen in combinations(axes, size)]

    def _autocast(self) -> Any:
        kind = self.device.type
        if self.precision == "32" or (self.precision == "auto" and kind != "cuda"):
            return nullcontext()
        half = torch.float16 if self.precision == "16" else torch.bfloat16
        if self.precision == "auto" and not torch.cuda.is_bf16_supported():
            half = torch.float16
        return torch.autocast(kind, dtype=half)


class Ensemble:
    """Several predictors as one: the mean of their scores.

    Parameters
    ----------
    members : sequence of Predictor
        Of the same task and outputs.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        if not members:
            raise ConfigError("an ensemble needs at least one member, got none.", code="ensemble")
        self.members = tuple(members)
        self.task = members[0].task

    def score(
        self,
        volume: StoredVolume | np.ndarray | Tensor,
        quantiles: np.ndarray | Tensor | None = None,
        *,
        per_slice: bool = False,
    ) -> StudyScore:
        """Score one study with each member; see `Predictor.score`."""
        first = self.members[0]
        if first.streams.field is not None:  # computed once for all members
            volume, quantiles = first.complete(volume, quantiles), None
        found = [member.score(volume, quantiles, per_slice=per_slice) for member in self.members]
        if len(found) == 1:
            return found[0]
        scores = np.mean([one.scores for one in found], axis=0)
        regression = self.task == "regression"
        logits = np.mean([one.logits for one in found], axis=0) if regression else inverse_link(scores, self.task)
        slices = [one.per_slice for one in found if one.per_slice is not None]
        per_slice_mean = np.mean(slices, axis=0) if slices else None
        return StudyScore(scores, logits, found[0].clips, per_slice_mean, tuple(found))


def best_device(accelerator: str = "auto") -> torch.device:
    """Return the device for scoring: as asked for, or the best there is.

    Raises
    ------
    ConfigError
        When the accelerator that is asked for is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if accelerator == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    kind = torch.device(accelerator).type
    if not there.get(kind, True):
        raise ConfigError(
            f"there is no {kind} device here.",
            remedy="Choose cpu or auto.",
            where="trainer.accelerator",
            code="no-device",
        )
    return torch.device(accelerator)


def _stored(volume: StoredVolume | np.ndarray | Tensor, quantiles: np.ndarray | Tensor | None) -> StoredVolume:
    """Return the study in the form that slices are read from."""
    if quantiles is not None:
        given = quantiles.detach().cpu().numpy() if isinstance(quantiles, Tensor) else np.asarray(quantiles)
        quantiles = given.reshape(-1)
    if isinstance(volume, StoredVolume):
        return volume if quantiles is None else replace(volume, quantiles=quantiles)
    array = volume.detach().cpu().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not array.size:
        raise DataError(f"a study is (T, H, W), got an array of shape {array.shape}.", code="shape")
    if array.dtype != np.int16:
        array = array.astype(np.float32, copy=False)
    return StoredVolume(array, np.eye(4), study_quantiles(array) if quantiles is None else quantiles)


def _before_logits(network: Any, x: Tensor) -> Tensor:
    """Return what enters the last layer (B, F) for clips (B, C, T', H, W)."""
    network.check_input(x)
    return network.forward_head(network.forward_features(x), pre_logits=True)


def _check_finite(outputs: np.ndarray) -> None:
    if not np.isfinite(outputs).all():
        raise DataError(
            "the network gives values that are no numbers (NaN or infinite).",
            remedy="Look at the study's intensities, or score with precision 32.",
            code="not-finite",
        )


def _portions(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for the block, and every part of it back as it was (some may be frozen)."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
