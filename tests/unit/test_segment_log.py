from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from intonaco.segment_log import SegmentReader, SegmentWriter

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
