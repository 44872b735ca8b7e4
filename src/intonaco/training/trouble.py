"""A full disk and exhausted memory, in words that name the field to change."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from intonaco.config import Recipe
from intonaco.errors import BackendError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def storage(what: str, field: str, *more: type[Exception]) -> Iterator[None]:
    """Tell of a disk that cannot be written or read. ``field``: of the configuration, that says how
    much lies there. ``more``: other errors to be told likewise. Raises StorageError."""
    try:
        yield
    except Exception as error:
        full = is_full(error)
        if not full and not isinstance(error, (OSError, *more)):
            raise
        raise StorageError(
            f"{what}: {'the disk is full' if full else str(error)}",
            hint=f"free some space, or lower {field}; what was written before is whole"
            if full
            else None,
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room on the disk (safetensors wraps the system's)."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error)
    return any(f"os error {code}" in text for code in _FULL)


@contextmanager
def memory(recipe: Recipe) -> Iterator[None]:
    """Tell of exhausted memory, of a GPU's or of this machine's. Raises BackendError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the GPU" if "CUDA" in str(error) else "the machine"
        raise BackendError(
            f"{where} ran out of memory at batch_size {recipe.batch_size} in "
            f"{recipe.processes * recipe.accumulation} parts",
            backend="training",
            retriable=False,
            hint=_less_memory(recipe),
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "DefaultCPUAllocator" in text or "bad_alloc" in text or "out of memory" in text.lower()
    )


def _less_memory(recipe: Recipe) -> str:
    """What helps, cheapest first."""
    parts = recipe.processes * recipe.accumulation
    ways = []
    if parts < recipe.batch_size:
        ways.append(f"raise accumulation (now {recipe.accumulation}): the result stays the same")
    if not recipe.gradient_checkpointing:
        ways.append("set gradient_checkpointing: true")
    if recipe.precision == "float32":
        ways.append("set precision: bfloat16")
    if recipe.optimizer == "adamw":
        ways.append("set optimizer: adamw_8bit")
    if recipe.method == "full":
        ways.append("train a LoRA (method: lora)")
    ways.append("lower resolution or batch_size")
    return "in the recipe, " + "; or ".join(ways)
