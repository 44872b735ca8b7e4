"""How many requests a second one core watches with a hundred signals, and how long a month of
windows takes to be restored.

``run()`` gives figures; times are processor time of this process. The stream is a made-up service:
384-d prompts, errors, latencies of five request classes; the signals are of all kinds that read
records, and what is measured is the whole way from a line of the log to evidence, with the state
taken once a second of traffic as the controller does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from intonaco.codec import decode, encode
from intonaco.config import Monitoring, Signal
from intonaco.monitoring.monitor import Monitor
from intonaco.monitoring.windows import LEVELS, TrafficWindows, Window, merged
from intonaco.types import Attempt, Outcome, Record, ScoredRecord, TrafficWindow

D = 384
RELEASE = "a" * 64
CLASSES = ((512, 20), (512, 50), (768, 28), (1024, 28), (1024, 50))
PER_SECOND = 200
START = 1_700_000_000.0
PARTS: tuple[Literal["service", "queue", "denoise", "total"], ...] = (
    "service",
    "queue",
    "denoise",
    "total",
)


def signals(count: int = 100) -> dict[str, Signal]:
    """One vector signal; the rest are scalar ones of all kinds that read records, with different
    limits, as a careful operator has them."""
    found = {"prompts": Signal(of="prompt_embedding", reference=1000)}
    makers = (
        lambda i: Signal(of="latency", part=PARTS[i % 4], slower_than=1.5 + i / 20, reference=500),
        lambda i: Signal(of="errors", direction="up", tolerance=0.001 * (i % 7), reference=500),
        lambda i: Signal(of="clip_score", direction="down", tolerance=0.001 * i, reference=500),
        lambda i: Signal(of="cost", direction="up", tolerance=0.01 * (i % 5), reference=500),
        lambda i: Signal(of="batch_fill", tolerance=0.01 * (i % 5), reference=500),
    )
    for i in range(count - 1):
        found[f"signal_{i:03d}"] = makers[i % len(makers)](i)
    return found


def records(count: int, *, seed: int = 0, seconds: float = 1.0 / PER_SECOND) -> Iterator[Record]:
    """``count`` records, one each ``seconds``."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        side, steps = CLASSES[int(rng.integers(len(CLASSES)))]
        service = side / 512 * steps / 20 * float(np.exp(0.1 * rng.standard_normal()))
        failed = rng.random() < 0.005
        attempt = Attempt(
            arm="champion",
            release=RELEASE,
            outcome=Outcome.ERROR if failed else Outcome.OK,
            started_at=START + i * seconds,
            seconds=service,
            queue_seconds=float(rng.exponential(0.2)),
            service_seconds=0.0 if failed else service,
            encode_seconds=0.02,
            denoise_seconds=0.9 * service,
            decode_seconds=0.1 * service,
            batch_size=int(rng.integers(1, 5)),
            padded_size=4,
            gpu_seconds=service / 4,
            peak_memory_bytes=int(rng.integers(2**33)),
            error="503 internal: x" if failed else "",
        )
        yield Record(
            gateway=f"gateway-{i % 2}",
            gateway_epoch=1,
            seq=i,
            service_id="bench",
            request_id=f"r{i}",
            at=START + i * seconds,
            unit=f"u{rng.integers(500)}",
            assigned_arm="champion",
            probability=1.0,
            routing_epoch=1,
            salt="",
            attempts=(attempt,),
            served_by=None if failed else RELEASE,
            served_arm=None if failed else "champion",
            status=500 if failed else 200,
            seconds=service + 0.3,
            prompt="",
            seed=i,
            steps=steps,
            guidance_scale=5.0,
            width=side,
            height=side,
        )


def lines(count: int, *, seed: int = 0) -> list[str]:
    """Lines of a scorer's log."""
    rng = np.random.default_rng([7, seed])
    topics = rng.standard_normal((40, D))
    found = []
    for record in records(count, seed=seed):
        row = topics[int(rng.zipf(1.6)) % 40] + 0.8 * rng.standard_normal(D)
        row /= np.linalg.norm(row)
        item = ScoredRecord(
            record=record,
            prompt_embedding=tuple(round(float(v), 6) for v in row),
            scores={} if record.served_by is None else {"clip": float(rng.normal(0.3, 0.05))},
            extractor="e" * 64,
        )
        found.append(encode(item))
    return found


def requests_per_second(
    count: int = 2000, signal_count: int = 100, warm_up: int = 3000
) -> tuple[float, float]:
    """Requests that one core takes in a second, after all signals are armed; and the size of their
    state in MB."""
    monitor = Monitor("bench", Monitoring(signals=signals(signal_count)))
    windows = TrafficWindows(lambda level, start: None)
    warm, timed = lines(warm_up, seed=1), lines(count, seed=2)
    for line in warm:
        _take(monitor, windows, line)
    state = ""
    began = time.process_time()
    for i, line in enumerate(timed):
        _take(monitor, windows, line)
        if i % PER_SECOND == 0:
            state = json.dumps(monitor.state())
            [encode(window) for window in windows.changed()]
            windows.written()
            [encode(status) for status in monitor.status()]
    return count / (time.process_time() - began), len(state) / 2**20


def _take(monitor: Monitor, windows: TrafficWindows, line: str) -> None:
    item = decode(ScoredRecord, line)
    windows.record(decode(Record, encode(item.record)), item.record.at)
    monitor.observe(item)


def month(per_window: int = 1500) -> list[str]:
    """All windows that are kept at a time, full of varied records, as they lie in the ledger."""
    window = Window()
    for record in records(per_window, seed=3):
        window.record(record)
        window.record(replace(record, assigned_arm="challenger:x", served_by="b" * 64))
    return [
        encode(TrafficWindow(level=level, start=i * seconds, state=window.state()))
        for level, (seconds, keep) in LEVELS.items()
        for i in range(keep // seconds)
    ]


def restore_seconds(stored: list[str]) -> float:
    """From the ledger's texts to one merged window of all days, hours and minutes."""
    began = time.process_time()
    merged(Window.of_state(decode(TrafficWindow, text).state) for text in stored)
    return time.process_time() - began


def run() -> dict[str, float]:
    stored = month()
    per_second, state_mb = requests_per_second()
    return {
        "signals.requests_per_s_100_signals": per_second,
        "signals.state_mb_100_signals": state_mb,
        "windows.restore_s_30_days": restore_seconds(stored),
        "windows.restore_windows": float(len(stored)),
        "windows.state_mb_30_days": sum(map(len, stored)) / 2**20,
    }


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name} = {value:.4g}")
