"""Inception-v3: the features of FID and KID, the logits of the Inception score."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from intonaco.errors import ConfigError
from intonaco.evaluation.extractors.folder import check_digest
from intonaco.evaluation.extractors.inception_network import Inception
from intonaco.evaluation.extractors.resizing import RESIZES, rgb
from intonaco.sources import file_digest

log = logging.getLogger(__name__)
SIDE = 299
OUTPUTS = {"features": 2048, "logits": 1008}


class InceptionExtractor:
    """A state dict of ``pt_inception-2015-12-05`` in safetensors as an ``ImageExtractor``.

    ``file``: the weights. The published file is a pickle; turn it into safetensors once, where its
    origin is trusted: ``save_file(torch.load(path, weights_only=True), "inception.safetensors")``.
    ``digest``: refuse a file whose sha256 is another. ``resize``: "clean", "pytorch" or
    "tensorflow1", whose numbers must not be compared. ``output``: "features" [n, 2048] or "logits"
    [n, 1008] (without bias). ``threads`` is the number of threads of the whole process. Raises
    ConfigError.
    """

    def __init__(
        self,
        file: Path,
        digest: str | None = None,
        threads: int = 1,
        *,
        resize: str = "clean",
        output: str = "features",
        batch_size: int = 16,
    ) -> None:
        if resize not in RESIZES:
            raise ConfigError(f"extractor.options.resize: {resize!r}; known: {', '.join(RESIZES)}")
        if output not in OUTPUTS:
            raise ConfigError(f"extractor.options.output: {output!r}; known: {', '.join(OUTPUTS)}")
        if file.suffix != ".safetensors" or not file.is_file():
            raise ConfigError(
                f"extractor.path {file} is no safetensors file that exists",
                hint="a pickle can run code when it is loaded: save its state dict as safetensors",
            )
        self.digest = file_digest(file)
        check_digest(file, self.digest, digest)
        torch.set_num_threads(threads)
        self._model = _load(file)
        self._resize, self._output, self._batch_size = RESIZES[resize], output, batch_size
        # torch-fidelity and clean-fid scale alike, by 128; pytorch-fid to 0 ... 1 and then by 2
        self._pytorch = resize == "pytorch"
        scaling = "times 2/255 minus 1" if self._pytorch else "minus 128 over 128"
        self.preprocessing = f"rgb {resize}-{SIDE}x{SIDE} {scaling}"
        self.name = "inception-v3" if output == "features" else "inception-v3-logits"
        log.info(
            "extractor loaded",
            extra={"action": "extractor_loaded", "extractor": self.name, "digest": self.digest},
        )

    @property
    def dimension(self) -> int:
        """Width of the features."""
        return OUTPUTS[self._output]

    @torch.inference_mode()
    def images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Rows [n, d] of PIL images or uint8 arrays [h, w, 3], of any sizes."""
        rows = [np.zeros((0, self.dimension), dtype=np.float32)]
        for i in range(0, len(images), self._batch_size):
            batch = images[i : i + self._batch_size]
            pixels = torch.stack([self._resize(rgb(image), SIDE) for image in batch])
            pixels = 2.0 * (pixels / 255.0) - 1.0 if self._pytorch else (pixels - 128.0) / 128.0
            features, logits = self._model(pixels)
            rows.append((features if self._output == "features" else logits).numpy())
        return np.concatenate(rows)


def _load(file: Path) -> Inception:
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"extractor.path {file} cannot be read: {error}") from error
    with torch.device("meta"):
        model = Inception()
    model.to_empty(device="cpu")
    wanted = model.state_dict()
    # how many batches a normalisation saw decides nothing, and some files leave it out
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    unknown, missing = weights.keys() - wanted.keys(), wanted.keys() - counters - weights.keys()
    others = {n for n, w in weights.items() if n in wanted and w.shape != wanted[n].shape}
    strange = {n for n, w in weights.items() if not w.isfinite().all()}
    for what, names in (
        ("also has", unknown),
        ("has in another shape", others),
        ("has values that are not finite in", strange),
        ("lacks", missing),
    ):
        if names:
            raise ConfigError(
                f"extractor.path {file} {what} {len(names)} tensors, such as {min(names)}",
                hint="needed is the state dict of pt_inception-2015-12-05 (pytorch-fid)",
            )
    model.load_state_dict({n: w for n, w in weights.items() if n not in counters}, strict=False)
    return model.eval().requires_grad_(False)
