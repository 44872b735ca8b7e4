"""The public API as an OpenAPI 3.1 document, with this service's own limits.

Written by hand around the models that check requests; a test holds every answer of the gateway
against it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

import intonaco
from intonaco.messages import ARM, ASSIGNED_ARM, RELEASE, REQUEST_ID, USER_ID
from intonaco.serving.gateway.api import EditFields, GenerationFields, ImageFields, Limits
from intonaco.serving.gateway.feedback import FeedbackFields

Json = dict[str, Any]

ERRORS = {
    400: "The request is wrong; `error.param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The caller may not choose a release.",
    404: "There is no such thing.",
    405: "The address does not take that method.",
    408: "The body did not arrive in time.",
    409: "The image has that feedback already.",
    413: "The body is too large.",
    415: "The content type or encoding is not taken.",
    429: "Too much at once; wait as long as `retry-after` says.",
    500: "The server failed.",
    502: "The model failed, code `model_error`.",
    503: "Not available now; wait as long as `retry-after` says. Codes: `no_worker` if none of the "
    "model can be reached, `no_release` before the first release, `storage` for feedback.",
    504: "The request took too long.",
}
MAKING = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)
EVENT_FIELDS: Json = {
    "b64_json": {"type": "string"},
    "background": {"const": "opaque"},
    "created_at": {"type": "integer"},
    "output_format": {"enum": ["png", "jpeg", "webp"]},
    "quality": {"const": "auto", "description": "`quality` decides nothing here."},
    "size": {"type": "string"},
}
SCHEMAS: Json = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "Image": {
        "type": "object",
        "required": ["seed"],
        "properties": {
            "b64_json": {"type": "string"},
            "url": {"type": "string", "format": "uri"},
            "seed": {"type": "integer", "description": "Makes the same image again."},
            "feedback_token": {"type": "string", "description": "For `POST /v1/feedback`."},
        },
    },
    "Images": {
        "type": "object",
        "required": ["created", "data"],
        "properties": {
            "created": {"type": "integer"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Image"}},
            "background": {"const": "opaque"},
            "output_format": {"enum": ["png", "jpeg", "webp"]},
            "size": {"type": "string"},
            "model": {"type": "string"},
            "release": {"type": ["string", "null"]},
        },
    },
    "PartialImage": {
        "type": "object",
        "description": "Event `*.partial_image`.",
        "required": ["type", "partial_image_index", *EVENT_FIELDS],
        "properties": {
            "type": {"enum": ["image_generation.partial_image", "image_edit.partial_image"]},
            "partial_image_index": {"type": "integer", "minimum": 0},
            **EVENT_FIELDS,
        },
    },
    "Completed": {
        "type": "object",
        "description": "Event `*.completed`, the last one. `usage` holds zeros: a diffusion model "
        "counts no tokens.",
        "required": ["type", "usage", "seed", *EVENT_FIELDS],
        "properties": {
            "type": {"enum": ["image_generation.completed", "image_edit.completed"]},
            "usage": {"type": "object"},
            "seed": {"type": "integer"},
            "arm": {"type": "string"},
            "release": {"type": "string"},
            "feedback_token": {"type": "string"},
            **EVENT_FIELDS,
        },
    },
    "Event": {
        "type": "object",
        "description": "With `stream`, each event. Comments keep a quiet stream alive.",
        "required": ["event", "data"],
        "properties": {
            "event": {
                "enum": [
                    "image_generation.partial_image",
                    "image_generation.completed",
                    "image_edit.partial_image",
                    "image_edit.completed",
                    "error",
                ]
            },
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {
                    "oneOf": [
                        {"$ref": "#/components/schemas/PartialImage"},
                        {"$ref": "#/components/schemas/Completed"},
                        {"$ref": "#/components/schemas/Error"},
                    ]
                },
            },
        },
    },
    "Model": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string"},
        },
    },
    "Models": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
    },
    "FeedbackTaken": {
        "type": "object",
        "required": ["object", "request_id", "kind", "vote"],
        "properties": {
            "object": {"const": "feedback"},
            "request_id": {"type": "string"},
            "kind": {"type": "string"},
            "vote": {"type": ["string", "null"]},
        },
    },
}
NOTES = {
    "background": "`transparent` is refused: the model makes opaque images.",
    "guidance_scale": "How closely the prompt is followed; the release's default if absent.",
    "image": "One picture: PNG, JPEG or WebP, not animated. It is turned upright as its EXIF says, "
    "freed of metadata, put on white and scaled to the size of the answer.",
    "input_fidelity": "Accepted and ignored; `strength` decides.",
    "mask": "PNG or WebP as large as the image; its fully transparent pixels are painted anew.",
    "moderation": "Accepted and ignored.",
    "n": "Each image has a seed of its own, counted up from `seed`.",
    "output_compression": "Quality of jpeg and webp in per cent, 100 by default.",
    "partial_images": "Unfinished pictures that a stream shows.",
    "quality": "Accepted and ignored; `steps` decides.",
    "response_format": "`url`: an address of this server with 96 random bits in it.",
    "safety_identifier": "Who asks, before `user`: decides which release answers.",
    "seed": "The same seed, request and release make the same image. Random if absent.",
    "steps": "Denoising steps; the release's default if absent.",
    "stream": "Server-sent events; with `n` 1 and without `response_format` url.",
    "strength": "How much of the image is repainted, 1 for all; the pipeline's default if absent.",
    "style": "Accepted and ignored.",
    "user": "Who asks: decides which release answers.",
}
FEEDBACK = (
    "Needs the token that came with the image, no API key. `explicit` takes `vote` or `stars`; "
    "`regenerate` and `download` take neither. Each counts once an image: the first one."
)


def document(limits: Limits) -> Json:
    """OpenAPI of the public API under these limits."""
    made = _json("Images", "The images.")
    made["content"]["text/event-stream"] = {"schema": _ref("Event")}
    made["headers"] |= {n: {"schema": {"type": "string"}} for n in (ASSIGNED_ARM, ARM, RELEASE)}
    who = [
        _header(USER_ID, "Who asks, before the fields of the body."),
        _header(RELEASE, "Answer by this release, where the caller may choose."),
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{limits.models[0]} on Intonaco",
            "version": intonaco.__version__,
            "description": "OpenAI's Images API with `seed`, `steps`, `guidance_scale`, "
            "`negative_prompt` and `strength` beside its own fields.",
        },
        "components": {
            "schemas": SCHEMAS
            | {
                "Generation": _fields(GenerationFields, limits),
                "Edit": _edit(limits),
                "Feedback": FeedbackFields.model_json_schema(),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            "/v1/images/generations": {
                "post": _operation("createImage", "Make images", made, MAKING)
                | {"parameters": who, "requestBody": _body("application/json", "Generation")}
            },
            "/v1/images/edits": {
                "post": _operation("editImage", "Make images from a picture", made, MAKING)
                | {"parameters": who, "requestBody": _body("multipart/form-data", "Edit")}
            },
            "/v1/files/{name}": {
                "get": _operation(
                    "getFile", "A stored image", _picture(), (404, 405, 500), free=True
                )
                | {"parameters": [_path("name")]}
            },
            "/v1/models": {
                "get": _operation("listModels", "Models", _json("Models", "All."), (401, 405, 500))
            },
            "/v1/models/{name}": {
                "get": _operation(
                    "getModel", "A model", _json("Model", "It."), (401, 404, 405, 500)
                )
                | {"parameters": [_path("name")]}
            },
            "/v1/feedback": {
                "post": _operation(
                    "createFeedback",
                    "Say what an image is worth",
                    _json("FeedbackTaken", "Taken."),
                    (400, 405, 408, 409, 413, 415, 429, 500, 503),
                    good=201,
                    free=True,
                )
                | {
                    "description": FEEDBACK,
                    "requestBody": _body("application/json", "Feedback"),
                }
            },
            "/livez": {"get": _operation("live", "Alive", _plain(), (405, 500), free=True)},
            "/readyz": {
                "get": _operation(
                    "ready", "Ready: a champion's worker is", _plain(), (405,), free=True
                )
                | {"responses": _answers(200, _plain(), (405, 500)) | {"503": _plain()}}
            },
            "/metrics": {
                "get": _operation(
                    "metrics",
                    "Prometheus metrics",
                    {"description": "Text.", "content": {"text/plain": {}}, **_id_header()},
                    (405, 500),
                    free=True,
                )
            },
            "/openapi.json": {
                "get": _operation("openapi", "This", _plain(), (405, 500), free=True)
            },
        },
    }


def _operation(
    name: str,
    summary: str,
    answer: Json,
    errors: tuple[int, ...],
    *,
    good: int = 200,
    free: bool = False,
) -> Json:
    """``free``: no API key is wanted, even where there are some."""
    return {
        "operationId": name,
        "summary": summary,
        "security": [{}] if free else [{"key": []}, {}],
        "responses": _answers(good, answer, errors),
    }


def _answers(good: int, answer: Json, errors: tuple[int, ...]) -> Json:
    return {str(good): answer} | {str(s): _json("Error", ERRORS[s]) for s in errors}


def _json(schema: str, text: str) -> Json:
    return {
        "description": text,
        "content": {"application/json": {"schema": _ref(schema)}},
        **_id_header(),
    }


def _plain() -> Json:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {"description": "The state.", "content": content, **_id_header()}


def _picture() -> Json:
    media = ("image/png", "image/jpeg", "image/webp")
    return {"description": "The image.", "content": {m: {} for m in media}, **_id_header()}


def _id_header() -> Json:
    return {"headers": {REQUEST_ID: {"schema": {"type": "string"}}}}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _body(media: str, schema: str) -> Json:
    return {"required": True, "content": {media: {"schema": _ref(schema)}}}


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _header(name: str, text: str) -> Json:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


def _fields(model: type[BaseModel], limits: Limits) -> Json:
    schema = model.model_json_schema()
    schema["description"] = " ".join((ImageFields.__doc__ or "").split())
    found = schema["properties"]
    for name, field in found.items():
        field.pop("title", None)
        if name in NOTES:
            field["description"] = NOTES[name]
    _bound(found["prompt"], "string", "maxLength", limits.bounds.prompt_chars)
    _bound(found["negative_prompt"], "string", "maxLength", limits.bounds.prompt_chars)
    _bound(found["n"], "integer", "maximum", limits.bounds.images)
    _bound(found["steps"], "integer", "maximum", limits.steps)
    for option in found["background"]["anyOf"]:
        if "enum" in option:
            option["enum"] = ["auto", "opaque"]
    found["model"] |= {"examples": list(limits.models)}
    found["size"]["description"] = (
        f"WIDTHxHEIGHT in multiples of 8, at most {limits.area} pixels, or auto."
    )
    return schema


def _bound(field: Json, kind: str, name: str, value: int) -> None:
    for option in field.get("anyOf", [field]):
        if option.get("type") == kind:
            option[name] = value


def _edit(limits: Limits) -> Json:
    schema = _fields(EditFields, limits)
    binary = {"type": "string", "format": "binary"}
    for field in schema["properties"].values():  # a form has no null: what is absent is left out
        if "anyOf" in field:
            (option,) = (o for o in field.pop("anyOf") if o != {"type": "null"})
            field |= option
        field.pop("default", None)
    schema["properties"] = {
        "image": binary | {"description": NOTES["image"]},
        "mask": binary | {"description": NOTES["mask"]},
        **schema["properties"],
    }
    schema["required"] = ["image", *schema["required"]]
    return schema
