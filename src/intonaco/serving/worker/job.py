"""What waits in the batcher, what becomes of it, and why it may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from intonaco.serving.worker.core import Images

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 (item)


class QueueFull(Exception):
    """The queue is full."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class Draining(Exception):
    """No new work is taken."""


class DeadlinePassed(Exception):
    """Nobody waits for the answer any more."""


class DeadlineUnmeetable(Exception):
    """With what waits ahead the answer would come ``late_s`` too late."""

    def __init__(self, late_s: float) -> None:
        super().__init__()
        self.late_s = late_s


class Listener(Protocol):
    """Hears of the steps of a job. Called on the denoise thread: must not block."""

    def step(self, done: int, steps: int) -> bool:
        """Whether the unfinished picture is wanted."""
        ...

    def partial(self, image: Any) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One image and its batch: ``cost`` is the whole batch's, ``service_seconds`` too.
    ``padded_size``: what the model really ran."""

    image: Any
    queue_seconds: float
    service_seconds: float
    batch_size: int
    padded_size: int
    cost: Images

    @property
    def gpu_seconds(self) -> float:
        """This image's share."""
        return self.cost.gpu_seconds / self.batch_size


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Generic[I]):
    """``future`` ends with a Done, or raises DeadlinePassed, Draining, Aborted, or what the run
    raised."""

    item: I
    key: Hashable
    unit: str
    deadline: float | None  # epoch seconds
    at: float  # monotonic seconds
    listener: Listener | None
    future: Future[Done] = field(default_factory=Future)
    gone: bool = False  # nobody waits for it


@dataclass(slots=True, eq=False, kw_only=True)
class Errand(Generic[T]):
    """Something that only the denoise thread may do, and that is no image."""

    call: Callable[[], T]
    future: Future[T] = field(default_factory=Future)

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.call())
            except BaseException as error:
                self.future.set_exception(error)

    def refuse(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(Draining())


@dataclass(slots=True)
class Counts:
    """Since the start. ``batches`` and ``out_of_memory`` by padded size."""

    batches: Counter[int] = field(default_factory=Counter)
    images: int = 0
    aborted: int = 0
    failed: int = 0
    out_of_memory: Counter[int] = field(default_factory=Counter)
    busy_seconds: float = 0.0
