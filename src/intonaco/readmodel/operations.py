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
