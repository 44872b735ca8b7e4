"""What a diagnosis rests on besides the findings. Everything is optional: None was not measured.

Plain values; ``history.py`` works out those that come from records, ``deciding.py`` fetches those
that come from the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from intonaco.types import Cause

# A fault that shows this soon after a change of release or environment may be the change's.
AFTER_CHANGE_SECONDS = 3600.0
# How much earlier than the change its consequence may be dated: estimates err by some requests.
BEFORE_CHANGE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy:
    """A change of ours. ``what``: "release" (another champion took over) or "environment" (the same
    release on other libraries, drivers or machines)."""

    at: float
    what: Literal["release", "environment"]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """``count`` of ``total`` requests."""

    count: int
    total: int

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else 0.0

    def exceeds(self, other: Rate) -> float:
        """By how many standard errors this share is above ``other``'s (pooled two-proportion z)."""
        if not self.total or not other.total:
            return 0.0
        pooled = (self.count + other.count) / (self.total + other.total)
        error = math.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / self.total + 1 / other.total))
        return (self.share - other.share) / error


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of served requests, relative to those of the same class and batch size before.

    ``ratio``: median of seconds over the stratum's median before. ``quick``: the same of the
    quickest quarter, over what it was for the quickest quarter before: near 1 while only some of
    several replicas are slow. ``slow``, ``slow_before``: requests beyond the 95th percentile of the
    ratios before, or beyond what hardly any exceeded, whichever tells now from before more surely.
    ``slow_by_class``: the same now, per request class. ``above``, ``above_before``: requests beyond
    the median of the ratios before. ``n``, ``n_before``: served requests that could be compared."""

    n: int
    n_before: int
    ratio: float
    quick: float
    slow: Rate
    slow_before: Rate
    slow_by_class: Mapping[str, Rate] = field(default_factory=dict)
    above: Rate = Rate(count=0, total=0)
    above_before: Rate = Rate(count=0, total=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Demand before and now. ``rate``: requests a second. ``work``: mean work of one request, in
    megapixels x steps. ``queue``: mean seconds in the queue, ``service``: median seconds in the
    worker. ``refused``: turned away by a full worker and served by nobody. ``devices``: device
    seconds used a second; None if the workers do not say."""

    rate_before: float | None
    rate_now: float | None
    work_before: float
    work_now: float
    queue_before: float
    queue_now: float
    service_before: float
    service_now: float
    refused_before: Rate
    refused_now: Rate
    devices_before: float | None = None
    devices_now: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFigures:
    """What one group of arms did since the change began. ``score``: (mean, standard error)."""

    failed: Rate
    slow: Rate
    score: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicChange:
    """One cluster of requests before and since the change. ``score``: (mean, standard error) or
    None without one. ``liked``: votes up of all votes."""

    cluster: int
    requests_before: int
    requests_now: int
    score_before: tuple[float, float] | None
    score_now: tuple[float, float] | None
    liked_before: Rate
    liked_now: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficChange:
    """Requests since the change against those before it. ``champion`` and ``previous``: the same
    minutes on the champion's arms and on those of the release before it (holdback). ``failed``:
    by kind ("error", "timeout"), of the champion."""

    requests_before: int
    requests_now: int
    times: Times | None
    load: Load | None
    failed_before: Mapping[str, Rate]
    failed_now: Mapping[str, Rate]
    champion: ArmFigures | None = None
    previous: ArmFigures | None = None
    topics: tuple[TopicChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisContext:
    """``probes_ok``: the champion draws what it drew when it was new. ``reference_quality``: mean
    score of the reference. ``release_changed``: the release or its environment changed shortly
    before the findings, for callers that know no more than that; ``deploys``: what changed when.
    ``content``, ``performance``: records before and since the change that findings about content,
    and those about performance, date. ``served_elsewhere``: the model is another's server.
    ``announced``: causes that somebody told (a new dataset version, a changed lock), with what they
    said. ``dataset_problems``: what a check of the data at hand found. ``watched``: kinds of
    signals (``of``) that have a reference, so that their silence says something; None where not
    known."""

    probes_ok: bool | None
    rollout_active: bool
    min_quality_gap: float
    reference_quality: float | None = None
    release_changed: bool = False
    deploys: tuple[Deploy, ...] | None = None
    content: TrafficChange | None = None
    performance: TrafficChange | None = None
    served_elsewhere: bool = False
    announced: Mapping[Cause, str] = field(default_factory=dict)
    dataset_problems: str | None = None
    watched: frozenset[str] | None = None

    def quiet(self, what: str, *kinds: str) -> str:
        """That such signals raised no alarm, or that none of them could have."""
        if self.watched is None or not self.watched.isdisjoint(kinds):
            return f"{what} raised no alarm"
        return f"{what} are not watched yet"

    def changed(self, what: str, since: float) -> Deploy | None:
        """The last change of that kind that could be behind what began at ``since``."""
        near = [
            d
            for d in self.deploys or ()
            if d.what == what and -BEFORE_CHANGE_SECONDS <= since - d.at <= AFTER_CHANGE_SECONDS
        ]
        return max(near, key=lambda d: d.at, default=None)
