"""How many workers each of two releases has while one replaces the other. Pure.

The one that grows may have ``surge`` workers beyond the service's ``total``; the other gives
workers up only as far as at least ``total - unavailable`` of both together answer. Nothing is
remembered: from what is there now, the next step follows, so that whoever is killed in between
goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from intonaco.types import Capacity, ServingStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Workers of one release. ``size``: started, ready or not; ``ending``: that still answer what
    they have; ``ready``: that answer; ``users``: whether users are sent to it."""

    size: int = 0
    ending: int = 0
    ready: int = 0
    users: bool = False

    @property
    def running(self) -> int:
        return self.size + self.ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What each is to have now."""

    growing: int
    shrinking: int


def side(status: ServingStatus, *, users: bool) -> Side:
    ready = len(status.urls) if status.deployed else 0
    return Side(size=status.replicas, ending=status.ending, ready=ready, users=users)


def next_sizes(
    capacity: Capacity, growing: Side, shrinking: Side, *, target: int, moved: int, keep: int = 0
) -> Sizes:
    """The sizes that may be asked for now.

    ``target``: what the growing one is to have in the end. ``moved``: workers' worth of users that
    it has already; old workers are given up only against those. ``keep``: that the shrinking one
    keeps. One that has users keeps at least one worker."""
    room = capacity.total + capacity.surge - shrinking.running - growing.ending
    grow = max(growing.size, min(target, room))
    answering = min(growing.ready, moved)
    floor = max(
        keep,
        capacity.total - max(target, moved),
        capacity.total - capacity.unavailable - answering,
        int(shrinking.users),
    )
    whole = shrinking.ready >= shrinking.size or not shrinking.users
    shrink = min(shrinking.size, floor) if whole else shrinking.size
    return Sizes(growing=grow, shrinking=shrink)


def can_take(capacity: Capacity, ready: int, replicas: int) -> bool:
    """Whether users' share of ``replicas`` workers may go to a release of which so many answer."""
    return ready >= max(1, replicas - capacity.unavailable)


def handed_back(capacity: Capacity, ready: int) -> int:
    """What the challenger keeps while the champion, of which so many answer, grows again."""
    takes = min(capacity.total, ready + capacity.unavailable) if ready else 0
    return min(capacity.challenger, capacity.total - takes)


def waves(capacity: Capacity) -> tuple[int, ...]:
    """How many of the challenger's workers there are after each wave, the last one all of them."""
    size = capacity.surge + capacity.unavailable
    return (*range(size, capacity.total, size), capacity.total)
