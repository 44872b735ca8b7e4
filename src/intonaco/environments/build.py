"""Makes an environment from its lock: a virtual environment of its own, or a layer.

A **full** build installs every pin. A **layer** installs only the pins in which the lock differs
from this interpreter's packages and finds the others there, behind its own: gigabytes and minutes
less when only diffusers differs. ``plan`` decides which, ``make`` does it.

Installed is exactly what is pinned (``--no-deps``), wheels only unless ``PIP_ONLY_BINARY`` or
``UV_NO_BUILD`` say otherwise, since building from source runs the package's code here. Where
packages come from is the installer's own configuration.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal

from intonaco.codec import digest
from intonaco.environments.lock import Lock, difference
from intonaco.errors import BackendError
from intonaco.workspace import write_json

log = logging.getLogger(__name__)

MARKER = "intonaco.json"  # written last: a folder without it is half made
TAIL_LINES = 6
TAIL_BYTES = 6000
# Settings of a person's pip that would send packages somewhere else or change what is pinned.
FOREIGN = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT", "PIP_REQUIREMENT")

# Run in the new environment: what it really holds, and whether a worker could start.
CHECK = """
import json, sys
from importlib.util import find_spec
import intonaco.serving.worker.main
from intonaco.environments.lock import environment_versions, installed
names = json.loads(sys.argv[1])
missing = [n for n in ("torch", "diffusers", "transformers") if find_spec(n) is None]
print(json.dumps([dict(environment_versions()), installed(names), missing]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One way to make an environment. ``install``: names of the pins to install."""

    kind: Literal["layer", "full"]
    lock: Lock
    install: tuple[str, ...]
    base: str = ""  # prefix of the interpreter that a layer lies on
    reason: str = ""  # why it is no layer

    @property
    def key(self) -> str:
        """Names the folder. Another base, or a base whose packages changed, gives another."""
        return digest([self.kind, self.base, self.lock.text(self.install)])[:12]


def plan(
    lock: Lock,
    *,
    layers: bool,
    here: Mapping[str, str],
    there: Mapping[str, str],
    prefix: str,
) -> Build:
    """How to make an environment. ``here``: this interpreter's versions of what decides an image,
    ``there``: of all that the lock names. Pure.

    A layer must hold nothing back that the lock leaves out, and it must not exchange torch, which
    other packages are compiled against.
    """
    extra = [n for n in here if n not in lock.versions]
    if not layers:
        reason = "layers are switched off"
    elif lock.python != here["python"]:
        reason = f"python {lock.python}, here {here['python']}"
    elif lock.pins.get("torch") != here.get("torch"):
        reason = f"torch {lock.pins.get('torch')}, here {here.get('torch', 'absent')}"
    elif extra:
        reason = f"the lock has no {', '.join(extra)}, which would be found here"
    else:
        differing = tuple(sorted(n for n, v in lock.pins.items() if there.get(n) != v))
        return Build(kind="layer", lock=lock, install=differing, base=prefix)
    return Build(kind="full", lock=lock, install=tuple(sorted(lock.pins)), reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What can make environments here."""

    interpreter: str = sys.executable
    version: str = ".".join(map(str, sys.version_info[:3]))
    uv: str | None = field(default_factory=lambda: shutil.which("uv"))
    pip: bool = field(default_factory=lambda: find_spec("pip") is not None)

    def create(self, folder: Path, python: str) -> list[str]:
        """Command that makes an empty environment. Raises BackendError: no such Python."""
        if python == self.version:
            return [self.interpreter, "-m", "venv", "--without-pip", str(folder)]
        if self.uv:
            return [self.uv, "venv", "--quiet", "--python", python, str(folder)]
        other = shutil.which(f"python{python.rpartition('.')[0]}")
        if other and _version_of(other) == python:
            return [other, "-m", "venv", "--without-pip", str(folder)]
        raise BackendError(
            f"the lock names Python {python}, and this machine has none",
            backend="environments",
            retriable=False,
            hint="install it so that it is on the PATH, or install uv, which fetches it",
        )

    def install(self, folder: Path, requirements: Path) -> list[str]:
        """Command that installs pins. Raises BackendError: neither uv nor pip."""
        python = str(folder / "bin" / "python")
        what = ["--no-deps", "-r", str(requirements)]
        if self.uv:
            return [self.uv, "pip", "install", "--compile-bytecode", "--python", python, *what]
        if self.pip:
            pip = [self.interpreter, "-m", "pip", "--python", python, "install"]
            return [*pip, "--no-input", "--disable-pip-version-check", "--progress-bar=off", *what]
        raise BackendError(
            "there is neither uv nor pip to build an environment with",
            backend="environments",
            retriable=False,
            hint="install uv, or run `python -m ensurepip` with this interpreter",
        )


def make(
    build: Build,
    folder: Path,
    *,
    code: Path,
    log_file: Path,
    timeout_s: float,
    keep: Sequence[int] = (),
    tools: Tools | None = None,
) -> Path:
    """Make the environment in its place (they cannot be moved); its interpreter. What is half made
    there is removed first. Children inherit ``keep``, the caller's lock. Raises BackendError with
    the last lines of the log."""
    tools = tools or Tools()
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    run = _Commands(log_file, build.lock.digest, started + timeout_s, tuple(keep))
    with log_file.open("wb"):
        pass
    run(tools.create(folder, build.lock.python))
    if build.install:
        requirements = folder / "requirements.txt"
        requirements.write_text(build.lock.text(build.install))
        run(tools.install(folder, requirements))
    if build.kind == "layer":
        # Last, or the installer would take the base's packages for its own to replace.
        # addsitedir, not bare paths, so that the base's own .pth files count as they do there.
        lines = [f"import site; site.addsitedir({p!r})\n" for p in site.getsitepackages()]
        (_packages(folder) / "intonaco-base.pth").write_text("".join(lines))
    _check(build, run([str(python), *FLAGS, "-c", CHECK, _names(build.lock)], variables(code)))
    write_json(
        folder / MARKER,
        {
            "kind": build.kind,
            "environment": build.lock.digest,
            "base": build.base,
            "installed": list(build.install),
            "bytes": sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir()),
            "seconds": time.monotonic() - started,
            "built_at": time.time(),
        },
    )
    log.info(
        "built environment %s as a %s build of %d packages in %.0f s",
        build.lock.digest[:10],
        build.kind,
        len(build.install),
        time.monotonic() - started,
        extra={"action": "environment.build"},
    )
    return python


# Nothing from the folder it is started in or the user's own packages.
FLAGS = ("-P", "-s")


def variables(code: Path) -> dict[str, str]:
    """Variables for a process of a built environment. Only ``code``, which holds our own package
    and nothing else, comes before the environment's packages."""
    dropped = {"PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", *FOREIGN}
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return kept | {"PYTHONPATH": str(code)}


def tail(file: Path, lines: int = TAIL_LINES) -> str:
    """The end of a log."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = opened.read().decode(errors="replace")
    except OSError:
        return "no log"
    return "\n".join(text.splitlines()[-lines:]) or "empty log"


def _names(lock: Lock) -> str:
    return json.dumps(sorted(lock.pins))


def _packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python3.*")) / "site-packages"


def _check(build: Build, output: str) -> None:
    """Raises BackendError unless the environment holds what the lock says."""
    lock = build.lock
    versions, packages, missing = json.loads(output.splitlines()[-1])
    if missing:
        raise _failed(lock, f"{', '.join(missing)} cannot be found in it")
    if versions != lock.versions:
        told = difference(lock.versions, versions)
        raise _failed(lock, f"it holds other versions than the lock: {told}")
    if packages != lock.pins:
        raise _failed(
            lock, f"it holds other versions than the lock: {difference(lock.pins, packages)}"
        )


def _failed(lock: Lock, text: str) -> BackendError:
    return BackendError(
        f"environment {lock.digest[:10]} could not be built: {text}",
        backend="environments",
        retriable=True,
    )


@dataclass(frozen=True, slots=True)
class _Commands:
    """Runs commands one after the other into one log, until a common deadline."""

    log_file: Path
    environment: str
    deadline: float
    keep: tuple[int, ...]

    def __call__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
        """What the command printed on its standard output if ``environ`` is given; else that goes
        into the log too. Raises BackendError."""
        captured = environ is not None
        with self.log_file.open("ab") as out:
            if not captured:
                out.write(f"$ {' '.join(command)}\n".encode())
                out.flush()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if captured else out,
                stderr=out if captured else subprocess.STDOUT,
                env=environ or _for_installers(),
                start_new_session=True,  # an installer starts children: all are ended as one
                pass_fds=self.keep,
                preexec_fn=_be_nice,
            )
            printed = _wait(child, self.deadline)
        if printed is None:
            raise self._error("it took too long")
        if child.returncode:
            name = Path(command[0]).name
            raise self._error(f"{name} ended with {child.returncode}\n{tail(self.log_file)}")
        return printed.decode(errors="replace")

    def _error(self, text: str) -> BackendError:
        return BackendError(
            f"environment {self.environment[:10]} could not be built: {text}",
            backend="environments",
            retriable=True,
            hint=f"the whole log is {self.log_file}",
        )


def _wait(child: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """What it printed, None if it did not end in time; it is ended then, as when we are."""
    try:
        printed, _ = child.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except BaseException as error:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        pipe: IO[bytes] | None = child.stdout
        if pipe is not None:
            pipe.close()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise
    return printed or b""


def _for_installers() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in (*FOREIGN, "PYTHONPATH")}
    return {"PIP_ONLY_BINARY": ":all:", "UV_NO_BUILD": "1"} | kept


def _be_nice() -> None:
    os.nice(10)  # what serves on this machine goes first


def _version_of(interpreter: str) -> str:
    done = subprocess.run(
        [interpreter, "-c", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout.strip()
