"""The demo's workspace: what may be replaced and what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from intonaco.demo.setup import make_workspace
from intonaco.errors import ConfigError
from intonaco.workspace import write_atomic


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    first = make_workspace(tmp_path / "w")
    write_atomic(first.run / "routing.json", '{"epoch": 3}')  # as a gateway leaves it
    write_atomic(first.root / "summary.json", "{}")
    second = make_workspace(tmp_path / "w")
    assert not (second.root / "summary.json").exists()


def test_a_demo_that_runs_is_not_replaced(tmp_path: Path) -> None:
    make_workspace(tmp_path / "w").announce("gateway")
    with pytest.raises(ConfigError, match="in use: gateway runs"):
        make_workspace(tmp_path / "w")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="was not written by the demo"):
        make_workspace(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
