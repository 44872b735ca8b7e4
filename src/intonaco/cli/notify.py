"""notify test, notify show: who is told, and whether it arrives."""

from __future__ import annotations

from typing import Annotated

import typer

from intonaco.app import App
from intonaco.cli.common import (
    HERE,
    AsJson,
    Folder,
    actor,
    ago,
    opened,
    out,
    print_json,
    print_table,
)
from intonaco.errors import BackendError, NotFound
from intonaco.notify.delivery import Channel, standing
from intonaco.notify.undelivered import Undelivered
from intonaco.notify.webhook import Webhook
from intonaco.types import Event, Json


def add_to(app: typer.Typer) -> None:
    notify = typer.Typer(help="Who is told of events.", no_args_is_help=True)
    notify.command("test")(send_test)
    notify.command("show")(show)
    app.add_typer(notify, name="notify")


def send_test(
    notifier: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Send a test event, past the filters and the queue, and say what came back."""
    app = opened(workspace)
    channels = [c for c in app.channels() if notifier in (None, c.name)]
    if not channels:
        known = ", ".join(c.name for c in app.config.notify) or "none"
        wanted = f"no notifier {notifier!r}" if notifier else "nobody is told"
        raise NotFound(f"{wanted}; notify has: {known}")
    answers = {c.name: _sent(app, c) for c in channels}
    if as_json:
        print_json(answers)
    else:
        for name, answer in answers.items():
            out.print(f"{name}: {answer['text']}", markup=False)
    failed = [name for name, answer in answers.items() if not answer["ok"]]
    if failed:
        raise BackendError(
            f"not delivered to {', '.join(failed)}", backend="notify", retriable=True
        )


def _sent(app: App, channel: Channel) -> dict[str, Json]:
    event = Event(
        at=app.clock.now(),
        service_id=app.config.service,
        kind="notify.test",
        subject=channel.name,
        actor=actor(),
        text=f"a test of {channel.name}, nothing has happened",
    )
    try:
        if not isinstance(channel.notifier, Webhook):
            channel.notifier.send(event)
            return {"ok": True, "text": "written to the log, which is this command's now"}
        answer = channel.notifier.post(event)
    except Undelivered as error:
        return {"ok": False, "text": str(error)}
    said = f", says {answer.text!r}" if answer.text else ""
    ok = 200 <= answer.status < 300
    more = " (redirects are not followed)" if 300 <= answer.status < 400 else ""
    text = f"answered {answer.status}{more} in {answer.seconds:.2f} s{said}"
    return {"ok": ok, "text": text, "status": answer.status, "seconds": answer.seconds}


def show(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """How far each notifier was told, and what is in its way."""
    app = opened(workspace)
    now = app.clock.now()
    newest = app.ledger.events(limit=1, newest=True)
    last = newest[-1].event_id if newest else 0
    rows: list[dict[str, Json]] = []
    for notifier in app.config.notify:
        stands = standing(app.ledger, notifier.name)
        rows.append(
            {
                "name": notifier.name,
                "type": notifier.type,
                "events": list(notifier.patterns),
                "behind": max(0, last - stands.at) if stands else None,
                "tries": stands.tries if stands else 0,
                "failing_for_s": now - stands.since if stands and stands.since else None,
                "error": stands.error if stands else "",
                "lost": stands.lost if stands else 0,
                "gone": stands.gone if stands else False,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        "notifiers",
        ("name", "type", "state", "events to look at", "given up", "told of"),
        (
            (
                r["name"],
                r["type"],
                _state(r),
                "" if r["behind"] is None else r["behind"],
                r["lost"],
                ", ".join(r["events"][:4]) + (" …" if len(r["events"]) > 4 else ""),
            )
            for r in rows
        ),
    )


def _state(row: dict[str, Json]) -> str:
    if row["behind"] is None:
        return "not begun: no controller has run with it"
    if row["gone"]:
        return f"gone: {row['error']}"
    if row["tries"]:
        return f"failing for {ago(row['failing_for_s'] or 0.0)}: {row['error']}"
    return "well"
