"""Configurations from and to YAML, mappings and dotted keys, with errors that name the field and the nearest key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from volrec.config.sections import Section
from volrec.config.train import TrainConfig
from volrec.config.transfer import KINDS, kind_of
from volrec.errors import ConfigError

__all__ = ["NESTED", "apply_overrides", "dump_yaml", "json_schema", "load_config", "named_item", "parse_config"]

Config = TypeVar("Config", bound=Section)


def parse_config(
    values: Mapping[str, Any],
    *,
    where: str = "",
    schema: type[Config] = TrainConfig,  # type: ignore[assignment]
) -> Config:
    """Check a mapping against a schema.

    Parameters
    ----------
    values : mapping
        Nested keys as in a recipe.
    where : str
        File or origin, for the message.
    schema : type
        `TrainConfig`, `PretrainConfig` or `TransferConfig`.

    Raises
    ------
    ConfigError
        With one line a fault: the field, the value seen, what is allowed, and the nearest key to a typo.
    """
    kind, wanted = values.get("kind"), kind_of(schema)
    if kind in KINDS and kind != wanted:
        raise ConfigError(
            f"it is a configuration of `volrec {kind}`, not of `volrec {wanted}`.",
            remedy=f"Say `volrec {kind}` with it, or give another.",
            where=where or "configuration",
            code="config-kind",
        )
    if "kind" not in schema.model_fields:
        values = {key: value for key, value in values.items() if key != "kind" or value != wanted}
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        lines = [_describe(fault, schema) for fault in error.errors()]
        raise ConfigError(
            "; ".join(lines) + ".",
            remedy=f"`volrec {'plan' if wanted == 'train' else wanted} --keys` prints every key with its meaning.",
            where=where or "configuration",
            code="config",
        ) from None


NESTED = ("data.series", "streams.flow")
"""Sections within a section that are written over several lines."""
_BY_ITEM = ("streams", "open")
"""Lists of a protocol of which each item, and each key of a stream, has a line of its own."""


def load_config(
    path: Path | str,
    *,
    schema: type[Config] = TrainConfig,  # type: ignore[assignment]
) -> Config:
    """Read a YAML recipe or plan; nothing in it can name code to run."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "there is no such file.",
            remedy="Check the path, or write one with `volrec plan`.",
            where=path,
            code="config",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"it cannot be read ({error}).", remedy="Give a YAML text file.", where=path, code="config"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"it is no valid YAML{place}.",
            remedy="Mend that line; indentation is two spaces.",
            where=path,
            code="config",
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"it holds {type(values).__name__}, not keys and values.",
            remedy="See configs/ for examples.",
            where=path,
            code="config",
        )
    return parse_config(values, where=str(path), schema=schema)


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a copy with dotted keys replaced (``{"optim.lr": 0.01}``), checked as a whole.

    What stands in a list is called by its name: ``{"stages.motion.epochs": 5}``.
    """
    values = config.model_dump(mode="json")
    for dotted, value in overrides.items():
        target: Any = values
        *parents, last = dotted.split(".")
        for depth, key in enumerate(parents):
            if isinstance(target, list):
                target = named_item(target, key, where=dotted)
                continue
            if key not in target and _is_free(parents[:depth], type(config)):
                target[key] = {}
            child = target.get(key)
            if not isinstance(child, dict) and not _is_named(child):
                near = [name for name, one in target.items() if isinstance(one, dict | list) and one]
                raise ConfigError(
                    f"there is no section '{'.'.join(parents[: depth + 1])}'{_suggest(key, near)}.",
                    remedy="`volrec plan --keys` prints every key with its meaning.",
                    where=dotted,
                    code="config",
                )
            target = child
        if isinstance(target, list):
            raise ConfigError(
                f"'{dotted}' names one of a list and nothing of it.",
                remedy=f"Name the key as well: {dotted}.KEY=VALUE.",
                where=dotted,
                code="config",
            )
        target[last] = value
    return parse_config(values, where="override", schema=type(config))


def named_item(items: list[dict[str, Any]], name: str, *, where: str) -> dict[str, Any]:
    """Return the one of a list that has this name.

    Raises
    ------
    ConfigError
        With the nearest name.
    """
    found = next((item for item in items if item["name"] == name), None)
    if found is None:
        raise ConfigError(
            f"there is no '{name}' in {where.split('.')[0]}{_suggest(name, [item['name'] for item in items])}.",
            remedy="Use a name that is there, or write the whole list in a plan.",
            where=where,
            code="config",
        )
    return found


def dump_yaml(config: Section, reasons: Mapping[str, str] | None = None) -> str:
    """Write the configuration as YAML that a person can read, one comment a reason.

    Parameters
    ----------
    config : TrainConfig, PretrainConfig or TransferConfig
        What is written; every key is.
    reasons : mapping, optional
        From dotted key (``"sampling.clip_length"``) to one line of why.
    """
    reasons = reasons or {}
    lines: list[str] = []

    def write(values: Mapping[str, Any], indent: int, prefix: str) -> None:
        for key, value in values.items():
            dotted = f"{prefix}{key}"
            reason = f"  # {reasons[dotted]}" if dotted in reasons else ""
            pad = "  " * indent
            if isinstance(value, dict) and value and (indent == 0 or dotted in NESTED):
                lines.append(f"{pad}{key}:{reason}")
                write(value, indent + 1, f"{dotted}.")
            elif key in _BY_ITEM and isinstance(value, list) and value:
                lines.append(f"{pad}{key}:{reason}")
                for item in value:
                    inner = item.items() if isinstance(item, dict) else [("", item)]
                    for number, (name, one) in enumerate(inner):
                        start = "    " if number else "  - "
                        lines.append(f"{pad}{start}{name and f'{name}: '}{_on_one_line(one)}")
            elif dotted == "stages" and value:
                lines.append(f"{key}:{reason}")
                for stage in value:
                    reason = reasons.get(f"stages.{stage['name']}", "")
                    lines.append(f"  - {_on_one_line(stage)}{reason and f'  # {reason}'}")
            else:
                lines.append(f"{pad}{key}: {_on_one_line(value)}{reason}")

    write(config.to_dict(), 0, "")
    return "\n".join(lines) + "\n"


def json_schema(schema: type[Section] = TrainConfig) -> dict[str, Any]:
    """Return the JSON schema of a recipe (for editors and for ``volrec plan --schema``)."""
    return schema.model_json_schema()


def _on_one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _describe(fault: Mapping[str, Any], schema: type[Section]) -> str:
    place = tuple(str(part) for part in fault["loc"])
    dotted = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{_suggest(place[-1], _keys_at(place[:-1], schema))}"
    seen = fault.get("input")
    shown = "" if fault["type"] in {"missing", "value_error"} else f", got {json.dumps(seen, default=str)[:80]}"
    near = ""
    if fault["type"] == "literal_error" and isinstance(seen, str):
        known = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        near = _suggest(seen, known) if difflib.get_close_matches(seen, known, n=1, cutoff=0.6) else ""
    told = f"{fault['msg'].removeprefix('Value error, ')}{shown}{near}"
    return f"'{dotted}': {told}" if dotted else told


def _keys_at(place: tuple[str, ...], schema: type[Section]) -> list[str]:
    model: type[BaseModel] = schema
    for part in place:
        if part.isdigit():  # one of a list of sections
            continue
        field = model.model_fields.get(part)
        inner = None if field is None else next((one for one in _types_of(field.annotation) if _is_section(one)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _is_free(place: Sequence[str], schema: type[Section]) -> bool:
    """Tell whether a place is, or lies in, a mapping whose keys the schema does not know: options of a network."""
    model: type[BaseModel] = schema
    for part in place:
        field = model.model_fields.get(part)
        if field is None:
            return False
        if get_origin(field.annotation) is dict:
            return True
        inner = next((one for one in _types_of(field.annotation) if _is_section(one)), None)
        if inner is None:
            return False
        model = inner
    return False


def _types_of(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *get_args(annotation))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_named(value: Any) -> bool:
    """Tell whether this is a list whose items have names, all of those that there are."""
    return isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(known)})" if known else ""
