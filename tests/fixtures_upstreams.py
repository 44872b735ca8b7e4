"""Image servers that are not ours, as they are found in the wild: one with the OpenAI Images API,
one with the JSON of Stable Diffusion web UIs. Over real HTTP, in the test's loop or in a thread."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from intonaco.declared import Upstream
from intonaco.releases import ReleaseStore
from intonaco.serving.http import bind, server
from intonaco.types import Provenance, Release
from intonaco.upstreams import serving_spec, write_facts
from intonaco.workspace import Workspace

KEY = "sk-very-secret-4711"
ENVIRON = {"THEIR_KEY": KEY}
GENERATION = {"steps": 10, "guidance_scale": 1.5, "width": 64, "height": 64}
WEBUI: dict[str, Any] = {
    "api": "mapping",
    "path": "/sdapi/v1/txt2img",
    "seed": True,
    "request": {
        "prompt": "$prompt",
        "negative_prompt": "$negative_prompt",
        "seed": "$seed",
        "steps": "$steps",
        "cfg_scale": "$guidance_scale",
        "width": "$width",
        "height": "$height",
    },
    "response": {"image": "images.0"},
    "health": "/internal/ping",
}


def painted(size: tuple[int, int], colour: Any, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(out, format=kind, **more)
    return out.getvalue()


@dataclass
class OpenAIServer:
    """``failing``: the status that it answers instead. It has no seeds: its blue is a counter."""

    failing: int | None = None
    error: dict[str, Any] = field(default_factory=lambda: {"code": "server_error"})
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "PNG"
    answer: str = "b64_json"  # or "url", "elsewhere", "nothing", "garbage", "redirect"
    hold: asyncio.Event | None = None
    unwell: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, bytes]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    health_asked: int = 0

    def picture(self, size: str) -> bytes:
        width, height = map(int, size.split("x"))
        return painted((width, height), (200, 0, len(self.asked) % 256), self.kind)

    async def generations(self, request: Request) -> Response:
        return await self.reply(request, await request.json())

    async def edits(self, request: Request) -> Response:
        async with request.form() as form:
            files = {k: await v.read() for k, v in form.items() if isinstance(v, UploadFile)}
            fields = {k: v for k, v in form.items() if isinstance(v, str)}
        self.files.append(files)
        return await self.reply(request, fields)

    async def reply(self, request: Request, body: dict[str, Any]) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            message = f"Incorrect API key: {request.headers.get('authorization')}"
            return JSONResponse({"error": {"message": message, "code": "invalid_api_key"}}, 401)
        self.asked.append(body)
        if self.hold is not None:
            await self.hold.wait()
        if self.failing is not None:
            error = {"message": f"no: {body['prompt']}", "type": "oops"} | self.error
            return JSONResponse({"error": error}, self.failing, self.headers)
        picture = self.picture(body["size"])
        if self.answer == "redirect":
            return Response(status_code=307, headers={"location": "/v1/elsewhere"})
        if self.answer == "garbage":
            return Response(b"<html>busy</html>")
        item = {
            "b64_json": {"b64_json": base64.b64encode(picture).decode()},
            "url": {"url": f"{request.base_url}files/1.png?sig=x"},
            "elsewhere": {"url": "http://127.0.0.1:9/files/1.png"},
            "nothing": {},
        }[self.answer]
        return JSONResponse({"created": 1, "data": [item]})

    async def file(self, request: Request) -> Response:
        self.fetched.append(request.url.path)
        return Response(painted((64, 64), (0, 200, 0), self.kind), media_type="image/png")

    async def health(self, request: Request) -> Response:
        self.health_asked += 1
        return Response(status_code=503 if self.unwell else 200)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/images/generations", self.generations, methods=["POST"]),
                Route("/v1/images/edits", self.edits, methods=["POST"]),
                Route("/files/{name}", self.file),
                Route("/health", self.health),
            ]
        )


@dataclass
class WebUI:
    """Its picture is one colour, (0, steps, seed), and holds the prompt as a text, as theirs do."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    failing: int | None = None
    noise: bool = False  # pictures of noise by the seed, for evaluations

    async def txt2img(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.failing is not None:
            return JSONResponse({"error": "OutOfMemoryError", "detail": ""}, self.failing)
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", f"{body['prompt']} Steps: {body['steps']}")
        size = (body["width"], body["height"])
        if self.noise:
            rng = np.random.default_rng(body["seed"])
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, format="PNG", pnginfo=info)
            picture = out.getvalue()
        else:
            picture = painted(size, (0, body["steps"], body["seed"] % 256), pnginfo=info)
        images = [base64.b64encode(picture).decode()]
        return JSONResponse({"images": images, "parameters": body, "info": "{}"})

    async def ping(self, request: Request) -> Response:
        return JSONResponse({})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/sdapi/v1/txt2img", self.txt2img, methods=["POST"]),
                Route("/internal/ping", self.ping),
            ]
        )


@contextmanager
def in_threads(*apps: ASGIApp) -> Iterator[Sequence[str]]:
    """URLs of real servers of these apps, in a thread with a loop of its own."""
    bound = [bind("127.0.0.1", 0, what="test") for _ in apps]
    running = [server(app, keep_alive_s=5, grace_s=5) for app in apps]

    async def serve() -> None:
        tasks = (s.serve(sockets=[b[0]]) for s, b in zip(running, bound, strict=True))
        await asyncio.gather(*tasks)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield [url for _, url in bound]
    finally:
        for each in running:
            each.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def openai(url: str, **more: Any) -> dict[str, Any]:
    """Its declaration."""
    return {
        "url": f"{url}/v1",
        "model": "gpt-image",
        "headers": {"authorization": "Bearer env:THEIR_KEY"},
        **more,
    }


def both(urls: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Declarations of an ``OpenAIServer`` and a ``WebUI``."""
    return {"theirs": openai(urls[0], health="/health"), "webui": {"url": urls[1], **WEBUI}}


def add_release(workspace: Workspace, name: str, declared: dict[str, Any]) -> Release:
    """A release of a declaration, in the workspace."""
    upstream = Upstream.model_validate(declared)
    folder = workspace.root / f"facts-{name}"
    write_facts(folder, name, upstream)
    spec = serving_spec(name, upstream, GENERATION)
    return ReleaseStore(workspace, "s").add(folder, spec, Provenance(created_at=0))


def opened(raw: bytes | str) -> Image.Image:
    data = base64.b64decode(raw) if isinstance(raw, str) else raw
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return picture.copy()


def facts_file(workspace: Workspace, release: Release) -> Path:
    return workspace.resolve(release.path) / "upstream.json"
