"""The micro-batcher: one thread, a bounded queue, batches of requests that agree.

Oldest first: the oldest waiting job chooses the key, those that agree with it join, up to the
largest batch size; the rest keep their place. A batch is padded to the next allowed size, because
bits are the same only at the same size.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741 (item)
O = TypeVar("O")  # noqa: E741 (output)


class QueueFull(Exception):
    """The queue is full."""


class Draining(Exception):
    """No new work is taken."""


class DeadlinePassed(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[O]):
    """``service_seconds``: of the whole batch. ``padded_size``: what the model really ran."""

    output: O
    queue_seconds: float
    service_seconds: float
    batch_size: int
    padded_size: int


@dataclass(slots=True, eq=False)
class _Job(Generic[I, O]):
    item: I
    key: Hashable
    deadline: float | None  # epoch seconds
    at: float  # monotonic
    future: Future[Done[O]] = field(default_factory=Future)


def padded(size: int, sizes: Sequence[int]) -> int:
    """The smallest allowed batch size that holds ``size`` items."""
    return min(s for s in sizes if s >= size)


class MicroBatcher(Generic[I, O]):
    """``run(items, padded_size)`` makes one output an item, in order, on the one thread."""

    def __init__(
        self,
        run: Callable[[Sequence[I], int], Sequence[O]],
        *,
        sizes: Sequence[int],
        wait_s: float,
        limit: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._run = run
        self._sizes = sorted(sizes)
        self._wait_s = wait_s
        self._limit = limit
        self._now = now
        self._queue: list[_Job[I, O]] = []
        self._changed = threading.Condition()
        self._running = 0
        self._draining = False
        self._stopped = False

    # ------------------------------------------------------------------ any thread

    def submit(self, item: I, key: Hashable, deadline: float | None = None) -> Future[Done[O]]:
        """Queue one item. Cancelling the future before its batch starts drops it. Raises
        QueueFull, Draining."""
        job = _Job[I, O](item, key, deadline, time.monotonic())
        with self._changed:
            if self._draining:
                raise Draining
            if len(self._queue) >= self._limit:
                # Dropped jobs keep no place.
                self._queue = [j for j in self._queue if not j.future.cancelled()]
                if len(self._queue) >= self._limit:
                    raise QueueFull
            self._queue.append(job)
            self._changed.notify()
        return job.future

    def drain(self, on: bool = True) -> None:
        with self._changed:
            self._draining = on

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def in_flight(self) -> int:
        """Jobs waiting and running."""
        with self._changed:
            return len(self._queue) + self._running

    def stop(self) -> None:
        """End ``serve`` after the batch it is in; what waits is refused."""
        with self._changed:
            self._stopped = self._draining = True
            self._changed.notify()

    # ------------------------------------------------------------------ the denoise thread

    def serve(self) -> None:
        """Run batches until ``stop``. Give it a thread of its own."""
        while (batch := self._take()) is not None:
            self._serve(batch)
        with self._changed:
            left, self._queue = self._queue, []
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Draining())

    def _take(self) -> list[_Job[I, O]] | None:
        """The next batch; None at the end."""
        free_at = time.monotonic()
        with self._changed:
            while True:
                if self._stopped:
                    return None
                self._queue = [j for j in self._queue if not j.future.cancelled()]
                if not self._queue:
                    self._changed.wait()
                    continue
                first = self._queue[0]
                batch = [j for j in self._queue if j.key == first.key][: self._sizes[-1]]
                # From when this thread was free, not only from the oldest's arrival: clients that
                # were answered together come back together, and should not be split for ever.
                left = max(first.at, free_at) + self._wait_s - time.monotonic()
                if len(batch) < self._sizes[-1] and left > 0:
                    self._changed.wait(left)
                    continue
                taken = set(batch)
                self._queue = [j for j in self._queue if j not in taken]
                self._running = len(batch)
                return batch

    def _serve(self, batch: list[_Job[I, O]]) -> None:
        live: list[_Job[I, O]] = []
        for job in batch:
            if not job.future.set_running_or_notify_cancel():
                continue
            if job.deadline is not None and job.deadline <= self._now():
                job.future.set_exception(DeadlinePassed())
            else:
                live.append(job)
        if live:
            start = time.monotonic()
            size = padded(len(live), self._sizes)
            try:
                outputs = self._run([j.item for j in live], size)
                seconds = time.monotonic() - start
                for job, output in zip(live, outputs, strict=True):
                    job.future.set_result(
                        Done(
                            output=output,
                            queue_seconds=start - job.at,
                            service_seconds=seconds,
                            batch_size=len(live),
                            padded_size=size,
                        )
                    )
            except Exception as error:
                log.exception("a batch failed", extra={"action": "batch.failed"})
                for job in live:
                    if not job.future.done():
                        job.future.set_exception(error)
        with self._changed:
            self._running = 0
