"""Several real gateway processes side by side, with workers that are played in this process."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.fixtures_serving import gateway_process, until
from tests.integration.test_loop_in_memory import World, two_champions

from intonaco import brake
from intonaco.codec import decode, encode
from intonaco.errors import BackendError, Conflict
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Generated,
    GenerateRequest,
    ProcessInfo,
    WorkerError,
)
from intonaco.segment_log import SegmentReader
from intonaco.serving.client import GatewayRouter
from intonaco.serving.http import WORKER_KEEP_ALIVE_S, bind, server
from intonaco.supervisor import Supervisor, gateway_names
from intonaco.types import Arm, ArmRole, Observed, Record, RoutingTable
from intonaco.workspace import Workspace

OLD, NEW = "a" * 64, "b" * 64
CONFIG = """
service: svc
model: {name: m, generation: {steps: 2, guidance_scale: 1.5, width: 8, height: 8}}
serving: {gateway: {port: 0, processes: 2, records_fsync: segment, max_response_bytes: 100000}}
"""


@dataclass
class Worker:
    """Speaks the worker protocol on a thread with a loop of its own."""

    release: str
    broken: bool = False
    url: str = field(init=False)

    @contextmanager
    def running(self) -> Iterator[Worker]:
        sock, self.url = bind("127.0.0.1", 0, what="worker")
        routes = [
            Route("/generate", self.generate, methods=["POST"]),
            Route("/readyz", self.readyz),
        ]
        http = server(Starlette(routes=routes), keep_alive_s=WORKER_KEEP_ALIVE_S, grace_s=1)
        thread = threading.Thread(target=lambda: asyncio.run(http.serve(sockets=[sock])))
        thread.start()
        try:
            yield self
        finally:
            http.should_exit = True
            thread.join(30)

    async def readyz(self, request: Request) -> Response:
        return JSONResponse({"ready": True})

    async def generate(self, request: Request) -> Response:
        headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
        asked = decode(GenerateRequest, await request.body())
        if self.broken:
            return Response(encode(WorkerError(code="internal", message="broken")), 500, headers)
        said = Generated(
            request_id=asked.request_id,
            release=self.release,
            queue_seconds=0.0,
            service_seconds=0.0,
            batch_size=1,
            padded_size=1,
        )
        out = io.BytesIO()
        Image.new("RGB", (asked.width, asked.height)).save(out, "PNG")
        headers[GENERATED_HEADER] = encode(said)
        return Response(out.getvalue(), 200, headers, media_type="image/png")


@pytest.fixture
def workers() -> Iterator[dict[str, Worker]]:
    with Worker(OLD).running() as old, Worker(NEW).running() as new:
        yield {"old": old, "new": new}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    w = Workspace(tmp_path)
    w.config_file.write_text(CONFIG)
    return w


def table(
    workers: dict[str, Worker], epoch: int, weight: float, untrip: tuple[str, ...] = ()
) -> RoutingTable:
    arms = (
        Arm(
            name="champion",
            role=ArmRole.CHAMPION,
            release=OLD,
            urls=(workers["old"].url,),
            weight=1 - weight,
        ),
        Arm(
            name="challenger:x",
            role=ArmRole.CHALLENGER,
            release=NEW,
            urls=(workers["new"].url,),
            weight=weight,
        ),
    )
    return RoutingTable(service_id="svc", epoch=epoch, salt="s", arms=arms, untrip=untrip)


def alone(workspace: Workspace, info: ProcessInfo) -> Observed:
    """What one gateway says of itself."""
    headers = {"authorization": f"Bearer {workspace.admin_token()}"}
    answer = httpx.get(f"{info.facts['admin_url']}/admin/observed", headers=headers, timeout=30)
    return decode(Observed, answer.content)


def told(text: str, name: str) -> dict[str, float]:
    """Values of a metric without other labels, by gateway, as Prometheus reads them."""
    return {
        sample.labels["gateway"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"intonaco_gateway_{name}"
    }


def ask(url: str | None, user: str) -> httpx.Response:
    """One request on a connection of its own."""
    body = {"prompt": f"for {user}", "user": user}
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=30)


@dataclass
class Load:
    """Users that ask all the time, each on a connection that is kept; one that broke is opened
    again and the request sent again."""

    url: str
    served: int = 0
    reconnected: int = 0
    wrong: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _user(self, name: str) -> None:
        client = httpx.Client(timeout=30)
        i = 0
        while not self._stop.is_set():
            body = {"prompt": f"p{i}", "user": f"{name}-{i}"}
            try:
                answer = client.post(f"{self.url}/v1/images/generations", json=body)
            except httpx.TransportError:
                self.reconnected += 1
                client.close()
                client = httpx.Client(timeout=30)
                continue
            if answer.status_code != 200:
                self.wrong.append(f"{answer.status_code} {answer.text}")
            self.served += 1
            i += 1
        client.close()

    @contextmanager
    def running(self) -> Iterator[Load]:
        users = [threading.Thread(target=self._user, args=(f"u{k}",)) for k in range(6)]
        for thread in users:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in users:
                thread.join(60)

    def more(self, n: int = 30) -> None:
        """Wait for so many more answers."""
        target = self.served + n
        until(lambda: self.served, lambda seen: seen >= target)


def test_two_gateways_are_one_service(workspace: Workspace, workers: dict[str, Worker]) -> None:
    """One test, since each part goes on from the one before."""
    router = GatewayRouter(workspace, timeout_s=3.0)
    with gateway_process(workspace, "gateway-1") as one, ExitStack() as stack:
        zero = stack.enter_context(gateway_process(workspace))
        assert zero.url == one.url
        assert [i.name for i in workspace.gateways()] == ["gateway", "gateway-1"]

        # A table reaches both; an older one is refused by both.
        router.apply(table(workers, 2, 0.5))
        for info in (zero, one):
            assert alone(workspace, info).epoch == 2
        with pytest.raises(Conflict):
            router.apply(table(workers, 1, 0.0))

        # Weights change under load and nobody loses a request.
        with Load(str(one.url)).running() as load:
            for epoch, weight in ((3, 0.05), (4, 1.0), (5, 0.5)):
                router.apply(table(workers, epoch, weight))
                load.more()
        assert (load.wrong, load.reconnected) == ([], 0)

        # A trip in one takes the traffic away in the other, and no user sees it.
        workers["new"].broken = True
        for i in range(60):
            assert ask(one.url, f"user{i}").status_code == 200
            if router.observed().trips:
                break
        at = time.monotonic()
        for info in (zero, one):
            seen = until(partial(alone, workspace, info), lambda o: bool(o.trips))
            assert [t.release for t in seen.trips] == [NEW]
            assert seen.weights == {"champion": 1.0, "challenger:x": 0.0}
        print(f"both know of the trip after {time.monotonic() - at:.3f} s")
        assert router.observed().weights["challenger:x"] == 0.0

        # kill -9 of one under load: who reconnects is served, by the other.
        with Load(str(one.url)).running() as load:
            load.more()
            os.kill(zero.pid, signal.SIGKILL)
            until(workspace.gateways, lambda g: len(g) == 1)
            router.apply(table(workers, 6, 0.25))  # nobody has to wait for the dead one
            load.more()
        assert load.wrong == []
        assert alone(workspace, one).epoch == 6

        # It comes back to the same port, weights and trips, told by nobody.
        zero = stack.enter_context(gateway_process(workspace))
        assert zero.url == one.url
        back = alone(workspace, zero)
        assert (back.epoch, back.weights["challenger:x"]) == (6, 0.0)
        assert [t.release for t in back.trips] == [NEW]

        # One that hangs holds up neither a table nor an untrip, and follows when it goes on.
        os.kill(zero.pid, signal.SIGSTOP)
        try:
            workers["new"].broken = False
            router.apply(table(workers, 7, 0.25, untrip=(NEW,)))
            assert router.observed().epoch == 7
        finally:
            os.kill(zero.pid, signal.SIGCONT)
        seen = until(lambda: alone(workspace, zero), lambda o: o.epoch == 7)
        assert (seen.trips, seen.weights["challenger:x"]) == ((), 0.25)

        # Each has metrics of its own.
        for info in (zero, one):
            text = httpx.get(f"{info.facts['admin_url']}/metrics").text
            assert "intonaco_gateway_routing_epoch 7" in text
        # The public port answers for both, whoever takes the connection.
        for _ in range(8):
            text = httpx.get(f"{one.url}/metrics").text
            assert told(text, "routing_epoch") == {"gateway": 7.0, "gateway-1": 7.0}
            assert told(text, "requests_total") == {
                info.name: alone(workspace, info).requests for info in (zero, one)
            }
        seen = router.observed()
        assert seen.requests == sum(alone(workspace, i).requests for i in (zero, one))

        # A head without end is not read to its end.
        try:
            status = httpx.get(f"{one.url}/livez", headers={"x-big": "y" * 2**20}).status_code
        except httpx.TransportError:
            status = 400  # closed while it was still being sent
        assert status == 400
        assert httpx.get(f"{one.url}/livez", headers={"x-big": "y" * 2**15}).status_code == 200

    records = [decode(Record, t) for t in SegmentReader(workspace.records).read(10**6)]
    assert len({r.key for r in records}) == len(records)
    assert {r.gateway for r in records} <= {"gateway", "gateway-1"}
    assert {r.gateway_epoch for r in records if r.gateway == "gateway"} <= {1, 2}
    router.close()


def test_a_shared_port_is_shared_with_nobody_else(workspace: Workspace) -> None:
    stranger, url = bind("127.0.0.1", 0, what="stranger", shared=True)
    port = url.rpartition(":")[2]
    workspace.config_file.write_text(CONFIG.replace("port: 0", f"port: {port}"))
    with stranger:
        child = subprocess.run(
            [
                *(sys.executable, "-m", "intonaco.serving.gateway.main"),
                *("--workspace", str(workspace.root)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert child.returncode == 2
    assert child.stderr.startswith(f"gateway: cannot listen on 127.0.0.1:{port}")


def test_the_supervisor_starts_them_and_starts_a_dead_one_again(workspace: Workspace) -> None:
    names = gateway_names(2)
    assert names == ("gateway", "gateway-1")
    supervisor = Supervisor(workspace, names)
    try:
        supervisor.start()
        first, second = workspace.gateways()
        assert first.url == second.url
        with pytest.raises(Conflict, match="gateway-1 of this workspace runs already"):
            Supervisor(workspace, names[1:]).start()
        os.kill(second.pid, signal.SIGKILL)
        assert until(supervisor.revive, bool) == ["gateway-1"]
        again = until(lambda: workspace.process("gateway-1"), lambda p: p is not None)
        assert again is not None
        assert again.url == first.url
        assert again.pid != second.pid
    finally:
        supervisor.stop()
    assert workspace.gateways() == []


def test_the_brake_works_with_a_gateway_dead_and_one_that_hangs(tmp_path: Path) -> None:
    world = World(tmp_path)
    first, second = two_champions(world)
    world.controller.close()
    world.workspace.config_file.write_text(CONFIG.replace("processes: 2", "processes: 3"))
    router = GatewayRouter(world.workspace, timeout_s=1.0)
    parts = replace(world.parts, router=router)
    latest = world.ledger.latest_routing()
    assert latest is not None
    assert latest.champion().release == second
    with ExitStack() as stack:
        infos = [stack.enter_context(gateway_process(world.workspace, n)) for n in gateway_names(3)]
        router.apply(latest)
        os.kill(infos[0].pid, signal.SIGKILL)
        os.kill(infos[1].pid, signal.SIGSTOP)
        try:
            assert first[:10] in brake.rollback(parts, None, "ann")
        finally:
            os.kill(infos[1].pid, signal.SIGCONT)
        infos[0] = stack.enter_context(gateway_process(world.workspace, "gateway"))
        for info in infos:  # the dead one is back, the other goes on
            seen = until(
                partial(alone, world.workspace, info),
                lambda o: o.epoch == latest.epoch + 1,
            )
            assert seen.weights == {"champion": 1.0}
    written = (world.workspace.run / "routing.json").read_bytes()
    assert decode(RoutingTable, written).champion().release == first
    assert world.ledger.champion() == first
    with pytest.raises(BackendError, match="no gateway runs"):
        router.observed()
    router.close()
    world.ledger.close()
