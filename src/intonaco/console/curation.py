"""Pages on which a person looks through what is proposed as training data, and says so.

``POST /api/curation/{update_id}/word`` only writes a command down, as the trigger does; the
controller carries it out, or says why not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from intonaco import commands, readmodel
from intonaco.clock import Clock
from intonaco.config import Config
from intonaco.console import calls, images
from intonaco.datasets import proposals
from intonaco.ledger import Ledger
from intonaco.workspace import Workspace

ROLE = "curate"
MOST_BYTES = 2**17  # a word with all items of the largest proposal in it
MOST_ITEMS = 5000
FIELDS = {"approve", "drop", "reason"}


class CurationPages:
    """``html`` renders a template with facts."""

    def __init__(
        self,
        ledger: Ledger,
        workspace: Workspace,
        config: Config,
        clock: Clock,
        people: calls.People,
        html: Callable[..., Response],
    ) -> None:
        self.ledger = ledger
        self.workspace = workspace
        self.config = config
        self.clock = clock
        self.people = people
        self.html = html

    def routes(self) -> list[Route]:
        return [
            Route("/curation/{update_id}", self.page),
            Route("/proposed/{path:path}", self.picture),
            Route("/api/curation", self.listed),
            Route("/api/curation/{update_id}", self.card),
            Route("/api/curation/{update_id}/word", self.word, methods=["POST"]),
        ]

    def facts(self) -> Mapping[str, Any]:
        """For the page that lists them."""
        return {
            "proposals": readmodel.curated(self.ledger, self.workspace, self.config),
            "enabled": self.config.data.curation.enabled,
        }

    def page(self, request: Request) -> Response:
        return self.html("proposal.html", page="curation", p=self._card(request))

    def listed(self, request: Request) -> Response:
        return _json(readmodel.curated(self.ledger, self.workspace, self.config))

    def card(self, request: Request) -> Response:
        return _json(self._card(request))

    def _card(self, request: Request) -> Mapping[str, Any]:
        update_id = request.path_params["update_id"]
        return readmodel.proposal_card(self.ledger, self.workspace, self.config, update_id)

    def picture(self, request: Request) -> Response:
        return images.answer(proposals.root(self.workspace), request.path_params["path"])

    async def word(self, request: Request) -> Response:
        """Approve or reject a proposal; what comes of it is among the events."""
        person = self.people.who(request)
        if person.role != ROLE:
            raise HTTPException(403, f"{person.name} has the role {person.role}, not {ROLE}.")
        given = await calls.object_of(request, MOST_BYTES)
        kind, arguments = _read(given)
        card = await run_in_threadpool(self._card, request)
        if not card["waits"]:
            raise HTTPException(409, "This proposal does not wait for a word.")
        strangers = set(arguments["drop"]) - {item["id"] for item in card["items"]}
        if strangers:
            raise HTTPException(400, "drop: names an item that is not in the proposal")
        number = await run_in_threadpool(
            commands.submit,
            self.ledger,
            self.clock.now(),
            f"curation.{kind}",
            person.name,
            {"update": card["update_id"], **arguments},
        )
        headers = {"cache-control": "no-store"}
        return JSONResponse({"command": number}, status_code=202, headers=headers)


def _read(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Raises HTTPException 400."""
    if set(given) - FIELDS:
        raise HTTPException(400, f"The body has no fields but {', '.join(sorted(FIELDS))}.")
    approve, drop = given.get("approve"), given.get("drop", [])
    if not isinstance(approve, bool):
        raise HTTPException(400, "approve: true or false")
    listed = isinstance(drop, list) and all(isinstance(d, str) for d in drop)
    if not listed or len(drop) > MOST_ITEMS:
        raise HTTPException(400, "drop: a list of items")
    reason = calls.text_of(given.get("reason", ""))
    return "approve" if approve else "reject", {"drop": drop, "reason": reason}


def _json(value: Any) -> Response:
    return JSONResponse(value, headers={"cache-control": "no-store"})
