"""Folders of models: where they are, what they hold, their digest."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from intonaco.codec import digest
from intonaco.errors import ConfigError, StorageError
from intonaco.folders import PICKLES
from intonaco.sources import HUB, file_digest

MODEL = ("config.json", "model.safetensors", "preprocessor_config.json")
WORDS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "spiece.model")


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files, hidden ones left out."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return digest({p.relative_to(folder).as_posix(): file_digest(p) for p in files})


def located(path: str, root: Path, *, hub_cache: Path | None = None) -> Path:
    """A path of the configuration, relative to ``root``; of ``hf://ORG/NAME@COMMIT`` the files that
    an extractor reads, from the Hugging Face cache or the hub. The commit is required: a branch can
    be moved, and all features with it. Raises ConfigError, StorageError."""
    if "://" not in path:
        return root / path
    match = HUB.fullmatch(path)
    if match is None:
        raise ConfigError(
            f"extractor.path {path!r} is neither a folder nor hf://ORG/NAME@COMMIT",
            hint="COMMIT has 40 hexadecimal digits; the model's page on the hub shows it",
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f"{path} needs huggingface_hub", hint="`pip install intonaco[worker]`"
        ) from None
    try:
        return Path(
            snapshot_download(
                match["repo"],
                revision=match["commit"],
                cache_dir=hub_cache,
                allow_patterns=[*MODEL, *WORDS],
            )
        )
    except (OSError, ValueError) as error:  # the hub's errors, offline mode's too, are OSErrors
        first = str(error).strip().partition("\n")[0]
        raise StorageError(
            f"extractor.path {path} cannot be had from the hub: {first}",
            hint="is the name right, is HF_HUB_OFFLINE set, does it need a token (HF_TOKEN)?",
        ) from error


def check_folder(folder: Path, needed: Collection[str] = MODEL) -> None:
    """Raises ConfigError: no such folder, a file that is missing, a pickle."""
    if not folder.is_dir():
        raise ConfigError(
            f"extractor folder {folder} does not exist",
            hint="extractor.path must name a folder that `CLIPModel.save_pretrained` wrote, with "
            "its processor",
        )
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"extractor folder {folder} has no {', '.join(missing)}")
    pickles = [p for p in sorted(folder.rglob("*")) if p.suffix in PICKLES]
    if pickles:
        raise ConfigError(f"{pickles[0]} is a pickle, which can run code when it is loaded")


def check_digest(what: Path, found: str, pinned: str | None) -> None:
    """Raises ConfigError unless it is the pinned one, if one is."""
    if pinned is not None and pinned != found:
        raise ConfigError(
            f"extractor {what} has the digest {found}, {pinned} is configured",
            hint="scores of different extractors cannot be compared: put the pinned one back, "
            "or set extractor.digest and let the monitors learn what is normal again",
        )
