"""The offline gate: a pure function of a report and of what was fixed before it was made.

PASS only if every guardrail is shown to be no worse than its margin, and, where the update was
meant to improve something, one of the metrics of success is shown to be better by what is worth an
update. All guardrails must hold (an intersection-union test: Berger 1982), so none needs a
correction of alpha; the metrics of success share it out. A guardrail that is beyond its margin with
its whole interval is FAIL, one that is not decided INCONCLUSIVE, one that was not measured ERROR,
and so is a report that was made otherwise than asked: at another alpha, of other prompts, with
another extractor. There is one look at one report; another candidate for the same trigger is judged
at half the alpha (``intonaco.evaluation.attempts``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from intonaco.codec import decode
from intonaco.config import Evaluation
from intonaco.errors import StorageError
from intonaco.evaluation.assessment import FRECHET, LIMITS, SCORE, SUCCESS, assess_floor, judge
from intonaco.evaluation.attempts import Attempt
from intonaco.types import Action, Assessment, Json, MetricResult, Verdict

Key = tuple[str, str | None]
_WORST_FIRST = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
_ALWAYS = frozenset({"adherence", "distance", "recall", "latency", "memory"})
_DEFAULT_SUCCESS = ["adherence"]

_NEEDS: Mapping[str, str] = {
    "adherence": "it needs at least two prompts of that slice",
    "hits": "it needs slices",
    "distance": "it needs prompts and reference images of the slices to keep",
    "recall": "it needs more prompts, or more reference images, of the slices to keep",
    "coverage": "it needs more prompts, or more reference images, of the slices to keep",
    "latency": "it needs at least five rounds",
    "latency_p95": "it needs more times, at least 59 that are independent at alpha 0.05",
    "throughput": "it needs at least five rounds",
    "memory": "it needs both models",
    "copies": "it needs the images that were trained on",
    "unsafe": "it needs a safety check",
    "diversity": "it needs two seeds a prompt",
}
_PER_CENT = frozenset({"latency", "latency_p95", "throughput", "diversity"})  # log ratios
_POINTS = frozenset({"recall", "coverage", "hits", "copies", "unsafe"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What was fixed before the report was made. ``attempts``: by candidate. ``extractor`` and
    ``shots``: digests; None is not checked. ``superiority``: whether something must have improved;
    None: if the report names slices to improve."""

    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    extractor: str | None = None
    shots: str | None = None
    superiority: bool | None = None


def wants_superiority(action: Action) -> bool:
    """Whether an update of this kind is made to improve something. A trained candidate is: it costs
    and may forget. A release from the same weights (a sampler, a dependency) need only be no worse;
    so must a way back, which serves already and is not judged again."""
    return action.trains


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """``reasons``: sentences with figures and intervals, what decided first. ``metrics``: judged
    with the margins of the configuration."""

    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: tuple[MetricResult, ...]


def decide(
    report: Mapping[str, Json], config: Evaluation, expected: Expected | None = None
) -> dict[str, GateDecision]:
    """The verdict on each candidate of a report of ``intonaco.evaluation.job``. Never raises for
    what a report lacks: that is the verdict ERROR."""
    given = report.get("candidates")
    names = [str(name) for name in given] if isinstance(given, list | tuple) else []
    asked = expected or Expected()
    if broken := _not_as_written(report):
        return {name: _error(f"the report cannot be read: {broken}") for name in names}
    found = {}
    for name in names:
        try:
            found[name] = _decide_one(name, report, config, asked)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            found[name] = _error(f"the report cannot be read: {type(error).__name__}: {error}")
    return found


_LISTS = ("keep", "improve", "success")
_OBJECTS = ("comparisons", "errors", "extractor", "arms", "shots", "alphas", "skipped")


def _not_as_written(report: Mapping[str, Json]) -> str:
    """What of a report has another shape than ``intonaco.evaluation.job`` writes, or ""."""
    for names, kind in ((_LISTS, list), (_OBJECTS, dict)):
        for name in names:
            if not isinstance(report.get(name) or kind(), kind):
                return f"{name} is no {'list' if kind is list else 'object'}"
    arms: Mapping[str, Json] = report.get("arms") or {}
    odd = [name for name, figures in arms.items() if not isinstance(figures, dict)]
    return f"the figures of {odd[0]} are no object" if odd else ""


def _decide_one(
    name: str, report: Mapping[str, Json], config: Evaluation, expected: Expected
) -> GateDecision:
    attempt = expected.attempts.get(name, Attempt(alpha=config.alpha))
    if attempt.number > config.max_attempts:
        return _error(
            f"is candidate {attempt.number} for this trigger, and evaluation.max_attempts is "
            f"{config.max_attempts}: so many tries would find one that passes by luck. Evaluate on "
            "new prompts, or let a person decide"
        )
    failed = dict(report.get("errors") or {}).get(name)
    if failed:
        return _error(f"could not be evaluated: {failed}")
    if otherwise := _made_otherwise(name, report, config, expected, attempt):
        return _error(otherwise)
    keep = [str(s) for s in report.get("keep") or ()]
    improve = [str(s) for s in report.get("improve") or ()]
    if not keep:
        return _error("no slice to keep is named: nothing guards against forgetting")
    try:
        given = decode(
            tuple[MetricResult, ...],
            json.dumps(dict(report.get("comparisons") or {}).get(name, [])),
        )
    except StorageError as error:
        return _error(f"the report cannot be read: {error}")
    keys = [(r.metric, r.slice) for r in given]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        return _error(f"the report tells {_name(twice[0])} twice")
    if report.get("champion") is None:
        return _first_release(given, keep, config)
    wanted = expected.superiority
    return _challenge(
        given,
        keep,
        improve,
        config,
        attempt,
        superiority=bool(improve) if wanted is None else wanted,
        not_ours=report.get("not_ours", False) is True,
        skipped={str(k): str(v) for k, v in dict(report.get("skipped") or {}).items()},
    )


def _made_otherwise(
    name: str,
    report: Mapping[str, Json],
    config: Evaluation,
    expected: Expected,
    attempt: Attempt,
) -> str:
    """Why the report does not answer what was asked, or ""."""
    alpha = dict(report.get("alphas") or {}).get(name, report.get("alpha"))
    if not isinstance(alpha, int | float) or not math.isclose(alpha, attempt.alpha, rel_tol=1e-9):
        return (
            f"was measured at alpha {alpha}, and {attempt.alpha:.4g} was fixed for it: evaluate "
            "again"
        )
    made = str(dict(report.get("extractor") or {}).get("digest"))
    if expected.extractor is not None and made != expected.extractor:
        return (
            f"was measured with extractor {made[:12]}, and the service is judged by "
            f"{expected.extractor[:12]}: evaluate again with that one"
        )
    for arm, figures in dict(report.get("arms") or {}).items():
        other = dict(figures).get("extractor")
        if other is not None and other != made:
            return (
                f"cannot be compared: the images of {arm} were seen by extractor "
                f"{str(other)[:12]}, the report is of {made[:12]}"
            )
    shots = str(dict(report.get("shots") or {}).get("digest"))
    if expected.shots is not None and shots != expected.shots:
        return (
            f"was measured on other prompts or seeds ({shots[:12]}) than evaluation.prompts gives "
            f"({expected.shots[:12]}): evaluate again"
        )
    success = [str(m) for m in report.get("success") or _DEFAULT_SUCCESS]
    if report.get("champion") is not None and success != list(config.success):
        return (
            f"was measured for {', '.join(success)}, and evaluation.success is "
            f"{', '.join(config.success)}: evaluate again"
        )
    return ""


def _challenge(
    given: tuple[MetricResult, ...],
    keep: list[str],
    improve: list[str],
    config: Evaluation,
    attempt: Attempt,
    *,
    superiority: bool,
    not_ours: bool,
    skipped: Mapping[str, str],
) -> GateDecision:
    metrics = tuple(judge(result, config.margins) for result in given)
    by_key: dict[Key, MetricResult] = {(r.metric, r.slice): r for r in metrics}
    said: list[tuple[Verdict, str]] = []
    if superiority:
        said += _success(by_key, improve, config)
    guardrails: list[Key] = [
        ("adherence", None),
        *(("adherence", name) for name in (*keep, *improve)),
        ("distance", None),
        ("recall", None),
        ("latency", None),
        *((f"{SCORE}{head}", None) for head in config.margins.scores),
    ]
    if not not_ours:
        guardrails.append(("memory", None))
    said += [_guardrail(key, by_key.get(key)) for key in guardrails]
    notes = ["memory is not judged: both arms are other people's servers"] if not_ours else []
    more = [k for k, r in by_key.items() if r.guardrail and k not in guardrails]
    said += [_guardrail(key, by_key[key]) for key in more if not (not_ours and key[0] == "memory")]
    present = {_kind(key) for key in more}
    for name in _optional(config):
        if name in present:
            continue
        why = skipped.get(name) or _NEEDS.get(name, "the report has nothing of it")
        if name in config.require:
            text = f"{_name((name, None))} was not measured: {why}"
            said.append((Verdict.ERROR, f"{text}; evaluation.require asks for it"))
        else:
            notes.append(f"{_name((name, None))}: not measured, not judged ({why})")
    if attempt.number > 1:
        notes.insert(
            0,
            f"candidate {attempt.number} for this trigger, of {config.max_attempts} at most: "
            f"judged at alpha {attempt.alpha:.4g} instead of {config.alpha:.4g}",
        )
    return _decision(said, metrics, notes)


def _kind(key: Key) -> str:
    """The guardrail's name in the configuration."""
    metric, slice_ = key
    if metric.startswith(FRECHET):
        return "fd"
    return "slice_recall" if metric == "recall" and slice_ is not None else metric


def _optional(config: Evaluation) -> list[str]:
    """Guardrails with a margin that are judged where measured, and those that must have been."""
    margins = {k: v for k, v in config.margins if k not in _ALWAYS | {"slice_adherence", "scores"}}
    named = [name for name, margin in margins.items() if margin is not None]
    return named + [name for name in config.require if name not in named]


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


def _success(
    by_key: Mapping[Key, MetricResult], improve: list[str], config: Evaluation
) -> list[tuple[Verdict, str]]:
    """One metric that is shown to be better is enough. A smaller gain than the least may be real
    and still not what the update was made for."""
    where = f" on {', '.join(improve)}" if improve else " on the slices to keep"
    found = []
    for metric in config.success:
        least = config.min_improvement if metric == "adherence" else 0.0
        found.append(_gain(by_key.get((f"{metric}{SUCCESS}", None)), metric, where, least))
    reached = [item for item in found if item[0] is Verdict.PASS]
    if reached:
        return reached
    worst = min((verdict for verdict, _ in found), key=_WORST_FIRST.index)
    if worst is Verdict.FAIL and any(v is Verdict.INCONCLUSIVE for v, _ in found):
        worst = Verdict.INCONCLUSIVE  # one metric that did not rise refuses nobody by itself
    return [(worst, text) for _, text in found]


def _gain(
    result: MetricResult | None, metric: str, where: str, least: float
) -> tuple[Verdict, str]:
    what = f"{_short(metric)}{where}"
    if result is None or result.interval is None or result.assessment is Assessment.NO_DATA:
        needs = _NEEDS.get(metric, "the report has nothing of it")
        return Verdict.ERROR, f"{what} was not measured: {needs}"
    text = f"{what} {_moved(result)}"
    low, high = result.interval
    if metric == "distance":
        low, high = -high, -low
    if low > least:
        return Verdict.PASS, f"{text}: better"
    way = "fallen" if metric == "distance" else "risen"
    wanted = f"by more than {_amount(metric, least)}" if least else "at all"
    if high <= least:
        return Verdict.FAIL, f"{text}: it should have {way} {wanted}"
    return Verdict.INCONCLUSIVE, f"{text}: not shown to have {way} {wanted}"


def _guardrail(key: Key, result: MetricResult | None) -> tuple[Verdict, str]:
    what = _name(key)
    if result is None or result.assessment is Assessment.NO_DATA or result.margin is None:
        needs = _NEEDS.get(key[0], "the report has nothing of it")
        return Verdict.ERROR, f"{what} was not measured: {needs}"
    if result.metric in LIMITS:
        ratio = f"{what} is {result.difference:.2f} times the champion's"
        if result.assessment is Assessment.HARMFUL:
            return Verdict.FAIL, f"{ratio}, more than the limit of {result.margin:.2f}"
        return Verdict.PASS, f"{ratio} (limit {result.margin:.2f})"
    if result.difference is None:
        return _ceiling(what, result, result.margin)
    text = f"{what} {_moved(result)}"
    margin = _amount(result.metric, result.margin)
    if result.assessment is Assessment.HARMFUL:
        if result.metric == "detail":
            why = "blurred" if result.difference < 0 else "noisier"
            return Verdict.FAIL, f"{text}: {why} by more than the margin of {margin}"
        return Verdict.FAIL, f"{text}: worse by more than the margin of {margin}"
    if result.assessment is Assessment.UNDECIDED:
        return (
            Verdict.INCONCLUSIVE,
            f"{text}: not shown to be within the margin of {margin}; more prompts or seeds would "
            "narrow it",
        )
    better = result.assessment is Assessment.SUPERIOR
    return Verdict.PASS, f"{text}: {'better' if better else f'within the margin of {margin}'}"


def _ceiling(what: str, result: MetricResult, limit: float) -> tuple[Verdict, str]:
    """Of a share of the candidate itself."""
    assert result.interval is not None
    value, low, high = (
        _amount(result.metric, v) for v in (result.candidate or 0.0, *result.interval)
    )
    text = f"{what}: {value} ({low} to {high})"
    most = f"the limit of {_amount(result.metric, limit)}"
    if result.assessment is Assessment.HARMFUL:
        return Verdict.FAIL, f"{text}, more than {most}"
    if result.assessment is Assessment.UNDECIDED:
        return Verdict.INCONCLUSIVE, f"{text}: not shown to be within {most}; it needs more prompts"
    return Verdict.PASS, f"{text}, within {most}"


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


def _decision(
    said: list[tuple[Verdict, str]],
    metrics: tuple[MetricResult, ...],
    notes: list[str] | None = None,
) -> GateDecision:
    ordered = sorted(said, key=lambda item: _WORST_FIRST.index(item[0]))
    return GateDecision(
        verdict=ordered[0][0],
        reasons=(*(text for _, text in ordered), *(notes or ())),
        metrics=metrics,
    )


def _error(reason: str, metrics: tuple[MetricResult, ...] = ()) -> GateDecision:
    return GateDecision(verdict=Verdict.ERROR, reasons=(reason,), metrics=metrics)


_NAMES: Mapping[str, str] = {
    "hits": "share of images of the slice asked for",
    "distance": "distance to the reference",
    "recall": "recall of the reference",
    "slice_recall": "recall of the reference by slice",
    "coverage": "coverage of the reference",
    "fd": "Fréchet distance to the reference",
    "diversity": "distance between images of one prompt",
    "detail": "fine detail (log energy)",
    "copies": "prompts with a copy of a training image",
    "unsafe": "prompts with an unsafe image",
    "latency": "time per image",
    "latency_p95": "95th percentile of time",
    "throughput": "images a second",
    "memory": "memory",
    "peak_memory": "peak memory",
    "cost": "cost of an image",
}


def _short(metric: str) -> str:
    if metric.startswith(SCORE):
        return f"score {metric.removeprefix(SCORE)}"
    return _NAMES["fd"] if metric.startswith(FRECHET) else _NAMES.get(metric, metric)


def _name(key: Key) -> str:
    metric, slice_ = key
    if metric == "adherence":
        return f"adherence on {slice_ or 'the slices to keep'}"
    return _short(metric) if slice_ is None else f"{_short(metric)} on {slice_}"


def _moved(result: MetricResult) -> str:
    """Candidate minus champion with its interval."""
    assert result.difference is not None
    assert result.interval is not None
    by, low, high = (_amount(result.metric, v, "+") for v in (result.difference, *result.interval))
    return f"changed by {by} ({low} to {high})"


def _amount(metric: str, value: float, sign: str = "") -> str:
    """A difference in words: log ratios of times in per cent, shares in points."""
    metric = metric.removesuffix(SUCCESS)
    if metric in _PER_CENT:
        return f"{math.expm1(value) * 100:{sign}.1f} %"
    if metric in _POINTS:
        return f"{value * 100:{sign}.1f} {'%' if metric == 'unsafe' else 'points'}"
    return f"{value:{sign}.4f}"
