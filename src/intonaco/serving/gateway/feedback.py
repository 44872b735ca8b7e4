"""What users say of images: signed tokens, one vote an image, written to a log of its own.

Votes steer detectors and training, so they are an attack surface: a vote needs the token that came
with the image, counts once, and a unit has so many a day.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import logging
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from intonaco import config
from intonaco.clock import Clock
from intonaco.codec import encode
from intonaco.messages import ApiError
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.api import explain
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.intake import in_time, read_json
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.problems import Refused, invalid
from intonaco.types import Feedback
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)

DAY_S = 86_400
MAX_BODY = 8192
VERSION = 1

Kind = Literal["explicit", "regenerate", "download"]


class FeedbackFields(BaseModel):
    """``explicit`` says what the user thinks and needs ``vote`` or ``stars``; ``regenerate`` and
    ``download`` say what the user did and take neither."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: Annotated[str, Field(min_length=1, max_length=2048)]
    kind: Kind = "explicit"
    vote: Literal["up", "down"] | None = None
    stars: Annotated[int, Field(ge=1, le=5)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Voteable:
    """What a token stands for: one image, shown to one unit. Times in epoch seconds."""

    request_id: str
    assigned_arm: str
    release: str
    unit: str  # opaque digest
    made_at: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Signs and reads tokens: BASE64URL(JSON).BASE64URL(HMAC-SHA256)."""

    digests: Digests
    days: float

    def sign(self, image: Voteable) -> str:
        fields = [
            VERSION,
            image.request_id,
            image.assigned_arm,
            image.release,
            image.unit,
            image.made_at,
        ]
        payload = json.dumps(fields, separators=(",", ":")).encode()
        return f"{_base64(payload)}.{_base64(self._mac(payload))}"

    def read(self, token: str, now: float) -> Voteable:
        """Raises Refused unless this workspace signed it, not too long ago."""
        try:
            payload, mac = (_unbase64(part) for part in token.split("."))
            good = hmac.compare_digest(mac, self._mac(payload))
        except ValueError:
            good = False
        if not good:
            raise invalid("token", "The token is not one of this service.", "invalid_token")
        _, request_id, arm, release, unit, made_at = json.loads(payload)
        if now - made_at > self.days * DAY_S:
            raise invalid("token", f"The token is older than {self.days:g} days.", "expired_token")
        return Voteable(
            request_id=request_id, assigned_arm=arm, release=release, unit=unit, made_at=made_at
        )

    def _mac(self, payload: bytes) -> bytes:
        return self.digests.mac("feedback", payload)


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if _base64(raw) != text:  # one token has one spelling
        raise ValueError("not canonical")
    return raw


@dataclass(frozen=True, slots=True)
class Votes:
    """Who voted on what already. A table beside the log, shared by all gateways of a workspace:
    checking and marking are one transaction."""

    file: Path
    per_day: int

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self.file, timeout=5.0, isolation_level=None)
        except sqlite3.OperationalError:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.file, timeout=5.0, isolation_level=None)
        connection.executescript(
            "CREATE TABLE IF NOT EXISTS votes (image TEXT, act TEXT, unit TEXT, day INTEGER,"
            " PRIMARY KEY (image, act)) WITHOUT ROWID;"
            "CREATE INDEX IF NOT EXISTS votes_unit ON votes (unit, day)"
        )
        return connection

    def mark(self, image: str, act: str, unit: str, day: int) -> None:
        """Raises Refused for a second vote (409) and for one too many (429)."""
        with contextlib.closing(self._open()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                row = (image, act, unit, day)
                if connection.execute(
                    "SELECT 1 FROM votes WHERE image = ? AND act = ?", row[:2]
                ).fetchone():
                    raise Refused(
                        ApiError(
                            message="This image has that feedback already; the first one counts.",
                            param="token",
                            code="already_voted",
                        ),
                        409,
                    )
                (today,) = connection.execute(
                    "SELECT count(*) FROM votes WHERE unit = ? AND day = ?", row[2:]
                ).fetchone()
                if today >= self.per_day:
                    raise Refused(
                        ApiError(
                            message=f"At most {self.per_day} votes a day.",
                            type="rate_limit_error",
                            code="too_many_votes",
                        ),
                        429,
                        retry_after=DAY_S,
                    )
                connection.execute("INSERT INTO votes VALUES (?, ?, ?, ?)", row)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def unmark(self, image: str, act: str) -> None:
        with contextlib.closing(self._open()) as connection:
            connection.execute("DELETE FROM votes WHERE image = ? AND act = ?", (image, act))

    def forget(self, before_day: int) -> int:
        """Drop marks of days whose tokens have all expired; returns how many."""
        if not self.file.exists():
            return 0
        with contextlib.closing(self._open()) as connection:
            return connection.execute("DELETE FROM votes WHERE day < ?", (before_day,)).rowcount


@dataclass(slots=True)
class FeedbackDesk:
    """``POST /v1/feedback``. The token is the permission: it needs no API key, so that a web page
    can send it."""

    workspace: Workspace
    service_id: str
    name: str  # of the gateway, as in its records
    settings: config.Feedback
    tokens: Tokens
    clock: Clock
    metrics: Metrics
    body_seconds: float
    votes: Votes = field(init=False)
    _writer: SegmentWriter | None = None

    def __post_init__(self) -> None:
        self.votes = Votes(self.workspace.feedback / "votes.db", self.settings.votes_per_day)

    async def post(self, request: Request) -> Response:
        """Raises Refused."""
        fields = await self._fields(request)
        now = self.clock.now()
        image = self.tokens.read(fields.token, now)
        vote = fields.vote or (str(fields.stars) if fields.stars else None)
        day = int(now // DAY_S)
        try:
            await asyncio.to_thread(self.votes.mark, image.request_id, fields.kind, image.unit, day)
            await self._append(image, fields.kind, vote, now)
        except (OSError, sqlite3.Error) as error:
            log.error("feedback is not kept: %s", error, extra={"action": "gateway.storage"})
            raise Refused(
                ApiError(
                    message="The feedback could not be stored; try again.",
                    type="server_error",
                    code="storage",
                ),
                503,
                retry_after=5,
            ) from None
        self.metrics.vote(
            kind=fields.kind, vote=vote or "", arm=image.assigned_arm, release=image.release
        )
        content = {
            "object": "feedback",
            "request_id": image.request_id,
            "kind": fields.kind,
            "vote": vote,
        }
        return JSONResponse(content, 201)

    async def _fields(self, request: Request) -> FeedbackFields:
        try:
            text = await in_time(self.body_seconds, read_json(request, MAX_BODY))
            fields = FeedbackFields.model_validate_json(text)
        except ValidationError as error:
            raise Refused(explain(error)) from None
        given = (fields.vote is not None) + (fields.stars is not None)
        if fields.kind == "explicit" and given != 1:
            raise invalid("vote", "Give either 'vote' (up, down) or 'stars' (1 to 5).")
        if fields.kind != "explicit" and given:
            raise invalid("kind", f"'{fields.kind}' takes neither 'vote' nor 'stars'.")
        return fields

    async def _append(self, image: Voteable, kind: str, vote: str | None, now: float) -> None:
        try:
            # Opened with the first vote; in the loop's thread, as a writer belongs to one.
            if self._writer is None:
                self._writer = SegmentWriter(self.workspace.feedback, self.name)
            self._writer.append(
                encode(
                    Feedback(
                        gateway=self._writer.name,
                        gateway_epoch=self._writer.epoch,
                        seq=self._writer.seq,
                        service_id=self.service_id,
                        at=now,
                        request_id=image.request_id,
                        made_at=image.made_at,
                        assigned_arm=image.assigned_arm,
                        release=image.release,
                        unit=image.unit,
                        kind=kind,
                        vote=vote,
                    )
                )
            )
        except OSError:
            await asyncio.to_thread(self.votes.unmark, image.request_id, kind)
            raise

    def forget(self) -> int:
        oldest = self.clock.now() - (self.settings.token_days + 1) * DAY_S
        return self.votes.forget(int(oldest // DAY_S))

    def roll(self) -> None:
        if self._writer is not None:
            self._writer.roll()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
