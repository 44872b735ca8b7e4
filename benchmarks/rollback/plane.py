"""A service of real processes for drills: gateway, workers of a tiny model, scorer, controller.

Everything is started by the supervisor, as by ``intonaco up``. A drill begins where a retried
rollout begins, with a release that is to be staged; what comes before that (training, evaluation,
the gate) has no part in a rollback.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import parts

from intonaco import beginning, commands, loop
from intonaco.app import App, open_app
from intonaco.codec import decode, digest
from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.segment_log import SegmentReader
from intonaco.supervisor import Supervisor
from intonaco.types import (
    Action,
    Candidate,
    Cause,
    Plan,
    Provenance,
    Record,
    Release,
    Rollout,
    StepKind,
    Update,
    Verdict,
)
from intonaco.workspace import Workspace

RATE = 20.0  # requests a second
PATIENCE_S = 120.0
GENERATION = {"steps": 2, "guidance_scale": 1.5, "width": 32, "height": 32}

# Margins are wide, and times judged by the share of slow answers, so that the drills in the bake
# come to it before they break; the other drills never get so far: their step asks for more users
# than they have before they break, or is never proven.
CONFIG = """
service: bench
model:
  name: bench
  path: model
  generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}
serving:
  gateway: {port: 0, challenger_timeout_s: 5, breaker_failures: 3}
  faults: FAULTS
EXTRACTOR
monitoring: {signals: {errors: {of: errors, direction: up, reference: 1000000}}}
approval: {mode: auto}
rollout:
  metrics: [errors, slow, clip_score]
  margins: {errors: 0.2, slow: 0.5, clip_score: 0.4}
  harm_tolerance: 0.05
  slower_than: 10
  bake_seconds: 600
  drain_seconds: 35
  steps:
    - {weight: 0.5, min_seconds: 1, min_units: 100}
    - {weight: 1.0, min_seconds: 1, min_units: 0}
registry: {type: none}
tracker: {type: none}
"""

BUILD = """
import sys
from pathlib import Path
from intonaco.demo.data import WORDS
from intonaco.demo.extractor import MAX_TOKENS, build, save
from intonaco.demo.model import build_pipeline, build_tokenizer
model, extractor = map(Path, sys.argv[1:])
build_pipeline(0).save_pretrained(model)
words = build_tokenizer(WORDS, MAX_TOKENS)
save(build(words).eval(), words, extractor)
"""


@dataclass
class Users:
    """Asks for pictures at random times, each time as another user, in a thread of its own."""

    url: str
    rate: float = RATE
    statuses: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @contextmanager
    def asking(self) -> Iterator[Users]:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(60)

    async def _run(self) -> None:
        chance = random.Random(0)
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            for k in itertools.count():
                if self._stop.is_set():
                    return
                await asyncio.sleep(chance.expovariate(self.rate))
                body = {"prompt": f"a handwritten {k % 97}", "user": f"user {k}", "seed": k}
                group.create_task(self._ask(client, body))

    async def _ask(self, client: httpx.AsyncClient, body: object) -> None:
        try:
            answer = await client.post(f"{self.url}/v1/images/generations", json=body)
            status = str(answer.status_code)
            if status == "200" and not answer.json()["data"][0]["b64_json"].startswith("iVBOR"):
                status = "no picture"
        except (httpx.HTTPError, ValueError, LookupError) as error:
            status = type(error).__name__
        self.statuses[status] += 1


@dataclass
class Plane:
    """A service that runs, with its users."""

    app: App
    supervisor: Supervisor
    users: Users
    reader: SegmentReader
    seen: list[Record] = field(default_factory=list)

    @property
    def workspace(self) -> Workspace:
        return self.app.workspace

    # ------------------------------------------------------------------ looking

    def records(self) -> list[Record]:
        """All that the gateway has written."""
        self.seen += (decode(Record, line) for line in self.reader.read(10**6))
        return self.seen

    def update(self, release: str) -> Update:
        return next(u for u in self.app.ledger.all(Update) if u.chosen == release)

    def rollout(self, release: str) -> Rollout | None:
        found = [r for r in self.app.ledger.all(Rollout) if r.challenger == release]
        return found[-1] if found else None

    def rolled_back_at(self, release: str) -> float:
        """When the controller decided to. Raises RuntimeError if it did not."""
        rollout = self.rollout(release)
        for event in self.app.ledger.events(kind="rollout.rolled_back", limit=100_000):
            if rollout is not None and event.subject == rollout.rollout_id:
                return event.at
        raise RuntimeError(f"{release[:10]} was not rolled back: {rollout}")

    def until_ended(self, release: str) -> Update:
        """The update, once its rollout is over and its worker is gone."""
        return parts.until(
            lambda: self.update(release), lambda u: u.phase.final, "the update", PATIENCE_S
        )

    # ------------------------------------------------------------------ acting

    def begin(self, name: str) -> Release:
        """Have the release of that drill rolled out. Records of those before are forgotten."""
        self.records()
        self.seen.clear()
        ledger, now = self.app.ledger, time.time()
        store = ReleaseStore(self.workspace, self.app.config.service)
        release = next(r for r in store.list() if r.provenance.recipe == name)
        plan = Plan(
            plan_id=digest(["drill", name])[:12],
            service_id=self.app.config.service,
            at=now,
            action=Action.ASSEMBLE,
            cause=Cause.NEW_TECHNIQUE,
            reason=f"drill {name}",
            requested_by="bench",
        )
        candidate = Candidate(
            name=name, release_id=release.release_id, verdict=Verdict.PASS, reasons=("a drill",)
        )
        update = loop.restage(plan, candidate, ledger.champion(), 1, now)
        with ledger.begin() as tx:
            tx.put(release, id=release.release_id, at=now)
            beginning.begin_update(self.app.parts(), tx, update, now, actor="bench")
        return release

    def kill_controller(self) -> float:
        """SIGKILL; when it was dead. Nobody starts it again but ``revive``."""
        child = self.supervisor.children["controller"].process
        child.kill()
        child.wait()
        return time.time()

    def revive(self) -> None:
        """What ``intonaco up`` does twice a second."""
        self.supervisor.revive()

    def rollback(self) -> float:
        """``intonaco rollback`` as a person types it; when. Raises RuntimeError."""
        asked = time.time()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "intonaco.cli.main", "rollback"),
                *("--workspace", str(self.workspace.root)),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"intonaco rollback: {done.stdout}{done.stderr}")
        return asked


@contextmanager
def running(
    root: Path, faults: Mapping[str, str], *, scorer: bool, rate: float = RATE
) -> Iterator[Plane]:
    """A service with a champion and users, and one release for each drill of ``faults`` (name to
    fault, empty for none). Without ``scorer`` nothing is scored and no rollout can be proven."""
    workspace = Workspace(root)
    workspace.root.mkdir()
    parts.python(BUILD, str(root / "model"), str(root / "extractor"))
    given = ", ".join(f'{name}: ["{fault}"]' for name, fault in faults.items() if fault)
    text = CONFIG.replace("FAULTS", f"{{{given}}}")
    extractor = "extractor: {type: clip, path: extractor}" if scorer else ""
    workspace.config_file.write_text(text.replace("EXTRACTOR", extractor))
    app = open_app(root)
    store = ReleaseStore(workspace, app.config.service)
    for k, name in enumerate(faults, 1):
        # Another default makes another release, which draws as fast as the champion.
        generation = {**GENERATION, "guidance_scale": GENERATION["guidance_scale"] + k / 1000}
        spec = read_serving_spec(root / "model", generation=generation)
        store.add(root / "model", spec, Provenance(created_at=time.time(), recipe=name))
    names = ["forkserver", "gateway", *(["scorer"] if scorer else []), "controller"]
    supervisor = Supervisor(workspace, names)
    try:
        supervisor.start()
        parts.until(
            app.ledger.active_rollout,
            lambda r: r is not None and bool(r.history) and r.history[-1].kind is StepKind.BAKE,
            "the first release",
            PATIENCE_S,
        )
        commands.submit(app.ledger, time.time(), "rollout.skip", "bench")
        parts.until(app.ledger.active_updates, lambda u: not u, "the end of its bake", PATIENCE_S)
        gateway = workspace.process("gateway")
        assert gateway is not None
        with Users(str(gateway.url), rate).asking() as users:
            yield Plane(app, supervisor, users, SegmentReader(workspace.records))
    finally:
        supervisor.stop()
        app.ledger.close()
