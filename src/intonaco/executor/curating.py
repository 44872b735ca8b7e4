"""Live traffic as training data: proposed, looked through by a person, then used."""

from __future__ import annotations

import threading

from intonaco.datasets import curation, proposals
from intonaco.datasets.proposals import Proposal
from intonaco.datasets.proposing import choose
from intonaco.datasets.served import (
    Consents,
    LabelFile,
    read_consents,
    read_served,
    read_votes,
)
from intonaco.errors import ConfigError
from intonaco.executor.parts import Parts, Pending
from intonaco.serving.gateway.digests import Digests
from intonaco.types import Diagnosis, Update

DAY_S = 86_400.0
_ONE = threading.Lock()  # each candidate's dataset asks, and one proposal is made and told of


def curated(p: Parts, update: Update) -> list[curation.Item] | Pending:
    """What this update may learn from live traffic; Pending while a person has to look through it.
    Raises ConfigError if nobody did in time, or who agreed cannot be read."""
    settings = p.config.data.curation
    proposals.forget(p.workspace, {u.update_id for u in p.ledger.active_updates()})
    if not settings.enabled or update.champion is None or update.plan.dataset_version is not None:
        return []
    agreed = consents(p)
    with _ONE:
        proposal = proposals.find(p.workspace, update.update_id) or _propose(p, update, agreed)
    if settings.review == "none" or not proposal.items:
        return proposals.items_of(p.workspace, proposal, agreed)
    word = proposals.word_on(p.ledger, update.update_id)
    if word is None:
        if p.clock.now() - proposal.at > p.config.approval.timeout_s:
            raise ConfigError(
                f"data.curation.review: nobody looked through what was proposed for update "
                f"{update.update_id} in time",
                hint="the console shows it at /curation; approval.timeout_s says how long it waits",
            )
        return Pending()
    if not word.approved:
        return []
    return proposals.items_of(p.workspace, proposal, agreed, set(word.dropped))


def consents(p: Parts) -> Consents:
    """Who agreed, as the file says now. Raises ConfigError."""
    settings = p.config.data.curation
    file = p.workspace.resolve(settings.consents) if settings.consents is not None else None
    digest = Digests(p.workspace.instance_key()).unit
    return read_consents(file, digest, required=settings.consent == "required")


def still_agreed(items: list[curation.Item], agreed: Consents) -> list[curation.Item]:
    """Without those of units that have withdrawn since they were first learnt from."""
    return [i for i in items if not (unit := i.provenance.get("unit")) or agreed.of(str(unit))]


def _propose(p: Parts, update: Update, agreed: Consents) -> Proposal:
    settings, bounds = p.config.data.curation, p.config.data.bounds
    now = p.clock.now()
    since = now - settings.days * DAY_S
    labels = LabelFile(p.workspace.resolve(settings.labels)).labelled() if settings.labels else ()
    digest = Digests(p.workspace.instance_key()).unit
    choice = choose(
        read_served(
            p.workspace, since, digest, score=settings.score, clusters=update.plan.clusters
        ),
        read_votes(p.workspace, since),
        labels,
        agreed,
        settings,
        finding=_finding(p, update),
        bits=bounds.near_bits,
        dropped=proposals.dropped_for_good(p.ledger),
    )
    proposal = proposals.make(p.workspace, update.update_id, choice, now, bounds.max_pixels)
    waits = bool(proposal.items) and settings.review == "required"
    with p.ledger.begin() as tx:
        tx.event(
            now,
            "curation.proposed",
            update.update_id,
            f"{len(proposal.items)} images of live traffic are proposed as training data"
            + (": a person has to look through them" if waits else ""),
            data={"left_out": dict(proposal.left_out), "considered": proposal.considered},
        )
    return proposal


def _finding(p: Parts, update: Update) -> str:
    """The finding whose clusters the plan is to learn."""
    if update.plan.diagnosis_id is None or not update.plan.clusters:
        return ""
    diagnosis = p.ledger.find(Diagnosis, update.plan.diagnosis_id)
    if diagnosis is None:
        return ""
    return next((f.finding_id for f in diagnosis.findings if f.clusters), "")
