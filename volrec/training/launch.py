"""Start one process a rank on this machine and wait for them.

Each is a fresh interpreter: unlike a fork that is safe after torch has started its threads, and unlike
multiprocessing's spawn it does not run the caller's script again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from volrec import errors
from volrec.errors import RunError
from volrec.training.interrupts import Interrupted, Signals, StopFlag

__all__ = ["JOB", "run_processes"]

JOB = "VOLREC_JOB"
_GRACE_SECONDS = 60.0


def run_processes(
    config: Mapping[str, object],
    out: Path,
    *,
    resume: bool,
    reasons: Mapping[str, str],
    devices: int,
    worker: str = "volrec.training.worker",
) -> None:
    """Run one training in `devices` fresh processes on this machine and wait for it.

    Parameters
    ----------
    config : mapping
        The training configuration, plain types.
    out : path
        Run folder.
    resume : bool
        Go on with an interrupted run.
    reasons : mapping
        Why each value of the configuration was chosen.
    devices : int
        Number of processes.
    worker : str
        Module that each process runs.

    Raises
    ------
    VolrecError
        What the process that failed first raised.
    Interrupted
        After Ctrl-C or SIGTERM, once every process has stopped.
    """
    with tempfile.TemporaryDirectory(prefix="volrec-ranks-") as scratch:
        job = Path(scratch, "job.json")
        level = logging.getLogger().getEffectiveLevel()
        job.write_text(
            json.dumps(
                {"config": config, "out": str(out), "resume": resume, "reasons": dict(reasons), "log_level": level}
            )
        )
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(devices),
            "LOCAL_WORLD_SIZE": str(devices),
            "PYTHONPATH": os.pathsep.join([str(Path(errors.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            JOB: str(job),
        }
        # As torchrun does: processes that share the processors must not each start a thread on every one.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
        children: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(devices):
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", worker],
                        env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)},
                        stdin=subprocess.PIPE,  # closes when this process dies, which tells them to stop
                        start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
                    )
                )
            _wait(children)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
                if child.stdin is not None:
                    child.stdin.close()
        _raise_failure(scratch, [child.returncode for child in children])


def _wait(children: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended; a signal is passed on, and one failure ends the others."""
    flag, passed_on, deadline = StopFlag(), False, float("inf")
    with Signals(flag) as signals:
        signals.install()
        while any(child.poll() is None for child in children):
            if flag.requested and not passed_on:
                passed_on = True
                for child in children:
                    child.send_signal(signal.SIGINT)
            failed = any(child.poll() not in (None, 0) for child in children)
            if failed and deadline == float("inf"):
                # Those that hear of the failure end by themselves; one that waits in a collective call cannot.
                deadline = time.monotonic() + (_GRACE_SECONDS if passed_on else 10.0)
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)


def _raise_failure(scratch: str, codes: list[int]) -> None:
    found: list[tuple[float, dict[str, str]]] = []
    for path in Path(scratch).glob("error-*.json"):
        found.append((path.stat().st_mtime, json.loads(path.read_text())))
    # A rank that only heard of another's failure says so with this code; the first cause is what helps.
    found.sort(key=lambda entry: (entry[1]["code"] == "rank-failed", entry[0]))
    if found:
        fault = found[0][1]
        if fault["kind"] == "Interrupted":
            raise Interrupted(fault["problem"])
        kind = getattr(errors, fault["kind"], RunError)
        raise kind(fault["problem"], remedy=fault["remedy"], where=fault["where"] or None, code=fault["code"])
    bad = {number: code for number, code in enumerate(codes) if code}
    if bad:
        number, code = next(iter(bad.items()))
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise RunError(
            f"process {number} of {len(codes)} {how}.",
            remedy="Its messages are above; the last epoch is kept, `--resume` goes on from there.",
            code="rank-failed",
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
