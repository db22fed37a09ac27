"""Scores of several streams as one, by the names of videos and classes.

The class lists of one data set circulate in several orders (HMDB51: ``kick`` before or after ``kick_ball``); columns
added by their place raise no error, and cost points. What is weighted, and how, is the code that fuses runs on volumes
(`volrec.inference.fusion`); what videos add to it stands here: score sets, splits, and scores of an SVM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volrec.benchmarks.scores import ScoreSet
from volrec.errors import ConfigError, RunError
from volrec.evaluation import fit_rule
from volrec.inference.fusion import Combination, FusionRule, check_stage, check_weights, combine
from volrec.inference.joining import Joined, some_names

__all__ = ["FUSION_STAGES", "FusionSvm", "apply_svm", "fit_svm", "fuse", "with_trajectories"]

FUSION_STAGES = ("logits", "softmax", "relu-l1", "l2")
"""What `volrec.config.benchmark.FusionConfig` calls them."""
_LABEL = "class"


@dataclass(frozen=True, eq=False)
class FusionSvm:
    """A linear SVM on the scores of several streams, as `fit_svm` makes it.

    Attributes
    ----------
    rule : FusionRule
        Coefficients by the names of classes and streams.
    videos : frozenset of str
        What it was fitted on.
    """

    rule: FusionRule
    videos: frozenset[str]


def fuse(sets: Sequence[ScoreSet], weights: Sequence[float], stage: str) -> ScoreSet:
    """Weigh the scores of several streams into one.

    Parameters
    ----------
    sets : sequence of ScoreSet
        Of the same videos and classes, whatever their order, on the same split. The first decides the order of the
        result.
    weights : sequence of float
        One a set, brought to a sum of one. C3D's three nets, whose predictions are averaged: equal ones.
    stage : {"logits", "softmax", "relu-l1", "l2"}
        ``logits``, ``softmax``: these. ``relu-l1``: logits without their negative part, over their sum (Hidden
        Two-Stream, Zhu et al. 2018; a video without a positive logit says nothing). ``l2``: the scores of a video at
        the stage of each set, over their length (ActionVLAD with trajectories, Girdhar et al. 2017).

    Returns
    -------
    ScoreSet
        Without clips, which fusion does not know. Its stage is softmax for ``softmax`` and ``relu-l1`` (the weighted
        mean of distributions), else logits. Of ``l2``, and wherever a set has margins of an SVM, there are no
        probabilities. ``facts["fusion"]`` says what was weighted.

    Raises
    ------
    ConfigError
        An unknown stage, weights that do not fit.
    RunError
        A class or video that one set lacks, other labels, another split; a set without scores at that stage.
    """
    if stage not in FUSION_STAGES:
        raise ConfigError(
            f"the stage must be one of {', '.join(FUSION_STAGES)}, got {stage!r}.", where="stage", code="fusion-stage"
        )
    joined = _joined(sets)
    used = check_weights(weights, joined.runs)
    own, base = _at_stage(joined, sets, stage)
    try:
        check_stage(own, task="multiclass", stage=base)
    except RunError as error:
        raise RunError(error.problem, remedy="Choose stage softmax or logits.", code=error.code) from error
    part = {"": Combination(weights=used)}
    rule = FusionRule("multiclass", (_LABEL,), joined.names, joined.runs, joined.names, base, "weights", part)
    scores, logits = combine(rule, own)
    if stage == "l2" or (base == "logits" and any(np.isnan(each.probabilities).any() for each in sets)):
        scores = np.full_like(scores, np.nan)
    facts = {"method": "weights", "stage": stage, "weights": [float(weight) for weight in rule.applied(used)]}
    return _result(sets, joined, scores, logits, stage="logits" if base == "logits" else "softmax", fusion=facts)


def with_trajectories(scores: ScoreSet, trajectories: ScoreSet, weight: float) -> ScoreSet:
    """Add the margins of an SVM on improved dense trajectories, as ActionVLAD's code does.

    Both score vectors of a video are divided by their length and weighted ``1 - weight`` and ``weight`` (.25 there).

    Raises
    ------
    ConfigError, RunError
        As `fuse`.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(
            f"the weight of trajectories must be from 0 to 1, got {weight:g}.",
            where="fusion.trajectories",
            code="fusion-weights",
        )
    return fuse([scores, trajectories], [1 - weight, weight], "l2")


def fit_svm(sets: Sequence[ScoreSet]) -> FusionSvm:
    """Fit a linear SVM on the stacked L2-normalised softmax scores of the training videos.

    "A multi-class linear SVM on the stacked L2-normalised softmax scores" (Simonyan and Zisserman 2014): each class
    against the others, squared hinge loss, C of 1 (the paper names none).

    Parameters
    ----------
    sets : sequence of ScoreSet
        One a stream, of the *training* videos: ``facts["side"]`` is ``"train"``.

    Raises
    ------
    RunError
        Scores of test videos, a video without exactly one class, a class without a video; as `fuse`.
    """
    joined = _joined(sets)
    for name, each in zip(joined.runs, sets, strict=True):
        if each.facts.get("side") != "train":
            raise RunError(
                f"the scores of {name} are not those of training videos (side is {each.facts.get('side') or 'test'}).",
                remedy="An SVM that is fitted on test videos knows their answers: score the training side first.",
                code="fusion-side",
            )
    lacking = [name for name in joined.names if name not in set(joined.keys[_LABEL])]
    unclear = [name for name, own in zip(sets[0].videos, sets[0].labels, strict=True) if len(own) != 1]
    if unclear or lacking or len(joined.names) < 2:
        what = f"video {some_names(unclear)} has not one class" if unclear else ""
        what = what or (f"no training video is of class {some_names(lacking)}" if lacking else "there is one class")
        raise RunError(f"{what}.", remedy="Fit the SVM on the whole training side of a split.", code="fusion-labels")
    own, _ = _at_stage(joined, sets, "softmax")
    rule = fit_rule(
        own,
        task="multiclass",
        targets=(_LABEL,),
        classes=joined.names,
        runs=joined.runs,
        names=joined.names,
        method="svm",
    )
    return FusionSvm(rule, frozenset(sets[0].videos))


def apply_svm(svm: FusionSvm, sets: Sequence[ScoreSet]) -> ScoreSet:
    """Return the margins of an SVM of `fit_svm` for other videos.

    Parameters
    ----------
    svm : FusionSvm
        The SVM.
    sets : sequence of ScoreSet
        One a stream that it was fitted on, in any order.

    Raises
    ------
    RunError
        Other streams or classes, a video that the SVM was fitted on; as `fuse`.
    """
    names = _stream_names(sets)
    if sorted(names) != sorted(svm.rule.runs):
        raise RunError(
            f"the SVM was fitted on the streams {', '.join(svm.rule.runs)}, the scores are of {', '.join(names)}.",
            remedy="Give scores of the same streams.",
            code="fusion-streams",
        )
    sets = [sets[names.index(name)] for name in svm.rule.runs]
    joined = _joined(sets)
    ours, theirs = set(joined.names), set(svm.rule.names)
    for what, gone in (("the scores have", theirs - ours), ("the SVM knows", ours - theirs)):
        if gone:
            raise RunError(
                f"{what} no class {some_names(gone)}.",
                remedy="Fit it on scores of the same classes.",
                code="missing-class",
            )
    seen = svm.videos.intersection(sets[0].videos)
    if seen:
        raise RunError(
            f"the SVM was fitted on video {some_names(seen)}.",
            remedy="It knows their answers: apply it to the test side of the same split.",
            code="leak",
        )
    own, _ = _at_stage(joined, sets, "softmax")
    _, margins = combine(svm.rule, own)
    facts = {"method": "svm", "stage": "softmax", "fitted_on": len(svm.videos)}
    return _result(sets, joined, np.full_like(margins, np.nan), margins, stage="logits", fusion=facts)


def _joined(sets: Sequence[ScoreSet]) -> Joined:
    """Bring videos and classes of all sets in one order, that of their names, so that no order changes a bit."""
    import pandas as pd

    if not sets:
        raise RunError("there are no scores to fuse.", remedy="Give at least one set.", code="scores")
    names = _stream_names(sets)
    first = sets[0]
    for name, each in zip(names, sets, strict=True):
        each.check(where=name)
        for fact in ("split_id", "split_digest", "side"):
            ours, theirs = first.facts.get(fact), each.facts.get(fact)
            if ours != theirs and (fact == "side" or (ours and theirs)):
                raise RunError(
                    f"{fact} of {names[0]} is {ours}, that of {name} is {theirs}.",
                    remedy="Fuse scores of the same split.",
                    code="other-splits",
                )
        for what, ours, theirs in (("class", first.classes, each.classes), ("video", first.videos, each.videos)):
            for lacking, having, gone in (
                (name, names[0], set(ours) - set(theirs)),
                (names[0], name, set(theirs) - set(ours)),
            ):
                if gone:
                    raise RunError(
                        f"{lacking} has no {what} {some_names(gone)}, which {having} has.",
                        remedy="Fuse scores of the same videos and classes; their order does not matter.",
                        code=f"missing-{what}",
                    )
    videos, classes = sorted(first.videos), tuple(sorted(first.classes))
    known = [_labels(each) for each in sets]
    for name, own in zip(names, known, strict=True):
        differ = [video for video in videos if own[video] and known[0][video] and own[video] != known[0][video]]
        if differ:
            said = " and ".join("|".join(sorted(each[differ[0]])) for each in (known[0], own))
            raise RunError(
                f"video {differ[0]} is {said} in {names[0]} and {name}.",
                remedy="Fuse scores with the same labels.",
                code="other-labels",
            )
    stacked = {what: np.stack([_sorted(each, what) for each in sets]) for what in ("probabilities", "logits")}
    keys = pd.DataFrame({"study": videos, _LABEL: ["|".join(sorted(known[0][video])) for video in videos]})
    return Joined(keys, names, classes, stacked["probabilities"], stacked["logits"])


def _at_stage(joined: Joined, sets: Sequence[ScoreSet], stage: str) -> tuple[Joined, str]:
    """Return what is weighted at a stage, and the stage of `volrec.inference.fusion` that does it."""
    logits, own = joined.logits, joined.scores
    if stage == "l2":
        values = np.stack([_sorted(each, "scores") for each in sets])
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        logits = np.divide(values, length, out=np.zeros_like(values), where=length > 0)
    if logits is not None and stage != "softmax":
        own = logits
    for name, values in zip(joined.runs, own, strict=True):
        if not np.isfinite(values).all():
            what = (
                "probabilities: they are margins of an SVM, or only logits are known"
                if stage == "softmax"
                else "logits"
            )
            raise RunError(f"{name} has no {what}.", remedy="Choose another stage of fusion.", code="fusion-stage")
    return Joined(joined.keys, joined.runs, joined.names, joined.scores, logits), "logits" if stage == "l2" else stage


def _result(
    sets: Sequence[ScoreSet],
    joined: Joined,
    scores: np.ndarray,
    logits: np.ndarray,
    *,
    stage: str,
    fusion: Mapping[str, Any],
) -> ScoreSet:
    """Return fused values in the order of the first set, with what all sets agree on and what was fused."""
    first = sets[0]
    place = {video: row for row, video in enumerate(joined.keys["study"])}
    column = {name: number for number, name in enumerate(joined.names)}
    back = np.ix_([place[video] for video in first.videos], [column[name] for name in first.classes])
    own = {"stream", "weights", "fusion", "trained_on", "decoder", "protocol"}
    common = {
        fact: value
        for fact, value in first.facts.items()
        if fact not in own and all(each.facts.get(fact) == value for each in sets)
    }
    members = [
        {fact: each.facts[fact] for fact in ("stream", "protocol", "stage", "weights", "fusion") if fact in each.facts}
        for each in sets
    ]
    weights = [str(each.facts.get("weights") or "") for each in sets]
    trained: list[Any] = []
    for each in sets:
        trained += [item for item in each.facts.get("trained_on") or () if item not in trained]
    facts = {
        **{fact: first.facts[fact] for fact in ("set", "split_id", "split_digest", "listed") if fact in first.facts},
        **common,
        "protocol": first.facts.get("protocol"),
        "stream": "+".join(joined.runs),
        "decoder": " / ".join(dict.fromkeys(str(each.facts["decoder"]) for each in sets if each.facts.get("decoder")))
        or None,
        "weights": hashlib.sha256("\n".join(weights).encode()).hexdigest() if all(weights) else None,
        "fusion": {**fusion, "streams": list(joined.runs), "members": members},
    }
    if all(each.facts.get("trained_on") for each in sets):
        facts["trained_on"] = trained
    return ScoreSet.from_arrays(
        first.videos,
        first.classes,
        labels=_agreed(sets),
        logits=logits[back],
        probabilities=scores[back],
        stage=stage,
        facts=facts,
    )


def _agreed(sets: Sequence[ScoreSet]) -> list[list[str]]:
    """Return the labels of the first set by name; where it has none, those of the first that has."""
    known = [_labels(each) for each in sets]
    return [sorted(next((own[video] for own in known if own[video]), set())) for video in sets[0].videos]


def _labels(scores: ScoreSet) -> dict[str, set[str]]:
    named = ({scores.classes[place] for place in own} for own in scores.labels)
    return dict(zip(scores.videos, named, strict=True))


def _sorted(scores: ScoreSet, what: str) -> np.ndarray:
    """Return (N, K) float64 with videos and classes sorted by name."""
    rows = sorted(range(len(scores.videos)), key=scores.videos.__getitem__)
    columns = sorted(range(len(scores.classes)), key=scores.classes.__getitem__)
    values: np.ndarray = getattr(scores, what)[np.ix_(rows, columns)]
    return values.astype(np.float64)


def _stream_names(sets: Sequence[ScoreSet]) -> tuple[str, ...]:
    """Return what the sets are called: their streams, with a number where two have the same name."""
    names: list[str] = []
    for number, each in enumerate(sets, start=1):
        name = str(each.facts.get("stream") or f"scores-{number}")
        names.append(f"{name}-{number}" if name in names else name)
    return tuple(names)
