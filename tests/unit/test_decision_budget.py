"""Money: never more than the budget in any period, whoever reserves and whatever dies."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonaco.config import Budget
from intonaco.decision.budget import (
    JobUse,
    Spending,
    forecast,
    required_return,
    reserve,
    settle,
    standing,
)
from intonaco.errors import Conflict
from intonaco.ledger import Ledger

DAY = 86_400.0
PERIOD = 30 * DAY


def spent(day: float, amount: float, settled: bool = True) -> Spending:
    return Spending(at=day * DAY, amount=amount, settled=settled)


def test_what_is_older_than_the_period_is_free_again() -> None:
    now = standing([spent(0, 40), spent(20, 30)], 100.0, PERIOD, 31 * DAY)
    assert now.settled == 30
    assert now.left == 70
    assert now.frees_at == 50 * DAY


def test_a_reservation_counts_however_old_it_is() -> None:
    now = standing([spent(0, 40, settled=False)], 100.0, PERIOD, 90 * DAY)
    assert (now.settled, now.reserved, now.left) == (0, 40, 60)


def test_pressure_is_spending_ahead_of_what_accrues() -> None:
    at_once = standing([spent(0, 50)], 100.0, PERIOD, 0.0)
    assert at_once.pressure == pytest.approx(0.5)
    later = standing([spent(0, 50)], 100.0, PERIOD, 9 * DAY)
    assert later.pressure == pytest.approx(0.2)
    assert standing([spent(0, 50)], 100.0, PERIOD, 15 * DAY).pressure == 0.0
    assert standing([], 100.0, PERIOD, 0.0).pressure == 0.0
    assert standing([spent(0, 1)], 0.0, PERIOD, 0.0).pressure == 0.0


def test_a_short_budget_asks_for_more() -> None:
    assert required_return(0.0, 1.0, 50.0) == 1.0
    assert required_return(0.5, 1.0) == 1.5
    assert required_return(0.5, 1.0, 20.0) == 11.0
    assert required_return(0.5, 0.0, 20.0) == 1.0


def test_jobs_get_their_ceiling_if_there_is_room() -> None:
    aside = reserve({"tune": 3600.0, "evaluate": 1800.0}, {}, Budget(hourly_price=2.0), 100.0, None)
    assert aside.limits == {"tune": 7200.0, "evaluate": 3600.0}
    assert aside.money == pytest.approx(6.0)


def test_what_likely_is_the_most_gets_room_too() -> None:
    aside = reserve({"tune": 3600.0}, {"tune": 10_800.0}, Budget(hourly_price=2.0), 100.0, None)
    assert aside.limits == {"tune": 10_800.0}


def test_a_short_budget_cuts_the_reserve_and_not_the_estimate() -> None:
    aside = reserve({"a": 3600.0, "b": 3600.0}, {}, Budget(hourly_price=1.0), 3.0, None)
    assert aside.limits == {"a": 5400.0, "b": 5400.0}
    assert aside.money == pytest.approx(3.0)
    hours = reserve({"a": 3600.0}, {}, Budget(hourly_price=0.0), 0.0, 1.5)
    assert hours.limits == {"a": 5400.0}
    assert (hours.money, hours.hours) == (0.0, 1.5)


def test_nothing_is_limited_where_nothing_is_counted() -> None:
    assert reserve({"a": 3600.0}, {}, Budget(hourly_price=0.0), 0.0, None).limits is None


def test_a_job_that_says_nothing_used_all_that_was_set_aside() -> None:
    jobs = [JobUse(name="tune", seconds=1800.0), JobUse(name="evaluate", seconds=None)]
    assert settle(jobs, {"tune": 7200.0, "evaluate": 3600.0}, 2.0) == (3.0, 1.5)


def test_forecast() -> None:
    now = standing([spent(10, 60)], 100.0, PERIOD, 10 * DAY)
    ahead = forecast(now, PERIOD, 15.0, 10 * DAY)
    assert ahead.per_day == pytest.approx(2.0)
    assert ahead.empty_at is None  # 100 in 30 days comes back faster than 2 a day
    assert ahead.updates == 2


@given(
    events=st.lists(
        st.tuples(
            st.floats(0.0, 20.0),  # days until the next
            st.floats(0.1, 60.0),  # estimate
            st.floats(0.0, 3.0),  # what it really takes, relative to it
            st.booleans(),  # it crashes: nothing is ever settled
        ),
        max_size=30,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_period_ever_sees_more_than_the_budget(
    events: list[tuple[float, float, float, bool]],
) -> None:
    """Jobs of any length, stopped at their limit, reserved from what is left."""
    budget = Budget(amount=100.0, hourly_price=1.0)
    entries: list[Spending] = []
    now = 0.0
    for wait, estimate, factor, crashes in events:
        now += wait * DAY
        left = standing(entries, 100.0, PERIOD, now).left
        if estimate > left:
            continue
        aside = reserve({"job": estimate * 3600}, {}, budget, left, None)
        assert aside.limits is not None
        if crashes:
            entries.append(Spending(at=now, amount=aside.money, settled=False))
            continue
        took = min(estimate * factor * 3600, aside.limits["job"])
        used, _ = settle([JobUse(name="job", seconds=took)], aside.limits, 1.0)
        assert used <= aside.money + 1e-6
        now += took
        entries.append(Spending(at=now, amount=used, settled=True))
        seen = standing(entries, 100.0, PERIOD, now)
        assert seen.settled + seen.reserved <= 100.0 + 1e-6


def test_two_cannot_reserve_the_same_money(tmp_path: Path) -> None:
    """Twelve threads at once, each wants 30 of 100: three get it."""
    ledger = Ledger.open(tmp_path / "ledger.db", "svc")
    got: list[int] = []
    refused: list[int] = []
    start = threading.Barrier(12)

    def attempt(number: int) -> None:
        mine = Ledger.open(tmp_path / "ledger.db", "svc")
        start.wait()
        try:
            with mine.begin() as tx:
                tx.reserve(1.0, f"u{number}", 30.0, limit=100.0, period=PERIOD)
            got.append(number)
        except Conflict:
            refused.append(number)
        finally:
            mine.close()

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (3, 9)
    assert ledger.spent() == (0.0, 90.0)
    ledger.close()


def test_hours_are_counted_apart_from_money(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db", "svc")
    with ledger.begin() as tx:
        tx.reserve(1.0, "u1", 5.0, limit=10.0, period=PERIOD)
        tx.reserve(1.0, "u1", 2.0, limit=3.0, period=PERIOD, hours=True)
    with pytest.raises(Conflict, match="h of the training machine"), ledger.begin() as tx:
        tx.reserve(2.0, "u2", 2.0, limit=3.0, period=PERIOD, hours=True)
    with ledger.begin() as tx:
        tx.money(3.0, "u1", "settle_hours", 1.0)
    assert ledger.spent() == (0.0, 5.0)
    assert [s.amount for s in ledger.spending(hours=True)] == [1.0]
    ledger.close()


def test_an_old_reservation_still_counts_against_the_period(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db", "svc")
    with ledger.begin() as tx:
        tx.reserve(0.0, "u1", 80.0, limit=100.0, period=PERIOD)
    with pytest.raises(Conflict), ledger.begin() as tx:
        tx.reserve(90 * DAY, "u2", 30.0, limit=100.0, period=PERIOD)
    assert ledger.spent(since=60 * DAY) == (0.0, 80.0)
    ledger.close()
