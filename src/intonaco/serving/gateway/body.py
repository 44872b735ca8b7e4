"""JSON around pictures.

A picture of 1.5 MB is two million characters of base64. They need no escaping, so the JSON text is
put together around the bytes that the encoder gives; ``json.dumps`` would look at every character.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pybase64

from intonaco.types import Json


def images_body(
    fields: Mapping[str, Json], images: Sequence[tuple[Mapping[str, Json], bytes | None]]
) -> bytes:
    """``{**fields, "data": [{"b64_json": ..., **own}, ...]}`` as JSON in UTF-8. An image without
    bytes has its own fields only."""
    parts = [_dumps(fields)[:-1], b', "data": [' if fields else b'"data": [']
    for i, (own, raw) in enumerate(images):
        if i:
            parts.append(b", ")
        if raw is None:
            parts.append(_dumps(own))
        else:
            rest = _dumps(own)[1:]
            comma = b"" if rest == b"}" else b", "
            parts += [b'{"b64_json": "', pybase64.b64encode(raw), b'"', comma, rest]
    parts.append(b"]}")
    return b"".join(parts)


def _dumps(value: Mapping[str, Json]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
