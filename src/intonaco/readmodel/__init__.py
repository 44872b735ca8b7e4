"""What people are shown: plain JSON facts read from the ledger and the workspace.

The console, ``intonaco status`` and the demo's report read the same facts here, so that they never
disagree. Nothing is written. Times are seconds since the epoch, money is in the budget's currency.
A number that is not finite is told as null.
"""

from __future__ import annotations

from intonaco.config import Config
from intonaco.ledger import Ledger
from intonaco.readmodel.curation import curated, proposal_card
from intonaco.readmodel.exposition import exposition
from intonaco.readmodel.findings import finding_card, findings, headline, probe_rounds
from intonaco.readmodel.money import accounts
from intonaco.readmodel.operations import budget, controller, processes
from intonaco.readmodel.plain import Facts, plain
from intonaco.readmodel.releases import release_card, release_lineage, releases, roles, routing
from intonaco.readmodel.reviews import review_brief, review_result, reviews
from intonaco.readmodel.rollouts import find_rollout, rollout_card, rollouts
from intonaco.readmodel.signals import (
    finding_facts,
    history,
    signal_history,
    signals,
    timeline,
    worth_telling,
)
from intonaco.readmodel.traffic import traffic
from intonaco.readmodel.updates import (
    PHASES,
    active_update,
    evaluation_page,
    last_rollout_facts,
    phase_strip,
    rollout_facts,
    update_facts,
    updates,
)
from intonaco.types import Finding, Observed
from intonaco.workspace import Workspace

__all__ = [
    "PHASES",
    "Facts",
    "accounts",
    "budget",
    "controller",
    "curated",
    "evaluation_page",
    "exposition",
    "find_rollout",
    "finding_card",
    "finding_facts",
    "findings",
    "headline",
    "history",
    "phase_strip",
    "plain",
    "probe_rounds",
    "processes",
    "proposal_card",
    "release_card",
    "release_lineage",
    "releases",
    "review_brief",
    "review_result",
    "reviews",
    "rollout_card",
    "rollout_facts",
    "rollouts",
    "routing",
    "signal_history",
    "signals",
    "snapshot",
    "timeline",
    "traffic",
    "update_facts",
    "updates",
    "worth_telling",
]


def snapshot(
    ledger: Ledger,
    workspace: Workspace,
    config: Config,
    now: float,
    observed: Observed | None = None,
    *,
    events: int = 80,
    points: int = 300,
) -> Facts:
    """Everything there is to see of a service now. ``observed`` is what the gateway says of itself,
    None if it cannot be asked. ``events``: how many of the last; ``points``: per signal chart, 0 to
    leave the charts out."""
    update = active_update(ledger)
    rollout = ledger.active_rollout()
    facts: Facts = plain(
        {
            "service": ledger.service_id,
            "model": config.model.name,
            "now": now,
            "frozen": bool(ledger.setting("frozen")),
            "releases": roles(ledger, update, rollout),
            "routing": routing(ledger, observed),
            "gateway": observed,
            "update": update_facts(ledger, workspace, update, now) if update else None,
            "rollout": rollout_facts(rollout, now) if rollout else None,
            "last_rollout": last_rollout_facts(ledger, now) if rollout is None else None,
            "signals": signals(ledger, points),
            "findings": [finding_facts(f) for f in reversed(ledger.all(Finding))],
            "budget": budget(ledger, config, now),
            "events": ledger.events(limit=events, newest=True),
            "processes": processes(workspace),
            "controller": controller(workspace, config, now),
        }
    )
    return facts
