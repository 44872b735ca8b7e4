"""Strategy ``ab`` by the whole controller, over twins of every seam, with real evidence: made-up
users are dealt by the gateway's function, their records lie in the scorer's log, and the analysis
judges them. Each story also with the controller thrown away after every second tick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_loop_in_memory import CONFIG, World
from tests.splits import Behaviour, SplitTraffic

from intonaco import config, readmodel
from intonaco.codec import encode
from intonaco.config import RolloutConfig
from intonaco.rollout.quarantine import quarantined
from intonaco.segment_log import SegmentWriter
from intonaco.types import Phase, Rollout, RolloutStatus, Verdict

RECIPES = ("tune", "other", "third")
USERS = 50  # new ones a tick
BETTER = Behaviour(clip=0.36)
EQUAL = Behaviour()
BROKEN = Behaviour(errors=0.5)


class Story(World):
    """A service with traffic. ``of``: how the releases of an update behave, by arm."""

    def __init__(self, root: Path, restarts: bool) -> None:
        super().__init__(root, restarts=restarts)
        self.traffic = SplitTraffic(seed=3)
        self.scores = SegmentWriter(self.workspace.scores, "scorer")
        self.flowing = False
        self.moved: dict[str, str] = {}
        self.seen: dict[str, str] = {}  # release that a user was answered by first
        text = CONFIG.replace("APPROVAL", "auto").replace(
            "    tune:",
            "    other: {method: full, steps: 6, estimated_seconds: 10}\n"
            "    third: {method: full, steps: 7, estimated_seconds: 10}\n    tune:",
        )
        text = text.replace("{probes: []}", "{probes: [], signals: {}}")
        text += "serving: {gateway: {challenger_timeout_s: 1}}\n"
        self.text = text
        self.configure()

    def configure(self, **ab: Any) -> None:
        parsed = config.parse(self.text)
        rollout = RolloutConfig.model_validate(
            {
                "strategy": "ab",
                "metrics": ["errors", "slow", "clip_score"],
                "ab": {"min_seconds": 3, "min_units": 20} | ab,
                "bake_seconds": 4,
                "holdback": 0.1,
                "drain_seconds": 60,
                "max_seconds": 40,
                "score_range": [0.0, 0.6],
                "margins": {"errors": 0.05, "slow": 0.1, "clip_score": 0.05},
            }
        )
        parsed = parsed.model_copy(update={"rollout": rollout})
        self.parts = replace(self.parts, config=parsed)
        self.controller.close()
        self.controller = self._controller()

    def begin(self, *behaviours: Behaviour) -> str:
        """To the split of as many candidates; the champion."""
        first = self.first_release()
        names = RECIPES[: len(behaviours)]
        assert self.command("update.start", recipes=list(names), reason="which?")["ok"]
        self.until(lambda: self.updates()[-1].phase is Phase.ROLLOUT)
        arms = self.updates()[-1].arms
        assert list(arms) == list(names)
        self.traffic.of = {arms[n]: b for n, b in zip(names, behaviours, strict=True)}
        self.until(lambda: len(self.router.table.arms) > len(names))  # type: ignore[union-attr]
        self.flowing = True
        return first

    def close(self) -> None:
        super().close()
        self.scores.close()

    @property
    def rollout(self) -> Rollout:
        return self.ledger.all(Rollout)[-1]

    def winner(self) -> str | None:
        split = self.rollout.split
        assert split is not None
        return split.winner

    def status(self) -> RolloutStatus:
        return self.rollout.status

    def shares(self) -> dict[str, float]:
        assert self.router.table is not None
        return {
            a.name.replace(f"{self.rollout.rollout_id}.", ""): round(a.weight, 6)
            for a in self.router.table.arms
        }

    def tick(self, seconds: float = 1.0) -> None:
        """A tick with users, once the split has begun: new ones, and some who came before."""
        table = self.router.table
        if seconds > 0 and table is not None and self.flowing and self.rollout.promoted_at is None:
            at = self.clock.now()
            tripped = set(self.router.trips)
            for item in self.traffic.new_users(table, USERS, at, tripped):
                self.scores.append(encode(item))
                self.seen[item.record.unit] = item.record.assigned_arm
            again = list(self.seen)[:: max(1, len(self.seen) // 8)]
            for user in again:
                item = self.traffic.request(table, user, at, tripped)
                self.scores.append(encode(item))
                if item.record.assigned_arm != self.seen[user]:
                    self.moved[user] = f"{self.seen[user]} → {item.record.assigned_arm}"
        super().tick(seconds)

    def kinds(self) -> list[str]:
        found = self.ledger.events(kind="rollout", limit=1000)
        return [e.kind for e in found if e.subject == self.rollout.rollout_id]


@pytest.fixture
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path, getattr(request, "param", False))
    yield made
    made.close()


killed_too = pytest.mark.parametrize(
    "story", [False, True], ids=["steady", "killed-every-second-tick"], indirect=True
)


@killed_too
def test_the_better_of_three_wins_and_the_broken_one_is_taken_out(story: Story) -> None:
    first = story.begin(EQUAL, BETTER, BROKEN)
    arms = story.updates()[-1].arms
    table = story.router.table
    assert table is not None
    rid = story.rollout.rollout_id
    assert story.shares() == {
        "champion": 0.25, "challenger:tune": 0.25, "challenger:other": 0.25,
        "challenger:third": 0.25,
    }  # fmt: skip
    assert len({a.release for a in table.arms}) == 4
    story.until(lambda: "returned:third" in story.shares(), ticks=40)
    assert story.shares() == {
        "champion": 0.25, "challenger:tune": 0.25, "challenger:other": 0.25,
        "returned:third": 0.25,
    }  # fmt: skip
    assert story.router.table is not None
    back = next(a for a in story.router.table.arms if a.name.startswith("returned"))
    assert (back.release, back.start) == (first, 0.5)
    assert story.rollout.status is RolloutStatus.RUNNING
    story.until(lambda: story.winner() is not None, ticks=60)
    # Whoever moved until then was the broken one's.
    assert story.moved
    assert set(story.moved.values()) == {f"challenger:{rid}.third → returned:{rid}.third"}
    split = story.rollout.split
    assert split is not None
    assert split.winner == "other"
    assert "other is better than the champion: clip_score +" in split.text
    assert "third was taken out" in split.text
    assert split.arm("third").reason.startswith("harmful: errors")
    # As every strategy from here on: everybody, champion, bake, the old one retires.
    story.until(lambda: story.updates()[-1].phase is Phase.BAKE, ticks=30)
    story.until(lambda: set(story.shares()) == {"champion", "holdback"})
    assert story.updates()[-1].chosen == arms["other"]
    story.until(lambda: story.updates()[-1].phase.final, ticks=200)
    assert story.updates()[-1].phase is Phase.PROMOTED
    assert story.ledger.champion() == arms["other"]
    assert [t.release_id for t in story.ledger.tenures()] == [first, arms["other"]]
    retired = {r for kind, r in story.serving.calls if kind == "retire"}
    assert retired == {first, arms["tune"], arms["third"]}
    assert quarantined(story.ledger.all(Rollout)).keys() == {arms["third"]}
    kinds = story.kinds()
    assert kinds.count("rollout.removed") == 1
    assert kinds.count("rollout.crowned") == 1
    assert list(story.serving.deployments.values()) == [1, 1, 1, 1]
    facts = readmodel.rollout_facts(story.rollout, story.clock.now())["split"]
    states = {a["name"]: a["state"] for a in facts["arms"]}
    assert states == {"champion": "champion", "tune": "lost", "other": "won", "third": "taken_out"}


def test_nobody_better_ends_inconclusive_and_the_champion_stays(story: Story) -> None:
    first = story.begin(EQUAL, EQUAL)
    story.until(lambda: story.updates()[-1].phase.final, ticks=100)
    rollout = story.rollout
    assert rollout.status is RolloutStatus.INCONCLUSIVE
    assert rollout.verdict is Verdict.INCONCLUSIVE
    assert rollout.reason.startswith("not proven within 40 s: tune with ")
    assert "lacking to be better on clip_score (non inferior)" in rollout.reason
    assert story.ledger.champion() == first
    assert story.shares() == {"champion": 1.0}
    assert not quarantined(story.ledger.all(Rollout))


@pytest.mark.parametrize(("how", "story"), [("trip", True), ("dead", False)], indirect=["story"])
def test_an_arm_whose_breaker_trips_or_worker_dies_is_taken_out_alone(
    story: Story, how: str
) -> None:
    story.begin(EQUAL, BETTER)
    arms = story.updates()[-1].arms
    story.tick()
    rid = story.rollout.rollout_id
    if how == "trip":
        story.router.trip(arms["tune"], story.clock.now())
    else:
        story.serving.failing[arms["tune"]] = "out of memory"
    story.until(lambda: "returned:tune" in story.shares(), ticks=4)
    for _ in range(2):
        story.tick()
    assert set(story.moved.values()) <= {f"challenger:{rid}.tune → returned:{rid}.tune"}
    story.until(lambda: story.ledger.champion() == arms["other"], ticks=100)


def test_all_taken_out_is_a_rollback(story: Story) -> None:
    first = story.begin(BROKEN, BROKEN)
    arms = story.updates()[-1].arms
    story.until(lambda: story.updates()[-1].phase.final, ticks=100)
    assert story.updates()[-1].phase is Phase.ROLLED_BACK
    assert story.rollout.reason.startswith("no challenger is left: tune: harmful: errors")
    assert story.ledger.champion() == first
    assert story.shares() == {"champion": 1.0}
    assert set(quarantined(story.ledger.all(Rollout))) == set(arms.values())
    retired = {r for kind, r in story.serving.calls if kind == "retire"}
    assert set(arms.values()) <= retired


def test_one_challenger_is_a_split_of_two(story: Story) -> None:
    story.configure(split={"champion": 0.7, "challenger": 0.3})
    story.begin(BETTER)
    assert story.shares() == {"champion": 0.7, f"challenger:{story.rollout.rollout_id}": 0.3}
    refused = story.command("rollout.pause", arm="tune")
    assert not refused["ok"]
    assert "takes no arm" in refused["text"]
    story.until(lambda: story.updates()[-1].phase.final, ticks=200)
    assert story.updates()[-1].phase is Phase.PROMOTED


def test_a_winner_waits_for_a_persons_word(story: Story) -> None:
    story.configure(winner="ask")
    story.begin(BETTER, EQUAL)
    said = "waiting for a person's word (approve): tune wins"
    story.until(lambda: story.rollout.history[-1].decision == said, ticks=40)
    assert story.command("rollout.promote", reason="now")["ok"]  # taken, and refused
    assert story.winner() is None
    last = story.ledger.events(kind="rollout.refused", newest=True, limit=1)[0]
    assert "a person's word is asked for" in last.text
    assert story.command("rollout.approve", arm="other", reason="cheaper")["ok"]
    assert story.winner() == "other"
    split = story.rollout.split
    assert split is not None
    assert "approved by ann: cheaper" in split.text
    story.until(lambda: story.updates()[-1].phase is Phase.BAKE, ticks=30)


def test_a_winner_may_only_be_told(story: Story) -> None:
    story.configure(winner="none")
    first = story.begin(BETTER, EQUAL)
    story.until(lambda: story.updates()[-1].phase.final, ticks=60)
    assert story.rollout.status is RolloutStatus.OBSERVED
    assert "tune is better than the champion" in story.rollout.reason
    assert story.ledger.champion() == first


def test_pause_and_abort(story: Story) -> None:
    first = story.begin(BETTER, BROKEN)
    assert story.command("rollout.pause", reason="look")["ok"]
    # Harm is acted on all the same.
    story.until(lambda: "returned:other" in story.shares(), ticks=40)
    for _ in range(10):
        story.tick()
    assert story.status() is RolloutStatus.PAUSED
    assert story.command("rollout.abort", reason="enough")["ok"]
    story.until(lambda: story.updates()[-1].phase.final, ticks=100)
    assert story.status() is RolloutStatus.ROLLED_BACK
    assert "aborted by ann: enough" in story.rollout.reason
    assert story.ledger.champion() == first
