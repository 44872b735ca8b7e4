"""Asks what has to be asked by the clock, off the controller's tick.

Each signal has a thread of its own while its question is open, and one open question at most: what
is slow, or never answers, holds up nobody, and its silence is found by the monitor. Threads end
with the process.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import httpx

from intonaco import plugins
from intonaco.config import Monitoring, Signal
from intonaco.errors import ConfigError
from intonaco.types import Sample

log = logging.getLogger(__name__)

KIND = "signals"  # entry points: the group ``intonaco.signals``
POLLED = ("promql", "python", "gpu_utilisation", "gpu_memory")
MOST_BYTES = 2**20  # of an answer

Ask = Callable[[], float | None]


class NoAnswer(Exception):
    """Why there is no number, in words without content of the service."""


@dataclass(slots=True)
class _Poll:
    name: str
    every_s: float
    ask: Ask
    due: float = -math.inf
    asked: float | None = None  # while a question is open


class Polls:
    """Questions by signal. Times are those that ``collect`` is given."""

    def __init__(self, asks: Iterable[tuple[str, float, Ask]]) -> None:
        self._polls = [_Poll(name, every_s, ask) for name, every_s, ask in asks]
        self._answers: SimpleQueue[tuple[_Poll, float | None, str]] = SimpleQueue()

    def collect(self, now: float) -> list[Sample]:
        """What was answered since the last call; asks what is due. Returns at once."""
        samples = []
        while not self._answers.empty():
            poll, value, reason = self._answers.get()
            asked, poll.asked = poll.asked, None
            at = now if asked is None else asked
            samples.append(Sample(signal=poll.name, at=at, value=value, reason=reason))
        for poll in self._polls:
            if poll.asked is None and now >= poll.due:
                poll.asked, poll.due = now, now + poll.every_s
                threading.Thread(
                    target=self._run, args=(poll,), name=f"poll-{poll.name}", daemon=True
                ).start()
        return samples

    def waiting(self) -> list[str]:
        """Signals whose question is open."""
        return [poll.name for poll in self._polls if poll.asked is not None]

    def _run(self, poll: _Poll) -> None:
        value: float | None = None
        try:
            value = poll.ask()
            reason = "" if value is not None else "it answers that it has none"
            if value is not None:
                value = float(value)
                if not math.isfinite(value):
                    value, reason = None, f"it answers {value}"
        except NoAnswer as error:
            value, reason = None, str(error)
        except Exception as error:  # of somebody else's code: its message may hold anything
            value, reason = None, type(error).__name__
            log.warning(
                "signal %s: %s", poll.name, reason, extra={"action": "polls.failed"}, exc_info=error
            )
        self._answers.put((poll, value, reason))


def polls_of(
    monitoring: Monitoring,
    urls: Callable[[], Sequence[str]],
    environ: Mapping[str, str] = os.environ,
) -> Polls:
    """What this configuration asks. ``urls``: of the champion's workers, asked for anew each time.
    Raises ConfigError for a callable that is not there and a token that the environment lacks."""
    return Polls(
        [
            (name, signal.every_s, ask_of(name, signal, urls, environ))
            for name, signal in monitoring.signals.items()
            if signal.of in POLLED
        ]
    )


def ask_of(
    name: str, signal: Signal, urls: Callable[[], Sequence[str]], environ: Mapping[str, str]
) -> Ask:
    """The question of one signal."""
    if signal.of == "promql":
        return _promql(name, signal, environ)
    if signal.of == "python":
        return _call(name, signal)
    return _gpu(signal, urls)


# ------------------------------------------------------------------------------- Prometheus


def _promql(name: str, signal: Signal, environ: Mapping[str, str]) -> Ask:
    headers = {}
    if signal.token is not None:
        variable = signal.token.removeprefix("env:")
        if not environ.get(variable):
            raise ConfigError(
                f"monitoring.signals.{name}.token: the environment has no {variable}",
                hint="export it where the controller is started",
            )
        headers["authorization"] = f"Bearer {environ[variable]}"
    url = f"{(signal.url or '').rstrip('/')}/api/v1/query"
    client = httpx.Client(timeout=signal.timeout_s, headers=headers, trust_env=False)
    form = {"query": signal.query or "", "timeout": f"{signal.timeout_s:g}s"}

    def ask() -> float | None:
        status, text = _fetch(client, "POST", url, data=form)
        return prometheus_value(status, text)

    return ask


def prometheus_value(status: int, text: str) -> float | None:
    """The number of an answer of ``/api/v1/query``; None of an empty vector. Raises NoAnswer.

    https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
    """
    try:
        body = httpx.Response(status, text=text).json()
        if body["status"] != "success":
            raise NoAnswer(f"Prometheus answers {status}, {str(body['errorType'])[:40]}")
        kind, result = body["data"]["resultType"], body["data"]["result"]
        if kind == "scalar":
            return float(result[1])
        if kind != "vector":
            raise NoAnswer(f"the query gives a {str(kind)[:20]}, not one number")
        if len(result) > 1:
            raise NoAnswer(f"the query gives {len(result)} numbers; add sum() or max() around it")
        return float(result[0]["value"][1]) if result else None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise NoAnswer(
            f"the answer ({status}) is not Prometheus' ({type(error).__name__})"
        ) from None


def _fetch(client: httpx.Client, method: str, url: str, **more: Any) -> tuple[int, str]:
    """Status and text of an answer of bounded size. Raises NoAnswer."""
    try:
        with client.stream(method, url, **more) as response:
            text = bytearray()
            for chunk in response.iter_bytes():
                text += chunk
                if len(text) > MOST_BYTES:
                    raise NoAnswer(f"the answer is over {MOST_BYTES} bytes")
            return response.status_code, text.decode("utf-8", "replace")
    except httpx.HTTPError as error:
        raise NoAnswer(f"no answer: {type(error).__name__}") from None


# ------------------------------------------------------------------------------- callables


def _call(name: str, signal: Signal) -> Ask:
    try:
        found: Any = plugins.resolve(KIND, signal.call or "", {})
    except ConfigError as error:
        raise ConfigError(f"monitoring.signals.{name}.call: {error}", hint=error.hint) from error
    if not callable(found):
        raise ConfigError(f"monitoring.signals.{name}.call: {signal.call} cannot be called")
    call: Ask = found
    return call


# ------------------------------------------------------------------------------- the device

_METRIC = re.compile(r"^intonaco_worker_(gpu_\w+) (\S+)$", re.MULTILINE)


def _gpu(signal: Signal, urls: Callable[[], Sequence[str]]) -> Ask:
    client = httpx.Client(timeout=signal.timeout_s, trust_env=False)
    value = gpu_utilisation if signal.of == "gpu_utilisation" else gpu_memory

    def ask() -> float:
        workers = urls()
        if not workers:
            raise NoAnswer("no worker serves the champion")
        seen = []
        for url in workers:
            status, text = _fetch(client, "GET", f"{url}/metrics")
            if status != 200:
                raise NoAnswer(f"a worker answers {status}")
            seen.append({n: float(v) for n, v in _METRIC.findall(text)})
        return value(seen)

    return ask


def gpu_utilisation(workers: Sequence[Mapping[str, float]]) -> float:
    """Mean over workers. Raises NoAnswer where one of them cannot tell."""
    found = [w["gpu_utilization"] for w in workers if "gpu_utilization" in w]
    if len(found) < len(workers):
        raise NoAnswer(
            "no GPU, or NVML does not say (the extra gpu has it; a slice of a device has none)"
        )
    return sum(found) / len(found)


def gpu_memory(workers: Sequence[Mapping[str, float]]) -> float:
    """Share in use of the fullest device. Raises NoAnswer where a worker cannot tell."""
    used, total = "gpu_memory_used_bytes", "gpu_memory_total_bytes"
    found = [w[used] / w[total] for w in workers if used in w and w.get(total)]
    if len(found) < len(workers):
        raise NoAnswer("no GPU, or NVML does not say (the extra gpu has it)")
    return max(found)
