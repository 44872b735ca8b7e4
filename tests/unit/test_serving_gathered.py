"""One text of several gateways' metrics: every series once, as Prometheus wants it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from intonaco.serving.gateway.gathered import Gathered, labelled
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.state import GatewayState
from intonaco.workspace import Workspace

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str, gateway: str | None = None) -> Series:
    """Samples by name and labels; with ``gateway`` those that lack the label are given it."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if gateway is not None:
                assert "gateway" not in labels
                labels["gateway"] = gateway
            key = (sample.name, tuple(sorted(labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def counted(requests: int) -> Metrics:
    metrics = Metrics()
    for k in range(requests):
        metrics.http("/v1/images/generations", "POST", 200 if k % 2 else 502, 0.3 * k)
    metrics.reject('a b{}"=')  # what no code is, in a label
    return metrics


def test_a_gateway_knows_when_the_controller_last_ticked(tmp_path: Path) -> None:
    """Without asking anybody: it answers when all else is down."""
    workspace, metrics = Workspace(tmp_path), Metrics()
    metrics.controller_ticked = workspace.last_tick
    state = GatewayState(workspace, 3)
    name = "intonaco_controller_last_tick_timestamp_seconds"
    assert name not in metrics.text(state)
    workspace.ticked(1_700_000_000.5)
    assert read(metrics.text(state))[name, ()] == 1_700_000_000.5


def test_all_series_of_all_gateways_under_their_label(tmp_path: Path) -> None:
    state = GatewayState(Workspace(tmp_path), 3)
    texts = {n: counted(k).text(state) for n, k in (("gateway", 3), ("gateway-1", 7))}
    together = labelled(texts)
    expected: Series = {}
    for name, text in texts.items():
        expected |= read(text, name)
    assert read(together) == expected
    heads = [line for line in together.splitlines() if line.startswith("# ")]
    assert len(heads) == len(set(heads)), "a family is told once"


async def test_one_that_does_not_answer_has_a_gap_and_holds_nobody_up(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    state = GatewayState(workspace, 3)
    workspace.announce("gateway", admin_url="http://zero")
    workspace.announce("gateway-1", admin_url="http://one")
    workspace.announce("gateway-2", admin_url="http://two")
    other = counted(5).text(state)

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        if request.url.host == "one":
            raise httpx.ConnectError("nobody")
        assert request.url.host == "two", "itself is not asked"
        return httpx.Response(200, text=other)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        gathered = Gathered(workspace, "gateway", counted(2), state, http)
        seen = read(await gathered.text())
        assert seen == read(counted(2).text(state), "gateway") | read(other, "gateway-2")
        alone = replace(gathered, workspace=Workspace(tmp_path / "other"))
        assert read(await alone.text()) == read(counted(2).text(state), "gateway")
