"""How long batches take, and when a job would be done. No clock, no thread.

Everything here leans to too short: what was never measured, or too long ago, counts as nothing.
Work is refused only for what was seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from intonaco.serving.worker.fair_queue import FairQueue, J

WEIGHT = 0.3  # of the newest measurement in the moving average
FRESH_S = 60.0
FRESH_BATCHES = 4  # a slow kind is believed for longer: this many times what it takes
KEYS = 256


@dataclass(frozen=True, slots=True)
class _Mean:
    seconds: float
    until: float


class BatchTimes:
    """Exponentially weighted means of seconds per batch, by key and padded size. A mean that was
    not measured again for a while is forgotten: a kind that is refused for being slow could
    otherwise never show that it no longer is. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._means: OrderedDict[Hashable, dict[int, _Mean]] = OrderedDict()
        self._image = 0.0

    def add(self, key: Hashable, size: int, images: int, seconds: float, now: float) -> None:
        of_key = self._means.setdefault(key, {})
        self._means.move_to_end(key)
        if len(self._means) > KEYS:
            self._means.popitem(last=False)
        old = of_key.get(size)
        mean = seconds
        if old is not None and now < old.until:
            mean = old.seconds + WEIGHT * (seconds - old.seconds)
        of_key[size] = _Mean(mean, now + max(FRESH_S, FRESH_BATCHES * mean))
        one = seconds / images
        self._image = self._image + WEIGHT * (one - self._image) if self._image else one

    def batch(self, key: Hashable, size: int, now: float) -> float:
        """Seconds that a batch takes at least, 0 if nothing is known. Of another size: no less
        than a smaller one, and no less than its share of a larger one."""
        known = {s: m for s, m in self._means.get(key, {}).items() if now < m.until}
        if size in known:
            return known[size].seconds
        return max((m.seconds * min(1.0, size / s) for s, m in known.items()), default=0.0)

    @property
    def image(self) -> float:
        """Seconds per image of late, over all kinds; 0 before the first."""
        return self._image


def seconds_until_done(
    queue: FairQueue[J],
    job: J,
    *,
    running: float,
    largest: Callable[[Hashable], int],
    batch: Callable[[Hashable, int], float],
) -> float:
    """Seconds until ``job`` would be done if it joined the queue now and nobody came after it.
    ``running``: what is left of the running batch. ``batch(key, jobs)``: seconds that one takes."""
    ahead = queue.copy()
    ahead.add(job)
    seconds = running
    while job not in (members := ahead.next(largest)):
        seconds += batch(members[0].key, len(members))
        ahead.take(members)
    return seconds + batch(job.key, len(members))
