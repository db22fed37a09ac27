"""What is known of a network before it is built: its paper, sizes and options."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from volrec.errors import ConfigError

__all__ = ["PAPER", "NetworkSpec", "Option", "TrainingStage", "check_number", "parameter_error", "suggest"]

PAPER = object()
"""Marks an option whose value in the paper's network is its ordinary default."""


@dataclass(frozen=True)
class Option:
    """One named option of a network.

    Attributes
    ----------
    kind : type
        ``bool``, ``int``, ``float``, ``str``, ``tuple`` (of ints) or ``dict`` (options of a network within).
    default : object
        Value in the form adapted to volumes.
    meaning : str
        One line for ``volrec models NAME``.
    choices : tuple of str
        Allowed values of a ``str``; empty allows any.
    prefixes : tuple of str
        Beginnings of further allowed values of a ``str`` with choices (``"monai:"`` for the networks of a library).
    low, high : float
        Closed range of a number, or of every entry of a tuple.
    length : int, optional
        Number of entries of a tuple.
    paper : object
        Value in the paper's network (``faithful=True``), where it differs from `default`.
    free : bool or tuple
        What is accepted with ``faithful=True``: any value, only the paper's (False), or these (they settle an
        ambiguity of the paper or name a published variant).
    hint : callable, optional
        Gives the remedy for a wrong ``str``, such as "Did you mean 'x'?"; None: the nearest of the choices.
    """

    kind: type
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    length: int | None = None
    paper: Any = PAPER
    free: bool | tuple[Any, ...] = False
    hint: Callable[[str], str] | None = None

    def default_for(self, *, faithful: bool) -> Any:
        """Return the value taken when none is given."""
        return self.default if not faithful or self.paper is PAPER else self.paper

    @property
    def allowed(self) -> str:
        """What a value must be, as a phrase: ``"a float in [0, 1]"``."""
        if self.kind is bool:
            phrase = "a bool"
        elif self.choices:
            known = [*self.choices, *(f"{prefix}NAME" for prefix in self.prefixes)]
            phrase = "one of " + ", ".join(repr(choice) for choice in known)
        elif self.kind is tuple:
            phrase = f"a list of {self.length or 'any number of'} ints in {_interval(self.low, self.high)}"
        elif self.kind is str:
            phrase = "a str"
        elif self.kind is dict:
            phrase = "a dict of options"
        else:
            phrase = f"{'an' if self.kind is int else 'a'} {self.kind.__name__} in {_interval(self.low, self.high)}"
        return f"{phrase} or None" if self.default is None or self.paper is None else phrase

    def check(self, value: Any, *, name: str, owner: str) -> Any:
        """Return `value` in its own type, or raise a `ConfigError` that says what is allowed."""
        if value is None and (self.default is None or self.paper is None):
            return None
        if value is None and "none" in self.choices:
            return "none"
        if self.kind is bool and isinstance(value, bool):
            return value
        if self.kind is str and isinstance(value, str) and self._is_choice(value):
            return value
        if self.kind is int and _is_int(value) and self.low <= value <= self.high:
            return int(value)
        if self.kind is float and _is_number(value) and self.low <= value <= self.high:
            return float(value)
        if self.kind is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return dict(value)
        if (
            self.kind is tuple
            and isinstance(value, (tuple, list))
            and len(value) == (self.length or len(value))
            and all(_is_int(entry) and self.low <= entry <= self.high for entry in value)
        ):
            return tuple(int(entry) for entry in value)
        near = ""
        if isinstance(value, str):
            near = self.hint(value) if self.hint else suggest(value, self.choices)
        raise parameter_error(name, owner, self.allowed, value, remedy=near)

    def _is_choice(self, value: str) -> bool:
        if not self.choices or value in self.choices:
            return True
        return any(value.startswith(prefix) and value != prefix for prefix in self.prefixes)


@dataclass(frozen=True)
class TrainingStage:
    """One of the trainings that a paper does in turn, each from the weights of the one before.

    Attributes
    ----------
    name : str
        Short, lower case: the name of its folder.
    objective : str
        What is learned: ``"labels"`` (the loss of the scores), ``"motion"`` (`auxiliary_loss` alone, without labels),
        ``"joint"`` (both).
    freeze : tuple of str
        Patterns of the names of parameters that stay as they are.
    lr : float
        Learning rate over that of the recipe.
    epochs : float
        Epochs over those of the recipe.
    motion_weight : float
        Weight of the loss without labels in ``"joint"``.
    why : str
        One line for the plan.
    """

    name: str
    objective: str = "labels"
    freeze: tuple[str, ...] = ()
    lr: float = 1.0
    epochs: float = 1.0
    motion_weight: float = 1.0
    why: str = ""


@dataclass(frozen=True)
class NetworkSpec:
    """Facts of one network of the registry.

    Attributes
    ----------
    name : str
        Registry name.
    paper, title : str
        Authors (or "-" for a baseline) and title.
    year : int
        Year of publication.
    default_clip : tuple of int
        The paper's input (C, T, H, W).
    smallest : tuple of int
        Smallest (T, H, W) of the adapted form with its default options.
    num_classes : int
        Classes of the paper's last layer.
    slicewise : bool
        True: slices are encoded one by one (`SlicewiseNetwork`).
    strides : tuple of (int, int)
        Stride along T and in the plane of each step that the option ``temporal_strides`` sets, as in the paper.
    options : mapping
        From option name to `Option`.
    ambiguities : tuple of str
        What the paper leaves open or is often read differently, and the option that settles it.
    summary : str
        One line on what the network does.
    streams : tuple of str
        What its input channels are, in this order: ``"intensity"``, ``"flow"``, ``"warped"``, ``"difference"``.
    segments : int
        Equal parts of a sequence that the paper draws a clip from, one snippet each; 0: clips are contiguous.
    training : tuple of TrainingStage
        Trainings that are done in turn; empty: one, of everything.
    refining : tuple of TrainingStage
        Those that are done in turn where the first weights exist; empty: as `training`.
    """

    name: str
    paper: str
    title: str
    year: int
    default_clip: tuple[int, int, int, int]
    smallest: tuple[int, int, int]
    num_classes: int
    slicewise: bool = False
    strides: tuple[tuple[int, int], ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict, hash=False, repr=False)
    ambiguities: tuple[str, ...] = field(default=(), repr=False)
    summary: str = ""
    streams: tuple[str, ...] = field(default=("intensity",), repr=False)
    segments: int = field(default=0, repr=False)
    training: tuple[TrainingStage, ...] = field(default=(), repr=False)
    refining: tuple[TrainingStage, ...] = field(default=(), repr=False)

    def resolve(self, given: Mapping[str, Any], *, faithful: bool) -> dict[str, Any]:
        """Return every option with its value: the given ones checked, the others at their default.

        Raises
        ------
        ConfigError
            For an unknown option (with the nearest name), a wrong value, or one that the paper's form does not have.
        """
        for name in given:
            if name not in self.options:
                raise ConfigError(
                    f"{self.name} has no option {name!r}.",
                    remedy=f"{suggest(name, self.options)}Known options: {', '.join(self.options) or 'none'}.",
                    where="network.options",
                    code="network-option",
                )
        values: dict[str, Any] = {}
        for name, option in self.options.items():
            default = option.default_for(faithful=faithful)
            if name not in given:
                values[name] = default
                continue
            values[name] = option.check(given[name], name=name, owner=self.name)
            if faithful and option.free is not True and values[name] not in (option.free or (default,)):
                allowed = " or ".join(repr(value) for value in option.free or (default,))
                raise parameter_error(
                    name,
                    self.name,
                    f"{allowed} when faithful=True",
                    given[name],
                    remedy="Leave it out, or set faithful=False.",
                )
        return values


def parameter_error(name: str, owner: str, allowed: str, value: Any, *, remedy: str = "") -> ConfigError:
    """Return the error for a wrong argument, in scikit-learn's form."""
    return ConfigError(
        f"The {name!r} parameter of {owner} must be {allowed}. Got {value!r} instead.",
        remedy=remedy.strip(),
        code="parameter",
    )


def check_number(value: Any, *, name: str, owner: str, kind: type, low: float, open_low: bool = False) -> None:
    """Raise a `ConfigError` unless `value` is a number of `kind` from `low` on (`open_low`: above it)."""
    fits = _is_int(value) if kind is int else _is_number(value) and math.isfinite(value)
    if not fits or value < low or (open_low and value == low):
        article = "an int" if kind is int else "a float"
        raise parameter_error(name, owner, f"{article} in {'(' if open_low else '['}{low:g}, inf)", value)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " for the known word that begins so or is nearest, or nothing."""
    names = sorted(known)
    near = [name for name in names if len(word) > 2 and name.lower().startswith(word.lower())]
    near = near or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's integers count


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _interval(low: float, high: float) -> str:
    left = "(-inf" if low == -math.inf else f"[{low:g}"
    right = "inf)" if high == math.inf else f"{high:g}]"
    return f"{left}, {right}"
