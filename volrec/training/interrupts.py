"""Ctrl-C and SIGTERM while a network trains: the step in hand is finished and nothing is lost."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Signals", "StopFlag", "StopTraining"]

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


class Signals:
    """SIGINT and SIGTERM turned into a flag, from `install` to the end of the block (in the main thread only).

    The handlers of before are noted when the block begins and put back when it ends, whatever others (Lightning among
    them) have installed in between.

    Parameters
    ----------
    flag : StopFlag
        Is put up by a signal.
    """

    def __init__(self, flag: StopFlag) -> None:
        self.flag = flag
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def install(self) -> None:
        """Take the signals over from here on."""
        for number in self._before:
            signal.signal(number, self.flag.handle)

    def __exit__(self, *failure: object) -> None:
        for number, handler in self._before.items():
            # None: it was installed outside Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
