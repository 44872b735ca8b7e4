"""Strategy ``ab``: a fixed split between the champion and one or several challengers, decided by a
metric. What becomes of its arms; pure.

Every arm owns a part of the line from 0 to 1 on which the gateway puts users, for as long as the
split lasts. An arm that is taken out leaves its part to the champion and nobody else moves.

An arm **wins** when it is proven better than the champion on the metric that decides, and proven
no worse on every other guardrail. The error budget alpha is shared out by Bonferroni: each of the
``k`` arms is judged at ``alpha / k``, so that the chance that any arm which is no better ever wins,
at whatever look, is alpha at most. Of several that win, the best estimate is taken, and whether it
is proven better than the others is said: that comparison has an alpha of its own, over the pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from intonaco.config import MOST_ARMS, SplitConfig
from intonaco.rollout.outcomes import CLIP_SCORE
from intonaco.rollout.words import brief, describe, number
from intonaco.types import (
    Assessment,
    BreakerTrip,
    MetricAssessment,
    PairComparison,
    Rollout,
    Split,
    SplitArm,
    Update,
    Verdict,
)

HIGHER_IS_BETTER = (CLIP_SCORE,)
_PROVEN = (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
_Events = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFacts:
    """What is known of one arm now. ``units``: its users that were judged. ``trips``: its breaker's
    in this rollout. ``dead``: its worker cannot answer."""

    name: str
    assessments: tuple[MetricAssessment, ...] = ()
    units: int = 0
    ready: bool = True
    dead: bool = False
    trips: tuple[BreakerTrip, ...] = ()


# ---------------------------------------------------------------------------------------- before


def arms_for(
    update: Update, config: SplitConfig, passed: Iterable[str], quarantined: Mapping[str, str]
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """(releases by arm, why others are left out): the update's candidates that passed the gate, and
    the releases that the configuration names. ``passed``: releases that ever passed."""
    found: dict[str, str] = {}
    left_out: list[str] = []
    for candidate in update.candidates:
        if candidate.verdict is Verdict.PASS and candidate.release_id is not None:
            _add(found, _name(candidate.name, found), candidate.release_id, update, left_out)
    known = set(passed)
    for name, release in config.arms.items():
        if release not in known:
            left_out.append(f"{name} has never passed the gate")
        elif release in quarantined:
            left_out.append(f"{name} is in quarantine: {quarantined[release]}")
        else:
            _add(found, _name(name, found), release, update, left_out)
    given = shares(config, tuple(found))
    left_out += [f"{name} has no share in rollout.ab.split" for name in found if name not in given]
    return {name: release for name, release in found.items() if name in given}, tuple(left_out)


def _add(
    found: dict[str, str], name: str, release: str, update: Update, left_out: list[str]
) -> None:
    if release == update.champion:
        left_out.append(f"{name} is the champion")
    elif release in found.values():
        left_out.append(f"{name} is the same release as another arm")
    elif len(found) >= MOST_ARMS:
        left_out.append(f"{name} would be one more than {MOST_ARMS} arms")
    else:
        found[name] = release


def _name(wanted: str, taken: Mapping[str, str]) -> str:
    """A name that can stand in a routing table, once."""
    name = re.sub(r"[^\w.-]+", "-", wanted, flags=re.ASCII) or "arm"
    if name in ("champion", "challenger"):
        name += "-arm"
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def shares(config: SplitConfig, names: tuple[str, ...]) -> Mapping[str, float]:
    """Share of every arm that takes part, in the order of ``names``. The champion has the rest, and
    with it what was meant for an arm that is not there."""
    if config.split == "equal":
        return {name: 1 / (len(names) + 1) for name in names}
    rest = [name for name in names if name not in config.split]
    together = config.split.get("challenger", 0.0)
    given = {name: config.split.get(name, together / max(len(rest), 1)) for name in names}
    return {name: share for name, share in given.items() if share > 0}


def planned(arms: Mapping[str, str], config: SplitConfig) -> Split:
    """The split of these releases, by arm; each gets its part of the line. Equal parts where the
    configuration, changed since they were staged, leaves none of them any."""
    made: list[SplitArm] = []
    start = 0.0
    given = shares(config, tuple(arms)) or shares(SplitConfig(), tuple(arms))
    for name, share in given.items():
        made.append(SplitArm(name=name, release=arms[name], share=share, start=start))
        start += share
    return Split(metric=config.metric, arms=tuple(made), then=config.winner)


def arm_name(rollout: Rollout, name: str | None = None) -> str:
    """What stands behind the role in the name of an arm of the routing table: the rollout, and of
    a split with several challengers which one."""
    split = rollout.split
    which = name if name is not None or split is None else split.winner
    if split is None or len(split.arms) == 1 or which is None:
        return rollout.rollout_id
    return f"{rollout.rollout_id}.{which}"


# ---------------------------------------------------------------------------------------- during


def undecided(rollout: Rollout) -> Split | None:
    """The split, as long as its arms are compared."""
    split = rollout.split
    return split if split is not None and split.winner is None else None


def look(
    rollout: Rollout,
    arms: Iterable[ArmFacts],
    pairs: tuple[PairComparison, ...],
    now: float,
    *,
    champion_ready: bool,
) -> tuple[Rollout, _Events]:
    """The rollout with what was seen of its arms, and without those that a trip, proven harm, the
    end of a worker or being stuck takes out. Nobody is sent to a champion that is not ready while
    the arm still answers: it goes as soon as the champion is there."""
    split = undecided(rollout)
    if split is None:
        return rollout, ()
    seen = {f.name: f for f in arms}
    events: list[tuple[str, str]] = []
    after: list[SplitArm] = []
    for arm in split.arms:
        facts = seen.get(arm.name)
        if arm.removed_at is not None or facts is None:
            after.append(arm)
            continue
        since = None if facts.ready else (now if arm.stuck_since is None else arm.stuck_since)
        arm = replace(
            arm,
            assessments=facts.assessments or arm.assessments,
            units=max(facts.units, arm.units),
            stuck_since=since,
        )
        reason = _out(rollout, arm, facts, now)
        if reason and (champion_ready or facts.dead):
            arm = replace(arm, removed_at=now, reason=reason)
            text = f"{arm.name} ({arm.release[:10]}) is taken out, its users go to the champion"
            events.append(("removed", f"{text}: {reason}"))
        after.append(arm)
    split = replace(split, arms=tuple(after), pairs=pairs or split.pairs)
    return replace(rollout, split=split), tuple(events)


def _out(rollout: Rollout, arm: SplitArm, facts: ArmFacts, now: float) -> str:
    """Why an arm cannot stay, or ""."""
    if facts.trips:
        trip = facts.trips[0]
        return f"the breaker tripped after {trip.failures} failures: {trip.reason}"
    harmful = [a for a in facts.assessments if a.assessment is Assessment.HARMFUL]
    if harmful:
        return "; ".join(f"harmful: {describe(a)}" for a in harmful)
    if facts.dead:
        return "its worker is gone"
    stuck = now - arm.stuck_since if arm.stuck_since is not None else 0.0
    if 0 < rollout.stuck_seconds <= stuck:
        return f"not ready for {stuck:.0f} s"
    return ""


def all_out(rollout: Rollout) -> str:
    """Why nobody is left to be compared, or ""."""
    split = undecided(rollout)
    if split is None or split.live:
        return ""
    if len(split.arms) == 1:
        return split.arms[0].reason
    return "no challenger is left: " + "; ".join(f"{a.name}: {a.reason}" for a in split.arms)


def lacking(arm: SplitArm, metric: str, guardrails: tuple[str, ...]) -> list[str]:
    """What an arm lacks to win, in words."""
    found = {a.metric: a.assessment for a in arm.assessments}
    missing = []
    for name in (metric, *(g for g in guardrails if g != metric)):
        assessment = found.get(name, Assessment.NO_DATA)
        if name == metric and assessment is not Assessment.SUPERIOR:
            missing.append(f"to be better on {name} ({assessment.replace('_', ' ')})")
        elif assessment not in _PROVEN:
            missing.append(f"{name} ({assessment.replace('_', ' ')})")
    return missing


def best(split: Split, guardrails: tuple[str, ...]) -> SplitArm | None:
    """The arm that wins now: of those that lack nothing the one with the best estimate."""
    winners = [a for a in split.live if not lacking(a, split.metric, guardrails)]
    sign = 1.0 if split.metric in HIGHER_IS_BETTER else -1.0
    return max(winners, key=lambda a: sign * (_of(a, split.metric).difference or 0.0), default=None)


def won(split: Split, guardrails: tuple[str, ...]) -> tuple[SplitArm | None, str]:
    """(the arm that ends the split by itself, why), or (None, what is waited for)."""
    winner = best(split, guardrails)
    if winner is None:
        return None, waiting(split, guardrails)
    if split.then == "ask":
        return None, f"a person's word (approve): {winner.name} wins"
    return winner, why(split, winner, guardrails)


def waiting(split: Split, guardrails: tuple[str, ...]) -> str:
    """What every arm lacks to win."""
    told = []
    for arm in split.live:
        missing = ", ".join(lacking(arm, split.metric, guardrails))
        told.append(f"{arm.name} lacks {missing}" if missing else f"{arm.name} lacks nothing")
    return f"an arm to win on {split.metric}: " + "; ".join(told)


def why(split: Split, winner: SplitArm, guardrails: tuple[str, ...]) -> str:
    """A choice in words: what it rests on, and what is not proven."""
    missing = lacking(winner, split.metric, guardrails)
    shown = brief(_of(winner, split.metric))
    if missing:
        text = f"{winner.name} is chosen, lacking {', '.join(missing)}: {shown}"
    else:
        text = f"{winner.name} is better than the champion: {shown}"
    for other in split.live:
        if other.name != winner.name:
            text += f"; {_against(split, winner.name, other.name)}"
    for other in split.arms:
        if other.removed_at is not None:
            text += f"; {other.name} was taken out"
    return text


def _against(split: Split, winner: str, other: str) -> str:
    """Whether the winner is proven better than another arm."""
    for pair in split.pairs:
        if {pair.first, pair.second} != {winner, other} or pair.interval is None:
            continue
        low, high = pair.interval
        if pair.first != winner:
            low, high = -high, -low
        better = low >= 0 < high if split.metric in HIGHER_IS_BETTER else high <= 0 > low
        shown = f"{number(split.metric, low)} to {number(split.metric, high)}"
        if better:
            return f"proven better than {other} ({shown})"
        return f"the best estimate, not proven better than {other} ({shown})"
    return f"the best estimate, not proven better than {other} (no data)"


def evidence(split: Split, guardrails: tuple[str, ...]) -> str:
    """How every arm stands, in figures."""
    told = []
    for arm in split.arms:
        if arm.removed_at is not None:
            told.append(f"{arm.name} was taken out ({arm.reason})")
            continue
        found = {a.metric: a for a in arm.assessments}
        shown = brief(found[split.metric]) if split.metric in found else f"{split.metric} no data"
        missing = ", ".join(lacking(arm, split.metric, guardrails)) or "nothing"
        told.append(f"{arm.name} with {arm.units} users: {shown}, lacking {missing}")
    return "; ".join(told)


def together(split: Split, arms: Iterable[ArmFacts]) -> tuple[bool, int]:
    """Whether all arms that are in it are ready, and the least users that any was judged on."""
    live = {a.name for a in split.live}
    found = [f for f in arms if f.name in live]
    return bool(found) and all(f.ready for f in found), min((f.units for f in found), default=0)


def chosen(
    split: Split, command: str, named: str | None, guardrails: tuple[str, ...]
) -> tuple[SplitArm | None, str]:
    """(the arm that a person's word ends the split for, "") or (None, why not). ``promote`` and
    ``approve`` take the arm that is named, which must be proven no worse on every guardrail, or the
    one that wins now; ``skip`` the one that wins now, whatever is left of time and users."""
    if command == "approve" and split.then != "ask":
        return None, "it does not wait for an approval"
    if command != "approve" and split.then == "ask":
        return None, "a person's word is asked for: approve, with --arm for another than the winner"
    if command == "promote" and split.then == "none":
        return None, "rollout.ab.winner is none: nobody is promoted; skip or abort ends it"
    if named is None or command == "skip":
        if named is not None:
            return None, "it takes the arm that wins; promote --arm names one"
        winner = best(split, guardrails)
        return winner, "" if winner else f"waiting for {waiting(split, guardrails)}"
    arm = next((a for a in split.live if a.name == named), None)
    if arm is None:
        known = ", ".join(a.name for a in split.live)
        return None, f"no arm {named!r} is in the split; there are {known}"
    found = {a.metric: a.assessment for a in arm.assessments}
    missing = [
        f"{g} ({found.get(g, Assessment.NO_DATA).replace('_', ' ')})"
        for g in guardrails
        if found.get(g, Assessment.NO_DATA) not in _PROVEN
    ]
    if missing or not guardrails:
        return None, f"{arm.name} lacks " + (", ".join(missing) or "a guardrail to be judged by")
    return arm, ""


def decide(rollout: Rollout, winner: SplitArm, text: str) -> Rollout:
    """The rollout of the winner alone."""
    assert rollout.split is not None
    split = replace(rollout.split, winner=winner.name, text=text)
    return replace(rollout, split=split, challenger=winner.release, assessments=winner.assessments)


def _of(arm: SplitArm, metric: str) -> MetricAssessment:
    return next(a for a in arm.assessments if a.metric == metric)
