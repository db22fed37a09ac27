"""The words of a network that pools descriptors: k-means over the training set, before the network is trained."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from volrec.data.datasets import STREAMS
from volrec.errors import ConfigError, DataError
from volrec.training.seeds import step_seed
from volrec.transforms.batch import BatchTransform

__all__ = ["fit_words", "has_words"]

log = logging.getLogger(__name__)

_DRAW, _CLUSTER = range(2)


def has_words(network: nn.Module) -> bool:
    """Tell whether a network has a vocabulary that can be set (`set_words`, and one word at least)."""
    return hasattr(network, "set_words") and getattr(network, "num_words", 0) > 0


def fit_words(
    network: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    transform: BatchTransform,
    seed: int,
    per_clip: int = 256,
    limit: int = 65536,
) -> int:
    """Set the words of a network to the centres of k-means over its own descriptors of training clips.

    Runs in evaluation mode, without augmentation and without gradients. As many descriptors are drawn of every clip
    (all, where it has no more than `per_clip`), so that large clips do not outvote small ones. The same network,
    batches and seed give the same words.

    Parameters
    ----------
    network : nn.Module
        With ``num_words``, ``descriptors(x: (B, C, T, H, W)) -> (B * n, D)``, clip after clip, and
        ``set_words(centres: (K, D))``. Its mode is left as it was.
    batches : iterable of mapping
        As the training loader gives them: ``image`` (B, 1, T, H, W), ``quantiles`` (B, Q), and ``valid`` (B,) where
        clips may have failed to be read. Only as many are read as `limit` asks for.
    transform : BatchTransform
        Normalisation of the training.
    seed : int
        Of the draw and of k-means.
    per_clip : int
        Descriptors of a clip.
    limit : int
        Descriptors in all.

    Returns
    -------
    int
        Descriptors that the words were found among.

    Raises
    ------
    ConfigError
        For a network without words, or numbers below one.
    DataError
        When there are fewer distinct descriptors than words, or some are not finite.
    """
    if not has_words(network):
        raise ConfigError(
            f"{_name(network)} has no words to set.",
            remedy="Choose a network with a vocabulary, such as actionvlad with pooling='vlad'.",
            code="words",
        )
    if per_clip < 1 or limit < 1:
        raise ConfigError(
            f"per_clip and limit must be at least 1, got {per_clip} and {limit}.",
            remedy="Leave them out for the usual numbers.",
            code="words",
        )
    words: int = network.num_words  # type: ignore[assignment]
    found = _draw(network, batches, transform=transform, seed=seed, per_clip=per_clip, limit=limit)
    distinct = len(np.unique(found, axis=0)) if len(found) else 0
    if distinct < words:
        raise DataError(
            f"{words} words need as many different descriptors, but {distinct} were found in the training clips.",
            remedy="Choose fewer words (network.options.words), larger clips, or more studies.",
            code="words",
        )
    clusters = KMeans(words, n_init=1, random_state=step_seed(seed, _CLUSTER) % 2**32)
    # One thread: sums over several depend on which is done first, and words have to come out the same again.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Descriptors that differ in their last digits only may count as fewer points than words.
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            centres = clusters.fit(found).cluster_centers_
        except ConvergenceWarning as warning:
            raise DataError(
                f"{words} words could not be told apart among {len(found)} descriptors: they differ too little.",
                remedy="Choose fewer words (network.options.words), or look at the intensities of the studies.",
                code="words",
            ) from warning
    parameter = next(network.parameters())
    network.set_words(torch.as_tensor(centres).to(parameter))  # type: ignore[operator]
    log.info("words: %d from %d descriptors", words, len(found))
    return len(found)


@torch.no_grad()
def _draw(
    network: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    transform: BatchTransform,
    seed: int,
    per_clip: int,
    limit: int,
) -> np.ndarray:
    """Return descriptors (n, D) in float32, in the order of the clips."""
    generator = torch.Generator().manual_seed(step_seed(seed, _DRAW) % 2**63)
    device = next(network.parameters()).device
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    drawn: list[torch.Tensor] = []
    count = 0
    try:
        for batch in batches:
            # All that makes channels: voxels, fields, differences. What is said of the studies stays behind.
            tensors = {key: value.to(device) for key, value in batch.items() if key in (*STREAMS, "quantiles")}
            images = transform(tensors, augment=False)["image"]
            if "valid" in batch:
                images = images[batch["valid"].to(device)]
            if not len(images):
                continue
            every = network.descriptors(images).unflatten(0, (len(images), -1))  # type: ignore[operator]
            for descriptors in every:
                chosen = torch.randperm(len(descriptors), generator=generator)[: min(per_clip, limit - count)]
                drawn.append(descriptors[chosen.to(device)].float().cpu())
                count += len(chosen)
            if count >= limit:
                break
    finally:
        for module, training in modes:
            module.training = training
    found = torch.cat(drawn).numpy() if drawn else np.empty((0, 0), dtype=np.float32)
    if not np.isfinite(found).all():
        raise DataError(
            "descriptors of training clips are not finite (NaN or infinite).",
            remedy="Look at the studies' intensities, and at the first weights of the network.",
            code="not-finite",
        )
    return found


def _name(network: nn.Module) -> str:
    return str(getattr(network, "registry_name", type(network).__name__))
