"""The environments of a workspace: their locks, what is built of them, and how to start in one.

::

    environments/
      ENVIRONMENT/            the id that releases name
        lock.txt
        KEY/                  a build; complete once it holds intonaco.json
        KEY.log  KEY.failed.json
      code/HASH/intonaco      a link to this package, alone in its folder
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

import intonaco
from intonaco.environments.build import (
    FLAGS,
    MARKER,
    Build,
    Tools,
    make,
    plan,
    tail,
    variables,
)
from intonaco.environments.lock import (
    Lock,
    capture,
    difference,
    environment_lock,
    environment_versions,
    installed,
    parse,
)
from intonaco.errors import BackendError, ConfigError, Conflict, IntonacoError, NotFound
from intonaco.types import Json
from intonaco.workspace import Workspace, write_atomic, write_json

log = logging.getLogger(__name__)

LAUNCHER = "intonaco.environments.launch"
RETRY_S = 300.0  # a build that failed is not tried again before this by itself


class State(StrEnum):
    """Of an environment on this machine."""

    HERE = "here"  # this interpreter is it
    BUILT = "built"
    BUILDING = "building"
    FAILED = "failed"
    ABSENT = "absent"  # its lock is known
    UNKNOWN = "unknown"  # not even that


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an environment stands. ``facts``: what its build wrote down."""

    environment: str
    state: State
    python: str = ""
    text: str = ""
    at: float = 0.0  # when it was built or failed
    facts: Mapping[str, Json] = field(default_factory=dict)


class Way(StrEnum):
    """How a process is started."""

    HERE = "here"
    BUILT = "built"
    BUILD = "build"  # build first, then become the process
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Where to start a process, and why not if it is refused."""

    way: Way
    command: tuple[str, ...] = ()  # before ``MODULE ARGUMENTS``
    variables: Mapping[str, str] = field(default_factory=dict)  # the whole environment, if not here
    text: str = ""


class EnvironmentStore:
    """``base``: "auto" builds layers over this interpreter where that is sound, "none" never.
    ``timeout_s``: of a build."""

    def __init__(
        self, workspace: Workspace, *, base: str = "auto", timeout_s: float = 3600.0
    ) -> None:
        self.workspace = workspace
        self.base = base
        self.timeout_s = timeout_s

    # ------------------------------------------------------------------ locks

    def keep(self, lock: Lock) -> str:
        """Write a lock down under its id, if none is there yet."""
        file = self._lock_file(lock.digest)
        if not file.exists():
            write_atomic(file, lock.text())
        return lock.digest

    def adopt(self, environment: str, file: Path) -> None:
        """Keep the lock that lies beside a release, if it is the one of that id."""
        if environment == environment_lock() or self._lock_file(environment).exists():
            return
        with contextlib.suppress(OSError, ConfigError):
            lock = parse(file.read_text(), source=str(file), whole=False)
            if lock.digest == environment:
                self.keep(lock)

    def lock(self, environment: str) -> Lock:
        """Raises NotFound."""
        file = self._lock_file(environment)
        if file.exists():
            return parse(file.read_text(), source=str(file), whole=False)
        if environment == environment_lock():
            return capture()
        raise NotFound(
            f"nobody has given the lock of environment {environment[:10]}",
            hint="`intonaco environment add FILE` keeps one",
        )

    def knows(self, environment: str) -> bool:
        return environment == environment_lock() or self._lock_file(environment).exists()

    def find(self, beginning: str) -> str:
        """The whole id of one. Raises NotFound, Conflict."""
        found = [e for e in self.list() if e.startswith(beginning)]
        if len(found) > 1:
            raise Conflict(f"{beginning!r} is the beginning of {len(found)} environments")
        if not found or not beginning:
            raise NotFound(
                f"no environment {beginning}", hint="`intonaco environment list` shows those known"
            )
        return found[0]

    def list(self) -> list[str]:
        """Ids of all whose lock is kept, and of this interpreter."""
        kept = {p.parent.name for p in self.workspace.environments.glob("*/lock.txt")}
        return sorted(kept | {environment_lock()})

    # ------------------------------------------------------------------ builds

    def plan(self, environment: str) -> Build:
        """Raises NotFound."""
        lock = self.lock(environment)
        return plan(
            lock,
            layers=self.base == "auto",
            here=environment_versions(),
            there=installed(lock.pins),
            prefix=sys.prefix,
        )

    def standing(self, environment: str) -> Standing:
        """How it stands now; starts nothing."""
        if environment == environment_lock():
            return Standing(environment=environment, state=State.HERE, python=sys.executable)
        if not self.knows(environment):
            return Standing(
                environment=environment,
                state=State.UNKNOWN,
                text=f"nobody has given the lock of environment {environment[:10]}",
            )
        build = self.plan(environment)
        folder = self._folder(environment, build)
        facts = _read(folder / MARKER)
        if facts:
            return Standing(
                environment=environment,
                state=State.BUILT,
                python=str(folder / "bin" / "python"),
                at=float(facts["built_at"]),
                facts=facts,
            )
        if self._is_building(environment):
            text = tail(self._log_file(environment, build), 3)
            return Standing(environment=environment, state=State.BUILDING, text=text)
        failed = _read(self._failed_file(environment, build))
        if failed:
            return Standing(
                environment=environment,
                state=State.FAILED,
                text=str(failed["error"]),
                at=float(failed["at"]),
            )
        return Standing(environment=environment, state=State.ABSENT)

    def build(self, environment: str, *, tools: Tools | None = None) -> Path:
        """Build it if it is not there; its interpreter. Waits for another that builds it. Raises
        NotFound, BackendError."""
        if environment == environment_lock():
            return Path(sys.executable)
        build = self.plan(environment)
        folder = self._folder(environment, build)
        failed = self._failed_file(environment, build)
        with self._exclusive(environment) as held:
            if (folder / MARKER).exists():
                return folder / "bin" / "python"
            self._remove_half_made(environment)
            try:
                python = make(
                    build,
                    folder,
                    code=self.code(),
                    log_file=self._log_file(environment, build),
                    timeout_s=self.timeout_s,
                    keep=(held,),
                    tools=tools,
                )
            except IntonacoError as error:
                write_json(failed, {"error": str(error), "at": time.time()})
                shutil.rmtree(folder, ignore_errors=True)
                raise
            failed.unlink(missing_ok=True)
            return python

    def remove(self, environment: str, *, lock: bool = False) -> int:
        """Remove its builds, and its lock if asked; bytes freed. Raises Conflict if a process runs
        in it or it is being built."""
        folder = self.workspace.environments / environment
        if not folder.is_dir():
            return 0
        if running := _running_in(folder):
            raise Conflict(
                f"environment {environment[:10]} is in use by process {running[0]}",
                hint="retire its release first",
            )
        if self._is_building(environment):
            raise Conflict(f"environment {environment[:10]} is being built")
        freed = 0
        with self._exclusive(environment):
            for path in folder.iterdir():
                if path.name in ("lock.txt", ".lock") and not lock:
                    continue
                freed += _size(path)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if lock:
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def remove_outdated(self, environment: str) -> int:
        """Remove builds that would not be used now (another base) and that nothing runs in; bytes
        freed."""
        return sum(self.remove_build(build) or 0 for build in self._outdated(environment))

    def spare(self, named: Collection[str]) -> Sequence[Path]:
        """Folders of builds that would not be used for any environment in ``named``, and that
        nothing runs in."""
        spare: list[Path] = []
        for environment in self.list():
            spare += self._outdated(environment) if environment in named else self._of(environment)
        return [build for build in spare if not _running_in(build)]

    def remove_build(self, build: Path) -> int | None:
        """Remove one; bytes freed. None: something runs in it, or it is gone."""
        with self._exclusive(build.parent.name):
            if not build.is_dir() or _running_in(build):
                return None
            freed = _size(build)
            shutil.rmtree(build)
        return freed

    def size(self, build: Path) -> int:
        """Bytes of one."""
        return _size(build)

    def _of(self, environment: str) -> Sequence[Path]:
        """Its complete builds."""
        folder = self.workspace.environments.resolve() / environment
        return [marker.parent for marker in sorted(folder.glob(f"*/{MARKER}"))]

    def _outdated(self, environment: str) -> Sequence[Path]:
        current = self._folder(environment, self.plan(environment))
        return [build for build in self._of(environment) if build != current]

    def unused(self, named: Collection[str]) -> Sequence[str]:
        """Ids of the kept ones that none of ``named`` is."""
        return [e for e in self.list() if e not in named and self._lock_file(e).exists()]

    def sizes(self, environment: str) -> int:
        """Bytes of all its builds."""
        folder = self.workspace.environments / environment
        return sum(int(_read(m).get("bytes", 0)) for m in folder.glob(f"*/{MARKER}"))

    # ------------------------------------------------------------------ starting

    def choose(self, environment: str, *, mode: str, now: float) -> Choice:
        """How to start a process of a release that names this environment. ``mode``: "build",
        "refuse" or "ignore" (start it here, where it will attest what is there)."""
        if mode == "ignore" or environment in ("", environment_lock()):
            return Choice(way=Way.HERE)
        if mode == "refuse":
            return Choice(way=Way.REFUSED, text=self._refusal(environment))
        standing = self.standing(environment)
        match standing.state:
            case State.BUILT:
                return Choice(
                    way=Way.BUILT,
                    command=(standing.python, *FLAGS, "-m"),
                    variables=variables(self.code()),
                )
            case State.UNKNOWN:
                return Choice(
                    way=Way.REFUSED,
                    text=f"{standing.text}; `intonaco environment add FILE` keeps one",
                )
            case State.FAILED if now - standing.at < RETRY_S:
                return Choice(
                    way=Way.REFUSED,
                    text=f"{standing.text}\n(tried again {RETRY_S:.0f} s after it failed, or by "
                    f"`intonaco environment build {environment[:10]}`)",
                )
        settings = (
            *("--workspace", str(self.workspace.root.resolve())),
            *("--environment", environment),
            *("--base", self.base),
            *("--timeout-s", str(self.timeout_s)),
        )
        return Choice(
            way=Way.BUILD,
            command=(sys.executable, "-m", LAUNCHER, *settings, "--"),
            variables=dict(os.environ),
        )

    def _refusal(self, environment: str) -> str:
        wanted = f"the release names environment {environment[:10]}"
        if self.knows(environment):
            told = difference(self.lock(environment).versions, environment_versions())
            wanted += f" ({told})"
        return f"{wanted} and serving.environments is 'refuse'"

    def code(self) -> Path:
        """A folder that holds a link to this package and nothing else, so that a process of another
        environment finds our code and none of the packages beside it."""
        package = Path(intonaco.__file__).resolve().parent
        name = hashlib.sha256(str(package).encode()).hexdigest()[:12]
        folder = self.workspace.environments.resolve() / "code" / name
        link = folder / "intonaco"
        if not link.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another process was first
                link.symlink_to(package, target_is_directory=True)
        return folder

    # ------------------------------------------------------------------ files

    def _lock_file(self, environment: str) -> Path:
        return self.workspace.environments / environment / "lock.txt"

    def _folder(self, environment: str, build: Build) -> Path:
        return self.workspace.environments.resolve() / environment / build.key

    def _log_file(self, environment: str, build: Build) -> Path:
        return self._folder(environment, build).with_suffix(".log")

    def _failed_file(self, environment: str, build: Build) -> Path:
        return self._folder(environment, build).with_suffix(".failed.json")

    def _remove_half_made(self, environment: str) -> None:
        for path in (self.workspace.environments / environment).iterdir():
            if path.is_dir() and not (path / MARKER).exists():
                shutil.rmtree(path)

    @contextlib.contextmanager
    def _exclusive(self, environment: str) -> Iterator[int]:
        """The one who may change what is built. The descriptor is inherited by installers, so that
        one whose parent was killed still keeps others away until it has ended."""
        file = self.workspace.environments / environment / ".lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield opened.fileno()

    def _is_building(self, environment: str) -> bool:
        file = self.workspace.environments / environment / ".lock"
        try:
            with file.open() as opened:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def become(python: Path, code: Path, module: str, arguments: Sequence[str]) -> None:
    """Be ``python -m MODULE ARGUMENTS``, under the same pid; never returns. Raises BackendError."""
    command = [str(python), *FLAGS, "-m", module, *arguments]
    try:
        os.execve(command[0], command, variables(code))
    except OSError as error:
        raise BackendError(
            f"{python} does not start: {error}", backend="environments", retriable=False
        ) from error


def _read(file: Path) -> Mapping[str, Json]:
    try:
        found: Mapping[str, Json] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _running_in(folder: Path) -> list[int]:
    """Processes whose interpreter lies in the folder."""
    inside = f"{folder.resolve()}{os.sep}"
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"]
        if command and command[0].startswith(inside):
            found.append(process.pid)
    return found


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in files if p.is_symlink() or p.is_file())
