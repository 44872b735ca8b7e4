"""How much of a dataset a model may have made itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from intonaco.datasets.curation import Item


def bound_generated(
    items: Sequence[Item], spare: Sequence[Item], share: float, rng: np.random.Generator
) -> list[Item]:
    """Items of which at most ``share`` were made by a model: more real ones are drawn from
    ``spare``, and where those do not suffice, generated ones are left out, by lot.

    A model that learns its own images loses the rare ones first, and with them its diversity,
    unless real data stay in the mix (Shumailov et al., Nature 631, 2024; Alemohammad et al.,
    arXiv:2307.01850; what real data change: Gerstgrasser et al., arXiv:2404.01413). Items without
    consent count for neither side. Raises ValueError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share {share} is not in [0, 1)")
    made = [item for item in items if item.generated and item.consent]
    real = sum(item.consent and not item.generated for item in items)
    wanted = math.ceil(len(made) * (1 - share) / share) - real if share else 0
    known = {item.file for item in items}
    left = [i for i in spare if i.consent and not i.generated and i.file not in known]
    drawn = np.sort(rng.permutation(len(left))[: max(wanted, 0)])
    more = [left[int(n)] for n in drawn]
    room = math.floor((real + len(more)) * share / (1 - share) + 1e-9)
    stay = {made[int(n)].file for n in rng.permutation(len(made))[:room]}
    return [*(i for i in items if not i.generated or i.file in stay), *more]
