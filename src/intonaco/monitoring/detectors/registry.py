"""Detectors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from intonaco import plugins
from intonaco.config import DetectorChoice
from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.protocols import Detector

KIND = "detectors"  # entry points: the group ``intonaco.detectors``
AUTO = "auto"
AUTOMATIC = {  # what "auto" means by what a signal's readings are; all else is a mean
    "vector": "e-detector",
    "rate": "e-rate",
    "positive": "e-quantile",
}
STRATIFIED = "stratified"
_PLACE = "intonaco.monitoring.detectors"
BUILT_IN = {
    "e-detector": f"{_PLACE}.embedding:EmbeddingDetector.of",
    "e-mean": f"{_PLACE}.mean:MeanDetector.of",
    "e-quantile": f"{_PLACE}.quantile:QuantileDetector.of",
    "e-rate": f"{_PLACE}.rate:RateDetector.of",
    "periodic": f"{_PLACE}.periodic:PeriodicDetector.of",
    "stratified": f"{_PLACE}.stratified:StratifiedDetector.of",
}
LIBRARIES = {  # "river:ADWIN": what stands here, called with "ADWIN", gives the factory
    "evidently": f"{_PLACE}.evidently:factory",
    "river": f"{_PLACE}.river:factory",
}

Factory = Callable[[DetectorSettings], Detector]


def resolve(
    choice: str | DetectorChoice, *, stream: str = "bounded", given_topic: bool = False
) -> tuple[str, Factory]:
    """The detector that ``choice`` means for a signal whose readings are what ``stream`` says
    ("vector", "bounded", "rate" or "positive", see ``Source``): its full name, options included,
    and a callable that takes DetectorSettings.

    "auto" is the one of AUTOMATIC, for signals that are judged given the topic one of those in
    each topic. Other names are built-ins, entry points of the group ``intonaco.detectors``,
    ``river:CLASS``, ``evidently:METHOD`` or ``module:attribute``. Raises ConfigError that lists
    the known ones.
    """
    if isinstance(choice, str):
        choice = DetectorChoice(name=choice)
    name, options = choice.name, choice.options
    if name == AUTO:
        name = AUTOMATIC.get(stream, "e-mean")
        if given_topic and stream != "vector":
            name, options = STRATIFIED, {"of": name, **options}
    found = plugins.resolve(KIND, name, BUILT_IN, families=LIBRARIES)
    if not callable(found):
        raise ConfigError(f"detector {name!r} is not callable: it has to take DetectorSettings")
    factory: Factory = found
    if not options:
        return name, factory
    if name == "e-detector":
        raise ConfigError(f"options: {name} has none")
    return _full(name, options), lambda given: factory(replace(given, options=options))


def check_name(choice: str | DetectorChoice, field: str) -> None:
    """Makes the detector, to see that its name, its options and what it needs are there. Raises
    ConfigError that names ``field`` of the configuration."""
    try:
        resolve(choice)[1](DetectorSettings())
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}", hint=error.hint) from error


def _full(name: str, options: Mapping[str, object]) -> str:
    return f"{name}({', '.join(f'{key}={options[key]}' for key in sorted(options))})"
