"""Every metric against what the published packages say of the same features.

``tests/golden/make_metrics.py`` asked them. Where a package itself loses digits the tolerance below
is that loss, measured, with its reason; the exact value then comes from arithmetic with 50 digits.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.golden.metric_cases import cases

from intonaco.evaluation.metrics import (
    FeatureStats,
    MetricWarning,
    authenticity,
    cmmd,
    density_coverage,
    frechet_distance,
    frechet_infinity,
    gaussian,
    inception_score,
    kernel_distance,
    kernel_distance_subsets,
    precision_recall,
    vendi_score,
)
from intonaco.evaluation.metrics.arrays import Float

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())["cases"]
CASES = cases()
NAMES = sorted(CASES)

# sqrtm and eigvals lose half of the digits where a covariance is singular
SINGULAR = {
    "wide": 3e-8,
    "wide_one_side": 3e-8,
    "two_rows": 1e-8,
    "equal_columns": 1e-7,
    "flat_one_side": 2e-8,
    "steep": 2e-6,
}
# single subsets of those have as few rows as columns, too
SINGULAR_SUBSETS = {"equal_columns": 2e-7, "unit": 3e-7, "flat_one_side": 2e-8, "steep": 2e-6}
# x.y and |x|^2 cancel where the mean is far from zero for the spread
CANCELLED = {"tiny_variance", "far"}
KERNEL = {"tiny_variance": 1e-2, "far": 1e-7}
# scikit-learn takes rows shorter than 1e-15 for zeros
TOO_SHORT = {"tiny"}


def pair(name: str) -> tuple[Float, Float, Any]:
    x, y = CASES[name]
    return x, y, GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_features_are_those_that_packages_saw(name: str) -> None:
    x, y, golden = pair(name)
    total = math.fsum(x.ravel()) + math.fsum(y.ravel())
    assert total == pytest.approx(golden["sum"], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_frechet_distance(name: str) -> None:
    x, y, golden = pair(name)
    expected = dict(golden["frechet"])
    exact = expected.pop("exact", None)
    left, right = FeatureStats().update(x), FeatureStats().update(y)
    for found in (
        frechet_distance(x, y),
        frechet_distance(left, y),
        frechet_distance(x, right),
        frechet_distance(left, right),
    ):
        if exact is not None:
            assert found == pytest.approx(exact, rel=1e-9)
        for package, value in expected.items():
            assert found == pytest.approx(value, rel=SINGULAR.get(name, 1e-9)), package


@pytest.mark.parametrize("name", [n for n in NAMES if GOLDEN[n]["infinity"] is not None])
@pytest.mark.filterwarnings("ignore:subsets of")  # dgm-eval says nothing there
def test_frechet_distance_at_infinity(name: str) -> None:
    x, y, golden = pair(name)
    found = frechet_infinity(y, x, seed=11)
    assert len(found.sizes) == 15
    assert found.value == pytest.approx(golden["infinity"], rel=SINGULAR_SUBSETS.get(name, 1e-9))


@pytest.mark.filterwarnings("ignore:the kernel's values are so large:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_kernel_distance(name: str) -> None:
    x, y, golden = pair(name)
    kernels = golden["kernels"]
    n = min(len(x), len(y))
    loss = KERNEL.get(name, 1e-9)
    for package, value in kernels["full"].items():
        assert float(kernel_distance(x[:n], y[:n])) == pytest.approx(value, rel=loss), package
    kernel = gaussian(kernels["gaussian"]["bandwidth"])
    value = kernels["gaussian"]["torch-fidelity"]
    assert kernel_distance(x[:n], y[:n], kernel=kernel).value == pytest.approx(value, rel=loss)


@pytest.mark.parametrize("name", ["tiny", "tiny_variance"])
def test_where_every_package_gives_rounding_for_a_kernel_distance_ours_says_so(name: str) -> None:
    x, y, _ = pair(name)
    for metric in (kernel_distance, partial(kernel_distance_subsets, subsets=2, size=50)):
        with pytest.warns(MetricWarning, match="rounding drowns"):
            metric(x, y)


@pytest.mark.filterwarnings("ignore:the kernel's values are so large:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_kernel_distance_over_subsets(name: str) -> None:
    x, y, golden = pair(name)
    expected = golden["kernels"]["subsets"]
    loss = KERNEL.get(name, 1e-9)
    found = kernel_distance_subsets(x, y, subsets=10, size=expected["size"], seed=7)
    assert found.value == pytest.approx(expected["torch-fidelity"], rel=loss)
    assert found.value == pytest.approx(expected["clean-fid"], rel=loss)
    assert found.spread == pytest.approx(expected["torch-fidelity spread"], rel=loss, abs=1e-14)


@pytest.mark.parametrize("name", sorted(set(NAMES) - CANCELLED))
def test_cmmd(name: str) -> None:
    x, y, golden = pair(name)
    assert cmmd(x, y) == pytest.approx(golden["kernels"]["cmmd"]["cmmd-pytorch"], rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"tiny_variance"}))
def test_neighbours(name: str, k: int) -> None:
    """prdc counts the border as outside, torch-fidelity (in float32) as inside."""
    x, y, golden = pair(name)
    if f"prdc {k}" not in golden["neighbours"]:
        assert name == "two_rows"
        return
    prdc, fidelity = golden["neighbours"][f"prdc {k}"], golden["neighbours"][f"torch-fidelity {k}"]
    outside, inside = precision_recall(x, y, k=k, border="outside"), precision_recall(x, y, k=k)
    found = density_coverage(x, y, k=k)
    assert outside.precision == pytest.approx(prdc["precision"], rel=1e-12)
    assert outside.recall == pytest.approx(prdc["recall"], rel=1e-12)
    assert found.density == pytest.approx(prdc["density"], rel=1e-12)
    assert found.coverage == pytest.approx(prdc["coverage"], rel=1e-12)
    assert inside.precision == pytest.approx(fidelity["precision"], rel=1e-6)
    assert inside.recall == pytest.approx(fidelity["recall"], rel=1e-6)


def test_the_border_matters_in_some_of_the_cases() -> None:
    golden = GOLDEN["repeated_rows"]["neighbours"]
    assert golden["prdc 3"]["recall"] != pytest.approx(golden["torch-fidelity 3"]["recall"])


@pytest.mark.parametrize("name", sorted(set(NAMES) - CANCELLED))
def test_authenticity(name: str) -> None:
    """dgm-eval's percentage is in float32."""
    x, y, golden = pair(name)
    value = golden["neighbours"]["authpct dgm-eval"]
    assert 100 * authenticity(x, y) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("name", sorted(set(NAMES) - TOO_SHORT))
def test_vendi_score(name: str) -> None:
    x, _, golden = pair(name)
    for q in (0.5, 1.0, 2.0, math.inf):
        value = golden["diversity"].get(f"vendi {q:g}")
        if value is not None:
            # where columns repeat, the package takes roots of eigenvalues that are rounding
            flat = name in ("equal_columns", "flat_one_side", "steep")
            loss = 1e-7 if flat and q < 1.0 else 1e-9
            assert vendi_score(x, q=q) == pytest.approx(value, rel=loss), q


@pytest.mark.parametrize("splits", [1, 2, 10])
@pytest.mark.parametrize("name", NAMES)
def test_inception_score(name: str, splits: int) -> None:
    x, _, golden = pair(name)
    value = golden["diversity"].get(f"inception {splits}")
    if value is None:
        return
    if (name, splits) == ("large", 10):  # 0 log 0, which torch-fidelity takes for NaN
        assert math.isnan(value[0])
        assert 1.0 <= inception_score(x, splits=splits)[0] <= x.shape[1]
        return
    assert inception_score(x, splits=splits) == pytest.approx(value, rel=1e-9, abs=1e-12)
    of_probabilities = golden["diversity"].get(f"inception dgm-eval {splits}")
    if of_probabilities is not None and name != "tiny":  # there all probabilities are equal
        p = np.exp(x - x.max(1, keepdims=True))
        found = inception_score(p / p.sum(1, keepdims=True), splits=splits, probabilities=True)
        assert found == pytest.approx(of_probabilities, rel=1e-9, abs=1e-12)
