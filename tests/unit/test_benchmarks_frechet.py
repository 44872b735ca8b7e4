"""The benchmark of Fréchet distances, at a size that takes no time."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("bench_frechet", FOLDER / "frechet" / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_gives_its_figures_and_both_ways_agree(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": 32, "ROWS": 200, "FEWER": 20, "ROUNDS": 1}.items():
        monkeypatch.setattr(bench, name, value)
    found = bench.run()
    assert found.pop("difference") < 1e-9
    assert set(found) == {
        "fewer_rows_s", "ours_s", "root_s", "sqrtm_s", "sqrtm_seconds_over_ours", "statistics_s"
    }  # fmt: skip
    assert all(math.isfinite(v) and v > 0 for v in found.values())
    assert found["sqrtm_seconds_over_ours"] == pytest.approx(found["sqrtm_s"] / found["ours_s"])
    assert "parts" in sys.modules
