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

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil

from intonaco.clock import Clock, SystemClock
from intonaco.codec import decode, encode
from intonaco.config import Serving
from intonaco.environments import Choice, EnvironmentStore, State, Way, environment_lock
from intonaco.errors import BackendError, StorageError
from intonaco.forkserver import spawn
from intonaco.messages import (
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Attestation,
    HeldRelease,
    HoldRelease,
    ProcessInfo,
)
from intonaco.releases import base_id
from intonaco.serving.deployments import Deployment, Deployments, Replica
from intonaco.serving.faults import parse_fault
from intonaco.types import Release, ServingStatus
from intonaco.workspace import Workspace, alive

log = logging.getLogger(__name__)

WORKER = "intonaco.serving.worker.main"
CALL_S = 5.0
GRACE_S = 10.0
TAIL_BYTES = 4000
TAIL_LINES = 8

# Children of this process, whichever backend object started them: kept until they are reaped.
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(slots=True)
class LocalServingBackend:
    """Raises ConfigError at once for a fault spec that cannot be read."""

    workspace: Workspace
    config: Serving
    clock: Clock = field(default_factory=SystemClock)
    grace_s: float = GRACE_S
    _http: httpx.Client = field(init=False)
    _environments: EnvironmentStore = field(init=False)
    _deployments: Deployments = field(init=False)

    def __post_init__(self) -> None:
        for specs in self.config.faults.values():
            for spec in specs:
                parse_fault(spec)
        self._http = httpx.Client(
            timeout=CALL_S, trust_env=False, headers={PROTOCOL_HEADER: PROTOCOL_VERSION}
        )
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
        _reap()
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
                    self._hold(announced, release.release_id, deployment.fault)
                else:
                    self._call("POST", announced, "/drain?off=1")
            elif choice.way is not Way.REFUSED:
                fault = deployment.fault
                replicas.append(self._start(release, name, fault, choice, share=bool(base)))
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
        _reap()
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
                error = error or f"{replica.name} ended: {self._tail(replica.name)}"
                continue
            info = self.workspace.process(replica.name)
            which = ""
            if deployment.base:
                held = self._held(info, deployment)
                error = error or (held.error if held is not None else "")
                which = f"?release={release_id}"
            ready = self._call("GET", info, f"/readyz{which}")
            if info is None or info.url is None or ready is None or ready.status_code != 200:
                continue
            attestation = self._attestation(info, which)
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
                error = f"not ready after {waited:.0f} s: {self._tail(deployment.replicas[0].name)}"
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
            self._call("POST", self.workspace.process(replica.name), f"/drain{which}")

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
                if self._call("DELETE", info, f"/releases/{release_id}") is None:
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
            process = _process(info)
            if process is None or self._deployments.ending(info.name) is not None:
                continue
            if taken := self._close(info):
                log.info(
                    "%s answers the %d requests that it has before it ends",
                    info.name,
                    taken,
                    extra={"action": "worker.last_requests", "release": release_id},
                )
                self._deployments.put_ending(info)
            else:
                processes.append(process)
            _signal(process.terminate)
        _, stuck = psutil.wait_procs(processes, timeout=self.grace_s)
        for process in stuck:
            log.warning(
                "worker %d did not stop within %.0f s and is killed",
                process.pid,
                self.grace_s,
                extra={"action": "worker.kill", "release": release_id},
            )
            _signal(process.kill)
        psutil.wait_procs(stuck, timeout=self.grace_s)
        _reap()

    def close(self) -> None:
        """Let go of connections; workers run on."""
        self._http.close()
        _reap()

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

    def _start(
        self, release: Release, name: str, fault: str, choice: Choice, *, share: bool = False
    ) -> Replica:
        settings, tracing = self.config.worker, self.config.tracing
        arguments = [
            *("--workspace", str(self.workspace.root.resolve())),
            *("--release", release.release_id),
            *("--name", name),
            *("--port", "0"),
            *("--device", settings.device),
            *("--offload", settings.offload),
            *("--threads", str(settings.threads)),
            *("--batch-sizes", ",".join(map(str, settings.batch_sizes))),
            *("--batch-wait-ms", str(settings.batch_wait_ms)),
            *("--queue-limit", str(settings.queue_limit)),
            *("--grace-s", str(int(self.config.gateway.request_timeout_s))),
            *(("--strict",) if settings.strict else ()),
            *(() if settings.warm_up else ("--no-warm-up",)),
            *(("--share",) if share else ()),
            *(("--fault", fault) if fault else ()),
            *(("--trace", tracing.endpoint) if tracing else ()),
        ]
        self.workspace.logs.mkdir(parents=True, exist_ok=True)
        if fault:
            log.warning(
                "deploys %s with an injected fault: %s",
                release.short,
                fault,
                extra={"action": "worker.fault", "release": release.release_id},
            )
        try:
            self._log(name).write_bytes(b"")
            if choice.way is Way.HERE:
                forked = spawn(
                    self.workspace,
                    WORKER,
                    arguments,
                    log_file=self._log(name),
                    folder=Path.cwd(),
                    environment=_environment(settings.threads),
                    lock=environment_lock(),
                )
                if forked is not None:
                    started = psutil.Process(forked).create_time()
                    return Replica(name=name, pid=forked, started=started)
            with self._log(name).open("ab") as out:
                child = subprocess.Popen(
                    [*(choice.command or (sys.executable, "-m")), WORKER, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**(choice.variables or os.environ), **_environment(settings.threads)},
                )
            started = psutil.Process(child.pid).create_time()
        except (OSError, psutil.Error) as error:
            raise BackendError(
                f"the worker of {release.short} did not start: {error}",
                backend="local",
                retriable=True,
            ) from error
        _CHILDREN[child.pid] = child
        return Replica(name=name, pid=child.pid, started=started)

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

    # ------------------------------------------------------------------ calls

    def _hold(self, info: ProcessInfo | None, release_id: str, fault: str) -> None:
        """Ask a worker to hold the release. One that has not announced itself is asked later, by
        ``status``."""
        self._call(
            "POST", info, "/releases", encode(HoldRelease(release_id=release_id, fault=fault))
        )

    def _held(self, info: ProcessInfo | None, deployment: Deployment) -> HeldRelease | None:
        """What a shared worker says of the release; one that never heard of it is told."""
        response = self._call("GET", info, f"/releases/{deployment.release_id}")
        if response is not None and response.status_code == 404:
            self._hold(info, deployment.release_id, deployment.fault)
        if response is None or response.status_code != 200:
            return None
        try:
            return decode(HeldRelease, response.content)
        except StorageError:
            return None

    def _call(
        self, method: str, info: ProcessInfo | None, path: str, content: str | None = None
    ) -> httpx.Response | None:
        """Answer of a worker, None if it gave none."""
        if info is None or info.url is None:
            return None
        try:
            return self._http.request(method, f"{info.url}{path}", content=content)
        except httpx.HTTPError:
            return None

    def _close(self, info: ProcessInfo) -> int:
        """Have a worker take no more; requests that it has in hand. 0 if it does not answer."""
        response = self._call("POST", self.workspace.process(info.name), "/drain")
        try:
            said = response.json() if response is not None else {}
            return int(said.get("in_flight", 0))
        except (ValueError, TypeError, AttributeError):
            return 0

    def _cut_short(self, names: Sequence[str]) -> None:
        """Kill retired workers of these names that still answer what they took: the names are
        needed now, and gateways make what breaks off again, elsewhere."""
        for name in names:
            info = self._deployments.ending(name)
            process = None if info is None else _process(info)
            if process is None:
                continue
            log.warning(
                "%s had requests left and is killed, as its name is needed",
                name,
                extra={"action": "worker.kill"},
            )
            _signal(process.kill)
            psutil.wait_procs([process], timeout=self.grace_s)
            _reap()

    def _attestation(self, info: ProcessInfo, which: str) -> Attestation | None:
        response = self._call("GET", info, f"/attest{which}")
        if response is None or response.status_code != 200:
            return None
        try:
            return decode(Attestation, response.content)
        except StorageError:
            return None

    # ------------------------------------------------------------------ files

    def _log(self, name: str) -> Path:
        return self.workspace.logs / f"{name}.log"

    def _tail(self, name: str) -> str:
        try:
            with self._log(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return "no log"
        return "\n".join(lines[-TAIL_LINES:]) or "empty log"

    def _fault(self, release: Release, count: int) -> str:
        specs = self.config.faults.get(release.release_id)
        if specs is None and release.provenance.recipe:
            specs = self.config.faults.get(release.provenance.recipe)
        return specs[count - 1] if specs and count <= len(specs) else ""


def _name(base: str, release_id: str, replica: int) -> str:
    whose = f"base-{base[:10]}" if base else release_id[:10]
    return f"worker-{whose}" + (f"-{replica}" if replica else "")


def _environment(threads: int) -> Mapping[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads were ten times slower on shared cores
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _process(info: ProcessInfo) -> psutil.Process | None:
    try:
        return psutil.Process(info.pid) if alive(info) else None
    except psutil.NoSuchProcess:
        return None


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()  # psutil compares the start time again


def _reap() -> None:
    """Workers that ended are zombies until somebody asks for their exit status."""
    for pid, child in list(_CHILDREN.items()):
        if child.poll() is not None:
            del _CHILDREN[pid]
