from __future__ import annotations

import base64
import json

from intonaco.serving.gateway.body import images_body
from intonaco.types import Json


def test_it_is_the_json_that_it_stands_for() -> None:
    raw = bytes(range(256)) * 50
    fields = {"created": 1, "model": 'a "model" ü'}
    images: list[tuple[dict[str, Json], bytes | None]] = [
        ({"seed": 7}, raw),
        ({"url": "http://x", "seed": 8}, None),
        ({}, b""),
    ]
    assert json.loads(images_body(fields, images)) == {
        **fields,
        "data": [
            {"b64_json": base64.b64encode(raw).decode(), "seed": 7},
            {"url": "http://x", "seed": 8},
            {"b64_json": ""},
        ],
    }
    assert json.loads(images_body({}, [])) == {"data": []}
