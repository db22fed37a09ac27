"""Trained weights on disk: safetensors with a JSON card; no pickle is ever read.

`save_weights` and `load_weights` are the two directions; `load_network` rebuilds the network that a card describes.
"""

from __future__ import annotations

from volrec.weights.accounting import KeyRow, KeyTable
from volrec.weights.files import card_path, load_network, load_state, load_weights, save_weights

__all__ = ["KeyRow", "KeyTable", "card_path", "load_network", "load_state", "load_weights", "save_weights"]
