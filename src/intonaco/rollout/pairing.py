"""Shadow pairs: a user's answer and its copy's, once for each unit and prompt; and how many answers
have a score. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intonaco.rollout.evidence import split_keys
from intonaco.rollout.outcomes import BOUNDED, CLIP_SCORE, key_of
from intonaco.types import Json

_OPEN_PAIRS = 2000
_MISSING_TOLERATED = 0.2  # of scores
_MISSING_NEEDED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """``differences``: of losses in [0, 1], copy minus user's. ``start``: of the user's request."""

    unit: str
    start: float
    prompt: str
    differences: Mapping[str, float]


class Pairing:
    """Halves that wait for each other, and the pairs that were counted: at most ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, Json] = {}  # half pairs by request id
        self._paired: set[str] = set()
        self._scores = [0, 0]  # [all, scored] copies of users' scored answers

    def __len__(self) -> int:
        return len(self._paired)

    def user(
        self, request_id: str, unit: str, start: float, losses: Mapping[str, float], prompt: str
    ) -> Pair | None:
        """Take a user's answer; the pair that it completes and that counts."""
        return self._half(request_id, {"user": [unit, start, _bounded(losses), prompt]})

    def shadow(self, request_id: str, losses: Mapping[str, float]) -> Pair | None:
        """Take a copy's answer, of the request of that id; likewise."""
        return self._half(request_id, {"shadow": _bounded(losses)})

    def _half(self, request_id: str, half: Mapping[str, Json]) -> Pair | None:
        both = {**self._open.pop(request_id, {}), **half}
        if len(both) < 2:
            self._open[request_id] = both
            if len(self._open) > _OPEN_PAIRS:
                del self._open[next(iter(self._open))]
            return None
        unit, start, user, prompt = both["user"]
        shadow = both["shadow"]
        once = key_of(unit, prompt)
        if once in self._paired or len(self._paired) >= self._most:
            return None
        self._paired.add(once)
        if CLIP_SCORE in user:
            self._scores[0] += 1
            self._scores[1] += CLIP_SCORE in shadow
        differences = {m: shadow[m] - user[m] for m in shadow if m in user}
        return Pair(unit=unit, start=start, prompt=prompt, differences=differences)

    @property
    def unscored(self) -> bool:
        """Whether too many copies of scored answers have no score."""
        pairs, scored = self._scores
        return pairs >= _MISSING_NEEDED and 1 - scored / pairs > _MISSING_TOLERATED

    def state(self) -> Mapping[str, Json]:
        return {
            "open": {k: dict(v) for k, v in self._open.items()},
            "paired": "".join(sorted(self._paired)),
            "pair_scores": list(self._scores),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._open = {k: dict(v) for k, v in state["open"].items()}
        self._paired = split_keys(state["paired"])
        self._scores = [int(n) for n in state["pair_scores"]]


class Scored:
    """Answered units of both arms, and those of them that have a score."""

    def __init__(self) -> None:
        self._arms = [[0, 0], [0, 0]]  # [champion, challenger][all, scored]

    def take(self, *, challenger: bool, scored: bool) -> None:
        self._arms[challenger][0] += 1
        self._arms[challenger][1] += scored

    @property
    def too_few(self) -> bool:
        """Whether many more are missing on the challenger's side than on the champion's."""
        ours, theirs = (1 - scored / n if n else 0.0 for n, scored in reversed(self._arms))
        return self._arms[1][0] >= _MISSING_NEEDED and ours - theirs > _MISSING_TOLERATED

    def state(self) -> Json:
        return [list(arm) for arm in self._arms]

    def restore(self, state: Sequence[Json]) -> None:
        self._arms = [[int(n) for n in arm] for arm in state]


def _bounded(losses: Mapping[str, float]) -> dict[str, float]:
    return {m: loss for m, loss in losses.items() if m in BOUNDED}
