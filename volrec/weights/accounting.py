"""What became of every key when weights of one origin were loaded into a network: nothing passes unsaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["ACTIONS", "Action", "KeyRow", "KeyTable"]

Action = Literal["loaded", "adapted", "dropped", "missing"]
ACTIONS: tuple[Action, ...] = ("loaded", "adapted", "dropped", "missing")


@dataclass(frozen=True)
class KeyRow:
    """One key of the source or of the network.

    Attributes
    ----------
    source : str
        Key in the source; empty where the network needs one that is not there.
    target : str
        Key in the network; empty where the source's goes nowhere.
    action : {"loaded", "adapted", "dropped", "missing"}
        Taken as it is; taken in another form; left out; not in the source, so the network keeps its own.
    reason : str
        How it was adapted, or why it was left out or may be missing; empty for what was loaded.
    shape : tuple of int
        Of the tensor in the network; of the source's where it was left out.
    """

    source: str
    target: str
    action: Action
    reason: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeyTable:
    """Every key of a loading, in the order of the network, what was left out last.

    Attributes
    ----------
    rows : tuple of KeyRow
        One a key.
    """

    rows: tuple[KeyRow, ...]

    @classmethod
    def of(cls, rows: Iterable[KeyRow]) -> KeyTable:
        """Sort what was left out behind the rest."""
        kept = list(rows)
        return cls((*(row for row in kept if row.target), *(row for row in kept if not row.target)))

    @property
    def counts(self) -> dict[str, int]:
        """Number of keys an action."""
        found = Counter(row.action for row in self.rows)
        return {action: found[action] for action in ACTIONS}

    def of_action(self, action: Action) -> tuple[KeyRow, ...]:
        """Return the rows of one action."""
        return tuple(row for row in self.rows if row.action == action)

    @property
    def summary(self) -> str:
        """One line: ``"57 loaded, 1 adapted, 2 dropped, 0 missing"``."""
        return ", ".join(f"{count} {action}" for action, count in self.counts.items())
