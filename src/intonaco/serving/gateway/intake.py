"""Bodies, read into memory within limits: JSON, and multipart forms (parsed by python-multipart).

Nothing is decompressed: a body with a content encoding is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from intonaco.messages import ApiError
from intonaco.serving.gateway.problems import BUSY, Refused, invalid, too_large
from intonaco.serving.http import BodyTooLarge, body

T = TypeVar("T")
Take = Callable[[int], None]

MOST_PARTS = 40
MOST_HEADERS = 8  # of a part
LONGEST_HEADER = 4096
LONGEST_BOUNDARY = 200  # RFC 2046 has 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Text fields, and files by field name. ``image[]`` is told as ``image``."""

    fields: Mapping[str, str]
    files: Mapping[str, tuple[bytes, ...]]


@dataclass(slots=True)
class _Reader:
    """Callbacks of the parser. What is wrong with a part is kept until the parser returns."""

    text_limit: int
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)
    parts: int = 0
    ended: bool = False
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: bytes = b""
    _value: bytes = b""
    _name: str = ""
    _file: bool = False
    _data: bytearray = field(default_factory=bytearray)
    _text: int = 0

    def on_part_begin(self) -> None:
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise invalid(None, f"The form has over {MOST_PARTS} parts.")
        self._headers, self._data = {}, bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        raw = options.get(b"name")
        if raw is None:
            raise invalid(None, "A part of the form has no name.")
        self._name = _text(raw, "name of a part").removesuffix("[]")
        self._file = b"filename" in options

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._file:
            self._text += end - start
            if self._text > self.text_limit:
                raise too_large(self.text_limit)
        self._data += data[start:end]

    def on_part_end(self) -> None:
        if self._file:
            self.files.setdefault(self._name, []).append(bytes(self._data))
        elif self._name in self.fields:
            raise invalid(self._name, f"'{self._name}' is given twice.")
        else:
            self.fields[self._name] = _text(self._data, f"'{self._name}'")
        self._data = bytearray()

    def on_end(self) -> None:
        self.ended = True


@dataclass(slots=True)
class Receiving:
    """Bounds the bytes of bodies that are held at the same time, whoever sends them: a bound on
    each body alone would let slow senders hold as many bodies as there are connections. What has
    arrived counts, not what is announced, so that nobody takes the room by a header."""

    limit: int
    held: int = 0

    @contextmanager
    def room(self) -> Iterator[Take]:
        """For one body; given back at the end. Raises Refused (429) where none is left, before a
        byte is read; so does what it gives, when told how many bytes came."""
        own = 0

        def take(size: int) -> None:
            nonlocal own
            if self.held + size > self.limit:
                raise Refused(BUSY, 429, retry_after=1)
            self.held += size
            own += size

        if self.held >= self.limit:
            raise Refused(BUSY, 429, retry_after=1)
        try:
            yield take
        finally:
            self.held -= own


async def in_time(seconds: float, reading: Awaitable[T]) -> T:
    """What was read. Raises Refused (408) when it takes longer, as who sends a byte a minute would
    hold what was read before for ever."""
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError:
        message = f"The body did not arrive within {seconds:g} s."
        raise Refused(ApiError(message=message, code="body_too_slow"), 408) from None


def _text(raw: bytes | bytearray, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(None, f"The {what} is not UTF-8.", "invalid_multipart") from None


def _malformed(why: str) -> Refused:
    return invalid(None, f"The body is not valid multipart/form-data: {why}.", "invalid_multipart")


async def read_json(request: Request, limit: int, take: Take | None = None) -> bytes:
    """The bytes of a body that is said to be JSON (or nothing is said). Raises Refused,
    ClientDisconnect."""
    _expect(request, "application/json", limit)
    try:
        return await body(request, limit, take)
    except BodyTooLarge:
        raise too_large(limit) from None


def _expect(request: Request, wanted: str, limit: int) -> None:
    """Raises Refused before a byte of the body is read, as far as the headers tell."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    json = wanted == "application/json" and (not given or given.endswith("+json"))
    if given != wanted and not json:
        raise _unsupported(f"The content type must be {wanted}, got {given[:80] or 'none'!r}.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise _unsupported("Compressed bodies are not taken; send it as it is.")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise invalid(None, "The content length is no number.")
    if len(length) > 18 or int(length) > limit:
        raise too_large(limit)


def _unsupported(message: str) -> Refused:
    return Refused(ApiError(message=message, code="unsupported_media_type"), 415)


async def read_form(request: Request, *, limit: int, text_limit: int, take: Take) -> Form:
    """The form of a request: at most ``limit`` bytes in all, ``text_limit`` in its text fields.
    Raises Refused, ClientDisconnect."""
    _expect(request, "multipart/form-data", limit)
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise _malformed("its content type names no boundary")
    reader = _Reader(text_limit)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reader.on_part_begin,
            "on_part_data": reader.on_part_data,
            "on_part_end": reader.on_part_end,
            "on_header_field": reader.on_header_field,
            "on_header_value": reader.on_header_value,
            "on_header_end": reader.on_header_end,
            "on_headers_finished": reader.on_headers_finished,
            "on_end": reader.on_end,
        },
        max_header_count=MOST_HEADERS,
        max_header_size=LONGEST_HEADER,
    )
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        take(len(chunk))
        try:
            parser.write(chunk)
        except FormParserError:
            raise _malformed("a part cannot be read") from None
    if not reader.ended:
        raise _malformed("it is cut short")
    return Form(fields=reader.fields, files={k: tuple(v) for k, v in reader.files.items()})
