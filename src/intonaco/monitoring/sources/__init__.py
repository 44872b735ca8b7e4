"""Where the values of each signal come from, one source a file."""

from intonaco.config import Signal
from intonaco.monitoring.sources.base import Reading, Seen, Source
from intonaco.monitoring.sources.clip import ClipScore
from intonaco.monitoring.sources.errors import Errors
from intonaco.monitoring.sources.latency import Latency
from intonaco.monitoring.sources.prompts import Prompts

__all__ = ["SOURCES", "Reading", "Seen", "Source", "source"]

# what a signal is of, and what reads it
SOURCES: dict[str, type[Source]] = {
    "prompt_embedding": Prompts,
    "clip_score": ClipScore,
    "errors": Errors,
    "latency": Latency,
}


def source(name: str, signal: Signal) -> Source:
    """The source of the signal called ``name``."""
    return SOURCES[signal.of](name, signal)
