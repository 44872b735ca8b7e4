"""Whose turn it is: round-robin over users, and who may share the batch. No clock, no thread.

Users stand in a ring. The one in front leads: their oldest job chooses the key. The batch is
filled with jobs of that key, one of each user in the order of the ring before anybody's second.
Users whose oldest job was taken go to the back; one whose older job of another key still waits
keeps their place, so that riding along costs no turn.

Hence a user's oldest job waits for at most one batch led by each of the others, and a job behind
``n`` of its own user's for at most ``n + 1`` turns of the ring, whatever the keys and however many
users come after. Jobs of ``BACKGROUND_UNIT``, for which nobody waits, lead only where no user does;
places that are left in a batch they take. (Round-robin over flows as in Nagle, "On packet switches
with infinite storage", 1987; a turn is an image, not a second.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from itertools import chain, islice, zip_longest
from typing import Generic, Protocol, TypeVar

from intonaco.messages import BACKGROUND_UNIT


class Queued(Hashable, Protocol):
    """Compared and hashed by identity."""

    @property
    def key(self) -> Hashable: ...

    @property
    def unit(self) -> str:
        """Who asks; an empty one is a user of its own."""
        ...


J = TypeVar("J", bound=Queued)


class FairQueue(Generic[J]):
    def __init__(self) -> None:
        self._users: dict[Hashable, list[J]] = {}  # the ring: dicts keep the order of insertion

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    def __iter__(self) -> Iterator[J]:
        return chain.from_iterable(self._users.values())

    @property
    def users(self) -> int:
        return len(self._users)

    def copy(self) -> FairQueue[J]:
        other = FairQueue[J]()
        other._users = {user: list(jobs) for user, jobs in self._users.items()}
        return other

    def add(self, job: J) -> None:
        self._users.setdefault(_user(job), []).append(job)

    def discard(self, job: J) -> bool:
        """Whether it was waiting."""
        user = _user(job)
        jobs = self._users.get(user, [])
        if job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._users[user]
        return True

    def next(self, size: Callable[[Hashable], int]) -> list[J]:
        """The next batch, at most ``size(key)`` jobs, the leader first; nothing is taken."""
        ring = [jobs for user, jobs in self._users.items() if user != BACKGROUND_UNIT]
        ring += [jobs for user, jobs in self._users.items() if user == BACKGROUND_UNIT]
        if not ring:
            return []
        key = ring[0][0].key
        rows = [[j for j in jobs if j.key == key] for jobs in ring]
        last = rows.pop() if BACKGROUND_UNIT in self._users else []
        order = (j for nth in zip_longest(*rows) for j in nth if j is not None)
        return list(islice(chain(order, last), size(key)))

    def take(self, batch: Collection[J]) -> None:
        """Remove a batch that ``next`` gave; its users' turns are over."""
        taken = set(batch)
        for user in dict.fromkeys(_user(j) for j in batch):
            jobs = self._users[user]
            left = [j for j in jobs if j not in taken]
            if jobs[0] in taken:
                del self._users[user]
            if left:
                self._users[user] = left


def _user(job: Queued) -> Hashable:
    return job.unit or job
