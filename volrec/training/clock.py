"""Where the time of a training goes: waiting for data, moving it to the device, computing, validating."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["PARTS", "StepClock", "describe_times"]

PARTS = ("data_wait", "transfer", "compute", "validation")


class StepClock:
    """Seconds spent in each part of an epoch.

    On a GPU the processor runs ahead: the device may still be busy while the next batch is read, and then nobody waits.
    Waiting is therefore counted only where the device had finished the step before the batch was there.

    Parameters
    ----------
    cuda : bool
        Whether the network runs on a CUDA device.
    """

    def __init__(self, *, cuda: bool = False) -> None:
        self.cuda = cuda
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._mark = time.perf_counter()
        self._step_end: Any = None
        self._moves: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin an epoch, or go on after something that does not count."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._step_end, self._moves = None, []
        self._mark = time.perf_counter()

    def fetched(self) -> None:
        """Note that the next batch has been read."""
        busy = self._step_end is not None and not self._step_end.query()
        self._lap("compute" if busy else "data_wait")
        if self.cuda:
            self._moves.append((self._event(), None))

    def moved(self) -> None:
        """Note that the batch is on the device, or on its way."""
        if self.cuda:
            self._moves[-1] = (self._moves[-1][0], self._event())
        self._lap("transfer")

    def stepped(self) -> None:
        """Note that the step has been computed, or handed to the device."""
        if self.cuda:
            self._step_end = self._event()
        self._lap("compute")

    def finish(self) -> dict[str, float]:
        """Wait for the device and return the seconds of this epoch."""
        if self.cuda:
            self._event().synchronize()
            self._lap("compute")
            # The processor's own share of a transfer is small: what counts is how long the device was at it.
            moving = sum(begin.elapsed_time(end) for begin, end in self._moves if end is not None) / 1000
            moving = min(moving, self.seconds["compute"] + self.seconds["transfer"])
            self.seconds["compute"] += self.seconds["transfer"] - moving
            self.seconds["transfer"] = moving
        return dict(self.seconds)

    def validated(self) -> None:
        """Note that the validation after the steps has ended."""
        self._lap("validation")

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._mark
        self._mark = now

    def _event(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def describe_times(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each part over all epochs, and the shares that the steps had.

    ``data_wait_share`` and its like are shares of the time in steps (without validation);
    ``data_wait_share_later`` leaves the first epoch out, when caches are cold.
    """
    totals = {part: float(sum(row.get(part, 0.0) for row in history)) for part in PARTS}
    facts = {f"{part}_seconds": round(seconds, 3) for part, seconds in totals.items()}
    for suffix, rows in (("", history), ("_later", history[1:])):
        steps = sum(row[part] for row in rows for part in PARTS[:3])
        for part in PARTS[:3]:
            if steps > 0:
                facts[f"{part}_share{suffix}"] = round(sum(row[part] for row in rows) / steps, 4)
    return facts
