"""The gateway put together: its parts and its two HTTP faces, the public API and the admin API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from intonaco.clock import Clock
from intonaco.config import Config
from intonaco.messages import ApiError
from intonaco.serving.gateway import api, openapi
from intonaco.serving.gateway.access import HUNG_UP, AccessLog
from intonaco.serving.gateway.admin import Admin
from intonaco.serving.gateway.callers import Buckets, Keys, bearer
from intonaco.serving.gateway.copies import Copies
from intonaco.serving.gateway.dispatch import Dispatcher
from intonaco.serving.gateway.feedback import FeedbackDesk, Tokens
from intonaco.serving.gateway.files import Files
from intonaco.serving.gateway.gathered import Gathered
from intonaco.serving.gateway.images import Images
from intonaco.serving.gateway.metrics import CONTENT_TYPE, Metrics
from intonaco.serving.gateway.problems import Refused, http_error, server_error
from intonaco.serving.gateway.recorder import Recorder
from intonaco.serving.gateway.retention import DAY_S, prune
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.gateway.tallies import Tallies
from intonaco.workspace import Workspace

if TYPE_CHECKING:
    from intonaco.serving.gateway.spans import GatewayTracing

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gateway:
    service_id: str
    state: GatewayState
    dispatcher: Dispatcher
    recorder: Recorder
    copies: Copies
    metrics: Metrics
    clock: Clock
    limits: api.Limits
    keys: Keys
    images: Images
    files: Files
    desk: FeedbackDesk
    admin: Admin
    retention_days: float | None
    scored: bool  # the service has a scorer, which reads the records
    tallies: Tallies
    tracing: GatewayTracing | None = None
    gathered: Gathered | None = None  # where others share the public port

    # ------------------------------------------------------------------ small endpoints

    async def models(self, request: Request) -> Response:
        self.keys.name(bearer(request))
        return JSONResponse({"object": "list", "data": [self._model(self.limits.models[0])]})

    async def model(self, request: Request) -> Response:
        self.keys.name(bearer(request))
        name = request.path_params["name"]
        if name not in self.limits.models:
            raise Refused(
                ApiError(
                    message=f"The model {name[:80]!r} does not exist.",
                    param="model",
                    code="model_not_found",
                ),
                404,
            )
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": 0, "owned_by": self.service_id}

    async def livez(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def readyz(self, request: Request) -> Response:
        """Ready when a champion's worker is: after a restart the table of before may name workers
        that are gone."""
        table = self.state.table
        ready = table is not None and await self.dispatcher.upstream.any_ready(table.champion())
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(self.state), media_type=CONTENT_TYPE)

    async def public_metrics(self, request: Request) -> Response:
        if self.gathered is None:
            return await self.metrics_text(request)
        return Response(await self.gathered.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document(self.limits))

    # ------------------------------------------------------------------ life

    async def keep_house(self) -> None:
        """Once a day, for as long as the gateway runs: delete what is older than the service
        keeps."""
        while True:
            try:
                await self.tidy()
            except Exception:  # tomorrow is another try; serving goes on
                log.exception("old files are not deleted", extra={"action": "gateway.prune"})
            await asyncio.sleep(DAY_S)

    async def tidy(self) -> None:
        await asyncio.to_thread(self.desk.forget)
        if self.retention_days is None:
            return
        self.recorder.writer.roll()
        self.desk.roll()
        self.tallies.roll()
        self.metrics.pruned += await asyncio.to_thread(
            prune,
            self.recorder.workspace,
            self.clock.now(),
            self.retention_days,
            scored=self.scored,
        )

    async def close(self) -> None:
        await self.copies.stop()
        if self.dispatcher.upstream.foreign is not None:
            await self.dispatcher.upstream.foreign.close()
        self.recorder.writer.close()
        self.desk.close()
        self.tallies.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    # ------------------------------------------------------------------ apps

    def public_routes(self) -> list[Route]:
        return [
            Route("/v1/images/generations", self.images.generations, methods=["POST"]),
            Route("/v1/images/edits", self.images.edits, methods=["POST"]),
            Route("/v1/files/{name:path}", self.files.get, name="file"),
            Route("/v1/models", self.models),
            Route("/v1/models/{name}", self.model),
            Route("/v1/feedback", self.desk.post, methods=["POST"]),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/metrics", self.public_metrics),
            Route("/openapi.json", self.openapi),
        ]

    def public_app(self) -> Starlette:
        routes = self.public_routes()
        access = Middleware(
            AccessLog,
            routes=[r.path_format for r in routes],
            metrics=self.metrics,
            clock=self.clock,
        )
        app = Starlette(
            routes=routes,
            middleware=[access] if self.tracing is None else [self.tracing.middleware(), access],
            exception_handlers={
                HTTPException: http_error,
                Refused: self._refused,
                ClientDisconnect: _gone,
            },
        )
        app.router.redirect_slashes = False  # an address is what /openapi.json says, or nothing
        return app

    def admin_app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/admin/routing", self.admin.routing, methods=["PUT"]),
                Route("/admin/observed", self.admin.observed),
                Route("/livez", self.livez),
                Route("/metrics", self.metrics_text),  # of this process alone
            ],
            exception_handlers={HTTPException: http_error, Exception: _failed},
        )

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        self.metrics.reject(error.error.code or error.error.type)
        return error.response()


async def _failed(request: Request, error: Exception) -> Response:
    return server_error()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=HUNG_UP)


def assemble(
    workspace: Workspace,
    config: Config,
    *,
    state: GatewayState,
    dispatcher: Dispatcher,
    recorder: Recorder,
    copies: Copies,
    metrics: Metrics,
    clock: Clock,
    environ: Mapping[str, str],
    tracing: GatewayTracing | None = None,
) -> Gateway:
    """The gateway of these parts and the configuration. Raises ConfigError where ``environ`` lacks
    an API key that the configuration names."""
    settings = config.serving.gateway
    bounds = settings.limits
    limits = api.Limits(
        models=(config.model.name, config.service),
        generation=config.model.generation,
        bounds=bounds,
    )
    keys = Keys.of(settings.api_keys, environ)
    tokens = Tokens(recorder.digests, settings.feedback.token_days)
    admin = Admin(state, workspace.admin_token())
    rate = bounds.requests_per_minute
    images = Images(
        generation=config.model.generation,
        limits=limits,
        state=state,
        dispatcher=dispatcher,
        recorder=recorder,
        copies=copies,
        clock=clock,
        admin=admin,
        keys=keys,
        buckets=Buckets(clock, None if rate is None else rate / 60.0, bounds.burst),
        digests=recorder.digests,
        tokens=tokens,
        request_timeout_s=settings.request_timeout_s,
        heartbeat_s=settings.heartbeat_s,
        pinning=settings.pinning,
    )
    metrics.controller_ticked = recorder.workspace.last_tick
    metrics.users_in_flight = lambda: copies.users_in_flight
    metrics.receiving_bytes = lambda: images.receiving_bytes
    return Gateway(
        service_id=config.service,
        state=state,
        dispatcher=dispatcher,
        recorder=recorder,
        copies=copies,
        metrics=metrics,
        clock=clock,
        limits=limits,
        keys=keys,
        images=images,
        files=Files(workspace),
        desk=FeedbackDesk(
            workspace=workspace,
            service_id=config.service,
            name=recorder.writer.name,
            settings=settings.feedback,
            tokens=tokens,
            clock=clock,
            metrics=metrics,
            body_seconds=bounds.body_seconds,
        ),
        admin=admin,
        tallies=Tallies(
            workspace=workspace,
            service_id=config.service,
            state=state,
            metrics=metrics,
            records=recorder.writer,
            clock=clock,
        ),
        retention_days=settings.retention_days,
        tracing=tracing,
        scored=config.extractor is not None,
        gathered=(
            Gathered(workspace, recorder.writer.name, metrics, state, dispatcher.upstream.http)
            if settings.processes > 1
            else None
        ),
    )
