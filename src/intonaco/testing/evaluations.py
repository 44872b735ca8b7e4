"""Made-up evaluations whose truth is known: how often the gate is wrong, and its intervals.

Prompts are clusters (images of one prompt resemble each other), slices differ, tails are heavy, and
both arms share the noise that the same seed gives them. A champion and a candidate that are alike
differ by chance only, so the truth of every difference is 0; a candidate with a known ``Harm`` is
exactly at a margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intonaco.codec import as_json
from intonaco.config import Evaluation, Margins
from intonaco.evaluation import power as planning
from intonaco.evaluation.arms import ArmImages, Costs, Reference
from intonaco.evaluation.comparison import compare
from intonaco.evaluation.copies import Copies
from intonaco.evaluation.distribution import Distribution
from intonaco.evaluation.gate import Expected, GateDecision, decide
from intonaco.evaluation.metrics.arrays import Float
from intonaco.types import MetricResult, Verdict

SLICES = ("ant", "bee", "cat", "dog", "elk")
WIDTH = 6
A_A_RUNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What is wrong with a candidate. ``spread``: of its images, as a share of the champion's;
    ``shift``: of all images, away from the reference; ``ruined``: share of prompts whose images are
    away from it by 2; ``memorised``: share of prompts of which one image is a training image; the
    others: by how much a number is worse on average."""

    spread: float = 1.0
    shift: float = 0.0
    ruined: float = 0.0
    memorised: float = 0.0
    adherence: float = 0.0
    one_slice: float = 0.0  # adherence on the first slice alone
    quality: float = 0.0
    detail: float = 0.0
    slower: float = 0.0
    unsafe: float = 0.0  # share of prompts with an unsafe image, beside those of chance


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """``prompts``: of each slice. ``reference``: held-out images, as many as there are training
    images. ``rounds``: of timing, two times each."""

    prompts: int = 12
    seeds: int = 4
    reference: int = 150
    rounds: int = 100

    def draw(
        self, rng: np.random.Generator, harm: Harm | None = None, *, same_seeds: bool = True
    ) -> tuple[ArmImages, ArmImages, Reference, Costs]:
        """Champion and candidate, measured. Without ``same_seeds`` as in an A/A run: the champion
        twice, with nothing shared but the prompts."""
        wrong = harm or Harm()
        count = len(SLICES) * self.prompts
        shared = _Shared(self, rng)
        pair = []
        for arm_harm in (Harm(), wrong):
            pair.append(self._arm(rng, shared, arm_harm, count, same_seeds))
        topics = np.repeat(np.arange(len(SLICES)), self.reference // len(SLICES))
        real = CENTRES[topics] + _noise(rng, (len(topics), WIDTH))
        training = CENTRES[topics] + _noise(rng, (len(topics), WIDTH))
        if wrong.memorised:
            features = pair[1].features.copy()
            for p in np.flatnonzero(rng.random(count) < wrong.memorised):
                features[p * self.seeds] = training[rng.integers(len(training))]
            pair[1] = replace(pair[1], features=features)
        reference = Reference(
            features=real, topics=tuple(SLICES[t] for t in topics), training=training
        )
        return pair[0], pair[1], reference, self._costs(rng, wrong.slower)

    def _arm(
        self,
        rng: np.random.Generator,
        shared: _Shared,
        harm: Harm,
        count: int,
        same_seeds: bool,
    ) -> ArmImages:
        n, of = count * self.seeds, np.repeat(np.arange(count), self.seeds)
        slices = np.repeat(np.arange(len(SLICES)), self.prompts * self.seeds)

        def number(prompt: Float, image: Float) -> Float:
            """What the prompt, the seed, the arm on this prompt and the arm on this image add."""
            common = image if same_seeds else _noise(rng, (n,))
            own = 0.2 * _noise(rng, (count,)) if same_seeds else np.zeros(count)
            out: Float = prompt[of] + 0.5 * common + own[of] + 0.5 * _noise(rng, (n,))
            return out

        common = shared.image if same_seeds else _noise(rng, (n, WIDTH))
        own = 0.5 * _noise(rng, (count, WIDTH))[of] + 0.87 * _noise(rng, (n, WIDTH))
        spread = 0.6 * (0.5 * shared.prompt[of] + 0.87 * common) + 0.8 * own
        features = CENTRES[slices] + harm.shift / np.sqrt(WIDTH) + harm.spread * spread
        if harm.ruined:
            features[(rng.random(count) < harm.ruined)[of]] += 2.0 / np.sqrt(WIDTH)
        adherence = number(shared.numbers[0], shared.seeds[0]) - harm.adherence
        adherence = adherence - harm.one_slice * (slices == 0)
        return ArmImages(
            prompt_ids=tuple(str(p) for p in of),
            slices=tuple(SLICES[s] for s in slices),
            adherence=adherence,
            features=features,
            scores={"quality": number(shared.numbers[1], shared.seeds[1]) - harm.quality},
            hits=rng.random(n) < 0.95,
            detail=number(shared.numbers[2], shared.seeds[2]) - harm.detail,
            unsafe=(np.arange(n) % self.seeds == 0) & (rng.random(n) < harm.unsafe),
        )

    def _costs(self, rng: np.random.Generator, slower: float) -> Costs:
        """Times of rounds that the machine's other work makes slow or fast as a whole."""
        rounds = np.repeat(np.arange(self.rounds), 2)
        busy = 0.1 * _noise(rng, (self.rounds,))[rounds]
        a, b = (busy + 0.05 * rng.gamma(1.5, 1.0, len(rounds)) for _ in range(2))
        b = b + slower
        means = [np.log(np.exp(x).reshape(-1, 2).mean(1)) for x in (a, b)]
        return Costs(
            log_ratios=tuple(means[1] - means[0]),
            champion_seconds=float(np.exp(a).mean()),
            candidate_seconds=float(np.exp(b).mean()),
            memory=(100, 100),
            champion_times=tuple(np.exp(a)),
            candidate_times=tuple(np.exp(b)),
            rounds=tuple(int(r) for r in rounds),
            throughput_log_ratios=tuple(means[0] - means[1]),
        )

    def results(
        self,
        rng: np.random.Generator,
        harm: Harm | None = None,
        *,
        improve: Sequence[str] = (),
        alpha: float = 0.05,
        same_seeds: bool = True,
    ) -> tuple[MetricResult, ...]:
        """One evaluation, compared."""
        champion, candidate, reference, costs = self.draw(rng, harm, same_seeds=same_seeds)
        return compare(
            champion,
            candidate,
            reference,
            costs,
            keep=[s for s in SLICES if s not in improve],
            improve=improve,
            alpha=alpha,
            margins=Margins(),
            seed=int(rng.integers(2**31)),
        )

    def differences(self, rng: np.random.Generator, harm: Harm, runs: int) -> Mapping[str, float]:
        """Mean differences of recall, coverage, distance and copies under a harm, over many runs:
        what it truly does to them at this size."""
        found: dict[str, list[float]] = {"recall": [], "coverage": [], "distance": [], "copies": []}
        for _ in range(runs):
            champion, candidate, reference, _ = self.draw(rng, harm)
            lies = Distribution(
                champion.features,
                candidate.features,
                reference.features,
                prompts=champion.prompt_ids,
                slices=champion.slices,
                topics=reference.topics,
                rng=rng,
                draws=1,
            )
            for name, of in (
                ("recall", lies.recall),
                ("coverage", lies.coverage),
                ("distance", lies.mmd),
            ):
                found[name].append(of().difference)
            copied = Copies(np.asarray(reference.training), reference.features)
            shares = [
                copied(arm.features).reshape(-1, self.seeds).any(1).mean()
                for arm in (champion, candidate)
            ]
            found["copies"].append(float(shares[1] - shares[0]))
        return {name: float(np.mean(values)) for name, values in found.items()}


@dataclass(slots=True)
class _Shared:
    """What both arms have of prompts and seeds: of features, and of three numbers."""

    world: World
    rng: np.random.Generator
    prompt: Float = field(init=False)
    image: Float = field(init=False)
    numbers: list[Float] = field(init=False)
    seeds: list[Float] = field(init=False)

    def __post_init__(self) -> None:
        count = len(SLICES) * self.world.prompts
        n = count * self.world.seeds
        self.prompt = _noise(self.rng, (count, WIDTH))
        self.image = _noise(self.rng, (n, WIDTH))
        self.numbers = [_noise(self.rng, (count,)) for _ in range(3)]
        self.seeds = [_noise(self.rng, (n,)) for _ in range(3)]


def judged(
    results: Sequence[MetricResult],
    config: Evaluation,
    *,
    superiority: bool,
    improve: Sequence[str] = (),
) -> GateDecision:
    """The gate's word on one evaluation."""
    report = {
        "champion": {"release_id": "champion"},
        "candidates": ["new"],
        "keep": [s for s in SLICES if s not in improve],
        "improve": list(improve),
        "alpha": config.alpha,
        "comparisons": {"new": as_json(list(results))},
        "errors": {},
    }
    return decide(report, config, Expected(superiority=superiority))["new"]


@dataclass(slots=True)
class Cover:
    """How often an interval held the truth, and on which side it missed it."""

    runs: int = 0
    above: int = 0
    below: int = 0

    def look(self, result: MetricResult, truth: float) -> None:
        if result.interval is None:
            return
        self.runs += 1
        self.above += result.interval[0] > truth
        self.below += result.interval[1] < truth

    @property
    def share(self) -> float:
        return 1.0 - (self.above + self.below) / max(1, self.runs)


@dataclass(slots=True)
class Truth:
    """How often the gate is wrong. ``identical``: evaluations of a candidate that is no different;
    of those, how many passed and failed where only guardrails count, and passed where something
    must have improved. ``at_margin``: by guardrail, passes and evaluations of a candidate exactly
    at its margin there and well within all others. ``covers``: of each metric's interval."""

    planned_power: float
    identical: int = 0
    passed: int = 0
    failed: int = 0
    superior: int = 0
    at_margin: dict[str, tuple[int, int]] = field(default_factory=dict)
    covers: dict[str, Cover] = field(default_factory=dict)

    @property
    def false_pass(self) -> float:
        """Share of candidates at a margin that passed."""
        found = self.at_margin.values()
        return sum(passes for passes, _ in found) / sum(runs for _, runs in found)

    @property
    def false_fail(self) -> float:
        return self.failed / self.identical

    def lines(self) -> list[str]:
        """For people."""
        out = [
            f"identical, guardrails only: {self.passed} of {self.identical} passed (planned power "
            f"{self.planned_power:.2f}), {self.failed} failed",
            f"identical, improvement wanted: {self.superior} of {self.identical} passed",
            f"at a margin: {100 * self.false_pass:.1f} % passed",
        ]
        out += [f"  {name}: {p} of {n}" for name, (p, n) in self.at_margin.items()]
        out.append("coverage of intervals of nominal level 90 %:")
        out += [
            f"  {name}: {100 * c.share:.1f} % of {c.runs} (too high {c.above}, too low {c.below})"
            for name, c in sorted(self.covers.items())
            if c.runs
        ]
        return out


WIDE = Margins(
    adherence=50,
    slice_adherence=50,
    distance=50,
    recall=2,
    latency=50,
    memory=50,
    copies=2,
    detail=50,
    unsafe=1,
    latency_p95=50,
    scores={"quality": 50},
)


def planned(world: World, rng: np.random.Generator) -> tuple[Margins, float]:
    """Margins from A/A runs, as small as that many prompts can show, and the joint power that
    they are planned to have."""
    config = Evaluation()
    noises = planning.pooled(
        [
            planning.noise(
                world.results(rng, same_seeds=False),
                alpha=config.alpha,
                prompts=dict.fromkeys(SLICES, world.prompts),
                rounds=world.rounds,
            )
            for _ in range(A_A_RUNS)
        ]
    )
    guarded = planning.plan(noises, WIDE, alpha=config.alpha, power=config.power).needs
    smallest: dict[str, float] = {}
    for x in noises:
        if not any((n.metric, n.slice) == (x.metric, x.slice) for n in guarded):
            continue
        name = x.metric if x.slice is None else f"slice_{x.metric}"
        margin = planning.suggested_margin(
            x, alpha=config.alpha, power=config.power, guardrails=len(guarded)
        )
        smallest[name] = max(margin, smallest.get(name, 0.0))
    quality = smallest.pop("score:quality")
    margins = Margins(**smallest, scores={"quality": quality})
    plan = planning.plan(noises, margins, alpha=config.alpha, power=config.power)
    return margins, plan.joint_power


def find_truth(world: World, *, identical: int, at_margin: int, seed: int) -> Truth:
    """Simulate so many evaluations of an identical candidate, and of one at each margin."""
    rng = np.random.default_rng(seed)
    margins, power = planned(world, rng)
    truth = Truth(planned_power=power, identical=identical)
    only_guarded = Evaluation(margins=margins, min_improvement=0.0)
    for _ in range(identical):
        results = world.results(rng)
        for result in results:
            name = result.metric if result.slice is None else f"{result.metric} of a slice"
            truth.covers.setdefault(name, Cover()).look(result, 0.0)
        verdict = judged(results, only_guarded, superiority=False).verdict
        truth.passed += verdict is Verdict.PASS
        truth.failed += verdict is Verdict.FAIL
        verdict = judged(results, only_guarded, superiority=True).verdict
        truth.superior += verdict is Verdict.PASS
    for name, harm, alone in _at_margins(world, rng, margins, max(100, 2 * at_margin)):
        passes = 0
        config = Evaluation(margins=alone)
        for _ in range(at_margin):
            results = world.results(rng, harm)
            passes += judged(results, config, superiority=False).verdict is Verdict.PASS
            for result in results:
                metric = name.partition(",")[0]
                if (result.metric, result.slice) == (
                    metric,
                    None,
                ) and result.difference is not None:
                    cover = truth.covers.setdefault(f"{name}, at the margin", Cover())
                    cover.look(result, _signed(metric, alone))
        truth.at_margin[name] = passes, at_margin
    return truth


def _at_margins(
    world: World, rng: np.random.Generator, margins: Margins, runs: int
) -> list[tuple[str, Harm, Margins]]:
    """Of each guardrail: the harm that is its margin, and margins of which only that one binds."""
    out: list[tuple[str, Harm, dict[str, Any]]] = [
        ("adherence", Harm(adherence=margins.adherence), {"adherence": margins.adherence}),
        (
            "slice_adherence",
            Harm(one_slice=margins.slice_adherence),
            {"slice_adherence": margins.slice_adherence},
        ),
        (
            "score:quality",
            Harm(quality=margins.scores["quality"]),
            {"scores": {"quality": margins.scores["quality"]}},
        ),
        ("detail", Harm(detail=margins.detail or 0.0), {"detail": margins.detail}),
        ("latency", Harm(slower=margins.latency), {"latency": margins.latency}),
        (
            "latency_p95",
            Harm(slower=margins.latency_p95 or 0.0),
            {"latency_p95": margins.latency_p95},
        ),
        ("unsafe", Harm(unsafe=margins.unsafe or 0.0), {"unsafe": margins.unsafe}),
    ]
    for name, harm in (
        ("recall", Harm(spread=0.75)),
        ("distance", Harm(shift=0.4)),
        ("distance, few prompts", Harm(ruined=0.15)),
        ("copies", Harm(memorised=0.12)),
    ):
        metric = name.partition(",")[0]
        out.append((name, harm, {metric: abs(world.differences(rng, harm, runs)[metric])}))
    return [
        (name, harm, Margins.model_validate({**WIDE.model_dump(), **change}))
        for name, harm, change in out
    ]


def _signed(name: str, margins: Margins) -> float:
    """The true difference at a margin."""
    if name == "score:quality":
        return -margins.scores["quality"]
    worse: float = getattr(margins, name)
    return worse if name in ("distance", "latency", "latency_p95", "copies") else -worse


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Float:
    """Student's t with 5 degrees of freedom, of standard deviation 1."""
    out: Float = rng.standard_t(5, size=shape) / np.sqrt(5.0 / 3.0)
    return out


CENTRES: Float = np.random.default_rng(11).normal(size=(len(SLICES), WIDTH)) * 1.2
