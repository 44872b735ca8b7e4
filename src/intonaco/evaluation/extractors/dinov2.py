"""DINOv2 of transformers (Oquab et al. 2023): the features of FD-DINOv2 (Stein et al. 2023)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, Dinov2Model

from intonaco.errors import ConfigError
from intonaco.evaluation.extractors.folder import check_digest, check_folder, folder_digest
from intonaco.evaluation.extractors.preparation import ImagePreparation

log = logging.getLogger(__name__)


class Dinov2Extractor:
    """A ``transformers.Dinov2Model`` folder as an ``ImageExtractor``: the class token after the
    last norm, not scaled. ``folder`` holds what ``save_pretrained`` of model and image processor
    write. ``digest``: refuse a folder whose digest is another. ``threads`` is the number of threads
    of the whole process. Raises ConfigError: another kind of model, a file is missing, a pickle is
    there, the digest is wrong."""

    def __init__(
        self, folder: Path, digest: str | None = None, threads: int = 1, *, batch_size: int = 32
    ) -> None:
        check_folder(folder)
        self.digest = folder_digest(folder)
        check_digest(folder, self.digest, digest)
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind != "dinov2":
            raise ConfigError(
                f"extractor folder {folder} holds a model of type {kind!r}, no dinov2"
            )
        torch.set_num_threads(threads)
        self._model = Dinov2Model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        self._model.eval().requires_grad_(False)
        self._prepare = ImagePreparation(folder)
        self._batch_size = batch_size
        self.preprocessing = self._prepare.identity
        size = self._model.config
        self.name = f"dinov2-{size.hidden_size}-{size.num_hidden_layers}-{size.patch_size}"
        log.info(
            "extractor loaded",
            extra={"action": "extractor_loaded", "extractor": self.name, "digest": self.digest},
        )

    @property
    def dimension(self) -> int:
        """Width of the features."""
        return int(self._model.config.hidden_size)

    @torch.inference_mode()
    def images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Rows [n, d] of PIL images or uint8 arrays [h, w, 3]."""
        rows = [np.zeros((0, self.dimension), dtype=np.float32)]
        for i in range(0, len(images), self._batch_size):
            out = self._model(pixel_values=self._prepare(images[i : i + self._batch_size]))
            rows.append(out.pooler_output.float().numpy())
        return np.concatenate(rows)
