"""Old data mixed into new: shares, sampling, and that the draw can be done again."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from intonaco.datasets.curation import Item
from intonaco.datasets.replay import Sampling, mix


def written(folder: Path, prefix: str, n: int, topic: str = "t") -> list[Item]:
    """Items whose images exist and differ."""
    items = [
        Item(file=folder / f"{prefix}{i}", texts=(f"{prefix}{i}",), topic=topic) for i in range(n)
    ]
    for one in items:
        one.file.write_text(one.file.name)
    return items


@pytest.mark.parametrize("sampling", ["uniform", "topic"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_mix_has_the_share_of_old_data(share: float, sampling: Sampling, tmp_path: Path) -> None:
    new, old = written(tmp_path, "n", 20), written(tmp_path, "o", 200)
    mixed, made = mix(new, old, share, sampling=sampling, seed=4)
    drawn = [one for one in mixed if one in old]
    assert [one for one in mixed if one in new] == new
    assert len({one.file for one in drawn}) == len(drawn)
    assert abs(len(drawn) / len(mixed) - share) < 0.02
    assert (made.share, made.sampling, made.seed) == (share, sampling, 4)
    assert (made.new, made.replayed) == (20, len(drawn))
    assert sum(made.topics.values()) == len(drawn)


def test_mix_draws_from_all_old_items_and_by_seed(tmp_path: Path) -> None:
    new, old = written(tmp_path, "n", 10), written(tmp_path, "o", 20)
    draws = [mix(new, old, 0.3, sampling="uniform", seed=s)[0] for s in range(100)]
    assert {one.file for draw in draws for one in draw} == {one.file for one in (*new, *old)}
    assert draws[0] == mix(new, old, 0.3, sampling="uniform", seed=0)[0]
    assert draws[0] != draws[1]


def test_mix_takes_what_old_data_there_is(tmp_path: Path) -> None:
    new, (good, learned, private) = written(tmp_path, "n", 10), written(tmp_path, "o", 3)
    learned.file.write_bytes(new[0].file.read_bytes())
    old = [good, learned, replace(private, consent=False)]
    mixed, made = mix(new, old, 0.5, sampling="uniform", seed=0)
    assert mixed == [*new, good]
    assert made.replayed == 1
    assert mix(new, [], 0.5, sampling="topic", seed=0)[0] == new


def test_new_items_without_consent_ask_for_no_old_ones(tmp_path: Path) -> None:
    new = [replace(one, consent=i < 4) for i, one in enumerate(written(tmp_path, "n", 10))]
    _, made = mix(new, written(tmp_path, "o", 50), 0.5, sampling="uniform", seed=0)
    assert (made.new, made.replayed) == (4, 4)


def test_by_topic_no_topic_is_forgotten(tmp_path: Path) -> None:
    """Of 300 old items 3 are of a rare topic; 30 are drawn."""
    new = written(tmp_path, "n", 30)
    old = [
        *written(tmp_path, "a", 200, "a"),
        *written(tmp_path, "b", 97, "b"),
        *written(tmp_path, "c", 3, "c"),
    ]
    for seed in range(20):
        _, made = mix(new, old, 0.5, sampling="topic", seed=seed)
        # All of the rare one, and what it lacks from the others in equal parts.
        assert made.topics["c"] == 3
        assert sorted((made.topics["a"], made.topics["b"])) == [13, 14]
    draws = [mix(new, old, 0.5, sampling="uniform", seed=seed)[1] for seed in range(200)]
    total = sum((Counter(draw.topics) for draw in draws), Counter[str]())
    # 200 draws of 30: 4000, 1940 and 60 are expected; four standard deviations of a binomial.
    assert abs(total["a"] - 4000) < 4 * (6000 * (2 / 3) * (1 / 3)) ** 0.5
    assert abs(total["c"] - 60) < 4 * (6000 * 0.01 * 0.99) ** 0.5


def test_by_topic_each_item_of_a_topic_is_drawn_alike(tmp_path: Path) -> None:
    new, old = written(tmp_path, "n", 5), written(tmp_path, "a", 10, "a")
    old += written(tmp_path, "b", 2, "b")
    seen = Counter(
        one.file.name
        for seed in range(600)
        for one in mix(new, old, 0.5, sampling="topic", seed=seed)[0]
        if one not in new
    )
    # Five of twelve: two or three of ten "a", the rest "b", which has only two.
    assert seen["b0"] == seen["b1"] == 600
    assert all(abs(seen[f"a{i}"] - 180) < 4 * (600 * 0.3 * 0.7) ** 0.5 for i in range(10))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_mix_refuses_other_shares(share: float) -> None:
    with pytest.raises(ValueError, match="replay"):
        mix([], [], share, sampling="uniform", seed=0)
