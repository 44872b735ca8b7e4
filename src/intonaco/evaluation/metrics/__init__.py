"""Metrics as plain functions of feature matrices (float arrays [n, d], one row an image).

NumPy only. Which model made the features is the caller's business; say it beside the value (a
Fréchet distance of digit features is "fd@digits-clip32", never "FID"). Everything is computed in
float64, whatever comes in.
"""

from intonaco.evaluation.metrics.diversity import inception_score, vendi_score
from intonaco.evaluation.metrics.frechet import FeatureStats, frechet_distance
from intonaco.evaluation.metrics.kernels import (
    Estimate,
    RelativeMmd,
    cmmd,
    kernel_distance,
    relative_mmd,
)
from intonaco.evaluation.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    authenticity,
    density_coverage,
    precision_recall,
)

__all__ = [
    "DensityCoverage",
    "Estimate",
    "FeatureStats",
    "PrecisionRecall",
    "RelativeMmd",
    "authenticity",
    "cmmd",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "relative_mmd",
    "vendi_score",
]
