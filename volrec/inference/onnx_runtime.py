"""Networks computed by ONNX Runtime on the processor (extra ``onnx``): the same numbers, for some in less time.

Which ones gain depends on the network and the machine: narrow networks of slices do, 3D networks may lose. The script
``tests/performance/bench_predict.py --only onnx`` tells for the machine that it runs on.

A network becomes a graph on its first use, one for each size of its input: convolutional networks know their sizes
while they are traced, and no size has to be guessed. A slicewise network becomes two graphs, one that encodes slices
and one that aggregates clips, so that each slice is still encoded once. Every graph is compared with torch on the first
input it gets, in batches of several sizes, before it is used: what tracing gets wrong is refused and never scored.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from volrec.errors import ConfigError
from volrec.inference.backends import TorchBackend
from volrec.networks import SequenceNetwork

__all__ = ["OnnxBackend"]

log = logging.getLogger(__name__)

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference of a graph from torch, over the largest value, with which it is used."""
QUIET = 4
"""ONNX Runtime's level of messages: none but fatal ones. What fails raises."""


class OnnxBackend(TorchBackend):
    """A network in ONNX Runtime, with as many threads as torch has.

    Parameters
    ----------
    network : nn.Module
        On the processor, in float32. Its weights are those of the moment a graph is made.

    Raises
    ------
    ConfigError
        When ONNX Runtime is not installed; at the first use, when the network cannot be exported.
    """

    def __init__(self, network: nn.Module) -> None:
        missing = [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"the backend onnxruntime needs the package {' and '.join(missing)}.",
                remedy="Install it with `pip install 'volrec[onnx]'`, or use --backend torch.",
                where="backend",
                code="no-package",
            )
        super().__init__(network)
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._weights = ""

    def forward(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of clips (B, C, T', H, W), or with `pre_logits` what enters the last layer."""
        if isinstance(self.network, SequenceNetwork):
            self.network.check_input(x)
        return self._run("pre_logits" if pre_logits else "forward", x)

    def encode(self, x: Tensor) -> Tensor:
        """Return features (N, ...) of slices (N, C, H, W)."""
        return self._run("encode", x)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of slice features (B, T', ...), or with `pre_logits` what enters the last layer."""
        return self._run("aggregate_pre_logits" if pre_logits else "aggregate", features)

    # `slice_logits` stays torch's: a small part of the work, and asked for runs of slices of any length.

    def _run(self, part: str, x: Tensor) -> Tensor:
        key = (part, tuple(x.shape[1:]))
        if key not in self._graphs:
            self._graphs[key] = self._make(part, x)
        return torch.from_numpy(self._graphs[key](x))

    def _make(self, part: str, x: Tensor) -> _Graph:
        """Return the graph of a part of the network for inputs of this size, made once in a process."""
        if not self._weights:
            self._weights = _digest(self.network)
        key = f"{self._weights}:{part}:{tuple(x.shape[1:])}:{torch.get_num_threads()}"
        graph = _SHARED.get(key)
        if graph is None:
            started = time.perf_counter()
            graph = _export(self.network, _PARTS[part], x)
            log.info("made %s ready for ONNX Runtime in %.1f s.", part, time.perf_counter() - started)
            _SHARED[key] = graph
        return graph


@dataclass(eq=False)
class _Graph:
    """A graph that runs; one that holds a single input is run for each of a batch."""

    session: Any
    single: bool

    def __call__(self, x: Tensor) -> np.ndarray:
        images = np.ascontiguousarray(x.detach().numpy())
        if not self.single:
            return self.session.run(None, {"x": images})[0]
        return np.concatenate([self.session.run(None, {"x": images[i : i + 1]})[0] for i in range(len(images))])


# Graphs in use, by weights, part, size and threads: members that are loaded again share them.
_SHARED: WeakValueDictionary[str, _Graph] = WeakValueDictionary()

_PARTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    # Not `forward`, whose check of the input is no part of the graph; a plain module has nothing else.
    "forward": lambda network, x: (
        network.forward_head(network.forward_features(x)) if isinstance(network, SequenceNetwork) else network(x)
    ),
    "pre_logits": lambda network, x: network.forward_head(network.forward_features(x), pre_logits=True),
    "encode": lambda network, x: network.encode_slices(x),
    "aggregate": lambda network, x: network.aggregate(x),
    "aggregate_pre_logits": lambda network, x: network.aggregate(x, pre_logits=True),
}


class _Part(nn.Module):
    """A part of a network as a module of its own, which is what can be traced."""

    def __init__(self, network: nn.Module, part: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.network, x)


def _export(network: nn.Module, part: Callable[[Any, Tensor], Tensor], x: Tensor) -> _Graph:
    """Return a graph that gives what the part of the network gives.

    Raises
    ------
    ConfigError
        Where there is none.
    """
    # A copy outside of inference mode: its tensors can be traced, and hooks on the network are left alone.
    with torch.inference_mode(False), torch.no_grad():
        own = _Part(copy.deepcopy(network), part).eval()
        first = x[:1].clone()
        # Three unlike inputs of real size and scale.
        trial = torch.cat([first, 0.5 * first.flip(-1), first.flip(1) - 0.25 * first])
        expected = own(trial).numpy()
        reasons = []
        for single in (False, True):
            try:
                graph = _Graph(_session(_traced(own, trial[:1] if single else trial[:2], single=single)), single)
                off = max(float(np.abs(graph(trial[:size]) - expected[:size]).max(initial=0.0)) for size in (3, 2, 1))
            except Exception as error:  # noqa: BLE001 - the exporter and ONNX Runtime raise errors of many kinds
                reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
                continue
            if off <= TOLERANCE * max(1e-3, float(np.abs(expected).max(initial=0.0))):
                return graph
            reasons.append(f"its scores differ by {off:.1e}")
    name = getattr(network, "registry_name", type(network).__name__)
    raise ConfigError(
        f"{name} cannot be made ready for ONNX Runtime ({reasons[-1][:200]}).",
        remedy="Use --backend torch.",
        where="backend",
        code="onnx-export",
    )


def _traced(module: nn.Module, x: Tensor, *, single: bool) -> bytes:
    """Return a module as an ONNX file, for batches of any size or of one input."""
    file = io.BytesIO()
    axes = None if single else {"x": {0: "batch"}, "y": {0: "batch"}}
    with _silence(), _Traceable(single=single):
        # The exporter by tracing takes a tenth of the time of the one by torch.export.
        torch.onnx.export(
            module,
            (x,),
            file,  # type: ignore[arg-type]  # the exporter by tracing writes to files that are open
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
            opset_version=OPSET,
        )
    return file.getvalue()


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _Traceable(TorchFunctionMode):
    """While a network is traced, put what the exporter lacks in other words.

    Sizes are numbers, but for the batch where it may be of any size: computed sizes would be traced as operations,
    and dividing them rounds otherwise. Memory layouts are left out. Pools to so many positions become maxima and means
    of the parts, differences become subtractions.
    """

    def __init__(self, *, single: bool) -> None:
        super().__init__()
        self.single = single

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or what stands for it."""
        kwargs = dict(kwargs or {})
        if func is Tensor.shape.__get__:  # type: ignore[attr-defined]
            return self._sizes(func(*args))
        if func is Tensor.size:
            sizes = self._sizes(args[0].shape)
            where = [*args[1:], *kwargs.values()]
            return sizes[where[0]] if where else sizes
        if func is Tensor.contiguous:
            return func(args[0])
        name = getattr(func, "__name__", "")
        if name == "diff":
            return _difference(*args, **kwargs)
        if name == "narrow" and len(args) == 4 and args[2] < 0:  # is exported as a slice that ends before it begins
            x, axis, start, length = args
            return func(x, axis, start + int(x.shape[axis]), length)
        if name == "avg_pool2d" and args[0].ndim == 3:  # maps without channels are exported as rows
            return func(args[0][:, None], *args[1:], **kwargs)[:, 0]
        pool = re.search(r"adaptive_(avg|max)_pool(\d)d", name)
        if pool:
            pooled = _adaptive_pool(args[0], args[1] if len(args) > 1 else kwargs["output_size"], pool)
            return (pooled, None) if "with_indices" in name else pooled
        return func(*args, **kwargs)

    def _sizes(self, shape: Any) -> tuple[Any, ...]:
        numbers = tuple(int(n) for n in shape)
        return numbers if self.single or not numbers else (shape[0], *numbers[1:])


def _difference(x: Tensor, n: int = 1, dim: int = -1) -> Tensor:
    for _ in range(n):
        length = int(x.shape[dim])
        x = x.narrow(dim, 1, length - 1) - x.narrow(dim, 0, length - 1)
    return x


def _adaptive_pool(x: Tensor, output: Any, pool: re.Match[str]) -> Tensor:
    """Return `x` (..., sizes) pooled to so many positions an axis, parts lying as torch lays them."""
    axes = int(pool[2])
    wanted = (output,) * axes if isinstance(output, int) or output is None else tuple(output)
    for axis, count in zip(range(-axes, 0), wanted, strict=True):
        size = int(x.shape[axis])
        if count is None or int(count) == size:
            continue
        parts = []
        for index in range(int(count)):
            start, stop = index * size // count, -(-(index + 1) * size // count)
            part = x.narrow(axis, start, stop - start)
            parts.append(part.amax(axis, keepdim=True) if pool[1] == "max" else part.mean(axis, keepdim=True))
        x = torch.cat(parts, dim=axis)
    return x


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter from writing: it prints graphs that it cannot export, and warns of constants."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    write = torch._C._jit_onnx_log  # the exporter turns its own switch for this on again
    torch._C._jit_onnx_log = lambda *message: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch._C._jit_onnx_log = write


def _digest(network: nn.Module) -> str:
    """Return a fingerprint of a network's class, printed form and weights."""
    found = hashlib.sha256(f"{type(network).__qualname__}{network}{getattr(network, 'architecture', '')}".encode())
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return found.hexdigest()
