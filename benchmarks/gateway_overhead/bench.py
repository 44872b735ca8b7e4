"""How much time does the gateway add to a request?

A process stands in for a worker and answers every request at once with one ready image, so that
all the time there is belongs to transport and gateway. The same body is sent to it directly and
through a real gateway process, which assigns, records and stores images as it does by default;
blocks of both take turns. The worker answers with the picture's bytes, the gateway with base64 in
JSON. `added_*` are differences of medians.
"""

from __future__ import annotations

import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from intonaco.codec import as_json
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.serving.client import GatewayRouter
from intonaco.types import Arm, ArmRole, RoutingTable
from intonaco.workspace import Workspace

RELEASE = "a" * 64
SIZES = {"small": 32, "large": 720}  # pixels a side; noise, so 3 kB and 1.5 MB of PNG
BLOCKS = 6
REQUESTS = {"small": 40, "large": 15}  # in a block
CONCURRENT = 16

WORKER = """
import base64, json, sys
import uvicorn
from intonaco.messages import GENERATED_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION
from intonaco.serving.http import WORKER_KEEP_ALIVE_S, bind
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

answer = json.loads(sys.stdin.read())
png = base64.b64decode(answer.pop("png"))

async def generate(request):
    asked = json.loads(await request.body())
    about = json.dumps({**answer, "request_id": asked["request_id"]})
    headers = {PROTOCOL_HEADER: PROTOCOL_VERSION, GENERATED_HEADER: about}
    return Response(png, media_type="image/png", headers=headers)

socket, url = bind("127.0.0.1", 0, what="stand-in")
print(url, flush=True)
app = Starlette(routes=[Route("/generate", generate, methods=["POST"])])
config = uvicorn.Config(app, log_level="error", timeout_keep_alive=WORKER_KEEP_ALIVE_S)
uvicorn.Server(config).run(sockets=[socket])
"""


def run() -> dict[str, float]:
    """Milliseconds at the median and the 95th percentile, one request at a time; requests a second
    with 16 at a time."""
    figures: dict[str, float] = {}
    for size, pixels in SIZES.items():
        with _processes(pixels) as ways:
            figures |= _latency(size, ways)
            for way, request in ways.items():
                figures[f"{size}.{way}.concurrent_rps"] = _throughput(size, request)
    for size in SIZES:
        added = figures[f"{size}.gateway.p50_ms"] - figures[f"{size}.direct.p50_ms"]
        figures[f"{size}.added_p50_ms"] = added
    return figures


def _latency(size: str, ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    for block in range(BLOCKS + 1):
        for way, request in ways.items():
            for _ in range(REQUESTS[size]):
                start = time.perf_counter()
                request()
                if block:  # the first warms up
                    times[way].append(1000 * (time.perf_counter() - start))
    return {
        f"{size}.{way}.{name}": value
        for way, found in times.items()
        for name, value in {
            "p50_ms": statistics.median(found),
            "p95_ms": statistics.quantiles(found, n=20)[-1],
        }.items()
    }


def _throughput(size: str, request: Callable[[], None]) -> float:
    total = 2 * BLOCKS * REQUESTS[size]
    with ThreadPoolExecutor(CONCURRENT) as pool:
        list(pool.map(lambda _: request(), range(CONCURRENT)))
        start = time.perf_counter()
        list(pool.map(lambda _: request(), range(total)))
        return total / (time.perf_counter() - start)


@contextmanager
def _processes(pixels: int) -> Iterator[dict[str, Callable[[], None]]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        _worker(_png(pixels)) as worker,
        _gateway(Path(folder), worker) as gateway,
        httpx.Client(timeout=60) as client,
    ):
        yield {"direct": _direct(client, worker), "gateway": _through(client, gateway)}


def _direct(client: httpx.Client, url: str) -> Callable[[], None]:
    asked = GenerateRequest(
        request_id="r", prompt="p", seed=0, steps=1, guidance_scale=1.0, width=32, height=32
    )
    body = as_json(asked)

    def request() -> None:
        headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
        answer = client.post(f"{url}/generate", json=body, headers=headers)
        if answer.status_code != 200 or not answer.content.startswith(b"\x89PNG"):
            raise RuntimeError(f"{answer.status_code}: {answer.content[:40]!r}")

    return request


def _through(client: httpx.Client, url: str) -> Callable[[], None]:
    body = {"model": "model", "prompt": "p", "response_format": "b64_json"}

    def request() -> None:
        answer = client.post(f"{url}/v1/images/generations", json=body)
        _png_of(_check(answer)["data"][0]["b64_json"])

    return request


def _check(answer: httpx.Response) -> Any:
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
    return answer.json()


def _png_of(text: str) -> None:
    if not text.startswith("iVBOR"):
        raise RuntimeError(f"no PNG: {text[:40]}")


def _png(pixels: int) -> str:
    noise = Image.frombytes("RGB", (pixels, pixels), os.urandom(3 * pixels * pixels))
    out = io.BytesIO()
    noise.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@contextmanager
def _worker(png: str) -> Iterator[str]:
    answer = {
        "release": RELEASE,
        "png": png,
        "queue_seconds": 0.0,
        "service_seconds": 0.0,
        "batch_size": 1,
        "padded_size": 1,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(answer))
        process.stdin.close()
        yield process.stdout.readline().strip()
    finally:
        _end(process)


@contextmanager
def _gateway(folder: Path, worker: str) -> Iterator[str]:
    workspace = Workspace(folder)
    workspace.config_file.write_text("service: bench\nserving: {gateway: {port: 0}}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "intonaco.serving.gateway.main", "--workspace", str(folder)],
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while (info := workspace.process("gateway")) is None:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the gateway did not start")
            time.sleep(0.05)
        arm = Arm(
            name="champion",
            role=ArmRole.CHAMPION,
            release=RELEASE,
            urls=(worker,),
            weight=1.0,
        )
        table = RoutingTable(service_id="bench", epoch=1, salt="s", arms=(arm,))
        _until_applied(GatewayRouter(workspace), table, end)
        yield str(info.url)
    finally:
        _end(process)


def _until_applied(router: GatewayRouter, table: RoutingTable, end: float) -> None:
    while True:
        try:
            return router.apply(table)
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
