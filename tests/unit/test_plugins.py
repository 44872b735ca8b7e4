from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from intonaco import plugins
from intonaco.errors import ConfigError
from intonaco.registry.none import NullRegistry

BUILTINS = {
    "mlflow": "intonaco.registry.mlflow:MlflowRegistry",
    "none": "intonaco.registry.none:NullRegistry",
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package with two entry points was installed."""
    points = EntryPoints(
        [
            EntryPoint("house", "intonaco.clock:FakeClock", "intonaco.registry"),
            EntryPoint("none", "intonaco.clock:FakeClock", "intonaco.registry"),
            EntryPoint("gone", "no_such_package.registry:Registry", "intonaco.registry"),
            EntryPoint("elsewhere", "intonaco.clock:FakeClock", "intonaco.serving"),
        ]
    )
    monkeypatch.setattr(plugins, "entry_points", lambda **kind: points.select(**kind))


def test_built_in() -> None:
    assert plugins.resolve("registry", "none", BUILTINS) is NullRegistry


@pytest.mark.usefixtures("installed")
def test_entry_point() -> None:
    assert plugins.resolve("registry", "house", BUILTINS).__name__ == "FakeClock"


@pytest.mark.usefixtures("installed")
def test_built_in_wins_over_an_entry_point() -> None:
    assert plugins.resolve("registry", "none", BUILTINS) is NullRegistry


def test_module_and_attribute() -> None:
    assert plugins.resolve("registry", "pathlib:Path.home", {}) == Path.home


@pytest.mark.usefixtures("installed")
def test_unknown_name_lists_the_known_ones_of_its_kind() -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.resolve("registry", "mlfow", BUILTINS)
    assert str(caught.value) == (
        "registry: nothing is called 'mlfow'; known: gone, house, mlflow, none"
    )
    assert "intonaco.registry" in str(caught.value.hint)


@pytest.mark.usefixtures("installed")
def test_plugin_whose_package_is_missing() -> None:
    with pytest.raises(ConfigError, match="'gone' needs the module no_such_package") as caught:
        plugins.resolve("registry", "gone", BUILTINS)
    assert "no_such_package" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("json:no_such_thing", "json has no no_such_thing"),
        ("json:", "is not module:attribute"),
        (":attribute", "is not module:attribute"),
        ("no_such_module:x", "cannot be imported"),
    ],
)
def test_wrong_module_and_attribute(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plugins.resolve("registry", name, BUILTINS)


def test_an_error_inside_a_plugin_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin_for_test.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        plugins.resolve("registry", "broken_plugin_for_test:x", {})


def test_choosing_none_does_not_import_mlflow() -> None:
    code = (
        "import sys; from intonaco import plugins;"
        f"plugins.resolve('registry', 'none', {BUILTINS!r}); sys.exit('mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_adapter_module_is_imported_without_its_engine() -> None:
    modules: list[Any] = ["intonaco.registry.mlflow", "intonaco.tracking.mlflow"]
    code = (
        "import sys, importlib;"
        f"[importlib.import_module(m) for m in {modules!r}]; sys.exit('mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
