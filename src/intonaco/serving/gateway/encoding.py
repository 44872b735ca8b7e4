"""Images in the format that the client asked for."""

from __future__ import annotations

import asyncio
import io

from PIL import Image

MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


async def convert(png: bytes, kind: str, compression: int | None) -> bytes:
    """``compression``: OpenAI's name for the encoder's quality in per cent; 100 by default."""
    if kind == "png":
        return png
    return await asyncio.to_thread(_encode, png, kind, compression)


def _encode(png: bytes, kind: str, compression: int | None) -> bytes:
    out = io.BytesIO()
    quality = 100 if compression is None else max(1, compression)
    Image.open(io.BytesIO(png)).convert("RGB").save(out, format=kind.upper(), quality=quality)
    return out.getvalue()
