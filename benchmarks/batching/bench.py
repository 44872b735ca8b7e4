"""What does micro-batching give, and what does serving cost?

A pipeline with random weights (Stable Diffusion's classes, 64x64 pixels, 10 steps, about 0.1 s an
image on one core) is called three ways on one compute thread, in turns, in one run:

- offline: the pipeline itself, in a loop, at each batch size; the best of them is the yardstick;
- served: a worker process with more requests waiting than it can batch;
- one at a time: the same worker, each request sent when the one before it was answered.

Then requests arrive at random (Poisson) at 50 % and 80 % of the served rate: latency from the
planned arrival, so that a client that falls behind hides nothing. `images_per_s_over_offline` is
the served rate over the best offline one (limit: 0.95).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import parts

from intonaco.codec import encode
from intonaco.config import Serving
from intonaco.config import Worker as WorkerConfig
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.serving.local import LocalServingBackend
from intonaco.workspace import Workspace

SIZES = (1, 2, 4, 8)
STEPS = 10
SIDE = 64
ROUNDS = 3
BLOCK_S = 9.0
LOADED_S = 25.0
HEADERS = {PROTOCOL_HEADER: PROTOCOL_VERSION}

BUILD = f"{parts.PIPELINE}\nbuild((128, 256)).save_pretrained(sys.argv[1])\n"

OFFLINE = """
import sys, time, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
folder, side, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
pipeline.set_progress_bar_config(disable=True)

def images(size, first):
    prompts = [f"a handwritten {k}" for k in range(first, first + size)]
    seeds = [torch.Generator("cpu").manual_seed(first + k) for k in range(size)]
    with torch.inference_mode():
        pipeline(prompts, width=side, height=side, num_inference_steps=steps, guidance_scale=2.0,
                 generator=seeds)

for line in sys.stdin:  # batch size, seconds
    size, seconds = int(line.split()[0]), float(line.split()[1])
    images(size, 0)
    start, made = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images(size, made)
        made += size
    print(made / (time.perf_counter() - start), flush=True)
"""


def run() -> dict[str, float]:
    """Images a second, seconds of latency, ratios."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Path(folder) / "pipeline"
        parts.python(BUILD, str(pipeline))
        with _offline(pipeline) as offline, _worker(Path(folder) / "workspace", pipeline) as url:
            offline_rates: dict[int, list[float]] = {size: [] for size in SIZES}
            served: list[float] = []
            alone: list[float] = []
            for _ in range(ROUNDS):
                for size in SIZES:
                    offline_rates[size].append(offline(size, BLOCK_S / 2))
                served.append(asyncio.run(_closed(url, 3 * SIZES[-1], BLOCK_S)))
                alone.append(asyncio.run(_closed(url, 1, BLOCK_S)))
            saturated = statistics.median(served)
            figures = {
                f"offline.batch_{size}.images_per_s": statistics.median(rates)
                for size, rates in offline_rates.items()
            }
            best = max(figures.values())
            figures["served.images_per_s"] = saturated
            figures["one_at_a_time.images_per_s"] = statistics.median(alone)
            figures["images_per_s_over_offline"] = saturated / best
            figures["images_per_s_over_one_at_a_time"] = saturated / statistics.median(alone)
            for load in (0.5, 0.8):
                times = asyncio.run(_open(url, load * saturated, LOADED_S))
                percentiles = statistics.quantiles(times, n=100)
                for q in (50, 95, 99):
                    figures[f"load_{load * 100:.0f}.p{q}_s"] = percentiles[q - 1]
    return figures


@contextmanager
def _offline(pipeline: Path) -> Iterator[Callable[[int, float], float]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OFFLINE, str(pipeline), str(SIDE), str(STEPS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=parts.environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def rate(size: int, seconds: float) -> float:
        stdin.write(f"{size} {seconds}\n")
        stdin.flush()
        return float(stdout.readline())

    try:
        yield rate
    finally:
        stdin.close()
        process.wait(timeout=60)
        stdout.close()


@contextmanager
def _worker(root: Path, pipeline: Path) -> Iterator[str]:
    root.mkdir()
    workspace = Workspace(root)
    generation = {"steps": STEPS, "guidance_scale": 2.0, "width": SIDE, "height": SIDE}
    release = parts.add_release(workspace, pipeline, generation)
    settings = Serving(worker=WorkerConfig(batch_sizes=SIZES))
    backend = LocalServingBackend(workspace, settings)
    try:
        backend.deploy(release)
        yield parts.ready(backend, release).urls[0]
    finally:
        backend.retire(release.release_id)
        backend.close()


def _client() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(timeout=120, trust_env=False, headers=HEADERS, limits=limits)


async def _ask(client: httpx.AsyncClient, url: str, k: int) -> None:
    asked = GenerateRequest(
        request_id=f"r{k}",
        unit=f"user {k}",
        prompt=f"a handwritten {k}",
        seed=k,
        steps=STEPS,
        guidance_scale=2.0,
        width=SIDE,
        height=SIDE,
    )
    answer = await client.post(f"{url}/generate", content=encode(asked))
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")


async def _closed(url: str, concurrent: int, seconds: float) -> float:
    """Images a second with so many requests always under way; only those answered inside the
    window count, and it opens after the first two batches."""
    numbers = itertools.count()
    answered: list[float] = []
    start = time.perf_counter()

    async def client_loop(client: httpx.AsyncClient) -> None:
        while time.perf_counter() - start < seconds + 1:
            await _ask(client, url, next(numbers))
            answered.append(time.perf_counter())

    async with _client() as client:
        await asyncio.gather(*(client_loop(client) for _ in range(concurrent)))
    warm = 2 * concurrent if concurrent == 1 else 2 * SIZES[-1]
    opens = answered[warm - 1]
    inside = [t for t in answered[warm:] if t <= start + seconds + 1]
    return len(inside) / (inside[-1] - opens)


async def _open(url: str, rate: float, seconds: float) -> list[float]:
    """Latencies under Poisson arrivals."""
    arrivals = random.Random(0)
    times: list[float] = []

    async def one(client: httpx.AsyncClient, k: int, planned: float) -> None:
        await _ask(client, url, k)
        times.append(time.perf_counter() - planned)

    async with _client() as client, asyncio.TaskGroup() as group:
        at = start = time.perf_counter()
        for k in itertools.count():
            at += arrivals.expovariate(rate)
            if at - start > seconds:
                break
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            group.create_task(one(client, k, at))
    return times
