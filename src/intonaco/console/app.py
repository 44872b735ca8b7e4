"""The console's web application: server-rendered pages and the same facts as JSON. Read-only, but
for ``POST /api/trigger`` and ``POST /api/curation/…/word``, which write a command down, as what
operators ask for does (``steering.py``), and voting in reviews (``reviewing.py``).
``/openapi.json`` says what there is.

Pages refresh themselves by asking for their inner part every second. Prompts are other people's
words: templates escape everything, and the content security policy lets no script in but our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from intonaco import commands, readmodel
from intonaco.clock import Clock, SystemClock
from intonaco.config import Config
from intonaco.console import calls, images, openapi
from intonaco.console.curation import CurationPages
from intonaco.console.openapi import (
    MAX_EVENTS,
    MAX_LISTED,
    MOST_ID,
    MOST_MINUTES,
    PAGES,
)
from intonaco.console.problems import (
    POLICY,
    REPORT_POLICY,
    Guard,
    failed,
    http_error,
    not_found,
    unavailable,
)
from intonaco.console.reviewing import Reviewing
from intonaco.console.steering import SteeringPages
from intonaco.console.templating import HERE, environment
from intonaco.errors import IntonacoError, NotFound
from intonaco.ledger import Ledger
from intonaco.readmodel.findings import ROUNDS
from intonaco.types import Observed
from intonaco.workspace import Workspace

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def create_app(
    ledger: Ledger,
    workspace: Workspace,
    config: Config,
    *,
    clock: Clock | None = None,
    observe: Callable[[], Observed | None] = lambda: None,
) -> Starlette:
    """The application. ``observe`` asks the gateway what it does; None if it cannot be asked."""
    return _Console(ledger, workspace, config, clock or SystemClock(), observe).app()


class _Console:
    def __init__(
        self,
        ledger: Ledger,
        workspace: Workspace,
        config: Config,
        clock: Clock,
        observe: Callable[[], Observed | None],
    ) -> None:
        self.ledger = ledger
        self.workspace = workspace
        self.config = config
        self.clock = clock
        self.observe = observe
        self.templates = environment()
        self.people = calls.People(config.console.people)
        self.reviewing = Reviewing(ledger, workspace, self.people, self.clock, self._html)
        self.curation = CurationPages(ledger, workspace, config, clock, self.people, self._html)
        self.steering = SteeringPages(ledger, workspace, clock, self.people, self._html)

    def app(self) -> Starlette:
        app = Starlette(
            routes=[
                Route("/", self.overview),
                Route("/releases/{release_id}", self.release),
                Route("/findings/{finding_id}", self.finding),
                Route("/evaluations/{update_id}", self.evaluation),
                Route("/partials/{page}", self.partial),
                Route("/api/snapshot", self.api_snapshot),
                Route("/api/signals", self.api_signals),
                Route("/api/events", self.api_events),
                Route("/api/releases", self.api_releases),
                Route("/api/releases/{release_id}", self.api_release),
                Route("/api/updates", self.api_updates),
                Route("/api/traffic", self.api_traffic),
                Route("/metrics", self.metrics),
                Route("/api/findings", self.api_findings),
                Route("/api/findings/{finding_id}", self.api_finding),
                Route("/api/probes", self.api_probes),
                Route("/api/trigger", self.api_trigger, methods=["POST"]),
                Route("/api/reviews", self.api_reviews),
                *self.reviewing.routes(),
                *self.curation.routes(),
                *self.steering.routes(),
                Route("/images/{path:path}", self.image),
                Route("/livez", self.livez),
                Route("/openapi.json", self.openapi),
                Mount("/static", StaticFiles(directory=HERE / "static")),
                Route("/{page}", self.page),
            ],
            middleware=[Middleware(Guard, local=self.config.console.host in LOOPBACK)],
            exception_handlers={
                HTTPException: http_error,
                NotFound: not_found,
                IntonacoError: unavailable,
                SQLAlchemyError: unavailable,
                Exception: failed,
            },
        )
        app.router.redirect_slashes = False  # an address is what /openapi.json says, or nothing
        return app

    # ------------------------------------------------------------------ pages

    def overview(self, request: Request) -> Response:
        return self._render("page.html", "overview", request)

    def page(self, request: Request) -> Response:
        return self._render("page.html", _known(request.path_params["page"]), request)

    def partial(self, request: Request) -> Response:
        page = _known(request.path_params["page"])
        return self._render(f"_{page}.html", page, request)

    def release(self, request: Request) -> Response:
        lineage = readmodel.release_lineage(self.ledger, request.path_params["release_id"])
        return self._html("release.html", page="releases", lineage=lineage)

    def finding(self, request: Request) -> Response:
        return self._html("finding.html", page="findings", card=self._card(request))

    def evaluation(self, request: Request) -> Response:
        """The report of an update's evaluation: a page of its own that may load nothing."""
        file = readmodel.evaluation_page(
            self.ledger, self.workspace, request.path_params["update_id"]
        )
        return Response(
            file.read_bytes(),
            media_type="text/html",
            headers={"cache-control": "no-store", POLICY: REPORT_POLICY},
        )

    def _card(self, request: Request) -> Mapping[str, Any]:
        return readmodel.finding_card(self.ledger, self.config, request.path_params["finding_id"])

    def _render(self, template: str, page: str, request: Request) -> Response:
        return self._html(template, page=page, **self._facts(page, request))

    def _facts(self, page: str, request: Request) -> Mapping[str, Any]:
        if page == "overview":
            return {"s": self._snapshot(points=0)}  # the charts ask for theirs
        if page == "updates":
            return {"updates": readmodel.updates(self.ledger)}
        if page == "findings":
            return {
                "findings": readmodel.findings(self.ledger),
                "signals": readmodel.signals(self.ledger, points=0),
                "probes": readmodel.probe_rounds(self.ledger, self.config, limit=1),
            }
        if page == "rollouts":
            return self.steering.facts(request)
        if page == "reviews":
            return {"reviews": readmodel.reviews(self.ledger)}
        if page == "curation":
            return self.curation.facts()
        if page == "releases":
            return {"releases": readmodel.releases(self.ledger)}
        return {"events": self._events(0, 400)}

    def _html(self, template: str, **facts: Any) -> Response:
        text = self.templates.get_template(template).render(
            service=self.ledger.service_id,
            model=self.config.model.name,
            currency=self.config.decision.budget.currency,
            now=self.clock.now(),
            pages=PAGES,
            **facts,
        )
        return HTMLResponse(text, headers={"cache-control": "no-store"})

    def _snapshot(self, points: int = 300) -> Mapping[str, Any]:
        now, observed = self.clock.now(), self.observe()
        return readmodel.snapshot(
            self.ledger, self.workspace, self.config, now, observed, points=points
        )

    def _events(self, after: int, limit: int) -> list[Any]:
        found = self.ledger.events(after=after, limit=limit, newest=after == 0)
        events: list[Any] = readmodel.plain(found)
        return events

    # ------------------------------------------------------------------ the same as JSON

    def api_snapshot(self, request: Request) -> Response:
        return _json(self._snapshot())

    def api_signals(self, request: Request) -> Response:
        return _json(readmodel.plain(readmodel.signals(self.ledger)))

    def api_events(self, request: Request) -> Response:
        """``after``: only events with a higher id; without it the newest ``limit``."""
        after = calls.whole(request, "after", 0, least=0, most=MOST_ID)
        limit = calls.whole(request, "limit", 200, least=1, most=MAX_EVENTS)
        return _json(self._events(after, limit))

    def api_releases(self, request: Request) -> Response:
        return _json(readmodel.releases(self.ledger)[: _limit(request)])

    def api_release(self, request: Request) -> Response:
        return _json(readmodel.release_lineage(self.ledger, request.path_params["release_id"]))

    def api_updates(self, request: Request) -> Response:
        return _json(readmodel.updates(self.ledger)[: _limit(request)])

    def api_reviews(self, request: Request) -> Response:
        return _json(readmodel.reviews(self.ledger))

    def api_traffic(self, request: Request) -> Response:
        """``minutes``: how far back."""
        minutes = calls.whole(request, "minutes", 60, least=1, most=MOST_MINUTES)
        now = self.clock.now()
        return _json(readmodel.traffic(self.ledger, self.config, now, minutes / 60.0))

    def metrics(self, request: Request) -> Response:
        text = readmodel.exposition(
            self.ledger, self.config, self.clock.now(), self.workspace.last_tick()
        )
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def api_findings(self, request: Request) -> Response:
        return _json(readmodel.findings(self.ledger, _limit(request)))

    def api_finding(self, request: Request) -> Response:
        return _json(self._card(request))

    def api_probes(self, request: Request) -> Response:
        limit = calls.whole(request, "limit", ROUNDS, least=1, most=MAX_LISTED)
        return _json(readmodel.probe_rounds(self.ledger, self.config, limit))

    async def api_trigger(self, request: Request) -> Response:
        """Ask for an update; what comes of it is among the events."""
        person = self.people.who(request)
        if person.role != "trigger":
            raise HTTPException(403, f"{person.name} has the role {person.role}, not trigger.")
        if not self.config.decision.triggers.webhook:
            raise HTTPException(403, "decision.triggers.webhook is off.")
        reason = await calls.reason_of(request)
        number = await run_in_threadpool(
            commands.submit,
            self.ledger,
            self.clock.now(),
            "trigger.webhook",
            person.name,
            {"reason": reason},
        )
        headers = {"cache-control": "no-store"}
        return JSONResponse({"command": number}, status_code=202, headers=headers)

    # ------------------------------------------------------------------ files

    def image(self, request: Request) -> Response:
        return images.answer(self.workspace.images, request.path_params["path"])

    def livez(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document())


def _known(page: str) -> str:
    if page not in PAGES:
        raise HTTPException(404, "no such page")
    return page


def _limit(request: Request) -> int:
    """How many of a list at most, the newest."""
    return calls.whole(request, "limit", MAX_LISTED, least=1, most=MAX_LISTED)


def _json(value: Any) -> Response:
    return JSONResponse(value, headers={"cache-control": "no-store"})
