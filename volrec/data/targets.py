"""From the words of a table to what a network learns: which task, which classes, which numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from volrec.data.label_table import is_missing, some, to_number
from volrec.errors import LabelsError

__all__ = ["Coding", "Task", "class_name", "head_classes", "head_sizes", "infer_coding", "num_outputs", "one_class"]

Task = Literal["binary", "multiclass", "multilabel", "multihead", "regression"]
TASKS = ("binary", "multiclass", "multilabel", "multihead", "regression")
MOST_CLASSES = 50
GRADES = 10  # more whole numbers than these are a measurement
NEGATIVE = frozenset(
    (
        *("0", "no", "n", "false", "f", "neg", "negative", "absent", "none", "without", "benign", "normal", "healthy"),
        *("control", "controls", "unaffected", "alive", "female"),
    )
)
"""Words that make the negative class of two."""


@dataclass(frozen=True)
class Coding:
    """How the target columns become numbers.

    Attributes
    ----------
    task : str
        ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"multihead"`` or ``"regression"``.
    targets : tuple of str
        Target columns.
    classes : tuple of str
        Binary: negative, positive. Multiclass: in the order of the outputs. Multilabel: the targets. Multihead:
        ``"column=class"`` in the order of the outputs, the classes of one target after those of another (see
        `head_classes`). Regression: none.
    notes : tuple of str
        What was inferred.
    """

    task: Task
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        """Return the target of one study, float32 ``(K,)``; multiclass ``(1,)``, the class index.

        Multihead: ``(targets,)``, the class index within each target, NaN where the study has none.

        Raises
        ------
        LabelsError
            A value that is no class or no number.
        """
        heads = head_classes(self.task, self.classes, self.targets).values()
        if heads:
            values = [_class_index(cell, own) for cell, own in zip(cells, heads, strict=True)]
            return np.array(values, dtype=np.float32)
        return np.array([self.value(cell) for cell in cells], dtype=np.float32)

    def value(self, cell: str) -> float:
        """Return one cell as a number: class index, 0 or 1, or measurement; NaN where it is empty."""
        if is_missing(cell):
            return float("nan")
        if self.task == "regression":
            number = to_number(cell)
            if number is None:
                raise LabelsError(f"{cell!r} is no number.", remedy="Mend it, or leave it empty.", code="labels-value")
            return number
        return _class_index(cell, ("0", "1") if self.task == "multilabel" else self.classes)


def num_outputs(task: str, classes: Sequence[str], targets: Sequence[str]) -> int:
    """Return the number of outputs of a network: one for two classes, one a class, one a label, one a measurement."""
    if task == "binary":
        return 1
    return len(classes) if task in ("multiclass", "multihead") else len(targets)


def head_classes(task: str, classes: Sequence[str], targets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the classes of each target of a multihead task, by its column; nothing for every other task.

    The outputs are the classes of the first target, then those of the second, and so on.
    """
    if task != "multihead":
        return {}
    return {
        name: tuple(one.removeprefix(f"{name}=") for one in classes if one.startswith(f"{name}=")) for name in targets
    }


def head_sizes(task: str, classes: Sequence[str], targets: Sequence[str]) -> tuple[int, ...]:
    """Return the number of outputs of each head of a multihead task; nothing for every other task."""
    return tuple(len(own) for own in head_classes(task, classes, targets).values())


def class_name(cell: str) -> str:
    """Return the name of the class that a cell means: ``"1.0"`` and ``"1"`` are one class, and so are true and True."""
    number = to_number(cell)
    if number is not None and number == int(number) and not _keeps_zeros(cell):
        return str(int(number))
    return cell.lower() if cell.lower() in ("true", "false") else cell


def infer_coding(
    columns: Mapping[str, Sequence[str]], *, task: Task | None = None, classes: Sequence[str] = (), where: str = ""
) -> Coding:
    """Decide what is learned.

    Parameters
    ----------
    columns : mapping of str to sequence of str
        Cells of each target column, those of usable studies, in any order; empty ones do not count.
    task : str, optional
        Given by the user: checked, not inferred.
    classes : sequence of str
        Given by the user, in the order of the outputs.
    where : str
        The table, for messages.

    Raises
    ------
    LabelsError
        Values that fit no task, or not the one that was asked for.
    """
    filled = {name: [cell for cell in cells if not is_missing(cell)] for name, cells in columns.items()}
    for name, cells in filled.items():
        if not cells and not (task == "multihead" and classes):  # new studies may lack what a head has learned
            raise LabelsError(
                f"column '{name}' is empty for every study that was found.",
                remedy="Fill it, or choose another target.",
                where=where,
                code="labels-nan",
            )
    if task == "multihead":
        return _multihead(filled, classes, where)
    if len(filled) > 1:
        return _several(filled, task, classes, where)
    ((name, cells),) = filled.items()
    kinds = Counter(map(class_name, cells))
    numbers = [to_number(cell) for cell in cells]
    if task == "multilabel":
        return _multilabel(filled, classes, where)
    if len(kinds) == 1 and not classes and task != "regression":
        raise one_class(next(iter(kinds)), len(cells), where)
    if task is None:
        task, why = _infer(name, kinds, numbers, classes, where)
        notes = [f"task: {task}, as column '{name}' {why}"]
    else:
        notes = [f"task: {task}, as configured"]
    if task == "regression":
        return _regression(filled, tuple(notes), classes, where)
    names = _names(kinds, classes, name, where)
    if task == "binary":
        if len(names) != 2:
            raise LabelsError(
                f"column '{name}' has {len(names)} classes ({some(names, 10)}); a binary task has two.",
                remedy="Set data.task to multiclass, or choose another target.",
                where=where,
                code="labels-task",
            )
        notes.append(f"positive class: '{names[1]}' (negative: '{names[0]}'); data.classes changes the order")
    return Coding(task, (name,), names, tuple(notes))


def one_class(name: str, studies: int, where: str) -> LabelsError:
    """Return the error of a cohort without contrast."""
    return LabelsError(
        f"all {studies} studies are of one class ('{name}').",
        remedy="Add studies of another class, or choose another target.",
        where=where,
        code="one-class",
    )


def _infer(
    name: str, kinds: Counter[str], numbers: Sequence[float | None], classes: Sequence[str], where: str
) -> tuple[Task, str]:
    listed = some(_sorted(kinds), 8)
    if classes:
        return ("binary" if len(classes) == 2 else "multiclass"), f"has the configured classes {some(classes, 8)}"
    if len(kinds) == 2:
        return "binary", f"has two values ({listed})"
    if all(number is not None for number in numbers):
        whole = all(number == int(number) for number in numbers if number is not None)
        if whole and len(kinds) <= GRADES and len(numbers) >= 3 * len(kinds):
            return "multiclass", f"has {len(kinds)} whole numbers ({listed}); set data.task to regression for grades"
        return "regression", f"has {len(kinds)} different numbers"
    words = [kind for kind in kinds if to_number(kind) is None]
    if len(words) <= len(kinds) / 2 and len(kinds) > GRADES:
        raise LabelsError(
            f"column '{name}' holds numbers, but also {some([repr(word) for word in words])}.",
            remedy="Mend these cells, or leave them empty: such studies are left out.",
            where=where,
            code="labels-value",
        )
    if len(kinds) > MOST_CLASSES or 2 * len(kinds) > len(numbers):
        raise LabelsError(
            f"column '{name}' has {len(kinds)} different words for {len(numbers)} studies ({some(_sorted(kinds), 4)}): "
            "these are names or notes, no classes.",
            remedy="Choose another target, or set data.task to multiclass if they are classes.",
            where=where,
            code="labels-task",
        )
    return "multiclass", f"has {len(kinds)} words ({listed})"


def _several(filled: Mapping[str, list[str]], task: Task | None, classes: Sequence[str], where: str) -> Coding:
    if task in ("binary", "multiclass"):
        raise LabelsError(
            f"a {task} task has one target, got {len(filled)} ({', '.join(filled)}).",
            remedy="Choose one, or set data.task to multihead (each its own classes), multilabel or regression.",
            where=where,
            code="labels-task",
        )
    marks = all(set(map(class_name, cells)) <= {"0", "1"} for cells in filled.values())
    if task == "multilabel" or (task is None and marks):
        return _multilabel(filled, classes, where)
    if task is None and not all(to_number(cell) is not None for cells in filled.values() for cell in cells):
        raise LabelsError(
            f"the targets {', '.join(filled)} are neither all 0 and 1 (multilabel) nor all numbers (regression).",
            remedy="Choose one target, or targets of one kind. If each has classes of its own, set data.task to "
            "multihead (`volrec train … --set data.task=multihead`).",
            where=where,
            code="labels-task",
        )
    note = "task: regression, as " + ("configured" if task else "all targets are numbers")
    return _regression(filled, (note,), classes, where)


def _multilabel(filled: Mapping[str, list[str]], classes: Sequence[str], where: str) -> Coding:
    for name, cells in filled.items():
        wrong = sorted(set(map(class_name, cells)) - {"0", "1"})
        if wrong:
            raise LabelsError(
                f"column '{name}' holds {some(map(repr, wrong))}; labels of a multilabel task are 0 or 1.",
                remedy="Write 1 where the label holds, 0 where it does not, nothing where it is unknown.",
                where=where,
                code="labels-value",
            )
    if classes and tuple(classes) != tuple(filled):
        raise _no_classes("multilabel", classes, where)
    note = f"task: multilabel, as all {len(filled)} targets are 0 or 1"
    return Coding("multilabel", tuple(filled), tuple(filled), (note,))


def _multihead(filled: Mapping[str, list[str]], classes: Sequence[str], where: str) -> Coding:
    if len(filled) < 2:
        raise LabelsError(
            f"a multihead task has several targets, got {len(filled)} ({', '.join(filled)}).",
            remedy="Name them all (--target a --target b), or set data.task to multiclass.",
            where=where,
            code="labels-task",
        )
    unclear = [name for name in filled if "=" in name]
    if unclear:
        raise LabelsError(
            f"the name of column '{unclear[0]}' holds '=', which stands between a target and its class.",
            remedy="Rename the column.",
            where=where,
            code="labels-columns",
        )
    wrong = [one for one in classes if one.partition("=")[0] not in filled or "=" not in one]
    if wrong:
        raise LabelsError(
            f"data.classes holds {some(map(repr, wrong))}; those of a multihead task are written column=class, of the "
            f"columns {', '.join(filled)}.",
            remedy="Correct them, or leave data.classes out.",
            where=where,
            code="labels-classes",
        )
    given = head_classes("multihead", classes, tuple(filled))
    names: dict[str, tuple[str, ...]] = {}
    for name, cells in filled.items():
        kinds = Counter(map(class_name, cells))
        names[name] = _names(kinds, given[name], name, where)
        if len(names[name]) < 2:
            raise LabelsError(
                f"target '{name}' has one class only ('{', '.join(names[name])}', {len(cells)} studies).",
                remedy="Leave it out of the targets, or add studies of another class.",
                where=where,
                code="one-class",
            )
    counted = ", ".join(f"'{name}' of {len(own)} classes ({len(filled[name])} studies)" for name, own in names.items())
    flat = tuple(f"{name}={one}" for name, own in names.items() for one in own)
    return Coding("multihead", tuple(filled), flat, ("task: multihead, as configured", f"heads: {counted}"))


def _class_index(cell: str, names: Sequence[str]) -> float:
    """Return the place of a cell's class among `names`; NaN where it is empty."""
    if is_missing(cell):
        return float("nan")
    name = class_name(cell)
    if name not in names:
        raise LabelsError(
            f"{cell!r} is none of the classes {some(names, 10)}.",
            remedy="Mend it, or name all classes (data.classes).",
            code="labels-value",
        )
    return float(names.index(name))


def _regression(filled: Mapping[str, list[str]], notes: tuple[str, ...], classes: Sequence[str], where: str) -> Coding:
    if classes:
        raise _no_classes("regression", classes, where)
    for name, cells in filled.items():
        wrong = [cell for cell in cells if to_number(cell) is None]
        if wrong:
            raise LabelsError(
                f"column '{name}' holds {some(sorted({repr(cell) for cell in wrong}))}, which are no numbers.",
                remedy="Mend these cells, or leave them empty: such studies are left out.",
                where=where,
                code="labels-value",
            )
    return Coding("regression", tuple(filled), (), notes)


def _no_classes(task: str, classes: Sequence[str], where: str) -> LabelsError:
    return LabelsError(
        f"data.classes ({some(classes)}) does not fit a {task} task.",
        remedy="Leave it out.",
        where=where,
        code="labels-classes",
    )


def _names(kinds: Counter[str], classes: Sequence[str], name: str, where: str) -> tuple[str, ...]:
    if not classes:
        return tuple(_sorted(kinds))
    names = tuple(map(class_name, classes))
    unknown = [kind for kind in _sorted(kinds) if kind not in names]
    if unknown or len(set(names)) < len(names):
        what = f"column '{name}' also holds {some(map(repr, unknown))}" if unknown else "one of them stands there twice"
        raise LabelsError(
            f"the classes are to be {some(names, 10)}, but {what}.",
            remedy="Name every class once in data.classes, or mend the table.",
            where=where,
            code="labels-classes",
        )
    return names


def _sorted(kinds: Iterable[str]) -> list[str]:
    """Sort classes: numbers by value, words by letter; of two words, one that means no comes first."""
    names = sorted(
        kinds, key=lambda kind: (0, to_number(kind), kind) if to_number(kind) is not None else (1, 0.0, kind)
    )
    if len(names) == 2 and names[1].lower() in NEGATIVE and names[0].lower() not in NEGATIVE:
        names.reverse()
    return names


def _keeps_zeros(cell: str) -> bool:
    """Tell whether a number is written as a code (``"01"``): it stays text."""
    digits = cell.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and digits.isdigit()
