"""Jobs as detached subprocesses of this machine.

A job outlives the process that submitted it. Besides the job's own files (``intonaco.jobs``) its
folder holds::

    start.lock       flock held while a job is being started, cancelled or ended
    alive.lock       flock shared by the job's processes: free means that none is left, whatever
                     happened to them and to whoever started them
    started.json     when, written before the start
    group            process group id, written by the job's shell as its first act
    cancelled.json   written before the group is ended
    restarts.json    how often it was started again, and the seconds that it had run before

Whether a job runs is asked of the kernel (``alive.lock``), not of a process id that may have been
given to another process meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from intonaco.clock import Clock, SystemClock
from intonaco.codec import canonical, encode
from intonaco.errors import BackendError, Conflict, NotFound
from intonaco.forkserver import spawn
from intonaco.jobs import JobFolder
from intonaco.types import JobHandle, JobSpec, JobState, JobStatus
from intonaco.workspace import Workspace, write_atomic, write_json

log = logging.getLogger(__name__)

BACKEND = "local"
_GRACE_S = 5.0  # between asking a group to end and ending it
_TAIL = 2000  # characters of the log that an error quotes
# $0 job folder, $1 niceness, $2 python, $3 module. The shell leaves at once, so that the job is
# nobody's child: no zombie for the controller to reap. -P keeps the folder off the import path.
_START = """\
echo $$ > "$0/group.new" && mv "$0/group.new" "$0/group" || exit 1
nice -n "$1" "$2" -P -m "$3" "$0" </dev/null >"$0/log.txt" 2>&1 &
"""


class LocalTrainingBackend:
    """Runs each job as ``python -m ENTRYPOINT JOB_FOLDER`` in ``jobs/KEY_DIGEST``, in a session of
    its own, on one thread unless it asks for more, with lower priority so that serving keeps its
    latency. Relative paths in a payload are relative to the workspace.

    A job that dies without a result or an error (killed, or its machine restarted) and has written
    a checkpoint is started again in its folder, ``restarts`` times at most; the time that it lay
    dead does not count."""

    def __init__(
        self,
        workspace: Workspace,
        clock: Clock | None = None,
        *,
        niceness: int = 5,
        restarts: int = 0,
    ) -> None:
        self.workspace = workspace
        self.clock = clock or SystemClock()
        self.niceness = niceness
        self.restarts = restarts

    def submit(self, spec: JobSpec) -> JobHandle:
        """Start the job, or adopt the one that has this key already, running or ended.

        Raises Conflict if the key stands for other work, BackendError if it cannot be started.
        """
        job = JobFolder(self.workspace.jobs.resolve() / folder_name(spec.key))
        job.root.mkdir(parents=True, exist_ok=True)
        handle = JobHandle(
            key=spec.key, backend=BACKEND, ref={"folder": self.workspace.relative(job.root)}
        )
        with _locked(job.root):
            if (job.root / "spec.json").exists():
                _check_same(job.spec, spec)
            if not _was_started(job):
                write_atomic(job.root / "spec.json", encode(spec))
                write_json(job.root / "started.json", {"at": self.clock.now()})
                self._start(job, spec)
                log.info("started %s", spec.key, extra={"action": "job.start", "key": spec.key})
        return handle

    def poll(self, handle: JobHandle) -> JobStatus:
        """How the job stands; ends it first if its time is up, starts it again if it died and can
        go on. Raises NotFound if the job's folder is gone."""
        job = self._folder(handle)
        alive = _alive(job)  # before the results are read: one that ends in between has them
        if alive and (limit := job.spec.max_seconds) and self._elapsed(job) > limit:
            with _locked(job.root):
                _end_group(job)
                if not (job.root / "result.json").exists():
                    message = f"stopped at its limit of {limit:g} s"
                    write_json(job.root / "error.json", {"message": message})
            alive = False
        if not alive and self._can_go_on(job):
            with _locked(job.root):
                if not _alive(job) and self._can_go_on(job):  # nobody else started it meanwhile
                    self._start_again(job)
            alive = True
        return self._status(job, alive)

    def cancel(self, handle: JobHandle) -> None:
        """End it and all processes of its group, or, if it died and would be started again, leave
        it dead. A job that ended is left as it is."""
        job = self._folder(handle)
        with _locked(job.root):
            if _alive(job) or self._can_go_on(job):
                write_json(job.root / "cancelled.json", {"at": self.clock.now()})
                _end_group(job)

    def running(self) -> list[JobHandle]:
        """Jobs of the workspace of which any process is left, whoever submitted them."""
        jobs = [JobFolder(file.parent) for file in sorted(self.workspace.jobs.glob("*/spec.json"))]
        return [
            JobHandle(
                key=job.spec.key, backend=BACKEND, ref={"folder": self.workspace.relative(job.root)}
            )
            for job in jobs
            if _alive(job)
        ]

    def _can_go_on(self, job: JobFolder) -> bool:
        ends = ("result.json", "error.json", "cancelled.json")
        return (
            int(job.read("restarts").get("count", 0)) < self.restarts
            and any((job.root / "checkpoints").glob("step-*"))
            and not any((job.root / name).exists() for name in ends)
        )

    def _start_again(self, job: JobFolder) -> None:
        count, spent = int(job.read("restarts").get("count", 0)) + 1, _took(job)
        write_json(job.root / "restarts.json", {"count": count, "seconds": spent})
        write_json(job.root / "started.json", {"at": self.clock.now() - spent})
        with suppress(FileNotFoundError):
            (job.root / "log.txt").replace(job.root / f"log.{count}.txt")
        self._start(job, job.spec)
        log.warning(
            "started %s again, which had died",
            job.spec.key,
            extra={"action": "job.restart", "key": job.spec.key},
        )

    def _folder(self, handle: JobHandle) -> JobFolder:
        job = JobFolder(self.workspace.resolve(handle.ref["folder"]))
        if not (job.root / "spec.json").exists():
            raise NotFound(f"no job {handle.key}", hint=f"its folder was {job.root}")
        return job

    def _start(self, job: JobFolder, spec: JobSpec) -> None:
        environment = {
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        niceness = str(self.niceness)
        lock = os.open(job.root / "alive.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            forked = spawn(
                self.workspace,
                spec.entrypoint,
                [str(job.root)],
                log_file=job.root / "log.txt",
                folder=self.workspace.root,
                environment=environment,
                niceness=self.niceness,
                pid_file=job.root / "group",
                keep=[lock],
            )
            if forked is not None:
                return
            subprocess.run(
                ["/bin/sh", "-c", _START, str(job.root), niceness, sys.executable, spec.entrypoint],
                check=True,
                cwd=self.workspace.root,
                env=os.environ | environment,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise BackendError(
                f"cannot start {spec.entrypoint}: {error}", backend=BACKEND, retriable=True
            ) from error
        finally:
            os.close(lock)

    def _status(self, job: JobFolder, alive: bool) -> JobStatus:
        result, error = job.read("result"), job.read("error")
        message = ""
        if (job.root / "result.json").exists():
            state = JobState.SUCCEEDED
        elif alive and not error:
            state = JobState.RUNNING
        elif (job.root / "cancelled.json").exists():
            state, message = JobState.CANCELLED, "cancelled"
        else:
            state, message = JobState.FAILED, str(error.get("message") or _death(job))
        return JobStatus(
            state=state,
            progress=job.read("progress"),
            result=result,
            error=message,
            seconds=self._elapsed(job) if state is JobState.RUNNING else _took(job),
        )

    def _elapsed(self, job: JobFolder) -> float:
        return self.clock.now() - float(job.read("started").get("at", self.clock.now()))


def folder_name(key: str) -> str:
    """Name of a job's folder."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _check_same(old: JobSpec, new: JobSpec) -> None:
    if (old.entrypoint, canonical(old.payload)) != (new.entrypoint, canonical(new.payload)):
        raise Conflict(
            f"job {new.key} exists already and does something else ({old.entrypoint})",
            hint="other work needs another key",
        )


def _was_started(job: JobFolder) -> bool:
    """Whether there was a start; call with ``start.lock`` held.

    Between the start of the shell and its first act the only sign is ``alive.lock``. It is waited
    for, as a poll may hold that lock for an instant too.
    """
    for _ in range(200):
        if any((job.root / n).exists() for n in ("group", "result.json", "error.json")):
            return True
        if not _alive(job):
            return (job.root / "group").exists()
        time.sleep(0.01)
    raise BackendError(f"{job.root} is held by an unknown process", backend=BACKEND, retriable=True)


def _alive(job: JobFolder) -> bool:
    """Whether any process of the job is left."""
    try:
        lock = os.open(job.root / "alive.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _end_group(job: JobFolder) -> None:
    """Ask the job's processes to end, then end them; returns when none is left."""
    for sign, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        deadline = time.monotonic() + patience
        while _alive(job):
            with suppress(FileNotFoundError, ProcessLookupError):  # not yet written, or just gone
                os.killpg(int((job.root / "group").read_text()), sign)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
    if _alive(job):
        raise BackendError(f"{job.root}: cannot be ended", backend=BACKEND, retriable=True)


def _death(job: JobFolder) -> str:
    """What to say of a job that left neither result nor error."""
    try:
        tail = (job.root / "log.txt").read_text(errors="replace")[-_TAIL:].strip()
    except FileNotFoundError:
        tail = ""
    # A machine that is short of memory kills without a word to the process, so neither has its log.
    text = "ended without a result: killed, perhaps for want of memory, or the machine restarted"
    return text + (f"; the end of its log:\n{tail}" if tail else "")


def _took(job: JobFolder) -> float:
    """Seconds that an ended job ran, from the times of its files, earlier starts included."""
    times = []
    for name in ("group", "result.json", "error.json", "progress.json", "log.txt"):
        with suppress(FileNotFoundError):
            times.append((job.root / name).stat().st_mtime)
    before = float(job.read("restarts").get("seconds", 0.0))
    return before + (max(times) - times[0] if times else 0.0)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; a killed holder holds nothing."""
    handle = os.open(folder / "start.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
