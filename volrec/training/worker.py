"""One rank of a training that `volrec.training.launch.run_processes` started (``python -m`` of this file)."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from volrec.errors import VolrecError
from volrec.training.distributed import is_main_process, rank
from volrec.training.interrupts import Interrupted
from volrec.training.launch import JOB


def run_job(work: Callable[[dict[str, Any]], object]) -> int:
    """Do as the job file says; a fault is left beside it for the process that started this one.

    Parameters
    ----------
    work : callable
        Takes the job: ``config``, ``out``, ``resume``, ``reasons``.

    Returns
    -------
    int
        Exit code.
    """
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    path = Path(os.environ[JOB])
    job = json.loads(path.read_text())
    logging.basicConfig(
        level=job["log_level"] if is_main_process() else logging.ERROR, format="%(levelname)s %(message)s"
    )
    try:
        work(job)
    except VolrecError as error:
        _leave(path, type(error).__name__, error.problem, error.remedy, error.where, error.code)
        return 1
    except Interrupted as interruption:
        _leave(path, "Interrupted", str(interruption))
        return 130
    return 0


def leave_process(code: int) -> None:
    """End: not the usual exit, as a rank that failed must not wait for the others in some library's clean-up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(job: dict[str, Any]) -> None:
    from volrec.config import parse_config
    from volrec.training.pipeline import train

    train(parse_config(job["config"]), Path(job["out"]), resume=job["resume"], reasons=job["reasons"])


def _leave(job: Path, kind: str, problem: str, remedy: str = "", where: str = "", code: str = "") -> None:
    fault = {"kind": kind, "problem": problem, "remedy": remedy, "where": where, "code": code}
    # Renamed into place, so that the reader never sees half of it.
    partial = job.with_name(f"partial-{rank()}")
    partial.write_text(json.dumps(fault))
    partial.rename(job.with_name(f"error-{rank()}.json"))


def _stop_with_parent() -> None:
    """Stop when the process that holds the other end of standard input is gone, however it ended."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    leave_process(run_job(_train))
