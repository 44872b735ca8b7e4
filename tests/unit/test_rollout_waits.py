"""Waits end to end, challenger against the equal slice: how often an equal challenger is accused
when queues make waits alike, and whether a slower one is found.

Two queues of equal capacity are simulated, request by request, under a load that drifts, with a
look after every request. Error budget: alpha 0.05 over four metrics and one more share, as a
rollout with ``errors``, ``latency``, ``clip_score`` and ``end_to_end`` has it, and three standard
errors of the number of runs; fixed seeds.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from intonaco.errors import StorageError
from intonaco.rollout.outcomes import key_of
from intonaco.rollout.waits import Wait, Waits
from intonaco.stats import LatencyTest

ALPHA = 0.05 / 5
PERIOD = 400  # requests in which the load rises and falls once


@dataclass(frozen=True, slots=True, kw_only=True)
class Queues:
    """``load``: of each worker, on average; it drifts by ``drift`` of itself. ``slower``: how many
    times as long the challenger serves. ``heavy``: users who ask for 30 % of all."""

    seed: int
    requests: int
    load: float = 0.4
    drift: float = 0.5
    slower: float = 1.0
    workers: int = 1
    heavy: int = 0

    def waits(self) -> Iterator[Wait]:
        """In the order in which requests came; a service takes a second on average."""
        rng = np.random.default_rng([5, self.seed])
        free = [[0.0] * self.workers, [0.0] * self.workers]
        theirs = rng.random(self.heavy) < 0.5
        now = 0.0
        for n in range(self.requests):
            wave = 1 + self.drift * math.sin(2 * math.pi * n / PERIOD)
            now += float(rng.exponential(1 / (2 * self.workers * self.load * wave)))
            user, challenger = self.heavy + n, bool(rng.random() < 0.5)
            if self.heavy and rng.random() < 0.3:
                user = int(rng.integers(self.heavy))
                challenger = bool(theirs[user])
            took = float(np.exp(0.2 * rng.normal() - 0.02)) * (self.slower if challenger else 1.0)
            end = max(now, heapq.heappop(free[challenger])) + took
            heapq.heappush(free[challenger], end)
            yield Wait(
                start=now,
                seq=n,
                end=end,
                unit=key_of("salt", f"user-{user}"),
                challenger=challenger,
                request_class="32x32x10",
                seconds=end - now,
            )


def fresh(tolerance: float = 0.05, settle: float = 60.0) -> Waits:
    return Waits(tolerance=tolerance, margin=0.1, settle_seconds=settle, ratio_alpha=0.0005)


def accused_after(queues: Queues, tolerance: float = 0.05) -> int | None:
    """Requests until harm is found, with a look after each; None if it never is."""
    waits = fresh(tolerance)
    for n, wait in enumerate(queues.waits()):
        waits.take(wait)
        if waits.evidence.harm[1] >= math.log(1 / ALPHA):
            return n
    return None


def false_alarms(runs: int, requests: int, record: Callable[[str, object], None]) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "40 % load, drifting by half": {},
        "60 % load, no tolerance": {"load": 0.6, "drift": 0.3, "tolerance": 0.0},
        "three workers each": {"workers": 3},
        "six users ask for 30 %": {"heavy": 6},
    }
    limit = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    for name, how in kinds.items():
        tolerance = how.pop("tolerance", 0.05)
        accused = sum(
            accused_after(Queues(seed=seed, requests=requests, **how), tolerance) is not None
            for seed in range(runs)
        )
        record(name, f"{accused / runs:.4f} accused of {runs} equal ones (limit {limit:.4f})")
        assert accused / runs <= limit, name


def test_an_equal_challenger_is_rarely_accused(
    record_property: Callable[[str, object], None],
) -> None:
    false_alarms(12, 600, record_property)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_an_equal_challenger_is_rarely_accused_full(
    record_property: Callable[[str, object], None],
) -> None:
    false_alarms(2000, 1500, record_property)


def test_bets_on_each_request_would_not_hold() -> None:
    """Why blocks: what is right for service times accuses every other equal queue at 70 % load."""
    accused = 0
    for seed in range(12):
        test = LatencyTest(0.05, margin=0.1)
        for wait in Queues(seed=seed, requests=600, load=0.7, drift=0.3).waits():
            seconds = wait.end - wait.start
            test.take(seconds, challenger=wait.challenger, weight=0.5)
            if not wait.challenger:
                test.learn(seconds)
        accused += test.peak_slower >= math.log(1 / ALPHA)
    assert accused >= 5


@pytest.mark.parametrize("seed", range(4))
def test_a_slower_one_is_found(seed: int) -> None:
    """A fifth more at each request, which its queue makes more of."""
    found = accused_after(Queues(seed=seed, requests=3000, slower=1.2))
    assert found is not None


def test_an_equal_one_is_proven_within_the_margin() -> None:
    waits = fresh()
    for wait in Queues(seed=1, requests=6000, load=0.2, drift=0.2).waits():
        waits.take(wait)
    now, highest = waits.evidence.within
    assert highest >= math.log(1 / 0.05)
    assert now > 0


# ------------------------------------------------------------------------------------ what counts


def wait(start: float, seconds: float, *, challenger: bool, unit: str, seq: int = 0) -> Wait:
    return Wait(
        start=start,
        seq=seq,
        end=start + seconds,
        unit=key_of("salt", unit),
        challenger=challenger,
        request_class="c",
        seconds=seconds,
    )


def known(settle: float = 5.0) -> Waits:
    waits = fresh(settle=settle)
    for n in range(40):
        waits.evidence.learn(1.0 + n / 100, "c")
    return waits


def test_one_request_of_a_block_is_judged() -> None:
    waits = known()
    for n in range(6):  # each comes before the one before is answered
        waits.take(wait(n * 0.9, 1.0, challenger=n % 2 == 0, unit=f"u{n}", seq=n))
    waits.take(wait(20.0, 1.0, challenger=True, unit="later", seq=7))
    waits.advance(40.0)
    assert waits.blocks == 2
    assert sum(waits.evidence.units) == 2
    assert waits.requests == [3, 4]
    assert sum(waits.ratio.units) == 7  # the split is tested on everybody


def test_each_user_once() -> None:
    waits = known()
    for n in range(5):
        waits.take(wait(n * 10.0, 1.0, challenger=True, unit="ann", seq=n))
    waits.advance(100.0)
    assert waits.blocks == 1
    assert waits.requests == [0, 5]


def test_who_met_a_release_before_is_left_out() -> None:
    waits = known()
    waits.leave_out(key_of("salt", "ann"))
    waits.take(wait(0.0, 1.0, challenger=True, unit="ann"))
    waits.advance(100.0)
    assert waits.blocks == 0
    assert waits.requests == [0, 1]


def test_a_request_without_a_time_keeps_a_worker_busy() -> None:
    waits = known()
    failed = replace(wait(0.0, 30.0, challenger=True, unit="ann"), seconds=None)
    waits.take(failed)
    waits.take(wait(5.0, 1.0, challenger=False, unit="bob", seq=1))
    waits.take(wait(20.0, 1.0, challenger=True, unit="cat", seq=2))
    waits.advance(100.0)
    assert waits.blocks == 1


def test_slices_that_ask_unequally_often_are_not_compared() -> None:
    waits = known()
    for n in range(400):  # one user of the challenger's asks as much as all others
        waits.take(
            wait(n * 3.0, 1.0, challenger=n % 4 > 0, unit="much" if n % 2 else f"u{n}", seq=n)
        )
    waits.advance(2000.0)
    assert not waits.even
    assert waits.blocks < 60


def test_any_order_of_arrival_gives_the_same() -> None:
    """Within the time in which records may come late."""
    events = list(Queues(seed=3, requests=300, slower=1.3).waits())
    one, other = fresh(), fresh()
    for event in events:
        one.take(event)
    for event in sorted(events, key=lambda w: w.end):
        other.take(event)
    for waits in (one, other):
        waits.advance(1e6)
    assert one.state() == other.state()


def test_a_restart_changes_nothing() -> None:
    events = list(Queues(seed=4, requests=400).waits())
    whole, parted = fresh(), fresh()
    for n, event in enumerate(events):
        whole.take(event)
        parted.take(event)
        if n % 57 == 0:
            state = json.loads(json.dumps(parted.state()))
            parted = fresh()
            parted.restore(state)
    assert parted.state() == whole.state()
    with pytest.raises(StorageError):
        fresh(tolerance=0.1).restore(whole.state())
