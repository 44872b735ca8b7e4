"""Where the values of each signal come from, one source a file."""

from intonaco.config import Signal
from intonaco.monitoring.sources.base import Reading, Seen, Source, Stream
from intonaco.monitoring.sources.batch_fill import BatchFill
from intonaco.monitoring.sources.broken import BlankImages, BrokenImages
from intonaco.monitoring.sources.clip import ClipScore
from intonaco.monitoring.sources.cost import Cost
from intonaco.monitoring.sources.diversity import Diversity
from intonaco.monitoring.sources.embeddings import Conditions, Images
from intonaco.monitoring.sources.errors import Errors
from intonaco.monitoring.sources.feedback import (
    Download,
    Regenerate,
    ResponseRate,
    Stars,
    Thumbs,
)
from intonaco.monitoring.sources.latency import Latency
from intonaco.monitoring.sources.prompts import Prompts
from intonaco.monitoring.sources.refused import Refused
from intonaco.monitoring.sources.sampled import External, GpuMemory, GpuUtilisation
from intonaco.monitoring.sources.score import Safety, Score
from intonaco.monitoring.sources.throughput import Throughput

__all__ = ["SOURCES", "Reading", "Seen", "Source", "Stream", "source"]

# what a signal is of, and what reads it
SOURCES: dict[str, type[Source]] = {
    "prompt_embedding": Prompts,
    "clip_score": ClipScore,
    "errors": Errors,
    "latency": Latency,
    "condition_embedding": Conditions,
    "image_embedding": Images,
    "score": Score,
    "diversity": Diversity,
    "blank_images": BlankImages,
    "broken_images": BrokenImages,
    "safety": Safety,
    "thumbs": Thumbs,
    "stars": Stars,
    "regenerate": Regenerate,
    "download": Download,
    "response_rate": ResponseRate,
    "refused": Refused,
    "throughput": Throughput,
    "batch_fill": BatchFill,
    "cost": Cost,
    "gpu_utilisation": GpuUtilisation,
    "gpu_memory": GpuMemory,
    "promql": External,
    "python": External,
}


def source(name: str, signal: Signal) -> Source:
    """The source of the signal called ``name``."""
    return SOURCES[signal.of](name, signal)
