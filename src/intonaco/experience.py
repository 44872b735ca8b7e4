"""What a decision learns from earlier updates: their times, their luck, their returns. All of it is
read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from intonaco import accounts
from intonaco.decision import economics
from intonaco.decision.context import EVALUATION_SECONDS, DecisionContext
from intonaco.decision.economics import Life
from intonaco.decision.weighing import worth
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.types import Action, Cause, Diagnosis, Phase, Update

SAME_TOPIC = 0.9  # cosine of two moved clusters' centres that are one topic


def context(parts: Parts, diagnosis: Diagnosis, now: float) -> DecisionContext:
    """Everything but what the traffic says: no requests, no labelled items, no trigger."""
    ledger, config = parts.ledger, parts.config
    updates = ledger.all(Update)
    ended = [u for u in updates if u.phase.final and u.plan.action.trains]
    active = ledger.active_updates()
    money = accounts.money(ledger, config, now)
    hours = accounts.hours(ledger, config, now)
    runs = training_runs(updates)
    recipes = {
        name: economics.duration(runs.get(name, ()), recipe.estimated_seconds)
        for name, recipe in config.training.recipes.items()
    }
    evaluation = economics.duration(evaluation_runs(ledger, updates), EVALUATION_SECONDS)
    return DecisionContext(
        labelled_items=0,
        recipe_seconds={name: e.mean for name, e in recipes.items()},
        recipe_most={name: e.high for name, e in recipes.items()},
        evaluation_seconds=evaluation.mean,
        evaluation_most=evaluation.high,
        rollout_seconds=rollout_seconds(ended),
        spent=money.settled,
        reserved=money.reserved,
        pressure=money.pressure,
        budget_frees_at=money.frees_at,
        usual_return=usual_return(ended),
        hours_left=hours.left if hours else None,
        request_rate=0.0,
        last_update_ended_at=max((u.phase_since for u in ended), default=None),
        active_update=active[0].update_id if active else None,
        previous_release_available=ledger.previous() is not None,
        trainable=config.serving.type != "http",
        succeeded=sum(u.phase is Phase.PROMOTED for u in ended),
        failed=sum(u.phase in _FAILED for u in ended),
        unhelpful=unhelpful(ended, diagnosis, config.decision.horizon_days * 86_400),
        fine_tunes_since_full=fine_tunes_since_full(ended),
        lives=lives(ledger, ended),
        updates_before=sum(u.plan.diagnosis_id == diagnosis.diagnosis_id for u in updates),
    )


_FAILED = (Phase.REJECTED, Phase.ROLLED_BACK, Phase.FAILED)


def training_runs(updates: Sequence[Update]) -> dict[str, list[float]]:
    """Seconds of every training, by recipe."""
    found: dict[str, list[float]] = {}
    for update in updates:
        for candidate in update.candidates:
            if candidate.train_seconds:
                found.setdefault(candidate.name, []).append(candidate.train_seconds)
    return found


def evaluation_runs(ledger: Ledger, updates: Sequence[Update]) -> list[float]:
    """Seconds of every evaluation, per candidate."""
    return [
        float(status.result["seconds"]) / max(1, len(update.candidates))
        for update in updates
        for status in ledger.effects(update.update_id).values()
        if status.effect.kind == "evaluate" and status.status == "done"
    ]


def rollout_seconds(ended: Sequence[Update]) -> float:
    """From the end of training to serving everybody, people's approval included: the median of
    promoted updates, 0 without any."""
    found = [
        max(u.phase_since - u.created_at - sum(c.train_seconds for c in u.candidates), 0.0)
        for u in ended
        if u.phase is Phase.PROMOTED
    ]
    return median(found) if found else 0.0


def usual_return(ended: Sequence[Update]) -> float:
    """Median of benefit over cost, as it was expected when they began; 1 without any."""
    found = []
    for update in ended:
        sums = update.plan.reckoning
        option = sums.option(update.plan.action) if sums is not None else None
        ratio = worth(option) if option is not None else None
        if ratio is not None:
            found.append(ratio)
    return median(found) if found else 1.0


def fine_tunes_since_full(ended: Sequence[Update]) -> int:
    count = 0
    for update in ended:
        if update.phase is Phase.PROMOTED:
            count = count + 1 if update.plan.action is Action.FINE_TUNE else 0
    return count


def unhelpful(ended: Sequence[Update], diagnosis: Diagnosis, within: float) -> int:
    """Updates in a row, the last ones, that were for this cause in these topics and did not end it:
    refused by gate or rollout, or promoted not longer than ``within`` seconds ago."""
    count = 0
    for update in reversed(ended):
        if update.plan.cause is not diagnosis.cause or update.phase is Phase.CANCELLED:
            break
        if not _same_topics(update, diagnosis):
            break
        if update.phase is Phase.PROMOTED and diagnosis.at - update.phase_since > within:
            break
        count += 1
    return count


def _same_topics(update: Update, diagnosis: Diagnosis) -> bool:
    """Whether one of the topics is one of those; a fall of quality everywhere has none."""
    if diagnosis.cause is Cause.QUALITY_DECLINE:
        return True
    then = [c.centroid for c in update.plan.clusters if c.moved and c.centroid]
    here = [c.centroid for f in diagnosis.findings for c in f.clusters if c.moved and c.centroid]
    return any(_cosine(a, b) >= SAME_TOPIC for a in then for b in here if len(a) == len(b))


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    x, y = np.asarray(a), np.asarray(b)
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length > 0 else 0.0


def lives(ledger: Ledger, ended: Sequence[Update]) -> tuple[Life, ...]:
    """How long earlier changes lasted: until they were over by themselves, or an update ended
    them."""
    found = [
        Life(seconds=float(event.data["seconds"]), ended=True)
        for event in ledger.events(kind="finding.cleared", newest=True)
    ]
    for update in ended:
        if update.phase is not Phase.PROMOTED or update.plan.diagnosis_id is None:
            continue
        diagnosis = ledger.find(Diagnosis, update.plan.diagnosis_id)
        if diagnosis is not None and diagnosis.findings:
            begun = min(f.since_at for f in diagnosis.findings)
            found.append(Life(seconds=max(update.phase_since - begun, 0.0), ended=False))
    return tuple(found)
