"""The fork server: starts Python processes that need no import of their own.

Importing torch, diffusers and transformers takes longer than many a job. This process imports them
once, single-threaded and before any of them does work, and forks a child for each request; the
child is a process of its own, detached, with its own log. Where no fork server runs (or its answer
does not come), ``spawn`` says so and the caller starts an interpreter as usual: it is an
optimisation, never a need.

The way of asking is one JSON object over a Unix socket in a folder that only this user can enter,
with open file descriptors beside it where the child shall inherit some.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import logging
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intonaco.environments.lock import environment_lock
from intonaco.errors import BackendError
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)

NAME = "forkserver"
ANSWER_SECONDS = 60.0  # a request that comes during the imports waits for them
REQUEST_BYTES = 1 << 20
# module, or module:attribute where the library imports only what is touched
PRELOAD = (
    "numpy",
    "PIL.Image",
    "torch",
    "torch.optim",
    "transformers:CLIPModel",
    "transformers:CLIPTextModel",
    "transformers:CLIPTokenizer",
    "diffusers:DiffusionPipeline",
    "diffusers:StableDiffusionPipeline",
    "diffusers:AutoencoderKL",
    "diffusers:UNet2DConditionModel",
    "diffusers:DPMSolverMultistepScheduler",
    "diffusers.training_utils:EMAModel",
    "peft:LoraConfig",
    "uvicorn",
    "starlette.applications",
)


def spawn(
    workspace: Workspace,
    module: str,
    arguments: Sequence[str],
    *,
    log_file: Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    niceness: int = 0,
    pid_file: Path | None = None,
    keep: Sequence[int] = (),
    lock: str | None = None,
) -> int | None:
    """Run ``python -m MODULE ARGUMENTS`` in a forked child; its pid, None if no fork server runs,
    or none that holds the environment ``lock`` (its packages may have been exchanged since).

    The child leads a session of its own, appends what it prints to ``log_file``, runs in ``folder``
    and writes its pid to ``pid_file`` before anything else. It inherits the descriptors ``keep``.
    Raises BackendError if a fork server took the request and did not answer.
    """
    info = workspace.process(NAME)
    if info is None or info.url is None:
        return None
    if lock is not None and info.facts.get("environment") != lock:
        return None
    request = {
        "module": module,
        "arguments": list(arguments),
        "log": str(log_file.resolve()),
        "folder": str(folder.resolve()),
        "environment": dict(environment or {}),
        "niceness": niceness,
        "pid_file": str(pid_file.resolve()) if pid_file else None,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(info.url)
        except OSError as error:
            log.warning("no fork server: %s", error, extra={"action": "spawn"})
            return None
        try:
            socket.send_fds(connection, [json.dumps(request).encode()], list(keep))
            connection.shutdown(socket.SHUT_WR)
            return int(json.loads(connection.recv(4096))["pid"])
        except (OSError, ValueError) as error:
            # It may have forked and died: whoever asked must look before trying again.
            raise BackendError(
                f"the fork server did not answer: {error}", backend=NAME, retriable=True
            ) from error


class ForkServer:
    """Serves requests one after the other until it is told to stop."""

    def __init__(self, workspace: Workspace, preload: Sequence[str] = PRELOAD) -> None:
        self.workspace = workspace
        self.preload = preload
        self._folder = Path(tempfile.mkdtemp(prefix="intonaco-"))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._folder / "socket"))
        self._socket.listen(16)

    def run(self) -> None:
        """Announce, import, serve. Ends by SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        signal.signal(signal.SIGCHLD, _reap)
        # Kept for the children, too: what they hold is what was there when it was imported, even
        # if the packages on disk are exchanged later.
        held = environment_lock()
        self.workspace.announce(NAME, url=str(self._folder / "socket"), environment=held)
        try:
            self._import()
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    self._answer(connection)
        except _Stop:
            pass
        finally:
            self._socket.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _import(self) -> None:
        for target in self.preload:
            name, _, attribute = target.partition(":")
            try:
                module = importlib.import_module(name)
                if attribute:
                    getattr(module, attribute)
            except ImportError as error:
                log.warning("not preloaded: %s (%s)", target, error, extra={"action": "preload"})
        threads = len(list(Path("/proc/self/task").iterdir()))
        log.info("ready with %d thread(s)", threads, extra={"action": "preload"})
        gc.collect()
        gc.freeze()  # keeps the children from copying pages only to count references

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5.0)
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 16)
            while more := connection.recv(REQUEST_BYTES):
                data += more
            request = json.loads(data)
        except (OSError, ValueError) as error:
            log.warning("not a request: %s", error, extra={"action": "fork"})
            return
        pid = os.fork()
        if pid == 0:
            self._socket.close()
            connection.close()
            _become(request)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps({"pid": pid}).encode())


def _become(request: Mapping[str, Any]) -> None:
    """In the child: be that process, and never return."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        os.nice(int(request["niceness"]))
        os.chdir(request["folder"])
        if request["pid_file"]:
            Path(request["pid_file"]).write_text(str(os.getpid()))
        out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(request["environment"])
        for handler in logging.getLogger().handlers[:]:
            logging.getLogger().removeHandler(handler)
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class _Stop(BaseException):
    """Told to end."""


def _stop(*_: object) -> None:
    raise _Stop


def _reap(*_: object) -> None:
    """Take the exit codes of children that ended; nobody asks for them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    """The process: ``python -m intonaco.forkserver --workspace DIR``."""
    parser = argparse.ArgumentParser(prog="intonaco run forkserver")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--preload", nargs="*", default=list(PRELOAD))
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    ForkServer(Workspace(arguments.workspace), arguments.preload).run()


if __name__ == "__main__":
    main()
