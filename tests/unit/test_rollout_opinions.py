"""What people say of the images of a rollout: whose word counts and when, how often an equal
challenger is accused and one at the margin let through, whether a disliked one is found.

Error budget: alpha 0.05 and three standard errors of the number of streams, fixed seeds, and a look
after every unit (the highest evidence of all looks is compared).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.opinionated import Voters, at, play, record, said

from intonaco.config import Maturity, RolloutConfig
from intonaco.errors import StorageError
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.rollout.evidence import Unit, evidence_of
from intonaco.rollout.opinions import VOTES_NEEDED
from intonaco.rollout.words import describe, number, span, still, to_mature
from intonaco.types import Assessment, Feedback, MetricAssessment, Outcome, ScoredRecord

ALPHA = 0.05
MATURE = 100.0
CONFIG = RolloutConfig(metrics=("errors", "feedback"), max_seconds=1e6)

Record = Callable[[str, object], None]


def analysis(config: RolloutConfig = CONFIG, **changes: Any) -> RolloutAnalysis:
    settings: dict[str, Any] = {
        "salt": "salt",
        "settle_seconds": 2.0,
        "maturity": Maturity(mature_after_s=MATURE),
    }
    return RolloutAnalysis("r1", config, ALPHA, **(settings | changes))


def feedback_of(an: RolloutAnalysis) -> MetricAssessment:
    return next(a for a in an.assess() if a.metric == "feedback")


def counted(an: RolloutAnalysis) -> tuple[list[int], list[float]]:
    """Units of champion and challenger, and how many were spoken ill of."""
    assert an._opinions is not None
    test = an._opinions.evidence.state()["test"]
    return test["units"], test["totals"]


def one(n: int = 1, *, challenger: bool = True, unit: str | None = None) -> ScoredRecord:
    return record(n, unit=unit or f"u{n}", challenger=challenger, weight=0.5, at=float(n))


# ------------------------------------------------------------------------------------ who counts


@pytest.mark.parametrize(
    ("votes", "ill"),
    [
        ((), 0.0),
        (("up",), 0.0),
        (("down",), 1.0),
        (("1",), 1.0),
        (("2",), 1.0),
        (("3",), 0.0),
        (("5",), 0.0),
        (("up", "down"), 0.0),  # it contradicts itself: the gateway takes one only
    ],
)
def test_what_is_spoken_ill(votes: tuple[str, ...], ill: float) -> None:
    an, item = analysis(), one()
    an.observe(item)
    for vote in votes:
        an.hear(said(item, 5.0, vote))
    an.advance(1.0 + MATURE + 61.0)
    assert counted(an) == ([0, 1], [0.0, ill])


@pytest.mark.parametrize("kind", ["regenerate", "download", "unheard of"])
def test_what_people_do_is_no_word(kind: str) -> None:
    an, item = analysis(), one()
    an.observe(item)
    an.hear(said(item, 5.0, None, kind))
    an.advance(500.0)
    assert counted(an) == ([0, 1], [0.0, 0.0])


def test_nothing_counts_before_it_is_mature_and_nothing_after() -> None:
    an, item = analysis(), one()
    an.observe(item)
    an.hear(said(item, MATURE - 1, "down"))
    an.advance(MATURE + 60.0)
    assert counted(an) == ([0, 0], [0.0, 0.0])
    an.advance(MATURE + 61.0)
    assert counted(an) == ([0, 1], [0.0, 1.0])
    late, slow = analysis(), one()
    late.observe(slow)
    late.hear(said(slow, MATURE + 2.0, "down"))
    late.advance(MATURE + 61.0)
    late.hear(said(slow, MATURE + 3.0, "down"))
    assert counted(late) == ([0, 1], [0.0, 0.0])


def test_a_unit_counts_once_with_its_first_image_however_often_it_speaks() -> None:
    an = analysis()
    items = [one(n, unit="anna") for n in range(1, 60)]
    for item in items:
        an.observe(item)
    for item in items[1:]:
        for vote in ("down", "1"):
            an.hear(said(item, 5.0, vote))
    an.hear(said(items[0], 5.0, "up"))
    an.advance(1000.0)
    assert counted(an) == ([0, 1], [0.0, 0.0])


def test_one_unit_alone_moves_nothing() -> None:
    """A thousand votes of one user weigh as much as one."""
    crowd = Voters(rng=np.random.default_rng(5), requests=300, weights=(0.5,))
    quiet, loud = analysis(), analysis()
    play(crowd, quiet)
    for n in range(1000):
        item = one(n, unit="the loud one")
        loud.observe(at(item, n * 0.01))
        loud.hear(said(item, 1.0, "down"))
    play(replace_rng(crowd, 5, first=10_000), loud)
    (before, ill), (after, more) = counted(quiet), counted(loud)
    assert sum(after) - sum(before) == 1
    assert sum(more) - sum(ill) <= 1
    assert "feedback" not in loud.harmful


def replace_rng(voters: Voters, seed: int, **changes: Any) -> Voters:
    return replace(voters, rng=np.random.default_rng(seed), _waiting=[], **changes)


def test_a_first_request_is_the_one_that_began_first() -> None:
    """Records come in the order in which requests ended."""
    an = analysis()
    later, sooner = one(5, unit="anna"), one(4, unit="anna")
    an.observe(later)
    an.observe(sooner)
    an.hear(said(later, 3.0, "up"))
    an.hear(said(sooner, 3.0, "down"))
    an.advance(500.0)
    assert counted(an) == ([0, 1], [0.0, 1.0])


def test_feedback_may_be_read_before_the_record() -> None:
    an, item = analysis(), one()
    an.hear(said(item, 5.0, "down"))
    an.observe(item)
    an.advance(500.0)
    assert counted(an) == ([0, 1], [0.0, 1.0])


def test_what_no_record_can_come_for_is_not_kept() -> None:
    """Votes on the other images of users who counted already pile up nowhere."""
    an = analysis()
    for n in range(5000, 5010):
        an.observe(one(n))
    for n in range(1000, 1400):
        an.hear(said(one(n), 5.0, "down"))
    assert an._opinions is not None
    assert an._opinions.state()["cohorts"]["early"] == []
    an.hear(said(one(5100), 5.0, "down"))  # its record may come yet
    assert len(an._opinions.state()["cohorts"]["early"]) == 1


def test_where_too_many_wait_a_fair_sample_is_followed() -> None:
    """Drawn by the request's id, so it depends on nothing that was said."""
    crowd = Voters(
        rng=np.random.default_rng(8), requests=2000, weights=(0.5,), mature=1000.0, ill=0.3
    )
    few = analysis(maturity=Maturity(mature_after_s=1000.0, kept=200))
    all_of_them = analysis(maturity=Maturity(mature_after_s=1000.0))
    play(crowd, few)
    play(replace_rng(crowd, 8), all_of_them)
    (units, ill), (most, _) = counted(few), counted(all_of_them)
    assert sum(most) == 2000
    assert 100 < sum(units) < 1000
    assert sum(ill) / sum(units) == pytest.approx(0.3, abs=0.1)


def test_the_bets_are_those_on_first_images_with_the_probability_of_their_moment() -> None:
    """As if somebody had written down arm, probability and outcome of each user by hand."""
    crowd = Voters(
        rng=np.random.default_rng(9), requests=500, users=300, weights=(0.05, 0.2, 0.5), worse=0.1
    )
    items = list(crowd.items())
    by_hand = evidence_of("feedback", tolerance=0.0, margin=CONFIG.margins.feedback)
    ill = {f.request_id for f in items if isinstance(f, Feedback) and f.vote in ("down", "1", "2")}
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Feedback) or item.record.unit in seen:
            continue
        r = item.record
        seen.add(r.unit)
        challenger = r.assigned_arm != "champion"
        by_hand.take(
            Unit(
                key=r.unit,
                value=float(r.request_id in ill),
                weight=r.probability if challenger else 1 - r.probability,
                challenger=challenger,
            )
        )
    an = analysis()
    for item in items:
        an.hear(item) if isinstance(item, Feedback) else an.observe(item)
    an.advance(5000.0)
    assert an._opinions is not None
    assert an._opinions.evidence.state() == by_hand.state()
    assert len(seen) > 200


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_who_was_not_randomised_says_nothing(weight: float) -> None:
    an = analysis()
    for n in range(1, 30):
        item = record(n, unit=f"u{n}", challenger=weight == 1.0, weight=weight, at=float(n))
        an.observe(item)
        an.hear(said(item, 2.0, "down"))
    an.advance(500.0)
    assert counted(an) == ([0, 0], [0.0, 0.0])
    assert feedback_of(an).assessment is Assessment.NO_DATA


def test_who_got_no_image_counts_and_is_not_dropped() -> None:
    """Were only the answered compared, the arms would not be alike any more."""
    an = analysis()
    an.observe(record(1, unit="anna", challenger=True, weight=0.5, at=1.0, failed=True))
    again = record(2, unit="anna", challenger=True, weight=0.5, at=2.0)
    an.observe(again)
    an.hear(said(again, 3.0, "down"))
    an.advance(500.0)
    assert counted(an) == ([0, 1], [0.0, 0.0])


def test_a_shielded_user_is_judged_by_assignment() -> None:
    an, item = analysis(), one()
    tries = (
        replace(item.record.attempts[0], outcome=Outcome.TIMEOUT),
        replace(item.record.attempts[0], arm="champion", release="A"),
    )
    shielded = replace(item, record=replace(item.record, attempts=tries, served_by="A"))
    an.observe(shielded)
    an.hear(said(shielded, 3.0, "down"))
    an.advance(500.0)
    assert counted(an) == ([0, 1], [0.0, 1.0])


def test_users_said_before_the_promotion_count_after_it() -> None:
    """What was made in the canary matures in the bake, and may still send everybody back."""
    an = analysis()
    crowd = Voters(rng=np.random.default_rng(3), requests=900, weights=(0.5,), worse=0.3)
    items = list(crowd.items())
    an.begin_step(0, 0.0, 0.5)
    told = False
    for item in items:
        if not told and isinstance(item, ScoredRecord) and item.record.seq == 150:
            an.promoted(9)
            told = True
        an.hear(item) if isinstance(item, Feedback) else an.observe(item)
    an.advance(5000.0)
    assert "feedback" in an.harmful


# ------------------------------------------------------------------------------------ false claims


def false_claims(streams: int, requests: int, record_property: Record) -> None:
    """Users who come back and stay in their arm, five of whom speak ill of most; shares of 5, 20
    and 50 %; complaints drift, some votes come too late."""
    limit = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / streams)
    threshold = math.log(1 / ALPHA)
    found = {"equal, accused": 0, "at the margin, let through": 0, "equal, called better": 0}
    for seed in range(streams):
        for worse in (0.0, CONFIG.margins.feedback):
            crowd = Voters(
                rng=np.random.default_rng([seed, int(worse > 0)]),
                requests=requests,
                users=requests,
                grumblers=5,
                weights=(0.05, 0.2, 0.5, 0.5),
                drift=0.8,
                late=0.2,
                worse=worse / 0.8,  # a fifth of what is said comes too late
                well=(0.1, 0.1),
            )
            an = play(crowd, analysis(metrics=("feedback",)))
            assert an._opinions is not None
            evidence = an._opinions.evidence
            if worse:
                found["at the margin, let through"] += evidence.within[1] >= threshold
            else:
                found["equal, accused"] += evidence.harm[1] >= threshold
                found["equal, called better"] += evidence.better[1] >= threshold
    cells = "  ".join(f"{what} {n / streams:.4f}" for what, n in found.items())
    record_property("table", f"feedback: {cells}  (limit {limit:.4f}, {streams} streams)")
    assert max(found.values()) / streams <= limit


def test_false_claims_are_rare(record_property: Record) -> None:
    false_claims(40, 300, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_false_claims_are_rare_full(record_property: Record) -> None:
    false_claims(2_000, 400, record_property)


@pytest.mark.parametrize("late", [False, True])
def test_who_votes_late_on_one_arm_only_accuses_nobody(late: bool) -> None:
    """Users of the challenger who are quicker or slower to say the same: counted when they come,
    one arm would seem worse for as long as there is traffic."""
    accused = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        an = analysis(metrics=("feedback",))
        waiting: list[Feedback] = []
        for n in range(400):
            challenger = bool(rng.random() < 0.5)
            item = one(n, challenger=challenger)
            for feedback in sorted((f for f in waiting if f.at <= n), key=lambda f: f.at):
                an.hear(feedback)
            waiting = [f for f in waiting if f.at > n]
            an.observe(item)
            if rng.random() < 0.2:
                quick = challenger is not late
                waiting.append(said(item, 1.0 if quick else MATURE - 2, "down"))
            accused += bool(an.harmful)
    assert accused == 0


# ------------------------------------------------------------------------------------ what is found


def test_a_disliked_challenger_is_found() -> None:
    """Complaints of 15 % where the champion has 5."""
    caught = []
    for seed in range(5):
        crowd = Voters(rng=np.random.default_rng(seed), requests=1500, weights=(0.5,), worse=0.1)
        an = analysis()
        first: list[int] = []

        def look(an: RolloutAnalysis = an, first: list[int] = first) -> None:
            if not first and an.harmful:
                first.append(sum(counted(an)[0]))

        play(crowd, an, look)
        assert an.harmful == ("feedback",)
        found = feedback_of(an)
        assert found.assessment is Assessment.HARMFUL
        assert found.evidence_harm >= found.threshold
        caught += first
    assert sorted(caught)[2] < 1000


def test_an_equal_one_is_proven_only_from_mature_images() -> None:
    crowd = Voters(rng=np.random.default_rng(2), requests=1500, weights=(0.5,))
    an = analysis()
    an.begin_step(0, 0.0, 0.5)
    seen: list[tuple[int, MetricAssessment]] = []
    last = [0]

    def look() -> None:
        last[0] += 1
        if last[0] % 25 == 0:
            seen.append((sum(counted(an)[0]), feedback_of(an)))

    play(crowd, an, look)
    assert feedback_of(an).assessment in (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
    found = feedback_of(an)
    assert found.interval is not None
    assert found.interval[0] <= 0.0 <= found.interval[1] < 0.06
    assert found.units_challenger + found.units_champion == 1500
    for units, each in seen:
        if not units:
            assert each.assessment is Assessment.NO_DATA
            assert each.difference is None
    ahead = [a.units_ahead for _, a in seen if a.units_ahead is not None]
    assert ahead
    assert ahead[-1] < ahead[0]


def test_a_service_where_nobody_votes_is_never_proven() -> None:
    crowd = Voters(
        rng=np.random.default_rng(2), requests=1500, weights=(0.5,), ill=0.0, well=(0.0, 0.0)
    )
    an = play(crowd, analysis())
    found = feedback_of(an)
    assert found.assessment is Assessment.NO_DATA
    assert found.missing == (
        f"votes: 0 of at least {VOTES_NEEDED}, on 1500 images; silence is no proof"
    )


def test_a_challenger_that_nobody_can_vote_on_is_never_proven() -> None:
    """No complaint and no praise: its users cannot vote, or do not care."""
    crowd = Voters(
        rng=np.random.default_rng(2),
        requests=1500,
        weights=(0.5,),
        worse=-0.05,
        well=(0.1, 0.0),
    )
    an = play(crowd, analysis())
    found = feedback_of(an)
    assert found.evidence_non_inferior > math.log(1 / ALPHA)
    assert found.assessment is Assessment.UNDECIDED
    assert "good words for the challenger's images: 0" in found.missing
    better = Voters(
        rng=np.random.default_rng(2), requests=1500, weights=(0.5,), worse=-0.05, well=(0.1, 0.1)
    )
    assert feedback_of(play(better, analysis())).assessment is Assessment.SUPERIOR


# ------------------------------------------------------------------------------------ words


def test_what_is_waited_for_is_told() -> None:
    day = Maturity(mature_after_s=86_400.0)
    an = analysis(maturity=day)
    an.begin_step(0, 0.0, 0.5)
    assert feedback_of(an).missing == "no request has reached the challenger"
    for n in range(40):
        an.observe(one(n, challenger=n % 2 == 0))
    an.advance(100.0)
    waits = "waiting for 40 users' images to have had 24 h for feedback"
    assert feedback_of(an).missing == still(feedback_of(an)) == waits
    assert waits in describe(feedback_of(an))
    for n in range(20):
        an.hear(said(one(n, challenger=n % 2 == 0), 9.0, "up"))
    an.advance(86_500.0 + 500)
    for n in range(90_000, 90_010):
        an.observe(one(n))
    an.advance(90_100.0)
    told = feedback_of(an).missing
    assert told.startswith("about ")
    assert told.endswith("10 of whom wait for their images to have had 24 h for feedback")
    assert number("feedback", 0.021) == "+2.1%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(86_400, "24 h"), (5400, "90 min"), (20, "20 s"), (7200, "2 h")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_as_many_wait_as_are_needed() -> None:
    waits = "waiting for 300 users' images to have had 2 h for feedback"
    assert to_mature(300, "2 h", 200) == to_mature(300, "2 h") == waits


# ------------------------------------------------------------------------------------ state


def test_state_restores_exactly_at_every_event() -> None:
    crowd = Voters(
        rng=np.random.default_rng(11),
        users=150,
        grumblers=3,
        requests=260,
        weights=(0.2, 0.5),
        late=0.2,
    )
    whole, parts = analysis(), analysis()
    for n, item in enumerate(crowd.items()):
        for each in (whole, parts):
            each.begin_step(n // 150, float(n // 150 * 150), 0.5)
            each.hear(item) if isinstance(item, Feedback) else each.observe(item)
        if n % 40 == 0:
            assert parts.assess() == whole.assess()
        stored = json.dumps(parts.state())
        assert stored == json.dumps(whole.state())
        assert '"u1"' not in stored
        parts = analysis()
        parts.restore(json.loads(stored))
    for each in (whole, parts):
        each.advance(10_000.0)
    assert parts.assess() == whole.assess()
    assert sum(counted(parts)[0]) > 100
    assert sum(counted(parts)[1]) > 3


def test_evidence_of_another_maturity_is_other_evidence() -> None:
    stored = analysis().state()
    with pytest.raises(StorageError):
        analysis(maturity=Maturity(mature_after_s=7.0)).restore(stored)
    without = RolloutConfig(metrics=("errors",))
    plain = RolloutAnalysis("r1", without, ALPHA, salt="salt", settle_seconds=2.0)
    again = RolloutAnalysis("r1", without, ALPHA, salt="salt", settle_seconds=2.0,
                            maturity=Maturity(mature_after_s=7.0))  # fmt: skip
    again.restore(json.loads(json.dumps(plain.state())))
    assert again.state()["opinions"] is None
