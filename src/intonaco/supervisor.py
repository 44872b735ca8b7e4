"""``intonaco up``: starts every process of a workspace on one machine and keeps them running.

Fork server, gateway, scorer, controller and console are children and end with it. Workers and jobs
belong to their backends: they survive a controller's death; workers end when ``up`` ends in good
order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Stop

import psutil

from intonaco.errors import BackendError, Conflict
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)

PROCESSES: Mapping[str, str] = {
    "forkserver": "intonaco.forkserver",
    "gateway": "intonaco.serving.gateway.main",
    "scorer": "intonaco.monitoring.scorer",
    "controller": "intonaco.cli.run_controller",
    "console": "intonaco.console.main",
}


def gateway_names(count: int) -> tuple[str, ...]:
    """Of gateways side by side: ``gateway``, ``gateway-1`` and so on."""
    return ("gateway", *(f"gateway-{i}" for i in range(1, count)))


def command(name: str) -> list[str]:
    """Module and arguments of a process, without those that all take. Raises KeyError."""
    kind, _, number = name.partition("-")
    if number and kind == "gateway" and number.isdigit():
        return [PROCESSES[kind], "--name", name]
    return [PROCESSES[name]]


START_SECONDS = 60.0
SETTLE_SECONDS = 10.0
GRACE_SECONDS = 10.0
RESTARTS_PER_MINUTE = 5


@dataclass(slots=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    starts: list[float] = field(default_factory=list)
    resting: bool = False  # it keeps dying, and is not started again for a while


class Supervisor:
    """Children of one workspace."""

    def __init__(
        self,
        workspace: Workspace,
        names: Sequence[str] = tuple(PROCESSES),
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workspace = workspace
        self.names = names
        self._monotonic = monotonic
        self.children: dict[str, _Child] = {}

    def start(self, names: Sequence[str] | None = None) -> None:
        """Start all (or these) and wait until each has announced itself. Raises Conflict if the
        workspace runs already, BackendError with the reason if one does not come up."""
        names = self.names if names is None else names
        for name in names:
            running = self.workspace.process(name)
            if running is not None:
                raise Conflict(
                    f"{name} of this workspace runs already (pid {running.pid})",
                    hint="`intonaco status` shows it; end it before you start another",
                )
        for name in names:
            self._spawn(name)
        deadline = time.monotonic() + START_SECONDS
        waiting = list(names)
        while waiting:
            waiting = [n for n in waiting if self.workspace.process(n) is None]
            for name in waiting:
                if self.children[name].process.poll() is not None:
                    name = self._first_fault(name, waiting)
                    self.stop()
                    said, hint = self._last_words(name)
                    raise BackendError(
                        f"{name} did not start: {said}", backend=name, retriable=False, hint=hint
                    )
            if waiting and time.monotonic() > deadline:
                self.stop()
                raise BackendError(
                    f"{', '.join(waiting)} did not start within {START_SECONDS:.0f} s",
                    backend=waiting[0],
                    retriable=False,
                )
            time.sleep(0.05)  # waiting for the children to announce themselves

    def _first_fault(self, name: str, waiting: Sequence[str]) -> str:
        """Whose fault is to be told, where ``name`` has ended instead of coming up: of gateways
        side by side the first one's, as the others also fail for the port that it has taken."""
        if not name.startswith("gateway"):
            return name
        deadline = time.monotonic() + SETTLE_SECONDS
        for other in waiting[: waiting.index(name)]:
            if not other.startswith("gateway"):
                continue
            process = self.children[other].process
            while process.poll() is None and self.workspace.process(other) is None:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)  # it comes up, or ends too
            if process.poll() is not None:
                return other
        return name

    def begin(self, name: str) -> None:
        """Start one more and do not wait for it; ``revive`` looks after it."""
        self._spawn(name)

    def watch(self, stop: Stop) -> None:
        """Start a child again when it dies, until told to stop."""
        while not stop.wait(0.5):
            self.revive()

    def revive(self) -> list[str]:
        """Start again what has died; returns the names. One that keeps dying is started less often
        and takes nothing with it: users are served although the console cannot run."""
        revived = []
        for child in [c for c in self.children.values() if c.process.poll() is not None]:
            now = self._monotonic()
            recent = [at for at in child.starts if now - at < 60]
            if len(recent) >= RESTARTS_PER_MINUTE:
                if not child.resting:
                    child.resting = True
                    said, hint = self._last_words(child.name)
                    log.error(
                        "%s keeps dying: %s; it is started %d times a minute at most; %s",
                        child.name,
                        said,
                        RESTARTS_PER_MINUTE,
                        hint,
                        extra={"action": "revive"},
                    )
                continue
            log.warning("%s died, starting it again", child.name, extra={"action": "revive"})
            self._spawn(child.name)
            revived.append(child.name)
        return revived

    def stop(self, *, drain_s: float = GRACE_SECONDS, hurry: Stop | None = None) -> None:
        """End the children, then the workers that the backends started. Gateways have ``drain_s``
        to answer what they took; once ``hurry`` is set nobody has any more time."""
        ending = [c for c in self.children.values() if c.process.poll() is None]
        for child in ending:
            child.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        # Gateways last: no user waits for the others.
        for child in sorted(ending, key=lambda c: c.name.startswith("gateway")):
            grace = GRACE_SECONDS
            if child.name.startswith("gateway"):
                grace = max(grace, drain_s)
            while child.process.poll() is None:
                hurried = hurry is not None and hurry.is_set()
                if hurried or time.monotonic() - begun > grace:
                    child.process.kill()
                    child.process.wait()
                else:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.process.wait(0.1)
        self.children.clear()
        end_workers(self.workspace)

    def _spawn(self, name: str) -> None:
        self.workspace.logs.mkdir(parents=True, exist_ok=True)
        starts = self.children[name].starts if name in self.children else []
        with self._log(name).open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *command(name), "--workspace", str(self.workspace.root)],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C reaches the supervisor, which ends them in order
                env={**os.environ, **ENVIRONMENT},
            )
        self.children[name] = _Child(
            name, process, [*starts[-RESTARTS_PER_MINUTE:], self._monotonic()]
        )

    def _log(self, name: str) -> Path:
        return self.workspace.logs / f"{name}.log"

    def _last_words(self, name: str) -> tuple[str, str]:
        """What a process said last, and its hint, else where its log is."""
        lines = self._log(name).read_text(errors="replace").strip().splitlines()
        hint = f"its log is {self._log(name)}"
        if lines and lines[-1].startswith("hint: "):
            hint = lines.pop().removeprefix("hint: ")
        said = lines[-1].removeprefix("error: ") if lines else "it said nothing"
        return said, hint


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def end_workers(workspace: Workspace) -> None:
    """End the workers that run for this workspace."""
    found = []
    for file in workspace.run.glob("worker-*.json"):
        info = workspace.process(file.stem)
        if info is not None:
            found.append(psutil.Process(info.pid))
    for process in found:
        process.terminate()
    _, stubborn = psutil.wait_procs(found, timeout=GRACE_SECONDS)
    for process in stubborn:
        process.kill()
