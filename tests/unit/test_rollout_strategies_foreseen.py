"""Planning looks at the very steps that a rollout will take."""

from __future__ import annotations

import pytest

from intonaco.config import parse
from intonaco.rollout.strategies import foreseen
from intonaco.types import StepKind


@pytest.mark.parametrize(
    ("rollout", "replicas", "shares"),
    [
        ("{strategy: canary, steps: [{weight: 0.2}, {weight: 1.0}]}", 1, [0.2, 1.0]),
        ("{strategy: rolling}", 4, [0.25, 0.5, 0.75, 1.0]),
        ("{strategy: rolling}", 1, [1.0]),
        ("{strategy: blue_green}", 1, [1.0]),
        ("{strategy: in_place, force: true}", 1, []),
        (
            "{strategy: ab, ab: {metric: errors, split: {champion: 0.4, challenger: 0.6}}}",
            1,
            [0.6, 1.0],
        ),
    ],
)
def test_the_shares_of_users_that_are_to_come(
    rollout: str, replicas: int, shares: list[float]
) -> None:
    config = parse(f"service: s\nserving: {{replicas: {replicas}}}\nrollout: {rollout}")
    steps = foreseen(config)
    assert [s.weight for s in steps if s.kind is StepKind.CANARY] == shares
