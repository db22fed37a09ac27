"""The folder of a run: config, versions, tables, metrics, log and members of one training."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.config import AnyConfig, Section, TrainConfig, dump_yaml, kind_of, load_config
from volrec.errors import ConfigError, Problem, RunError
from volrec.runs.member import Member
from volrec.runs.parts import cannot_write, missing, read_json, write_part
from volrec.versions import collect_versions

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self

__all__ = ["RunFolder"]

TEXT_COLUMNS = ("study", "patient", "series", "path", "split", "fold", "where", "code", "reason", "remedy")


class RunFolder:
    """A folder with config, versions, tables, members, metrics, log and report of one training.

    ``RunFolder.create`` starts one, ``RunFolder.open`` reads one; the constructor looks at nothing. A subclass for
    another kind of training sets `schema`.

    Parameters
    ----------
    path : path
        The folder.
    """

    schema: type[Section] = TrainConfig

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def resume_command(self) -> str:
        """What goes on with this run on the command line."""
        return f"volrec {kind_of(self.schema)} --resume {shlex.quote(str(self.path))}"

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: AnyConfig,
        *,
        reasons: Mapping[str, str] | None = None,
        resume: bool = False,
    ) -> Self:
        """Start a run folder, or take up an unfinished one.

        Parameters
        ----------
        path : path
            New or empty, unless `resume`.
        config : TrainConfig
            Written as ``config.yaml``; when resuming, the one that is there is kept.
        reasons : mapping, optional
            From dotted key to one line of why, written as comments.
        resume : bool
            Go on with the run that is there.

        Raises
        ------
        RunError
            The folder holds something else, or a run that would be overwritten, or nothing to resume.
        """
        run = cls(path)
        if resume:
            return cls.open(path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            if run.finished:
                problem, remedy = "it holds a finished run.", "Choose another folder, or delete this one."
            elif (run.path / "config.yaml").is_file():
                problem = "it holds a run that has not finished."
                remedy = f"Go on with `{run.resume_command}`, or choose another folder."
            else:
                problem, remedy = "it is not empty and holds no volrec run.", "Choose a new folder for the run."
            raise RunError(problem, remedy=remedy, where=run.path, code="run-exists")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(run.path, error) from error
        run.write_versions()
        run.write_config(config, reasons)  # last: its presence makes the folder a run
        return run

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Take up a run that exists.

        Raises
        ------
        RunError
            There is no such folder, or it is no run.
        """
        run = cls(path)
        wanted = f"Give the folder that `volrec {kind_of(cls.schema)}` wrote (runs/…)."
        if not run.path.is_dir():
            raise RunError(
                "there is no such folder.",
                remedy=wanted,
                where=run.path,
                code="not-a-run",
            )
        if not (run.path / "config.yaml").is_file():
            inside = run.path.parent / "config.yaml"
            hint = f" The run is the folder above: {run.path.parent}." if inside.is_file() else ""
            raise RunError(
                "it is not a volrec run folder: config.yaml is missing.",
                remedy=f"{wanted}{hint}",
                where=run.path,
                code="not-a-run",
            )
        return run

    # Config and versions

    @property
    def config(self) -> Any:
        """The configuration of the run, a `TrainConfig` or what `schema` says.

        Raises
        ------
        RunError
            When it is missing or no longer valid.
        """
        try:
            return load_config(self.path / "config.yaml", schema=self.schema)
        except ConfigError as error:
            other = f"Give a run of `volrec {kind_of(self.schema)}`; weights of others go with --init or --teacher."
            remedy = other if error.code == "config-kind" else error.remedy
            raise RunError(error.problem, remedy=remedy, where=error.where, code="run-config") from error

    def write_config(self, config: Section, reasons: Mapping[str, str] | None = None) -> None:
        """Write ``config.yaml``, one comment a reason."""
        write_part(self.path / "config.yaml", dump_yaml(config, reasons))

    @property
    def versions(self) -> dict[str, Any]:
        """What the run was made with."""
        return read_json(self.path / "versions.json")

    def write_versions(self, **facts: Any) -> None:
        """Write ``versions.json``; `facts` (device …) are added."""
        write_part(self.path / "versions.json", json.dumps({**collect_versions(), **facts}, indent=2) + "\n")

    # Tables: index, splits, quarantine, scores

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write ``NAME.csv`` (index, splits, scores …), all or nothing, and return its path."""
        path = self.path / f"{name}.csv"
        write_part(path, table.to_csv(index=False))
        return path

    def read_table(self, name: str) -> pd.DataFrame:
        """Read ``NAME.csv``; identifiers stay text.

        Raises
        ------
        RunError
            When it is missing: the message says what would write it.
        """
        import pandas as pd

        path = self.path / f"{name}.csv"
        if not path.is_file():
            raise missing(path, self.path)
        header = pd.read_csv(path, nrows=0).columns
        kinds: dict[Any, Any] = {column: str for column in TEXT_COLUMNS if column in header}
        return pd.read_csv(path, dtype=kinds, keep_default_na=True)

    def write_quarantine(self, problems: Iterable[Problem]) -> None:
        """Write ``quarantine.csv``: what was left out or assumed, and why."""
        import pandas as pd

        columns = list(Problem.__dataclass_fields__)
        self.write_table("quarantine", pd.DataFrame([problem.as_dict() for problem in problems], columns=columns))

    def quarantine(self) -> list[Problem]:
        """Return the lines of ``quarantine.csv``; none when it was not written."""
        if not (self.path / "quarantine.csv").is_file():
            return []
        table = self.read_table("quarantine")
        texts = [column for column in table.columns if column != "fatal"]
        table[texts] = table[texts].fillna("").astype(str)
        rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
        return [Problem(**{**row, "fatal": bool(row["fatal"])}) for row in rows]

    def scores(self) -> pd.DataFrame:
        """Return ``scores.csv``: a row a study and split."""
        return self.read_table("scores")

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics with their intervals."""
        path = self.path / "metrics.json"
        if not path.is_file():
            raise missing(path, self.path)
        return read_json(path)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``."""
        self.write_facts("metrics", metrics)

    def facts(self, name: str) -> dict[str, Any]:
        """Return what a command found of the run and left in ``NAME.json``; empty where there is none."""
        path = self.path / f"{name}.json"
        return read_json(path) if path.is_file() else {}

    def write_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write ``NAME.json``."""
        write_part(self.path / f"{name}.json", json.dumps(dict(facts), indent=2, default=_plain) + "\n")

    # Members

    def member(self, name: str) -> Member:
        """Return the member of a split, there or not."""
        return Member(self.path / name)

    @property
    def members(self) -> list[Member]:
        """Members that have been begun, ``fold-2`` before ``fold-10``."""
        folders = [child for child in self.path.iterdir() if child.is_dir()] if self.path.is_dir() else []
        begun = [Member(folder) for folder in folders if _is_member(folder)]
        return sorted(begun, key=lambda member: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", member.name)])

    def trainings_of(self, member: Member) -> list[Member]:
        """Return the trainings of a member in the order of its stages, the member itself last."""
        stages = getattr(self.config, "stages", None) or []
        return [*(member.stage(stage.name) for stage in stages[:-1]), member]

    def finished_members(self) -> list[Member]:
        """Return the members whose weights can be used.

        Raises
        ------
        RunError
            When there is none.
        """
        finished = [member for member in self.members if member.finished]
        if finished:
            return finished
        raise RunError(
            "no member of this run has finished its training.",
            remedy=f"Go on with `{self.resume_command}`.",
            where=self.path,
            code="no-member",
        )

    @property
    def finished(self) -> bool:
        """Whether the training, its scores and its metrics are complete."""
        return (self.path / "finished").is_file()

    def finish(self) -> None:
        """Mark the run as complete: from now on it is not overwritten."""
        write_part(self.path / "finished", "")

    # Log and report

    @property
    def report_path(self) -> Path:
        """``report.html``."""
        return self.path / "report.html"

    @contextmanager
    def logging(self, level: int = logging.INFO) -> Iterator[None]:
        """Append what volrec logs during the block to ``log.txt``."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handler.setLevel(level)
        logger = logging.getLogger("volrec")
        before = logger.level
        logger.addHandler(handler)
        if logger.getEffectiveLevel() > level:
            logger.setLevel(level)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
            handler.close()


def _is_member(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("weights.safetensors", "card.json", "last.ckpt", "history.csv"))


def _plain(value: Any) -> Any:
    """Turn NumPy scalars and arrays into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
