"""The published OpenAPI tells the truth: every route, every status, every field.

All answers of the tests that use ``fixtures_gateway`` are held against it besides.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures_gateway import NEW, OLD, Stage, in_one_loop, png

import intonaco
from intonaco.serving.gateway import openapi
from intonaco.serving.gateway.dispatch import _ERRORS

SOURCE = Path(intonaco.__file__).parent / "serving" / "gateway"


@pytest.fixture
async def document(tmp_path: Path) -> dict[str, Any]:
    async with in_one_loop(tmp_path) as stage:
        answer = await stage.http.get("/openapi.json")
        found: dict[str, Any] = answer.json()
        assert found == openapi.document(stage.gateway.limits)
        return found


async def test_routes_are_the_apps(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        published = {
            (path, method.upper())
            for path, operations in openapi.document(stage.gateway.limits)["paths"].items()
            for method in operations
        }
        served = {
            (r.path_format, method)
            for r in stage.gateway.public_routes()
            for method in r.methods or ()
            if method != "HEAD"
        }
    assert published == served


async def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [r for v in value.values() for r in references(v)]
        if isinstance(value, list):
            return [r for v in value for r in references(v)]
        return []

    names = {r.removeprefix("#/components/schemas/") for r in references(document)}
    assert names <= set(document["components"]["schemas"])
    identities = [o["operationId"] for p in document["paths"].values() for o in p.values()]
    assert len(set(identities)) == len(identities)


async def test_fields_have_this_services_limits(tmp_path: Path) -> None:
    more = "limits: {images: 3, prompt_chars: 99, steps_factor: 2}"
    async with in_one_loop(tmp_path, more) as stage:
        schemas = openapi.document(stage.gateway.limits)["components"]["schemas"]
    for name in ("Generation", "Edit"):
        fields = schemas[name]["properties"]
        assert fields["prompt"]["maxLength"] == 99
        n, steps = fields["n"], fields["steps"]
        if name == "Generation":  # JSON has null, a form has not
            n, steps = n["anyOf"][0], steps["anyOf"][0]
        assert (n["maximum"], steps["maximum"]) == (3, 20)
        assert schemas[name]["additionalProperties"] is False
        assert set(openapi.NOTES) - {"image", "mask"} <= set(
            schemas["Generation"]["properties"] | schemas["Edit"]["properties"]
        )
    assert schemas["Edit"]["required"] == ["image", "prompt"]


async def test_statuses_in_the_code_are_declared(document: dict[str, Any]) -> None:
    """Numbers that look like statuses in the modules of the public API."""
    used = {status for status, _ in _ERRORS.values()}
    for path in SOURCE.glob("*.py"):
        if path.name in ("admin.py", "routing.py", "state.py", "upstream.py", "main.py"):
            continue
        text = re.sub(r"#.*", "", path.read_text())
        used |= {int(n) for n in re.findall(r"(?<![\w.])([45]\d\d)(?![\w.])", text)}
    declared = {
        int(status)
        for operations in document["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
    }
    assert used - declared == {499}, "499 is for the log: its client has hung up"
    assert declared - used - {200, 201} == set()


async def every_answer(stage: Stage) -> None:
    """Provoke as many answers as can be provoked."""
    assert (await stage.ask()).status_code == 503
    assert (await stage.http.get("/readyz")).status_code == 503
    stage.route()
    picture = png((8, 8))
    for status, worker in ((400, 400), (429, 429), (502, 500), (504, 504), (200, None)):
        stage.old.fail_status = worker
        assert (await stage.ask()).status_code == status
        assert (await stage.ask(stream=True)).status_code == status
        assert (await stage.edit(picture)).status_code == status
    for kind in ("png", "jpeg", "webp"):
        url = (await stage.ask(response_format="url", output_format=kind)).json()["data"][0]["url"]
        assert (await stage.http.get(url)).status_code == 200
    probe = {"x-intonaco-probe": "1", "x-intonaco-release": OLD}
    pin = {"x-intonaco-release": NEW}
    assert (await stage.ask(probe)).status_code == 401
    assert (await stage.ask(pin)).status_code == 403
    assert (await stage.ask(pin, user="tester")).status_code == 200
    assert (await stage.ask({"x-intonaco-release": "c"}, user="tester")).status_code == 404
    assert (await stage.ask(model="other")).status_code == 404
    for path, status in (
        *(("/v1/models", 200), ("/v1/models/m", 200), ("/v1/models/x", 404), ("/livez", 200)),
        *(("/readyz", 200), ("/metrics", 200), ("/v1/files/x.png", 404), ("/nowhere", 404)),
        *(("/v1/images/edits", 405), ("/v1/feedback", 405), ("/v1/images", 404)),
    ):
        answer = await stage.http.get(path)
        assert answer.status_code == status
        if status >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/v1/files/a.png"):
        refused = await stage.http.request("DELETE", path)
        assert refused.status_code == 405
        assert "GET" in refused.headers["allow"]


async def test_answers_are_declared_and_have_the_declared_fields(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path, "pinning: [tester]") as stage:
        await every_answer(stage)
        seen = stage.app.seen
        assert {s for _, _, s in seen} >= {200, 400, 401, 403, 404, 429, 502, 503, 504}
        schemas = stage.app.document["components"]["schemas"]
        answer = (await stage.ask()).json()
        assert (
            set(schemas["Images"]["required"])
            <= set(answer)
            <= set(schemas["Images"]["properties"])
        )
        item = answer["data"][0]
        assert set(item) <= set(schemas["Image"]["properties"])
        assert base64.b64decode(item["b64_json"]).startswith(b"\x89PNG")
        for line in (await stage.ask(stream=True, partial_images=1)).text.splitlines():
            if line.startswith("data: "):
                fields = json.loads(line.removeprefix("data: "))
                name = "Completed" if fields["type"].endswith("completed") else "PartialImage"
                assert set(schemas[name]["required"]) <= set(fields)
                assert set(fields) <= set(schemas[name]["properties"])
    # The fixture has failed by now if any answer was not declared.
