"""A trace through real processes: what they hold when they are told to end still arrives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tests.fixtures_serving import tiny_service

from intonaco.workspace import Workspace

CONFIG = """
service: tiny
model: {{name: tiny, generation: {{steps: 2, guidance_scale: 1.5, width: 32, height: 32}}}}
serving:
  gateway: {{port: 0}}
  worker: {{warm_up: false}}
  tracing: {{endpoint: "{endpoint}", sample: 1.0}}
"""


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Its URL, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", bodies
        finally:
            server.shutdown()
            thread.join(10)


def test_a_trace_crosses_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with collector() as (endpoint, bodies):
        workspace = Workspace(tmp_path / "w")
        with tiny_service(workspace, CONFIG.format(endpoint=endpoint)) as (url, release):
            answer = httpx.post(
                f"{url}/v1/images/generations",
                json={"prompt": "a private two", "user": "somebody"},
                timeout=60,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
        log = (workspace.logs / f"worker-{release.short}.log").read_text()
    assert "Traceback" not in log
    spans: dict[str, tuple[str, Any]] = {}
    for body in bodies:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (a for a in group.resource.attributes if a.key == "service.name")
            for scope in group.scope_spans:
                spans |= {s.name: (service.value.string_value, s) for s in scope.spans}
    assert {name: service for name, (service, _) in spans.items()} == {
        "POST /v1/images/generations": "intonaco-gateway",
        "attempt": "intonaco-gateway",
        "generate": "intonaco-worker",
        "queue": "intonaco-worker",
        "encode": "intonaco-worker",
        "denoise": "intonaco-worker",
        "decode": "intonaco-worker",
    }
    assert len({s.trace_id for _, s in spans.values()}) == 1
    assert spans["generate"][1].parent_span_id == spans["attempt"][1].span_id
    for inner, outer in (
        ("denoise", "generate"),
        ("generate", "attempt"),
        ("attempt", "POST /v1/images/generations"),
    ):
        inside, around = spans[inner][1], spans[outer][1]
        slack = 5_000_000  # ns, of two clocks read one after the other
        assert around.start_time_unix_nano - slack <= inside.start_time_unix_nano
        assert inside.end_time_unix_nano <= around.end_time_unix_nano + slack
        assert inside.end_time_unix_nano > inside.start_time_unix_nano
    sent = b"".join(bodies)
    assert b"private" not in sent
    assert b"somebody" not in sent
