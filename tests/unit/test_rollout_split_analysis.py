"""Evidence of a split: which record feeds which comparison, how often nobody better wins all the
same, how soon somebody better does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.opinionated import said
from tests.splits import Behaviour, SplitTraffic

from intonaco.config import RolloutConfig, RolloutMargins, SplitConfig
from intonaco.errors import StorageError
from intonaco.rollout.analysis import RATIO_ALPHA, RolloutAnalysis
from intonaco.rollout.routing import split_arms
from intonaco.rollout.split import ArmFacts, best, look, planned
from intonaco.rollout.split_analysis import SplitAnalysis
from intonaco.stats.betting import FRACTIONS, log_growth, mix
from intonaco.types import (
    Assessment,
    Rollout,
    RolloutStatus,
    RolloutStep,
    RoutingTable,
    ScoredRecord,
    ServingStatus,
    StepKind,
)

CONFIG = RolloutConfig(
    strategy="ab",
    margins=RolloutMargins(errors=0.05, slow=0.1, clip_score=0.05),
    score_range=(0.0, 0.6),
)
METRICS = ("errors", "slow", "clip_score")
BETTER = Behaviour(clip=0.34)


def make_with(metrics: tuple[str, ...]) -> Any:
    def make(
        name: str, alpha: float, *, metrics: tuple[str, ...] | None, ratio_alpha: float
    ) -> RolloutAnalysis:
        return RolloutAnalysis(
            name,
            CONFIG,
            alpha,
            salt="salt",
            metrics=metrics or wanted,
            medians={"32x32x10": 0.3},
            score_range=CONFIG.score_range,
            settle_seconds=2.0,
            ratio_alpha=ratio_alpha,
        )

    wanted = metrics
    return make


class Split:
    """A split with its traffic, its tables and its analysis."""

    def __init__(
        self,
        *names: str,
        of: dict[str, Behaviour] | None = None,
        seed: int = 1,
        alpha: float = 0.05,
        metrics: tuple[str, ...] = METRICS,
        config: SplitConfig | None = None,
    ) -> None:
        self.rollout = Rollout(
            rollout_id="r",
            service_id="s",
            update_id="u",
            champion="A",
            challenger=names[0],
            steps=(RolloutStep(kind=StepKind.SPLIT),),
            status=RolloutStatus.RUNNING,
            started_at=0.0,
            salt="salt",
            alpha=alpha,
            split=planned({n: n for n in names}, config or SplitConfig()),
        )
        self.make = make_with(metrics)
        self.tables: dict[int, RoutingTable] = {}
        self.route()
        self.analysis = self.fresh()
        self.traffic = SplitTraffic(of=of or {}, seed=seed)
        self.now = 0.0

    def fresh(self) -> SplitAnalysis:
        made = SplitAnalysis(self.rollout, self.make, self.tables.get)
        made.begin_step(0, 0.0, 0.75)
        return made

    def route(self) -> RoutingTable:
        assert self.rollout.split is not None
        statuses = {
            n: ServingStatus(release=n, ready=True, urls=(f"http://{n}",))
            for n in ("A", *(a.release for a in self.rollout.split.arms))
        }
        arms = split_arms(statuses["A"], self.rollout, self.rollout.split, statuses, None)
        assert arms is not None
        epoch = len(self.tables) + 1
        table = RoutingTable(service_id="s", epoch=epoch, salt="salt", arms=arms)
        self.tables[epoch] = table
        return table

    @property
    def table(self) -> RoutingTable:
        return self.tables[len(self.tables)]

    def take_out(self, name: str) -> None:
        facts = (ArmFacts(name=name, dead=True),)
        self.rollout, _ = look(self.rollout, facts, (), self.now, champion_ready=True)
        self.route()
        self.analysis.follow(self.rollout)

    def users(self, count: int) -> list[ScoredRecord]:
        self.now += 1.0
        return list(self.traffic.new_users(self.table, count, self.now))

    def feed(self, count: int) -> None:
        for item in self.users(count):
            self.analysis.observe(item)

    def winner(self) -> str | None:
        facts = [
            ArmFacts(name=n, assessments=a.assess(), units=a.units_at_step)
            for n, a in self.analysis.arms.items()
        ]
        seen, _ = look(self.rollout, facts, (), self.now, champion_ready=True)
        assert seen.split is not None
        won = best(seen.split, tuple(next(iter(self.analysis.arms.values())).metrics))
        return won.name if won else None


def units(analysis: SplitAnalysis, name: str) -> tuple[int, int]:
    """(champion's, its own)"""
    found = analysis.arms[name].assess()[0]
    return found.units_champion, found.units_challenger


# ------------------------------------------------------------------------------------ who counts


def test_a_record_feeds_the_comparisons_that_its_arm_is_a_side_of() -> None:
    split = Split("b", "c", "d")
    items = split.users(200)
    for item in items:
        assert split.analysis.observe(item)
    dealt = {n: sum(i.record.assigned_arm == n for i in items) for n in
             ("champion", "challenger:r.b", "challenger:r.c", "challenger:r.d")}  # fmt: skip
    assert sum(dealt.values()) == 200
    for name in "bcd":
        assert units(split.analysis, name) == (dealt["champion"], dealt[f"challenger:r.{name}"])
        assert split.analysis.arms[name].alpha == pytest.approx(0.05 / 3)
    for pair in split.analysis._pairs:
        analysis = split.analysis._pairs[pair]
        found = analysis.assess()[0]
        sides = [dealt[f"challenger:r.{n}"] for n in pair]
        assert [found.units_challenger, found.units_champion] == sides
        assert analysis.alpha == pytest.approx(0.05 / 3)


def test_records_that_say_nothing_of_a_split() -> None:
    split = Split("b", "c")
    item = split.users(1)[0]
    champion = split.table.champion().name
    for wrong in (
        {"probe": True},
        {"salt": "another rollout"},
        {"routing_epoch": 99},  # nobody here gave out such a table
        {"probability": 0.9},  # nor this share
        {"assigned_arm": "returned:r.b", "probability": 1 / 3},
        {"assigned_arm": champion, "probability": 1.0},
    ):
        changed = replace(item, record=replace(item.record, **wrong))
        assert not split.analysis.observe(changed), wrong
    assert split.analysis.units_at_step == 0


def test_whose_arm_was_taken_out_counts_for_nobody() -> None:
    """Users of the arm that is gone come again and again: were they the champion's, the split would
    look wrong, and the champion's users would be other people than before."""
    split = Split("b", "c", of={"b": Behaviour(errors=0.5)})
    split.feed(600)
    before = units(split.analysis, "c")
    split.take_out("b")
    old = [f"user-{k}" for k in range(1, 601)]
    for _ in range(3):
        split.now += 1.0
        for user in old:
            split.analysis.observe(split.traffic.request(split.table, user, split.now))
    assert units(split.analysis, "c") == before
    split.feed(1500)
    split.analysis.advance(split.now + 10)
    champion, own = units(split.analysis, "c")
    assert champion > before[0]
    assert own > before[1]
    assert split.analysis.sample_ratio_ok
    assert list(split.analysis.arms) == ["c"]
    ratio = split.analysis.arms["c"]._ratio
    assert ratio.units[1] == pytest.approx(ratio.expected, abs=4 * math.sqrt(sum(ratio.units) / 4))


def test_between_a_trip_and_the_next_table_nobody_is_miscounted() -> None:
    split = Split("b", "c")
    split.feed(300)
    for _ in range(10):  # the gateway has tripped b; the controller has not looked yet
        split.now += 1.0
        for user in [f"user-{k}" for k in range(1, 301)]:
            item = split.traffic.request(split.table, user, split.now, {"b"})
            split.analysis.observe(item)
        for item in split.traffic.new_users(split.table, 100, split.now, {"b"}):
            split.analysis.observe(item)
    split.analysis.advance(split.now + 10)
    ratio = split.analysis.arms["c"]._ratio
    assert ratio.ok
    assert abs(ratio.units[1] - ratio.expected) < 4 * math.sqrt(sum(ratio.units) / 4)


def test_a_split_that_is_not_the_logged_one_is_found() -> None:
    split = Split("b", "c", "d")
    for item in split.users(1500):
        # A gateway that sends half of c's users elsewhere and logs them as its own table says.
        if item.record.assigned_arm == "challenger:r.c" and item.record.seq % 2:
            item = replace(item, record=replace(item.record, assigned_arm="champion"))
        split.analysis.observe(item)
    split.analysis.advance(split.now + 10)
    assert not split.analysis.sample_ratio_ok
    assert "c beside the champion: " in split.analysis.sample_ratio_text
    assert "were foretold" in split.analysis.sample_ratio_text
    # Its alpha is shared out over the three odds that say all of the four shares.
    assert split.analysis.arms["b"]._ratio.threshold == pytest.approx(math.log(3 / RATIO_ALPHA))


def test_two_arms_are_compared_on_the_metric_that_decides() -> None:
    split = Split("b", "c", of={"b": BETTER, "c": Behaviour(clip=0.26)})
    split.feed(800)
    split.analysis.advance(split.now + 10)
    (pair,) = split.analysis.pairs()
    assert (pair.first, pair.second) == ("b", "c")
    assert pair.difference == pytest.approx(0.08, abs=0.015)
    assert pair.interval is not None
    assert 0.0 < pair.interval[0] < 0.08 < pair.interval[1]


# ------------------------------------------------------------------------------------ state


@pytest.mark.parametrize("removed", [False, True])
def test_state_restores_exactly_in_the_middle(removed: bool) -> None:
    split = Split("b", "c", "d", of={"b": BETTER})
    split.feed(150)
    if removed:
        split.take_out("d")
    split.feed(100)
    stored = json.loads(json.dumps(split.analysis.state()))
    restored = split.fresh()
    restored.restore(stored)
    for item in split.users(200):
        assert restored.observe(item) == split.analysis.observe(item)
    for analysis in (restored, split.analysis):
        analysis.advance(split.now + 10)
    assert restored.state() == split.analysis.state()
    assert restored.pairs() == split.analysis.pairs()
    assert "user-1" not in json.dumps(stored)
    assert "prompt 1" not in json.dumps(stored)


def test_state_from_before_a_removal_still_restores() -> None:
    """The ledger has the removal; the evidence was written a moment before."""
    split = Split("b", "c")
    split.feed(50)
    stored = json.loads(json.dumps(split.analysis.state()))
    split.take_out("c")
    restored = split.fresh()
    restored.restore(stored)
    assert list(restored.arms) == ["b"]
    assert units(restored, "b") == units(split.analysis, "b")


def test_state_of_another_split_is_refused() -> None:
    split = Split("b", "c")
    stored = dict(split.analysis.state())
    with pytest.raises(StorageError, match="another rollout"):
        split.fresh().restore(stored | {"split": "x"})
    with pytest.raises(StorageError, match="lacks b"):
        split.fresh().restore(stored | {"arms": {"c": stored["arms"]["c"]}})


def test_after_the_decision_the_winner_is_judged_alone() -> None:
    split = Split("b", "c", of={"b": BETTER})
    split.feed(200)
    assert split.analysis.assess() == ()
    rollout = split.rollout
    assert rollout.split is not None
    rollout = replace(rollout, split=replace(rollout.split, winner="b"))
    split.analysis.follow(rollout)
    assert {a.metric for a in split.analysis.assess()} == set(METRICS)
    assert split.analysis.pairs() == ()
    before = units(split.analysis, "b")
    # Everybody has it: unrandomised, so nothing more is learnt of the difference.
    everybody = replace(
        split.table,
        epoch=2,
        arms=(
            replace(split.table.arms[0], weight=0.0),
            replace(split.table.arms[1], weight=1.0, start=None),
        ),
    )
    split.tables[2] = everybody
    split.analysis.begin_step(1, split.now, 1.0)
    split.feed(50)
    assert units(split.analysis, "b") == before
    assert split.analysis.units_at_step == 50


# ------------------------------------------------------------------------------------ error budget


def false_winners(runs: int, users: int, alpha: float, arms: int, seed: int) -> float:
    """Share of runs in which, of ``arms`` challengers that are no better, one is ever called better
    at a look after every user. Vectorised over runs; the bets are those of the analysis: given that
    a user was dealt to the champion or to this arm, at the odds of the two. The champion's mean
    drifts, one arm is taken out half way."""
    rng = np.random.default_rng(seed)
    shares = np.full(arms + 1, 1 / (arms + 1))
    wealth = np.zeros((runs, arms, len(FRACTIONS)))
    ever = np.zeros(runs, bool)
    total, seen = np.full(runs, 1.0), np.full(runs, 2.0)  # the centre: a mean of past outcomes
    threshold = math.log(arms / alpha)
    for user in range(users):
        dealt = rng.choice(arms + 1, size=runs, p=shares)  # 0: the champion
        base = 0.5 + 0.2 * math.sin(user / 50)
        y = (rng.random(runs) < base).astype(float)
        c = total / seen
        for arm in range(arms):
            if arm == arms - 1 and user > users // 2:
                continue
            own, w = dealt == arm + 1, shares[arm + 1] / (shares[arm + 1] + shares[0])
            h = np.where(own, (1 - w) * (y - c), -w * (y - c))
            low, high = -np.maximum((1 - w) * c, w * (1 - c)), np.maximum((1 - w) * (1 - c), w * c)
            _, below = log_growth(
                h, np.full(runs, w * (1 - w)), low, high, np.zeros(1), np.asarray(FRACTIONS)
            )
            wealth[:, arm] += np.where((own | (dealt == 0))[:, None], below[:, 0], 0.0)
            ever |= mix(wealth[:, arm]) >= threshold
        total, seen = total + y, seen + 1
    return float(ever.mean())


@pytest.mark.parametrize(
    ("runs", "users"), [(1000, 300), pytest.param(4000, 3000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("arms", [2, 4])
def test_nobody_better_wins_at_most_at_alpha(
    runs: int, users: int, arms: int, record_property: Any
) -> None:
    alpha = 0.1
    found = false_winners(runs, users, alpha, arms, seed=arms)
    record_property("table", f"split, {arms} equal challengers: {found:.3f} won at alpha {alpha}")
    assert found <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert found > 0.0  # it can


@pytest.mark.parametrize(
    ("runs", "users"), [(25, 240), pytest.param(300, 1000, marks=pytest.mark.slow)]
)
def test_nobody_better_wins_by_the_whole_analysis(
    runs: int, users: int, record_property: Any
) -> None:
    """The same of the real thing, records and all: A/A/A."""
    alpha, false = 0.2, 0
    for seed in range(runs):
        split = Split("b", "c", seed=seed, alpha=alpha, metrics=("clip_score",))
        for _ in range(users // 40):
            split.feed(40)
            split.analysis.advance(split.now + 3)
            if split.winner() is not None:
                false += 1
                break
        assert split.analysis.sample_ratio_ok
    record_property("table", f"A/A/A, whole analysis: {false} of {runs} won at alpha {alpha}")
    assert false / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize(
    ("runs", "users"), [(3, 900), pytest.param(100, 1500, marks=pytest.mark.slow)]
)
def test_the_better_one_wins_and_a_harmful_one_never(
    runs: int, users: int, record_property: Any
) -> None:
    """Better by 0.8 standard deviations of the score beside an equal one and one that fails."""
    needed, won = [], 0
    for seed in range(runs):
        of = {"b": BETTER, "d": Behaviour(errors=0.3)}
        split = Split("b", "c", "d", of=of, seed=seed)
        for step in range(users // 60):
            split.feed(60)
            split.analysis.advance(split.now + 3)
            found = split.winner()
            if found is not None:
                won += found == "b"
                needed.append((step + 1) * 60)
                break
        harmful = split.analysis.arms["d"].assess()
        assert any(a.assessment is Assessment.HARMFUL for a in harmful)
    assert won == len(needed)
    assert won >= 0.9 * runs
    record_property("table", f"one of three is better: {np.median(needed):.0f} users, {runs} runs")


def test_what_people_say_counts_for_the_arms_that_their_images_are_of() -> None:
    split = Split(
        "b", "c", metrics=("errors", "feedback"), config=SplitConfig(metric="feedback"), seed=3
    )
    dice = np.random.default_rng(3)
    ill = {"challenger:r.c": 0.4}
    for _ in range(60):
        for item in split.users(20):
            split.analysis.observe(item)
            draw, worse = dice.random(), ill.get(item.record.assigned_arm, 0.1)
            if draw < worse + 0.1:
                split.analysis.hear(said(item, 50.0, "down" if draw < worse else "up"))
    split.analysis.advance(split.now + 86_500.0)
    assert split.analysis.arms["c"].harmful == ("feedback",)
    assert split.analysis.arms["b"].harmful == ()
    shown = split.analysis.arms["b"].assess()[1]
    assert shown.units_challenger + shown.units_champion == sum(units(split.analysis, "b"))
    (pair,) = split.analysis.pairs()
    assert (pair.first, pair.second) == ("b", "c")
    assert pair.difference == pytest.approx(-0.3, abs=0.1)
    assert pair.interval is not None
    assert pair.interval[1] < 0
    again = split.fresh()
    again.restore(json.loads(json.dumps(split.analysis.state())))
    assert again.arms["c"].assess() == split.analysis.arms["c"].assess()
    assert again.pairs() == split.analysis.pairs()
