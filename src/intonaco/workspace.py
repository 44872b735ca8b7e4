"""Where things lie on disk. One folder holds a whole deployment on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from intonaco.codec import decode, encode
from intonaco.errors import StorageError
from intonaco.messages import ProcessInfo
from intonaco.types import Json

TICKED = "controller.ticked"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace a file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Json]) -> None:
    write_atomic(path, json.dumps(value))


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of a workspace. ``root`` holds ``intonaco.yaml``."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "intonaco.yaml"

    @property
    def ledger(self) -> Path:
        return self.root / "state" / "ledger.db"

    @property
    def mlflow(self) -> Path:
        return self.root / "state" / "mlflow.db"

    @property
    def records(self) -> Path:
        """Segment logs of the gateways, one folder each."""
        return self.root / "records"

    @property
    def scores(self) -> Path:
        """Segment log of the scorer."""
        return self.root / "scores"

    @property
    def feedback(self) -> Path:
        """Segment logs of users' feedback, one folder a gateway."""
        return self.root / "feedback"

    @property
    def tallies(self) -> Path:
        """Segment logs of what gateways counted at their door, one folder a gateway."""
        return self.root / "tallies"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def conditions(self) -> Path:
        """Pictures that users sent in with edits, if they are kept. Not handed out by gateways."""
        return self.root / "conditions"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def models(self) -> Path:
        """Pipeline folders fetched from elsewhere; may be deleted, they are fetched again."""
        return self.root / "cache" / "models"

    @property
    def encoded(self) -> Path:
        """Latents and text embeddings of datasets; may be deleted, they are made again."""
        return self.root / "cache" / "encoded"

    @property
    def evaluations(self) -> Path:
        """Images and features that evaluations keep; may be deleted, they are made again."""
        return self.root / "evaluations"

    @property
    def environments(self) -> Path:
        """Locks, and what was built of them."""
        return self.root / "environments"

    @property
    def reviews(self) -> Path:
        """Pictures that reviewers are shown, one folder a review."""
        return self.root / "reviews"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def run(self) -> Path:
        """Files about running processes."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def resolve(self, path: str) -> Path:
        """A path of the configuration or the ledger: relative ones are relative to the root."""
        return self.root / path

    def relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.root.resolve()).as_posix()

    def admin_token(self) -> str:
        """The secret between this workspace's own processes, made on first use."""
        return self._secret("admin.token")

    def instance_key(self) -> bytes:
        """The key of this workspace's digests and signed tokens, made on first use. Who has it
        knows units and prompts again from their digests; who loses it voids the tokens."""
        return self._secret("instance.key").encode()

    def _secret(self, name: str) -> str:
        file = self.run / name
        if not file.exists():
            self.run.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.run, prefix=f".{name}.")  # mode 0600
            with os.fdopen(handle, "w") as out:
                out.write(secrets.token_urlsafe(32))
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(temporary, file)
            Path(temporary).unlink()
        secret = file.read_text()
        if not secret:
            raise StorageError(f"{file} is empty", hint="delete it and start again")
        return secret

    def announce(self, name: str, *, url: str | None = None, **facts: Json) -> ProcessInfo:
        """Write down that this process runs as ``name``."""
        info = ProcessInfo(
            name=name,
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            url=url,
            facts=facts,
        )
        write_atomic(self.run / f"{name}.json", encode(info))
        return info

    def ticked(self, at: float) -> None:
        """Leave the controller's sign of life: the time of a file, which takes no room on a full
        disk. ``at``: seconds since the Unix epoch. Raises OSError."""
        file = self.run / TICKED
        try:
            os.utime(file, (at, at))
        except FileNotFoundError:
            self.run.mkdir(parents=True, exist_ok=True)
            file.touch()
            os.utime(file, (at, at))

    def last_tick(self) -> float | None:
        """When a controller last came to the end of a tick, in seconds since the Unix epoch; None
        if none ever did here."""
        try:
            return (self.run / TICKED).stat().st_mtime
        except OSError:
            return None

    def process(self, name: str) -> ProcessInfo | None:
        """The running process of that name, or None if there is none alive."""
        file = self.run / f"{name}.json"
        try:
            info = decode(ProcessInfo, file.read_bytes())
        except FileNotFoundError:
            return None
        return info if alive(info) else None

    def processes(self) -> list[ProcessInfo]:
        """All processes that announced themselves and run."""
        found = []
        for file in sorted(self.run.glob("*.json")):
            with contextlib.suppress(StorageError):  # other things lie there too: tables, offsets
                found.append(self.process(file.stem))
        return [info for info in found if info is not None]

    def gateways(self) -> list[ProcessInfo]:
        """The running gateways, in the order of their names."""
        names = [p.stem for p in self.run.glob("gateway*.json")]
        numbers = {n: int(n[8:]) for n in names if n[:8] == "gateway-" and n[8:].isdigit()}
        known = sorted(numbers, key=lambda n: numbers[n])
        found = [self.process(n) for n in ("gateway", *known)]
        return [info for info in found if info is not None]


def alive(info: ProcessInfo) -> bool:
    """Whether the very process (not a later one with its pid) still runs."""
    try:
        process = psutil.Process(info.pid)
        return (
            abs(process.create_time() - info.started) < 0.05
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
