"""Trained weights on disk: safetensors with a JSON card; no pickle is ever read.

`save_weights` and `load_weights` are the two directions; `load_network` and `load_backbone` rebuild what a card
describes; `init_network` begins a training with weights that exist, whole or in part, from 3D or 2D.
"""

from __future__ import annotations

from volrec.weights.accounting import KeyRow, KeyTable
from volrec.weights.adapt import adapt_channels
from volrec.weights.files import (
    OWN_KEYS,
    card_path,
    load_backbone,
    load_network,
    load_state,
    load_weights,
    read_card,
    save_weights,
)
from volrec.weights.inflate import inflate_kernel, inflate_state
from volrec.weights.initial import find_weights, init_network, read_source_card

__all__ = [
    "OWN_KEYS",
    "KeyRow",
    "KeyTable",
    "adapt_channels",
    "card_path",
    "find_weights",
    "inflate_kernel",
    "inflate_state",
    "init_network",
    "load_backbone",
    "load_network",
    "load_state",
    "load_weights",
    "read_card",
    "read_source_card",
    "save_weights",
]
