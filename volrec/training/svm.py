"""A linear SVM on the scores of a network's streams, fitted once the network is trained (Two-Stream, NIPS 2014)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from volrec.config import TrainConfig
from volrec.data.datasets import StudyDataset
from volrec.data.streams import read_streams
from volrec.errors import ConfigError, StoreError
from volrec.inference.inputs import make_input
from volrec.transforms.clips import protocol_clips

__all__ = ["check_svm", "fit_svm", "has_svm"]

log = logging.getLogger(__name__)

FEWEST = 3
"""Studies of every class that the validation part must have for the SVM to be fitted on it."""


def has_svm(network: nn.Module) -> bool:
    """Tell whether a network has an SVM that waits to be fitted (`set_svm`)."""
    return getattr(network, "svm", None) is not None


def fit_svm(
    network: nn.Module,
    *,
    train: StudyDataset,
    validation: StudyDataset,
    config: TrainConfig,
    task: str,
    seed: int = 0,
) -> str:
    """Fit the SVM of a network on the clips of whole studies, and put it in place.

    The paper fits it on the training videos. Streams that have learned few studies by heart give them scores that no
    new study gets, so it is fitted on the validation studies where these have at least `FEWEST` of every class, and
    where there is a test part beside them: without one they are what the run is measured on.

    Parameters
    ----------
    network : Module
        Trained, with ``stream_scores`` and ``set_svm`` (`volrec.networks.two_stream`).
    train, validation : StudyDataset
        Whole studies.
    config : TrainConfig
        Intensity, streams, sampling and protocol are used.
    task : str
        ``binary`` or ``multiclass``.
    seed : int
        Of the solver.

    Returns
    -------
    str
        The part that it was fitted on.

    Raises
    ------
    ConfigError
        For a task whose classes do not exclude each other, or where a class has no study.
    """
    from sklearn.svm import LinearSVC

    check_svm(network, train=train, validation=validation, config=config, task=task)
    part, studies = _fitted_on(train, validation, config)
    scores, labels = _scores(network, studies, config)
    _check_classes(network, part, labels)  # some of the studies may be past reading
    svm = LinearSVC(C=1.0, class_weight="balanced", random_state=seed, max_iter=20_000).fit(scores, labels)
    network.set_svm(svm.coef_, svm.intercept_)  # type: ignore[operator]
    log.info("SVM on the scores of the streams: fitted on %d clips of the %s part", len(labels), part)
    return part


def check_svm(
    network: nn.Module, *, train: StudyDataset, validation: StudyDataset, config: TrainConfig, task: str
) -> None:
    """Make sure, before the first step, that an SVM can be fitted once the network is trained.

    Raises
    ------
    ConfigError
        As `fit_svm`.
    """
    if task not in ("binary", "multiclass"):
        raise ConfigError(
            f"fusion by an SVM needs classes that exclude each other; the task is {task}.",
            remedy="Set network.options.fusion to average.",
            where="network.options.fusion",
            code="svm",
        )
    part, studies = _fitted_on(train, validation, config)
    _check_classes(network, part, [_label(case.target) for case in studies.cases])


def _fitted_on(train: StudyDataset, validation: StudyDataset, config: TrainConfig) -> tuple[str, StudyDataset]:
    if not config.split.folds and not config.split.test:
        return "train", train
    labels = {_label(case.target) for case in (*train.cases, *validation.cases)}
    counts = [sum(_label(case.target) == label for case in validation.cases) for label in labels]
    return ("validation", validation) if min(counts, default=0) >= FEWEST else ("train", train)


def _check_classes(network: nn.Module, part: str, labels: Sequence[int]) -> None:
    there, classes = len(set(labels)), max(2, int(network.num_classes))  # type: ignore[arg-type]
    if there < classes:
        raise ConfigError(
            f"an SVM needs studies of every class; the {part} part has {there} of {classes}.",
            remedy="Give it more studies, or set network.options.fusion to average.",
            where="network.options.fusion",
            code="svm",
        )


def _label(target: np.ndarray) -> int:
    return int(np.asarray(target).reshape(-1)[0])


@torch.no_grad()
def _scores(network: nn.Module, studies: StudyDataset, config: TrainConfig) -> tuple[np.ndarray, Sequence[int]]:
    """Return what the SVM reads (clips, columns) of every clip of the protocol, and the class of each."""
    device = next(network.parameters()).device
    channels = make_input(config.intensity, config.streams)
    rows, labels = [], []
    training = network.training
    network.eval()
    for index, case in enumerate(studies.cases):
        try:
            volume = studies.volume(index)
        except StoreError:  # reported when its turn came in training or validation
            continue
        clips = protocol_clips(
            volume.shape[0],
            clip_length=config.sampling.clip_length,
            stride=config.sampling.stride,
            clips=config.protocol.clips,
            overlap=config.protocol.overlap,
            mode=config.sampling.train,
            snippet_length=config.sampling.snippet_length,
            snippets=config.protocol.snippets,
        )
        for clip in clips:
            read = read_streams(volume, config.streams, clip)
            batch = {name: torch.from_numpy(array)[None].to(device) for name, array in read.items()}
            batch["quantiles"] = torch.from_numpy(np.asarray(volume.quantiles, dtype=np.float32))[None].to(device)
            features = network.forward_features(channels.finish(channels(batch), batch))  # type: ignore[operator]
            rows.append(network.stream_scores(features)[0].double().cpu().numpy())  # type: ignore[operator]
            labels.append(_label(case.target))
    network.train(training)
    return np.stack(rows), labels
