"""The fair queue, batch sizes and the forecast: pure, so simulated."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonaco.messages import BACKGROUND_UNIT
from intonaco.serving.worker.fair_queue import FairQueue
from intonaco.serving.worker.forecast import (
    FRESH_BATCHES,
    FRESH_S,
    BatchTimes,
    seconds_until_done,
)
from intonaco.serving.worker.sizes import FORGET_S, Sizes

SIZES = (1, 2, 4, 8)


@dataclass(eq=False)
class Job:
    unit: str
    key: str
    n: int = 0

    def __repr__(self) -> str:
        return f"{self.unit}/{self.key}{self.n}"


def eight(key: Hashable) -> int:
    return 8


def one(key: Hashable) -> int:
    return 1


def filled(*jobs: Job) -> FairQueue[Job]:
    queue = FairQueue[Job]()
    for job in jobs:
        queue.add(job)
    return queue


def taken(queue: FairQueue[Job], size: Callable[[Hashable], int] = eight) -> list[Job]:
    batch = queue.next(size)
    queue.take(batch)
    return batch


# ---------------------------------------------------------------------- fairness


@given(st.data())
def test_every_job_is_served_within_its_bound(data: st.DataObject) -> None:
    """Arrivals of any users and keys between any batches. A job with n of its own user's ahead
    waits for at most n + 1 turns of the ring of users."""
    size = data.draw(st.integers(1, 3))
    queue = FairQueue[Job]()
    bound: dict[Job, int] = {}  # batches it may still wait for
    ahead: dict[Job, int] = {}
    done: list[Job] = []
    arrivals = data.draw(
        st.lists(
            st.one_of(st.none(), st.tuples(st.sampled_from("uvw"), st.sampled_from("ab"))),
            max_size=60,
        )
    )

    def serve() -> None:
        oldest = {j.unit: j for j in reversed(list(queue))}
        batch = queue.next(lambda key: size)
        assert batch[0] is oldest[batch[0].unit], "the leader is its user's oldest"
        assert {j.key for j in batch} == {batch[0].key}
        assert len(batch) <= size
        queue.take(batch)
        done.extend(batch)
        for job in queue:
            bound[job] -= 1
            assert bound[job] > 0, f"{job} waited for {ahead[job] + 1} turns of three users"

    for n, arrival in enumerate(arrivals):
        if arrival is None:
            if len(queue):
                serve()
        else:
            job = Job(*arrival, n)
            ahead[job] = sum(j.unit == job.unit for j in queue)
            bound[job] = (ahead[job] + 1) * 3  # there are three users
            if not ahead[job]:  # tighter: those who stand in the ring now, once each
                bound[job] = queue.users + 1
            queue.add(job)
    while len(queue):
        serve()
    assert len(done) == len(set(done)) == sum(a is not None for a in arrivals)
    for unit in "uvw":
        for key in "ab":
            own = [j.n for j in done if (j.unit, j.key) == (unit, key)]
            assert own == sorted(own), "within a user and key, oldest first"


def test_fifty_of_one_user_do_not_delay_the_one_of_another() -> None:
    crowd = [Job("crowd", "a", n) for n in range(50)]
    single, other_key = Job("single", "a"), Job("third", "b")
    queue = filled(*crowd, single, other_key)
    first = taken(queue)
    assert first == [crowd[0], single, *crowd[1:7]], "one of each before anybody's second"
    assert taken(queue) == [other_key], "and the next turn is another user's"
    assert taken(queue) == crowd[7:15]


def test_users_without_end_starve_nobody() -> None:
    """A new user arrives before every batch, all with one popular key; the unpopular one waits
    for those before it only."""
    queue = filled(*(Job(f"early{n}", "popular") for n in range(5)))
    rare = Job("rare", "unpopular")
    queue.add(rare)
    waited = 0
    while rare not in taken(queue, one):
        waited += 1
        for n in range(3):
            queue.add(Job(f"late{waited}.{n}", "popular"))
    assert waited == 5


def test_riding_along_does_not_cost_the_turn_of_an_older_job() -> None:
    """One user's stream of popular requests must not push back their own unpopular one."""
    rare = Job("u", "unpopular")
    queue = filled(Job("v", "popular"), rare)
    batches: list[list[Job]] = []
    for n in range(1, 3):
        queue.add(Job("u", "popular", n))
        queue.add(Job("v", "popular", n))
        batches.append(taken(queue, lambda key: 2))
    assert [j.unit for j in batches[0]] == ["v", "u"], "it rides along"
    assert batches[1] == [rare], "and the next turn is still its own"


def test_more_users_than_places_take_turns() -> None:
    jobs = [Job(f"u{n}", "a", k) for k in range(2) for n in range(6)]
    queue = filled(*jobs)
    order = [j for _ in range(3) for j in taken(queue, lambda key: 4)]
    assert [j.unit for j in order] == [f"u{n}" for n in (*range(6), *range(6))]


def test_without_a_unit_each_request_is_a_user_of_its_own() -> None:
    jobs = [Job("", "a", n) for n in range(3)]
    assert filled(*jobs).users == 3
    queue = filled(*jobs)
    assert queue.discard(jobs[1])
    assert not queue.discard(jobs[1])
    assert taken(queue) == [jobs[0], jobs[2]]
    assert queue.next(eight) == []


# ---------------------------------------------------------------------- sizes


@given(st.integers(1, 8))
def test_padding(n: int) -> None:
    size = Sizes(SIZES).padded("k", n, 0.0)
    assert size in SIZES
    assert n <= size
    assert not any(n <= s < size for s in SIZES)


def test_strict_knows_one_size() -> None:
    sizes = Sizes(SIZES, strict=True)
    assert [sizes.padded("k", n, 0.0) for n in (1, 5, 8)] == [8, 8, 8]
    assert not sizes.failed("k", 8, 0.0), "no smaller one would give the same bits"
    assert sizes.largest("k", 0.0) == 8


def test_a_size_that_failed_is_left_out_for_that_key_for_a_while() -> None:
    sizes = Sizes((4, 8))
    assert sizes.failed("k", 8, 0.0)
    assert (sizes.largest("k", 1.0), sizes.largest("other", 1.0)) == (4, 8)
    assert sizes.failed("k", 4, 1.0), "below the smallest configured it halves"
    assert sizes.every("k", 2.0) == (2,)
    assert sizes.failed("k", 2, 2.0)
    assert sizes.padded("k", 1, 3.0) == 1
    assert not sizes.failed("k", 1, 3.0)
    assert sizes.largest("k", 2.0 + FORGET_S) == 8


def test_sizes_remember_a_bounded_number_of_keys() -> None:
    sizes = Sizes(SIZES)
    for n in range(10_000):
        sizes.failed(n, 8, 0.0)
    assert sizes.largest(0, 1.0) == 8
    assert sizes.largest(9_999, 1.0) == 4


# ---------------------------------------------------------------------- forecast


def test_batch_times_are_moving_means_by_key_and_size() -> None:
    times = BatchTimes()
    assert times.batch("k", 4, 0.0) == 0.0
    times.add("k", 4, 4, 2.0, 0.0)
    times.add("k", 4, 2, 3.0, 1.0)
    assert times.batch("k", 4, 2.0) == pytest.approx(2.3)
    assert times.batch("other", 4, 2.0) == 0.0
    assert times.batch("k", 8, 2.0) == pytest.approx(2.3), "no less than a smaller batch"
    assert times.batch("k", 1, 2.0) == pytest.approx(2.3 / 4), "no less than its share"
    assert times.image == pytest.approx(0.5 + 0.3 * (1.5 - 0.5))


def test_what_was_not_measured_for_long_is_unknown_again() -> None:
    times = BatchTimes()
    times.add("quick", 1, 1, 1.0, 0.0)
    times.add("slow", 1, 1, 100.0, 0.0)
    assert times.batch("quick", 1, FRESH_S - 1) == 1.0
    assert times.batch("quick", 1, FRESH_S) == 0.0
    assert times.batch("slow", 1, FRESH_S) == 100.0, "a batch of it may not even have ended"
    assert times.batch("slow", 1, FRESH_BATCHES * 100.0) == 0.0
    times.add("slow", 1, 1, 1.0, FRESH_BATCHES * 100.0)
    assert times.batch("slow", 1, 401.0) == 1.0, "an old mean does not weigh on a new one"


def test_the_forecast_follows_the_queue() -> None:
    queue = filled(*(Job("crowd", "a", n) for n in range(20)), Job("v", "b"))
    seconds = {("a", 8): 8.0, ("a", 5): 5.0, ("b", 1): 1.0, ("b", 2): 2.0}

    def when(job: Job) -> float:
        return seconds_until_done(
            queue, job, running=0.5, largest=eight, batch=lambda k, n: seconds[(str(k), n)]
        )

    assert when(Job("w", "a")) == 8.5, "joins the first batch"
    assert when(Job("w", "b")) == 0.5 + 8 + 2, "rides with v"
    assert when(Job("crowd", "b")) == 0.5 + 8 + 2, "oldest of its key"
    assert when(Job("crowd", "a")) == 0.5 + 8 + 1 + 8 + 5, "behind its own twenty, and v's turn"
    assert len(queue) == 21, "it only looked"


# ---------------------------------------------------------------------- nobody waits


def test_what_nobody_waits_for_leads_only_where_no_user_does() -> None:
    probes = [Job(BACKGROUND_UNIT, "a", n) for n in range(3)]
    u, v = Job("u", "b"), Job("v", "a")
    queue = filled(*probes, u, v)
    assert taken(queue) == [u], "though the probes came first"
    assert taken(queue, lambda key: 2) == [v, probes[0]], "they ride along where there is room"
    w = Job("w", "a")
    queue.add(w)
    assert taken(queue) == [w, *probes[1:]]
    queue.add(probes[0])
    assert taken(queue) == [probes[0]]
