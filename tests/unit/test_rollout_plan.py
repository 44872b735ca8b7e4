"""What is foretold of a rollout: against the analysis itself, and as the commands tell it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.made_up_traffic import METRICS, People
from tests.opinionated import said
from typer.testing import CliRunner

from intonaco import readmodel
from intonaco.cli.main import app as command_line
from intonaco.codec import decode, encode
from intonaco.config import RolloutConfig, RolloutMargins, Step
from intonaco.errors import ConfigError
from intonaco.ledger import Ledger
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.rollout.plan import Assumed, measured, plan
from intonaco.rollout.words import brief, describe, no_data, rounded, still, to_mature
from intonaco.segment_log import SegmentWriter
from intonaco.types import (
    Assessment,
    MetricAssessment,
    Rollout,
    RolloutStatus,
    RolloutStep,
    StepKind,
)
from intonaco.watching import CONSUMER
from intonaco.workspace import Workspace

NOW = 1_700_000_000.0
PROVEN = (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
WIDE = RolloutConfig(
    metrics=METRICS,
    score_range=(0.0, 1.0),
    margins=RolloutMargins(errors=0.05, latency=0.15, clip_score=0.05, slow=0.1, cost=0.2),
    steps=(Step(weight=0.5, min_units=0, min_seconds=0.0),),
)


def needs(config: RolloutConfig, **more: Any) -> dict[tuple[str, float, float], float | None]:
    found = plan(config, more.pop("assumed", Assumed()), **more).needs
    return {(n.metric, n.difference, n.weight): n.units for n in found}


def test_waits_are_foretold_while_there_can_be_an_equal_slice() -> None:
    config = RolloutConfig(
        baseline=True,
        metrics=("errors", "end_to_end"),
        steps=(Step(weight=0.1), Step(weight=0.5), Step(weight=0.8), Step(weight=1.0)),
    )
    found = needs(config, differences={"end_to_end": (0.3,)})
    for difference in (0.0, 0.3):
        few, many = (found["end_to_end", difference, w] for w in (0.1, 0.5))
        assert few is not None
        assert many is not None
        assert few == pytest.approx(5 * many, rel=0.3)  # a fifth of the users is in the slices
        assert found["end_to_end", difference, 0.8] is None
    spread = needs(config, assumed=Assumed(wait_spread=0.1))["end_to_end", 0.0, 0.5]
    wide = found["end_to_end", 0.0, 0.5]
    assert spread is not None
    assert wide is not None
    assert spread < wide


def test_waits_are_measured_on_the_champion() -> None:
    people = People(rng=np.random.default_rng(0), requests=400, weights=(0.0,))
    assumed = measured(people.records(), WIDE)
    assert "wait_spread" in assumed.measured
    assert assumed.wait_spread == pytest.approx(0.2, abs=0.03)


def test_what_is_foretold_is_what_the_analysis_needs() -> None:
    """Medians over seven rollouts, within a factor of two."""
    taken: dict[str, list[float]] = {m: [] for m in METRICS}
    for seed in range(7):
        crowd = People(rng=np.random.default_rng(seed), requests=700, weights=(0.5,))
        early = People(rng=crowd.rng, requests=80, weights=(0.0,), error_rate=0.0)
        before = [
            replace(i, record=replace(i.record, unit=f"e{i.record.unit}"))
            for i in early.records(first=-5000)
        ]
        an = RolloutAnalysis(
            "r1", WIDE, 0.05, salt="salt", score_range=(0.0, 1.0), settle_seconds=0.5,
            times=crowd.times(),
        )  # fmt: skip
        for item in before:
            an.observe(item)
        for each in taken.values():
            each.append(math.inf)
        for n, item in enumerate(crowd.records()):
            an.observe(item)
            for a in an.assess() if n % 20 == 0 else ():
                if a.assessment in PROVEN:
                    taken[a.metric][seed] = min(n, taken[a.metric][seed])
    assumed = measured(before, WIDE)
    assumed = replace(assumed, errors=0.01, slow=0.001)
    assert {"errors", "score", "score_spread", "latency_spread"} <= set(assumed.measured)
    foretold = needs(WIDE, assumed=assumed)
    for metric, units in taken.items():
        expected = foretold[metric, 0.0, 0.5]
        assert expected is not None
        assert expected / 2 < statistics.median(units) < expected * 2, metric


def test_smaller_shares_and_smaller_margins_take_longer() -> None:
    config = RolloutConfig(metrics=METRICS, score_range=(0.0, 0.5))
    found = needs(config)
    assert {w for _, _, w in found} == {0.01, 0.05, 0.2, 0.5}
    for metric in METRICS:
        units = [found[metric, 0.0, w] or 0.0 for w in (0.5, 0.2, 0.05, 0.01)]
        assert all(units)
        assert units == sorted(units)
    narrow = needs(config.model_copy(update={"margins": RolloutMargins(latency=0.03)}))
    assert (narrow["latency", 0.0, 0.5] or 0) > 2 * (found["latency", 0.0, 0.5] or 0)


def test_a_difference_inside_the_margin_is_proven_and_one_at_it_is_caught() -> None:
    config = RolloutConfig(metrics=("errors", "latency"))
    found = plan(config, Assumed(), differences={"latency": [0.05, 0.3], "errors": [0.01]})
    asked = {(n.metric, n.difference): n.question for n in found.needs}
    assert asked == {
        ("errors", 0.0): "proven",
        ("errors", 0.01): "caught",
        ("latency", 0.0): "proven",
        ("latency", 0.05): "proven",
        ("latency", 0.3): "caught",
    }


def test_the_way_through_the_steps_carries_evidence_along() -> None:
    steps = tuple(Step(weight=w, min_units=50, min_seconds=60.0) for w in (0.05, 0.5))
    config = RolloutConfig(metrics=("errors", "latency"), steps=steps)
    found = plan(config, Assumed(), requests_per_second=10.0)
    alone = {(n.metric, n.weight): n.units for n in found.needs if n.question == "proven"}
    assert found.last == "errors"
    assert found.units is not None
    assert (alone["errors", 0.5] or 0) < found.units < (alone["errors", 0.05] or 0)
    assert found.seconds is not None
    # the first share lasts for its 50 challenger users, the rest is at the second
    assert found.seconds >= found.units / 10.0
    returning = plan(config, Assumed(requests_per_user=3.0), requests_per_second=10.0)
    assert (returning.seconds or 0) > 2 * found.seconds


def test_feedback_waits_for_images_to_be_mature() -> None:
    steps = (Step(weight=0.5, min_units=0, min_seconds=0.0),)
    config = RolloutConfig(metrics=("errors", "feedback"), steps=steps)
    plain = plan(config, Assumed(ill=0.001), requests_per_second=10.0, mature_after_s=600.0)
    assert plain.last == "feedback"  # fewer units than errors, and later
    assert plain.delays == {"feedback": 660.0}
    units = {n.metric: n.units or 0 for n in plain.needs if n.question == "proven"}
    assert units["feedback"] < units["errors"] == plain.units
    assert plain.seconds == pytest.approx(max(units["feedback"] / 10.0 + 660.0, 0.0), rel=0.1)
    slow = plan(config, Assumed(), requests_per_second=10.0, mature_after_s=6000.0)
    assert slow.seconds == pytest.approx((plain.seconds or 0) + 5400.0, rel=0.1)
    often = plan(config, Assumed(ill=0.3), requests_per_second=10.0, mature_after_s=600.0)
    grumbled = {n.metric: n.units or 0 for n in often.needs if n.question == "proven"}
    assert grumbled["feedback"] > 3 * units["feedback"]


def test_without_a_share_of_users_nothing_is_foretold() -> None:
    found = plan(RolloutConfig(strategy="blue_green"), Assumed(), requests_per_second=1.0)
    assert (found.needs, found.units, found.seconds) == ((), None, None)


# ------------------------------------------------------------------------------------ commands


@contextmanager
def closing_writer(root: Path, name: str) -> Iterator[SegmentWriter]:
    writer = SegmentWriter(root, name)
    yield writer
    writer.close()


class Home:
    def __init__(self, root: Path, rollout: str = "", more: str = "") -> None:
        self.root = root
        text = f"service: digits\nserving: {{hourly_price: 2}}\nrollout: {{{rollout}}}\n{more}\n"
        (root / "intonaco.yaml").write_text(text)
        self.workspace = Workspace(root)
        self.ledger = Ledger.open(self.workspace.ledger, "digits")

    def run(self, *words: str) -> str:
        done = CliRunner().invoke(command_line, ["rollout", *words, "-w", str(self.root)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, "metrics: [errors, latency], max_seconds: 7200")


def test_the_plan_is_told(home: Home) -> None:
    text = home.run("plan", "--requests-per-second", "20", "--difference", "latency=0.2")
    assert "20 requests a second" in text
    assert "assumed: 1.00% errors" in text
    assert "proven no worse" in text
    assert "caught" in text
    assert "20.0%" in text
    assert "all is proven after about" in text
    assert "warning" not in text
    told = json.loads(home.run("plan", "--requests-per-second", "20", "--json"))
    assert told["warnings"] == []
    assert told["seconds"] < told["max_seconds"] == 7200
    first = told["needs"][0]
    assert first["metric"] == "errors"
    assert first["seconds"] == pytest.approx(first["requests"] / 20)


def test_too_short_a_time_is_warned_of(home: Home) -> None:
    text = home.run("plan", "--requests-per-second", "0.1")
    assert "warning: rollout.max_seconds is 7200 s and about" in text
    assert "no traffic is known" in home.run("plan")


def test_the_plan_goes_by_what_was_measured(home: Home) -> None:
    crowd = People(rng=np.random.default_rng(1), users=100, requests=400, weights=(0.0,))
    writer = SegmentWriter(home.workspace.scores, "scorer")
    for item in crowd.records():
        writer.append(encode(item))
    writer.append('{"cut": ')
    writer.close()
    with home.ledger.begin() as tx:
        tx.commit_consumer(CONSUMER, {}, {"arrivals": [0.0, 1.0, 2.0]}, NOW)
    told = json.loads(home.run("plan", "--json"))
    assert told["requests_per_second"] == 1.0
    assert told["assumed"]["requests"] == 400
    assert told["assumed"]["latency_spread"] == pytest.approx(0.2, abs=0.03)
    assert told["assumed"]["score"] == pytest.approx(0.6, abs=0.02)
    assert 3.5 < told["assumed"]["requests_per_user"] < 4.5
    assert "measured on 400 requests" in home.run("plan")


def test_how_many_are_spoken_ill_of_is_measured_where_people_vote(tmp_path: Path) -> None:
    more = "metrics: [errors, feedback], max_seconds: 200000"
    home = Home(tmp_path, more, "monitoring: {feedback: {mature_after_s: 60}}")
    crowd = People(rng=np.random.default_rng(1), requests=300, weights=(0.0,), error_rate=0.0)
    records = list(crowd.records())
    with closing_writer(home.workspace.scores, "scorer") as scores:
        for item in records:
            scores.append(encode(item))
    told = json.loads(home.run("plan", "--requests-per-second", "5", "--json"))
    assert "ill" not in told["assumed"]["measured"]  # nobody votes: that is no measure
    with closing_writer(home.workspace.feedback, "gateway") as votes:
        for n, item in enumerate(records):
            votes.append(encode(said(item, 5.0, "down" if n % 5 == 0 else "up")))
        votes.append("{}")
    told = json.loads(home.run("plan", "--requests-per-second", "5", "--json"))
    assert told["assumed"]["ill"] == pytest.approx(0.2, abs=0.01)
    of = {n["metric"]: n for n in told["needs"] if n["question"] == "proven"}
    assert of["feedback"]["seconds"] == pytest.approx(of["feedback"]["requests"] / 5 + 120)
    text = home.run("plan", "--requests-per-second", "5")
    assert "% of images spoken ill of" in text
    assert "an image counts for feedback once it is 60 s old" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("speed=1", "no metric 'speed'; rollout.metrics has: errors, latency"),
        ("latency", "'latency' is not latency=NUMBER"),
        ("latency=-2", "no difference that could be"),
    ],
)
def test_a_difference_that_is_none_is_refused(home: Home, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        home.run("plan", "--difference", given)


def an_assessment(**changes: Any) -> MetricAssessment:
    return replace(
        MetricAssessment(
            metric="latency",
            assessment=Assessment.UNDECIDED,
            difference=0.02,
            interval=None,
            margin=0.1,
            evidence_harm=0.3,
            evidence_non_inferior=1.0,
            threshold=4.1,
            units_challenger=30,
            units_champion=31,
        ),
        **changes,
    )


def test_what_is_waited_for_is_shown(home: Home) -> None:
    rollout = Rollout(
        rollout_id="u1-1",
        service_id="digits",
        update_id="u1",
        champion="a" * 64,
        challenger="b" * 64,
        steps=(RolloutStep(kind=StepKind.CANARY, weight=0.5),),
        status=RolloutStatus.RUNNING,
        started_at=NOW,
        step_since=NOW,
        salt="salt",
        alpha=0.05,
        max_seconds=60.0,
        assessments=(
            an_assessment(units_ahead=241),
            an_assessment(
                metric="clip_score",
                assessment=Assessment.NO_DATA,
                difference=None,
                missing="no scores from the scorer",
            ),
            an_assessment(
                metric="feedback",
                interval=(-0.011, 0.062),
                margin=0.05,
                missing=to_mature(40, "24 h"),
            ),
        ),
    )
    with home.ledger.begin() as tx:
        tx.rollout(rollout)
    text = home.run("show")
    assert "about 250 more users, if it is no different" in text
    assert "no scores from the scorer" in text
    told = json.loads(home.run("show", "--json"))["assessments"]
    assert [a["units_ahead"] for a in told] == [241, None, None]
    assert "waiting for 40 users' images to have had 24 h for feedback" in " ".join(text.split())
    card = readmodel.rollout_card(home.ledger, rollout, NOW)
    proof = {p["metric"]: p["text"] for p in card["proof"]}
    assert proof["feedback"] == "not shown yet: it may be worse by 6.2%, and the margin is 5.0%"
    assert told[1]["missing"] == "no scores from the scorer"


def test_assessments_of_before_are_still_read() -> None:
    old = json.loads(encode(an_assessment()))
    del old["units_ahead"], old["missing"]
    assert decode(MetricAssessment, json.dumps(old)) == an_assessment()


def test_words_of_what_is_missing() -> None:
    def said(metric: str, champion: int, challenger: int, *, pairs: bool = False) -> str:
        return no_data(metric, (champion, challenger), pairs)

    assert said("errors", 9, 0) == "no request has reached the challenger"
    assert said("latency", 9, 0, pairs=True).startswith(
        "no user has reached the challenger; shadow"
    )
    assert said("clip_score", 9, 0, pairs=True) == "no scores from the scorer"
    assert said("cost", 0, 9) == "no request of a user who stayed with the champion"
    assert "times" in said("latency", 9, 9)
    assert "images" in said("cost", 9, 9)
    assert "compared" in said("slow", 9, 9)


def test_words_of_an_assessment() -> None:
    assert brief(an_assessment()) == "latency +2.0% (margin 10.0%)"
    assert describe(an_assessment()).startswith("latency +2.0% from 30 challenger and 31 champion")
    silent = an_assessment(difference=None, assessment=Assessment.NO_DATA, missing="no scores")
    assert describe(silent) == "latency no data: no scores"
    assert still(an_assessment(units_ahead=0)) == ""
    pairs = an_assessment(units_ahead=7, units_challenger=0, shadow_pairs=9)
    assert still(pairs) == "about 7 more pairs, if it is no different"
    assert [rounded(n) for n in (7, 99, 241, 12_345)] == ["7", "99", "250", "13 000"]
