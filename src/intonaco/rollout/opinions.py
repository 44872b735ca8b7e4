"""What people say of the images of a rollout, counted when the images are mature. Pure.

**A unit's outcome** is that of its first randomised request: 1 if what it was given was spoken ill
of within ``mature_after_s`` (thumbs down, or one or two stars of five, as the signals ``thumbs``
and ``stars`` read them), else 0. It is 0 where nothing was said, and where there was no image,
which ``errors`` judges. Whose image it was that a shielded user got does not matter: users are
judged by assignment. Late feedback says nothing, nor does what is said of a unit's other images:
one vote each.

**Why of all units, not of the votes.** Whether somebody votes is an answer to the image too. Among
those who voted the arms are not alike any more, however the units were dealt; among all who were
dealt they are, and both have had the same time, so that silence is as likely in both if the images
are. (Conditioning on what happened after the assignment: Rosenbaum, "The consequences of adjustment
for a concomitant variable that has been affected by the treatment", Journal of the Royal
Statistical Society A 147, 1984.) The signal ``thumbs`` is a share of votes and needs its
``response_rate`` beside it.

**Why the tests hold.** Units are taken in the order in which their requests began, each when its
image is mature, whatever was said of it and when; where more wait than are kept, those that are
followed are drawn by a hash of the request's id. So the arm of the next unit is drawn independently
of its outcome given all that was taken, as ``stats/difference.py`` asks, provided that nobody's
word depends on the release that somebody else was dealt.

**Silence proves nothing.** Where hardly anybody votes, or people have far fewer good words for the
challenger's images than for the champion's (it may be that nobody can vote on them), nothing is
proven; harm still is. This only withholds a proof, so it costs no error.
"""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.config import Maturity
from intonaco.monitoring.cohorts import DOWN, EXPLICIT, STARS, UP, Cohorts, Mature
from intonaco.rollout.evidence import Unit, evidence_of
from intonaco.rollout.outcomes import FEEDBACK
from intonaco.rollout.words import silent, span, to_mature
from intonaco.types import Feedback, Json

VOTES_NEEDED = 10  # of both arms together
GOOD_NEEDED = 20  # good words that the challenger's images would have if they were the champion's
_ILL = DOWN | STARS[0] | STARS[1]
_GOOD = UP | STARS[3] | STARS[4]
_COMES_SECONDS = 3600.0  # the record of an image is read this long after others of its time at most


class Opinions:
    """Of one rollout, challenger against champion."""

    def __init__(self, settings: Maturity, *, tolerance: float, margin: float) -> None:
        self.evidence = evidence_of(FEEDBACK, tolerance=tolerance, margin=margin)
        self._cohorts = Cohorts(settings)
        self._good, self._said = [0, 0], [0, 0]  # champion's and challenger's, of units that count

    @property
    def waiting(self) -> int:
        """Units whose images are not mature yet."""
        return len(self._cohorts)

    @property
    def has_data(self) -> bool:
        return self.evidence.has_data and sum(self._said) > 0

    # -------------------------------------------------------------------------------- taking in

    def follow(
        self, request_id: str, at: float, unit: str, *, challenger: bool, weight: float
    ) -> None:
        """A unit's first randomised request, in the order in which they began. ``unit``: its key,
        never given twice."""
        # Arm and probability travel with the image as what it is to be counted under.
        self._cohorts.made(request_id, at, unit, f"{int(challenger)} {weight!r}")

    def hear(self, feedback: Feedback, until: float) -> None:
        """Take what was said. ``until``: records of requests that ended before it were observed."""
        comes = feedback.made_at >= until - _COMES_SECONDS
        self._cohorts.heard(feedback, None, arms=None, waits=comes)

    def close(self, now: float) -> None:
        """Count the units whose images are mature. All feedback given up to ``GRACE_SECONDS`` of
        ``monitoring/cohorts.py`` before ``now`` has been heard."""
        for image in self._cohorts.close(now):
            if image.image_counts and image.topic is not None:
                arm, _, weight = image.topic.partition(" ")
                self._count(image, arm == "1", float(weight))

    def _count(self, image: Mature, challenger: bool, weight: float) -> None:
        ill = _only(image.said, _ILL)
        self._good[challenger] += _only(image.said, _GOOD)
        self._said[challenger] += bool(image.said & EXPLICIT)
        self.evidence.take(
            Unit(key=image.unit, value=float(ill), weight=weight, challenger=challenger)
        )

    # -------------------------------------------------------------------------------- what it shows

    @property
    def doubt(self) -> str:
        """Why silence proves nothing as yet; empty if it does."""
        units, votes = self.evidence.units, sum(self._said)
        if votes < VOTES_NEEDED:
            return silent(sum(units), votes, VOTES_NEEDED)
        expected = self._good[0] * units[1] / units[0] if units[0] else 0.0
        if expected >= GOOD_NEEDED and self._good[1] < expected / 2:
            return (
                f"good words for the challenger's images: {self._good[1]}, where the champion's "
                f"would have {expected:.0f}; can its users vote?"
            )
        return ""

    def missing(self, ahead: int | None) -> str:
        """What is waited for, in words; ``ahead``: units still expected until the proof."""
        after = span(self._cohorts.settings.mature_after_s)
        waits = to_mature(self.waiting, after) if self.waiting else ""
        if not self.evidence.has_data:
            return waits
        if doubt := self.doubt:
            return f"{doubt}; {waits}" if waits else doubt
        return to_mature(self.waiting, after, ahead) if waits else ""

    # -------------------------------------------------------------------------------- state

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues exactly. Holds no user in clear."""
        return {
            "evidence": self.evidence.state(),
            "cohorts": self._cohorts.state(),
            "said": [list(self._good), list(self._said)],
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.evidence.restore(state["evidence"])
        self._cohorts.restore(state["cohorts"])
        self._good, self._said = ([int(n) for n in arms] for arms in state["said"])


def speaks_ill(feedback: Feedback) -> bool:
    """Whether this, alone, speaks ill of its image."""
    return feedback.kind == "explicit" and feedback.vote in ("down", "1", "2")


def _only(said: int, words: int) -> bool:
    """Whether what was said was of this kind, and nothing contradicts it."""
    explicit = said & EXPLICIT
    return bool(explicit) and not explicit & ~words
