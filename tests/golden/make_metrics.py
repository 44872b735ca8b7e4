"""Asks the published packages for the numbers in ``metrics.json``.

    python tests/golden/make_metrics.py DGM_EVAL CMMD_PYTORCH > tests/golden/metrics.json

In an environment of its own: torch, scipy, scikit-learn, mpmath, and, installed with ``--no-deps``
(they would pull in torchvision, which their functions on features do not need): torch-fidelity,
clean-fid, pytorch-fid, prdc, vendi-score. The arguments are checkouts of
https://github.com/layer6ai-labs/dgm-eval and https://github.com/sayakpaul/cmmd-pytorch, which are
no packages. Where packages are inexact (covariances that are singular) ``exact`` is what 50 digits
give.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
for part in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
    sys.modules[f"torchvision{part}"] = mock.MagicMock()

PACKAGES = ("torch-fidelity", "clean-fid", "pytorch-fid", "prdc", "vendi-score")
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "mpmath")


def exact_frechet(x: Any, y: Any) -> float:
    """With 50 digits: |mu|^2 + tr + tr - 2 nuclear norm of the cross-product of centred rows."""
    mp = import_module("mpmath")
    mp.mp.dps = 50
    a, b = (mp.matrix(v.tolist()) for v in (x, y))
    total = mp.mpf(0)
    means = []
    for m in (a, b):
        mean = [mp.fsum(m[i, j] for i in range(m.rows)) / m.rows for j in range(m.cols)]
        means.append(mean)
        for i in range(m.rows):
            for j in range(m.cols):
                m[i, j] -= mean[j]
        total += mp.fsum(m[i, j] ** 2 for i in range(m.rows) for j in range(m.cols)) / (m.rows - 1)
    total += mp.fsum((p - q) ** 2 for p, q in zip(*means, strict=True))
    if min(a.rows, b.rows) > a.cols:  # through triangular factors, which are smaller
        a, b = (cholesky_like(mp, m) for m in (a, b))
        cross = (a * b.T) / mp.sqrt((len(x) - 1) * (len(y) - 1))
    else:
        cross = (a * b.T) / mp.sqrt((a.rows - 1) * (b.rows - 1))
    gram = cross.T * cross if cross.rows > cross.cols else cross * cross.T
    values = mp.eigsy(gram, eigvals_only=True)
    return float(total - 2 * mp.fsum(mp.sqrt(max(v, mp.mpf(0))) for v in values))


def cholesky_like(mp: Any, m: Any) -> Any:
    """R with R.T R = m.T m, singular or not."""
    values, vectors = mp.eigsy(m.T * m)
    d = m.cols
    return mp.matrix(
        [[mp.sqrt(max(values[i], mp.mpf(0))) * vectors[j, i] for j in range(d)] for i in range(d)]
    )


def frechet(x: Any, y: Any, dgm: Any) -> dict[str, float]:
    torch = import_module("torch")
    fid = import_module("torch_fidelity.metric_fid")
    stats = [fid.fid_features_to_statistics(torch.from_numpy(v)) for v in (x, y)]
    moments = [v for s in stats for v in (s["mu"], np.atleast_2d(s["sigma"]))]
    out = {}
    if x.shape[1] > 1:
        out["torch-fidelity"] = fid.fid_statistics_to_metric(*stats, False)[
            "frechet_inception_distance"
        ]
        out["dgm-eval"] = dgm.compute_FD_with_reps(x, y)
        out["clean-fid"] = import_module("cleanfid.fid").frechet_distance(*moments)
        ask = import_module("pytorch_fid.fid_score").calculate_frechet_distance
        out["pytorch-fid"] = ask(*moments)
    return {k: float(np.real(v)) for k, v in out.items()}


def kernels(x: Any, y: Any, dgm: Any, cmmd: Any) -> dict[str, Any]:
    torch = import_module("torch")
    kid, clean = import_module("torch_fidelity.metric_kid"), import_module("cleanfid.fid")
    n = min(len(x), len(y))
    sigma = float(np.sqrt(((x[0] - y) ** 2).sum(1).mean()))
    asked = {"kid_subsets": 10, "kid_subset_size": max(2, n // 3), "rng_seed": 7, "verbose": False}
    subset = kid.kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **asked)
    np.random.seed(7)  # what clean-fid draws with
    rows = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    return {
        "full": {
            "torch-fidelity": kid.kernel_mmd(x[:n], y[:n]),
            "dgm-eval": dgm.compute_polynomial_mmd(x[:n], y[:n]),
        },
        "gaussian": {
            "bandwidth": sigma,
            "torch-fidelity": kid.kernel_mmd(
                x[:n], y[:n], kid_kernel="rbf", kid_kernel_rbf_sigma=sigma
            ),
        },
        "subsets": {
            "size": asked["kid_subset_size"],
            "torch-fidelity": subset["kernel_inception_distance_mean"],
            "torch-fidelity spread": subset["kernel_inception_distance_std"],
            "clean-fid": clean.kernel_distance(
                y, x, num_subsets=10, max_subset_size=asked["kid_subset_size"]
            ),
        },
        "cmmd": None
        if not all(v.any(1).all() for v in (x, y))
        else {"cmmd-pytorch": float(cmmd.mmd(*rows))},
    }


CDIST = import_module("torch").cdist


def exact_distances(a: Any, b: Any) -> Any:
    """Its own way for more than 25 rows expands the square, so that equal rows lie apart."""
    return CDIST(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def neighbours(x: Any, y: Any, dgm: Any) -> dict[str, Any]:
    torch = import_module("torch")
    prc = import_module("torch_fidelity.metric_prc")
    out: dict[str, Any] = {"authpct dgm-eval": dgm.compute_authpct(x, y)}
    for k in (3, 5):
        if min(len(x), len(y)) > k + 1:
            found = import_module("prdc").compute_prdc(x, y, k)
            out[f"prdc {k}"] = {name: float(v) for name, v in found.items()}
            with mock.patch.object(torch, "cdist", exact_distances):
                p, r = prc.calculate_precision_recall_full(
                    torch.from_numpy(y), torch.from_numpy(x), k
                )
            out[f"torch-fidelity {k}"] = {"precision": p, "recall": r}
    return out


def diversity(x: Any, dgm: Any) -> dict[str, Any]:
    torch = import_module("torch")
    isc, vendi = import_module("torch_fidelity.metric_isc"), import_module("vendi_score.vendi")
    out: dict[str, Any] = {}
    if x.any(1).all():
        for q in (1, 2, "inf") if len(x) < x.shape[1] else (0.5, 1, 2, "inf"):
            out[f"vendi {q}"] = float(vendi.score_dual(x, q=q))
    for splits in (1, 2, 10):
        if splits <= len(x) and x.shape[1] > 1:
            found = isc.isc_features_to_metric(torch.from_numpy(x), splits)
            out[f"inception {splits}"] = [
                found["inception_score_mean"],
                found["inception_score_std"],
            ]
            if len(x) % splits == 0:
                p = np.exp(x - x.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                mean, std = dgm.calculate_score(p, splits=splits, N=len(x))
                out[f"inception dgm-eval {splits}"] = [float(mean), float(std)]
    return out


def infinity(x: Any, y: Any, dgm: Any) -> float | None:
    if len(y) < 100 or x.shape[1] == 1:
        return None
    rng = np.random.default_rng(11)
    with mock.patch("numpy.random.default_rng", return_value=rng):
        return float(dgm.compute_FD_infinity(x, y))


def main() -> str:
    cases = import_module("metric_cases").cases()
    for folder in sys.argv[1:3]:
        sys.path.insert(0, folder)
    dgm = mock.MagicMock()
    for module in ("fd", "mmd", "authpct", "inception_score"):
        found = import_module(f"dgm_eval.metrics.{module}")
        for attribute in vars(found):
            if attribute.startswith("comp") or attribute == "calculate_score":
                setattr(dgm, attribute, getattr(found, attribute))
    cmmd = import_module("distance")
    out: dict[str, Any] = {
        "versions": {p: metadata.version(p) for p in (*PACKAGES, *LIBRARIES)},
        "cases": {},
    }
    for name, (x, y) in cases.items():
        out["cases"][name] = {
            "sum": float(math.fsum(x.ravel()) + math.fsum(y.ravel())),
            "frechet": frechet(x, y, dgm)
            | ({} if name == "page" else {"exact": exact_frechet(x, y)}),
            "infinity": infinity(x, y, dgm),
            "kernels": kernels(x, y, dgm, cmmd),
            "neighbours": neighbours(x, y, dgm),
            "diversity": diversity(x, dgm),
        }
        print(name, file=sys.stderr)
    return json.dumps(out, indent=1)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints
        answers = main()
    print(answers)
