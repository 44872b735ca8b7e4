"""A model that draws one and the same, or nothing: how soon it is told, and what is done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.content import Pictures
from tests.unit.test_decision_policy import CONTEXT, SETTINGS

from intonaco.config import Monitoring
from intonaco.decision.diagnosis import PERFORMANCE_KINDS, DiagnosisContext, diagnose, signal_kind
from intonaco.decision.history import History
from intonaco.decision.policy import decide
from intonaco.monitoring.monitor import Monitor
from intonaco.types import Action, Cause, Diagnosis, Finding, ScoredRecord

BEFORE = 2300  # requests until it happens: all default references are taken by then
DARK = {"contrast": 0.0, "black": 1.0, "white": 0.0}


def service() -> tuple[Monitor, History, Pictures]:
    """Watched by the default configuration."""
    monitor = Monitor("digits", Monitoring())
    history, pictures = History(), Pictures(4)
    for item in pictures.many(BEFORE):
        history.observe(item)
        assert monitor.observe(item) == []
    return monitor, history, pictures


def judged(monitor: Monitor, history: History, found: list[Finding], now: float) -> Diagnosis:
    findings = [monitor.refresh(f) for f in found]
    content, performance = history.of_findings(
        findings, performance=lambda f: signal_kind(f) in PERFORMANCE_KINDS
    )
    context = DiagnosisContext(
        probes_ok=None,
        rollout_active=False,
        min_quality_gap=0.05,
        reference_quality=monitor.reference_quality(),
        deploys=(),
        content=content,
        performance=performance,
    )
    return diagnose(findings, context, now)


def constant(item: ScoredRecord) -> ScoredRecord:
    """One picture for every prompt, which matches none."""
    return replace(item, scores={"clip": 0.1})


def dark(item: ScoredRecord) -> ScoredRecord:
    return replace(item, image_hash="0" * 16, image_facts=DARK, scores={"clip": 0.1})


@pytest.mark.parametrize(("how", "told"), [(constant, "diversity"), (dark, "blank_images")])
def test_a_collapse_is_told_within_a_hundred_requests_and_never_trained(
    how: object, told: str
) -> None:
    assert callable(how)
    monitor, history, pictures = service()
    found: list[Finding] = []
    first: dict[str, int] = {}
    for n, item in enumerate(pictures.many(100, collapse=1.0), 1):
        seen = how(item)
        history.observe(seen)
        for finding in monitor.observe(seen):
            first.setdefault(finding.signal, n)
            found.append(finding)
    assert first[told] <= 50
    diagnosis = judged(monitor, history, found, pictures.traffic.at)
    assert diagnosis.cause is Cause.QUALITY_DECLINE
    assert "the model collapsed" in diagnosis.reason
    assert Cause.CONCEPT_DRIFT not in diagnosis.also
    assert decide(diagnosis, CONTEXT, SETTINGS, diagnosis.at).action is Action.TELL
    tied = replace(CONTEXT, release_changed=True, previous_release_available=True)
    assert decide(diagnosis, tied, SETTINGS, diagnosis.at).action is Action.ROLL_BACK
