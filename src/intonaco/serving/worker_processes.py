"""Worker processes of this machine: started, ended, and what they printed."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from intonaco.config import Serving
from intonaco.environments import Choice, Way, environment_lock
from intonaco.errors import BackendError
from intonaco.forkserver import spawn
from intonaco.messages import ProcessInfo
from intonaco.serving.deployments import Replica
from intonaco.types import Release
from intonaco.workspace import Workspace, alive

log = logging.getLogger(__name__)

WORKER = "intonaco.serving.worker.main"
TAIL_BYTES = 4000
TAIL_LINES = 8

# Children of this process, whichever backend object started them: kept until they are reaped.
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class WorkerProcesses:
    """``grace_s``: between SIGTERM and SIGKILL."""

    workspace: Workspace
    config: Serving
    grace_s: float

    def start(
        self, release: Release, name: str, fault: str, choice: Choice, *, share: bool = False
    ) -> Replica:
        """Start a worker. Raises BackendError, retriable."""
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
                    environment=environment(settings.threads),
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
                    env={**(choice.variables or os.environ), **environment(settings.threads)},
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

    def stop(self, processes: Sequence[psutil.Process], release_id: str) -> None:
        """SIGTERM was sent; SIGKILL for those still there after the grace."""
        _, stuck = psutil.wait_procs(processes, timeout=self.grace_s)
        for process in stuck:
            log.warning(
                "worker %d did not stop within %.0f s and is killed",
                process.pid,
                self.grace_s,
                extra={"action": "worker.kill", "release": release_id},
            )
            signal(process.kill)
        psutil.wait_procs(stuck, timeout=self.grace_s)
        reap()

    def _log(self, name: str) -> Path:
        return self.workspace.logs / f"{name}.log"

    def tail(self, name: str) -> str:
        """The last lines that a worker of that name printed."""
        try:
            with self._log(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return "no log"
        return "\n".join(lines[-TAIL_LINES:]) or "empty log"


def environment(threads: int) -> Mapping[str, str]:
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


def process_of(info: ProcessInfo) -> psutil.Process | None:
    """The live process that is meant, never one that its pid passed on to."""
    try:
        return psutil.Process(info.pid) if alive(info) else None
    except psutil.NoSuchProcess:
        return None


def signal(send: Callable[[], None]) -> None:
    """Send it, unless the process is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        send()  # psutil compares the start time again


def reap() -> None:
    """Workers that ended are zombies until somebody asks for their exit status."""
    for pid, child in list(_CHILDREN.items()):
        if child.poll() is not None:
            del _CHILDREN[pid]
