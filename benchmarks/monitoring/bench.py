"""How soon does a detector notice a change, how often is it wrong, and what does it cost?

Embedding drift: synthetic streams (mixtures of topics in 384 dimensions,
`intonaco.testing.streams`) of five worlds and four seeds each, other worlds than those the detector
was made on; the protocol is that of `intonaco.testing.drift`: a week of reference, one
configuration for all, a budget of one false alarm in 10,000 requests. Limits: a median delay of
290, 100, 20 requests (a new topic at 10, 20, 50 %), 220 (a rare topic gains 10 points), 3,050 (slow
rotation); the budget on every null; 20 µs of processor time a request; 1 MB of state.
"""

from __future__ import annotations

from intonaco.testing import drift

FULL_NAMES = True
WORLDS = range(10, 15)
SEEDS = range(4)
NULL_REQUESTS = 15_120  # of each null, world and seed: 2.1 million in all


def run() -> dict[str, float]:
    """``drift.*``, see ``intonaco.testing.drift.figures``. Figures of other detectors on the same
    streams belong here too, each under a name of its own."""
    return vectors()


def vectors() -> dict[str, float]:
    table = drift.Table(worlds=WORLDS, seeds=SEEDS, null_events=NULL_REQUESTS)
    scores = drift.run(table, progress=print)
    print(drift.markdown(scores, table.settings.requests_between_false_alarms))
    return drift.figures(scores)
