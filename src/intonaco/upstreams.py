"""Asks image servers that are not ours, in their own words, and takes what they answer.

A release of such a server is a folder with one file, ``upstream.json``: what was declared of it.
Its digest stands in the manifest where others have those of their weights, so the release's id
changes with every word of the declaration.

What a server answers is not trusted: its size is bounded, its picture is decoded and encoded anew
(texts in a PNG may hold prompts), addresses are followed to its own host alone, and its words are
shown to nobody, since they may repeat a prompt or a key.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pybase64
from PIL import Image, ImageOps
from pydantic import ValidationError

from intonaco.clock import Clock
from intonaco.codec import canonical
from intonaco.declared import PLACEHOLDER, SECRET, Upstream, placeholders
from intonaco.errors import ConfigError, StorageError
from intonaco.messages import GenerateRequest
from intonaco.types import Json, Outcome, Release, ServingSpec
from intonaco.workspace import write_atomic

PIPELINE_CLASS = "http"
FACTS = "upstream.json"
SCHEME = "upstream:"  # of an arm's URL
CONNECT_S = 5.0
# Servers close idle connections after 5 s and more; one that is older may be closing just now.
KEEP_ALIVE_S = 2.0
MOST_WAIT_S = 60.0  # that a server may ask for
DAY_S = 86400.0
MOST_BYTES = 2**27
MOST_PIXELS = 4096 * 4096
DECODES = 2

_CODE = re.compile(r"[\w.-]{1,64}")
_VISIBLE = re.compile(r"[\x20-\x7e]+")
_DATA = re.compile(r"data:[\w/+.-]*;base64,")


class Refused(Exception):
    """The server cannot do what the request asks for: the client's matter."""


class Unusable(Exception):
    """The answer is not what the declaration says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one picture. ``png`` exactly when ``outcome`` is OK; ``wait_s``: how long the
    server asks to be left alone."""

    outcome: Outcome
    error: str = ""
    png: bytes | None = None
    wait_s: float = 0.0


# ------------------------------------------------------------------------------------ releases


def is_upstream(release: Release) -> bool:
    return release.serving.pipeline_class == PIPELINE_CLASS


def serving_spec(name: str, upstream: Upstream, generation: Mapping[str, Json]) -> ServingSpec:
    """The serving section of a declaration; its digest is the release's id."""
    return ServingSpec(
        pipeline_class=PIPELINE_CLASS,
        weights={FACTS: hashlib.sha256(_facts(name, upstream).encode()).hexdigest()},
        scheduler="none",
        generation=dict(generation),
    )


def write_facts(folder: Path, name: str, upstream: Upstream) -> None:
    """Write the declaration into a release's folder."""
    write_atomic(folder / FACTS, _facts(name, upstream))


def _facts(name: str, upstream: Upstream) -> str:
    return canonical({"name": name, **upstream.declared()}) + "\n"


def read_facts(folder: Path, release: Release | None = None) -> tuple[str, Upstream]:
    """Name and declaration of a release's folder. With ``release`` the file must be the one that
    it was made of: whoever changes an address there is sent a key. Raises StorageError."""
    file = folder / FACTS
    try:
        raw = file.read_bytes()
        known = release.serving.weights.get(FACTS) if release is not None else None
        if release is not None and hashlib.sha256(raw).hexdigest() != known:
            raise StorageError(f"{file} was changed after the release was made")
        facts = json.loads(raw)
        return str(facts.pop("name")), Upstream.model_validate(facts | _needs(facts))
    except (OSError, ValueError, KeyError, AttributeError, ValidationError) as error:
        raise StorageError(f"{file} cannot be read: {type(error).__name__}") from error


def _needs(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one setting without which a declaration is not whole."""
    return {"fetch_own_urls": True} if facts.get("response", {}).get("encoding") == "url" else {}


def in_force(upstream: Upstream, now: Upstream | None) -> Upstream:
    """A release's declaration with the settings that may change without a new release, as the
    configuration has them now."""
    return upstream if now is None else upstream.model_copy(update=now.operational())


# ------------------------------------------------------------------------------------ asking


def headers_of(upstream: Upstream, environ: Mapping[str, str]) -> dict[str, str]:
    """The headers with their secrets filled in. Raises ConfigError, which names the variable and
    never its value."""
    headers = {"user-agent": "intonaco", "accept-encoding": "identity"}
    for name, value in upstream.headers.items():
        secret = SECRET.fullmatch(value)
        if secret is None:
            headers[name.lower()] = value
            continue
        found = environ.get(secret[2], "").strip()
        if not _VISIBLE.fullmatch(found):
            what = "holds what no header may" if found else "is not set"
            raise ConfigError(f"headers.{name}: the environment's {secret[2]} {what}")
        headers[name.lower()] = f"{secret[1]} {found}" if secret[1] else found
    return headers


def request_of(
    upstream: Upstream,
    wanted: GenerateRequest,
    generation: Mapping[str, Json],
    environ: Mapping[str, str],
) -> httpx.Request:
    """The request in the server's words. ``generation``: the release's defaults. Raises Refused for
    what it cannot be told, ConfigError for a secret that is missing."""
    if wanted.image is not None and not upstream.edits:
        raise Refused("This model makes pictures from prompts alone; it takes no image.")
    template = upstream.template()
    _check(wanted, generation, frozenset(placeholders(template)))
    values = {
        "prompt": wanted.prompt,
        "negative_prompt": wanted.negative_prompt,
        "seed": wanted.seed,
        "steps": wanted.steps,
        "guidance_scale": wanted.guidance_scale,
        "width": wanted.width,
        "height": wanted.height,
        "size": f"{wanted.width}x{wanted.height}",
        "strength": wanted.strength,
        "model": upstream.model,
    }
    body = {k: v for k, v in _fill(template, values).items() if v is not None}
    headers = headers_of(upstream, environ)
    if wanted.image is not None:
        files = [("image", ("image.png", pybase64.b64decode(wanted.image), "image/png"))]
        if wanted.mask is not None:
            files.append(("mask", ("mask.png", _their_mask(wanted.mask), "image/png")))
        address = upstream.address("images/edits")
        data = {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
        return httpx.Request("POST", address, headers=headers, data=data, files=files)
    address = upstream.address(upstream.path or "images/generations")
    return httpx.Request("POST", address, headers=headers, json=body)


def _check(wanted: GenerateRequest, generation: Mapping[str, Json], told: frozenset[str]) -> None:
    """What the client chose and the server is not told would be ignored in silence."""
    if wanted.negative_prompt and "negative_prompt" not in told:
        raise Refused("This model takes no 'negative_prompt'.")
    if wanted.strength is not None and "strength" not in told:
        raise Refused("This model takes no 'strength'.")
    for name in ("steps", "guidance_scale"):
        value = getattr(wanted, name)
        if name not in told and value != generation.get(name, value):
            raise Refused(f"This model takes no '{name}'; it always has {generation[name]}.")
    size = (wanted.width, wanted.height)
    own = (generation.get("width", size[0]), generation.get("height", size[1]))
    if size != own and not (told >= {"width", "height"} or "size" in told):
        raise Refused(f"This model makes pictures of {own[0]}x{own[1]} alone.")


def _fill(template: Any, values: Mapping[str, Json]) -> Any:
    """The template with values in place of placeholders. A text that is one placeholder takes the
    value's own type; what is filled in is not looked at again."""
    if isinstance(template, Mapping):
        return {k: _fill(v, values) for k, v in template.items()}
    if isinstance(template, list):
        return [_fill(v, values) for v in template]
    if not isinstance(template, str):
        return template
    whole = PLACEHOLDER.fullmatch(template)
    if whole is not None and not whole[1]:
        return values[whole[2] or whole[3]]
    return PLACEHOLDER.sub(
        lambda m: "$" if m[1] else _text(values[m[2] or m[3]]),
        template,
    )


def _text(value: Json) -> str:
    return "" if value is None else str(value)


def _their_mask(mask: str) -> bytes:
    """OpenAI's masks are transparent where to paint; ours are white there."""
    with Image.open(io.BytesIO(pybase64.b64decode(mask))) as opened:
        where = opened.convert("L")
    theirs = Image.new("RGBA", where.size, "black")
    theirs.putalpha(where.point(lambda v: 255 - v))
    return _encoded(theirs)


# ------------------------------------------------------------------------------------ answers


def unpack(upstream: Upstream, body: bytes, pixels: int) -> bytes | str:
    """The picture of an answer as a PNG, or the address on the server's own host where it lies.
    Raises Unusable."""
    if upstream.response is not None and upstream.response.encoding == "binary":
        return plain_png(body, pixels)
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise Unusable("the answer is no JSON") from None
    if upstream.response is None:
        entry = _at(answer, "data.0")
        entry = entry if isinstance(entry, Mapping) else {}
        inline, address = entry.get("b64_json"), entry.get("url")
    else:
        found = _at(answer, str(upstream.response.image))
        by_address = upstream.response.encoding == "url"
        inline, address = (None, found) if by_address else (found, None)
    if isinstance(address, str) and not inline and (data := _DATA.match(address)):
        inline = address[data.end() :]
    if isinstance(inline, str) and inline:
        text = inline[data.end() :] if (data := _DATA.match(inline)) else inline
        try:
            return plain_png(pybase64.b64decode(text, validate=True), pixels)
        except ValueError:
            raise Unusable("the picture is no base64") from None
    if isinstance(address, str) and address:
        return _own(upstream, address)
    raise Unusable("no picture is where the declaration says")


def _at(answer: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(answer, Mapping):
            answer = answer.get(part)
        elif isinstance(answer, list) and part.isdecimal() and int(part) < len(answer):
            answer = answer[int(part)]
        else:
            return None
    return answer


def _own(upstream: Upstream, address: str) -> str:
    if not upstream.fetch_own_urls:
        raise Unusable("the picture is an address, and fetch_own_urls is false")
    try:
        whole = urljoin(upstream.url + "/", address)
        theirs, ours = urlsplit(whole), urlsplit(upstream.url)
        same = (theirs.scheme, theirs.hostname, theirs.port) == (
            ours.scheme,
            ours.hostname,
            ours.port,
        )
    except ValueError:
        raise Unusable("the picture's address is none") from None
    if not same or theirs.username or theirs.password:
        raise Unusable("the picture's address is on another host")
    return whole


def plain_png(data: bytes, pixels: int) -> bytes:
    """A PNG, JPEG or WebP as an opaque RGB PNG that holds nothing but pixels: upright, on white
    where it was transparent. Raises Unusable, also for more than ``pixels``."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
            large = opened.width * opened.height > pixels
            if not large:
                opened.load()
                return _encoded(_flat(ImageOps.exif_transpose(opened)))
    except Exception:  # decoders of foreign bytes raise nearly anything
        raise Unusable("the picture cannot be decoded") from None
    raise Unusable(f"the picture has over {pixels} pixels")


def _flat(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey
        picture = picture.convert("I").point(lambda v: v * (1 / 256)).convert("L")
    if picture.mode not in ("LA", "PA", "RGBA") and "transparency" not in picture.info:
        return picture.convert("RGB")
    clear = picture.convert("RGBA")
    paper = Image.new("RGBA", clear.size, "white")
    paper.alpha_composite(clear)
    return paper.convert("RGB")


def _encoded(picture: Image.Image) -> bytes:
    """Without what a picture carries beside its pixels."""
    out = io.BytesIO()
    plain = Image.frombytes(picture.mode, picture.size, picture.tobytes())
    plain.save(out, format="PNG", compress_level=1)
    return out.getvalue()


def judge(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
    """What a status other than 2xx means. Of a server's words only a code is taken."""
    code = _code(body)
    said = f"{status} {code}" if code else f"{status}"
    if status in (429, 503):
        wait = retry_after(headers.get("retry-after", ""), now) or 0.0
        return Answer(outcome=Outcome.REJECTED, error=said, wait_s=min(wait, MOST_WAIT_S))
    if status in (400, 413, 415, 422):
        text = f"The model's server refused the request{f' ({code})' if code else ''}."
        return Answer(outcome=Outcome.INVALID, error=f"{said}: {text}")
    if status in (408, 504):
        return Answer(outcome=Outcome.TIMEOUT, error=said)
    # A wrong key (401), no money (402), a wrong address (404): every request would fail.
    return Answer(outcome=Outcome.ERROR, error=said)


def _code(body: bytes) -> str:
    try:
        error = json.loads(body[: 2**16])["error"]
        found = error.get("code") or error.get("type") or ""
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""
    return found if isinstance(found, str) and _CODE.fullmatch(found) else ""


def retry_after(text: str, now: float) -> float | None:
    """Seconds of a Retry-After, which is a number or a date (RFC 9110, 10.2.3), at most a day.
    None: it says nothing."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), DAY_S) if math.isfinite(seconds) else None


# ------------------------------------------------------------------------------------ calling


def authorities() -> ssl.SSLContext:
    """The system's, or those that ``SSL_CERT_FILE`` names."""
    return ssl.create_default_context()


def client() -> httpx.AsyncClient:
    """Pooled connections to other people's servers. TLS is verified, no redirect is followed and no
    proxy used."""
    return httpx.AsyncClient(
        verify=authorities(),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
        trust_env=False,
        follow_redirects=False,
    )


@dataclass(slots=True)
class Caller:
    """Belongs to one event loop. ``most_bytes``: of an answer; ``pixels``: of a picture."""

    http: httpx.AsyncClient
    environ: Mapping[str, str]
    clock: Clock
    most_bytes: int = MOST_BYTES
    pixels: int = MOST_PIXELS
    decodes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DECODES))

    async def draw(
        self, upstream: Upstream, wanted: GenerateRequest, generation: Mapping[str, Json]
    ) -> Answer:
        """One picture within ``timeout_s``. Raises httpx.HTTPError where the connection fails."""
        try:
            async with asyncio.timeout(upstream.timeout_s):
                request = await self._request(upstream, wanted, generation)
                status, headers, body = await self._send(request)
                if not 200 <= status < 300:
                    return judge(status, headers, body, self.clock.now())
                found = await self._unpacked(upstream, body)
                if isinstance(found, str):
                    fetch = httpx.Request("GET", found, headers=headers_of(upstream, self.environ))
                    status, headers, body = await self._send(fetch)
                    if status != 200:
                        text = f"the picture's address answered {status}"
                        return Answer(outcome=Outcome.ERROR, error=text)
                    async with self.decodes:
                        found = await asyncio.to_thread(plain_png, body, self.pixels)
        except TimeoutError:
            text = f"no answer within {upstream.timeout_s:g} s"
            return Answer(outcome=Outcome.TIMEOUT, error=text)
        except Refused as refused:
            return Answer(outcome=Outcome.INVALID, error=f"unsupported: {refused}")
        except (Unusable, ConfigError) as error:
            return Answer(outcome=Outcome.ERROR, error=str(error))
        return Answer(outcome=Outcome.OK, png=found)

    async def ready(self, upstream: Upstream) -> bool:
        """Whether it says that it is well, or answers at all where nothing else is declared.
        Raises nothing but what cancels."""
        try:
            headers = headers_of(upstream, self.environ)
            address = upstream.address(upstream.health or "")
            async with self.http.stream("GET", address, headers=headers) as response:
                return well(upstream, response.status_code)
        except (httpx.HTTPError, ConfigError):
            return False

    async def _request(
        self, upstream: Upstream, wanted: GenerateRequest, generation: Mapping[str, Json]
    ) -> httpx.Request:
        if wanted.image is None:
            return request_of(upstream, wanted, generation, self.environ)
        return await asyncio.to_thread(request_of, upstream, wanted, generation, self.environ)

    async def _unpacked(self, upstream: Upstream, body: bytes) -> bytes | str:
        async with self.decodes:
            return await asyncio.to_thread(unpack, upstream, body, self.pixels)

    async def _send(self, request: httpx.Request) -> tuple[int, httpx.Headers, bytes]:
        response = await self.http.send(request, stream=True)
        try:
            parts: list[bytes] = []
            size = 0
            async for part in response.aiter_bytes():
                size += len(part)
                if size > self.most_bytes:
                    raise Unusable(f"an answer over {self.most_bytes} bytes")
                parts.append(part)
        finally:
            await response.aclose()
        return response.status_code, response.headers, b"".join(parts)


def draw_once(
    upstream: Upstream,
    wanted: GenerateRequest,
    generation: Mapping[str, Json],
    environ: Mapping[str, str],
    clock: Clock,
) -> Answer:
    """One picture, without a loop of one's own. Raises httpx.HTTPError."""

    async def draw() -> Answer:
        async with client() as http:
            return await Caller(http, environ, clock).draw(upstream, wanted, generation)

    return asyncio.run(draw())


def well(upstream: Upstream, status: int) -> bool:
    """Whether a status says that the server can be asked."""
    return status < (500 if upstream.health is None else 400)
