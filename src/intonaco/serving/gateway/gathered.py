"""`/metrics` of a public port that several gateways share.

Whichever of them takes the connection answers for all: each one's own series, told apart by the
label ``gateway``. They are not added up here. A sum falls when one process starts again, which
Prometheus takes for a reset of all of them, and would count what the others did twice;
``sum without (gateway) (rate(...))`` is right in every case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx

from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.state import GatewayState
from intonaco.workspace import Workspace

ANSWER_S = 1.0  # for another gateway; one that is slower has a gap in its series


@dataclass(frozen=True, slots=True)
class Gathered:
    """``name``: of this gateway. ``http``: for calls to the others' admin addresses."""

    workspace: Workspace
    name: str
    metrics: Metrics
    state: GatewayState
    http: httpx.AsyncClient

    async def text(self) -> str:
        """In Prometheus' text format."""
        infos = await asyncio.to_thread(self.workspace.gateways)
        others = {
            info.name: f"{info.facts['admin_url']}/metrics"
            for info in infos
            if info.name != self.name and "admin_url" in info.facts
        }
        told = await asyncio.gather(*(self._ask(url) for url in others.values()))
        texts = {self.name: self.metrics.text(self.state)}
        texts |= {n: t for n, t in zip(others, told, strict=True) if t is not None}
        return labelled(dict(sorted(texts.items())))

    async def _ask(self, url: str) -> str | None:
        """None if it does not answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                response = await self.http.get(url)
        except (httpx.HTTPError, TimeoutError):
            return None
        return response.text if response.status_code == 200 else None


def labelled(texts: Mapping[str, str]) -> str:
    """One text of several gateways' own (by name): each family once, as the format wants it, with
    the series of all, each under its gateway's label."""
    heads: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    for gateway, text in texts.items():
        for family, head, line in _lines(text):
            if head:
                known = heads.setdefault(family, [])
                if line not in known:
                    known.append(line)
            else:
                series.setdefault(family, []).append(_with_label(line, gateway))
    lines = (line for family in heads for line in (*heads[family], *series.get(family, ())))
    return "".join(f"{line}\n" for line in lines)


def _lines(text: str) -> Iterable[tuple[str, bool, str]]:
    """Family, whether it is HELP or TYPE, and the line, of a text that ``Metrics`` wrote."""
    family = ""
    for line in text.splitlines():
        if line.startswith("# "):
            family = line.split(" ", 3)[2]
            yield family, True, line
        elif line:
            yield family, False, line


def _with_label(line: str, gateway: str) -> str:
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f'{name}{{gateway="{gateway}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{gateway="{gateway}"}} {value}'
