"""Start one worker: ``python -m intonaco.serving.worker.main --workspace DIR --release ID``.

It listens and announces itself at once (not ready), loads, warms up, and announces itself ready.
A release that cannot be loaded ends the process with exit code 4 (2: refused) and a last line in
its log that says why.

With ``--share`` it loads the release's base alone and holds the release over it, and others that
``POST /releases`` names (``sharing.py``). One that cannot be loaded is refused then, and the
process goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from intonaco.errors import ConfigError, Conflict, IntonacoError
from intonaco.plugins import OTEL, need_extra
from intonaco.releases import ReleaseStore, base_id, check_folder
from intonaco.serving.faults import parse_fault
from intonaco.serving.http import WORKER_KEEP_ALIVE_S, bind, on_stop, server
from intonaco.serving.worker.app import Loaded, Worker
from intonaco.serving.worker.gpu import find_gpu
from intonaco.sources import is_remote
from intonaco.types import Release
from intonaco.workspace import Workspace

if TYPE_CHECKING:
    from intonaco.serving.worker.spans import WorkerTracing

log = logging.getLogger(__name__)

HUNG = 5  # exit code
LAST_S = 10.0  # after the grace of a stop, for a process that hangs all the same
SWITCH_INTERVAL_S = 0.001  # the denoise thread must not keep the network waiting for 5 ms


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="intonaco.serving.worker.main")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--release", required=True)
    parser.add_argument("--name", help="of the process; worker-RELEASE by default")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--offload", default="none", help="none, model or sequential")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", default="1,2,4,8")
    parser.add_argument("--strict", action="store_true", help="one batch size, the largest")
    parser.add_argument("--batch-wait-ms", type=float, default=5.0)
    parser.add_argument("--queue-limit", type=int, default=64)
    parser.add_argument("--no-warm-up", action="store_true")
    parser.add_argument("--grace-s", type=int, default=600)
    parser.add_argument("--trace", metavar="ENDPOINT", help="where spans go")
    parser.add_argument(
        "--share", action="store_true", help="serve further releases of the same base weights too"
    )
    parser.add_argument(
        "--while-pid", type=int, help="end when the process of that id has ended: a benchmark's"
    )
    parser.add_argument("--fault", default="", help="for drills, e.g. errors:after=20")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        return run(args)
    except IntonacoError as error:
        log.error("%s", error)
        return error.exit_code


def run(args: argparse.Namespace) -> int:
    workspace = Workspace(args.workspace.resolve())
    release = ReleaseStore(workspace, "").get(args.release)
    name = args.name or f"worker-{release.short}"
    if args.while_pid is not None:
        end_with(args.while_pid)
    with _lock(workspace, name):
        return asyncio.run(_serve(args, workspace, release, name))


def _lock(workspace: Workspace, name: str) -> IO[str]:
    """Held for life: two workers of one name never run at once, however they were started."""
    workspace.run.mkdir(parents=True, exist_ok=True)
    file = (workspace.run / f"{name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Conflict(f"{name} runs already") from None
    return file


def open_tracing(endpoint: str | None, release: Release, name: str) -> WorkerTracing | None:
    """None if nothing is to be traced: then nothing of OpenTelemetry is imported. None too where it
    is not installed, which the log says: an environment of before must not lose its release."""
    if endpoint is None:
        return None
    try:
        need_extra("serving.tracing", *OTEL)
    except ConfigError as error:
        log.warning("not traced: %s", error, extra={"action": "worker.tracing"})
        return None
    from intonaco.serving.tracing import exporting
    from intonaco.serving.worker.spans import WorkerTracing

    return WorkerTracing(
        exporting(endpoint),
        service=release.service_id,
        name=name,
        now=time.time,
        monotonic=time.monotonic,
    )


def end_at_last(seconds: float) -> None:
    """End this process then, whatever hangs in it: who asked it to stop does not wait for what it
    has in hand, and so cannot kill it."""

    def end() -> None:
        log.error("still there %.0f s after a stop, and ended", seconds)
        os._exit(HUNG)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def end_with(pid: int) -> None:
    """End this process when that one has ended, however it did: nobody else knows of this one."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(0)

    def wait() -> None:
        process.wait()
        os._exit(0)

    threading.Thread(target=wait, name="while-pid", daemon=True).start()


async def _serve(
    args: argparse.Namespace, workspace: Workspace, release: Release, name: str
) -> int:
    fault = parse_fault(args.fault)
    if not is_remote(release.path):
        check_folder(workspace.resolve(release.path))  # refused before anything is imported for it
    sock, url = bind(args.host, args.port, what=name)
    facts = {"release_id": release.release_id, "fault": args.fault}
    if args.share:
        base = base_id(release.serving)
        if base is None:
            raise ConfigError(
                f"release {release.short} is fused on loading or compiled: no --share"
            )
        facts = {"base": base, "release_id": ""}  # whose it is changes
    workspace.announce(name, url=url, ready=False, **facts)
    if fault:
        log.warning(
            "FAULT INJECTED FOR A DRILL: %s (release %s itself is unchanged)",
            args.fault,
            release.short,
            extra={"action": "worker.fault"},
        )

    worker = Worker(
        sizes=tuple(sorted(int(s) for s in args.batch_sizes.split(","))),
        wait_s=args.batch_wait_ms / 1000,
        queue_limit=args.queue_limit,
        strict=args.strict,
        fault=None if args.share else fault,  # it is one release's
        share=args.share,
        tracing=open_tracing(args.trace, release, name),
    )
    sharing = worker.sharing
    http = server(worker.app(), keep_alive_s=WORKER_KEEP_ALIVE_S, grace_s=args.grace_s)
    failed: list[BaseException] = []

    def denoise() -> None:
        """Load, warm up and serve, all on the one thread that ever touches the pipeline."""
        try:
            # The heavy import comes after the announcement, so that a backend can adopt this
            # process, and here, so that the process answers meanwhile.
            from intonaco.serving.worker.base import SharedBase
            from intonaco.serving.worker.engine import load, png

            store = ReleaseStore(workspace, "")
            engine = load(
                release,
                store.folder(release),  # fetched, if it lies at a URL
                device=args.device,
                threads=args.threads,
                offload=args.offload,
                base_only=args.share,
            )
            gpu = find_gpu(engine.device, os.environ)
            if sharing is not None:
                sharing.base.set_result(SharedBase(engine, store, gpu))
                workspace.announce(name, url=url, ready=True, **facts)
                log.info(
                    "base loaded after %.1f s",
                    engine.load_seconds,
                    extra={"action": "worker.base", "base": facts["base"]},
                )
                worker.batcher.serve()
                return
            worker.loaded = Loaded(
                engine=engine,
                png=png,
                gpu=gpu,
                weights_bytes=engine.weights_bytes,
                idle_bytes=engine.idle_bytes,
            )
            if engine.release_id != release.release_id:
                # Not ended here: whoever deploys compares the attested id and decides.
                log.error(
                    "loaded %s, asked for %s: the folder or the environment is another",
                    engine.release_id,
                    release.release_id,
                    extra={"action": "worker.mismatch"},
                )
            if not args.no_warm_up:
                worker.warm_up()
            worker.ready = True
            workspace.announce(
                name,
                url=url,
                ready=True,
                attested=engine.release_id,
                start_seconds=time.time() - psutil.Process().create_time(),
                **facts,
            )
            log.info(
                "ready at %s after %.1f s",
                url,
                engine.load_seconds,
                extra={"action": "worker.ready", "release": release.release_id},
            )
            worker.batcher.serve()
        except BaseException as error:
            failed.append(error)
            http.should_exit = True

    thread = threading.Thread(target=denoise, name="denoise", daemon=True)
    on_stop(http, then=lambda: end_at_last(args.grace_s + LAST_S))
    if sharing is not None:
        sharing.warm_up = not args.no_warm_up
        sharing.add(release.release_id, args.fault)
    thread.start()
    await http.serve(sockets=[sock])  # on a stop: takes no new work, answers what it took
    worker.batcher.stop()
    if worker.tracing is not None:
        await asyncio.to_thread(worker.tracing.close)
    if failed:
        error = failed[0]
        refused = isinstance(error, ConfigError)
        log.error("%s: %s", type(error).__name__, error, exc_info=None if refused else error)
        return error.exit_code if isinstance(error, IntonacoError) else 4
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # torch's threads may not keep a stopped worker alive
