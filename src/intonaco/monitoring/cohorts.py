"""Feedback, counted in cohorts of images that had the same time to be answered.

An image is followed from the request on. When it is mature, what was said of it in time is final,
and it counts: for the share of images that got a vote, and with its vote if it has one. Votes that
come later are counted as late and change nothing. Were votes counted as they come, a change in who
votes quickly would pass for a change in what people think.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from intonaco.config import Maturity
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.signals import OWN_ARMS
from intonaco.types import Feedback, Json

# What was said of an image, as bits: what came first cannot be told from it, so that the order in
# which two gateways' logs are read changes nothing.
UP, DOWN, REGENERATE, DOWNLOAD = 1, 2, 4, 8
STARS = (16, 32, 64, 128, 256)  # one to five
EXPLICIT = UP | DOWN | sum(STARS)

# Images are closed this long after they are mature, so that what was said in time has been read.
GRACE_SECONDS = 60.0
SPAN = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Mature:
    """An image whose time for feedback is over. ``at``: when that was. ``image_counts`` and
    ``vote_counts``: whether its unit is within its share of the cohort."""

    made_at: float
    at: float
    topic: str | None
    unit: str
    said: int
    image_counts: bool
    vote_counts: bool

    @property
    def vote(self) -> float | None:
        """1 up, 0 down, None where nobody voted so."""
        if bool(self.said & UP) == bool(self.said & DOWN):
            return None
        return float(bool(self.said & UP))

    @property
    def stars(self) -> int | None:
        given = [n for n, bit in enumerate(STARS, 1) if self.said & bit]
        return given[0] if len(given) == 1 else None


class Cohorts:
    """Images that wait for their maturity, in bounded memory.

    Where more wait than ``settings.kept``, only those are followed whose request id's hash is
    below a share, which halves until they fit and doubles again when there is room: a sample that
    does not depend on what was said. Feedback that is read before the record of its image waits for
    it as long as an image waits. ``late``: feedback that came after its image was mature.
    ``unmatched``: feedback whose image was never seen.
    """

    def __init__(self, settings: Maturity) -> None:
        self.settings = settings
        self.late = 0
        self.unmatched = 0
        self._share = 1.0
        self._images: dict[int, tuple[float, str | None, str, int]] = {}  # made_at, topic, unit
        self._early: dict[int, tuple[float, int]] = {}  # made_at, what was said
        self._cohort = 0
        self._images_of: Counter[str] = Counter()
        self._votes_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._images)

    @property
    def share(self) -> float:
        """Share of the images that is followed now."""
        return self._share

    def facts(self) -> Mapping[str, Json]:
        """What a finding says of how its feedback was counted."""
        return {
            "mature_after_s": self.settings.mature_after_s,
            "late": self.late,
            "unmatched": self.unmatched,
            "share_followed": self._share,
        }

    # ---------------------------------------------------------------------------- what comes in

    def made(self, request_id: str, at: float, unit: str, topic: str | None) -> None:
        """Follow an image: for the monitor's signals one that the champion made for a user of its
        own."""
        key = _hash(request_id)
        if key >= self._share * SPAN or key in self._images:
            return
        _, said = self._early.pop(key, (at, 0))
        self._images[key] = (at, topic, unit, said)
        while len(self._images) > self.settings.kept:
            self._share /= 2
            self._images = {k: v for k, v in self._images.items() if k < self._share * SPAN}
            self._early = {k: v for k, v in self._early.items() if k < self._share * SPAN}

    def heard(
        self,
        feedback: Feedback,
        release: str | None,
        *,
        arms: Container[str] | None = OWN_ARMS,
        waits: bool = True,
    ) -> None:
        """Take feedback. Only what is said of ``release`` (None: any) to users assigned to it
        (``arms``; None: to any) counts, as with scores. ``waits``: where the image is not known
        yet, its record may still come."""
        if arms is not None and feedback.assigned_arm not in arms:
            return
        if release not in (None, feedback.release):
            return
        if feedback.at - feedback.made_at > self.settings.mature_after_s:
            self.late += 1
            return
        key, bit = _hash(feedback.request_id), _bit(feedback)
        if key in self._images:
            at, topic, unit, said = self._images[key]
            self._images[key] = (at, topic, unit, said | bit)
        elif waits and key < self._share * SPAN:
            made_at, said = self._early.pop(key, (feedback.made_at, 0))
            self._early[key] = (made_at, said | bit)
            if len(self._early) > self.settings.kept:
                del self._early[next(iter(self._early))]
                self.unmatched += 1

    # --------------------------------------------------------------------------- what comes out

    def close(self, now: float) -> Iterator[Mature]:
        """The images that are mature at ``now``, in the order in which they were made known. All
        feedback up to ``now - GRACE_SECONDS`` must have been heard."""
        until = now - GRACE_SECONDS - self.settings.mature_after_s
        while self._images:
            key = next(iter(self._images))
            at, topic, unit, said = self._images[key]
            if at > until:
                break
            del self._images[key]
            yield self._count(at, topic, unit, said)
        for key in [k for k, (at, _) in self._early.items() if at <= until]:
            del self._early[key]
            self.unmatched += 1
        if self._share < 1.0 and len(self._images) < self.settings.kept / 4:
            self._share = min(1.0, 2 * self._share)

    def _count(self, at: float, topic: str | None, unit: str, said: int) -> Mature:
        cohort = int(at // self.settings.mature_after_s)
        if cohort != self._cohort:
            self._cohort = cohort
            self._images_of.clear()
            self._votes_of.clear()
        self._images_of[unit] += 1
        if said & EXPLICIT:
            self._votes_of[unit] += 1
        most = self.settings.per_unit
        return Mature(
            made_at=at,
            at=at + self.settings.mature_after_s,
            topic=topic,
            unit=unit,
            said=said,
            image_counts=self._images_of[unit] <= most,
            vote_counts=bool(said & EXPLICIT) and self._votes_of[unit] <= most,
        )

    # -------------------------------------------------------------------------------- its state

    def state(self) -> Mapping[str, Json]:
        # In columns, packed: this is written once a second.
        rows = zip(*self._images.values(), strict=True) if self._images else ((), (), (), ())
        made_at, topic, unit, said = rows
        names = {t: i for i, t in enumerate(dict.fromkeys(topic))}
        units = {u: i for i, u in enumerate(dict.fromkeys(unit))}
        return {
            "late": self.late,
            "unmatched": self.unmatched,
            "share": self._share,
            "keys": pack(np.array(list(self._images), dtype=np.uint64)),
            "made_at": pack(np.array(made_at, dtype=np.float64)),
            "topics": list(names),
            "topic": pack(np.array([names[t] for t in topic], dtype=np.uint16)),
            "units": list(units),
            "unit": pack(np.array([units[u] for u in unit], dtype=np.uint32)),
            "said": pack(np.array(said, dtype=np.uint16)),
            "early": [[str(k), at, said] for k, (at, said) in self._early.items()],
            "cohort": self._cohort,
            "images_of": dict(self._images_of),
            "votes_of": dict(self._votes_of),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.late = int(state["late"])
        self.unmatched = int(state["unmatched"])
        self._share = float(state["share"])
        topics, units = state["topics"], state["units"]
        names = ("keys", "made_at", "topic", "unit", "said")
        columns = (unpack(state[name]).tolist() for name in names)
        self._images = {
            key: (at, topics[topic], units[unit], said)
            for key, at, topic, unit, said in zip(*columns, strict=True)
        }
        self._early = {int(k): (float(at), int(said)) for k, at, said in state["early"]}
        self._cohort = int(state["cohort"])
        self._images_of = Counter(state["images_of"])
        self._votes_of = Counter(state["votes_of"])


def _hash(request_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"cohort/{request_id}".encode()).digest()[:8])


def _bit(feedback: Feedback) -> int:
    """Raises nothing: kinds and votes of a later version say nothing to this one."""
    if feedback.kind == "regenerate":
        return REGENERATE
    if feedback.kind == "download":
        return DOWNLOAD
    vote = feedback.vote or ""
    if vote in ("up", "down"):
        return UP if vote == "up" else DOWN
    return STARS[int(vote) - 1] if vote in ("1", "2", "3", "4", "5") else 0
