"""``rollout promote|approve --arm``: what the controller is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from intonaco.cli import steer
from intonaco.cli.main import app


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (("promote",), ("rollout.promote", {"reason": ""})),
        (
            ("promote", "--arm", "lora", "--reason", "cheaper"),
            ("rollout.promote", {"reason": "cheaper", "arm": "lora"}),
        ),
        (("approve", "--arm", "lora"), ("rollout.approve", {"reason": "", "arm": "lora"})),
        (("skip", "--reason", "late"), ("rollout.skip", {"reason": "late"})),
    ],
)
def test_an_arm_is_named(
    given: tuple[str, ...],
    asked: tuple[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(
        steer, "ask", lambda opened, kind, arguments, as_json: seen.append((kind, arguments))
    )
    (tmp_path / "intonaco.yaml").write_text("service: digits\n")
    result = CliRunner().invoke(app, ["rollout", *given, "--workspace", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert seen == [asked]


def test_only_some_commands_take_an_arm(tmp_path: Path) -> None:
    (tmp_path / "intonaco.yaml").write_text("service: digits\n")
    given = ["rollout", "abort", "--arm", "lora", "--workspace", str(tmp_path)]
    assert CliRunner().invoke(app, given).exit_code == 2
