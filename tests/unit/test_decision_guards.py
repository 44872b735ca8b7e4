"""Quiet hours and hysteresis."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from intonaco import config
from intonaco.config import QuietHours
from intonaco.decision.guards import Quiet, is_over, quiet_until
from intonaco.errors import ConfigError

ZONE = "Europe/Zurich"


def window(begin: str, end: str, *days: str) -> QuietHours:
    return QuietHours.model_validate({"from": begin, "to": end} | ({"days": days} if days else {}))


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(ZONE)).timestamp()


NIGHT = window("22:00", "07:00")
WORK = window("09:00", "17:00", "mon", "tue", "wed", "thu", "fri")


@pytest.mark.parametrize(
    ("now", "end"),
    [
        ("2026-03-02 23:00", "2026-03-03 07:00"),
        ("2026-03-03 06:59", "2026-03-03 07:00"),
        ("2026-03-03 07:00", None),
        ("2026-03-03 21:59", None),
        ("2026-03-02 10:00", "2026-03-02 17:00"),  # a Monday
        ("2026-03-01 10:00", None),  # a Sunday
        # summer time begins in the night of 29 March 2026: still until seven
        ("2026-03-28 23:30", "2026-03-29 07:00"),
    ],
)
def test_windows(now: str, end: str | None) -> None:
    found = quiet_until(at(now), [NIGHT, WORK], ZONE)
    assert found == (None if end is None else at(end))


def test_windows_that_touch_are_one() -> None:
    windows = [window("22:00", "02:00"), window("02:00", "06:00")]
    assert quiet_until(at("2026-03-02 23:00"), windows, ZONE) == at("2026-03-03 06:00")


def test_always_quiet_ends_somewhere() -> None:
    windows = [window("00:00", "12:00"), window("12:00", "00:00")]
    assert quiet_until(at("2026-03-02 23:00"), windows, ZONE) is not None


def test_none() -> None:
    assert quiet_until(at("2026-03-02 23:00"), [], ZONE) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decision: {quiet_hours: [{from: '8:00', to: '09:00'}]}", "quiet_hours.0.from"),
        ("decision: {quiet_hours: [{from: '08:00', to: '08:00'}]}", "from and to are the same"),
        ("decision: {time_zone: Mars/Olympus}", "no such time zone"),
        ("decision: {patience: -1}", "decision.patience"),
        ("decision: {triggers: {schedule: [{every: soon}]}}", "write a number and m, h, d or w"),
        ("decision: {triggers: {schedule: [{}]}}", "give either every or at"),
        ("decision: {triggers: {schedule: [{every: 0d}]}}", "longer than nothing"),
        ("console: {people: [{name: ann}]}", "give either sha256 or token"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.parse(f"service: s\n{text}")


def test_over_needs_quiet_requests_and_a_small_deficit() -> None:
    def over(requests: int, high: float | None) -> bool:
        return is_over(Quiet(requests=requests, deficit_high=high), requests=500, gap=0.1)

    assert over(500, 0.04)
    assert not over(499, 0.04)
    assert not over(500, 0.05)
    assert not over(5000, None)  # what was not measured is never over
