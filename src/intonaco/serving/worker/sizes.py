"""Which batch sizes the model is run at. No clock, no thread.

Bits are the same only at the same size, so a batch is padded to one of few sizes. A size that the
device could not hold is not tried again for a while for that kind of request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

FORGET_S = 600.0  # other processes' memory comes and goes
KEYS = 256  # clients choose steps and guidance, so there is no end of keys


class Sizes:
    """``strict``: the largest size only, whatever happens. Times are monotonic seconds."""

    def __init__(self, sizes: Sequence[int], *, strict: bool = False) -> None:
        self._all = (max(sizes),) if strict else tuple(sorted(set(sizes)))
        self._strict = strict
        self._caps: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def largest(self, key: Hashable, now: float) -> int:
        return self._of(key, now)[-1]

    def padded(self, key: Hashable, jobs: int, now: float) -> int:
        """The smallest size that holds ``jobs``, which are at most ``largest``."""
        return min(s for s in self._of(key, now) if s >= jobs)

    def failed(self, key: Hashable, size: int, now: float) -> bool:
        """The device cannot hold ``size``. Whether there is a smaller one to try: the next of
        those configured, below them half, down to 1."""
        if self._strict or size <= 1:
            return False
        cap = max((s for s in self._all if s < size), default=size // 2)
        self._caps[key] = (cap, now + FORGET_S)
        self._caps.move_to_end(key)
        if len(self._caps) > KEYS:
            self._caps.popitem(last=False)
        return True

    def every(self, key: Hashable, now: float) -> tuple[int, ...]:
        return self._of(key, now)

    def _of(self, key: Hashable, now: float) -> tuple[int, ...]:
        cap, until = self._caps.get(key, (0, 0.0))
        if not cap or now >= until:
            return self._all
        return tuple(s for s in self._all if s <= cap) or (cap,)
