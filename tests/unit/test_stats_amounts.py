"""Amounts: the outcome's null, checked exactly, and power; simulations are in test_stats_type1."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from intonaco.errors import StorageError
from intonaco.stats import AmountTest, planning


def test_evidence_is_that_of_capped_and_shrunk_amounts() -> None:
    """Amounts beyond the cap count as the cap, the challenger's after the tolerance."""
    one, other = AmountTest(2.0, tolerance=0.5), AmountTest(2.0, tolerance=0.5)
    for amount, capped in ((3.0, 3.0), (9.0, 5.0), (0.3, 0.3)):
        one.take(amount, challenger=True, weight=0.5)
        other.take(capped, challenger=True, weight=0.5)
    one.take(7.0, challenger=False, weight=0.5)
    other.take(2.0, challenger=False, weight=0.5)
    assert one.log_evidence_more == other.log_evidence_more
    assert one.beyond == [1, 2]
    assert one.totals == [2.0, 4.3]
    assert one.estimate == pytest.approx(4.3 / 3 / 2.0)


def test_dearer_challengers_are_found_and_equal_ones_pass_the_margin() -> None:
    rng = np.random.default_rng(0)
    dear, equal = AmountTest(5.0), AmountTest(5.0, margin=0.2)
    assert dear.estimate is None
    for _ in range(3000):
        challenger, cost = bool(rng.random() < 0.5), float(np.exp(0.3 * rng.normal()))
        dear.take(cost * (1.2 if challenger else 1), challenger=challenger, weight=0.5)
        equal.take(cost, challenger=challenger, weight=0.5)
    assert dear.peak_more > math.log(100) > dear.peak_within
    assert equal.peak_within > math.log(100) > equal.peak_more
    assert equal.estimate == pytest.approx(1.0, abs=0.05)
    assert equal.peak_less < math.log(100)
    cheap = AmountTest(5.0)
    for _ in range(1500):
        challenger, cost = bool(rng.random() < 0.5), float(np.exp(0.3 * rng.normal()))
        cheap.take(cost * (0.8 if challenger else 1), challenger=challenger, weight=0.5)
    assert cheap.log_evidence_less > math.log(100)
    assert cheap.peak_less >= cheap.log_evidence_less


def test_the_components_are_where_planning_starts() -> None:
    test = AmountTest(4.0)
    test.take(1.0, challenger=True, weight=0.5)
    for more, evidence in ((True, test.log_evidence_more), (False, test.log_evidence_within)):
        components = test.components(more=more)
        idle = planning.Step(chances=np.ones(1), gains=np.zeros((1, components.size)))
        assert planning.remaining(components, idle, evidence - 1e-9) == 0
        assert planning.remaining(components, idle, evidence + 1e-9) is None


def test_state_restores_bit_for_bit_and_what_is_wrong_is_refused() -> None:
    rng = np.random.default_rng(1)
    one, two = AmountTest(3.0), AmountTest(3.0)
    for i in range(60):
        amount, challenger = float(rng.gamma(2)), bool(rng.random() < 0.3)
        one.take(amount, challenger=challenger, weight=0.3)
        two.take(amount, challenger=challenger, weight=0.3)
        if i == 30:
            stored = json.loads(json.dumps(two.state()))
            two = AmountTest(3.0)
            two.restore(stored)
    assert one.state() == two.state()
    with pytest.raises(StorageError):
        AmountTest(4.0).restore(one.state())
    assert not one.take(1.0, challenger=True, weight=1.0)
    with pytest.raises(ValueError, match="amount"):
        one.take(-1.0, challenger=True, weight=0.5)
    with pytest.raises(ValueError, match="cap"):
        AmountTest(0.0)
