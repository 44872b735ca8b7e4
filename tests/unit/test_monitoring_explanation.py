"""Clusters that explain a finding, and the words for them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.traffic import NAMES, Traffic

from intonaco.monitoring.detectors.kmeans import unit
from intonaco.monitoring.explanation import (
    Requests,
    _central,
    _samples,
    explain,
    moved_share,
    quality,
    summary,
    wilson,
)
from intonaco.types import ScoredRecord


def window(items: list[ScoredRecord]) -> Requests:
    return Requests(
        embeddings=np.array([i.prompt_embedding for i in items]),
        prompts=[i.record.prompt for i in items],
        images=[i.record.image for i in items],
        scores=np.array([i.scores.get("clip", np.nan) for i in items]),
    )


def embeddings(items: list[ScoredRecord]) -> np.ndarray:
    return np.array([i.prompt_embedding for i in items])


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_ten_digits_and_which_are_new(seed: int) -> None:
    traffic = Traffic(seed=seed, phrase=0.25)
    before = embeddings(list(traffic.many(250)))
    now = list(traffic.many(120, new=0.35))
    moves = explain(before, window(now))
    assert len(moves) == 10
    moved = [c for c in moves if c.moved]
    digits = set()
    for c in moved:
        named = {n for n in NAMES for p in c.sample_prompts if n in p.split()}
        assert len(named) == 1, f"a cluster mixes {named}"
        digits |= named
    assert digits == set(NAMES[5:])
    assert moves[: len(moved)] == tuple(moved)
    true_share = np.mean([i.record.prompt.split()[-1] != "" and _new(i) for i in now])
    assert moved_share(moves) == pytest.approx(true_share, abs=0.02)
    assert sum(c.share_now for c in moves) == pytest.approx(1)
    assert sum(c.share_before for c in moves) == pytest.approx(1)
    inside, outside = quality(moves)
    assert inside == pytest.approx(0.05, abs=0.1)
    assert outside == pytest.approx(0.80, abs=0.1)
    for c in moves:
        low, high = c.share_now_interval
        assert low <= c.share_now <= high
        assert 0 < len(c.sample_prompts) <= 5
        assert len(set(c.sample_prompts)) == len(c.sample_prompts)
        assert 0 < len(c.sample_images) <= 5
    # nearest centroid sends every new phrasing, asked or not, to a moved cluster
    centroids = np.array([c.centroid for c in moves])
    nearest = np.argmax(traffic.vectors.reshape(120, -1) @ centroids.T, axis=1).reshape(10, 12)
    assert (nearest[5:] < len(moved)).all()
    assert (nearest[:5] >= len(moved)).all()


def _new(item: ScoredRecord) -> bool:
    return any(n in item.record.prompt.split() for n in NAMES[5:])


def test_the_sentence() -> None:
    traffic = Traffic(seed=1, phrase=0.25)
    before = embeddings(list(traffic.many(250)))
    text = summary(explain(before, window(list(traffic.many(100, new=0.3)))))
    assert "% of requests now ask for things like '" in text
    assert "(before: 0%)" in text
    assert "CLIP score there 0.0" in text or "CLIP score there -0.0" in text
    assert "elsewhere" in text


def test_nothing_moved_says_so() -> None:
    wrong = 0
    for seed in range(10):
        traffic = Traffic(seed=seed, phrase=0.25)
        before = embeddings(list(traffic.many(250)))
        moves = explain(before, window(list(traffic.many(100))))
        wrong += any(c.moved for c in moves)
    assert wrong <= 2  # one in twenty is allowed
    assert "no single group" in summary([])


def test_a_known_topic_that_grows_is_named() -> None:
    traffic = Traffic(seed=3, phrase=0.25)
    before = embeddings(list(traffic.many(250)))
    now = list(traffic.many(120))
    two = [i for i in traffic.many(400) if "two" in i.record.prompt.split()][:60]
    moves = explain(before, window([*now, *two]))
    moved = [c for c in moves if c.moved]
    assert len(moved) == 1
    assert all("two" in p for p in moved[0].sample_prompts)
    assert moved[0].share_before == pytest.approx(0.2, abs=0.07)
    assert moved[0].quality_inside == pytest.approx(0.8, abs=0.05)


def test_without_scores_or_images_it_still_explains() -> None:
    traffic = Traffic(seed=2, phrase=0.25)
    before = embeddings(list(traffic.many(200)))
    now = window(list(traffic.many(80, new=0.4)))
    n = len(now.prompts)
    blind = Requests(
        embeddings=now.embeddings,
        prompts=now.prompts,
        images=[None] * n,
        scores=np.full(n, np.nan),
    )
    moves = explain(before, blind)
    assert any(c.moved for c in moves)
    assert quality(moves) == (None, None)
    assert all(c.sample_images == () for c in moves)
    assert "no image there was scored" in summary(moves)


def test_too_little_to_compare() -> None:
    traffic = Traffic(seed=2)
    few = list(traffic.many(1))
    assert explain(embeddings(few), window(few)) == ()


def test_wilson_interval() -> None:
    # Wilson's interval for 10 of 100, as any table gives it
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0


def test_one_person_does_not_fill_the_card_and_the_medoid_comes_first() -> None:
    rng = np.random.default_rng(1)
    rows = unit(np.eye(8)[6] + 0.1 * rng.standard_normal((40, 8)))
    rows[7] = unit(rows.mean(axis=0, keepdims=True))[0]
    inside = np.arange(40) < 39
    units = ["robot"] * 35 + ["a", "b", "c", "d", "outside"]
    now = Requests(
        embeddings=rows,
        prompts=[f"p{i // 2}" for i in range(40)],
        images=[f"images/{i}.png" for i in range(40)],
        scores=np.full(40, 0.5),
        units=units,
    )
    members = _central(rows, inside)
    assert members[0] == 7, "the medoid"
    assert 39 not in members
    chosen = _samples(members, now)
    assert len(chosen) == 5
    assert [units[i] for i in chosen].count("robot") == 2, "a, b, c, d ask for three things"
    assert len({now.prompts[i] for i in chosen}) == 5
    alone = Requests(
        embeddings=rows, prompts=now.prompts, images=now.images, scores=now.scores, units=["r"] * 40
    )
    assert len(_samples(members, alone)) == 5, "where nobody else asked"


def test_pictures_before_are_of_the_same_cluster() -> None:
    rng = np.random.default_rng(2)
    topics = np.eye(8)
    before = rng.integers(0, 4, 200)
    now = np.concatenate([rng.integers(0, 4, 60), np.full(40, 6)])
    moves = explain(
        topics[before] + 0.05 * rng.standard_normal((200, 8)),
        Requests(
            embeddings=topics[now] + 0.05 * rng.standard_normal((100, 8)),
            prompts=[str(t) for t in now],
            images=[None] * 100,
            scores=np.full(100, np.nan),
        ),
        images_before=[f"{t}/{i}" for i, t in enumerate(before)],
    )
    assert all(c.images_before == () for c in moves if c.moved)
    for cluster in (c for c in moves if not c.moved):
        assert {p[0] for p in cluster.images_before} == set(cluster.sample_prompts)
        low, high = cluster.share_before_interval or (1.0, 0.0)
        assert low <= cluster.share_before <= high
