"""What can go wrong for a user: one sentence on what was seen, one on what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["ConfigError", "DataError", "LabelsError", "Problem", "RunError", "StoreError", "VolrecError"]


class VolrecError(Exception):
    """A fault that a user can mend; the command line prints it without a traceback.

    Parameters
    ----------
    problem : str
        One sentence: what is wrong, with the value that was seen.
    remedy : str, optional
        One sentence: what to do about it.
    where : path or str, optional
        The file, folder or configuration field concerned.
    code : str, optional
        A short stable slug for tables and tests, for example ``"missing-slices"``.
    """

    def __init__(self, problem: str, *, remedy: str = "", where: Path | str | None = None, code: str = "") -> None:
        super().__init__(problem, remedy, where, code)
        self.problem = problem
        self.remedy = remedy
        self.where = "" if where is None else str(where)
        self.code = code

    def __str__(self) -> str:
        head = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{head} {self.remedy}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments would be lost by the default, and errors cross process borders here.
        return _rebuild, (type(self), self.problem, self.remedy, self.where, self.code)


def _rebuild(kind: type[VolrecError], problem: str, remedy: str, where: str, code: str) -> VolrecError:
    return kind(problem, remedy=remedy, where=where or None, code=code)


class ConfigError(VolrecError):
    """A configuration, recipe, plan or command-line value that cannot be used."""


class DataError(VolrecError):
    """A file, series or study that cannot be read as a volume: it is quarantined."""


class LabelsError(VolrecError):
    """A table of labels, or a split, that does not fit the studies."""


class StoreError(VolrecError):
    """The store of decoded volumes cannot be written or read."""


class RunError(VolrecError):
    """A run folder, its weights or its scores that cannot be used."""


@dataclass(frozen=True)
class Problem:
    """One line of the quarantine: what was left out or assumed, why, and what to do.

    Attributes
    ----------
    where : str
        File or folder, relative to the scanned root where possible.
    code : str
        Stable slug (``"truncated"``, ``"missing-slices"`` …).
    reason, remedy : str
        What is wrong with the value seen; what to do.
    study : str
        Study concerned, where known.
    fatal : bool
        True: the file or series is not used. False: used, with this assumption or correction.
    """

    where: str
    code: str
    reason: str
    remedy: str = ""
    study: str = ""
    fatal: bool = True

    @classmethod
    def of(cls, error: VolrecError, *, where: str = "", study: str = "") -> Problem:
        """Turn a raised error into a quarantine line."""
        return cls(where or error.where, error.code or "unusable", error.problem, error.remedy, study)

    def as_dict(self) -> dict[str, object]:
        """Return the fields as a plain dictionary, for JSON and tables."""
        return asdict(self)
