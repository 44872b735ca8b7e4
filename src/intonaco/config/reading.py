"""Reading ``intonaco.yaml``, and errors that say what is wrong where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from intonaco.config.root import Config
from intonaco.errors import ConfigError


def parse(text: str, *, source: str = "intonaco.yaml") -> Config:
    """Config of a YAML text. Raises ConfigError: path of the field, what was given, what is
    allowed."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{source}:{where} not valid YAML: {problem}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{source}: expected a mapping at the top, got {type(raw).__name__}",
            hint="`intonaco init` writes a commented example",
        )
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error.errors()[0], source), hint=_more(error)) from error


def load(path: Path) -> Config:
    """Config of a file. Raises ConfigError."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist", hint="`intonaco init` writes one, `intonaco demo` a full one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse(text, source=str(path))


def mistakes(error: ConfigError, source: str) -> list[str]:
    """All that is wrong, of an error of ``parse`` or ``load``, which names the first only."""
    if not isinstance(error.__cause__, ValidationError):
        return [str(error)]
    return [_explain(each, source) for each in error.__cause__.errors()]


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``intonaco.yaml``."""
    return Config.model_json_schema()


def _explain(first: Mapping[str, Any], source: str) -> str:
    path = ".".join(str(p) for p in first["loc"]) or "(top)"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{source}: {path}: unknown field; {_allowed(first['loc'])}"
    if first["type"] == "missing":
        return f"{source}: {path}: required and not given"
    if not first["loc"]:
        return f"{source}: {message}"
    if {"api_keys", "endpoint", "people", "upstreams"} & set(first["loc"]) or first["loc"] == (
        "serving",
    ):
        # what was given may hold a key
        return f"{source}: {path}: {message}"
    given = repr(first["input"])
    return (
        f"{source}: {path}: {message} (given: {given if len(given) < 80 else given[:77] + '...'})"
    )


def _allowed(loc: tuple[int | str, ...]) -> str:
    model: Any = Config
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        annotation = field.annotation if field else None
        model = _section_in(annotation) or (model if field is None else None)
    fields = getattr(model, "model_fields", None)
    return "allowed: " + ", ".join(sorted(fields)) if fields else "see the reference"


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found:
            return found
    return None


def _more(error: ValidationError) -> str | None:
    rest = error.error_count() - 1
    return f"and {rest} more; `intonaco check` lists them" if rest else None
