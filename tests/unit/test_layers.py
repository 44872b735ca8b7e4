"""What must start fast and run without the engines imports none of them.

The import contracts (``.importlinter``) read the source; this runs it, so that an import hidden
behind a name or a chain of packages counts too.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

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


@pytest.mark.parametrize("module", LIGHT)
def test_imports_no_engine(module: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    assert found is not None, f"{module} is gone: correct this list"
    code = f"import sys, {module}; print(*[m for m in {ENGINES!r} if m in sys.modules]);"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""
