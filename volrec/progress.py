"""The one progress helper: a bar with an honest estimate on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "progress", "track"]

Item = TypeVar("Item")


class Bar:
    """One line of progress; every method is a no-op when the output is no terminal."""

    def __init__(self, live: Progress | None, description: str, total: int | None) -> None:
        self._live = live
        self._task = None if live is None else live.add_task(description, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move on by `steps`."""
        if self._live is not None and self._task is not None:
            self._live.advance(self._task, steps)

    def update(self, *, description: str | None = None, total: int | None = None, completed: int | None = None) -> None:
        """Change the text, the total or the position."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description=description, total=total, completed=completed)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Bar]:
    """Show a progress bar on standard error while the block runs.

    Parameters
    ----------
    description : str
        What is being done, in the user's words ("reading headers").
    total : int, optional
        Number of steps; None shows a pulsing bar.
    """
    if not sys.stderr.isatty():
        yield Bar(None, description, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        yield Bar(live, description, total)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` under a progress bar."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
