"""What a switch costs where two releases cannot be loaded together, said before it begins. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intonaco.types import Json

OFFER = (
    "With rollout.strategy: in_place and rollout.force: true the champion's worker ends before the "
    "challenger is loaded, and nothing is compared on live traffic"
)
_NO_MEMORY = ("out of memory", "outofmemory", "can't allocate memory", "memoryerror")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes. ``champion``: of all its workers, at their peak. ``challenger``: of those that would
    be loaded beside it. ``device``: what there is. 0 where nobody knows."""

    champion: int = 0
    challenger: int = 0
    device: int = 0
    name: str = "the device"

    @property
    def together(self) -> bool:
        """Whether both can be loaded; what is not known forbids nothing."""
        known = self.champion > 0 and self.challenger > 0 and self.device > 0
        return not known or self.champion + self.challenger <= self.device


def memory(
    facts: Mapping[str, Json],
    *,
    champion_workers: int,
    challenger_workers: int,
    weights_ratio: float = 1.0,
    declared: float | None = None,
    device_declared: float | None = None,
) -> Memory:
    """``facts``: of the champion's ServingStatus. A worker of the challenger takes what one of the
    champion's took at its peak, with weights as much larger as its files are (``weights_ratio``).
    ``declared``, ``device_declared``: bytes that the configuration says instead."""
    peak = int(facts.get("peak_memory_bytes") or 0)
    weights = min(int(facts.get("weights_bytes") or 0), peak)
    other = round(peak + weights * (weights_ratio - 1.0))
    if declared is not None:
        peak = other = round(declared)
    device = facts.get("device_bytes") if device_declared is None else round(device_declared)
    return Memory(
        champion=peak * champion_workers,
        challenger=other * challenger_workers,
        device=int(device or 0),
        name=str(facts.get("device") or "the device").split(",")[0],
    )


def rate(arrivals: Sequence[float]) -> float:
    """Requests a second over the last ones, of the times at which they came."""
    span = max(arrivals) - min(arrivals) if len(arrivals) > 1 else 0.0
    return (len(arrivals) - 1) / span if span > 0 else 0.0


def start_seconds(facts: Mapping[str, Json]) -> float | None:
    """Of a ServingStatus: from the start of a worker's process until it was ready; where that is
    not told, the loading alone."""
    found = facts.get("start_seconds") or facts.get("load_seconds")
    return float(found) if found else None


def switch_cost(load_seconds: float | None, requests_per_second: float) -> str:
    """What users notice of a switch in place."""
    if not load_seconds:
        return "nobody answers while the challenger loads; how long that takes was never measured"
    waiting = load_seconds * requests_per_second
    return (
        f"nobody answers for about {max(load_seconds, 1):.0f} s, as long as the champion's last "
        f"start took; at the present {requests_per_second:.1f} requests a second about "
        f"{waiting:.0f} would wait meanwhile, each for at most 30 s"
    )


def not_together(room: Memory, challenger: str, cost: str) -> str:
    """Why the challenger is not loaded beside the champion, and what can be done."""
    return (
        f"{challenger[:10]} and the champion cannot be loaded together: the champion takes "
        f"{_size(room.champion)}, the challenger about {_size(room.challenger)}, and {room.name} "
        f"has {_size(room.device)}. Nothing was loaded, the champion serves on. {OFFER}: {cost}"
    )


def out_of_memory(error: str, cost: str) -> str:
    """The error of a challenger that could not be loaded, with what can be done if that was for
    lack of memory."""
    if not any(text in error.lower() for text in _NO_MEMORY):
        return error
    return (
        f"there was no memory to load it beside the champion, which serves on. {OFFER}: {cost}. "
        f"The worker said: {error}"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
