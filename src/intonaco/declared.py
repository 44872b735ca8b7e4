"""Image servers that are not ours, as ``serving.upstreams`` declares them.

A server's identity is declared here and proved by nobody: what it runs behind its address, only its
owner knows. So ``version`` is to be changed whenever the owner changes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urljoin, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

UPSTREAM_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
PLACEHOLDERS = frozenset(
    {
        *("prompt", "negative_prompt", "seed", "steps", "guidance_scale"),
        *("width", "height", "size", "strength", "model"),
    }
)
# A header's value that holds a secret: env:NAME, or one word before it, as in "Bearer env:NAME".
SECRET = re.compile(r"(?:([A-Za-z][\w.-]*) )?env:([A-Za-z_]\w*)")
PLACEHOLDER = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
OPERATIONAL = frozenset({"health", "timeout_s", "fetch_own_urls"})

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_SECRETIVE = re.compile(r"auth|key|token|secret|cookie|passw|credential", re.IGNORECASE)
_OURS = frozenset(
    {
        *("host", "content-length", "content-type", "transfer-encoding", "connection"),
        *("accept-encoding", "te", "upgrade", "expect"),
    }
)


class Response(BaseModel):
    """Where a server's answer holds the picture. ``image``: keys and indexes of its JSON, joined by
    points (``images.0``). ``encoding``: "base64" in that place, an address there ("url"), or
    "binary": the answer's body is the picture."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: Annotated[str, Field(pattern=r"^[^.\s]+(\.[^.\s]+)*$")] | None = None
    encoding: Literal["base64", "url", "binary"] = "base64"

    @model_validator(mode="after")
    def _has_a_place(self) -> Response:
        if (self.image is None) != (self.encoding == "binary"):
            raise ValueError("give image (such as images.0), unless encoding is binary")
        return self


class Upstream(BaseModel):
    """An image server with its own life. ``api``: "openai" (the Images API below ``url``) or
    "mapping" (``path``, ``request`` and ``response`` say how to ask it). All but ``health``,
    ``timeout_s`` and ``fetch_own_urls`` is part of the release's id.

    ``request``: the JSON to send, with ``$prompt``, ``$seed`` and so on in its texts; for "openai"
    it is laid over what is sent anyway, and null takes a field out. ``headers``: values, secrets
    only as ``env:NAME`` or ``Bearer env:NAME``. ``seed``: it gives the same image for the same
    seed. ``health``: a path that answers below 400 when it is well; without one any answer below
    500 will do. ``fetch_own_urls``: fetch a picture that it names by an address on its own host."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    url: str
    api: Literal["openai", "mapping"] = "openai"
    model: str | None = None
    version: str = ""
    headers: dict[str, str] = {}
    path: str | None = None
    request: dict[str, Any] = {}
    response: Response | None = None
    seed: bool = False
    edits: bool = False
    health: str | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    fetch_own_urls: bool = False

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise ValueError("must be http://HOST or https://HOST, perhaps with a port and a path")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password, query or fragment; use headers")
        return url.rstrip("/")

    @field_validator("path", "health")
    @classmethod
    def _is_a_path(cls, path: str | None) -> str | None:
        if path is not None:
            parts = urlsplit(path)
            if parts.scheme or parts.netloc or parts.fragment or not path:
                raise ValueError("must be a path on the server: /FROM/ITS/ROOT, or BELOW/THE/URL")
        return path

    @field_validator("headers")
    @classmethod
    def _hold_no_secrets(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER.fullmatch(name) or name.lower() in _OURS:
                raise ValueError(f"{name[:40]!r} cannot be set as a header here")
            if _SECRETIVE.search(name) and not SECRET.fullmatch(value):
                raise ValueError(
                    f"{name}: write env:NAME or Bearer env:NAME; secrets do not belong in here"
                )
            if not _VALUE.fullmatch(value):
                raise ValueError(f"{name}: only printable ASCII")
        return headers

    @model_validator(mode="after")
    def _can_be_asked(self) -> Upstream:
        if self.api == "openai":
            if self.response is not None or self.path is not None:
                raise ValueError("path and response are for api: mapping")
        elif self.path is None or self.response is None:
            raise ValueError("api: mapping needs path and response")
        elif self.edits:
            raise ValueError("edits are for api: openai")
        by_address = self.response is not None and self.response.encoding == "url"
        if by_address and not self.fetch_own_urls:
            raise ValueError("response.encoding url needs fetch_own_urls: true")
        used = frozenset(placeholders(self.template()))
        if unknown := sorted(used - PLACEHOLDERS):
            known = ", ".join(f"${p}" for p in sorted(PLACEHOLDERS))
            raise ValueError(f"request: ${unknown[0]} is unknown; known are {known} ($$: a dollar)")
        if "prompt" not in used:
            raise ValueError("request: $prompt is nowhere in it")
        if self.seed != ("seed" in used):
            raise ValueError("request holds $seed exactly if seed is true")
        if "model" in used and self.model is None:
            raise ValueError("request: $model is in it, and no model is given")
        return self

    def template(self) -> dict[str, Any]:
        """What is sent, with placeholders."""
        if self.api == "mapping":
            return self.request
        base: dict[str, Any] = {
            "prompt": "$prompt",
            "n": 1,
            "size": "$size",
            "response_format": "b64_json",
        }
        if self.model is not None:
            base["model"] = "$model"
        if self.seed:
            base["seed"] = "$seed"
        return {k: v for k, v in (base | self.request).items() if v is not None}

    def declared(self) -> dict[str, Any]:
        """What is part of a release's id: everything that decides an image or where it comes from.
        Without defaults, so that a field that is new one day changes no id."""
        return self.model_dump(mode="json", exclude=set(OPERATIONAL), exclude_defaults=True)

    def operational(self) -> dict[str, Any]:
        """The rest: what may be changed without a new release."""
        return self.model_dump(mode="json", include=set(OPERATIONAL))

    def address(self, path: str) -> str:
        """A path of this server: from its root with a slash in front, else below ``url``."""
        return urljoin(self.url + "/", path)

    def secrets(self) -> tuple[str, ...]:
        """Names of the environment's variables that it needs."""
        found = (SECRET.fullmatch(v) for v in self.headers.values())
        return tuple(sorted({m[2] for m in found if m}))


def placeholders(template: Any) -> Iterator[str]:
    """Names of the placeholders in a request."""
    if isinstance(template, str):
        for dollar, plain, braced in PLACEHOLDER.findall(template):
            if not dollar:
                yield plain or braced
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from placeholders(value)
    elif isinstance(template, list):
        for value in template:
            yield from placeholders(value)
