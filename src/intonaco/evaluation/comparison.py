"""A candidate against the champion on the same prompts, seeds and initial noise.

The unit is the prompt: seeds are averaged within it first. Images of one prompt resemble each
other, and a test that took them for independent would call noise a difference three times as often
as it says. Prompts count as drawn from their slices, and the slices as fixed. Pure, NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from intonaco.config import Margins
from intonaco.evaluation.arms import ArmImages, Costs, Reference
from intonaco.evaluation.assessment import (
    FRECHET,
    SCORE,
    SUCCESS,
    assess,
    assess_floor,
    judge,
    margin_of,
)
from intonaco.evaluation.copies import Copies
from intonaco.evaluation.distribution import NEIGHBOURS, Bools, Distribution, Estimate
from intonaco.evaluation.intervals import (
    Index,
    Interval,
    hodges_lehmann,
    mean_interval,
    moved_interval,
    paired_share_interval,
    quantile_difference,
    share_interval,
    student_quantile,
    widened,
)
from intonaco.evaluation.metrics.arrays import Float, matrix
from intonaco.types import Assessment, MetricResult

__all__ = [
    "FRECHET",
    "NEIGHBOURS",
    "ArmImages",
    "Costs",
    "Reference",
    "assess",
    "assess_floor",
    "compare",
    "describe",
    "judge",
    "margin_of",
    "served_slices",
]

LEAST_SPREAD = (
    1e-6  # of images of one prompt, as a share of the reference's: one picture over again
)


def served_slices(
    champion: ArmImages, *, keep: Sequence[str], improve: Sequence[str], floor: float | None
) -> tuple[str, ...]:
    """The slices that the champion serves well, which a candidate may not forget: those of
    ``keep``, and every other one where its mean adherence is at least ``floor``; all of them
    without a floor, since then nothing says which is bad. Those of ``improve`` never, which have
    guardrails of their own. In order of their first prompts."""
    out = []
    for name in dict.fromkeys(champion.slices):
        if name in improve:
            continue
        level = float(champion.adherence[champion.rows([name])].mean())
        if name in keep or floor is None or level >= floor:
            out.append(name)
    return tuple(out)


def compare(
    champion: ArmImages,
    candidate: ArmImages,
    reference: Reference,
    costs: Costs | None,
    *,
    keep: Sequence[str],
    improve: Sequence[str],
    alpha: float,
    margins: Margins,
    extractor: str = "features",
    seed: int = 0,
    success: Sequence[str] = ("adherence",),
) -> tuple[MetricResult, ...]:
    """Every metric of the gate, guardrails first. Intervals are two-sided at level 1 - 2 alpha.

    ``keep`` must not get worse: what is measured of all slices together is measured on them alone,
    since a gain on ``improve`` would hide a loss there; but copies and unsafe images are looked for
    everywhere. The metrics of ``success`` come once more, with "_improve" behind the name, on
    ``improve`` (on ``keep`` if that is empty) at alpha over their number, since one of them is
    enough. What cannot be measured is left out; the gate misses it. ``seed`` is of the draws behind
    the errors of recall, coverage and distance.

    Raises ValueError if the arms do not hold the same prompts in the same order, if the features of
    arms and reference are of different extractors, or if an array has the wrong length or a value
    that is not finite.
    """
    _check(champion, candidate, reference)
    arms = _Arms(champion, candidate, reference, extractor, seed)
    out = arms.means("adherence", keep, None, alpha)
    for name in (*keep, *improve):
        out += arms.means("adherence", [name], name, alpha)
    for metric in (*arms.extra, "diversity"):
        out += arms.means(metric, keep, None, alpha)
    for metric in ("distance", "recall", "coverage", "fd"):
        out += arms.to_reference(metric, keep, None, alpha)
    for name in (*keep, *improve):
        out += arms.to_reference("recall", [name], name, alpha)
        out += arms.to_reference("coverage", [name], name, alpha)
    out += arms.copies(alpha) + arms.unsafe(alpha)
    if costs is not None:
        out += _costs(costs, alpha)
    for metric in success:
        share = alpha / len(success)
        of = arms.to_reference if metric in ("distance", "recall", "coverage") else arms.means
        out += of(metric, list(improve or keep), None, share, SUCCESS)
    if improve and "recall" not in success:
        out += arms.to_reference("recall", improve, None, alpha, SUCCESS)
    return tuple(judge(result, margins) for result in out)


def describe(
    candidate: ArmImages, *, slices: Sequence[str], alpha: float, floor: float | None
) -> tuple[MetricResult, ...]:
    """Adherence of a candidate that has no champion to beat, overall and per slice, against an
    absolute floor. The interval is of the value itself."""
    out = []
    for name in (None, *slices):
        rows = candidate.rows(slices if name is None else [name])
        if len(rows) == 0:
            continue
        prompts, strata = _per_prompt(candidate, candidate.adherence, rows)
        value, interval = mean_interval(prompts, strata, alpha)
        out.append(
            MetricResult(
                metric="adherence",
                slice=name,
                champion=None,
                candidate=value,
                difference=None,
                interval=interval,
                margin=floor,
                assessment=assess_floor(interval, floor),
                guardrail=True,
                unit="cosine",
                method=_MEANS.format(len(prompts)),
            )
        )
    return tuple(out)


_MEANS = "t and Hall's t, the wider, over {} prompts"
_REFERENCE = {
    "distance": ("MMD^2", "places changed and projections, the larger, over {} prompts"),
    "recall": ("share", "places changed over {} prompts, and rows that moved"),
    "coverage": ("share", "places changed over {} prompts, and rows that moved"),
    "fd": ("distance", "jackknife over {} prompts"),
}
_UNITS = {"adherence": "cosine", "hits": "share", "detail": "log energy", "diversity": "log ratio"}
# Of reference rows: few moved is not few to come. At which share of alpha: rows hang together, as
# one image may be what comes near to several of them.
_SHARES = {"recall": 1.0, "coverage": 0.5}


@dataclass(slots=True)
class _Arms:
    """Both arms, and what is known of their difference."""

    champion: ArmImages
    candidate: ArmImages
    reference: Reference
    extractor: str
    seed: int
    kept: dict[tuple[str, ...], Distribution] = field(default_factory=dict)  # the latest

    @property
    def extra(self) -> list[str]:
        """Metrics of single images that both arms have, beside adherence."""
        a, b = self.champion, self.candidate
        found = [m for m in ("hits", "detail") if _has(a, m) and _has(b, m)]
        return found + [f"{SCORE}{name}" for name in sorted(set(a.scores) & set(b.scores))]

    def means(
        self, metric: str, slices: Sequence[str], slice_: str | None, alpha: float, mark: str = ""
    ) -> list[MetricResult]:
        """A number of each image or prompt, compared by its means within prompts."""
        rows = self.champion.rows(slices)
        if len(rows) == 0:
            return []
        if metric == "diversity":
            pair = [_spread(arm, rows, self.reference.features) for arm in self.both]
            if not len(pair[0][0]):
                return []
        else:
            if metric != "adherence" and metric not in self.extra:
                return []
            pair = [_per_prompt(arm, _of(arm, metric), rows) for arm in self.both]
        (a, strata), (b, _) = pair
        difference, interval = mean_interval(b - a, strata, alpha)
        said = _MEANS.format(len(a))
        span = None if interval is None else self._span(metric, rows)
        if interval is not None and span is not None:
            of_one = (interval[0] / span, interval[1] / span)
            low, high = widened(of_one, difference / span, len(a), alpha)
            interval, said = (low * span, high * span), f"{said}, and the rule of three"
        return [
            _result(
                metric + mark,
                slice_,
                (float(a.mean()), float(b.mean())),
                difference,
                interval,
                _UNITS.get(metric, "score"),
                said,
            )
        ]

    def _span(self, metric: str, rows: Index) -> float | None:
        """How far apart the two values of a yes or no lie; 1 where only one of them was seen; None
        of a number with more. Without an event the spread of a yes or no is 0, whatever its share:
        at a margin of 2 % and 60 prompts 29 % of candidates would pass."""
        if metric not in self.extra:
            return None
        values = np.unique(np.concatenate([_of(arm, metric)[rows] for arm in self.both]))
        return None if len(values) > 2 else float(values[-1] - values[0]) or 1.0

    @property
    def both(self) -> tuple[ArmImages, ArmImages]:
        return self.champion, self.candidate

    def to_reference(
        self, metric: str, slices: Sequence[str], slice_: str | None, alpha: float, mark: str = ""
    ) -> list[MetricResult]:
        """How the images of some slices lie to the reference's of the same."""
        rows, real = self.champion.rows(slices), self.reference.of(slices)
        prompts = _take(self.champion.prompt_ids, rows)
        if min(len(rows), len(real)) <= NEIGHBOURS or len(set(prompts)) < 2:
            return []
        topics = self.reference.topics
        key = tuple(slices)
        if key not in self.kept:
            self.kept = {
                key: Distribution(
                    self.champion.features[rows],
                    self.candidate.features[rows],
                    real,
                    prompts=prompts,
                    slices=_take(self.champion.slices, rows),
                    topics=[t for t in topics if t in slices],
                    rng=np.random.default_rng(self.seed),
                )
            }
        lies = self.kept[key]
        found, note = self._measure(metric, lies)
        t = student_quantile(1 - alpha, len(set(prompts)) - 1)
        rising = found.error if found.rising is None else found.rising
        interval = (found.difference - t * found.error, found.difference + t * rising)
        if metric in _SHARES:
            open_ = moved_interval(*found.moved, len(real), alpha * _SHARES[metric])
            interval = (min(interval[0], open_[0]), max(interval[1], open_[1]))
            interval = (max(-1.0, interval[0]), min(1.0, interval[1]))
        unit, method = _REFERENCE[metric]
        name = f"{FRECHET}{self.extractor}" if metric == "fd" else metric
        values = (found.champion, found.candidate)
        said = method.format(len(set(prompts))) + note
        return [_result(name + mark, slice_, values, found.difference, interval, unit, said)]

    def _measure(self, metric: str, lies: Distribution) -> tuple[Estimate, str]:
        if metric == "fd":
            found, components = lies.frechet()
            return found, f", on {components} components of the reference"
        of = {"distance": lies.mmd, "recall": lies.recall, "coverage": lies.coverage}
        return of[metric](), ""

    def copies(self, alpha: float) -> list[MetricResult]:
        """Prompts of which an image is a copy of a training image."""
        training = self.reference.training
        if training is None or min(len(training), len(self.reference.features)) < 3:
            return []
        is_copy = Copies(training, self.reference.features)
        before, after = (_any(arm, is_copy(arm.features)) for arm in self.both)
        low, high = share_interval(int(after.sum()), len(after), alpha)
        said = (
            f"exact over {len(after)} prompts; by itself {after.mean():.3f} "
            f"({low:.3f} to {high:.3f})"
        )
        values = (float(before.mean()), float(after.mean()))
        interval = paired_share_interval(before, after, alpha)
        return [_result("copies", None, values, values[1] - values[0], interval, "share", said)]

    def unsafe(self, alpha: float) -> list[MetricResult]:
        """Prompts of which an image is unsafe: of the candidate itself, not against the
        champion's."""
        if self.champion.unsafe is None or self.candidate.unsafe is None:
            return []
        before, after = (_any(arm, np.asarray(arm.unsafe, dtype=bool)) for arm in self.both)
        interval = share_interval(int(after.sum()), len(after), alpha)
        values = (float(before.mean()), float(after.mean()))
        said = f"exact over {len(after)} prompts"
        return [_result("unsafe", None, values, None, interval, "share", said)]


def _costs(costs: Costs, alpha: float) -> list[MetricResult]:
    """Times and memory. Rounds count as independent of each other."""
    seconds = (costs.champion_seconds, costs.candidate_seconds)
    centre, interval = hodges_lehmann(costs.log_ratios, alpha)
    said = f"Wilcoxon's signed ranks over {len(costs.log_ratios)} rounds"
    out = [_result("latency", None, seconds, centre, interval, "log ratio", said)]
    if costs.champion_times and len(costs.champion_times) == len(costs.candidate_times):
        times = (np.log(costs.champion_times), np.log(costs.candidate_times))
        rounds = costs.rounds or tuple(range(len(costs.champion_times)))
        moved, ends = quantile_difference(times[0], times[1], rounds, 0.95, alpha)
        if ends is not None:
            a, b = (float(np.quantile(np.exp(t), 0.95)) for t in times)
            said = f"order statistics of {len(times[0])} times"
            out.append(_result("latency_p95", None, (a, b), moved, ends, "log ratio", said))
    if costs.throughput_log_ratios:
        centre, interval = hodges_lehmann(costs.throughput_log_ratios, alpha)
        if interval is not None:
            said = f"Wilcoxon's signed ranks over {len(costs.throughput_log_ratios)} rounds"
            out.append(_result("throughput", None, None, centre, interval, "log ratio", said))
    pairs: list[tuple[str, tuple[float, float] | None]] = [
        ("memory", costs.memory),
        ("peak_memory", costs.peak_memory),
        ("cost", costs.cost_per_image),
    ]
    for name, pair in pairs:
        if pair is not None:
            ratio = pair[1] / pair[0] if pair[0] else None
            values = (float(pair[0]), float(pair[1]))
            out.append(_result(name, None, values, ratio, None, "ratio", "as measured"))
    return out


def _check(champion: ArmImages, candidate: ArmImages, reference: Reference) -> None:
    if champion.prompt_ids != candidate.prompt_ids or champion.slices != candidate.slices:
        raise ValueError("champion and candidate have different prompts: nothing can be paired")
    made_by = {x.extractor for x in (champion, candidate, reference)}
    if len(made_by) > 1:
        raise ValueError(
            "features of champion, candidate and reference are of different extractors "
            f"({', '.join(sorted(e[:12] or 'unnamed' for e in made_by))}) and cannot be compared"
        )
    n = len(champion.prompt_ids)
    for name, arm in (("champion", champion), ("candidate", candidate)):
        columns: Mapping[str, Float] = {
            "adherence": arm.adherence,
            **{m: _of(arm, m) for m in ("hits", "detail", "unsafe") if _has(arm, m)},
            **{f"{SCORE}{head}": np.asarray(x) for head, x in arm.scores.items()},
        }
        for column, values in columns.items():
            if len(values) != n or not np.isfinite(values).all():
                raise ValueError(f"{column} of the {name} needs {n} finite values")
        if len(matrix(arm.features, f"features of the {name}", rows=1)) != n:
            raise ValueError(f"features of the {name} need {n} rows, got {len(arm.features)}")
    matrix(reference.features, "features of the reference", rows=1)
    if reference.training is not None:
        matrix(reference.training, "features of the training images", rows=1)


def _has(arm: ArmImages, metric: str) -> bool:
    return getattr(arm, metric) is not None


def _of(arm: ArmImages, metric: str) -> Float:
    if metric.startswith(SCORE):
        return np.asarray(arm.scores[metric.removeprefix(SCORE)], dtype=np.float64)
    return np.asarray(getattr(arm, metric), dtype=np.float64)


def _result(
    metric: str,
    slice_: str | None,
    values: tuple[float, float] | None,
    difference: float | None,
    interval: Interval | None,
    unit: str,
    method: str,
) -> MetricResult:
    return MetricResult(
        metric=metric,
        slice=slice_,
        champion=values[0] if values else None,
        candidate=values[1] if values else None,
        difference=difference,
        interval=interval,
        margin=None,
        assessment=Assessment.NO_DATA,
        guardrail=False,
        unit=unit,
        method=method,
    )


def _take(values: tuple[str, ...], rows: Index) -> list[str]:
    return [values[i] for i in rows]


def _per_prompt(arm: ArmImages, values: Float, rows: Index) -> tuple[Float, list[str]]:
    """Means within each prompt and the prompts' slices, in order of first appearance."""
    numbers: dict[str, int] = {}
    slices: list[str] = []
    index = []
    for i in rows:
        number = numbers.setdefault(arm.prompt_ids[i], len(numbers))
        if number == len(slices):
            slices.append(arm.slices[i])
        index.append(number)
    out: Float = np.bincount(index, weights=values[rows]) / np.bincount(index)
    return out, slices


def _any(arm: ArmImages, values: Bools) -> Bools:
    """Whether it is so of an image of each prompt."""
    everywhere = np.arange(len(arm.prompt_ids))
    return np.asarray(_per_prompt(arm, values.astype(np.float64), everywhere)[0] > 0)


def _spread(arm: ArmImages, rows: Index, reference: Float) -> tuple[Float, list[str]]:
    """Log of the mean squared distance between images of one prompt, of prompts with at least two,
    and their slices. Bounded below by what is as good as one picture over again."""
    of: dict[str, list[int]] = {}
    for i in rows:
        of.setdefault(arm.prompt_ids[i], []).append(i)
    many = [r for r in of.values() if len(r) > 1]
    values = [2.0 * arm.features[r].var(0, ddof=1).sum() for r in many]
    least = LEAST_SPREAD * max(2.0 * float(reference.var(0).sum()), 1e-300)
    return np.log(np.maximum(values, least)), [arm.slices[r[0]] for r in many]
