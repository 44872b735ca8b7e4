"""How much does the gateway add to a request, against proxies that only pass it on?

A process stands in for a worker and answers every request at once with one ready picture of
1.5 MB, so that all the time there is belongs to transport and gateway. The same load (`load.py`)
goes to it directly, through HAProxy, through nginx and through the gateway, each with one process
or thread, in rounds that take turns; 1, 32 and 256 connections, and one with a picture of 3 kB.
The work is not the same: proxies pass the picture's bytes on as they come, the gateway waits until
it has the whole picture (or it could not shield users from a challenger that breaks off), sends a
third more bytes (base64 in JSON), assigns and records. `gateway` stores no pictures, `gateway_kept`
stores each, as is the default. `added` is against direct at the median. `rps_per_core`: requests a
second of processor time of the proxy alone, since client and worker compete for the same cores.
Ratios over HAProxy are of `gateway` (`gateway.kept_*`: of `gateway_kept`), of the added median at
1 connection, and of `rps_per_core` at 32. HAProxy and nginx are left out where they are not
installed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from intonaco.codec import as_json
from intonaco.errors import BackendError
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.releases import ReleaseStore, release_id
from intonaco.serving.client import GatewayRouter
from intonaco.types import Arm, ArmRole, Provenance, RoutingTable, ServingSpec
from intonaco.workspace import Workspace

FULL_NAMES = True
HERE = Path(__file__).resolve().parent
ROUNDS = 3
SIZES = {"small": 32, "large": 720}  # pixels a side; noise, so 3 kB and 1.5 MB of PNG
LOADS = (("small", 1, 1.0), ("large", 1, 3.0), ("large", 32, 4.0), ("large", 256, 4.0))
START_S = 60.0

SPEC = ServingSpec(
    pipeline_class="StandIn",
    weights={},
    scheduler="none",
    generation={"steps": 1, "guidance_scale": 1.0, "width": 32, "height": 32},
)
ASKED = GenerateRequest(
    request_id="r", prompt="p", seed=0, steps=1, guidance_scale=1.0, width=32, height=32
)

HAPROXY = """
global
    nbthread 1
    maxconn 2000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server worker {worker}
"""

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_max_temp_file_size 0;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    upstream worker {{ server {worker}; keepalive 256; }}
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://worker; }} }}
}}
"""


@dataclass
class Way:
    """One way to the worker: where, what to ask there, and whose processor time counts."""

    url: str
    pid: int
    path: str = "/generate"
    body: Any = field(default_factory=lambda: as_json(ASKED))
    headers: Mapping[str, str] = field(default_factory=lambda: {PROTOCOL_HEADER: PROTOCOL_VERSION})
    expect: str = "\x89PNG"

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        process = psutil.Process(self.pid)
        times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
        return float(sum(t.user + t.system for t in times))


@dataclass
class Seen:
    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0

    def figures(self) -> dict[str, float]:
        """Milliseconds at median and 99th percentile, requests a second, and a core's second."""
        return {
            "p50_ms": 1000 * statistics.median(self.seconds),
            "p99_ms": 1000 * statistics.quantiles(self.seconds, n=100)[-1],
            "rps": len(self.seconds) / self.wall,
            "rps_per_core": len(self.seconds) / self.cpu,
        }


def run() -> dict[str, float]:
    """Figures by their full names."""
    seen: dict[tuple[str, int, str], Seen] = defaultdict(Seen)
    for size, pixels in SIZES.items():
        with _ways(pixels) as ways:
            for way in ways.values():
                _load(way, 8, 0.5)  # connections and caches are there
            for _ in range(ROUNDS):
                for _, connections, seconds in (x for x in LOADS if x[0] == size):
                    for name, way in ways.items():
                        before = way.cpu()
                        times, wall = _load(way, connections, seconds)
                        found = seen[size, connections, name]
                        found.seconds += times
                        found.wall += wall
                        found.cpu += way.cpu() - before
    figures = {
        f"gateway_overhead.{size}.c{connections}.{name}.{key}": value
        for (size, connections, name), found in seen.items()
        for key, value in found.figures().items()
    }
    return figures | _ratios(figures)


def _ratios(figures: Mapping[str, float]) -> dict[str, float]:
    def added(name: str) -> float:
        own = figures[f"gateway_overhead.large.c1.{name}.p50_ms"]
        return own - figures["gateway_overhead.large.c1.direct.p50_ms"]

    def per_core(name: str) -> float:
        return figures[f"gateway_overhead.large.c32.{name}.rps_per_core"]

    found = {"gateway.p50_added_ms": added("gateway"), "gateway.rps_per_core": per_core("gateway")}
    for name in ("haproxy", "nginx"):
        if f"gateway_overhead.large.c1.{name}.p50_ms" not in figures:
            continue
        for own, prefix in (("gateway", ""), ("gateway_kept", "kept_")):
            found[f"gateway.{prefix}rps_over_{name}"] = per_core(own) / per_core(name)
            if added(name) > 0:
                found[f"gateway.{prefix}p50_added_over_{name}"] = added(own) / added(name)
        if added(name) <= 0:
            print(f"{name} was faster than direct: the machine is too busy", file=sys.stderr)
    return found


def _load(way: Way, connections: int, seconds: float) -> tuple[list[float], float]:
    """Seconds of each request, and of all. Raises RuntimeError if one failed."""
    task = {
        "url": way.url,
        "path": way.path,
        "body": way.body,
        "headers": dict(way.headers),
        "expect": way.expect,
        "concurrency": connections,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "load.py")],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=seconds + 90,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answer = json.loads(done.stdout)
    if answer["failed"]:
        raise RuntimeError(f"{way.url}: {answer['failed']} of {len(answer['seconds'])} failed")
    return answer["seconds"], answer["wall"]


# ------------------------------------------------------------------------------------ processes


@contextmanager
def _ways(pixels: int) -> Iterator[dict[str, Way]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        worker, pid = stack.enter_context(_worker(folder, pixels))
        ways = {"direct": Way(worker, pid)}
        for name, start in (("haproxy", _haproxy), ("nginx", _nginx)):
            program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
            if program is None:
                print(
                    f"{name} is not installed, figures with it are left out "
                    f"(Debian: apt-get install {name})",
                    file=sys.stderr,
                )
                continue
            ways[name] = Way(*stack.enter_context(start(program, folder, worker)))
        for name, keep in (("gateway", 0), ("gateway_kept", 1)):
            url, pid = stack.enter_context(_gateway(folder / name, worker, keep))
            body = {"model": "model", "prompt": "p", "response_format": "b64_json"}
            ways[name] = Way(url, pid, "/v1/images/generations", body, {}, "iVBOR")
        yield ways


@contextmanager
def _worker(folder: Path, pixels: int) -> Iterator[tuple[str, int]]:
    noise = Image.frombytes("RGB", (pixels, pixels), os.urandom(3 * pixels * pixels))
    out = io.BytesIO()
    noise.save(out, "PNG")
    file = folder / "picture.png"
    file.write_bytes(out.getvalue())
    with _process(sys.executable, str(HERE / "standin.py"), str(file), release_id(SPEC)) as child:
        assert child.stdout is not None
        yield child.stdout.readline().decode().strip(), child.pid


@contextmanager
def _haproxy(program: str, folder: Path, worker: str) -> Iterator[tuple[str, int]]:
    port = _free_port()
    file = folder / "haproxy.cfg"
    file.write_text(HAPROXY.format(port=port, worker=worker.removeprefix("http://")))
    with _process(program, "-db", "-f", str(file)) as child:
        _until_listening(child, port)
        yield f"http://127.0.0.1:{port}", child.pid


@contextmanager
def _nginx(program: str, folder: Path, worker: str) -> Iterator[tuple[str, int]]:
    port = _free_port()
    file = folder / "nginx.conf"
    text = NGINX.format(port=port, folder=folder, worker=worker.removeprefix("http://"))
    # A process of root hands its work to another user, who may not write in the folder.
    file.write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    with _process(program, "-p", str(folder), "-c", str(file)) as child:
        _until_listening(child, port)
        yield f"http://127.0.0.1:{port}", child.pid


@contextmanager
def _gateway(folder: Path, worker: str, keep: int) -> Iterator[tuple[str, int]]:
    workspace = Workspace(folder)
    (folder / "pipeline").mkdir(parents=True)
    workspace.config_file.write_text(
        f"service: bench\nserving: {{gateway: {{port: 0, keep_images: {keep}}}}}\n"
    )
    store = ReleaseStore(workspace, "bench")
    release = store.add(folder / "pipeline", SPEC, Provenance(created_at=0.0))
    module = "intonaco.serving.gateway.main"
    with _process(sys.executable, "-m", module, "--workspace", str(folder)) as child:
        end = time.monotonic() + START_S
        while (info := workspace.process("gateway")) is None:
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the gateway did not start")
            time.sleep(0.05)
        arm = Arm(
            name="champion",
            role=ArmRole.CHAMPION,
            release=release.release_id,
            urls=(worker,),
            weight=1.0,
        )
        table = RoutingTable(service_id="bench", epoch=1, salt="s", arms=(arm,))
        router = GatewayRouter(workspace)
        while True:
            try:
                router.apply(table)
                break
            except BackendError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        router.close()
        yield str(info.url), child.pid


@contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _until_listening(child: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionError:
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{child.args!r} did not start") from None
            time.sleep(0.05)
