"""Feedback in mature cohorts: what counts, when, and how often for one unit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.content import feedback
from tests.traffic import Traffic

from intonaco.config import Maturity, Monitoring, Signal
from intonaco.monitoring.cohorts import EXPLICIT, GRACE_SECONDS, Cohorts, Mature
from intonaco.monitoring.monitor import Monitor
from intonaco.types import Feedback, Finding, ScoredRecord

DAY = 86_400.0
HOUR = 3_600.0


def cohorts(**settings: float) -> Cohorts:
    return Cohorts(Maturity.model_validate({"mature_after_s": DAY, **settings}))


def follow(made: Cohorts, items: Sequence[ScoredRecord], topic: str | None = "0") -> None:
    for item in items:
        made.made(item.record.request_id, item.record.at, item.record.unit, topic)


def close(made: Cohorts, item: ScoredRecord) -> list[Mature]:
    """Up to the maturity of that image."""
    return list(made.close(item.record.at + DAY + GRACE_SECONDS))


def users(n: int, **record: Any) -> list[ScoredRecord]:
    """Items a minute apart, each of another user unless ``record`` says who."""
    base = Traffic().ask()
    return [
        replace(
            base,
            record=replace(
                base.record,
                request_id=f"q{k}",
                at=1_700_000_000.0 + 60 * k,
                **{"unit": f"u{k}", **record},
            ),
        )
        for k in range(n)
    ]


def test_an_image_counts_when_its_time_is_over_and_not_before() -> None:
    made, [first, second] = cohorts(), users(2)
    follow(made, [first, second])
    made.heard(feedback(first, 5.0, vote="up"), None)
    made.heard(feedback(second, DAY - 1.0, vote="down"), None)
    assert list(made.close(first.record.at + DAY)) == []
    [one] = close(made, first)
    assert (one.vote, one.topic, one.made_at) == (1.0, "0", first.record.at)
    [two] = close(made, second)
    assert two.vote == 0.0
    assert len(made) == 0


def test_what_comes_late_or_of_others_changes_nothing() -> None:
    made, [item] = cohorts(), users(1)
    follow(made, [item])
    made.heard(feedback(item, DAY + 2.0, vote="down"), None)
    assert made.late == 1
    for other in (
        feedback(item, 1.0, vote="down", assigned_arm="challenger:x"),
        feedback(item, 1.0, vote="down", assigned_arm="pinned"),
        feedback(item, 1.0, vote="down", release="b" * 64),
    ):
        made.heard(other, item.record.served_by)
    made.heard(feedback(item, 1.0, kind="unheard of"), None)
    made.heard(feedback(item, 1.0, vote="6"), None)
    [image] = close(made, item)
    assert image.said == 0
    assert image.vote is None


def test_feedback_that_is_read_before_its_record_waits_for_it() -> None:
    made, [item, stranger] = cohorts(), users(2)
    made.heard(feedback(item, 3.0, vote="up"), None)
    made.heard(feedback(stranger, 3.0, vote="up"), None)
    made.heard(feedback(item, 4.0, kind="download"), None)
    follow(made, [item])
    [image] = close(made, item)
    assert image.vote == 1.0
    assert image.said & ~EXPLICIT
    close(made, stranger)
    assert made.unmatched == 1


def test_the_order_of_two_logs_changes_nothing() -> None:
    items = users(40)
    random = np.random.default_rng(0)
    said = [feedback(i, float(random.uniform(1, 1e5)), vote="up") for i in items]
    said += [feedback(i, float(random.uniform(1, 1e5)), kind="download") for i in items[:20]]
    results = []
    for seed in range(4):
        made, order = cohorts(), list(said)
        if seed:
            np.random.default_rng(seed).shuffle(order)
        for one in order[:30]:
            made.heard(one, None)
        follow(made, items)
        for one in order[30:]:
            made.heard(one, None)
        results.append((close(made, items[-1]), made.late))
    assert results[0] == results[1] == results[2] == results[3]
    assert 0 < results[0][1] < 60


def test_one_unit_counts_so_often_in_a_cohort() -> None:
    made = cohorts(per_unit=3)
    robot, others = users(50, unit="robot"), users(5)
    others = [
        replace(i, record=replace(i.record, request_id=f"o{n}")) for n, i in enumerate(others)
    ]
    follow(made, [*others, *robot])
    for item in (*robot, *others):
        made.heard(feedback(item, 10.0, vote="down"), None)
    closed = close(made, robot[-1])
    assert sum(m.vote_counts for m in closed if m.unit == "robot") == 3
    assert sum(m.image_counts for m in closed if m.unit == "robot") == 3
    assert sum(m.vote_counts for m in closed if m.unit != "robot") == 5
    tomorrow = replace(robot[0].record, at=robot[0].record.at + 2 * DAY)
    follow(made, [replace(robot[0], record=tomorrow)])
    [again] = close(made, replace(robot[0], record=tomorrow))
    assert again.image_counts


def test_memory_is_bounded_by_a_fair_sample() -> None:
    """A tenth of the images that fit is kept, whatever was said of them, and room is used again."""
    made = cohorts(kept=500)
    items = users(20_000)
    random = np.random.default_rng(0)
    up = random.random(len(items)) < 0.7
    for item, liked in zip(items, up, strict=True):
        follow(made, [item])
        made.heard(feedback(item, 1.0, vote="up" if liked else "down"), None)
        assert len(made) <= 500
    assert made.share <= 1 / 32
    closed = close(made, items[-1])
    votes = [m.vote for m in closed]
    assert len(closed) > 150
    assert None not in votes
    assert np.mean(votes) == pytest.approx(up.mean(), abs=4 * 0.46 / len(votes) ** 0.5)  # type: ignore[arg-type]
    for _ in range(12):
        close(made, items[-1])
    assert made.share == 1.0
    # votes for images that nobody ever makes known do not fill the memory either
    for item in items[:3_000]:
        made.heard(feedback(item, 1.0, vote="up"), None)
    assert len(json.dumps(made.state())) < 60_000
    assert made.unmatched >= 2_500


def test_two_votes_that_contradict_each_other_are_none() -> None:
    made, [item] = cohorts(), users(1)
    follow(made, [item])
    made.heard(feedback(item, 1.0, vote="up"), None)
    made.heard(feedback(item, 1.0, vote="down"), None)
    [image] = close(made, item)
    assert image.vote is None
    assert image.stars is None


# ------------------------------------------------------------------------------- in the monitor

NAMES = ("thumbs", "stars", "regenerate", "download", "response_rate")
SIGNALS = {name: Signal.model_validate({"of": name, "reference": 200}) for name in NAMES}


def monitor(*names: str) -> Monitor:
    config = Monitoring(
        requests_between_false_alarms=5_000,
        signals={n: SIGNALS[n] for n in names or SIGNALS},
        feedback=Maturity(mature_after_s=HOUR),
    )
    return Monitor("digits", config)


def day(
    traffic: Traffic,
    random: np.random.Generator,
    n: int,
    *,
    up: float = 0.8,
    voting: float = 0.5,
    after: float = 600.0,
    down_after: float | None = None,
    kind: str = "vote",
) -> Iterator[tuple[float, ScoredRecord | Feedback]]:
    """What is written to the two logs, each with its time. Users wait ``after`` s in the mean, who
    votes down ``down_after``."""
    for _ in range(n):
        item = traffic.ask()
        traffic.at += 10.0
        yield item.record.at, item
        if random.random() < voting:
            likes = random.random() < up
            wait = float(random.exponential(after if likes else down_after or after))
            vote: str | None = "up" if likes else "down"
            if kind == "stars":
                vote = str(int(np.clip(round(random.normal(1 + 4 * up, 1.0)), 1, 5)))
            sign = kind in ("regenerate", "download")
            how: dict[str, Any] = {"kind": kind} if sign else {"vote": vote}
            said = feedback(item, wait, **how)
            yield said.at, said


def run(made: Monitor, log: Iterator[tuple[float, ScoredRecord | Feedback]]) -> list[Finding]:
    """In the order of time, as the two logs are read."""
    found = []
    for at, event in sorted(log, key=lambda e: e[0]):
        if isinstance(event, Feedback):
            found += made.hear(event, at)
        else:
            found += made.observe(event)
    return found


@pytest.mark.parametrize(
    ("signal", "before", "after"),
    [
        ("thumbs", {"up": 0.8}, {"up": 0.5}),
        ("stars", {"up": 0.7, "kind": "stars"}, {"up": 0.4, "kind": "stars"}),
        (
            "regenerate",
            {"voting": 0.1, "kind": "regenerate"},
            {"voting": 0.3, "kind": "regenerate"},
        ),
        ("download", {"voting": 0.5, "kind": "download"}, {"voting": 0.25, "kind": "download"}),
        ("response_rate", {"voting": 0.5}, {"voting": 0.25}),
    ],
)
def test_each_sign_is_noticed_and_quiet_before(
    signal: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    traffic, random, made = Traffic(seed=1), np.random.default_rng(1), monitor(signal)
    assert run(made, day(traffic, random, 1_500, **before)) == []
    findings = run(made, day(traffic, random, 1_200, **after))
    assert [f.signal for f in findings] == [signal]
    finding = findings[0]
    wanted = "up" if signal == "regenerate" else "down"
    assert finding.direction == wanted
    assert finding.facts["mature_after_s"] == HOUR
    assert finding.text.split(" from ")[0].endswith("rose" if wanted == "up" else "fell")


def test_who_votes_quickly_does_not_decide() -> None:
    """Those who like it vote in a minute, those who do not in twenty: counted as they come, a new
    service would look better than it is and then fall. In mature cohorts it does not."""
    traffic, random, made = Traffic(seed=2), np.random.default_rng(2), monitor("thumbs")
    log = day(traffic, random, 2_500, up=0.6, after=60.0, down_after=1_200.0)
    assert run(made, log) == []
    [status] = made.status()
    assert status.armed
    assert status.reference == pytest.approx(0.6 / (0.6 + 0.4 * 0.95), abs=0.09)


def test_a_users_vote_needs_an_image_of_the_champions_own() -> None:
    traffic, made = Traffic(seed=3), monitor("thumbs")
    items = [traffic.ask(arm="challenger:x") for _ in range(30)]
    items += [traffic.ask(failing=1.0) for _ in range(30)]
    items += [traffic.ask(probe=True) for _ in range(30)]
    for item in items:
        made.observe(item)
        made.hear(feedback(item, 1.0, vote="up"), item.record.at)
    assert made.waiting == 0
    assert made.mature(traffic.at + 2 * HOUR) == []
    assert made.status()[0].requests == 0


def test_time_alone_makes_images_mature() -> None:
    traffic, made = Traffic(seed=3), monitor("thumbs")
    for _ in range(200):
        item = traffic.ask()
        made.hear(feedback(item, 1.0, vote="up"), item.record.at)
        made.observe(item)
    assert made.waiting > 100
    made.mature(traffic.at + HOUR + GRACE_SECONDS)
    assert made.waiting == 0
    assert made.status()[0].requests > 100


@pytest.mark.parametrize("cut", [500, 1_700, 3_000])
def test_restored_goes_on_exactly(cut: int) -> None:
    traffic, random = Traffic(seed=4), np.random.default_rng(4)
    log = sorted(
        [*day(traffic, random, 1_500), *day(traffic, random, 1_000, up=0.4)], key=lambda e: e[0]
    )
    one = monitor()
    run(one, iter(log[:cut]))
    two = monitor()
    two.restore(json.loads(json.dumps(one.state())))
    assert json.dumps(one.state()) == json.dumps(two.state())
    findings = run(one, iter(log[cut:]))
    assert run(two, iter(log[cut:])) == findings
    assert json.dumps(one.state()) == json.dumps(two.state())
    assert any(f.signal == "thumbs" for f in findings) or cut == 3_000  # it fired before


def test_a_new_champion_begins_with_feedback_of_its_own() -> None:
    traffic, random, made = Traffic(seed=5), np.random.default_rng(5), monitor("thumbs")
    run(made, day(traffic, random, 600))
    waiting = made.waiting
    assert waiting > 0
    made.rebaseline("b" * 64)
    assert made.waiting == 0
    run(made, day(traffic, random, 300))  # of the old release
    assert made.status()[0].requests == 0


def test_where_nothing_is_made_of_feedback_none_is_remembered() -> None:
    made = Monitor("digits", Monitoring(signals={"errors": Signal(of="errors")}))
    traffic = Traffic(seed=6)
    for item in traffic.many(20):
        made.hear(feedback(item, 1.0, vote="up"), item.record.at)
        made.observe(item)
    assert made.waiting == 0
