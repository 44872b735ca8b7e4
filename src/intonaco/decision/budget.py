"""Money and hours of a period: what is left, how short it is, what a job may use. Pure.

The budget holds for every stretch of ``per_days``, not for calendar months: what was settled in
that stretch and what is reserved together never exceed it. A reservation is made in the transaction
that begins the update, and its jobs are stopped where it ends.

How short the budget is follows a virtual queue (drift plus penalty: Neely, Stochastic Network
Optimization, 2010): ``Q <- max(Q + spent - accrued, 0)``. With q = Q / amount, an update must bring
``1 + thrift x q x usual return`` times its cost: nothing more while spending keeps pace with what
accrues, and more the further it runs ahead. So small gains do not take what a large one will need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from intonaco.config import Budget

HOUR, DAY = 3600.0, 86_400.0
GRACE_SECONDS = 600.0  # a short job on a busy machine takes many times what it usually does
EVALUATE = "evaluate"  # the job that all candidates share


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """One update's: settled, or reserved as yet (``settled`` false). In money or in hours."""

    at: float
    amount: float
    settled: bool
    subject: str = ""  # the update


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Of a budget now. ``frees_at``: when the oldest settled spending leaves the period."""

    amount: float
    settled: float
    reserved: float
    queue: float
    frees_at: float | None

    @property
    def left(self) -> float:
        return max(self.amount - self.settled - self.reserved, 0.0)

    @property
    def pressure(self) -> float:
        """q: share of a period's budget by which spending is ahead of what accrues."""
        return self.queue / self.amount if self.amount > 0 else 0.0


def standing(spent: Iterable[Spending], amount: float, period: float, now: float) -> Standing:
    """Of ``amount`` in any ``period`` seconds. What is reserved counts however old it is."""
    ordered = sorted(spent, key=lambda s: s.at)
    recent = [s for s in ordered if s.settled and s.at > now - period]
    queue, last = 0.0, ordered[0].at if ordered else now
    for spending in ordered:
        queue = max(queue - (spending.at - last) * amount / period, 0.0) + spending.amount
        last = spending.at
    queue = max(queue - (now - last) * amount / period, 0.0)
    return Standing(
        amount=amount,
        settled=sum(s.amount for s in recent),
        reserved=sum(s.amount for s in ordered if not s.settled),
        queue=queue,
        frees_at=recent[0].at + period if recent else None,
    )


def required_return(pressure: float, thrift: float, usual: float = 1.0) -> float:
    """What an update must bring for each unit of what it costs. ``usual``: what earlier ones were
    expected to bring; money that is short is worth as much as it usually brings."""
    return 1.0 + thrift * max(pressure, 0.0) * max(usual, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is set aside for an update, and how long each of its jobs may take for that. No limits:
    neither money nor hours are counted."""

    money: float = 0.0
    hours: float = 0.0
    limits: Mapping[str, float] | None = None


def reserve(
    seconds: Mapping[str, float],
    likely_most: Mapping[str, float],
    settings: Budget,
    money_left: float,
    hours_left: float | None,
) -> Reservation:
    """Room for jobs estimated at ``seconds`` that fit into what is left: ``ceiling`` times the
    estimate, ``likely_most`` or ten minutes more, the longest, and less where less is left."""
    wanted = {
        n: max(s * settings.ceiling, likely_most.get(n, s), s + GRACE_SECONDS)
        for n, s in seconds.items()
    }
    total, least = sum(wanted.values()), sum(seconds.values())
    price = settings.hourly_price
    most = [total]
    if price > 0:
        most.append(money_left / price * HOUR)
    if hours_left is not None:
        most.append(hours_left * HOUR)
    if len(most) == 1:
        return Reservation()
    allowed = min(most)
    # What is short is taken from the reserve of each, never from what it is expected to need.
    share = (allowed - least) / (total - least) if total > least else 0.0
    share = min(max(share, 0.0), 1.0)
    limits = {n: seconds[n] + share * (wanted[n] - seconds[n]) for n in seconds}
    hours = sum(limits.values()) / HOUR
    return Reservation(
        money=min(hours * price, money_left) if price > 0 else 0.0,
        hours=hours if hours_left is None else min(hours, hours_left),
        limits=limits,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobUse:
    """A job of an update that began. ``seconds``: what it says it took; None if it said nothing
    (it failed, or was stopped), and then all that was set aside for it counts."""

    name: str  # recipe, or "evaluate"
    seconds: float | None


def settle(
    jobs: Sequence[JobUse], limits: Mapping[str, float], hourly_price: float
) -> tuple[float, float]:
    """(money, hours) that an update used."""
    seconds = sum(
        job.seconds if job.seconds is not None else limits.get(job.name, 0.0) for job in jobs
    )
    return seconds / HOUR * hourly_price, seconds / HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """``per_day``: what was spent a day lately. ``empty_at``: when the budget ends at that pace;
    None: never, what accrues keeps up. ``updates``: how many of the next kind fit now."""

    per_day: float
    empty_at: float | None
    updates: int | None


def forecast(now: Standing, period: float, next_cost: float, at: float) -> Forecast:
    """At the pace of the period so far."""
    per_second = now.settled / period
    ahead = per_second - now.amount / period
    return Forecast(
        per_day=per_second * DAY,
        empty_at=at + now.left / ahead if ahead > 0 else None,
        updates=int(now.left // next_cost) if next_cost > 0 else None,
    )
