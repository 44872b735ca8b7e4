"""Workers as subprocesses of this machine.

Workers are detached: they outlive the process that started them, and whoever comes next adopts them
by name, pid and start time. What was started for a release is written down in
``run/deployment-RELEASE.json``, what it printed in ``logs/worker-RELEASE.log``.

With ``serving.share_base`` one worker, ``worker-base-BASE``, holds all releases over one base: each
is put into it and taken out of it, and the process ends with the last one.

A worker runs in the environment that its release names. If that is this interpreter's, it is forked
or started here; else it is started in one that was built from the release's lock, or built first by
the very process that then becomes the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import psutil

from intonaco.clock import Clock, SystemClock
from intonaco.config import Serving
from intonaco.environments import Choice, EnvironmentStore, State, Way
from intonaco.errors import BackendError
from intonaco.messages import ProcessInfo
from intonaco.releases import base_id
from intonaco.serving.deployments import Deployment, Deployments, Replica
from intonaco.serving.faults import parse_fault
from intonaco.serving.worker_calls import WorkerCalls
from intonaco.serving.worker_processes import WorkerProcesses, process_of, reap, signal
from intonaco.types import Release, ServingStatus
from intonaco.workspace import Workspace, alive

log = logging.getLogger(__name__)

GRACE_S = 10.0


@dataclass(slots=True)
class LocalServingBackend:
    """Raises ConfigError at once for a fault spec that cannot be read."""

    workspace: Workspace
    config: Serving
    clock: Clock = field(default_factory=SystemClock)
    grace_s: float = GRACE_S
    _calls: WorkerCalls = field(init=False)
    _processes: WorkerProcesses = field(init=False)
    _environments: EnvironmentStore = field(init=False)
    _deployments: Deployments = field(init=False)

    def __post_init__(self) -> None:
        for specs in self.config.faults.values():
            for spec in specs:
                parse_fault(spec)
        self._calls = WorkerCalls()
        self._processes = WorkerProcesses(self.workspace, self.config, self.grace_s)
        self._deployments = Deployments(self.workspace)
        self._environments = EnvironmentStore(
            self.workspace,
            base=self.config.environment_base,
            timeout_s=self.config.environment_timeout_s,
        )

    # ------------------------------------------------------------------ the seam

    def deploy(self, release: Release) -> None:
        """Adopt the live workers of the release, start those that are missing. A worker that was
        draining takes work again. Returns at once, also where an environment must be built first;
        ``status`` says how far that is, or why it cannot be done."""
        reap()
        deployment = self._deployments.get(release.release_id)
        base = self._base(release, deployment)
        size = deployment.size if deployment.size and not deployment.retired else 0
        count = size or self.config.replicas
        names = [_name(base, release.release_id, k) for k in range(count)]
        self._cut_short(names)
        live = {
            name: info for name in names if (info := self._live(deployment, name, base)) is not None
        }
        choice = self._choose(release) if len(live) < len(names) else Choice(way=Way.HERE)
        if not self._known(deployment, live, base) and choice.way is not Way.REFUSED:
            times = deployment.count + 1
            away = choice.way in (Way.BUILT, Way.BUILD)
            if live:  # others' worker, which may be built yet
                away = any(d.environment for d in self._beside(deployment, base))
            deployment = replace(
                deployment,
                count=times,
                at=self.clock.now(),
                fault=self._fault(release, times),
                environment=release.serving.environment if away else "",
                base=base,
            )
        replicas: list[Replica] = []
        for name in names:
            info = live.get(name)
            if info is not None:
                replicas.append(Replica(name=name, pid=info.pid, started=info.started))
                announced = self.workspace.process(name)
                if base:
                    self._calls.hold(announced, release.release_id, deployment.fault)
                else:
                    self._calls.call("POST", announced, "/drain?off=1")
            elif choice.way is not Way.REFUSED:
                fault = deployment.fault
                replicas.append(
                    self._processes.start(release, name, fault, choice, share=bool(base))
                )
        self._deployments.put(
            replace(
                deployment,
                replicas=tuple(replicas),
                retired=False,
                refused=choice.text,
                size=size,
            )
        )

    def scale(self, release: Release, replicas: int) -> None:
        """The size is written down before workers are started, and after some were ended: whoever
        comes after a kill finds too few of them, and does the rest. Raises BackendError for workers
        that hold other releases too."""
        deployment = self._deployments.get(release.release_id)
        if replicas < 1:
            raise BackendError(
                f"{release.short} cannot be scaled to {replicas}: retire ends its workers",
                backend="local",
                retriable=False,
            )
        if self._base(release, deployment):
            raise BackendError(
                f"{release.short} shares its worker with other releases and cannot be scaled",
                backend="local",
                retriable=False,
                hint="set serving.share_base: false",
            )
        if deployment.retired:
            deployment = replace(deployment, retired=False, replicas=())
        size = 0 if replicas == self.config.replicas else replicas
        kept, surplus = deployment.replicas[:replicas], deployment.replicas[replicas:]
        self._end([r.process for r in surplus], release.release_id)
        if surplus or size != deployment.size or not deployment.at:
            now = self.clock.now()
            self._deployments.put(replace(deployment, size=size, replicas=kept, at=now))
        if len(kept) < replicas:
            self.deploy(release)

    def status(self, release_id: str) -> ServingStatus:
        """Ready when every replica is. URLs are of those that are; a release whose replicas attest
        something else is shown with what they attest."""
        reap()
        deployment = self._deployments.get(release_id)
        if deployment.retired or not (deployment.replicas or deployment.refused):
            return ServingStatus(
                release=release_id,
                ready=False,
                error="not deployed",
                deployed=False,
                ending=self._deployments.all_ending(_name("", release_id, 0)),
            )
        urls: list[str] = []
        attested: set[str] = set()
        error = deployment.refused
        facts: dict[str, object] = {}
        for replica in deployment.replicas:
            if not alive(replica.process):
                error = error or f"{replica.name} ended: {self._processes.tail(replica.name)}"
                continue
            info = self.workspace.process(replica.name)
            which = ""
            if deployment.base:
                held = self._calls.held(info, deployment)
                error = error or (held.error if held is not None else "")
                which = f"?release={release_id}"
            ready = self._calls.call("GET", info, f"/readyz{which}")
            if info is None or info.url is None or ready is None or ready.status_code != 200:
                continue
            attestation = self._calls.attestation(info, which)
            if attestation is None:
                continue
            urls.append(info.url)
            attested.add(attestation.release_id)
            facts = {
                "pid": info.pid,
                "load_seconds": attestation.load_seconds,
                "start_seconds": info.facts.get("start_seconds"),  # with all that came before it
                "peak_memory_bytes": attestation.peak_memory_bytes,
                "weights_bytes": attestation.weights_bytes,
                "device_bytes": attestation.device_bytes,
                "versions": dict(attestation.versions),
                "device": attestation.device,
                **({"base": deployment.base} if deployment.base else {}),
            }
        since = deployment.at
        if deployment.environment and not urls:
            standing = self._environments.standing(deployment.environment)
            facts = {"environment": standing.environment, "state": str(standing.state)}
            if standing.state is State.FAILED:
                error = deployment.refused or standing.text
            elif standing.state is not State.BUILT:
                since = self.clock.now()  # the wait for the worker has not begun
                facts |= {"state": str(State.BUILDING), "log": standing.text}
            since = max(since, standing.at)
        if not urls and not error:
            waited = self.clock.now() - since
            if waited > self.config.worker.ready_timeout_s:
                said = self._processes.tail(deployment.replicas[0].name)
                error = f"not ready after {waited:.0f} s: {said}"
        wrong = attested - {release_id}
        return ServingStatus(
            release=release_id,
            ready=len(urls) == len(deployment.replicas) and not wrong and not deployment.refused,
            urls=tuple(urls),
            attested=next(iter(wrong or attested), None),
            error=f"attests {next(iter(wrong))[:10]}" if wrong else error,
            facts={**facts, "deployments": deployment.count, "fault": deployment.fault},
            replicas=len(deployment.replicas),
            ending=self._deployments.all_ending(_name("", release_id, 0)),
        )

    def drain(self, release_id: str) -> None:
        """Take no new work, finish what was taken."""
        deployment = self._deployments.get(release_id)
        which = f"?release={release_id}" if deployment.base else ""
        for replica in deployment.replicas:
            self._calls.call("POST", self.workspace.process(replica.name), f"/drain{which}")

    def retire(self, release_id: str) -> None:
        """End its workers: SIGTERM, and SIGKILL for those still there after the grace. One that has
        requests in hand is not waited for: it answers them, ends by itself, and is done at the
        latest when their deadlines are over (``gateway.request_timeout_s``, given to it as
        ``--grace-s``). Never touches a pid that passed on to another process. A worker that holds
        other releases lets go of this one and lives."""
        deployment = self._deployments.get(release_id)
        needed = self._deployments.needed_by_others(deployment)
        for replica in deployment.replicas:
            if replica in needed:
                info = self.workspace.process(replica.name)
                if self._calls.call("DELETE", info, f"/releases/{release_id}") is None:
                    log.warning(
                        "%s does not answer and holds %s on",
                        replica.name,
                        release_id[:10],
                        extra={"action": "worker.release_left", "release": release_id},
                    )
        known = {r.name: r.process for r in deployment.replicas if r not in needed}
        for path in self.workspace.run.glob(f"{_name('', release_id, 0)}*.json"):
            info = self.workspace.process(path.stem)  # one that nobody wrote down
            if info and info.facts.get("release_id") == release_id:
                known[info.name] = info
        self._end(list(known.values()), release_id)
        if deployment.replicas or deployment.refused:
            self._deployments.put(
                replace(deployment, replicas=(), refused="", retired=True, size=0)
            )

    def _end(self, infos: Sequence[ProcessInfo], release_id: str) -> None:
        """As ``retire`` ends workers."""
        processes = []
        for info in infos:
            process = process_of(info)
            if process is None or self._deployments.ending(info.name) is not None:
                continue
            if taken := self._calls.shut(self.workspace.process(info.name)):
                log.info(
                    "%s answers the %d requests that it has before it ends",
                    info.name,
                    taken,
                    extra={"action": "worker.last_requests", "release": release_id},
                )
                self._deployments.put_ending(info)
            else:
                processes.append(process)
            signal(process.terminate)
        self._processes.stop(processes, release_id)

    def close(self) -> None:
        """Let go of connections; workers run on."""
        self._calls.close()
        reap()

    # ------------------------------------------------------------------ processes

    def _choose(self, release: Release) -> Choice:
        """Where its workers are started. Raises nothing: a refusal is a text for ``status``."""
        environment = release.serving.environment
        beside = self.workspace.resolve(release.path).parent / "lock.txt"
        self._environments.adopt(environment, beside)
        mode = self.config.environments
        return self._environments.choose(environment, mode=mode, now=self.clock.now())

    def _base(self, release: Release, deployment: Deployment) -> str:
        """The base whose worker the release belongs into, empty for one of its own. Workers that
        run stay what they are, whatever the configuration says since."""
        if any(alive(replica.process) for replica in deployment.replicas):
            return deployment.base
        return (base_id(release.serving) or "") if self.config.share_base else ""

    def _known(self, deployment: Deployment, live: Mapping[str, ProcessInfo], base: str) -> bool:
        """Whether a live worker was this release's before, so that it is not deployed anew."""
        if not base:
            return bool(live)
        return any(
            info.pid == replica.pid
            for replica in deployment.replicas
            if (info := live.get(replica.name)) is not None
        )

    def _live(self, deployment: Deployment, name: str, base: str) -> ProcessInfo | None:
        """A running worker of that name: one written down, or one that announced itself though
        whoever started it was killed before it could write it down."""
        about = [deployment, *self._beside(deployment, base)]
        for replica in (r for d in about for r in d.replicas):
            if replica.name == name and alive(replica.process):
                return replica.process
        info = self.workspace.process(name)
        if info and (
            info.facts.get("base") == base
            if base
            else info.facts.get("release_id") == deployment.release_id
        ):
            return info
        return None

    def _beside(self, deployment: Deployment, base: str) -> list[Deployment]:
        return self._deployments.others(deployment.release_id, base) if base else []

    def _cut_short(self, names: Sequence[str]) -> None:
        """Kill retired workers of these names that still answer what they took: the names are
        needed now, and gateways make what breaks off again, elsewhere."""
        for name in names:
            info = self._deployments.ending(name)
            process = None if info is None else process_of(info)
            if process is None:
                continue
            log.warning(
                "%s had requests left and is killed, as its name is needed",
                name,
                extra={"action": "worker.kill"},
            )
            signal(process.kill)
            psutil.wait_procs([process], timeout=self.grace_s)
            reap()

    def _fault(self, release: Release, count: int) -> str:
        specs = self.config.faults.get(release.release_id)
        if specs is None and release.provenance.recipe:
            specs = self.config.faults.get(release.provenance.recipe)
        return specs[count - 1] if specs and count <= len(specs) else ""


def _name(base: str, release_id: str, replica: int) -> str:
    whose = f"base-{base[:10]}" if base else release_id[:10]
    return f"worker-{whose}" + (f"-{replica}" if replica else "")
