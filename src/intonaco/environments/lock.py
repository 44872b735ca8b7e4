"""Locks: exact ``NAME==VERSION`` pins of all that a worker needs. Imports no engine.

Two things are told apart. What **decides an image** (the Python version and
``ENVIRONMENT_PACKAGES``) makes the environment's id, the digest that stands in a release's serving
section. The **whole closure** is the lock's text: it says how to build the environment again, and
another version of a package that decides no image does not change any id.

A lock is a requirements file, so every installer can read it. Its first line, a comment, names the
Python version.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from intonaco.codec import digest
from intonaco.errors import ConfigError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ENVIRONMENT_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "numpy",
    "pillow",
)
# What the worker's code imports; a closure begins at these. The optional ones are of use to
# diffusers, and a worker starts without them.
WORKER_NEEDS = (
    "diffusers",
    "fsspec",
    "httptools",
    "huggingface-hub",
    "numpy",
    "pillow",
    "prometheus-client",
    "psutil",
    "pydantic",
    "safetensors",
    "starlette",
    "torch",
    "transformers",
    "uvicorn",
)
WORKER_LIKES = ("accelerate", "peft")
WORKER_TRACES = ("opentelemetry-exporter-otlp-proto-http",)  # where it is installed

_HEADER = "# intonaco environment lock, python "
_HASH = re.compile(r"\s--hash=(sha(?:256|384|512):[0-9a-f]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """``pins`` maps normalised names to versions, ``hashes`` to what an installer may fetch (of
    every pin, or empty)."""

    python: str  # such as 3.11.7
    pins: Mapping[str, str]
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def versions(self) -> Mapping[str, str]:
        """What of it decides an image."""
        decides = {n: self.pins[n] for n in ENVIRONMENT_PACKAGES if n in self.pins}
        return {"python": self.python, **decides}

    @property
    def digest(self) -> str:
        """The environment's id, as it stands in a release."""
        return digest(dict(self.versions))

    def text(self, names: Iterable[str] | None = None) -> str:
        """The requirements file, of all pins or of some."""
        lines = []
        for name in sorted(self.pins if names is None else names):
            hashes = "".join(f" --hash={h}" for h in self.hashes.get(name, ()))
            lines.append(f"{name}=={self.pins[name]}{hashes}\n")
        return f"{_HEADER}{self.python}\n{''.join(lines)}"

    def replaced(self, pins: Lock) -> Lock:
        """This lock with other versions of some packages. Raises ConfigError if only one of the two
        has hashes."""
        if self.pins and pins.pins and bool(self.hashes) != bool(pins.hashes):
            raise ConfigError(
                "one lock has hashes and the other has none",
                hint="give hashes with every pin, or with none",
            )
        return Lock(
            python=self.python,
            pins={**self.pins, **pins.pins},
            hashes={**self.hashes, **pins.hashes},
        )


def parse(text: str, *, source: str, python: str | None = None, whole: bool = True) -> Lock:
    """The lock that a requirements file of exact pins is.

    Markers are weighed for the lock's Python version: the one the first line names, else
    ``python``, else this interpreter's. ``whole``: refuse a lock that no worker could start with.
    Raises ConfigError with the line that is wrong.
    """
    header = next((x for x in text.splitlines() if x.startswith(_HEADER)), None)
    version = header.removeprefix(_HEADER).strip() if header else python or _python()
    if not re.fullmatch(r"3\.\d+\.\d+", version):
        raise ConfigError(f"{source}: {version!r} is no Python version such as 3.11.7")
    pins: dict[str, str] = {}
    hashes: dict[str, tuple[str, ...]] = {}
    for number, line in _lines(text):
        where = f"{source}: line {number}"
        found = tuple(_HASH.findall(line))
        need = _requirement(_HASH.sub("", line), where)
        marker = {"python_version": version.rpartition(".")[0], "python_full_version": version}
        if need.marker is not None and not need.marker.evaluate(marker):
            continue
        name, pin = normal(need.name), _exact(need, where)
        if pins.get(name, pin) != pin:
            raise ConfigError(f"{where}: {name} is pinned to {pins[name]} already")
        pins[name] = pin
        if found:
            hashes[name] = found
    if hashes and (without := sorted(set(pins) - set(hashes))):
        raise ConfigError(
            f"{source}: no hash of {', '.join(without)}",
            hint="give hashes with every pin, or with none",
        )
    lock = Lock(python=version, pins=pins, hashes=hashes)
    if whole and (missing := [n for n in WORKER_NEEDS if n not in pins]):
        raise ConfigError(
            f"{source}: no pin of {', '.join(missing)}, which a worker needs",
            hint="`intonaco environment lock` prints the whole lock of this interpreter",
        )
    return lock


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _lines(text: str) -> Iterable[tuple[int, str]]:
    """Logical lines with the number of their first: continued ones joined, comments gone."""
    held, begun = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        begun = begun or number
        if line.endswith("\\"):
            held += line.removesuffix("\\") + " "
            continue
        if (whole := (held + line).strip()) != "":
            yield begun, whole
        held, begun = "", 0


def _requirement(text: str, where: str) -> Requirement:
    from packaging.requirements import InvalidRequirement, Requirement

    if text.startswith("-"):
        raise ConfigError(
            f"{where}: {text.split()[0]} is an option; a lock holds only NAME==VERSION",
            hint="say where packages come from in pip's own settings, such as PIP_EXTRA_INDEX_URL",
        )
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"{where}: {text!r} is no NAME==VERSION: {problem}") from error


def _exact(need: Requirement, where: str) -> str:
    found = list(need.specifier)
    if need.url or len(found) != 1 or found[0].operator != "==" or "*" in found[0].version:
        raise ConfigError(
            f"{where}: {need} is not exact", hint="a lock holds one NAME==VERSION a package"
        )
    return found[0].version


# ------------------------------------------------------------------------------- this interpreter


@cache
def environment_versions() -> Mapping[str, str]:
    """Versions of what decides an image, as installed here."""
    return {"python": _python(), **installed(ENVIRONMENT_PACKAGES)}


def environment_lock() -> str:
    """Id of this interpreter's environment: the digest of ``environment_versions``."""
    return digest(dict(environment_versions()))


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that this interpreter finds."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def capture() -> Lock:
    """The lock of this interpreter: the closure of what a worker needs, and nothing of the tools
    that are installed beside it."""
    from packaging.requirements import Requirement

    pins: dict[str, str] = {}
    extras: dict[str, set[str]] = {}
    begin = (*WORKER_NEEDS, *WORKER_LIKES, *WORKER_TRACES)
    todo: list[tuple[str, set[str]]] = [(n, set()) for n in begin]
    while todo:
        name, wanted = todo.pop()
        key = normal(name)
        if key in extras and wanted <= extras[key]:
            continue
        known = extras.setdefault(key, set())
        known |= wanted | {""}
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed on paper only: the lock says what is there
        pins[key] = found.version
        for line in found.requires or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in known):
                todo.append((need.name, set(need.extras)))
    return Lock(python=_python(), pins=pins)


def difference(wanted: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What differs between two environments, in words: ``diffusers 0.41.0, here 0.42.1``."""
    names = [n for n in (*wanted, *there) if wanted.get(n) != there.get(n)]
    return "; ".join(
        f"{n} {wanted.get(n, 'absent')}, here {there.get(n, 'absent')}"
        for n in dict.fromkeys(names)
    )


def _python() -> str:
    version: Any = sys.version_info
    return ".".join(map(str, version[:3]))
