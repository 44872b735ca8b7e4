"""``intonaco demo``: the whole loop once, on a real model, and the telling of it.

Nothing is steered here but what the outside world does: users come, users change, somebody asks for
a faster sampler, somebody tries a failed rollout again. Everything else happens in the processes
that a real deployment runs, and is read from their ledger.
"""

from __future__ import annotations

import json
import signal
import time
import webbrowser
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from intonaco import commands, readmodel
from intonaco.app import App, open_app
from intonaco.demo import setup
from intonaco.demo.data import write_demo_data
from intonaco.demo.narrator import Narrator
from intonaco.demo.report import write_report
from intonaco.demo.strategies import TELLINGS
from intonaco.demo.summary import collect, missing_parts
from intonaco.demo.traffic_process import TrafficProcess
from intonaco.demo.view import DemoView, final_table
from intonaco.errors import BackendError, IntonacoError
from intonaco.jobs import job_folder
from intonaco.supervisor import Supervisor
from intonaco.training.local import LocalTrainingBackend
from intonaco.types import JobSpec, JobState, Phase, Update
from intonaco.workspace import Workspace, write_atomic

FAST, SLOW = 40.0, 8.0  # requests a second: all that two cores can do; while a model trains
LOOK_SECONDS = 0.2
PATIENCE_SECONDS = 600.0  # for any one part of the story


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    workspace: Path
    quick: bool = False
    seed: int = 0
    ask: bool = False
    browser: bool = True
    strategy: str = "canary"  # of demo.strategies


@dataclass(slots=True)
class Facts:
    """What the telling itself knows, for the summary."""

    started: float = field(default_factory=time.time)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    changed_after: int = 0  # requests that the monitors had seen when users changed
    extractor: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Stopped(IntonacoError):
    """The story could not go on."""


def tell(options: Options) -> int:
    """Run the demo; the exit code. 0 only if the whole story really happened."""
    workspace = setup.make_workspace(options.workspace)
    console = Console()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # end the processes as on Ctrl-C
        signal.signal(ending, signal.default_int_handler)
    with DemoView(console) as view:
        story = Story(options, workspace, view)
        try:
            story.run()
        except Stopped as stopped:
            story.facts.problems.append(str(stopped))
        finally:
            story.end()
    summary = story.summary()
    console.print(*final_table(summary))
    console.print(f"summary  {workspace.root / 'summary.json'}", markup=False, highlight=False)
    console.print(f"report   {workspace.root / 'report.html'}", markup=False, highlight=False)
    for problem in summary["missing"]:
        console.print(f"did not happen: {problem}", style="red", markup=False)
    return 1 if summary["missing"] else 0


class Story:
    """One telling."""

    def __init__(self, options: Options, workspace: Workspace, view: DemoView) -> None:
        self.options, self.workspace, self.view = options, workspace, view
        self.size = setup.QUICK if options.quick else setup.FULL
        self.telling = TELLINGS[options.strategy]
        self.facts = Facts()
        self.app: App | None = None
        self.supervisor: Supervisor | None = None
        self._extractor: Callable[[], bool] = lambda: False
        self.traffic: TrafficProcess | None = None
        self.narrator = Narrator(workspace, view, ask=options.ask)
        self._rate: tuple[float, float, int] = (0.0, 0.0, 0)

    # ------------------------------------------------------------------ the story

    def run(self) -> None:
        self._part("setup", 1, "A real model: data, and a scorer of our own", self._prepare)
        self._part("base", 1, "A real model: training release 1 on the digits 0 to 4", self._base)
        self._part("serve", 2, "Served: users ask for 0 to 4", self._serve)
        self._part("drift", 3, "Users change: some ask for 5 to 9 now", self._drift)
        self._part("update", 5, "Update: data, training, evaluation, gate", self._update)
        how = self.options.strategy.replace("_", " ")
        self._part("rollout", 6, f"Rollout: {how}", self._roll_out)
        self._part("rollback", 7, "Rollback: a release that breaks in service", self._break)
        self.view.phase(8, "The end")

    def _part(self, name: str, number: int, title: str, part: Callable[[], None]) -> None:
        began = time.monotonic()
        self.view.phase(number, title)
        try:
            part()
        finally:
            self.facts.seconds[name] = round(time.monotonic() - began, 1)

    def _prepare(self) -> None:
        setup.write_config(
            self.workspace,
            self.size,
            seed=self.options.seed,
            ask=self.options.ask,
            strategy=self.options.strategy,
        )
        self.app = open_app(self.workspace.root)
        self.supervisor = Supervisor(self.workspace)
        self.supervisor.start(["forkserver"])
        data = write_demo_data(self.workspace.root / "data", self.options.seed)
        counts = ", ".join(
            f"{data.items[name]} for the {name}"
            for name in ("generator", "extractor", "judge", "reference")
        )
        self._say("data", f"1,797 real digits in disjoint parts: {counts}")
        self.supervisor.start(["gateway", "controller", "console"])
        self._extractor = self._extractor_job(data.extractor)
        console = self.workspace.process("console")
        if console is not None and console.url:
            self._say("console", console.url)
            if self.options.browser:
                webbrowser.open(console.url)

    def _extractor_job(self, data: Path) -> Callable[[], bool]:
        """Train the scorer's CLIP beside release 1; the result says whether the scorer runs."""
        backend = LocalTrainingBackend(self.workspace)
        spec = JobSpec(
            key="demo:extractor",
            entrypoint="intonaco.demo.extractor",
            payload={
                "data": str(data.resolve()),
                "seed": self.options.seed,
                "steps": self.size.extractor_steps,
            },
        )
        handle = backend.submit(spec)

        def ready() -> bool:
            if self.facts.extractor:
                return self.workspace.process("scorer") is not None
            status = backend.poll(handle)
            self.narrator.progress("scorer", "scorer", status.progress)
            if not status.state.final:
                return False
            self.view.done("scorer")
            if status.state is not JobState.SUCCEEDED:
                raise Stopped(f"the scorer was not trained: {status.error}")
            self._use_extractor(job_folder(self.workspace, spec.key), dict(status.result))
            return False

        return ready

    def _use_extractor(self, folder: Path, result: dict[str, Any]) -> None:
        assert self.supervisor is not None
        target = self.workspace.root / "models" / "extractor"
        target.parent.mkdir(parents=True)
        (folder / str(result["path"])).rename(target)
        setup.pin_extractor(self.workspace, str(result["digest"]))
        self.facts.extractor = result
        accuracy = float(result["accuracy_heldout"])
        self._say("data", f"scorer: a small CLIP, {accuracy:.0%} right on digits it never saw")
        self.supervisor.begin("scorer")

    def _base(self) -> None:
        self._command("update.start", {"reason": "the first release of this service"})
        self._wait("the scorer", self._extractor)
        self._wait("release 1 to serve", lambda: self._champion() is not None and self._ready())

    def _serve(self) -> None:
        gateway = self.workspace.process("gateway")
        if gateway is None or gateway.url is None:
            raise Stopped("there is no gateway")
        self.traffic = TrafficProcess(gateway.url, self.options.seed, self.workspace)
        self.traffic.mix(rate=FAST, new_share=0.0)
        self._wait("the monitors to be armed", self._armed)
        armed = self._seen()
        self._say("monitor", f"armed after {armed} requests; now for a while nothing should happen")
        self._wait(
            f"{self.size.armed} quiet requests", lambda: self._seen() - armed >= self.size.armed
        )

    def _drift(self) -> None:
        self.facts.changed_after = self._seen()
        self._traffic.mix(rate=FAST, new_share=0.3)
        self._say("traffic", "from now on 30 % of the requests are for 5 to 9")
        self._wait("a finding", lambda: bool(self._app.ledger.events(kind="finding")))
        self.view.phase(4, "Diagnosis and plan")
        self._wait("a plan", lambda: self._update_because_of_drift() is not None)

    def _update(self) -> None:
        def out_of(*phases: Phase) -> Callable[[], bool]:
            return lambda: (u := self._update_because_of_drift()) is None or u.phase not in phases

        self._traffic.mix(rate=SLOW, new_share=0.3)
        self._wait("training", out_of(Phase.DATASET, Phase.TRAIN))
        self._wait("the gate", out_of(Phase.EVALUATE, Phase.GATE, Phase.REGISTER))
        update = self._update_because_of_drift()
        ended = (Phase.PROMOTED, Phase.CANCELLED)  # by a rollout that was over before we looked
        if update is not None and update.phase.final and update.phase not in ended:
            raise Stopped(f"the update ended {update.phase}: {update.reason}")

    def _roll_out(self) -> None:
        self._traffic.mix(rate=FAST, new_share=0.5)
        self._wait("promotion", self._drift_update_ended)
        update = self._update_because_of_drift()
        wanted = Phase.PROMOTED if self.telling.promotes else Phase.CANCELLED
        if update is None or update.phase is not wanted:
            raise Stopped(f"not {wanted}: {update.phase if update else 'no update'}")
        if not self.telling.promotes:
            self._say("rollout", "watched on copies of requests only: nobody was promoted")

    def _break(self) -> None:
        """Errors first, then, on the retry, slowness. Both are injected by ``serving.faults``. In
        place there is nobody to be slower than, so that only errors are tried."""
        self._traffic.mix(rate=SLOW, new_share=0.5)
        self._command(
            "update.start",
            {
                "reason": "a new technique: fewer sampler steps for the same weights",
                "action": "assemble",
                "cause": "new_technique",
                "assemble": {"name": "fewer-steps", "generation": {"steps": 6}},
            },
        )
        self._wait("the faster sampler to pass the gate", lambda: self._technique_past_gate(1))
        self._traffic.mix(rate=FAST, new_share=0.5)
        self._wait("the first rollback", lambda: self._technique_ended(1))
        if self.telling.drills < 2:
            return
        self._command("rollout.retry", {"reason": "the errors are said to be mended"})
        self._wait("the second rollback", lambda: self._technique_ended(2))

    def end(self) -> None:
        """Stop traffic, take the last facts, stop the processes and then the jobs that they left.
        Each is done whatever becomes of those before it, a second Ctrl-C too."""
        with ExitStack() as last:  # done from the last line to the first
            last.callback(self._end_jobs)
            if self.supervisor is not None:
                last.callback(self.supervisor.stop)
            if self.app is not None:
                last.callback(self._narrate)
            if self.traffic is not None:
                last.callback(self._end_traffic, self.traffic)
        self.facts.seconds["total"] = round(time.time() - self.facts.started, 1)

    def _end_traffic(self, traffic: TrafficProcess) -> None:
        self.facts.counts = traffic.stop()

    def _end_jobs(self) -> None:
        """In a deployment jobs outlive who started them; here nobody would come for them."""
        backend = LocalTrainingBackend(self.workspace)
        with ExitStack() as each:
            for handle in backend.running():
                each.callback(backend.cancel, handle)

    def summary(self) -> dict[str, Any]:
        """Write ``summary.json`` and ``report.html``; the summary."""
        summary = collect(
            self.app,
            self.workspace,
            self.facts,
            quick=self.options.quick,
            strategy=self.options.strategy,
        )
        summary["missing"] = [*self.facts.problems, *missing_parts(summary)]
        write_atomic(
            self.workspace.root / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False)
        )
        if self.app is not None:
            now = time.time()
            snapshot = readmodel.snapshot(
                self.app.ledger, self.workspace, self.app.config, now, observed=None
            )
            write_report(
                summary, snapshot, history(self.app, summary), self.workspace.root / "report.html"
            )
        return summary

    # ------------------------------------------------------------------ looking

    @property
    def _app(self) -> App:
        assert self.app is not None
        return self.app

    @property
    def _traffic(self) -> TrafficProcess:
        assert self.traffic is not None
        return self.traffic

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        """Look until something has happened, telling meanwhile what does. Raises Stopped."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self._narrate()
            if done():
                return
            if self.traffic is not None and not self.traffic.alive:
                raise Stopped("the traffic generator ended early")
            if self.supervisor is not None:
                try:
                    for name in self.supervisor.revive():
                        self._say("revived", f"{name} died and was started again")
                except BackendError as error:
                    raise Stopped(str(error)) from error
            self._failed_updates()
            if not self.options.ask and time.monotonic() > deadline:
                raise Stopped(f"waited {PATIENCE_SECONDS:.0f} s for {what}")
            self._figures()
            time.sleep(LOOK_SECONDS)

    def _failed_updates(self) -> None:
        for update in self._app.ledger.all(Update):
            if update.phase is Phase.FAILED or (
                update.champion is None and update.phase is Phase.REJECTED
            ):
                raise Stopped(f"update {update.update_id} {update.phase}: {update.reason}")

    def _champion(self) -> str | None:
        return self._app.ledger.champion()

    def _ready(self) -> bool:
        gateway = self.workspace.process("gateway")
        table = self._app.ledger.latest_routing()
        return gateway is not None and table is not None

    def _signals(self) -> list[Any]:
        points = self._app.ledger.signal_points(limit=1)
        return points[-1][1] if points else []

    def _seen(self) -> int:
        """User requests that the monitors have taken in."""
        stored = self._app.ledger.consumer("watch")
        return int(stored[1]["requests"]) if stored else 0

    def _armed(self) -> bool:
        signals = self._signals()
        return bool(signals) and all(
            s.armed for s in signals if s.signal in ("prompts", "clip_score")
        )

    def _update_because_of_drift(self) -> Update | None:
        found = [u for u in self._app.ledger.all(Update) if u.plan.diagnosis_id is not None]
        return found[0] if found else None

    def _drift_update_ended(self) -> bool:
        update = self._update_because_of_drift()
        return update is None or update.phase.final

    def _techniques(self) -> list[Update]:
        return [u for u in self._app.ledger.all(Update) if u.plan.assemble]

    def _technique_past_gate(self, count: int) -> bool:
        found = self._techniques()
        before = (Phase.EVALUATE, Phase.GATE, Phase.REGISTER)
        return len(found) >= count and found[count - 1].phase not in before

    def _technique_ended(self, count: int) -> bool:
        found = self._techniques()
        return len(found) >= count and found[count - 1].phase.final

    # ------------------------------------------------------------------ telling

    def _command(self, kind: str, arguments: dict[str, Any]) -> None:
        number = commands.submit(self._app.ledger, time.time(), kind, "demo", arguments)
        self._wait("the controller", lambda: self._app.ledger.command_outcome(number) is not None)
        outcome = self._app.ledger.command_outcome(number) or {}
        if not outcome.get("ok"):
            raise Stopped(f"{kind} was refused: {outcome.get('text')}")

    def _say(self, kind: str, text: str) -> None:
        self.view.event(time.time(), kind, text)

    def _narrate(self) -> None:
        if self.app is not None:
            self.narrator.tell(self.app.ledger, changed_after=self.facts.changed_after)

    def _figures(self) -> None:
        figures: dict[str, Any] = {"requests": self._seen()}
        if self.traffic is not None:
            counts = self.traffic.counts
            figures["failed"] = counts.get("failed", 0)
            at, rate, before = self._rate
            now = time.monotonic()
            if now - at >= 2.0:
                sent = int(counts.get("sent", 0))
                rate = (sent - before) / (now - at) if at else 0.0
                self._rate = (now, rate, sent)
            figures["rate"] = rate
        champion = self._champion()
        figures["champion"] = champion[:10] if champion else None
        table = self._app.ledger.latest_routing()
        if table is not None:
            figures["weights"] = {a.name.split(":")[0]: a.weight for a in table.arms}
        for status in self._signals():
            if status.signal == "prompts":
                figures["evidence"] = (status.evidence, status.threshold)
        self.view.figures(**figures)


def history(app: App, summary: dict[str, Any]) -> dict[str, Any]:
    """What the report draws: signals, traffic weights, pictures before and after."""
    import numpy as np

    pictures = {}
    for name, file in (summary.get("pictures") or {}).items():
        with np.load(app.workspace.resolve(file), allow_pickle=False) as stored:
            pictures[name] = {"images": stored["images"], "slices": stored["slices"]}
    return {
        "signals": app.ledger.signal_points(limit=100_000),
        "routing": app.ledger.routing_history(),
        "events": app.ledger.events(limit=100_000),
        "pictures": pictures,
    }
