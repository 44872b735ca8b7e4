"""Everything of many services but their controller, in one light process.

``python gateways.py`` with one JSON object on standard input: roots (workspaces), gateways (of
each), backlog (requests of each service that were written down before), seed. Says ``ready`` when
all can be asked, and goes on until its input ends.

Of a gateway it has the admin API, over the real state and the real announcements, and the logs of
records and tallies; of a worker what the backend asks of it; of the scorer its log. No picture is
made, and nobody is routed: a request a second and gateway is written down as if it had been.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from intonaco.codec import as_json, encode
from intonaco.messages import PROTOCOL_VERSION, Attestation
from intonaco.releases import ReleaseStore
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.admin import Admin
from intonaco.serving.gateway.state import GatewayState
from intonaco.supervisor import gateway_names
from intonaco.types import Attempt, Outcome, Record, Release, ScoredRecord, Tally
from intonaco.workspace import Workspace

WIDTH = 512  # of an embedding of CLIP ViT-B/32
TOPICS = 6
EXTRACTOR = "e" * 64
EVERY_S = 1.0


@dataclass
class Pictures:
    """Embeddings and scores of a service's traffic, which does not change: a few topics and noise
    around each."""

    seed: int
    dice: np.random.Generator = field(init=False)
    topics: np.ndarray[tuple[int, int], np.dtype[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        self.dice = np.random.default_rng(self.seed)
        self.topics = self.dice.normal(size=(TOPICS, WIDTH)) / np.sqrt(WIDTH)

    def scored(self, record: Record, topic: int) -> ScoredRecord:
        return ScoredRecord(
            record=record,
            prompt_embedding=self._near(topic),
            image_embedding=self._near(topic),
            scores={"clip": round(float(self.dice.normal(0.28, 0.03)), 6)},
            extractor=EXTRACTOR,
            image_hash=f"{self.dice.integers(2**63):016x}",
            image_facts={"contrast": 0.5, "black": 0.0, "white": 0.0},
            image_broken=False,
        )

    def _near(self, topic: int) -> tuple[float, ...]:
        row = self.topics[topic] + self.dice.normal(size=WIDTH) * 0.3 / np.sqrt(WIDTH)
        row /= np.linalg.norm(row)
        return tuple(round(float(v), 6) for v in row)


@dataclass
class Gateway:
    """What one gateway writes."""

    name: str
    service: str
    release: Release
    state: GatewayState
    records: SegmentWriter
    tallies: SegmentWriter

    def report(self, dice: random.Random, topic: int, now: float) -> Record:
        """A second with one request in it, ``now`` at its end: its record and the tally."""
        took = dice.uniform(2.0, 2.6)
        table = self.state.table
        attempt = Attempt(
            arm="champion",
            release=self.release.release_id,
            outcome=Outcome.OK,
            started_at=now - took,
            seconds=took,
            service_seconds=took * 0.95,
            denoise_seconds=took * 0.9,
            batch_size=1,
            padded_size=1,
            gpu_seconds=took,
        )
        record = Record(
            gateway=self.name,
            gateway_epoch=self.records.epoch,
            seq=self.records.seq,
            service_id=self.service,
            request_id=f"{self.name}-{self.records.epoch}-{self.records.seq}",
            at=now,
            unit=f"{dice.randrange(2**64):032x}",
            assigned_arm="champion",
            probability=1.0,
            routing_epoch=table.epoch if table else 0,
            salt=table.salt if table else "",
            attempts=(attempt,),
            served_by=self.release.release_id,
            served_arm="champion",
            status=200,
            seconds=took,
            prompt=f"topic {topic}, picture {dice.randrange(10**6)}",
            seed=dice.randrange(2**31),
            steps=28,
            guidance_scale=5.0,
            width=1024,
            height=1024,
        )
        self.records.append(encode(record))
        self.state.requests += 1
        tally = Tally(
            gateway=self.name,
            gateway_epoch=self.tallies.epoch,
            seq=self.tallies.seq,
            service_id=self.service,
            at=now,
            requests=1,
            failed=0,
            images=1,
            in_flight=2,
            record_epoch=self.records.epoch,
            record_seq=self.records.seq,
        )
        self.tallies.append(encode(tally))
        return record


@dataclass
class Service:
    """One workspace's processes."""

    workspace: Workspace
    release: Release
    gateways: list[Gateway]
    scores: SegmentWriter
    pictures: Pictures
    dice: random.Random

    @classmethod
    def begin(cls, root: Path, gateways: int, seed: int) -> Service:
        workspace = Workspace(root)
        release = ReleaseStore(workspace, root.name).list()[0]
        made = [
            Gateway(
                name=name,
                service=root.name,
                release=release,
                state=GatewayState(workspace, 3),
                records=SegmentWriter(workspace.records, name),
                tallies=SegmentWriter(workspace.tallies, name),
            )
            for name in gateway_names(gateways)
        ]
        scores = SegmentWriter(workspace.scores, "scorer")
        return cls(workspace, release, made, scores, Pictures(seed), random.Random(seed))

    def routes(self) -> Mount:
        """Where the controller finds them."""
        found: list[Mount | Route] = []
        for gateway in self.gateways:
            admin = Admin(gateway.state, self.workspace.admin_token())
            found.append(
                Mount(
                    f"/{gateway.name}/admin",
                    routes=[
                        Route("/routing", admin.routing, methods=["PUT"]),
                        Route("/observed", admin.observed, methods=["GET"]),
                    ],
                )
            )
        found += [Route("/worker/readyz", self._ready), Route("/worker/attest", self._attest)]
        return Mount(f"/{self.workspace.root.name}", routes=found)

    def announce(self, url: str) -> None:
        base = f"{url}/{self.workspace.root.name}"
        for gateway in self.gateways:
            self.workspace.announce(gateway.name, url=base, admin_url=f"{base}/{gateway.name}")
        name = f"worker-{self.release.short}"
        facts = {"release_id": self.release.release_id, "ready": True}
        self.workspace.announce(name, url=f"{base}/worker", **facts)

    async def report(self) -> None:
        """A second of all its gateways, spread over that second."""
        for gateway in self.gateways:
            self._one(gateway, time.time())
            await asyncio.sleep(0)

    def backlog(self, requests: int) -> None:
        """What was written before anybody read it."""
        seconds = requests // len(self.gateways)
        for k in range(seconds, 0, -1):
            for gateway in self.gateways:
                self._one(gateway, time.time() - k * EVERY_S)

    def _one(self, gateway: Gateway, now: float) -> None:
        topic = self.dice.randrange(TOPICS)
        record = gateway.report(self.dice, topic, now)
        self.scores.append(encode(self.pictures.scored(record, topic)))

    async def _ready(self, request: Request) -> Response:
        return Response('{"ready": true, "in_flight": 0}', media_type="application/json")

    async def _attest(self, request: Request) -> Response:
        attestation = Attestation(
            release_id=self.release.release_id,
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            serving=as_json(self.release.serving),
            versions={},
            load_seconds=1.0,
            peak_memory_bytes=2**30,
        )
        return Response(encode(attestation), media_type="application/json")


async def main(task: dict[str, object]) -> None:
    services = [
        Service.begin(Path(root), int(str(task["gateways"])), int(str(task["seed"])) + k)
        for k, root in enumerate(list(task["roots"]))  # type: ignore[call-overload]
    ]
    for service in services:
        service.backlog(int(str(task["backlog"])))
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    config = uvicorn.Config(
        Starlette(routes=[s.routes() for s in services]),
        log_level="warning",
        access_log=False,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    for service in services:
        service.announce(f"http://127.0.0.1:{listening.getsockname()[1]}")
    print("ready", flush=True)
    reports = [asyncio.create_task(_keep(s, k / len(services))) for k, s in enumerate(services)]
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait([ended, *reports], return_when=asyncio.FIRST_COMPLETED)
    for task_ in reports:
        if task_.done():
            task_.result()  # raises what ended it
        task_.cancel()
    server.should_exit = True
    await serving


async def _keep(service: Service, offset: float) -> None:
    """A report a second, at the second's same part."""
    due = time.monotonic() + offset * EVERY_S
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await service.report()
        due += EVERY_S


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
