"""Pages of rollouts, and what people with the role "operator" may ask for there or by the API.

A call only writes a command down, as the others do; the controller carries it out, or says why not
(``GET /api/commands/{number}``). What would be refused is refused here already, in the machine's
words. Pages go with a cookie that scripts cannot read and other sites' pages cannot use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from intonaco import readmodel, steering
from intonaco.clock import Clock
from intonaco.console import calls
from intonaco.errors import Conflict, NotFound
from intonaco.ledger import Ledger
from intonaco.readmodel.findings import MOST
from intonaco.types import Rollout, Update
from intonaco.workspace import Workspace

ROLE = "operator"
SIGNED_IN_S = 12 * 3600
SHOWN = 20  # rollouts on the page that lists them
MOST_NUMBER = 2**63 - 1
_KEY = re.compile(r"[A-Za-z0-9_.:-]{8,128}", re.ASCII)
_NO_STORE = {"cache-control": "no-store"}


class SteeringPages:
    """``html`` renders a template with facts."""

    def __init__(
        self,
        ledger: Ledger,
        workspace: Workspace,
        clock: Clock,
        people: calls.People,
        html: Callable[..., Response],
    ) -> None:
        self.ledger = ledger
        self.workspace = workspace
        self.clock = clock
        self.people = people
        self.html = html

    def routes(self) -> list[Route]:
        return [
            Route("/rollouts/{rollout_id}", self.page),
            Route("/partials/rollouts/{rollout_id}", self.partial),
            Route("/api/session", self.session, methods=["GET", "POST", "DELETE"]),
            Route("/api/rollouts", self.listed),
            Route("/api/rollouts/{rollout_id}", self.card),
            Route("/api/rollouts/{rollout_id}/{command}", self.rollout, methods=["POST"]),
            Route("/api/updates/{update_id}/{command}", self.update, methods=["POST"]),
            Route("/api/rollback", self.rollback, methods=["POST"]),
            Route("/api/freeze", self.freeze, methods=["POST"]),
            Route("/api/unfreeze", self.freeze, methods=["POST"]),
            Route("/api/commands/{number}", self.command),
        ]

    # ------------------------------------------------------------------ pages

    def facts(self, request: Request) -> Mapping[str, Any]:
        """For the page that lists them: the running one, or the last, in full."""
        found = self.ledger.newest(Rollout, SHOWN)
        active = self.ledger.active_rollout() or (found[0] if found else None)
        return {
            "r": self._card(active) if active else None,
            "others": readmodel.rollouts(self.ledger, self.clock.now(), SHOWN),
            **self._around(request),
        }

    def page(self, request: Request) -> Response:
        return self._html("rollout.html", request)

    def partial(self, request: Request) -> Response:
        return self._html("_rollout.html", request)

    def _html(self, template: str, request: Request) -> Response:
        rollout = readmodel.find_rollout(self.ledger, request.path_params["rollout_id"])
        around = self._around(request)
        return self.html(template, page="rollouts", r=self._card(rollout), **around)

    def _around(self, request: Request) -> Mapping[str, Any]:
        """Who looks, and what may be asked of the service."""
        person = self.people.signed_in(request)
        now = self.clock.now()
        updates = self.ledger.active_updates()
        waiting = [(u, act) for u in updates for act in steering.of_update(self.ledger, u)]
        return {
            "person": person,
            "may": person is not None and person.role == ROLE,
            "controlled": self._controlled(),
            "frozen": bool(self.ledger.setting("frozen")),
            "service_acts": [
                {**_told(act), "url": f"/api/{act.command}"}
                for act in steering.of_service(self.ledger, now)
            ],
            "update_acts": [
                {**_told(act), "url": f"/api/updates/{u.update_id}/{act.command}"}
                for u, act in waiting
            ],
        }

    # ------------------------------------------------------------------ facts

    def listed(self, request: Request) -> Response:
        limit = calls.whole(request, "limit", MOST, least=1, most=MOST)
        return _json(readmodel.rollouts(self.ledger, self.clock.now(), limit))

    def card(self, request: Request) -> Response:
        return _json(
            self._card(readmodel.find_rollout(self.ledger, request.path_params["rollout_id"]))
        )

    def _card(self, rollout: Rollout) -> Mapping[str, Any]:
        now = self.clock.now()
        acts = steering.of_rollout(self.ledger, rollout, now)
        return {
            **readmodel.rollout_card(self.ledger, rollout, now),
            "shares": "" if rollout.status.final else steering.shares(rollout),
            "acts": [
                {**_told(act), "url": f"/api/rollouts/{rollout.rollout_id}/{act.command}"}
                for act in acts
            ],
        }

    def command(self, request: Request) -> Response:
        """What came of what was asked for."""
        given = request.path_params["number"]
        number = int(given) if re.fullmatch(r"[0-9]{1,19}", given, re.ASCII) else -1
        found = self.ledger.command(number) if 0 <= number <= MOST_NUMBER else None
        if found is None:
            raise NotFound("no such command")
        command, outcome = found
        return _json(
            {
                "command": command.command_id,
                "kind": command.kind,
                "actor": command.actor,
                "at": command.at,
                "outcome": outcome and {"ok": outcome["ok"], "text": outcome["text"]},
            }
        )

    # ------------------------------------------------------------------ who

    async def session(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._sign_in(request)
        if request.method == "DELETE":
            return self._sign_out()
        person = self.people.signed_in(request)
        if person is None:
            raise HTTPException(401, "Nobody is signed in here.")
        return _json({"name": person.name, "role": person.role})

    async def _sign_in(self, request: Request) -> Response:
        """Hands a token over for the cookie."""
        token = (await calls.json_of(request, ("token",))).get("token")
        if not isinstance(token, str):
            raise HTTPException(400, "token: text")
        person = self.people.of_token(token)
        if person is None:
            raise HTTPException(401, "Nobody of console.people has this token.")
        answer = JSONResponse({"name": person.name, "role": person.role}, headers=_NO_STORE)
        answer.set_cookie(
            calls.COOKIE,
            token,
            max_age=SIGNED_IN_S,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    def _sign_out(self) -> Response:
        answer = Response(status_code=204, headers=_NO_STORE)
        answer.delete_cookie(calls.COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    # ------------------------------------------------------------------ what is asked for

    async def rollout(self, request: Request) -> Response:
        command, rollout_id = request.path_params["command"], request.path_params["rollout_id"]
        if command not in steering.ROLLOUT_COMMANDS:
            raise NotFound(f"no command {command!r} of a rollout")

        def act() -> tuple[steering.Act, dict[str, Any]]:
            rollout = readmodel.find_rollout(self.ledger, rollout_id)
            now = self.clock.now()
            found = steering.rollout_act(self.ledger, rollout, command, now)
            return found, {"rollout": rollout.rollout_id}

        return await self._ask(request, f"rollout.{command}", act)

    async def update(self, request: Request) -> Response:
        command, update_id = request.path_params["command"], request.path_params["update_id"]
        if command not in steering.UPDATE_COMMANDS:
            raise NotFound(f"no command {command!r} of an update")

        def act() -> tuple[steering.Act, dict[str, Any]]:
            update = self.ledger.find(Update, update_id)
            if update is None or update.update_id != update_id:
                raise NotFound(f"no update {update_id!r}")
            found = steering.update_act(self.ledger, update, command)
            return found, {"update": update.update_id}

        return await self._ask(request, f"update.{command}", act)

    async def rollback(self, request: Request) -> Response:
        def act(to: str | None) -> tuple[steering.Act, dict[str, Any]]:
            return steering.rollback_act(self.ledger, to, self.clock.now()), {"to": to}

        return await self._ask(request, "rollback", act, fields=("to", "reason"))

    async def freeze(self, request: Request) -> Response:
        kind = request.url.path.rpartition("/")[2]
        return await self._ask(request, kind, lambda: (steering.freeze_act(self.ledger, kind), {}))

    async def _ask(
        self,
        request: Request,
        kind: str,
        act: Callable[..., tuple[steering.Act, dict[str, Any]]],
        *,
        fields: tuple[str, ...] = ("reason",),
    ) -> Response:
        """Writes the command down, once for a key."""
        person = self.people.asking(request)
        if person.role != ROLE:
            raise HTTPException(403, f"{person.name} has the role {person.role}, not {ROLE}.")
        given = await calls.json_of(request, fields)
        reason = calls.text_of(given.get("reason", "")).strip()
        if not reason and kind.rpartition(".")[2] in steering.REASONED:
            raise HTTPException(400, "reason: say why, for the record")
        to = given.get("to")
        if to is not None and not isinstance(to, str):
            raise HTTPException(400, "to: a release, or null for the one before")
        key = request.headers.get("idempotency-key")
        if key is not None and not _KEY.fullmatch(key):
            raise HTTPException(400, "idempotency-key: 8 to 128 letters, digits, _ . : -")

        def write() -> int:
            before = steering.asked_before(self.ledger, person.name, key) if key else None
            found, arguments = act(to) if "to" in fields else act()
            if before is None:
                if not self._controlled():
                    raise HTTPException(
                        503,
                        "No controller runs, so nobody can carry this out; `intonaco rollback` on"
                        " its machine works without one.",
                    )
                if found.refused:
                    raise Conflict(found.refused, hint=found.hint)
            return steering.submit_once(
                self.ledger,
                self.clock.now(),
                kind,
                person.name,
                {**arguments, "reason": reason},
                key=key,
            )

        try:
            number = await run_in_threadpool(write)
        except Conflict as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise HTTPException(409, f"{error}{hint}") from error
        return JSONResponse({"command": number}, status_code=202, headers=_NO_STORE)

    def _controlled(self) -> bool:
        return self.workspace.process("controller") is not None


def _told(act: steering.Act) -> dict[str, Any]:
    return {
        "command": act.command,
        "consequence": act.consequence,
        "refused": act.refused or None,
        "wants_reason": act.wants_reason,
    }


def _json(value: Any) -> Response:
    return JSONResponse(value, headers=_NO_STORE)
