"""From scores to decisions and probabilities: thresholds and calibration that a member's card carries.

Both were fitted on the validation studies of that member (`volrec.evaluation.decisions`). They stand beside the scores
and change none of them: a threshold is compared with the score as the network gave it, not with the calibrated one.

In the card, under ``decision``::

    {"rule": "sensitivity", "at": 0.9, "thresholds": {"malignant": 0.31},
     "calibration": {"method": "temperature", "temperatures": {"malignant": 1.8}},
     "fitted": {"malignant": {"studies": 60, "positives": 22, "sensitivity": 0.91, "specificity": 0.74}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volrec.data.targets import head_classes
from volrec.errors import ConfigError, RunError
from volrec.inference.consensus import inverse_link, link
from volrec.inference.tables import score_columns

if TYPE_CHECKING:
    from volrec.inference.predictor import StudyScore

__all__ = ["CARD_KEY", "HALF", "METHODS", "RULES", "Decision", "Fitted", "Question", "combine", "questions"]

Array = NDArray[np.float64]

CARD_KEY = "decision"
"""Key of a card that holds the plain form."""
HALF = 0.5
"""Threshold where none was chosen."""
RULES = ("youden", "sensitivity", "specificity", "half")
METHODS = ("temperature", "isotonic", "none")


@dataclass(frozen=True)
class Question:
    """What is answered by one call: yes or no (binary, each label), or one of several classes.

    Attributes
    ----------
    name : str
        Of the output (binary, multilabel), or of the target (multiclass, each head).
    columns : tuple of int
        Its places among the outputs.
    answers : tuple of str
        What can be called, in the order of the class indices.
    """

    name: str
    columns: tuple[int, ...]
    answers: tuple[str, ...]

    @property
    def has_threshold(self) -> bool:
        """Whether the answer is yes or no; elsewhere the class with the highest score is called."""
        return len(self.columns) == 1


def questions(task: str, *, classes: Sequence[str], targets: Sequence[str]) -> tuple[Question, ...]:
    """Return the questions of a task in the order of their outputs; none for quantities."""
    if task == "binary":
        return (Question(str(classes[-1]), (0,), (str(classes[0]), str(classes[-1]))),)
    if task == "multilabel":
        return tuple(Question(str(name), (place,), ("0", "1")) for place, name in enumerate(targets))
    if task == "multiclass":
        return (Question(str(targets[0]), tuple(range(len(classes))), tuple(map(str, classes))),)
    found, first = [], 0
    for name, own in head_classes(task, classes, targets).items():
        found.append(Question(name, tuple(range(first, first + len(own))), own))
        first += len(own)
    return tuple(found)


@dataclass(frozen=True)
class Fitted:
    """What the decision on one question rests on.

    Attributes
    ----------
    studies : int
        Validation studies with a label and a score.
    positives : int, optional
        Those that are positive (binary, multilabel).
    sensitivity, specificity : float, optional
        Reached by the threshold on these studies; None where there were none of the class.
    threshold_reason, calibration_reason : str
        Why there is no threshold of its own (0.5 is taken), no calibration; empty where there is, or none was wanted.
    """

    studies: int = 0
    positives: int | None = None
    sensitivity: float | None = None
    specificity: float | None = None
    threshold_reason: str = ""
    calibration_reason: str = ""


@dataclass(frozen=True, eq=False)
class Decision:
    """How a member, or several together, decide.

    Attributes
    ----------
    task, classes, targets
        As in the card.
    rule : str
        One of `RULES`: how the thresholds were chosen. Empty for members that differ in it.
    at : float, optional
        Sensitivity or specificity that they had to reach.
    thresholds : mapping of str to float
        Output (its score column without ``score_``) to threshold: called from there on. Of yes-or-no questions.
    calibration : mapping
        ``method``; ``temperatures``, question to number; or ``curves``, output to ``scores`` and ``values``. A question
        that is not in it is not calibrated.
    fitted : mapping of str to Fitted
        Question to what the decision rests on.
    members : tuple of Decision
        Of several together (`combine`), each one's own.
    """

    task: str
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    rule: str = "half"
    at: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=lambda: {"method": "none"})
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    members: tuple[Decision, ...] = ()

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Decision | None:
        """Return the decision of a card; None for quantities and for weights of before there were decisions.

        Raises
        ------
        RunError
            When what the card holds is no decision on its outputs.
        """
        plain = card.get(CARD_KEY)
        if plain is None:
            return None
        try:
            known = {one.name for one in fields(Fitted)}
            found = cls(
                task=str(card["task"]),
                classes=tuple(map(str, card["classes"])),
                targets=tuple(map(str, card["targets"])),
                rule=str(plain["rule"]),
                at=None if plain["at"] is None else float(plain["at"]),
                thresholds={str(name): float(value) for name, value in plain["thresholds"].items()},
                calibration=_checked(plain["calibration"]),
                fitted={
                    str(name): Fitted(**{key: value for key, value in facts.items() if key in known})
                    for name, facts in plain["fitted"].items()
                },
            )
            found._check()
        except KeyError as error:
            raise _unfit(f"it lacks {error}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise _unfit(str(error)) from error
        return found

    def to_card(self) -> dict[str, Any]:
        """Return the plain form for the card of one member: JSON types only."""
        return {
            "rule": self.rule,
            "at": self.at,
            "thresholds": dict(self.thresholds),
            "calibration": dict(self.calibration),
            "fitted": {name: _filled(facts) for name, facts in self.fitted.items()},
        }

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions in the order of their outputs."""
        return questions(self.task, classes=self.classes, targets=self.targets)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: their score columns without ``score_``."""
        columns = score_columns(self.task, classes=self.classes, targets=self.targets)
        return tuple(name.removeprefix("score_") for name in columns)

    @property
    def method(self) -> str:
        """How scores are calibrated: the method, ``members`` (each in its own way, then their mean), or ``none``."""
        if self.members:
            return "members" if any(member.method != "none" for member in self.members) else "none"
        return str(self.calibration["method"])

    @property
    def calibrated_outputs(self) -> tuple[str, ...]:
        """Outputs that have a calibration."""
        names = self.outputs
        return tuple(names[place] for one in self.questions if self.calibrates(one) for place in one.columns)

    def calibrates(self, question: Question) -> bool:
        """Whether there is a calibration for a question; of several members: for it in any of them."""
        if self.members:
            return any(member.calibrates(question) for member in self.members)
        if self.method == "temperature":
            return question.name in self.calibration["temperatures"]
        return self.method == "isotonic" and self.outputs[question.columns[0]] in self.calibration["curves"]

    def calibrated(self, scores: ArrayLike, logits: ArrayLike | None = None) -> Array:
        """Return calibrated probabilities.

        Temperature (Guo et al., On Calibration of Modern Neural Networks, ICML 2017): the logits divided by it, before
        sigmoid or softmax. Isotonic (Zadrozny and Elkan, KDD 2002): the monotone curve of each output; of exclusive
        classes divided by their sum, or left as they are where all curves say zero.

        Of several members each is calibrated in its own way and the mean is taken. That mean is, if anything, too
        cautious: members that err in different places are less sure together than they should be. A member without a
        calibration enters as it is.

        Parameters
        ----------
        scores : array
            (..., K') probabilities; of several members together (M, ..., K'), each one's own.
        logits : array, optional
            Their logits in the same shape; None takes those that follow from the scores.

        Returns
        -------
        ndarray
            (..., K') float64; as the scores where there is no calibration; NaN where a score is.
        """
        given = np.asarray(scores, dtype=np.float64)
        before = inverse_link(given, self.task) if logits is None else np.asarray(logits, dtype=np.float64)
        if self.members and (not given.ndim or len(given) != len(self.members)):
            raise ConfigError(
                f"the decision is of {len(self.members)} members, the scores are of shape {given.shape}.",
                remedy="Give the scores of each member (members, ..., outputs), in their order.",
                code="decision",
            )
        self._check_width(given, before)
        if self.members:
            each = zip(self.members, given, before, strict=True)
            return np.asarray(np.mean([one.calibrated(*parts) for one, *parts in each], axis=0), dtype=np.float64)
        found = given.copy()
        for one in self.questions:
            if self.calibrates(one):
                places = list(one.columns)
                found[..., places] = self._calibrated(one, given[..., places], before[..., places])
        return found

    def called(self, scores: ArrayLike) -> Array:
        """Return what is called, in the form of targets: (..., questions) float64.

        Parameters
        ----------
        scores : array
            (..., K') as the network gave them; of several members together their mean.

        Returns
        -------
        ndarray
            Of yes-or-no questions 1 from the threshold on and 0 below; of others the index of the class with the
            highest score. NaN where a score is missing.
        """
        given = np.asarray(scores, dtype=np.float64)
        self._check_width(given, given)
        found = np.empty((*given.shape[:-1], len(self.questions)))
        names = self.outputs
        for place, one in enumerate(self.questions):
            own = given[..., list(one.columns)]
            if one.has_threshold:
                said = own[..., 0] >= self.thresholds.get(names[one.columns[0]], HALF)
            else:
                said = own.argmax(axis=-1)
            found[..., place] = np.where(np.isnan(own).any(axis=-1), np.nan, said)
        return found

    def columns(
        self,
        scores: ArrayLike,
        logits: ArrayLike | None = None,
        *,
        members: Sequence[tuple[Array, Array | None]] | None = None,
    ) -> dict[str, list[Any]]:
        """Return the columns that a decision adds to a table of scores.

        Parameters
        ----------
        scores, logits : array
            (N, K') of N studies.
        members : sequence of (scores, logits), optional
            Of several members together each one's own (N, K'); without them nothing is calibrated.

        Returns
        -------
        dict
            ``called``, a class name (binary, multiclass); ``called_NAME`` of each label (0 or 1) or target of several
            heads (a class name); then ``calibrated_NAME`` of each output that has a calibration. None where a score is
            missing.
        """
        given = np.asarray(scores, dtype=np.float64)
        found: dict[str, list[Any]] = {}
        for one, said in zip(self.questions, self.called(given).T, strict=True):
            answers = (0, 1) if self.task == "multilabel" else one.answers
            name = "called" if self.task in ("binary", "multiclass") else f"called_{one.name}"
            found[name] = [None if np.isnan(value) else answers[int(value)] for value in said]
        if self.members:
            if members is None:
                return found
            before = [inverse_link(own, self.task) if given is None else given for own, given in members]
            chances = self.calibrated([own for own, _ in members], before)
        else:
            chances = self.calibrated(given, logits)
        names = self.outputs
        for output in self.calibrated_outputs:
            column = chances[:, names.index(output)]
            found[f"calibrated_{output}"] = [None if np.isnan(value) else float(value) for value in column]
        return found

    def row(self, score: StudyScore) -> dict[str, Any]:
        """Return what `columns` gives for one study, as plain values."""
        members = [(one.scores[None], one.logits[None]) for one in score.members] if self.members else None
        return {
            name: own[0] for name, own in self.columns(score.scores[None], score.logits[None], members=members).items()
        }

    def describe(self, question: Question | None = None) -> list[str]:
        """Return what was decided and why, a sentence or two a question; of one, or of all."""
        asked = self.questions if question is None else (question,)
        return [sentence for one in asked for sentence in self._described(one)]

    def _described(self, question: Question) -> Iterator[str]:
        name = question.name
        facts = self.fitted.get(name, Fitted())
        if not question.has_threshold:
            yield f"{name}: the class with the highest score is called."
        else:
            cut = self.thresholds.get(self.outputs[question.columns[0]], HALF)
            if self.members:
                yield f"{name}: called from {cut:.3f} on, the mean of the thresholds of {len(self.members)} members."
            elif facts.threshold_reason:
                yield f"{name}: called from {cut:.3g} on, as {facts.threshold_reason}."
            else:
                reached = [
                    f"{what} {value:.2f}"
                    for what, value in (("sensitivity", facts.sensitivity), ("specificity", facts.specificity))
                    if value is not None
                ]
                on = f" on {facts.studies} validation studies, {facts.positives} of them positive" if reached else ""
                yield f"{name}: called from {cut:.3f} on ({self._rule()}): {' and '.join(reached) or 'fixed'}{on}."
        if self.members:
            count = sum(member.calibrates(question) for member in self.members)
            if count:
                yield f"{name}: calibrated member by member ({count} of {len(self.members)}), then their mean is taken."
        elif facts.calibration_reason:
            yield f"{name}: not calibrated, as {facts.calibration_reason}."
        elif self.calibrates(question) and self.method == "temperature":
            value = self.calibration["temperatures"][name]
            yield f"{name}: calibrated with temperature {value:.3g} on {facts.studies} validation studies."
        elif self.calibrates(question):
            yield f"{name}: calibrated with a monotone curve (isotonic) on {facts.studies} validation studies."

    def _rule(self) -> str:
        return {
            "youden": "best mean of sensitivity and specificity",
            "sensitivity": f"the highest that reaches sensitivity {self.at}",
            "specificity": f"the lowest that reaches specificity {self.at}",
        }.get(self.rule, "the same for all")

    def _calibrated(self, question: Question, scores: Array, logits: Array) -> Array:
        """Return the calibrated part (..., outputs) of one question."""
        if self.method == "temperature":
            softened = logits / self.calibration["temperatures"][question.name]
            return link(softened, "binary" if question.has_threshold else "multiclass")
        curves = [self.calibration["curves"][self.outputs[place]] for place in question.columns]
        parts = [np.interp(scores[..., place], own["scores"], own["values"]) for place, own in enumerate(curves)]
        found = np.stack(parts, axis=-1)
        if question.has_threshold:
            return found
        total = found.sum(axis=-1, keepdims=True)
        return np.where(total > 0, found / np.where(total > 0, total, 1.0), np.where(np.isnan(total), total, scores))

    def _check_width(self, scores: Array, logits: Array) -> None:
        if not scores.ndim or scores.shape[-1] != len(self.outputs) or logits.shape != scores.shape:
            raise ConfigError(
                f"the decision is on {len(self.outputs)} outputs ({', '.join(self.outputs)}); scores have shape "
                f"{scores.shape}, logits {logits.shape}.",
                remedy="Give scores and logits (..., outputs) of the same network.",
                code="decision",
            )

    def _check(self) -> None:
        names = self.outputs
        strange = sorted({*self.thresholds, *self.calibration.get("curves", {})} - set(names))
        strange += sorted(set(self.calibration.get("temperatures", {})) - {one.name for one in self.questions})
        if strange:
            raise ValueError(f"it is on {', '.join(strange)}, and the network has {', '.join(names)}")
        if self.rule not in RULES:
            raise ValueError(f"it has a rule {self.rule!r}; known: {', '.join(RULES)}")


def combine(decisions: Sequence[Decision | None]) -> Decision | None:
    """Return the decision of several members that score together; None where one of them has none.

    The score of an ensemble is the mean of its members' scores, and so is its threshold the mean of theirs (of the
    probabilities, not of their logits): where every member stands on its own threshold, the ensemble stands on its own.
    It was not fitted on anything by itself, since no study is a validation study of every fold.

    Raises
    ------
    ConfigError
        Without any, and for members that answer other questions.
    """
    if not decisions:
        raise ConfigError("there is no decision to combine.", remedy="Give one a member.", code="decision")
    found = [one for one in decisions if one is not None]
    if len(found) < len(decisions):
        return None
    first = found[0]
    for one in found:
        if (one.task, one.classes, one.targets) != (first.task, first.classes, first.targets):
            raise ConfigError(
                f"one member answers a {first.task} task ({', '.join(first.outputs)}), another a {one.task} task "
                f"({', '.join(one.outputs)}).",
                remedy="Combine members that were trained on the same labels.",
                code="decision",
            )
    if len(found) == 1:
        return first
    names = [first.outputs[one.columns[0]] for one in first.questions if one.has_threshold]
    means = {name: float(np.mean([one.thresholds.get(name, HALF) for one in found])) for name in names}
    rules = {(one.rule, one.at) for one in found}
    rule, at = rules.pop() if len(rules) == 1 else ("", None)
    own: dict[str, Any] = {"thresholds": means, "calibration": {"method": "none"}, "fitted": {}}
    return replace(first, rule=rule, at=at, members=tuple(found), **own)


def _filled(facts: Fitted) -> dict[str, Any]:
    """Return what is there, and ``studies`` always."""
    return {key: value for key, value in asdict(facts).items() if key == "studies" or value not in (None, "")}


def _checked(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a calibration as it is used; ValueError for numbers that cannot be."""
    method = plain["method"]
    if method not in METHODS:
        raise ValueError(f"it has a calibration {method!r}; known: {', '.join(METHODS)}")
    if method == "temperature":
        numbers = {str(name): float(value) for name, value in plain["temperatures"].items()}
        if not all(np.isfinite(value) and value > 0 for value in numbers.values()):
            raise ValueError(f"it has temperatures {numbers}, which must be above 0")
        return {"method": method, "temperatures": numbers}
    if method == "none":
        return {"method": method}
    curves = {}
    for name, own in plain["curves"].items():
        scores, values = (list(map(float, own[key])) for key in ("scores", "values"))
        if not scores or len(scores) != len(values) or (np.diff(scores) <= 0).any() or (np.diff(values) < 0).any():
            raise ValueError(f"its curve of {name} does not rise")
        curves[str(name)] = {"scores": scores, "values": values}
    return {"method": method, "curves": curves}


def _unfit(problem: str) -> RunError:
    return RunError(
        f"the decision in the card of these weights cannot be used: {problem}.",
        remedy="Use the version of volrec that wrote it, or train again.",
        where=CARD_KEY,
        code="card",
    )
