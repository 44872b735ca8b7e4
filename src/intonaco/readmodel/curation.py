"""What is proposed as training data, as a person looks through it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from intonaco.codec import as_json
from intonaco.config import Config
from intonaco.datasets import proposals
from intonaco.datasets.proposals import Proposal
from intonaco.errors import NotFound
from intonaco.ledger import Ledger
from intonaco.readmodel.plain import Facts, plain
from intonaco.types import Phase, Update
from intonaco.workspace import Workspace


def curated(ledger: Ledger, workspace: Workspace, config: Config) -> list[Facts]:
    """All proposals there are, newest first, without their items."""
    facts = [
        {k: v for k, v in _facts(ledger, config, found).items() if k != "items"}
        for found in reversed(proposals.known(workspace))
    ]
    told: list[Facts] = plain(facts)
    return told


def proposal_card(ledger: Ledger, workspace: Workspace, config: Config, update_id: str) -> Facts:
    """One proposal with its items: {"id", "prompt" (None where prompts are not shown), "source",
    "request", "release", "finding", "at", "score", "votes", "consent", "generated", "kept",
    "picture": its address}. Raises NotFound."""
    found = proposals.find(workspace, update_id)
    if found is None:
        raise NotFound(f"nothing was proposed for an update {update_id}")
    told: Facts = plain(_facts(ledger, config, found))
    return told


def curation_awaited(ledger: Ledger, workspace: Workspace, update: Update) -> str | None:
    """Whether an update waits for a person to look through its data, in words."""
    if update.phase is not Phase.DATASET:
        return None
    found = proposals.find(workspace, update.update_id)
    if found is None or not found.items or proposals.word_on(ledger, update.update_id) is not None:
        return None
    return f"a person to look through {len(found.items)} proposed images (/curation)"


def _facts(ledger: Ledger, config: Config, proposal: Proposal) -> Mapping[str, object]:
    word = proposals.word_on(ledger, proposal.update_id)
    update = ledger.find(Update, proposal.update_id)
    dropped = set(word.dropped) if word is not None else set()
    asked = config.data.curation.review == "required"
    waits = asked and word is None and update is not None and update.phase is Phase.DATASET
    shown = config.monitoring.show_prompts
    return {
        "update_id": proposal.update_id,
        "phase": update.phase if update is not None else None,
        "at": proposal.at,
        "count": len(proposal.items),
        "considered": proposal.considered,
        "min_score": proposal.min_score,
        "left_out": dict(proposal.left_out),
        "max_generated": config.data.curation.max_generated,
        "consent": config.data.curation.consent,
        "waits": waits,
        "word": as_json(word) if word is not None else None,
        "prompts_shown": shown,
        "items": [
            {
                "id": item.item_id,
                "prompt": item.prompt if shown else None,
                "source": item.source,
                "request": item.request,
                "release": item.release,
                "finding": item.finding,
                "at": item.at,
                "score": item.score,
                "votes": item.votes,
                "consent": item.consent,
                "generated": item.generated,
                "kept": item.item_id not in dropped,
                "picture": f"/proposed/{quote(proposal.update_id)}/thumbs/{item.item_id}.png",
            }
            for item in proposal.items
        ],
    }
