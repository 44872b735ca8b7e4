"""The admin API, on a loopback port of its own and behind the workspace's token."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from intonaco.codec import decode, encode
from intonaco.errors import ConfigError, Conflict, StorageError
from intonaco.messages import ApiError
from intonaco.serving.gateway.callers import bearer
from intonaco.serving.gateway.problems import too_large
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.http import BodyTooLarge, body
from intonaco.types import RoutingTable

MAX_BODY = 2**20


@dataclass(frozen=True, slots=True)
class Admin:
    state: GatewayState
    token: str = field(repr=False)

    def allows(self, request: Request) -> bool:
        given = (bearer(request) or "").encode()
        return hmac.compare_digest(given, self.token.encode())

    async def routing(self, request: Request) -> Response:
        if not self.allows(request):
            return _denied()
        try:
            self.state.apply(decode(RoutingTable, await body(request, MAX_BODY)))
        except BodyTooLarge:
            return too_large(MAX_BODY).response()
        except (StorageError, ConfigError) as error:
            return JSONResponse(ApiError(message=str(error)).body(), 400)
        except Conflict as error:
            return JSONResponse(ApiError(message=str(error), code="conflict").body(), 409)
        return await self.observed(request)

    async def observed(self, request: Request) -> Response:
        if not self.allows(request):
            return _denied()
        return Response(encode(self.state.observed()), media_type="application/json")


def _denied() -> Response:
    return JSONResponse(ApiError(message="Wrong or missing token.").body(), 401)
