"""Money and processes."""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.codec import decode
from intonaco.config import Config
from intonaco.errors import StorageError
from intonaco.ledger import Ledger
from intonaco.messages import ProcessInfo
from intonaco.readmodel.plain import Facts
from intonaco.types import Json
from intonaco.workspace import Workspace, alive

CORE_PROCESSES = ("gateway", "controller", "scorer", "console")
DAY = 86_400.0
LATE_SECONDS, LATE_TICKS = 30.0, 10.0  # a tick with much to read takes some seconds


def budget(ledger: Ledger, config: Config, now: float) -> Facts:
    """Money of the running period: settled, reserved for running jobs, left."""
    limits = config.decision.budget
    since = now - limits.per_days * DAY
    settled, reserved = ledger.spent(since)
    return {
        "amount": limits.amount,
        "currency": limits.currency,
        "per_days": limits.per_days,
        "since": since,
        "settled": settled,
        "reserved": reserved,
        "left": limits.amount - settled - reserved,
    }


def controller(workspace: Workspace, config: Config, now: float) -> Facts:
    """Whether somebody decides: when a controller last came to the end of a tick, and whether that
    is too long ago."""
    last = workspace.last_tick()
    age = None if last is None else max(0.0, now - last)
    late = age is None or age > max(LATE_SECONDS, LATE_TICKS * config.tick_seconds)
    text = "no controller has ticked yet" if age is None else f"no controller for {age:.0f} s"
    text += ": gateways serve on and breakers trip, and nothing is watched, decided or rolled back"
    return {"last_tick": last, "age_s": age, "late": late, "text": text if late else ""}


def processes(workspace: Workspace) -> list[Facts]:
    """Processes that run, and those that should and do not (``alive`` false)."""
    found: dict[str, Facts] = {}
    for file in sorted(workspace.run.glob("*.json")):
        try:
            info = decode(ProcessInfo, file.read_bytes())
        except (StorageError, OSError):
            continue  # not an announcement, or taken away this moment
        if info.name in CORE_PROCESSES or alive(info):
            found[info.name] = {
                "name": info.name,
                "pid": info.pid,
                "url": info.url,
                "started": info.started,
                "alive": alive(info),
                "facts": dict(info.facts),
            }
    missing: Mapping[str, Json] = {"pid": None, "url": None, "started": None, "alive": False}
    for name in CORE_PROCESSES:
        found.setdefault(name, {"name": name, **missing, "facts": {}})
    order = {name: i for i, name in enumerate(CORE_PROCESSES)}
    return sorted(found.values(), key=lambda p: (order.get(p["name"], len(order)), p["name"]))
