"""A TorchScript file, run in a process of its own.

TorchScript is code: loading it can read files and use the network as whoever loads it can. So it is
never loaded here, only by configuration that names it (``type: torchscript``) and pins its sha256,
and in a child that gets no environment, an empty folder, no descriptor but its pipes, no right to
write files, and bounded time. That keeps tokens and this process's memory from it. It is no
sandbox: it runs as the same user. Where there is a choice, save the weights as safetensors instead.
"""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intonaco.errors import BackendError, ConfigError
from intonaco.evaluation.extractors.folder import check_digest
from intonaco.evaluation.extractors.resizing import RESIZES, rgb
from intonaco.sources import file_digest

log = logging.getLogger(__name__)
CHILD = Path(__file__).with_name("torchscript_child.py")
BACKEND = "torchscript"
KEPT = ("LD_LIBRARY_PATH", "SYSTEMROOT")  # without these some machines cannot load torch


class TorchScriptExtractor:
    """A TorchScript module as an ``ImageExtractor``. It gets pixels [n, 3, side, side], float32 in
    0 ... 255 (and ``return_features=True`` if it takes that, as NVIDIA's ``inception-2015-12-05``
    does), and answers features [n, d] or [n, d, 1, 1].

    ``file``, with the sha256 ``digest``, which is required. ``resize`` as of Inception, to
    ``side``. ``seconds`` for one call of ``images``. Raises ConfigError; ``images`` raises
    BackendError.
    """

    def __init__(
        self,
        file: Path,
        digest: str | None = None,
        threads: int = 1,
        *,
        resize: str = "clean",
        side: int = 299,
        batch_size: int = 16,
        seconds: float = 3600.0,
    ) -> None:
        if digest is None:
            raise ConfigError(
                "extractor.digest is required for TorchScript, which is code",
                hint=f"`sha256sum {file}`, if its origin is trusted",
            )
        if resize not in RESIZES:
            raise ConfigError(f"extractor.options.resize: {resize!r}; known: {', '.join(RESIZES)}")
        if not file.is_file():
            raise ConfigError(f"extractor.path {file} does not exist")
        self.digest = file_digest(file)
        check_digest(file, self.digest, digest)
        self._file, self._resize, self._side = file.resolve(), RESIZES[resize], side
        self._threads, self._batch_size, self._seconds = threads, batch_size, seconds
        self.name = file.stem
        self.preprocessing = f"rgb {resize}-{side}x{side}"

    def images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Rows [n, d] of PIL images or uint8 arrays [h, w, 3]; at least one."""
        if not images:
            raise ValueError("no images: how wide features are is known from an answer only")
        pixels = torch.stack([self._resize(rgb(image), self._side) for image in images])
        with tempfile.TemporaryDirectory(prefix="intonaco-torchscript-") as folder:
            given = Path(folder) / "pixels.npy"
            np.save(given, pixels.numpy())
            answer = self._run(given)
        try:
            rows = np.lib.format.read_array(io.BytesIO(answer), allow_pickle=False)
        except ValueError as error:
            raise self._failed(f"answered no array: {error}") from error
        if rows.ndim != 2 or len(rows) != len(images) or rows.dtype != np.float32:
            raise self._failed(f"answered {rows.dtype} {list(rows.shape)} to {len(images)} images")
        if not np.isfinite(rows).all():
            raise self._failed("answered values that are not finite")
        return rows

    def _run(self, given: Path) -> bytes:
        command = [sys.executable, "-I", str(CHILD), str(self._file), str(given)]
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        try:
            done = subprocess.run(
                [*command, str(self._batch_size), str(self._threads)],
                cwd=given.parent,
                env={**kept, "HOME": str(given.parent), "OMP_NUM_THREADS": str(self._threads)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._seconds,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"took longer than {self._seconds:.0f} s") from error
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no words"]
            raise self._failed(f"ended with {done.returncode}: {last[0][:500]}")
        log.info(
            "TorchScript module answered",
            extra={"action": "extractor_ran", "extractor": self.name, "digest": self.digest},
        )
        return done.stdout

    def _failed(self, what: str) -> BackendError:
        return BackendError(f"extractor {self._file.name} {what}", backend=BACKEND, retriable=False)
