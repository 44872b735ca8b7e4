"""dataset check: what is wrong with a folder of images and captions; dataset proposed, approve,
reject: what of live traffic may be learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from intonaco import readmodel
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.cli.steer import ask
from intonaco.datasets import checking
from intonaco.datasets.formats import Columns
from intonaco.datasets.store import LocalDatasetStore
from intonaco.datasets.validation import Report, validate
from intonaco.errors import NotFound

TextColumn = Annotated[
    str | None, typer.Option(help="Where the captions are, if not in text, caption or prompt.")
]
ImageColumn = Annotated[
    str | None, typer.Option(help="Where the images are, if a parquet file has several columns.")
]
FAIL = 1


def add_to(datasets: typer.Typer) -> None:
    """The commands beside those of ``data``."""
    datasets.command("check")(check)
    datasets.command("proposed")(proposed)
    datasets.command("approve")(approve)
    datasets.command("reject")(reject)


def check(
    what: Annotated[
        str,
        typer.Argument(help="Anything that `dataset add` takes, or a version of `dataset list`."),
    ],
    report: Annotated[
        Path | None, typer.Option(help="Where to write report.json, report.html, problems.jsonl.")
    ] = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Check images and captions as before training. Exit code 1 if they would be refused."""
    app = opened(workspace)
    pipeline = checking.pipeline_of(app.config, app.workspace, app.ledger)
    rules = checking.rules_of(app.config, app.workspace, pipeline)
    now = app.clock.now()

    def look(folder: Path) -> Report:
        found = validate(folder, rules)
        if report is not None:  # now, while the pictures of a shard are there
            checking.keep(found, rules, report, now)
        return found

    store = LocalDatasetStore(app.workspace.datasets, app.clock, check=look)
    if Path(what).exists():
        found = store.examine(Path(what), columns=Columns(text=text_column, image=image_column))
    else:
        found = look(store.open(_version(store, what)))
    told = checking.facts(found, rules, now)
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
    if told["verdict"] == "fail":
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


def _version(store: LocalDatasetStore, what: str) -> str:
    """Raises NotFound."""
    known = [v.version for v in store.list() if v.version.startswith(what)]
    if len(known) != 1:
        why = "several versions begin" if known else "nothing is at and no version begins"
        raise NotFound(
            f"{why} with {what}", hint="`intonaco dataset list` shows the versions there are"
        )
    return known[0]
