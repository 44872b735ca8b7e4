"""What a picture's header says of its size, read before anything is decompressed.

PNG: W3C PNG (third edition), 5.2-5.3 and 11.2. JPEG: ITU-T T.81, B.1-B.2. WebP: RFC 9649, 2-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_START = PNG_SIGNATURE + b"\0\0\0\rIHDR"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# Chunks that decide pixels or their orientation. The others (texts, profiles, animation) are left
# out: some of them are compressed, and none of them is wanted.
PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"})
MOST_CHUNKS = 100_000
MOST_SCANS = 64  # of a progressive JPEG; encoders write about ten

_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


class Unreadable(Exception):
    """The picture cannot be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """``data``: the picture without what is not wanted of it."""

    kind: Literal["PNG", "JPEG", "WEBP"]
    width: int
    height: int
    data: bytes


def read_header(data: bytes) -> Header:
    """Raises Unreadable: no PNG, JPEG or WebP, animated, or its structure is cut short."""
    if data.startswith(PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    raise Unreadable("is no PNG, JPEG or WebP")


def is_whole_png(data: bytes) -> bool:
    """Whether it begins and ends as a PNG does: what a worker that broke off, or something that is
    no worker, does not send. No pixel is looked at."""
    return data.startswith(PNG_START) and data.endswith(PNG_END)


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG that is known to be one."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def _png(data: bytes) -> Header:
    view = memoryview(data)
    at, kept, chunks = len(PNG_SIGNATURE), [view[: len(PNG_SIGNATURE)]], 0
    width = height = 0
    kind = b""
    while kind != b"IEND":
        length = int.from_bytes(view[at : at + 4])
        kind = bytes(view[at + 4 : at + 8])
        end = at + 12 + length
        chunks += 1
        if end > len(data) or chunks > MOST_CHUNKS:
            raise Unreadable("is cut short")
        if chunks == 1:
            if kind != b"IHDR" or length != 13:
                raise Unreadable("is no valid PNG")
            width, height = png_size(data)
        if kind == b"acTL":
            raise Unreadable("is animated; send one picture")
        if kind in PNG_KEPT:
            kept.append(view[at:end])
        at = end
    return Header(kind="PNG", width=width, height=height, data=b"".join(kept))


def _jpeg(data: bytes) -> Header:
    if data.count(b"\xff\xda") > MOST_SCANS:
        raise Unreadable("has too many scans; save it as a plain JPEG")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise Unreadable("is no valid JPEG")
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _SOF and at + 9 <= len(data):
            height = int.from_bytes(data[at + 5 : at + 7])
            width = int.from_bytes(data[at + 7 : at + 9])
            return Header(kind="JPEG", width=width, height=height, data=data)
        elif marker in (0xDA, 0xD9):
            break
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise Unreadable("is cut short")


def _webp(data: bytes) -> Header:
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise Unreadable("is cut short")
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise Unreadable("is animated; send one picture")
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    elif kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    else:
        raise Unreadable("is no valid WebP")
    return Header(kind="WEBP", width=width, height=height, data=data)
