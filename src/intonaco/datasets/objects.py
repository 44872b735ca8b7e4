"""File contents by their sha256, read-only and sealed.

::

    objects/ab/cdef...    one file for each distinct content
    incoming/NAME/        what is being made; belongs to the process that holds NAME.lock

A content is written aside, brought to the disk together with the others of its batch, and only then
renamed into place: what lies under ``objects/`` is whole, whenever the process or the machine died.

**Seal.** Each object has the mode 0444 and one fixed time of last change. Whoever writes to it, in
place or through a hard link, moves that time, so one ``stat`` tells whether a content must be read
again before it is trusted. Restoring the time hides an edit from that; `dataset verify` reads all.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from intonaco.datasets.identity import CHUNK, Hasher, Stored, hash_file
from intonaco.errors import ConfigError, StorageError

log = logging.getLogger(__name__)

SEAL_NS = 946_684_800 * 10**9  # 1 January 2000: zip and others cannot say much earlier times
BATCH_FILES = 4096
BATCH_BYTES = 256 << 20

Progress = Callable[[str, int, int], None]  # what is done, how many of how many (0: not known)


def silent(what: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""


class Objects:
    """Contents under ``root``. Safe to use from several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256[2:]

    def has(self, file: Stored) -> bool:
        """Whether its content is here and as it was. One without its seal is read again; a broken
        one counts as missing, and adding it puts it right."""
        # Of 100,000 paths, putting each together as a Path takes longer than looking at the files.
        return intact(f"{self.root}/objects/{file.sha256[:2]}/{file.sha256[2:]}", file)

    def add(
        self,
        files: Iterable[tuple[Stored, Path | bytes]],
        staging: Path,
        *,
        move: bool = False,
        progress: Progress = silent,
    ) -> None:
        """Take contents in, batch by batch. ``move``: the sources are ours and may be taken away.
        Raises ConfigError if a source is no longer what it was hashed as, StorageError if it cannot
        be written."""
        wanted = {file.sha256: (file, source) for file, source in files}
        batch: list[tuple[Stored, Path]] = []
        done = size = 0
        try:
            for file, source in wanted.values():
                done += 1
                if not self.has(file):
                    batch.append((file, _stage(file, source, staging, move=move)))
                    size += file.size
                if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
                    self._commit(batch)
                    batch, size = [], 0
                progress("store", done, len(wanted))
            self._commit(batch)
        except OSError as error:
            raise StorageError(
                f"{self.root} cannot be written: {error.strerror}",
                hint="make room and add it again: what was taken in already is kept",
            ) from error

    def link(self, file: Stored, target: Path) -> None:
        """Put a content at a path, replacing what is there: a hard link, else a copy."""
        temporary = target.with_name(f".{secrets.token_hex(8)}")
        source = self.path(file.sha256)
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:  # the disk has no links, or the content has as many as it can
            shutil.copyfile(source, temporary)
            seal(temporary)
        temporary.replace(target)

    def _commit(self, batch: Sequence[tuple[Stored, Path]]) -> None:
        if len(batch) > 8:
            os.sync()  # one wait for all; each file's own takes milliseconds
        for file, temporary in batch:
            if len(batch) <= 8:
                _to_disk(temporary)
            target = self.path(file.sha256)
            try:
                temporary.rename(target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.rename(target)


def intact(path: str, file: Stored) -> bool:
    """Whether the file at a path has the content and its seal. Without the seal it is read: a right
    one is sealed again, a wrong one logged."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if found.st_size == file.size and found.st_mtime_ns == SEAL_NS:
        return True
    if found.st_size != file.size or not has_content(Path(path), file):
        log.warning("%s was changed", path, extra={"action": "dataset.changed"})
        return False
    seal(Path(path))
    return True


def has_content(path: Path, file: Stored) -> bool:
    """Reads it."""
    try:
        return not path.is_symlink() and hash_file(path, "").sha256 == file.sha256
    except ConfigError:
        return False


def seal(path: Path) -> None:
    """Read-only, and the time that says nobody wrote to it since."""
    path.chmod(0o444)
    os.utime(path, ns=(SEAL_NS, SEAL_NS))


@contextlib.contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A folder of our own under ``incoming``, gone afterwards. What killed processes left there is
    removed first: the kernel lets go of a dead process's lock."""
    incoming = root / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    for left in incoming.glob("*.lock"):
        _remove_if_dead(left)
    while True:
        lock = incoming / f"{secrets.token_hex(8)}.lock"
        with lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not lock.exists():  # taken for a dead one's before we held it
                continue
            folder = lock.with_suffix("")
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among the processes that ask for the same file's lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_if_dead(lock: Path) -> None:
    try:
        with lock.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
    except OSError:  # somebody is at work in it, or has just removed it
        return


def _stage(file: Stored, source: Path | bytes, staging: Path, *, move: bool) -> Path:
    """The content in a file of ours, sealed. Hashed again while it is copied, so that what is kept
    is what the name says."""
    target = staging / file.sha256
    if move and isinstance(source, Path):
        source.rename(target)
    elif isinstance(source, bytes):
        target.write_bytes(source)
    else:
        hasher = Hasher()
        with _reading(source) as reader, target.open("wb") as writer:
            while raw := reader.read(CHUNK):
                hasher.update(raw)
                writer.write(raw)
        if hasher.stored("").sha256 != file.sha256:
            target.unlink()
            raise ConfigError(f"{source} changed while it was added", hint="add it again")
    seal(target)
    return target


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[IO[bytes]]:
    try:
        stream = source.open("rb", buffering=0)
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
    with stream:
        yield stream


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
