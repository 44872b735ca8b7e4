"""How facts are worded. Every function takes None and says a dash."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NONE = "–"


def clock(at: float | None) -> str:
    """Time of day, UTC."""
    return NONE if at is None else datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def moment(at: float | None) -> str:
    """Date and time, UTC."""
    return NONE if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def ago(at: float | None, now: float) -> str:
    if at is None:
        return NONE
    return "now" if now - at < 1 else f"{coarse(now - at)} ago"


def coarse(seconds: float) -> str:
    """A duration in its largest unit, so that it does not flicker."""
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (size < 86_400 and seconds >= size):
            return f"{int(seconds // size)} {name}"
    return f"{int(seconds)} s"


def percent(share: float | None) -> str:
    if share is None:
        return NONE
    value = 100 * share
    if value and abs(value) < 0.095:
        return f"{value:.2f} %"
    return f"{value:.1f} %" if value % 1 > 0.04 and value % 1 < 0.96 else f"{value:.0f} %"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, never in exponents for everyday sizes."""
    if value is None:
        return NONE
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}".replace(",", " ")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if abs(value) < 1e-6:
        return f"{value:.1e}"
    text = f"{value:.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def score(value: float | None) -> str:
    """Two decimals: a score's third says nothing at a glance."""
    return NONE if value is None else f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return NONE
    return ("+" if value > 0 else "") + number(value, digits).replace("-", "−")


def interval(pair: list[float] | tuple[float, float] | None) -> str:
    if not pair or pair[0] is None or pair[1] is None:
        return NONE
    return f"{signed(pair[0])} … {signed(pair[1])}"


def money(amount: float | None, currency: str) -> str:
    if amount is None:
        return NONE
    if amount and abs(amount) < 0.1:
        return f"{amount:.4f} {currency}"
    return f"{amount:,.2f} {currency}".replace(",", " ")


def words(name: object) -> str:
    """``roll_back`` as people say it."""
    return str(name).replace("_", " ")
