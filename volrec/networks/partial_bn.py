"""Partial batch normalisation: all such layers but the first stay as the first weights have them (TSN)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from volrec.errors import ConfigError
from volrec.networks.base import SequenceNetwork
from volrec.networks.stages import ordered_children

__all__ = ["PARTIAL_BN", "partial_bn"]

PARTIAL_BN = ("none", "statistics", "all")


def partial_bn(network: SequenceNetwork, mode: str) -> list[str]:
    """Keep the batch normalisations of a network but the first as they are, from now on.

    Of few studies, means and variances are estimated badly, and those of the first weights are better than new ones;
    the first layer goes on estimating, for the input is another (Wang et al., ECCV 2016). Layers that are kept
    normalise by their running mean and variance in training too, whatever `train` is told.

    Parameters
    ----------
    network : SequenceNetwork
        Is changed in place. Of paths side by side, the first layer is that of the path that is read first; of towers
        (`SequenceNetwork.tower_names`), which read inputs of their own, each has one.
    mode : {"none", "statistics", "all"}
        ``"statistics"``: running mean and variance stay, scale and shift learn, as in the code that the paper released
        (Caffe). ``"all"``: scale and shift stay too, as in its authors' later code (PyTorch). The two are not the same
        training. ``"none"``: nothing stays.

    Returns
    -------
    list of str
        Names of the layers that are kept.

    Raises
    ------
    ConfigError
        For an unknown mode, or a network without batch normalisation.
    """
    if mode not in PARTIAL_BN:
        raise ConfigError(
            f"there is no way {mode!r} to keep batch normalisation.",
            remedy=f"Choose {', '.join(PARTIAL_BN)}.",
            where="optim.partial_bn",
            code="partial-bn",
        )
    if mode == "none":
        return []
    layers = dict(_batch_norms(network, ""))
    if not layers:
        raise ConfigError(
            f"{network.registry_name} as it is built has no batch normalisation to keep, got partial_bn {mode!r}.",
            remedy="Set optim.partial_bn to none, or the network's option norm to batch.",
            where="optim.partial_bn",
            code="partial-bn",
        )
    firsts = {next((name for name in layers if name.startswith(f"{tower}.")), "") for tower in network.tower_names}
    firsts = firsts - {""} or {next(iter(layers))}
    kept = [name for name in layers if name not in firsts]
    if mode == "all":
        for name in kept:
            layers[name].requires_grad_(False)
    network.keep_still(kept)
    return kept


def _batch_norms(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield all batch normalisations in the order of reading."""
    for name, child in ordered_children(module):
        if isinstance(child, _BatchNorm):
            yield prefix + name, child
        yield from _batch_norms(child, f"{prefix}{name}.")
