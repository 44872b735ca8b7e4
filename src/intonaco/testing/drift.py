"""The public table of embedding drift: every null and every change, over worlds and seeds.

The streams are synthetic (``streams.py``): mixtures of topics, which flatters a detector that looks
for clusters. For a stream in environment E the reference is a week of the null of E in the same
world (for a change in no environment, of ``null_iid``). One configuration for all.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from intonaco.monitoring.detectors.registry import resolve
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.monitoring.evaluation import Evaluation, Recorded, Score, total
from intonaco.testing.streams import CHANGES, DAY, Stream, World, parse

WEEK = 7 * DAY
NULLS = (
    "null_iid",
    "null_burst",
    "null_diurnal",
    "null_diurnal+burst",
    "null_weekly",
    "null_growth",
    "null_robot",
)
SETTINGS = DetectorSettings(requests_between_false_alarms=10_000, reference=WEEK)
REFERENCE = "reference"  # name of the score of collecting it
REFERENCE_SEED = 900
CHANGE_AT = 2_000
AFTER = 4_000  # requests after a change
AFTER_ROTATION = 8_000

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What is to be run. ``seeds`` are those of the judged streams, a null has ``null_events``
    requests each. ``sessions``: whether the detector is told who asks."""

    kinds: tuple[str, ...] = (*NULLS, *CHANGES)
    worlds: Sequence[int] = range(5)
    seeds: Sequence[int] = range(4)
    null_events: int = WEEK
    detector: str = "e-detector"
    settings: DetectorSettings = SETTINGS
    sessions: bool = True


def run(
    table: Table, *, processes: int = 2, progress: Progress = lambda line: None
) -> dict[str, Score]:
    """Score of each kind, over all worlds and seeds, and of ``REFERENCE``. With one process nothing
    is forked. ``progress`` gets a line for each finished part."""
    jobs = sorted({(world, environment_of(kind)) for world in table.worlds for kind in table.kinds})
    scores: dict[str, list[Score]] = defaultdict(list)

    def take(world: int, environment: str, part: dict[str, Score]) -> None:
        for kind, score in part.items():
            scores[kind].append(score)
        progress(f"world {world}, {environment}: {_summary(part)}")

    if processes == 1:
        for world, environment in jobs:
            take(world, environment, run_part(table, world, environment))
    else:
        with ProcessPoolExecutor(processes) as pool:
            waiting = {pool.submit(run_part, table, *job): job for job in jobs}
            for done in as_completed(waiting):
                take(*waiting[done], done.result())
    return {kind: total(scores[kind]) for kind in (*table.kinds, REFERENCE)}


def run_part(table: Table, world: int, environment: str) -> dict[str, Score]:
    """Score of each kind of the table that lives in ``environment``, in one world."""
    here = World(world)
    _, factory = resolve(table.detector, stream="vector")
    reference = here.stream(f"null_{environment}", table.settings.reference, REFERENCE_SEED)
    evaluation = Evaluation(
        factory(table.settings), recorded(reference, sessions=table.sessions), time.process_time
    )
    found = {REFERENCE: evaluation.reference_score}
    for kind in table.kinds:
        if environment_of(kind) != environment:
            continue
        change = parse(kind)[1]
        after = AFTER_ROTATION if change == "rot" else AFTER
        n = CHANGE_AT + after if change else table.null_events
        found[kind] = total(
            evaluation.score(recorded(here.stream(kind, n, seed), sessions=table.sessions))
            for seed in table.seeds
        )
    return found


def recorded(stream: Stream, *, sessions: bool = True) -> Recorded:
    """A synthetic stream as one that the evaluation takes."""
    return Recorded(
        x=stream.x,
        at=stream.at,
        session=[str(s) for s in stream.session.tolist()] if sessions else None,
        change_at=stream.change_at,
    )


def markdown(scores: dict[str, Score], budget: float) -> str:
    """The table for people."""
    lines = [
        "| kind | streams | null events | false alarms | per 10,000 | 95 % bounds | kept | "
        "median delay | p90 | misses | µs/event |",
        "|---|---:|---:|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for kind, s in scores.items():
        if not s.streams:
            continue
        low, high = s.bounds_per_10k
        delays = (
            f"{s.median_delay:.0f} | {s.p90_delay:.0f} | {s.misses}"
            if (s.delays or s.misses)
            else "| |"
        )
        kept = "yes" if s.keeps(budget) else "no"
        lines.append(
            f"| {kind} | {s.streams} | {s.null_events:,} | {s.false_alarms} | "
            f"{s.alarms_per_10k:.3f} | {low:.3f}–{high:.3f} | {kept} | {delays} | "
            f"{s.us_per_event:.1f} |"
        )
    return "\n".join(lines)


def figures(scores: dict[str, Score]) -> dict[str, float]:
    """Named figures: ``drift.KIND.median_delay`` and ``.p90_delay`` in requests,
    ``drift.NULL_KIND.alarms_per_10k`` and ``.null_events``, ``drift.us_per_event`` (processor time
    of one thread once armed), ``drift.reference_us_per_event``, ``drift.state_mb`` (JSON)."""
    found: dict[str, float] = {}
    judged = {kind: score for kind, score in scores.items() if kind != REFERENCE}
    for kind, score in judged.items():
        if score.delays or score.misses:
            found[f"drift.{kind}.median_delay"] = score.median_delay
            found[f"drift.{kind}.p90_delay"] = score.p90_delay
            found[f"drift.{kind}.misses"] = float(score.misses)
        else:
            found[f"drift.{kind}.alarms_per_10k"] = score.alarms_per_10k
            found[f"drift.{kind}.null_events"] = float(score.null_events)
    found["drift.us_per_event"] = total(judged.values()).us_per_event
    found["drift.reference_us_per_event"] = scores[REFERENCE].us_per_event
    found["drift.state_mb"] = max(s.state_bytes for s in scores.values()) / 1e6
    return found


def environment_of(kind: str) -> str:
    """The environment of a kind of stream as one word: "iid" if it names none."""
    return "+".join(sorted(parse(kind)[0])) or "iid"


def _summary(part: dict[str, Score]) -> str:
    nulls = total(part.values())
    return f"{nulls.false_alarms} false alarms in {nulls.null_events:,} requests"
