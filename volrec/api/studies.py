"""Studies to look at, runs to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volrec.api.evaluating import evaluate_run, score_labelled
from volrec.config import TrainConfig
from volrec.errors import DataError, Problem, RunError

if TYPE_CHECKING:
    import pandas as pd

    from volrec.api.fusion import FusedRun
    from volrec.data.index import StudyIndex
    from volrec.explain import Explanation
    from volrec.io import Volume
    from volrec.networks import SequenceNetwork
    from volrec.runs import RunFolder

__all__ = ["Run", "index", "load", "make_phantoms", "read_volume"]


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


def plain_run(path: Path | str) -> RunFolder:
    """Open a run that scores together with others.

    Raises
    ------
    RunError
        It is no run of ``volrec train``, or a fused one.
    """
    run = load(path)
    if not isinstance(run, Run):
        raise RunError(
            "it is a fused run.",
            remedy="Name the runs that it is made of.",
            where=path,
            code="fused-run",
        )
    return run.folder


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

    def predict(
        self,
        folder: Path | str,
        *,
        out: Path | str | None = None,
        also: Sequence[Path | str | Run] = (),
        flips: Sequence[str] | None = None,
        overlap: float | None = None,
        clips: int | None = None,
        method: Literal["clips", "dense"] | None = None,
        slices: bool = True,
        backend: Literal["torch", "onnxruntime"] = "torch",
        device: str = "auto",
        jobs: int = 0,
    ) -> pd.DataFrame:
        """Score every study of a folder, of any length, in memory that does not grow with their number.

        Parameters
        ----------
        folder : path
            DICOM or NIfTI studies, any layout.
        out : path, optional
            ``scores.csv`` or ``scores.json``: both are written, with ``scores-slices.csv`` and
            ``scores-quarantine.csv`` where there is something for them. With it, an interrupted call can be made
            again: it goes on where it was.
        also : sequence of path or Run
            More runs of the same targets and classes; each run has one vote.
        flips, overlap, clips, method
            In place of the run's own protocol (`volrec.config.ProtocolConfig`), for this prediction.
        slices : bool
            Whether scores of single slices are written.
        backend : {"torch", "onnxruntime"}
            What computes (extra ``onnx``).
        device : str
            Where to compute; ``auto`` takes the best there is.
        jobs : int
            Processes that read headers and decode compressed slices; 0 takes the processors at hand.

        Returns
        -------
        DataFrame
            A row a study: ``study, patient, score_…, logit_…``; ``entropy`` of the score in bits, and of several
            networks ``spread`` and ``disagreement`` (`volrec.inference.uncertainty`); ``members, clips, slices``;
            ``warning`` where the study differs from the training data. What was left out or assumed is in
            ``.attrs["problems"]``.

        Raises
        ------
        RunError, ConfigError, DataError
            A run, an option or a folder that cannot be used, or a file that cannot be written.
        """
        from volrec.inference import predict_folder
        from volrec.inference.protocols import ProtocolChanges

        table, problems = predict_folder(
            self.folder,
            folder,
            also=[more.folder if isinstance(more, Run) else plain_run(more) for more in also],
            out=out,
            slices=slices,
            changes=ProtocolChanges(flips, overlap, clips, method),
            backend=backend,
            device=None if device == "auto" else device,
            jobs=jobs,
        )
        table.attrs["problems"] = [problem.as_dict() for problem in problems]
        return table

    def evaluate(
        self,
        folder: Path | str | None = None,
        *,
        labels: Path | str | None = None,
        by: Sequence[str] = (),
        resamples: int | None = None,
    ) -> dict[str, Any]:
        """Metrics with 95 % intervals, of the run's own test studies or of another folder with labels.

        `by` names columns of the table of labels (sex, site, age): what is found in their groups is under
        ``subgroups``; for the rest see `volrec.api.evaluating.evaluate`.
        """
        return evaluate_run(self, folder, labels=labels, by=by, resamples=resamples)[0]

    def explain(
        self,
        study: Path | str,
        *,
        method: str = "gradcam",
        output: str | int | None = None,
        options: dict[str, Any] | None = None,
        out: Path | str | None = None,
        write: bool = True,
        device: str = "auto",
    ) -> Explanation:
        """Map where the networks looked in a study, by its name in the run or its path (see `volrec explain --help`).

        Returns
        -------
        Explanation
            ``array`` (T, H, W) on the study's own grid with its ``affine``, ``per_slice``, ``strongest``, ``evidence``
            (method, output, scores); ``folder`` with the files, where `write` is not False.

        Raises
        ------
        DataError
            There is no such study, or it cannot be read.
        """
        from volrec.api.explaining import explain_run

        (found,) = explain_run(
            self, [study], methods=[method], output=output, options=options, out=out, write=write, device=device
        )
        if isinstance(found, Problem):
            raise DataError(found.reason, remedy=found.remedy, where=found.where or None, code=found.code)
        return found

    def _score_labelled(
        self, folder: Path | str, labels: Path | str | None, *, include_training: bool
    ) -> tuple[pd.DataFrame, dict[str, Any], list[Problem]]:
        splits = None if include_training else self.folder.read_table("splits")
        return score_labelled(self, folder, labels, splits=splits)
