"""Metrics as plain functions of feature matrices (float arrays [n, d], one row an image).

NumPy only. Which model made the features is the caller's business; say it beside the value (a
Fréchet distance of digit features is "fd@digits-clip32", never "FID"). Everything is computed in
float64, whatever comes in: arrays of any real type, or lists. What cannot be measured is a
ValueError; what can, but may not mean what it seems to, is a MetricWarning.
"""

from intonaco.evaluation.metrics.alignment import cosines
from intonaco.evaluation.metrics.arrays import MetricWarning
from intonaco.evaluation.metrics.diversity import inception_score, vendi_score
from intonaco.evaluation.metrics.extrapolation import Extrapolation, frechet_infinity
from intonaco.evaluation.metrics.feature_stats import FeatureStats
from intonaco.evaluation.metrics.frechet import FrechetDetails, frechet_details, frechet_distance
from intonaco.evaluation.metrics.kernels import (
    Estimate,
    SubsetEstimate,
    cmmd,
    gaussian,
    kernel_distance,
    kernel_distance_subsets,
    polynomial,
)
from intonaco.evaluation.metrics.neighbours import (
    Copies,
    DensityCoverage,
    PrecisionRecall,
    authenticity,
    copies,
    density_coverage,
    precision_recall,
)
from intonaco.evaluation.metrics.relative import RelativeMmd, relative_mmd

__all__ = [
    "Copies",
    "DensityCoverage",
    "Estimate",
    "Extrapolation",
    "FeatureStats",
    "FrechetDetails",
    "MetricWarning",
    "PrecisionRecall",
    "RelativeMmd",
    "SubsetEstimate",
    "authenticity",
    "cmmd",
    "copies",
    "cosines",
    "density_coverage",
    "frechet_details",
    "frechet_distance",
    "frechet_infinity",
    "gaussian",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "polynomial",
    "precision_recall",
    "relative_mmd",
    "vendi_score",
]
