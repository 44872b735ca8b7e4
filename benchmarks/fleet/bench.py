"""Can one process on two cores control 20 services with 4 gateways each, and does anything grow?

Each service is a workspace with a ledger of its own, the default signals, a champion, and its
`Controller` in a thread of one process, ticking once a second as it does alone. Each gateway
reports once a second: a record of a request, its scored record (two embeddings of 512 numbers), and
a tally; and it answers over HTTP what the controller asks at each tick. All 80 gateways, 20 workers
and 20 scorers are played by one light process on the same two cores: real logs, real announcements,
the gateway's real state and admin API, no pictures.

`intonaco run controller` runs one service's controller, so today a fleet is 20 such processes; here
are their ticks in one, which says what the ticks themselves cost. `FLEET_SECONDS` (600 if not set)
are measured after `FLEET_WARM_UP` (90), in which the controllers also take in a backlog of 1,000
requests a service, with which the monitors' state has nearly its full size. `FLEET_SERVICES` sets
another number.

Lag: how much later than a second after the one before it a tick began, of all services.
`cpu_share`: cores that the controllers' process used. The ledger's growth is the slope of the last
half, files and write-ahead logs of all services; memory likewise, and from the first to the last
sample. What grows in that time is the course of the signals, which is thinned from half an hour on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parts
import psutil
from fleet import measured
from fleet.measured import Sample

from intonaco.app import open_app
from intonaco.releases import ReleaseStore
from intonaco.types import Provenance, ServingSpec
from intonaco.workspace import Workspace

HERE = Path(__file__).resolve().parent
SERVICES = int(os.environ.get("FLEET_SERVICES", "20"))
SECONDS = float(os.environ.get("FLEET_SECONDS", "600"))
WARM_UP_S = float(os.environ.get("FLEET_WARM_UP", "90"))
GATEWAYS = 4
BACKLOG = 1000
TICK_S = 1.0
SAMPLE_S = 5.0

CONFIG = """
service: NAME
extractor: {type: clip, path: extractor}
serving: {gateway: {port: 0, processes: 4}}
registry: {type: none}
tracker: {type: none}
"""


def run() -> dict[str, float]:
    """Seconds, MB (10**6 bytes), cores."""
    with tempfile.TemporaryDirectory() as folder:
        roots = [_workspace(Path(folder) / f"service-{k:02d}", k) for k in range(SERVICES)]
        names = [str(root) for root in roots]
        with (
            _child(
                "gateways.py",
                {"roots": names, "gateways": GATEWAYS, "backlog": BACKLOG, "seed": 1},
            ),
            _child("controllers.py", {"roots": names, "seconds": TICK_S}) as controllers,
        ):
            samples = list(_samples(controllers, roots))
            out, _ = controllers.communicate(timeout=60)
        ticks = json.loads(out)
    return measured.figures(ticks, samples, TICK_S)


def _workspace(root: Path, number: int) -> Path:
    """A service with a champion; its weights are a name only, as nothing is ever drawn."""
    workspace = Workspace(root)
    (root / "pipeline").mkdir(parents=True)
    (root / "extractor").mkdir()
    workspace.config_file.write_text(CONFIG.replace("NAME", root.name))
    spec = ServingSpec(
        pipeline_class="StableDiffusionXLPipeline",
        weights={"unet/model.safetensors": f"{number:064x}"},
        scheduler="EulerDiscreteScheduler",
        generation={"steps": 28, "guidance_scale": 5.0, "width": 1024, "height": 1024},
    )
    provenance = Provenance(created_at=time.time())
    release = ReleaseStore(workspace, root.name).add(root / "pipeline", spec, provenance)
    app = open_app(root)
    with app.ledger.begin() as tx:
        tx.put(release, id=release.release_id, at=time.time())
        tx.crown(release.release_id, time.time(), "the first")
    app.ledger.close()
    return root


def _samples(process: subprocess.Popen[str], roots: list[Path]) -> Iterator[Sample]:
    """One at the end of the warm-up, and every few seconds after it."""
    time.sleep(WARM_UP_S)
    of = psutil.Process(process.pid)
    end = time.monotonic() + SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError("the controllers' process ended")
        times = of.cpu_times()
        yield Sample(
            at=time.monotonic(),
            rss=of.memory_info().rss,
            cpu=times.user + times.system,
            ledger=sum(_bytes(root) for root in roots),
        )
        if time.monotonic() >= end:
            return
        time.sleep(min(SAMPLE_S, max(0.0, end - time.monotonic())))


def _bytes(root: Path) -> int:
    return sum(file.stat().st_size for file in (root / "state").glob("ledger.db*"))


@contextmanager
def _child(script: str, task: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A process of ours that has said it is ready; its input ends with the block."""
    child = subprocess.Popen(
        [sys.executable, str(HERE / script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=parts.environment(),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(task) + "\n")
        child.stdin.flush()
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{script} did not start")
        yield child
    finally:
        if not child.stdin.closed:
            child.stdin.close()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
