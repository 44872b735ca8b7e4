"""Findings to causes: every row of the table, and that nothing unmeasured counts as quiet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from intonaco.config.signals import SignalKind
from intonaco.decision.diagnosis import ORDER, DiagnosisContext, diagnose
from intonaco.decision.evidence import ArmFigures, Deploy, Rate, TopicChange, TrafficChange
from intonaco.decision.picture import KINDS, PERFORMANCE_KINDS
from intonaco.types import Cause, ClusterMove, Factor, Finding

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


def test_signals_that_are_not_armed_are_not_called_quiet() -> None:
    """A detector that is still learning what is normal has excluded nothing."""
    slow = finding("latency", of="latency")
    learning = replace(QUIET, watched=frozenset({"latency"}))
    d = diagnose([slow], learning, NOW)
    assert d.excluded[Cause.DATA_DRIFT] == "prompts are not watched yet"
    assert "scores are not watched yet" in d.excluded[Cause.QUALITY_DECLINE]
    assert "no alarm" not in " ".join((d.reason, *d.excluded.values()))
    armed = replace(QUIET, watched=frozenset({"latency", "prompt_embedding", "clip_score"}))
    assert diagnose([slow], armed, NOW).excluded == diagnose([slow], QUIET, NOW).excluded
    assert "prompts raised no alarm" in diagnose([slow], armed, NOW).excluded[Cause.DATA_DRIFT]


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


# -------------------------------------------------- more signals, topics, arms, announcements


def topic(
    n: int, before: float, now: float, liked: tuple[int, int] = (80, 40), votes: int = 100
) -> TopicChange:
    """A cluster's scores (standard error 0.01), and its votes up before (of ``votes``) and now (of
    half as many)."""
    return TopicChange(
        cluster=n,
        requests_before=300,
        requests_now=100,
        score_before=(before, 0.01),
        score_now=(now, 0.01),
        liked_before=Rate(count=liked[0], total=votes),
        liked_now=Rate(count=liked[1], total=votes // 2),
    )


def with_topics(*topics: TopicChange, **changes: object) -> DiagnosisContext:
    traffic = TrafficChange(
        requests_before=500,
        requests_now=200,
        times=None,
        load=None,
        failed_before={},
        failed_now={},
        topics=topics,
    )
    return replace(QUIET, content=replace(traffic, **changes))  # type: ignore[arg-type]


def test_another_mix_of_topics_is_no_decline_elsewhere() -> None:
    """Simpson's paradox: what did not move scores less on average, each topic what it did."""
    mixed = (
        cluster(inside=0.66, outside=0.70),
        cluster(n=1, moved=False),
        cluster(n=2, moved=False),
    )
    context = with_topics(topic(1, 0.60, 0.60), topic(2, 0.90, 0.90))
    d = diagnose([prompts(*mixed)], context, NOW)
    assert d.cause is Cause.DATA_DRIFT
    assert "0.00" in d.excluded[Cause.QUALITY_DECLINE]
    assert diagnose([prompts(*mixed)], QUIET, NOW).cause is Cause.QUALITY_DECLINE


def test_drift_and_decline_at_once_are_both_told() -> None:
    both = (cluster(inside=0.2, outside=0.6), cluster(n=1, moved=False))
    context = with_topics(topic(1, 0.80, 0.60))
    d = diagnose([prompts(*both), finding("clip_score", 0.8, 0.5)], context, NOW)
    assert d.cause is Cause.QUALITY_DECLINE
    assert d.also == (Cause.CONCEPT_DRIFT,)


def test_a_group_that_seems_to_move_does_not_explain_a_general_fall() -> None:
    chance = cluster(inside=0.55, outside=0.6)
    context = with_topics(topic(1, 0.80, 0.60))
    d = diagnose([finding("clip_score", 0.8, 0.6, clusters=(chance,))], context, NOW)
    assert d.cause is Cause.QUALITY_DECLINE
    assert d.also == ()


def test_votes_that_fall_on_a_topic_drawn_as_ever_are_concept_drift() -> None:
    votes = finding("thumbs", 0.8, 0.6, of="thumbs", direction="down")
    context = with_topics(topic(0, 0.8, 0.8, liked=(80, 15)), topic(1, 0.8, 0.8))
    d = diagnose([votes], context, NOW)
    assert d.cause is Cause.CONCEPT_DRIFT
    assert "on 1 of 2 topics" in d.reason
    assert diagnose([votes], QUIET, NOW).cause is Cause.CONCEPT_DRIFT
    for other, cause in (
        (finding("clip_score", 0.8, 0.6), Cause.QUALITY_DECLINE),
        (finding("latency", of="latency"), Cause.PERFORMANCE_DEGRADATION),
    ):
        assert diagnose([votes, other], QUIET, NOW).cause is cause
    slow = diagnose([votes, finding("latency", of="latency")], context, NOW)
    assert {slow.cause, *slow.also} == {Cause.CONCEPT_DRIFT, Cause.PERFORMANCE_DEGRADATION}


def test_votes_that_rise_and_answers_that_get_rarer_are_unknown() -> None:
    for odd in (
        finding("thumbs", 0.6, 0.8, of="thumbs"),
        finding("response_rate", 0.3, 0.1, of="response_rate"),
        finding("regenerate", 0.3, 0.1, of="regenerate"),
    ):
        assert diagnose([odd], QUIET, NOW).cause is Cause.UNKNOWN
    again = finding("regenerate", 0.1, 0.3, of="regenerate")
    assert diagnose([again], QUIET, NOW).cause is Cause.CONCEPT_DRIFT


def test_people_who_dislike_what_the_score_likes_make_it_concept_drift() -> None:
    context = with_topics(topic(6, 0.8, 0.79, liked=(0, 10)), topic(1, 0.8, 0.8))
    d = diagnose([prompts(*SERVED)], context, NOW)
    assert d.cause is Cause.CONCEPT_DRIFT
    assert "20% of the votes there are up" in d.reason


def test_outputs_that_are_all_alike_are_a_collapse() -> None:
    d = diagnose([finding("diversity", 0.02, 0.9, of="diversity")], QUIET, NOW)
    assert d.cause is Cause.QUALITY_DECLINE
    assert "collapsed" in d.reason
    blank = finding("blank", 0.0, 0.9, of="blank_images")
    assert diagnose([blank], QUIET, NOW).cause is Cause.QUALITY_DECLINE
    assert diagnose([replace(blank, value_before=1.0)], QUIET, NOW).cause is Cause.UNKNOWN


def test_pictures_alike_where_requests_moved_are_no_collapse() -> None:
    """What people ask for now may look alike; a collapse spares no topic."""
    alike = finding("diversity", 0.05, 0.18, of="diversity")
    assert diagnose([alike, prompts(*SERVED)], QUIET, NOW).cause is Cause.DATA_DRIFT
    unscored = replace(QUIET, reference_quality=None)
    assert diagnose([alike, prompts(*SERVED)], unscored, NOW).cause is Cause.DATA_DRIFT
    more = replace(alike, value_now=0.9)
    assert diagnose([more, prompts(*SERVED)], unscored, NOW).cause is Cause.QUALITY_DECLINE
    d = diagnose([more, prompts(*SERVED)], replace(QUIET, reference_quality=0.99), NOW)
    assert d.cause is Cause.QUALITY_DECLINE
    assert Cause.DATA_DRIFT in d.also


def test_a_topic_that_grew_is_none_that_did_not_move() -> None:
    """A group of a few odd requests can be the nearest to many of what is new."""
    odd = replace(topic(3, 0.8, 0.1), requests_before=10, requests_now=200)
    context = with_topics(topic(6, 0.8, 0.05), topic(1, 0.8, 0.8), odd)
    d = diagnose([prompts(*NEW)], context, NOW)
    assert (d.cause, d.also) == (Cause.CONCEPT_DRIFT, ())


def test_every_signal_has_its_place_in_the_picture() -> None:
    """What a finding alone is taken for, by what its signal is of: none is forgotten."""
    assert set(get_args(SignalKind)) | {"silence", "probe", "scorer", "dataset"} == set(KINDS)
    alone = {
        "prompts": Cause.UNKNOWN,  # no group explains it, so quality there is not known
        "quality": Cause.QUALITY_DECLINE,
        "outputs": Cause.QUALITY_DECLINE,
        "safety": Cause.QUALITY_DECLINE,
        "probes": Cause.QUALITY_DECLINE,
        "feedback": Cause.CONCEPT_DRIFT,
        "format": Cause.BROKEN_FORMAT,
        **dict.fromkeys(PERFORMANCE_KINDS, Cause.PERFORMANCE_DEGRADATION),
        **dict.fromkeys(("pictures", "response", "external", "silence"), Cause.UNKNOWN),
    }
    for of, kind in KINDS.items():
        falls = kind in ("quality", "feedback") and of != "regenerate"
        before, now = (0.8, 0.4) if falls else (0.1, 0.5)
        d = diagnose([finding("it", before, now, of=of)], QUIET, NOW)
        assert d.cause is alone[kind], of


def test_a_changed_probe_is_the_environment_and_who_watches_is_monitoring() -> None:
    unmeasured = replace(QUIET, probes_ok=None)
    probe = diagnose([finding("probes", 0.0, 1.0, of="probe")], unmeasured, NOW)
    assert (probe.cause, probe.factor) == (Cause.QUALITY_DECLINE, Factor.ENVIRONMENT)
    assert "Probes were not measured" not in probe.reason
    silent = diagnose([finding("records", of="silence")], QUIET, NOW)
    assert (silent.cause, silent.factor) == (Cause.UNKNOWN, Factor.MONITORING)


def test_votes_of_other_people_are_read_with_care() -> None:
    votes = finding("thumbs", 0.8, 0.6, of="thumbs", direction="down")
    rarer = finding("response_rate", 0.3, 0.1, of="response_rate")
    assert "other people who speak" in diagnose([votes, rarer], QUIET, NOW).reason
    assert "other people who speak" not in diagnose([votes], QUIET, NOW).reason


def test_pictures_that_moved_alone_are_unknown() -> None:
    moved = finding("pictures", of="image_embedding", direction="moved")
    assert diagnose([moved], QUIET, NOW).cause is Cause.UNKNOWN
    assert diagnose([moved, prompts(*SERVED)], QUIET, NOW).cause is Cause.DATA_DRIFT


@pytest.mark.parametrize("of", ["refused", "broken_images"])
def test_broken_formats(of: str) -> None:
    d = diagnose([finding(of, 0.01, 0.3, of=of, facts={"code": "422"})], QUIET, NOW)
    assert d.cause is Cause.BROKEN_FORMAT
    assert "422" in d.reason
    assert "must not learn it" in d.reason
    assert d.factor is (Factor.CLIENTS if of == "refused" else None)


def test_data_that_fails_its_checks_is_a_broken_format() -> None:
    context = replace(QUIET, dataset_problems="12 images cannot be read")
    assert diagnose([], context, NOW).cause is Cause.BROKEN_FORMAT


@pytest.mark.parametrize("cause", [Cause.NEW_DATA, Cause.NEW_TECHNIQUE, Cause.CODE_CHANGE])
def test_what_is_announced(cause: Cause) -> None:
    context = replace(QUIET, announced={cause: "version 7 of the data"})
    d = diagnose([], context, NOW)
    assert d.cause is cause
    assert "version 7" in d.reason
    beside = diagnose([prompts(*NEW)], context, NOW)
    assert beside.cause is Cause.CONCEPT_DRIFT
    assert beside.also == (cause,)


def test_what_is_announced_explains_no_finding() -> None:
    """A lock file that changed serves nobody yet."""
    context = replace(QUIET, announced={Cause.CODE_CHANGE: "lock changed"})
    d = diagnose([finding("gpu", 0.2, 0.9, of="promql")], context, NOW)
    assert {d.cause, *d.also} == {Cause.CODE_CHANGE, Cause.UNKNOWN}
    slow = diagnose([finding("latency", of="latency")], context, NOW)
    assert (slow.cause, slow.also) == (Cause.PERFORMANCE_DEGRADATION, (Cause.CODE_CHANGE,))
    assert "training would not help" in slow.reason


def test_a_check_of_data_that_failed_is_a_broken_format() -> None:
    text = "data.pool changed and fails its checks: 1 unreadable."
    d = diagnose([finding("data.pool", 0.0, 1.0, of="dataset", text=text)], QUIET, NOW)
    assert (d.cause, d.factor, d.also) == (Cause.BROKEN_FORMAT, None, ())
    assert "1 unreadable" in d.reason


def test_changed_probes_name_the_environment_and_keep_the_drift() -> None:
    deploy = Deploy(at=NOW - 300, what="environment", text="Its driver was replaced")
    context = replace(QUIET, probes_ok=False, deploys=(deploy,))
    d = diagnose([prompts(*NEW)], context, NOW)
    assert (d.cause, d.factor) == (Cause.QUALITY_DECLINE, Factor.ENVIRONMENT)
    assert d.also == (Cause.CONCEPT_DRIFT,)
    assert "driver was replaced" in d.reason


def test_a_decline_is_the_releases_if_the_one_before_holds() -> None:
    rate = Rate(count=0, total=100)
    own = ArmFigures(failed=rate, slow=rate, score=(0.60, 0.01))
    fall = finding("clip_score", 0.8, 0.6)
    held = with_topics(champion=own, previous=replace(own, score=(0.80, 0.01)))
    assert diagnose([fall], replace(held, deploys=()), NOW).factor is Factor.RELEASE
    too = with_topics(champion=own, previous=own)
    recent = (Deploy(at=NOW - 300, what="release"),)
    d = diagnose([fall], replace(too, deploys=recent), NOW)
    assert d.factor is None
    assert "fell as much" in d.excluded[Factor.RELEASE]
    assert diagnose([fall], replace(QUIET, deploys=recent), NOW).factor is Factor.RELEASE
    old = (Deploy(at=NOW - 90_000, what="release"),)
    assert diagnose([fall], replace(QUIET, deploys=old), NOW).factor is None


def test_a_dead_scorer_is_the_monitorings_fault() -> None:
    d = diagnose([finding("scorer", of="scorer", text="Nothing was scored.")], QUIET, NOW)
    assert (d.cause, d.factor) == (Cause.UNKNOWN, Factor.MONITORING)
    assert "quiet signals included" in d.reason


def test_every_cause_has_its_place_in_the_order() -> None:
    given_by_people = {Cause.FIRST_RELEASE, Cause.REQUESTED}
    assert set(ORDER) | given_by_people == set(Cause)
