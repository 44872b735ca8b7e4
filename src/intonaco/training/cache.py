"""A dataset as the denoiser sees it: latents and text embeddings, encoded once, kept on disk.

``CACHE/KEY/`` holds safetensors (in parts of a few hundred MB, mapped into memory and not read in)
and ``index.json``. The key is a digest of all that the content depends on: the items, the
autoencoder, the text encoders, the shapes, the libraries. A folder is written beside its place and
renamed into it; who else needs the same one waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from intonaco.config import Recipe
from intonaco.training.families import Family, Tensors
from intonaco.training.items import (
    Captioned,
    Shape,
    load_images,
    shapes_of,
    sort_into,
)
from intonaco.training.trouble import storage
from intonaco.workspace import write_json

log = logging.getLogger(__name__)

VERSION = 1
_PART_BYTES = 256 * 2**20
_PIXELS_AT_ONCE = 2**22  # of the autoencoder: 16 pictures of 512 x 512

Report = Callable[[int, int], None]


class Rows:
    """One tensor [n, …] whose rows lie in several files."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self.begins = [0]
        for part in parts:
            self.begins.append(self.begins[-1] + len(part))

    def __len__(self) -> int:
        return self.begins[-1]

    def take(self, rows: Tensor) -> Tensor:
        """Rows [b] as a tensor [b, …]."""
        if len(self.parts) == 1:
            return self.parts[0][rows]
        where = torch.bucketize(rows, torch.tensor(self.begins[1:]), right=True).tolist()
        pairs = zip(where, rows.tolist(), strict=True)
        return torch.stack([self.parts[part][row - self.begins[part]] for part, row in pairs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Items of one shape. ``choices[i, :counts[i]]``: the rows of the texts of item i."""

    shape: Shape
    means: Rows  # [n, c, h, w], of the posterior, as the denoiser takes them
    deviations: Rows  # [n, c, h, w]
    frames: Tensor  # [n, 6]
    choices: Tensor  # [n, most texts of an item]
    counts: Tensor  # [n]

    def __len__(self) -> int:
        return len(self.means)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """On the CPU, mapped from disk. ``texts``: by the names of the family's conditions."""

    buckets: tuple[Bucket, ...]
    texts: dict[str, Rows]  # [distinct texts, …]
    empty: dict[str, Tensor]  # [1, …]

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)


def cached(
    root: Path,
    family: Family,
    items: Sequence[Captioned],
    recipe: Recipe,
    *,
    dataset: str | None = None,
    limit_bytes: float = float("inf"),
    report: Report = lambda done, total: None,
) -> Cache:
    """The cache of these items, from ``root`` if it is there, else made there.

    ``dataset``: the id of the dataset version; the files themselves are digested if it is not
    known. ``report`` gets (items encoded, items). Raises ConfigError for a file that is no image,
    StorageError when the disk is full.
    """
    with storage(f"the cache of latents in {root}", "training.cache_gb"):
        root.mkdir(parents=True, exist_ok=True)
        key = cache_key(family, items, recipe, dataset)
    folder = root / key
    with locked(root / f"{key}.lock"):
        if not whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".{key}-"))
            try:
                with storage(f"the cache of latents in {root}", "training.cache_gb"):
                    encode(family, items, recipe, temporary, report)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        os.utime(folder)
        cache = open_cache(folder)
    _prune(root, keep=key, limit_bytes=limit_bytes)
    return cache


def cache_key(
    family: Family, items: Sequence[Captioned], recipe: Recipe, dataset: str | None
) -> str:
    """Digest of all that the content of a cache depends on."""
    told: dict[str, Any] = {
        "version": VERSION,
        "family": type(family).__name__,
        "libraries": [diffusers.__version__, transformers.__version__, torch.__version__],
        "device": family.device.type,
        "models": models_digest(family),
        "shapes": [[s.width, s.height] for s in shapes_of(family, recipe)],
        "max_text_tokens": recipe.max_text_tokens,
        "precision": recipe.precision,
        "dataset": dataset or _items_digest(items),
        "items": len(items),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def models_digest(family: Family) -> str:
    """sha256 of the autoencoder and of everything that reads text: tensors and settings, and
    tokenizers' files."""
    seen = hashlib.sha256()
    for name, part in sorted(family.pipeline.components.items()):
        if name != "vae" and not name.startswith(("text_encoder", "tokenizer")):
            continue
        seen.update(f"{name} {type(part).__name__} {_settings(part)}".encode())
        if isinstance(part, torch.nn.Module):
            for key, value in sorted(part.state_dict().items()):
                seen.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                seen.update(raw.numpy().data)
        elif part is not None:
            with tempfile.TemporaryDirectory() as temporary:
                part.save_pretrained(temporary)
                for file in sorted(Path(temporary).rglob("*")):
                    seen.update(file.name.encode() + _as_made(file))
    # Of the pipeline itself: what its guidance is guided away from.
    seen.update(_settings(family.pipeline).encode())
    seen.update(json.dumps(getattr(family.pipeline, "labels", None)).encode())
    return seen.hexdigest()


def _as_made(file: Path) -> bytes:
    """A tokenizer's file, without how it was last called, which the fast ones keep."""
    raw = file.read_bytes()
    if file.name != "tokenizer.json":
        return raw
    told = json.loads(raw)
    told |= {"truncation": None, "padding": None}
    return json.dumps(told, sort_keys=True).encode()


def _settings(part: Any) -> str:
    """The settings of a part or a pipeline, without its parts and how it was saved."""
    config = getattr(part, "config", None) or {}
    told = dict(config if isinstance(config, Mapping) else config.to_dict())
    other = {"architectures", "transformers_version", "dtype", "torch_dtype"}
    other |= set(getattr(part, "components", ()))
    kept = {k: v for k, v in told.items() if k not in other and not k.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


def _items_digest(items: Sequence[Captioned]) -> str:
    seen = hashlib.sha256()
    for item in items:
        with item.file.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        seen.update(json.dumps([item.file.name, item.texts, content]).encode())
    return seen.hexdigest()


# ------------------------------------------------------------------------------------ making one


@torch.no_grad()
def encode(
    family: Family,
    items: Sequence[Captioned],
    recipe: Recipe,
    folder: Path,
    report: Report = lambda done, total: None,
) -> None:
    """Encode all items and every distinct text once, into an empty folder."""
    known: dict[str, int] = {}
    rows = [[known.setdefault(text, len(known)) for text in item.texts] for item in items]
    buckets = []
    done = 0
    for number, (shape, members) in enumerate(sort_into(shapes_of(family, recipe), items).items()):
        parts = _Parts(folder, f"latents-{number:03}")
        frames = []
        size = min(64, max(1, _PIXELS_AT_ONCE // (shape.width * shape.height)))
        for i in range(0, len(members), size):
            files = [items[m].file for m in members[i : i + size]]
            images, cut = load_images(files, shape)
            frames.append(cut)
            parts.add(dict(zip(("mean", "deviation"), posterior(family, images), strict=True)))
            done += len(files)
            report(done, len(items))
        most = max(len(rows[m]) for m in members)
        save_file(
            {
                "frames": torch.cat(frames),
                "choices": torch.tensor([rows[m] + [0] * (most - len(rows[m])) for m in members]),
                "counts": torch.tensor([len(rows[m]) for m in members]),
            },
            folder / f"items-{number:03}.safetensors",
        )
        buckets.append({"width": shape.width, "height": shape.height, "parts": parts.close()})
    texts = _Parts(folder, "texts")
    for i in range(0, len(known), 64):
        texts.add(condition(family, list(known)[i : i + 64], recipe))
    empty = condition(family, None, recipe)
    save_file({n: v.contiguous() for n, v in empty.items()}, folder / "empty.safetensors")
    index = {"version": VERSION, "buckets": buckets, "texts": texts.close()}
    for file in folder.iterdir():
        _sync(file)
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    write_json(folder / "index.json", {**index, "sizes": sizes})
    _sync(folder)


@torch.no_grad()
def posterior(family: Family, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [n, c, h', w'] of the latents of images [n, 3, h, w], on the
    CPU."""
    vae = family.pipeline.vae
    said = vae.encode(images.to(vae.device)).latent_dist
    mean, deviation = family.scaled(said.mean.cpu(), said.std.cpu())
    return mean.contiguous(), deviation.contiguous()


@torch.no_grad()
def condition(family: Family, texts: list[str] | None, recipe: Recipe) -> dict[str, Tensor]:
    """Conditions of texts, or the one of no text, on the CPU; in bfloat16 where that is the
    precision."""
    low = recipe.precision == "bfloat16"
    with torch.autocast(family.device.type, torch.bfloat16, enabled=low):
        said: Tensors = family.empty() if texts is None else family.encode(texts)
    dtype = torch.bfloat16 if low else torch.float32
    return {n: (v.to(dtype) if v.is_floating_point() else v).cpu() for n, v in said.items()}


class _Parts:
    """Rows that are written away whenever they fill a file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.files: list[str] = []
        self.waiting: list[dict[str, Tensor]] = []
        self.bytes = 0

    def add(self, rows: dict[str, Tensor]) -> None:
        self.waiting.append(rows)
        self.bytes += sum(v.numel() * v.element_size() for v in rows.values())
        if self.bytes >= _PART_BYTES:
            self.close()

    def close(self) -> list[str]:
        if self.waiting:
            file = f"{self.name}-{len(self.files):04}.safetensors"
            names = self.waiting[0]
            save_file(
                {n: torch.cat([w[n] for w in self.waiting]) for n in names}, self.folder / file
            )
            self.files.append(file)
            self.waiting, self.bytes = [], 0
        return self.files


# ----------------------------------------------------------------------------------- reading one


def whole(folder: Path) -> bool:
    """Whether a cache is there with all its bytes."""
    try:
        index = json.loads((folder / "index.json").read_text())
        return index["version"] == VERSION and all(
            (folder / name).stat().st_size == size for name, size in index["sizes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def open_cache(folder: Path) -> Cache:
    """Map a whole cache into memory. Raises StorageError if it cannot be read."""
    with storage(f"the cache of latents in {folder}", "training.cache_gb", SafetensorError):
        index = json.loads((folder / "index.json").read_text())
        buckets = []
        for number, told in enumerate(index["buckets"]):
            items = load_file(folder / f"items-{number:03}.safetensors")
            rows = _rows(folder, told["parts"])
            buckets.append(
                Bucket(
                    shape=Shape(told["width"], told["height"]),
                    means=rows["mean"],
                    deviations=rows["deviation"],
                    frames=items["frames"],
                    choices=items["choices"],
                    counts=items["counts"],
                )
            )
        return Cache(
            buckets=tuple(buckets),
            texts=_rows(folder, index["texts"]),
            empty=load_file(folder / "empty.safetensors"),
        )


def _rows(folder: Path, files: Sequence[str]) -> dict[str, Rows]:
    found: dict[str, list[Tensor]] = {}
    for file in files:
        with safe_open(folder / file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no dict)
                found.setdefault(name, []).append(opened.get_tensor(name))
    return {name: Rows(parts) for name, parts in found.items()}


# ------------------------------------------------------------------------------------ the folder


@contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time. Raises BlockingIOError if another has it and there is no waiting."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _prune(root: Path, *, keep: str, limit_bytes: float) -> None:
    """Delete the least recently used until the rest, with ``keep``, is within the limit. Mapped
    files stay readable for the jobs that use them."""
    for leftover in root.glob(".*-*"):  # of a job that was killed while it encoded
        key = leftover.name[1:].rpartition("-")[0]
        with contextlib.suppress(BlockingIOError), locked(root / f"{key}.lock", wait=False):
            shutil.rmtree(leftover, ignore_errors=True)
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    used = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            size = sum(f.stat().st_size for f in folder.iterdir())
            used[folder] = (folder.stat().st_mtime, size)
    total = sum(size for _, size in used.values())
    for folder, (_, size) in sorted(used.items(), key=lambda pair: pair[1]):
        if total <= limit_bytes:
            break
        if folder.name == keep:
            continue
        with (
            contextlib.suppress(BlockingIOError),
            locked(root / f"{folder.name}.lock", wait=False),
        ):
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
            log.info("cache %s deleted", folder.name, extra={"action": "training.cache.prune"})


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
