"""Made-up incidents with known causes, to try monitors, diagnosis and policy on.

A world is one service with users, machines and a release, its parameters drawn from wide ranges by
a seed; an incident is something that happens to it. ``play`` sends the world's records, votes,
probes and deploys through the real monitor, the real diagnosis and the real policy;
``confusion`` counts what was told against what happened::

    from intonaco.testing.incidents import INCIDENTS, confusion, play, possible, render

    outcomes = [play(name, seed) for name in possible() for seed in range(8)]
    print(render(confusion(outcomes)))

Pass ``monitoring=`` or ``decision=`` to try a configuration of your own on it.

Synthetic by design: embeddings are mixtures of a few dozen topics, machines a queue in front of a
few servers, scores normal. A service that passes here can still fail on what no world contains.
"""

from __future__ import annotations

from intonaco.testing.incidents.catalogue import INCIDENTS, Incident, possible
from intonaco.testing.incidents.matrix import accuracy, confusion, render
from intonaco.testing.incidents.play import Outcome, play, signals

__all__ = [
    "INCIDENTS",
    "Incident",
    "Outcome",
    "accuracy",
    "confusion",
    "play",
    "possible",
    "render",
    "signals",
]
