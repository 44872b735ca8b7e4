"""What guardrails say that were measured from pictures alone. No gate: time and memory are missing,
so nothing is promoted by it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from intonaco.codec import decode
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.wording import change, metric_name
from intonaco.types import Assessment, Json, MetricResult, Verdict


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
