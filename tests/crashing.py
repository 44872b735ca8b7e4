"""A service whose controller is killed at a point of one's choice, over an outside world that lives
on: twins of every seam, kept on disk with a log of what was really done to them.

``run(root)`` forks a process that runs the real ``Controller``, with a person's acts in between,
until the story is over, and begins it again when it was killed. A *point* is a place right before
or right after a call to the outside, or a commit of the ledger; it has a name, and may come up
often.
"""

from __future__ import annotations

import collections
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.assessed import assessed
from tests.integration.test_loop_in_memory import (
    CONFIG,
    PROMPT,
    embed,
    measured_as_asked,
    metrics,
    write_items,
    write_pipeline,
)

from intonaco import commands, config
from intonaco.clock import FakeClock
from intonaco.codec import as_json
from intonaco.controller import Controller
from intonaco.datasets.store import LocalDatasetStore
from intonaco.executor import Parts
from intonaco.jobs import job_folder
from intonaco.ledger import Ledger, Transaction
from intonaco.releases import ReleaseStore
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.rollout.baseline_analysis import BaselineAnalysis
from intonaco.testing.notify import MemoryNotifier
from intonaco.testing.registry import MemoryRegistry
from intonaco.testing.serving import MemoryRouter, MemoryServingBackend
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import (
    ArmRole,
    Assessment,
    JobSpec,
    Json,
    MetricAssessment,
    Phase,
    Release,
    Rollout,
    RoutingTable,
    StepKind,
    Update,
)
from intonaco.workspace import Workspace

Point = tuple[str, int]  # a place's name, and the how manieth time it is passed
START = 1_700_000_000.0
MOST_TICKS = 600
TELLINGS = 10  # before a point is said not to come
ROLLOUT = """rollout:
  drain_seconds: 60
  bake_seconds: 4
  holdback: 0.1
  steps:
    - {kind: stage}
    - {kind: shadow, weight: 0.3, min_seconds: 1, min_units: 0}
    - {weight: 0.5, min_seconds: 1, min_units: 0}
    - {kind: approve, deadline_s: 1000}
    - {weight: 1.0, min_seconds: 1, min_units: 0}
"""
ROLLING = """rollout:
  strategy: rolling
  drain_seconds: 60
  bake_seconds: 4
  steps:
    - {kind: shadow, weight: 0.3, min_seconds: 1, min_units: 0}
    - {kind: approve, deadline_s: 1000}
    - {weight: 1.0, min_seconds: 1, min_units: 0}
serving: {replicas: 3}
"""
BASELINE = """rollout:
  baseline: true
  metrics: [errors, latency, end_to_end]
  drain_seconds: 60
  bake_seconds: 4
  steps:
    - {weight: 0.1, min_seconds: 1, min_units: 0}
    - {weight: 0.5, min_seconds: 1, min_units: 0}
    - {kind: approve, deadline_s: 1000}
    - {weight: 1.0, min_seconds: 1, min_units: 0}
"""
# and how many workers a release has
STORIES = {"canary": (ROLLOUT, 1), "rolling": (ROLLING, 3), "baseline": (BASELINE, 1)}
MOST = {"rolling": 4, "baseline": 4}  # workers at once: an old champion may still drain
READS = {"status", "observed", "poll", "get", "open", "find"}  # told once a phase, not each time


class Points:
    """Counts the points that a process passes, and ends it at one of them."""

    def __init__(self, root: Path, at: Point | None) -> None:
        self.at = at
        self.armed = True
        self.phase = ""
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._log = root / "points.log"

    def pass_by(self, name: str, *, once_a_phase: bool = False) -> None:
        if not self.armed:
            return
        with self._lock:
            if once_a_phase:
                name = f"{name} in {self.phase}"
                if self._counts[name]:
                    return
            self._counts[name] += 1
            point = (name, self._counts[name])
            if self.at is None:
                with self._log.open("a") as log:
                    log.write(json.dumps(point) + "\n")
            elif point == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


class Outside:
    """What the controller acts upon, on disk. Each call is whole or not at all, as a server's."""

    def __init__(
        self,
        root: Path,
        points: Points,
        job: Callable[[JobSpec], Mapping[str, Json]],
        replicas: int = 1,
        most: int = 2,
    ):
        self._file = root / "outside.pickle"
        self._log = root / "effects.log"
        self._points = points
        self._job = job
        self._most = most
        self._lock = threading.RLock()
        if not self._file.exists():
            self._write(
                {
                    "training": MemoryTrainingBackend(),
                    "serving": MemoryServingBackend(polls_until_ready=1, replicas=replicas),
                    "router": MemoryRouter(),
                    "registry": MemoryRegistry(),
                    "notifier": MemoryNotifier(),
                }
            )

    def call(self, seam: str, method: str, *args: Any) -> Any:
        read = method in READS
        name = f"{seam}.{method}({_key(args)})"
        self._points.pass_by(f"before {name}", once_a_phase=read)
        with self._lock:
            twins = pickle.loads(self._file.read_bytes())
            twin = twins[seam]
            if seam == "training":
                twin._on_submit = self._job
            if seam == "router" and method == "apply":
                _check_table(args[0], twins["serving"])
            if seam == "serving" and method == "retire":
                _check_retired(args[0], twins["router"])
            if seam == "serving" and method == "scale":
                _check_scaled(args[0], args[1], twin, twins["router"], self._most)
            known = method == "submit" and args[0].key in twin.jobs
            result = getattr(twin, method)(*args)
            if seam == "training":
                twin._on_submit = None
            self._write(twins)
            if not read:
                self._note({"call": f"{seam}.{method}", "key": _key(args), "fresh": not known})
        self._points.pass_by(f"after {name}", once_a_phase=read)
        return result

    def twin(self, seam: str) -> Any:
        return pickle.loads(self._file.read_bytes())[seam]

    def _write(self, twins: Mapping[str, Any]) -> None:
        new = self._file.with_suffix(".new")
        new.write_bytes(pickle.dumps(twins))
        new.replace(self._file)

    def _note(self, line: Mapping[str, Any]) -> None:
        with self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")


class Seam:
    """A twin on disk, as the controller sees it."""

    def __init__(self, outside: Outside, name: str) -> None:
        self._outside, self._seam = outside, name
        self.name = name

    def __getattr__(self, method: str) -> Any:
        return lambda *args: self._outside.call(self._seam, method, *args)


def _key(args: tuple[Any, ...]) -> str:
    """Which thing a call is about, the same in every run."""
    if not args:
        return ""
    first = args[0]
    if isinstance(first, RoutingTable):
        return f"epoch {first.epoch}"
    for field in ("key", "release_id", "event_id"):
        if hasattr(first, field):
            return str(getattr(first, field))[-40:]
    return str(first)[:40]


def _check_table(table: RoutingTable, serving: MemoryServingBackend) -> None:
    """No request may meet a table whose shares are wrong or whose release does not answer."""
    live = [a for a in table.arms if a.role is not ArmRole.SHADOW]
    assert abs(sum(a.weight for a in live) - 1.0) < 1e-9, table
    for arm in table.arms:
        there = serving.status(arm.release).urls
        assert arm.urls, arm
        assert {*arm.urls} <= {*there}, f"of {arm.name} {there} answer"


def _check_retired(release: str, router: MemoryRouter) -> None:
    table = router.table
    taken = {a.release for a in table.arms if a.weight > 0} if table else set()
    assert release not in taken, f"{release[:10]} is retired while users are sent to it"


def _check_scaled(
    release: Release, size: int, serving: MemoryServingBackend, router: MemoryRouter, most: int
) -> None:
    """No worker is ended while users are sent to it, none is one too many."""
    urls = serving.status(release.release_id).urls
    arms = router.table.arms if router.table else ()
    taken = {u for a in arms if a.release == release.release_id for u in a.urls}
    assert not taken & {*urls[size:]}, f"{release.short} is scaled to {size} under its users"
    others = sum(len(w) for rid, w in serving._polls.items() if rid != release.release_id)
    assert others + size <= most, f"{others} workers and {size} more"


class Service:
    """The controller's process, from within."""

    def __init__(self, root: Path, at: Point | None) -> None:
        self.root = root
        self.points = Points(root, at)
        self.workspace = Workspace(root)
        self.clock = FakeClock(at=self._time())
        self.ledger = Ledger.open(self.workspace.ledger, "svc")
        story = (root / "story").read_text()
        rollout, replicas = STORIES[story]
        self.outside = Outside(root, self.points, self._job, replicas, MOST.get(story, 2))
        begin = self.ledger.begin

        @contextmanager
        def watched(
            fence: int | None = None, *, wait_s: float | None = None
        ) -> Iterator[Transaction]:
            with begin(fence, wait_s=wait_s) as tx:
                yield tx
                self.points.pass_by("before a commit")
            self.points.pass_by("after a commit")

        self.ledger.begin = watched  # type: ignore[method-assign]
        seams: Any = {n: Seam(self.outside, n) for n in ("training", "serving", "router")}
        text = CONFIG[: CONFIG.index("rollout:")] + rollout + CONFIG[CONFIG.index("registry:") :]
        self.parts = Parts(
            config=config.parse(text.replace("APPROVAL", "ask")),
            workspace=self.workspace,
            ledger=self.ledger,
            releases=ReleaseStore(self.workspace, "svc"),
            datasets=LocalDatasetStore(self.workspace.datasets, self.clock),
            registry=Seam(self.outside, "registry"),
            tracker=MemoryTracker(),
            embed=embed,
            probe=lambda release, prompt, seed: None,
            smoke=lambda url, release: 0.01,
            clock=self.clock,
            **seams,
        )
        self.controller = Controller(
            self.parts,
            holder="crashing",
            notifier=Seam(self.outside, "notifier"),
        )

    # ------------------------------------------------------------------ the story

    def run(self) -> None:
        """Tick until the story is over."""
        for _ in range(MOST_TICKS):
            self._tick()
            self.points.armed = False
            over = self._person()
            self.points.armed = True
            if over:
                return
        raise AssertionError([e.text for e in self.ledger.events(newest=True, limit=8)])

    def _tick(self) -> None:
        (self.root / "time").write_text(repr(self.clock.advance(1.0)))
        active = self.ledger.active_updates()
        self.points.phase = f"{len(self.ledger.all(Update))} {active[-1].phase if active else ''}"
        assert self.controller.tick()
        for future in (*self.controller._running.values(), self.controller.aliases._running):
            while future is not None and not future.done():
                time.sleep(0.0005)  # effects run in threads; the story's clock stands still
        self.controller.delivery.look()

    def _person(self) -> bool:
        """Whoever is on call: starts updates, gives their word, tries again, goes back."""
        updates, rollouts = self.ledger.all(Update), self.ledger.all(Rollout)
        last = updates[-1] if updates else None
        if last is not None and last.phase is Phase.APPROVE:
            self._ask(f"approve {len(updates)}", "update.approve", update=last.update_id)
        if rollouts and not rollouts[-1].status.final and rollouts[-1].history:
            step = rollouts[-1].steps[rollouts[-1].step]
            if step.kind is StepKind.APPROVE:
                self._ask(f"go on {len(rollouts)}", "rollout.approve", reason="seen")
        if last is not None and not last.phase.final:
            return False
        match len(updates):
            case 0:
                self._ask("first", "update.start", reason="first")
            case 1:
                self._ask(
                    "second",
                    "update.start",
                    action="assemble",
                    reason="fewer steps",
                    assemble={"name": "fewer", "generation": {"steps": 4}},
                )
            case 2:
                self._ask("third", "rollout.retry", reason="it was the device")
            case 3:
                self._ask("fourth", "rollback", reason="ugly after all")
            case _:
                return True
        return False

    def _ask(self, once: str, kind: str, **arguments: Json) -> None:
        done = self.root / "person.log"
        said = done.read_text().splitlines() if done.exists() else []
        if once in said:
            return
        commands.submit(self.ledger, self.clock.now(), kind, "ann", arguments)
        done.write_text("\n".join([*said, once]) + "\n")

    # ------------------------------------------------------------------ what is around it

    def _time(self) -> float:
        kept = self.root / "time"
        return float(kept.read_text()) if kept.exists() else START

    def _job(self, spec: JobSpec) -> dict[str, Json]:
        folder = job_folder(self.workspace, spec.key) / "out"
        folder.mkdir(parents=True, exist_ok=True)
        if spec.entrypoint == "intonaco.training.job":
            write_pipeline(folder / "pipeline", spec.key)
            return {"pipeline": "out/pipeline", "steps": 5}
        names = [c["name"] for c in spec.payload["candidates"]]
        report = {
            "candidates": names,
            "champion": spec.payload["champion"] and "champion",
            **measured_as_asked(spec),
            "keep": ["zero"],
            "improve": [],
            "comparisons": {name: as_json(metrics(True)) for name in names},
        }
        (folder / "report.json").write_text(json.dumps(report))
        return {"report": "out/report.json"}

    def assess(self, analysis: RolloutAnalysis | BaselineAnalysis) -> tuple[MetricAssessment, ...]:
        """All is well, until the first try of the second release bakes."""
        rollout = self.ledger.find(Rollout, analysis.rollout_id)
        bakes = rollout is not None and rollout.history and rollout.history[-1].kind == "bake"
        bad = bakes and rollout is not None and rollout.attempt == 1 and rollout.champion
        found = Assessment.HARMFUL if bad else Assessment.NON_INFERIOR
        return assessed(analysis.metrics, found)

    def ended(self) -> dict[str, Any]:
        """What must be the same however often the controller was killed."""
        tenures = self.ledger.tenures()
        settled, reserved = self.ledger.spent()
        return {
            "updates": [(u.phase, u.chosen, u.attempt) for u in self.ledger.all(Update)],
            "rollouts": [
                (r.status, r.challenger, r.promoted_at is not None, [h.kind for h in r.history])
                for r in self.ledger.all(Rollout)
            ],
            "tenures": [t.release_id for t in tenures],
            "champions": sum(t.until is None for t in tenures),
            "commands": len((self.root / "person.log").read_text().splitlines()),
            "money": (round(settled, 9), round(reserved, 9)),
            "started": sorted(k for k in self.outside.twin("training").jobs),
            "deployed": self.outside.twin("serving").deployments,
            "registered": list(self.outside.twin("registry").published),
            "aliases": self.outside.twin("registry").aliases,
            "serves": [(a.name, a.release) for a in self.outside.twin("router").table.arms],
            "workers": {k: len(w) for k, w in self.outside.twin("serving")._polls.items()},
        }


def prepare(root: Path, story: str) -> None:
    """The files that a service begins with."""
    root.mkdir(parents=True)
    (root / "story").write_text(story)
    (root / "prompts.jsonl").write_text(PROMPT)
    (root / "data" / "reference").mkdir(parents=True)
    for name in ("train", "pool"):
        write_items(root / "data" / name, name)


def run(root: Path, at: Point | None = None, story: str = "canary") -> tuple[dict[str, Any], int]:
    """Tell the story, with the first process killed at a point; how it ended, and how many
    processes were killed. Raises AssertionError with what a process printed."""
    if not root.exists():
        prepare(root, story)
    killed = 0
    while True:
        status = _forked(root, at if not killed else ("nowhere", 0))
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed += 1
            continue
        text = (root / "error").read_text() if (root / "error").exists() else ""
        assert os.WIFEXITED(status), status
        assert os.WEXITSTATUS(status) == 0, text
        return json.loads((root / "ended.json").read_text()), killed


def _forked(root: Path, at: Point | None) -> int:
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        signal.alarm(120)
        service = Service(root, at)
        for analysis in (RolloutAnalysis, BaselineAnalysis):
            analysis.assess = lambda self: service.assess(self)  # type: ignore
        service.run()
        service.points.armed = False
        (root / "ended.json").write_text(json.dumps(service.ended(), sort_keys=True))
        os._exit(0)
    except BaseException:
        (root / "error").write_text(traceback.format_exc())
        sys.stderr.flush()
        os._exit(1)


def killed_at(root: Path, point: Point, expected: Mapping[str, Any], story: str = "canary") -> str:
    """Tell the story in ``root`` with the first process killed at a point; what differs from how it
    is to end, "" if nothing does. Leaves nothing in ``root``.

    Effects run in threads, so that one telling may take a tick, and a commit or two, less than
    another. Where a telling never came to its point nobody was killed, and it is told again.
    """
    for _ in range(TELLINGS):
        try:
            ended, killed = run(root, point, story)
            begun = collections.Counter(
                e["key"] for e in effects_of(root) if e["call"] == "training.submit" and e["fresh"]
            )
        except AssertionError as error:
            return str(error)[-1500:] or "an assertion failed"
        finally:
            shutil.rmtree(root)
        wrong = {k: (expected[k], ended[k]) for k in expected if ended[k] != expected[k]}
        if wrong or killed > 1 or max(begun.values()) > 1:
            return f"killed {killed} times, begun {dict(begun)}, differs: {wrong}"
        if killed:
            return ""
    return f"not reached in {TELLINGS} tellings"


def points_of(root: Path) -> list[Point]:
    """Every point that a run which nobody ended passed, in order."""
    lines = (root / "points.log").read_text().splitlines()
    return [(name, count) for name, count in map(json.loads, lines)]


def effects_of(root: Path) -> list[dict[str, Any]]:
    """What was really done outside, in order."""
    return [json.loads(line) for line in (root / "effects.log").read_text().splitlines()]
