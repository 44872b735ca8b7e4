"""The console's OpenAPI tells the truth, and nothing that is sent to it makes it fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from intonaco.clock import FakeClock
from intonaco.config import Config
from intonaco.console import create_app, openapi
from intonaco.console.main import settings
from intonaco.console.problems import POLICY, REPORT_POLICY, SECURITY_HEADERS
from intonaco.ledger import Ledger
from intonaco.serving.http import bind
from intonaco.types import Observed
from intonaco.workspace import Workspace

SECOND = "b2" * 32
Json = dict[str, Any]
DOCUMENT: Json = openapi.document()
ASKS = ("/api/trigger", "/api/curation/{update_id}/word")  # paths that take something
REVIEW = ("/review/", "/api/review/")  # what test_console_review.py looks at
SESSION = "/api/session"  # what test_console_steering.py looks at, with all that only takes POST
PATHS = [
    p
    for p, item in DOCUMENT["paths"].items()
    if "get" in item and p not in (*ASKS, SESSION) and not p.startswith(REVIEW)
]
READS = [p for p in PATHS if "503" in DOCUMENT["paths"][p]["get"]["responses"]]
FILLED = {
    **{"release_id": SECOND, "finding_id": "f1", "update_id": "u2", "page": "events"},
    **{"rollout_id": "u2-1", "number": "1"},
}


@pytest.fixture
def apps(
    workspace: Workspace, config: Config, now: float, observed: Observed
) -> Callable[[Ledger], Starlette]:
    def build(ledger: Ledger) -> Starlette:
        clock = FakeClock(now)
        return create_app(ledger, workspace, config, clock=clock, observe=lambda: observed)

    return build


def declared(app: Starlette) -> TestClient:
    """A client that holds each answer against the document."""

    class Checking(TestClient):
        def request(self, method: str, url: Any, **how: Any) -> Any:
            answer = super().request(method, url, **how)
            check(method, answer.request.url.path, answer)
            return answer

    return Checking(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def check(method: str, path: str, answer: Any) -> None:
    """Raises AssertionError for what the document does not tell of."""
    asked = "get" if method.upper() == "HEAD" else method.lower()
    operation = DOCUMENT["paths"].get(template(path), {}).get(asked)
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if operation is None:
        assert answer.status_code in (400, 404, 405), (method, path, answer.status_code)
    else:
        said = operation["responses"].get(str(answer.status_code))
        assert said is not None, f"{path} answers {answer.status_code}"
        media = said.get("content", {})
        assert not media or kind in media or "*/*" in media, f"{path} answers as {kind}"
        schema = media.get(kind, {}).get("schema")
        if schema and method.upper() != "HEAD":
            hold(answer.json(), schema, path)
    if path.startswith("/api/") and answer.status_code >= 400 and method.upper() != "HEAD":
        hold(answer.json(), {"$ref": "#/components/schemas/Error"}, path)
    report = path.startswith("/evaluations/") and answer.status_code == 200
    for name, value in (SECURITY_HEADERS | ({POLICY: REPORT_POLICY} if report else {})).items():
        assert answer.headers[name] == value


def template(path: str) -> str | None:
    """Which entry of the document a path is an example of."""
    if path in DOCUMENT["paths"]:
        return path
    if path.startswith("/api/curation/") and path.endswith("/word"):
        return ASKS[1]
    for prefix in (
        *("/images/{path}", "/static/{path}", "/proposed/{path}"),
        *("/api/releases/{release_id}", "/api/findings/{finding_id}"),
        *("/api/curation/{update_id}", "/api/commands/{number}"),
    ):
        if path.startswith(prefix.partition("{")[0]):
            return prefix
    if path.startswith("/api/rollouts/"):
        return "/api/rollouts/{rollout_id}" + ("/{command}" if path.count("/") > 3 else "")
    for prefix in (
        *("/partials/rollouts/{rollout_id}", "/rollouts/{rollout_id}"),
        *("/releases/{release_id}", "/findings/{finding_id}", "/curation/{update_id}"),
        "/evaluations/{update_id}",
        *("/partials/{page}", "/{page}"),
    ):
        head, _, _ = prefix.partition("{")
        if path.startswith(head) and "/" not in path[len(head) :]:
            return prefix
    return None


def hold(value: Any, schema: Json, where: str) -> None:
    """The part of JSON Schema that the document uses."""
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        kinds = [s for s in schema["anyOf"] if (s == {"type": "null"}) == (value is None)]
        hold(value, kinds[0], where)
        return
    if "enum" in schema:
        assert value in schema["enum"], where
        return
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert kind_of(value) & set(kinds), f"{where}: {value!r} is no {kinds}"
    if "minimum" in schema and value is not None:
        assert value >= schema["minimum"], where
    if isinstance(value, list):
        for k, item in enumerate(value):
            hold(item, schema.get("items", {"type": kind_of(item).pop()}), f"{where}[{k}]")
    if isinstance(value, dict):
        missing = set(schema.get("required", ())) - set(value)
        assert not missing, f"{where}: no {missing}"
        for name, item in value.items():
            known = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if known:
                hold(item, known, f"{where}.{name}")


def kind_of(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {str: "string", float: "number", list: "array", dict: "object", type(None): "null"}
    return {names[type(value)]}


@pytest.fixture
def client(ledger: Ledger, apps: Callable[[Ledger], Starlette]) -> Iterator[TestClient]:
    with declared(apps(ledger)) as opened:
        yield opened


def test_the_document_is_published_and_its_references_lead_somewhere(client: TestClient) -> None:
    assert client.get("/openapi.json").json() == DOCUMENT
    names: set[str] = set()

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                names.add(value["$ref"].removeprefix("#/components/schemas/"))
            for each in value.values():
                gather(each)
        elif isinstance(value, list):
            for each in value:
                gather(each)

    gather(DOCUMENT)
    assert names == set(DOCUMENT["components"]["schemas"])
    identities = [o["operationId"] for p in DOCUMENT["paths"].values() for o in p.values()]
    assert len(set(identities)) == len(identities)


def test_routes_are_the_apps(ledger: Ledger, apps: Callable[[Ledger], Starlette]) -> None:
    served = set()
    for route in apps(ledger).routes:
        if isinstance(route, Mount):
            served.add(f"{route.path}/{{path}}")
        else:
            assert isinstance(route, Route)
            declared = {m.upper() for m in DOCUMENT["paths"][route.path_format]}
            assert route.methods == (declared | {"HEAD"} if "GET" in declared else declared)
            served.add(route.path_format)
    assert served == set(DOCUMENT["paths"])


def test_answers_of_a_seeded_service_are_the_declared_ones(client: TestClient) -> None:
    for path in PATHS:
        update = "u1" if path.startswith("/evaluations/") else FILLED["update_id"]
        asked = path.format(path="x.png", **{**FILLED, "update_id": update})
        assert client.get(asked).status_code == (404 if "{path}" in path else 200), path
        assert client.head(asked).content == b""
    assert client.get("/api/releases/ffff").status_code == 404
    nothing = client.get("/api/nothing")
    assert nothing.status_code == 404
    assert nothing.json()["error"]["code"] == "not_found"
    assert client.get("/api").status_code == 404
    static = "/static/console.js"
    etag = client.get(static).headers["etag"]
    assert client.get(static, headers={"if-none-match": etag}).status_code == 304
    assert client.get(static, headers={"range": "bytes=0-3"}).status_code == 206
    assert client.get(static, headers={"range": "bytes=99999999-"}).status_code == 416
    assert client.get(static, headers={"range": "bytes=x"}).status_code == 400


def test_answers_of_a_new_service_are_the_declared_ones(
    empty_ledger: Ledger, apps: Callable[[Ledger], Starlette]
) -> None:
    with declared(apps(empty_ledger)) as client:
        for path in READS:
            known = not any(f"{{{of}}}" in path for of in FILLED if of != "page")
            known |= "/curation/" in path  # a proposal lies in the workspace
            assert client.get(path.format(**FILLED)).status_code == (200 if known else 404), path


def test_a_ledger_that_cannot_be_read_is_told_as_such(ledger: Ledger, client: TestClient) -> None:
    with ledger.engine.begin() as connection:
        for name in ("documents", "events", "tenures", "signal_points", "commands"):
            connection.execute(text(f"DROP TABLE {name}"))
    for path in READS:
        answer = client.get(path.format(**FILLED))
        assert answer.status_code == 503, path
        assert "tenures" not in answer.text


def test_a_defect_is_500_in_the_form_of_its_address(
    ledger: Ledger, workspace: Workspace, config: Config
) -> None:
    def broken() -> Observed | None:
        raise RuntimeError("a secret")

    with declared(create_app(ledger, workspace, config, observe=broken)) as client:
        for path in ("/", "/api/snapshot"):
            answer = client.get(path)
            assert answer.status_code == 500
            assert "secret" not in answer.text


@pytest.mark.parametrize("path", [*PATHS, "/api/nothing", "/nowhere/at/all"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_nothing_but_reading(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path.format(path="x.png", **FILLED), content=b"{}")
    expected = 404 if path in ("/api/nothing", "/nowhere/at/all") else 405
    assert answer.status_code == expected
    if expected == 405:
        assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize(
    "query",
    [
        "after=99999999999999999999",  # SQLite's numbers end before
        "after=9223372036854775808",
        "after=" + "9" * 5000,
        "after=-1",
        "after=1.5",
        "after=1_0",
        "after=%2B1",
        "after=+1",
        "after=%D9%A1",  # a digit of another script
        "after=%00",
        "after=",
        "after",
        "after=1&after=2",
        "after=%FF%FE",
        "after='%20OR%201=1--",
        "limit=0",
        "limit=1001",
        "limit=1e3",
        "limit=NaN",
        "limit=null",
        "limit=[]",
    ],
)
def test_hostile_queries_are_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/events?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(query.partition("=")[0] + ": one whole")


LISTS = ("findings", "updates", "rollouts", "releases", "probes")


@pytest.mark.parametrize("name", LISTS)
def test_a_limit_is_a_number_and_holds(client: TestClient, name: str) -> None:
    for wrong in ("abc", "", "0", "-1", "1.0", "1001", "9" * 50):
        answer = client.get(f"/api/{name}?limit={wrong}")
        assert answer.status_code == 400, wrong
        assert answer.json()["error"]["code"] == "invalid_request"
        assert "limit: one whole number from 1 to 1000" in answer.json()["error"]["message"]

    def listed(query: str) -> list[Any]:
        found = client.get(f"/api/{name}{query}").json()
        return list(found["rounds"] if name == "probes" else found)

    everything = listed("")
    assert listed("?limit=1000") == everything
    assert listed("?limit=1") == everything[:1]


def test_every_number_of_a_query_is_declared(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    declared = {
        (path, p["name"])
        for path, item in paths.items()
        for p in item.get("get", {}).get("parameters", ())
        if p["in"] == "query"
    }
    assert declared == {
        ("/api/events", "after"),
        ("/api/events", "limit"),
        ("/api/traffic", "minutes"),
        *((f"/api/{name}", "limit") for name in LISTS),
    }
    for path, name in declared:
        assert client.get(f"{path}?{name}=abc").status_code == 400, path


def test_the_bounds_themselves_are_fine(client: TestClient) -> None:
    assert client.get(f"/api/events?after={2**63 - 1}").json() == []
    assert len(client.get("/api/events?after=0&limit=1000").json()) > 5
    assert client.get("/api/events?other=%00&x[]=1&&=").status_code == 200
    assert client.get("/api/updates?after=x").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/releases/%00",
        "/api/releases/%FF%FE",
        "/api/releases/..%2f..%2fetc%2fpasswd",
        "/api/releases/" + "a" * 20_000,
        "/api/releases/%F0%9F%92%A5",
        "/api/releases/'%20OR%20'1'='1",
        "/api/releases/",
        "/api/events/",
        "/api/../intonaco.yaml",
        "/releases/%00",
        "/partials/%00",
        "/partials/..%2fbase",
        "/%00",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/%00",
        "/static/..%2f..%2fmain.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/" + "a" * 20_000,
        "/static/" + "a/" * 5_000,
        "/static/",
        "/static",
        "/static/vendor",
        "/images/%00.png",
        "/images/" + "a" * 20_000 + ".png",
        "/images/" + "a/" * 5_000 + "x.png",
    ],
)
def test_hostile_addresses_are_404(client: TestClient, path: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 404
    assert len(answer.content) < 1000
    assert b"root:" not in answer.content


def test_a_picture_that_is_deleted_this_moment_is_404(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Path) -> bytes:
        raise FileNotFoundError

    assert client.get("/images/2023/7.png").status_code == 200
    monkeypatch.setattr(Path, "read_bytes", gone)
    assert client.get("/images/2023/7.png").status_code == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "[", "127.0.0.1:x", "127.0.0.1@evil", ""]
)
def test_another_host_is_refused_in_the_form_of_the_address(client: TestClient, host: str) -> None:
    for path in ("/api/snapshot", "/", "/livez", "/openapi.json"):
        assert client.get(path, headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]", "[::1]:8322", "127.0.0.1:1"])
def test_this_host_has_several_names(client: TestClient, host: str) -> None:
    assert client.get("/livez", headers={"host": host}).status_code == 200


# ---------------------------------------------------------------------- on a socket


class Quiet(uvicorn.Server):
    """Leaves signals to pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def listening(app: Starlette) -> AsyncIterator[int]:
    """The console's own server; its port."""
    sock, url = bind("127.0.0.1", 0, what="test")
    server = Quiet(settings(app))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield int(url.rpartition(":")[2])
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 20)


RAW = [
    b"GET //evil.example/ HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET //evil.example/.. HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /images/../../../../etc/passwd HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /static/../app.py HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /api/events?after=\xff\xfe HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /api/\xff HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /api/\x00 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /api/nothing?\xff HTTP/1.1\r\nhost: \xff\r\n\r\n",
    b"GET /api/snapshot HTTP/1.1\r\n\r\n",
    b"GET /api/snapshot HTTP/1.0\r\n\r\n",
    b"GET http:// HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /livez HTTP/9.9\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /api/snapshot HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 5_000_000 + b"\r\n\r\n",
    b"GET /api/" + b"a" * 5_000_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: y\r\n" * 1_000_000 + b"\r\n",
    b"GET /api/none HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /api/none HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: x, chunked\r\n\r\nzz\r\n",
    b"GET /api/none HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
]


async def test_bytes_that_are_hardly_http(
    ledger: Ledger, apps: Callable[[Ledger], Starlette]
) -> None:
    async with listening(apps(ledger)) as port:
        for raw in RAW:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw)
            try:
                line = await asyncio.wait_for(reader.readline(), 10)
            except ConnectionResetError:
                line = b""
            writer.close()
            status = line.split(b" ")[1] if line else b"closed"
            assert status in (b"400", b"404", b"405", b"closed"), (raw[:60], line)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/livez")).text == "ok"
