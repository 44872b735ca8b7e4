"""What each signal reads off a scored record. Pure, except that latency learns its medians."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types import Attempt, Json, Outcome, Record, ScoredRecord

OWN_ARMS = ("champion", "baseline")  # the two arms that the present champion answers
# Users of a challenger that was taken out of a split, whom the champion answers. A hash had put
# them there, so how fast and how well it answers them is its service like any other: errors, times,
# throughput and the fill of batches count them. What they ask for, get and say of it does not
# count: they come from a release that was taken out, perhaps for harm, and ask again and judge by
# what they had there.
RETURNED = "returned:"
FAILURES = (Outcome.ERROR, Outcome.TIMEOUT)
CLASSES = 64  # request classes (edits apart, size, steps) whose latency is watched
SIZES = 16  # padded batch sizes of one class
BATCHED = ("service", "encode", "denoise", "decode")  # parts that are the whole batch's time
SHORTEST = 0.001  # seconds; what is usually shorter is compared with this


def is_user_request(record: Record) -> bool:
    return not record.probe and record.shadow_of is None


def answered_by_champion(arm: str) -> bool:
    """Whether users of an arm are the champion's, by their assignment and not by the canary
    shield."""
    return arm in OWN_ARMS or arm.startswith(RETURNED)


def champion_attempts(record: Record, release: str | None) -> tuple[Attempt, ...]:
    """Attempts that say something about the champion's service: of users whom it answers (not of
    those whom the canary shield sent there), on its arms, and by ``release`` where that is
    known."""
    if not answered_by_champion(record.assigned_arm):
        return ()
    return tuple(
        a for a in record.attempts if answered_by_champion(a.arm) and release in (None, a.release)
    )


def failed(record: Record, release: str | None) -> float | None:
    """1 if the champion failed this request at least once, 0 if not, None if it says nothing: a
    wrong or cancelled request, or no attempt. A full or draining worker is a failure only when
    nobody served the request."""
    outcomes = [a.outcome for a in champion_attempts(record, release)]
    if any(o in FAILURES for o in outcomes):
        return 1.0
    if Outcome.REJECTED in outcomes and record.served_by is None:
        return 1.0
    return 0.0 if Outcome.OK in outcomes else None


def champion_made(item: ScoredRecord, release: str | None) -> bool:
    """Whether the champion made this record's image, for a user who never was another's."""
    return item.record.assigned_arm in OWN_ARMS and any(
        a.outcome is Outcome.OK and a.release == item.record.served_by
        for a in champion_attempts(item.record, release)
    )


def champion_score(item: ScoredRecord, name: str, release: str | None) -> float | None:
    """Raw score of an image that the champion made for a user assigned to it."""
    return item.scores.get(name) if champion_made(item, release) else None


def seconds_of(record: Record, release: str | None, part: str = "service") -> float | None:
    """Seconds that the champion took for a part of this image; None if it made none, or if nobody
    told. ``part``: "service", "queue", "encode", "denoise", "decode"; "total": end to end;
    "device": this image's share of the device's time."""
    attempt = _worked(record, release)
    if attempt is None:
        return None
    if part == "total":
        return record.seconds if record.status == 200 else None
    if part == "device":
        return attempt.gpu_seconds or attempt.service_seconds / max(1, attempt.batch_size)
    seconds = float(getattr(attempt, f"{part}_seconds"))
    return seconds if seconds > 0 or part == "queue" else None


def batch_of(record: Record, release: str | None) -> int:
    """Padded size of the batch that the champion made this image in; 1 if nobody told."""
    attempt = _worked(record, release)
    return 1 if attempt is None else max(1, attempt.padded_size)


def _worked(record: Record, release: str | None) -> Attempt | None:
    return next(
        (
            a
            for a in champion_attempts(record, release)
            if a.outcome is Outcome.OK and a.service_seconds > 0
        ),
        None,
    )


def usual_of_batch(known: Mapping[int, float], size: int) -> float | None:
    """Seconds that a batch of ``size`` usually takes at most, given the usual of other sizes: on
    the line between its neighbours, as a smaller one if it is the smallest, and in proportion to
    the largest if it is larger than any. None without any."""
    if size in known:
        return known[size]
    below = max((s for s in known if s < size), default=None)
    above = min((s for s in known if s > size), default=None)
    if below is None:
        return None if above is None else known[above]
    if above is None:
        return known[below] * size / below
    return known[below] + (known[above] - known[below]) * (size - below) / (above - below)


@dataclass(slots=True)
class LatencyClasses:
    """Compares a request with the usual of its class: the median of the class's first ``learn``
    requests, a millisecond at least, so that a queue that was empty can be compared with. A class
    says nothing until it has learned.

    The time of a batch is that of all images in it, so for its parts (``BATCHED``) each padded
    batch size of a class has a usual of its own: the median of its requests, up to ``learn``, that
    came before ``reference`` readings were given. Traffic that grows fills batches to sizes that
    hardly were: those are compared with what they take at most (``usual_of_batch``) until they
    have learned from a third of ``learn``. Before, that would mean another thing in the reference
    than after it."""

    slower_than: float
    learn: int
    part: str = "service"
    reference: int = 0
    medians: dict[str, dict[int, float]] = field(default_factory=dict)  # by class and size
    _learning: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    _given: int = 0  # readings, up to ``reference``

    def slow(self, record: Record, release: str | None) -> float | None:
        """1 if it took more than ``slower_than`` times the usual, 0 if not, None unknown."""
        ratio = self.ratio(record, release)
        return None if ratio is None else float(ratio > self.slower_than)

    def ratio(self, record: Record, release: str | None) -> float | None:
        """How many times the usual it took, None unknown."""
        seconds = seconds_of(record, release, self.part)
        if seconds is None:
            return None
        name = record.request_class
        size = batch_of(record, release) if self.part in BATCHED else 0
        known = self.medians.get(name, {})
        usual = known.get(size)
        if usual is None and self._complete:
            usual = usual_of_batch(known, size)
        self._learn(name, size, seconds)
        if usual is None:
            return None
        self._given = min(self._given + 1, self.reference)
        return seconds / max(usual, SHORTEST)

    @property
    def _complete(self) -> bool:
        return self._given >= self.reference

    def _learn(self, name: str, size: int, seconds: float) -> None:
        known = self.medians.get(name, {})
        if size in known and (self._complete or size not in self._learning.get(name, ())):
            self._forget(name, size)
            return
        classes = {*self._learning, *self.medians}
        if name not in classes and len(classes) >= CLASSES:
            return
        sizes = self._learning.setdefault(name, {})
        if size not in sizes and len({*sizes, *known}) >= SIZES:
            return
        sizes.setdefault(size, []).append(seconds)
        if not known and sum(map(len, sizes.values())) < self.learn:
            return
        least = max(1, self.learn // (3 if self._complete else 10))
        for each in [size] if known else list(sizes):
            if len(sizes[each]) >= least:
                self.medians.setdefault(name, {})[each] = statistics.median(sizes[each])
            if len(sizes[each]) >= self.learn:
                self._forget(name, each)

    def _forget(self, name: str, size: int) -> None:
        """What a usual was learned from."""
        sizes = self._learning.get(name, {})
        sizes.pop(size, None)
        if not sizes:
            self._learning.pop(name, None)

    def state(self) -> Mapping[str, Json]:
        def text(by_size: Mapping[int, Json]) -> Json:
            return {str(size): value for size, value in by_size.items()}

        return {
            "medians": {name: text(sizes) for name, sizes in self.medians.items()},
            "learning": {
                name: text({s: list(v) for s, v in sizes.items()})
                for name, sizes in self._learning.items()
            },
            "given": self._given,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Of an older version, which knew no batch sizes, the usual is learned anew."""
        if "given" not in state:
            return
        self.medians = {
            name: {int(size): float(m) for size, m in sizes.items()}
            for name, sizes in state["medians"].items()
        }
        self._learning = {
            name: {int(size): [float(s) for s in seen] for size, seen in sizes.items()}
            for name, sizes in state["learning"].items()
        }
        self._given = int(state["given"])
