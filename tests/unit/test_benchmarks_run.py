"""The runner of benchmarks: names, and whose result is whose."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "run.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_run", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load()
    found: dict[str, Any] = {
        "one": SimpleNamespace(run=lambda: {"a.p50_ms": 1.0}, __doc__="How fast?"),
        "two": SimpleNamespace(run=lambda: {"other.x": 2.0, "two.y": 3.0}, FULL_NAMES=True),
        "bad": SimpleNamespace(run=lambda: {"x": float("nan")}),
    }
    monkeypatch.setattr(module, "load", found.__getitem__)
    monkeypatch.setattr(module, "names", lambda: sorted(found))
    return module


def test_every_benchmark_can_be_loaded_and_asks_a_question() -> None:
    runner = load()
    assert "gateway_overhead" in runner.names()
    for name in runner.names():
        assert callable(runner.load(name).run)
        assert "?" in runner.question(name)


def test_names_get_the_folder_in_front_or_are_whole(runner: ModuleType) -> None:
    assert set(runner.measure("one")) == {"one.a.p50_ms"}
    assert set(runner.measure("two")) == {"other.x", "two.y"}
    with pytest.raises(ValueError, match=r"bad\.x is nan"):
        runner.measure("bad")


def test_results_belong_to_the_benchmark_that_gave_them(runner: ModuleType) -> None:
    results = runner.measure("one") | runner.measure("two")
    assert {k: runner.owner(v) for k, v in results.items()} == {
        "one.a.p50_ms": "one",
        "other.x": "two",
        "two.y": "two",
    }
    text = runner.page(results)
    assert text.index("## one") < text.index("| a.p50_ms | 1 |") < text.index("## two")
    assert "| other.x | 2 |" in text
    assert "| y | 3 |" in text


def test_what_was_measured_is_written_beside_what_was_not(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark that fails keeps its old figures, and makes the exit status 1."""
    for name, file in (("RESULTS", "results.json"), ("PAGE", "RESULTS.md")):
        monkeypatch.setattr(runner, name, tmp_path / file)

    def main(*names: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *names])
        return int(runner.main())

    old = {"value": 7.0, "command": "make bench ARGS=bad", "date": "then", "hardware": "h"}
    (tmp_path / "results.json").write_text(json.dumps({"bad.x": old}))
    assert main("one") == 0
    assert main("two", "bad") == 1
    results = json.loads((tmp_path / "results.json").read_text())
    values = {name: entry["value"] for name, entry in results.items()}
    assert values == {"bad.x": 7.0, "one.a.p50_ms": 1.0, "other.x": 2.0, "two.y": 3.0}
    assert (tmp_path / "RESULTS.md").read_text() == runner.page(results)


def test_the_page_on_sharing_says_how_often_the_benchmark_measures() -> None:
    rounds = load().load("sharing").ROUNDS
    page = FILE.parents[1] / "docs" / "concepts" / "sharing.md"
    assert f"medians of {rounds} pictures" in page.read_text()


def test_a_benchmark_may_have_some_of_its_results(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did not measure stays as it was; only a part that broke down is a failure."""
    failed: list[str] = []

    def some() -> dict[str, float]:
        raise runner.Incomplete({"x": 3.0}, failed)

    module = SimpleNamespace(run=some, __doc__="Half?")
    monkeypatch.setattr(runner, "load", {"bad": module}.__getitem__)
    monkeypatch.setattr(runner, "names", lambda: ["bad"])
    for name, file in (("RESULTS", "results.json"), ("PAGE", "RESULTS.md")):
        monkeypatch.setattr(runner, name, tmp_path / file)
    old = {"value": 7.0, "command": "make bench ARGS=bad", "date": "then", "hardware": "h"}
    (tmp_path / "results.json").write_text(json.dumps({"bad.x": old, "bad.y": old}))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert runner.main() == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["bad.y"] == old
    assert results["bad.x"]["value"] == 3.0
    assert "(1 figures)" in (tmp_path / "RESULTS.md").read_text()
    failed.append("a part")
    assert runner.main() == 1


def test_a_benchmark_may_draw_its_part_of_the_page(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(
        __doc__="Nice?",
        page=lambda values: f"{values['one.a']:.1f} it is",
        pictures=lambda values: {"a.svg": f"<svg>{values['one.a']}</svg>"},
    )
    monkeypatch.setattr(runner, "load", {"one": module}.__getitem__)
    monkeypatch.setattr(runner, "names", lambda: ["one"])
    about = {"command": "make bench ARGS=one", "date": "then", "hardware": "h"}
    results = {"one.a": {"value": 2.0, **about}}
    assert "2.0 it is" in runner.page(results)
    assert runner.pictures(results) == {runner.HERE / "one" / "a.svg": "<svg>2.0</svg>"}
