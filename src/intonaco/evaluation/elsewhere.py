"""Draws an arm's images at a server that is not ours: over its API, one at a time."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco.clock import SystemClock
from intonaco.declared import Upstream
from intonaco.errors import BackendError
from intonaco.evaluation.prompts import Shot
from intonaco.messages import GenerateRequest
from intonaco.types import Json, Outcome
from intonaco.upstreams import Answer, Caller, client, read_facts

log = logging.getLogger(__name__)

TRIES = 5  # of one image, while the server is full or cannot be reached
FIRST_WAIT_S = 1.0  # doubled, unless the server says how long


@dataclass(slots=True)
class ServerSampler:
    """A sampler whose images are drawn elsewhere. One request at a time: it has users of its own.
    Where it honours no seeds, images pair by prompt alone. Raises BackendError."""

    upstream: Upstream
    generation: Mapping[str, Json]
    caller: Caller
    _runner: asyncio.Runner
    tensor_bytes: int = 0  # none of them here

    @classmethod
    def start(
        cls, folder: Path, generation: Mapping[str, Json], settings: Mapping[str, Json]
    ) -> ServerSampler:
        """``folder``: of the release; ``settings``: those that may change without a new release.
        Raises StorageError."""
        _, upstream = read_facts(folder)
        upstream = upstream.model_copy(update=dict(settings))
        return cls(
            upstream, generation, Caller(client(), os.environ, SystemClock()), asyncio.Runner()
        )

    def __call__(self, shots: Sequence[Shot]) -> NDArray[np.uint8]:
        """Images uint8 [n, height, width, 3], all of one size."""
        images = [self._pixels(self._draw(shot)) for shot in shots]
        if len({image.shape for image in images}) > 1:
            raise BackendError(
                "the server answers with pictures of several sizes", backend="http", retriable=False
            )
        return np.stack(images)

    def seconds(self, shots: Sequence[Shot]) -> float:
        """Wall seconds that the server takes, with the way there and back."""
        started = time.perf_counter()
        for shot in shots:
            self._draw(shot)
        return max(time.perf_counter() - started, 1e-9)

    def close(self) -> None:
        self._runner.run(self.caller.http.aclose())
        self._runner.close()

    def _draw(self, shot: Shot) -> bytes:
        wait, problem = FIRST_WAIT_S, ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(wait)
            answer = self._ask(shot)
            if answer.png is not None:
                return answer.png
            problem = answer.error
            if answer.outcome is not Outcome.REJECTED:
                break
            wait = max(2 * wait, answer.wait_s)
            log.info("the server is busy: %s", problem, extra={"action": "evaluation.wait"})
        raise BackendError(f"the server drew no picture: {problem}", backend="http", retriable=True)

    def _ask(self, shot: Shot) -> Answer:
        wanted = GenerateRequest(
            request_id="evaluation",
            prompt=shot.prompt.prompt,
            seed=shot.seed,
            steps=int(self.generation["steps"]),
            guidance_scale=float(self.generation["guidance_scale"]),
            width=int(self.generation["width"]),
            height=int(self.generation["height"]),
        )
        try:
            return self._runner.run(self.caller.draw(self.upstream, wanted, self.generation))
        except httpx.HTTPError as error:
            return Answer(outcome=Outcome.REJECTED, error=type(error).__name__)

    @staticmethod
    def _pixels(png: bytes) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(png)) as picture:
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
