"""What was trained, written as a pipeline folder, and loaded again to see that it is the same."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor

from intonaco import lora
from intonaco.errors import BackendError
from intonaco.folders import ADAPTERS, read_index
from intonaco.releases import check_folder, link_base
from intonaco.training.families import Family
from intonaco.training.lora import ADAPTER, RELEASED, adapter_state, save_adapter
from intonaco.training.trouble import storage

_JOBS = "the number of jobs and releases kept"


def load_folder(folder: Path) -> Any:
    """A pipeline folder, on the CPU in float32. Raises ConfigError."""
    check_folder(folder)
    # A part that the folder leaves out on purpose (Stable Diffusion 3 without T5) has to be said.
    absent = {name: None for name, value in read_index(folder).items() if value == [None, None]}
    # Said, as transformers would keep text encoders in what they were saved in, and an encoder in
    # float16 beside a denoiser in float32 draws nothing.
    with warnings.catch_warnings():
        # diffusers 0.42 begins to call it `dtype`; 0.36 knows no other name.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch_dtype.*")
        return DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32, **absent
        )


def save_whole(family: Family, expected: Mapping[str, Tensor], folder: Path) -> None:
    """Save the pipeline; its denoiser must then be as ``expected``. Raises BackendError,
    StorageError."""
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = family.pipeline
    with storage(f"the trained pipeline in {folder}", _JOBS, SafetensorError):
        pipeline.save_pretrained(folder, safe_serialization=True)
    verify_saved(folder, {family.component: expected, "vae": pipeline.vae.state_dict()})


def save_beside(family: Family, base: Path, folder: Path) -> None:
    """The base's own files, and the trained adapter beside them. Loaded again and compared: the
    adapter bit by bit, and the weights that it was trained over. Raises BackendError, ConfigError,
    StorageError."""
    shutil.rmtree(folder, ignore_errors=True)
    with storage(f"the trained adapter in {folder}", _JOBS, SafetensorError):
        link_base(base, folder)
        save_adapter(family, folder / ADAPTERS / RELEASED)
    reloaded = load_folder(folder)
    lora.load(reloaded, ADAPTER, folder / ADAPTERS / RELEASED)
    theirs_denoiser = getattr(reloaded, family.component)
    trained, saved = adapter_state(family.denoiser), adapter_state(theirs_denoiser)
    ours, theirs = family.denoiser.state_dict(), theirs_denoiser.state_dict()
    frozen = [name for name in ours if ".lora_" not in name]
    lost = [n for n in trained if n not in saved or not torch.equal(trained[n], saved[n])]
    lost += [n for n in frozen if n not in theirs or not _same(ours[n], theirs[n])]
    if lost or set(saved) != set(trained):
        raise BackendError(
            f"the saved adapter is not the trained one: {len(lost)} tensors differ"
            + (f", {lost[0]} for one" if lost else ""),
            backend="training",
            retriable=False,
        )


def verify_saved(folder: Path, expected: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load the folder again and compare its parts with what was trained (part, then tensor name).

    Raises BackendError that names what got lost: a tensor that is missing, of another shape, or
    further off than fusing an adapter rounds.
    """
    reloaded: Any = load_folder(folder)
    lost = []
    for part, tensors in expected.items():
        saved = getattr(reloaded, part).state_dict()
        for name in sorted(set(tensors) | set(saved)):
            a, b = tensors.get(name), saved.get(name)
            if a is None or b is None or a.shape != b.shape or not _same(a, b):
                lost.append(f"{part}.{name}")
    if lost:
        raise BackendError(
            f"the saved model is not the trained one: {lost[0]} differs"
            + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""),
            backend="training",
            retriable=False,
        )


def _same(trained: Tensor, saved: Tensor) -> bool:
    return torch.allclose(saved, trained.cpu(), rtol=1e-4, atol=1e-5)
