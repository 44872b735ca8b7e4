"""What an analysis says of its metrics, made up for tests of what is done about it."""

from __future__ import annotations

from collections.abc import Sequence

from intonaco.types import Assessment, MetricAssessment


def assessed(metrics: Sequence[str], found: Assessment) -> tuple[MetricAssessment, ...]:
    """The same of every metric."""
    return tuple(
        MetricAssessment(
            metric=metric,
            assessment=found,
            difference=0.0,
            interval=(-0.01, 0.01),
            margin=0.05,
            evidence_harm=1.0,
            evidence_non_inferior=5.0,
            threshold=4.4,
            units_challenger=50,
            units_champion=50,
        )
        for metric in metrics
    )
