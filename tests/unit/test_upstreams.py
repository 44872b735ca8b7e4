"""Requests in another server's words, and what is made of its answers. Pure."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin
from tests.fixtures_gateway import pixel
from tests.fixtures_upstreams import (
    GENERATION,
    KEY,
    WEBUI,
    add_release,
    facts_file,
    openai,
    opened,
    painted,
)

from intonaco.declared import Upstream
from intonaco.errors import ConfigError, StorageError
from intonaco.messages import GenerateRequest
from intonaco.types import Outcome
from intonaco.upstreams import (
    MOST_WAIT_S,
    Refused,
    Unusable,
    headers_of,
    in_force,
    is_upstream,
    judge,
    plain_png,
    read_facts,
    request_of,
    retry_after,
    unpack,
)
from intonaco.workspace import Workspace

ENVIRON = {"THEIR_KEY": f"{KEY}\n"}
WANTED = GenerateRequest(
    request_id="r", prompt="a $seed cat", seed=7, steps=10, guidance_scale=1.5, width=64, height=64
)
PIXELS = 10_000


def theirs(**changes: Any) -> Upstream:
    return Upstream.model_validate(openai("https://images.example.org") | changes)


def webui(**changes: Any) -> Upstream:
    return Upstream.model_validate({"url": "http://h:7860", **WEBUI, **changes})


def sent(upstream: Upstream, wanted: GenerateRequest = WANTED) -> httpx.Request:
    return request_of(upstream, wanted, GENERATION, ENVIRON)


# ------------------------------------------------------------------------------------ asking


def test_openai_is_asked_in_its_words() -> None:
    request = sent(theirs(request={"quality": "high"}))
    assert str(request.url) == "https://images.example.org/v1/images/generations"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(request.content) == {
        "model": "gpt-image",
        "prompt": "a $seed cat",
        "n": 1,
        "size": "64x64",
        "response_format": "b64_json",
        "quality": "high",
    }
    # Some of its models know neither the field nor our size.
    request = sent(theirs(seed=True, request={"response_format": None, "size": "1024x1024"}))
    assert json.loads(request.content) == {
        "model": "gpt-image",
        "prompt": "a $seed cat",
        "n": 1,
        "size": "1024x1024",
        "seed": 7,
    }


def test_a_mapping_keeps_types_and_fills_nothing_twice() -> None:
    request = sent(webui())
    assert str(request.url) == "http://h:7860/sdapi/v1/txt2img"
    assert json.loads(request.content) == {
        "prompt": "a $seed cat",
        "negative_prompt": "",
        "seed": 7,
        "steps": 10,
        "cfg_scale": 1.5,
        "width": 64,
        "height": 64,
    }
    deep = {"input": [{"text": "<$prompt> for $$5, ${width}px", "n": 1, "s": "$seed"}], "x": None}
    request = sent(webui(request=deep))
    assert json.loads(request.content) == {
        "input": [{"text": "<a $seed cat> for $5, 64px", "n": 1, "s": 7}]
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"negative_prompt": "dogs"}, "negative_prompt"),
        ({"steps": 11}, "'steps'; it always has 10"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"strength": 0.5}, "strength"),
        ({"image": "AA=="}, "takes no image"),
    ],
)
def test_what_cannot_be_told_is_refused_not_ignored(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        sent(theirs(), replace(WANTED, **changes))
    if "image" not in changes and "strength" not in changes:
        assert sent(webui(), replace(WANTED, **changes))


def test_a_size_that_cannot_be_told_is_refused() -> None:
    fixed = webui(request={"prompt": "$prompt", "seed": "$seed"})
    assert sent(fixed)
    with pytest.raises(Refused, match="64x64 alone"):
        sent(fixed, replace(WANTED, width=128))


def test_edits_send_the_picture_and_their_kind_of_mask() -> None:
    image = base64.b64encode(painted((8, 4), (1, 2, 3))).decode()
    where = Image.new("L", (8, 4), 0)
    where.putpixel((3, 2), 255)
    wanted = replace(WANTED, image=image, mask=base64.b64encode(_bytes(where)).decode())
    request = sent(theirs(edits=True), wanted)
    assert str(request.url).endswith("/v1/images/edits")
    request.read()
    parts = _parts(request)
    assert parts["prompt"] == b"a $seed cat"
    assert parts["n"] == b"1"
    assert opened(parts["image"]).getpixel((0, 0)) == (1, 2, 3)
    mask = opened(parts["mask"])
    assert mask.mode == "RGBA"
    alpha = mask.getchannel("A")
    assert (alpha.getpixel((3, 2)), alpha.getpixel((0, 0))) == (0, 255)


def _bytes(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def _parts(request: httpx.Request) -> dict[str, bytes]:
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    found = {}
    for part in request.content.split(b"--" + boundary)[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        found[name] = data.removesuffix(b"\r\n")
    return found


def test_a_header_is_sent_once() -> None:
    request = sent(theirs(headers={"User-Agent": "ours", "X-Api-Key": "env:THEIR_KEY"}))
    assert request.headers.get_list("user-agent") == ["ours"]
    assert request.headers["x-api-key"] == KEY


def test_a_secret_that_is_missing_or_broken_is_named_without_its_value() -> None:
    with pytest.raises(ConfigError, match="THEIR_KEY is not set"):
        headers_of(theirs(), {})
    for value in (f"{KEY}\nx-evil: 1", f"{KEY}\x00", "ключ"):
        with pytest.raises(ConfigError, match="no header may") as caught:
            headers_of(theirs(), {"THEIR_KEY": value})
        assert KEY not in str(caught.value)


# ------------------------------------------------------------------------------------ answers


def body(picture: bytes, **more: Any) -> bytes:
    return json.dumps({"data": [{"b64_json": base64.b64encode(picture).decode()}], **more}).encode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_any_usual_picture_becomes_a_png(kind: str) -> None:
    found = unpack(theirs(), body(painted((16, 8), (200, 100, 50), kind)), PIXELS)
    assert isinstance(found, bytes)
    picture = opened(found)
    assert (picture.format or "PNG", picture.mode, picture.size) == ("PNG", "RGB", (16, 8))
    near = zip(pixel(picture, 3, 3), (200, 100, 50), strict=True)
    assert all(abs(a - b) < 6 for a, b in near)


def test_texts_in_a_picture_are_left_out() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a secret prompt")
    picture = painted((8, 8), (1, 2, 3), pnginfo=info)
    assert b"a secret prompt" in picture
    plain = plain_png(picture, PIXELS)
    assert b"a secret prompt" not in plain
    assert opened(plain).getpixel((0, 0)) == (1, 2, 3)


def test_transparent_parts_become_white() -> None:
    assert opened(plain_png(painted((8, 8), (1, 2, 3, 0)), PIXELS)).getpixel((0, 0)) == (
        255,
        255,
        255,
    )


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert opened(plain_png(painted((16, 8), (9, 9, 9), "JPEG", exif=exif), PIXELS)).size == (8, 16)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"{}", "where the declaration says"),
        (b'{"data": []}', "where the declaration says"),
        (b'{"data": [{"b64_json": 5}]}', "where the declaration says"),
        (b'{"data": [{"b64_json": "***"}]}', "no base64"),
        (b'{"data": [{"b64_json": "aGVsbG8="}]}', "cannot be decoded"),
        (b'{"data": [{"url": "https://images.example.org/x.png"}]}', "fetch_own_urls is false"),
    ],
)
def test_an_answer_that_holds_no_picture(answer: bytes, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        unpack(theirs(), answer, PIXELS)


def test_a_picture_that_is_too_large_is_not_decoded() -> None:
    with pytest.raises(Unusable, match="over 10000 pixels"):
        plain_png(painted((101, 100), (0, 0, 0)), PIXELS)
    with pytest.raises(Unusable, match="cannot be decoded"):
        plain_png(painted((50, 50), (0, 0, 0), "JPEG")[:-200], PIXELS)
    with pytest.raises(Unusable, match="cannot be decoded"):
        plain_png(painted((50, 50), (0, 0, 0), "GIF"), PIXELS)


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("https://images.example.org/x.png?sig=1", "https://images.example.org/x.png?sig=1"),
        ("/x.png", "https://images.example.org/x.png"),
        ("https://images.example.org:8443/x.png", None),
        ("http://images.example.org/x.png", None),
        ("https://images.example.org.evil.net/x.png", None),
        ("https://u:p@images.example.org/x.png", None),
        ("//169.254.169.254/latest", None),
        ("file:///etc/passwd", None),
        ("https://[", None),
    ],
)
def test_only_addresses_on_its_own_host_are_fetched(address: str, taken: str | None) -> None:
    upstream = theirs(fetch_own_urls=True)
    answer = json.dumps({"data": [{"url": address}]}).encode()
    if taken is None:
        with pytest.raises(Unusable, match=r"on another host|is none"):
            unpack(upstream, answer, PIXELS)
    else:
        assert unpack(upstream, answer, PIXELS) == taken


def test_a_picture_inside_its_address_needs_no_fetching() -> None:
    text = "data:image/png;base64," + base64.b64encode(painted((4, 4), (1, 1, 1))).decode()
    for answer in ({"url": text}, {"b64_json": text}):
        raw = json.dumps({"data": [answer]}).encode()
        assert isinstance(unpack(theirs(), raw, PIXELS), bytes)


def test_a_body_that_is_the_picture() -> None:
    upstream = webui(response={"encoding": "binary"})
    assert isinstance(unpack(upstream, painted((4, 4), (1, 1, 1), "JPEG"), PIXELS), bytes)


def test_what_a_status_means() -> None:
    error = json.dumps({"error": {"message": f"{KEY} a cat", "code": "content_policy"}}).encode()
    outcomes = {
        429: Outcome.REJECTED,
        503: Outcome.REJECTED,
        400: Outcome.INVALID,
        422: Outcome.INVALID,
        408: Outcome.TIMEOUT,
        504: Outcome.TIMEOUT,
        302: Outcome.ERROR,
        401: Outcome.ERROR,
        404: Outcome.ERROR,
        500: Outcome.ERROR,
    }
    for status, outcome in outcomes.items():
        answer = judge(status, {}, error, now=0)
        assert answer.outcome is outcome, status
        assert answer.error.startswith(f"{status} content_policy")
        assert "cat" not in answer.error
        assert KEY not in answer.error
    strange = [
        b"",
        b"[]",
        b"{",
        b'{"error": "text"}',
        b'{"error": {"code": "a b: c"}}',
        b"[" * 9999,
    ]
    for body_ in strange:
        assert judge(500, {}, body_, now=0).error == "500"


def test_how_long_a_server_wants_to_be_left_alone() -> None:
    def wait(text: str) -> float:
        return judge(429, {"retry-after": text}, b"", now=1000.0).wait_s

    assert wait("7") == 7.0
    assert wait(formatdate(1030, usegmt=True)) == 30.0
    assert wait("86400") == MOST_WAIT_S
    assert [wait(t) for t in ("", "-5", "nan", "inf", "soon")] == [0.0] * 5
    assert judge(500, {"retry-after": "7"}, b"", now=0).wait_s == 0.0
    assert [retry_after(t, 1000.0) for t in ("7.5", "99999999", "inf", "")] == [
        7.5,
        86400,
        None,
        None,
    ]


# ------------------------------------------------------------------------------------ releases


def test_a_release_of_a_declaration(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    release = add_release(workspace, "theirs", openai("https://x.org", timeout_s=9.0))
    assert is_upstream(release)
    name, upstream = read_facts(workspace.resolve(release.path))
    assert (name, upstream.model, upstream.timeout_s) == ("theirs", "gpt-image", 120.0)
    assert KEY not in facts_file(workspace, release).read_text()
    now = Upstream.model_validate(openai("https://other.org", timeout_s=9.0))
    assert in_force(upstream, now).url == "https://x.org/v1"
    assert in_force(upstream, now).timeout_s == 9.0
    assert in_force(upstream, None) == upstream
    facts_file(workspace, release).unlink()
    with pytest.raises(StorageError, match=r"upstream\.json"):
        read_facts(workspace.resolve(release.path))
