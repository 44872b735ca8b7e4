"""How soon is a change noticed, how often falsely, is its cause told, and what does it cost?

Parts (``MONITORING_PARTS=vectors,peers`` runs some; the results of the others stay):

- `vectors`: embedding drift on synthetic streams (mixtures of topics in 384 dimensions,
  `intonaco.testing.streams`) of five worlds and four seeds each, other worlds than those the
  detector was made on; the protocol is that of `intonaco.testing.drift`: a week of reference, one
  configuration for all, a budget of one false alarm in 10,000 requests. Limits: a median delay of
  290, 100, 20 requests (a new topic at 10, 20, 50 %), 220 (a rare topic gains 10 points), 3,050
  (slow rotation); the budget on every null; 20 µs of processor time a request; 1 MB of state.
- `scalars`: the same for scores, thumbs and latency (`intonaco.testing.scalars`). Limits: 270 (CLIP
  lower by 0.25 σ), 250 (thumbs from 80 to 70 %), 60 (latency +15 %), 260 (5 % of requests 3 times
  slower).
- `peers`: detectors of River, Evidently and Frouros and ours on the same streams, fewer of them
  (`benchmarks/monitoring/peers.py` says how), where they are installed.
- `signals`: requests a second that one core watches with 100 signals, limit 200; seconds until 30
  days of windows are restored, limit 1.
- `diagnosis`: share of made-up incidents whose causes are told exactly, limit 0.9; no latency
  incident may be answered by training.
- `policy`: cost over that of hindsight in simulated years, limit 1.3.

``MONITORING_EFFORT=0.1`` takes a tenth of the worlds, seeds and years: for trying it out, not for
figures.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping

import parts
from monitoring import diagnosis, peers, policy, scalars, signals, tables

from intonaco.testing import drift
from intonaco.testing import scalars as scalar_streams

FULL_NAMES = True
EFFORT = float(os.environ.get("MONITORING_EFFORT", "1"))
WORLDS = 5
FIRST_WORLD = 10
SEEDS = 4
NULL_REQUESTS = 15_120  # of each null, world and seed: 2.1 million in all

page = tables.page
pictures = tables.pictures


def run() -> dict[str, float]:
    """All figures under their full names. Raises parts.Incomplete, with the figures there are, when
    a part failed or was left out, and ValueError for a part that is not known."""
    asked = os.environ.get("MONITORING_PARTS", "")
    chosen = asked.split(",") if asked else list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        raise ValueError(f"MONITORING_PARTS: no {min(unknown)!r}; known: {', '.join(PARTS)}")
    found: dict[str, float] = {}
    failed = []
    for name in chosen:
        began = time.monotonic()
        _say(f"{name} ...")
        try:
            found |= PARTS[name]()
        except Exception:
            traceback.print_exc()
            failed.append(name)
        _say(f"{name}: {time.monotonic() - began:.0f} s")
    if failed or len(chosen) < len(PARTS) or peers.missing():
        raise parts.Incomplete(found, failed)
    return found


def vectors() -> dict[str, float]:
    table = drift.Table(
        worlds=range(FIRST_WORLD, FIRST_WORLD + _some(WORLDS)),
        seeds=range(_some(SEEDS)),
        null_events=NULL_REQUESTS,
    )
    scores = drift.run(table, progress=_say)
    _say(drift.markdown(scores, table.settings.requests_between_false_alarms))
    return drift.figures(scores)


def scalar() -> dict[str, float]:
    if EFFORT >= 1:
        return scalars.figures()
    found = scalar_streams.table(seeds=_some(40), null_events=int(400_000 * EFFORT))
    return scalar_streams.figures(found)


def beside() -> dict[str, float]:
    """Peers. Without any of them, nothing: ours alone would be no comparison."""
    if len(peers.missing()) == len(peers.LIBRARIES):
        for line in peers.missing():
            _say(line)
        return {}
    every = peers.Streams()
    return peers.figures(
        peers.Streams(
            worlds=every.worlds[: _some(len(every.worlds))],
            seeds=every.seeds[: _some(len(every.seeds))],
            scalar_seeds=_some(every.scalar_seeds),
            scalar_share=min(1.0, EFFORT),
        ),
        progress=_say,
    )


def causes() -> dict[str, float]:
    values, matrix = diagnosis.figures(_some(diagnosis.WORLDS))
    _say(matrix)
    return values


PARTS: Mapping[str, Callable[[], dict[str, float]]] = {
    "vectors": vectors,
    "scalars": scalar,
    "signals": signals.run,
    "policy": lambda: policy.figures(_some(policy.YEARS)),
    "diagnosis": causes,
    "peers": beside,
}


def _some(all_of_them: int) -> int:
    return max(1, round(all_of_them * min(1.0, EFFORT)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
