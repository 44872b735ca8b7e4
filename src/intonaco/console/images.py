"""Pictures of the workspace, and nothing else of it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.responses import Response

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


def answer(root: Path, path: str) -> Response:
    """The picture at ``path`` under ``root``. Raises HTTPException 404."""
    file = find(root, path)
    try:
        content = None if file is None else file.read_bytes()
    except OSError:  # deleted this moment
        content = None
    if file is None or content is None:
        raise HTTPException(404, "no such picture")
    return Response(
        content,
        media_type=PICTURES[file.suffix.lower()],
        headers={"cache-control": "private, max-age=3600"},
    )


def url(path: str) -> str | None:
    """Where the console shows a picture that the ledger names ``images/…``."""
    if not path.startswith("images/"):
        return None
    return "/" + quote(path)
