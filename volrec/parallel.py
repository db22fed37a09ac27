"""Work spread over processes so that one item's failure, or one worker's death, costs that item alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, TypeVar

from volrec.errors import DataError, VolrecError
from volrec.progress import progress

__all__ = ["Outcome", "available_cpus", "map_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Outcome(Generic[Item, Result]):
    """An item with either its result or the error that it raised."""

    __slots__ = ("error", "item", "result")

    def __init__(self, item: Item, result: Result | None = None, error: Exception | None = None) -> None:
        self.item = item
        self.result = result
        self.error = error


def available_cpus() -> int:
    """Return the number of processors this process may use (not those the machine has)."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS, Windows
        return max(1, os.cpu_count() or 1)


def map_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int,
    description: str,
    name: Callable[[Item], str] = str,
) -> Iterator[Outcome[Item, Result]]:
    """Apply `function` to every item, unordered, and yield one outcome an item.

    Parameters
    ----------
    function : callable
        A module-level function (it is sent to the workers by name).
    items : sequence
        The work; each item is pickled once.
    jobs : int
        Number of processes; 1 works in this process.
    description : str
        Text of the progress bar.
    name : callable
        Gives the text by which an item is named when its worker dies.

    Yields
    ------
    Outcome
        A `VolrecError` raised by `function` is passed on in ``error``. Any other error, and the death of a worker
        (killed, out of memory, crash in a codec), arrives as a `DataError` that names the item.
    """
    with progress(description, len(items)) as bar:
        if jobs <= 1 or len(items) <= 1:
            for item in items:
                yield _here(function, item, name)
                bar.advance()
            return
        todo = list(items)
        while todo:
            lost: list[Item] = []
            left: list[Item] = []
            for outcome in _pool_round(function, todo, jobs, name, lost, left):
                yield outcome
                bar.advance()
            # A dead worker takes every running item with it: those are tried again one at a time, each in a pool of
            # its own, so that the one at fault is found and named. What had not been started goes on as before.
            for item in lost:
                alone: list[Item] = []
                yield from _pool_round(function, [item], 1, name, alone, [])
                if alone:
                    yield Outcome(item, error=_died(name(item)))
                bar.advance()
            todo = left


def _here(function: Callable[[Item], Result], item: Item, name: Callable[[Item], str]) -> Outcome[Item, Result]:
    try:
        return Outcome(item, function(item))
    except VolrecError as error:
        return Outcome(item, error=error)
    except Exception as error:  # noqa: BLE001 - one bad study never stops a folder
        return Outcome(item, error=_unexpected(name(item), error))


def _pool_round(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int,
    name: Callable[[Item], str],
    lost: list[Item],
    left: list[Item],
) -> Iterator[Outcome[Item, Result]]:
    """Run `items` in one pool; those running when a worker died go to `lost`, those not yet started to `left`."""
    # loky starts fresh interpreters (forking after torch has started its threads can deadlock) and, unlike the
    # standard library's spawn, does not run the caller's script again in each of them.
    from joblib.externals.loky.backend.context import get_context
    from joblib.externals.loky.process_executor import ProcessPoolExecutor

    queue = list(reversed(items))
    running: dict[Future[Result], Item] = {}
    pool = ProcessPoolExecutor(max_workers=min(jobs, len(items)), context=get_context("loky"))
    try:
        while queue or running:
            # Bounded look-ahead: results are consumed as they come, so memory stays flat.
            while queue and len(running) < 4 * jobs:
                item = queue.pop()
                try:
                    running[pool.submit(function, item)] = item
                except BrokenProcessPool:
                    queue.append(item)
                    break
            if not running:  # the pool broke between two items: nothing was lost
                left.extend(reversed(queue))
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                item = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    lost.append(item)
                elif error is None:
                    yield Outcome(item, future.result())
                elif isinstance(error, VolrecError):
                    yield Outcome(item, error=error)
                else:
                    yield Outcome(item, error=_unexpected(name(item), error))
            if lost:
                lost.extend(running.values())
                left.extend(reversed(queue))
                return
    finally:
        pool.shutdown(wait=True, kill_workers=bool(running) and not lost)


def _died(item: str) -> DataError:
    return DataError(
        "the process that worked on it died (killed, out of memory, or a crash in a decoder).",
        remedy="Try it alone, with fewer jobs, or take it out of the folder.",
        where=item,
        code="worker-died",
    )


def _unexpected(item: str, error: BaseException) -> DataError:
    return DataError(
        f"it could not be processed ({type(error).__name__}: {error}).",
        remedy="Open it in a viewer to see whether the file is sound; if it is, please report this.",
        where=item,
        code="unexpected",
    )
