"""The gateway's two HTTP faces: the public API and, on a loopback port, the admin API."""

from __future__ import annotations

import asyncio
import hmac
import io
import logging
import re
import secrets
from dataclasses import dataclass

from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from intonaco.clock import Clock
from intonaco.codec import decode, encode
from intonaco.config import Generation
from intonaco.errors import ConfigError, Conflict, StorageError
from intonaco.messages import (
    ARM,
    ASSIGNED_ARM,
    PROBE,
    RELEASE,
    REQUEST_ID,
    USER_ID,
    ApiError,
    GenerateRequest,
)
from intonaco.serving.gateway import api, routing
from intonaco.serving.gateway.body import images_body
from intonaco.serving.gateway.copies import Copies
from intonaco.serving.gateway.dispatch import Answer, Asked, Dispatcher
from intonaco.serving.gateway.metrics import CONTENT_TYPE, Metrics
from intonaco.serving.gateway.recorder import Context, Recorder
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.http import BodyTooLarge, body, unless_gone
from intonaco.types import Arm, ArmRole, Attempt, RoutingTable

log = logging.getLogger(__name__)

MAX_BODY = 2**20
HUNG_UP = 499
FILE = re.compile(r"\d{8}/\d{4}/[\w-]{1,80}")
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
NO_RELEASE = ApiError(
    message="The service has no release yet.", type="server_error", code="no_release"
)


def new_id() -> str:
    return f"req_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """One image of a request: what it was, what came of it, where it lies."""

    seed: int
    answer: Answer
    image: str | None


@dataclass(slots=True)
class Gateway:
    service_id: str
    generation: Generation
    limits: api.Limits
    state: GatewayState
    dispatcher: Dispatcher
    recorder: Recorder
    copies: Copies
    metrics: Metrics
    clock: Clock
    admin_token: str
    request_timeout_s: float
    pinning: bool = False

    # ------------------------------------------------------------------ POST /v1/images/generations

    async def generations(self, request: Request) -> Response:
        request_id = new_id()
        probe = request.headers.get(PROBE) == "1"
        if probe and not self._admin(request):
            return _problem(ApiError(message="Probes need the admin token."), 401, request_id)
        response = await self._generations(request, request_id, probe)
        if not probe:
            self.state.requests += 1
            self.state.failed += response.status_code >= 500
        return response

    async def _generations(self, request: Request, request_id: str, probe: bool) -> Response:
        try:
            wanted = api.parse(await body(request, MAX_BODY), self.limits)
            table = self.state.table
            if table is None:
                raise api.Refused(NO_RELEASE, 503)
            assigned, probability = self._arm(request, table, wanted, request_id, probe)
        except api.Refused as refused:
            return _problem(refused.error, refused.status, request_id)
        except BodyTooLarge:
            error = ApiError(message=f"The body is over {MAX_BODY} bytes.", code="body_too_large")
            return _problem(error, 413, request_id)
        except ClientDisconnect:
            return Response(status_code=HUNG_UP)
        seed = secrets.randbelow(2**31) if wanted.seed is None else wanted.seed
        unit = self._unit(request, wanted, request_id)
        contexts = [
            Context(
                asked=self._asked(
                    wanted,
                    table,
                    request_id if wanted.n == 1 else f"{request_id}-{k}",
                    unit,
                    seed + k,
                ),
                assigned_arm="pinned" if probability is None else assigned.name,
                probability=1.0 if probability is None else probability,
                routing_epoch=table.epoch,
                salt=table.salt,
                at=self.clock.now(),
            )
            for k in range(wanted.n)
        ]
        try:
            made = await unless_gone(
                request, self._all(contexts, assigned, probe, keep=wanted.as_url)
            )
        except ClientDisconnect:
            return Response(status_code=HUNG_UP)
        return await self._response(request, request_id, wanted, assigned, made)

    async def _all(
        self, contexts: list[Context], arm: Arm, probe: bool, *, keep: bool
    ) -> list[_Made]:
        work = self._probe if probe else self._user
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(c, arm, keep)) for c in contexts]
        return [t.result() for t in tasks]

    async def _probe(self, context: Context, arm: Arm, keep: bool) -> _Made:
        answer, image = await self.copies.probe(arm, context.asked)
        return _Made(seed=context.asked.request.seed, answer=answer, image=image)

    async def _user(self, context: Context, arm: Arm, keep: bool) -> _Made:
        asked, attempts = context.asked, list[Attempt]()
        request_id = asked.request.request_id
        keep = keep or self.recorder.keeps(request_id)
        self.copies.users_in_flight += 1
        answer: Answer | None = None
        shadows: list[Arm] = []
        try:
            deadline = context.at + self.request_timeout_s
            answer = await self.dispatcher.serve(asked, arm, deadline, attempts)
            shadows = self._shadows(answer, request_id)
        finally:
            self.copies.users_in_flight -= 1
            if answer is None:  # cancelled, or a defect: either way it happened
                answer = Answer(status=HUNG_UP, attempts=tuple(attempts))
            seconds = self.clock.now() - context.at
            image = self.recorder.write(context, answer, seconds, keep=keep or bool(shadows))
        for shadow in shadows:
            self.copies.shadow(shadow, context)
        return _Made(seed=asked.request.seed, answer=answer, image=image)

    def _shadows(self, answer: Answer, request_id: str) -> list[Arm]:
        """Shadow arms that get a copy: only of what the champion answered, so that each copy makes
        a pair."""
        table = self.state.table
        if table is None or answer.served_by != table.champion().release:
            return []
        arms = routing.shadow_arms(table, request_id, self.state.tripped())
        return [a for a in arms if self.copies.room(a)]

    def _arm(
        self, request: Request, table: RoutingTable, wanted: api.Wanted, rid: str, probe: bool
    ) -> tuple[Arm, float | None]:
        """The arm and its probability; None where it was chosen, not drawn."""
        pinned = request.headers.get(RELEASE)
        if probe or (pinned and self.pinning):
            arm = next((a for a in table.arms if a.release == pinned), None)
            if arm is None or (not probe and arm.role is ArmRole.SHADOW):
                raise api.Refused(
                    ApiError(message="No arm serves that release.", code="release_not_found"), 404
                )
            return arm, None
        unit = self._unit(request, wanted, rid)
        assignment = routing.assign(table, unit, self.state.tripped())
        return assignment.arm, assignment.probability

    def _unit(self, request: Request, wanted: api.Wanted, request_id: str) -> str:
        return routing.unit_of(
            user_header=request.headers.get(USER_ID),
            user=wanted.user,
            api_key=_bearer(request),
            request_id=request_id,
        )

    def _asked(
        self, wanted: api.Wanted, table: RoutingTable, request_id: str, unit: str, seed: int
    ) -> Asked:
        chosen: dict[str, float] = {}
        if wanted.steps is not None:
            chosen["steps"] = wanted.steps
        if wanted.guidance_scale is not None:
            chosen["guidance_scale"] = wanted.guidance_scale
        if wanted.size is not None:
            chosen["width"], chosen["height"] = wanted.size
        defaults = self.generation.model_dump() | dict(
            self.state.generation(table.champion().release)
        )
        values = defaults | chosen
        return Asked(
            request=GenerateRequest(
                request_id=request_id,
                prompt=wanted.prompt,
                negative_prompt=wanted.negative_prompt,
                seed=seed,
                steps=int(values["steps"]),
                guidance_scale=float(values["guidance_scale"]),
                width=int(values["width"]),
                height=int(values["height"]),
            ),
            unit=unit,
            chosen=frozenset(chosen),
        )

    async def _response(
        self,
        request: Request,
        request_id: str,
        wanted: api.Wanted,
        assigned: Arm,
        made: list[_Made],
    ) -> Response:
        worst = max(made, key=lambda m: m.answer.status)
        headers = {
            REQUEST_ID: request_id,
            ASSIGNED_ARM: assigned.name,
            ARM: worst.answer.served_arm or "",
            RELEASE: worst.answer.served_by or "",
        }
        if worst.answer.error is not None:
            if worst.answer.status in (429, 503):
                headers["retry-after"] = "1"
            return JSONResponse(worst.answer.error.body(), worst.answer.status, headers)
        data = [await self._item(request, wanted, m) for m in made]
        first = made[0].answer
        content = {
            "created": int(self.clock.now()),
            "output_format": wanted.format,
            "model": self.limits.models[0],
            "release": first.served_by,
        }
        return Response(images_body(content, data), headers=headers, media_type="application/json")

    async def _item(
        self, request: Request, wanted: api.Wanted, made: _Made
    ) -> tuple[dict[str, str | int], bytes | None]:
        if wanted.as_url:
            if made.image is None:
                raise HTTPException(500, "The image could not be stored.")
            name = made.image.removeprefix("images/").removesuffix(".png")
            url = request.url_for("file", name=f"{name}.{wanted.format}")
            return {"url": str(url), "seed": made.seed}, None
        assert made.answer.png is not None
        raw = await _convert(made.answer.png, wanted.format, wanted.compression)
        return {"seed": made.seed}, raw

    # ------------------------------------------------------------------ GET

    async def file(self, request: Request) -> Response:
        """A stored image. Its name is the capability: 96 random bits."""
        stem, _, kind = request.path_params["name"].rpartition(".")
        if kind not in MEDIA or not FILE.fullmatch(stem):
            raise HTTPException(404)
        path = self.recorder.workspace.images / f"{stem}.png"
        try:
            png = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise HTTPException(404) from None
        return Response(await _convert(png, kind, None), media_type=MEDIA[kind])

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(self.limits.models[0])]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.limits.models:
            error = ApiError(
                message=f"The model {name!r} does not exist.", param="model", code="model_not_found"
            )
            return JSONResponse(error.body(), 404)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": 0, "owned_by": self.service_id}

    async def livez(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def readyz(self, request: Request) -> Response:
        """Ready when a champion's worker is: after a restart the table of before may
        name workers that are gone."""
        table = self.state.table
        ready = table is not None and await self.dispatcher.upstream.any_ready(
            table.champion().urls
        )
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(self.state), media_type=CONTENT_TYPE)

    # ------------------------------------------------------------------ admin

    async def routing(self, request: Request) -> Response:
        if not self._admin(request):
            return _denied()
        try:
            self.state.apply(decode(RoutingTable, await body(request, MAX_BODY)))
        except (StorageError, ConfigError) as error:
            return JSONResponse(ApiError(message=str(error)).body(), 400)
        except Conflict as error:
            return JSONResponse(ApiError(message=str(error), code="conflict").body(), 409)
        return await self.observed(request)

    async def observed(self, request: Request) -> Response:
        if not self._admin(request):
            return _denied()
        return Response(encode(self.state.observed()), media_type="application/json")

    def _admin(self, request: Request) -> bool:
        given = (_bearer(request) or "").encode()
        return hmac.compare_digest(given, self.admin_token.encode())

    # ------------------------------------------------------------------ apps

    def public_app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/images/generations", self.generations, methods=["POST"]),
                Route("/v1/files/{name:path}", self.file, name="file"),
                Route("/v1/models", self.models),
                Route("/v1/models/{name}", self.model),
                Route("/livez", self.livez),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics_text),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _server_error},
        )

    def admin_app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/admin/routing", self.routing, methods=["PUT"]),
                Route("/admin/observed", self.observed),
                Route("/livez", self.livez),
                Route("/metrics", self.metrics_text),  # of this process: the public port is shared
            ],
            exception_handlers={HTTPException: _http_error, Exception: _server_error},
        )


async def _convert(png: bytes, kind: str, compression: int | None) -> bytes:
    if kind == "png":
        return png
    return await asyncio.to_thread(_encode, png, kind, compression)


def _encode(png: bytes, kind: str, compression: int | None) -> bytes:
    out = io.BytesIO()
    quality = 100 if compression is None else compression
    Image.open(io.BytesIO(png)).convert("RGB").save(out, format=kind.upper(), quality=quality)
    return out.getvalue()


def _bearer(request: Request) -> str | None:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    return value if kind.lower() == "bearer" and value else None


def _denied() -> Response:
    return JSONResponse(ApiError(message="Wrong or missing token.").body(), 401)


def _problem(error: ApiError, status: int, request_id: str) -> Response:
    headers = {REQUEST_ID: request_id}
    if status == 503:
        headers["retry-after"] = "5"
    return JSONResponse(error.body(), status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    body = ApiError(message=str(error.detail), type=kind).body()
    return JSONResponse(body, error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    body = ApiError(message="The server failed.", type="server_error", code="internal").body()
    return JSONResponse(body, 500)
