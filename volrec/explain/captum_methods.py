"""Methods of the package captum (extra ``explain``): each a closed entry, called as `volrec` calls its own.

N. Kokhlikyan et al., "Captum: A unified and generic model interpretability library for PyTorch", 2020. References of
the methods stand at their functions. All of them give one value a voxel and channel; channels are summed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.explain.passes import Tick, at_rest, check_output, empty_clip, resting

__all__ = ["deeplift", "gradient_shap", "guided_backprop", "input_x_gradient", "integrated", "saliency", "smoothgrad"]

SEED = 0
"""Of what is drawn: the same study gives the same map."""


def saliency(network: nn.Module, x: Tensor, output: int, *, tick: Tick = resting) -> Tensor:
    """Return the size of the gradient (K. Simonyan, A. Vedaldi, A. Zisserman, 2013): unsigned.

    Parameters
    ----------
    network : nn.Module
        (B, C, T', H, W) to logits (B, K).
    x : Tensor
        (B, C, T', H, W), as the network reads it.
    output : int
        Which output is explained, from 0.
    tick : callable
        Told the share of the clips that is done.

    Returns
    -------
    Tensor
        (B, T', H, W) float32.

    Raises
    ------
    ConfigError
        captum cannot apply the method to this network, or it has no such output.
    """
    from captum.attr import Saliency

    return _by_clip(network, x, output, tick, lambda clip: Saliency(network).attribute(clip, target=output))


def input_x_gradient(network: nn.Module, x: Tensor, output: int, *, tick: Tick = resting) -> Tensor:
    """Return voxel times gradient (A. Shrikumar et al., 2016), signed; arguments and result as of `saliency`."""
    from captum.attr import InputXGradient

    return _by_clip(network, x, output, tick, lambda clip: InputXGradient(network).attribute(clip, target=output))


def guided_backprop(network: nn.Module, x: Tensor, output: int, *, tick: Tick = resting) -> Tensor:
    """Return guided backpropagation (J. T. Springenberg et al., 2014), signed; as of `saliency`.

    It needs the network's rectifiers to be modules: where they are functions it is the plain gradient.
    """
    from captum.attr import GuidedBackprop

    return _by_clip(network, x, output, tick, lambda clip: GuidedBackprop(network).attribute(clip, target=output))


def integrated(
    network: nn.Module, x: Tensor, output: int, *, steps: int = 32, empty: Tensor | None = None, tick: Tick = resting
) -> Tensor:
    """Return captum's integrated gradients from an empty clip, signed; as of `saliency`."""
    from captum.attr import IntegratedGradients

    def attribute(clip: Tensor) -> Tensor:
        nothing = empty_clip(clip, empty).contiguous()
        # One point at a time: a clip may fill the memory.
        return IntegratedGradients(network).attribute(
            clip, nothing, target=output, n_steps=steps, internal_batch_size=1
        )

    return _by_clip(network, x, output, tick, attribute)


def deeplift(
    network: nn.Module, x: Tensor, output: int, *, empty: Tensor | None = None, tick: Tick = resting
) -> Tensor:
    """Return DeepLIFT against an empty clip (A. Shrikumar, P. Greenside, A. Kundaje, 2017), signed; as of `saliency`.

    Its rule for rectifiers applies where they are modules that are used once; elsewhere it is voxel times gradient.
    """
    from captum.attr import DeepLift

    def attribute(clip: Tensor) -> Tensor:
        return DeepLift(network).attribute(clip, empty_clip(clip, empty).contiguous(), target=output)

    return _by_clip(network, x, output, tick, attribute)


def gradient_shap(
    network: nn.Module,
    x: Tensor,
    output: int,
    *,
    samples: int = 16,
    noise: float = 0.05,
    empty: Tensor | None = None,
    tick: Tick = resting,
) -> Tensor:
    """Return expected gradients between noisy clips and an empty one (S. Lundberg, S. Lee, 2017), signed.

    Parameters
    ----------
    samples : int
        Noisy clips.
    noise : float
        Standard deviation of the noise, as a share of the clip's range.
    network, x, output, empty, tick
        As of `integrated`.
    """
    from captum.attr import GradientShap

    def attribute(clip: Tensor) -> Tensor:
        nothing, spread = empty_clip(clip, empty).contiguous(), _spread(clip, noise)
        one = GradientShap(network)
        drawn = (one.attribute(clip, nothing, n_samples=1, stdevs=spread, target=output) for _ in range(samples))
        return _mean(drawn)

    _check_samples(samples)
    return _by_clip(network, x, output, tick, attribute)


def smoothgrad(
    network: nn.Module, x: Tensor, output: int, *, samples: int = 16, noise: float = 0.1, tick: Tick = resting
) -> Tensor:
    """Return the mean size of the gradient over noisy clips (D. Smilkov et al., 2017), unsigned; as `gradient_shap`."""
    from captum.attr import NoiseTunnel, Saliency

    def attribute(clip: Tensor) -> Tensor:
        return NoiseTunnel(Saliency(network)).attribute(
            clip,
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=1,
            stdevs=_spread(clip, noise),
            target=output,
        )

    _check_samples(samples)
    return _by_clip(network, x, output, tick, attribute)


@contextmanager
def _seeded() -> Iterator[None]:
    """Let numpy's global generator, which captum draws with, begin at the same place; it is put back after."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _by_clip(network: nn.Module, x: Tensor, output: int, tick: Tick, attribute: Callable[[Tensor], Tensor]) -> Tensor:
    """Attribute clip after clip and sum over channels: (B, T', H, W) float32."""
    check_output(network, output)
    parts = []
    devices = [x.device] if x.device.type == "cuda" else []
    seeded = torch.random.fork_rng(devices), _seeded()
    with at_rest(network), _nothing_in_place(network), seeded[0], seeded[1], warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting .*hooks")  # they are taken off again
        torch.manual_seed(SEED)
        for number, clip in enumerate(x, 1):
            try:
                found: Any = attribute(clip[None].detach().requires_grad_(True))
            except (AssertionError, RuntimeError) as error:
                raise ConfigError(
                    f"captum cannot apply this method to {type(network).__name__} ({str(error).splitlines()[0]}).",
                    remedy="Use integrated-gradients or occlusion, which need nothing but outputs and gradients.",
                    where="method",
                    code="captum",
                ) from error
            parts.append(found.detach()[0].sum(dim=0).float())
            tick(number / len(x))
    return torch.stack(parts)


@contextmanager
def _nothing_in_place(network: nn.Module) -> Iterator[None]:
    """Let rectifiers write to a tensor of their own, which captum's hooks need."""
    changed: list[Any] = [module for module in network.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True


def _spread(clip: Tensor, noise: float) -> float:
    """Return the standard deviation of noise that is a share of the range of a clip."""
    seen = clip.detach()
    return noise * float(seen.max() - seen.min())


def _mean(parts: Iterator[Tensor]) -> Tensor:
    total, count = next(parts), 1
    for part in parts:
        total, count = total + part, count + 1
    return total / count


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ConfigError(
            f"samples must be at least 1, got {samples}.", remedy="Use 16.", where="samples", code="explain-option"
        )
