"""What adding learned of files on disk, so that adding again reads only those that changed.

A file's hashes are trusted while its size, its inode and both its times (last change of content,
last change of anything) are what they were. The second time cannot be set, so an edit that
keeps size and time of last change is seen as well. A file that was touched less than two seconds
before it was read is not remembered: it may change again within the same tick of the disk's clock
(git calls such entries racy, https://git-scm.com/docs/racy-git).

All of it is a cache: deleting ``state.db`` costs a reading of all files.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from intonaco.datasets.identity import Found, Stored

RACY_NS = 2 * 10**9
SCHEMA = """
-- One row a file that was read: the facts of stat that its hashes hold for.
CREATE TABLE IF NOT EXISTS files (
    folder TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, sha256 BLOB NOT NULL, md5 BLOB NOT NULL,
    PRIMARY KEY (folder, path)) WITHOUT ROWID;
-- The version that a source gave, under the rules it was checked by.
CREATE TABLE IF NOT EXISTS made (source TEXT PRIMARY KEY, version TEXT NOT NULL) WITHOUT ROWID;
"""


class State:
    """An open ``state.db``. Several processes may have it open; each uses its own."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def known(self, folder: Path, found: Sequence[Found]) -> dict[str, Stored]:
        """Of the files of a folder, those whose hashes still hold."""
        hashes: dict[str, Stored] = {}
        rows = self._database.execute(
            "SELECT path, size, mtime_ns, ctime_ns, inode, sha256, md5 FROM files WHERE folder = ?",
            (str(folder),),
        )
        now = {file.path: facts(file.stat) for file in found}
        for path, size, mtime, ctime, inode, sha256, md5 in rows:
            if now.get(path) == (size, mtime, ctime, inode):
                hashes[path] = Stored(path=path, sha256=sha256.hex(), md5=md5.hex(), size=size)
        return hashes

    def remember(self, folder: Path, files: Sequence[tuple[Found, Stored]], read_at: float) -> None:
        """Hashes of files of a folder. ``read_at``: when the first of them was read, seconds."""
        rows = [
            (str(folder), found.path, *facts(found.stat), *_raw(stored))
            for found, stored in files
            if max(found.stat.st_mtime_ns, found.stat.st_ctime_ns) + RACY_NS < read_at * 1e9
        ]
        if rows:
            with self._database as database:
                database.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?)", rows)

    def keep_only(self, folder: Path, paths: Collection[str]) -> None:
        """Forget the files of a folder that are no longer there."""
        rows = self._database.execute("SELECT path FROM files WHERE folder = ?", (str(folder),))
        if gone := [(str(folder), path) for (path,) in rows if path not in paths]:
            with self._database as database:
                database.executemany("DELETE FROM files WHERE folder = ? AND path = ?", gone)

    def made(self, source: str) -> str | None:
        """The version that a source gave before."""
        row = self._database.execute(
            "SELECT version FROM made WHERE source = ?", (source,)
        ).fetchone()
        return None if row is None else str(row[0])

    def remember_made(self, source: str, version: str) -> None:
        with self._database as database:
            database.execute("INSERT OR REPLACE INTO made VALUES (?,?)", (source, version))


@contextmanager
def opened(file: Path) -> Iterator[State]:
    """Raises sqlite3.Error if it is locked or the disk is full. One that is no database is removed:
    it is a cache."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        database = _connect(file)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        for left in ("", "-wal", "-shm"):
            file.with_name(file.name + left).unlink(missing_ok=True)
        database = _connect(file)
    with closing(database):
        yield State(database)


def _connect(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=30)
    try:
        # A commit survives the process, not the machine: what is lost is read again.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def facts(stat: os.stat_result) -> tuple[int, int, int, int]:
    """By which a file is taken for the one that it was."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _raw(file: Stored) -> tuple[bytes, bytes]:
    return bytes.fromhex(file.sha256), bytes.fromhex(file.md5)
