"""Studies to look at, runs to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volrec.config import TrainConfig
from volrec.errors import ConfigError, LabelsError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from volrec.api.fusion import FusedRun
    from volrec.data.index import StudyIndex
    from volrec.data.labels import Cohort
    from volrec.io import Volume
    from volrec.networks import SequenceNetwork
    from volrec.runs import RunFolder

__all__ = ["Run", "evaluate_run", "index", "load", "make_phantoms", "read_volume", "score_labelled"]


def index(folder: Path | str, *, jobs: int = 0, refresh: bool = False) -> StudyIndex:
    """Find the studies of a folder.

    Parameters
    ----------
    folder : path
        Any tree of DICOM or NIfTI files, any names.
    jobs : int
        Processes that read headers; 0 takes the processors at hand.
    refresh : bool
        Read every header again instead of using the cache.

    Returns
    -------
    StudyIndex
        ``.table`` (a row a series), ``.studies``, ``.problems``, ``.write(path)``.

    Raises
    ------
    DataError
        The folder is missing, empty, or holds no image.
    """
    from volrec.data.index import index as scan

    return scan(folder, jobs=jobs, refresh=refresh)


def read_volume(
    path: Path | str,
    *,
    slice_axis: Literal["acquired", "axial", "coronal", "sagittal"] = "acquired",
    missing_slices: Literal["quarantine", "interpolate"] = "quarantine",
) -> Volume:
    """Read one DICOM series folder, or one file, into a volume in canonical orientation.

    Parameters
    ----------
    path : path
        Folder of one series, or a NIfTI or multi-frame DICOM file.
    slice_axis : str
        Plane that becomes the slices; ``acquired`` keeps the series' own.
    missing_slices : str
        ``interpolate`` fills a single missing slice; ``quarantine`` refuses it.

    Returns
    -------
    Volume
        ``array`` (1, T, H, W), int16 or float32, HU for CT; ``affine`` 4x4, (t, h, w, 1) to LPS mm; ``meta``.

    Raises
    ------
    DataError
        With what is wrong and what to do.
    """
    from volrec.io import read_volume as read

    return read(path, slice_axis=slice_axis, missing_slices=missing_slices)


def make_phantoms(out: Path | str, *, task: Literal["nodule", "bleed", "motion"] = "nodule", **options: Any) -> Path:
    """Write DICOM CT phantoms with their labels (see `volrec.data.phantoms`)."""
    from volrec.data.phantoms import make_phantoms as make

    return make(out, task=task, **options)


def load(path: Path | str) -> Run | FusedRun:
    """Open a run folder, or a folder that `volrec.fuse` wrote.

    Raises
    ------
    RunError
        It is no run folder, or holds no finished member.
    """
    from volrec.inference.fused import FusedFolder
    from volrec.runs import RunFolder

    if FusedFolder(path).exists:
        from volrec.api.fusion import FusedRun

        return FusedRun(FusedFolder(path))
    folder = RunFolder.open(path)
    folder.config  # noqa: B018  (raises for a run of another command, before something is scored with it)
    return Run(folder)


class Run:
    """A finished training: its networks, scores and metrics, and what they say of new studies.

    Parameters
    ----------
    folder : RunFolder
        The run on disk.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.path = folder.path

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    @property
    def config(self) -> TrainConfig:
        """The configuration that was obeyed."""
        return self.folder.config

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics with their intervals, as in ``metrics.json``."""
        return self.folder.metrics

    @property
    def scores(self) -> pd.DataFrame:
        """Scores of the run's own test studies, a row a study."""
        return self.folder.scores()

    @property
    def problems(self) -> list[Problem]:
        """Quarantined studies."""
        return self.folder.quarantine()

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder.report_path

    @property
    def network(self) -> SequenceNetwork:
        """The network of the first member, in evaluation mode."""
        return self.networks[0]

    @property
    def networks(self) -> list[SequenceNetwork]:
        """One network a member (fold), in evaluation mode."""
        from volrec.inference import load_members

        return [member.network for member in load_members(self.folder)]

    def predict(self, folder: Path | str, *, device: str = "auto") -> pd.DataFrame:
        """Score every study of a folder: a row a study; what was quarantined is in ``.attrs["problems"]``."""
        from volrec.inference import predict_folder

        table, problems = predict_folder(self.folder, folder, device=None if device == "auto" else device)
        table.attrs["problems"] = [problem.as_dict() for problem in problems]
        return table

    def evaluate(self, folder: Path | str | None = None, *, labels: Path | str | None = None) -> dict[str, Any]:
        """Metrics with 95 % intervals, of the run's own test studies or of another folder with labels."""
        return evaluate_run(self, folder, labels=labels)[0]

    def _score_labelled(
        self, folder: Path | str, labels: Path | str | None, *, include_training: bool
    ) -> tuple[pd.DataFrame, dict[str, Any], list[Problem]]:
        splits = None if include_training else self.folder.read_table("splits")
        return score_labelled(self, folder, labels, splits=splits)


def evaluate_run(
    run: Run | FusedRun,
    folder: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    include_training: bool = False,
) -> tuple[dict[str, Any], list[Problem]]:
    """Evaluate a run on its own test studies, or on another folder with labels.

    Parameters
    ----------
    run : Run or FusedRun
        A finished run.
    folder, labels : path, optional
        Other studies and their table.
    include_training : bool
        Score studies of patients that the run was trained on, too. By default they are left out, which is said: a
        test on what training saw proves nothing.

    Returns
    -------
    metrics : dict
        As `volrec.evaluation.evaluate_scores` gives them.
    problems : list of Problem
        Quarantined studies, and those left out because training saw them.

    Raises
    ------
    LabelsError
        When training saw every study.
    """
    from volrec.evaluation import evaluate_scores

    if folder is None:
        return run.metrics, []
    scores, naming, problems = run._score_labelled(folder, labels, include_training=include_training)
    return evaluate_scores(scores, **naming), problems


def score_labelled(
    run: Run,
    folder: Path | str,
    labels: Path | str | None,
    *,
    splits: pd.DataFrame | None,
    by_member: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any], list[Problem]]:
    """Score the studies of a folder that have a label.

    Parameters
    ----------
    run : Run
        A run; its settings choose series and read labels.
    folder, labels : path
        Studies; their table, or None for ``labels.csv`` in the folder.
    splits : DataFrame, optional
        Studies and patients that these splits trained or validated on are left out, which is said.
    by_member : bool
        As for `volrec.inference.score_cohort`.

    Returns
    -------
    table : DataFrame
        As of `volrec.inference.score_cohort`.
    naming : dict
        ``task, classes, targets``.
    problems : list of Problem
        Quarantined studies, and a line on those left out.

    Raises
    ------
    LabelsError
        When training saw every study.
    """
    from volrec.data.index import index as scan
    from volrec.data.labels import join
    from volrec.inference import score_cohort

    config = run.config
    table = labels if labels is not None else _labels_beside(folder)
    data = config.data.model_copy(update={"folder": str(folder), "labels": str(table)})
    found = scan(folder, series=config.data.series, missing_slices=config.data.missing_slices)
    cohort = join(found, table, data)
    seen = set() if splits is None else _seen_in_training(splits, cohort)
    left = tuple(case for case in cohort.cases if case.study not in seen)
    if not left:
        raise LabelsError(
            f"all {len(seen)} studies are of patients that this run was trained or validated on.",
            remedy="`volrec evaluate RUN` shows its own test studies; give other studies, or --include-training.",
            where=folder,
            code="leak",
        )
    scores, problems = score_cohort(run.folder, replace(cohort, cases=left), by_member=by_member)
    if seen:
        problems.append(
            Problem(
                str(folder),
                "seen-in-training",
                f"{len(seen)} of {len(cohort.cases)} studies are of patients that this run was trained or validated "
                "on: left out.",
                "--include-training scores them all the same.",
                fatal=False,
            )
        )
    naming = {"task": cohort.task, "classes": cohort.classes, "targets": cohort.targets}
    return scores, naming, [*found.problems, *cohort.problems, *problems]


def _seen_in_training(splits: pd.DataFrame, cohort: Cohort) -> set[str]:
    """Return the studies that any member of the run learned or chose its weights from, by study and patient."""
    used = splits[splits["part"] != "test"]
    studies, patients = set(used["study"]), set(used["patient"])
    return {case.study for case in cohort.cases if case.study in studies or case.patient in patients}


def _labels_beside(folder: Path | str) -> Path:
    beside = Path(folder) / "labels.csv"
    if beside.is_file():
        return beside
    raise ConfigError("no table of labels is named.", remedy="Give one with --labels labels.csv.", where=folder)
