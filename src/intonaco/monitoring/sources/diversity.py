"""Whether the champion's pictures still differ: a model that collapsed draws the same thing for
whatever is asked."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intonaco.config import Signal
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.kmeans import unit
from intonaco.monitoring.signals import champion_made
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding, Json, Record

Row = NDArray[np.float32]

RECENT = 64  # pictures that a new one is compared with
NEARLY = 3  # bits of the perceptual hash: noise of 6 grey levels changes so many in 1 % of pictures
ALIKE = 0.95  # quantile of the likeness that is normal between things that have little in common
SAME_PROMPT = 0.90  # cosine, as in the monitors' own count of repeats
NONE = -2.0  # likeness where there is nothing to compare with


@dataclass(frozen=True, slots=True)
class _Picture:
    """``rows`` [2, d]: unit vectors of prompt and picture."""

    request: str
    seed: int
    hash: int
    rows: Row | None


class Diversity(Source):
    """1 for a picture that it takes another request to explain, else 0: it nearly equals one of
    the last pictures that were made from another prompt or seed, by their perceptual hashes; or it
    is more like a picture of something else than pictures of different things used to be.

    For the second the source learns from its first requests what "something else" is (prompts less
    alike than the median pair) and how alike pictures of different things are (the 95 % quantile of
    the greatest cosine with any of the last 64). So a topic that many ask for is no collapse: its
    pictures are not compared with each other in this way. Without embeddings the hashes are left.

    Left out: the same prompt with the same seed, as that should give the same picture; slightly
    other words with the same seed; edits, which start from what may be the same picture; and a
    session's repeats.
    """

    stream = "rate"
    direction = "up"
    extracted = True
    repeats = False

    def __init__(self, name: str, signal: Signal) -> None:
        super().__init__(name, signal)
        self._recent: deque[_Picture] = deque(maxlen=RECENT)
        self._kept = 0  # pictures ever put there
        self._rows: Row | None = None  # [RECENT, 2, d]: theirs, picture n in row n modulo RECENT
        self._first: list[_Picture] = []
        self._bar: float | None = None  # cosine of prompts below which they are something else
        self._usual = 1.0  # likeness of pictures of different things that is normal

    @property
    def learns(self) -> int:
        return max(20, min(100, self.signal.reference // 4))

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        item, record = seen.item, seen.item.record
        if not item.image_hash or record.task != "generate" or seen.repeat:
            return ()
        if not champion_made(item, seen.release):
            return ()
        rows = None
        if seen.row is not None and item.image_embedding:
            rows = np.stack([seen.row, unit(np.array(item.image_embedding))]).astype(np.float32)
        new = _Picture(_request(record), record.seed, int(item.image_hash, 16), rows)
        if any(p.request == new.request for p in self._recent):
            return ()
        if rows is not None and self._bar is None:
            self._learn(new)
            return ()
        value = self._nearly_equals_another(new) or self._like_something_else(new)
        self._keep(new)
        return (reading(seen, float(value)),)

    def _nearly_equals_another(self, new: _Picture) -> bool:
        return any(
            (p.hash ^ new.hash).bit_count() <= NEARLY and not _same(p, new) for p in self._recent
        )

    def _like_something_else(self, new: _Picture) -> bool:
        if new.rows is None or self._bar is None or self._rows is None:
            return False
        others = self._rows[: self._kept]
        return _likeness(new.rows, others, self._bar) > self._usual

    def _keep(self, new: _Picture) -> None:
        self._recent.append(new)
        if new.rows is not None:
            if self._rows is None:
                self._rows = np.zeros((RECENT, *new.rows.shape), dtype=np.float32)
            self._rows[self._kept % RECENT] = new.rows
        elif self._rows is not None:
            self._rows[self._kept % RECENT] = 0.0  # like nothing
        self._kept += 1

    def _learn(self, new: _Picture) -> None:
        self._first.append(new)
        n = len(self._first)
        if n < self.learns:
            return
        rows = np.stack([p.rows for p in self._first if p.rows is not None])
        prompts = rows[:, 0] @ rows[:, 0].T
        self._bar = float(np.median(prompts[np.triu_indices(n, 1)]))
        before = np.arange(-min(RECENT, n - 1), 0)  # the first are compared with the last
        found = [_likeness(rows[i], rows[(i + before) % n], self._bar) for i in range(n)]
        known = [likeness for likeness in found if likeness > NONE]
        self._usual = float(np.quantile(known, ALIKE)) if known else 1.0
        for picture in self._first:
            self._keep(picture)
        self._first = []

    def text(self, finding: Finding) -> str:
        return (
            f"{finding.value_now:.1%} of the champion's pictures now nearly equal a picture made "
            f"for another request (before: {finding.value_before:.1%}): they no longer differ as "
            "they did"
        )

    # -------------------------------------------------------------------------------- its state

    def state(self) -> Mapping[str, Json]:
        return {
            "recent": _packed(self._recent),
            "kept": self._kept,
            "first": _packed(self._first),
            "bar": self._bar,
            "usual": self._usual,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        recent = _unpacked(state["recent"])
        self._recent.clear()
        self._rows, self._kept = None, int(state["kept"]) - len(recent)
        for picture in recent:
            self._keep(picture)
        self._first = _unpacked(state["first"])
        self._bar = None if state["bar"] is None else float(state["bar"])
        self._usual = float(state["usual"])


def _request(record: Record) -> str:
    """Digest of what decides the picture, as far as it is known."""
    known = f"{record.seed}/{record.prompt_form}/{record.prompt}/{record.request_class}"
    return hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _same(a: _Picture, b: _Picture) -> bool:
    """Whether two requests should give nearly the same picture: the same seed and nearly the same
    prompt; where prompts are not known, the same seed."""
    if a.seed != b.seed:
        return False
    if a.rows is None or b.rows is None:
        return True
    return float(a.rows[0] @ b.rows[0]) > SAME_PROMPT


def _likeness(rows: Row, others: NDArray[np.float32], bar: float) -> float:
    """Greatest cosine of a picture with pictures [n, 2, d] of something else; NONE without any."""
    cosines = others @ rows.T  # [n, 2 of theirs, 2 of ours]
    else_ = cosines[:, 0, 0] < bar
    return float(cosines[else_, 1, 1].max()) if else_.any() else NONE


def _packed(pictures: Sequence[_Picture] | deque[_Picture]) -> Json:
    return [
        [p.request, p.seed, f"{p.hash:016x}", None if p.rows is None else pack(p.rows)]
        for p in pictures
    ]


def _unpacked(state: Json) -> list[_Picture]:
    return [
        _Picture(request, int(seed), int(bits, 16), None if rows is None else unpack(rows))
        for request, seed, bits, rows in state
    ]
