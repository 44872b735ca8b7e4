"""The offline gate: a pure function of a report and the margins that were fixed beforehand.

PASS only if every guardrail is shown to be no worse than its margin, and, where the update was
meant to improve something, that is shown to be better by what is worth an update. All must hold (an
intersection-union test), so no guardrail needs a correction of alpha. A guardrail that is beyond
its margin with its whole interval is FAIL, one that is not decided INCONCLUSIVE, one that was not
measured ERROR. Of other people's servers the memory is not ours to guard, and the reasons say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from intonaco.codec import decode
from intonaco.config import Evaluation, Margins
from intonaco.errors import StorageError
from intonaco.evaluation.comparison import assess, assess_floor
from intonaco.types import Assessment, Json, MetricResult, Verdict

Key = tuple[str, str | None]
_WORST_FIRST = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)

_NEEDS: Mapping[str, str] = {
    "adherence": "it needs at least two prompts of that slice",
    "distance": "it needs prompts and reference images of the slices to keep",
    "recall": "it needs more prompts, or more reference images, of the slices to keep",
    "latency": "it needs at least five rounds",
    "memory": "it needs both models",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """``reasons``: sentences with figures and intervals, what decided first. ``metrics``: judged
    with the margins of the configuration."""

    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: tuple[MetricResult, ...]


def decide(report: Mapping[str, Json], config: Evaluation) -> dict[str, GateDecision]:
    """The verdict on each candidate of a report of ``intonaco.evaluation.job``. Never raises for
    what a report lacks: that is the verdict ERROR."""
    names = [str(name) for name in report.get("candidates", ())]
    return {name: _decide_one(name, report, config) for name in names}


def _decide_one(name: str, report: Mapping[str, Json], config: Evaluation) -> GateDecision:
    failed = report.get("errors", {}).get(name)
    if failed:
        return _error(f"could not be evaluated: {failed}")
    measured_at = report.get("alpha")
    if measured_at != config.alpha:
        return _error(
            f"was measured at alpha {measured_at}, the configuration wants {config.alpha}: "
            "evaluate again"
        )
    keep = [str(s) for s in report.get("keep", ())]
    improve = [str(s) for s in report.get("improve", ())]
    if not keep:
        return _error("no slice to keep is named: nothing guards against forgetting")
    try:
        given = decode(
            tuple[MetricResult, ...], json.dumps(report.get("comparisons", {}).get(name, []))
        )
    except StorageError as error:
        return _error(f"the report cannot be read: {error}")
    if report.get("champion") is None:
        return _first_release(given, keep, config)
    return _challenge(given, keep, improve, config, report.get("not_ours", False) is True)


def _challenge(
    given: tuple[MetricResult, ...],
    keep: list[str],
    improve: list[str],
    config: Evaluation,
    not_ours: bool,
) -> GateDecision:
    metrics = tuple(_judge(result, config.margins) for result in given)
    by_key: dict[Key, MetricResult] = {(r.metric, r.slice): r for r in metrics}
    said: list[tuple[Verdict, str]] = []
    if improve:
        gained = by_key.get(("adherence_improve", None))
        said.append(_success(gained, improve, config.min_improvement))
    guardrails: list[Key] = [
        ("adherence", None),
        *(("adherence", name) for name in (*keep, *improve)),
        ("distance", None),
        ("recall", None),
        ("latency", None),
    ]
    said += [_guardrail(key, by_key.get(key)) for key in guardrails]
    if not_ours:
        said.append((Verdict.PASS, "memory is not judged: both arms are other people's servers"))
    else:
        said.append(_guardrail(("memory", None), by_key.get(("memory", None))))
    return _decision(said, metrics)


def _first_release(
    given: tuple[MetricResult, ...], keep: list[str], config: Evaluation
) -> GateDecision:
    floor = config.floor_adherence
    if floor is None:
        return _error(
            "there is no champion to beat and evaluation.floor_adherence is not given, so nothing "
            "says what is good enough",
            given,
        )
    metrics = tuple(
        replace(r, margin=floor, assessment=assess_floor(r.interval, floor), guardrail=True)
        if r.metric == "adherence"
        else r
        for r in given
    )
    by_slice = {r.slice: r for r in metrics if r.metric == "adherence"}
    return _decision([_above_floor(s, by_slice.get(s), floor) for s in keep], metrics)


def _judge(result: MetricResult, margins: Margins) -> MetricResult:
    """The result with the configured margin, whatever the report was written with."""
    margin = _margin(result, margins)
    found = assess(result.metric, result.difference, result.interval, margin)
    return replace(result, margin=margin, assessment=found, guardrail=margin is not None)


def _margin(result: MetricResult, margins: Margins) -> float | None:
    if result.metric == "adherence":
        return margins.adherence if result.slice is None else margins.slice_adherence
    known: Mapping[str, float] = {
        "distance": margins.distance,
        "recall": margins.recall,
        "latency": margins.latency,
        "memory": margins.memory,
    }
    return known.get(result.metric)


def _success(result: MetricResult | None, improve: list[str], least: float) -> tuple[Verdict, str]:
    """``least``: a smaller gain may be real and still not what the update was made for."""
    what = f"adherence on {', '.join(improve)}"
    if result is None or result.interval is None or result.assessment is Assessment.NO_DATA:
        return Verdict.ERROR, f"{what} was not measured: {_NEEDS['adherence']}"
    text = f"{what} {_moved(result)}"
    low, high = result.interval
    if low > least:
        return Verdict.PASS, f"{text}: better"
    wanted = f"by more than {_amount(result.metric, least)}"
    if high <= least:
        return Verdict.FAIL, f"{text}: it should have risen {wanted}"
    return Verdict.INCONCLUSIVE, f"{text}: not shown to have risen {wanted}"


def _guardrail(key: Key, result: MetricResult | None) -> tuple[Verdict, str]:
    what = _name(key)
    if result is None or result.assessment is Assessment.NO_DATA or result.margin is None:
        return Verdict.ERROR, f"{what} was not measured: {_NEEDS[key[0]]}"
    if result.metric == "memory":
        ratio = f"{what} is {result.difference:.2f} times the champion's"
        if result.assessment is Assessment.HARMFUL:
            return Verdict.FAIL, f"{ratio}, more than the limit of {result.margin:.2f}"
        return Verdict.PASS, f"{ratio} (limit {result.margin:.2f})"
    text = f"{what} {_moved(result)}"
    margin = _amount(result.metric, result.margin)
    if result.assessment is Assessment.HARMFUL:
        return Verdict.FAIL, f"{text}: worse by more than the margin of {margin}"
    if result.assessment is Assessment.UNDECIDED:
        return (
            Verdict.INCONCLUSIVE,
            f"{text}: not shown to be within the margin of {margin}; more prompts or seeds would "
            "narrow it",
        )
    better = result.assessment is Assessment.SUPERIOR
    return Verdict.PASS, f"{text}: {'better' if better else f'within the margin of {margin}'}"


def _above_floor(name: str, result: MetricResult | None, floor: float) -> tuple[Verdict, str]:
    what = f"adherence on {name}"
    if result is None or result.candidate is None or result.interval is None:
        return Verdict.ERROR, f"{what} was not measured: {_NEEDS['adherence']}"
    low, high = result.interval
    text = f"{what} is {result.candidate:.3f} ({low:.3f} to {high:.3f}), floor {floor:.3f}"
    if result.assessment is Assessment.NON_INFERIOR:
        return Verdict.PASS, text
    if result.assessment is Assessment.HARMFUL:
        return Verdict.FAIL, f"{text}: below it"
    return Verdict.INCONCLUSIVE, f"{text}: not shown to be above it"


def _decision(said: list[tuple[Verdict, str]], metrics: tuple[MetricResult, ...]) -> GateDecision:
    ordered = sorted(said, key=lambda item: _WORST_FIRST.index(item[0]))
    return GateDecision(
        verdict=ordered[0][0], reasons=tuple(text for _, text in ordered), metrics=metrics
    )


def _error(reason: str, metrics: tuple[MetricResult, ...] = ()) -> GateDecision:
    return GateDecision(verdict=Verdict.ERROR, reasons=(reason,), metrics=metrics)


def _name(key: Key) -> str:
    metric, slice_ = key
    names: Mapping[str, str] = {
        "adherence": "adherence on the slices to keep"
        if slice_ is None
        else f"adherence on {slice_}",
        "distance": "distance to the reference",
        "recall": "recall of the reference",
        "latency": "time per image",
        "memory": "memory",
    }
    return names[metric]


def _moved(result: MetricResult) -> str:
    """Candidate minus champion with its interval."""
    assert result.difference is not None
    assert result.interval is not None
    by, low, high = (_amount(result.metric, v, "+") for v in (result.difference, *result.interval))
    return f"changed by {by} ({low} to {high})"


def _amount(metric: str, value: float, sign: str = "") -> str:
    """A difference in words: latency, a log ratio, in per cent; recall in points."""
    if metric == "latency":
        return f"{math.expm1(value) * 100:{sign}.1f} %"
    if metric == "recall":
        return f"{value * 100:{sign}.1f} points"
    return f"{value:{sign}.4f}"
