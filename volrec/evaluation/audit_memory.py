"""Networks that remember what they said: a slice, or a clip, that comes again in another condition costs nothing."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from volrec.inference.backends import TorchBackend
from volrec.inference.predictor import Predictor
from volrec.networks.base import SlicewiseNetwork

__all__ = ["Remembering"]

LIMIT = 256 << 20
"""Bytes of answers that are kept; the memory is emptied when they are more."""


class _Memory:
    """Answers by the content of what was asked."""

    def __init__(self) -> None:
        self._known: dict[bytes, Tensor] = {}
        self._size = 0

    @property
    def answers(self) -> list[Tensor]:
        return list(self._known.values())

    def clear(self) -> None:
        self._known.clear()
        self._size = 0

    def ask(self, x: Tensor, answer: Callable[[Tensor], Tensor], *, least: int = 1) -> Tensor:
        """Return ``answer(x)``, (N, ...), computed for those rows of x (N, ...) alone that are new.

        At least `least` rows are computed at a time, the last one repeated where there are fewer.
        """
        rows = x.detach().cpu().contiguous()
        keys = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in rows]
        new = {key: number for number, key in enumerate(keys) if key not in self._known}
        if new:
            if self._size > LIMIT:
                self.clear()
                new = {key: number for number, key in enumerate(keys)}
            wanted = sorted(new.values())
            asked = wanted + wanted[-1:] * (least - len(wanted))
            for number, found in zip(wanted, answer(x[asked]), strict=False):
                self._known[keys[number]] = found.clone()
                self._size += found.numel() * found.element_size()
        return torch.stack([self._known[key] for key in keys])


class _RememberedSlices(SlicewiseNetwork):
    """A slicewise network that encodes each slice once."""

    def __init__(self, inner: SlicewiseNetwork, memory: _Memory) -> None:
        super().__init__(
            num_classes=inner.num_classes, in_channels=inner.in_channels, smallest=inner.smallest, exact=inner.exact
        )
        self.inner = inner
        self.memory = memory

    @property
    def registry_name(self) -> str:
        return self.inner.registry_name

    def check_input(self, x: Tensor) -> None:
        self.inner.check_input(x)

    def encode_maps(self, x: Tensor) -> Tensor:
        return self.inner.encode_maps(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        return self.inner.embed_maps(maps)

    def encode_slices(self, x: Tensor) -> Tensor:
        # Two at least: convolutions of a single image take another path, and scores would depend on it.
        return self.memory.ask(x, self.inner.encode_slices, least=2)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        return self.inner.aggregate(features, pre_logits=pre_logits)

    def slice_logits(self, features: Tensor) -> Tensor:
        return self.inner.slice_logits(features)


class _RememberedClips(nn.Module):
    """A network that scores each clip once."""

    def __init__(self, inner: nn.Module, memory: _Memory) -> None:
        super().__init__()
        self.inner = inner
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        return self.memory.ask(x, self.inner)


class Remembering:
    """A predictor of the same scores that computes nothing twice.

    A network that reads a whole study at once (protocol ``dense``) is left as it is: no two conditions are alike to it.

    Parameters
    ----------
    predictor : Predictor
        Left as it is.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._memory = _Memory()
        self.predictor = predictor
        network: Any = predictor.network
        self.slicewise = isinstance(network, SlicewiseNetwork)
        if predictor.protocol.method == "clips":
            self.predictor = copy.copy(predictor)
            kind = _RememberedSlices if isinstance(network, SlicewiseNetwork) else _RememberedClips
            self.predictor.network = kind(network, self._memory)
            self.predictor.backend = TorchBackend(self.predictor.network)

    def forget(self) -> None:
        """Empty the memory: the next study is another one."""
        self._memory.clear()

    def ignores_order(self, *, seed: int = 0) -> bool:
        """Tell whether the network reads slices singly and puts them together without regard to their order.

        Asked of the slices that it remembers: its score of a clip of them has to be the same for three drawn orders,
        as it is for a mean or a maximum. A network with streams beside the slices compares neighbours, and is none.
        """
        network: Any = self.predictor.network
        features = self._memory.answers[: self.predictor.sampling.clip_length]
        if not isinstance(network, _RememberedSlices) or self.predictor.streams.motion or len(features) < 3:
            return False
        known = torch.stack(features)
        generator = torch.Generator().manual_seed(seed)
        network.eval()
        with torch.inference_mode():
            first = network.aggregate(known[None])
            for _ in range(3):
                order = torch.randperm(len(known), generator=generator).to(known.device)
                if not torch.allclose(network.aggregate(known[order][None]), first, rtol=1e-4, atol=1e-5):
                    return False
        return True
