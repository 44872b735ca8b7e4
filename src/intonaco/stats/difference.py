"""Challenger minus champion, valid at every look.

**Randomised users** (``RandomizedDifference``). Unit ``i`` is sent to the challenger
(``Z_i = 1``) with the logged probability ``w_i``, else to the champion, and its bounded outcome
``Y_i`` in [0, 1] is seen. Write ``Delta_i = E[Y_i(1) - Y_i(0) | past]`` and let the centre ``c_i``
be any number known before unit ``i`` (here: the running mean of past outcomes). With

    h_i = (1 - w_i) * Z_i * (Y_i - c_i)  -  w_i * (1 - Z_i) * (Y_i - c_i)

and ``Z_i`` drawn independently of both potential outcomes given the past,

    E[h_i | past] = w_i (1 - w_i) (E[Y_i(1)] - c_i) - w_i (1 - w_i) (E[Y_i(0)] - c_i)
                  = w_i (1 - w_i) * Delta_i

exactly: the base rate, its drift, the choice of ``c_i`` and changes of ``w_i`` cancel out. ``h_i``
lies between ``-max((1-w_i) c_i, w_i (1-c_i))`` and ``max((1-w_i)(1-c_i), w_i c_i)``, so it is a bet
of the kind proved in ``betting.py`` with ``scale = w_i (1 - w_i)``, and

    M_d = prod(1 + lambda_i (h_i - w_i (1 - w_i) d))

is an e-process for "Delta_i <= d for all i"; its mirror image one for "Delta_i >= d for all i".
Harm is ``d`` = tolerance in the first, non-inferiority ``d`` = margin in the second, superiority
``d = 0`` in the second. A good centre only makes ``h_i`` small, hence evidence grow sooner.

What it needs: one event per unit, at its first randomised exposure, with the probability of that
moment; the order in which units are taken may not depend on their own outcomes. Units with weight 0
or 1 say nothing about a difference and are ignored.

**Shadow pairs** (``PairedDifference``). The same prompt and seed answered by both releases: the
difference ``D`` in [-1, 1] is itself the observation, with scale 1.

Both are bets on the same ``d``, so a pair may also be fed to a ``RandomizedDifference`` (``pair``):
the product of their factors is an e-process for "no worse than d, on users and in shadow".

Betting: Waudby-Smith and Ramdas (arXiv 2010.09686). Confidence sequences under randomisation with
logged probabilities: Howard et al. (arXiv 1810.08240), section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intonaco.errors import StorageError
from intonaco.stats.betting import FRACTIONS, BettingMean, difference_grid
from intonaco.types import Json

_TOPIC_PULL = 3.0  # outcomes of all topics that a topic's own centre starts from


class PairedDifference(BettingMean):
    """Mean of paired differences in [-1, 1]."""

    def __init__(
        self, differences: Iterable[float] = (), *, fractions: Iterable[float] = FRACTIONS
    ) -> None:
        super().__init__(difference_grid(differences), fractions=fractions)

    def pair(self, difference: float) -> None:
        """Take challenger minus champion of one pair. Raises ValueError outside [-1, 1]."""
        self.update(difference, scale=1.0, low=-1.0, high=1.0)


class RandomizedDifference(PairedDifference):
    """Mean difference of a [0, 1] outcome under randomised assignment with logged weights.

    ``differences``: the hypotheses that decisions are taken on (tolerance, margin). ``centre``: a
    guess of the outcome's mean, worth ``centre_weight`` units. ``topics``: how many topics get a
    centre of their own; later ones share the overall one.
    """

    def __init__(
        self,
        differences: Iterable[float] = (),
        *,
        centre: float = 0.5,
        centre_weight: float = 2.0,
        topics: int = 256,
        fractions: Iterable[float] = FRACTIONS,
    ) -> None:
        super().__init__(differences, fractions=fractions)
        if not (0 <= centre <= 1 and centre_weight > 0):
            raise ValueError("the centre lies in [0, 1] and its weight is positive")
        self._prior = (centre * centre_weight, centre_weight)
        self._topics: dict[str, tuple[float, int]] = {}
        self._max_topics = topics
        self.units = [0, 0]  # champion, challenger
        self.totals = [0.0, 0.0]  # of their outcomes

    def centre(self, topic: str | None = None) -> float:
        """What an outcome is compared with, from past outcomes only."""
        total, weight = self._prior
        overall = (sum(self.totals) + total) / (sum(self.units) + weight)
        summed, count = self._topics.get(topic or "", (0.0, 0))
        return (summed + _TOPIC_PULL * overall) / (count + _TOPIC_PULL)

    def assign(
        self, outcome: float, *, challenger: bool, weight: float, topic: str | None = None
    ) -> bool:
        """Take one randomised unit: its outcome, its arm, the challenger's probability at that
        moment. False if it was not randomised (weight 0 or 1) and so ignored. Raises ValueError
        for an outcome or a weight outside [0, 1]."""
        if not (0 <= outcome <= 1 and 0 <= weight <= 1):
            raise ValueError(f"outcome {outcome} or weight {weight} outside [0, 1]")
        if not 0 < weight < 1:
            return False
        c = self.centre(topic)
        h, scale, low, high = randomised_bet(outcome, challenger, weight, c)
        self.update(h, scale=scale, low=low, high=high)
        self.totals[challenger] += outcome
        self.units[challenger] += 1
        if topic and (topic in self._topics or len(self._topics) < self._max_topics):
            summed, count = self._topics.get(topic, (0.0, 0))
            self._topics[topic] = (summed + outcome, count + 1)
        return True

    def state(self) -> Mapping[str, Json]:
        return {
            **super().state(),
            "prior": list(self._prior),
            "units": list(self.units),
            "totals": list(self.totals),
            "topics": {t: list(v) for t, v in self._topics.items()},
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        if list(state["prior"]) != list(self._prior):
            raise StorageError("the stored evidence was gathered with another centre")
        super().restore(state)
        self.units = [int(n) for n in state["units"]]
        self.totals = [float(t) for t in state["totals"]]
        self._topics = {t: (float(s), int(n)) for t, (s, n) in state["topics"].items()}


def randomised_bet(
    outcome: float, challenger: bool, weight: float, centre: float
) -> tuple[float, float, float, float]:
    """(h, scale, low, high) of one unit, as the module says."""
    w, c = weight, centre
    h = (1 - w) * (outcome - c) if challenger else -w * (outcome - c)
    return (
        h,
        w * (1 - w),
        -max((1 - w) * c, w * (1 - c)),
        max((1 - w) * (1 - c), w * c),
    )
