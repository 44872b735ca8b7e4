"""How a gateway is put together from its configuration."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from intonaco.clock import SystemClock
from intonaco.config import parse
from intonaco.errors import ConfigError
from intonaco.serving.gateway.main import build
from intonaco.supervisor import command, gateway_names
from intonaco.workspace import Workspace


async def test_settings_reach_what_they_set(tmp_path: Path) -> None:
    config = parse(
        "service: tiny\n"
        "serving: {gateway: {processes: 3, records_fsync: always, max_response_bytes: 5000}}\n"
    )
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda r: httpx.Response(200))) as h:
        gateway = build(Workspace(tmp_path), config, http=h, clock=SystemClock(), name="gateway-2")
    writer = gateway.recorder.writer
    assert (writer.name, writer.fsync) == ("gateway-2", "always")
    assert gateway.dispatcher.upstream.most_bytes == 5000
    writer.close()
    assert [p.parent.name for p in Workspace(tmp_path).records.glob("*/*")] == ["gateway-2"]


@pytest.mark.parametrize("field", ["processes: 0", "records_fsync: often", "max_response_bytes: 0"])
def test_settings_that_make_no_sense(field: str) -> None:
    with pytest.raises(ConfigError, match=field.partition(":")[0]):
        parse(f"service: tiny\nserving: {{gateway: {{{field}}}}}\n")


def test_names_of_processes() -> None:
    assert gateway_names(3) == ("gateway", "gateway-1", "gateway-2")
    assert command("gateway-2") == ["intonaco.serving.gateway.main", "--name", "gateway-2"]
    assert command("console") == ["intonaco.console.main"]
    for wrong in ("gateway-x", "console-1", "nothing"):
        with pytest.raises(KeyError):
            command(wrong)
