"""Pruning killed at every single deletion: what is to be kept is there, bit for bit, no reader
finds a gap, and the next run ends where an undisturbed one would have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from intonaco.segment_log import Offset, SegmentReader, SegmentWriter
from intonaco.serving.gateway.retention import DAY_S, prune
from intonaco.workspace import Workspace, write_json

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
DAYS = 30.0
OLD = NOW - 60 * DAY_S
Files = Mapping[str, bytes]


def files(workspace: Workspace) -> Files:
    root = workspace.root
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def unread(workspace: Workspace) -> list[bytes]:
    """What the scorer would read next, from where it stands."""
    reader = SegmentReader(workspace.records)
    reader.seek(_offset(workspace))
    return list(reader.read(10**6))


def _offset(workspace: Workspace) -> Offset:
    found: Offset = json.loads((workspace.run / "scorer-offset.json").read_text())["records"]
    return found


def old(path: Path) -> None:
    os.utime(path, (OLD, OLD))


def make(root: Path) -> Workspace:
    """Old images in two days; two gateways' records in small segments, of which a scorer has read
    some; scores and feedback. All old but the last minute."""
    workspace = Workspace(root)
    for minute in ("20230901/1200", "20230901/1201", "20230902/0000", "20231114/2212"):
        folder = workspace.images / minute
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / f"{name}.png").write_bytes(f"{minute} {name}".encode())
    for log, names in (
        (workspace.records, ("gateway", "gateway-1")),
        (workspace.scores, ("scorer",)),
        (workspace.feedback, ("gateway",)),
    ):
        for name in names:
            writer = SegmentWriter(log, name, segment_bytes=60)
            for i in range(12):
                writer.append(json.dumps({"log": log.name, "by": name, "n": i}))
            writer.close()
    reader = SegmentReader(workspace.records)
    assert len(list(reader.read(17))) == 17  # all of gateway, 5 lines of gateway-1
    write_json(workspace.run / "scorer-offset.json", {"records": dict(reader.offset)})
    for path in root.rglob("*.jsonl"):
        old(path)
    return workspace


def prune_killed(workspace: Workspace, at: int) -> bool:
    """Prune in a child that is killed just before its deletion number ``at``; whether it was."""
    child = os.fork()
    if child == 0:
        deletions = 0

        def watch(event: str, arguments: object) -> None:
            nonlocal deletions
            if event in ("os.remove", "os.rmdir"):
                if deletions == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                deletions += 1

        sys.addaudithook(watch)
        try:
            prune(workspace, NOW, DAYS)
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def no_gap(workspace: Workspace, log: Path, all_of: Files) -> None:
    """What is left of each writer's log is its end."""
    for folder in log.iterdir():
        left = sorted(p.name for p in folder.iterdir())
        begin = f"{folder.relative_to(workspace.root).as_posix()}/"
        whole = sorted(n.removeprefix(begin) for n in all_of if n.startswith(begin))
        assert left == whole[len(whole) - len(left) :]
        assert left


def test_killed_at_every_deletion_it_loses_nothing_else(tmp_path: Path) -> None:
    first = make(tmp_path / "first")
    before = files(first)
    expected_unread = unread(first)
    assert len(expected_unread) == 7
    assert prune(first, NOW, DAYS) > 10
    kept = files(first)
    assert set(kept) < set(before)
    assert unread(first) == expected_unread
    assert "images/20231114/2212/a.png" in kept
    kills = 0
    while True:
        workspace = make(tmp_path / f"at{kills}")
        killed = prune_killed(workspace, kills)
        left = files(workspace)
        assert {n: left[n] for n in kept} == kept
        assert {n: before[n] for n in left} == left
        assert unread(workspace) == expected_unread
        for log in (workspace.records, workspace.scores, workspace.feedback):
            no_gap(workspace, log, before)
        prune(workspace, NOW, DAYS)
        assert files(workspace) == kept
        shutil.rmtree(workspace.root)
        if not killed:
            break
        kills += 1
    assert kills >= 20
    print(f"killed at {kills} points")


def test_two_gateways_prune_at_once(tmp_path: Path) -> None:
    """In a process each, as they do after midnight."""
    quiet = make(tmp_path / "quiet")
    prune(quiet, NOW, DAYS)
    both = make(tmp_path / "both")
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                prune(both, NOW, DAYS)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0, 0]
    prune(both, NOW, DAYS)  # what one left because the other was at it
    assert files(both) == files(quiet)


def test_a_reader_in_the_middle_of_a_segment_that_goes_on_reads_all(tmp_path: Path) -> None:
    """The scorer reads while old segments go: it gets each line once, in order."""
    workspace = make(tmp_path)
    reader = SegmentReader(workspace.records)
    reader.seek(_offset(workspace))
    got: list[bytes] = []
    while lines := list(reader.read(2)):
        got += lines
        write_json(workspace.run / "scorer-offset.json", {"records": dict(reader.offset)})
        prune(workspace, NOW, DAYS)
    assert [json.loads(line)["n"] for line in got] == list(range(5, 12))
    assert all(json.loads(line)["by"] == "gateway-1" for line in got)
    assert len(list(workspace.records.rglob("*.jsonl"))) == 2, "the newest of each writer stays"
