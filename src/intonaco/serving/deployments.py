"""What was started for each release, written down in ``run/deployment-RELEASE.json``, and workers
that are about to end, in ``run/WORKER.ending``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from intonaco.codec import decode, encode
from intonaco.messages import ProcessInfo
from intonaco.workspace import Workspace, alive, write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A worker process that was started."""

    name: str
    pid: int
    started: float  # the operating system's start time of the pid

    @property
    def process(self) -> ProcessInfo:
        return ProcessInfo(name=self.name, pid=self.pid, started=self.started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """``count``: how many times the release was deployed from nothing. ``environment``: that of its
    workers, empty if they run in this interpreter's. ``refused``: why none was started. ``base``:
    of workers that hold other releases too, empty for workers of its own. ``size``: how many
    workers it was scaled to, 0 if it never was."""

    release_id: str
    count: int = 0
    fault: str = ""
    at: float = 0.0
    retired: bool = False
    environment: str = ""
    refused: str = ""
    base: str = ""
    size: int = 0
    replicas: tuple[Replica, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployments:
    """The deployments of a workspace."""

    workspace: Workspace

    def get(self, release_id: str) -> Deployment:
        try:
            return decode(Deployment, self._file(release_id).read_bytes())
        except FileNotFoundError:
            return Deployment(release_id=release_id)

    def put(self, deployment: Deployment) -> None:
        write_atomic(self._file(deployment.release_id), encode(deployment))

    def others(self, release_id: str, base: str) -> list[Deployment]:
        """Of other releases in the workers of that base."""
        files = sorted(self.workspace.run.glob("deployment-*.json"))
        found = [decode(Deployment, file.read_bytes()) for file in files]
        return [d for d in found if d.base == base and not d.retired and d.release_id != release_id]

    def needed_by_others(self, deployment: Deployment) -> Collection[Replica]:
        """Those of its replicas that other releases are in."""
        if not deployment.base:
            return ()
        others = self.others(deployment.release_id, deployment.base)
        needed = {(r.name, r.pid) for d in others for r in d.replicas}
        return [r for r in deployment.replicas if (r.name, r.pid) in needed]

    def ending(self, name: str) -> ProcessInfo | None:
        """The worker of that name that still answers what it took before it was retired."""
        try:
            info = decode(ProcessInfo, self._ending(name).read_bytes())
        except FileNotFoundError:
            return None
        if alive(info):
            return info
        self._ending(name).unlink(missing_ok=True)
        return None

    def all_ending(self, prefix: str) -> int:
        """How many workers whose names begin so still answer what they took."""
        names = [path.stem for path in self.workspace.run.glob(f"{prefix}*.ending")]
        return sum(self.ending(name) is not None for name in names)

    def put_ending(self, info: ProcessInfo) -> None:
        write_atomic(self._ending(info.name), encode(info))

    def _ending(self, name: str) -> Path:
        return self.workspace.run / f"{name}.ending"

    def _file(self, release_id: str) -> Path:
        return self.workspace.run / f"deployment-{release_id[:10]}.json"
