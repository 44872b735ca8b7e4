"""What reviewers are shown, whose votes count, and what the votes decide: pure, so told in full."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.verdicts import with_review
from intonaco.review.result import Answered, result_of, review_verdict
from intonaco.review.session import (
    BROKEN,
    Task,
    attention,
    find,
    labels,
    pairs,
    set_aside,
    skipped,
    standing,
    to_undo,
    upcoming,
    written,
)
from intonaco.review.statistics import preference
from intonaco.types import TIE, Act, Review, ReviewArm, ReviewItem, TaskKind, Verdict, Vote

KEY = "11" * 32
Choose = Callable[[Task], str]


def a_review(prompts: int = 30, arms: int = 2, key: str = KEY, **changed: object) -> Review:
    names = ("champion", "one", "two", "three")[:arms]
    made = Review(
        review_id="r1",
        service_id="svc",
        created_at=0.0,
        deadline=1e9,
        arms=tuple(ReviewArm(name=n, release_id=n * 3) for n in names),
        items=tuple(
            ReviewItem(item=f"i{n}", prompt_id=f"p{n}", prompt=f"{n}", slice=f"s{n % 2}", seed=n)
            for n in range(prompts)
        ),
        questions=("overall",),
        key=key,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def attentive(prefers: Callable[[Task], str]) -> Choose:
    def choose(task: Task) -> str:
        if task.kind is TaskKind.SAME:
            return TIE
        if BROKEN in (task.left, task.right):
            return "right" if task.left == BROKEN else "left"
        return prefers(task)

    return choose


def likes(arm: str) -> Choose:
    return attentive(lambda t: "left" if t.left == arm else "right")


def go(
    review: Review, votes: list[Vote], reviewer: str, choose: Choose, most: int = 10_000
) -> list[Task]:
    """One person until nothing is left; the tasks that were shown."""
    shown: list[Task] = []
    while len(shown) < most:
        told, _ = upcoming(review, reviewer, votes)
        if not told:
            break
        task = told[0]
        assert find(review, reviewer, votes, task.task) == task
        vote = written(task, {q: choose(task) for q in review.questions}, 1.0)
        number = len(votes) + 1
        votes.append(replace(vote, vote_id=number, reviewer=reviewer, key=f"{number}", at=0.0))
        shown.append(task)
    return shown


# ------------------------------------------------------------------ what is shown


def test_everything_is_shown_once_with_checks_among_it() -> None:
    review = a_review(60)
    votes: list[Vote] = []
    shown = go(review, votes, "ann", likes("one"))
    kinds = Counter(t.kind for t in shown)
    assert kinds[TaskKind.PAIR] == 60
    assert len({t.task for t in shown}) == len(shown)
    checks = len(shown) - 60
    assert checks / len(shown) == pytest.approx(review.checks, abs=0.03)
    assert all(kinds[k] >= 3 for k in TaskKind)
    gaps = np.diff([k for k, t in enumerate(shown) if t.kind is not TaskKind.PAIR])
    assert len(set(gaps.tolist())) > 1  # not every so many


def test_the_same_again_after_a_restart_and_other_for_others() -> None:
    review = a_review(20)
    assert pairs(review, "ann") == pairs(review, "ann")
    assert pairs(review, "ann") != pairs(a_review(20, key="22" * 32), "ann")
    assert [t.item for t in pairs(review, "ann")] != [t.item for t in pairs(review, "bob")]


def test_sides_are_fair() -> None:
    review = a_review(400)
    left = sum(t.left == "one" for name in ("ann", "bob", "cat") for t in pairs(review, name))
    assert abs(left - 600) < 3.3 * math.sqrt(1200 * 0.25)


def test_a_task_says_nothing_of_what_is_in_it() -> None:
    review = a_review(10)
    votes: list[Vote] = []
    for task in go(review, votes, "ann", likes("one")):
        assert len(task.task) == 20
        assert int(task.task, 16) >= 0


def test_what_is_told_ahead_is_what_comes() -> None:
    review = a_review(40)
    votes: list[Vote] = []
    ahead = None
    for _ in range(40):
        told, _ = upcoming(review, "ann", votes)
        assert ahead is None or told[0] == ahead
        ahead = told[1]
        go(review, votes, "ann", likes("one"), most=1)


def test_a_repeat_is_a_pair_seen_before_with_its_sides_swapped() -> None:
    review = a_review(60, checks=0.4)
    votes: list[Vote] = []
    shown = go(review, votes, "ann", likes("one"))
    repeats = [(k, t) for k, t in enumerate(shown) if t.kind is TaskKind.REPEAT]
    assert len(repeats) > 5
    for k, task in repeats:
        (before,) = [t for t in shown[:k] if t.kind is TaskKind.PAIR and t.item == task.item]
        assert (before.left, before.right) == (task.right, task.left)


def test_without_checks_there_are_only_pairs() -> None:
    votes: list[Vote] = []
    shown = go(a_review(12, checks=0.0), votes, "ann", likes("one"))
    assert {t.kind for t in shown} == {TaskKind.PAIR}


def test_more_than_two_releases_are_shown_as_all_pairs() -> None:
    votes: list[Vote] = []
    shown = go(a_review(5, arms=3, checks=0.0), votes, "ann", likes("one"))
    assert Counter(frozenset((t.left, t.right)) for t in shown) == {
        frozenset(("champion", "one")): 5,
        frozenset(("champion", "two")): 5,
        frozenset(("one", "two")): 5,
    }


def test_a_pair_with_its_votes_is_not_shown_to_a_third() -> None:
    review = a_review(10, votes_per_pair=2)
    votes: list[Vote] = []
    for name in ("ann", "bob"):
        go(review, votes, name, likes("one"))
    assert upcoming(review, "cat", votes)[0] == ()
    assert upcoming(review, "cat", votes)[1].left == 0


def test_undo_and_skip() -> None:
    review = a_review(10)
    votes: list[Vote] = []
    shown = go(review, votes, "ann", likes("one"), most=3)
    last = to_undo(votes, "ann")
    assert last is not None
    assert last.task == shown[2].task
    assert to_undo(votes, "bob") is None
    votes.append(replace(last, vote_id=9, key="u", act=Act.UNDO))
    assert upcoming(review, "ann", votes)[0][0] == shown[2]
    votes.append(replace(skipped(shown[2], 1.0), vote_id=10, reviewer="ann", key="s"))
    assert upcoming(review, "ann", votes)[0][0] != shown[2]
    assert [v.act for v in standing(votes)] == [Act.VOTE, Act.VOTE, Act.SKIP]


def test_two_windows_of_one_person_count_once_the_last_holds() -> None:
    review = a_review(10)
    votes: list[Vote] = []
    (task,) = go(review, votes, "ann", lambda _: "left", most=1)
    again = written(task, {"overall": "right"}, 1.0)
    votes.append(replace(again, vote_id=2, reviewer="ann", key="other"))
    (vote,) = standing(votes)
    assert vote.answers == {"overall": task.right}
    votes.append(replace(vote, vote_id=3, key="u", act=Act.UNDO))
    assert standing(votes) == []


def test_labels_are_of_the_key() -> None:
    seen = {labels(a_review(key=f"{k:02x}" * 32))["champion"] for k in range(20)}
    assert seen == {"A", "B"}


# ------------------------------------------------------------------ attention


def test_people_who_do_not_look_are_set_aside_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    found = {}
    for name, choose in {
        "left": lambda _: "left",
        "random": lambda _: str(rng.choice(["left", "right", "tie"])),
        "tie": lambda _: TIE,
        "careful": likes("one"),
        "torn": attentive(lambda _: str(rng.choice(["left", "right"]))),
    }.items():
        aside = 0
        for number in range(12):
            votes: list[Vote] = []
            go(a_review(40, key=f"{number + 1:02x}" * 32), votes, name, choose)
            aside += name in set_aside(votes)
        found[name] = aside / 12
    assert found["careful"] == 0
    assert found["torn"] == 0  # close pictures are no failing
    assert found["left"] > 0.9
    assert found["random"] > 0.6
    assert found["tie"] == 1  # who calls a scrambled picture as good as a whole one


def test_nobody_is_set_aside_on_two_checks() -> None:
    votes: list[Vote] = []
    go(a_review(12), votes, "ann", lambda _: "left")
    assert attention(votes, "ann").shown == 2
    assert not attention(votes, "ann").set_aside


# ------------------------------------------------------------------ what is decided


def decided(review: Review, *choices: Choose, over: str = "") -> tuple[Verdict | None, str]:
    votes: list[Vote] = []
    for number, choose in enumerate(choices):
        go(review, votes, f"r{number}", choose)
    result = result_of(review, votes, over=over, draws=0)
    (candidate,) = review.candidates
    return result.verdicts[candidate], result.reasons[candidate]


def test_for_against_and_neither() -> None:
    review = a_review(40)
    assert decided(review, likes("one"), likes("one"))[0] is Verdict.PASS
    verdict, reason = decided(review, likes("champion"), likes("champion"))
    assert verdict is Verdict.FAIL
    assert "0 : 80 with 0 ties" in reason
    assert "less than 40 %" in reason

    def two_of_five(task: Task) -> str:
        wanted = "one" if int(task.item[1:]) % 5 < 2 else "champion"
        return "left" if task.left == wanted else "right"

    verdict, reason = decided(review, attentive(two_of_five), attentive(two_of_five))
    assert verdict is None
    assert "not shown to be on either side" in reason
    verdict, reason = decided(
        review, attentive(two_of_five), attentive(two_of_five), over="its time is up"
    )
    assert verdict is Verdict.INCONCLUSIVE
    assert reason.startswith("its time is up: ")


def test_a_margin_of_nothing_asks_for_a_preference() -> None:
    ties = attentive(lambda _: TIE)
    assert decided(a_review(40, margin=0.0), ties, ties)[0] is None
    assert decided(a_review(40, margin=0.1), ties, ties)[0] is Verdict.PASS


def test_people_who_call_everything_a_tie_pass_nothing() -> None:
    """Ties are halves, above any threshold with a margin: a bad candidate must not pass by them."""
    for number in range(8):
        review = a_review(60, key=f"{number + 1:02x}" * 32)
        votes: list[Vote] = []
        alive = {"ann", "bob"}
        while alive:
            for name in sorted(alive):
                if not go(review, votes, name, lambda _: TIE, most=1):
                    alive.discard(name)
            assert not result_of(review, votes, draws=0).decided
            if len(votes) > 110:
                break


def test_votes_that_came_twice_at_once_do_not_end_it_early() -> None:
    """Five people who are shown the same last pairs at once give some of them too many votes."""
    review = a_review(6, checks=0.0, min_prompts=6)
    votes: list[Vote] = []
    for number, name in enumerate(("ann", "bob", "cy", "dee", "eve"), 1):
        task = next(t for t in pairs(review, name) if t.item == "i0")
        vote = written(task, {"overall": "left"}, 1.0)
        votes.append(replace(vote, vote_id=number, reviewer=name, key=name))
    result = result_of(review, votes, draws=0)
    assert (result.votes, result.wanted) == (2, 12)
    first = result.answers[0].preference
    assert first.prompts == 1
    assert first.mean == result_of(review, votes[:2], draws=0).answers[0].preference.mean


def test_what_was_taken_back_gives_another_repeat_another_id() -> None:
    """Or a browser would show its cached pictures of the one and send an answer to the other."""
    for number in range(12):
        review = a_review(40, key=f"{number + 1:02x}" * 32, checks=0.5)
        votes: list[Vote] = []
        choose = likes("one")
        while True:
            go(review, votes, "ann", choose, most=1)
            task = upcoming(review, "ann", votes)[0][0]
            if task.kind is TaskKind.REPEAT:
                break
        again = [v for v in standing(votes) if v.kind is TaskKind.PAIR][:-1]
        skip = [replace(v, act=Act.SKIP, answers={}) for v in again[:1]] + again[1:]
        other = upcoming(review, "ann", skip + [v for v in votes if v not in again])[0][0]
        if other.kind is TaskKind.REPEAT:
            assert (other.task == task.task) == (other.item == task.item)


def test_too_few_reviewers_decide_nothing() -> None:
    verdict, reason = decided(a_review(40, votes_per_pair=1), likes("one"))
    assert verdict is None
    assert reason.startswith("1 of at least 2 reviewers")
    review = a_review(40, votes_per_pair=1)
    assert decided(review, likes("one"), over="late")[0] is Verdict.INCONCLUSIVE
    assert decided(review, over="late")[0] is Verdict.INCONCLUSIVE


def test_every_question_must_hold_and_one_can_refuse() -> None:
    review = a_review(40, questions=("quality", "adherence"))
    votes: list[Vote] = []
    for name in ("ann", "bob"):
        while told := upcoming(review, name, votes)[0]:
            task = told[0]
            if task.kind is TaskKind.PAIR:
                good = "left" if task.left == "one" else "right"
                bad = "right" if good == "left" else "left"
                choices = {"quality": good, "adherence": bad}
            else:
                choice = likes("one")(task)
                choices = {"quality": choice, "adherence": choice}
            vote = written(task, choices, 1.0)
            number = len(votes) + 1
            votes.append(replace(vote, vote_id=number, reviewer=name, key=str(number)))
    result = result_of(review, votes, draws=0)
    assert result.verdicts["one"] is Verdict.FAIL
    assert "on adherence" in result.reasons["one"]
    assert [a.preference.shown_above for a in result.answers] == [True, False]


def test_an_answer_that_is_missing_is_an_error() -> None:
    verdict, reason = review_verdict([], counted=5, review=a_review())
    assert verdict is Verdict.ERROR
    assert "not every question" in reason
    known = preference([1.0] * 30, 0.4, alpha=0.05)
    answered = Answered(
        candidate="one", question="quality", wins=30, losses=0, ties=0, preference=known,
        wilson=None, two_way=None, needed=0, slices=(),
    )  # fmt: skip
    assert review_verdict([answered], counted=5, review=a_review())[0] is Verdict.ERROR


def test_votes_of_those_set_aside_count_for_nothing() -> None:
    review = a_review(60)
    votes: list[Vote] = []
    go(review, votes, "idle", lambda _: "left")
    assert "idle" in set_aside(votes)
    assert len([t for t in go(review, votes, "ann", likes("one")) if t.kind is TaskKind.PAIR]) == 60
    go(review, votes, "bob", likes("one"))
    result = result_of(review, votes)
    assert (result.votes, result.counted) == (120, 2)
    assert result.answers[0].wins == 120
    assert [r.set_aside for r in result.reviewers] == [True, False, False]
    assert result.agreement == {"overall": None}  # one value only: not defined


def test_what_is_still_needed_shrinks_and_the_descriptions_are_there() -> None:
    rng = np.random.default_rng(3)

    def mostly(_: Task) -> str:
        return "one" if rng.random() < 0.62 else "champion"

    review = a_review(150)
    votes: list[Vote] = []
    choose = attentive(lambda t: "left" if t.left == mostly(t) else "right")
    go(review, votes, "ann", choose, most=100)
    go(review, votes, "bob", choose)
    first = result_of(review, votes).answers[0]
    go(review, votes, "ann", choose)
    last = result_of(review, votes).answers[0]
    assert first.needed is not None
    assert last.votes == 300
    assert last.wilson is not None
    assert last.two_way is not None
    assert last.wilson[0] < last.wins / last.votes < last.wilson[1]
    assert sum(s.wins for s in last.slices) == last.wins
    assert -0.2 < (result_of(review, votes).agreement["overall"] or 0) < 0.3


@pytest.mark.parametrize("share", [0.4, 0.5])
def test_a_whole_review_at_the_margin_is_rarely_passed(share: float) -> None:
    """Looked at after every prompt, over at the first decision, prompts leaning to either side: at
    the margin at most one in twenty passes, and no more than that fail at it or above it."""
    rng = np.random.default_rng(11)
    passed = failed = 0
    runs = 150
    for _ in range(runs):
        leans = rng.normal(0, 0.15, 60)
        means = []
        for lean in leans:
            chance = float(np.clip(share + lean, 0, 1))
            means.append(float(np.mean(rng.random(2) < chance)))
        known = preference(means, 0.4, alpha=0.05, from_prompt=20)
        passed += known.shown_above
        failed += known.shown_below
    limit = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / runs)
    if share == 0.4:
        assert passed / runs <= limit
    assert failed / runs <= limit


# ------------------------------------------------------------------ what the gate makes of it


def test_the_gate_takes_the_worse_of_both_and_says_both() -> None:
    passed = GateDecision(verdict=Verdict.PASS, reasons=("measured: fine",), metrics=())
    failed = GateDecision(verdict=Verdict.FAIL, reasons=("measured: slow",), metrics=())
    decisions = {"a": passed, "b": passed, "c": passed, "d": failed}
    told = {
        "verdicts": {"a": "pass", "b": "fail"},
        "reasons": {"a": "preferred", "b": "not preferred"},
    }
    assert with_review(decisions, None) == decisions
    found = with_review(decisions, told)
    assert {n: d.verdict for n, d in found.items()} == {
        "a": Verdict.PASS,
        "b": Verdict.FAIL,
        "c": Verdict.ERROR,  # passed, and nobody looked: never a pass
        "d": Verdict.FAIL,
    }
    assert found["a"].reasons == ("measured: fine", "review: preferred")
    assert found["b"].reasons == ("review: not preferred", "measured: fine")
    assert found["c"].reasons[0] == "review: it was not reviewed"
    assert found["d"] == failed
