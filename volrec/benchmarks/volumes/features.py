"""Pooled features of a run's networks: what enters the last layer, the mean over the clips of the protocol."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volrec.benchmarks.encoding.table import VectorTable
from volrec.errors import ConfigError, DataError, Problem, VolrecError
from volrec.inference.studies import Studies
from volrec.progress import track

if TYPE_CHECKING:
    from volrec.inference import LoadedMember

__all__ = ["Features", "network_features"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of studies.

    Attributes
    ----------
    names : tuple of str
        Studies, in the order of the rows.
    vectors : ndarray
        (N, F) float32.
    problems : tuple of Problem
        Studies that could not be read: in no row.
    """

    names: tuple[str, ...]
    vectors: np.ndarray
    problems: tuple[Problem, ...] = ()

    def rows(self, studies: Sequence[str]) -> np.ndarray:
        """Return the rows (n, F) of some studies, in their order."""
        places = {name: place for place, name in enumerate(self.names)}
        return np.asarray(self.vectors[[places[study] for study in studies]])


def network_features(
    studies: Studies, member: LoadedMember, names: Sequence[str] | None = None, *, folder: Path | str
) -> Features:
    """Run the network of a member over whole studies and keep what enters its last layer.

    Parameters
    ----------
    studies : Studies
        Of the run.
    member : LoadedMember
        From `volrec.inference.load_members`.
    names : sequence of str, optional
        Only these; all where left out.
    folder : path
        Where the features are kept, in a folder that weights, protocol and volumes determine; an interrupted call goes
        on.

    Raises
    ------
    ConfigError
        The network cannot read clips of this size.
    RunError
        The folder cannot be written.
    """
    import torch

    wanted = list(names if names is not None else studies.names)
    predictor = member.predictor
    facts = [
        member.card["tensors"]["sha256"],
        [part.model_dump(mode="json") for part in (predictor.sampling, predictor.protocol, predictor.intensity)],
        predictor.streams.model_dump(mode="json"),
        [[study, studies.entries[study].key] for study in wanted],
    ]
    source = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    table = VectorTable(Path(folder) / f"features-{source}", wanted, columns=member.network.num_features, source=source)
    problems = []
    todo = table.missing
    for study in track(todo, f"features of {member.name}", len(todo)):
        entry = studies.entries[study]
        try:
            table.put(study, predictor.features(studies.store.open(entry)))
        except (ConfigError, torch.OutOfMemoryError):
            raise  # no study's fault, and the next one would meet it too
        except VolrecError as error:
            problems.append(Problem.of(error, where=error.where or entry.path, study=study))
        except (OSError, ValueError, RuntimeError) as error:
            unread = DataError(f"it could not be read ({type(error).__name__}: {error}).", code="unexpected")
            problems.append(Problem.of(unread, where=entry.path, study=study))
    table.flush()
    left = set(table.missing)
    if left:
        log.warning("%d of %d studies have no features of %s", len(left), len(wanted), member.name)
    kept = [place for place, study in enumerate(wanted) if study not in left]
    return Features(tuple(wanted[place] for place in kept), np.array(table.vectors[kept]), tuple(problems))
