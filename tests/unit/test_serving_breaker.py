from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intonaco.serving.gateway.breaker import Breaker


def fail(b: Breaker, unit: str = "u", prompt: str = "p", at: float = 1.0) -> bool:
    return b.failure(at, unit=unit, prompt=prompt, reason="500") is not None


def test_trips_at_the_limit_and_says_when_the_row_began() -> None:
    b = Breaker("B", 3)
    assert not fail(b, "u1", at=1)
    assert not fail(b, "u2", at=2)
    assert fail(b, "u3", at=3)
    assert b.trip is not None
    assert (b.trip.first_failure_at, b.trip.at, b.trip.failures) == (1, 3, 3)
    assert not fail(b, "u4"), "a trip is told once"


def test_one_user_with_one_prompt_trips_nothing() -> None:
    b = Breaker("B", 3)
    for _ in range(50):
        assert not fail(b)
    assert fail(b, prompt="another"), "a second prompt makes it the release's fault"


def test_a_success_ends_the_row_and_a_reset_closes() -> None:
    b = Breaker("B", 2)
    fail(b, "u1")
    b.success()
    assert not fail(b, "u2")
    assert fail(b, "u3")
    b.success()
    assert b.trip is not None, "sticky"
    b.reset()
    assert not fail(b, "u1"), "counts from nothing"
    assert fail(b, "u2"), "and can trip again"


@given(st.lists(st.sampled_from(["ok", "u1", "u2"])), st.integers(1, 5))
def test_it_has_tripped_exactly_if_a_row_was_long_and_mixed_enough(
    events: list[str], limit: int
) -> None:
    b = Breaker("B", limit)
    row: list[str] = []
    expected = False
    for event in events:
        if event == "ok":
            b.success()
            row = []
        else:
            fail(b, event)
            row.append(event)
        expected = expected or (len(row) >= limit and len(set(row)) >= 2)
    assert (b.trip is not None) == expected
