"""Releases, their roles, where they come from, and the traffic they get."""

from __future__ import annotations

from intonaco.ledger import Ledger
from intonaco.readmodel.plain import Facts, plain
from intonaco.readmodel.signals import finding_facts
from intonaco.readmodel.updates import active_update, brief
from intonaco.types import (
    ArmRole,
    DatasetVersion,
    Diagnosis,
    Observed,
    Release,
    Rollout,
    Update,
)


def roles(ledger: Ledger, update: Update | None, rollout: Rollout | None) -> Facts:
    """{"champion", "challenger", "previous"}: a release card each, or None."""
    challenger = rollout.challenger if rollout else (update.chosen if update else None)
    champion = ledger.champion()
    if challenger == champion:
        challenger = None
    return {
        "champion": release_card(ledger, champion),
        "challenger": release_card(ledger, challenger),
        "previous": release_card(ledger, ledger.previous()),
    }


def release_card(ledger: Ledger, release_id: str | None) -> Facts | None:
    """What a release is and since when it is champion (``since``, None if it is not)."""
    if release_id is None:
        return None
    release = ledger.find(Release, release_id)
    tenures = [t for t in ledger.tenures() if t.release_id == release_id]
    now_champion = [t for t in tenures if t.until is None]
    card: Facts = {
        "id": release_id,
        "short": release_id[:10],
        "known": release is not None,
        "since": now_champion[-1].since if now_champion else None,
        "why": tenures[-1].reason if tenures else "",
        "tenures": tenures,
    }
    if release is not None:
        serving = release.serving
        card |= {
            "pipeline_class": serving.pipeline_class,
            "scheduler": serving.scheduler,
            "dtype": serving.dtype,
            "generation": dict(serving.generation),
            "adapters": serving.adapters,
            "environment": serving.environment,
            "provenance": release.provenance,
        }
    return card


def releases(ledger: Ledger) -> list[Facts]:
    """All releases, newest first, each with its roles now and the update it came from."""
    rollout = ledger.active_rollout()
    now = roles(ledger, active_update(ledger), rollout)
    challengers = rollout.challengers if rollout and rollout.promoted_at is None else ()
    verdicts = {
        c.release_id: c
        for u in ledger.all(Update)
        for c in u.candidates
        if c.release_id is not None
    }
    found = []
    for release in reversed(ledger.all(Release)):
        card = release_card(ledger, release.release_id) or {}
        candidate = verdicts.get(release.release_id)
        card["roles"] = [r for r, c in now.items() if c and c["id"] == release.release_id]
        if release.release_id in challengers and not card["roles"]:
            card["roles"] = ["challenger"]
        card["candidate"] = candidate.name if candidate else None
        card["verdict"] = candidate.verdict if candidate else None
        card["registry_version"] = candidate.registry_version if candidate else None
        found.append(card)
    return [plain(card) for card in found]


def release_lineage(ledger: Ledger, release_id: str) -> Facts:
    """release → update and run → dataset version → findings → traffic window. Raises NotFound."""
    release = ledger.get(Release, release_id)
    made = release.provenance
    update = ledger.find(Update, made.update_id) if made.update_id else None
    version = made.dataset_version
    dataset = ledger.find(DatasetVersion, version) if version else None
    diagnosis = None
    if update is not None and update.plan.diagnosis_id:
        diagnosis = ledger.find(Diagnosis, update.plan.diagnosis_id)
    findings = diagnosis.findings if diagnosis else ()
    candidates = update.candidates if update else ()
    ancestors = []
    parent = made.parent
    while parent is not None and parent not in ancestors:
        ancestors.append(parent)
        older = ledger.find(Release, parent)
        parent = older.provenance.parent if older else None
    facts: Facts = plain(
        {
            "release": release_card(ledger, release.release_id),
            "ancestors": ancestors,
            "update": brief(update) if update else None,
            "run": {"recipe": made.recipe, "job": made.training_job, "code": made.code_revision},
            "candidate": next((c for c in candidates if c.release_id == release.release_id), None),
            "dataset": dataset
            if dataset is not None
            else ({"version": version} if version else None),
            "diagnosis": {
                "id": diagnosis.diagnosis_id,
                "cause": diagnosis.cause,
                "reason": diagnosis.reason,
            }
            if diagnosis
            else None,
            "findings": [finding_facts(f) for f in findings],
            "traffic": [
                {
                    "signal": f.signal,
                    "from_request": f.since,
                    "to_request": f.request,
                    "from": f.since_at,
                    "to": f.at,
                }
                for f in findings
            ],
        }
    )
    return facts


def routing(ledger: Ledger, observed: Observed | None = None) -> Facts | None:
    """The newest routing table: what is asked for, and what the gateway does (``effective``)."""
    table = ledger.latest_routing()
    if table is None:
        return None
    return {
        "epoch": table.epoch,
        "reason": table.reason,
        "followed": None if observed is None else observed.epoch == table.epoch,
        "arms": [
            {
                "name": arm.name,
                "role": arm.role,
                "release": arm.release,
                "short": arm.release[:10],
                "weight": arm.weight,
                "effective": None if observed is None else observed.weights.get(arm.name, 0.0),
                "shadow": arm.role is ArmRole.SHADOW,
            }
            for arm in table.arms
        ],
    }
