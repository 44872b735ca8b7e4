"""The real ``openai`` client and curl against a gateway behind a socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImageGenPartialImageEvent
from tests.fixtures_gateway import NEW, OLD, Stage, opened, over_http, pixel, png

from intonaco.types import Outcome


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with over_http(tmp_path, "heartbeat_s: 0.2") as it:
        it.route()
        yield it


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="sk-any", max_retries=0) as it:
        yield it


async def test_generate_sync(stage: Stage) -> None:
    def ask() -> tuple[openai.types.ImagesResponse, str | None]:
        with OpenAI(base_url=f"{stage.url}/v1", api_key="sk-any", max_retries=0) as client:
            answer = client.images.generate(
                prompt="a cat",
                model="m",
                n=2,
                size="128x64",
                quality="high",
                user="someone",
                extra_body={"seed": 7, "steps": 12, "guidance_scale": 2.5, "negative_prompt": "d"},
            )
            assert [m.id for m in client.models.list()] == ["m"]
            assert client.models.retrieve("m").owned_by == "tiny"
            return answer, answer._request_id

    answer, request_id = await asyncio.to_thread(ask)
    assert answer.data is not None
    assert [opened(i.b64_json).getpixel((0, 0)) for i in answer.data] == [
        (0xAA, 12, 7),
        (0xAA, 12, 8),
    ]
    assert (answer.size, answer.output_format, answer.background) == ("128x64", "png", "opaque")
    assert [i.model_extra["seed"] for i in answer.data if i.model_extra] == [7, 8]
    assert request_id is not None
    first = stage.old.asked[0]
    assert first.request_id.startswith(request_id)
    assert (first.steps, first.guidance_scale, first.negative_prompt) == (12, 2.5, "d")
    assert first.image is None
    assert not first.stream


async def test_edit(stage: Stage, client: AsyncOpenAI) -> None:
    hole = opened(png((64, 64), (0, 0, 0, 255), "RGBA"))
    hole.paste((0, 0, 0, 0), (0, 0, 32, 64))
    out = io.BytesIO()
    hole.save(out, format="PNG")
    answer = await client.images.edit(
        image=("cat.png", png((64, 64))),
        mask=("mask.png", out.getvalue()),
        prompt="a dog",
        size="64x64",
        output_format="jpeg",
        output_compression=80,
        input_fidelity="high",
        extra_body={"strength": 0.5, "seed": 3},
    )
    assert answer.data is not None
    assert opened(answer.data[0].b64_json).format == "JPEG"
    [asked] = stage.old.asked
    assert (asked.prompt, asked.strength, asked.seed) == ("a dog", 0.5, 3)
    assert opened(asked.image).getpixel((5, 5)) == (10, 20, 30)
    mask = opened(asked.mask)
    assert (mask.mode, mask.getpixel((5, 5)), mask.getpixel((50, 5))) == ("L", 255, 0)
    [record] = await stage.records()
    assert (record.task, record.width, record.height) == ("edit", 64, 64)


async def test_several_pictures_are_refused_until_a_pipeline_takes_them(
    client: AsyncOpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.edit(image=[("a.png", png((8, 8)))] * 2, prompt="both")
    assert (caught.value.param, caught.value.code) == ("image", "unsupported_value")
    answer = await client.images.edit(image=[("a.png", png((8, 8)))], prompt="one in a list")
    assert answer.data is not None
    assert answer.size == "64x64"


async def test_stream(stage: Stage, client: AsyncOpenAI) -> None:
    stream = await client.images.generate(
        prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 9}, user="u"
    )
    events = [e async for e in stream]
    assert [e.type for e in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    for number, event in enumerate(events[:2]):
        assert isinstance(event, ImageGenPartialImageEvent)
        assert event.partial_image_index == number
        assert opened(event.b64_json).getpixel((0, 0)) == (0xAA, number + 1, 9)
    last = events[2]
    assert isinstance(last, ImageGenCompletedEvent)
    # The types declare these as required: none is left to the client's leniency.
    ImageGenCompletedEvent.model_validate(last.to_dict(), strict=True)
    assert opened(last.b64_json).getpixel((0, 0)) == (0xAA, 10, 9)
    assert (last.size, last.quality, last.background) == ("64x64", "auto", "opaque")
    assert last.usage.total_tokens == 0
    assert last.model_extra is not None
    assert last.model_extra["release"] == OLD
    [record] = await stage.records()
    assert (record.status, record.seed, record.attempts[0].queue_seconds) == (200, 9, 0.25)
    assert stage.gateway.state.requests == 1
    assert stage.old.asked[0].unit not in ("", "u")


async def test_stream_of_an_edit(stage: Stage, client: AsyncOpenAI) -> None:
    stream = await client.images.edit(
        image=("a.png", png((32, 32))),
        prompt="a cat",
        stream=True,
        partial_images=1,
        output_format="webp",
    )
    events = [e async for e in stream]
    assert [e.type for e in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert isinstance(events[1], ImageEditCompletedEvent)
    ImageEditCompletedEvent.model_validate(events[1].to_dict(), strict=True)
    assert {opened(e.b64_json).format for e in events} == {"WEBP"}


@pytest.mark.parametrize(("shown", "indices"), [(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 1, 2])])
async def test_the_champion_takes_a_stream_over(
    stage: Stage, client: AsyncOpenAI, shown: int, indices: list[int]
) -> None:
    """The challenger breaks off after ``shown`` partial images; the user's stream goes on."""
    stage.route(1.0, epoch=2)
    stage.new.fail_after = shown
    stream = await client.images.generate(prompt="a cat", stream=True, partial_images=3)
    events = [e async for e in stream]
    partial = [e for e in events if isinstance(e, ImageGenPartialImageEvent)]
    assert [e.partial_image_index for e in partial] == indices
    makers = [pixel(opened(e.b64_json))[0] for e in partial]
    assert makers == [0xBB] * shown + [0xAA] * (3 - shown)
    last = events[-1]
    assert isinstance(last, ImageGenCompletedEvent)
    assert last.model_extra is not None
    assert last.model_extra["release"] == OLD
    record = next(r for r in await stage.records() if not r.probe)
    assert [a.outcome for a in record.attempts] == [Outcome.ERROR, Outcome.OK]
    assert {a.release for a in record.attempts} == {OLD, NEW}
    seeds = {a.seed for a in (*stage.old.asked, *stage.new.asked) if a.stream}
    assert seeds == {record.seed}
    assert stage.gateway.state.breaker(NEW).failures == 1


async def test_an_error_before_the_first_byte_has_its_status(
    stage: Stage, client: AsyncOpenAI
) -> None:
    stage.old.fail_status = 429
    with pytest.raises(openai.RateLimitError) as caught:
        await client.images.generate(prompt="a cat", stream=True)
    assert caught.value.response.headers["retry-after"] == "1"
    stage.old.fail_status = 400
    with pytest.raises(openai.BadRequestError, match="said the worker"):
        await client.images.generate(prompt="a cat", stream=True)


async def test_an_error_in_the_middle_is_raised_by_the_client(
    stage: Stage, client: AsyncOpenAI
) -> None:
    stage.old.fail_after = 1
    stream = await client.images.generate(prompt="a cat", stream=True, partial_images=3)
    assert (await anext(stream)).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError, match="The model failed"):
        await anext(stream)
    assert stage.gateway.state.failed == 1


async def test_heartbeats_keep_a_quiet_stream_alive(stage: Stage, client: AsyncOpenAI) -> None:
    """With comments in between the client still sees one event."""
    stage.old.hold = asyncio.Event()
    body = {"prompt": "a cat", "stream": True}
    lines: list[str] = []
    async with stage.http.stream("POST", "/v1/images/generations", json=body) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        async for line in raw.aiter_lines():
            lines.append(line)
            if lines.count(": still at work") == 2:
                stage.old.hold.set()
    assert "event: image_generation.completed" in lines
    stage.old.hold = None
    stream = await client.images.generate(prompt="a cat", stream=True)
    assert len([e async for e in stream]) == 1


async def test_hanging_up_cancels_the_work(stage: Stage, client: AsyncOpenAI) -> None:
    """During a stream and without one, the worker hears of it and the record says so."""
    stage.old.hold = asyncio.Event()
    stream = await client.images.generate(prompt="a cat", stream=True, partial_images=1)
    async for _ in stream:
        break
    await stream.close()
    await asyncio.wait_for(stage.old.gone.wait(), 10)
    stage.old.gone.clear()
    with pytest.raises(openai.APITimeoutError):
        await client.images.generate(prompt="a cat", timeout=0.5)
    await asyncio.wait_for(stage.old.gone.wait(), 10)
    for _ in range(1000):
        if len(records := await stage.records()) == 2:
            break
        await asyncio.sleep(0.01)
    assert [(r.status, r.attempts[-1].outcome) for r in records] == [(499, Outcome.CANCELLED)] * 2
    assert stage.gateway.copies.users_in_flight == 0
    assert stage.gateway.state.observed().in_flight == {}


async def test_wrong_keys_become_the_clients_own_errors(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"sk-right").hexdigest()
    more = f"api_keys: [{{name: web, sha256: {digest}}}]"
    async with over_http(tmp_path, more) as stage:
        stage.route()
        options: dict[str, Any] = {"base_url": f"{stage.url}/v1", "max_retries": 0}
        async with AsyncOpenAI(api_key="sk-wrong", **options) as wrong:
            with pytest.raises(openai.AuthenticationError) as caught:
                await wrong.images.generate(prompt="a cat")
            assert caught.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
        async with AsyncOpenAI(api_key="sk-right", **options) as right:
            assert (await right.images.generate(prompt="a cat")).data


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
async def test_curl(stage: Stage, tmp_path: Path) -> None:
    async def curl(*arguments: str) -> tuple[int, dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", *arguments),
            stdout=asyncio.subprocess.PIPE,
        )
        text, _, status = (await process.communicate())[0].decode().rpartition("\n")
        return int(status), json.loads(text)

    picture = tmp_path / "cat.png"
    picture.write_bytes(png((16, 16)))
    edits, make = f"{stage.url}/v1/images/edits", f"{stage.url}/v1/images/generations"
    status, answer = await curl(edits, "-F", f"image[]=@{picture}", "-F", "prompt=a dog")
    assert status == 200
    data = answer["data"]
    assert isinstance(data, list)
    assert base64.b64decode(data[0]["b64_json"]).startswith(b"\x89PNG")
    status, answer = await curl(make, "-d", '{"prompt": "x"}')
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
    status, _ = await curl(make, "--json", '{"prompt": "x"}')
    assert status == 200
