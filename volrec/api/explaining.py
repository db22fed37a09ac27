"""Where the networks of a run looked in a study."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.errors import ConfigError, Problem, RunError, VolrecError

if TYPE_CHECKING:
    from volrec.api.fusion import FusedRun
    from volrec.api.studies import Run
    from volrec.data.phantoms import Task
    from volrec.explain import Explanation
    from volrec.explain.curves import Curve
    from volrec.explain.hits import HitRate

__all__ = ["explain_run", "hit_rates"]

PARTS = 200
"""Steps of the progress bar that a map takes."""


def explain_run(
    run: Run | FusedRun,
    studies: Sequence[str | Path],
    *,
    methods: Sequence[str] = ("gradcam",),
    output: str | int | None = None,
    options: Mapping[str, Any] | None = None,
    folder: Path | str | None = None,
    out: Path | str | None = None,
    write: bool = True,
    image: bool = False,
    sanity: bool = False,
    device: str = "auto",
) -> Iterator[Explanation | Problem]:
    """Map what speaks for an output in studies, one after another.

    Parameters
    ----------
    run : Run
        A finished run.
    studies : sequence of str or path
        Names of studies of the run, or paths to DICOM folders and NIfTI files. Of a study that the run tested only the
        networks that did not see it in training are asked.
    methods : sequence of str
        Of `volrec.explain.METHODS`.
    output : str or int, optional
        Class, label or target; None as for `volrec.explain.explain_study`.
    options : mapping, optional
        Options of the methods; each takes those it has, and one that none has is an error.
    folder : path, optional
        Where studies are looked for by name instead of the run's own folder.
    out : path, optional
        Where ``STUDY/METHOD`` folders are written; None: ``RUN/explain``.
    write : bool
        False: nothing is written.
    image : bool
        Also write the study itself as NIfTI.
    sanity : bool
        Also make every map with random weights, and say how much of it is left (`volrec.explain.sanity`).
    device : str
        Where to compute.

    Yields
    ------
    Explanation or Problem
        One a study and method, in their order; a study that cannot be read gives one problem.

    Raises
    ------
    ConfigError
        An unknown method, option or output, or a package is missing.
    RunError
        No run, or one that `volrec fuse` wrote.
    """
    from volrec.data.streams import check_streams
    from volrec.explain.finding import StudyFinder
    from volrec.explain.methods import find_method
    from volrec.inference import load_members
    from volrec.progress import progress
    from volrec.runs import RunFolder

    if not isinstance(run.folder, RunFolder):
        raise RunError(
            "it is a fused run, which has no network of its own.",
            remedy="Explain the runs that it was made of, one by one.",
            where=run.path,
            code="fused-run",
        )
    chosen = {name: _own_options(name, methods, options or {}) for name in methods}
    for name in chosen:
        find_method(name).function()  # a package that is missing is said before anything is read
    members = load_members(run.folder, device=None if device == "auto" else device)
    check_streams(members[0].contract.streams, trained_on=str(members[0].card.get("field_source") or ""))
    finder = StudyFinder(run.folder, members, folder=folder)
    place = run.path / "explain" if out is None else Path(out)
    with progress("explaining", len(studies) * len(chosen) * PARTS) as bar:
        for number, study in enumerate(studies):
            bar.update(description=f"explaining {Path(study).name}", completed=number * len(chosen) * PARTS)
            try:
                read = _Study(finder.find(study))
                for turn, (name, own) in enumerate(chosen.items()):
                    start = (number * len(chosen) + turn) * PARTS

                    def tick(done: float, start: int = start) -> None:
                        bar.update(completed=start + int(done * PARTS))

                    named = f"{name}-{output}" if output is not None else name
                    yield read.explain(
                        name, output, own, tick, place if write else None, named=named, image=image, sanity=sanity
                    )
            except ConfigError:  # the next study would meet it too
                raise
            except VolrecError as error:
                yield Problem.of(error, where=error.where, study=str(study))


def hit_rates(
    run: Run,
    methods: Sequence[str],
    *,
    task: Task,
    studies: int,
    seed: int = 0,
    size: int = 64,
    slices: int = 32,
    tilt: float = 0.0,
    vary_spacing: bool = False,
    options: Mapping[str, Any] | None = None,
    tolerance: float = 0.0,
    threshold: float = 0.5,
    device: str = "auto",
) -> list[HitRate]:
    """Return how often maps of a run on phantoms are strongest on the planted lesion, a method a row.

    Parameters
    ----------
    run : Run
        Trained on phantoms; only studies that it tested count.
    methods : sequence of str
        Of `volrec.explain.METHODS`.
    task, studies, seed, size, slices, tilt, vary_spacing
        What the phantoms were made with (`volrec.data.phantoms.make_phantoms`).
    options : mapping, optional
        Of the methods.
    tolerance, threshold : float
        As for `volrec.explain.hits.hit_rates`.
    device : str
        Where to compute.

    Raises
    ------
    RunError
        It tested no study with a lesion.
    """
    from volrec.data.phantoms import draw_phantoms
    from volrec.explain.hits import hit_rates as counted
    from volrec.explain.hits import lesion_of

    drawn = draw_phantoms(
        task=task, studies=studies, seed=seed, size=size, slices=slices, tilt=tilt, vary_spacing=vary_spacing
    )
    lesions = {phantom.study: lesion for phantom in drawn if (lesion := lesion_of(phantom)) is not None}
    table = run.folder.read_table("splits")
    tested = [study for study in dict.fromkeys(table.loc[table["part"] == "test", "study"]) if study in lesions]
    if not tested:
        raise RunError(
            "it tested no phantom with a lesion.",
            remedy="Give the arguments that its phantoms were made with, and a run with test studies.",
            where=run.path,
            code="no-lesion",
        )
    found = explain_run(run, tested, methods=methods, options=options, write=False, device=device)
    problems: list[Problem] = []

    def maps() -> Iterator[Explanation]:
        for one in found:
            if isinstance(one, Problem):
                problems.append(one)
            else:
                yield one

    rates = counted(maps(), lesions, tolerance=tolerance, threshold=threshold)
    if problems:
        raise RunError(
            f"{len(problems)} of its studies cannot be read ({problems[0].reason}).",
            remedy=problems[0].remedy,
            where=run.path,
            code=problems[0].code,
        )
    return rates


class _Study:
    """A study that is read once for all methods."""

    def __init__(self, found: Any) -> None:
        from volrec.data.store import preprocess_volume
        from volrec.data.streams import add_streams
        from volrec.io import read_series
        from volrec.parallel import available_cpus

        contract = found.members[0].contract
        self.found = found
        self.contract = contract
        self.volume = read_series(
            found.series,
            slice_axis=contract.preprocess.slice_axis,
            missing_slices=contract.missing_slices,
            jobs=available_cpus(),
        )
        stored = preprocess_volume(self.volume, contract.preprocess)
        self.stored = add_streams(stored, contract.streams, contract.intensity, study=found.study)
        self.curves: dict[str, tuple[Curve, ...]] = {}

    def explain(
        self,
        method: str,
        output: str | int | None,
        options: Mapping[str, Any],
        tick: Any,
        place: Path | None,
        *,
        named: str,
        image: bool,
        sanity: bool,
    ) -> Explanation:
        """Map by one method, and write the folder where a place is given."""
        from dataclasses import replace

        from volrec.explain.curves import curves_of
        from volrec.explain.sanity import MAPS, sanity_check
        from volrec.explain.study import explain_study
        from volrec.explain.writing import folder_name, place_in_study, write_explanation

        began = time.monotonic()
        members, share = self.found.members, 1 / (1 + MAPS) if sanity else 1.0
        evidence = explain_study(
            members, self.stored, method=method, output=output, options=options, tick=lambda done: tick(done * share)
        )
        if evidence.output not in self.curves:
            self.curves[evidence.output] = curves_of(members, self.stored, output=evidence.output)
        checked = None
        if sanity:
            checked = sanity_check(members, self.stored, evidence, tick=lambda done: tick(share + done * (1 - share)))
        explained = place_in_study(
            self.found, evidence, self.volume, curves=self.curves[evidence.output], sanity=checked
        )
        if place is None:
            return explained
        folder = place / folder_name(self.found.study) / folder_name(named)
        write_explanation(
            folder,
            explained,
            self.found,
            self.volume,
            intensity=self.contract.intensity,
            with_image=image,
            facts={"seconds": round(time.monotonic() - began, 1)},
        )
        return replace(explained, folder=folder)


def _own_options(name: str, methods: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a method has; raise for one that no method has."""
    from volrec.explain.methods import find_method

    known = {key for method in methods for key in find_method(method).options}
    foreign = {key: value for key, value in options.items() if key not in known}
    own = {key: value for key, value in options.items() if key in find_method(name).options}
    find_method(name).checked({**own, **foreign})  # says which options the method has
    return own
