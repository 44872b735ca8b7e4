"""MAIN FLOW: the phases of an update, top to bottom.

``advance(update, facts, now)`` is pure: it looks at what is known, and says the update's new state
and the effects it wants done. The controller writes both with their event in one transaction, then
does the effects; each has a key and is done once, however often the controller is killed. So the
same facts always lead to the same outcome::

    dataset → train → evaluate → gate → register → stage → approve → rollout → bake → promoted
                          └→ review ↗   └→ rejected                    └→ rolled_back

People review candidates where ``evaluation.review.required`` says so. A plan that needs no training
starts at evaluate; a retried rollout or a return to an earlier release starts at stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from intonaco.codec import digest
from intonaco.evaluation.verdicts import with_review
from intonaco.judging import fixed_before, judged, not_itself, to_measure, tried_enough
from intonaco.ledger import Effect
from intonaco.loop_facts import Approval, Facts, Step, effect, look, status_of, to
from intonaco.rollout.quarantine import not_again
from intonaco.rollout.split import arms_for
from intonaco.rollout.strategies import (
    begin,
    staged_baseline,
    staged_replicas,
    straight_to_everybody,
)
from intonaco.types import (
    Action,
    Candidate,
    Phase,
    Plan,
    Rollout,
    RolloutStatus,
    Update,
    Verdict,
)

__all__ = ["Approval", "Facts", "Step", "advance", "restage", "start", "taken_over"]


def start(plan: Plan, champion: str | None, now: float) -> Update:
    """The update of a plan that changes the model, in its first phase."""
    names = plan.recipes or (str(plan.assemble.get("name", plan.action)),)
    return Update(
        update_id=digest(["update", plan.plan_id])[:12],
        service_id=plan.service_id,
        plan=plan,
        phase=Phase.DATASET if plan.action.trains else Phase.EVALUATE,
        created_at=now,
        phase_since=now,
        champion=champion,
        candidates=tuple(Candidate(name=name) for name in names),
    )


def restage(
    plan: Plan, candidate: Candidate, champion: str | None, attempt: int, now: float
) -> Update:
    """An update for a release that is proven already: a retried rollout, or a way back."""
    return Update(
        update_id=digest(["update", plan.plan_id])[:12],
        service_id=plan.service_id,
        plan=plan,
        phase=Phase.STAGE,
        created_at=now,
        phase_since=now,
        champion=champion,
        candidates=(candidate,),
        chosen=candidate.release_id,
        attempt=attempt,
    )


def advance(update: Update, facts: Facts, now: float) -> Step:
    """One look at an update. The same update and facts give the same step."""
    if update.phase.final:
        return Step(update=update)
    if update.cancel_requested and update.rollout_id is None:
        return _cancel(update, facts, now)
    return _PHASES[update.phase](update, facts, now)


def _cancel(update: Update, facts: Facts, now: float) -> Step:
    """End before any user met a challenger. What was being staged comes to its end first, as it
    would be loaded after it was retired else; then all of it retires."""
    asked = [known for known in facts.effects.values() if known.effect.kind == "stage"]
    if any(known.status == "wanted" for known in asked):
        return Step(update=update)
    staged = dict.fromkeys(str(known.effect.payload["name"]) for known in asked)
    return _retire_all(update, facts, staged, Phase.CANCELLED, now, "cancelled on request")


# ------------------------------------------------------------------------------------ the phases


def _dataset(update: Update, facts: Facts, now: float) -> Step:
    """Every candidate's dataset version: what is new, with a replay of what is old."""
    if tried := tried_enough(facts):
        return to(update, Phase.REJECTED, now, tried)
    wanted = {c.name: effect(update, "dataset", c.name) for c in update.candidates}
    results, failed, waiting = look(facts, wanted.values())
    if failed:
        return to(update, Phase.FAILED, now, f"no dataset: {failed}")
    if waiting:
        return Step(update=update, effects=tuple(wanted.values()))
    candidates = tuple(
        replace(c, dataset_version=str(results[wanted[c.name].key]["version"]))
        for c in update.candidates
    )
    note = "; ".join(f"{c.name}: {results[wanted[c.name].key]['text']}" for c in update.candidates)
    return to(replace(update, candidates=candidates), Phase.TRAIN, now, note)


def _train(update: Update, facts: Facts, now: float) -> Step:
    """Train the candidates, at most ``training.parallel`` at a time; each becomes a release."""
    wanted = {c.name: effect(update, "train", c.name) for c in update.candidates}
    ended = [n for n, e in wanted.items() if status_of(facts, e) in ("done", "failed")]
    if len(ended) < len(wanted):
        running = [n for n in wanted if n not in ended][: facts.config.training.parallel]
        return Step(update=update, effects=tuple(wanted[n] for n in running))
    candidates = []
    for candidate in update.candidates:
        known = facts.effects[wanted[candidate.name].key]
        if known.status == "failed":
            candidates.append(
                replace(candidate, verdict=Verdict.ERROR, reasons=(f"training: {known.error}",))
            )
        else:
            candidates.append(
                replace(
                    candidate,
                    release_id=str(known.result["release_id"]),
                    train_seconds=float(known.result["seconds"]),
                    cost=float(known.result["cost"]),
                )
            )
    update = replace(update, candidates=tuple(candidates))
    trained = [c for c in candidates if c.release_id]
    if not trained:
        return to(update, Phase.FAILED, now, "; ".join(candidates[0].reasons))
    note = ", ".join(f"{c.name} in {c.train_seconds:.0f} s" for c in trained)
    return to(update, Phase.EVALUATE, now, f"trained {note}")


def _evaluate(update: Update, facts: Facts, now: float) -> Step:
    """Champion and candidates on the same prompts and seeds, against held-out images."""
    if update.plan.action is Action.ASSEMBLE and update.candidates[0].release_id is None:
        wanted = effect(update, "assemble", update.candidates[0].name)
        results, failed, waiting = look(facts, [wanted])
        if failed:
            return to(update, Phase.FAILED, now, f"not assembled: {failed}")
        if waiting:
            return Step(update=update, effects=(wanted,))
        made = results[wanted.key]
        candidate = replace(
            update.candidates[0],
            release_id=str(made["release_id"]),
            dataset_version=made.get("dataset_version"),
        )
        update = replace(update, candidates=(candidate,))
        if candidate.release_id == update.champion:
            return to(update, Phase.REJECTED, now, "it is the champion: nothing would change")
        if taken_over(update.plan, update.champion):
            return _take_over(update, now)
    if update.champion is not None and (tried := tried_enough(facts)):
        return to(update, Phase.REJECTED, now, tried)
    wanted = to_measure(update, facts)
    _, failed, waiting = look(facts, [wanted])
    if failed:
        return to(update, Phase.FAILED, now, f"not evaluated: {failed}")
    if waiting:
        return Step(update=update, effects=(wanted,))
    wants_people = facts.config.evaluation.review.required
    following = Phase.REVIEW if wants_people else Phase.GATE
    return to(update, following, now, "evaluated against held-out images")


def taken_over(plan: Plan, champion: str | None) -> bool:
    """Whether a plan takes a model into care that a person serves already."""
    return champion is None and plan.action is Action.ASSEMBLE


def _take_over(update: Update, now: float) -> Step:
    """A model that serves today is not put through the gate: there is nothing to compare it with,
    and it is its owner who says that it may serve. Its verdict stays open."""
    candidate = replace(
        update.candidates[0],
        verdict=Verdict.INCONCLUSIVE,
        reasons=("taken over as it was given, not evaluated",),
    )
    update = replace(update, candidates=(candidate,), chosen=candidate.release_id)
    return to(update, Phase.REGISTER, now, candidate.reasons[0])


def _review(update: Update, facts: Facts, now: float) -> Step:
    """People compare with the champion, blind, what the gate would pass without them. It waits for
    the review's verdict, which comes in the end: a review has a deadline."""
    decisions = judged(update, facts)
    names = [n for n, decided in decisions.items() if decided.verdict is Verdict.PASS]
    if update.champion is None or not names:
        why = (
            "nothing to compare with"
            if update.champion is None
            else "no candidate passes without it"
        )
        return to(update, Phase.GATE, now, f"no review: {why}")
    evaluation = effect(update, "evaluate", "all").key
    wanted = effect(update, "review", "all", candidates=names, evaluation=evaluation)
    results, failed, waiting = look(facts, [wanted])
    if failed:
        return to(update, Phase.FAILED, now, f"not reviewed: {failed}")
    if waiting:
        return Step(update=update, effects=(wanted,))
    told = results[wanted.key]
    note = "; ".join(f"{n}: {v} ({told['reasons'][n]})" for n, v in told["verdicts"].items())
    return to(update, Phase.GATE, now, f"review {told['review']}: {note}")


def _gate(update: Update, facts: Facts, now: float) -> Step:
    """No candidate goes on unless it is shown to be no worse than the champion."""
    expected, decisions = fixed_before(update, facts), judged(update, facts)
    review = facts.effects.get(effect(update, "review", "all").key)
    if (
        review is None
        and facts.config.evaluation.review.required
        and update.champion is not None
        and any(d.verdict is Verdict.PASS for d in decisions.values())
    ):
        return to(update, Phase.REVIEW, now, "nobody has reviewed it")
    decisions = with_review(decisions, review.result if review else None)
    candidates = tuple(
        replace(
            c,
            verdict=decisions[c.name].verdict,
            reasons=decisions[c.name].reasons,
            metrics=decisions[c.name].metrics,
            attempt=expected.attempts[c.name].number,
            alpha=expected.attempts[c.name].alpha,
        )
        if c.name in decisions
        else c
        for c in update.candidates
    )
    candidates = tuple(not_again(c, facts.quarantined) for c in candidates)
    candidates = tuple(not_itself(c, update.champion) for c in candidates)
    passed = [c for c in candidates if c.verdict is Verdict.PASS]
    update = replace(update, candidates=candidates, chosen=passed[0].release_id if passed else None)
    note = "; ".join(
        f"{c.name}: {c.verdict}" + (f" ({c.reasons[0]})" if c.reasons else "") for c in candidates
    )
    return to(update, Phase.REGISTER, now, note)


def _register(update: Update, facts: Facts, now: float) -> Step:
    """Every candidate is published with its verdict, also one that was refused."""
    made = [c for c in update.candidates if c.release_id]
    wanted = {c.name: effect(update, "register", c.name) for c in made}
    results, failed, waiting = look(facts, wanted.values())
    if failed:
        return to(update, Phase.FAILED, now, f"not registered: {failed}")
    if waiting:
        return Step(update=update, effects=tuple(wanted.values()))
    candidates = tuple(
        replace(c, registry_version=str(results[wanted[c.name].key]["version"]))
        if c.name in wanted
        else c
        for c in update.candidates
    )
    update = replace(update, candidates=candidates)
    if update.chosen is None:
        reasons = "; ".join(f"{c.name}: {c.verdict}" for c in candidates)
        return to(update, Phase.REJECTED, now, f"no candidate passed the gate ({reasons})")
    names = ", ".join(
        f"{c.name} as version {c.registry_version}" for c in candidates if c.name in wanted
    )
    return to(update, Phase.STAGE, now, f"registered {names}")


def _stage(update: Update, facts: Facts, now: float) -> Step:
    """Loaded beside the champion, its identity attested, a first picture drawn."""
    rollout = facts.config.rollout
    if rollout.strategy == "ab" and not straight_to_everybody(update, rollout):
        return _stage_arms(update, facts, now)
    equal = staged_baseline(update, facts.config)
    wanted = effect(
        update,
        "stage",
        str(update.chosen),
        beside=update.champion,
        replicas=staged_replicas(update, facts.config),
        **({"baseline": equal} if equal else {}),
    )
    results, failed, waiting = look(facts, [wanted])
    if failed:  # its worker may be there none the less, and draw no picture
        return _retire_and_end(update, facts, Phase.FAILED, now, f"not staged: {failed}")
    if waiting:
        return Step(update=update, effects=(wanted,))
    return to(update, Phase.APPROVE, now, str(results[wanted.key]["text"]))


def _stage_arms(update: Update, facts: Facts, now: float) -> Step:
    """Every challenger of a split; one that does not come up is left out of it."""
    arms, left_out = arms_for(update, facts.config.rollout.ab, facts.passed, facts.quarantined)
    if not arms:
        return to(update, Phase.FAILED, now, f"no challenger to split with: {'; '.join(left_out)}")
    wanted = {name: effect(update, "stage", release) for name, release in arms.items()}
    if any(status_of(facts, e) not in ("done", "failed") for e in wanted.values()):
        return Step(update=update, effects=tuple(wanted.values()))
    staged: dict[str, str] = {}
    told = list(left_out)
    in_vain: list[str] = []
    for name, asked in wanted.items():
        known = facts.effects[asked.key]
        if known.status == "failed":
            in_vain.append(arms[name])
            told.append(f"{name} was not staged: {known.error}")
        else:
            staged[name] = arms[name]
            told.append(f"{name} {known.result['text']}")
    if not staged:
        return _retire_all(update, facts, in_vain, Phase.FAILED, now, "; ".join(told))
    update = replace(update, arms=staged, chosen=next(iter(staged.values())))
    left = tuple(effect(update, "retire", release) for release in in_vain)
    return replace(to(update, Phase.APPROVE, now, "; ".join(told)), effects=left)


def _approve(update: Update, facts: Facts, now: float) -> Step:
    """A person's word, or the policy's where the configuration leaves it to the policy."""
    approval = facts.approval
    if approval is None and taken_over(update.plan, update.champion):
        actor = update.plan.requested_by
        approval = Approval(approved=True, actor=actor, reason="the model as it was given")
    asked_for = update.plan.action is Action.ROLL_BACK and update.plan.requested_by != "policy"
    if approval is None and asked_for:
        why = "who asks to go back need not approve it"
        approval = Approval(approved=True, actor=update.plan.requested_by, reason=why)
    if approval is None and facts.config.approval.mode == "auto":
        approval = Approval(approved=True, actor="policy", reason="approval.mode is auto")
    if approval is None:
        if now - update.phase_since > facts.config.approval.timeout_s:
            return _retire_and_end(update, facts, Phase.REJECTED, now, "nobody approved in time")
        return Step(update=update)
    if not approval.approved:
        reason = f"refused by {approval.actor}: {approval.reason or 'no reason given'}"
        return _retire_and_end(update, facts, Phase.REJECTED, now, reason)
    rollout = begin(update, facts.config, now)
    step = to(
        replace(update, rollout_id=rollout.rollout_id),
        Phase.ROLLOUT,
        now,
        f"approved by {approval.actor}" + (f": {approval.reason}" if approval.reason else ""),
    )
    return replace(step, rollout=rollout)


def _rollout(update: Update, facts: Facts, now: float) -> Step:
    """The rollout has its own machine; here it is only waited for."""
    rollout = facts.rollout
    if rollout is None:
        return Step(update=update)
    if rollout.promoted_at is not None or rollout.status is RolloutStatus.PROMOTED:
        update = replace(update, chosen=rollout.challenger)
        return to(update, Phase.BAKE, now, rollout.reason)
    if not rollout.status.final:
        return Step(update=update, effects=_retired_arms(update, rollout))
    if rollout.status is RolloutStatus.OBSERVED:
        return _retire_and_end(update, facts, Phase.CANCELLED, now, rollout.reason)
    return _retire_and_end(update, facts, Phase.ROLLED_BACK, now, rollout.reason)


def _bake(update: Update, facts: Facts, now: float) -> Step:
    """The old release stays warm as long as the rollout watches the new one, then drains and
    retires; or it is champion again."""
    rollout = facts.rollout
    if rollout is None or not rollout.status.final:
        return Step(update=update, effects=_retired_arms(update, rollout))
    if rollout.status is not RolloutStatus.PROMOTED:
        return _retire_and_end(update, facts, Phase.ROLLED_BACK, now, rollout.reason)
    if update.champion is None or update.champion == update.chosen:
        return to(update, Phase.PROMOTED, now, "baked")
    wanted = (effect(update, "retire", update.champion), *_retired_arms(update, rollout))
    _, failed, waiting = look(facts, wanted)
    if waiting:
        return Step(update=update, effects=wanted)
    note = f"the old release did not retire: {failed}" if failed else "the old release retired"
    return to(update, Phase.PROMOTED, now, note)


_PHASES = {
    Phase.DATASET: _dataset,
    Phase.TRAIN: _train,
    Phase.EVALUATE: _evaluate,
    Phase.REVIEW: _review,
    Phase.GATE: _gate,
    Phase.REGISTER: _register,
    Phase.STAGE: _stage,
    Phase.APPROVE: _approve,
    Phase.ROLLOUT: _rollout,
    Phase.BAKE: _bake,
}


# ------------------------------------------------------------------------------------ small parts


def _retire_and_end(update: Update, facts: Facts, phase: Phase, now: float, reason: str) -> Step:
    """End without promotion: the challengers drain and retire first."""
    releases = dict.fromkeys((str(update.chosen), *update.arms.values()))
    return _retire_all(update, facts, releases, phase, now, reason)


def _retire_all(
    update: Update, facts: Facts, releases: Iterable[str], phase: Phase, now: float, reason: str
) -> Step:
    wanted = tuple(effect(update, "retire", release) for release in releases)
    _, _, waiting = look(facts, wanted)
    if waiting:
        return Step(update=update, effects=wanted)
    return to(update, phase, now, reason)


def _retired_arms(update: Update, rollout: Rollout | None) -> tuple[Effect, ...]:
    """Arms of a split that get no traffic any more: taken out, or not the one that won."""
    if rollout is None or rollout.split is None:
        return ()
    return tuple(
        effect(update, "retire", a.release, since=a.removed_at)
        for a in rollout.split.arms
        if a.release not in rollout.challengers
    )
