"""The gate: what it needs, what it says, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from intonaco.codec import as_json
from intonaco.config import Evaluation, Margins
from intonaco.evaluation.attempts import Attempt
from intonaco.evaluation.comparison import (
    NEIGHBOURS,
    ArmImages,
    Costs,
    Reference,
    assess,
    compare,
    describe,
    judge,
    served_slices,
)
from intonaco.evaluation.gate import Expected, GateDecision, decide, wants_superiority
from intonaco.evaluation.intervals import mean_interval
from intonaco.evaluation.metrics import precision_recall
from intonaco.evaluation.metrics.arrays import Float, unit_rows
from intonaco.types import Action, Assessment, MetricResult, Verdict

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
    """Seeded simulations; how often it is wrong at a margin is in test_evaluation_truth.py."""

    def test_an_equally_good_candidate_with_the_new_slices_passes(self) -> None:
        """Power as planned for a demonstration: at least 14 of 15."""
        verdicts = []
        for seed in range(15):
            world = World(seed)
            verdicts.append(challenge(world, world.arm(lost=IMPROVE), world.arm()).verdict)
        assert verdicts.count(Verdict.PASS) >= 14
        assert Verdict.FAIL not in verdicts

    def test_a_forgetful_candidate_never_passes(self) -> None:
        for seed in range(8):
            world = World(seed)
            decision = challenge(world, world.arm(lost=IMPROVE), world.arm(lost=KEEP[1:]))
            assert decision.verdict is Verdict.FAIL


def test_mode_collapse_raises_adherence_and_fails_on_recall() -> None:
    for seed in range(3):
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
    said = [r for r in decision.reasons if "not measured, not judged" not in r]
    assert said
    assert all("within the margin" in r or "limit" in r for r in said)


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

    @pytest.mark.parametrize(
        "changes",
        [
            {"keep": "ant"},
            {"improve": 3},
            {"comparisons": [1]},
            {"errors": ["new"]},
            {"extractor": "a"},
            {"arms": {"champion": "a"}},
            {"shots": [1]},
            {"alphas": 0.05},
        ],
    )
    def test_a_report_of_another_shape(
        self, results: tuple[MetricResult, ...], changes: Mapping[str, Any]
    ) -> None:
        decision = decide(report(results, **changes), CONFIG)["new"]
        assert decision.verdict is Verdict.ERROR
        assert decision.reasons[0].startswith("the report cannot be read: ")

    def test_a_metric_told_twice_hides_nothing(self, results: tuple[MetricResult, ...]) -> None:
        bad = replace(one(results, "recall"), difference=-0.8, interval=(-0.9, -0.7))
        decision = decide(report((bad, *results)), CONFIG)["new"]
        assert decision.verdict is Verdict.ERROR
        assert decision.reasons == ("the report tells recall of the reference twice",)

    @pytest.mark.parametrize("metric", ["adherence", "distance", "recall", "latency"])
    def test_an_interval_without_its_difference_or_turned_round(
        self, results: tuple[MetricResult, ...], metric: str
    ) -> None:
        """Such an interval is not taken for one of the value itself, as of unsafe images."""
        for changes in ({"difference": None}, {"interval": (0.5, -0.5)}):
            broken = [
                replace(r, **changes) if (r.metric, r.slice) == (metric, None) else r
                for r in results
            ]
            assert decide(report(broken), CONFIG)["new"].verdict is Verdict.ERROR

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


def whole(world: World, **changes: Any) -> ArmImages:
    """An arm with everything that can be measured of it."""
    arm = world.arm()
    n = len(arm.prompt_ids)
    given: dict[str, Any] = {
        "scores": {"quality": 0.1 * world.rng.normal(size=n)},
        "hits": np.ones(n, dtype=bool),
        "detail": 0.05 * world.rng.normal(size=n) - 5.0,
        "unsafe": np.zeros(n, dtype=bool),
    }
    return replace(arm, **{**given, **changes})


def all_costs(world: World, **changes: Any) -> Costs:
    times = tuple(1.0 + 0.05 * world.rng.random(80))
    given = replace(
        world.costs(),
        champion_times=times,
        candidate_times=times,
        rounds=tuple(i // 2 for i in range(80)),
        throughput_log_ratios=tuple(0.01 * world.rng.normal(size=10)),
        peak_memory=(200, 200),
        cost_per_image=(0.001, 0.001),
    )
    return replace(given, **changes)


LOOSE = Margins(
    **{
        **MARGINS.model_dump(),
        "throughput": 0.3,
        "coverage": 0.4,
        "slice_recall": 0.9,
        "fd": 5.0,
        "diversity": 0.5,
        "hits": 0.2,
        "cost": 1.2,
        "unsafe": 0.1,
        "copies": 0.2,
        "scores": {"quality": 0.1},
    }
)


class TestBadCandidates:
    """Each thing that may be wrong with a candidate is refused, for that reason."""

    def verdict(
        self,
        candidate: Mapping[str, Any] | ArmImages,
        world: World,
        champion: ArmImages,
        *,
        costs: Costs | None = None,
        memorised: int = 0,
    ) -> GateDecision:
        arm = (
            candidate if isinstance(candidate, ArmImages) else replace(champion, **dict(candidate))
        )
        training = world.reference().features
        if memorised:
            features = arm.features.copy()
            features[::SEEDS][:memorised] = training[:memorised]
            arm = replace(arm, features=features)
        results = compare(
            champion,
            arm,
            replace(world.reference(), training=training),
            costs or all_costs(world),
            keep=SLICES,
            improve=(),
            alpha=0.05,
            margins=LOOSE,
        )
        config = Evaluation(margins=LOOSE)
        given = report(results, keep=list(SLICES), improve=[])
        return decide(given, config, Expected(superiority=False))["new"]

    def test_the_good_one_passes(self) -> None:
        world = World(0)
        decision = self.verdict(whole(world), world, whole(world))
        assert decision.verdict is Verdict.PASS, decision.reasons
        assert not [r for r in decision.reasons if "not judged" in r]

    def test_collapse_on_one_picture_a_prompt(self) -> None:
        """Which adherence rewards and the distance misses."""
        world = World(1)
        champion = whole(world)
        firsts = champion.features[::SEEDS].repeat(SEEDS, axis=0)
        decision = self.verdict({"features": firsts}, world, champion)
        assert decision.verdict is Verdict.FAIL
        assert any("images of one prompt" in r for r in decision.reasons if "worse by" in r)

    def test_forgetting(self) -> None:
        world = World(2)
        decision = self.verdict(
            replace(whole(world), adherence=world.arm(lost=["bee"]).adherence), world, whole(world)
        )
        assert decision.verdict is Verdict.FAIL
        assert any(r.startswith("adherence on bee ") and "worse by" in r for r in decision.reasons)

    def test_memorisation(self) -> None:
        world = World(3)
        champion = whole(world)
        decision = self.verdict({}, world, champion, memorised=25)
        assert decision.verdict is Verdict.FAIL
        assert decision.reasons[0].startswith("prompts with a copy of a training image ")
        assert self.verdict({}, world, champion).verdict is Verdict.PASS

    def test_prompts_ignored(self) -> None:
        """Good pictures of anything: neither distance nor recall see it."""
        world = World(4)
        champion = whole(world)
        order = world.rng.permutation(len(champion.prompt_ids))
        features = champion.features[order]
        adherence = (features * world.target).sum(1)
        decision = self.verdict({"features": features, "adherence": adherence}, world, champion)
        assert decision.verdict is Verdict.FAIL
        assert decision.reasons[0].startswith("adherence on the slices to keep ")

    @pytest.mark.parametrize(("by", "word"), [(-0.4, "blurred"), (1.2, "noisier")])
    def test_blur_and_noise(self, by: float, word: str) -> None:
        world = World(5)
        champion = whole(world)
        decision = self.verdict({"detail": np.asarray(champion.detail) + by}, world, champion)
        assert decision.verdict is Verdict.FAIL
        assert word in decision.reasons[0]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"log_ratios": (0.7, 0.71, 0.69, 0.72, 0.7, 0.68)}, "time per image "),
            (
                {"candidate_times": (1.0, 1.01, 1.0, 1.01, 1.0, 1.0, 1.0, 3.0) * 10},
                "95th percentile of time ",
            ),
            ({"throughput_log_ratios": (-0.7, -0.71, -0.69, -0.72, -0.7)}, "images a second "),
            ({"memory": (100, 160)}, "memory is 1.60 times"),
            ({"peak_memory": (100, 160)}, "peak memory is 1.60 times"),
            ({"cost_per_image": (0.001, 0.002)}, "cost of an image is 2.00 times"),
        ],
    )
    def test_slower_larger_dearer(self, changes: Mapping[str, Any], reason: str) -> None:
        world = World(6)
        champion = whole(world)
        decision = self.verdict({}, world, champion, costs=all_costs(world, **changes))
        assert decision.verdict is Verdict.FAIL
        assert decision.reasons[0].startswith(reason)

    def test_unsafe(self) -> None:
        world = World(7)
        champion = whole(world)
        n = len(champion.prompt_ids)
        for every, verdict in ((n, Verdict.PASS), (8, Verdict.FAIL)):
            unsafe = np.arange(n) % every == 1
            decision = self.verdict({"unsafe": unsafe}, world, champion)
            assert decision.verdict is verdict, decision.reasons
        assert decision.reasons[0].startswith("prompts with an unsafe image: ")

    def test_a_worse_score(self) -> None:
        world = World(8)
        champion = whole(world)
        scores = {"quality": champion.scores["quality"] - 0.5}
        decision = self.verdict({"scores": scores}, world, champion)
        assert decision.verdict is Verdict.FAIL
        assert decision.reasons[0].startswith("score quality ")

    def test_a_yes_or_no_never_seen_is_not_none_to_come(self) -> None:
        """A head that says 0 or 1: without an event its spread is 0. At a margin of 2 % and 60
        prompts every third candidate would have none to show."""
        world = World(12)
        champion = whole(world)
        n = len(champion.prompt_ids)
        for every, worst in ((np.ones(n), 0.0), (np.arange(n) != 7, -1 / n)):
            found = compare(
                replace(champion, scores={"clean": np.ones(n)}),
                replace(champion, scores={"clean": np.asarray(every, dtype=np.float64)}),
                world.reference(),
                None,
                keep=SLICES,
                improve=(),
                alpha=0.05,
                margins=Margins(scores={"clean": 0.02}),
            )
            clean = one(found, "score:clean")
            assert clean.difference == pytest.approx(worst)
            assert clean.interval is not None
            assert clean.interval[0] <= worst - 0.048
            assert clean.assessment is Assessment.UNDECIDED
            assert clean.method.endswith("the rule of three")

    def test_images_of_another_slice(self) -> None:
        world = World(9)
        champion = whole(world)
        hits = np.arange(len(champion.prompt_ids)) % 2 == 0
        decision = self.verdict({"hits": hits}, world, champion)
        assert decision.verdict is Verdict.FAIL
        assert decision.reasons[0].startswith("share of images of the slice asked for ")

    def test_a_swapped_extractor(self) -> None:
        world = World(10)
        champion = whole(world)
        with pytest.raises(ValueError, match="different extractors"):
            self.verdict({"extractor": "another"}, world, champion)

    @pytest.mark.parametrize("field", ["adherence", "detail"])
    def test_what_is_not_finite(self, field: str) -> None:
        world = World(11)
        champion = whole(world)
        values = np.asarray(getattr(champion, field)).copy()
        values[3] = np.nan
        with pytest.raises(ValueError, match=f"{field} of the candidate"):
            self.verdict({field: values}, world, champion)


class TestMadeOtherwise:
    """A report that does not answer what was asked is an error."""

    @pytest.mark.parametrize(
        ("changes", "expected", "reason"),
        [
            ({"extractor": {"digest": "b"}}, Expected(extractor="a"), "with extractor b"),
            ({}, Expected(extractor="a"), "with extractor"),
            (
                {"extractor": {"digest": "a"}, "arms": {"champion": {"extractor": "b"}}},
                Expected(extractor="a"),
                "the images of champion were seen by extractor b",
            ),
            ({"shots": {"digest": "x"}}, Expected(shots="y"), "other prompts or seeds"),
            ({}, Expected(shots="y"), "other prompts or seeds"),
            ({"alphas": {"new": 0.01}}, Expected(), "at alpha 0.01, and 0.05"),
            ({}, Expected(attempts={"new": Attempt(number=2, alpha=0.025)}), "at alpha 0.05"),
            ({"success": ["recall"]}, Expected(), "measured for recall"),
            (
                {},
                Expected(attempts={"new": Attempt(number=7, alpha=0.05 / 64)}),
                "candidate 7 for this trigger",
            ),
        ],
    )
    def test_refused(
        self,
        results: tuple[MetricResult, ...],
        changes: Mapping[str, Any],
        expected: Expected,
        reason: str,
    ) -> None:
        decision = decide(report(results, **changes), CONFIG, expected)["new"]
        assert decision.verdict is Verdict.ERROR
        assert reason in decision.reasons[0]

    def test_what_was_asked_passes(self, results: tuple[MetricResult, ...]) -> None:
        given = report(
            results,
            extractor={"digest": "a"},
            arms={"champion": {"extractor": "a"}, "new": {}},
            shots={"digest": "y"},
            alphas={"new": 0.0125},
        )
        attempt = Attempt(number=3, alpha=0.0125)
        expected = Expected(extractor="a", shots="y", attempts={"new": attempt})
        decision = decide(given, CONFIG, expected)["new"]
        assert decision.verdict is Verdict.PASS
        told = "candidate 3 for this trigger, of 6 at most: judged at alpha 0.0125 instead of 0.05"
        assert told in decision.reasons


class TestKindsOfPlan:
    @pytest.mark.parametrize("action", list(Action))
    def test_only_what_trains_must_improve(self, action: Action) -> None:
        wanted = action in (Action.FINE_TUNE, Action.FULL_RETRAIN)
        assert wants_superiority(action) is wanted

    def test_no_worse_is_enough_or_not(self) -> None:
        world = World(0)
        arm = world.arm()
        results = compare(
            arm,
            arm,
            world.reference(),
            world.costs(),
            keep=SLICES,
            improve=(),
            alpha=0.05,
            margins=MARGINS,
        )
        given = report(results, keep=list(SLICES), improve=[])
        decisions = [
            decide(given, CONFIG, Expected(superiority=wanted))["new"] for wanted in (False, True)
        ]
        assert [d.verdict for d in decisions] == [Verdict.PASS, Verdict.FAIL]
        assert decisions[1].reasons[0].startswith("adherence on the slices to keep changed by")
        assert "it should have risen by more than 0.0100" in decisions[1].reasons[0]

    def test_one_metric_of_success_is_enough_and_alpha_is_shared(self) -> None:
        world = World(0)
        champion, candidate = world.arm(), world.arm()
        wanted = ("adherence", "hits")
        hits = np.arange(len(champion.prompt_ids)) % 3 > 0
        champion = replace(champion, hits=hits)
        candidate = replace(candidate, hits=np.ones_like(hits))
        config = Evaluation(margins=MARGINS, success=wanted)
        results = compare(
            champion,
            candidate,
            world.reference(),
            world.costs(),
            keep=SLICES,
            improve=(),
            alpha=0.05,
            margins=MARGINS,
            success=wanted,
        )
        overall, shared = one(results, "adherence"), one(results, "adherence_improve")
        assert overall.interval is not None
        assert shared.interval is not None
        assert shared.interval[0] < overall.interval[0]
        given = report(results, keep=list(SLICES), improve=[], success=list(wanted))
        decision = decide(given, config, Expected(superiority=True))["new"]
        assert decision.verdict is Verdict.PASS
        assert any(
            r.startswith("share of images of the slice asked for on the slices") and "better" in r
            for r in decision.reasons
        )


class TestOptionalGuardrails:
    def test_told_when_not_measured(self, results: tuple[MetricResult, ...]) -> None:
        given = report(results, skipped={"copies": "no training images are known"})
        decision = decide(given, CONFIG)["new"]
        assert decision.verdict is Verdict.PASS
        told = "prompts with a copy of a training image: not measured, not judged (no training"
        assert any(r.startswith(told) for r in decision.reasons)

    def test_an_error_where_required(self, results: tuple[MetricResult, ...]) -> None:
        config = Evaluation(margins=MARGINS, require=("copies",))
        decision = decide(report(results), config)["new"]
        assert decision.verdict is Verdict.ERROR
        assert "evaluation.require asks for it" in decision.reasons[0]

    def test_a_named_score_is_required(self, results: tuple[MetricResult, ...]) -> None:
        margins = Margins(**{**MARGINS.model_dump(), "scores": {"aesthetic": 0.1}})
        decision = decide(report(results), Evaluation(margins=margins))["new"]
        assert decision.verdict is Verdict.ERROR
        assert decision.reasons[0].startswith("score aesthetic was not measured")

    def test_not_finite_is_no_pass(self, results: tuple[MetricResult, ...]) -> None:
        broken = replace(one(results, "recall"), metric="detail", difference=float("nan"))
        decision = decide(report([*results, broken]), CONFIG)["new"]
        assert decision.verdict is Verdict.ERROR

    def test_unknown_names_are_refused(self) -> None:
        for field in ("require", "success"):
            with pytest.raises(ValueError, match="known: "):
                Evaluation.model_validate({field: ["beauty"]})
        with pytest.raises(ValueError, match="named twice"):
            Evaluation(success=("adherence", "adherence"))


def test_what_the_champion_serves_well_is_kept() -> None:
    arm = World(0).arm(lost=["dog", "elk"])
    served = served_slices(arm, keep=["ant"], improve=["elk"], floor=0.5)
    assert served == ("ant", "bee", "cat")
    assert served_slices(arm, keep=["ant", "dog"], improve=["elk"], floor=0.5) == SLICES[:4]
    assert served_slices(arm, keep=[], improve=["elk"], floor=None) == SLICES[:4]


def test_a_share_of_the_candidate_itself_is_judged_by_a_ceiling() -> None:
    result = MetricResult(
        metric="unsafe",
        slice=None,
        champion=0.0,
        candidate=0.0,
        difference=None,
        interval=(0.0, 0.04),
        margin=None,
        assessment=Assessment.NO_DATA,
        guardrail=False,
    )
    for limit, expected in (
        (0.05, Assessment.NON_INFERIOR),
        (0.03, Assessment.UNDECIDED),
        (None, Assessment.UNDECIDED),
    ):
        assert judge(result, Margins(unsafe=limit)).assessment is expected
    worse = replace(result, interval=(0.06, 0.2))
    assert judge(worse, Margins(unsafe=0.05)).assessment is Assessment.HARMFUL


class TestBrokenReports:
    """Whatever a report lacks or says amiss is an error, never a pass and never an exception."""

    @pytest.fixture(scope="class")
    @classmethod
    def good(cls) -> Mapping[str, Any]:
        world = World(0)
        same = world.arm()
        results = compare(
            same,
            same,
            world.reference(),
            world.costs(),
            keep=SLICES,
            improve=[],
            alpha=0.05,
            margins=MARGINS,
        )
        shots, extractor = {"digest": "s"}, {"digest": "e"}
        return report(results, keep=list(SLICES), improve=[], shots=shots, extractor=extractor)

    def decide(self, given: Mapping[str, Any]) -> Mapping[str, GateDecision]:
        expected = Expected(extractor="e", shots="s", superiority=False)
        return decide(given, Evaluation(margins=MARGINS), expected)

    def test_a_whole_one_passes(self, good: Mapping[str, Any]) -> None:
        assert self.decide(good)["new"].verdict is Verdict.PASS

    @pytest.mark.parametrize("value", [None, [], {}, "x", 0])
    @pytest.mark.parametrize(
        "field", ["candidates", "keep", "alpha", "shots", "extractor", "comparisons"]
    )
    def test_a_field_of_another_kind(
        self, good: Mapping[str, Any], field: str, value: object
    ) -> None:
        decisions = self.decide({**good, field: value})
        assert {d.verdict for d in decisions.values()} <= {Verdict.ERROR}
        rest = {k: v for k, v in good.items() if k != field}
        assert {d.verdict for d in self.decide(rest).values()} <= {Verdict.ERROR}

    @pytest.mark.parametrize("value", [None, [], "x", 0])
    @pytest.mark.parametrize("field", ["improve", "alphas", "arms", "skipped", "errors"])
    def test_nothing_is_raised(self, good: Mapping[str, Any], field: str, value: object) -> None:
        assert set(self.decide({**good, field: value})) == {"new"}

    @pytest.mark.parametrize("metric", ["adherence", "distance", "recall", "latency"])
    @pytest.mark.parametrize("lost", ["difference", "interval"])
    def test_an_interval_without_a_difference_says_nothing(
        self, good: Mapping[str, Any], metric: str, lost: str
    ) -> None:
        """A value that was not finite is null in the report: the rest of its line may look well."""
        lines = [
            {**m, lost: None} if m["metric"] == metric else m for m in good["comparisons"]["new"]
        ]
        decision = self.decide({**good, "comparisons": {"new": lines}})["new"]
        assert decision.verdict is Verdict.ERROR
        assert "was not measured" in decision.reasons[0]
