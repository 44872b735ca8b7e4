"""When a champion whose worker ended is started again. Pure.

The first time at once, then after waits that double up to a limit, as whoever cannot load fails
the same way each time and takes memory and a device from those who serve. A champion that stayed
up is like a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from intonaco.types import ServingStatus

FIRST_S = 2.0  # between the first start and the second
LONGEST_S = 300.0
STABLE_S = 600.0  # since the last start, after which a champion that is ready counts as well
TELL_AFTER = 3  # starts in vain, until somebody is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """Starts of one champion since it was last well; what the ledger keeps."""

    release: str
    starts: int
    at: float  # of the last one
    told: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``after`` is to be kept before ``start`` is done; ``event``: kind and text for people."""

    start: bool
    after: Restarts | None
    event: tuple[str, str] | None = None


def wait_after(starts: int) -> float:
    """Seconds from that many starts to the next."""
    return min(FIRST_S * 2.0 ** min(starts - 1, 60), LONGEST_S) if starts else 0.0


def decide(stored: Restarts | None, status: ServingStatus, now: float) -> Decision:
    """What to do about the champion of ``status``. One that is loading is looked after (``start``
    adopts what runs), which counts as no start."""
    before = stored if stored is not None and stored.release == status.release else None
    if status.ready:
        if before is None or now - before.at < STABLE_S:
            return Decision(start=False, after=before)
        text = f"{status.release[:10]} has stayed up after {before.starts} starts"
        well = ("champion.up", text) if before.told else None
        return Decision(start=False, after=None, event=well)
    if not status.error:
        return Decision(start=True, after=before)
    starts, told = (before.starts, before.told) if before is not None else (0, False)
    # A clock that was set back makes nobody wait for the hour to come round again.
    if before is not None and 0.0 <= now - before.at < wait_after(starts):
        return Decision(start=False, after=before)
    event = None
    if starts >= TELL_AFTER and not told:
        text = (
            f"{status.release[:10]} does not come up, started {starts} times: {status.error}. "
            f"It is tried again after longer and longer, at most {LONGEST_S / 60:.0f} minutes; "
            "intonaco rollback puts the previous champion back"
        )
        event, told = ("champion.down", text), True
    after = Restarts(release=status.release, starts=starts + 1, at=now, told=told)
    return Decision(start=True, after=after, event=event)
