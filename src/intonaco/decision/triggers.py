"""What sets an update off from outside: changed things, the schedule, a call. Pure.

``look`` compares what is there with what was there, and says what fires and, of what does not fire
yet, why. Something fires once: ``accept`` its news and keep the state. What was there at the first
look fires nothing, but a lock file is compared with what the champion runs in.

==========  ====================================  ==================================
sign        fingerprint                           cause
==========  ====================================  ==================================
dataset     newest version of a watched name      new data
dvc         data id of a .dvc file                new data
recipe      settings of a recipe                  new technique
base        files of the folder it starts from    new technique
lock        environment that a lock file names    code change
schedule    when it ran last                      requested
webhook     a call                                requested
==========  ====================================  ==================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from intonaco.config import Schedule
from intonaco.config.decision import DAYS, minute_of_day


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """Something that is watched. ``key``: kind and name, such as "dataset:cats". ``unless``: a
    fingerprint that needs nothing done (what the champion has already). ``problem``: why it cannot
    be read; it fires nothing then. ``waits``: why it fires nothing yet, though it changed."""

    key: str
    fingerprint: str = ""
    unless: str | None = None
    problem: str = ""
    waits: str = ""

    @property
    def kind(self) -> str:
        return self.key.partition(":")[0]

    @property
    def name(self) -> str:
        return self.key.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Somebody called the webhook."""

    at: float
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What fires, or why it does not. ``text``: a sentence for the record."""

    key: str
    fires: bool
    text: str
    fingerprint: str = ""

    @property
    def kind(self) -> str:
        return self.key.partition(":")[0]

    @property
    def name(self) -> str:
        return self.key.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``known``: fingerprints that need nothing done. ``pending``: changed ones, with since when.
    ``held``: not looked at before that time. ``ran``: last run of each schedule. ``told``: what was
    said last of what does not fire, so that it is said once."""

    known: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)
    ran: Mapping[str, float] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    told: Mapping[str, str] = field(default_factory=dict)


def look(
    state: State,
    signs: Sequence[Sign],
    schedule: Sequence[Schedule],
    *,
    debounce: float,
    time_zone: str,
    busy: str | None,
    now: float,
) -> tuple[State, list[News]]:
    """The next state, and the news: at most one that fires. ``busy``: why none may fire now, such
    as an update that is under way; what would have fired waits."""
    known, pending = dict(state.known), dict(state.pending)
    ran, told = dict(state.ran), dict(state.told)
    ready: list[News] = []
    skipped: list[News] = []
    for sign in signs:
        if sign.problem:
            skipped.append(News(key=sign.key, fires=False, text=sign.problem))
            continue
        before = known.get(sign.key)
        if sign.unless is None and before is None:
            known[sign.key] = before = sign.fingerprint  # first look
        if sign.fingerprint in (before, sign.unless):
            if sign.key in pending:
                skipped.append(News(key=sign.key, fires=False, text="it changed back"))
                del pending[sign.key]
            else:
                told.pop(sign.key, None)
            continue
        fingerprint, since = pending.get(sign.key, ("", now))
        if fingerprint != sign.fingerprint:
            since = now
        pending[sign.key] = (sign.fingerprint, since)
        if now - since < debounce:
            text = f"it changed; it counts once nothing has changed for {debounce:g} s"
            skipped.append(News(key=sign.key, fires=False, text=text))
            continue
        if sign.waits:
            text = f"it changed; {sign.waits}"
            skipped.append(News(key=sign.key, fires=False, text=text))
            continue
        said = f"{sign.kind} {sign.name} changed".replace("  ", " ")
        ready.append(News(key=sign.key, fires=True, text=f"{said}.", fingerprint=sign.fingerprint))
    for number, entry in enumerate(schedule):
        key = f"schedule:{number}"
        last = ran.setdefault(key, now)
        due = due_at(entry, last, time_zone)
        if due <= now:
            ready.append(News(key=key, fires=True, text="It is the time that the schedule names."))
    if state.calls and now - state.calls[-1].at >= debounce:
        call, joined = state.calls[-1], len(state.calls) - 1
        more = f" ({joined} earlier calls joined with it)" if joined else ""
        ready.append(
            News(key="webhook:", fires=True, text=f"{call.actor} called: {call.reason}{more}.")
        )
    elif state.calls:
        text = f"a call came; it counts once none has come for {debounce:g} s"
        skipped.append(News(key="webhook:", fires=False, text=text))
    ready = [news for news in ready if state.held.get(news.key, 0.0) <= now]
    if busy is not None:
        skipped += [News(key=n.key, fires=False, text=f"{n.text} It waits: {busy}") for n in ready]
        ready = []
    for other in ready[1:]:
        skipped.append(
            News(key=other.key, fires=False, text=f"{other.text} It waits: another came first")
        )
    fresh = [news for news in skipped if told.get(news.key) != news.text]
    told.update({news.key: news.text for news in fresh})
    after = replace(state, known=known, pending=pending, ran=ran, told=told)
    return after, [*ready[:1], *fresh]


def accept(state: State, news: News, now: float) -> State:
    """It was dealt with and fires no more."""
    known, ran, held = dict(state.known), dict(state.ran), dict(state.held)
    held.pop(news.key, None)
    if news.kind == "schedule":
        ran[news.key] = now
    elif news.kind != "webhook":
        known[news.key] = news.fingerprint
    return State(
        known=known,
        pending={k: v for k, v in state.pending.items() if k != news.key},
        held=held,
        ran=ran,
        calls=() if news.kind == "webhook" else state.calls,
        told={k: v for k, v in state.told.items() if k != news.key},
    )


def hold(state: State, news: News, until: float) -> State:
    """It could not be dealt with now and fires again then, if it is still so."""
    return replace(state, held={**state.held, news.key: until})


def call(state: State, made: Call) -> State:
    """A call of the webhook came in."""
    return replace(state, calls=(*state.calls, made))


def due_at(entry: Schedule, last: float, time_zone: str) -> float:
    """The first time after ``last`` that a schedule names. A local time that a clock change leaves
    out is taken an hour later; one that comes twice, the first time."""
    if entry.every is not None:
        return last + entry.seconds
    zone = ZoneInfo(time_zone)
    begin = datetime.fromtimestamp(last, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    for days in range(15):
        day = begin + timedelta(days=days)
        if DAYS[day.weekday()] not in entry.days:
            continue
        for text in sorted(entry.at):
            minute = minute_of_day(text)
            at = day.replace(hour=minute // 60, minute=minute % 60).timestamp()
            if at > last:
                return at
    return float("inf")  # no day is named
