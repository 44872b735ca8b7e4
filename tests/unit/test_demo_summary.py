"""The demo says which part of the story did not happen."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from intonaco.demo.data import NAMES
from intonaco.demo.strategies import TELLINGS
from intonaco.demo.summary import missing_parts

WHOLE: dict[str, Any] = {
    "quick": False,
    "strategy": "canary",
    "releases": [{"release_id": "b", "role": "champion"}, {"release_id": "a", "role": "previous"}],
    "drift": {"false_alarms_before": 0, "quiet_requests_armed": 320, "requests_to_detect": 40},
    "diagnosis": {"cause": "concept_drift"},
    "plan": {"action": "fine_tune"},
    "candidates": [
        {"name": "with-replay", "verdict": "pass"},
        {"name": "without-replay", "verdict": "fail"},
    ],
    "accuracy": {
        "before": {str(d): 0.98 if d < 5 else 0.02 for d in range(len(NAMES))},
        "after": {str(d): 0.97 for d in range(len(NAMES))},
    },
    "rollout": {
        "status": "promoted",
        "challenger": "b",
        "steps": [{"kind": "shadow", "weight": 0.5}]
        + [{"kind": "canary", "weight": w} for w in (0.05, 0.25, 0.5, 1.0)]
        + [{"kind": "promote", "weight": 0.0}, {"kind": "bake", "weight": 0.0}],
    },
    "rollbacks": [
        {"reason": "the breaker tripped", "last_attempt_after_trip_seconds": 0.1},
        {"reason": "harmful: slow +90 %", "last_attempt_after_trip_seconds": 0.1},
    ],
    "requests": {"total": 2000, "failed": 0, "failed_elsewhere": 0, "lost": 0},
    "tenures": [{"release_id": "a"}, {"release_id": "b"}],
}


def test_a_whole_story_misses_nothing() -> None:
    assert missing_parts(WHOLE) == []


def test_a_quick_story_has_coarser_targets() -> None:
    lower = copy.deepcopy(WHOLE)
    lower["accuracy"]["after"] |= {str(d): 0.93 for d in range(5)}
    assert missing_parts(lower) != []
    assert missing_parts(lower | {"quick": True}) == []


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("releases",), [], "no release"),
        (("drift",), None, "no drift"),
        (("drift", "false_alarms_before"), 1, "before users changed"),
        (("drift", "quiet_requests_armed"), 12, "only 12"),
        (("drift", "requests_to_detect"), 151, "after 151 requests"),
        (("diagnosis",), None, "diagnosis was None"),
        (("diagnosis", "cause"), "data_drift", "data_drift"),
        (("plan", "action"), "watch", "not a fine-tune"),
        (("candidates", 0, "verdict"), "inconclusive", "with replay"),
        (("candidates", 1, "verdict"), "pass", "without replay"),
        (("accuracy", "before", "7"), 0.9, "before on five"),
        (("accuracy", "after", "0"), 0.5, "after on zero"),
        (("rollout", "steps"), [], "the rollout's steps were"),
        (("rollout", "status"), "rolled_back", "was not promoted but rolled_back"),
        (("rollbacks",), [], "0 rollbacks"),
        (("rollbacks", 0, "last_attempt_after_trip_seconds"), 2.0, "still had traffic"),
        (
            ("rollbacks", 1, "reason"),
            "aborted",
            "the second rollback was for another reason: aborted",
        ),
        (("requests", "failed"), 1, "1 requests failed"),
        (("requests", "lost"), 2, "2 requests were lost"),
        (("requests", "total"), 0, "no traffic"),
    ],
)
def test_each_part_is_missed(path: tuple[Any, ...], value: Any, word: str) -> None:
    broken = copy.deepcopy(WHOLE)
    target: Any = broken
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert any(word in text for text in missing_parts(broken)), missing_parts(broken)


def told(strategy: str, **changes: Any) -> dict[str, Any]:
    """The story as it goes with that strategy."""
    telling = TELLINGS[strategy]
    s = copy.deepcopy(WHOLE) | {"strategy": strategy}
    steps = [{"kind": kind, "weight": weight} for kind, weight in telling.steps]
    status = "promoted" if telling.promotes else "observed"
    s["rollout"] |= {"status": status, "steps": [{"kind": "shadow", "weight": 0.5}, *steps]}
    s["rollbacks"] = s["rollbacks"][: telling.drills]
    if not telling.promotes:
        s["releases"] = [{"release_id": "a", "role": "champion"}]
        s["tenures"] = s["tenures"][:1]
    for name, value in changes.items():
        s[name] |= value
    return s


@pytest.mark.parametrize("strategy", TELLINGS)
def test_a_whole_story_of_each_strategy(strategy: str) -> None:
    assert missing_parts(told(strategy)) == []


def test_who_only_watches_promotes_nobody_and_who_is_alone_may_hurt() -> None:
    assert missing_parts(told("shadow_only", rollout={"status": "promoted"}))
    crowned = told("shadow_only") | {"tenures": WHOLE["tenures"]}
    assert any("somebody became champion" in text for text in missing_parts(crowned))
    # In place there is nobody to step in for the faulty release, but for whatever else fails.
    assert missing_parts(told("in_place", requests={"failed": 40})) == []
    assert missing_parts(told("in_place", requests={"failed": 40, "failed_elsewhere": 1}))
    assert missing_parts(told("rolling", requests={"failed": 1}))
