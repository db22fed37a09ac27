"""What a benchmark run leaves behind, ``benchmark.json``: its numbers, and all that they depend on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from volrec.config.benchmark import Metric
from volrec.errors import RunError
from volrec.files import write_atomically

__all__ = [
    "FILE",
    "BenchmarkResult",
    "Decoder",
    "Deviation",
    "SplitResult",
    "WeightsUsed",
    "find_results",
    "read_result",
    "write_result",
]

FILE = "benchmark.json"
"""Name of the file in a run folder."""

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Metrics = dict[Metric, Percent]

_LOG = logging.getLogger(__name__)


class _Frozen(BaseModel):
    """Facts: unknown keys are errors, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Deviation(_Frozen):
    """One thing that was done otherwise than in the paper."""

    field: str
    """Which, as the protocol calls it (``streams.flow.motion.estimator``)."""
    paper: Any
    """What the paper does, plain JSON."""
    here: Any
    """What was done here, plain JSON."""


class WeightsUsed(_Frozen):
    """The weights of one stream."""

    file: str
    """Name of the file, or of the registered weights."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file."""
    origin: Literal["trained here", "given"]
    """Whether volrec trained them for this benchmark, or somebody else did."""
    stream: str = ""
    """Which network they are of."""
    split: str = ""
    """Which split they are for; empty: all."""


class Decoder(_Frozen):
    """What turned video files into frames."""

    name: str
    """``pyav``, ``opencv``, ``torchcodec``, ``frames``."""
    version: str
    """Of the library."""


class SplitResult(_Frozen):
    """Numbers of one split."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+/[a-z0-9-]+$")]
    """``ucf101/1``."""
    digest: str
    """Of the names on both sides, as listed."""
    official: bool
    """Whether papers report on it."""
    evaluated: Annotated[int, Field(ge=1)]
    """Test videos that the numbers are of."""
    listed: Annotated[int, Field(ge=1)]
    """Test videos of the split's list."""
    metrics: Metrics
    """Of the whole system (streams fused), percent."""
    streams: dict[str, Metrics] = Field(default_factory=dict)
    """Of each stream alone, percent."""

    @model_validator(mode="after")
    def _no_more_than_listed(self) -> SplitResult:
        if self.evaluated > self.listed:
            raise ValueError(f"{self.id} lists {self.listed} test videos, {self.evaluated} cannot have been evaluated")
        return self


class BenchmarkResult(_Frozen):
    """The numbers of one benchmark run with everything they depend on.

    `metrics` is the mean over `splits`: left out, it is computed; given, it must be that.
    """

    version: Literal[1] = 1
    """Of this file's layout."""
    dataset: str
    """``ucf101``, ``hmdb51``, ``kinetics``, ``sports1m``, ``motion``, ``list``."""
    protocol: str
    """Name of the protocol."""
    splits: Annotated[list[SplitResult], Field(min_length=1)]
    """One entry a split that was run."""
    metrics: Metrics = Field(default_factory=dict)
    """Mean over splits, percent."""
    streams: list[str] = Field(default_factory=list)
    """Networks whose scores were fused."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}([T ].*)?$")]
    """When it ended, ISO 8601."""
    weights: list[WeightsUsed] = Field(default_factory=list)
    """All that were used."""
    decoder: Decoder
    """Of the videos."""
    deviations: list[Deviation] = Field(default_factory=list)
    """What differs from the paper's protocol."""
    versions: dict[str, Any] = Field(default_factory=dict)
    """As `volrec.versions.collect_versions` gives them."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Channels of the networks, in those of the paper."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Side of what the networks see, in that of the paper."""
    seed: int | None = None
    """Of the random numbers."""
    folder: Path | None = Field(default=None, exclude=True)
    """Where it was read from; not in the file."""

    @model_validator(mode="before")
    @classmethod
    def _mean(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("metrics") and isinstance(value.get("splits"), (list, tuple)):
            tables = [dict(s.metrics if isinstance(s, SplitResult) else s.get("metrics", {})) for s in value["splits"]]
            value = {**value, "metrics": _means(tables)}
        return value

    @model_validator(mode="after")
    def _whole(self) -> BenchmarkResult:
        ids = [split.id for split in self.splits]
        if len(set(ids)) != len(ids):
            raise ValueError(f"a split is there once, got {', '.join(ids)}")
        strangers = [name for name in ids if name.split("/")[0] != self.dataset]
        if strangers:
            raise ValueError(f"splits of '{self.dataset}' begin with its name, got {', '.join(strangers)}")
        means = _means([dict(split.metrics) for split in self.splits])
        if means.keys() != self.metrics.keys() or any(abs(means[m] - self.metrics[m]) > 1e-6 for m in means):
            raise ValueError(f"metrics are means over splits ({means}), got {dict(self.metrics)}")
        return self

    @property
    def differences(self) -> tuple[Deviation, ...]:
        """`deviations`, and those that other fields tell of: width, scale, videos that were left out."""
        found = list(self.deviations)
        named = {deviation.field for deviation in found}
        for field in ("width", "scale"):
            here = getattr(self, field)
            if here != 1 and not any(field in name.split(".") for name in named):
                found.append(Deviation(field=field, paper=1, here=here))
        evaluated, listed = self.counts()
        if evaluated < listed and "test videos" not in named:
            found.append(Deviation(field="test videos", paper=listed, here=evaluated))
        return tuple(found)

    @property
    def leaks(self) -> tuple[Deviation, ...]:
        """Deviations that say that weights had seen the test videos: the numbers are no result."""
        return tuple(one for one in self.deviations if str(one.here).startswith("LEAK"))

    def counts(self, splits: Iterable[str] | None = None) -> tuple[int, int]:
        """Return how many test videos were evaluated and listed, over all or the named splits."""
        chosen = self._chosen(splits)
        return sum(split.evaluated for split in chosen), sum(split.listed for split in chosen)

    def value(self, metric: str, *, splits: Iterable[str] | None = None, stream: str | None = None) -> float | None:
        """Return a metric's mean over splits, percent; None where a split lacks it or is not there.

        Parameters
        ----------
        metric : str
            One of `volrec.config.benchmark.Metric`.
        splits : iterable of str, optional
            Ids; all of the run by default.
        stream : str, optional
            A network alone instead of the whole.
        """
        wanted = None if splits is None else list(splits)
        chosen = self._chosen(wanted)
        if not chosen or (wanted is not None and len(chosen) != len(set(wanted))):
            return None
        tables = [split.metrics if stream is None else split.streams.get(stream, {}) for split in chosen]
        return _means([dict(table) for table in tables]).get(metric)

    def _chosen(self, splits: Iterable[str] | None) -> list[SplitResult]:
        wanted = None if splits is None else set(splits)
        return [split for split in self.splits if wanted is None or split.id in wanted]


def write_result(folder: Path | str, result: BenchmarkResult) -> Path:
    """Write ``benchmark.json`` into a run folder, whole or not at all, and return its path."""
    path = Path(folder) / FILE
    write_atomically(path, json.dumps(result.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
    return path


def read_result(path: Path | str) -> BenchmarkResult:
    """Read the result of a run.

    Parameters
    ----------
    path : path
        The run folder, or the file in it.

    Returns
    -------
    BenchmarkResult
        With `folder`.

    Raises
    ------
    RunError
        There is none, or it is not what a benchmark run writes.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"there is no {FILE}.",
            remedy="Give the folder of a finished `volrec benchmark run`.",
            where=path,
            code="no-benchmark",
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{FILE} cannot be read ({error}).", remedy="Run the benchmark again.", where=file, code="bad-benchmark"
        ) from error
    try:
        result = BenchmarkResult.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise RunError(
            f"this is no result of a benchmark run ({field}: {first['msg']}).",
            remedy="Run the benchmark again, with this version of volrec.",
            where=file,
            code="bad-benchmark",
        ) from error
    return result.model_copy(update={"folder": file.parent})


def find_results(places: Path | str | Iterable[Path | str]) -> list[BenchmarkResult]:
    """Return the results of run folders, and of all run folders below a root, each once, in order of their paths.

    A file that cannot be read is told in the log and left out; a place that does not exist is an error.

    Raises
    ------
    RunError
        A place does not exist.
    """
    files: dict[Path, None] = {}
    for place in [places] if isinstance(places, (str, Path)) else places:
        place = Path(place)
        if not place.exists():
            raise RunError(
                "this folder does not exist.", remedy="Give run folders, or a folder that holds some.", where=place
            )
        found = sorted(place.rglob(FILE)) if place.is_dir() else [place]
        files.update(dict.fromkeys(file.resolve() for file in found))
    results = []
    for file in files:
        try:
            results.append(read_result(file))
        except RunError as error:
            _LOG.warning("%s It is left out.", error)
    return results


def _means(tables: list[dict[Any, float]]) -> dict[Any, float]:
    """Return the mean of every metric that all tables have."""
    if not tables:
        return {}
    return {name: sum(t[name] for t in tables) / len(tables) for name in tables[0] if all(name in t for t in tables)}
