"""Pictures of the workspace, and nothing else of it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def find(root: Path, path: str) -> Path | None:
    """The picture at ``path`` under ``root``, None unless it is a file whose real place (links
    followed) is inside ``root``."""
    try:
        home = root.resolve(strict=True)
        file = (home / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    if not file.is_relative_to(home) or file.suffix.lower() not in PICTURES or not file.is_file():
        return None
    return file


def url(path: str) -> str | None:
    """Where the console shows a picture that the ledger names ``images/…``."""
    if not path.startswith("images/"):
        return None
    return "/" + quote(path)
