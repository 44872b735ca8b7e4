"""What must start fast and run without the engines imports none of them.

The import contracts (``.importlinter``) read the source; this runs it, so that an import hidden
behind a name or a chain of packages counts too.
"""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ENGINES = ("torch", "diffusers", "transformers", "mlflow", "peft", "accelerate")
LIGHT = (
    "intonaco",
    "intonaco.types",
    "intonaco.protocols",
    "intonaco.config",
    "intonaco.releases",
    "intonaco.plugins",
    "intonaco.ledger",
    "intonaco.loop",
    "intonaco.executor",
    "intonaco.controller",
    "intonaco.app",
    "intonaco.cli.main",
    "intonaco.console",
    "intonaco.decision",
    "intonaco.rollout.machine",
    "intonaco.rollout.analysis",
    "intonaco.serving.gateway",
    "intonaco.serving.gateway.main",
    "intonaco.serving.gateway.app",
    "intonaco.registry.mlflow",
    "intonaco.tracking.mlflow",
    "intonaco.notify.log",
    "intonaco.datasets",
    "intonaco.training.local",
    "intonaco.testing.registry",
    "intonaco.testing.training",
)


# Imports them one after the other and tells after which one an engine was there.
PROGRAM = """
import importlib, json, sys
modules, engines = json.loads(sys.argv[1])
found = {}
for module in modules:
    try:
        importlib.import_module(module)
    except Exception as error:
        found[module] = f"{type(error).__name__}: {error}"
    else:
        found[module] = ", ".join(e for e in engines if e in sys.modules)
        for engine in [n for n in sys.modules if n.partition(".")[0] in engines]:
            del sys.modules[engine]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, str]:
    """For each module the engines that importing it brought along, or the error."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([LIGHT, ENGINES])],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    found: dict[str, str] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_imports_no_engine(module: str, loaded: dict[str, str]) -> None:
    assert loaded[module] == ""


def test_an_engine_would_be_found() -> None:
    arguments = json.dumps([["json.tool", "no_such_module"], ["argparse"]])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments], capture_output=True, check=True, timeout=60
    )
    assert json.loads(result.stdout) == {
        "json.tool": "argparse",
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    }


def test_every_module_has_a_layer() -> None:
    """A module that no layer names could import anything."""
    root = Path(__file__).parents[2]
    contracts = configparser.ConfigParser()
    contracts.read(root / ".importlinter")
    layers = set(re.findall(r"[\w.]+", contracts["importlinter:contract:layers"]["layers"]))
    source = root / "src" / "intonaco"
    modules = {
        ".".join(f.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
        for f in source.rglob("*.py")
    } - {"__init__"}

    def placed(module: str) -> bool:
        above = any(module == name or module.startswith(f"{name}.") for name in layers)
        return above or any(name.startswith(f"{module}.") for name in layers)

    assert {m for m in modules if not placed(m)} == set()
