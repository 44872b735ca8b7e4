"""Quantiles and moments of a stream in bounded memory, mergeable.

Masson, Rim & Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
guarantees", PVLDB 12(12), 2019, arXiv 1908.10693. Sums and sums of squares are whole numbers of
``UNIT``: merging adds them without rounding, so neither order nor division of a stream leaves a
trace, and the variance does not cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types import Json

ERROR = 0.01  # relative, of every quantile
BUCKETS = 1024  # with 1 %: values that differ by a factor of up to 8e8
UNIT = 1e-9  # moments are of values rounded to this
SMALLEST = UNIT  # what is not above this counts as zero


@dataclass(slots=True)
class QuantileSketch:
    """Counts of non-negative values in buckets that grow by ``gamma = (1 + error)/(1 - error)``:
    bucket i holds (gamma^(i-1), gamma^i], so its middle is within ``error`` of all it holds.

    At most ``buckets`` are kept: those below the highest so far less ``buckets`` are counted in the
    lowest. Which those are depends on the largest value alone, so sketches of any parts of a
    stream, merged in any order, hold the very counts of a sketch of the whole.

    >>> sketch = QuantileSketch()
    >>> for i in range(1, 1001):
    ...     sketch.add(i / 1000)
    >>> abs(sketch.quantile(0.95) / 0.95 - 1) <= 0.01
    True
    """

    error: float = ERROR
    buckets: int = BUCKETS
    count: int = 0
    smallest: float = math.inf
    largest: float = -math.inf
    _zero: int = 0
    _bins: dict[int, int] = field(default_factory=dict)
    _top: int | None = None  # highest bucket
    _sum: int = 0  # in units
    _squares: int = 0  # in squared units
    _log_gamma: float = field(init=False, default=0.0, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.error < 1.0 or self.buckets < 2:
            raise ValueError("error lies between 0 and 1, and there are at least 2 buckets")
        self._log_gamma = math.log((1.0 + self.error) / (1.0 - self.error))

    # ------------------------------------------------------------------------------------ taking in

    def add(self, value: float, times: int = 1) -> None:
        """Count a value. Raises ValueError if it is negative or not finite."""
        if not 0.0 <= value < math.inf:
            raise ValueError(f"not a finite value of 0 or more: {value}")
        if times < 1:
            return
        units = round(value / UNIT)
        self.count += times
        self._sum += units * times
        self._squares += units * units * times
        self.smallest = min(self.smallest, value)
        self.largest = max(self.largest, value)
        if value <= SMALLEST:
            self._zero += times
            return
        index = math.ceil(math.log(value) / self._log_gamma)
        top = self._top
        if top is None or index > top:
            self._raise_to(index)
        else:
            index = max(index, top - self.buckets + 1)
        self._bins[index] = self._bins.get(index, 0) + times

    def merge(self, other: QuantileSketch) -> None:
        """Count all that ``other`` counted. Raises ValueError if its buckets are others."""
        if (other.error, other.buckets) != (self.error, self.buckets):
            raise ValueError("sketches of other buckets cannot be merged")
        if not other.count:
            return
        self.count += other.count
        self._sum += other._sum
        self._squares += other._squares
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)
        self._zero += other._zero
        if other._top is None:
            return
        if self._top is None or other._top > self._top:
            self._raise_to(other._top)
        assert self._top is not None
        floor = self._top - self.buckets + 1
        for index, count in other._bins.items():
            at = max(index, floor)
            self._bins[at] = self._bins.get(at, 0) + count

    def _raise_to(self, top: int) -> None:
        """Make a bucket the highest; what is too far below it goes into the lowest."""
        self._top = top
        floor = top - self.buckets + 1
        low = [i for i in self._bins if i < floor]
        if low:
            self._bins[floor] = self._bins.get(floor, 0) + sum(self._bins.pop(i) for i in low)

    # ------------------------------------------------------------------------------------ answering

    @property
    def total(self) -> float:
        """Sum of the values."""
        return self._sum * UNIT

    @property
    def mean(self) -> float | None:
        return self._sum / self.count * UNIT if self.count else None

    @property
    def variance(self) -> float | None:
        """Unbiased; None for fewer than two values."""
        n = self.count
        if n < 2:
            return None
        return (n * self._squares - self._sum**2) / (n * (n - 1)) * UNIT**2

    def quantile(self, q: float) -> float | None:
        """The value of rank floor(q (count - 1)) among the sorted ones, to within the relative
        error (unless it lies in the lowest of all buckets); None of no values. Raises ValueError
        for a q outside [0, 1]."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile lies between 0 and 1: {q}")
        if not self.count:
            return None
        rank = math.floor(q * (self.count - 1))
        below = self._zero
        if rank < below:
            return 0.0
        for index in sorted(self._bins):
            below += self._bins[index]
            if rank < below:
                # 2 gamma^i / (gamma + 1): as far from both ends of the bucket
                middle = 2.0 * math.exp(index * self._log_gamma) / (1 + math.exp(self._log_gamma))
                return min(max(middle, self.smallest), self.largest)
        return self.largest

    def above(self, value: float) -> int:
        """How many values lie in buckets wholly above ``value``."""
        if value <= SMALLEST:
            return self.count - self._zero
        index = math.ceil(math.log(value) / self._log_gamma)
        return sum(n for i, n in self._bins.items() if i > index)

    @property
    def counts(self) -> Mapping[int, int]:
        """Counts by bucket, the lowest first; zeros are not among them."""
        return dict(sorted(self._bins.items()))

    # ---------------------------------------------------------------------------------------- state

    def state(self) -> Json:
        """JSON; exact. Empty sketches are short."""
        if not self.count:
            return {}
        indices = sorted(self._bins)
        steps = [b - a for a, b in zip([0, *indices], indices, strict=False)]
        return {
            "n": self.count,
            "sum": self._sum,
            "min": self.smallest,
            "max": self.largest,
            "squares": str(self._squares),  # larger than what most readers of JSON hold
            "zero": self._zero,
            "at": steps,  # each bucket's distance from the one before
            "counts": [self._bins[i] for i in indices],
        }

    @classmethod
    def of_state(
        cls, state: Mapping[str, Json], *, error: float = ERROR, buckets: int = BUCKETS
    ) -> QuantileSketch:
        sketch = cls(error=error, buckets=buckets)
        if not state:
            return sketch
        sketch.count = int(state["n"])
        sketch._sum = int(state["sum"])
        sketch.smallest = float(state["min"])
        sketch.largest = float(state["max"])
        sketch._squares = int(state["squares"])
        sketch._zero = int(state["zero"])
        index = 0
        for step, count in zip(state["at"], state["counts"], strict=True):
            index += step
            sketch._bins[index] = count
        sketch._top = index if state["at"] else None
        return sketch
