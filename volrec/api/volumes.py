"""Trajectories across slices, as features beside those of a run's networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volrec.errors import RunError

if TYPE_CHECKING:
    from volrec.api.studies import Run
    from volrec.benchmarks.volumes import Beside

__all__ = ["trajectories_beside"]


def trajectories_beside(
    run: Run | Path | str,
    out: Path | str | None = None,
    *,
    fit_on: Literal["train", "validation", "train+validation"] = "train",
    words: int | None = None,
    model: Literal["logistic", "svm"] = "logistic",
    seed: int = 0,
    jobs: int = 0,
    device: str = "auto",
    **tracking: Any,
) -> Beside:
    """Measure what trajectories across slices give alone, and beside a run's network, on the run's own test studies.

    Every study is tracked once (the files lie in the run's store), every network read once; an interrupted call goes
    on with the same arguments.

    Parameters
    ----------
    run : Run or path
        Of `volrec train`, with classes as targets; its studies must still be there.
    out : path, optional
        Folder of the result; default ``RUN/trajectories``.
    fit_on : {"train", "validation", "train+validation"}
        Studies that the classifiers learn from; the vocabulary always learns from training studies.
    words : int, optional
        Gaussians of each descriptor; default 64.
    model : {"logistic", "svm"}
        Kind of linear model.
    seed : int
        Of the vocabulary.
    jobs : int
        Processes; 0 takes the processors at hand.
    device : str
        Where the networks compute.
    **tracking
        ``grid_mm, slice_mm, step_mm, patch_mm, drift, tracks`` of `volrec.benchmarks.volumes.VolumeSettings`.

    Returns
    -------
    Beside
        ``.scores``, ``.metrics`` and ``.gains`` of the classifiers that read the network, the trajectories, and both.

    Raises
    ------
    VolrecError
        No finished run, studies that are gone, a regression, OpenCV not installed.
    """
    from volrec.api.studies import Run, load
    from volrec.benchmarks.volumes import choose_settings, measure_beside, open_run, study_trajectories
    from volrec.benchmarks.volumes.beside import WORDS
    from volrec.inference import load_members
    from volrec.parallel import available_cpus

    opened = run if isinstance(run, Run) else load(run)
    if not isinstance(opened, Run):
        raise RunError(
            "it is a fused run.", remedy="Give one of the runs that it is made of.", where=opened.path, code="fused-run"
        )
    studies = open_run(opened.folder, jobs=jobs)
    settings = choose_settings((studies.store.open(entry) for entry in studies.entries.values()), **tracking)
    tracked = study_trajectories(studies, settings=settings, jobs=jobs)
    return measure_beside(
        studies,
        tracked,
        load_members(opened.folder, device=device),
        folder=Path(out) if out is not None else opened.path / "trajectories",
        words=WORDS if words is None else words,
        model=model,
        fit_on=fit_on,
        seed=seed,
        jobs=jobs if jobs > 0 else available_cpus(),
        own_scores=opened.scores if opened.folder.finished else None,
    )
