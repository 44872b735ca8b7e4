"""Releases as they are served, for a benchmark: each arm in a worker process of its own, asked over
the worker's own protocol.

The workers are none of the serving backend's: they take no users' requests, announce themselves
under names of their own, and end with the process that started them, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil

from intonaco.codec import decode, encode
from intonaco.environments import EnvironmentStore, environment_lock
from intonaco.environments.build import FLAGS, tail, variables
from intonaco.errors import BackendError, StorageError
from intonaco.evaluation.benchmark import Drawn, Memory, Timed, in_turns
from intonaco.evaluation.prompts import Shot
from intonaco.forkserver import spawn
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Attestation,
    Generated,
    GenerateRequest,
    ProcessInfo,
    WorkerError,
)
from intonaco.types import Json
from intonaco.workspace import Workspace, alive

log = logging.getLogger(__name__)

WORKER = "intonaco.serving.worker.main"
POLL_S = 0.05
END_S = 10.0
IMAGE_S = 3600.0  # of one image: a job has its own limit


@dataclass(slots=True)
class ServedArm:
    """A worker of one release. Raises BackendError with what it says, or the end of its log."""

    workspace: Workspace
    release_id: str
    name: str
    generation: Mapping[str, Json]
    log_file: Path
    pid: int
    _http: httpx.Client
    _child: subprocess.Popen[bytes] | None = None
    _info: ProcessInfo | None = field(init=False, default=None)

    @classmethod
    def start(
        cls,
        workspace: Workspace,
        release_id: str,
        *,
        name: str,
        generation: Mapping[str, Json],
        worker: Mapping[str, Json],
        log_file: Path,
        environments: EnvironmentStore | None = None,
        environment: str = "",
        concurrency: int = 1,
    ) -> ServedArm:
        """Start a worker and wait until it is ready. ``worker``: ``serving.worker`` of the
        configuration. ``environments``: where another than this interpreter's is built. Raises
        NotFound, BackendError."""
        threads = int(worker.get("threads", 1))
        arguments = [
            *("--workspace", str(workspace.root.resolve())),
            *("--release", release_id),
            *("--name", name),
            *("--device", str(worker.get("device", "auto"))),
            *("--offload", str(worker.get("offload", "none"))),
            *("--threads", str(threads)),
            *("--batch-sizes", ",".join(str(s) for s in worker.get("batch_sizes", (1, 2, 4, 8)))),
            *("--batch-wait-ms", str(worker.get("batch_wait_ms", 5.0))),
            *("--queue-limit", str(max(concurrency, int(worker.get("queue_limit", 64))))),
            *(("--strict",) if worker.get("strict") else ()),
            "--no-warm-up",  # what is timed is warmed up by requests like it
            *("--grace-s", "1"),
            *("--while-pid", str(os.getpid())),
        ]
        settings = {
            **{f"{v}_NUM_THREADS": str(threads) for v in ("OMP", "MKL", "OPENBLAS")},
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "DIFFUSERS_VERBOSITY": "error",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        away = environments is not None and environment not in ("", environment_lock())
        log_file.write_bytes(b"")
        pid, child = None, None
        if not away:
            pid = spawn(
                workspace,
                WORKER,
                arguments,
                log_file=log_file,
                folder=workspace.root,
                environment=settings,
                niceness=os.nice(0),
                lock=environment_lock(),
            )
        if pid is None:
            python, before = Path(sys.executable), dict(os.environ)
            flags: tuple[str, ...] = ()
            if away and environments is not None:
                python = environments.build(environment)
                before, flags = variables(environments.code()), FLAGS
            with log_file.open("ab") as out:
                child = subprocess.Popen(
                    [str(python), *flags, "-m", WORKER, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=before | settings,
                )
            pid = child.pid
        http = httpx.Client(
            timeout=IMAGE_S, trust_env=False, headers={PROTOCOL_HEADER: PROTOCOL_VERSION}
        )
        arm = cls(workspace, release_id, name, generation, log_file, pid, http, child)
        try:
            arm._wait(float(worker.get("ready_timeout_s", 300.0)))
        except BaseException:
            arm.close()
            raise
        return arm

    def draw(self, shot: Shot) -> Drawn:
        """Have one image drawn, and say what it took."""
        generation = self.generation
        wanted = GenerateRequest(
            request_id="benchmark",
            prompt=shot.prompt.prompt,
            seed=shot.seed,
            steps=int(generation["steps"]),
            guidance_scale=float(generation["guidance_scale"]),
            width=int(generation["width"]),
            height=int(generation["height"]),
            release=self.release_id,
        )
        started = time.perf_counter()
        answer = self._ask("POST", "/generate", encode(wanted))
        took = time.perf_counter() - started
        said = decode(Generated, answer.headers[GENERATED_HEADER])
        return Drawn(answer=took, service=said.service_seconds, cpu=said.cpu_seconds)

    def wave(self, shots: Sequence[Shot], pool: ThreadPoolExecutor) -> float:
        """Wall seconds until all of these, asked for at once, are there."""
        started = time.perf_counter()
        for done in [pool.submit(self.draw, shot) for shot in shots]:
            done.result()
        return time.perf_counter() - started

    def attest(self) -> Attestation:
        return decode(Attestation, self._ask("GET", "/attest").content)

    def memory(self) -> Memory:
        """Most of it so far."""
        said = self.attest()
        return Memory(weights=said.weights_bytes, peak=said.peak_memory_bytes, idle=said.idle_bytes)

    def close(self) -> None:
        """End the process and forget it."""
        self._http.close()
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            process = psutil.Process(self.pid)
            # Nothing is in it that anybody waits for.
            process.kill()
            process.wait(END_S)
        if self._child is not None:
            self._child.wait(END_S)
        for suffix in ("json", "lock"):
            (self.workspace.run / f"{self.name}.{suffix}").unlink(missing_ok=True)

    # ------------------------------------------------------------------ parts

    def _wait(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            info = self.workspace.process(self.name)
            if info is not None and info.pid == self.pid and info.facts.get("ready"):
                self._info = info
                attested = str(info.facts.get("attested"))
                if attested != self.release_id:
                    raise self._error(
                        f"attests {attested[:10]}: its files or its environment are another's"
                    )
                return
            if self._ended():
                raise self._error(f"ended: {tail(self.log_file)}")
            time.sleep(POLL_S)
        raise self._error(f"was not ready after {timeout_s:.0f} s: {tail(self.log_file)}")

    def _ended(self) -> bool:
        if self._child is not None:
            return self._child.poll() is not None
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _ask(self, method: str, path: str, content: str | None = None) -> httpx.Response:
        assert self._info is not None
        try:
            answer = self._http.request(method, f"{self._info.url}{path}", content=content)
        except httpx.HTTPError as error:
            gone = "" if alive(self._info) else f", it ended: {tail(self.log_file)}"
            raise self._error(f"did not answer ({type(error).__name__}){gone}") from error
        if answer.status_code != 200:
            try:
                said = decode(WorkerError, answer.content).message
            except StorageError:
                said = f"status {answer.status_code}"
            raise self._error(f"refused: {said}")
        return answer

    def _error(self, text: str) -> BackendError:
        return BackendError(
            f"the worker of release {self.release_id[:10]} {text}", backend="worker", retriable=True
        )


def time_in_turns(
    champion: ServedArm,
    candidate: ServedArm,
    shots: Sequence[Shot],
    *,
    rounds: int,
    waves: int,
    concurrency: int,
    report: Callable[[int, int], None],
) -> Timed:
    """Time both arms in turns (``benchmark.in_turns``): ``rounds`` of one image,
    then ``waves`` of ``concurrency`` images asked for at once. One of each is drawn before and not
    counted. ``report``: (done, of) rounds and waves."""
    timed = Timed(concurrency=concurrency)
    total = rounds + waves
    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        for arm in (champion, candidate):
            arm.draw(shots[0])
        for number in range(rounds):
            shot = shots[number % len(shots)]
            timed.rounds.append(
                in_turns(number, partial(champion.draw, shot), partial(candidate.draw, shot))
            )
            report(number + 1, total)
        if waves:
            for arm in (champion, candidate):
                arm.wave(_some(shots, 0, concurrency), pool)
        for number in range(waves):
            several = _some(shots, number + 1, concurrency)
            timed.waves.append(
                in_turns(
                    number,
                    partial(champion.wave, several, pool),
                    partial(candidate.wave, several, pool),
                )
            )
            report(rounds + number + 1, total)
    return timed


def _some(shots: Sequence[Shot], number: int, count: int) -> list[Shot]:
    start = number * count
    return [shots[(start + i) % len(shots)] for i in range(count)]
