from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from intonaco.segment_log import Fsync, SegmentReader, SegmentWriter, expired

WRITE_FOR_EVER = """
import json, sys
from pathlib import Path
from intonaco.segment_log import SegmentWriter
w = SegmentWriter(Path(sys.argv[1]), "gateway", segment_bytes=2000)
print(w.epoch, flush=True)
while True:
    w.append(json.dumps([w.epoch, w.seq]))
    if w.seq == 500:
        print("many", flush=True)
"""


def lines(reader: SegmentReader, limit: int = 10**6) -> list[list[int]]:
    return [json.loads(line) for line in reader.read(limit)]


def test_lines_come_back_in_order_over_segments(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway", segment_bytes=50)
    for i in range(40):
        assert writer.append(json.dumps([i])) == i
    writer.close()
    assert len(list((tmp_path / "gateway").iterdir())) > 2
    assert lines(SegmentReader(tmp_path)) == [[i] for i in range(40)]


def test_a_reader_resumes_at_its_offset_and_reads_nothing_twice(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway", segment_bytes=50)
    for i in range(10):
        writer.append(json.dumps([i]))
    first = SegmentReader(tmp_path)
    assert lines(first, 4) == [[0], [1], [2], [3]]
    second = SegmentReader(tmp_path)
    second.seek(first.offset)
    assert second.lag_bytes() > 0
    assert lines(second) == [[i] for i in range(4, 10)]
    assert second.lag_bytes() == 0
    assert lines(second) == []
    writer.append("[10]")
    writer.close()
    assert lines(second) == [[10]]


def test_a_line_cut_short_is_not_read_until_it_is_whole(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway")
    writer.append("[0]")
    writer.close()
    file = next((tmp_path / "gateway").iterdir())
    with file.open("ab") as out:
        out.write(b"[1")
    reader = SegmentReader(tmp_path)
    assert lines(reader) == [[0]]
    with file.open("ab") as out:
        out.write(b"]\n")
    assert lines(reader) == [[1]]


def test_a_line_cut_short_is_no_lag(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway")
    writer.append("[0]")
    writer.close()
    file = next((tmp_path / "gateway").iterdir())
    for torn in (b"[1", b"2" * 200_000):  # shorter and longer than what is looked at at once
        with file.open("ab") as out:
            out.write(torn)
        assert SegmentReader(tmp_path).lag_bytes() == len("[0]\n")
    reader = SegmentReader(tmp_path)
    assert lines(reader) == [[0]]
    assert reader.lag_bytes() == 0
    writer = SegmentWriter(tmp_path, "gateway")  # the next epoch
    writer.append("[2]")
    writer.close()
    assert reader.lag_bytes() == len("[2]\n")
    assert lines(reader) == [[2]]
    assert reader.lag_bytes() == 0


@pytest.mark.parametrize(("policy", "synced"), [("never", 0), ("segment", 4), ("always", 11)])
def test_lines_reach_the_disk_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Fsync, synced: int
) -> None:
    calls: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        calls.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = SegmentWriter(tmp_path, "gateway", segment_bytes=7, fsync=policy)
    for i in range(7):
        writer.append(json.dumps([i]))
    writer.close()
    writer.close()
    assert len(list((tmp_path / "gateway").iterdir())) == 4
    assert len(calls) == synced


def test_segments_expire_when_all_have_read_them(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway", segment_bytes=7)
    other = SegmentWriter(tmp_path, "gateway-1")
    for i in range(8):
        writer.append(json.dumps([i]))
    writer.close()
    other.append('["b"]')
    other.close()
    files = sorted((tmp_path / "gateway").iterdir())
    assert len(files) == 4
    with files[0].open("ab") as out:
        out.write(b"[cut sho")
    for file in files[:3]:
        os.utime(file, (100, 100))
    os.utime(files[1], (300, 300))
    slow, fast = SegmentReader(tmp_path), SegmentReader(tmp_path)
    lines(slow, 1)
    list(fast.read())
    assert expired(tmp_path, 200, [slow.offset, fast.offset]) == []
    assert expired(tmp_path, 200, [fast.offset]) == files[:1]  # the next one is younger
    assert expired(tmp_path, 400, [fast.offset]) == files[:3]  # the newest stays
    assert expired(tmp_path, 400, [slow.offset]) == []
    assert expired(tmp_path, 400, []) == files[:3]
    assert expired(tmp_path / "nothing", 400, []) == []

    for file in expired(tmp_path, 400, [fast.offset]):
        file.unlink()
    assert list(fast.read()) == []
    assert set(fast.offset) == {f"gateway/{files[3].name}", only(fast, "gateway-1")}
    assert fast.lag_bytes() == 0
    writer = SegmentWriter(tmp_path, "gateway")
    writer.close()
    assert writer.epoch == 2


def only(reader: SegmentReader, writer: str) -> str:
    return next(n for n in reader.offset if n.startswith(f"{writer}/"))


def test_killed_writers_never_give_a_key_twice_and_lose_no_whole_line(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline().strip() == str(expected)
        assert child.stdout.readline().strip() == "many"
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        child.stdout.close()
    read = lines(SegmentReader(tmp_path))
    assert len({tuple(k) for k in read}) == len(read)
    for epoch in (1, 2, 3):
        seqs = [s for e, s in read if e == epoch]
        assert seqs == list(range(len(seqs)))
        assert len(seqs) >= 500


def test_several_writers_are_read_each_in_order(tmp_path: Path) -> None:
    a, b = SegmentWriter(tmp_path, "a"), SegmentWriter(tmp_path, "b")
    for i in range(3):
        a.append(json.dumps(["a", i]))
        b.append(json.dumps(["b", i]))
    a.close()
    b.close()
    read = [json.loads(line) for line in SegmentReader(tmp_path).read()]
    assert [k for k in read if k[0] == "a"] == [["a", 0], ["a", 1], ["a", 2]]
    assert [k for k in read if k[0] == "b"] == [["b", 0], ["b", 1], ["b", 2]]
    assert SegmentReader(tmp_path / "nothing").offset == {}
    assert list(SegmentReader(tmp_path / "nothing").read()) == []


@contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    """The kernel refuses what goes beyond: the disk or the process is full."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_a_full_disk_costs_the_lines_that_it_could_not_take(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway")
    long = "x" * 20_000  # more than any buffer
    for i in range(5):
        assert writer.append(json.dumps([i, long])) == i
    failed = []
    with limited(resource.RLIMIT_FSIZE, 109_000):  # in the middle of the next line
        for _ in range(4):
            failed.append(writer.seq)
            with pytest.raises(OSError, match="File too large"):
                writer.append(json.dumps([writer.seq, long]))
    assert failed == [5, 6, 7, 8], "a key is given once, whatever became of its line"
    for i in (9, 10):
        assert writer.append(json.dumps([i, long])) == i
    writer.close()
    found = [json.loads(line)[0] for line in SegmentReader(tmp_path).read()]
    assert found == [0, 1, 2, 3, 4, 9, 10]
    assert len(list((tmp_path / "gateway").iterdir())) == 1


def test_without_another_file_writing_goes_on_in_the_present_one(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway", segment_bytes=30)
    for i in range(12):
        writer.append(json.dumps([i]))
    files = len(list((tmp_path / "gateway").iterdir()))
    os.close(free := os.dup(0))
    with limited(resource.RLIMIT_NOFILE, free):
        writer.roll()
        for i in range(12, 30):
            writer.append(json.dumps([i]))
    assert len(list((tmp_path / "gateway").iterdir())) == files
    writer.append("[30]")
    writer.close()
    assert len(list((tmp_path / "gateway").iterdir())) == files + 1
    assert lines(SegmentReader(tmp_path)) == [[i] for i in range(31)]


def test_a_log_that_was_closed_goes_on_in_another_file(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "gateway")
    writer.append("[0]")
    writer.close()
    writer.roll()
    assert writer.append("[1]") == 1
    writer.close()
    assert lines(SegmentReader(tmp_path)) == [[0], [1]]
