"""Old data mixed into new, so that a fine-tune does not forget what it is not shown.

Replay of real old data keeps a fine-tune from forgetting (Rolnick et al. 2019, arXiv:1811.11682).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from intonaco.datasets.curation import Item
from intonaco.datasets.identity import hash_file
from intonaco.types import ReplayMix

Sampling = Literal["uniform", "topic"]


def mix(
    new_items: Sequence[Item],
    old_items: Sequence[Item],
    share: float,
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[list[Item], ReplayMix]:
    """All new items and as many old ones, drawn without replacement, as make up a share of the
    whole; fewer where there are not that many. An old item with the same image as a new one is not
    drawn: what one update learned is old data to the next, and may be in the pool still. Old items
    without consent are not drawn.

    ``sampling``: "uniform" draws every old item alike, so that topics come in the shares they have;
    "topic" draws the same number of each topic, and what a topic lacks from the others, so that a
    rare one is not forgotten for want of examples.

    The same items in the same order and the same seed give the same draw. Raises ValueError unless
    0 <= share < 1, ConfigError that names an image that cannot be read.
    """
    if not 0 <= share < 1:
        raise ValueError(f"replay {share} is not in [0, 1)")
    new = [item for item in new_items if item.consent]
    wanted = round(len(new) * share / (1 - share))
    old: list[Item] = []
    if wanted:
        known = {hash_file(item.file, "").sha256 for item in new_items}
        allowed = (item for item in old_items if item.consent)
        old = [item for item in allowed if hash_file(item.file, "").sha256 not in known]
    rng = np.random.default_rng(seed)
    topics = [item.topic for item in old] if sampling == "topic" else [""] * len(old)
    drawn = [old[i] for i in sorted(_draw(topics, wanted, rng))]
    made = ReplayMix(
        share=share,
        sampling=sampling,
        seed=seed,
        new=len(new),
        replayed=len(drawn),
        topics=dict(sorted(Counter(item.topic for item in drawn).items())),
    )
    return [*new_items, *drawn], made


def _draw(topics: Sequence[str], wanted: int, rng: np.random.Generator) -> list[int]:
    """Places of the items drawn: the n-th of each topic, in an order of its own, before the
    (n+1)-th of any."""
    turns: list[tuple[int, int]] = []
    count: Counter[str] = Counter()
    for place in rng.permutation(len(topics)):
        turns.append((count[topics[place]], int(place)))
        count[topics[place]] += 1
    # Within a turn the order stays that of the permutation: no topic is preferred.
    turns.sort(key=lambda turn: turn[0])
    return [place for _, place in turns[:wanted]]
