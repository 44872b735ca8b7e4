"""The benchmarks of rollbacks and of a fleet: what they make of what was recorded."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from fleet import measured as fleet
from rollback import bench, measured
from rollback.measured import Case

from intonaco.serving.faults import parse_fault
from intonaco.types import Attempt, Outcome, Record

OK, ERROR, TIMEOUT = Outcome.OK, Outcome.ERROR, Outcome.TIMEOUT


def record(start: float, outcome: Outcome, *, release: str = "new", probe: bool = False) -> Record:
    """A request at ``release`` that took a tenth of a second there, and then the champion's."""
    tries = [_try(release, start, outcome)]
    if outcome is not OK:
        tries.append(_try("old", start + 0.1, OK))
    return Record(
        gateway="gateway",
        gateway_epoch=1,
        seq=0,
        service_id="svc",
        request_id="r",
        at=start,
        unit="u",
        assigned_arm="challenger:x",
        probability=0.5,
        routing_epoch=1,
        salt="s",
        attempts=tuple(tries),
        served_by=release,
        served_arm="challenger:x",
        status=200,
        seconds=0.2,
        prompt="p",
        seed=0,
        steps=1,
        guidance_scale=1.0,
        width=32,
        height=32,
        probe=probe,
    )


def _try(release: str, start: float, outcome: Outcome) -> Attempt:
    return Attempt(arm="a", release=release, outcome=outcome, started_at=start, seconds=0.1)


def test_it_is_counted_from_the_third_failure_whoever_saw_it() -> None:
    records = [
        record(5.0, OK),
        record(6.0, ERROR),
        record(6.05, OK),  # begun before the release broke, or served by luck
        record(6.2, ERROR, probe=True),
        record(6.1, TIMEOUT),
        record(7.0, ERROR),
        record(9.0, OK, release="old"),
    ]
    assert measured.hard_failure(records, "new", 3) == pytest.approx(6.3)
    assert measured.hard_failure(records, "new", 5) is None
    assert measured.first_failure(records, "new") == 6.0
    assert [a.started_at for a in measured.tries(records, "new")] == [5.0, 6.0, 6.05, 6.1, 7.0]


def test_the_worst_of_all_runs_counts_and_any_other_answer_is_an_error() -> None:
    names = (*measured.BREAKER, *measured.PARTIAL, *measured.COMMAND)
    cases = [
        Case(scenario=name, since=10.0, last_at=10.0 + k / 10 - 0.2, tries=k)
        for k, name in enumerate(names)
    ]
    cases.append(Case(scenario="hard", since=10.0, last_at=10.9, tries=50))
    found = measured.figures(cases, {"200": 97, "502": 2, "ReadError": 1})
    assert found["seconds"] == pytest.approx(0.9)
    assert found["partial_seconds"] == pytest.approx(0.2)
    assert found["command_seconds"] == pytest.approx(0.5)
    assert (found["user_errors"], found["requests"], found["rollbacks"]) == (3, 100, 9)
    assert (found["hard.runs"], found["hard.tries"]) == (2, 50)
    assert found["hard.worst_s"] == pytest.approx(0.9)
    assert found["hard_controller_killed.worst_s"] == 0, "nobody was sent after the failure"


def test_every_scenario_has_a_drill_a_fault_and_a_figure() -> None:
    names = {*measured.BREAKER, *measured.PARTIAL, *measured.COMMAND}
    assert set(bench.FAULTS) == set(bench._DRILLS) == names
    for spec in bench.FAULTS.values():
        parse_fault(spec)
    partial = parse_fault(bench.FAULTS["partial"])
    assert partial is not None
    hit = [partial.hits(i) for i in range(100)]
    assert not hit[0], "the picture it is staged with"
    assert not any(a and b for a, b in pairwise(hit)), "no row for the breaker"


def test_a_tick_is_late_when_it_comes_more_than_its_interval_after_the_last() -> None:
    ticks = [(0.0, 0.1, False), (1.0, 2.5, False), (3.5, 0.1, True), (4.5, 0.1, False)]
    assert fleet.lags(ticks, 1.0, 0.0) == pytest.approx([0.0, 1.5, 0.0])
    assert fleet.lags(ticks, 1.0, 3.0) == pytest.approx([0.0])


def test_growth_is_that_of_the_last_half() -> None:
    samples = [
        fleet.Sample(at=100.0 + t, rss=10**8 + 10**6 * min(t, 5), cpu=0.5 * t, ledger=2000 * t)
        for t in range(21)
    ]
    ticks = {s: [(100.0 + t, 0.2, t == 3) for t in range(21)] for s in ("a", "b")}
    found = fleet.figures(ticks, samples, 1.0)
    assert found["cpu_share"] == pytest.approx(0.5)
    assert found["rss_growth_mb"] == pytest.approx(5)
    assert found["rss_last_half_mb_per_hour"] == pytest.approx(0, abs=1e-6)
    assert found["ledger_mb_per_hour"] == pytest.approx(7.2)
    assert (found["ticks"], found["ticks_failed"], found["services"]) == (42, 2, 2)
    assert found["tick_lag_max_s"] == 0
    with pytest.raises(ValueError, match="did not tick"):
        fleet.figures({"a": ticks["a"], "b": []}, samples, 1.0)
