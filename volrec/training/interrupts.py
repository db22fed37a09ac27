"""Ctrl-C and SIGTERM while a network trains: the step in hand is finished and nothing is lost."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "StopFlag", "StopTraining", "catching_signals"]

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A training that was stopped by a signal; its text says how to go on (the command line exits with 130)."""


class StopTraining(Exception):
    """No fault: the way out of the training loop once a stop was asked for."""


class StopFlag:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self.requested = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal: the first sets the flag, a second stops at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("%s: stopping after this step (once more stops at once).", signal.Signals(number).name)


@contextmanager
def catching_signals(flag: StopFlag) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `flag` while the block runs (in the main thread; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, flag.handle)
        yield
    finally:
        for number, handler in before.items():
            # None: it was installed outside Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
