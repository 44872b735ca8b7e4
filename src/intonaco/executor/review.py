"""The effect that asks people: opens a review of what was evaluated, and waits for its end."""

from __future__ import annotations

import logging

from intonaco.codec import digest
from intonaco.errors import ConfigError
from intonaco.evaluation.prompts import read_prompts
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.ledger import Effect
from intonaco.review import desk, pictures
from intonaco.types import Phase, Review, Update

log = logging.getLogger(__name__)
CHAMPION = "champion"


def review_id(key: str) -> str:
    """Of the effect that asks for the review."""
    return digest(["review", key])[:12]


def review(p: Parts, effect: Effect) -> Outcome:
    """Payload: ``candidates`` (names), ``evaluation`` (key of the effect that drew them). Result:
    ``review``, ``verdicts`` and ``reasons`` by candidate, ``closed``."""
    now = p.clock.now()
    found = review_id(effect.key)
    update = p.ledger.get(Update, effect.subject)
    if p.ledger.find(Review, found) is None:
        if update.phase is not Phase.REVIEW:
            return Failed("the update went on without a review")
        asked = p.ledger.effects(update.update_id)[str(effect.payload["evaluation"])]
        evaluated = asked.result
        # People are asked at the alpha of this attempt, as the gate is: those of an update's
        # candidates halve one after the other, and a review shares the first of them.
        alphas = asked.effect.payload.get("alphas") or {}
        alpha = max(map(float, alphas.values()), default=p.config.evaluation.alpha)
        if p.config.evaluation.prompts is None:
            raise ConfigError("evaluation.prompts is needed to review")
        names = [CHAMPION, *(str(name) for name in effect.payload["candidates"])]
        # ``folder`` is the job's out folder, which the report's paths begin with.
        folder = p.workspace.resolve(str(evaluated["folder"])).parent
        desk.open_review(
            p.ledger,
            p.workspace,
            p.config.evaluation.review,
            review_id=found,
            arms=list(pictures.of_report(folder, evaluated["report"], names)),
            prompts=read_prompts(p.workspace.resolve(p.config.evaluation.prompts)),
            alpha=alpha,
            now=now,
            actor="controller",
            update_id=update.update_id,
        )
        log.info("review %s is open", found, extra={"action": "review_opened"})
    over = "" if update.phase is Phase.REVIEW else f"the update was {update.phase}"
    stands = desk.settle(p.ledger, found, now, over=over)
    if stands.closed_at is None:
        return Pending()
    return Done(
        {
            "review": found,
            "verdicts": dict(stands.verdicts),
            "reasons": dict(stands.reasons),
            "closed": stands.closed_because,
        }
    )
