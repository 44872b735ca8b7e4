"""Names in the configuration, resolved to the objects they stand for.

A name is a built-in, the name of an entry point in the group ``intonaco.KIND``, or
``module:attribute``. Built-ins are given as ``module:attribute`` strings too, so that an adapter's
module, and the engine that it needs, is imported only when it was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from intonaco.errors import ConfigError

OTEL = ("opentelemetry.exporter.otlp.proto.http", "otel")
WANDB = ("wandb.sdk", "wandb")


def need_extra(field: str, module: str, extra: str) -> None:
    """Imports nothing but the packages above ``module``. Raises ConfigError unless the extra that
    ``field`` of the configuration asks for is installed."""
    try:
        found = find_spec(module)
    except ImportError:  # a package above it
        found = None
    if found is None:
        raise ConfigError(
            f"{field} needs the extra {extra!r}, which is not installed in this environment",
            hint=f"pip install 'intonaco[{extra}]', or leave {field} out",
        )


def group(kind: str) -> str:
    """The entry point group of a kind of plug-in ("serving" -> "intonaco.serving")."""
    return f"intonaco.{kind}"


def known(kind: str, builtins: Mapping[str, str], families: Mapping[str, str] = {}) -> list[str]:
    """Names that ``resolve`` answers to, besides ``module:attribute``."""
    return sorted({*builtins, *_installed(kind), *(f"{family}:NAME" for family in families)})


def resolve(
    kind: str, name: str, builtins: Mapping[str, str], *, families: Mapping[str, str] = {}
) -> Any:
    """The object that ``name`` stands for; a built-in wins over an entry point of its name.

    ``families``: libraries whose members can be named ``FAMILY:MEMBER``. The attribute that is
    given for a family is called with the member's name and gives the object.

    Raises ConfigError: for an unknown name, with those that are known, and for a plug-in that
    cannot be imported.
    """
    if name in builtins:
        return _load(kind, name, builtins[name])
    family, _, member = name.partition(":")
    if member and family in families:
        return _load(kind, name, families[family])(member)
    plugin = _installed(kind).get(name)
    if plugin is not None:
        return _load(kind, name, plugin.value)
    if ":" in name:
        return _load(kind, name, name)
    names = ", ".join(known(kind, builtins, families)) or "none"
    raise ConfigError(
        f"{kind}: nothing is called {name!r}; known: {names}",
        hint=f"or give module:attribute, or install a plug-in with an entry point in {group(kind)}",
    )


def _installed(kind: str) -> Mapping[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=group(kind))}


def _load(kind: str, name: str, target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{kind}: {name!r} points to {target!r}, which is not module:attribute")
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        missing = error.name or str(error)
        raise ConfigError(
            f"{kind}: {name!r} needs the module {module_name}, which cannot be imported: {error}",
            hint=f"is the package that holds {missing} installed in this environment?",
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"{kind}: {name!r}: {module_name} has no {attribute}") from None
    return found
