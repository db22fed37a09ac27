"""One network, or several, applied to whole studies of any length in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig, StreamsConfig
from volrec.data.entries import StoredVolume, study_quantiles
from volrec.data.streams import add_streams, read_streams
from volrec.errors import ConfigError, DataError
from volrec.inference.backends import BackendName, make_backend
from volrec.inference.consensus import check_consensus, link, pool
from volrec.inference.dense import AlongSlices, check_dense, dense_outputs
from volrec.inference.ensembles import Ensemble, StudyScore
from volrec.inference.inputs import make_input
from volrec.inference.slicewise import score_slicewise
from volrec.networks.base import SequenceNetwork, SlicewiseNetwork
from volrec.transforms.clips import protocol_clips
from volrec.transforms.flips import AXES

__all__ = ["Ensemble", "Predictor", "StudyScore", "best_device"]

BUDGET = 1 << 20
"""Input voxels (B·C·T'·H·W) of one pass through a network; 64 channels of that size are 270 MB in float32."""
BUDGET_GPU = 1 << 23
"""The same on a GPU, which needs larger batches to be busy."""
DENSE_BUDGETS = 4
"""Budgets of one chunk of the dense protocol: what chunks share is computed for each, so that small ones are dear."""

Precision = Literal["auto", "32", "16", "bf16"]


class Predictor:
    """Score whole studies with one network by the protocol.

    The network is put in evaluation mode for each study and left as it was; nothing is drawn. A slicewise network
    encodes each slice once, however clips overlap (`volrec.inference.slicewise`). With ``protocol.method: dense`` a
    network that is convolutional along slices reads the study as a whole (`volrec.inference.dense`); the number of
    clips and their overlap then say nothing.

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
    backend : {"torch", "onnxruntime"}
        What computes the network; ONNX Runtime (extra ``onnx``) makes it ready on the first study of each size.

    Attributes
    ----------
    network : nn.Module
        The network, whatever computes it.

    Raises
    ------
    ConfigError
        For a consensus that the task cannot have, a network that cannot be dense, or a backend that is not here.
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
        backend: BackendName = "torch",
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
        self.backend = make_backend(backend, self.network, device=self.device, precision=precision)
        self.along: AlongSlices | None = None
        if protocol.method == "dense":
            self.along = check_dense(self.network, mode=sampling.train, backend=backend)

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
            Add a score for every slice: of a slicewise network that of the slice alone, else the mean over the clips
            that hold it (see `StudyScore`).

        Raises
        ------
        DataError
            When the volume is no (T, H, W), or the network gives a value that is no number.
        ConfigError
            When the network cannot read clips of this size.
        """
        stored = self.complete(volume, quantiles)
        outputs, clips, alone = self._outputs(stored, per_slice=per_slice)
        scores, logits = self._pool(outputs)
        slices = None
        if per_slice:
            slices = self._around(outputs, clips, stored.shape[0]) if alone is None else self._link(alone)
            slices = self._unscaled(slices)
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
        if not isinstance(self.network, SequenceNetwork):
            raise ConfigError(
                f"{type(self.network).__name__} does not say what enters its last layer.",
                remedy="Derive it from volrec.networks.SequenceNetwork.",
                code="no-features",
            )
        outputs, _, _ = self._outputs(self.complete(volume, quantiles), pre_logits=True)
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

    def _link(self, logits: np.ndarray) -> np.ndarray:
        return link(logits, self.task, heads=self.heads)

    def _pool(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and logits (K,) of the outputs (clips, views, K) of some clips."""
        rule = self.protocol
        return pool(outputs, task=self.task, consensus=rule.consensus, stage=rule.stage, heads=self.heads)

    def _around(self, outputs: np.ndarray, clips: Sequence[np.ndarray], slices: int) -> np.ndarray:
        """Return the mean score (T, K) of the clips that hold each slice; NaN for slices in none."""
        total, count = np.zeros((slices, outputs.shape[2])), np.zeros((slices, 1))
        for index, clip in enumerate(clips):
            held = np.unique(clip)  # a clip longer than the study holds some slices several times
            total[held] += self._pool(outputs[index : index + 1])[0]
            count[held] += 1
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

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

    def _outputs(
        self, volume: StoredVolume, *, per_slice: bool = False, pre_logits: bool = False
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
        """Return the logits (clips, views, K), the slices of each clip, and logits (T, K) of every slice alone.

        With `pre_logits` what enters the last layer in place of the former; without `per_slice`, and where a network
        reads clips, None in place of the latter.
        """
        alone = None
        with _evaluating(self.network), torch.inference_mode(), self._autocast():
            if self.along is not None:
                outputs, clips = self._densely(volume, self.along, pre_logits=pre_logits)
            else:
                clips = self._clips(volume)
                if isinstance(self.network, SlicewiseNetwork):
                    outputs, alone = self._by_slice(volume, clips, per_slice=per_slice, pre_logits=pre_logits)
                else:
                    outputs = self._by_clip(volume, clips, pre_logits=pre_logits)
        found = _to_numpy(outputs)
        _check_finite(found)
        return found, clips, alone

    def _by_clip(self, volume: StoredVolume, clips: list[np.ndarray], *, pre_logits: bool) -> Tensor:
        """Return the outputs (clips, views, K) of a network that reads clips."""
        views = self._views()
        outputs = []
        for part in _portions(clips, self._fitting(len(clips[0]) * volume.shape[1] * volume.shape[2])):
            images = self._input(volume, part)
            seen = [self.backend.forward(self._seen(images, axes), pre_logits=pre_logits) for axes in views]
            outputs.append(torch.stack(seen, dim=1))
        return torch.cat(outputs)

    def _by_slice(
        self, volume: StoredVolume, clips: list[np.ndarray], *, per_slice: bool, pre_logits: bool
    ) -> tuple[Tensor, np.ndarray | None]:
        """Return the outputs (clips, views, K), and logits of each slice alone (T, K), of a slicewise network."""
        self._check_size(volume, len(clips[0]))
        return score_slicewise(
            self.backend,
            clips,
            read=lambda part: self._input(volume, [part])[0].transpose(0, 1),
            mirror=lambda images, axes: self.input.mirror(images[:, :, None], axes)[:, :, 0],
            views=self._views(),
            slices=volume.shape[0],
            most=self._fitting(volume.shape[1] * volume.shape[2]),
            pre_logits=pre_logits,
            per_slice=per_slice,
        )

    def _densely(
        self, volume: StoredVolume, along: AlongSlices, *, pre_logits: bool
    ) -> tuple[Tensor, list[np.ndarray]]:
        """Return the outputs (windows, views, K) of a network applied to the study as a whole, and their slices."""
        self._check_size(volume, self.sampling.clip_length)
        return dense_outputs(
            self.backend,
            along,
            volume.shape[0],
            clip_length=self.sampling.clip_length,
            stride=self.sampling.stride,
            views=self._views(),
            read=lambda part: self._input(volume, [part]),
            seen=self._seen,
            most=DENSE_BUDGETS * self._fitting(volume.shape[1] * volume.shape[2]),
            pre_logits=pre_logits,
        )

    def _check_size(self, volume: StoredVolume, slices: int) -> None:
        """Raise `ConfigError` where the network cannot read clips of so many slices of the study."""
        network: Any = self.network
        network.check_input(torch.empty((1, self.input.channels, slices, *volume.shape[1:]), device="meta"))

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
    if training:  # going through all parts of a deep network takes as long as a clip of a narrow one
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
