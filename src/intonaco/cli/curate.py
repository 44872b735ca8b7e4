"""dataset check: what is wrong with a folder of images and captions; dataset proposed, approve,
reject: what of live traffic may be learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from intonaco import readmodel
from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.cli.steer import ask
from intonaco.datasets import checking
from intonaco.datasets.store import LocalDatasetStore
from intonaco.datasets.validation import validate
from intonaco.errors import NotFound

FAIL = 1


def add_to(datasets: typer.Typer) -> None:
    """The commands beside those of ``data``."""
    datasets.command("check")(check)
    datasets.command("proposed")(proposed)
    datasets.command("approve")(approve)
    datasets.command("reject")(reject)


def check(
    what: Annotated[str, typer.Argument(help="A folder, or a version of `dataset list`.")],
    report: Annotated[
        Path | None, typer.Option(help="Where to write report.json, report.html, problems.jsonl.")
    ] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Check images and captions as before training. Exit code 1 if they would be refused."""
    app = opened(workspace)
    folder = _folder(app, what)
    pipeline = checking.pipeline_of(app.config, app.workspace, app.ledger)
    rules = checking.rules_of(app.config, app.workspace, pipeline)
    found = validate(folder, rules)
    told = checking.facts(found, rules, app.clock.now())
    if report is not None:
        checking.keep(found, rules, report, app.clock.now())
    if as_json:
        print_json(dict(told))
    else:
        print_table(
            str(what),
            ("found", "then", "how many", "first"),
            (
                (kind, of["policy"], of["count"], ", ".join(of["names"][:3]))
                for kind, of in told["kinds"].items()
            ),
        )
        out.print(
            f"{told['verdict']}: {told['kept']} of {told['items']} items stay, "
            f"{told['left_out_count']} files are left out",
            markup=False,
        )
        if report is not None:
            out.print(f"written to {report}", markup=False)
    if found.failures:
        raise typer.Exit(FAIL)


def proposed(
    update: Annotated[str | None, typer.Argument(help="Update id; none: all that wait.")] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """What of live traffic is proposed as training data. The console shows the pictures."""
    app = opened(workspace)
    if update is None:
        found = readmodel.curated(app.ledger, app.workspace, app.config)
        if as_json:
            print_json(found)
            return
        print_table(
            "proposed",
            ("update", "images", "of", "waits", "word"),
            (
                (
                    p["update_id"],
                    p["count"],
                    p["considered"],
                    "yes" if p["waits"] else "no",
                    _word(p["word"]),
                )
                for p in found
            ),
        )
        return
    card = readmodel.proposal_card(app.ledger, app.workspace, app.config, update)
    if as_json:
        print_json(card)
        return
    print_table(
        f"proposed for {update}",
        ("item", "source", "votes", "score", "release", "prompt"),
        (
            (
                i["id"],
                i["source"],
                i["votes"],
                None if i["score"] is None else f"{i['score']:.3f}",
                i["release"][:10],
                i["prompt"],
            )
            for i in card["items"]
        ),
    )


def approve(
    update: Annotated[str, typer.Argument(help="Update id.")],
    drop: Annotated[list[str] | None, typer.Option(help="Item to leave out; repeatable.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Let an update learn from what is proposed for it."""
    arguments = {"update": update, "drop": drop or [], "reason": reason}
    ask(opened(workspace), "curation.approve", arguments, as_json)


def reject(
    update: Annotated[str, typer.Argument(help="Update id.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Let an update learn from none of what is proposed for it."""
    ask(opened(workspace), "curation.reject", {"update": update, "reason": reason}, as_json)


def _word(word: Mapping[str, Any] | None) -> str:
    if word is None:
        return ""
    return f"{'approved' if word['approved'] else 'rejected'} by {word['actor']}"


def _folder(app: App, what: str) -> Path:
    """Raises NotFound."""
    if Path(what).is_dir():
        return Path(what)
    store = LocalDatasetStore(app.workspace.datasets, app.clock)
    known = [v.version for v in store.list() if v.version.startswith(what)]
    if len(known) != 1:
        why = "several versions begin" if known else "no folder and no version begins"
        raise NotFound(
            f"{why} with {what}", hint="`intonaco dataset list` shows the versions there are"
        )
    return store.open(known[0])
