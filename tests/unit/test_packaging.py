"""The pinned environment is whole, and the package says of itself what it is."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import intonaco

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)$")


def _name(raw: str) -> str:
    return re.sub(r"[-_.]+", "-", raw).lower()


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [PIN.match(line) for line in lines if not line.startswith("#")]
    assert all(found), "constraints.txt holds a line that is no NAME==VERSION"
    return {_name(m.group(1)): m.group(2) for m in found if m}


def _closure() -> set[str]:
    """Names of all that ``intonaco[dev]`` needs in this environment."""
    from packaging.requirements import Requirement

    extras: dict[str, set[str]] = {}
    todo = [("intonaco", {"dev"})]
    while todo:
        name, wanted = todo.pop()
        wanted = wanted | {""}
        known = extras.setdefault(_name(name), set())
        if wanted <= known:
            continue
        known |= wanted
        for line in distribution(name).requires or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in known):
                todo.append((need.name, need.extras))
    return set(extras) - {"intonaco"}


def test_every_package_needed_is_pinned() -> None:
    assert _closure() - set(_pins()) == set()


def test_nothing_else_is_pinned() -> None:
    assert set(_pins()) - _closure() == set()


def test_installed_versions_are_the_pinned_ones() -> None:
    different = {}
    for name, pinned in _pins().items():
        try:
            installed = distribution(name).version.partition("+")[0]
        except PackageNotFoundError:
            installed = "absent"
        if installed != pinned:
            different[name] = (pinned, installed)
    assert different == {}


def test_one_version_in_all_places() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == intonaco.__version__


def test_licence_is_the_declared_one() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
