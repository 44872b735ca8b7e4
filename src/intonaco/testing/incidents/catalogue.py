"""What can happen to a made-up service, and what a good diagnosis says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from intonaco.monitoring.sources import SOURCES
from intonaco.testing.incidents.traffic import MOST_IN_BATCH, batch_work, work
from intonaco.testing.incidents.world import BEGAN, SIZES, Fault, World
from intonaco.types import Cause, Factor

HOUR = 3600.0
# What a full batch makes of a machine's capacity: see Traffic._serve.
FULL_BATCH = MOST_IN_BATCH / batch_work(MOST_IN_BATCH)

Happens = Callable[[World, int, np.random.Generator], tuple[Fault, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """``truth``: the causes at work; empty where nothing is wrong. ``factors``: what is behind
    them, where a diagnosis could know. ``benign``: causes that may be told all the same, because
    they are true and do no harm; ``factors`` then say with what behind them. ``needs``: what must
    be watched for it to be seen at all. ``alone``: whether it is a single incident."""

    name: str
    truth: frozenset[Cause]
    happens: Happens
    factors: Mapping[Cause, frozenset[Factor | None]] = field(default_factory=dict)
    benign: frozenset[Cause] = frozenset()
    needs: frozenset[str] = frozenset()
    alone: bool = True


def possible(sources: Mapping[str, object] = SOURCES) -> tuple[str, ...]:
    """The incidents whose signals there are sources for."""
    return tuple(name for name, i in INCIDENTS.items() if i.needs <= set(sources))


# ------------------------------------------------------------------------- what happens, one by one


def new_topic_bad(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, new_topic=r.uniform(0.15, 0.5), gap=r.uniform(0.1, 0.5)),)


def new_topic_good(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, new_topic=r.uniform(0.15, 0.5), gap=r.uniform(-0.02, 0.01)),)


def topic_grows_good(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, grows=r.uniform(0.15, 0.5)),)


def topic_grows_bad(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, grows=r.uniform(0.15, 0.5), gap=r.uniform(0.12, 0.5)),)


def votes_fall_on_topic(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    """On as many of the most asked topics as make up a third of the requests. Votes are rare, so
    in a short run most people vote; many people, because one's votes count only so often."""
    w.voting, w.users, w.rate = 0.7, 400, min(w.rate, 3.0)
    topics = int(np.searchsorted(np.cumsum(w.shares), 0.33)) + 1
    return (Fault(start=start, topics=topics, dislike=r.uniform(0.4, 0.6)),)


def decline_by_release(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    _release(w, r)
    return (Fault(start=start, drop=r.uniform(0.08, 0.3), of_release=True),)


def decline_by_environment(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.probes = True
    return (Fault(start=start, drop=r.uniform(0.05, 0.3), probes_change=True),)


def decline_unexplained(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.probes = False
    return (Fault(start=start, drop=r.uniform(0.08, 0.3)),)


def probes_changed(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    """Other pictures for the same prompts and seeds, as good as before: only probes can tell."""
    w.probes = True
    return (Fault(start=start, probes_change=True),)


def collapse(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, alike=r.uniform(0.5, 1.0), probes_change=True),)


def blank_by_release(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    _release(w, r)
    return (Fault(start=start, blank=r.uniform(0.1, 1.0), of_release=True),)


def unreadable(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, unreadable=r.uniform(0.1, 1.0)),)


def latency_by_release(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    _release(w, r)
    return (Fault(start=start, slower=r.uniform(2.7, 6.0), of_release=True),)


def latency_by_one_machine(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    """Of few: requests go to who is free first, so one slow machine of many gets so few of them
    that they are within the tolerance of the signal."""
    w.replicas = min(w.replicas, 4)
    return (Fault(start=start, slower=r.uniform(2.7, 6.0), machines=1),)


def latency_by_all_machines(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, slower=r.uniform(2.7, 6.0)),)


def queueing(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    over = r.uniform(1.2, 2.0)
    return (Fault(start=start, demand=over * FULL_BATCH / w.utilisation),)


def larger_images_overload(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    _small_images(w)
    share = _share_of_larger(w, r.uniform(1.2, 2.0) * FULL_BATCH / w.utilisation)
    return (Fault(start=start, larger=share),)


def larger_images(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    """Busier machines, but not too busy: nothing is wrong."""
    _small_images(w)
    return (Fault(start=start, larger=_share_of_larger(w, r.uniform(1.1, 0.7 / w.utilisation))),)


def errors_by_release(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    _release(w, r)
    return (Fault(start=start, failing=r.uniform(0.1, 0.5), of_release=True),)


def errors_by_machines(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, failing=r.uniform(0.1, 0.5)),)


def errors_upstream(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.elsewhere = True
    return (Fault(start=start, failing=r.uniform(0.1, 0.5)),)


def latency_upstream(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.elsewhere = True
    return (Fault(start=start, slower=r.uniform(2.7, 6.0)),)


def broken_input(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, refused=r.uniform(0.05, 0.6)),)


def scorer_dead(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, scorer=False),)


def records_dead(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return (Fault(start=start, records=False),)


def nothing(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    return ()


def bursts(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.again = r.uniform(0.6, 0.85)
    return ()


def robot(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.robot = int(r.integers(50, 250))
    return ()


def growth(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.utilisation = r.uniform(0.2, 0.4)
    w.growth = r.uniform(1.3, 2.0)
    return ()


def daily_cycle(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
    w.topics_swing, w.rate_swings = r.uniform(0.2, 0.5), 0.4
    return ()


def both(*parts: Happens) -> Happens:
    """Two incidents, the later ones up to 150 requests after the first."""

    def happens(w: World, start: int, r: np.random.Generator) -> tuple[Fault, ...]:
        found = list(parts[0](w, start, r))
        for part in parts[1:]:
            found += part(w, start + int(r.integers(0, 150)), r)
        return tuple(found)

    return happens


# ------------------------------------------------------------------------------------------ details


def _release(w: World, r: np.random.Generator) -> None:
    """The champion took over a short while before the run; often the one before keeps a share."""
    w.released_at = BEGAN - r.uniform(0.0, 0.2) * HOUR
    w.rate = max(w.rate, 1.0)  # so that the run fits into the hour after it
    w.holdback = float(r.choice((0.0, 0.05, 0.1)))


def _small_images(w: World) -> None:
    w.classes, w.class_shares = ((SIZES[0], 10), (SIZES[1], 10)), (0.6, 0.4)
    w.utilisation = min(w.utilisation, 0.5)


def _share_of_larger(w: World, factor: float) -> float:
    """Share of the largest images that makes the mean work ``factor`` times what it was."""
    mean = sum(s * work(c) for s, c in zip(w.class_shares, w.classes, strict=True))
    largest = work((SIZES[-1], w.classes[-1][1]))
    return float(min(0.9, (factor - 1.0) * mean / (largest - mean)))


PERFORMANCE = Cause.PERFORMANCE_DEGRADATION


def _one(
    name: str,
    happens: Happens,
    *truth: Cause,
    factors: tuple[Factor | None, ...] = (),
    benign: tuple[Cause, ...] = (),
    needs: tuple[str, ...] = (),
) -> Incident:
    return Incident(
        name=name,
        truth=frozenset(truth),
        happens=happens,
        factors={(truth or benign)[0]: frozenset(factors)} if factors else {},
        benign=frozenset(benign),
        needs=frozenset(needs),
    )


def _mixed(name: str, *names: str) -> Incident:
    parts = [_SINGLE[n] for n in names]
    return Incident(
        name=name,
        truth=frozenset().union(*(p.truth for p in parts)),
        happens=both(*(p.happens for p in parts)),
        factors={cause: allowed for p in parts for cause, allowed in p.factors.items()},
        needs=frozenset().union(*(p.needs for p in parts)),
        alone=False,
    )


_SINGLE = {
    i.name: i
    for i in (
        _one("new topic, served badly", new_topic_bad, Cause.CONCEPT_DRIFT),
        _one("new topic, served well", new_topic_good, Cause.DATA_DRIFT),
        _one("old topic grows, served well", topic_grows_good, Cause.DATA_DRIFT),
        _one("old topic grows, served badly", topic_grows_bad, Cause.CONCEPT_DRIFT),
        _one("votes fall on a topic", votes_fall_on_topic, Cause.CONCEPT_DRIFT, needs=("thumbs",)),
        _one(
            "decline by release",
            decline_by_release,
            Cause.QUALITY_DECLINE,
            factors=(Factor.RELEASE,),
        ),
        _one(
            "decline by environment",
            decline_by_environment,
            Cause.QUALITY_DECLINE,
            factors=(Factor.ENVIRONMENT,),
        ),
        _one(
            "decline, nobody knows why",
            decline_unexplained,
            Cause.QUALITY_DECLINE,
            factors=(None,),
        ),
        _one(
            "probes changed", probes_changed, Cause.QUALITY_DECLINE, factors=(Factor.ENVIRONMENT,)
        ),
        _one(
            "collapse of outputs",
            collapse,
            Cause.QUALITY_DECLINE,
            factors=(None, Factor.ENVIRONMENT),  # by whether there are probes
            needs=("diversity",),
        ),
        _one(
            "blank pictures by release",
            blank_by_release,
            Cause.QUALITY_DECLINE,
            factors=(Factor.RELEASE,),
            needs=("blank_images",),
        ),
        _one(
            "pictures cannot be read",
            unreadable,
            Cause.BROKEN_FORMAT,
            factors=(None,),
            needs=("broken_images",),
        ),
        _one("slow by release", latency_by_release, PERFORMANCE, factors=(Factor.RELEASE,)),
        _one(
            "slow by one machine",
            latency_by_one_machine,
            PERFORMANCE,
            factors=(Factor.INFRASTRUCTURE,),
        ),
        _one(
            "slow by all machines",
            latency_by_all_machines,
            PERFORMANCE,
            factors=(Factor.INFRASTRUCTURE,),
        ),
        _one("slow upstream", latency_upstream, PERFORMANCE, factors=(Factor.UPSTREAM,)),
        _one("demand above capacity", queueing, PERFORMANCE, factors=(Factor.QUEUEING,)),
        _one(
            "larger images, too many",
            larger_images_overload,
            PERFORMANCE,
            factors=(Factor.REQUEST_MIX,),
        ),
        _one("errors by release", errors_by_release, PERFORMANCE, factors=(Factor.RELEASE,)),
        _one(
            "errors by machines",
            errors_by_machines,
            PERFORMANCE,
            factors=(Factor.INFRASTRUCTURE,),
        ),
        _one("errors upstream", errors_upstream, PERFORMANCE, factors=(Factor.UPSTREAM,)),
        _one(
            "broken input",
            broken_input,
            Cause.BROKEN_FORMAT,
            factors=(Factor.CLIENTS,),
            needs=("refused",),
        ),
        _one("scorer dead", scorer_dead, Cause.UNKNOWN, factors=(Factor.MONITORING,)),
        _one("records lost", records_dead, Cause.UNKNOWN, factors=(Factor.MONITORING,)),
        _one("nothing", nothing),
        _one(
            "nothing: larger images",
            larger_images,
            benign=(PERFORMANCE,),
            factors=(Factor.REQUEST_MIX,),
        ),
        _one("nothing: bursts", bursts),
        _one("nothing: robot", robot),
        _one("nothing: growth", growth),
        # what people ask for does move over the day
        _one("nothing: daily cycle", daily_cycle, benign=(Cause.DATA_DRIFT, Cause.UNKNOWN)),
    )
}

INCIDENTS: dict[str, Incident] = {
    **_SINGLE,
    **{
        i.name: i
        for i in (
            _mixed(
                "new bad topic + slow machine", "new topic, served badly", "slow by one machine"
            ),
            _mixed("new bad topic + too much", "new topic, served badly", "demand above capacity"),
            _mixed("new good topic + errors", "new topic, served well", "errors by machines"),
            _mixed("new good topic + slow release", "new topic, served well", "slow by release"),
            _mixed("environment + too much", "decline by environment", "demand above capacity"),
            _mixed(
                "new bad topic + decline", "new topic, served badly", "decline, nobody knows why"
            ),
            _mixed("new good topic + decline", "new topic, served well", "decline by environment"),
            _mixed("votes fall + slow machine", "votes fall on a topic", "slow by one machine"),
            _mixed("broken input + errors", "broken input", "errors by machines"),
            _mixed("new bad topic + broken input", "new topic, served badly", "broken input"),
        )
    },
}
