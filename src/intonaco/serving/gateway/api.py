"""The public request: OpenAI's Images API, checked, with our extra fields at the top level.

What clients of that API may send and what it does here:

- ``quality``, ``style``, ``moderation``, ``input_fidelity``: known values are accepted and do
  nothing, so that clients work unchanged; ``steps`` and ``strength`` are what decides here.
- ``background``: "auto" and "opaque" are what there is; "transparent" is refused.
- ``safety_identifier``, else ``user``: who asks; decides the arm.
- ``stream`` with ``partial_images`` 0-3: server-sent events, one image, no URL.

A field nobody knows is refused, so that a misspelt one is not silently ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from intonaco import config
from intonaco.config import Generation
from intonaco.messages import ApiError
from intonaco.serving.gateway.intake import Form
from intonaco.serving.gateway.problems import Refused, invalid

MAX_SEED = 2**63 - 1
MAX_IMAGES = 10
MAX_PARTIAL = 3
MOST_BRACKETS = 1000  # of a body; one that is right has two
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_STRING = re.compile(rb'"[^"]*+"?')
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_URL_FIELDS = frozenset({"image", "images", "image_url", "mask", "file_id"})

Format = Literal["png", "jpeg", "webp"]


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it must not hold NUL characters")
    return text


Text = Annotated[str, AfterValidator(_no_nul)]


class ImageFields(BaseModel):
    """Fields that generations and edits share."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[Text, Field(min_length=1)]
    model: Text | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Annotated[str | None, Field(description="WIDTHxHEIGHT or auto")] = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = (
        None
    )
    background: Literal["auto", "opaque", "transparent"] | None = None
    user: Text | None = None
    safety_identifier: Text | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL)] | None = None
    # Ours.
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - MAX_IMAGES)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    negative_prompt: Text | None = None


class GenerationFields(ImageFields):
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["low", "auto"] | None = None


class EditFields(ImageFields):
    input_fidelity: Literal["high", "low"] | None = None
    # Ours: share of the noise put on the image; 1 leaves nothing of it.
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None


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
    partial_images: int | None  # None: no stream
    strength: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``generation``: the defaults. Requests may ask for ``bounds.area_factor`` times their area
    and ``bounds.steps_factor`` times their steps, so that one cannot stand in for hundreds."""

    models: tuple[str, ...]
    generation: Generation
    bounds: config.Limits = field(default_factory=config.Limits)

    @property
    def area(self) -> int:
        return int(self.bounds.area_factor * self.generation.width * self.generation.height)

    @property
    def steps(self) -> int:
        return max(1, int(self.bounds.steps_factor * self.generation.steps))


def parse(text: bytes, limits: Limits) -> Wanted:
    """The request of a JSON body. Raises Refused."""
    _check_nesting(text, limits.bounds.json_depth)
    try:
        fields = GenerationFields.model_validate_json(text)
    except ValidationError as error:
        raise Refused(explain(error)) from None
    return _wanted(fields, limits)


def parse_edit(form: Form, limits: Limits) -> tuple[Wanted, bytes, bytes | None]:
    """The request of a form, its picture and its mask. Raises Refused."""
    image = _one_file(form, "image")
    if image is None:
        raise Refused(_missing("image"))
    mask = _one_file(form, "mask")
    for name in form.files:
        if name not in ("image", "mask"):
            raise Refused(_unknown(name))
    # An empty text field is how a form leaves something out.
    given: dict[str, Any] = {k: v for k, v in form.fields.items() if v or k == "prompt"}
    try:
        fields = EditFields.model_validate_strings(given, strict=False)
    except ValidationError as error:
        raise Refused(explain(error)) from None
    return _wanted(fields, limits), image, mask


def _one_file(form: Form, name: str) -> bytes | None:
    if name in form.fields:
        raise invalid(
            name,
            f"Send '{name}' as a file; this server fetches nothing from addresses.",
        )
    files = form.files.get(name, ())
    if len(files) > 1:
        raise invalid(name, f"This model takes one {name}, got {len(files)}.", "unsupported_value")
    return files[0] if files else None


def _wanted(fields: GenerationFields | EditFields, limits: Limits) -> Wanted:
    _check(fields, limits)
    return Wanted(
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt or "",
        n=fields.n or 1,
        seed=fields.seed,
        steps=fields.steps,
        guidance_scale=fields.guidance_scale,
        size=_size(fields.size, limits),
        user=fields.safety_identifier or fields.user,
        as_url=fields.response_format == "url",
        format=fields.output_format or "png",
        compression=fields.output_compression,
        partial_images=(fields.partial_images or 0) if fields.stream else None,
        strength=fields.strength if isinstance(fields, EditFields) else None,
    )


def _check(fields: ImageFields, limits: Limits) -> None:
    bounds = limits.bounds
    if fields.model is not None and fields.model not in limits.models:
        raise Refused(
            ApiError(
                message=f"The model {fields.model[:80]!r} does not exist; "
                f"there is {limits.models[0]!r}.",
                param="model",
                code="model_not_found",
            ),
            404,
        )
    for name in ("prompt", "negative_prompt"):
        if len(getattr(fields, name) or "") > bounds.prompt_chars:
            raise invalid(name, f"at most {bounds.prompt_chars} characters in '{name}'")
    if (fields.n or 1) > bounds.images:
        raise invalid("n", f"at most {bounds.images} images, got {fields.n}")
    if fields.steps and fields.steps > limits.steps:
        raise invalid("steps", f"at most {limits.steps} steps, got {fields.steps}")
    if fields.background == "transparent":
        raise invalid("background", "The model makes opaque images only.", "unsupported_value")
    if (fields.output_format or "png") == "png" and fields.output_compression not in (None, 100):
        raise invalid("output_compression", "'output_compression' is for jpeg and webp.")
    if fields.stream:
        if (fields.n or 1) > 1:
            raise invalid("n", "Streaming is only supported with n=1.")
        if fields.response_format == "url":
            raise invalid("response_format", "A stream carries its images as b64_json.")
    elif fields.partial_images:
        raise invalid("partial_images", "'partial_images' needs 'stream': true.")


def _size(text: str | None, limits: Limits) -> tuple[int, int] | None:
    if text is None or text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if not match:
        raise invalid("size", f"'size' must be WIDTHxHEIGHT or auto, got {text[:40]!r}")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8:
        raise invalid("size", f"width and height must be multiples of 8, got {text}")
    if width * height > limits.area:
        raise invalid("size", f"at most {limits.area} pixels, got {text}")
    return width, height


def _check_nesting(text: bytes, limit: int) -> None:
    """Brackets outside strings, whether or not the rest is JSON: a parser builds a value for each
    pair before anybody can say that it does not belong there."""
    plain = text.replace(rb"\\", b"").replace(rb"\"", b"")  # without escapes quotes come in pairs
    brackets = _STRING.sub(b"", plain).translate(None, _NOT_BRACKETS)
    deep = max(accumulate(1 if c in b"[{" else -1 for c in brackets[:MOST_BRACKETS]), default=0)
    if deep > limit:
        raise invalid(None, f"The body is nested over {limit} deep.")
    if len(brackets) > MOST_BRACKETS:
        raise invalid(None, f"The body has over {MOST_BRACKETS // 2} lists and objects.")


def _missing(param: str | None) -> ApiError:
    return ApiError(
        message=f"Missing required parameter: '{param}'.",
        param=param,
        code="missing_required_parameter",
    )


def _unknown(param: str | None) -> ApiError:
    message = f"Unknown parameter: '{param}'."
    if param in _URL_FIELDS:
        message += (
            " Pictures go to /v1/images/edits as files of a form;"
            " this server fetches nothing from addresses."
        )
    return ApiError(message=message, param=param, code="unknown_parameter")


def explain(error: ValidationError) -> ApiError:
    """What is wrong first, in the API's words."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(p)[:80] for p in first["loc"][:2]) or None
    if first["type"] == "json_invalid":
        return ApiError(message="The body is not valid JSON.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return _unknown(param)
    if first["type"] == "missing":
        return _missing(param)
    if param is None and first["type"] == "model_type":  # a list, a text, a number
        return ApiError(message="The body must be a JSON object.", code="invalid_value")
    said = first["msg"].removeprefix("Value error, ")
    return ApiError(
        message=f"Invalid value for '{param}': {said}.", param=param, code="invalid_value"
    )
