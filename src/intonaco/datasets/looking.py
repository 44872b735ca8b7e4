"""One look at one image file: what it is, and what is wrong with it. Knows nothing of the others.

Files come from anywhere. Only three decoders are let near them, sizes are bounded before anything
is decoded, and whatever a decoder raises is a finding, never a failure of the check.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from intonaco.config import Kind
from intonaco.monitoring.pictures import perceptual_hash

# Format by suffix. Others are refused unopened: some of Pillow's decoders start other programs.
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
IMAGES = frozenset(SUFFIXES)
FORMATS = ("PNG", "JPEG", "WEBP")
BYTES_A_PIXEL = 8  # of four channels of 16 bits: no image needs more, but for its head
HEAD_BYTES = 2**20
ORIENTATION = 0x0112  # Exif 2.32, table 4: 1 is upright
PNG_END = b"IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"
PNG_DEPTH = 24  # offset of the bit depth (PNG, ISO/IEC 15948, 11.2.2)
OPAQUE = 255
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen. ``hash``: perceptual, of 64 bits in hex; "" if it could not be decoded.
    ``found``: (kind, what a person reads)."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    hash: str = ""
    found: tuple[tuple[Kind, str], ...] = ()


def look(file: Path, max_pixels: int) -> Look:
    """Decode a file in full. Raises nothing: what cannot be read is said in ``found``."""
    try:
        limit = max_pixels * BYTES_A_PIXEL + HEAD_BYTES
        if (size := file.stat().st_size) > limit:
            return Look(found=(("bomb", f"has {size} bytes, more than {max_pixels} pixels need"),))
        raw = file.read_bytes()
    except OSError as error:
        return Look(found=(("unreadable", f"cannot be read: {error.strerror or error}"),))
    digest = hashlib.sha256(raw).hexdigest()
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return Look(sha256=digest, found=((_bomb(f"{width} x {height} pixels")),))
            _whole(raw, image.format)
            image.load()  # `verify` does not notice a truncated file
            return Look(
                sha256=digest,
                width=width,
                height=height,
                hash=perceptual_hash(_plain(image)),
                found=tuple(_found(image, raw, file.suffix.lower())),
            )
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Look(sha256=digest, found=(_bomb(str(error)),))
    except Exception as error:
        # Decoders of damaged files raise anything from struct.error to KeyError and MemoryError.
        text = f"cannot be read as an image: {error or type(error).__name__}"
        return Look(sha256=digest, found=(("unreadable", text),))


def _bomb(detail: str) -> tuple[Kind, str]:
    return "bomb", f"is too large to be decoded: {detail}"


def _whole(raw: bytes, kind: str | None) -> None:
    """Decoders forgive a file that lost its end, if no pixel went with it. Raises ValueError."""
    end = PNG_END if kind == "PNG" else JPEG_END if kind in ("JPEG", "MPO") else b""
    if end not in raw:
        raise ValueError("its end is missing")


def _plain(image: Image.Image) -> Image.Image:
    """As a trainer sees it. By way of RGBA, as Pillow warns of some palettes otherwise."""
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _found(image: Image.Image, raw: bytes, suffix: str) -> Iterator[tuple[Kind, str]]:
    # Cameras put a preview or a second lens behind a JPEG; only its first picture is read.
    kind = "JPEG" if image.format == "MPO" else image.format
    if kind != SUFFIXES.get(suffix):
        yield "suffix", f"is a {kind}, whatever its name says"
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        yield "animated", f"has {getattr(image, 'n_frames', 1)} frames"
    if image.mode == "CMYK":
        yield "cmyk", "is CMYK: its colours are for print"
    if image.mode in DEEP_MODES or (kind == "PNG" and raw[PNG_DEPTH] == 16):
        yield "deep", "has 16 bits a channel: most readers cut it to eight wrongly"
    if image.mode == "P":
        yield "palette", "has a palette of at most 256 colours"
    if _see_through(image):
        yield "alpha", "has see-through pixels: what lies behind them is undefined"
    if (turned := _orientation(image)) not in (0, 1):
        yield "rotated", f"is to be turned when shown (EXIF orientation {turned})"


def _see_through(image: Image.Image) -> bool:
    """Whether a pixel is not opaque. A whole channel of opaque ones does no harm."""
    if "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa"):
        return False
    return any(image.convert("RGBA").getchannel("A").histogram()[:OPAQUE])


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing, and every viewer shows the image as it is
        return 1
