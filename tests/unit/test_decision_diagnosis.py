"""Findings to causes: every row of the table, and that nothing unmeasured counts as quiet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from intonaco.decision.diagnosis import DiagnosisContext, diagnose
from intonaco.types import Cause, ClusterMove, Finding

NOW = 1_700_000_100.0
QUIET = DiagnosisContext(
    probes_ok=True, rollout_active=False, min_quality_gap=0.05, reference_quality=0.80
)


def cluster(
    *, moved: bool = True, inside: float | None = 0.05, outside: float | None = 0.80, n: int = 0
) -> ClusterMove:
    return ClusterMove(
        cluster=n,
        share_before=0.0 if moved else 0.5,
        share_now=0.15 if moved else 0.35,
        share_now_interval=(0.10, 0.22) if moved else (0.3, 0.4),
        quality_inside=inside,
        quality_outside=outside,
        sample_prompts=(f"a handwritten {n}",),
        sample_images=(),
        centroid=(1.0, 0.0),
        moved=moved,
    )


def finding(signal: str, before: float = 0.0, now: float = 0.3, **changes: Any) -> Finding:
    units = {"prompts": ("share", "moved"), "clip_score": ("cosine", "down")}
    unit, direction = units.get(signal, ("share", "up"))
    base = Finding(
        finding_id=f"f-{signal}",
        service_id="digits",
        signal=signal,
        detector="e",
        at=NOW - 10,
        request=400,
        armed_at=250,
        since=360,
        since_at=NOW - 60,
        evidence=10.0,
        threshold=9.0,
        value_before=before,
        value_now=now,
        unit=unit,
        direction=direction,
        text=f"{signal} moved.",
    )
    return replace(base, **changes)


def prompts(*clusters: ClusterMove) -> Finding:
    return finding("prompts", clusters=clusters)


NEW = (cluster(n=6), cluster(n=7), cluster(n=1, moved=False, inside=0.8))
SERVED = (cluster(n=6, inside=0.79), cluster(n=1, moved=False, inside=0.8))


def test_moved_and_worse_there_is_concept_drift() -> None:
    d = diagnose([prompts(*NEW)], QUIET, NOW)
    assert d.cause is Cause.CONCEPT_DRIFT
    assert d.moved_share == pytest.approx(0.30)
    assert d.quality_gap == pytest.approx(0.75)
    for said in ("30%", "0.05", "0.80", "a handwritten 6", "Not mere data drift", "unchanged"):
        assert said in d.reason


def test_moved_and_served_well_is_data_drift() -> None:
    d = diagnose([prompts(*SERVED)], QUIET, NOW)
    assert d.cause is Cause.DATA_DRIFT
    assert "Not concept drift" in d.reason


@pytest.mark.parametrize(("inside", "cause"), [(0.74, "concept_drift"), (0.76, "data_drift")])
def test_the_least_gap_divides_them(inside: float, cause: str) -> None:
    assert diagnose([prompts(cluster(inside=inside))], QUIET, NOW).cause == cause


def test_unscored_there_is_unknown_not_fine() -> None:
    d = diagnose([prompts(cluster(inside=None))], QUIET, NOW)
    assert d.cause is Cause.UNKNOWN
    assert "too few images were scored" in d.reason


def test_worse_on_the_same_demand_is_quality_decline() -> None:
    d = diagnose([finding("clip_score", 0.8, 0.6)], QUIET, NOW)
    assert d.cause is Cause.QUALITY_DECLINE
    assert "0.80 to 0.60" in d.reason
    assert "not drift" in d.reason


def test_a_fall_that_the_moved_explain_is_concept_drift_even_if_only_the_score_fired() -> None:
    d = diagnose([finding("clip_score", 0.8, 0.55, clusters=NEW)], QUIET, NOW)
    assert d.cause is Cause.CONCEPT_DRIFT


def test_worse_everywhere_is_quality_decline_though_demand_moved() -> None:
    worse = (cluster(inside=0.35, outside=0.5), cluster(moved=False))
    d = diagnose([prompts(*worse), finding("clip_score", 0.8, 0.45)], QUIET, NOW)
    assert d.cause is Cause.QUALITY_DECLINE
    assert "what did not move got worse too" in d.reason


def test_a_little_worse_elsewhere_is_still_concept_drift_and_said() -> None:
    d = diagnose([prompts(cluster(outside=0.72))], QUIET, NOW)
    assert d.cause is Cause.CONCEPT_DRIFT
    assert "fell far less" in d.reason


def test_changed_probes_are_quality_decline_whatever_else() -> None:
    context = replace(QUIET, probes_ok=False)
    for findings in ([prompts(*NEW)], [finding("clip_score", 0.8, 0.6)], [finding("errors")]):
        assert diagnose(findings, context, NOW).cause is Cause.QUALITY_DECLINE


@pytest.mark.parametrize(
    "findings", [[prompts(*NEW)], [prompts(*SERVED)], [finding("clip_score", 0.8, 0.6)]]
)
def test_unmeasured_probes_are_said(findings: list[Finding]) -> None:
    d = diagnose(findings, replace(QUIET, probes_ok=None), NOW)
    assert "Probes were not measured" in d.reason
    assert "unchanged" not in d.reason


@pytest.mark.parametrize("signal", ["errors", "latency"])
def test_errors_or_latency_alone_are_performance(signal: str) -> None:
    d = diagnose([finding(signal)], QUIET, NOW)
    assert d.cause is Cause.PERFORMANCE_DEGRADATION
    assert f"{signal} moved." in d.reason
    assert "training would not help" in d.reason


def test_moved_with_nobody_to_show_for_it_is_unknown() -> None:
    d = diagnose([prompts(cluster(moved=False, inside=0.8))], QUIET, NOW)
    assert d.cause is Cause.UNKNOWN


def test_the_silent_scorer_is_unknown() -> None:
    d = diagnose([finding("scorer", unit="s", text="Nothing was scored.")], QUIET, NOW)
    assert d.cause is Cause.UNKNOWN
    assert "Nothing was scored." in d.reason


def test_a_score_that_rose_is_no_decline() -> None:
    d = diagnose([finding("clip_score", 0.6, 0.8, direction="up")], QUIET, NOW)
    assert d.cause is Cause.UNKNOWN


def test_rollouts_and_releases_are_mentioned_and_ids_repeat() -> None:
    context = replace(QUIET, rollout_active=True, release_changed=True)
    d = diagnose([prompts(*NEW)], context, NOW)
    assert "rollout is under way" in d.reason
    assert "release or its environment changed" in d.reason
    again = diagnose([prompts(*NEW)], context, NOW + 50)
    assert again.diagnosis_id == d.diagnosis_id
    assert diagnose([prompts(*SERVED)], QUIET, NOW).diagnosis_id != d.diagnosis_id
