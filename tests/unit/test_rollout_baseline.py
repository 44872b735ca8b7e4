"""A rollout with an equal baseline arm: which table each share has, and what three arms show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tests.made_up_traffic import CHALLENGER, People, Worse

from intonaco.config import RolloutConfig, RolloutMargins
from intonaco.errors import StorageError
from intonaco.rollout.analysis import RATIO_ALPHA, RolloutAnalysis
from intonaco.rollout.baseline_analysis import BaselineAnalysis
from intonaco.rollout.facts import RolloutFacts, equal_share
from intonaco.rollout.proof import missing_to_enter
from intonaco.rollout.routing import desired_arms
from intonaco.serving.gateway.routing import assign, check_table
from intonaco.types import (
    Arm,
    ArmRole,
    Assessment,
    MetricAssessment,
    Rollout,
    RolloutStatus,
    RolloutStep,
    RoutingTable,
    ScoredRecord,
    ServingStatus,
    StepKind,
    StepResult,
)

CONFIG = RolloutConfig(
    baseline=True,
    metrics=("errors", "latency", "slow", "end_to_end"),
    margins=RolloutMargins(errors=0.05, latency=0.15, slow=0.1, end_to_end=0.15),
)
ROLLOUT = Rollout(
    rollout_id="r1",
    service_id="s",
    update_id="u1",
    champion="A",
    challenger="B",
    steps=(RolloutStep(kind=StepKind.CANARY, weight=0.2),),
    status=RolloutStatus.RUNNING,
    started_at=0.0,
    salt="salt",
    baseline=1,
)


def table(weight: float, *, equal: bool = True, epoch: int = 3) -> RoutingTable:
    champion = ServingStatus(release="A", ready=True, urls=("http://a0",), replicas=2)
    challenger = ServingStatus(release="B", ready=True, urls=("http://b0",), replicas=1)
    weights = {"challenger": weight, "shadow": 0.0}
    urls = ("http://a1",) if equal else ()
    arms = desired_arms(champion, ROLLOUT, challenger, weights, None, urls)
    assert arms is not None
    return RoutingTable(service_id="s", epoch=epoch, salt="salt", arms=arms)


# ------------------------------------------------------------------------------------ routing


@pytest.mark.parametrize(
    ("weight", "champion", "baseline"),
    [(0.01, 0.98, 0.01), (0.2, 0.6, 0.2), (0.5, 0.0, 0.5), (0.51, 0.49, None), (1.0, 0.0, None)],
)
def test_the_table_of_each_share(weight: float, champion: float, baseline: float | None) -> None:
    found = table(weight)
    check_table(found)
    shares = {a.role: a.weight for a in found.arms}
    assert shares[ArmRole.CHAMPION] == pytest.approx(champion, abs=1e-12)
    assert shares.get(ArmRole.BASELINE) == baseline
    if baseline is not None:
        urls = {a.role: a.urls for a in found.arms}
        assert urls[ArmRole.BASELINE] == ("http://a1",)
        assert urls[ArmRole.CHAMPION] == ("http://a0",)
        assert found.arms[0].role is ArmRole.CHAMPION  # whoever pins its release gets that


def test_nobody_moves_but_to_the_slices_while_they_grow() -> None:
    before = {"champion"}
    for n in range(400):
        seen = [assign(table(w), f"user-{n}").arm.role for w in (0.01, 0.05, 0.2, 0.5)]
        changes = [a for a, b in pairwise(seen) if a is not b]
        assert {str(a) for a in changes} <= before
        assert assign(table(1.0), f"user-{n}").arm.role is ArmRole.CHALLENGER


def test_without_its_workers_there_is_no_slice() -> None:
    assert {a.role: a.weight for a in table(0.2, equal=False).arms} == {
        ArmRole.CHAMPION: 0.8,
        ArmRole.CHALLENGER: 0.2,
    }


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.2),
        ({"baseline": 0}, 0.0),
        ({"promoted_at": 5.0}, 0.0),
        ({"status": RolloutStatus.PAUSED}, 0.2),
        ({"status": RolloutStatus.ROLLED_BACK}, 0.0),
    ],
)
def test_when_there_is_a_slice(changes: dict[str, Any], share: float) -> None:
    assert equal_share(replace(ROLLOUT, **changes), {"challenger": 0.2}) == share


def test_its_workers_are_waited_for_and_its_proof_before_it_goes() -> None:
    steps = tuple(
        RolloutStep(kind=k, weight=w)
        for k, w in ((StepKind.SHADOW, 0.1), (StepKind.CANARY, 0.2), (StepKind.CANARY, 0.8))
    )
    entered = StepResult(kind=StepKind.SHADOW, weight=0.1, entered_at=0.0)
    rollout = replace(ROLLOUT, steps=steps, history=(entered,))
    facts = RolloutFacts(
        challenger_ready=True, guardrails=CONFIG.guardrails, baseline="0 of 1 workers"
    )
    assert missing_to_enter(rollout, 0, facts) == []
    assert missing_to_enter(rollout, 1, facts) == ["0 of 1 workers"]
    assert missing_to_enter(rollout, 2, facts) == ["end_to_end (no data)"]
    assert missing_to_enter(replace(rollout, baseline=0), 2, facts) == []


# ------------------------------------------------------------------------------------ evidence


def people(seed: int, **changes: Any) -> People:
    return People(rng=np.random.default_rng(seed), **changes)


def sliced(crowd: People, epochs: dict[float, int]) -> Iterator[ScoredRecord]:
    """The same traffic with three arms: of the champion's users those at the far end of the line
    are the baseline's."""
    far: dict[str, float] = {}
    for n, item in enumerate(crowd.records()):
        record = item.record
        mine = record.assigned_arm == CHALLENGER
        weight = round(record.probability if mine else 1 - record.probability, 12)
        luck = far.setdefault(record.unit, float(crowd.rng.random()))
        at = 20.0 * n  # everybody is answered before the next one comes
        arm, share = CHALLENGER, weight
        if not mine:
            near = luck * (1 - weight) < weight and weight <= 0.5
            arm = "baseline" if near else "champion"
            share = weight if near else round(1 - (2 if weight <= 0.5 else 1) * weight, 12)
        tries = tuple(replace(a, arm=arm, started_at=at) for a in record.attempts)
        yield replace(
            item,
            record=replace(
                record,
                at=at,
                attempts=tries,
                assigned_arm=arm,
                probability=share,
                routing_epoch=epochs[weight],
            ),
        )


TABLES = {n: table(w, epoch=n) for n, w in enumerate((0.01, 0.05, 0.2, 0.5, 0.8), start=1)}
EPOCHS = {0.01: 1, 0.05: 2, 0.2: 3, 0.5: 4, 0.8: 5}


def analysis(
    crowd: People | None = None, tables: dict[int, RoutingTable] | None = None, **config: Any
) -> BaselineAnalysis:
    settings = CONFIG.model_copy(update=config)

    def make(
        name: str,
        alpha: float,
        *,
        metrics: tuple[str, ...] | None = None,
        ratio_alpha: float = RATIO_ALPHA,
        judged: int | None = None,
    ) -> RolloutAnalysis:
        return RolloutAnalysis(
            name,
            settings,
            alpha,
            salt="salt",
            metrics=metrics,
            times=crowd.times() if crowd else None,
            settle_seconds=2.0,
            ratio_alpha=ratio_alpha,
            judged=judged,
        )

    known = TABLES if tables is None else tables
    return BaselineAnalysis(ROLLOUT, settings, make, known.get, settle_seconds=30.0)


def of(an: BaselineAnalysis, metric: str) -> MetricAssessment:
    return next(a for a in an.assess() if a.metric == metric)


def test_both_old_arms_count_as_the_old_release_and_only_the_slices_for_waits() -> None:
    crowd = people(1, requests=2400, weights=(0.05, 0.2, 0.5), error_rate=0.0)
    an = analysis(crowd)
    an.begin_step(1, 0.0, 0.5)
    seen = {"champion": 0, "baseline": 0, CHALLENGER: 0}
    for item in sliced(crowd, EPOCHS):
        seen[item.record.assigned_arm] += 1
        assert an.observe(item)
    an.advance(1e9)
    assert [a.metric for a in an.assess()] == list(CONFIG.guardrails)
    errors, waits = of(an, "errors"), of(an, "end_to_end")
    assert errors.units_champion == seen["champion"] + seen["baseline"]
    assert errors.units_challenger == seen[CHALLENGER]
    assert an._waits is not None
    assert an._waits.requests == [seen["baseline"], seen[CHALLENGER]]
    assert waits.units_champion <= seen["baseline"]
    assert waits.units_champion + waits.units_challenger == an._waits.blocks > 800
    assert an.sample_ratio_ok
    assert an._rest._ratio.expected == pytest.approx(seen[CHALLENGER], abs=60)
    assert errors.threshold == waits.threshold == pytest.approx(np.log(5 / 0.05))
    assert {a.assessment for a in an.assess()} <= {Assessment.NON_INFERIOR, Assessment.SUPERIOR}


def test_a_slower_one_is_found_by_its_waits() -> None:
    crowd = people(2, requests=1500, weights=(0.5,), worse=Worse(slower=1.25), error_rate=0.0)
    an = analysis(crowd)
    for item in sliced(crowd, EPOCHS):
        an.observe(item)
    an.advance(1e9)
    assert "end_to_end" in an.harmful
    assert of(an, "end_to_end").assessment is Assessment.HARMFUL


def test_queueing_alone_is_found_where_services_are_as_fast() -> None:
    crowd = people(3, requests=1500, weights=(0.5,), error_rate=0.0)
    an = analysis(crowd)
    for item in sliced(crowd, EPOCHS):
        record = item.record
        if record.assigned_arm == CHALLENGER:
            record = replace(record, seconds=record.seconds * 1.2)
        an.observe(replace(item, record=record))
    an.advance(1e9)
    assert an.harmful == ("end_to_end",)


def test_a_split_that_is_not_the_logged_one_is_found_between_the_slices() -> None:
    """The challenger's share is right among all; of the baseline's users two thirds are sent to
    the champion."""
    crowd = people(4, requests=3000, weights=(0.2,), error_rate=0.0)
    an = analysis(crowd)
    for n, item in enumerate(sliced(crowd, EPOCHS)):
        record = item.record
        if record.assigned_arm == "baseline" and n % 3:
            record = replace(record, assigned_arm="champion", probability=0.6)
        an.observe(replace(item, record=record))
    an.advance(1e9)
    assert an._rest.sample_ratio_ok
    assert not an.sample_ratio_ok
    assert "of the two equal slices" in an.sample_ratio_text


def test_what_cannot_be_known_says_nothing() -> None:
    crowd = people(5, requests=40, weights=(0.2,), error_rate=0.0)
    items = list(sliced(crowd, EPOCHS))
    strange = analysis(tables={})
    tripped = analysis()
    for item in items:
        assert not strange.observe(item)
        if item.record.assigned_arm == "champion":  # the breaker gave it the challenger's users
            record = replace(item.record, probability=0.8)
            assert not tripped.observe(replace(item, record=record))
    for an in (strange, tripped):
        assert {a.assessment for a in an.assess()} == {Assessment.NO_DATA}


def test_above_one_half_no_more_is_learned_of_waits() -> None:
    crowd = people(6, requests=200, weights=(0.8,), error_rate=0.0)
    an = analysis(crowd)
    an.begin_step(3, 0.0, 0.8)
    for item in sliced(crowd, EPOCHS):
        an.observe(item)
    an.advance(1e9)
    found = of(an, "end_to_end")
    assert (found.assessment, found.missing) == (
        Assessment.NO_DATA,
        "no equal baseline above 50%",
    )
    assert of(an, "errors").units_challenger > 100


def test_who_came_while_the_slice_was_away_is_left_out_for_good() -> None:
    away = {**TABLES, 3: table(0.2, equal=False, epoch=3)}
    crowd = people(7, requests=100, weights=(0.2,), error_rate=0.0)
    an = analysis(crowd, tables=away)
    for item in sliced(crowd, EPOCHS):
        record = item.record
        if record.assigned_arm != CHALLENGER:
            record = replace(record, assigned_arm="champion", probability=0.8)
        an.observe(replace(item, record=record))
    again = analysis(crowd, tables=away)
    again.restore(an.state())
    for item in sliced(replace_seed(7), {**EPOCHS, 0.2: 4}):
        record = replace(item.record, probability=0.5)
        if record.assigned_arm != "champion":
            again.observe(replace(item, record=record))
    again.advance(1e9)
    assert again._waits is not None
    assert again._waits.blocks == 0
    assert sum(again._waits.requests) > 20


def replace_seed(seed: int) -> People:
    return people(seed, requests=100, weights=(0.2,), error_rate=0.0)


def test_a_restart_changes_nothing() -> None:
    crowd = people(8, requests=600, weights=(0.05, 0.2, 0.5))
    items = list(sliced(crowd, EPOCHS))
    whole, parted = analysis(), analysis()
    for n, item in enumerate(items):
        for an in (whole, parted):
            an.observe(item)
        if n % 83 == 0:
            state = json.loads(json.dumps(parted.state()))
            parted = analysis()
            parted.restore(state)
    assert json.dumps(parted.state()) == json.dumps(whole.state())
    assert parted.assess() == whole.assess()
    assert "user-" not in json.dumps(whole.state())
    with pytest.raises(StorageError):
        whole.restore(whole._rest.state())


def test_a_table_whose_slices_differ_has_none() -> None:
    """One that somebody else made."""
    found = table(0.2)
    uneven = {"champion": 0.7, "baseline": 0.1}
    arms = tuple(replace(a, weight=uneven.get(a.name, a.weight)) for a in found.arms)
    an = analysis(tables={3: replace(found, arms=arms)})
    crowd = people(9, requests=50, weights=(0.2,), error_rate=0.0)
    for item in sliced(crowd, EPOCHS):
        if item.record.assigned_arm == "baseline":
            assert not an.observe(item)
    assert isinstance(found.arms[0], Arm)
    assert an._waits is not None
    assert an._waits.requests == [0, 0]
