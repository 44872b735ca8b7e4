"""Who holds a change: the class that became slow, the arm that fails, and bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from tests.traffic import Traffic

from intonaco.monitoring.breakdown import LABELS, RECENT, Breakdown, told
from intonaco.types import Finding, ScoredRecord


def a_finding(of: str, since_at: float) -> Finding:
    return Finding(
        finding_id="f",
        service_id="s",
        signal=of,
        detector="d",
        at=since_at + 100,
        request=0,
        armed_at=0,
        since=0,
        since_at=since_at,
        evidence=1.0,
        threshold=1.0,
        value_before=0.0,
        value_now=0.0,
        unit="share",
        direction="up",
        of=of,
    )


def classes(items: Iterable[ScoredRecord], slow: float = 1.0) -> Iterable[ScoredRecord]:
    """Every third request is for a larger picture, which takes ``slow`` times as long."""
    for n, item in enumerate(items):
        if n % 3:
            yield item
            continue
        attempt = item.record.attempts[0]
        attempt = replace(attempt, service_seconds=attempt.service_seconds * 2 * slow)
        yield replace(item, record=replace(item.record, width=64, height=64, attempts=(attempt,)))


def test_the_class_that_became_slow_is_named() -> None:
    traffic, seen = Traffic(), Breakdown()
    for item in classes(traffic.many(600)):
        seen.observe(item)
    since = traffic.at + 1e-6
    for item in classes(traffic.many(90), slow=5.0):
        seen.observe(item)
    facts = seen.explain(a_finding("latency", since))
    top = facts["parts"][0]
    assert (top["by"], top["value"]) == ("request class", "64x64x10")
    assert top["share_of_change"] > 0.9
    assert 1.7 < top["before"] < 2.3
    assert top["now"] > 8
    assert abs(top["share_now"] - top["share_before"]) < 0.02
    assert top["requests_now"] == 30
    assert "is in request class 64x64x10" in told(facts["parts"])
    assert {p["by"] for p in facts["parts"]} == {"request class"}, "one arm tells nothing"


def test_errors_are_counted_by_arm_and_kind() -> None:
    traffic, seen = Traffic(), Breakdown()
    for n in range(400):
        seen.observe(traffic.ask(arm="baseline" if n % 2 else "champion"))
    since = traffic.at + 1e-6
    for n in range(100):
        on = "baseline" if n % 2 else "champion"
        seen.observe(traffic.ask(arm=on, failing=0.6 if on == "baseline" else 0.0))
    facts = seen.explain(a_finding("errors", since))
    assert (facts["parts"][0]["by"], facts["parts"][0]["value"]) == ("arm", "baseline")
    assert facts["kinds"]["error"] > 10


def test_no_data_explains_nothing() -> None:
    seen = Breakdown()
    assert seen.explain(a_finding("latency", 0.0)) == {}
    assert told([]) == ""
    for item in Traffic().many(30):
        seen.observe(item)
    assert "parts" not in seen.explain(a_finding("promql", 0.0))


def test_memory_is_bounded_and_state_is_exact() -> None:
    traffic, seen = Traffic(), Breakdown()
    for n, item in enumerate(traffic.many(RECENT + 300)):
        seen.observe(replace(item, record=replace(item.record, width=32 + n)))
    state = json.loads(json.dumps(seen.state()))
    assert len(state["rows"]) == RECENT
    assert len(state["known"]["0"]) == LABELS
    again = Breakdown()
    again.restore(state)
    finding = a_finding("latency", traffic.at - 20)
    assert again.explain(finding) == seen.explain(finding)
    item = traffic.ask()
    again.observe(item)
    seen.observe(item)
    assert again.state() == seen.state()
    seen.forget("b" * 64)
    assert seen.state()["rows"] == []
