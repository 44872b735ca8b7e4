"""The rules of Argo Rollouts, Flagger and Kayenta, many rollouts at once, as they are documented.

A rollout is watched for three hours, minute by minute; in each minute the challenger answers
``PER_MINUTE`` requests. A rule sees one number an arm and minute: the share of errors, the 90th
percentile of the times, or the mean score; a higher one is worse.

- **Argo Rollouts** (1.9, `analysis/analysis.go`): a metric measured every `interval` (1 and 5
  minutes tried) on the canary fails its `successCondition` when it is above a limit; the rollout is
  aborted when more than `failureLimit` (0, 1, 3, 5 tried) measurements have failed so far.
- **Flagger** (1.44, `pkg/controller/scheduler.go`): every `interval` (1 minute) a metric out of its
  `thresholdRange` adds 1 to a counter that is never set back; the rollback comes with the tick
  after the counter has reached `threshold` (1, 5, 10 tried).
- **Kayenta** (2.46, `NetflixACAJudge.scala`, `MannWhitneyClassifier.scala`): every hour, on all
  minutes so far, Mann-Whitney with a confidence interval of 98 % of the shift between canary and a
  baseline of equal size; "high", which fails a critical metric, if its lower end is above 0.25 of
  the shift's estimate and the ratio of means is at least `allowedIncrease`.

Each has one number tuned, so that over the same made-up lifetimes without a difference 1 % end in
a rollback: the limit of Argo and Flagger, `allowedIncrease` of Kayenta. So the first two are told
the champion's true rate, which a test that compares does not need, and which drifts in service:
``drifting`` says what becomes of the tuned rule then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MINUTES = 180
HOUR = 60
PER_MINUTE = 28
LIFETIME = MINUTES * PER_MINUTE  # challenger requests
NORMAL_98 = 2.3263478740408408

# One number a minute of (challenger, equal baseline): shape [2, runs, MINUTES].
Make = Callable[[int, np.random.Generator], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A peer with its documented knobs. ``evidence``: per minute the largest limit at which the
    rule has rolled back by then, shape [runs, MINUTES], so that a limit is a quantile of the last
    column."""

    peer: str
    name: str
    evidence: Callable[[Array], Array]


def argo(interval: int, failure_limit: int) -> Setting:
    def evidence(minutes: Array) -> Array:
        return _counted(_windows(minutes[0], interval), failure_limit + 1, interval)

    return Setting(
        peer="argo", name=f"interval {interval}m, failureLimit {failure_limit}", evidence=evidence
    )


def flagger(threshold: int) -> Setting:
    def evidence(minutes: Array) -> Array:
        reached = _counted(minutes[0], threshold, 1)
        late = np.full_like(reached, -math.inf)  # the rollback comes with the next tick
        late[:, 1:] = reached[:, :-1]
        return late

    return Setting(peer="flagger", name=f"threshold {threshold}", evidence=evidence)


def kayenta() -> Setting:
    def evidence(minutes: Array) -> Array:
        found = np.full(minutes.shape[1:], -math.inf)
        for end in range(HOUR, MINUTES + 1, HOUR):
            ratios = np.array(
                [_increase(a[:end], b[:end]) for a, b in zip(minutes[0], minutes[1], strict=True)]
            )
            found[:, end - 1 :] = np.maximum(found[:, end - 1 :], ratios[:, None])
        return found

    return Setting(peer="kayenta", name="98 %, tolerance 0.25, hourly", evidence=evidence)


SETTINGS: Sequence[Setting] = (
    *(argo(interval, limit) for interval in (1, 5) for limit in (0, 1, 3, 5)),
    *(flagger(threshold) for threshold in (1, 5, 10)),
    kayenta(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a tuned setting does: challenger requests until half of the bad releases are rolled
    back (``inf`` if fewer than half ever are), and false alarms in a lifetime, tuned and under
    drift."""

    setting: Setting
    requests: float
    tuned: float
    drifting: float


def judge(
    good: Make, bad: Make, drifting: Make, *, runs: int, alpha: float, seed: int
) -> list[Found]:
    """Every setting, tuned on ``good`` lifetimes, tried on others, bad ones and drifting ones."""
    rng = np.random.default_rng(seed)
    tune, fresh = good(4 * runs, rng), good(4 * runs, rng)
    worse, waves = bad(runs, rng), drifting(runs, rng)
    found = []
    for setting in SETTINGS:
        few = setting.peer == "kayenta"  # costly: fewer lifetimes
        some = slice(None, runs if few else None)
        last = np.sort(setting.evidence(tune[:, some])[:, -1])
        # Rolled back where the evidence is above the limit: at most alpha of the lifetimes.
        limit = last[math.ceil((1 - alpha) * len(last)) - 1]
        if few:
            limit = max(limit, 1.0 - 1e-12)  # allowedIncrease is 1 or more
        over = setting.evidence(worse) > limit
        at = np.where(over.any(axis=1), (over.argmax(axis=1) + 1) * float(PER_MINUTE), math.inf)
        found.append(
            Found(
                setting=setting,
                requests=float(np.median(at)),
                tuned=float(np.mean(setting.evidence(fresh[:, some])[:, -1] > limit)),
                drifting=float(np.mean(setting.evidence(waves)[:, -1] > limit)),
            )
        )
    return found


def _windows(minutes: Array, interval: int) -> Array:
    """Means over windows of minutes (of percentiles too: a peer's window has no more to say)."""
    found: Array = minutes.reshape(len(minutes), -1, interval).mean(axis=2)
    return found


def _counted(windows: Array, count: int, interval: int) -> Array:
    """Per minute the largest limit that ``count`` windows so far are above: just below the
    ``count``-th largest."""
    found = np.full((len(windows), windows.shape[1] * interval), -math.inf)
    top = np.full((len(windows), count), -math.inf)
    for i in range(windows.shape[1]):
        top = np.sort(np.concatenate([top, windows[:, i : i + 1]], axis=1), axis=1)[:, 1:]
        found[:, (i + 1) * interval - 1 : (i + 2) * interval - 1] = top[:, :1]
    return found


def _increase(canary: Array, baseline: Array) -> float:
    """The ratio of means if Mann-Whitney finds the canary high, else ``-inf``."""
    shifts = np.sort((canary[:, None] - baseline[None, :]).ravel())
    n = len(canary)
    lowest = n * n / 2 - NORMAL_98 * math.sqrt(n * n * (2 * n + 1) / 12)
    low, estimate = shifts[max(math.floor(lowest), 0)], float(np.median(shifts))
    if low <= 0.25 * abs(estimate):
        return -math.inf
    return float(canary.mean() / max(baseline.mean(), 1e-12))
