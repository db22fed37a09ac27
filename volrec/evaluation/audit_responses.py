"""What a network says of one study under every condition of the context audit, and the journal that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from volrec.data.entries import StoredVolume
from volrec.errors import ConfigError
from volrec.evaluation.audit_conditions import (
    AS_IS,
    FIXED,
    MIDDLE,
    Outside,
    Window,
    own_slices,
    rearranged,
    show,
    show_window,
    spacing_along,
    window_places,
    window_sizes,
)
from volrec.evaluation.audit_memory import Remembering
from volrec.inference.predictor import Ensemble, Predictor

__all__ = ["AuditSettings", "Journal", "Responder", "Responses", "Scan"]

PLACES_SLICEWISE, PLACES = 64, 24
"""Windows of each length: of networks that encode a slice once, and of those that read every clip anew."""


@dataclass(frozen=True)
class AuditSettings:
    """What decides the scores of a study.

    Attributes
    ----------
    seed : int
        Of the permutations, and of the choice of studies.
    shuffles : int
        Permutations a study.
    outside : {"cut", "edge", "blank"}
        What stands in the place of slices outside a window (`audit_conditions.show_window`).
    places : int
        Most windows of one length a study; 0: 64 for slicewise networks, 24 for others.
    """

    seed: int = 0
    shuffles: int = 3
    outside: Outside = "cut"
    places: int = 0

    def __post_init__(self) -> None:
        least = {"seed": 0, "shuffles": 1, "places": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(
                    f"{name} must be at least {low}, got {getattr(self, name)}.",
                    remedy="Leave it out for the usual number.",
                    where=name,
                    code="parameter",
                )
        if self.outside not in ("cut", "edge", "blank"):
            raise ConfigError(
                f"outside must be cut, edge or blank, got {self.outside!r}.",
                remedy="Take cut, where nothing speaks for another.",
                where="outside",
                code="parameter",
            )


@dataclass(frozen=True, eq=False)
class Scan:
    """What a network says of windows of one length.

    Attributes
    ----------
    firsts : ndarray
        (P,) int64: where each begins, from the study's first own slice.
    scores, logits : ndarray
        (P, K') float64, as of `volrec.inference.StudyScore`.
    """

    firsts: np.ndarray
    scores: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True, eq=False)
class Responses:
    """What a network says of one study.

    Attributes
    ----------
    slices : int
        Of the study itself, without padding.
    millimetres : float
        From one slice to the next.
    ignores_order : bool
        As of `Remembering.ignores_order`.
    fixed : dict of str to ndarray
        (K',) scores by condition (`audit_conditions.FIXED`).
    scans : dict of int to Scan
        By length of the window.
    """

    slices: int
    millimetres: float
    ignores_order: bool
    fixed: dict[str, np.ndarray]
    scans: dict[int, Scan]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "slices": self.slices,
            "millimetres": self.millimetres,
            "ignores_order": self.ignores_order,
            "fixed": {name: values.tolist() for name, values in self.fixed.items()},
            "scans": {
                str(size): {key: value.tolist() for key, value in vars(scan).items()}
                for size, scan in self.scans.items()
            },
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Responses:
        """Take up what `to_json` gave."""
        scans = {}
        for size, scan in plain["scans"].items():
            scores, logits = (np.asarray(scan[key], dtype=np.float64) for key in ("scores", "logits"))
            scans[int(size)] = Scan(np.asarray(scan["firsts"], dtype=np.int64), scores, logits)
        fixed = {name: np.asarray(values, dtype=np.float64) for name, values in plain["fixed"].items()}
        if set(fixed) != set(FIXED):
            raise ValueError("conditions are missing")
        return cls(int(plain["slices"]), float(plain["millimetres"]), bool(plain["ignores_order"]), fixed, scans)


class Responder:
    """Several predictors, their mean, asked about studies under every condition.

    Parameters
    ----------
    predictors : sequence of Predictor
        Members of a run, or one alone.
    settings : AuditSettings
        See there.

    Raises
    ------
    ConfigError
        The networks read flow pictures that somebody else made: of other slices there are none.
    """

    def __init__(self, predictors: Iterable[Predictor], settings: AuditSettings) -> None:
        self._members = [Remembering(predictor) for predictor in predictors]
        self._ensemble = Ensemble([member.predictor for member in self._members])
        self.settings = settings
        streams = self._members[0].predictor.streams
        if streams.field is not None and streams.flow.method == "folder":
            raise ConfigError(
                "the network reads pictures of flow from a folder, and there are none of slices in another order.",
                remedy="Train with a flow that volrec computes (streams.flow.method) to audit its use of context.",
                where="streams.flow.method",
                code="audit-flow",
            )
        slicewise = all(member.slicewise for member in self._members)
        self._places = settings.places or (PLACES_SLICEWISE if slicewise else PLACES)

    def respond(self, volume: StoredVolume, *, study: str) -> Responses:
        """Score one study under every condition.

        Parameters
        ----------
        volume : StoredVolume
            The study, with its fields where the network reads some.
        study : str
            Its name, of which its permutations are drawn.

        Raises
        ------
        DataError, ConfigError
            As `Predictor.score`.
        """
        try:
            return self._respond(volume, study)
        finally:
            for member in self._members:
                member.forget()

    def _respond(self, volume: StoredVolume, study: str) -> Responses:
        low, high = own = own_slices(volume)
        count = high - low
        fixed = {AS_IS: self._ensemble.score(volume).scores}
        ignores = all(member.ignores_order() for member in self._members)
        array = volume.read()
        scans = {}
        for size in window_sizes(count):
            firsts = window_places(count, size, most=self._places)
            found = [self._window(volume, array, low + first, size) for first in firsts]
            scores, logits = (np.stack(values) for values in zip(*found, strict=True))
            scans[size] = Scan(np.asarray(firsts, dtype=np.int64), scores, logits)
        singles = scans[1]
        fixed[MIDDLE] = singles.scores[singles.firsts.tolist().index(count // 2)]
        for name in ("shuffled", "reversed", "every second slice"):
            draws = self.settings.shuffles if name == "shuffled" else 1
            moved = [
                rearranged(name, len(array), own, study=study, seed=self.settings.seed, draw=draw)
                for draw in range(draws)
            ]
            scored = [self._ensemble.score(show(volume, array, places)).scores for places in moved]
            fixed[name] = np.mean(scored, axis=0)
        half = (count + 1) // 2
        fixed["first half"] = self._window(volume, array, low, half)[0]
        fixed["second half"] = self._window(volume, array, high - half, half)[0]
        return Responses(count, spacing_along(volume), ignores, fixed, scans)

    def _window(self, volume: StoredVolume, array: np.ndarray, first: int, slices: int) -> tuple[np.ndarray, ...]:
        window = Window(first, slices)
        score = self._ensemble.score(show_window(volume, array, window, outside=self.settings.outside))
        return score.scores, score.logits


class Journal:
    """What was found for each study, a line each, so that an interrupted audit goes on where it was.

    A line counts when it is whole and bears the key of what it was made with (weights, settings, voxels), so neither an
    interruption nor a change can leave a wrong one behind.

    Parameters
    ----------
    path : path
        ``audit.jsonl``; its folder must exist.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def read(self) -> dict[str, Responses]:
        """Return what is there, by key."""
        found: dict[str, Responses] = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return found
        for line in lines:
            try:
                entry = json.loads(line)
                found[entry["key"]] = Responses.from_json(entry["responses"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that was being written when the process died
        return found

    def __enter__(self) -> Journal:
        self._file = open(self.path, "a", encoding="utf-8")
        if self._file.tell():
            self._file.write("\n")  # the last line may have no end
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, key: str, responses: Responses) -> None:
        """Write one study down; it is with the system when this returns."""
        if self._file is None:
            raise ValueError("the journal is not open")
        self._file.write(json.dumps({"key": key, "responses": responses.to_json()}) + "\n")
        self._file.flush()
