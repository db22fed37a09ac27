"""Dotted keys that the user set, put into sections of a plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from volrec.config import named_item

__all__ = ["with_keys"]


def with_keys(values: Mapping[str, Any], section: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a section with those of the dotted keys that are its own.

    What stands in a list is called by its name (``stages.motion.epochs``).

    Raises
    ------
    ConfigError
        For a name that is not there, with the nearest one.
    """
    result: dict[str, Any] = copy.deepcopy(dict(values))
    for dotted, value in keys.items():
        *parents, last = dotted.split(".")
        if section:
            if not parents or parents[0] != section:
                continue
            parents = parents[1:]
        target: Any = result
        for key in parents:
            target = named_item(target, key, where=dotted) if isinstance(target, list) else target.setdefault(key, {})
        target[last] = value
    return result
