"""review list, show, start, result, invite, revoke, extend, close."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from intonaco import readmodel
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
from intonaco.errors import ConfigError, NotFound
from intonaco.evaluation.prompts import read_prompts
from intonaco.jobs import job_folder
from intonaco.ledger import votes as rows
from intonaco.review import desk, pictures
from intonaco.review.statistics import votes_to_see
from intonaco.types import Review, ReviewArm, Update, Verdict

ReviewId = Annotated[str, typer.Argument(help="Review id, or the beginning of it.")]
Name = Annotated[str, typer.Argument(help="Who it is for: letters, digits, dots, dashes.")]
EXIT = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3, Verdict.ERROR: 3}
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def add_to(app: typer.Typer) -> None:
    reviews = typer.Typer(help="People's blind look at candidates.", no_args_is_help=True)
    reviews.command("list")(review_list)
    reviews.command("show")(review_show)
    reviews.command("start")(review_start)
    reviews.command("result")(review_result)
    reviews.command("invite")(review_invite)
    reviews.command("revoke")(review_revoke)
    reviews.command("extend")(review_extend)
    reviews.command("close")(review_close)
    app.add_typer(reviews, name="review")


def review_list(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """All reviews, newest first."""
    app = opened(workspace)
    found = readmodel.reviews(app.ledger)
    if as_json:
        print_json(found)
        return
    print_table(
        "reviews",
        ("review", "update", "candidates", "votes", "reviewers", "state"),
        (
            (
                r["id"],
                r["update"] or "",
                ", ".join(r["candidates"]),
                f"{r['votes']} of {r['wanted']}",
                f"{r['reviewers']} of {r['reviewers_wanted']}",
                _state(r),
            )
            for r in found
        ),
    )


def review_show(review: ReviewId, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """What is asked, who is invited, how far it is; not what the votes say."""
    app = opened(workspace)
    found = app.ledger.get(Review, review)
    facts: dict[str, Any] = readmodel.plain(
        readmodel.review_brief(app.ledger, found)
        | {
            "votes_per_pair": found.votes_per_pair,
            "min_prompts": found.min_prompts,
            "margin": found.margin,
            "alpha": found.alpha,
            "checks": found.checks,
            "guide": found.guide,
            "invited": [
                {"name": i.name, "role": i.role, "at": i.at, "revoked": i.revoked_at is not None}
                for i in rows.invitations(app.ledger, found.review_id)
            ],
            # If votes were independent and had no ties; a plan, not a promise.
            "votes_to_see": {
                f"{share:.2f}": votes_to_see(share, alpha=found.alpha) for share in (0.55, 0.6, 0.7)
            },
        }
    )
    if as_json:
        print_json(facts)
        return
    invited = ", ".join(
        f"{i['name']} ({i['role']}{', revoked' if i['revoked'] else ''})" for i in facts["invited"]
    )
    left = max(0.0, found.deadline - app.clock.now())
    for name, value in (
        ("review", f"{facts['id']}  {_state(facts)}"),
        ("update", facts["update"] or "none"),
        ("compares", f"{', '.join(facts['candidates'])} against {found.arms[0].name}"),
        ("asks", ", ".join(facts["questions"])),
        ("shows", f"{facts['prompts']} prompts, {facts['votes_per_pair']} votes a pair"),
        ("votes", f"{facts['votes']} of {facts['wanted']}, {facts['reviewers']} reviewers count"),
        ("passes", f"preferred in more than {50 - 100 * found.margin:.0f} %"),
        ("ends in", ago(left) if found.closed_at is None else "–"),
        ("invited", invited or "nobody: `intonaco review invite`"),
    ):
        out.print(f"{name:9}{value}", markup=False)


def review_start(
    workspace: Folder = HERE,
    update: Annotated[
        str | None, typer.Option(help="Review what this update's evaluation drew.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE.npz as an evaluation saves it; the first is held against."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts that were drawn, if not evaluation.prompts.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a review by hand, of two or more releases. Nothing waits for it; the settings are
    those of `evaluation.review`."""
    app = opened(workspace)
    if (update is None) == (not images):
        raise ConfigError("give either --update, or --images NAME=FILE.npz at least twice")
    file = prompts or (
        app.workspace.resolve(app.config.evaluation.prompts)
        if app.config.evaluation.prompts
        else None
    )
    if file is None:
        raise ConfigError("which prompts were drawn: give --prompts or evaluation.prompts")
    arms = of_update(app, update) if update is not None else _of_files(images or [])
    if len(arms) < 2:
        raise ConfigError("a review compares at least two releases")
    review = desk.open_review(
        app.ledger,
        app.workspace,
        app.config.evaluation.review,
        review_id=secrets.token_hex(6),
        arms=arms,
        prompts=read_prompts(file),
        alpha=app.config.evaluation.alpha,
        now=app.clock.now(),
        actor=actor(),
    )
    if as_json:
        print_json(readmodel.plain(readmodel.review_brief(app.ledger, review)))
    else:
        out.print(f"review {review.review_id}: {len(review.items)} prompts", markup=False)
        out.print(f"invite people: intonaco review invite {review.review_id} NAME", markup=False)


def of_update(app: App, update_id: str) -> list[pictures.Drawn]:
    """What an update's evaluation drew, the champion first. Raises NotFound, StorageError."""
    update = app.ledger.get(Update, update_id)
    done = [
        e
        for e in app.ledger.effects(update.update_id).values()
        if e.effect.kind == "evaluate" and e.status == "done"
    ]
    if not done:
        raise NotFound(f"update {update.update_id} has no evaluation whose pictures could be shown")
    report: Mapping[str, Any] = done[-1].result["report"]
    names = [
        *(["champion"] if report.get("champion") else []),
        *(n for n in report.get("candidates", ()) if n not in report.get("errors", {})),
    ]
    folder = job_folder(app.workspace, done[-1].effect.key)
    return list(pictures.of_report(folder, report, names))


def _of_files(given: Sequence[str]) -> list[pictures.Drawn]:
    arms: list[pictures.Drawn] = []
    for entry in given:
        name, equals, file = entry.partition("=")
        if not (name and equals and file) or name in [a.arm.name for a in arms]:
            raise ConfigError(f"--images {entry}: NAME=FILE.npz, each name once")
        arms.append(pictures.Drawn(arm=ReviewArm(name=name, release_id=""), file=Path(file)))
    return arms


def review_result(
    review: ReviewId,
    workspace: Folder = HERE,
    unblind: Annotated[
        bool, typer.Option("--unblind", help="Tell the releases' names before it is decided.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What the votes say. Ends with 1 for a candidate that people decided against, with 3 for an
    inconclusive one; with 0 while it is open."""
    app = opened(workspace)
    now = app.clock.now()
    found = app.ledger.get(Review, review)
    if found.update_id is None:  # of an update's, the controller keeps the time
        found = desk.settle(app.ledger, found.review_id, now)
    if unblind and found.closed_at is None:
        with app.ledger.begin() as tx:
            tx.event(
                now, "review.unblinded", found.review_id, "looked at with names", actor=actor()
            )
    facts = readmodel.review_result(app.ledger, found, unblinded=True if unblind else None)
    if as_json:
        print_json(facts)
    else:
        _print_result(facts)
    _exit(found)


def _print_result(facts: Mapping[str, Any]) -> None:
    out.print(f"review   {facts['id']}  {_state(facts)}", markup=False)
    out.print(
        f"votes    {facts['votes']} of {facts['wanted']}, {facts['reviewers']} of at least "
        f"{facts['reviewers_wanted']} reviewers",
        markup=False,
    )
    for name, why in facts["reasons"].items():
        out.print(f"{name}: {why}", markup=False)
    print_table(
        "answers",
        ("question", "first", "second", "votes", "share of the first", "still needed"),
        (
            (
                a["question"],
                a["first"],
                a["second"],
                f"{a['for_first']} : {a['for_second']}, {a['ties']} ties",
                _share(a["share"], a["interval"]),
                _needed(a),
            )
            for a in facts["answers"]
        ),
    )
    print_table(
        "reviewers",
        ("reviewer", "votes", "skipped", "checks failed", "as others", ""),
        (
            (
                p["reviewer"],
                p["votes"],
                p["skipped"],
                f"{p['failed']} of {p['checks']}",
                "" if p["agreement"] is None else f"{100 * p['agreement']:.0f} %",
                "set aside" if p["set_aside"] else "",
            )
            for p in facts["people"]
        ),
    )
    for question, alpha in facts["agreement"].items():
        out.print(
            f"agreement on {question}: alpha {'–' if alpha is None else f'{alpha:.2f}'}",
            markup=False,
        )


def review_invite(
    review: ReviewId,
    name: Name,
    workspace: Folder = HERE,
    lead: Annotated[bool, typer.Option("--lead", help="May see the result, and not vote.")] = False,
    as_json: AsJson = False,
) -> None:
    """A link for one person. It is shown this once; a new one of the same name ends the old."""
    app = opened(workspace)
    found = app.ledger.get(Review, review)
    if not 1 <= len(name) <= 63 or set(name) - _NAME_CHARACTERS:
        raise ConfigError(f"{name!r}: 1 to 63 letters, digits, dots, dashes")
    role = "lead" if lead else "reviewer"
    token = desk.invite(app.ledger, found, name, role, now=app.clock.now(), actor=actor())
    console = app.workspace.process("console")
    base = console.url if console is not None and console.url else _address(app)
    link = f"{base}/review/{found.review_id}{'/result' if lead else ''}#{token}"
    if as_json:
        print_json({"review": found.review_id, "name": name, "role": role, "link": link})
    else:
        out.print(link, markup=False)


def review_revoke(
    review: ReviewId, name: Name, workspace: Folder = HERE, as_json: AsJson = False
) -> None:
    """End a link; votes that were given with it stay."""
    app = opened(workspace)
    found = app.ledger.get(Review, review)
    now = app.clock.now()
    with app.ledger.begin() as tx:
        if not rows.revoke(tx, found.review_id, name, now):
            raise NotFound(f"nobody called {name} is invited to review {found.review_id}")
        tx.event(now, "review.revoked", found.review_id, f"the link of {name} ended", actor=actor())
    text = f"the link of {name} ended"
    print_json({"ok": True, "text": text}) if as_json else out.print(text, markup=False)


def review_extend(
    review: ReviewId,
    hours: Annotated[float, typer.Option(help="So many hours more than it has.", min=0.01)],
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Give an open review more time."""
    app = opened(workspace)
    found = app.ledger.get(Review, review)
    now = app.clock.now()
    longer = desk.extend(app.ledger, found, hours * 3600, now=now, actor=actor())
    if as_json:
        print_json({"review": longer.review_id, "deadline": longer.deadline})
    else:
        out.print(f"review {longer.review_id} ends in {ago(longer.deadline - now)}", markup=False)


def review_close(
    review: ReviewId,
    reason: Annotated[str, typer.Option(help="Kept with the verdict.")] = "",
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """End an open review now, by the votes that are there: what they do not show is inconclusive,
    and then the update that waits for it is not promoted. Ends as `review result` does."""
    app = opened(workspace)
    found = app.ledger.get(Review, review)
    closed = desk.end(app.ledger, found, reason, now=app.clock.now(), actor=actor())
    if as_json:
        print_json(readmodel.plain(readmodel.review_brief(app.ledger, closed)))
    else:
        out.print(
            f"review {closed.review_id}: {_state(readmodel.review_brief(app.ledger, closed))}",
            markup=False,
        )
    _exit(closed)


def _exit(review: Review) -> None:
    verdicts = list(review.verdicts.values())
    code = 1 if Verdict.FAIL in verdicts else max((EXIT[v] for v in verdicts), default=0)
    if code:
        raise typer.Exit(code)


def _address(app: App) -> str:
    host = app.config.console.host
    return f"http://{f'[{host}]' if ':' in host else host}:{app.config.console.port}"


def _state(facts: Mapping[str, Any]) -> str:
    if facts["open"]:
        return "open"
    verdicts = ", ".join(f"{n}: {v}" for n, v in facts["verdicts"].items())
    return f"{verdicts} ({facts['closed_because']})"


def _share(share: float | None, interval: Sequence[float] | None) -> str:
    if share is None or interval is None:
        return "–"
    return f"{100 * share:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _needed(answer: Mapping[str, Any]) -> str:
    if answer["decided"]:
        return "decided"
    return "more than are left" if answer["needed"] is None else f"about {answer['needed']}"
