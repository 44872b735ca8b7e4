"""What is asked by the clock: Prometheus, callables, the workers' devices; and that nothing slow
holds up the controller."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from intonaco.config import Monitoring, Signal
from intonaco.errors import ConfigError
from intonaco.monitoring import polls
from intonaco.monitoring.polls import NoAnswer, Polls, ask_of, polls_of, prometheus_value
from intonaco.types import Sample


def until(ask: Callable[[], list[Sample]], seconds: float = 10.0) -> list[Sample]:
    """The first samples that come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ask():
            return found
        time.sleep(0.002)
    raise AssertionError("no sample came")


# ------------------------------------------------------------------------------- Prometheus


class Prometheus(ThreadingHTTPServer):
    """Answers ``/api/v1/query`` as Prometheus' HTTP API says: envelope, types, status codes."""

    daemon_threads = True
    token: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.series: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[dict[str, list[str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Prometheus

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        if self.path != "/api/v1/query":
            return self.give(404, "404 page not found", "text/plain")
        wanted = self.server.token
        if wanted and self.headers.get("authorization") != f"Bearer {wanted}":
            return self.give(401, "Unauthorized", "text/plain")
        form = parse_qs(body)
        self.server.asked.append(form)
        query = form["query"][0]
        if query.endswith("("):
            return self.error(400, "bad_data", "1:5: parse error: unclosed left parenthesis")
        if query.startswith("slow"):
            return self.error(503, "timeout", "query timed out in expression evaluation")
        if query.startswith("scalar("):
            data: Any = {"resultType": "scalar", "result": [1700000000.1, "42"]}
        elif query.endswith("]"):
            data = {"resultType": "matrix", "result": []}
        else:
            data = {"resultType": "vector", "result": self.server.series.get(query, [])}
        return self.give(200, json.dumps({"status": "success", "data": data}), "application/json")

    def error(self, status: int, kind: str, text: str) -> None:
        body = {"status": "error", "errorType": kind, "error": text}
        self.give(status, json.dumps(body), "application/json")

    def give(self, status: int, text: str, media: str) -> None:
        raw = text.encode()
        self.send_response(status)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.give(200, self.server.series["metrics"][0]["text"], "text/plain; version=0.0.4")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    with Prometheus() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sample(value: str, **labels: str) -> dict[str, Any]:
    return {"metric": labels, "value": [1700000000.1, value]}


def query(server: Prometheus, text: str, **more: Any) -> Signal:
    return Signal(of="promql", url=f"{server.url}/", query=text, range=(0, 100), **more)


def ask(signal: Signal, environ: dict[str, str] | None = None) -> float | None:
    return ask_of("gpu", signal, lambda: (), environ or {})()


def test_a_query_that_gives_one_number(prometheus: Prometheus) -> None:
    text = 'avg(DCGM_FI_DEV_GPU_UTIL{pod=~"w.*"})'
    prometheus.series[text] = [sample("37.5")]
    assert ask(query(prometheus, text, timeout_s=2)) == 37.5
    assert prometheus.asked == [{"query": [text], "timeout": ["2s"]}]
    assert ask(query(prometheus, "scalar(x)")) == 42.0
    assert ask(query(prometheus, "nobody_exports_this")) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("two", "gives 2 numbers; add sum"),
        ("x(", "Prometheus answers 400, bad_data"),
        ("slow", "Prometheus answers 503, timeout"),
        ("up[5m]", "gives a matrix"),
    ],
)
def test_one_that_does_not(prometheus: Prometheus, text: str, said: str) -> None:
    prometheus.series["two"] = [sample("1", a="1"), sample("2", a="2")]
    with pytest.raises(NoAnswer, match=said):
        ask(query(prometheus, text))


def test_a_token_from_the_environment(prometheus: Prometheus) -> None:
    prometheus.token, prometheus.series["up"] = "s3cret", [sample("1")]
    signal = query(prometheus, "up", token="env:PROM_TOKEN")
    assert ask(signal, {"PROM_TOKEN": "s3cret"}) == 1.0
    with pytest.raises(NoAnswer, match="401"):
        ask(signal, {"PROM_TOKEN": "wrong"})
    with pytest.raises(
        ConfigError, match=r"signals\.gpu\.token: the environment has no PROM_TOKEN"
    ):
        ask(signal)


def test_nobody_there() -> None:
    signal = Signal(of="promql", url="http://127.0.0.1:9", query="up", range=(0, 1))
    with pytest.raises(NoAnswer, match="no answer: ConnectError"):
        ask(signal)


def test_an_answer_without_end_is_not_read(
    prometheus: Prometheus, monkeypatch: pytest.MonkeyPatch
) -> None:
    prometheus.series["up"] = [sample("1", label="x" * 200_000)]
    monkeypatch.setattr(polls, "MOST_BYTES", 100_000)
    with pytest.raises(NoAnswer, match="over 100000 bytes"):
        ask(query(prometheus, "up"))


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", '{"status": "success", "data": {"resultType": "vector", "result": [{}]}}'],
)
def test_what_is_no_prometheus(body: str) -> None:
    with pytest.raises(NoAnswer, match="is not Prometheus'"):
        prometheus_value(200, body)


# ------------------------------------------------------------------------------- callables


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        (lambda: 2, 2.0, ""),
        (lambda: None, None, "it answers that it has none"),
        (lambda: float("nan"), None, "it answers nan"),
        (lambda: "a prompt", None, "ValueError"),
        (lambda: dict[str, int]()["a prompt"], None, "KeyError"),
    ],
)
def test_what_a_callable_answers(
    answer: Callable[[], Any], value: float | None, reason: str
) -> None:
    found = Polls([("x", 10.0, answer)])
    assert found.collect(100.0) == []
    (got,) = until(lambda: found.collect(100.0))
    assert got == Sample(signal="x", at=100.0, value=value, reason=reason)


def test_a_callable_is_found_by_name() -> None:
    there = Signal(of="python", call="time:monotonic", range=(0, 10))
    missing = Signal(of="python", call="no.such.module:f", range=(0, 10))
    thing = Signal(of="python", call="math:pi", range=(0, 10))
    assert ask_of("x", there, lambda: (), {})() is not None
    for bad, said in ((missing, "cannot be imported"), (thing, "cannot be called")):
        with pytest.raises(ConfigError, match=rf"signals\.x\.call: .*{said}"):
            ask_of("x", bad, lambda: (), {})


def test_one_that_never_answers_holds_up_nobody_and_is_asked_once() -> None:
    stop, asked = threading.Event(), []

    def hangs() -> float:
        asked.append(1)
        stop.wait(30)
        return 1.0

    found = Polls([("hangs", 1.0, hangs), ("fine", 1.0, lambda: 7.0)])
    seen: list[Sample] = []
    for second in range(5):
        at = 100.0 + second
        seen += found.collect(at)
        seen += until(lambda at=at: found.collect(at))  # type: ignore[misc]
    assert [s.signal for s in seen] == ["fine"] * 5
    assert found.waiting() == ["hangs"]
    assert len(asked) == 1
    stop.set()
    late = until(lambda: found.collect(104.5))
    assert [(s.signal, s.at, s.value) for s in late] == [("hangs", 100.0, 1.0)]


def test_asked_no_oftener_than_said() -> None:
    asked: list[int] = []
    found = Polls([("x", 10.0, lambda: asked.append(1))])
    found.collect(100.0)
    until(lambda: found.collect(100.0))
    for second in range(1, 10):
        assert found.collect(100.0 + second) == []
    assert len(asked) == 1
    found.collect(110.0)
    until(lambda: found.collect(110.0))
    assert len(asked) == 2


def test_only_what_is_asked_by_the_clock_is_polled() -> None:
    monitoring = Monitoring(
        signals={
            "errors": Signal(of="errors"),
            "now": Signal(of="python", call="time:monotonic", range=(0, 1)),
        }
    )
    found = polls_of(monitoring, lambda: (), {})
    found.collect(0.0)
    assert [s.signal for s in until(lambda: found.collect(0.0))] == ["now"]


# ------------------------------------------------------------------------------- the device

METRICS = """# HELP intonaco_worker_queue_length Requests that wait.
# TYPE intonaco_worker_queue_length gauge
intonaco_worker_queue_length 3.0
# TYPE intonaco_worker_gpu_utilization gauge
intonaco_worker_gpu_utilization 0.75
intonaco_worker_gpu_memory_used_bytes 2e+010
intonaco_worker_gpu_memory_total_bytes 8e+010
"""


def test_the_device_of_the_workers(prometheus: Prometheus) -> None:
    prometheus.series["metrics"] = [{"text": METRICS}]

    def gpu(of: str, *urls: str) -> float | None:
        signal = Signal.model_validate({"of": of})
        return ask_of("gpu", signal, lambda: urls, {})()

    assert gpu("gpu_utilisation", prometheus.url, prometheus.url) == 0.75
    assert gpu("gpu_memory", prometheus.url) == 0.25
    with pytest.raises(NoAnswer, match="no worker serves"):
        gpu("gpu_memory")
    prometheus.series["metrics"] = [{"text": METRICS.partition("# TYPE intonaco_worker_gpu")[0]}]
    for of in ("gpu_utilisation", "gpu_memory"):
        with pytest.raises(NoAnswer, match="no GPU, or NVML"):
            gpu(of, prometheus.url)
