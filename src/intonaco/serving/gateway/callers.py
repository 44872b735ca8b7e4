"""Who calls: API keys, how often they may, and who may choose a release."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from intonaco.clock import Clock
from intonaco.config import ApiKey
from intonaco.errors import ConfigError
from intonaco.messages import ApiError
from intonaco.serving.gateway.problems import Refused

MOST_BUCKETS = 10_000


def bearer(request: Request) -> str | None:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    return value if kind.lower() == "bearer" and value else None


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Keys:
    """Names and sha256 of the keys that may call. None at all: everybody may."""

    digests: Mapping[str, bytes] = field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, keys: Sequence[ApiKey], environ: Mapping[str, str]) -> Keys:
        """Raises ConfigError where the environment lacks a key."""
        digests = {}
        for key in keys:
            if key.sha256 is not None:
                digests[key.name] = bytes.fromhex(key.sha256)
                continue
            variable = (key.key or "").removeprefix("env:")
            plain = environ.get(variable, "")
            if not plain:
                raise ConfigError(
                    f"serving.gateway.api_keys: {variable} is not set in the environment",
                    hint="set it to the key, or give the key's sha256 instead",
                )
            digests[key.name] = _sha256(plain)
        return cls(digests)

    def name(self, given: str | None) -> str | None:
        """The key's name; None where none are wanted. Raises Refused (401)."""
        if not self.digests:
            return None
        digest = _sha256(given or "")
        # All are compared, so that time tells nothing of which one it was.
        found = [n for n, d in self.digests.items() if hmac.compare_digest(d, digest)]
        if given is None or not found:
            what = "No API key was given" if given is None else "The API key is wrong"
            raise Refused(
                ApiError(
                    message=f"{what}; send one as 'Authorization: Bearer KEY'.",
                    code="invalid_api_key",
                ),
                401,
            )
        return found[0]


@dataclass(slots=True)
class Buckets:
    """Token buckets, one a caller: ``per_second`` on average, ``burst`` at once. None: no limit.

    Those used longest ago are forgotten beyond MOST_BUCKETS, which lets their callers start full.
    """

    clock: Clock
    per_second: float | None
    burst: int
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, caller: str) -> None:
        """One request. Raises Refused (429) with the seconds until the next may come."""
        if self.per_second is None:
            return
        now = self.clock.now()
        left, at = self._left.pop(caller, (float(self.burst), now))
        left = min(float(self.burst), left + max(0.0, now - at) * self.per_second)
        wait = (1.0 - left) / self.per_second
        self._left[caller] = (left if wait > 0 else left - 1.0, now)
        while len(self._left) > MOST_BUCKETS:
            self._left.popitem(last=False)
        if wait > 0:
            raise Refused(
                ApiError(
                    message="Too many requests; wait as long as 'retry-after' says.",
                    type="rate_limit_error",
                    code="rate_limit_exceeded",
                ),
                429,
                retry_after=wait,
            )


def caller(key: str | None, request: Request) -> str:
    """Whose bucket it is: the API key's, else the address's (of IPv6 the /64 network, which is what
    one customer has)."""
    if key is not None:
        return f"key:{key}"
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"host:{host}"
    if address.version == 6:
        return f"net:{ipaddress.ip_network((address, 64), strict=False)}"
    return f"host:{address}"


def may_pin(pinning: bool | Collection[str], key: str | None, unit: str) -> bool:
    """Whether this caller may choose a release. A unit is what the caller says it is: list units
    only where something in front of the gateway sets them."""
    if isinstance(pinning, bool):
        return pinning
    return key in pinning or unit in pinning
