"""The command ``volrec``: arguments in, one call of the API out.

Heavy imports stay inside the commands, so that ``volrec --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from cyclopts import CycloptsError

from volrec.cli import (
    auditing,
    benchmarks,
    evaluating,
    explaining,
    fusion,
    predicting,
    reporting,
    studies,
    volumes,
    weights,
)
from volrec.cli.shell import FAILED, INTERRUPTED, OK, app, say_error
from volrec.errors import VolrecError

__all__ = [
    "app",
    "auditing",
    "benchmarks",
    "evaluating",
    "explaining",
    "fusion",
    "main",
    "predicting",
    "reporting",
    "studies",
    "volumes",
    "weights",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (the console script)."""
    # Set before torch loads: threads that spin while they wait make a shared machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", handlers=[_Terminal()])
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return FAILED
    except VolrecError as error:
        say_error(error)
        return FAILED
    except KeyboardInterrupt as interruption:
        text = str(interruption) or "Interrupted; what was finished is kept."
        sys.stderr.write(f"\n{text}\n")
        return INTERRUPTED
    except BrokenPipeError:
        return OK
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {place}{error.strerror or error}\n")
        return FAILED
    return result if isinstance(result, int) else OK


class _Terminal(logging.StreamHandler):
    """Messages to standard error as it is at the moment: a progress bar replaces it to keep its line whole."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Standard error."""
        return sys.stderr
