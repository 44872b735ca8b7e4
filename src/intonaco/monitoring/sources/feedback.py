"""What people say of the champion's images, and what they do with them.

Every value comes from an image that is mature, so that late and quick voters count alike; of one
unit only so many count in a cohort.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from intonaco.monitoring.cohorts import DOWNLOAD, EXPLICIT, REGENERATE, Mature
from intonaco.monitoring.sources.base import Reading, Source
from intonaco.types import Finding


class _OfCohort(Source, ABC):
    what: ClassVar[str] = ""

    @abstractmethod
    def value(self, image: Mature) -> float | None: ...

    def of_cohort(self, image: Mature) -> Iterable[Reading]:
        value = self.value(image)
        if value is None:
            return ()
        return (Reading(value=value, at=image.made_at, session=image.unit, topic=image.topic),)

    def text(self, finding: Finding) -> str:
        verb = "fell" if finding.value_now < finding.value_before else "rose"
        return (
            f"{self.what} {verb} from {finding.value_before:.1%} to {finding.value_now:.1%} "
            f"since image {finding.since}"
        )


class Thumbs(_OfCohort):
    """1 for an image that was voted up, 0 for one voted down."""

    stream = "rate"
    what = "Share of thumbs up"

    def value(self, image: Mature) -> float | None:
        return image.vote if image.vote_counts else None


class Stars(_OfCohort):
    """Stars of an image, one to five, given to the detector as 0 to 1."""

    unit = "stars"
    what = "Stars"

    @property
    def tolerance(self) -> float:
        return self.signal.tolerance / 4.0

    def value(self, image: Mature) -> float | None:
        given = image.stars
        return (given - 1) / 4.0 if given is not None and image.vote_counts else None

    def raw(self, value: float) -> float:
        return 1.0 + 4.0 * value

    def text(self, finding: Finding) -> str:
        verb = "fell" if finding.value_now < finding.value_before else "rose"
        return (
            f"{self.what} {verb} from {finding.value_before:.2f} to {finding.value_now:.2f} since "
            f"image {finding.since}"
        )


class Regenerate(_OfCohort):
    """1 for an image that its user had made again, else 0: a sign that it was not liked."""

    stream = "rate"
    what = "Share of images that users had made again"

    def value(self, image: Mature) -> float | None:
        return float(bool(image.said & REGENERATE)) if image.image_counts else None


class Download(_OfCohort):
    """1 for an image that its user took away, else 0: a sign that it was liked."""

    stream = "rate"
    what = "Share of images that users downloaded"

    def value(self, image: Mature) -> float | None:
        return float(bool(image.said & DOWNLOAD)) if image.image_counts else None


class ResponseRate(_OfCohort):
    """1 for an image that got a vote or stars, else 0. When it moves, votes come from other people
    than before, and what they say is to be read with care."""

    stream = "rate"
    what = "Share of images that got a vote"

    def value(self, image: Mature) -> float | None:
        return float(bool(image.said & EXPLICIT)) if image.image_counts else None
