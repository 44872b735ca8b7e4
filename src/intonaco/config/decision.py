"""``decision``: when an update pays, what it may cost, and what sets one off from outside."""

from __future__ import annotations

import re
from datetime import time
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from intonaco.config.base import Count, Positive, Section, Share

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ClockTime = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]  # HH:MM
NotNegative = Annotated[float, Field(ge=0)]


def minute_of_day(text: str) -> int:
    """Minutes since midnight of "HH:MM"."""
    at = time.fromisoformat(text)
    return at.hour * 60 + at.minute


class Budget(Section):
    """Money, and if given also hours of the training machine, in any stretch of ``per_days``.

    ``ceiling``: a job may use this many times what it is estimated to take, then it is stopped;
    that much is reserved before it begins. ``thrift``: how much more an update must bring when the
    budget is short: with q the share of a period's budget that was spent faster than it accrues,
    benefit / cost must reach 1 + thrift x q x the usual benefit / cost."""

    amount: NotNegative = 100.0
    per_days: Positive = 30.0
    currency: str = "EUR"
    hourly_price: NotNegative = 2.0  # of the machine that trains
    gpu_hours: NotNegative | None = None
    ceiling: Annotated[float, Field(ge=1)] = 2.0
    thrift: NotNegative = 1.0


class QuietHours(Section):
    """A window of local time in which no update begins by itself. ``from`` later than ``to`` goes
    over midnight and counts for the day on which it begins."""

    days: tuple[Day, ...] = DAYS
    begin: Annotated[ClockTime, Field(alias="from")]
    end: Annotated[ClockTime, Field(alias="to")]

    @model_validator(mode="after")
    def _not_empty(self) -> QuietHours:
        if self.begin == self.end:
            raise ValueError("from and to are the same; for a whole day write 00:00 to 23:59")
        return self


class Recovery(Section):
    """Share of the deficit that an action mends if it succeeds."""

    fine_tune: Share = 0.9
    full_retrain: Share = 0.95
    roll_back: Share = 1.0
    assemble: Share = 0.9


class Schedule(Section):
    """``every``: a duration such as 12h or 7d. Or ``at``: local times, on ``days``."""

    every: str | None = None
    at: tuple[ClockTime, ...] = ()
    days: tuple[Day, ...] = DAYS
    action: Literal["fine_tune", "full_retrain"] = "fine_tune"

    @model_validator(mode="after")
    def _one_of_both(self) -> Schedule:
        if (self.every is None) == (not self.at):
            raise ValueError("give either every or at")
        if self.every is not None and self.seconds <= 0:
            raise ValueError("every must be longer than nothing")
        return self

    @property
    def seconds(self) -> float:
        """Of ``every``; 0 without it."""
        if self.every is None:
            return 0.0
        number, unit = self.every[:-1], self.every[-1:]
        return float(number) * {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}[unit]

    @field_validator("every")
    @classmethod
    def _a_duration(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d{1,6}(\.\d+)?[mhdw]", value):
            raise ValueError("write a number and m, h, d or w, such as 12h")
        return value


class Triggers(Section):
    """What sets an update off from outside. Everything is off until it is named.

    ``datasets``: names of dataset versions (`intonaco dataset add --name`); ``dvc``: .dvc files
    whose data was added as a version; ``recipes``, ``base``: changes of the recipes that
    ``decision`` names, and of the folders that they start from; ``lock``: a lock file (or
    requirements with exact pins) that the champion's environment is compared with; ``webhook``:
    calls of ``POST /api/trigger`` on the console. ``debounce_s``: a change counts once nothing has
    changed for this long."""

    datasets: tuple[str, ...] = ()
    dvc: tuple[str, ...] = ()
    recipes: bool = False
    base: bool = False
    lock: str | None = None
    webhook: bool = False
    schedule: tuple[Schedule, ...] = ()
    debounce_s: NotNegative = 300.0
    min_new_items: Count = 1  # in a new dataset version, beyond the champion's


class Decision(Section):
    """When an update pays: see docs/concepts/decision.md."""

    mode: Literal["auto", "ask", "watch"] = "auto"
    budget: Budget = Budget()
    value_per_request: NotNegative = 0.001  # worth of one good image
    horizon_days: Positive = 30.0  # how long an update is expected to serve
    cooldown_s: NotNegative = 3600.0
    min_quality_gap: NotNegative = 0.05  # score units, moved against unmoved
    min_labelled: Count = 100  # labelled items needed to learn the moved part
    fine_tune: tuple[str, ...] = ("fine_tune",)  # recipes, one candidate each
    full_retrain: tuple[str, ...] = ("full",)
    recovery: Recovery = Recovery()
    review_minutes: NotNegative = 15.0  # a person's, for each candidate
    review_hourly_rate: NotNegative = 0.0
    failure_cost: NotNegative = 0.0  # of an update that fails in gate or rollout, beside its price
    # "learnt": by how long changes lasted before. A number: what was lost since the change must
    # reach this many times the cost (1: rent or buy).
    patience: Literal["learnt"] | NotNegative = "learnt"
    large_shift: Share = 0.8  # share of requests moved from which everything is trained anew
    fine_tunes_before_full: Count = 10
    give_up_after: Count = 3  # updates for one cause that did not help, then a person is asked
    clear_after_requests: Count = 500  # quiet ones, before a finding counts as over
    look_again_s: Positive = 3600.0  # how often a finding that is waited with is judged again
    time_zone: str = "UTC"
    quiet_hours: tuple[QuietHours, ...] = ()
    triggers: Triggers = Triggers()

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("no such time zone; write one such as Europe/Zurich") from error
        return value
