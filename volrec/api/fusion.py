"""Several runs as one: fused on their own test studies, and on new ones by the stored rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volrec.api.evaluating import evaluate_run, score_labelled
from volrec.api.settings import destination
from volrec.api.studies import Run
from volrec.errors import ConfigError, LabelsError, Problem, RunError

if TYPE_CHECKING:
    import pandas as pd

    from volrec.inference.fused import FusedFolder, Source
    from volrec.inference.fusion import FusionRule
    from volrec.inference.joining import Joined

__all__ = ["FusedRun", "fuse"]


class FusedRun:
    """Several runs fused: their scores as one, and what they say of new studies together.

    Parameters
    ----------
    folder : FusedFolder
        The fused run on disk.
    """

    def __init__(self, folder: FusedFolder) -> None:
        self.folder = folder
        self.path = folder.path

    def __repr__(self) -> str:
        return f"FusedRun('{self.path}')"

    @property
    def rule(self) -> FusionRule:
        """How scores are combined."""
        return self.folder.rule

    @property
    def runs(self) -> list[Run]:
        """The runs that are fused, in the order of the weights."""
        return [Run(source.run) for source in self.folder.sources()]

    @property
    def weights(self) -> dict[str, float] | None:
        """From the name of a run to its weight (the mean over folds where each has its own); None for an SVM."""
        weights = self.rule.weights
        return None if weights is None else dict(zip(self.rule.runs, weights.tolist(), strict=True))

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics with their intervals, as in ``metrics.json``; under ``runs`` each run's on the same studies."""
        return self.folder.metrics

    @property
    def scores(self) -> pd.DataFrame:
        """Fused scores of the runs' own test studies, a row a study."""
        return self.folder.table("scores")

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
        """Score every study of a folder with each run and fuse; as `Run.predict`.

        Scores of slices are those of each run, with its name in a column ``run``.

        Raises
        ------
        ConfigError
            Also where `also` names a run: the rule knows no others.
        """
        from volrec.inference.fused import fuse_new_scores
        from volrec.inference.prediction import Options, Scored, predict_runs
        from volrec.inference.protocols import ProtocolChanges
        from volrec.inference.several import member_table

        if also:
            raise ConfigError(
                "a fused run has its rule for its own runs, and none for others.",
                remedy="Fuse all of them, or give the runs themselves: RUN FOLDER --also RUN2.",
                where="--also",
                code="fused-run",
            )
        sources = self.folder.sources()

        def combine(scored: Scored) -> tuple[pd.DataFrame, list[Problem]]:
            place = {run.name: number for number, run in enumerate(scored.runs)}

            def score(source: Source) -> tuple[pd.DataFrame, list[Problem]]:
                number = place[source.name]
                return member_table(scored, number), scored.runs[number].problems

            return fuse_new_scores(self.folder, score)

        rule = self.rule
        table, problems = predict_runs(
            {source.name: source.run for source in sources},
            folder,
            combine=combine,
            options=Options(
                device=None if device == "auto" else device,
                backend=backend,
                jobs=jobs,
                changes=ProtocolChanges(flips, overlap, clips, method),
                slices=slices,
            ),
            out=out,
            facts={"fusion": {"method": rule.method, "stage": rule.stage, "weights": self.weights}},
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
        """Metrics with 95 % intervals, of the runs' own test studies or of another folder with labels.

        `by` names columns of the table of labels (sex, site, age): what is found in their groups is under
        ``subgroups``; for the rest see `volrec.api.evaluating.evaluate`.
        """
        return evaluate_run(self, folder, labels=labels, by=by, resamples=resamples)[0]

    def _score_labelled(
        self, folder: Path | str, labels: Path | str | None, *, include_training: bool
    ) -> tuple[pd.DataFrame, dict[str, Any], list[Problem]]:
        from volrec.inference.fused import fuse_new_scores

        splits = None if include_training else self.folder.table("splits")

        def score(source: Source) -> tuple[pd.DataFrame, list[Problem]]:
            table, _, problems = score_labelled(Run(source.run), folder, labels, splits=splits, by_member=True)
            return table, problems

        table, problems = fuse_new_scores(self.folder, score)
        if table.empty:
            raise LabelsError(
                f"no study of {folder} could be scored by every run.",
                remedy="`volrec predict` says why, study by study.",
                code="no-usable-study",
            )
        rule = self.rule
        return table, {"task": rule.task, "classes": rule.classes, "targets": rule.targets}, problems


@dataclass(frozen=True)
class _Wanted:
    """What was asked for, complete."""

    method: str
    stage: str
    weights: Sequence[float] | None
    as_given: bool


def fuse(
    runs: Sequence[Path | str | Run],
    out: Path | str | None = None,
    *,
    weights: Sequence[float] | None = None,
    stage: str | None = None,
    method: str = "weights",
    preset: str | None = None,
    as_given: bool = False,
) -> FusedRun:
    """Fuse runs that were trained on the same labels and splits; scores are joined by study and class name.

    Parameters
    ----------
    runs : sequence of path or Run
        Two or more, finished.
    out : path, optional
        Folder, new or empty; default ``runs/fused-NAMES``.
    weights : sequence of float, optional
        One a run; only their ratio counts. Default: equal.
    stage : {"softmax", "logits", "relu-l1"}, optional
        What is weighted: probabilities (the default; those of a sigmoid for a binary task or several labels), logits,
        or logits after ReLU divided by their sum over classes. Regressions have no stage.
    method : {"weights", "svm", "learned"}
        As given, or fitted on the runs' validation studies (see `volrec.evaluation.fit_rule`).
    preset : str, optional
        The weights and stage of a paper, for an intensity and a flow run in this order (`PRESETS`).
    as_given : bool
        At the stage logits: sum with the weights as they are. Which class leads stays the same; probabilities become
        harder.

    Raises
    ------
    ConfigError
        Wrong weights, stage, method or preset.
    RunError
        Runs that do not fit together, with the study, class or target that is missing, or a study that one run learned
        from and another is tested on.
    """
    from volrec.evaluation import evaluate_scores, fit_rule
    from volrec.inference.fused import FusedFolder, check_leak, open_sources
    from volrec.inference.fusion import check_stage, fused_table
    from volrec.inference.joining import check_alike, check_folds, join_tables

    wanted = _wanted(len(runs), weights=weights, stage=stage, method=method, preset=preset, as_given=as_given)
    sources = open_sources([run.path if isinstance(run, Run) else run for run in runs])
    names = [source.name for source in sources]
    place = destination("fused-" + "-".join(Path(name).name for name in names), out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunError("it is not empty.", remedy="Choose a new folder.", where=place, code="run-exists")
    part = _common_part(sources)
    tables = [source.run.scores() for source in sources]
    named = [source.named(table) for source, table in zip(sources, tables, strict=True)]
    check_alike(named)
    check_folds(named)
    check_leak(sources, tables, learned=("train", "validation") if part == "test" else ("train",))
    first = sources[0]
    naming: dict[str, Any] = {"task": first.task, "classes": first.classes, "targets": first.targets}
    if first.task == "multihead":
        raise ConfigError(
            f"runs of several heads ({', '.join(first.targets)}) cannot be fused.",
            remedy="Train a run for each target and fuse those, or let one network of two streams read both.",
            where="data.task",
            code="fusion-task",
        )
    if first.task == "regression" and stage is not None:
        raise ConfigError(
            f"stage {stage!r} has no meaning for quantities, which are averaged in their own units.",
            remedy="Leave it out.",
            where="stage",
            code="fusion-stage",
        )
    joined = join_tables(named, logits=wanted.stage != "softmax")
    if first.task != "regression":
        check_stage(joined, task=first.task, stage=wanted.stage)
    validation = _validation(sources, wanted)
    rule = fit_rule(
        validation,
        **naming,
        runs=names,
        names=joined.names,
        method=wanted.method,
        stage=wanted.stage,
        weights=wanted.weights,
        as_given=wanted.as_given,
    )
    scores = fused_table(rule, joined)
    found = evaluate_scores(scores, **naming)
    metrics: dict[str, Any] = {"part": part, "method": rule.method, "stage": rule.stage, **found}
    metrics[part] = found["metrics"]
    metrics["runs"] = _alone(rule, joined, naming)
    fused = FusedFolder(place)
    place.mkdir(parents=True, exist_ok=True)
    fused.tables.write_versions()
    fused.tables.write_table("scores", scores)
    if validation is not None:
        fused.tables.write_table("validation_scores", fused_table(rule, validation))
    fused.tables.write_table("splits", _union(sources))
    fused.tables.write_metrics(metrics)
    fused.write_rule(rule, sources)
    return FusedRun(fused)


def _wanted(
    count: int,
    *,
    weights: Sequence[float] | None,
    stage: str | None,
    method: str,
    preset: str | None,
    as_given: bool,
) -> _Wanted:
    """Check what was asked for, and complete it."""
    from volrec.inference.fusion import METHODS, PRESETS, STAGES

    def refuse(problem: str, remedy: str = "") -> ConfigError:
        return ConfigError(problem, remedy=remedy, where="fuse", code="fusion")

    if count < 2:
        raise refuse(f"there is nothing to fuse: {count} run given.", "Name two or more runs.")
    for name, value, known in (("method", method, METHODS), ("stage", stage, (None, *STAGES))):
        if value not in known:
            raise refuse(f"{name} must be one of {', '.join(filter(None, known))}, got {value!r}.")
    if preset is not None:
        if preset not in PRESETS:
            raise refuse(f"there is no preset {preset!r}.", f"Known presets: {', '.join(PRESETS)}.")
        if weights is not None or stage is not None or method != "weights":
            raise refuse("a preset is weights and a stage; no others can be given with it.", "Leave one of them out.")
        if count != 2:
            raise refuse(f"preset {preset!r} fuses an intensity and a flow run; {count} runs are given.")
        weights, stage = PRESETS[preset].weights, PRESETS[preset].stage
    if weights is not None and method != "weights":
        raise refuse(f"method {method!r} finds the weights itself.", "Leave out the weights or the method.")
    if method == "svm" and stage not in (None, "softmax"):
        raise refuse(f"a support vector machine reads probabilities, not {stage!r}.", "Leave out the stage.")
    stage = stage or "softmax"
    if as_given and (stage != "logits" or method != "weights"):
        raise refuse(
            "only logits can be summed with weights as given: elsewhere the sum of the weights changes nothing.",
            "Choose stage logits, or leave it out.",
        )
    return _Wanted(method, stage, weights, as_given)


def _common_part(sources: Sequence[Source]) -> str:
    first = sources[0]
    other = next((source for source in sources if source.part != first.part), None)
    if other is not None:
        raise RunError(
            f"the scores of {first.name} are of {first.part} studies, those of {other.name} of {other.part} studies.",
            remedy="Fuse runs with the same splits (the same labels, folds and split.seed).",
            code="other-splits",
        )
    return first.part


def _validation(sources: Sequence[Source], wanted: _Wanted) -> Joined | None:
    """Return the validation scores of all runs; None where given weights need none and the runs do not share them."""
    from volrec.inference.fused import check_leak
    from volrec.inference.joining import join_tables

    lacking = [source.name for source in sources if not (source.run.path / "validation_scores.csv").is_file()]
    if lacking:
        if wanted.method == "weights":
            return None
        raise ConfigError(
            f"method {wanted.method!r} is fitted on validation studies, and {lacking[0]} has none.",
            remedy="Give weights, or train with a validation part.",
            where="method",
            code="fusion-method",
        )
    if wanted.method != "weights":
        for source in sources:
            if any(member.card().get("svm") == "validation" for member in source.run.members if member.finished):
                raise ConfigError(
                    f"method {wanted.method!r} is fitted on validation studies, and the SVM of {source.name} was, too: "
                    "it knows them.",
                    remedy="Give weights, or train that run with network.options.fusion=average.",
                    where="method",
                    code="fusion-method",
                )
    tables = [source.run.read_table("validation_scores") for source in sources]
    try:
        check_leak(sources, tables, learned=("train",))
        return join_tables(
            [source.named(table) for source, table in zip(sources, tables, strict=True)],
            logits=wanted.stage != "softmax",
        )
    except RunError:
        if wanted.method == "weights":
            return None
        raise


def _alone(rule: FusionRule, joined: Joined, naming: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of each run by itself, on the fused studies and with the same draws of patients."""
    import numpy as np

    from volrec.evaluation import evaluate_scores
    from volrec.inference.fusion import Combination, fused_table

    found = {}
    for name, one in zip(rule.runs, np.eye(len(rule.runs)), strict=True):
        alone = replace(rule, method="weights", stage="softmax", as_given=False, parts={"": Combination(weights=one)})
        found[name] = evaluate_scores(fused_table(alone, joined), **naming)["metrics"]
    return found


def _union(sources: Sequence[Source]) -> pd.DataFrame:
    """Return the splits of all runs: who was learned from by any of them."""
    import pandas as pd

    return pd.concat([source.splits() for source in sources], ignore_index=True).drop_duplicates(ignore_index=True)
