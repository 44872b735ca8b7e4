"""Calls that ask for something: who makes them, and what they send. The console only writes a
command down; the controller decides."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from intonaco.config import Person
from intonaco.errors import ConfigError

COOKIE = "intonaco_person"
MOST_BYTES = 4096
MOST_REASON = 300  # characters


class People:
    """Who may call, by the sha256 of their tokens. Raises ConfigError if a token that the
    configuration names is not in the environment."""

    def __init__(self, people: Sequence[Person], environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._known: list[tuple[bytes, Person]] = []
        for person in people:
            if person.sha256 is not None:
                digest = bytes.fromhex(person.sha256)
            else:
                variable = str(person.token).removeprefix("env:")
                if not environ.get(variable):
                    raise ConfigError(
                        f"console.people: {variable} is not set in the environment",
                        hint="set it to the token, or give the token's sha256 instead",
                    )
                digest = hashlib.sha256(environ[variable].encode()).digest()
            self._known.append((digest, person))

    def who(self, request: Request) -> Person:
        """The caller, by the bearer token. Raises HTTPException 401."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        found = self.of_token(token.strip())
        if found is None or scheme.lower() != "bearer":
            raise HTTPException(
                401, "A bearer token of console.people is needed.", {"www-authenticate": "Bearer"}
            )
        return found

    def signed_in(self, request: Request) -> Person | None:
        """Who the page's cookie says it is."""
        token = request.cookies.get(COOKIE, "")
        return self.of_token(token) if token else None

    def asking(self, request: Request) -> Person:
        """The caller, by the bearer token or the page's cookie. A cookie comes along whoever made
        the browser ask: it counts only for a page of this console's. Raises HTTPException 401,
        403."""
        if "authorization" in request.headers:
            return self.who(request)
        person = self.signed_in(request)
        if person is None:
            return self.who(request)
        if not from_our_page(request):
            raise HTTPException(403, "This request does not come from a page of the console.")
        return person

    def of_token(self, token: str) -> Person | None:
        """Whose token it is."""
        given = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = None
        for digest, person in self._known:  # all of them, so that time tells nothing
            if hmac.compare_digest(digest, given):
                found = person
        return found


def from_our_page(request: Request) -> bool:
    """Whether a browser says so; pages cannot set these headers themselves."""
    if request.headers.get("sec-fetch-site") == "same-origin":
        return True
    scheme, _, host = request.headers.get("origin", "").partition("://")
    return scheme in ("http", "https") and host == request.headers.get("host")


async def json_of(request: Request, allowed: Sequence[str], most: int = MOST_BYTES) -> Any:
    """The JSON object that a call sends, {} for an empty body. Raises HTTPException 400, 413,
    415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    given = await object_of(request, most)
    if given and kind != "application/json":  # what another site's form cannot send
        raise HTTPException(415, "content-type: application/json")
    if set(given) - set(allowed):
        raise HTTPException(400, f"The body has no fields but {', '.join(allowed)}.")
    return given


async def reason_of(request: Request) -> str:
    """The reason that a call gives. Raises HTTPException 400, 413."""
    given = await object_of(request, MOST_BYTES)
    if set(given) - {"reason"}:
        raise HTTPException(400, 'The body is an object with at most a "reason".')
    return text_of(given.get("reason", ""))


async def object_of(request: Request, most: int) -> Mapping[str, Any]:
    """The JSON object that a call sends, of at most so many bytes. Raises HTTPException 400,
    413."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise HTTPException(413, f"The body is larger than {most} bytes.")
    try:
        given = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not JSON.") from None
    if not isinstance(given, dict):
        raise HTTPException(400, "The body is no JSON object.")
    return given


def text_of(reason: object) -> str:
    """A reason as text. Raises HTTPException 400."""
    if not isinstance(reason, str) or len(reason) > MOST_REASON:
        raise HTTPException(400, f"reason: text of at most {MOST_REASON} characters")
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise HTTPException(400, "reason: text that is valid Unicode") from None
    return reason


def whole(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    """A whole number of the query. Raises HTTPException 400."""
    given = request.query_params.getlist(name) or [str(default)]
    # Digits only, and few: Python's own reading also takes signs, spaces and other scripts.
    value = int(given[0]) if re.fullmatch(r"[0-9]{1,19}", given[0], re.ASCII) else -1
    if len(given) > 1 or not least <= value <= most:
        raise HTTPException(400, f"{name}: one whole number from {least} to {most}")
    return value
