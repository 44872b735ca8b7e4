"""The gate: what it needs, what it says, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from intonaco.codec import as_json
from intonaco.config import Evaluation, Margins
from intonaco.evaluation.comparison import (
    NEIGHBOURS,
    ArmImages,
    Costs,
    Reference,
    assess,
    compare,
    describe,
)
from intonaco.evaluation.gate import GateDecision, decide
from intonaco.evaluation.intervals import mean_interval
from intonaco.evaluation.metrics import precision_recall
from intonaco.evaluation.metrics.arrays import Float, unit_rows
from intonaco.types import Assessment, MetricResult, Verdict

KEEP = ("ant", "bee", "cat")
IMPROVE = ("dog", "elk")
SLICES = (*KEEP, *IMPROVE)
PROMPTS, SEEDS, WIDTH = 12, 4, 8
MARGINS = Margins(adherence=0.05, slice_adherence=0.15, distance=0.05, recall=0.2)


class World:
    """Features are a direction a slice plus spread; adherence is the cosine with the direction.
    Both arms share the initial noise of an image, as the same seed gives them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.prompt_ids = tuple(
            f"{s}-{p}" for s in SLICES for p in range(PROMPTS) for _ in range(SEEDS)
        )
        self.slices = tuple(s for s in SLICES for _ in range(PROMPTS * SEEDS))
        n = len(self.slices)
        self.directions = np.eye(len(SLICES), WIDTH)
        self.target: Float = self.directions[[SLICES.index(s) for s in self.slices]]
        self.shared: Float = self.rng.normal(size=(n, WIDTH))
        of_prompt = self.rng.normal(size=(len(SLICES) * PROMPTS, WIDTH))
        self.prompt_effect: Float = np.repeat(of_prompt, SEEDS, axis=0)

    def arm(
        self,
        *,
        spread: float = 0.18,
        lost: Sequence[str] = (),
        common: float = 0.6,
    ) -> ArmImages:
        """``lost``: slices whose prompts give images of "ant"."""
        own = self.rng.normal(size=self.shared.shape)
        noise = common * self.shared + np.sqrt(1 - common**2) * own + 0.3 * self.prompt_effect
        target = self.target.copy()
        target[np.isin(self.slices, list(lost))] = self.directions[0]
        features = unit_rows(target + spread * noise)
        return ArmImages(
            prompt_ids=self.prompt_ids,
            slices=self.slices,
            adherence=(features * self.target).sum(1),
            features=features,
        )

    def reference(self) -> Reference:
        topics = tuple(s for s in SLICES for _ in range(42))
        of = self.directions[[SLICES.index(s) for s in topics]]
        noise = 1.045 * self.rng.normal(size=of.shape)  # the same spread as an arm's
        return Reference(features=unit_rows(of + 0.18 * noise), topics=topics)

    def costs(self, slower: float = 0.0) -> Costs:
        ratios = slower + 0.03 * self.rng.normal(size=10)
        return Costs(
            log_ratios=tuple(ratios), champion_seconds=1, candidate_seconds=1, memory=(100, 100)
        )


def report(results: Sequence[MetricResult], **changes: Any) -> Mapping[str, Any]:
    return {
        "champion": {"release_id": "r0"},
        "candidates": ["new"],
        "keep": list(KEEP),
        "improve": list(IMPROVE),
        "alpha": 0.05,
        "comparisons": {"new": as_json(list(results))},
        "errors": {},
        **changes,
    }


def challenge(
    world: World,
    champion: ArmImages,
    candidate: ArmImages,
    *,
    improve: Sequence[str] = IMPROVE,
    slower: float = 0.0,
) -> GateDecision:
    keep = [s for s in SLICES if s not in improve]
    results = compare(
        champion,
        candidate,
        world.reference(),
        world.costs(slower),
        keep=keep,
        improve=improve,
        alpha=0.05,
        margins=MARGINS,
    )
    given = report(results, keep=keep, improve=list(improve))
    return decide(given, Evaluation(margins=MARGINS))["new"]


def one(metrics: Sequence[MetricResult], metric: str, slice_: str | None = None) -> MetricResult:
    return next(m for m in metrics if (m.metric, m.slice) == (metric, slice_))


class TestErrorBudgets:
    """Seeded simulations. A budget is the most wrong verdicts that a gate as good as it claims
    gives in as many runs with 95 % probability."""

    def test_an_equally_good_candidate_with_the_new_slices_passes(self) -> None:
        """Power as planned for a demonstration: at least 38 of 40."""
        verdicts = []
        for seed in range(40):
            world = World(seed)
            verdicts.append(challenge(world, world.arm(lost=IMPROVE), world.arm()).verdict)
        assert verdicts.count(Verdict.PASS) >= 38
        assert Verdict.FAIL not in verdicts

    def test_a_forgetful_candidate_never_passes(self) -> None:
        for seed in range(20):
            world = World(seed)
            decision = challenge(world, world.arm(lost=IMPROVE), world.arm(lost=KEEP[1:]))
            assert decision.verdict is Verdict.FAIL

    def test_a_candidate_worse_by_a_slice_margin_passes_at_most_at_alpha(self) -> None:
        """The harm that the margin allows, in one slice, others well: the bound of the test is 5 %,
        so at most 4 of 40 (95 % of binomial(40, .05))."""
        passed = 0
        for seed in range(40):
            world = World(1000 + seed)
            champion, candidate = world.arm(lost=IMPROVE), world.arm()
            bee = np.array(candidate.slices) == "bee"
            # a harm that differs from prompt to prompt, and is the margin on average
            harm = MARGINS.slice_adherence + world.rng.normal(0, 0.05, len(bee) // SEEDS)
            harmed = candidate.adherence - np.where(bee, np.repeat(harm, SEEDS), 0.0)
            decision = challenge(world, champion, replace(candidate, adherence=harmed))
            passed += decision.verdict is Verdict.PASS
        assert passed <= 4

    def test_nothing_new_is_not_called_an_improvement(self) -> None:
        """Champion against its equal, asked for superiority: at most 4 of 40 at 5 %."""
        passed = 0
        for seed in range(40):
            world = World(2000 + seed)
            passed += challenge(world, world.arm(), world.arm()).verdict is Verdict.PASS
        assert passed <= 4


def test_mode_collapse_raises_adherence_and_fails_on_recall() -> None:
    for seed in range(10):
        world = World(seed)
        decision = challenge(world, world.arm(), world.arm(spread=0.05), improve=())
        adherence = one(decision.metrics, "adherence")
        recall = one(decision.metrics, "recall")
        assert adherence.assessment is Assessment.SUPERIOR
        assert recall.assessment is Assessment.HARMFUL
        assert decision.verdict is Verdict.FAIL
        assert decision.reasons[0].startswith("recall of the reference changed by -")


def test_images_of_one_prompt_are_not_taken_for_independent() -> None:
    """A prompt's common luck must widen the interval: with differences equal within each prompt,
    the interval is the one of 12 values, not of 48."""
    world = World(0)
    champion = world.arm()
    luck = np.repeat(world.rng.normal(0, 0.1, len(champion.adherence) // SEEDS), SEEDS)
    candidate = replace(champion, adherence=champion.adherence + luck)
    results = compare(
        champion,
        candidate,
        world.reference(),
        None,
        keep=KEEP,
        improve=(),
        alpha=0.05,
        margins=MARGINS,
    )
    found = one(results, "adherence", "ant")
    values = luck[::SEEDS][:PROMPTS]
    assert found.interval is not None
    assert found.interval == pytest.approx(mean_interval(values, ["ant"] * PROMPTS, 0.05)[1])
    half = (found.interval[1] - found.interval[0]) / 2
    assert half >= 1.7958848 * values.std(ddof=1) / np.sqrt(PROMPTS)


def test_the_very_champion_is_as_good_as_itself() -> None:
    world = World(0)
    arm = world.arm()
    decision = challenge(world, arm, arm, improve=())
    assert decision.verdict is Verdict.PASS
    assert all("within the margin" in r or "limit" in r for r in decision.reasons)


def test_a_gain_too_small_to_be_worth_an_update_fails() -> None:
    """Certain, since the same everywhere, and of no use."""
    world = World(0)
    champion = world.arm(lost=IMPROVE)
    little = np.where(np.isin(champion.slices, IMPROVE), 0.02, 0.0)
    candidate = replace(champion, adherence=champion.adherence + little)
    results = compare(
        champion,
        candidate,
        world.reference(),
        world.costs(),
        keep=KEEP,
        improve=IMPROVE,
        alpha=0.05,
        margins=MARGINS,
    )
    assert one(results, "adherence_improve").assessment is Assessment.SUPERIOR
    for least, verdict in ((0.01, Verdict.PASS), (0.1, Verdict.FAIL)):
        config = Evaluation(margins=MARGINS, min_improvement=least)
        assert decide(report(results), config)["new"].verdict is verdict


def test_slower_than_the_margin_fails() -> None:
    world = World(0)
    decision = challenge(world, world.arm(), world.arm(), improve=(), slower=0.7)
    assert decision.verdict is Verdict.FAIL
    assert decision.reasons[0].startswith("time per image changed by +")


@pytest.fixture(scope="module")
def results() -> tuple[MetricResult, ...]:
    world = World(0)
    return compare(
        world.arm(lost=IMPROVE),
        world.arm(),
        world.reference(),
        world.costs(),
        keep=KEEP,
        improve=IMPROVE,
        alpha=0.05,
        margins=MARGINS,
    )


CONFIG = Evaluation(margins=MARGINS)


class TestMissing:
    """What was not measured is never a pass."""

    def test_all_there_passes(self, results: tuple[MetricResult, ...]) -> None:
        assert decide(report(results), CONFIG)["new"].verdict is Verdict.PASS

    @pytest.mark.parametrize(
        ("metric", "slice_"),
        [
            ("adherence_improve", None),
            ("adherence", None),
            ("adherence", "bee"),
            ("adherence", "dog"),
            ("distance", None),
            ("recall", None),
            ("latency", None),
            ("memory", None),
        ],
    )
    @pytest.mark.parametrize("how", ["absent", "no interval"])
    def test_a_metric(
        self, results: tuple[MetricResult, ...], metric: str, slice_: str | None, how: str
    ) -> None:
        is_it = [(r.metric, r.slice) == (metric, slice_) for r in results]
        assert sum(is_it) == 1
        if how == "absent":
            rest = [r for r, it in zip(results, is_it, strict=True) if not it]
        else:
            rest = [
                replace(r, interval=None, difference=None) if it else r
                for r, it in zip(results, is_it, strict=True)
            ]
        decision = decide(report(rest), CONFIG)["new"]
        assert decision.verdict is Verdict.ERROR
        assert "was not measured" in decision.reasons[0]

    def test_everything(self) -> None:
        assert decide(report(()), CONFIG)["new"].verdict is Verdict.ERROR
        assert decide({"candidates": ["new"]}, CONFIG)["new"].verdict is Verdict.ERROR
        assert decide({}, CONFIG) == {}

    def test_a_slice_to_keep(self, results: tuple[MetricResult, ...]) -> None:
        assert decide(report(results, keep=[]), CONFIG)["new"].verdict is Verdict.ERROR

    def test_a_candidate_that_broke(self, results: tuple[MetricResult, ...]) -> None:
        decision = decide(report(results, errors={"new": "BackendError: not finite"}), CONFIG)
        assert decision["new"].verdict is Verdict.ERROR
        assert "not finite" in decision["new"].reasons[0]

    def test_another_alpha(self, results: tuple[MetricResult, ...]) -> None:
        assert decide(report(results, alpha=0.1), CONFIG)["new"].verdict is Verdict.ERROR

    def test_a_report_that_cannot_be_read(self) -> None:
        broken = report((), comparisons={"new": [{"metric": "adherence"}]})
        assert decide(broken, CONFIG)["new"].verdict is Verdict.ERROR

    def test_a_slice_with_one_prompt(self) -> None:
        world = World(0)
        single = tuple("only" if s == "ant" else p for p, s in zip(*_labels(world), strict=True))
        pair = [replace(world.arm(), prompt_ids=single) for _ in range(2)]
        assert challenge(world, pair[0], pair[1], improve=()).verdict is Verdict.ERROR


def _labels(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return world.prompt_ids, world.slices


def test_margins_are_those_of_the_configuration(results: tuple[MetricResult, ...]) -> None:
    tight = Evaluation(margins=Margins(adherence=1e-6, slice_adherence=1e-6))
    decision = decide(report(results), tight)["new"]
    assert decision.verdict is not Verdict.PASS
    assert one(decision.metrics, "adherence").margin == 1e-6


def test_memory_is_a_hard_limit(results: tuple[MetricResult, ...]) -> None:
    heavier = [replace(r, difference=1.6) if r.metric == "memory" else r for r in results]
    decision = decide(report(heavier), CONFIG)["new"]
    assert decision.verdict is Verdict.FAIL
    assert "1.60 times" in decision.reasons[0]


class TestFirstRelease:
    def decide(self, candidate: ArmImages, floor: float | None) -> GateDecision:
        found = describe(candidate, slices=KEEP, alpha=0.05, floor=None)
        config = Evaluation(margins=MARGINS, floor_adherence=floor)
        return decide(report(found, champion=None, improve=[]), config)["new"]

    def test_above_the_floor_in_every_slice(self) -> None:
        assert self.decide(World(0).arm(), 0.5).verdict is Verdict.PASS

    def test_below_it_in_one(self) -> None:
        decision = self.decide(World(0).arm(lost=["cat"]), 0.5)
        assert decision.verdict is Verdict.FAIL
        assert decision.reasons[0].startswith("adherence on cat is ")

    def test_near_it(self) -> None:
        arm = World(0).arm()
        mean = float(arm.adherence[arm.rows(["bee"])].mean())
        assert self.decide(arm, mean).verdict is Verdict.INCONCLUSIVE

    def test_without_a_floor(self) -> None:
        assert self.decide(World(0).arm(), None).verdict is Verdict.ERROR

    def test_with_a_slice_unmeasured(self) -> None:
        found = describe(World(0).arm(), slices=KEEP[:2], alpha=0.05, floor=None)
        config = Evaluation(floor_adherence=0.5)
        decision = decide(report(found, champion=None, improve=[]), config)["new"]
        assert decision.verdict is Verdict.ERROR


@pytest.mark.parametrize(
    ("metric", "difference", "interval", "expected"),
    [
        ("adherence", 0.2, (0.1, 0.3), Assessment.SUPERIOR),
        ("adherence", 0.0, (-0.04, 0.04), Assessment.NON_INFERIOR),
        ("adherence", -0.02, (-0.03, -0.01), Assessment.NON_INFERIOR),
        ("adherence", -0.04, (-0.06, -0.02), Assessment.UNDECIDED),
        ("adherence", -0.2, (-0.3, -0.1), Assessment.HARMFUL),
        ("latency", -0.2, (-0.3, -0.1), Assessment.SUPERIOR),
        ("latency", 0.2, (0.1, 0.3), Assessment.HARMFUL),
        ("distance", 0.04, (0.02, 0.06), Assessment.UNDECIDED),
        ("fd@digits-clip32", 0.2, (0.1, 0.3), Assessment.HARMFUL),
        ("adherence", float("nan"), (-0.01, 0.01), Assessment.NO_DATA),
        ("adherence", 0.0, (float("nan"), 0.01), Assessment.NO_DATA),
        ("adherence", 0.0, None, Assessment.NO_DATA),
        ("memory", 0.04, None, Assessment.NON_INFERIOR),
        ("memory", 0.06, None, Assessment.HARMFUL),
        ("memory", None, None, Assessment.NO_DATA),
    ],
)
def test_assessments(
    metric: str,
    difference: float | None,
    interval: tuple[float, float] | None,
    expected: Assessment,
) -> None:
    assert assess(metric, difference, interval, 0.05) is expected


def test_a_figure_without_a_margin_is_never_called_good_enough() -> None:
    assert assess("fd@x", 0.9, (0.8, 1.0), None) is Assessment.HARMFUL
    assert assess("fd@x", 0.1, (-0.1, 0.3), None) is Assessment.UNDECIDED
    assert assess("fd@x", -0.1, (-0.2, -0.05), None) is Assessment.SUPERIOR


def test_recall_is_that_of_the_metric() -> None:
    world = World(0)
    arm, reference = world.arm(), world.reference()
    found = one(
        compare(
            arm,
            world.arm(spread=0.05),
            reference,
            None,
            keep=KEEP,
            improve=(),
            alpha=0.05,
            margins=MARGINS,
        ),
        "recall",
    )
    expected = precision_recall(
        reference.of(KEEP), arm.features[arm.rows(KEEP)], k=NEIGHBOURS
    ).recall
    assert found.champion == pytest.approx(expected)


def test_unpaired_arms_are_refused() -> None:
    world = World(0)
    other = replace(world.arm(), prompt_ids=tuple(reversed(world.prompt_ids)))
    with pytest.raises(ValueError, match="paired"):
        challenge(world, world.arm(), other)
