"""The traffic generator: asks for images as users would, through the unmodified OpenAI client.

Run as ``python -m intonaco.demo.traffic --url URL --seed N``. It reads JSON lines on standard input
({"rate": requests a second, "new_share": share of requests for the later topics}, or
{"stop": true}) and writes its counts as JSON lines on standard output twice a second. Users come,
ask once or a few times (now and then for the same thing again), and go.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from openai import APIError, AsyncOpenAI

from intonaco.demo.data import FIRST_TOPICS, LATER_TOPICS, PHRASINGS

IN_FLIGHT = 20
PNG = b"\x89PNG"


@dataclass(slots=True)
class Counts:
    """``lost``: requests that never got an answer of any kind."""

    sent: int = 0
    answered: int = 0
    failed: int = 0
    lost: int = 0
    sent_new: int = 0  # requests for the later topics
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Mix:
    """What is asked for, and how fast. Rate 0: wait."""

    rate: float = 0.0
    new_share: float = 0.0
    stop: bool = False


class Users:
    """Who asks for what next. About a third of the users asks more than once."""

    def __init__(self, seed: int, mix: Mix) -> None:
        self.random = random.Random(seed)
        self.mix = mix
        self._asks = self._stream()

    def __next__(self) -> tuple[str, str, bool]:
        """(user, prompt, whether it asks for a later topic)."""
        return next(self._asks)

    def _stream(self) -> Iterator[tuple[str, str, bool]]:
        number = 0
        while True:
            number += 1
            prompt, new = self._prompt()
            yield f"user-{number}", prompt, new
            while self.random.random() < 0.3:
                if self.random.random() < 0.5:  # something else this time
                    prompt, new = self._prompt()
                yield f"user-{number}", prompt, new

    def _prompt(self) -> tuple[str, bool]:
        new = self.random.random() < self.mix.new_share
        topic = self.random.choice(LATER_TOPICS if new else FIRST_TOPICS)
        return self.random.choice(PHRASINGS).format(topic), new


class Traffic:
    """Sends requests at a rate, at most ``IN_FLIGHT`` at once."""

    def __init__(self, url: str, seed: int) -> None:
        self.mix = Mix()
        self.counts = Counts()
        self.users = Users(seed, self.mix)
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key="demo", max_retries=0, timeout=60.0)

    async def run(self) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT)
        running: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not self.mix.stop:
            if self.mix.rate <= 0:
                await asyncio.sleep(0.05)
                due = time.monotonic()
                continue
            due = max(due + 1.0 / self.mix.rate, time.monotonic() - 0.5)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await slots.acquire()
            task = asyncio.create_task(self._ask(slots))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running)
        await self.client.close()

    async def _ask(self, slots: asyncio.Semaphore) -> None:
        user, prompt, new = next(self.users)
        self.counts.sent += 1
        self.counts.sent_new += new
        try:
            answer = await self.client.images.generate(
                prompt=prompt, model="digits", size="auto", response_format="b64_json", user=user
            )
            image = base64.b64decode((answer.data or [])[0].b64_json or "")
            if not image.startswith(PNG):
                raise ValueError("the answer holds no PNG")
            self.counts.answered += 1
        except (APIError, ValueError, IndexError) as error:
            self.counts.failed += 1
            self.counts.errors = [*self.counts.errors, f"{type(error).__name__}: {error}"][-5:]
        finally:
            slots.release()


async def _obey(traffic: Traffic) -> None:
    """Follow the lines on standard input; its end means stop."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        for name, value in json.loads(line).items():
            setattr(traffic.mix, name, value)
    traffic.mix.stop = True


async def _report(traffic: Traffic) -> None:
    while True:
        _say(traffic)
        await asyncio.sleep(0.5)


def _say(traffic: Traffic) -> None:
    counts = traffic.counts
    sys.stdout.write(json.dumps(asdict(counts)) + "\n")
    sys.stdout.flush()


async def _main(url: str, seed: int) -> None:
    traffic = Traffic(url, seed)
    helpers = [asyncio.create_task(_obey(traffic)), asyncio.create_task(_report(traffic))]
    await traffic.run()
    for task in helpers:
        task.cancel()
    counts = traffic.counts
    counts.lost = counts.sent - counts.answered - counts.failed
    _say(traffic)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.url, arguments.seed))
