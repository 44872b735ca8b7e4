"""Detectors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from intonaco import plugins
from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.protocols import Detector

KIND = "detectors"  # entry points: the group ``intonaco.detectors``
AUTO = "auto"
STRATIFIED = "stratified"
BUILT_IN = {
    "e-detector": "intonaco.monitoring.detectors.embedding:EmbeddingDetector.of",
    "e-mean": "intonaco.monitoring.detectors.mean:MeanDetector.of",
    "periodic": "intonaco.monitoring.detectors.periodic:PeriodicDetector.of",
}

Factory = Callable[[DetectorSettings], Detector]


def resolve(
    name: str, *, of: str, stream: str = "bounded", given_topic: bool = False
) -> tuple[str, Factory]:
    """The detector that ``name`` means for a signal of kind ``of``, whose readings are what
    ``stream`` says ("vector", "bounded", "rate" or "positive", see ``Source``): its full name and
    a callable that takes DetectorSettings.

    "auto" is the e-detector for embeddings, for signals that are judged given the topic the
    stratified one where there is one, and the e-detector of the mean for all else. Other names are
    built-ins, entry points of the group ``intonaco.detectors`` or ``module:attribute``. Raises
    ConfigError that lists the known ones.
    """
    if name == AUTO:
        mean = STRATIFIED if given_topic and STRATIFIED in BUILT_IN else "e-mean"
        name = "e-detector" if stream == "vector" or of.endswith("_embedding") else mean
    factory: Any = plugins.resolve(KIND, name, BUILT_IN)
    if not callable(factory):
        raise ConfigError(f"detector {name!r} is not callable: it has to take DetectorSettings")
    return name, factory


def check_name(name: str, field: str) -> None:
    """Raises ConfigError that names ``field`` of the configuration if no detector is called so."""
    try:
        resolve(name, of="")
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}", hint=error.hint) from error
