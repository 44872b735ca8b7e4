from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonaco.serving.worker.batcher import (
    DeadlinePassed,
    Draining,
    MicroBatcher,
    QueueFull,
    padded,
)

SIZES = (1, 2, 4, 8)


class FakePipeline:
    """Notes its batches; ``gate`` holds it inside one."""

    def __init__(self) -> None:
        self.batches: list[tuple[tuple[str, ...], int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()

    def run(self, items: Sequence[str], size: int) -> list[str]:
        self.inside.set()
        assert self.gate.wait(10)
        self.batches.append((tuple(items), size))
        if "bad" in items:
            raise RuntimeError("cannot")
        return [f"image of {i}" for i in items]

    def hold(self) -> None:
        self.gate.clear()
        self.inside.clear()


@contextmanager
def serving(
    pipeline: FakePipeline, *, wait_s: float = 0.0, limit: int = 64, now: float = 0.0
) -> Iterator[MicroBatcher[str, str]]:
    batcher = MicroBatcher[str, str](
        pipeline.run, sizes=SIZES, wait_s=wait_s, limit=limit, now=lambda: now
    )
    thread = threading.Thread(target=batcher.serve)
    thread.start()
    try:
        yield batcher
    finally:
        pipeline.gate.set()
        batcher.stop()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def held(
    pipeline: FakePipeline, *, limit: int = 64, now: float = 0.0
) -> Iterator[MicroBatcher[str, str]]:
    """A batcher whose thread is inside a batch of its own, so that the queue can be filled."""
    pipeline.hold()
    with serving(pipeline, limit=limit, now=now) as batcher:
        batcher.submit("first", "held")
        assert pipeline.inside.wait(10)
        yield batcher


def test_what_waits_and_agrees_runs_together_padded_to_the_next_size() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        futures = [batcher.submit(f"a{i}", "a") for i in range(3)]
        other = batcher.submit("b", "b")
        assert batcher.in_flight == 5
        pipeline.gate.set()
        done = [f.result(10) for f in futures]
        other.result(10)
    assert pipeline.batches[1:] == [(("a0", "a1", "a2"), 4), (("b",), 1)]
    assert [d.output for d in done] == ["image of a0", "image of a1", "image of a2"]
    assert {(d.batch_size, d.padded_size) for d in done} == {(3, 4)}


def test_the_oldest_goes_first_and_the_largest_size_is_kept() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        keys = ["b", *["a"] * 11, "b"]
        futures = [batcher.submit(f"{k}{i}", k) for i, k in enumerate(keys)]
        pipeline.gate.set()
        for f in futures:
            f.result(10)
    assert [(len(items), size) for items, size in pipeline.batches[1:]] == [(2, 2), (8, 8), (3, 4)]
    assert pipeline.batches[1][0] == ("b0", "b12")


def test_a_batch_waits_for_company_and_starts_at_once_when_full() -> None:
    pipeline = FakePipeline()
    with serving(pipeline, wait_s=30) as batcher:  # were it not full, this would take 30 s
        futures = [batcher.submit(str(i), "a") for i in range(8)]
        for f in futures:
            f.result(10)
    assert [size for _, size in pipeline.batches] == [8]


def test_full_draining_and_taking_work_again() -> None:
    pipeline = FakePipeline()
    with held(pipeline, limit=2) as batcher:
        first = batcher.submit("1", "a")
        batcher.submit("2", "a")
        with pytest.raises(QueueFull):
            batcher.submit("3", "a")
        first.cancel()
        third = batcher.submit("3", "a")  # one that was dropped keeps no place
        batcher.drain()
        with pytest.raises(Draining):
            batcher.submit("4", "a")
        pipeline.gate.set()
        assert third.result(10).output == "image of 3", "what was taken is finished"
        batcher.drain(False)
        assert batcher.submit("5", "a").result(10).output == "image of 5"


def test_a_dropped_request_is_not_generated() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        gone = batcher.submit("gone", "a")
        stays = batcher.submit("stays", "a")
        assert gone.cancel()
        pipeline.gate.set()
        stays.result(10)
        with pytest.raises(CancelledError):
            gone.result(0)
    assert (("stays",), 1) in pipeline.batches


def test_an_expired_deadline_is_refused_unrun() -> None:
    pipeline = FakePipeline()
    with held(pipeline, now=100.0) as batcher:
        late = batcher.submit("late", "a", deadline=99.0)
        fine = batcher.submit("fine", "a", deadline=101.0)
        pipeline.gate.set()
        with pytest.raises(DeadlinePassed):
            late.result(10)
        assert fine.result(10).batch_size == 1


def test_a_failing_batch_fails_its_members_and_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        bad, beside = batcher.submit("bad", "a"), batcher.submit("beside", "a")
        pipeline.gate.set()
        for f in (bad, beside):
            with pytest.raises(RuntimeError, match="cannot"):
                f.result(10)
        assert batcher.submit("next", "a").result(10).output == "image of next"
    assert "a batch failed" in caplog.text


def test_what_still_waits_at_the_end_is_refused() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        left = batcher.submit("left", "a")
        batcher.stop()
        pipeline.gate.set()
        with pytest.raises(Draining):
            left.result(10)


@given(st.integers(1, 8))
def test_padding(n: int) -> None:
    size = padded(n, SIZES)
    assert size in SIZES
    assert n <= size
    assert not any(n <= s < size for s in SIZES)
