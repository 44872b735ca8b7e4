from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from intonaco.config import Generation
from intonaco.serving.gateway.api import Limits, Wanted, explain, parse
from intonaco.serving.gateway.feedback import FeedbackFields
from intonaco.serving.gateway.problems import Refused
from intonaco.types import Json

LIMITS = Limits(
    models=("digits", "service"),
    generation=Generation(steps=10, guidance_scale=1.5, width=32, height=32),
)


def ask(**fields: Json) -> Wanted:
    return parse(json.dumps({"prompt": "a cat"} | fields).encode(), LIMITS)


def test_openais_fields_are_accepted_and_ours_read() -> None:
    w = ask(
        model="digits",
        n=3,
        size="64x32",
        quality="high",
        background="auto",
        style="vivid",
        moderation="low",
        user="u",
        response_format="url",
        output_format="webp",
        output_compression=80,
        stream=False,
        seed=7,
        steps=20,
        guidance_scale=3,
        negative_prompt="dog",
    )
    assert (w.n, w.size, w.user, w.as_url, w.format) == (3, (64, 32), "u", True, "webp")
    assert (w.seed, w.steps, w.guidance_scale, w.negative_prompt) == (7, 20, 3.0, "dog")


def test_what_is_left_out_is_left_to_us() -> None:
    w = ask(size="auto")
    assert (w.n, w.seed, w.steps, w.guidance_scale, w.size) == (1, None, None, None, None)
    assert not w.as_url


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": 3}, "prompt", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"size": "huge"}, "size", "invalid_value"),
        ({"size": "33x32"}, "size", "invalid_value"),
        ({"size": "1024x1024"}, "size", "invalid_value"),
        ({"steps": 41}, "steps", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"guidance": 3}, "guidance", "unknown_parameter"),
        ({"stream": True, "n": 2}, "n", "invalid_value"),
        ({"stream": True, "response_format": "url"}, "response_format", "invalid_value"),
        ({"stream": True, "partial_images": 4}, "partial_images", "invalid_value"),
        ({"partial_images": 1}, "partial_images", "invalid_value"),
        ({"quality": "superb"}, "quality", "invalid_value"),
        ({"background": "transparent"}, "background", "unsupported_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        ({"strength": 0.5}, "strength", "unknown_parameter"),
        ({"image": "https://example.com/a.png"}, "image", "unknown_parameter"),
        ({"prompt": "a\0b"}, "prompt", "invalid_value"),
        ({"user": "\0"}, "user", "invalid_value"),
        ({"prompt": "x" * 32_001}, "prompt", "invalid_value"),
        ({"model": "dall-e-3"}, "model", "model_not_found"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Json], param: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        ask(**fields)
    assert (caught.value.error.param, caught.value.error.code) == (param, code)


def test_bodies_that_are_no_request() -> None:
    for text, code in [
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"{}", "missing_required_parameter"),
        (b'{"prompt": "x", "guidance_scale": NaN}', "invalid_value"),
    ]:
        with pytest.raises(Refused) as caught:
            parse(text, LIMITS)
        assert caught.value.error.code == code


@pytest.mark.parametrize("text", [b"[]", b'["a cat"]', b'"a cat"', b"7", b"null"])
def test_a_body_that_is_no_object_is_told_so(text: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse(text, LIMITS)
    error = caught.value.error
    assert (error.message, error.param) == ("The body must be a JSON object.", None)
    with pytest.raises(ValidationError) as wrong:
        FeedbackFields.model_validate_json(text)
    assert explain(wrong.value) == error
