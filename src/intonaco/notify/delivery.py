"""Carries events to notifiers: each at least once, in order, outside the controller's tick.

How far a notifier was told is kept in the ledger, as for every reader, so that a controller which
is killed goes on there. Whoever cannot be reached is tried again after waits that double, and
holds up nobody but itself; an event that it did not take for ``give_up_s`` is given up, which is
an event too, of which the others are told.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from intonaco.clock import Clock
from intonaco.codec import as_json, decode
from intonaco.errors import Conflict
from intonaco.ledger import Ledger
from intonaco.notify.telling import wanted
from intonaco.notify.undelivered import Undelivered
from intonaco.protocols import Notifier
from intonaco.types import Event

log = logging.getLogger(__name__)

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
TELL_AFTER = 5  # failures in a row, until the others are told
BATCH = 100
WRITE_AFTER = 1000  # events that nobody wants
POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """``events``: patterns of what is told. ``target``: a digest of where it goes; what was gone is
    tried again once it goes elsewhere."""

    name: str
    notifier: Notifier
    events: tuple[str, ...] = ("*",)
    give_up_s: float = 86_400.0
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a channel stands; what the ledger keeps. ``at``: the last event that was dealt with.
    ``tries`` in vain since ``since``; not tried again before ``not_before``. ``lost``: events given
    up, ever. ``gone``: it wants no more."""

    at: int
    tries: int = 0
    since: float | None = None
    not_before: float = 0.0
    error: str = ""
    lost: int = 0
    gone: bool = False
    target: str = ""


def consumer(name: str) -> str:
    """Under which the ledger keeps a channel's standing."""
    return f"notify:{name}"


def standing(ledger: Ledger, name: str) -> Standing | None:
    """As it was written last; None for a channel that was never told anything."""
    stored = ledger.consumer(consumer(name))
    if stored is None:
        return None
    offset, state = stored
    return decode(Standing, json.dumps({**state, "at": offset["event"]}))


class Telling:
    """One channel. ``look`` sends what is due; a fence that is no longer the lease's raises
    Conflict."""

    def __init__(self, ledger: Ledger, channel: Channel, clock: Clock) -> None:
        self.ledger = ledger
        self.channel = channel
        self.clock = clock
        self._fence: int | None = None
        self._now: Standing | None = None  # goes ahead of the ledger where that cannot be written
        self._written: Standing | None = None
        self._said: list[tuple[str, str]] = []  # events to be written
        self._failing = False  # in this look
        self._why = "too old"  # the last event was given up
        self._stale = 0.0  # events older than this came while nobody listened for too long

    def begin(self, fence: int) -> None:
        """Take over: what happened before a channel was there is not told."""
        if fence == self._fence:
            return
        newest = self.ledger.events(limit=1, newest=True)
        kept = standing(self.ledger, self.channel.name)
        now = kept or Standing(at=newest[-1].event_id if newest else 0, target=self.channel.target)
        if now.target != self.channel.target:
            now = Standing(at=now.at, lost=now.lost, target=self.channel.target)
        self._fence, self._now, self._written, self._said = fence, now, kept, []
        self._stale = newest[-1].at - self.channel.give_up_s if newest else 0.0
        self._write()

    def look(self) -> None:
        """Send what is due."""
        assert self._now is not None, "begin comes first"
        if self._said or self._written is None:
            self._write()
        if self.clock.now() < self._now.not_before:
            return
        self._failing = False
        lost: list[Event] = []
        while True:
            events = self.ledger.events(after=self._now.at, limit=BATCH)
            if not all(self._deal(event, lost) for event in events) or len(events) < BATCH:
                break
        self._give_up(lost)
        behind = self._now.at - (self._written.at if self._written else 0)
        if self._said or self._failing or behind >= WRITE_AFTER:
            self._write()

    def _give_up(self, lost: list[Event]) -> None:
        """Say which were, as one event; nobody is told of what one that is gone misses."""
        assert self._now is not None
        if lost and not self._now.gone:
            of = (
                f"event {lost[0].event_id} ({lost[0].kind}) was"
                if len(lost) == 1
                else f"{len(lost)} events ({lost[0].event_id} to {lost[-1].event_id}) were"
            )
            self._say("given_up", f"{of} not told to {self.channel.name}: {self._why}")
        lost.clear()

    def _deal(self, event: Event, lost: list[Event]) -> bool:
        """Whether an event is dealt with: nobody wants it, it arrived, or it is given up."""
        assert self._now is not None
        dealt = self._try(event) if self._wants(event) else "unwanted"
        if dealt == "not yet":
            return False
        if dealt == "lost":
            lost.append(event)
            self._now = replace(self._now, lost=self._now.lost + 1)
        self._now = replace(self._now, at=event.event_id)
        if dealt == "sent":
            self._give_up(lost)
            self._write()
        return True

    def _wants(self, event: Event) -> bool:
        own = event.kind.startswith("notify.") and event.subject == self.channel.name
        return not own and wanted(event, self.channel.events)

    def _try(self, event: Event) -> Literal["sent", "lost", "not yet"]:
        """One that is overdue is tried once more, as nobody may have tried for long."""
        assert self._now is not None
        state, now = self._now, self.clock.now()
        overdue = state.since is not None and (
            now - max(event.at, state.since) >= self.channel.give_up_s
        )
        if event.at < self._stale or (overdue and (self._failing or state.gone)):
            self._why = state.error or "too old"
            return "lost"
        if self._failing or state.gone:
            return "not yet"
        error = self._send(event)
        if error is None or not error.retriable:
            if state.tries >= TELL_AFTER:
                self._say("well", f"{self.channel.name} is reached again")
            self._now = replace(state, tries=0, since=None, not_before=0.0, error="")
            if error is None:
                return "sent"
            self._why = str(error)
            return "lost"
        self._failing = True
        tries = state.tries + 1
        wait = max(min(FIRST_WAIT_S * 2.0 ** min(tries - 1, 60), LONGEST_WAIT_S), error.wait_s)
        self._now = replace(
            state,
            tries=tries,
            since=state.since if state.since is not None else now,
            not_before=now + wait,
            error=str(error),
            gone=error.gone,
        )
        name = self.channel.name
        if error.gone:
            text = f"{name} wants no more: {error}. It is tried again once its url is another"
            self._say("gone", text)
        elif tries == TELL_AFTER:
            self._say("failing", f"{name} is not reached, tried {tries} times: {error}")
        self._why = str(error)
        return "lost" if overdue else "not yet"

    def _send(self, event: Event) -> Undelivered | None:
        """What went wrong."""
        try:
            self.channel.notifier.send(event)
        except Undelivered as error:
            return error
        except Exception as error:  # a defect of one notifier holds up no other
            log.warning("notifier %s: %r", self.channel.name, error, extra={"action": "notify"})
            return Undelivered(f"it failed ({type(error).__name__})")
        return None

    def _say(self, kind: str, text: str) -> None:
        log.warning("%s", text, extra={"action": f"notify.{kind}"})
        self._said.append((f"notify.{kind}", text))

    def _write(self) -> None:
        """Keep where it stands. What cannot be written now is written later: until then only the
        death of this process could have an event sent twice. Raises Conflict."""
        assert self._now is not None
        if self._now == self._written and not self._said:
            return
        state = as_json(self._now)
        at = state.pop("at")
        now, name = self.clock.now(), self.channel.name
        try:
            with self.ledger.begin(fence=self._fence) as tx:
                tx.commit_consumer(consumer(name), {"event": at}, state, now)
                for kind, text in self._said:
                    tx.event(now, kind, name, text)
        except SQLAlchemyError as error:
            log.warning("%s: %s", name, type(error).__name__, extra={"action": "notify"})
            return
        self._written, self._said = self._now, []


class Delivery:
    """All channels of a service, each with a thread of its own."""

    def __init__(self, ledger: Ledger, channels: Sequence[Channel], clock: Clock) -> None:
        self._tellings = [Telling(ledger, channel, clock) for channel in channels]
        self._wakes = [threading.Event() for _ in channels]
        self._locks = [threading.Lock() for _ in channels]
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._fence: int | None = None

    def lead(self, fence: int | None) -> None:
        """Of the tick: whether this controller has the lease. None: it has not, and is silent."""
        if fence is not None and fence != self._fence:
            for telling, lock in zip(self._tellings, self._locks, strict=True):
                # A send that hangs ends by its time limit; the tick does not wait for it.
                if lock.acquire(blocking=False):
                    try:
                        telling.begin(fence)
                    finally:
                        lock.release()
        self._fence = fence

    def wake(self) -> None:
        """There may be news."""
        for wake in self._wakes:
            wake.set()

    def look(self) -> None:
        """Send what is due, here and now."""
        for index in range(len(self._tellings)):
            self._look(index)

    def start(self) -> None:
        for index, telling in enumerate(self._tellings):
            name = f"notify-{telling.channel.name}"
            # A daemon: what hangs in a receiver's hands holds no controller up.
            thread = threading.Thread(target=self._run, args=(index,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, seconds: float = 2.0) -> None:
        """Let what is being sent arrive, for so long."""
        self._stop.set()
        self.wake()
        for thread in self._threads:
            thread.join(seconds)
        self._fence = None

    def _run(self, index: int) -> None:
        while not self._stop.is_set():
            self._wakes[index].wait(POLL_S)
            self._wakes[index].clear()
            try:
                self._look(index)
            except Conflict:
                pass  # another controller leads, and the tick will say so
            except Exception:
                log.exception("notifications failed", extra={"action": "notify"})
                self._stop.wait(POLL_S)

    def _look(self, index: int) -> None:
        fence = self._fence
        if fence is None:
            return
        with self._locks[index]:
            self._tellings[index].begin(fence)
            self._tellings[index].look()
