"""A trained network of a run, or a stage that led to it: its files, and the card that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.config import TrainConfig
from volrec.runs.parts import read_json, write_part

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from volrec.weights import KeyTable

__all__ = ["Member", "member_card"]

CARD_SCHEMA = 1


@dataclass(frozen=True)
class Member:
    """One trained network of a run: one a split; or one of the trainings that led to it.

    Attributes
    ----------
    path : Path
        Its folder.
    of : Member, optional
        The member that this is an earlier stage of.
    """

    path: Path
    of: Member | None = None

    @property
    def name(self) -> str:
        """Name of the split (``"fold-0"``), and of the stage (``"fold-0 motion"``)."""
        return f"{self.of.name} {self.path.name}" if self.of else self.path.name

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.of.split if self.of else self.path.name

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.of.run if self.of else self.path.parent

    def stage(self, name: str) -> Member:
        """Return the training of a stage before the last, in ``stages/NAME``."""
        return Member(self.path / "stages" / name, of=self)

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with: a checkpoint, or a stage that is finished or begun."""
        return self.checkpoint.is_file() or any(self.path.glob("stages/*/*"))

    @property
    def weights(self) -> Path:
        """``weights.safetensors``: the weights that were kept."""
        return self.path / "weights.safetensors"

    @property
    def card_path(self) -> Path:
        """``card.json``: what these weights are and what they expect."""
        return self.path / "card.json"

    @property
    def checkpoint(self) -> Path:
        """``last.ckpt``: all that is needed to go on training."""
        return self.path / "last.ckpt"

    @property
    def init_path(self) -> Path:
        """``init.json``: where its first weights came from, and what became of every key."""
        return self.path / "init.json"

    @property
    def history_path(self) -> Path:
        """``history.csv``: a row an epoch."""
        return self.path / "history.csv"

    @property
    def finished(self) -> bool:
        """Whether its training came to its end."""
        return (self.path / "finished").is_file() and self.weights.is_file() and self.card_path.is_file()

    def make(self) -> Member:
        """Create the folder and return the member."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def save(self, network: torch.nn.Module, card: Mapping[str, Any]) -> None:
        """Write weights and card (see `member_card`)."""
        from volrec.weights import save_weights

        self.make()
        save_weights(self.weights, network, dict(card))

    def amend_card(self, **facts: Any) -> None:
        """Add facts to the card, or replace them; the weights stay as they are.

        File and card are replaced in one step, and nothing is written where the card says so already: whoever was
        interrupted does it again.

        Parameters
        ----------
        **facts
            JSON types.

        Raises
        ------
        RunError
            When the weights are missing or damaged, or cannot be written.
        ConfigError
            For a key that `volrec.weights.save_weights` adds itself, or what JSON does not know.
        """
        from volrec.weights import OWN_KEYS, load_network, read_card

        card = read_card(self.weights)
        amended = {**card, **facts}
        # The readable copy is written after the weights: an interruption may have left the older one.
        if amended == card and self.card_path.is_file() and self.card() == card:
            return
        network, _ = load_network(self.weights)
        self.save(network, {key: value for key, value in amended.items() if key not in OWN_KEYS or key in facts})

    def finish(self) -> None:
        """Mark the training as complete."""
        write_part(self.path / "finished", "")

    def card(self) -> dict[str, Any]:
        """Return the card.

        Raises
        ------
        RunError
            When it is missing or damaged.
        """
        return read_json(self.card_path)

    def init(self) -> dict[str, Any]:
        """Return the facts of ``init.json`` that the card holds; empty where the first weights were drawn.

        Raises
        ------
        RunError
            When it is damaged.
        """
        return dict(read_json(self.init_path).get("facts", {})) if self.init_path.is_file() else {}

    def init_keys(self) -> list[dict[str, Any]]:
        """Return what ``init.json`` says became of every key (`volrec.weights.KeyRow`); none without it."""
        return list(read_json(self.init_path).get("keys", [])) if self.init_path.is_file() else []

    def write_init(self, facts: Mapping[str, Any], table: KeyTable) -> None:
        """Write ``init.json``: facts of the source, and a row a key."""
        rows = [asdict(row) for row in table.rows]
        write_part(self.init_path, json.dumps({"facts": dict(facts), "keys": rows}, indent=1) + "\n")

    def history(self) -> pd.DataFrame:
        """Return a row an epoch; empty before the first has ended."""
        import pandas as pd

        return pd.read_csv(self.history_path) if self.history_path.is_file() else pd.DataFrame()

    def write_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows so far, a column a key."""
        import pandas as pd

        write_part(self.history_path, pd.DataFrame(list(rows)).to_csv(index=False))


def member_card(
    config: TrainConfig,
    *,
    split: str,
    task: str,
    targets: Iterable[str],
    classes: Iterable[str],
    modality: str = "",
    regression: Mapping[str, list[float]] | None = None,
    data_signature: str = "",
    **facts: Any,
) -> dict[str, Any]:
    """Return the card of a member: all that is needed to use its weights without the run.

    The arguments that rebuild the network, checksums and versions are added by `volrec.weights.save_weights`.

    Parameters
    ----------
    config : TrainConfig
        Series choice, preprocessing, intensity, streams, sampling, protocol and network are taken over.
    split : str
        Name of the split.
    task, targets, classes
        As in the cohort.
    modality : str
        Of the training studies; a warning is given where another is scored.
    regression : mapping, optional
        ``{"mean": [...], "std": [...]}`` of the training targets, undone in the scores.
    data_signature : str
        Hash of the training studies.
    **facts
        More plain JSON facts (epoch, metric …).
    """
    whole = config.to_dict()
    return {
        "schema": CARD_SCHEMA,
        "network": whole["network"],
        "task": task,
        "targets": list(targets),
        "classes": list(classes),
        "regression": None if regression is None else {key: [float(v) for v in regression[key]] for key in regression},
        "series": whole["data"]["series"],
        "missing_slices": whole["data"]["missing_slices"],
        "modality": modality,
        "preprocess": whole["preprocess"],
        "intensity": whole["intensity"],
        "streams": whole["streams"],
        "sampling": whole["sampling"],
        "protocol": whole["protocol"],
        "split": split,
        "data_signature": data_signature,
        **facts,
    }
