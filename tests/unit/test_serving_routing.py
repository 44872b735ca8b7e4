from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonaco.errors import ConfigError
from intonaco.serving.gateway.routing import (
    assign,
    check_table,
    effective_weights,
    position,
    shadow_arms,
    unit_of,
)
from intonaco.types import Arm, ArmRole, RoutingTable

UNITS = [f"user-{i}" for i in range(4000)]


def table(
    challenger: float, baseline: float = 0.0, holdback: float = 0.0, *, salt: str = "s"
) -> RoutingTable:
    parts = [
        ("champion", ArmRole.CHAMPION, "A", 1 - challenger - baseline - holdback),
        ("challenger:x", ArmRole.CHALLENGER, "B", challenger),
        ("baseline", ArmRole.BASELINE, "A", baseline),
        ("holdback", ArmRole.HOLDBACK, "P", holdback),
    ]
    arms = tuple(
        Arm(name=n, role=r, release=i, urls=("http://x",), weight=max(0.0, w))
        for n, r, i, w in parts
    )
    return RoutingTable(service_id="s", epoch=1, salt=salt, arms=arms)


weights = st.floats(0, 0.5)


@given(weights, weights, st.text(min_size=1))
def test_raising_the_challenger_moves_users_only_to_it(a: float, b: float, unit: str) -> None:
    low, high = sorted((a, b))
    before = assign(table(low, low), unit).arm
    after = assign(table(high, high), unit).arm
    if before.role is ArmRole.CHALLENGER:
        assert after.role is ArmRole.CHALLENGER
    if after.role is ArmRole.CHAMPION:
        assert before.role is ArmRole.CHAMPION


@given(weights, st.floats(0, 0.25), st.floats(0, 0.2), st.text())
def test_probability_is_the_weight_of_the_arm(c: float, b: float, h: float, unit: str) -> None:
    t = table(c, b, h)
    assigned = assign(t, unit)
    assert assigned.probability == assigned.arm.weight
    assert assigned == assign(t, unit)


def test_shares_are_the_weights_and_a_fresh_salt_deals_anew() -> None:
    t = table(0.2, 0.2, 0.05)
    for arm in t.arms:
        share = sum(assign(t, u).arm.name == arm.name for u in UNITS) / len(UNITS)
        assert abs(share - arm.weight) < 0.03  # over four standard errors
    other = table(0.2, 0.2, 0.05, salt="another")
    both = [
        u
        for u in UNITS
        if assign(t, u).arm.role is ArmRole.CHALLENGER
        and assign(other, u).arm.role is ArmRole.CHALLENGER
    ]
    assert abs(len(both) / len(UNITS) - 0.04) < 0.015


@given(st.text(), st.text())
def test_position_is_in_the_unit_interval(salt: str, unit: str) -> None:
    assert 0 <= position(salt, unit) < 1


@given(weights, st.text())
def test_a_trip_moves_the_challengers_users_to_the_champion_and_nobody_else(
    c: float, unit: str
) -> None:
    t = table(c, 0.1)
    before, after = assign(t, unit), assign(t, unit, {"B"})
    if before.arm.role is ArmRole.CHALLENGER:
        assert after.arm.role is ArmRole.CHAMPION
    else:
        assert after.arm == before.arm
    in_force = effective_weights(t, {"B"})
    assert in_force["challenger:x"] == 0
    assert abs(sum(in_force.values()) - 1) < 1e-9
    assert after.probability == in_force[after.arm.name]


def test_a_challenger_with_all_the_weight_gets_everybody() -> None:
    t = table(1.0)
    assert {assign(t, u).arm.name for u in UNITS} == {"challenger:x"}
    assert {assign(t, u, {"B"}).arm.name for u in UNITS} == {"champion"}


def test_the_champions_own_release_is_never_taken_away() -> None:
    assert effective_weights(table(0.25), {"A"})["champion"] == 0.75


def test_shadow_is_a_share_of_requests_and_no_assignment() -> None:
    t = table(0.0)
    shadow = Arm(name="shadow:y", role=ArmRole.SHADOW, release="B", urls=("http://x",), weight=0.3)
    t = RoutingTable(service_id="s", epoch=1, salt="s", arms=(*t.arms, shadow))
    check_table(t)
    assert {assign(t, u).arm.name for u in UNITS} == {"champion"}
    share = sum(shadow_arms(t, u) == (shadow,) for u in UNITS) / len(UNITS)
    assert abs(share - 0.3) < 0.03
    assert shadow_arms(t, "r", {"B"}) == ()


def test_who_is_randomised() -> None:
    rest = {"api_key": "secret", "request_id": "r"}
    assert unit_of(user_header="h", user="u", **rest) == "h"
    assert unit_of(user_header=None, user="u", **rest) == "u"
    by_key = unit_of(user_header=None, user=None, **rest)
    assert by_key.startswith("key:")
    assert "secret" not in by_key
    assert unit_of(user_header=None, user=None, api_key=None, request_id="r") == "r"
    assert len(unit_of(user_header="x" * 10_000, user=None, **rest)) < 100


def test_tables_that_cannot_be_followed() -> None:
    good = table(0.2)
    check_table(good)
    champion, challenger, *_ = good.arms

    def of(*arms: Arm) -> RoutingTable:
        return RoutingTable(service_id="s", epoch=1, salt="s", arms=arms)

    for bad, why in [
        (of(), "exactly one champion"),
        (of(challenger), "exactly one champion"),
        (of(champion, champion), "exactly one champion"),
        (of(champion), "sum to 0.8"),
    ]:
        with pytest.raises(ConfigError, match=why):
            check_table(bad)
    homeless = Arm(name="champion", role=ArmRole.CHAMPION, release="A", urls=(), weight=1.0)
    with pytest.raises(ConfigError, match="no URL"):
        check_table(of(homeless))
