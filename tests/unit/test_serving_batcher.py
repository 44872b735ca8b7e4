from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest

from intonaco.clock import FakeClock
from intonaco.serving.worker.batcher import MicroBatcher
from intonaco.serving.worker.core import Aborted, Images, OutOfMemory, StepWatch
from intonaco.serving.worker.job import (
    DeadlinePassed,
    DeadlineUnmeetable,
    Done,
    Draining,
    Job,
    QueueFull,
)

SIZES = (1, 2, 4, 8)
STEPS = 4


class FakePipeline:
    """Notes its batches; ``gate`` holds it inside one. A batch takes ``seconds`` of its clock. It
    cannot hold more than ``memory`` images at once."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.seconds = 0.0
        self.memory = 64
        self.batches: list[tuple[tuple[str, ...], int]] = []
        self.previews = 0
        self.steps_done = 0
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()

    def run(self, items: Sequence[str], size: int, watch: StepWatch) -> Images:
        self.inside.set()
        assert self.gate.wait(10)
        self.batches.append((tuple(items), size))
        if size > self.memory:
            raise OutOfMemory
        if "bad" in items:
            raise RuntimeError("cannot")

        def preview() -> list[str]:
            self.previews += 1
            if "no preview" in items:
                raise RuntimeError("no preview")
            return [f"part of {i}" for i in items]

        for step in range(1, STEPS + 1):
            watch(step, STEPS, preview)
            self.steps_done += 1
        self.clock.advance(self.seconds)
        return Images(
            images=[f"image of {i}" for i in items],
            encode_seconds=0.1,
            denoise_seconds=0.2,
            decode_seconds=0.3,
            gpu_seconds=6.0,
            peak_memory_bytes=7,
        )

    def hold(self) -> None:
        self.gate.clear()
        self.inside.clear()


@contextmanager
def serving(
    pipeline: FakePipeline,
    *,
    wait_s: float = 0.0,
    limit: int = 64,
    sizes: Sequence[int] = SIZES,
    strict: bool = False,
) -> Iterator[MicroBatcher[str]]:
    batcher = MicroBatcher[str](
        pipeline.run,
        sizes=sizes,
        wait_s=wait_s,
        limit=limit,
        strict=strict,
        now=pipeline.clock.now,
        monotonic=pipeline.clock.now,
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
def held(pipeline: FakePipeline, **how: Any) -> Iterator[MicroBatcher[str]]:
    """A batcher whose thread is inside a batch of its own, so that the queue can be filled."""
    with serving(pipeline, **how) as batcher:
        hold(pipeline, batcher)
        yield batcher


def hold(pipeline: FakePipeline, batcher: MicroBatcher[str], key: str = "held") -> Job[str]:
    pipeline.hold()
    job = batcher.submit("first", key)
    assert pipeline.inside.wait(10)
    return job


def result(job: Job[str]) -> Done:
    return job.future.result(10)


# ---------------------------------------------------------------------- batches


def test_what_waits_and_agrees_runs_together_padded_to_the_next_size() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        jobs = [batcher.submit(f"a{i}", "a") for i in range(3)]
        other = batcher.submit("b", "b")
        assert (batcher.in_flight, batcher.waiting, batcher.running) == (5, 4, 1)
        pipeline.gate.set()
        done = [result(j) for j in jobs]
        result(other)
    assert pipeline.batches[1:] == [(("a0", "a1", "a2"), 4), (("b",), 1)]
    assert [d.image for d in done] == ["image of a0", "image of a1", "image of a2"]
    assert {(d.batch_size, d.padded_size) for d in done} == {(3, 4)}
    assert dict(batcher.counts.batches) == {1: 2, 4: 1}
    assert batcher.counts.images == 5


def test_what_an_image_is_told_about_its_batch() -> None:
    pipeline = FakePipeline()
    pipeline.seconds = 5.0
    with held(pipeline) as batcher:
        jobs = [batcher.submit(str(i), "a") for i in range(3)]
        pipeline.clock.advance(1.0)
        pipeline.gate.set()
        done = result(jobs[1])
    assert (done.queue_seconds, done.service_seconds) == (6.0, 5.0)
    assert done.gpu_seconds == 2.0, "a third of the batch's: padding is paid by those who were in"
    assert (done.cost.encode_seconds, done.cost.denoise_seconds) == (0.1, 0.2)
    assert (done.cost.decode_seconds, done.cost.peak_memory_bytes) == (0.3, 7)
    assert batcher.busy_seconds == 1.0 + 5.0 + 5.0


def test_users_take_turns() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        jobs = [batcher.submit(f"crowd{i}", "a", unit="crowd") for i in range(20)]
        jobs.append(batcher.submit("single", "a", unit="single"))
        jobs.append(batcher.submit("other", "b", unit="third"))
        pipeline.gate.set()
        for job in jobs:
            result(job)
    order = [items for items, _ in pipeline.batches[1:]]
    assert order[0][:2] == ("crowd0", "single")
    assert order[1] == ("other",)
    assert [len(b) for b in order] == [8, 1, 8, 5]


def test_a_batch_waits_for_company_and_starts_at_once_when_full() -> None:
    pipeline = FakePipeline()
    with serving(pipeline, wait_s=30) as batcher:  # were it not full, this would take 30 s
        jobs = [batcher.submit(str(i), "a") for i in range(8)]
        for job in jobs:
            result(job)
    assert [size for _, size in pipeline.batches] == [8]


def test_strict_runs_one_size_only() -> None:
    pipeline = FakePipeline()
    with serving(pipeline, strict=True) as batcher:
        assert result(batcher.submit("alone", "a")).padded_size == 8
    assert pipeline.batches == [(("alone",), 8)]


def test_a_failing_batch_fails_its_members_and_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        bad, beside = batcher.submit("bad", "a"), batcher.submit("beside", "a")
        pipeline.gate.set()
        for job in (bad, beside):
            with pytest.raises(RuntimeError, match="cannot"):
                result(job)
        assert result(batcher.submit("next", "a")).image == "image of next"
    assert "a batch failed" in caplog.text
    assert batcher.counts.failed == 2


# ---------------------------------------------------------------------- admission


def test_full_draining_and_taking_work_again() -> None:
    pipeline = FakePipeline()
    with held(pipeline, limit=2) as batcher:
        first = batcher.submit("1", "a")
        batcher.submit("2", "a")
        with pytest.raises(QueueFull):
            batcher.submit("3", "a")
        batcher.abandon(first)
        third = batcher.submit("3", "a")  # one that was dropped keeps no place
        batcher.drain()
        with pytest.raises(Draining):
            batcher.submit("4", "a")
        pipeline.gate.set()
        assert result(third).image == "image of 3", "what was taken is finished"
        batcher.drain(False)
        assert result(batcher.submit("5", "a")).image == "image of 5"


def test_those_refused_are_sent_away_for_as_long_as_it_takes() -> None:
    pipeline = FakePipeline()
    pipeline.seconds = 10.0
    with serving(pipeline, limit=3) as batcher:
        hold(pipeline, batcher)
        waiting = [batcher.submit(str(i), "held", unit=str(i)) for i in range(3)]

        def refused() -> int:
            with pytest.raises(QueueFull) as full:
                batcher.submit("more", "held")
            return full.value.retry_after_s

        assert refused() == 1, "nothing was measured yet"
        pipeline.gate.set()
        for job in waiting:
            result(job)
        assert batcher.counts.images == 4  # 10 s for one image, then 10/3 s an image
        hold(pipeline, batcher)
        for i in range(3):
            batcher.submit(str(i), "held")
        pipeline.clock.advance(4.0)
        # 6 s are left of a batch of one, and an image takes 10 + 0.3 * (10/3 - 10) = 8 s of late.
        told = [refused() for _ in range(5)]
        assert told[:3] == [6 + 8, 6 + 16, 6 + 24], "each behind those refused before it"
        assert told[4] == told[2], "at most until all that waits is done"


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    pipeline = FakePipeline()
    pipeline.seconds = 10.0
    with serving(pipeline) as batcher:
        now = pipeline.clock.now
        hold(pipeline, batcher)
        batcher.submit("unknown", "held", deadline=now() + 0.1)  # nothing measured: admitted
        pipeline.gate.set()
        result(batcher.submit("x", "other"))
        hold(pipeline, batcher)
        pipeline.clock.advance(3.0)
        batcher.submit("beside", "held")
        fine = batcher.submit("fine", "held", deadline=now() + 17.5)  # 7 s left, then 10 s
        with pytest.raises(DeadlineUnmeetable) as refused:
            batcher.submit("late", "held", deadline=now() + 15.0)
        assert refused.value.late_s == pytest.approx(2.0)
        with pytest.raises(DeadlineUnmeetable) as refused:
            batcher.submit("late", "other", deadline=now() + 17.5)  # a batch more
        assert refused.value.late_s == pytest.approx(9.5)
        batcher.submit("new kind", "never seen", deadline=now() + 17.5)
        with pytest.raises(DeadlinePassed):
            batcher.submit("too late", "held", deadline=now())
        pipeline.gate.set()
        assert result(fine).image == "image of fine"


def test_an_idle_worker_tries_what_was_too_slow() -> None:
    """Or a kind that was slow once would be refused for ever."""
    pipeline = FakePipeline()
    pipeline.seconds = 1000.0
    with serving(pipeline) as batcher:
        result(batcher.submit("slow", "a"))
        while batcher.running:  # the thread is done with it a moment after the answer
            threading.Event().wait(0.001)
        pipeline.seconds = 1.0
        job = batcher.submit("again", "a", deadline=pipeline.clock.now() + 10)
        assert result(job).service_seconds == 1.0


def test_a_deadline_that_passes_in_the_queue() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        at = pipeline.clock.now()
        late = batcher.submit("late", "a", deadline=at + 1)
        fine = batcher.submit("fine", "a", deadline=at + 100)
        told = batcher.submit("told", "b", deadline=at + 1)
        pipeline.clock.advance(2.0)
        batcher.expire(told)
        with pytest.raises(DeadlinePassed):
            told.future.result(0)  # at once, though a batch runs
        assert batcher.waiting == 2
        pipeline.gate.set()
        with pytest.raises(DeadlinePassed):
            result(late)
        assert result(fine).batch_size == 1
        batcher.expire(fine)  # too late for that
        assert result(fine).batch_size == 1


def test_what_still_waits_at_the_end_is_refused() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        left = batcher.submit("left", "a")
        batcher.stop()
        pipeline.gate.set()
        with pytest.raises(Draining):
            result(left)


# ---------------------------------------------------------------------- clients that leave


def test_a_dropped_request_is_not_generated() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        gone = batcher.submit("gone", "a")
        stays = batcher.submit("stays", "a")
        batcher.abandon(gone)
        pipeline.gate.set()
        result(stays)
        with pytest.raises(CancelledError):
            gone.future.result(0)
    assert (("stays",), 1) in pipeline.batches


def test_a_batch_that_all_left_ends_at_its_next_step() -> None:
    pipeline = FakePipeline()
    with serving(pipeline) as batcher:
        gone = hold(pipeline, batcher)
        batcher.abandon(gone)
        pipeline.gate.set()
        with pytest.raises(Aborted):
            result(gone)
        assert pipeline.steps_done == 0
        assert result(batcher.submit("next", "held")).image == "image of next"
    assert (batcher.counts.aborted, batcher.counts.failed, batcher.counts.images) == (1, 0, 1)


def test_a_batch_that_some_left_goes_on() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        jobs = [batcher.submit(str(i), "a") for i in range(2)]
        pipeline.gate.set()
        pipeline.inside.clear()
        pipeline.hold()
        assert pipeline.inside.wait(10)
        batcher.abandon(jobs[0])
        pipeline.gate.set()
        assert result(jobs[1]).image == "image of 1"
        assert result(jobs[1]).batch_size == 2
    assert batcher.counts.aborted == 0


# ---------------------------------------------------------------------- out of memory


def test_memory_that_runs_out_halves_the_batch_and_is_remembered() -> None:
    pipeline = FakePipeline()
    pipeline.memory = 2
    with held(pipeline) as batcher:
        jobs = [batcher.submit(str(i), "a") for i in range(7)]
        pipeline.gate.set()
        done = [result(j) for j in jobs]
        assert [d.image for d in done] == [f"image of {i}" for i in range(7)]
        assert [d.padded_size for d in done] == [2, 2, 2, 2, 2, 2, 1]
        tried = [(len(items), size) for items, size in pipeline.batches[1:]]
        assert tried == [(7, 8), (4, 4), (2, 2), (2, 2), (2, 2), (1, 1)]
        pipeline.batches.clear()
        hold(pipeline, batcher)
        jobs = [batcher.submit(str(i), "a") for i in range(4)]
        pipeline.gate.set()
        for job in jobs:
            result(job)
    assert [size for _, size in pipeline.batches[1:]] == [2, 2]
    assert dict(batcher.counts.out_of_memory) == {8: 1, 4: 1}


def test_only_one_image_alone_fails_for_memory() -> None:
    pipeline = FakePipeline()
    pipeline.memory = 0
    with held(pipeline, sizes=(2,)) as batcher:
        jobs = [batcher.submit(str(i), "a") for i in range(2)]
        pipeline.gate.set()
        for job in jobs:
            with pytest.raises(OutOfMemory):
                result(job)
        pipeline.memory = 64
        assert result(batcher.submit("next", "b")).padded_size == 2
        assert result(batcher.submit("next", "a")).padded_size == 1
    # "first" ran at 2 and 1 too; of the pair each was tried alone.
    assert [size for _, size in pipeline.batches] == [2, 1, 2, 1, 1, 2, 1]


def test_strict_has_no_smaller_batch() -> None:
    pipeline = FakePipeline()
    pipeline.memory = 4
    with serving(pipeline, strict=True) as batcher, pytest.raises(OutOfMemory):
        result(batcher.submit("x", "a"))
    assert [size for _, size in pipeline.batches] == [8]


def test_who_left_meanwhile_is_left_out_of_the_halves() -> None:
    pipeline = FakePipeline()
    pipeline.memory = 2
    with serving(pipeline, wait_s=30, sizes=(1, 2, 4)) as batcher:
        pipeline.hold()
        jobs = [batcher.submit(str(i), "a") for i in range(4)]
        assert pipeline.inside.wait(10)
        for job in jobs[:3]:
            batcher.abandon(job)
        pipeline.gate.set()
        assert result(jobs[3]).padded_size == 1


def test_warm_up_runs_every_size_that_memory_holds() -> None:
    pipeline = FakePipeline()
    batcher = MicroBatcher[str](pipeline.run, sizes=SIZES, wait_s=0, limit=1)
    batcher.warm_up("w", "a")
    assert [size for _, size in pipeline.batches] == [1, 2, 4, 8]
    pipeline.batches.clear()
    pipeline.memory = 3
    batcher = MicroBatcher[str](pipeline.run, sizes=(4, 8), wait_s=0, limit=1)
    batcher.warm_up("w", "a")
    assert [size for _, size in pipeline.batches] == [4, 2]
    pipeline.memory = 0
    with pytest.raises(OutOfMemory):
        batcher.warm_up("w", "b")


# ---------------------------------------------------------------------- listeners


class Listener:
    def __init__(self, wants: Sequence[int] = ()) -> None:
        self.wants = wants
        self.heard: list[object] = []

    def step(self, done: int, steps: int) -> bool:
        self.heard.append((done, steps))
        return done in self.wants

    def partial(self, image: Any) -> None:
        self.heard.append(image)


def test_listeners_hear_steps_and_previews_are_decoded_only_when_wanted() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        quiet, curious = Listener(), Listener(wants=(2,))
        jobs = [
            batcher.submit("plain", "a"),
            batcher.submit("quiet", "a", listener=quiet),
            batcher.submit("curious", "a", listener=curious),
        ]
        pipeline.gate.set()
        for job in jobs:
            assert result(job).batch_size == 3
    assert quiet.heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert curious.heard == [(1, 4), (2, 4), "part of curious", (3, 4), (4, 4)]
    assert pipeline.previews == 1


def test_a_preview_that_fails_costs_nobody_the_image(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = FakePipeline()
    with serving(pipeline) as batcher:
        listener = Listener(wants=(1, 2, 3))
        job = batcher.submit("no preview", "a", listener=listener)
        assert result(job).image == "image of no preview"
    assert listener.heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert pipeline.previews == 1, "it is not tried again in this batch"
    assert "a preview failed" in caplog.text


# ---------------------------------------------------------------------- errands


def test_an_errand_comes_between_batches_on_their_thread() -> None:
    pipeline = FakePipeline()
    seen: list[tuple[str, int]] = []

    def errand() -> int:
        seen.append((threading.current_thread().name, len(pipeline.batches)))
        return 7

    with held(pipeline) as batcher:
        waiting = batcher.submit("a", "a")
        future = batcher.between(errand)
        broken = batcher.between(lambda: 1 // 0)
        assert not future.done()
        pipeline.gate.set()
        assert future.result(10) == 7
        with pytest.raises(ZeroDivisionError):
            broken.result(10)
        assert result(waiting).image == "image of a", "what an errand raises harms nobody"
    assert [batches for _, batches in seen] == [1], "after the one that ran, before the one queued"
    assert seen[0][0] != threading.current_thread().name
    assert pipeline.batches[1] == (("a",), 1)


def test_errands_that_a_stop_leaves_are_refused() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        left = batcher.between(lambda: 1)
        batcher.stop()
        pipeline.gate.set()
        with pytest.raises(Draining):
            left.result(10)
        with pytest.raises(Draining):
            batcher.between(lambda: 1).result(10)


def test_only_what_waits_and_is_meant_is_refused() -> None:
    pipeline = FakePipeline()
    with held(pipeline) as batcher:
        jobs = {i: batcher.submit(i, "k", unit=i[0]) for i in ("a1", "b1", "a2", "b2")}
        assert batcher.refuse(lambda item: item.startswith(("a", "first"))) == 2
        for name in ("a1", "a2"):
            with pytest.raises(Draining):
                result(jobs[name])
        assert batcher.waiting == 2
        pipeline.gate.set()
        assert [result(jobs[name]).image for name in ("b1", "b2")] == ["image of b1", "image of b2"]
    assert pipeline.batches[0][0] == ("first",), "what ran went on"


def test_a_warm_up_can_be_taken_size_by_size() -> None:
    pipeline = FakePipeline()
    pipeline.memory = 4
    with serving(pipeline) as batcher:
        tried = set[int]()
        more = []
        for _ in range(6):
            more.append(batcher.between(lambda: batcher.warm_up_next("w", "k", tried)).result(10))
    assert more == [True, True, True, True, False, False]
    assert [size for _, size in pipeline.batches] == [1, 2, 4, 8]
