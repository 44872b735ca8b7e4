"""Append-only segment logs of JSON lines, and readers that resume at an offset.

A writer owns one folder per (writer name, epoch); each start of the writer is a new epoch, so a key
(writer, epoch, seq) is never given twice. A line that a kill cut short is not a line: readers stop
before it, and the next epoch goes on in another file. Layout::

    ROOT/WRITER/EPOCH-SEGMENT.jsonl        e.g. records/gateway/00000003-000000.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path

Offset = Mapping[str, int]  # file (relative to the root) -> bytes consumed

SEGMENT_BYTES = 16 * 2**20


@dataclass(slots=True)
class SegmentWriter:
    """Writes one log. Not thread safe. ``epoch`` and ``seq`` are the key of the next line."""

    root: Path
    name: str
    segment_bytes: int = SEGMENT_BYTES
    epoch: int = field(init=False)
    seq: int = field(init=False, default=0)
    _segment: int = field(init=False, default=0)
    _file: BufferedWriter = field(init=False)

    def __post_init__(self) -> None:
        folder = self.root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        epochs = [int(p.name.split("-")[0]) for p in folder.glob("*-*.jsonl")]
        self.epoch = max(epochs, default=0) + 1
        self._file = self._open()

    def _open(self) -> BufferedWriter:
        name = f"{self.epoch:08d}-{self._segment:06d}.jsonl"
        return (self.root / self.name / name).open("xb")

    def append(self, line: str) -> int:
        """Write one JSON text (without line breaks); returns its seq. In the page cache when this
        returns: it survives the process, not the machine."""
        if self._file.tell() > self.segment_bytes:
            self._file.close()
            self._segment += 1
            self._file = self._open()
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.seq += 1
        return self.seq - 1

    def roll(self) -> None:
        """Go on in another file, unless this one is empty: so that old lines can be deleted
        although little is written."""
        if self._file.tell():
            self._file.close()
            self._segment += 1
            self._file = self._open()

    def close(self) -> None:
        self._file.close()


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
        for path in sorted(self.root.glob("*/*.jsonl")):
            name = path.relative_to(self.root).as_posix()
            position = self._offset.get(name, 0)
            if path.stat().st_size <= position:
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

    def lag_bytes(self) -> int:
        """Bytes written and not yet read."""
        total = 0
        for path in self.root.glob("*/*.jsonl"):
            name = path.relative_to(self.root).as_posix()
            total += max(0, path.stat().st_size - self._offset.get(name, 0))
        return total
