"""Published numbers of video benchmarks: what papers, their code and the survey print, each with where it was read.

The data are the YAML files in ``published/``: a file is a list of tables, a table is a mapping of what its results
share and ``results``, whose keys overwrite that. ``survey.yaml`` holds the survey's own rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from volrec.config.benchmark import Metric
from volrec.errors import ConfigError

__all__ = [
    "SOURCES",
    "SURVEY",
    "PublishedResult",
    "SurveyRow",
    "find_published",
    "load_published",
    "load_survey",
    "parse_published",
    "parse_survey",
    "same_system",
]

SURVEY = "R. Ghosh, 'Deep Learning for Videos: A 2018 Guide to Action Recognition', Qure.ai, 2018"
"""The survey whose table is printed first."""

SOURCES = {
    "T": "read off the paper's table or figure",
    "C": "the authors' code or its README",
    "I": "an issue thread of the code",
    "A": "abstract or running text of the paper",
    "N": "notes of a third person on the paper",
    "X": "computed from score files that the authors published",
    "M": "recalled: not verified",
    "S": "the survey",
}
"""Where a number was read."""

Key = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, Field(min_length=1)]
SourceTag = Literal["T", "C", "I", "A", "N", "X", "M", "S"]
Dataset = Literal[
    "ucf101", "hmdb51", "kinetics", "sports1m", "activitynet", "aslan", "charades", "dvs", "kth", "thumos14", "umd",
    "youtube2text", "yupenn",
]  # fmt: skip
OtherMetric = Literal[
    "accuracy", "group-map", "map", "weighted-map", "bleu4", "meteor", "cider", "perplexity"
]  # of tasks that no protocol here runs
_FOLDER = Path(__file__).parent / "published"
_SURVEY_FILE = "survey.yaml"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PublishedResult(_Frozen):
    """One published number."""

    key: Key
    """Stable name."""
    system: Text
    """As tables and protocols call it."""
    variant: Text
    """What of the system it is of."""
    kind: Literal["headline", "ablation", "replication", "zoo"] = "ablation"
    """The paper's main result; one of its other results; somebody's attempt to get it; a model zoo's."""
    paper: Text
    """Who says it, where."""
    year: Annotated[int, Field(ge=2000, le=2100)]
    """Of that."""
    dataset: Dataset
    """Videos."""
    split: Literal["1", "2", "3", "1,2,3", "val", "test"]
    """Of several: the mean over them."""
    metric: Metric | OtherMetric
    """What was counted; `volrec.config.benchmark.Metric` where a protocol here can give it."""
    value: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    """Percent (perplexity and CIDEr: as published)."""
    source: SourceTag
    """A key of `SOURCES`."""
    protocol: Key | None = None
    """The protocol that stands for it; null: none does."""
    stream: Key | None = None
    """The network of that protocol that it is of, alone; null: all of them, fused."""
    note: str = ""
    """What a reader must know."""

    @model_validator(mode="after")
    def _stream_of_a_protocol(self) -> PublishedResult:
        if self.stream is not None and self.protocol is None:
            raise ValueError("a stream is one of a protocol: name it")
        return self

    @property
    def verified(self) -> bool:
        """Whether it was read somewhere, not recalled."""
        return self.source != "M"

    @property
    def split_ids(self) -> tuple[str, ...]:
        """Ids of its splits (``("ucf101/1", "ucf101/2", "ucf101/3")``)."""
        return tuple(f"{self.dataset}/{part}" for part in self.split.split(","))

    @property
    def text(self) -> str:
        """The number as it is printed: one decimal at least, all that were published."""
        return in_percent(self.value)


class SurveyRow(_Frozen):
    """One row of the survey."""

    key: Key
    """Stable name."""
    system: Text
    """As our tables call it."""
    heading: Text
    """As the survey calls it."""
    variant: Text
    """Its comment on the row, in our words."""
    value: Annotated[float, Field(ge=0, le=100)] | None
    """What it says, percent; null: it gives none."""
    split: Literal["1", ""] = "1"
    """What it says of the split: all its tables are headed split 1 of UCF101."""
    beside: Key | None = None
    """Key of the paper's own number."""
    note: str = ""
    """Where the two differ, and why."""

    @property
    def text(self) -> str:
        """The number as the survey prints it."""
        return "-" if self.value is None else in_percent(self.value)


def in_percent(value: float, *, digits: int = 2) -> str:
    """Return a number with one to `digits` decimals (``94.0``, ``82.92``)."""
    text = f"{value:.{digits}f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


@cache
def load_published() -> tuple[PublishedResult, ...]:
    """Return all published results of the package, in the order of files and tables.

    Raises
    ------
    ConfigError
        A file breaks the schema, or two results have one key.
    """
    found: list[PublishedResult] = []
    for path in sorted(_FOLDER.glob("*.yaml")):
        if path.name != _SURVEY_FILE:
            found.extend(parse_published(path.read_text(encoding="utf-8"), where=str(path)))
    _check_unique(found, where=str(_FOLDER))
    return tuple(found)


@cache
def load_survey() -> tuple[SurveyRow, ...]:
    """Return the survey's rows, in its order.

    Raises
    ------
    ConfigError
        The file breaks the schema, or a row stands beside a result that is not there.
    """
    path = _FOLDER / _SURVEY_FILE
    rows = parse_survey(path.read_text(encoding="utf-8"), where=str(path))
    known = {result.key for result in load_published()}
    lost = [row.beside for row in rows if row.beside is not None and row.beside not in known]
    if lost:
        raise ConfigError(
            f"rows stand beside results that are not published: {', '.join(lost)}.",
            remedy="Give the key of a published result.",
            where=path,
        )
    return rows


def parse_published(text: str, *, where: str) -> tuple[PublishedResult, ...]:
    """Read tables of published results from YAML text.

    Raises
    ------
    ConfigError
        With the place in `where` and the key that is wrong.
    """
    entries: list[dict[str, Any]] = []
    for number, table in enumerate(_as_list(text, where=where), start=1):
        if not isinstance(table, dict) or not isinstance(table.get("results"), list):
            raise ConfigError(f"table {number} has no list `results`.", remedy="Write one.", where=where)
        shared = {key: value for key, value in table.items() if key != "results"}
        for result in table["results"]:
            if not isinstance(result, dict):
                raise ConfigError(
                    f"a result of table {number} is no mapping: {result!r}.", remedy="Write keys.", where=where
                )
            entries.append({**shared, **result})
    results = tuple(_validated(PublishedResult, entry, where=where) for entry in entries)
    _check_unique(results, where=where)
    return results


def parse_survey(text: str, *, where: str) -> tuple[SurveyRow, ...]:
    """Read the survey's rows from YAML text (see `parse_published`)."""
    rows = tuple(_validated(SurveyRow, entry, where=where) for entry in _as_list(text, where=where))
    _check_unique(rows, where=where)
    return rows


def find_published(
    *,
    system: str | None = None,
    dataset: str | None = None,
    protocol: str | None = None,
    kinds: Iterable[str] | None = None,
) -> tuple[PublishedResult, ...]:
    """Return the published results of a system, data set or protocol; what is left out is not asked for.

    Parameters
    ----------
    system : str, optional
        Its name; capitals, spaces and hyphens do not count (``two-stream``).
    dataset, protocol : str, optional
        Their names.
    kinds : iterable of str, optional
        Of `PublishedResult.kind`.

    Raises
    ------
    ConfigError
        No published result is of that system or data set.
    """
    results = load_published()
    if system is not None:
        results = _known(results, [r for r in results if same_system(r.system, system)], "system", system)
    if dataset is not None:
        everywhere = load_published()
        _known(everywhere, [r for r in everywhere if r.dataset == dataset], "dataset", dataset)
        results = tuple(r for r in results if r.dataset == dataset)
    wanted = None if kinds is None else set(kinds)
    return tuple(
        r for r in results if (protocol is None or r.protocol == protocol) and (wanted is None or r.kind in wanted)
    )


def same_system(one: str, other: str) -> bool:
    """Tell whether two names are of one system (``Two-Stream`` and ``two stream`` are)."""
    return _bare(one) == _bare(other)


def _bare(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _known(
    everywhere: Sequence[PublishedResult], found: Sequence[PublishedResult], field: str, asked: str
) -> tuple[PublishedResult, ...]:
    if not found:
        names = ", ".join(dict.fromkeys(getattr(result, field) for result in everywhere))
        raise ConfigError(
            f"no published result is of the {field} '{asked}'.",
            remedy=f"There are: {names}.",
            code=f"unknown-{field}",
        )
    return tuple(found)


def _as_list(text: str, *, where: str) -> list[Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"this is no YAML ({error}).", remedy="Mend it.", where=where) from error
    if not isinstance(content, list):
        raise ConfigError("published results are a list of tables.", remedy="Begin it with `-`.", where=where)
    return content


def _validated(kind: type[Any], entry: Any, *, where: str) -> Any:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        name = entry.get("key", "?") if isinstance(entry, dict) else repr(entry)
        raise ConfigError(
            f"'{name}': {field}: {first['msg']}, got {first['input']!r}.",
            remedy="The fields are those of `volrec.benchmarks.publications`.",
            where=where,
            code="published",
        ) from None


def _check_unique(entries: Iterable[PublishedResult | SurveyRow], *, where: str) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.key in seen:
            raise ConfigError(f"the key '{entry.key}' is there twice.", remedy="Rename one.", where=where)
        seen.add(entry.key)
