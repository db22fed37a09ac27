"""The networks of a run, rebuilt from their cards and ready to score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from volrec.config import (
    IntensityConfig,
    PreprocessConfig,
    ProtocolConfig,
    SamplingConfig,
    SeriesConfig,
    StreamsConfig,
)
from volrec.data.targets import head_sizes
from volrec.errors import RunError
from volrec.inference.backends import BackendName
from volrec.inference.predictor import Precision, Predictor, best_device
from volrec.inference.protocols import ProtocolChanges
from volrec.networks import SequenceNetwork
from volrec.runs import Member, RunFolder
from volrec.weights import load_network

__all__ = ["Contract", "LoadedMember", "load_members"]


@dataclass(frozen=True)
class Contract:
    """What the card of a member says about the studies it reads and the scores it gives.

    Attributes
    ----------
    task, targets, classes
        As in the cohort it was trained on.
    modality : str
        Of the training studies, empty where unknown.
    series, preprocess, missing_slices
        How a study is chosen, decoded and resampled.
    intensity, streams
        What is computed beside it: displacement fields.
    """

    task: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    modality: str
    series: SeriesConfig
    preprocess: PreprocessConfig
    missing_slices: Any
    intensity: IntensityConfig
    streams: StreamsConfig


@dataclass(frozen=True, eq=False)
class LoadedMember:
    """A trained network with its card.

    Attributes
    ----------
    name : str
        Of the member (``"fold-0"``).
    predictor : Predictor
        Scores studies as in training.
    card : dict
        As `volrec.runs.member_card` and `volrec.weights.save_weights` wrote it.
    contract : Contract
        What the card demands of studies.
    """

    name: str
    predictor: Predictor
    card: dict[str, Any]
    contract: Contract

    @property
    def network(self) -> SequenceNetwork:
        """The network, in evaluation mode."""
        return self.predictor.network  # type: ignore[return-value]


def load_members(
    run: RunFolder,
    *,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    backend: BackendName = "torch",
    changes: ProtocolChanges | None = None,
) -> list[LoadedMember]:
    """Load every finished member of a run.

    Parameters
    ----------
    run : RunFolder
        A run with at least one finished member.
    device : torch device or str, optional
        Where to score; None takes the best there is.
    precision : str, optional
        Arithmetic; None takes the run's.
    backend : {"torch", "onnxruntime"}
        What computes the networks. ONNX Runtime (extra ``onnx``) is for the processor, which is then the device where
        none is named, and for float32, which is then the precision.
    changes : ProtocolChanges, optional
        To the protocol of the run.

    Raises
    ------
    RunError
        No finished member; weights or card missing, damaged, or of another version.
    ConfigError
        The device is not there, the backend is not here or not for it, or a change of the protocol cannot be.
    """
    if backend == "onnxruntime":
        device, precision = device or "cpu", precision or "32"
    found = best_device("auto" if device is None else str(device))
    arithmetic = run.config.trainer.precision if precision is None else precision
    return [
        load_member(member, device=found, precision=arithmetic, backend=backend, changes=changes)
        for member in run.finished_members()
    ]


def load_member(
    member: Member,
    *,
    device: torch.device,
    precision: Precision = "32",
    backend: BackendName = "torch",
    changes: ProtocolChanges | None = None,
) -> LoadedMember:
    """Load one member; see `load_members`."""
    network, card = load_network(member.weights, device=device)
    try:
        contract = Contract(
            task=str(card["task"]),
            targets=tuple(card["targets"]),
            classes=tuple(card["classes"]),
            modality=str(card.get("modality") or ""),
            series=SeriesConfig(**card["series"]),
            preprocess=PreprocessConfig(**card["preprocess"]),
            missing_slices=card["missing_slices"],
            intensity=IntensityConfig(**card["intensity"]),
            streams=StreamsConfig(**card.get("streams", {})),  # cards of before there were streams
        )
        sampling, protocol = SamplingConfig(**card["sampling"]), ProtocolConfig(**card["protocol"])
        if changes is not None:
            protocol = changes.applied(protocol, sampling=sampling.train, motion=contract.streams.motion)
        predictor = Predictor(
            network,
            intensity=contract.intensity,
            sampling=sampling,
            protocol=protocol,
            task=contract.task,
            device=device,
            precision=precision,
            regression_scaling=card.get("regression"),
            streams=contract.streams,
            heads=head_sizes(contract.task, contract.classes, contract.targets),
            backend=backend,
        )
    except KeyError as error:
        raise _unfit(member, f"the card of these weights lacks {error}") from error
    except (TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise _unfit(member, f"the card of these weights does not fit this version of volrec ({first})") from error
    return LoadedMember(member.name, predictor, card, contract)


def _unfit(member: Member, problem: str) -> RunError:
    return RunError(
        f"{problem}.",
        remedy="Use the version of volrec that its versions.json names, or train again.",
        where=member.weights,
        code="card",
    )
