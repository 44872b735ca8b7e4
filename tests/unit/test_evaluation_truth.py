"""How often the gate and its intervals are wrong, on made-up evaluations whose truth is known.

The budgets of the small runs are what a gate as good as it claims stays within with 99 %
probability; the full run is held to the claims themselves.
"""

from __future__ import annotations

import pytest

from intonaco.testing.evaluations import Truth, World, find_truth

# Exact for rare events, longer towards a loss, and of what does not use that two arms rise and fall
# together: longer than their level asks for, on purpose.
CONSERVATIVE = (
    "copies", "unsafe", "hits", "latency_p95", "coverage", "fd@features", "recall", "distance"
)  # fmt: skip


def most(n: int, p: float, level: float = 0.99) -> int:
    """Quantile of the binomial distribution."""
    from intonaco.evaluation.intervals import binomial_cdf

    return next(k for k in range(n + 1) if binomial_cdf(k, n, p) >= level)


def tell(truth: Truth, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + "\n".join(truth.lines()))


def test_few_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    truth = find_truth(World(), identical=30, at_margin=4, seed=7)
    tell(truth, capsys)
    assert truth.failed <= most(30, 0.05)
    assert truth.superior <= most(30, 0.05)
    assert 30 - truth.passed <= most(30, 0.2)
    passes, runs = (sum(x) for x in zip(*truth.at_margin.values(), strict=True))
    assert passes <= most(runs, 0.05)
    for name, cover in truth.covers.items():
        if cover.runs and "slice" not in name:  # of slices five a run, which are not independent
            assert cover.above + cover.below <= most(cover.runs, 0.1), name


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    """A candidate at a margin passes at most at 5 %, an identical one fails at most at 5 %, passes
    at least as often as planned, and is found superior at most at 5 %; each interval holds the
    truth within two points of 90 %, or more often where it is meant to."""
    truth = find_truth(World(), identical=1000, at_margin=200, seed=20)
    tell(truth, capsys)
    passes, runs = (sum(x) for x in zip(*truth.at_margin.values(), strict=True))
    assert passes <= most(runs, 0.05)
    for name, (passes, runs) in truth.at_margin.items():
        assert passes <= most(runs, 0.05), name
    assert truth.false_fail <= 0.05
    assert truth.passed >= truth.planned_power * truth.identical
    assert truth.superior <= most(1000, 0.05)
    for name, cover in truth.covers.items():
        if not cover.runs:
            continue
        # two points of 1,000 intervals; of fewer as far as chance goes
        assert cover.above + cover.below <= max(0.12 * cover.runs, most(cover.runs, 0.1)), name
        if cover.runs >= 1000 and not name.startswith(CONSERVATIVE):
            assert cover.share <= 0.93, name
