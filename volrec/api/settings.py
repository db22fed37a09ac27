"""What callers may give for a configuration, and where its run goes."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from volrec.config import Section, TrainConfig, load_config
from volrec.errors import ConfigError

__all__ = ["ConfigLike", "destination", "find_recipe", "flatten", "given_sections", "origin", "recipe_folders"]

ConfigLike = Section | Mapping[str, Any] | Path | str | None


def given_sections(config: ConfigLike, *, schema: type[Section] = TrainConfig) -> dict[str, Any]:
    """Return the sections that the user wrote, and only those."""
    if config is None:
        return {}
    if isinstance(config, Section):
        return config.to_dict()
    if isinstance(config, Mapping):
        return {str(key): value for key, value in config.items() if value is not None}
    parsed = load_config(find_recipe(config), schema=schema)
    # A section left out is planned, so the difference between a default and a choice must survive the check.
    return {
        key: value for key, value in parsed.to_dict().items() if key in parsed.model_fields_set and value is not None
    }


def origin(config: ConfigLike) -> str:
    """Return the file or name that errors call a configuration by."""
    return str(config) if isinstance(config, str | Path) else "configuration"


def find_recipe(name: Path | str) -> Path:
    """Find a file, or a recipe by its name, in ``configs/`` of the source or of the installation."""
    path = Path(name)
    if path.is_file() or path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        return path
    folders = recipe_folders()
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(recipe.stem for folder in folders for recipe in folder.glob("*.yaml"))
    near = difflib.get_close_matches(str(name), known, n=1)
    raise ConfigError(
        f"there is no recipe or file '{name}'" + (f" (did you mean '{near[0]}'?)." if near else "."),
        remedy=f"Known recipes: {', '.join(known) or 'none'}; or give the path of a YAML file.",
        code="config",
    )


def recipe_folders() -> list[Path]:
    """Return the folders that hold the shipped recipes: of a source tree, or of an installation."""
    candidates = [Path(__file__).resolve().parents[2] / "configs", Path(sys.prefix) / "share" / "volrec" / "configs"]
    return [folder for folder in candidates if folder.is_dir()]


def flatten(sections: Mapping[str, Any], *, schema: type[Section] = TrainConfig) -> dict[str, Any]:
    """Turn ``optim={"lr": 1}, epochs=3`` into dotted keys; a bare key must belong to one section only."""
    homes: dict[str, list[str]] = {}
    for name, field_ in schema.model_fields.items():
        kind = field_.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for key in kind.model_fields:
                homes.setdefault(key, []).append(name)
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        if name in schema.model_fields:
            if isinstance(value, BaseModel):
                value = value.model_dump(mode="json")
            if isinstance(value, Mapping):
                flat |= {f"{name}.{key}": inner for key, inner in value.items()}
            else:
                flat[name] = value
            continue
        places = homes.get(name, [])
        if len(places) != 1:
            near = difflib.get_close_matches(name, [*homes, *schema.model_fields], n=1)
            hint = f" (did you mean '{near[0]}'?)" if near and not places else ""
            raise ConfigError(
                f"'{name}' stands in several sections: {', '.join(places)}."
                if places
                else f"unknown key '{name}'{hint}.",
                remedy="Name the section: optim={'lr': 0.001}.",
                code="config",
            )
        flat[f"{places[0]}.{name}"] = value
    return flat


def destination(name: str, out: Path | str | None) -> Path:
    """Return the run folder: as asked for, or ``runs/NAME`` with a number where that is taken."""
    if out is not None:
        return Path(out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several processes need to agree on the run folder.", remedy="Give it with --out runs/NAME.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80]
    folder, number = Path("runs") / name, 2
    while folder.exists() and any(folder.iterdir()):
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder
