"""Detectors: each watches one stream and says when it changed. NumPy only."""

from intonaco.monitoring.detectors.embedding import EmbeddingDetector
from intonaco.monitoring.detectors.mean import MeanDetector
from intonaco.monitoring.detectors.periodic import PeriodicDetector
from intonaco.monitoring.detectors.registry import check_name, resolve
from intonaco.monitoring.detectors.settings import DetectorSettings

__all__ = [
    "DetectorSettings",
    "EmbeddingDetector",
    "MeanDetector",
    "PeriodicDetector",
    "check_name",
    "resolve",
]
