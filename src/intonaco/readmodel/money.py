"""The budget, as `intonaco budget` and the console show it."""

from __future__ import annotations

from intonaco import accounts as book
from intonaco.config import Config
from intonaco.decision.budget import DAY, HOUR, Standing, forecast, required_return
from intonaco.ledger import Ledger
from intonaco.readmodel.plain import Facts, plain
from intonaco.types import Update


def accounts(ledger: Ledger, config: Config, now: float) -> Facts:
    """Spent, reserved and left in the period, what comes next, and the entries behind it."""
    budget = config.decision.budget
    period = budget.per_days * DAY
    ended = [u for u in ledger.all(Update, status="final") if u.plan.action.trains]
    last = ended[-1].plan if ended else None
    hours = book.hours(ledger, config, now)
    found: Facts = plain(
        {
            "per_days": budget.per_days,
            "currency": budget.currency,
            "since": now - period,
            "money": _unit(
                book.money(ledger, config, now),
                period,
                last.estimated_cost if last else 0.0,
                now,
                budget.thrift,
            ),
            "hours": None
            if hours is None
            else _unit(
                hours,
                period,
                sum(last.limits.values()) / HOUR / budget.ceiling if last else 0.0,
                now,
                None,
            ),
            "entries": [
                {
                    "at": entry.at,
                    "subject": entry.subject,
                    "amount": entry.amount,
                    "settled": entry.settled,
                }
                for entry in ledger.spending()
                if entry.at > now - period or not entry.settled
            ],
        }
    )
    return found


def _unit(
    standing: Standing, period: float, next_cost: float, now: float, thrift: float | None
) -> Facts:
    ahead = forecast(standing, period, next_cost, now)
    return {
        "amount": standing.amount,
        "settled": standing.settled,
        "reserved": standing.reserved,
        "left": standing.left,
        "pressure": standing.pressure,
        "frees_at": standing.frees_at,
        "required_return": None if thrift is None else required_return(standing.pressure, thrift),
        "forecast": {
            "per_day": ahead.per_day,
            "empty_at": ahead.empty_at,
            "updates": ahead.updates,
        },
    }
