"""``python measure.py COLUMNS ROWS FEWER ROUNDS`` prints the figures of ``bench.py`` as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.linalg

from intonaco.evaluation.metrics import FeatureStats, frechet_distance
from intonaco.evaluation.metrics.arrays import Float

DECAY = 1.2  # variances i^-DECAY


def features(rows: int, columns: int, turn: Float, rng: np.random.Generator, wider: float) -> Float:
    spread = np.arange(1, columns + 1.0) ** (-DECAY / 2)
    return (rng.normal(size=(rows, columns)) * spread * wider) @ turn + 0.01 * wider


def with_sqrtm(mean: Float, covariance: Float, other_mean: Float, other: Float) -> float:
    root = scipy.linalg.sqrtm(covariance @ other)
    shift = mean - other_mean
    return float(shift @ shift + np.trace(covariance + other - 2.0 * np.real(root)))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(columns: int, rows: int, fewer: int, rounds: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    turn: Float = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    reference = FeatureStats().update(features(rows, columns, turn, rng, 1.0))
    candidate = features(rows, columns, turn, rng, 1.05)
    few = candidate[:fewer]
    out = {"root_s": seconds(lambda: reference.root), "statistics_s": np.inf}
    theirs, ours, values = [], [], []

    def by_sqrtm() -> None:
        values.append(with_sqrtm(known.mean, known.covariance, reference.mean, covariance))

    def by_root() -> None:
        values.append(frechet_distance(known, reference))

    covariance = reference.covariance
    for _ in range(rounds):
        known = FeatureStats()
        out["statistics_s"] = min(out["statistics_s"], seconds(partial(known.update, candidate)))
        theirs.append(seconds(by_sqrtm))
        ours.append(seconds(by_root))
    return out | {
        "sqrtm_s": min(theirs),
        "ours_s": min(ours),
        "sqrtm_seconds_over_ours": min(theirs) / min(ours),
        "fewer_rows_s": min(
            seconds(lambda: frechet_distance(few, reference)) for _ in range(rounds)
        ),
        "difference": abs(values[0] / values[1] - 1.0),
    }


if __name__ == "__main__":
    print(json.dumps(measure(*(int(a) for a in sys.argv[1:5]))))
