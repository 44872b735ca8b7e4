"""Pages and JSON of the console: facts right, hostile words harmless, only pictures served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from intonaco.clock import FakeClock
from intonaco.config import Config
from intonaco.console import create_app, images, present, svg
from intonaco.console.observe import Observer
from intonaco.errors import BackendError
from intonaco.ledger import Ledger
from intonaco.types import Observed
from intonaco.workspace import Workspace

FIRST, SECOND = "a1" * 32, "b2" * 32
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt;"
PAGES = (
    *("/", "/findings", "/updates", "/releases", "/events"),
    *(f"/releases/{SECOND}", "/findings/f1"),
)
PARTIALS = tuple(
    f"/partials/{p}" for p in ("overview", "findings", "updates", "releases", "events")
)
Clients = Callable[[Ledger], TestClient]


@pytest.fixture
def clients(workspace: Workspace, config: Config, now: float, observed: Observed) -> Clients:
    def build(ledger: Ledger) -> TestClient:
        app = create_app(ledger, workspace, config, clock=FakeClock(now), observe=lambda: observed)
        return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)

    return build


@pytest.fixture
def client(ledger: Ledger, clients: Clients) -> Iterator[TestClient]:
    with clients(ledger) as opened:
        yield opened


@pytest.mark.parametrize("path", PAGES + PARTIALS)
def test_pages_answer_and_let_no_foreign_script_in(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert " style=" not in answer.text  # the policy would refuse it
    assert "http://" not in answer.text.replace("http://127.0.0.1", "")


@pytest.mark.parametrize("path", PAGES[:5] + PARTIALS)
def test_pages_of_a_new_service_answer(empty_ledger: Ledger, clients: Clients, path: str) -> None:
    with clients(empty_ledger) as client:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/events", "/partials/overview", f"/releases/{SECOND}", "/findings/f1"]
)
def test_a_hostile_prompt_is_only_words(client: TestClient, path: str) -> None:
    page = client.get(path).text
    assert ESCAPED in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_the_overview_shows_what_happens(client: TestClient) -> None:
    page = client.get("/").text
    for fact in (
        FIRST[:10],
        SECOND[:10],
        "a handwritten seven",
        'src="/images/2023/7.png"',
        "slice_adherence of two: 0.08 worse, margin 0.05",
        "challenger:fine_tune",
        "5321",
        "99.25 EUR",
        "+0.071",
        "shadow 20 % → canary 25 %",
        "3 failures in a row",
        "about 250 more users, if it is no different",
        "no scores from the scorer",
    ):
        assert fact in page, fact
    assert page.count('class="chart"') == 8


def test_the_first_page_says_that_nobody_decides(
    client: TestClient, workspace: Workspace, now: float
) -> None:
    workspace.ticked(now - 40.0)
    assert "no controller for 40 s" in client.get("/").text
    last = f"intonaco_controller_last_tick_timestamp_seconds {now - 40.0:.10g}"
    assert last in client.get("/metrics").text
    workspace.ticked(now)
    assert "no controller" not in client.get("/").text


def test_the_page_asks_for_its_inner_part_again(client: TestClient) -> None:
    page = client.get("/updates").text
    assert 'hx-get="/partials/updates"' in page
    partial = client.get("/partials/updates").text
    assert partial.strip() in page
    assert "<html" not in partial
    for asset in ("vendor/htmx.min.js", "vendor/uPlot.iife.min.js", "console.js", "console.css"):
        assert f"/static/{asset}" in page
        assert client.get(f"/static/{asset}").status_code == 200


def test_the_same_facts_as_json(client: TestClient) -> None:
    snapshot = client.get("/api/snapshot").json()
    assert snapshot["releases"]["champion"]["id"] == FIRST
    assert snapshot["rollout"]["steps"][1]["state"] == "current"
    assert snapshot["gateway"]["requests"] == 5321
    assert [s["signal"] for s in client.get("/api/signals").json()] == [
        "prompts",
        "clip_score",
        "errors",
        "latency",
    ]
    assert [u["id"] for u in client.get("/api/updates").json()] == ["u2", "u1"]
    assert client.get("/api/releases").json()[1]["id"] == SECOND
    assert client.get(f"/api/releases/{SECOND}").json()["update"]["id"] == "u2"


def test_events_can_be_followed(client: TestClient) -> None:
    events = client.get("/api/events").json()
    assert events[0]["kind"] == "release.crowned"
    after = events[2]["event_id"]
    rest = client.get("/api/events", params={"after": after}).json()
    assert [e["event_id"] for e in rest] == [e["event_id"] for e in events[3:]]
    assert len(client.get("/api/events", params={"limit": 2}).json()) == 2
    for wrong in ({"after": "x"}, {"after": "-1"}, {"limit": "0"}, {"limit": "100000"}):
        assert client.get("/api/events", params=wrong).status_code == 400


@pytest.mark.parametrize(
    "path", ["/nothing", "/partials/nothing", "/api/releases/ffff", "/releases/ffff"]
)
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_changed(client: TestClient, method: str) -> None:
    for path in ("/", "/api/snapshot", "/api/updates", "/images/2023/7.png"):
        assert client.request(method, path).status_code == 405


def test_another_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/api/snapshot", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/livez", headers={"host": "localhost:8322"}).status_code == 200


def test_a_ledger_that_cannot_be_read_is_503(ledger: Ledger, client: TestClient) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(text("DROP TABLE tenures"))
    answer = client.get("/partials/overview")
    assert answer.status_code == 503
    assert "tenures" not in answer.text


def test_pictures_are_served(client: TestClient, workspace: Workspace) -> None:
    answer = client.get("/images/2023/7.png")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == (workspace.images / "2023" / "7.png").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/images/../intonaco.yaml",
        "/images/%2e%2e/intonaco.yaml",
        "/images/..%2fstate%2fledger.db",
        "/images/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/images//etc/passwd",
        "/images/%2fetc%2fpasswd",
        "/images/2023/7.png%00.txt",
        "/images/2023",
        "/images/",
        "/images/linked.png",
        "/images/linked/secret.png",
        "/images/notes.txt",
        "/images/2023/missing.png",
    ],
)
def test_nothing_else_is(client: TestClient, workspace: Workspace, path: str) -> None:
    outside = workspace.root / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"secret")
    (workspace.images / "linked.png").symlink_to(outside / "secret.png")
    (workspace.images / "linked").symlink_to(outside)
    (workspace.images / "notes.txt").write_text("secret")
    answer = client.get(path)
    assert answer.status_code == 404
    assert b"secret" not in answer.content


def test_a_link_inside_is_fine(workspace: Workspace, ledger: Ledger) -> None:
    (workspace.images / "again.png").symlink_to(workspace.images / "2023" / "7.png")
    assert images.find(workspace.images, "again.png") is not None
    assert images.find(Path("/nowhere"), "7.png") is None
    assert images.url("images/a b/7.png") == "/images/a%20b/7.png"
    assert images.url("/etc/passwd") is None


def test_observer_asks_seldom_and_says_nothing_of_a_silent_gateway(observed: Observed) -> None:
    clock = FakeClock()
    calls = 0
    up = True

    def ask() -> Observed:
        nonlocal calls
        calls += 1
        if up:
            return observed
        raise BackendError("no answer", backend="gateway", retriable=True)

    observer = Observer(ask, clock)
    assert observer() is observed
    assert observer() is observed
    assert calls == 1
    up = False
    clock.advance(0.6)
    assert observer() is None
    clock.advance(0.6)
    assert observer() is None
    assert calls == 2  # patient with a gateway that is down
    up = True
    clock.advance(2)
    assert observer() is observed


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.25, "25 %"),
        (0.012, "1.2 %"),
        (0.0004, "0.04 %"),
        (0.9996, "100 %"),
        (1.0, "100 %"),
        (0.0, "0 %"),
        (None, "–"),
    ],
)
def test_percent(value: float | None, said: str) -> None:
    assert present.percent(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0123456, "0.0123"),
        (1234.5, "1234"),
        (123456.0, "123 456"),
        (3.14159, "3.14"),
        (0, "0"),
        (-0.5, "-0.5"),
        (1e-9, "1.0e-09"),
    ],
)
def test_number(value: float, said: str) -> None:
    assert present.number(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (61, "1 min 01 s"),
        (7300, "2 h 01 min"),
        (300_000, "3 d 11 h"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert present.duration(seconds) == said


def test_charts_leave_out_what_is_not_finite_and_escape_names() -> None:
    line = svg.Line(
        name="<b>", kind="k", points=[(0, 1.0), (1, None), (2, float("inf")), (3, 2.0), (4, 3.0)]
    )
    chart = svg.line_chart([line], marks=[(3, "<i>")])
    assert chart.count('<path class="line k"') == 2  # broken where there is nothing
    assert "<b>" not in chart
    assert "<i>" not in chart
    assert "nan" not in chart
    assert "inf" not in chart
    assert "No measurements" in svg.line_chart([svg.Line(name="x", kind="k", points=[(0, None)])])
    assert svg.forest(None, None, None, "no_data").count("<") == 2


def test_a_forest_is_drawn_to_scale() -> None:
    drawn = svg.forest(0.0, (-0.01, 0.01), 0.02, "non_inferior")
    assert 'class="dot a-non_inferior" cx="80.0"' in drawn
    wide = svg.forest(0.0, (-100.0, 100.0), 0.02, "undecided")
    assert 'x1="4.0" x2="156.0"' in wide  # runs off both edges instead of hiding the margin


def test_pictures_of_a_finding_say_what_they_show() -> None:
    bars = svg.share_bars(0.01, (0.0, 0.03), 0.4, (0.35, 0.45))
    assert bars.count('class="track"') == bars.count("whisker") == 2
    assert 'class="now" x="0" y="19" width="240.0"' in bars, "0.4 of the next edge, 0.5"
    line = svg.evidence_line([0, 1, 2, 3], [0.0, None, 4.0, 12.0], 11.0, 1.0, 3.0)
    assert line.count("<line") == 3, "threshold, began, found"
    assert "threshold 11" in line
    assert "not kept any more" in svg.evidence_line([1.0], [2.0], 3.0, 0.0, 1.0)
    assert present.score(-0.001) == "0.00"
    assert present.score(None) == "–"


def test_the_report_of_an_evaluation_is_linked_and_may_load_nothing(client: TestClient) -> None:
    assert '<a href="/evaluations/u2">' in client.get("/updates").text
    answer = client.get("/evaluations/u1")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<p>pass</p>" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "sandbox" in policy
    assert client.get("/evaluations/u2").status_code == 404
    assert client.get("/evaluations/..%2f..").status_code == 404
