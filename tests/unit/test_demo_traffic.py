"""The traffic generator's users."""

from __future__ import annotations

from collections import Counter

from intonaco.demo.data import FIRST_TOPICS, LATER_TOPICS
from intonaco.demo.traffic import Mix, Users


def ask(users: Users, n: int) -> list[tuple[str, str, bool]]:
    return [next(users) for _ in range(n)]


def test_the_same_seed_gives_the_same_users() -> None:
    mix = Mix(new_share=0.3)
    assert ask(Users(3, mix), 50) == ask(Users(3, mix), 50)
    assert ask(Users(3, mix), 50) != ask(Users(4, mix), 50)


def test_nobody_asks_for_later_topics_before_users_change() -> None:
    prompts = ask(Users(0, Mix()), 500)
    assert not any(new for _, _, new in prompts)
    assert not any(topic in prompt for _, prompt, _ in prompts for topic in LATER_TOPICS)
    assert {t for t in FIRST_TOPICS if any(t in p for _, p, _ in prompts)} == set(FIRST_TOPICS)


def test_the_share_of_later_topics_is_as_asked() -> None:
    prompts = ask(Users(0, Mix(new_share=0.3)), 4000)
    share = sum(new for _, _, new in prompts) / len(prompts)
    assert 0.27 < share < 0.33
    assert all(any(t in p for t in LATER_TOPICS) == new for _, p, new in prompts)


def test_some_users_ask_again_and_most_do_not() -> None:
    counts = Counter(user for user, _, _ in ask(Users(0, Mix()), 3000))
    again = sum(c > 1 for c in counts.values()) / len(counts)
    assert 0.25 < again < 0.36
