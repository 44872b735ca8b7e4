"""Detectors: each watches one stream and says when it changed. NumPy only; those of River and
Evidently are adapters that import them when they are named."""

from intonaco.monitoring.detectors.embedding import EmbeddingDetector
from intonaco.monitoring.detectors.mean import MeanDetector
from intonaco.monitoring.detectors.periodic import PeriodicDetector
from intonaco.monitoring.detectors.quantile import QuantileDetector
from intonaco.monitoring.detectors.rate import RateDetector
from intonaco.monitoring.detectors.registry import check_name, resolve
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.monitoring.detectors.stratified import StratifiedDetector

__all__ = [
    "DetectorSettings",
    "EmbeddingDetector",
    "MeanDetector",
    "PeriodicDetector",
    "QuantileDetector",
    "RateDetector",
    "StratifiedDetector",
    "check_name",
    "resolve",
]
