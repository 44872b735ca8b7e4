"""The public request: OpenAI's Images API, checked, with our extra fields at the top level.

Fields that steer OpenAI's own models and mean nothing here (quality, background, style, moderation)
are accepted and ignored, so that clients work unchanged; a field nobody knows is refused, so that a
misspelt one is not silently ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intonaco.config import Generation
from intonaco.messages import ApiError

MAX_PROMPT = 32_000
MAX_SEED = 2**63 - 1
MAX_IMAGES = 10
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")

Format = Literal["png", "jpeg", "webp"]


class Refused(Exception):
    """The request cannot be served as it is."""

    def __init__(self, error: ApiError, status: int = 400) -> None:
        super().__init__(error.code or error.type)
        self.error = error
        self.status = status


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    quality: str | None = None
    background: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    partial_images: int | None = None
    # Ours.
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - MAX_IMAGES)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A checked request. None where the client left the choice to us."""

    prompt: str
    negative_prompt: str
    n: int
    seed: int | None
    steps: int | None
    guidance_scale: float | None
    size: tuple[int, int] | None
    user: str | None
    as_url: bool
    format: Format
    compression: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``generation``: the defaults. Requests may ask for up to four times the area and the steps,
    so that one of them cannot stand in for hundreds."""

    models: tuple[str, ...]
    generation: Generation

    @property
    def area(self) -> int:
        return 4 * self.generation.width * self.generation.height

    @property
    def steps(self) -> int:
        return 4 * self.generation.steps


def parse(text: bytes, limits: Limits) -> Wanted:
    """The request of a JSON body. Raises Refused."""
    try:
        body = _Body.model_validate_json(text)
    except ValidationError as error:
        raise Refused(_explain(error)) from None
    if body.stream:
        raise Refused(
            ApiError(
                message="This server does not stream images; leave 'stream' out.",
                param="stream",
                code="unsupported_parameter",
            )
        )
    if body.model is not None and body.model not in limits.models:
        raise Refused(
            ApiError(
                message=f"The model {body.model!r} does not exist; there is {limits.models[0]!r}.",
                param="model",
                code="model_not_found",
            ),
            404,
        )
    if body.steps and body.steps > limits.steps:
        raise _invalid("steps", f"at most {limits.steps} steps, got {body.steps}")
    return Wanted(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        n=body.n or 1,
        seed=body.seed,
        steps=body.steps,
        guidance_scale=body.guidance_scale,
        size=_size(body.size, limits),
        user=body.user or body.safety_identifier,
        as_url=body.response_format == "url",
        format=body.output_format or "png",
        compression=body.output_compression,
    )


def _size(text: str | None, limits: Limits) -> tuple[int, int] | None:
    if text is None or text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if not match:
        raise _invalid("size", f"'size' must be WIDTHxHEIGHT or auto, got {text!r:.40}")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8:
        raise _invalid("size", f"width and height must be multiples of 8, got {text}")
    if width * height > limits.area:
        raise _invalid("size", f"at most {limits.area} pixels, got {text}")
    return width, height


def _invalid(param: str, message: str) -> Refused:
    return Refused(ApiError(message=message, param=param, code="invalid_value"))


def _explain(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(p) for p in first["loc"]) or None
    if first["type"] == "json_invalid":
        return ApiError(message="The body is not valid JSON.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(
            message=f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter"
        )
    if first["type"] == "missing":
        return ApiError(
            message=f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    return ApiError(
        message=f"Invalid value for '{param}': {first['msg']}.", param=param, code="invalid_value"
    )
