"""Does the data plane lose a request, or grow, under ten minutes of everything at once?

Two releases (the demo's pipeline with random weights, two workers each) behind one gateway process.
For ten minutes (`SOAK_SECONDS` sets another time) users ask for one or two pictures each, at random
times, as often as about half of what the workers can make, while

- every 5 s a routing table with another weight for the challenger is applied;
- every 20 s a worker, champion's or challenger's in turn, is killed (SIGKILL) and started anew,
  once the one killed before is back;
- every 120 s the gateway is killed too. Its clients see their connection break, which nothing
  behind that connection can hide; they ask again as the `openai` client does, and only a request
  without an answer after that is lost. They are counted as `client_retries`.

`requests_lost`: requests with any other answer than 200. Memory: largest resident size in the last
third over that in the first third after a warm-up, for the gateway (its last life) and for
workers that lived through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import parts
import psutil

from intonaco.config import Gateway, Serving
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.types import Arm, ArmRole, Release, RoutingTable
from intonaco.workspace import Workspace

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
WARM_UP_S = 20.0
WEIGHT_EVERY_S = 5.0
KILL_EVERY_S = 20.0
GATEWAY_EVERY_S = 120.0
RATE = 12.0  # requests a second
TRIES = 3  # of the client, as the openai client's max_retries=2
WEIGHTS = (0.05, 0.25, 0.5, 1.0, 0.5, 0.0)
GENERATION = {"steps": 4, "guidance_scale": 1.5, "width": 32, "height": 32}
SIZES = ("32x32", "32x32", "64x64")

CONFIG = """
service: bench
model: {name: bench, generation: {steps: 4, guidance_scale: 1.5, width: 32, height: 32}}
serving: {gateway: {port: PORT}}
"""

BUILD = """
import sys
from intonaco.demo.model import build_pipeline
for seed, folder in enumerate(sys.argv[1:]):
    build_pipeline(seed).save_pretrained(folder)
"""


@dataclass
class Plane:
    """Everything under test."""

    workspace: Workspace
    releases: tuple[Release, Release]
    backend: LocalServingBackend
    router: GatewayRouter
    gateway: subprocess.Popen[bytes] | None = None
    url: str = ""
    epoch: int = 0
    weight: float = 0.0
    kills: int = 0

    def start_gateway(self) -> None:
        command = [sys.executable, "-m", "intonaco.serving.gateway.main"]
        child = subprocess.Popen(
            [*command, "--workspace", str(self.workspace.root)], stderr=subprocess.DEVNULL
        )
        info = parts.until(
            lambda: self.workspace.process("gateway"),
            lambda found: found is not None and found.pid == child.pid,
            "gateway",
            seconds=60,
        )
        assert info is not None
        self.gateway, self.url = child, str(info.url)

    def route(self) -> None:
        """The newest table: workers that are ready now, the weight in force."""
        champion, challenger = (self.backend.status(r.release_id).urls for r in self.releases)
        if not champion or not challenger:
            return
        self.epoch += 1
        arms = (
            _arm(ArmRole.CHAMPION, self.releases[0], champion, 1 - self.weight),
            _arm(ArmRole.CHALLENGER, self.releases[1], challenger, self.weight),
        )
        untrip = tuple(r.release_id for r in self.releases)
        self.router.apply(
            RoutingTable(
                service_id="bench", epoch=self.epoch, salt="soak", arms=arms, untrip=untrip
            )
        )

    def kill_worker(self) -> None:
        """SIGKILL one replica and start it anew, as a controller would. Not while the other one
        still starts: nothing could answer then."""
        release = self.releases[self.kills % 2]
        if not self.backend.status(release.release_id).ready:
            self.backend.deploy(release)  # the one killed may have looked alive a moment longer
            return
        replica = "" if (self.kills // 2) % 2 else "-1"
        info = self.workspace.process(f"worker-{release.short}{replica}")
        self.kills += 1
        if info is not None:
            psutil.Process(info.pid).kill()
        self.backend.deploy(release)

    def kill_gateway(self) -> None:
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait()
        self.start_gateway()

    def stop(self) -> None:
        if self.gateway is not None:
            self.gateway.terminate()
            self.gateway.wait(30)
        for release in self.releases:
            self.backend.retire(release.release_id)
        self.router.close()
        self.backend.close()


@dataclass
class Seen:
    statuses: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    times: list[float] = field(default_factory=list)
    memory: dict[tuple[str, int], list[tuple[float, int]]] = field(default_factory=dict)


def run() -> dict[str, float]:
    """Counts, seconds, ratios."""
    with tempfile.TemporaryDirectory() as folder, _plane(Path(folder)) as plane:
        seen = Seen()
        asyncio.run(_soak(plane, seen))
        lost = sum(n for status, n in seen.statuses.items() if status != "200")
        if lost:
            print("answers:", dict(seen.statuses), file=sys.stderr)
        percentiles = statistics.quantiles(seen.times, n=100)
        return {
            "seconds": SECONDS,
            "requests": float(sum(seen.statuses.values())),
            "requests_lost": float(lost),
            "client_retries": float(seen.retries),
            "worker_kills": float(plane.kills),
            "weight_changes": float(plane.epoch),
            "p50_s": percentiles[49],
            "p99_s": percentiles[98],
            "gateway.memory_last_over_first_third": _growth(seen, "gateway"),
            "worker.memory_last_over_first_third": _growth(seen, "worker"),
        }


async def _soak(plane: Plane, seen: Seen) -> None:
    end = time.monotonic() + SECONDS
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        for job in (_weights(plane, end), _kills(plane, end), _gateways(plane, end)):
            group.create_task(job)
        group.create_task(_watch(plane, seen, end))
        await _users(client, plane, seen, end)


async def _users(client: httpx.AsyncClient, plane: Plane, seen: Seen, end: float) -> None:
    chance = random.Random(0)
    async with asyncio.TaskGroup() as group:
        for k in itertools.count():
            if time.monotonic() > end:
                return
            await asyncio.sleep(chance.expovariate(RATE))
            body = {
                "prompt": f"a handwritten {k % 97}",
                "user": f"user {chance.randrange(500)}",
                "seed": k,
                "n": 1 + (chance.random() < 0.2),
                "size": chance.choice(SIZES),
            }
            group.create_task(_user(client, plane, seen, body))


async def _user(client: httpx.AsyncClient, plane: Plane, seen: Seen, body: object) -> None:
    start = time.monotonic()
    status = "none"
    for again in range(TRIES):
        if again:
            seen.retries += 1
            await asyncio.sleep(0.5 * 2**again)
        try:
            answer = await client.post(f"{plane.url}/v1/images/generations", json=body)
        except httpx.HTTPError as error:
            status = type(error).__name__
            continue
        status = str(answer.status_code)
        break
    seen.statuses[status] += 1
    seen.times.append(time.monotonic() - start)


async def _weights(plane: Plane, end: float) -> None:
    for weight in itertools.cycle(WEIGHTS):
        if time.monotonic() > end:
            return
        plane.weight = weight
        with contextlib.suppress(Exception):  # the gateway may be down just now
            await asyncio.to_thread(plane.route)
        await asyncio.sleep(WEIGHT_EVERY_S)


async def _kills(plane: Plane, end: float) -> None:
    while time.monotonic() + KILL_EVERY_S < end:
        await asyncio.sleep(KILL_EVERY_S)
        await asyncio.to_thread(plane.kill_worker)


async def _gateways(plane: Plane, end: float) -> None:
    while time.monotonic() + GATEWAY_EVERY_S < end:
        await asyncio.sleep(GATEWAY_EVERY_S)
        await asyncio.to_thread(plane.kill_gateway)


async def _watch(plane: Plane, seen: Seen, end: float) -> None:
    while time.monotonic() < end:
        await asyncio.sleep(2.0)
        for path in list(plane.workspace.run.glob("*.json")):
            kind = path.stem.partition("-")[0]
            info = plane.workspace.process(path.stem) if kind in ("gateway", "worker") else None
            if info is None:
                continue
            with contextlib.suppress(psutil.Error):
                resident = psutil.Process(info.pid).memory_info().rss
                seen.memory.setdefault((kind, info.pid), []).append((time.monotonic(), resident))


def _growth(seen: Seen, kind: str) -> float:
    """Of the process of that kind that lived longest."""
    lives = [found for (k, _), found in seen.memory.items() if k == kind]
    longest = max(lives, key=lambda life: life[-1][0] - life[0][0])
    sizes = [size for at, size in longest if at >= longest[0][0] + WARM_UP_S]
    third = max(1, len(sizes) // 3)
    return max(sizes[-third:]) / max(sizes[:third])


def _arm(role: ArmRole, release: Release, urls: tuple[str, ...], weight: float) -> Arm:
    name = "champion" if role is ArmRole.CHAMPION else "challenger:b"
    return Arm(name=name, role=role, release=release.release_id, urls=urls, weight=weight)


@contextmanager
def _plane(root: Path) -> Iterator[Plane]:
    folders = (root / "a", root / "b")
    parts.python(BUILD, *map(str, folders))
    workspace = Workspace(root / "workspace")
    workspace.root.mkdir()
    # A fixed port, so that clients find a restarted gateway where it was.
    workspace.config_file.write_text(CONFIG.replace("PORT", str(parts.free_port())))
    first, second = (parts.add_release(workspace, f, GENERATION) for f in folders)
    backend = LocalServingBackend(workspace, Serving(replicas=2, gateway=Gateway(port=0)))
    plane = Plane(workspace, (first, second), backend, GatewayRouter(workspace))
    try:
        for release in plane.releases:
            backend.deploy(release)
        for release in plane.releases:
            parts.ready(backend, release)
        plane.start_gateway()
        plane.route()
        yield plane
    finally:
        plane.stop()
