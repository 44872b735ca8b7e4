"""Append-only segment logs of JSON lines, and readers that resume at an offset.

A writer owns one folder per (writer name, epoch); each start of the writer is a new epoch, so a key
(writer, epoch, seq) is never given twice. A line that a kill cut short is not a line: readers stop
before it, and the next epoch goes on in another file. Layout::

    ROOT/WRITER/EPOCH-SEGMENT.jsonl        e.g. records/gateway/00000003-000000.jsonl
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Literal

Offset = Mapping[str, int]  # file (relative to the root) -> bytes consumed

# When lines reach the disk itself: never forced; whole segments, when they are full or closed; each
# line, before ``append`` returns (milliseconds each on most disks).
Fsync = Literal["never", "segment", "always"]

SEGMENT_BYTES = 16 * 2**20
TAIL_BYTES = 2**16


@dataclass(slots=True)
class SegmentWriter:
    """Writes one log. Not thread safe. ``epoch`` and ``seq`` are the key of the next line. A disk
    that fails costs the lines that it could not take and nothing else: keys are not given again,
    and as soon as it takes lines, writing goes on."""

    root: Path
    name: str
    segment_bytes: int = SEGMENT_BYTES
    fsync: Fsync = "never"
    epoch: int = field(init=False)
    seq: int = field(init=False, default=0)
    _segment: int = field(init=False, default=0)
    _file: FileIO = field(init=False)

    def __post_init__(self) -> None:
        folder = self.root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        epochs = [int(p.name.split("-")[0]) for p in folder.glob("*-*.jsonl")]
        self.epoch = max(epochs, default=0) + 1
        self._file = self._open(0)

    def _open(self, segment: int) -> FileIO:
        path = self.root / self.name / f"{self.epoch:08d}-{segment:06d}.jsonl"
        return FileIO(path, "x")

    def append(self, line: str) -> int:
        """Write one JSON text (without line breaks); returns its seq. In the page cache when this
        returns: it survives the process, and the machine as ``fsync`` says. Raises OSError: the
        line is not there, nor a part of it."""
        if self._file.closed or self._file.tell() > self.segment_bytes:
            self._next()
        key, self.seq = self.seq, self.seq + 1  # spent, even if the line cannot be written
        start = self._file.tell()
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._take_back(start)
            raise
        if self.fsync == "always":
            os.fsync(self._file.fileno())
        return key

    def _take_back(self, start: int) -> None:
        """Remove the beginning of a line, or the next one would be written behind it."""
        try:
            self._file.truncate(self._file.seek(start))
        except OSError:
            self._file.close()  # the next line begins another file

    def roll(self) -> None:
        """Go on in another file, unless this one is empty: so that old lines can be deleted
        although little is written."""
        if not self._file.closed and self._file.tell():
            self._next()

    def _next(self) -> None:
        """Go on in another file; where none can be had, in the present one."""
        try:
            following = self._open(self._segment + 1)
        except OSError:
            if self._file.closed:
                raise
            return
        self._segment += 1
        before, self._file = self._file, following
        self._finish(before)

    def close(self) -> None:
        self._finish(self._file)

    def _finish(self, file: FileIO) -> None:
        if self.fsync != "never" and not file.closed:
            os.fsync(file.fileno())
        file.close()


@dataclass(slots=True)
class SegmentReader:
    """Reads all logs under a root from an offset on. Commit ``offset`` together with what was made
    of the lines, and nothing is lost or counted twice."""

    root: Path
    _offset: dict[str, int] = field(default_factory=dict)

    @property
    def offset(self) -> Offset:
        return dict(self._offset)

    def seek(self, offset: Offset) -> None:
        self._offset = dict(offset)

    def read(self, limit: int = 1000) -> Iterator[bytes]:
        """Up to ``limit`` whole lines not yet read, in order within each writer."""
        if not self.root.exists():
            return
        paths = sorted(self.root.glob("*/*.jsonl"))
        self._forget({p.relative_to(self.root).as_posix() for p in paths})
        for path in paths:
            name = path.relative_to(self.root).as_posix()
            position = self._offset.get(name, 0)
            try:
                if path.stat().st_size <= position:
                    continue
            except FileNotFoundError:  # expired this moment
                continue
            with path.open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    if limit <= 0:
                        return
                    limit -= 1
                    position += len(line)
                    self._offset[name] = position
                    yield line[:-1]

    def _forget(self, there: set[str]) -> None:
        """Drop the offsets of expired segments: those before the first that is there."""
        first: dict[str, str] = {}
        for name in sorted(there, reverse=True):
            first[name.partition("/")[0]] = name
        gone = [n for n in self._offset if n < first.get(n.partition("/")[0], "")]
        for name in gone:
            del self._offset[name]

    def lag_bytes(self) -> int:
        """Bytes of whole lines written and not yet read. A line cut short by a kill is none."""
        total = 0
        for path in self.root.glob("*/*.jsonl"):
            name = path.relative_to(self.root).as_posix()
            total += _unread(path, self._offset.get(name, 0))
        return total


def expired(root: Path, before: float, readers: Sequence[Offset]) -> list[Path]:
    """Segments that can be deleted, the oldest first: last written before that time (epoch
    seconds) and read to their last whole line by all readers. The newest segment of a writer
    always stays, as it may be open and tells the next epoch; so do all after one that stays, so
    that a reader never finds a gap."""
    found: list[Path] = []
    for folder in sorted(p for p in root.glob("*") if p.is_dir()):
        for path in sorted(folder.glob("*.jsonl"))[:-1]:
            name = path.relative_to(root).as_posix()
            if path.stat().st_mtime >= before:
                break
            if any(_unread(path, reader.get(name, 0)) for reader in readers):
                break
            found.append(path)
    return found


def _unread(path: Path, position: int) -> int:
    """Bytes of whole lines after a position. 0 for a file that was deleted meanwhile."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > position:
                start = max(position, end - TAIL_BYTES)
                file.seek(start)
                at = file.read(end - start).rfind(b"\n")
                if at >= 0:
                    return start + at + 1 - position
                end = start
    except FileNotFoundError:
        return 0
    return 0
