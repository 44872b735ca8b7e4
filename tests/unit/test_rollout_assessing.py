"""What is proven cuts the interval, so that figures and verdict never speak against each other."""

from __future__ import annotations

from typing import Any

import pytest

from intonaco.rollout.assessing import narrowed
from intonaco.rollout.words import brief, stands
from intonaco.types import Assessment, MetricAssessment


def assessment(metric: str, found: str, interval: Any, **changes: Any) -> MetricAssessment:
    return MetricAssessment(
        metric=metric,
        assessment=Assessment(found),
        difference=0.0,
        interval=interval,
        margin=0.1,
        evidence_harm=0.0,
        evidence_non_inferior=3.0,
        threshold=4.4,
        units_challenger=100,
        units_champion=100,
        **changes,
    )


@pytest.mark.parametrize(
    ("metric", "found", "interval", "kept"),
    [
        ("latency", "non_inferior", (-0.5, 0.9), (-0.5, 0.1)),
        ("latency", "non_inferior", (-0.5, 0.04), (-0.5, 0.04)),
        ("latency", "superior", (-0.5, 0.9), (-0.5, 0.0)),
        ("latency", "harmful", (-0.5, 0.9), (0.02, 0.9)),
        ("latency", "undecided", (-0.5, 0.9), (-0.5, 0.9)),
        ("latency", "no_data", (-0.5, 0.9), (-0.5, 0.9)),
        ("clip_score", "non_inferior", (-0.5, 0.9), (-0.1, 0.9)),
        ("clip_score", "superior", (-0.5, 0.9), (0.0, 0.9)),
        ("clip_score", "harmful", (-0.5, 0.9), (-0.5, -0.02)),
        ("latency", "non_inferior", (0.2, 0.9), (0.2, 0.9)),  # nothing would be left
        ("latency", "non_inferior", None, None),
    ],
)
def test_an_interval_ends_where_a_proof_ends_it(
    metric: str, found: str, interval: Any, kept: Any
) -> None:
    assert narrowed(assessment(metric, found, interval), 0.02).interval == kept


def test_what_is_proven_is_not_said_to_be_worse_than_the_margin() -> None:
    found = narrowed(assessment("end_to_end", "non_inferior", (-0.577, 0.935)), 0.0)
    assert stands(found) == "shown to be no worse than by 10.0%; the margin is 10.0%"
    assert brief(found) == "end_to_end -57.7% to +10.0% (margin 10.0%)"


@pytest.mark.parametrize(("found", "said"), [("superior", "better"), ("harmful", "worse")])
def test_an_interval_over_no_difference_gives_no_least_amount(found: str, said: str) -> None:
    assert stands(assessment("latency", found, (-0.5, 0.9))) == f"shown to be {said}"


def test_of_what_is_over_nothing_is_still_to_come() -> None:
    assert "yet" not in stands(assessment("errors", "undecided", (-0.5, 0.9)), over=True)
    assert "yet" not in stands(assessment("errors", "undecided", None), over=True)
    none = assessment("errors", "no_data", None)
    assert "yet" in stands(none)
