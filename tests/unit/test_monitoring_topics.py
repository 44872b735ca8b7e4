"""Topics of the reference: which prompts go together, and which belong to none."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from tests.content import topic_of
from tests.traffic import Traffic

from intonaco.monitoring.detectors.kmeans import unit
from intonaco.monitoring.topics import NEW, Topics


def rows(traffic: Traffic, n: int, **how: float) -> tuple[np.ndarray, list[str]]:
    items = list(traffic.many(n, **how))
    return unit(np.array([i.prompt_embedding for i in items])), [topic_of(i) for i in items]


@pytest.mark.parametrize("n", [64, 512])
def test_a_topic_holds_one_subject_and_new_prompts_have_none(n: int) -> None:
    traffic = Traffic(seed=1, phrase=0.3)
    topics = Topics.of_reference(rows(traffic, n)[0])
    x, subjects = rows(traffic, 1000)
    given = [topics.of(row) for row in x]
    assert given.count(NEW) <= 20
    for topic in set(given) - {NEW}:  # nobody's votes hide among those on something else
        of = Counter(s for t, s in zip(given, subjects, strict=True) if t == topic)
        assert of.most_common(1)[0][1] >= 0.95 * of.total()
    assert set(given) <= set(topics.names)
    strangers = [topics.of(row) for row in rows(traffic, 300, new=1.0)[0]]
    assert strangers.count(NEW) >= 290


def test_topics_survive_a_restart_to_the_last_bit() -> None:
    x, _ = rows(Traffic(seed=2), 300)
    topics = Topics.of_reference(x)
    again = Topics.of_state(json.loads(json.dumps(topics.state())))
    assert np.array_equal(again.centroids, topics.centroids)
    assert again.limit == topics.limit
    assert [again.of(r) for r in x] == [topics.of(r) for r in x]
    same = Topics.of_reference(x)
    assert np.array_equal(same.centroids, topics.centroids)


def test_little_or_uniform_references() -> None:
    one = np.tile(unit(np.ones(8)), (30, 1))
    topics = Topics.of_reference(one)
    assert topics.names == ("0", NEW)
    assert topics.of(one[0]) == "0"
    with pytest.raises(ValueError, match="at least two"):
        Topics.of_reference(one[:1])
