"""Where the numbers of an epoch go besides history.csv: TensorBoard files, and MLflow where it was asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from volrec.errors import ConfigError, RunError

__all__ = ["EpochLogs", "require_mlflow"]

log = logging.getLogger(__name__)


def require_mlflow() -> Any:
    """Import MLflow.

    Raises
    ------
    ConfigError
        When it is not installed: the message names the extra.
    """
    try:
        import mlflow  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ConfigError(
            "trainer.mlflow needs the package mlflow, which is not installed.",
            remedy="Install it with `pip install volrec[mlflow]`, or set trainer.mlflow to null.",
            where="trainer.mlflow",
            code="missing-package",
        ) from None
    return mlflow


class EpochLogs:
    """Writers of one member's numbers; a run that is gone on with appends to what is there.

    Parameters
    ----------
    folder : path
        Folder of the member; TensorBoard's files go to ``tensorboard/`` in it.
    mlflow : str, optional
        Tracking folder or address.
    run_name : str
        Name of the run in MLflow.
    parameters : mapping
        Dotted configuration keys and values, for MLflow.
    run_id : str, optional
        MLflow run of an interrupted training.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mlflow: str | None = None,
        run_name: str = "",
        parameters: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        # Protocol buffers are slow to import and nobody else here needs them.
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._client: Any = None
        self.run_id = run_id
        if mlflow is not None:
            self._open_mlflow(mlflow, run_name, parameters or {})

    def _open_mlflow(self, address: str, run_name: str, parameters: Mapping[str, Any]) -> None:
        mlflow = require_mlflow()
        try:
            self._client = mlflow.MlflowClient(tracking_uri=address)
            if self.run_id is not None:
                return
            experiment = self._client.get_experiment_by_name("volrec")
            number = experiment.experiment_id if experiment else self._client.create_experiment("volrec")
            self.run_id = self._client.create_run(number, run_name=run_name).info.run_id
            for key, value in parameters.items():
                self._client.log_param(self.run_id, key, str(value)[:500])
        except mlflow.exceptions.MlflowException as error:
            raise RunError(
                f"MLflow refused ({error}).",
                remedy="Check trainer.mlflow, or set it to null.",
                where=address,
                code="mlflow",
            ) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of one epoch."""
        epoch = int(row["epoch"])
        for key, value in row.items():
            if key != "epoch" and isinstance(value, (int, float)):
                self._board.add_scalar(key, value, epoch)
                if self._client is not None:
                    self._client.log_metric(self.run_id, key, float(value), step=epoch)
        self._board.flush()

    def close(self, *, finished: bool) -> None:
        """Close the files; in MLflow the run ends as finished or killed."""
        self._board.close()
        if self._client is not None:
            with suppress(Exception):  # the training's result must not hang on a server that went away
                self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")
