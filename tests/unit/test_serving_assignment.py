"""What the dice promise: shares within the exact binomial bound, arms that stick, salts that deal
anew, and probabilities in the log that are the shares.

All users are fixed, so each of these comes out the same way every time; ``BUDGET`` is the chance
that a true implementation would have failed a test on users drawn at random.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, hypergeom, norm
from tests.fixtures_gateway import NEW, OLD, in_one_loop

from intonaco.serving.gateway.routing import assign, position
from intonaco.types import Arm, ArmRole, RoutingTable

N = 20_000
BUDGET = 1e-6
SALTS = ("s", "0123456789abcdef", "rollout-7", "")
RNG = random.Random(2026)
POPULATIONS: Mapping[str, Sequence[str]] = {
    "counted": [f"user-{i}" for i in range(N)],
    "numbers": [str(10**6 + 7 * i) for i in range(N)],
    "addresses": [f"{i:05d}@example.org" for i in range(N)],
    "random": [f"{RNG.getrandbits(128):032x}" for _ in range(N)],
}
SPLITS: Sequence[Mapping[str, float]] = (
    {"challenger:x": 0.05, "baseline": 0.05, "holdback": 0.02},
    {"challenger:x": 0.01, "challenger:y": 0.5, "baseline": 0.25},
    {"challenger:x": 1 / 3, "challenger:y": 1 / 6, "baseline": 1 / 6, "holdback": 0.05},
    {"challenger:x": 0.5, "challenger:y": 0.5},
)


def table(salt: str = "s", epoch: int = 1, **more: float) -> RoutingTable:
    return split({k.replace("_", ":"): v for k, v in more.items()}, salt, epoch)


def split(weights: Mapping[str, float], salt: str, epoch: int = 1) -> RoutingTable:
    """The champion has the rest. Challengers are of ``NEW``, all others of ``OLD``."""
    parts = {"champion": max(0.0, 1 - sum(weights.values())), **weights}
    arms = []
    for name, weight in parts.items():
        role = ArmRole(name.partition(":")[0])
        new = role is ArmRole.CHALLENGER
        url = "http://new" if new else "http://old"
        arms.append(
            Arm(name=name, role=role, release=NEW if new else OLD, urls=(url,), weight=weight)
        )
    return RoutingTable(service_id="tiny", epoch=epoch, salt=salt, arms=tuple(arms))


def arms_of(table: RoutingTable, users: Sequence[str]) -> list[str]:
    return [assign(table, user).arm.name for user in users]


@pytest.mark.parametrize(("salt", "population"), list(zip(SALTS, POPULATIONS, strict=True)))
def test_shares_of_twenty_thousand_users_lie_within_the_exact_bound(
    salt: str, population: str
) -> None:
    users = POPULATIONS[population]
    assert len(set(users)) == N
    comparisons = len(SALTS) * sum(len(s) + 1 for s in SPLITS)
    each = BUDGET / comparisons / 2
    for weights in SPLITS:
        t = split(weights, salt)
        found = Counter(arms_of(t, users))
        assert found.total() == N
        for arm in t.arms:
            low, high = binom.ppf(each, N, arm.weight), binom.isf(each, N, arm.weight)
            assert low <= found[arm.name] <= high, f"{arm.name} of {weights}: {found[arm.name]}"


def test_the_bound_can_be_missed() -> None:
    """One user in fifty in the wrong arm is seen."""
    each = BUDGET / 4
    assert not binom.ppf(each, N, 0.25) <= round(N * 0.27) <= binom.isf(each, N, 0.25)


def test_a_fresh_salt_deals_anew() -> None:
    """Who is in an arm under one salt says nothing of the other salt: exact hypergeometric bound
    for each pair of arms, and no correlation of positions."""
    users = POPULATIONS["counted"]
    weights = SPLITS[2]
    dealt = {salt: arms_of(split(weights, salt), users) for salt in SALTS}
    pairs = list(itertools.combinations(SALTS, 2))
    each = BUDGET / (len(pairs) * (len(weights) + 1) ** 2) / 2
    for one, other in pairs:
        both = Counter(zip(dealt[one], dealt[other], strict=True))
        first, second = Counter(dealt[one]), Counter(dealt[other])
        for a, b in itertools.product(first, second):
            bound = (N, first[a], second[b])
            assert hypergeom.ppf(each, *bound) <= both[a, b] <= hypergeom.isf(each, *bound)
        places = [[position(salt, u) for u in users] for salt in (one, other)]
        limit = norm.isf(BUDGET / len(pairs) / 2) / np.sqrt(N)
        assert abs(float(np.asarray(np.corrcoef(places))[0, 1])) < limit  # normal, as N is large


RISING = tuple(np.linspace(0.0, 0.45, 19))


def test_who_is_moved_to_a_challenger_stays_there_while_its_weight_rises() -> None:
    users = POPULATIONS["random"][:4000]
    steps = [table(challenger_x=w, baseline=w, holdback=0.05) for w in RISING]
    for before, after in itertools.pairwise([arms_of(t, users) for t in steps]):
        moves = Counter((a, b) for a, b in zip(before, after, strict=True) if a != b)
        assert set(moves) <= {("champion", "challenger:x"), ("champion", "baseline")}
        assert ("champion", "challenger:x") in moves


def test_of_several_challengers_the_last_rises_without_touching_the_others() -> None:
    users = POPULATIONS["random"][:4000]
    steps = [table(challenger_x=0.2, challenger_y=w, baseline=0.2, holdback=0.05) for w in RISING]
    for before, after in itertools.pairwise([arms_of(t, users) for t in steps]):
        moves = {(a, b) for a, b in zip(before, after, strict=True) if a != b}
        assert moves == {("champion", "challenger:y")}


def test_nobody_goes_back_to_the_champion_whichever_weight_rises() -> None:
    """The first of two pushes the second along, so users may change challengers; none of them goes
    back, and baseline and holdback are left alone."""
    users = POPULATIONS["random"][:4000]
    rng = random.Random(7)
    weights = {"challenger:x": 0.0, "challenger:y": 0.0}
    fixed = {"baseline": 0.1, "holdback": 0.05}
    before = arms_of(split(weights | fixed, "s"), users)
    for _ in range(16):
        weights[rng.choice(list(weights))] += 0.05
        after = arms_of(split(weights | fixed, "s"), users)
        for a, b in zip(before, after, strict=True):
            if a != b:
                assert (a, b.partition(":")[0]) != (a, "champion")
                assert a not in fixed
                assert b not in fixed
        before = after


async def test_the_logged_probability_is_the_share(tmp_path: Path) -> None:
    """Over the gateway: each user's arm is the drawn one, its logged probability the weight in
    force; with the weights of before a trip and of after it."""
    t = split(SPLITS[2], "salt", epoch=3)
    async with in_one_loop(tmp_path) as stage:
        stage.gateway.state.apply(t)
        users = [f"{i}@example.org" for i in range(300)]
        for user in users:
            answer = await stage.ask(user=user)
            expected = assign(t, user).arm.name
            assert answer.headers["x-intonaco-assigned-arm"] == expected
        for k in range(3):
            stage.gateway.state.hard_failure(NEW, 1.0, unit=f"u{k}", prompt="p", reason="test")
        for user in users[:60]:
            answer = await stage.ask(user=user)
            arm = answer.headers["x-intonaco-assigned-arm"]
            assert arm == assign(t, user, {NEW}).arm.name
            assert not arm.startswith("challenger")
        records = [r for r in await stage.records() if not r.probe]
    before, after = records[:300], records[300:]
    shares = {a.name: a.weight for a in t.arms}
    assert {r.assigned_arm for r in before} == set(shares)
    for record in before:
        assert record.probability == shares[record.assigned_arm]
    for name, share in shares.items():
        count = sum(r.assigned_arm == name for r in before)
        assert binom.ppf(1e-7, 300, share) <= count <= binom.isf(1e-7, 300, share)
    taken = shares["challenger:x"] + shares["challenger:y"]
    for record in after:
        extra = taken if record.assigned_arm == "champion" else 0.0
        assert record.probability == pytest.approx(shares[record.assigned_arm] + extra)
    assert {(r.routing_epoch, r.salt) for r in records} == {(3, "salt")}
