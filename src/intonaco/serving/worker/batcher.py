"""The micro-batcher: one thread, a bounded queue that is fair between users, batches of requests
that agree.

``fair_queue`` says whose turn it is, ``sizes`` how large a batch may be, ``forecast`` what can
still be done in time. This is the thread around them: it waits a moment for company, runs the
batch, halves it when memory ran out, and gives it up when nobody waits for it any more. New jobs
are admitted between batches.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from intonaco.serving.worker.core import Aborted, Images, OutOfMemory, Preview, StepWatch
from intonaco.serving.worker.fair_queue import FairQueue
from intonaco.serving.worker.forecast import BatchTimes, seconds_until_done
from intonaco.serving.worker.job import (
    Counts,
    DeadlinePassed,
    DeadlineUnmeetable,
    Done,
    Draining,
    Errand,
    I,
    Job,
    Listener,
    QueueFull,
)
from intonaco.serving.worker.sizes import Sizes

log = logging.getLogger(__name__)

T = TypeVar("T")
Run = Callable[[Sequence[I], int, StepWatch], Images]


class MicroBatcher(Generic[I]):
    """``run(items, padded_size, watch)`` makes one image an item, in order, on the one thread;
    it may raise OutOfMemory, and must let Aborted of the watch through."""

    def __init__(
        self,
        run: Run[I],
        *,
        sizes: Sequence[int],
        wait_s: float,
        limit: int,
        strict: bool = False,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._sizes = Sizes(sizes, strict=strict)
        self._times = BatchTimes()
        self._wait_s = wait_s
        self._limit = limit
        self._now = now
        self._monotonic = monotonic
        self._queue: FairQueue[Job[I]] = FairQueue()
        self._errands: deque[Errand[Any]] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._busy_since: float | None = None
        self._expected_end = 0.0  # of the running batch, monotonic
        self._refused = 0  # since a place was last free
        self._draining = False
        self._stopped = False
        self.counts = Counts()

    # ------------------------------------------------------------------ any thread

    def submit(
        self,
        item: I,
        key: Hashable,
        *,
        unit: str = "",
        deadline: float | None = None,
        listener: Listener | None = None,
    ) -> Job[I]:
        """Queue one item. Raises Draining, QueueFull, DeadlinePassed, DeadlineUnmeetable."""
        job = Job(
            item=item,
            key=key,
            unit=unit,
            deadline=deadline,
            at=self._monotonic(),
            listener=listener,
        )
        with self._changed:
            if self._draining:
                raise Draining
            if len(self._queue) >= self._limit:
                self._refused += 1
                raise QueueFull(self._retry_after())
            if deadline is not None:
                left = deadline - self._now()
                if left <= 0:
                    raise DeadlinePassed
                # An idle worker has nothing better to do than to find out.
                idle = not self._running and not len(self._queue)
                late = 0.0 if idle else self._forecast(job) - left
                if late > 0:
                    raise DeadlineUnmeetable(late)
            self._queue.add(job)
            self._changed.notify()
        return job

    def abandon(self, job: Job[I]) -> None:
        """Nobody waits for it any more. It loses its place; if it runs, its image is thrown away,
        and a batch of which all are abandoned ends at its next step."""
        job.gone = True
        with self._changed:
            self._queue.discard(job)
        job.future.cancel()

    def expire(self, job: Job[I]) -> None:
        """Its deadline passed: if it still waits, it ends with DeadlinePassed."""
        with self._changed:
            waited = self._queue.discard(job)
        if waited and job.future.set_running_or_notify_cancel():
            job.future.set_exception(DeadlinePassed())

    def refuse(self, meant: Callable[[I], bool]) -> int:
        """End what waits and is meant with Draining; how many that were. What runs goes on."""
        with self._changed:
            left = [job for job in self._queue if meant(job.item)]
            for job in left:
                self._queue.discard(job)
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Draining())
        return len(left)

    def between(self, call: Callable[[], T]) -> Future[T]:
        """Have something done on the denoise thread, after the batch that runs and before those
        that wait. The future has its result, or raises what it raised, or Draining after a stop."""
        errand = Errand(call=call)
        with self._changed:
            if not self._stopped:
                self._errands.append(errand)
                self._changed.notify()
                return errand.future
        errand.refuse()
        return errand.future

    def drain(self, on: bool = True) -> None:
        with self._changed:
            self._draining = on

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def waiting(self) -> int:
        with self._changed:
            return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs of the batch that runs."""
        return self._running

    @property
    def in_flight(self) -> int:
        """Jobs waiting and running."""
        with self._changed:
            return len(self._queue) + self._running

    @property
    def busy_seconds(self) -> float:
        """Spent in batches, up to now."""
        with self._changed:
            since = self._busy_since
            running = 0.0 if since is None else self._monotonic() - since
            return self.counts.busy_seconds + running

    def stop(self) -> None:
        """End ``serve`` after the batch it is in; what waits is refused."""
        with self._changed:
            self._stopped = self._draining = True
            self._changed.notify()

    # ------------------------------------------------------------------ under the lock

    def _left_of_running(self) -> float:
        return max(0.0, self._expected_end - self._monotonic()) if self._running else 0.0

    def _retry_after(self) -> int:
        """Whole seconds until there is likely a place: each one refused is sent behind those
        refused before it, at most to when all that waits now is done."""
        behind = min(self._refused, self._limit)
        return max(1, math.ceil(self._left_of_running() + behind * self._times.image))

    def _forecast(self, job: Job[I]) -> float:
        now = self._monotonic()
        return seconds_until_done(
            self._queue,
            job,
            running=self._left_of_running(),
            largest=self._largest,
            batch=lambda key, jobs: self._times.batch(key, self._sizes.padded(key, jobs, now), now),
        )

    def _largest(self, key: Hashable) -> int:
        return self._sizes.largest(key, self._monotonic())

    # ------------------------------------------------------------------ the denoise thread

    def warm_up(self, item: I, key: Hashable) -> None:
        """Run one item at each size. Sizes that the device cannot hold are left out for that key.
        Raises OutOfMemory if it holds none, and what else the run raises."""
        tried = set[int]()
        while self.warm_up_next(item, key, tried):
            pass

    def warm_up_next(self, item: I, key: Hashable, tried: set[int]) -> bool:
        """As ``warm_up``, one size that was not tried yet. False: there is none left."""
        todo = [s for s in self._sizes.every(key, self._monotonic()) if s not in tried]
        if not todo:
            return False
        tried.add(todo[0])
        try:
            self._run([item], todo[0], _unwatched)
        except OutOfMemory:
            if not self._out_of_memory(key, todo[0]):
                raise
        return True

    def serve(self) -> None:
        """Run batches until ``stop``. Give it a thread of its own."""
        while (todo := self._take()) is not None:
            if isinstance(todo, Errand):
                todo.run()
                continue
            try:
                self._serve(todo)
            finally:
                with self._changed:
                    self._running = 0
        with self._changed:
            left, self._queue = list(self._queue), FairQueue()
            errands, self._errands = list(self._errands), deque()
        for errand in errands:
            errand.refuse()
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Draining())

    def _take(self) -> list[Job[I]] | Errand[Any] | None:
        """The next errand or batch; None at the end."""
        free_at = self._monotonic()
        with self._changed:
            while not self._stopped:
                if self._errands:
                    return self._errands.popleft()
                batch = self._queue.next(self._largest)
                if not batch:
                    self._changed.wait()
                    continue
                # From when this thread was free, not only from the leader's arrival: clients that
                # were answered together come back together, and should not be split for ever.
                left = max(batch[0].at, free_at) + self._wait_s - self._monotonic()
                if len(batch) < self._largest(batch[0].key) and left > 0:
                    self._changed.wait(left)
                    continue
                self._queue.take(batch)
                self._refused = 0
                self._running = len(batch)
                self._expected_end = 0.0
                return batch
        return None

    def _serve(self, batch: Sequence[Job[I]]) -> None:
        parts = deque([[j for j in batch if j.future.set_running_or_notify_cancel()]])
        while parts:
            live = self._live(parts.popleft())
            if not live:
                continue
            largest = self._largest(live[0].key)
            if len(live) > largest:  # since the last part ran out of memory
                chunks = [live[i : i + largest] for i in range(0, len(live), largest)]
                parts.extendleft(reversed(chunks))
            elif not self._attempt(live):
                parts.appendleft(live)

    def _live(self, jobs: Sequence[Job[I]]) -> list[Job[I]]:
        """Those that somebody waits for and that are in time; the others end here."""
        live: list[Job[I]] = []
        for job in jobs:
            if job.gone:
                job.future.set_exception(Aborted())
            elif job.deadline is not None and job.deadline <= self._now():
                job.future.set_exception(DeadlinePassed())
            else:
                live.append(job)
        return live

    def _attempt(self, jobs: Sequence[Job[I]]) -> bool:
        """Run jobs as one batch and end their futures. False: it ran out of memory, and a smaller
        size is left to try."""
        key = jobs[0].key
        start = self._monotonic()
        size = self._sizes.padded(key, len(jobs), start)
        with self._changed:
            self._expected_end = start + self._times.batch(key, size, start)
            self._busy_since = start
        problem: Exception
        try:
            cost = self._run([j.item for j in jobs], size, _watch(jobs))
            if len(cost.images) != len(jobs):
                raise RuntimeError(f"{len(cost.images)} images of {len(jobs)} requests")
        except Aborted as error:
            self.counts.aborted += 1
            problem = error
        except OutOfMemory as error:
            if self._out_of_memory(key, size):
                return False
            problem = OutOfMemory(str(error))  # the other one's frames hold what memory there is
        except Exception as error:
            log.exception("a batch failed", extra={"action": "batch.failed"})
            problem = error
        else:
            seconds = self._monotonic() - start
            with self._changed:
                self._times.add(key, size, len(jobs), seconds, self._monotonic())
            self.counts.batches[size] += 1
            self.counts.images += len(jobs)
            for job, image in zip(jobs, cost.images, strict=True):
                job.future.set_result(
                    Done(
                        image=image,
                        queue_seconds=start - job.at,
                        service_seconds=seconds,
                        batch_size=len(jobs),
                        padded_size=size,
                        cost=cost,
                    )
                )
            return True
        finally:
            with self._changed:
                self._busy_since = None
                self.counts.busy_seconds += self._monotonic() - start
        if not isinstance(problem, Aborted):
            self.counts.failed += len(jobs)
        for job in jobs:
            job.future.set_exception(problem)
        return True

    def _out_of_memory(self, key: Hashable, size: int) -> bool:
        """Whether there is a smaller size to try."""
        self.counts.out_of_memory[size] += 1
        smaller = self._sizes.failed(key, size, self._monotonic())
        log.warning(
            "out of memory at batch size %d; %s",
            size,
            "goes on with smaller ones" if smaller else "there is no smaller one to try",
            extra={"action": "batch.out_of_memory"},
        )
        return smaller


def _watch(jobs: Sequence[Job[Any]]) -> StepWatch:
    """Tells listeners of steps, decodes a preview if one of them wants it, ends a batch that
    nobody waits for."""
    previews = True

    def watch(done: int, steps: int, preview: Preview) -> None:
        nonlocal previews
        if all(j.gone for j in jobs):
            raise Aborted
        wanted = [
            (place, j.listener)
            for place, j in enumerate(jobs)
            if j.listener is not None and not j.gone and j.listener.step(done, steps)
        ]
        if not wanted or not previews:
            return
        try:
            images = preview()
        except Exception:  # the batch is worth more than a look at it
            previews = False
            log.exception("a preview failed", extra={"action": "batch.preview_failed"})
            return
        for place, listener in wanted:
            if place < len(images):  # some pipelines have no picture of the whole batch
                listener.partial(images[place])

    return watch


def _unwatched(done: int, steps: int, preview: Preview) -> None:
    pass
