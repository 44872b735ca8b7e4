"""Verdicts on reports as they lie: of a whole evaluation by the gate, of pictures alone by the
guardrails that pictures can be held to; and with what people said. Nothing is promoted by any of
them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from intonaco.codec import decode
from intonaco.config import Evaluation
from intonaco.evaluation import gate
from intonaco.evaluation.attempts import Attempt
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.wording import change, metric_name
from intonaco.types import Assessment, Json, MetricResult, Verdict

PICTURES = "pictures"  # kind of a report that no gate can judge


def decided(
    report: Mapping[str, Json], settings: Evaluation, *, extractor: str | None = None
) -> dict[str, GateDecision]:
    """The gate's verdict on each candidate of a report, with what the report says was fixed before
    it was made: attempts, alphas, and whether something had to improve. ``extractor``: digest of
    the one that the service is judged by; None is not checked."""
    if report.get("kind") == PICTURES:
        return {name: of_pictures(results_of(report, name)) for name in report["candidates"]}
    fixed: Mapping[str, Json] = report.get("expected") or {}
    numbers: Mapping[str, Json] = fixed.get("attempts") or {}
    alphas: Mapping[str, Json] = report.get("alphas") or {}
    return gate.decide(
        report,
        settings,
        gate.Expected(
            attempts={
                name: Attempt(number=int(number), alpha=float(alphas[name]))
                for name, number in numbers.items()
                if name in alphas
            },
            extractor=extractor,
            superiority=fixed.get("superiority"),
        ),
    )


def results_of(report: Mapping[str, Json], name: str) -> tuple[MetricResult, ...]:
    """A candidate's comparisons in a report. Raises StorageError."""
    return decode(tuple[MetricResult, ...], json.dumps(report["comparisons"].get(name, [])))


def of_pictures(results: Sequence[MetricResult]) -> GateDecision:
    """What the guardrails that pictures can be held to say: harm on one is a fail, one that is not
    decided leaves all inconclusive, and without any nothing is shown."""
    rails = [m for m in results if m.guardrail]
    said: list[tuple[Verdict, str]] = []
    for m in rails:
        where = "" if m.slice is None else f" on {m.slice}"
        text = f"{metric_name(m.metric)}{where} {change(m)}"
        match m.assessment:
            case Assessment.HARMFUL:
                said.append((Verdict.FAIL, f"{text}: worse by more than the margin"))
            case Assessment.SUPERIOR:
                said.append((Verdict.PASS, f"{text}: better"))
            case Assessment.NON_INFERIOR:
                said.append((Verdict.PASS, f"{text}: within the margin"))
            case _:
                said.append((Verdict.INCONCLUSIVE, f"{text}: not shown to be within the margin"))
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
    said.sort(key=lambda item: order.index(item[0]))
    if not said:
        return GateDecision(
            verdict=Verdict.ERROR, reasons=("nothing could be compared",), metrics=tuple(results)
        )
    return GateDecision(
        verdict=said[0][0], reasons=tuple(text for _, text in said), metrics=tuple(results)
    )


def with_review(
    decisions: Mapping[str, GateDecision], review: Mapping[str, Json] | None
) -> Mapping[str, GateDecision]:
    """Decisions of the gate with what people said added: the worse of both verdicts, both reasons.
    ``review``: "verdicts" and "reasons" by candidate; None if nobody was asked. A candidate that
    passed and was not reviewed where others were is an ERROR."""
    if review is None:
        return decisions
    verdicts, reasons = (review.get(name, {}) for name in ("verdicts", "reasons"))
    found = {}
    for name, decision in decisions.items():
        if decision.verdict is not Verdict.PASS:
            found[name] = decision
            continue
        verdict = Verdict(verdicts[name]) if name in verdicts else Verdict.ERROR
        reason = f"review: {reasons.get(name, 'it was not reviewed')}"
        passed = verdict is Verdict.PASS
        said = (*decision.reasons, reason) if passed else (reason, *decision.reasons)
        found[name] = replace(decision, verdict=verdict, reasons=said)
    return found
