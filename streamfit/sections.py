"""Sections of configuration files: reading TOML, checking it, and naming the nearest valid key.

Floor 7.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from streamfit.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of a configuration file; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Model = TypeVar("_Model")


def read(path: str | Path) -> dict[str, Any]:
    """What a TOML file says, or the JSON that a run keeps.

    Raises
    ------
    ConfigError
        If there is none, or it is not TOML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data: dict[str, Any] = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError as error:
        msg = f"no config at {path}"
        raise ConfigError(msg, "a TOML file", "see configs/ for examples") from error
    except (OSError, ValueError) as error:  # both decoders' errors are ValueErrors
        msg = f"{path}: {error}"
        raise ConfigError(msg, "valid TOML") from error
    return data


def checked(path: str | Path, model: type[_Model], data: dict[str, Any]) -> _Model:
    """A section made of what a file says.

    Raises
    ------
    ConfigError
        Naming the file, the key, what it was and what it may be.
    """
    try:
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        faults = error.errors()  # a key that is missing is often one that is misspelt
        first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            valid = sorted(_keys_at(model, first["loc"][:-1]))
            near = difflib.get_close_matches(str(first["loc"][-1]), valid, n=1)
            msg = f"{path}: unknown key {place!r}"
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise ConfigError(msg, f"one of {', '.join(valid)}", hint) from error
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "tuple_type":
            reason = "a list, in brackets"
        got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        msg = f"{path}: {place or 'config'}: {reason}{got}"
        raise ConfigError(msg) from error


def _keys_at(model: Any, place: tuple[int | str, ...]) -> set[str]:
    """Valid keys of the section that a validation error speaks of."""
    for part in place:
        if isinstance(part, str):
            model = model.model_fields[part].annotation
        while get_origin(model) in (Annotated, Union, types.UnionType, tuple):
            model = get_args(model)[0]
    return set(model.model_fields)
