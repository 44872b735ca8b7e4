"""When not to act although it pays: quiet hours, and when a finding is over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from intonaco.config import QuietHours
from intonaco.config.decision import DAYS, minute_of_day


def quiet_until(now: float, windows: Sequence[QuietHours], time_zone: str) -> float | None:
    """The end of the quiet hours that ``now`` lies in, None outside them. Windows that touch are
    one. A window is in local time: on the night of a clock change it is an hour longer or
    shorter."""
    zone = ZoneInfo(time_zone)
    end = now
    for _ in range(2 * len(windows) * len(DAYS) + 1):  # each window once a weekday, and no further
        later = max((_end(end, w, zone) or end for w in windows), default=end)
        if later <= end:
            break
        end = later
    return end if end > now else None


def _end(at: float, window: QuietHours, zone: ZoneInfo) -> float | None:
    local = datetime.fromtimestamp(at, zone)
    begin, end = minute_of_day(window.begin), minute_of_day(window.end)
    for back in (0, 1):  # begun today, or yesterday and over midnight
        day = (local - timedelta(days=back)).replace(hour=0, minute=0, second=0, microsecond=0)
        if DAYS[day.weekday()] not in window.days:
            continue
        until = day + timedelta(days=int(end <= begin))
        opens = day.replace(hour=begin // 60, minute=begin % 60).timestamp()
        closes = until.replace(hour=end // 60, minute=end % 60).timestamp()
        if opens <= at < closes:
            return closes
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """How a finding stands after it fired. ``requests``: how many have come since its evidence was
    last above the threshold. ``deficit_high``: upper bound of the quality still missing where it
    moved; None: not measured, and then nothing is over."""

    requests: int
    deficit_high: float | None


def is_over(quiet: Quiet, *, requests: int, gap: float) -> bool:
    """Hysteresis: what fires at the threshold ends only after ``requests`` quiet ones, with the
    deficit's upper bound below half the gap that counts."""
    if quiet.requests < requests or quiet.deficit_high is None:
        return False
    return quiet.deficit_high < gap / 2
