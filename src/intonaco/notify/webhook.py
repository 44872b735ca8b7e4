"""Events to an address of the operator's, signed.

The form is that of Standard Webhooks (https://www.standardwebhooks.com/), for which there are
libraries in most languages: ``webhook-id`` is the same whenever an event is sent again,
``webhook-signature`` is HMAC-SHA256 over ``id.timestamp.body``. Redirects are not followed, no
proxy is used, and of what the receiver answers only the status counts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from dataclasses import dataclass

import httpx

from intonaco.clock import Clock
from intonaco.errors import ConfigError
from intonaco.notify.telling import message_id, payload
from intonaco.notify.undelivered import Undelivered
from intonaco.types import Event
from intonaco.upstreams import authorities

PREFIX = "whsec_"  # of a secret in base64
LEAST_SECRET = 16  # bytes
MOST_WAIT_S = 300.0  # that a receiver may ask for
MOST_ANSWER = 500  # bytes of an answer that are read
REFUSED = (400, 413, 415, 422)  # this event, not all


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``text``: the beginning of the body."""

    status: int
    seconds: float
    text: str
    wait_s: float = 0.0


def secret_bytes(given: str) -> bytes:
    """A secret as it is used: what follows ``whsec_`` is base64. Raises ConfigError."""
    try:
        raw = (
            base64.b64decode(given.removeprefix(PREFIX), validate=True)
            if given.startswith(PREFIX)
            else given.encode()
        )
    except binascii.Error:
        raise ConfigError(f"what follows {PREFIX} is not base64") from None
    if len(raw) < LEAST_SECRET:
        raise ConfigError(
            f"a secret of {len(raw)} bytes can be guessed",
            hint=f"take at least {LEAST_SECRET}, as from `openssl rand -hex 32`",
        )
    return raw


def signature(secret: bytes, id: str, timestamp: int, body: bytes) -> str:
    """Of the header ``webhook-signature``."""
    signed = hmac.new(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed.digest()).decode()


class Webhook:
    """Posts events, each once a call."""

    def __init__(self, url: str, secret: bytes | None, clock: Clock, *, timeout_s: float) -> None:
        self.url = url
        self.secret = secret
        self.clock = clock
        self._http = httpx.Client(
            timeout=timeout_s,
            limits=httpx.Limits(max_keepalive_connections=0),  # hours may pass between events
            trust_env=False,
            follow_redirects=False,
            verify=authorities(),
        )

    def send(self, event: Event) -> None:
        """Raises Undelivered."""
        answer = self.post(event)
        status = answer.status
        if 200 <= status < 300:
            return
        more = ", and redirects are not followed" if 300 <= status < 400 else ""
        raise Undelivered(
            f"the receiver answers {status}{more}",
            retriable=status not in REFUSED,
            gone=status == 410,
            wait_s=answer.wait_s,
        )

    def post(self, event: Event) -> Answer:
        """Send it and say what came back. Raises Undelivered if nothing did."""
        body = json.dumps(payload(event), ensure_ascii=False).encode("utf-8", "replace")
        id, now = message_id(event), int(self.clock.now())
        headers = {
            "content-type": "application/json",
            "user-agent": "intonaco",
            "webhook-id": id,
            "webhook-timestamp": str(now),
        }
        if self.secret is not None:
            headers["webhook-signature"] = signature(self.secret, id, now, body)
        began = time.monotonic()
        try:
            with self._http.stream("POST", self.url, content=body, headers=headers) as response:
                text = _beginning(response)
                return Answer(
                    status=response.status_code,
                    seconds=time.monotonic() - began,
                    text=text,
                    wait_s=_wait(response.headers.get("retry-after", "")),
                )
        except httpx.TimeoutException as error:
            raise Undelivered(f"no answer in time ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Not its own words: they may hold the address, which may hold a secret.
            raise Undelivered(f"the receiver cannot be reached ({type(error).__name__})") from None

    def close(self) -> None:
        self._http.close()


def _beginning(response: httpx.Response) -> str:
    try:
        raw = next(response.iter_raw(MOST_ANSWER), b"")
    except httpx.HTTPError:  # the status has come, and says it
        raw = b""
    text = raw[:MOST_ANSWER].decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text)


def _wait(given: str) -> float:
    """Seconds that ``retry-after`` asks for; dates are not read."""
    return min(float(given), MOST_WAIT_S) if given.isascii() and given.isdigit() else 0.0
