"""One rank of a pretraining or transfer that `run_processes` started (``python -m`` of this file)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from volrec.training.worker import leave_process, run_job

WORKER = "volrec.transfer.worker"


def learn(job: dict[str, Any]) -> None:
    """Pretrain or transfer, as the kind of the configuration says."""
    from volrec.config import PretrainConfig, TransferConfig, parse_config
    from volrec.transfer import pretrain, transfer

    out, common = Path(job["out"]), {"resume": job["resume"], "reasons": job["reasons"]}
    if job["config"]["kind"] == "pretrain":
        pretrain(parse_config(job["config"], schema=PretrainConfig), out, **common)
    else:
        transfer(parse_config(job["config"], schema=TransferConfig), out, **common)


if __name__ == "__main__":
    leave_process(run_job(learn))
