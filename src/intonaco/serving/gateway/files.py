"""Stored images, for answers with ``response_format`` "url"."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from intonaco.serving.gateway.encoding import MEDIA, convert
from intonaco.workspace import Workspace

NAME = re.compile(r"\d{8}/\d{4}/[\w-]{1,80}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Files:
    workspace: Workspace

    async def get(self, request: Request) -> Response:
        """A stored image. Its name is the capability (96 random bits), so it needs no key."""
        stem, _, kind = request.path_params["name"].rpartition(".")
        if kind not in MEDIA or not NAME.fullmatch(stem):
            raise HTTPException(404)
        path = self.workspace.images / f"{stem}.png"
        try:
            png = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise HTTPException(404) from None
        return Response(await convert(png, kind, None), media_type=MEDIA[kind])
