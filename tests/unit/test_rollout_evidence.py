"""How often a rollout's analysis accuses an equal challenger, and whether it finds a bad one.

Error budget: alpha 0.05 over all metrics and three standard errors of the number of rollouts, with
fixed seeds and a look after every record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.made_up_traffic import CHALLENGER, People, Worse

from intonaco.config import ONLINE_METRICS, HarmTolerances, RolloutConfig, RolloutMargins
from intonaco.errors import StorageError
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.rollout.evidence import evidence_of
from intonaco.rollout.outcomes import COST, LATENCY, device_seconds, latency
from intonaco.types import Assessment, MetricAssessment, Outcome, ScoredRecord

METRICS = tuple(m for m in ONLINE_METRICS if m != "end_to_end")  # that has arms of its own
ALPHA = 0.05
CONFIG = RolloutConfig(
    metrics=METRICS,
    margins=RolloutMargins(errors=0.05, latency=0.15, clip_score=0.05, slow=0.1, cost=0.2),
    harm_tolerances=HarmTolerances(latency=0.0, cost=0.0),  # an equal one is at the very edge
)

Record = Callable[[str, object], None]


def analysis(people: People | None = None, **changes: Any) -> RolloutAnalysis:
    settings: dict[str, Any] = {
        "salt": "salt",
        "score_range": (0.0, 1.0),
        "settle_seconds": 2.0,
        "times": people.times() if people else None,
    }
    return RolloutAnalysis("r1", CONFIG, ALPHA, **(settings | changes))


def of(an: RolloutAnalysis, metric: str) -> MetricAssessment:
    return next(a for a in an.assess() if a.metric == metric)


def people(seed: int, **changes: Any) -> People:
    return People(rng=np.random.default_rng(seed), **changes)


def warmed(someone: People) -> RolloutAnalysis:
    """With what forty champion requests of each kind before cost."""
    an = analysis(someone)
    before = replace_weights(someone, (0.0,), 80)
    for item in before.records(first=-10_000):
        an.observe(replace(item, record=replace(item.record, unit=f"early {item.record.unit}")))
    return an


def replace_weights(someone: People, weights: tuple[float, ...], requests: int) -> People:
    return People(rng=someone.rng, requests=requests, weights=weights, error_rate=0.0)


# ------------------------------------------------------------------------------------ false alarms


def false_alarms(runs: int, requests: int, record: Record) -> None:
    accused = dict.fromkeys(METRICS, 0)
    some = 0
    for seed in range(runs):
        crowd = people(seed, users=requests // 3, prone=5, requests=requests, drift=0.8)
        an = warmed(crowd)
        told: set[str] = set()
        for item in crowd.records():
            an.observe(item)
            told |= set(an.harmful)
        some += bool(told)
        for metric in told:
            accused[metric] += 1
    limit = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    cells = "  ".join(f"{m} {n / runs:.4f}" for m, n in accused.items())
    record("table", f"equal rollouts: any {some / runs:.4f}  {cells}  (limit {limit:.4f})")
    assert some / runs <= limit


def test_an_equal_challenger_is_rarely_accused(record_property: Record) -> None:
    """Users who stay in their arm, five of whom cause most errors; shares of 1, 5, 20, 50 %; all
    rates drift together."""
    false_alarms(10, 480, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_equal_challenger_is_rarely_accused_full(record_property: Record) -> None:
    false_alarms(300, 1200, record_property)


# ------------------------------------------------------------------------------------ harm


@pytest.mark.parametrize(
    ("metric", "worse", "requests"),
    [
        ("errors", Worse(errors=0.05), 3000),
        ("latency", Worse(slower=1.2), 600),
        ("clip_score", Worse(cosine=0.05), 1500),
        ("cost", Worse(dearer=1.3), 1500),
    ],
)
def test_each_harm_is_found(metric: str, worse: Worse, requests: int) -> None:
    crowd = people(7, requests=requests, worse=worse)
    an = warmed(crowd)
    for item in crowd.records():
        an.observe(item)
    assert metric in an.harmful
    found = of(an, metric)
    assert found.assessment is Assessment.HARMFUL
    assert found.evidence_harm >= found.threshold
    assert found.units_ahead is None


def test_an_equal_challenger_is_proven_in_everything() -> None:
    crowd = people(3, requests=1500, weights=(0.5,))
    an = warmed(crowd)
    an.begin_step(1, 0.0, 0.5)
    expected: dict[str, list[int]] = {m: [] for m in METRICS}
    for n, item in enumerate(crowd.records()):
        an.observe(item)
        if n % 100 == 50:
            for a in an.assess():
                if a.units_ahead is not None:
                    expected[a.metric].append(a.units_ahead)
    assert {a.assessment for a in an.assess()} <= {Assessment.NON_INFERIOR, Assessment.SUPERIOR}
    for metric, left in expected.items():
        assert left, metric
        assert all(0 <= n < 5000 for n in left)
        assert left[-1] <= left[0]


# ------------------------------------------------------------------------------------ latency


def test_times_are_judged_from_the_first_unit_where_the_champions_are_known() -> None:
    crowd = people(1, requests=40, weights=(0.5,), error_rate=0.0)
    items = list(crowd.records())
    known, unknown = analysis(crowd), analysis()
    for item in items:
        known.observe(item)
        unknown.observe(item)
    assert of(known, LATENCY).difference is not None
    assert of(unknown, LATENCY).assessment is Assessment.NO_DATA
    assert "times" in of(unknown, LATENCY).missing


def test_champions_without_a_share_teach_the_usual_times() -> None:
    """As in a shadow step: nobody is randomised, and the times are learned all the same."""
    an = warmed(people(2))
    bare = analysis()
    for name, lane in (("quick", an._quick), ("settled", an._settled)):
        assert lane.evidence[LATENCY].state() != bare._quick.evidence[LATENCY].state(), name


def test_people_are_shown_the_p90_with_an_interval_that_has_two_ends() -> None:
    crowd = people(4, requests=900, weights=(0.5,), worse=Worse(slower=1.25))
    an = analysis(crowd)
    ended = []
    for item in crowd.records():
        an.observe(item)
    found = of(an, LATENCY)
    assert found.difference == pytest.approx(0.25, abs=0.12)
    assert found.interval is not None
    ended = list(found.interval)
    assert ended[0] < 0.25 < ended[1] < 1.0


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome.OK, 0.4),
        (Outcome.TIMEOUT, 0.9),  # until it was given up
        (Outcome.CANCELLED, 0.9),
        (Outcome.ERROR, None),  # how long a failure takes is no service
        (Outcome.REJECTED, None),
    ],
)
def test_which_times_count(outcome: Outcome, expected: float | None) -> None:
    item = next(iter(people(0, error_rate=0.0).records()))
    one = replace(
        item.record.attempts[0], outcome=outcome, seconds=0.9, service_seconds=0.4, arm="champion"
    )
    record = replace(item.record, attempts=(one,), assigned_arm="champion")
    assert latency(record) == expected


@pytest.mark.parametrize("seconds", [-3.0, math.nan, math.inf])
def test_a_clock_that_was_set_back_stops_nothing(seconds: float) -> None:
    crowd = people(0, requests=60, weights=(0.5,), error_rate=0.0)
    an = analysis(crowd)
    for item in crowd.records():
        one = replace(item.record.attempts[0], seconds=seconds, service_seconds=seconds)
        one = replace(one, gpu_seconds=seconds)
        an.observe(replace(item, record=replace(item.record, attempts=(one,))))
    found = {a.metric: a.assessment for a in an.assess()}
    assert found["latency"] is found["cost"] is Assessment.NO_DATA
    assert found["errors"] is Assessment.UNDECIDED


# ------------------------------------------------------------------------------------ cost


def test_the_cost_is_the_images_share_of_the_device() -> None:
    item = next(iter(people(0, error_rate=0.0).records()))
    one = replace(item.record.attempts[0], service_seconds=0.8, batch_size=3, padded_size=4)
    told = replace(item.record, attempts=(replace(one, gpu_seconds=0.11),))
    silent = replace(item.record, attempts=(replace(one, gpu_seconds=0.0),))
    kind = f"{item.record.request_class} batch 4"
    assert device_seconds(told) == (kind, 0.11)
    share = device_seconds(silent)
    assert share is not None
    assert share == (kind, 0.8 / 3)
    failed = replace(one, outcome=Outcome.ERROR)
    assert device_seconds(replace(item.record, attempts=(failed,))) is None


def test_small_batches_of_a_small_share_are_no_harm() -> None:
    """An image in a batch of its own costs twice one of a batch of four, whoever made it: at 5 %
    of the traffic the challenger fills no batch."""
    crowd = people(5, requests=1200, weights=(0.05,), error_rate=0.0)
    an = analysis(crowd)
    alone = np.random.default_rng(1)
    for early in (True, False):
        source = replace_weights(crowd, (0.0,), 200) if early else crowd
        for item in source.records(first=-10_000 if early else 0):
            record = item.record
            one = record.attempts[0]
            size = 1 if record.assigned_arm == CHALLENGER or alone.random() < 0.3 else 4
            one = replace(
                one, padded_size=size, batch_size=size, gpu_seconds=one.gpu_seconds * (2 - size / 4)
            )
            unit = f"early {record.unit}" if early else record.unit
            an.observe(replace(item, record=replace(record, attempts=(one,), unit=unit)))
    assert COST not in an.harmful
    assert of(an, COST).difference == pytest.approx(0.0, abs=0.1)


# ------------------------------------------------------------------------------------ errors


def test_the_first_error_counts_whenever_it_comes_and_only_once() -> None:
    """Users who were fine at first fail later: the difference, which takes first requests, sees
    nothing; the ratio takes each user's first error, and no user's second."""
    config = CONFIG.model_copy(update={"metrics": ("errors",)})
    an = RolloutAnalysis("r1", config, ALPHA, salt="salt", settle_seconds=2.0)
    crowd = people(6, users=120, requests=120, weights=(0.5,), error_rate=0.0)
    items = [replace(item, record=replace(item.record, unit=f"user-{n}"))
             for n, item in enumerate(crowd.records())]  # fmt: skip
    for item in items:
        an.observe(item)
    assert an.harmful == ()

    def fail(item: ScoredRecord) -> None:
        one = replace(item.record.attempts[0], outcome=Outcome.ERROR, service_seconds=0.0)
        an.observe(replace(item, record=replace(item.record, attempts=(one,), status=502)))

    challengers = [i for i in items if i.record.assigned_arm == CHALLENGER]
    for _ in range(200):
        fail(challengers[0])  # one user again and again
    assert an.harmful == ()
    for item in challengers[:20]:
        fail(item)
    assert "errors" in an.harmful


def test_a_tolerated_difference_may_be_any_ratio() -> None:
    """With 5 % tolerated, failures of 2 % against none are no harm."""
    tolerant = CONFIG.model_copy(
        update={"metrics": ("errors",), "harm_tolerances": HarmTolerances(errors=0.05)}
    )
    accused = []
    for config in (tolerant, CONFIG.model_copy(update={"metrics": ("errors",)})):
        crowd = people(8, requests=3000, weights=(0.5,), error_rate=0.0, worse=Worse(errors=0.02))
        an = RolloutAnalysis("r1", config, ALPHA, salt="salt", settle_seconds=2.0)
        for item in crowd.records():
            an.observe(item)
        accused.append(an.harmful)
    assert accused == [(), ("errors",)]


# ------------------------------------------------------------------------------------ words


def test_what_is_missing_is_told() -> None:
    an = analysis()
    assert {a.missing for a in an.assess()} == {"no request has reached the challenger"}
    crowd = people(9, requests=60, weights=(0.5,), error_rate=0.0)
    for item in crowd.records():
        an.observe(replace(item, scores={}))
    assert of(an, "clip_score").missing == "no scores from the scorer"
    assert "times" in of(an, "latency").missing
    assert "images" in of(an, "cost").missing
    assert of(an, "errors").missing == ""


# ------------------------------------------------------------------------------------ state


def test_state_restores_exactly_at_every_event() -> None:
    crowd = people(11, users=60, prone=3, requests=160, weights=(0.2, 0.5), drift=0.5)
    whole, parts = warmed(crowd), None
    parts = analysis()
    parts.restore(json.loads(json.dumps(whole.state())))
    for n, item in enumerate(crowd.records()):
        for each in (whole, parts):
            each.begin_step(n // 80, float(n // 80 * 80), 0.5)
            each.observe(item)
        if n % 10 == 0:
            assert parts.assess() == whole.assess()
        stored = json.dumps(parts.state())
        assert stored == json.dumps(whole.state())
        parts = analysis()
        parts.restore(json.loads(stored))
    assert parts.assess() == whole.assess()


def test_promotion_keeps_what_is_known_of_the_champions_times() -> None:
    crowd = people(12, requests=100, weights=(0.5,), error_rate=0.0)
    an = analysis(crowd)
    for item in crowd.records():
        an.observe(item)
    an.promoted(7)
    for item in people(13, requests=60, weights=(0.5,), error_rate=0.0).records(first=1000):
        arm = "champion" if item.record.assigned_arm == CHALLENGER else "holdback"
        tries = tuple(replace(a, arm=arm) for a in item.record.attempts)
        record = replace(item.record, assigned_arm=arm, attempts=tries, routing_epoch=8)
        an.observe(replace(item, record=record))
    assert of(an, LATENCY).assessment is not Assessment.NO_DATA
    assert of(an, LATENCY).units_challenger > 10
    again = analysis()
    again.restore(json.loads(json.dumps(an.state())))
    assert again.assess() == an.assess()


def test_other_tolerances_are_other_evidence() -> None:
    stored = analysis().state()
    changed = CONFIG.model_copy(update={"harm_tolerances": HarmTolerances(latency=0.2)})
    other = RolloutAnalysis("r1", changed, ALPHA, salt="salt", score_range=(0.0, 1.0),
                            settle_seconds=2.0)  # fmt: skip
    with pytest.raises(StorageError):
        other.restore(stored)


def test_a_margin_as_wide_as_the_range_is_refused_where_there_is_a_range() -> None:
    with pytest.raises(ValueError, match="range"):
        evidence_of("slow", tolerance=0.0, margin=1.0)
    assert evidence_of("latency", tolerance=0.0, margin=1.0).within == (0.0, 0.0)
