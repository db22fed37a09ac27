"""Studies decoded while others are scored: in bounded memory, whatever their number."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.data.entries import StoredVolume
from volrec.data.slice_labels import AXIS, slice_positions
from volrec.data.store import HasSeries, preprocess_volume
from volrec.data.streams import add_streams, check_streams
from volrec.errors import DataError, Problem, VolrecError
from volrec.inference.differences import Learned, differences
from volrec.inference.members import Contract, LoadedMember
from volrec.inference.predictor import Ensemble, StudyScore
from volrec.io import Series, read_series
from volrec.parallel import available_cpus
from volrec.progress import progress

if TYPE_CHECKING:
    from volrec.data.index import StudyRecord

__all__ = ["Chosen", "Facts", "Queue", "Waiting", "decode_and_score"]

log = logging.getLogger(__name__)

AHEAD = 1
"""Studies decoded while one is scored."""


@dataclass(frozen=True)
class Chosen:
    """A study with the series that suits the run."""

    study: str
    patient: str
    series: Series


@dataclass(frozen=True, eq=False)
class Facts:
    """What is told of a decoded study beside its scores.

    Attributes
    ----------
    slices : int
        Slices of the study along the slice axis, before resampling.
    numbers : ndarray
        (T,) the acquired slice nearest to each slice that the network was given, from 0 in canonical order (as in a
        table of slice labels); -1 for padding.
    positions : ndarray
        (T,) mm along the slice axis, as `volrec.data.slice_labels.slice_positions`.
    warning : str
        Where it differs from the training data.
    """

    slices: int
    numbers: np.ndarray
    positions: np.ndarray
    warning: str


@dataclass(frozen=True)
class Waiting:
    """A study whose turn has not come: light, its headers are on the disk.

    Attributes
    ----------
    study, patient : str
        Its names.
    source : str
        Changes with the series or its files.
    slices : int
        As assembled: how long it will take.
    place : int
        Where in the queue's file it lies.
    """

    study: str
    patient: str
    source: str
    slices: int
    place: int


class Queue:
    """The studies of a folder, their headers in a temporary file: thousands of them take no memory.

    Parameters
    ----------
    records : iterable of StudyRecord
        Of an index.
    contract : Contract
        Chooses the series.
    """

    def __init__(self, records: Iterable[StudyRecord], contract: Contract) -> None:
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115  (closed by `close`)
        self.waiting: list[Waiting] = []
        for record in records:
            series = _suited(record, contract)
            place = self._file.tell()
            self._file.write(json.dumps(series.to_json()).encode("utf-8", "surrogatepass") + b"\n")
            source = f"{series.uid} {series.signature}"
            self.waiting.append(Waiting(record.study, record.patient, source, series.shape[0], place))

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, waiting: Waiting) -> Chosen:
        """Return a study with its headers."""
        self._file.seek(waiting.place)
        series = Series.from_json(json.loads(self._file.readline().decode("utf-8", "surrogatepass")))
        return Chosen(waiting.study, waiting.patient, series)


def decode_and_score(
    members: Sequence[LoadedMember],
    studies: Iterable[HasSeries],
    *,
    weights: Sequence[int],
    jobs: int = 0,
    learned: Learned | None = None,
    per_slice: bool = False,
    description: str = "",
) -> Generator[tuple[Any, StudyScore | Problem, Facts | None], None, None]:
    """Decode and score studies one after another, the next one being decoded meanwhile.

    Parameters
    ----------
    members : sequence of LoadedMember
        Averaged; all of one run, so that they read the same volumes.
    studies : iterable of HasSeries
        Asked for one ahead.
    weights : sequence of int
        Slices of each of them: the remaining time counts slices.
    jobs : int
        Processes that decode compressed slices; 0 takes the processors at hand.
    learned : Learned, optional
        What studies are compared with.
    per_slice : bool
        Ask for the scores of every slice.
    description : str
        Of the progress bar.

    Yields
    ------
    study, StudyScore or Problem, Facts or None
        In the order given; a study that cannot be read or scored gives its problem.

    Raises
    ------
    ConfigError
        What the streams of the run need is not here: a package, or the folder of flow pictures.
    """
    ensemble = Ensemble([member.predictor for member in members])
    contract = members[0].contract
    check_streams(contract.streams, trained_on=str(members[0].card.get("field_source") or ""))
    jobs = jobs if jobs > 0 else available_cpus()
    waiting: deque[tuple[HasSeries, Future[tuple[StoredVolume, Facts]]]] = deque()
    todo, sizes = iter(studies), iter(weights)
    description = description or f"scoring {len(weights)} studies, by slices"
    with progress(description, sum(weights)) as bar, ThreadPoolExecutor(1) as pool:
        try:
            while True:
                for study in todo:
                    waiting.append((study, pool.submit(_decode, study, contract, jobs, learned)))
                    if len(waiting) > AHEAD:
                        break
                if not waiting:
                    return
                study, decoded = waiting.popleft()
                result: StudyScore | Problem
                facts: Facts | None = None
                try:
                    volume, facts = decoded.result()
                    result = ensemble.score(volume, per_slice=per_slice)
                except Exception as error:  # noqa: BLE001 - one bad study never stops a folder
                    result = _problem(study, error)
                # The next study is being decoded: this one's voxels are not needed any more.
                volume = decoded = None  # type: ignore[assignment]
                bar.advance(next(sizes))
                yield study, result, facts
        finally:
            for _, future in waiting:
                future.cancel()


def _decode(study: HasSeries, contract: Contract, jobs: int, learned: Learned | None) -> tuple[StoredVolume, Facts]:
    series, preprocess = study.series, contract.preprocess
    volume = read_series(series, slice_axis=preprocess.slice_axis, missing_slices=contract.missing_slices, jobs=jobs)
    stored = preprocess_volume(volume, preprocess)
    facts = _facts(series, stored, contract, learned)
    return add_streams(stored, contract.streams, contract.intensity, study=study.study), facts


def _facts(series: Series, stored: StoredVolume, contract: Contract, learned: Learned | None) -> Facts:
    shape, affine = stored.meta["source_shape"], np.asarray(stored.meta["source_affine"], dtype=np.float64)
    count, plane = int(shape[0]), str(stored.meta["slice_axis"])
    middle = [(size - 1) / 2 for size in stored.shape[1:]]
    grid = np.array([[number, *middle, 1.0] for number in range(stored.shape[0])])
    where = (grid @ (np.linalg.inv(affine) @ stored.affine).T)[:, 0]
    if plane == series.orientation:
        known = slice_positions(series)
    else:  # slices of another plane than those acquired: where their centres lie
        centres = np.array([[number, (shape[1] - 1) / 2, (shape[2] - 1) / 2, 1.0] for number in range(count)])
        known = centres @ affine[AXIS[plane]]
    numbers = np.rint(where).astype(int)
    numbers[(numbers < 0) | (numbers >= count)] = -1
    found = differences(series, contract, learned=learned, source=(shape, affine))
    # Resampled slices may lie up to half a slice beyond the first and the last.
    beyond = known[:1] if count < 2 else 2 * known[[0, -1]] - known[[1, -2]]
    positions = np.interp(where, np.arange(-1, count + 1), [beyond[0], *known, beyond[-1]])
    return Facts(count, numbers, positions, "; ".join(found))


def _suited(record: StudyRecord, contract: Contract) -> Series:
    """Take the study's chosen series, or one of the modality that the run was trained on, where it has one."""
    series = record.series
    if contract.modality and series.modality != contract.modality:
        fitting = (one for one in record.alternatives if one.modality == contract.modality)
        series = next((one for one in fitting if one.usable and not one.localizer), series)
    return series


def _problem(study: HasSeries, error: Exception) -> Problem:
    if not isinstance(error, VolrecError):
        error = DataError(
            f"it could not be scored ({type(error).__name__}: {error}).",
            remedy="Open it in a viewer to see whether the file is sound; if it is, please report this.",
            code="unexpected",
        )
    log.warning("%s is left out: %s", study.study, error)
    return Problem.of(error, where=error.where or study.series.path, study=study.study)
