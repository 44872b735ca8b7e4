"""The registry's aliases follow the ledger.

They are set when the ledger changes, and looked at again when a controller starts and every
``ASSERT_SECONDS``: two queries of the registry, in a thread. What was set last is kept in the
ledger, so that an alias that somebody moved is told from a change that a controller was killed in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from intonaco.executor import Parts
from intonaco.protocols import Registry

log = logging.getLogger(__name__)

ALIASES = ("champion", "challenger", "previous")
ASSERT_SECONDS = 300.0
RETRY_SECONDS = 30.0
_SETTING = "aliases"  # {"told": as they were set last, "asked": as they are being set}

_Releases = tuple[str | None, ...]  # in the order of ALIASES


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """An alias that somebody else moved, or removed (``found`` is None)."""

    alias: str
    found: str | None
    meant: str | None

    def __str__(self) -> str:
        found = f"pointed at {self.found[:10]}" if self.found else "was gone"
        meant = f"points at {self.meant[:10]} again" if self.meant else "is removed again"
        return (
            f"the registry's alias {self.alias} {found}, which is not the ledger's doing; it "
            f"{meant}"
        )


class Aliases:
    """Of one service. ``look`` never waits for the registry."""

    def __init__(self, parts: Parts, threads: Executor) -> None:
        self._parts = parts
        self._threads = threads
        self._running: Future[list[Moved]] | None = None
        self._wanted: _Releases = ()
        self._next_at: float | None = None
        self._began_at = 0.0

    def look(self, fence: int, now: float) -> None:
        """Begin to set them, or write down what came of it. Raises Conflict if the lease is
        lost."""
        if self._running is not None:
            if not self._running.done():
                return
            self._ended(self._running, fence, now)
            self._running = None
        ledger = self._parts.ledger
        rollout = ledger.active_rollout()
        wanted = (ledger.champion(), rollout.challenger if rollout else None, ledger.previous())
        waits = self._next_at is not None and self._began_at <= now < self._next_at
        if not any(wanted) or (wanted == self._wanted and waits):
            return
        stored = ledger.setting(_SETTING) or {}
        ours = [tuple(kept) for kept in (stored.get("told"), stored.get("asked")) if kept]
        if stored.get("told") != list(wanted):
            with ledger.begin(fence=fence) as tx:
                tx.set(_SETTING, {"told": stored.get("told"), "asked": list(wanted)})
        self._wanted, self._began_at, self._next_at = wanted, now, now + ASSERT_SECONDS
        self._running = self._threads.submit(follow, self._parts.registry, wanted, ours)

    def _ended(self, ran: Future[list[Moved]], fence: int, now: float) -> None:
        error = ran.exception()
        if error is not None:
            log.warning("aliases: %s", error, extra={"action": "aliases"})
            self._next_at = self._began_at + RETRY_SECONDS
            return
        ledger, told = self._parts.ledger, {"told": list(self._wanted), "asked": None}
        moved = ran.result()
        if not moved and ledger.setting(_SETTING) == told:
            return
        with ledger.begin(fence=fence) as tx:
            tx.set(_SETTING, told)
            for found in moved:
                data = {"found": found.found, "meant": found.meant}
                tx.event(now, "registry.moved", found.alias, str(found), data=data)


def follow(registry: Registry, wanted: _Releases, ours: Sequence[_Releases]) -> list[Moved]:
    """Point every alias where it belongs, and say which ones were neither there nor where this
    service ever put them (``ours``, from what was set last; empty if that is not known). Raises
    BackendError, NotFound."""
    entries = registry.history()
    where = {alias: _release(e) for e in entries for alias in e["aliases"]}
    known = {_release(e) for e in entries}
    moved = []
    for k, (alias, meant) in enumerate(zip(ALIASES, wanted, strict=True)):
        found = where.get(alias)
        if found == meant and meant in known:
            continue
        theirs = bool(ours) and found not in {meant, *(o[k] for o in ours)}
        # A registry that forgot the release too was not steered by hand: it is another one.
        if theirs and (found is not None or any(o[k] in known for o in ours)):
            moved.append(Moved(alias=alias, found=found, meant=meant))
        registry.set_alias(alias, meant)
    return moved


def _release(entry: Mapping[str, object]) -> str | None:
    tags = entry["tags"]
    assert isinstance(tags, Mapping)
    return tags.get("intonaco.release_id")
