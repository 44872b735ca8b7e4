"""CLIP of transformers: images and prompts in one space of unit vectors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, CLIPModel

from intonaco.evaluation.extractors.folder import check_digest, check_folder, folder_digest
from intonaco.evaluation.extractors.preparation import ImagePreparation

log = logging.getLogger(__name__)
Features = NDArray[np.float32]


class ClipExtractor:
    """A ``transformers.CLIPModel`` folder as a ``FeatureExtractor``.

    ``folder`` holds what ``save_pretrained`` of model, tokenizer and image processor write.
    ``digest``: refuse a folder whose digest is another. ``threads`` is the number of threads of the
    whole process. Raises ConfigError: a file is missing, a pickle is there, the digest is wrong.
    """

    def __init__(
        self, folder: Path, digest: str | None = None, threads: int = 1, *, batch_size: int = 64
    ) -> None:
        check_folder(folder)
        self.digest = folder_digest(folder)
        check_digest(folder, self.digest, digest)
        torch.set_num_threads(threads)
        self._model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._model.eval().requires_grad_(False)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._prepare = ImagePreparation(folder)
        self.preprocessing = self._prepare.identity
        self._batch_size = batch_size
        self._max_length = int(self._model.config.text_config.max_position_embeddings)
        self.name: str = getattr(self._model.config, "extractor_name", None) or folder.name
        log.info(
            "extractor loaded",
            extra={"action": "extractor_loaded", "extractor": self.name, "digest": self.digest},
        )

    @property
    def dimension(self) -> int:
        """Width of the features."""
        return int(self._model.config.projection_dim)

    @torch.inference_mode()
    def images(self, images: Sequence[Any]) -> Features:
        """Unit rows [n, d] of PIL images or uint8 arrays [h, w, 3]."""
        rows = [
            _unit(self._model.get_image_features(pixel_values=self._prepare(images[i:j])))
            for i, j in self._batches(len(images))
        ]
        return self._stack(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Features:
        """Unit rows [n, d] of prompts; one that is too long is cut."""
        rows = []
        for i, j in self._batches(len(texts)):
            tokens = self._tokenizer(
                list(texts[i:j]),
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            out = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            rows.append(_unit(out))
        return self._stack(rows)

    def _batches(self, n: int) -> list[tuple[int, int]]:
        return [(i, min(i + self._batch_size, n)) for i in range(0, n, self._batch_size)]

    def _stack(self, rows: list[Features]) -> Features:
        if not rows:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.concatenate(rows)


def _unit(out: Any) -> Features:
    # transformers 5 wraps what 4 returned as a tensor
    projected = out if isinstance(out, torch.Tensor) else out.pooler_output
    unit = torch.nn.functional.normalize(projected.float(), dim=-1)
    return cast(Features, unit.numpy())
