"""A service whose state can be written down in the middle of anything it does, and opened again by
another version.

A recording is one gzipped JSON: the ledger as SQL, the workspace's files, what the twins outside
know, the time, and how the update that was running ended in the run that it was taken from. Twins
are kept in words of their own here, not as Python objects: a version that changes them still reads
what an older one recorded.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tests.assessed import assessed
from tests.integration.test_loop_in_memory import CONFIG
from tests.integration.test_review_in_memory import Reviewed

from intonaco import commands, config
from intonaco.clock import FakeClock
from intonaco.codec import as_json, decode
from intonaco.datasets.store import LocalDatasetStore
from intonaco.jobs import job_folder
from intonaco.ledger import Ledger, Transaction
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.testing.training import MemoryJob
from intonaco.types import (
    Assessment,
    BreakerTrip,
    JobSpec,
    JobStatus,
    Json,
    Phase,
    Review,
    Rollout,
    RoutingTable,
    StepKind,
    Update,
)

FOLDER = Path(__file__).parent.parent / "fixtures" / "upgrade"
ROLLOUT = """rollout:
  drain_seconds: 60
  bake_seconds: 4
  holdback: 0.1
  steps:
    - {kind: stage, min_seconds: 2}
    - {kind: shadow, weight: 0.3, min_seconds: 2, min_units: 0}
    - {weight: 0.2, min_seconds: 2, min_units: 0}
    - {kind: pause, min_seconds: 2}
    - {kind: approve, deadline_s: 1000}
    - {kind: analysis}
    - {weight: 1.0, min_seconds: 2, min_units: 0}
"""
LEFT_OUT = ("state", "run", "logs", "cache", "environments", "scratch")  # folders
DROPPED = ("lock.txt", "state.db", "state.db-wal", "state.db-shm")
WORKSPACE = "@WORKSPACE@"
HERE = "e" * 64  # the environment that all of it happens in, whatever this one is


@contextmanager
def one_environment() -> Iterator[None]:
    """The digest of this interpreter's packages is part of a release's id: keep it out of it."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("intonaco") and hasattr(module, "environment_lock"):
                stack.enter_context(patch.object(module, "environment_lock", lambda: HERE))
        yield


class Told(Reviewed):
    """What happens to it is always the same: a first release; a technique that people compare,
    approve and promote; one that is rolled back while it bakes; a way back asked for by hand."""

    def __post_init__(self) -> None:
        self.prompts, self.approval = 12, "ask"
        super().__post_init__()
        # What differs each time else: the key that pictures are shuffled by, and times of files.
        self.workspace.run.mkdir(exist_ok=True)
        (self.workspace.run / "instance.key").write_text("0" * 64)
        for file in self.root.rglob("*"):
            os.utime(file, (0, 0))
        text = CONFIG[: CONFIG.index("rollout:")] + ROLLOUT + CONFIG[CONFIG.index("registry:") :]
        text = text.replace("APPROVAL", "ask").replace(
            "floor_adherence: 0.5}",
            "floor_adherence: 0.5, review: {required: true, timeout_s: 100000}}",
        )
        object.__setattr__(self.parts, "config", config.parse(text))
        store = LocalDatasetStore(self.workspace.datasets, self.clock)
        object.__setattr__(self.parts, "datasets", store)
        self.controller.close()
        self.controller = self._controller()

    def _report(self, spec: JobSpec) -> dict[str, Json]:
        report = super()._report(spec)
        for number, file in enumerate(sorted(_images(self, spec).glob("*.npz"))):
            kept = dict(np.load(file))  # pictures of one colour: a fixture is to be small
            kept["images"] = np.full_like(kept["images"], 60 * number)
            np.savez_compressed(file, **kept)
        return report

    @contextmanager
    def evidence(self) -> Iterator[None]:
        def assess(analysis: RolloutAnalysis) -> Any:
            rollout = self.ledger.find(Rollout, analysis.rollout_id)
            bakes = rollout is not None and rollout.history and rollout.history[-1].kind == "bake"
            bad = bakes and len(self.updates()) == 3
            found = Assessment.HARMFUL if bad else Assessment.NON_INFERIOR
            return assessed(analysis.metrics, found)

        with patch.object(RolloutAnalysis, "assess", assess):
            yield

    # ------------------------------------------------------------------ people

    def person(self) -> None:
        """Whoever is on call says what is to be said now, once."""
        updates, rollouts = self.updates(), self.ledger.all(Rollout)
        last = updates[-1] if updates else None
        if last is not None and last.phase is Phase.APPROVE:
            self.say(f"approve {len(updates)}", "update.approve", update=last.update_id)
        reviews = self.ledger.all(Review)
        if last is not None and last.phase is Phase.REVIEW and reviews and self.once("vote"):
            for name in ("ann", "bob"):
                self.vote(name, "fewer")
        running = rollouts[-1] if rollouts and not rollouts[-1].status.final else None
        if running and running.history and running.steps[running.step].kind is StepKind.APPROVE:
            self.say(f"go on {len(rollouts)}", "rollout.approve", reason="seen")
        if last is not None and not last.phase.final:
            return
        technique = {"action": "assemble", "reason": "fewer steps"}
        match len(updates):
            case 0:
                self.say("first", "update.start", reason="first")
            case 1 | 2:
                fewer = {"name": "fewer", "generation": {"steps": 10 - len(updates)}}
                self.say(f"update {len(updates)}", "update.start", **technique, assemble=fewer)
            case 3:
                self.say("back", "rollback", to=self.ledger.tenures()[0].release_id)

    def say(self, once: str, kind: str, **arguments: Json) -> None:
        if self.once(once):
            commands.submit(self.ledger, self.clock.now(), kind, "ann", arguments)

    def once(self, what: str) -> bool:
        said = self.root / "person.log"
        lines = said.read_text().splitlines() if said.exists() else []
        if what + str(len(self.updates())) in lines:
            return False
        said.write_text("\n".join([*lines, what + str(len(self.updates()))]) + "\n")
        return True

    # ------------------------------------------------------------------ how it went

    def names(self) -> dict[str, str]:
        """Release ids in the order in which they came: ids differ where packages do."""
        ids = [c.release_id for u in self.updates() for c in u.candidates if c.release_id]
        return {release: f"release {n}" for n, release in enumerate(dict.fromkeys(ids))}

    def ended(self, update: Update) -> dict[str, Json]:
        """What must be the same whoever finished an update."""
        names = self.names()
        rollout = self.ledger.find(Rollout, update.rollout_id) if update.rollout_id else None
        settled, reserved = self.ledger.spent()
        return {
            "phase": str(update.phase),
            "chosen": names.get(str(update.chosen)),
            "verdicts": [str(c.verdict) for c in update.candidates],
            "rollout": rollout and [str(rollout.status), [str(h.kind) for h in rollout.history]],
            "tenures": [names[t.release_id] for t in self.ledger.tenures()],
            "champions": sum(t.until is None for t in self.ledger.tenures()),
            "serves": [
                [a.role.value, names[a.release], a.weight]
                for a in (self.router.table.arms if self.router.table else ())
            ],
            "jobs": len(self.training.jobs),
            "money": [round(settled, 6), round(reserved, 6)],
        }


def _images(world: Told, spec: JobSpec) -> Path:
    return job_folder(world.workspace, spec.key) / "out" / "images"


# ------------------------------------------------------------------------------------ recording


def record(root: Path) -> dict[str, dict[str, Json]]:
    """Tell the story to its end; a recording at the first commit of each moment, by its name."""
    found: dict[str, dict[str, Json]] = {}
    begun: dict[str, str] = {}  # update that each moment belongs to
    with one_environment():
        world = Told(root)
        begin = world.ledger.begin

        @contextmanager
        def watched(
            fence: int | None = None, *, wait_s: float | None = None
        ) -> Iterator[Transaction]:
            with begin(fence, wait_s=wait_s) as tx:
                yield tx
            name, update = moment(world)
            if name and name not in found:
                found[name], begun[name] = taken(world), update

        world.ledger.begin = watched  # type: ignore[method-assign]
        with world.evidence():
            for _ in range(400):
                world.tick()
                world.person()
                if len(world.updates()) == 4 and world.updates()[-1].phase.final:
                    break
                for name, update in list(begun.items()):
                    if world.ledger.get(Update, update).phase.final:
                        found[name]["ended"] = world.ended(world.ledger.get(Update, update))
                        del begun[name]
            for name, update in begun.items():
                found[name]["ended"] = world.ended(world.ledger.get(Update, update))
        world.close()
    return found


def moment(world: Told) -> tuple[str, str]:
    """What is going on, in a word or two, and the update; "" where nothing is."""
    active = world.ledger.active_updates()
    if not active:
        return "", ""
    update = active[-1]
    rollout = world.ledger.find(Rollout, update.rollout_id) if update.rollout_id else None
    name = str(update.phase)
    if rollout is not None and rollout.status.final:
        name = f"{rollout.status}-retiring"
    elif rollout is not None and rollout.history:
        kind = rollout.steps[rollout.step].kind
        name = f"{update.phase}-{kind}"
    first = ("dataset", "train", "rollout-canary")
    back = ("stage", "rollout-canary", "bake-bake")
    match len(world.updates()):
        case 1:  # the others are those of the second, which has a champion beside it
            name = {n: n if n in first[:2] else f"first-{n}" for n in first}.get(name, "")
        case 4:
            name = f"back-{name}" if name in back else ""
    return name, update.update_id


def taken(world: Told) -> dict[str, Json]:
    """All of a service, as JSON."""
    copy = sqlite3.connect(":memory:")
    with sqlite3.connect(world.workspace.ledger) as ledger:
        ledger.backup(copy)
    ledger.close()
    sql = list(copy.iterdump())
    copy.close()
    found: dict[str, Json] = {
        "time": world.clock.now(),
        "ledger": sql,
        "files": {
            path.relative_to(world.root).as_posix(): _text(path.read_bytes())
            for path in sorted(world.root.rglob("*"))
            if _kept(path.relative_to(world.root)) and path.is_file()
        },
        "outside": {
            "jobs": [
                {"spec": as_json(j.spec), "status": as_json(j.status), "submits": j.submits}
                for j in world.training.jobs.values()
            ],
            "deployed": dict(world.serving.deployments),
            "polls": dict(world.serving._polls),
            "draining": sorted(world.serving.draining),
            "table": as_json(world.router.table) if world.router.table else None,
            "trips": [as_json(t) for t in world.router.trips.values()],
            "published": {
                release: {name: _text(data) for name, data in files.items()}
                for release, files in world.registry.published.items()
            },
            "tags": world.registry._tags,
            "aliases": world.registry.aliases,
        },
    }
    # Wherever it was recorded: job specifications hold whole paths.
    told: dict[str, Json] = json.loads(json.dumps(found).replace(str(world.root), WORKSPACE))
    return told


def _kept(path: Path) -> bool:
    return path.parts[0] not in LEFT_OUT and path.name not in DROPPED and "trees" not in path.parts


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ------------------------------------------------------------------------------------ opening


def opened(recording: dict[str, Any], root: Path) -> Told:
    """The service as it was, with nothing but what the recording holds."""
    recording = json.loads(json.dumps(recording).replace(WORKSPACE, str(root)))
    world = Told(root, clock=FakeClock(at=recording["time"]))
    world.controller.close()
    world.ledger.close()
    for file in world.workspace.ledger.parent.glob("ledger.db*"):
        file.unlink()
    ledger = sqlite3.connect(world.workspace.ledger)
    ledger.executescript("\n".join(recording["ledger"]))
    ledger.close()
    for name, text in recording["files"].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(base64.b64decode(text))
    object.__setattr__(world.parts, "ledger", Ledger.open(world.workspace.ledger, "svc"))
    world.ledger = world.parts.ledger
    outside = recording["outside"]
    for job in outside["jobs"]:
        spec = decode(JobSpec, json.dumps(job["spec"]))
        status = decode(JobStatus, json.dumps(job["status"]))
        world.training.jobs[spec.key] = MemoryJob(spec, status, job["submits"])
    world.serving.deployments.update(outside["deployed"])
    world.serving._polls.update(outside["polls"])
    world.serving.draining.update(outside["draining"])
    if outside["table"] is not None:
        world.router.table = decode(RoutingTable, json.dumps(outside["table"]))
    for trip in outside["trips"]:
        kept = decode(BreakerTrip, json.dumps(trip))
        world.router.trips[kept.release] = kept
    for release, files in outside["published"].items():
        world.registry.published[release] = {n: base64.b64decode(t) for n, t in files.items()}
    world.registry._tags.update(outside["tags"])
    world.registry.aliases.update(outside["aliases"])
    world.controller = world._controller()
    return world


def finished(recording: dict[str, Any], root: Path) -> dict[str, Json]:
    """Open a recording and bring its update to its end; how it ended."""
    with one_environment():
        world = opened(recording, root)
        update = world.ledger.active_updates()[-1].update_id
        with world.evidence():
            for _ in range(200):
                world.person()
                world.tick()
                if world.ledger.get(Update, update).phase.final:
                    break
        ended = world.ended(world.ledger.get(Update, update))
        world.close()
    return ended


# ------------------------------------------------------------------------------------ files


def write(recording: dict[str, Json], file: Path) -> None:
    """The same recording gives the same bytes."""
    text = json.dumps(recording, sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as to:
        to.write(text.encode())


def read(file: Path) -> dict[str, Any]:
    recording: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    return recording
