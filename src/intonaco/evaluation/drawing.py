"""Draws an arm's images in a process of its own, in the environment that its release names.

A candidate that differs from the champion by its libraries alone can only be judged by pictures
that those libraries drew. If one arm needs another environment, every arm gets a process, so that
their times stay comparable.

The two ends speak over a socket: a JSON request, a JSON answer, and the pictures as one .npy.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from intonaco.environments import EnvironmentStore, environment_lock
from intonaco.environments.build import FLAGS, variables
from intonaco.errors import BackendError, IntonacoError
from intonaco.evaluation.prompts import Shot, as_rows, of_rows
from intonaco.evaluation.sampling import Images, Sampler
from intonaco.types import Json

log = logging.getLogger(__name__)

MODULE = "intonaco.evaluation.drawing"
END_S = 10.0


@dataclass(slots=True)
class ApartSampler:
    """A sampler whose pipeline is loaded in another process. Raises BackendError with what the
    other process says, or that it ended."""

    process: subprocess.Popen[bytes]
    connection: Connection
    tensor_bytes: int = 0

    @classmethod
    def start(
        cls,
        folder: Path,
        generation: Mapping[str, Json],
        *,
        dtype: str,
        device: str,
        threads: int,
        environments: EnvironmentStore,
        environment: str,
    ) -> ApartSampler:
        """Build the environment if need be, start the process there, load. Raises NotFound,
        BackendError."""
        python = environments.build(environment)
        here = environment == environment_lock()
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [str(python), *(() if here else FLAGS), "-m", MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=None if here else variables(environments.code()),
                pass_fds=(theirs.fileno(),),
            )
        sampler = cls(process, Connection(ours.detach()))
        try:
            loaded = sampler._ask(
                {
                    "folder": str(folder.resolve()),
                    "generation": dict(generation),
                    "dtype": dtype,
                    "device": device,
                    "threads": threads,
                }
            )
        except BaseException:
            sampler.close()
            raise
        sampler.tensor_bytes = int(loaded["tensor_bytes"])
        return sampler

    def __call__(self, shots: Sequence[Shot]) -> Images:
        """Images uint8 [n, height, width, 3] of one batch."""
        self._ask({"draw": as_rows(shots)})
        images: Images = np.load(io.BytesIO(self._receive()), allow_pickle=False)
        return images

    def seconds(self, shots: Sequence[Shot]) -> float:
        """Time to draw one batch, without the way between the processes."""
        return float(self._ask({"time": as_rows(shots)})["seconds"])

    def close(self) -> None:
        """End the process: it ends by itself when nobody listens."""
        self.connection.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ask(self, request: Mapping[str, Json]) -> Mapping[str, Json]:
        try:
            self.connection.send_bytes(json.dumps(request).encode())
        except OSError as error:
            raise self._ended() from error
        answer: Mapping[str, Json] = json.loads(self._receive())
        if "error" in answer:
            raise BackendError(str(answer["error"]), backend="model", retriable=False)
        return answer

    def _receive(self) -> bytes:
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def _ended(self) -> BackendError:
        try:
            code: int | str = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            code = "no code yet"
        return BackendError(
            f"the process that draws the images ended ({code}); its log is the job's",
            backend="model",
            retriable=False,
        )


# ------------------------------------------------------------------------------- the other process


def serve(connection: Connection) -> None:
    """Load what the first request names, then draw until nobody listens."""
    sampler: Sampler | None = None
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        images: Images | None = None
        answer: dict[str, Json] = {}
        try:
            if sampler is None:
                torch.set_num_threads(int(request["threads"]))
                sampler = Sampler.load(
                    Path(request["folder"]),
                    request["generation"],
                    dtype=request["dtype"],
                    device=request["device"],
                )
                answer["tensor_bytes"] = sampler.tensor_bytes
            elif "draw" in request:
                images = sampler(of_rows(request["draw"]))
            else:
                answer["seconds"] = sampler.seconds(of_rows(request["time"]))
        except IntonacoError as error:
            answer["error"] = str(error)
        except Exception as error:
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        connection.send_bytes(json.dumps(answer).encode())
        if images is not None:
            out = io.BytesIO()
            np.save(out, images, allow_pickle=False)
            connection.send_bytes(out.getvalue())


def main() -> None:
    """The process: ``python -m intonaco.evaluation.drawing DESCRIPTOR``."""
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("descriptor", type=int)
    logging.basicConfig(level=logging.INFO)
    with Connection(parser.parse_args().descriptor) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # torch's threads may not keep it alive
