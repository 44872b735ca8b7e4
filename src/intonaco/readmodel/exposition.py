"""Signals and traffic in Prometheus' text format (0.0.4). No unit, no prompt in a label.

Gateways and workers publish counters and histograms of their own; here is what only the ledger
knows: quantiles of the last minutes within request classes, evidence, alarms, money. All but the
alarms are gauges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from intonaco.config import Config
from intonaco.ledger import Ledger
from intonaco.monitoring.windows import LEVELS
from intonaco.readmodel.operations import budget
from intonaco.readmodel.plain import Facts
from intonaco.readmodel.signals import signals
from intonaco.readmodel.traffic import HOUR, traffic
from intonaco.types import Finding

MINUTES = 5.0
QUANTILE = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
DURATIONS = {
    "seconds": ("request_duration_seconds", "End to end, of requests that were answered."),
    "queue": ("queue_wait_seconds", "Wait at the worker."),
    "service": ("service_duration_seconds", "Work on the batch."),
    "encode": ("encode_duration_seconds", "Encoding of the prompt."),
    "denoise": ("denoise_duration_seconds", "All steps."),
    "decode": ("decode_duration_seconds", "Decoding of the image."),
}

Labels = tuple[tuple[str, str], ...]
Row = tuple[Labels, float | None]


def exposition(ledger: Ledger, config: Config, now: float, last_tick: float | None = None) -> str:
    """The text. What is not known is absent, never zero. ``last_tick``: of the controller."""
    told = [*_lines(ledger, config, now), *_last_tick(last_tick)]
    return "".join(f"{line}\n" for line in told)


def _lines(ledger: Ledger, config: Config, now: float) -> Iterator[str]:
    seen = traffic(ledger, config, now, MINUTES * LEVELS["minute"][0] / HOUR)
    parts = [c for c in seen["cells"] if c["class"] is not None]
    for part, (name, text) in DURATIONS.items():
        yield from _family(name, "gauge", text, _durations(parts, part))
    yield from _family(
        "batch_fill_ratio",
        "gauge",
        "Share of batches that was requests.",
        [(_labels(c), c["batch_fill"]) for c in parts],
    )
    yield from _family(
        "image_cost", "gauge", "In the budget's currency.", _by_class(parts, "cost_per_image")
    )
    yield from _family(
        "device_memory_peak_bytes", "gauge", "Highest.", _by_class(parts, "peak_memory_bytes")
    )
    for name, text in (
        ("demand", "Requests asked for a second."),
        ("throughput", "Images made a second."),
        ("capacity", "Images that the champion's workers could make a second."),
    ):
        yield from _family(f"{name}_per_second", "gauge", text, [((), seen[name])])
    refused: list[Row] = [((("code", code),), n) for code, n in seen["refused"].items()]
    yield from _family("requests_refused", "gauge", f"In {MINUTES:g} minutes.", refused)
    now_watched = signals(ledger, points=0)
    yield from _family(
        "drift_evidence_ratio",
        "gauge",
        "Evidence against its threshold.",
        [(_stream(s["signal"]), s["evidence"] / s["threshold"]) for s in now_watched],
    )
    yield from _family(
        "signal_firing",
        "gauge",
        "1: it moved.",
        [(_stream(s["signal"]), float(s["firing"])) for s in now_watched],
    )
    yield from _family(
        "signal_value",
        "gauge",
        "In the signal's own unit.",
        [(_stream(s["signal"]), s["value"]) for s in now_watched],
    )
    found = Counter(f.signal for f in ledger.all(Finding))
    alarms: list[Row] = [(_stream(name), n) for name, n in sorted(found.items())]
    yield from _family("drift_alarms_total", "counter", "Findings.", alarms)
    money = budget(ledger, config, now)
    left = money["left"] / money["amount"] if money["amount"] else None
    yield from _family("budget_remaining_ratio", "gauge", "Of the period.", [((), left)])


def _last_tick(at: float | None) -> Iterator[str]:
    yield from _family(
        "controller_last_tick_timestamp_seconds",
        "gauge",
        "End of the controller's last tick, since the Unix epoch.",
        [((), at)],
    )


def _durations(parts: Iterable[Facts], part: str) -> list[Row]:
    return [
        ((*_labels(cell), ("quantile", QUANTILE[label])), cell["times"][part][label])
        for cell in parts
        if part in cell["times"]
        for label in QUANTILE
    ]


def _by_class(parts: Iterable[Facts], name: str) -> list[Row]:
    return [(_labels(cell), cell[name]) for cell in parts]


def _labels(cell: Facts) -> Labels:
    return (("release", cell["release"][:10]), ("arm", cell["arm"]), ("class", cell["class"]))


def _stream(name: str) -> Labels:
    return (("stream", name),)


def _family(name: str, kind: str, text: str, rows: Iterable[Row]) -> Iterator[str]:
    told = [(labels, value) for labels, value in rows if value is not None]
    if not told:
        return
    yield f"# HELP intonaco_{name} {text}"
    yield f"# TYPE intonaco_{name} {kind}"
    for labels, value in told:
        inside = ",".join(f'{k}="{_escape(v)}"' for k, v in labels)
        yield (
            f"intonaco_{name}{{{inside}}} {value:.10g}"
            if inside
            else (f"intonaco_{name} {value:.10g}")
        )


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
