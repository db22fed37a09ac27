"""Trajectories across slices beside the features of a run's networks: three classifiers a fold, on the same studies.

*network* reads what enters the network's last layer, *trajectories* their Fisher vector, *both* the two side by side,
each of length one. All three are the same linear model with its penalty chosen on folds of the patients that it learns
from, so that what differs is what they read. *run* is the network with its own last layer, as the run scored it.

The vocabulary is learned from training studies, never from those that are tested. A network knows the studies that it
was trained on, and its features promise more there than on new ones: a classifier that is fitted to them leans on the
network. ``fit_on="validation"`` fits it to studies that only chose the network's weights; where they are few that costs
more than it gives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from volrec.benchmarks.encoding.beside import PENALTIES, fit_beside
from volrec.benchmarks.encoding.encode import TrajectoryEncoder, encode_videos
from volrec.benchmarks.encoding.table import VectorTable
from volrec.benchmarks.volumes.features import Features, network_features
from volrec.benchmarks.volumes.tracks import StudyTrajectories
from volrec.config import TrajectoryClassifier
from volrec.data.splits import PARTS, Split
from volrec.data.targets import head_classes
from volrec.errors import ConfigError, LabelsError, Problem
from volrec.files import write_atomically
from volrec.inference.studies import Studies

if TYPE_CHECKING:
    import pandas as pd

    from volrec.inference import LoadedMember

__all__ = ["ARMS", "WORDS", "Beside", "gain", "measure_beside"]

ARMS = ("network", "trajectories", "both")
WORDS = 64
"""Gaussians of each descriptor: studies are tens or hundreds, where the papers' 256 had 10,000 videos."""
DRAWN = 1000
"""Descriptors that a Gaussian is learned from, on average: 256,000 for 256 in the papers."""
RESAMPLES = 1000
FitOn = Literal["train", "validation", "train+validation"]


@dataclass(frozen=True, eq=False)
class Beside:
    """What trajectories give alone and beside a network.

    Attributes
    ----------
    path : Path
        Folder with ``scores-ARM.csv``, ``metrics.json`` and, for each fold, vocabulary, vectors and classifiers.
    scores : mapping of str to DataFrame
        By arm, in the form of a run's ``scores.csv``, with the number of trajectories: a row a test study.
    metrics : mapping of str to dict
        By arm, as `volrec.evaluation.evaluate_scores` gives them; ``"run"`` too where the run has scores.
    gains : mapping of str to dict
        By metric: both minus network, ``{value, low, high}``, over resamples of patients that both share.
    choices : mapping of str to mapping
        By fold, then arm and target: C and how it was chosen.
    problems : tuple of Problem
        What was left out or assumed.
    """

    path: Path
    scores: Mapping[str, pd.DataFrame]
    metrics: Mapping[str, dict[str, Any]]
    gains: Mapping[str, dict[str, float | None]]
    choices: Mapping[str, Mapping[str, Any]]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Head:
    """A target with classes that exclude each other, and which of their chances are scores."""

    target: str
    classes: tuple[str, ...]
    place: int
    first: int


@dataclass
class _Found:
    """What grows from fold to fold."""

    rows: dict[str, list[Any]]
    problems: list[Problem]
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)


def measure_beside(
    studies: Studies,
    trajectories: StudyTrajectories,
    members: Sequence[LoadedMember] = (),
    *,
    folder: Path | str,
    words: int = WORDS,
    model: Literal["logistic", "svm"] = "logistic",
    c: Sequence[float] = PENALTIES,
    fit_on: FitOn = "train",
    seed: int = 0,
    jobs: int = 1,
    own_scores: pd.DataFrame | None = None,
) -> Beside:
    """Fit the classifiers of every fold and score its test studies.

    Parameters
    ----------
    studies : Studies
        Of a run, or of a configuration.
    trajectories : StudyTrajectories
        Of these studies.
    members : sequence of LoadedMember
        Networks of the splits, by name; none: trajectories alone.
    folder : path
        For everything that is made; what is there already is not made again.
    words : int
        Gaussians of each descriptor.
    model, c
        As for `volrec.benchmarks.encoding.fit_beside`.
    fit_on : {"train", "validation", "train+validation"}
        Studies that the classifiers learn from. Without a test part the validation studies are tested: then "train".
    seed : int
        Of the vocabulary.
    jobs : int
        Processes that learn vocabularies.
    own_scores : DataFrame, optional
        Scores of the run, for the arm ``"run"``.

    Returns
    -------
    Beside

    Raises
    ------
    ConfigError
        A regression, or classifiers that would learn from what is tested.
    DataError
        Too few trajectories for the vocabulary.
    LabelsError
        No study that is tested, or none to learn from.
    """
    heads = _heads(studies)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    networks = {member.name: member for member in members}
    arms = ARMS if networks else ("trajectories",)
    lost = [problem for problem in trajectories.problems if problem.fatal]
    usable = studies.without({problem.study for problem in lost})
    found = _Found({arm: [] for arm in arms}, [*studies.problems, *trajectories.problems])
    for split in usable.splits:
        if networks and split.name not in networks:
            continue
        features = None
        if networks:
            names = sorted({study for part in PARTS for study in split.part(part)})
            features = network_features(usable, networks[split.name], names, folder=path / split.name)
            found.problems += features.problems
        _fold(
            found, usable, split, trajectories, features,
            heads=heads, folder=path / split.name, words=words, model=model, c=c, fit_on=fit_on, seed=seed, jobs=jobs,
        )  # fmt: skip
    return _finish(found, studies, path, own_scores, facts={"fit_on": fit_on, "words": words, "model": model})


def gain(first: pd.DataFrame, second: pd.DataFrame, *, seed: int = 0, **naming: Any) -> dict[str, Any]:
    """Return by how much every metric of the second table is above that of the first, with its 95 % interval.

    Parameters
    ----------
    first, second : DataFrame
        Scores of the same studies, a row a study.
    seed : int
        Of the resamples of patients, which both tables share.
    **naming
        ``task, classes, targets``.

    Raises
    ------
    LabelsError
        Tables of other studies.
    """
    from volrec.data.targets import head_sizes
    from volrec.evaluation.metrics import all_metrics
    from volrec.evaluation.tables import read_columns

    keys = [name for name in ("study", "fold") if name in first]
    both = first[keys].merge(second[keys].assign(place=np.arange(len(second))), on=keys, how="left")
    if len(first) != len(second) or len(both) != len(first) or both["place"].isna().any():
        raise LabelsError(
            f"tables of {len(first)} and {len(second)} rows are not of the same studies.",
            remedy="Score the same studies with both.",
            code="other-studies",
        )
    second = second.iloc[both["place"].to_numpy(int)]
    truth, before = read_columns(first, **naming)
    _, after = read_columns(second, **naming)
    _, owners = np.unique(first["patient"].astype(str).to_numpy(), return_inverse=True)
    count = int(owners.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)[:, owners]
    weights = np.concatenate([np.ones((1, len(truth))), drawn])
    heads = head_sizes(naming["task"], naming["classes"], naming["targets"])
    old, new = (all_metrics(naming["task"], truth, scores, weights, heads=heads)[0] for scores in (before, after))
    gains: dict[str, Any] = {}
    for name in old:
        change = new[name] - old[name]
        known = change[1:][np.isfinite(change[1:])]
        low, high = np.percentile(known, [2.5, 97.5]).tolist() if 2 * len(known) >= RESAMPLES else (None, None)
        gains[name] = {"value": float(change[0]) if np.isfinite(change[0]) else None, "low": low, "high": high}
    return gains


def _fold(
    found: _Found,
    studies: Studies,
    split: Split,
    trajectories: StudyTrajectories,
    features: Features | None,
    *,
    heads: Sequence[_Head],
    folder: Path,
    words: int,
    fit_on: FitOn,
    seed: int,
    jobs: int,
    **fitting: Any,
) -> None:
    """Learn from one fold and add the rows of its test studies."""
    from volrec.inference.consensus import inverse_link
    from volrec.inference.predictor import StudyScore
    from volrec.inference.tables import target_values

    cohort, cases = studies.cohort, studies.cases
    there = None if features is None else set(features.names)
    parts = {part: [one for one in split.part(part) if there is None or one in there] for part in PARTS}
    tested = "test" if parts["test"] else "validation"
    if tested in fit_on:
        raise ConfigError(
            f"'{split.name}' has no test studies, and classifiers would learn from the {tested} studies they are "
            "measured on.",
            remedy="Set fit_on to train, or train with split.test or split.folds.",
            where="fit_on",
            code="leak",
        )
    learned = [study for part in fit_on.split("+") for study in parts[part]]
    if not learned or not parts[tested]:
        raise LabelsError(
            f"'{split.name}' has {len(learned)} studies to learn from ({fit_on}) and {len(parts[tested])} to test.",
            remedy="See the quarantine for studies that were left out, or choose another fit_on.",
            where=split.name,
            code="no-studies",
        )
    names = [*dict.fromkeys([*learned, *parts[tested]])]
    vectors = _vectors(trajectories, parts["train"], names, folder=folder, words=words, seed=seed, jobs=jobs)
    blank = np.zeros((len(names), 0), dtype=np.float32)
    pooled = blank if features is None else features.rows(names)
    inputs = {"network": (blank, pooled), "trajectories": (vectors, blank), "both": (vectors, pooled)}
    places = {study: place for place, study in enumerate(names)}
    own, other = ([places[study] for study in part] for part in (learned, parts[tested]))
    found.choices[split.name] = {}
    for arm, rows in found.rows.items():
        scores = []
        for head in heads:
            labels = np.array([np.asarray(cases[study].target).reshape(-1)[head.place] for study in learned])
            known = np.flatnonzero(np.isfinite(labels))
            chances, choice = _chances(
                [part[own][known] for part in inputs[arm]],
                [part[other] for part in inputs[arm]],
                labels[known].astype(int),
                classes=head.classes,
                groups=[cases[learned[place]].patient for place in known],
                file=folder / f"{arm}-{head.target}.safetensors",
                **fitting,
            )
            scores.append(chances[:, head.first :])
            found.choices[split.name].setdefault(arm, {})[head.target] = choice
        for study, values in zip(parts[tested], np.concatenate(scores, axis=1), strict=True):
            naming: dict[str, Any] = {"task": cohort.task, "classes": cohort.classes, "targets": cohort.targets}
            facts = {"study": study, "patient": cases[study].patient, "fold": split.name}
            facts |= target_values(cases[study], **naming) | {"trajectories": trajectories.counts[study]}
            rows.append((facts, StudyScore(values, inverse_link(values, cohort.task), 0)))


def _vectors(
    trajectories: StudyTrajectories,
    train: Sequence[str],
    names: Sequence[str],
    *,
    folder: Path,
    words: int,
    seed: int,
    jobs: int,
) -> np.ndarray:
    """Return the vectors (N, G) of studies; the vocabulary is that of the training studies."""
    settings = TrajectoryClassifier(words=words, samples=DRAWN * words)
    # Files are called by what determines their content.
    made_of = [settings.to_dict(), seed, [[study, trajectories.files[study].stem] for study in sorted(train)]]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    vocabulary = folder / f"vocabulary-{key}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if vocabulary.is_file():
        encoder = TrajectoryEncoder.load(vocabulary)
    else:
        encoder = TrajectoryEncoder.fit(trajectories.rows(sorted(train)), settings, seed=seed, jobs=jobs)
        encoder.save(vocabulary)
    files = json.dumps([[study, trajectories.files[study].stem] for study in names])
    which = hashlib.sha256(files.encode()).hexdigest()[:16]
    table = VectorTable(folder / f"vectors-{key}-{which}", names, columns=encoder.dimension, source=encoder.digest)
    encode_videos(encoder, trajectories.rows(table.missing), table, description="encoding studies")
    table.flush()
    return np.array(table.vectors)


def _chances(
    learned: Sequence[np.ndarray],
    tested: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    file: Path,
    model: Literal["logistic", "svm"],
    c: Sequence[float],
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return chances (n, K) of test studies; a class that no study to learn from has gets none."""
    present = np.unique(labels)
    chances = np.zeros((len(tested[0]), len(classes)))
    if len(present) < 2:
        chances[:, present] = 1.0
        return chances, {"c": None, "reason": f"{len(present)} class(es) to learn from"}
    fitted = fit_beside(
        learned[0],
        learned[1],
        np.searchsorted(present, labels).tolist(),
        classes=[classes[place] for place in present],
        groups=groups,
        model=model,
        c=c,
    )
    fitted.save(file)
    chances[:, present] = fitted.probabilities(tested[0], tested[1])
    return chances, fitted.choice.facts()


def _heads(studies: Studies) -> list[_Head]:
    cohort = studies.cohort
    if cohort.task == "regression":
        raise ConfigError(
            "trajectories are put beside a network for classes, and the targets of this run are quantities.",
            remedy="Give a run whose target has classes.",
            where="data.task",
            code="task",
        )
    several = head_classes(cohort.task, cohort.classes, cohort.targets)
    if several:
        return [_Head(name, own, place, 0) for place, (name, own) in enumerate(several.items())]
    if cohort.task == "multilabel":
        return [_Head(name, ("0", "1"), place, 1) for place, name in enumerate(cohort.targets)]
    return [_Head(cohort.targets[0], cohort.classes, 0, 1 if cohort.task == "binary" else 0)]


def _finish(
    found: _Found, studies: Studies, path: Path, own_scores: pd.DataFrame | None, *, facts: dict[str, Any]
) -> Beside:
    """Write tables and metrics."""
    import pandas as pd

    from volrec.evaluation import evaluate_scores
    from volrec.inference.tables import score_table

    cohort = studies.cohort
    naming: dict[str, Any] = {"task": cohort.task, "classes": cohort.classes, "targets": cohort.targets}
    tables: dict[str, pd.DataFrame] = {}
    for arm, rows in found.rows.items():
        table = score_table(rows, **naming, leading=("study", "patient", "fold")).drop(columns="clips")
        tables[arm] = table if len(studies.splits) > 1 else table.drop(columns="fold")
        write_atomically(path / f"scores-{arm}.csv", tables[arm].to_csv(index=False))
    metrics = {arm: evaluate_scores(table, **naming) for arm, table in tables.items()}
    if own_scores is not None and "network" in tables:
        keys = [name for name in ("study", "fold") if name in tables["network"] and name in own_scores]
        same = tables["network"][keys].merge(own_scores, on=keys)
        if len(same) == len(tables["network"]):
            metrics["run"] = evaluate_scores(same, **naming)
    gains = gain(tables["network"], tables["both"], **naming) if "network" in tables else {}
    problems = tuple({(one.where, one.code, one.study): one for one in found.problems}.values())
    whole = {**facts, "metrics": metrics, "gain_of_both_over_network": gains, "choices": found.choices}
    write_atomically(path / "metrics.json", json.dumps(whole, indent=2) + "\n")
    columns = list(Problem.__dataclass_fields__)
    lines = pd.DataFrame([problem.as_dict() for problem in problems], columns=columns)
    write_atomically(path / "quarantine.csv", lines.to_csv(index=False))
    return Beside(path, tables, metrics, gains, found.choices, problems)
