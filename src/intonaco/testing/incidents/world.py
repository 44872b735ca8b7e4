"""One made-up service: its topics, users, classes of requests, machines and history."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DIMENSION = 32
BEGAN = 1_700_000_000.0
STEPS = (4, 10, 20, 30, 50)
SIZES = (256, 512, 768, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is true from request ``start`` on. At its defaults nothing happens.

    ``new_topic``, ``grows``: share of requests that go to a new or to the rarest old topic, whose
    images score ``gap`` less. ``drop``: how much lower all images score. ``alike``: share of images
    that are one and the same whatever the prompt; ``blank``: that show nothing; ``unreadable``:
    whose file is broken. ``slower``: factor on the work of ``machines`` (None: all). ``failing``:
    share of requests that the machines fail. ``demand``: factor on the rate of requests.
    ``larger``: share of requests that ask for the largest images there are. ``refused``: share of
    requests that the service cannot read. ``dislike``: how much less often votes are up, on the
    most asked ``topics`` (0: on all). ``scorer``: False when the scorer died;
    ``records``: False when records no longer reach it. ``of_release``: the release before it is
    spared. ``probes_change``: what the release draws for a fixed seed changed.
    """

    start: int
    new_topic: float = 0.0
    grows: float = 0.0
    gap: float = 0.0
    drop: float = 0.0
    alike: float = 0.0
    blank: float = 0.0
    unreadable: float = 0.0
    slower: float = 1.0
    machines: int | None = None
    failing: float = 0.0
    demand: float = 1.0
    larger: float = 0.0
    refused: float = 0.0
    dislike: float = 0.0
    topics: int = 0
    scorer: bool = True
    records: bool = True
    of_release: bool = False
    probes_change: bool = False


@dataclass(slots=True, kw_only=True)
class World:
    """What does not change. ``rate``: requests a second. ``utilisation``: of the machines before
    anything happens. ``spread``: log standard deviation of the work. ``again``: probability that a
    user asks for a variant of the last prompt. ``topics_swing``, ``rate_swings``: over a cycle of
    ``cycle`` requests. ``robot``: requests of one client in a row, about once in 700. ``growth``:
    factor on the rate over the whole run. ``holdback``: share kept on the release before.
    ``released_at``: when the champion took over; None: it is the first. ``voting``: share of
    images that get a vote. ``base_refused``: share of requests that cannot be read on any day.
    ``elsewhere``: the model is another's server."""

    seed: int
    topics: int
    rate: float
    replicas: int
    utilisation: float
    spread: float
    quality: float
    quality_spread: float
    topic_spread: float
    users: int
    again: float
    classes: tuple[tuple[int, int], ...]  # (pixels along a side, steps)
    class_shares: tuple[float, ...]
    probes: bool
    holdback: float
    voting: float
    liked: float
    base_errors: float
    cycle: int
    rate_swings: float
    topics_swing: float = 0.0
    robot: int = 0
    growth: float = 1.0
    base_refused: float = 0.0
    released_at: float | None = None
    environment_at: float | None = None
    elsewhere: bool = False
    centres: Array = field(init=False)
    shares: Array = field(init=False)
    topic_quality: Array = field(init=False)
    phase: Array = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng([41, self.seed])
        centres = random.standard_normal((self.topics + 1, DIMENSION))
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        common = random.standard_normal(DIMENSION)
        self.centres = centres + 0.3 * common / np.linalg.norm(common)  # the last one is new
        weights = 1.0 / np.arange(1, self.topics + 1) ** random.uniform(0.3, 1.0)
        self.shares = weights / weights.sum()
        scores = self.quality + self.topic_spread * random.standard_normal(self.topics + 1)
        mean = float(self.shares @ scores[:-1])
        scores[-2:] = mean  # the rarest and the new one: as good as the rest until a fault says not
        self.topic_quality = scores
        self.phase = random.uniform(0.0, 2.0 * np.pi, self.topics)


def draw(seed: int) -> World:
    """A world with parameters from wide ranges."""
    r = np.random.default_rng([31, seed])
    sizes = r.choice(len(SIZES) - 1, size=int(r.integers(1, 4)), replace=False)
    classes = tuple((SIZES[int(s)], int(r.choice(STEPS))) for s in sorted(sizes))
    shares = r.dirichlet(np.full(len(classes), 2.0))
    return World(
        seed=seed,
        topics=int(r.integers(6, 25)),
        rate=float(np.exp(r.uniform(np.log(0.5), np.log(12.0)))),
        replicas=int(r.integers(2, 7)),
        utilisation=float(r.uniform(0.25, 0.65)),
        spread=float(r.uniform(0.05, 0.2)),
        quality=float(r.uniform(0.3, 0.8)),
        quality_spread=float(r.uniform(0.03, 0.12)),
        topic_spread=float(r.uniform(0.0, 0.03)),
        users=int(r.integers(40, 400)),
        again=float(r.choice((0.0, 0.3, 0.6))),
        classes=classes,
        class_shares=tuple(float(s) for s in shares),
        probes=bool(r.random() < 0.7),
        holdback=0.0,
        voting=float(r.uniform(0.1, 0.4)),
        liked=float(r.uniform(0.65, 0.9)),
        base_errors=float(r.choice((0.0, 0.002, 0.005))),
        cycle=int(r.integers(800, 3000)),
        rate_swings=float(r.choice((0.0, 0.3))),
        base_refused=float(r.choice((0.0, 0.003, 0.01))),
    )
