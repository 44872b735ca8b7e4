"""dataset check: what is wrong with a folder of images and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.datasets import checking
from intonaco.datasets.store import LocalDatasetStore
from intonaco.datasets.validation import validate
from intonaco.errors import NotFound

FAIL = 1


def add_to(datasets: typer.Typer) -> None:
    """The commands beside those of ``data``."""
    datasets.command("check")(check)


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
