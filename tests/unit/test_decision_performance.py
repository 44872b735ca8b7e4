"""What is behind a degradation of performance: each factor, and what excludes its neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.test_decision_diagnosis import NEW, NOW, QUIET, SERVED, finding, prompts

from intonaco.decision.diagnosis import DiagnosisContext, diagnose, each_cause
from intonaco.decision.evidence import ArmFigures, Deploy, Load, Rate, Times, TrafficChange
from intonaco.types import Cause, Diagnosis, Factor, Finding

SLOW, FAILING = finding("latency", of="latency"), finding("errors", of="errors")
RELEASE = Deploy(at=NOW - 600, what="release")
LONG_AGO = Deploy(at=NOW - 90_000, what="release")
USUAL = Load(
    rate_before=2.0,
    rate_now=2.0,
    work_before=10.0,
    work_now=10.0,
    queue_before=0.2,
    queue_now=0.2,
    service_before=1.0,
    service_now=1.0,
    refused_before=Rate(count=0, total=500),
    refused_now=Rate(count=0, total=200),
)
SAME = Times(
    n=200,
    n_before=500,
    ratio=1.0,
    quick=1.0,
    slow=Rate(count=10, total=200),
    slow_before=Rate(count=25, total=500),
    slow_by_class={"a": Rate(count=5, total=100), "b": Rate(count=5, total=100)},
)
ALL_SLOW = replace(
    SAME,
    ratio=2.0,
    quick=1.9,
    slow=Rate(count=195, total=200),
    slow_by_class={"a": Rate(count=97, total=100), "b": Rate(count=98, total=100)},
)
THIRD_SLOW = replace(
    SAME,
    ratio=1.05,
    slow=Rate(count=66, total=200),
    slow_by_class={"a": Rate(count=30, total=100), "b": Rate(count=36, total=100)},
)
ONE_CLASS_SLOW = replace(
    THIRD_SLOW, slow_by_class={"a": Rate(count=66, total=70), "b": Rate(count=3, total=130)}
)
TRAFFIC = TrafficChange(
    requests_before=500,
    requests_now=200,
    times=SAME,
    load=USUAL,
    failed_before={"error": Rate(count=1, total=500), "timeout": Rate(count=0, total=500)},
    failed_now={"error": Rate(count=0, total=200), "timeout": Rate(count=0, total=200)},
)
ERRORS = {"error": Rate(count=60, total=200), "timeout": Rate(count=0, total=200)}
TIMEOUTS = {"error": Rate(count=0, total=200), "timeout": Rate(count=40, total=200)}
QUEUE = replace(USUAL, rate_now=6.0, queue_now=9.0, refused_now=Rate(count=50, total=200))


def told(
    *findings: Finding,
    traffic: TrafficChange | None = TRAFFIC,
    deploys: tuple[Deploy, ...] = (LONG_AGO,),
    **changes: bool,
) -> Diagnosis:
    context: DiagnosisContext = replace(
        QUIET,
        performance=traffic,
        deploys=deploys,
        **changes,  # type: ignore[arg-type]
    )
    return diagnose(findings, context, NOW)


def arm(failed: int, slow: int, total: int = 100) -> ArmFigures:
    return ArmFigures(
        failed=Rate(count=failed, total=total), slow=Rate(count=slow, total=total), score=None
    )


def test_slow_work_after_a_release_is_the_releases() -> None:
    d = told(SLOW, traffic=replace(TRAFFIC, times=ALL_SLOW), deploys=(RELEASE,))
    assert (d.cause, d.factor) == (Cause.PERFORMANCE_DEGRADATION, Factor.RELEASE)
    assert "after the release changed" in d.reason
    assert "queue did not grow" in d.excluded[Factor.QUEUEING]


def test_slow_work_under_an_old_release_is_the_machines() -> None:
    d = told(SLOW, traffic=replace(TRAFFIC, times=ALL_SLOW))
    assert d.factor is Factor.INFRASTRUCTURE
    assert "no other release" in d.excluded[Factor.RELEASE]


def test_the_release_before_being_as_slow_acquits_the_release() -> None:
    traffic = replace(TRAFFIC, times=ALL_SLOW, champion=arm(0, 95), previous=arm(0, 90))
    d = told(SLOW, traffic=traffic, deploys=(RELEASE,))
    assert d.factor is Factor.INFRASTRUCTURE
    assert "no better in the same minutes" in d.excluded[Factor.RELEASE]
    fine = replace(traffic, previous=arm(0, 5))
    d = told(SLOW, traffic=fine, deploys=(RELEASE,))
    assert d.factor is Factor.RELEASE
    assert "the one before it is fine" in d.reason


def test_part_of_every_class_slow_is_some_machines_even_after_a_release() -> None:
    d = told(SLOW, traffic=replace(TRAFFIC, times=THIRD_SLOW), deploys=(RELEASE,))
    assert d.factor is Factor.INFRASTRUCTURE
    assert "some machines are slow, not all" in d.reason
    one_class = told(SLOW, traffic=replace(TRAFFIC, times=ONE_CLASS_SLOW), deploys=(RELEASE,))
    assert one_class.factor is Factor.RELEASE


@pytest.mark.parametrize("failed", [TRAFFIC.failed_now, TIMEOUTS])
def test_a_queue_with_work_as_fast_as_ever_is_demand(failed: dict[str, Rate]) -> None:
    traffic = replace(TRAFFIC, load=QUEUE, failed_now=failed)
    d = told(FAILING, traffic=traffic, deploys=(RELEASE,))
    assert d.factor is Factor.QUEUEING
    assert "3.0 times as many requests" in d.reason
    assert "25% are turned away" in d.reason
    assert Factor.RELEASE in d.excluded
    assert Factor.INFRASTRUCTURE in d.excluded


def test_a_queue_of_larger_requests_is_the_mix_and_no_regression() -> None:
    larger = replace(QUEUE, rate_now=2.1, work_now=40.0)
    d = told(FAILING, traffic=replace(TRAFFIC, load=larger))
    assert d.factor is Factor.REQUEST_MIX
    assert "No regression" in d.reason
    assert "4.0 times the work" in d.reason


def test_a_queue_behind_slow_work_is_the_works() -> None:
    d = told(SLOW, FAILING, traffic=replace(TRAFFIC, load=QUEUE, times=ALL_SLOW))
    assert d.factor is Factor.INFRASTRUCTURE
    assert "the work itself" in d.excluded[Factor.QUEUEING]


@pytest.mark.parametrize(
    ("deploys", "elsewhere", "factor"),
    [
        ((RELEASE,), False, Factor.RELEASE),
        ((LONG_AGO,), False, Factor.INFRASTRUCTURE),
        ((), True, Factor.UPSTREAM),
        ((RELEASE,), True, Factor.RELEASE),
    ],
)
def test_errors(deploys: tuple[Deploy, ...], elsewhere: bool, factor: Factor) -> None:
    traffic = replace(TRAFFIC, failed_now=ERRORS)
    d = told(FAILING, traffic=traffic, deploys=deploys, served_elsewhere=elsewhere)
    assert (d.cause, d.factor) == (Cause.PERFORMANCE_DEGRADATION, factor)


def test_an_alarm_that_the_records_do_not_bear_out_is_unknown() -> None:
    d = told(SLOW)
    assert d.cause is Cause.UNKNOWN
    assert "cannot be told" in d.reason
    assert "do as before" in d.excluded[Cause.PERFORMANCE_DEGRADATION]


def test_without_records_nothing_is_made_up() -> None:
    d = told(SLOW, traffic=None)
    assert (d.cause, d.factor) == (Cause.PERFORMANCE_DEGRADATION, None)
    assert "too few requests" in d.reason
    assert told(SLOW, traffic=None, deploys=(RELEASE,)).factor is Factor.RELEASE
    assert told(SLOW, traffic=None, served_elsewhere=True).factor is Factor.UPSTREAM
    unmeasured = replace(TRAFFIC, times=None, load=None, failed_now={}, failed_before={})
    assert told(SLOW, traffic=unmeasured).cause is Cause.UNKNOWN


@pytest.mark.parametrize(
    ("clusters", "cause"), [(NEW, Cause.CONCEPT_DRIFT), (SERVED, Cause.DATA_DRIFT)]
)
def test_performance_and_drift_do_not_hide_each_other(
    clusters: tuple[object, ...], cause: Cause
) -> None:
    moved = prompts(*clusters)  # type: ignore[arg-type]
    d = told(moved, SLOW, traffic=replace(TRAFFIC, times=ALL_SLOW))
    assert {d.cause, *d.also} == {cause, Cause.PERFORMANCE_DEGRADATION}
    assert {d.cause: d.factor, **d.factors}[Cause.PERFORMANCE_DEGRADATION] is (
        Factor.INFRASTRUCTURE
    )
    assert "At the same time" in d.reason
    parts = each_cause(d)
    assert [p.cause for p in parts] == [d.cause, *d.also]
    assert len({p.diagnosis_id for p in parts}) == 2
    assert {p.cause: p.factor for p in parts}[Cause.PERFORMANCE_DEGRADATION] is (
        Factor.INFRASTRUCTURE
    )
    assert "model is not to blame" not in d.reason
