"""What the gate is for: of real releases made from one trained model the bad ones are refused, for
the reason that they are bad, the good one passes, and the champion is as good as itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests import bad_candidates as bad
from tests.bad_candidates import World, extractor

from intonaco.demo import setup
from intonaco.demo.data import FIRST_TOPICS, NAMES
from intonaco.errors import ConfigError
from intonaco.evaluation.gate import GateDecision
from intonaco.types import Assessment, MetricResult, Release, Verdict

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning:diffusers",
    "ignore:__array__ implementation:DeprecationWarning",
)
SMALL = replace(setup.QUICK, extractor_steps=150, vae_steps=60, base_steps=150, seeds_per_prompt=2)
MEASURED_TIMES = frozenset({"latency", "latency_p95", "throughput"})

BAD: list[tuple[Callable[[World], Release], str, str]] = [
    (bad.collapsed, "collapse", "recall of the reference changed"),
    (bad.memorising, "memorisation", "prompts with a copy of a training image"),
    (bad.deaf, "prompt-ignoring", "adherence on the slices to keep"),
    (bad.blurring, "blur", "blurred by more than"),
    (bad.noisy, "noise", "noisier by more than"),
    (bad.slow, "slow-down", "time per image"),
    (bad.hungry, "memory-growth", "memory is"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def refused_for(decision: GateDecision, reason: str) -> bool:
    """Whether the verdict is fail and one of the reasons that made it so is this one. Those of
    guardrails that failed come first, and are as many as guardrails that were harmed."""
    harmed = sum(m.guardrail and m.assessment is Assessment.HARMFUL for m in decision.metrics)
    return decision.verdict is Verdict.FAIL and any(
        reason in text for text in decision.reasons[:harmed]
    )


def said(decision: GateDecision, metric: str) -> MetricResult:
    return next(m for m in decision.metrics if m.metric == metric and m.slice is None)


def neither_better_nor_worse(decision: GateDecision) -> bool:
    """Of pictures to the last digit. Times differ from run to run: one in twenty is called better
    at this level, but none may be harm."""
    return decision.verdict is Verdict.PASS and all(
        m.assessment is not Assessment.HARMFUL
        and (m.metric in MEASURED_TIMES or m.assessment is not Assessment.SUPERIOR)
        for m in decision.metrics
    )


class TestSmall:
    """About 35 s of one core, most of it training."""

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, tmp_path_factory: pytest.TempPathFactory) -> World:
        return World.make(tmp_path_factory.mktemp("small"), SMALL, FIRST_TOPICS)

    @pytest.fixture(scope="class")
    @classmethod
    def judged(cls, world: World) -> tuple[dict[str, Any], dict[str, GateDecision]]:
        releases = {
            "itself": world.champion,
            "prompt-ignoring": bad.deaf(world),
            "noise": bad.noisy(world),
            "memory-growth": bad.hungry(world),
        }
        return world.judge("rails", releases, superiority=False)

    def test_the_bad_are_refused_and_the_same_is_not(
        self, judged: tuple[dict[str, Any], dict[str, GateDecision]]
    ) -> None:
        decisions = judged[1]
        for _, name, reason in BAD:
            if name in decisions:
                assert refused_for(decisions[name], reason), decisions[name].reasons
        assert neither_better_nor_worse(decisions["itself"]), decisions["itself"].reasons
        assert said(decisions["itself"], "adherence").interval == (0.0, 0.0)

    def test_another_extractor_is_refused(
        self, world: World, judged: tuple[dict[str, Any], dict[str, GateDecision]]
    ) -> None:
        """The job insists on the service's; a report made with another by other ways is an error,
        for the champion against itself too."""
        swapped = extractor(world.root / "swapped", world.data, seed=1, steps=5)
        configured = world.p.config.extractor
        assert configured is not None
        other = {
            **configured.model_dump(),
            "path": str(world.root / "swapped" / str(swapped["path"])),
        }
        asked = {"itself": world.champion}
        with pytest.raises(ConfigError, match="is configured"):
            world.judge("insisting", asked, superiority=False, extractor=other)
        loose = {**other, "digest": None}
        _, decisions = world.judge("swapped", asked, superiority=False, extractor=loose)
        assert decisions["itself"].verdict is Verdict.ERROR
        assert f"extractor {str(swapped['digest'])[:12]}" in decisions["itself"].reasons[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestAll:
    """About 220 s of one core."""

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, tmp_path_factory: pytest.TempPathFactory) -> World:
        return World.make(tmp_path_factory.mktemp("all"), setup.QUICK, NAMES)

    @pytest.fixture(scope="class")
    @classmethod
    def decisions(cls, world: World) -> dict[str, GateDecision]:
        releases = {name: make(world) for make, name, _ in BAD}
        return world.judge("rails", {"itself": world.champion, **releases}, superiority=False)[1]

    @pytest.fixture(scope="class")
    @classmethod
    def tuned(cls, world: World) -> dict[str, GateDecision]:
        releases = {"good": bad.replaying(world), "forgetting": bad.forgetful(world)}
        return world.judge("tuned", releases, superiority=True)[1]

    @pytest.mark.parametrize(("name", "reason"), [(name, reason) for _, name, reason in BAD])
    def test_refused(self, decisions: dict[str, GateDecision], name: str, reason: str) -> None:
        assert refused_for(decisions[name], reason), decisions[name].reasons

    def test_what_looks_better_is_refused_all_the_same(
        self, decisions: dict[str, GateDecision]
    ) -> None:
        assert said(decisions["collapse"], "adherence").assessment is Assessment.SUPERIOR

    def test_forgetting(self, tuned: dict[str, GateDecision]) -> None:
        for topic in FIRST_TOPICS:
            assert refused_for(tuned["forgetting"], f"adherence on {topic} changed")
        learnt = said(tuned["forgetting"], "adherence_improve")
        assert learnt.assessment is Assessment.SUPERIOR  # what it was made for is no excuse

    def test_the_good_one_passes(self, tuned: dict[str, GateDecision]) -> None:
        assert tuned["good"].verdict is Verdict.PASS, tuned["good"].reasons

    def test_the_same_is_neither_better_nor_worse(self, decisions: dict[str, GateDecision]) -> None:
        assert neither_better_nor_worse(decisions["itself"]), decisions["itself"].reasons

    def test_slow_and_large_ones_in_workers(self, world: World) -> None:
        """As the demo measures them: in serving workers of their own."""
        releases = {
            "itself": world.champion,
            "slow-down": world.made.get("slow-down") or bad.slow(world),
            "memory-growth": world.made.get("memory-growth") or bad.hungry(world),
        }
        decisions = world.judge("workers", releases, superiority=False, in_workers=True)[1]
        assert refused_for(decisions["slow-down"], "time per image")
        assert refused_for(decisions["memory-growth"], "memory is")
        assert neither_better_nor_worse(decisions["itself"]), decisions["itself"].reasons
