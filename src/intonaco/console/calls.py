"""Calls that ask for something: who makes them, and what they send. The console only writes a
command down; the controller decides."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from intonaco.config import Person
from intonaco.errors import ConfigError

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

    def of_token(self, token: str) -> Person | None:
        """Whose token it is."""
        given = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = None
        for digest, person in self._known:  # all of them, so that time tells nothing
            if hmac.compare_digest(digest, given):
                found = person
        return found


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
