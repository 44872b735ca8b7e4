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
from intonaco.evaluation.assessment import SUCCESS, judge
from intonaco.evaluation.attempts import attempt
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.wording import change, metric_name
from intonaco.types import Assessment, Json, MetricResult, Verdict

PICTURES = "pictures"  # kind of a report that no gate can judge


def decided(
    report: Mapping[str, Json],
    settings: Evaluation,
    *,
    extractor: str | None = None,
    shots: str | None = None,
) -> dict[str, GateDecision]:
    """The gate's verdict on each candidate of a report, with what the report says was fixed before
    it was made: which attempt it was, and whether something had to improve. ``extractor`` and
    ``shots``: digests of what the service is judged by; None is not checked. Pictures alone are
    judged by the margins of the settings."""
    if report.get("kind") == PICTURES:
        return {name: _of_pictures_again(report, name, settings) for name in report["candidates"]}
    fixed: Mapping[str, Json] = report.get("expected") or {}
    numbers: Mapping[str, Json] = fixed.get("attempts") or {}
    return gate.decide(
        report,
        settings,
        gate.Expected(
            attempts={
                name: attempt(int(number), settings.alpha) for name, number in numbers.items()
            },
            extractor=extractor,
            shots=shots,
            superiority=fixed.get("superiority"),
        ),
    )


def results_of(report: Mapping[str, Json], name: str) -> tuple[MetricResult, ...]:
    """A candidate's comparisons in a report. Raises StorageError."""
    return decode(tuple[MetricResult, ...], json.dumps(report["comparisons"].get(name, [])))


def _of_pictures_again(report: Mapping[str, Json], name: str, settings: Evaluation) -> GateDecision:
    if report.get("alpha") != settings.alpha:
        text = f"was measured at alpha {report.get('alpha')}, and evaluation.alpha is"
        reason = f"{text} {settings.alpha:g}: compare again"
        return GateDecision(verdict=Verdict.ERROR, reasons=(reason,), metrics=())
    return of_pictures(
        [judge(m, settings.margins) for m in results_of(report, name)],
        least=settings.min_improvement if report.get("improve") else None,
    )


def of_pictures(results: Sequence[MetricResult], *, least: float | None = None) -> GateDecision:
    """What the guardrails that pictures can be held to say: harm on one is a fail, one that is not
    decided leaves all inconclusive, and without any nothing is shown. ``least``: by how much
    adherence must have risen where it is to; None: nothing is to improve."""
    rails = [m for m in results if m.guardrail]
    said: list[tuple[Verdict, str]] = []
    if least is not None:
        said.append(_risen(results, least))
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


def _risen(results: Sequence[MetricResult], least: float) -> tuple[Verdict, str]:
    name = f"adherence{SUCCESS}"
    found = next((m for m in results if m.metric == name and m.slice is None), None)
    if found is None or found.interval is None:
        return Verdict.INCONCLUSIVE, f"{metric_name(name)} was not measured: it needs two prompts"
    low, high = found.interval
    text = f"{metric_name(name)} {change(found)}"
    if low > least:
        return Verdict.PASS, f"{text}: better"
    verdict = Verdict.FAIL if high <= least else Verdict.INCONCLUSIVE
    return verdict, f"{text}: not shown to have risen by more than {least:g}"


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
